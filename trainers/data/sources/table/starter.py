"""What `livetrain init` writes: a spec and a recipe, with the reasons as comments."""

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.configs.spec import Spec, load_spec
from livetrain.trainers.data.sources.events.stage import database
from livetrain.trainers.data.sources.table import look, select
from livetrain.trainers.data.sources.table.files import quoted, text
from livetrain.trainers.data.sources.table.guess import Guess, guess, no_feature, plain, words
from livetrain.trainers.data.sources.table.look import Looked, LookedFile
from livetrain.trainers.runtime.manifest import write_text

_LAST = 20  # rows of a history
_WIDEST = 2**22  # rows of a table of the starter recipe
_LEAST_VECTOR = 6  # numbered columns of numbers that are taken for one vector


@dataclass
class _Made:
    """The samples' columns as they come to be: the lines of the spec, and what the recipe knows of each."""

    lines: dict[str, tuple[dict[str, Any], str]] = field(default_factory=dict)  # name -> column, comment
    tables: dict[str, int] = field(default_factory=dict)  # id column -> about how many different ids
    kinds: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    @property
    def taken(self) -> list[str]:
        """Names that no further column may have."""
        return [*self.lines, *self.labels]

    def add(self, name: str, kind: str, source: str, comment: str = "", **more: Any) -> None:
        column: dict[str, Any] = {"type": kind}
        if source != name:
            column["column"] = source
        self.lines[name] = (column | more, comment)
        self.kinds[name] = kind


def init(paths: list[str], folder: Path, name: str | None, labels: dict[str, str]) -> tuple[Path, Path, Guess]:
    """Look at some files and write a spec and a recipe that trains on them.

    Args:
        paths: files, or URIs.
        folder: for the two files; their paths in the spec are seen from there.
        name: of the dataset and of the run, by default the log's file name.
        labels: expressions to predict, instead of guesses.

    Returns:
        The spec, the recipe, and what was guessed.

    Raises:
        BadInput: a file cannot be read, nothing looks like an outcome, or one of the two files exists already.
    """
    with tempfile.TemporaryDirectory(prefix="livetrain-init-") as work, database(Path(work)) as connection:
        select.add_functions(connection)
        looked = [look.look(connection, path, number, Path(work)) for number, path in enumerate(paths)]
        found = guess(connection, looked, labels)
    stem = name or plain(found.log.path.rpartition("/")[2].split(".")[0], ())
    spec, recipe = folder / f"{stem}_data.yaml", folder / f"{stem}.yaml"
    for path in (spec, recipe):
        if path.exists():
            raise BadInput(f"{path} exists already; remove it, or choose another --name or --out")
    folder.mkdir(parents=True, exist_ok=True)
    made = _columns(found)
    write_text(spec, _spec(found, made, stem, folder))
    write_text(recipe, _recipe(found, made, stem, spec))
    load_spec(spec, Spec)
    load_recipe(recipe)
    return spec, recipe, found


def _columns(found: Guess) -> _Made:
    """Return the samples' columns: users and items first, then the log's, then those of the joined tables."""
    made = _Made(labels=list(found.labels))
    for role, column in (("user", found.user), ("item", found.item)):
        if column is not None:
            kind = "id" if column.kind == "whole" else "string"
            made.add(role, kind, _named(column.name, role))
            made.tables[role] = column.distinct
            if kind == "string":
                made.add(f"{role}_text", "text", column.name, "kept for people; no feature")
    skipped = {column.name for column in (found.user, found.item) if column is not None} | set(found.left)
    _add(made, found.log, skipped, "")
    for name, (file, key, _) in found.joins.items():
        _add(made, file, {key}, name)
    made.left = [f"{column}: {why}" for column, why in found.left.items()] + made.left
    return made


def _named(column: str, own: str) -> str:
    return own if column == own else column


