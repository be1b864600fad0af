"""A warm start: a new run begins with what an earlier one has learned, as far as it fits (see trainers.train.fitting).

A table of R rows may grow to k R. Row r of the new table begins as row r mod R of the old one, with its optimizer
state: an id whose row is r in k R rows had row r mod R in R rows (see modules.tables.hashing.row), so every
id begins with what it had, and the model answers what it answered before. What collided may part from then on. A rank
takes a block of memory for it (see `writing.BLOCK`): old tables are read block by block into the shards.

Of a table of ids (`hash: table`) the ids come along, with their last uses and counts. One of another size gives them
other rows, and an id's row is taken from where it was; so it is where a table of `hash: mix` or `modulo` becomes one of
ids, once these are admitted (`Begun.admitted`): ids that shared a row begin as copies of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.tables import hashing
from livetrain.trainers.runtime import run_folder
from livetrain.trainers.runtime.manifest import write_text
from livetrain.trainers.runtime.run_folder import find_checkpoint
from livetrain.trainers.train import checkpoint, ids, online
from livetrain.trainers.train.fitting import Fit, Taken, fit
from livetrain.trainers.train.restore import Reader
from livetrain.trainers.train.sharding import Sharded

NAME = "warm_start.txt"
_BY_ROWS = ("used", "waiting", "waiting_counts", "waiting_used")  # what goes with ids to another place
_MEND = "start from another run, or leave train.warm_start out"


def find(recipe: Recipe) -> Path | None:
    """Return the checkpoint that a recipe begins with, the best of the run train.warm_start; None without one.

    Raises:
        BadInput: there is no such checkpoint.
    """
    if recipe.train.warm_start is None:
        return None
    try:
        return find_checkpoint(Path(recipe.train.warm_start.run), "best", _MEND)
    except BadInput as error:
        raise type(error)(f"train.warm_start: {error}") from error.__cause__


def plan(recipe: Recipe, path: Path) -> Fit:
    """Return what a recipe's model begins with of a checkpoint from `find`.

    Raises:
        BadInput: a name in train.warm_start is nowhere, or nothing fits.
    """
    try:
        return fit(recipe, run_folder.recipe_in(path), str(path))
    except BadInput as error:
        start = "" if str(error).startswith("train.warm_start") else "train.warm_start: "
        raise type(error)(f"{start}{error}") from error.__cause__


def tell(recipe: Recipe, path: Path, run: Path) -> list[str]:
    """Write what is taken of a checkpoint, and what begins anew and why, to a run's folder; return it in short.

    Raises:
        BadInput: see `plan`.
    """
    lines = plan(recipe, path).lines
    wide = max(len(line.name) for line in lines)
    rows = [f"{line.name:<{wide}}  {line.taken:<7}  {line.why}".rstrip() for line in lines]
    write_text(run / NAME, "\n".join([f"of {path}", *rows, ""]))
    fates = [line for line in lines if line.taken != "all" or line.why]
    whole = f"{len(lines) - len(fates)} of {len(lines)} tables and layers are taken whole"
    return [
        f"begins with {path}: {whole}; all are in {run / NAME}",
        *(f"{line.name}: {line.taken} taken" + (f" ({line.why})" if line.why else "") for line in fates),
    ]


@dataclass(frozen=True)
class Hashed:
    """A table of ids whose rows come from a hashed one: entries (value, name in the layout), its rows and its hash."""

    entries: list[tuple[Any, str]]
    rows: int
    modulo: bool


@dataclass(frozen=True)
class Begun:
    """What a model has begun with.

    Args:
        tables: names of the tables that were loaded.
        reader: of the old checkpoint.
        hashed: by table, what is to be taken once its ids are admitted.
    """

    tables: set[str]
    reader: Reader
    hashed: dict[str, Hashed] = field(default_factory=dict)

    @torch.no_grad()
    def admitted(self, sharded: Sharded) -> None:
        """Give every id that has a row by now the row that it had in a hashed table, its optimizer's state included."""
        for name, table in self.hashed.items():
            known, here = sharded.registers[name].ids()
            there = hashing.row(known, table.rows, table.modulo)
            for value, entry in table.entries:
                _gather(value, self.reader, entry, here, there)
        sharded.purge()


