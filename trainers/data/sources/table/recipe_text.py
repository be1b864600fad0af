"""The recipe that `livetrain init` writes, as text: a first model of the samples that its spec describes."""

from pathlib import Path
from typing import Any

import numpy as np

from livetrain.trainers.data.sources.table.columns import Made, beside, history
from livetrain.trainers.data.sources.table.guessed import Guess
from livetrain.trainers.data.sources.table.look import Looked
from livetrain.trainers.data.sources.table.spec_text import LAST, flow

_WIDEST = 2**22  # rows of a table of the starter recipe
_PROJECTION = 16  # numbers that a wider vector becomes
_TAIL = 1.5  # mean over median of amounts with a long tail: 1 of a bell, 1.44 of an exponential distribution


def _rows(distinct: int) -> int:
    """Return the rows of a table: a power of two, at least twice the ids."""
    return int(min(max(1 << max(2 * distinct - 1, 1).bit_length(), 16), _WIDEST))


def recipe_text(found: Guess, made: Made, stem: str, spec: Path) -> str:
    """Return a recipe that trains on the samples as text."""
    features, tables = _features(found, made)
    rows = found.log.rows + sum(file.rows for file in found.more)
    batch = 1 << min(max((rows // 100).bit_length(), 5), 10)
    lines = [
        f"# A first model of {stem}'s samples. Data: livetrain data table {spec.name} --out data/{stem}",
        f"name: {flow(stem)}",
        f"data: {{path: data/{stem}, batch_size: {batch}, shards: 16}}",
        "features:",
        *(f"  {flow(name)}: {flow(feature)}" for name, feature in features.items()),
        "tables:",
        *(f"  {flow(name)}: {flow(table)}" for name, table in tables.items()),
    ]
    if not tables:
        lines.pop()
    lines += _model(found, features)
    lines.append("tasks:")
    for name, (_, kind) in found.labels.items():
        task: dict[str, Any] = {"label": name} | ({"kind": kind} if kind != "binary" else {}) | {"unknown": True}
        task |= {"sample_weight": made.weight} if made.weight else {}
        lines.append(f"  {flow(name)}: {flow(task)}")
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


def _features(found: Guess, made: Made) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the features, those of the files' columns first, and the tables that they look ids up in."""
    features: dict[str, Any] = {}
    tables: dict[str, Any] = {}

    def table(name: str, distinct: int) -> str:
        tables[name] = {"rows": _rows(distinct), "dim": 16 if distinct > 1000 else 8}
        return name

    def whole(name: str, rows: int) -> str:
        tables[name] = {"rows": rows, "dim": 8, "hash": "modulo"}
        return name

    for name, (column, _) in made.lines.items():
        if column["type"] in ("id", "string"):
            features[name] = {"type": "id", "table": table(name, made.tables[name])}
        elif column["type"] in ("tags", "ids"):
            features[name] = {"type": "bag", "table": table(name, made.tables[name])}
        elif column["type"] == "vector":
            width = column["width"]
            features[name] = {"type": "vector", "width": width, "normalise": True}
            features[name] |= {"projection": _PROJECTION} if width > _PROJECTION else {}
        elif column["type"] == "number" and name != made.weight:
            features[name] = _number(made.looked.get(name))
    if found.time is not None:
        features |= {
            "hour": {"type": "id", "table": whole("hour", 24)},
            "weekday": {"type": "id", "table": whole("weekday", 7)},
        }
        features |= _counts(found)
    if history(found) is not None:
        of = ["item", *beside(found, made)]
        features |= {f"past_{name}": {"type": "sequence", "table": name, "max_length": LAST} for name in of}
        features |= {"past_gap": {"type": "sequence", "table": whole("gap", 32), "max_length": LAST}}
        for name in of[:2]:
            tallied = ("count", *(f"{label}_count" for label in _binary(found)))
            features |= {f"user_{name}_{what}": {"type": "dense"} for what in tallied}
            features |= {f"user_{name}_ago": {"type": "dense", "missing_flag": True}}
    return features, tables


def _number(column: Looked | None) -> dict[str, Any]:
    """Return the feature of a column of numbers: amounts with a long tail by their logarithm, holes with a flag."""
    feature: dict[str, Any] = {"type": "dense"}
    if column is None:
        return feature
    numbers = np.asarray(column.numbers)
    if numbers.min() >= 0 and numbers.mean() > _TAIL * np.median(numbers):
        feature["log1p"] = True
    return feature | ({"missing_flag": True} if len(column.given) < len(column.values) else {})


def _binary(found: Guess) -> list[str]:
    return [name for name, (_, kind) in found.labels.items() if kind == "binary"]


def _counts(found: Guess) -> dict[str, Any]:
    """Return the features of earlier days, and those of the user up to just before a row; rates are null before any."""
    roles = [role for role in ("user", "item") if getattr(found, role) is not None]
    features: dict[str, Any] = {}
    for role in [*roles, *(["user_seen"] if "user" in roles else [])]:
        features[f"{role}_count"] = {"type": "dense"}
        features |= {f"{role}_{label}_rate": {"type": "dense"} for label in _binary(found)}
    return features


def _model(found: Guess, features: dict[str, Any]) -> list[str]:
    """Return the model's lines: attention over the history where there is one, and experts where tasks share."""
    lines = ["model:"]
    if len(found.labels) > 1:
        lines += ["  kind: mmoe", "  experts: 4", "  expert_units: [128]", "  tower_units: [32]"]
    else:
        lines += ["  kind: din" if "past_item" in features else "  kind: dnn", "  units: [128, 64]"]
    if "past_item" in features:
        of = [name.removeprefix("past_") for name in features if name.startswith("past_") and name != "past_gap"]
        attention = {"query": of, "events": [f"past_{name}" for name in of], "side": ["past_gap"]}
        lines.append(f"  attention: [{flow(attention)}]")
    return lines