def _add(made: _Made, file: LookedFile, skipped: set[str], table: str) -> None:
    vectors = _numbered([column for column in file.columns if column.name not in skipped])
    inside = {column.name for group in vectors.values() for column in group}
    for name, group in vectors.items():
        sources = ", ".join(_sql(column.name, table) for column in group)
        free = plain(name, made.taken)
        made.add(free, "vector", f"[{sources}]", f"{group[0].name} ... {group[-1].name}", width=len(group))
    for column in file.columns:
        if column.name in skipped or column.name in inside:
            continue
        label = f"{table}.{column.name}" if table else column.name
        single = column.distinct > 0.9 * column.rows and column.rows >= 20
        if reason := no_feature(column):
            # of an attribute table every row may have a name of its own; a category that few rows share is none
            made.left.append(f"{label}: {reason}")
            continue
        if table and single and column.kind == "string":
            made.left.append(f"{label}: every row has another value")
            continue
        name = plain(column.name, made.taken)
        if table and name.endswith("_2"):
            name = plain(f"{table}_{column.name}", made.taken)
        _one(made, name, column, table)


def _sql(column: str, table: str) -> str:
    return f"{quoted(table)}.{quoted(column)}" if table else quoted(column)


def _one(made: _Made, name: str, column: Looked, table: str) -> None:
    """Add a column of its kind."""
    source = f"{table}.{column.name}" if table else column.name
    if column.kind == "time":
        sql = _sql(column.name, table)
        parsed = sql if column.type != "VARCHAR" else f"TRY_CAST({sql} AS TIMESTAMP)"
        if column.type == "VARCHAR" and column.detail != "iso":
            parsed = f"try_strptime({sql}, {text(column.detail)})"
        made.add(name, "number", f"epoch({parsed}) / 86400", "days since 1970")
    elif column.kind in ("tags", "ids"):
        more = {} if column.detail == "|" else {"separator": column.detail}
        made.add(name, column.kind, source, **more)
        made.tables[name] = min(column.distinct * 2, 2**16)
    elif column.kind == "vector":
        more = {} if column.detail == "|" else {"separator": column.detail}
        made.add(name, "vector", source, width=column.width, **more)
    elif column.kind == "number" or (column.kind == "whole" and _is_amount(column)):
        made.add(name, "number", source)
    else:
        made.add(
            name,
            "id" if column.kind == "whole" or (column.kind == "flag" and column.detail == "1") else "string",
            source,
        )
        made.tables[name] = column.distinct


def _is_amount(column: Looked) -> bool:
    """Tell whether whole numbers are amounts and not names: many of them, and not called an id or a code."""
    coded = {
        "id",
        "code",
        "zip",
        "zipcode",
        "postal",
        "category",
        "cat",
        "type",
        "class",
        "brand",
        "cluster",
        "region",
        "tag",
    }
    return not coded & set(words(column.name)) and words(column.name)[-1:] != ["id"] and column.distinct > 20


def _numbered(columns: list[Looked]) -> dict[str, list[Looked]]:
    """Return groups of columns such as e_0, e_1 ... that are one vector, by what they have in common."""
    groups: dict[str, list[Looked]] = {}
    for column in columns:
        base = column.name.rstrip("0123456789")
        if (
            base not in ("", column.name)
            and column.kind in ("number", "whole")
            and not column.name.startswith("column")
        ):
            groups.setdefault(base, []).append(column)
    whole = {}
    for base, group in groups.items():
        numbers = sorted(int(column.name[len(base) :]) for column in group)
        steady = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        if len(group) >= _LEAST_VECTOR and steady and any(column.kind == "number" for column in group):
            places = {int(column.name[len(base) :]): column for column in group}
            whole[base] = [places[number] for number in numbers]
    return whole


def _history(found: Guess) -> str | None:
    """Return the label whose rows make a user's history, '' for all rows; None where there can be none."""
    if found.time is None or found.user is None or found.item is None or found.user.distinct > 0.9 * found.log.rows:
        return None
    return next((name for name, (_, kind) in found.labels.items() if kind == "binary"), "")


def _beside(found: Guess, made: _Made) -> list[str]:
    """Return what a history tells of an item besides its id: up to two of its categories."""
    tables = [name for name, (_, _, on) in found.joins.items() if found.item is not None and on == found.item.name]
    own = [
        name
        for name, (column, _) in made.lines.items()
        if column["type"] in ("id", "string") and str(column.get("column", "")).split(".")[0] in tables
    ]
    return sorted(own, key=lambda name: -made.tables.get(name, 0))[:2]


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        simple = value.replace("_", "").isalnum() and value.isascii() and value[0].isalpha()
        return (
            value
            if simple and value.lower() not in ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
            else (json.dumps(value, ensure_ascii=False))
        )
    return json.dumps(value)


