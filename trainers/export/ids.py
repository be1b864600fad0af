"""Which ids have rows of their own in a run's tables, for people to look at."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.table import Table

from livetrain.configs.errors import BadInput, nearest
from livetrain.modules.tables.admission import NEVER, Register
from livetrain.modules.tables.ids import EMPTY, IdMap
from livetrain.trainers.data.write.ids import string_id
from livetrain.trainers.runtime import run_folder
from livetrain.trainers.train import checkpoint

_SHARED = "shares a row"


def kept(run: Path, which: str, table: str | None = None) -> dict[str, Register]:
    """Return the ids of a checkpoint's tables of `hash: table`, by table.

    Args:
        run: the run's folder.
        which: ``best`` or ``last``.
        table: this one alone.

    Raises:
        BadInput: there is no such checkpoint or table, or the run has no table of ids.
    """
    path, recipe = run_folder.find_checkpoint(run, which), run_folder.recipe_of(run)
    if table is not None and table not in recipe.tables:
        raise BadInput(f"--table: {run.name} has no table '{table}'{nearest(table, recipe.tables)}")
    declared = {n: t for n, t in recipe.tables.items() if t.hash == "table" and table in (None, n)}
    if not declared:
        raise BadInput(f"{run}: {table or 'the run'} has no ids of its own; only tables of hash: table have")
    found = {name: Register(each, IdMap.of(name, each)) for name, each in declared.items()}
    maps = {f"hash.maps.of_{name}.keys": register.map.keys for name, register in found.items()}
    checkpoint.read({"model": maps, "ids": {name: each.state() for name, each in found.items()}}, path)
    return found


def summary(found: Mapping[str, Register]) -> Table:
    """Return a line per table: how full it is, and what became of ids since its beginning."""
    shown = Table("table", "ids", "of", "full", "admitted", "evicted", "expired", "refused", "waiting", "oldest use")
    for name, register in found.items():
        used = register.used[register.used != NEVER]
        counts = (len(used), register.capacity)
        waiting = int((register.waiting[0] != EMPTY).sum())
        oldest = moment(int(used.min())) if len(used) else ""
        told = [f"{count:,}" for count in (*register.totals.tolist(), waiting)]
        shown.add_row(name, *(f"{count:,}" for count in counts), f"{counts[0] / counts[1]:.1%}", *told, oldest)
    return shown


def shown(found: Mapping[str, Register], asked: Sequence[str]) -> Table:
    """Return a line per table and id asked for: its row and its last use, or what else becomes of it."""
    lines = Table("table", "id", "row", "last use")
    for name, register in found.items():
        waits = dict(zip(register.waiting[0].tolist(), register.waiting[1].tolist(), strict=True))
        for text in asked:
            id_ = _id(text)
            row = int(register.map(torch.tensor([id_])))
            counted = f", looked up {waits[id_]:,} of {register.table.threshold:,} times" if id_ in waits else ""
            own = row < register.capacity
            lines.add_row(name, text, str(row), moment(int(register.used[row])) if own else _SHARED + counted)
    return lines


def write(found: Mapping[str, Register], path: Path) -> int:
    """Write a table's ids to a Parquet file; return how many.

    Raises:
        BadInput: there are several tables, or the file cannot be written.
    """
    if len(found) > 1:
        raise BadInput(f"--out: the run has several tables of ids, {', '.join(found)}; choose one with --table")
    (register,) = found.values()
    ids, rows = register.ids()
    times = pa.array((register.used[rows].long() * 60).numpy(), pa.timestamp("s", "UTC"))
    try:
        pq.write_table(pa.table({"id": ids.numpy(), "row": rows.numpy(), "last_use": times}), path)
    except OSError as error:
        raise BadInput(f"--out: {path} cannot be written ({error.strerror}); choose another place") from error
    return len(ids)


def moment(minutes: int) -> str:
    """Return a time in minutes since 1970 for people, UTC.

    Example:
        >>> moment(29_000_000)
        '2025-02-19 21:20'
    """
    return datetime.fromtimestamp(60 * minutes, UTC).strftime("%Y-%m-%d %H:%M")


def _id(text: str) -> int:
    try:
        id_ = int(text)
    except ValueError:
        return string_id(text)
    if not -(2**63) <= id_ < 2**63:
        raise BadInput(f"ID: {text[:40]} is no 64-bit number; ids lie from -2^63 to 2^63 - 1")
    return id_
