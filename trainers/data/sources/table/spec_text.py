"""The spec that `livetrain init` writes, as text with the reasons as comments."""

import json
import os
from pathlib import Path
from typing import Any

from livetrain.trainers.data.sources.table.columns import Made, beside, history
from livetrain.trainers.data.sources.table.guessed import Guess
from livetrain.trainers.data.sources.table.look import LookedFile

LAST = 20  # rows of a history
_TIMES = 20  # least different times of a split by time


def flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
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


def _parts_by_time(found: Guess) -> bool:
    """Tell whether the rows have so many different times that a tenth of them can be the newest."""
    if found.time is None:
        return False
    times = next((column.distinct for column in found.log.columns if column.name == found.time[0]), None)
    return times is None or times >= _TIMES


def spec_text(found: Guess, made: Made, stem: str, folder: Path) -> str:
    """Return the spec as text."""
    lines = [
        "# How the samples are made. What was guessed stands beside what it led to; correct what is wrong.",
        f"# livetrain data table {stem}_data.yaml --out data/{stem}",
        "#",
        *(f"# {reason}" for reason in found.why),
        *(["#", "# Left out:"] if made.left else []),
        *(f"#   {reason}" for reason in made.left),
        "",
        f"name: {flow(stem)}",
        f"log: {flow(_files(found.log, found.more, folder))}",
    ]
    if found.joins:
        lines.append("joins:")
        lines += [
            f"  {name}: {flow(_files(file, [], folder, key=key, on=on))}"
            for name, (file, key, on) in found.joins.items()
        ]
    if found.time is not None:
        column, format_ = found.time
        moment = {"column": column} | ({} if format_ == "iso" else {"format": format_})
        lines.append(f"time: {flow(moment)}  # zone: UTC, unless it says otherwise")
    lines += [f"{role}: {role}" for role in ("user", "item") if getattr(found, role) is not None]
    lines.append("columns:")
    for name, (about_it, comment) in made.lines.items():
        lines.append(f"  {flow(name)}: {flow(about_it)}" + (f"  # {comment}" if comment else ""))
    lines.append("labels:")
    lines += [f"  {flow(name)}: {json.dumps(sql, ensure_ascii=False)}" for name, (sql, _) in found.labels.items()]
    when = history(found)
    if when is not None:
        of = ["item", *beside(found, made)]
        about: dict[str, Any] = {"of": of} | ({"when": when} if when else {}) | {"last": LAST}
        lines += ["histories:", f"  past: {flow(about)}  # the user's earlier rows, strictly before each row's time"]
        lines += ["counts: [user, item]  # shown how often on earlier days, and how often with each label"]
        lines += [f"pairs: {flow(of[:2])}  # how often this user had the same before"]
    elif found.time is not None:
        counted = [role for role in ("user", "item") if getattr(found, role) is not None]
        lines += [f"counts: {flow(counted)}  # shown how often on earlier days"] if counted else []
    lines += [
        "split: {by: "
        + ("time" if _parts_by_time(found) else "random")
        + ", valid: 0.1, test: 0.1}  # or day, user, random, leave_one_out"
    ]
    return "\n".join(lines) + "\n"