def _files(file: LookedFile, more: list[LookedFile], folder: Path, **keys: Any) -> dict[str, Any]:
    paths = [one.path if "://" in one.path else _seen_from(folder, one.path) for one in (file, *more)]
    plain_keys = file.files.model_dump(exclude_defaults=True, exclude={"files"})
    return {"files": paths[0] if len(paths) == 1 else paths} | plain_keys | keys


def _seen_from(folder: Path, path: str) -> str:
    whole = Path(path).resolve()
    try:
        seen = os.path.relpath(whole, folder.resolve())
    except ValueError:  # another drive
        return str(whole)
    return str(whole) if seen.startswith("../../..") else seen


def _spec(found: Guess, made: _Made, stem: str, folder: Path) -> str:
    """Return the spec as text."""
    lines = [
        "# How the samples are made. What was guessed stands beside what it led to; correct what is wrong.",
        f"# livetrain data table {stem}_data.yaml --out data/{stem}",
        "#",
        *(f"# {reason}" for reason in found.why),
        *(["#", "# Left out:"] if made.left else []),
        *(f"#   {reason}" for reason in made.left),
        "",
        f"name: {_flow(stem)}",
        f"log: {_flow(_files(found.log, found.more, folder))}",
    ]
    if found.joins:
        lines.append("joins:")
        lines += [
            f"  {name}: {_flow(_files(file, [], folder, key=key, on=on))}"
            for name, (file, key, on) in found.joins.items()
        ]
    if found.time is not None:
        column, format_ = found.time
        moment = {"column": column} | ({} if format_ == "iso" else {"format": format_})
        lines.append(f"time: {_flow(moment)}  # zone: UTC, unless it says otherwise")
    lines += [f"{role}: {role}" for role in ("user", "item") if getattr(found, role) is not None]
    lines.append("columns:")
    if found.weight is not None:
        made.add(plain("weight", made.taken), "number", found.weight.name, "of the rows, in the loss")
    for name, (about_it, comment) in made.lines.items():
        lines.append(f"  {_flow(name)}: {_flow(about_it)}" + (f"  # {comment}" if comment else ""))
    lines.append("labels:")
    lines += [f"  {_flow(name)}: {json.dumps(sql, ensure_ascii=False)}" for name, (sql, _) in found.labels.items()]
    when = _history(found)
    if when is not None:
        of = ["item", *_beside(found, made)]
        about: dict[str, Any] = {"of": of} | ({"when": when} if when else {}) | {"last": _LAST}
        lines += ["histories:", f"  past: {_flow(about)}  # the user's earlier rows, strictly before each row's time"]
        lines += ["counts: [user, item]  # shown how often on earlier days, and how often with each label"]
        lines += [f"pairs: {_flow(of[:2])}  # how often this user had the same before"]
    elif found.time is not None:
        counted = [role for role in ("user", "item") if getattr(found, role) is not None]
        lines += [f"counts: {_flow(counted)}  # shown how often on earlier days"] if counted else []
    by = "time" if found.time is not None else "random"
    lines += ["split: {by: " + by + ", valid: 0.1, test: 0.1}  # or day, user, random, leave_one_out"]
    return "\n".join(lines) + "\n"


def _rows(distinct: int) -> int:
    """Return the rows of a table: a power of two, at least twice the ids."""
    return int(min(max(1 << max(2 * distinct - 1, 1).bit_length(), 16), _WIDEST))