def load(sharded: Sharded, recipe: Recipe, path: Path) -> Begun:
    """Load what fits of a checkpoint into a model, with its optimizers' state. Collective.

    Args:
        sharded: what to load into, in place.
        recipe: its recipe.
        path: from `find`.

    Raises:
        BadInput: the checkpoint is damaged.
    """
    try:
        return _load(sharded, recipe, path, plan(recipe, path))
    except run_folder.Damaged as error:
        raise BadInput(f"train.warm_start: {error}; {_MEND}") from None


def _load(sharded: Sharded, recipe: Recipe, path: Path, found: Fit) -> Begun:
    asked: dict[str, dict[str, Any]] = {}
    copies: list[tuple[Any, Taken, dict[str, Any], str]] = []  # where to, how, and where from once it is read
    grown: list[tuple[Any, int, str]] = []  # where to, the old table's rows, and its entry's name in the layout
    moved: dict[int, list[tuple[Any, str]]] = {}  # of tables whose ids have other rows than before, by id(taken)

    def ask(value: Any, taken: Taken, place: dict[str, Any], name: str, key: str) -> None:
        if not isinstance(value, torch.Tensor | ShardedTensor) or not len(value.size()):
            place[key] = value
        elif taken.places:
            place[key] = torch.empty(taken.shape, dtype=value.dtype)
            copies.append((value, taken, place, key))
        elif taken.rows_of:
            moved.setdefault(id(taken), []).append((value, f"{name}.{key}"))
        elif value.size()[0] == taken.shape[0]:
            place[key] = value
        else:
            grown.append((value, taken.shape[0], f"{name}.{key}"))

    state = checkpoint.state(sharded)
    for key, value in state["model"].items():
        if (taken := found.taken.get(key)) is not None:
            ask(value, taken, asked.setdefault("model", {}), "model", taken.key)
    for part in [name for name in state if name.startswith("optimizer_")]:
        for key, values in state[part].items():
            own = key.removeprefix("model.")
            if (taken := found.taken.get(own)) is None or not taken.state:
                continue
            was_key = key.replace(own, taken.key)
            place = asked.setdefault(part, {}).setdefault(was_key, {})
            table, was = own.split(".")[-2], taken.key.split(".")[-2]
            for name, value in values.items():
                entry = f"{was}.{name.removeprefix(f'{table}.')}" if f"{table}." in name else name
                ask(value, taken, place, f"{part}.{was_key}", entry)
    old = run_folder.recipe_in(path)
    if list(old.tasks) == list(recipe.tasks) and old.gradients.kind == recipe.gradients.kind and "gradients" in state:
        asked["gradients"] = state["gradients"]
    if "steps" in state:
        asked["steps"] = state["steps"]
    tables = {key.split(".")[-2]: taken for key, taken in found.taken.items() if key.startswith("tables.")}
    maps: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {}  # of maps whose ids are placed anew
    for name in ids.tables(sharded):
        was = tables[name].key.split(".")[-2] if name in tables else ""
        if not was or old.tables[was].hash != "table":
            continue
        keys, kept = state["model"][f"hash.maps.of_{name}.keys"], state["ids"][name]
        if tables[name].rows_of:
            many = old.tables[was].rows
            keys = torch.empty(many, dtype=keys.dtype)
            own = kept
            kept = {part: torch.empty(many, dtype=own[part].dtype) for part in _BY_ROWS if part in own}
            kept |= {"counted": torch.empty_like(own["counted"]), "totals": own["totals"]}
            maps[name] = (asked.setdefault("model", {}), asked.setdefault("ids", {}), was)
        asked.setdefault("model", {})[f"hash.maps.of_{was}.keys"] = keys
        asked.setdefault("ids", {})[was] = kept
    reader = checkpoint.read(asked, path, whole=False)
    with torch.no_grad():
        for value, taken, place, key in copies:
            if key in place:
                _fill(value, place[key], taken)
        for value, rows, name in grown:
            if name in reader.read_metadata().state_dict_metadata:
                _spread(value, reader, name, rows)
        for name, (model, kept, was) in maps.items():
            here, there = ids.placed(sharded, name, model[f"hash.maps.of_{was}.keys"], kept[was])
            ids.settle(sharded)
            for value, entry in moved[id(tables[name])]:
                _gather(value, reader, entry, here, there)
        if (mean := sharded.pipeline.update.mean) is not None:  # what was evaluated goes on, and a mean of its own
            for name, parameter in mean.parameters.items():
                parameter.copy_(mean.values[name])
    sharded.purge()
    hashed = {
        name: Hashed(moved[id(taken)], taken.shape[0], old.tables[taken.key.split(".")[-2]].hash == "modulo")
        for name, taken in tables.items()
        if taken.rows_of == "hash"
    }
    return Begun({*tables}, reader, hashed)