def _recipe(found: Guess, made: _Made, stem: str, spec: Path) -> str:
    """Return a recipe that trains on the samples as text."""
    features, tables = _features(found, made)
    rows = found.log.rows + sum(file.rows for file in found.more)
    batch = 1 << min(max((rows // 100).bit_length(), 5), 10)
    lines = [
        f"# A first model of {stem}'s samples. Data: livetrain data table {spec.name} --out data/{stem}",
        f"name: {_flow(stem)}",
        f"data: {{path: data/{stem}, batch_size: {batch}, shards: 16}}",
        "features:",
        *(f"  {_flow(name)}: {_flow(feature)}" for name, feature in features.items()),
        "tables:",
        *(f"  {_flow(name)}: {_flow(table)}" for name, table in tables.items()),
    ]
    if not tables:
        lines.pop()
    lines += _model(found, features)
    lines.append("tasks:")
    for name, (_, kind) in found.labels.items():
        task: dict[str, Any] = {"label": name} | ({"kind": kind} if kind != "binary" else {}) | {"unknown": True}
        task |= {"sample_weight": "weight"} if found.weight is not None else {}
        lines.append(f"  {_flow(name)}: {_flow(task)}")
    lines += [
        "optimizers:",
        "  sparse: {kind: rowwise_adagrad, lr: 0.02}",
        "  dense: {kind: adam, lr: 1e-3}",
        f"train: {{epochs: {3 if rows < 20_000 else 1}}}",
    ]
    if found.user is not None:
        lines.append("evaluate: {group_by: user}")
    lines.append("cluster: {workers: 0}  # in this process; 2 and more train in parallel, by Ray")
    return "\n".join(lines) + "\n"


def _features(found: Guess, made: _Made) -> tuple[dict[str, Any], dict[str, Any]]:
    features: dict[str, Any] = {}
    tables: dict[str, Any] = {}

    def table(name: str, distinct: int) -> str:
        tables[name] = {"rows": _rows(distinct), "dim": 16 if distinct > 1000 else 8}
        return name

    for name, kind in made.kinds.items():
        if kind in ("id", "string"):
            features[name] = {"type": "id", "table": table(name, made.tables.get(name, 1000))}
        elif kind in ("tags", "ids"):
            features[name] = {"type": "sequence", "table": table(name, made.tables.get(name, 1000)), "max_length": 20}
        elif kind == "number" and name != "weight":
            features[name] = {"type": "dense"}
    if found.time is not None:
        features |= {
            "hour": {"type": "id", "table": table("hour", 24)},
            "weekday": {"type": "id", "table": table("weekday", 7)},
        }
    binary = [name for name, (_, kind) in found.labels.items() if kind == "binary"]
    if found.time is not None:
        roles = [role for role in ("user", "item") if getattr(found, role) is not None]
        counted = [*roles, *(["user_seen"] if _history(found) is not None else [])]
        if _history(found) is None and "user" in roles:
            counted.append("user_seen")
        for role in counted:
            features |= {
                f"{role}_{what}": {"type": "dense"} for what in ("count", *(f"{label}_rate" for label in binary))
            }
    if _history(found) is not None:
        of = ["item", *_beside(found, made)]
        features |= {f"past_{name}": {"type": "sequence", "table": name, "max_length": _LAST} for name in of}
        features |= {"past_gap": {"type": "sequence", "table": table("gap", 32), "max_length": _LAST}}
        for name in of[:2]:
            tallied = ("count", *(f"{label}_count" for label in binary), "ago")
            features |= {f"user_{name}_{what}": {"type": "dense"} for what in tallied}
    return features, tables


def _model(found: Guess, features: dict[str, Any]) -> list[str]:
    """Return the model's lines: attention over the history where there is one, and experts where tasks share."""
    lines = ["model:"]
    if len(found.labels) > 1:
        lines += ["  kind: mmoe", "  experts: 4", "  expert_units: [128]", "  tower_units: [32]"]
    else:
        lines += ["  kind: din" if "past_item" in features else "  kind: dnn", "  units: [128, 64]"]
    pooled = [
        name for name, feature in features.items() if feature["type"] == "sequence" and not name.startswith("past_")
    ]
    if "past_item" in features:
        of = [name.removeprefix("past_") for name in features if name.startswith("past_") and name != "past_gap"]
        attention = {"query": of, "events": [f"past_{name}" for name in of], "side": ["past_gap"]}
        lines.append(f"  attention: [{_flow(attention)}]")
    if pooled and "  kind: dnn" not in lines:  # which averages every list
        lines.append(f"  pooled: {_flow(pooled)}")
    return lines


def reasons(found: Guess) -> list[str]:
    """Return what was guessed, for the terminal."""
    left = [f"left out: {column}, {why}" for column, why in found.left.items() if why not in ("a label", "the time")]
    return [*found.why, *left]