def _gather(value: Any, reader: Reader, name: str, here: torch.Tensor, there: torch.Tensor) -> None:
    """Fill rows `here` of what this rank holds of an entry with the rows `there` of an old one, if there is such."""
    if name not in reader.read_metadata().state_dict_metadata:
        return
    pieces = list(online.pieces(value))

    def needed(block: range) -> bool:
        return bool(((there >= block.start) & (there < block.stop)).any())

    for (first, *left), block in reader.blocks(name, needed):
        found = (there >= first) & (there < first + len(block))
        for piece, row, column in pieces:
            own = found & (here >= row) & (here < row + len(piece))
            to, of = (here[own] - row).to(piece.device), there[own] - first
            if not left:
                piece[to] = block[of].to(piece)
                continue
            low, high = max(column, *left), min(column + piece.size(1), left[0] + block.size(1))
            if low < high:
                piece[to, low - column : high - column] = block[of, low - left[0] : high - left[0]].to(piece)


def _fill(value: Any, loaded: Any, taken: Taken) -> None:
    """Copy what was read to where it belongs."""
    whole = [(torch.arange(size),) * 2 for size in value.shape]
    both = [taken.places.get(dim, each) for dim, each in enumerate(whole)]
    here, there = (torch.meshgrid(*places, indexing="ij") for places in zip(*both, strict=True))
    value[tuple(each.to(value.device) for each in here)] = loaded[there].to(value.device)


def _spread(value: Any, reader: Reader, name: str, rows: int) -> None:
    """Fill what this rank holds of a grown table's entry, a block of the old one after the other.

    Args:
        value: the entry.
        reader: of the old checkpoint.
        name: of the old entry.
        rows: of the old table.
    """
    ranges = [
        (piece, column, *each) for piece, row, column in online.pieces(value) for each in _ranges(row, len(piece), rows)
    ]

    def needed(block: range) -> bool:
        return any(old < block.stop and block.start < old + count for _, _, _, old, count in ranges)

    for (first, *left), block in reader.blocks(name, needed):
        for tensor, column, at, old, count in ranges:
            start, stop = max(old, first), min(old + count, first + len(block))
            if start >= stop:
                continue
            here, there = tensor[at + start - old : at + stop - old], block[start - first : stop - first]
            if left:  # the columns that both have, where tables lie by columns
                low, high = max(column, *left), min(column + here.size(1), left[0] + there.size(1))
                high = max(low, high)
                here, there = here[:, low - column : high - column], there[:, low - left[0] : high - left[0]]
            here.copy_(there)


def _ranges(first: int, size: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield where rows [first, first + size) of a grown table begin: (place from 0 on, old row, how many in a row)."""
    at = 0
    while at < size:
        old = (first + at) % rows
        count = min(rows - old, size - at)
        yield at, old, count
        at += count
