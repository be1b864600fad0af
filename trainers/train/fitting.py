"""What of an earlier run's model fits another recipe: for every tensor which old one it begins with, and where in it.

Tables go by name. Layers go by their place in the network and by their shape, with three corrections, for their places
and columns follow the recipe's features and tasks in order: columns of a layer that reads a row's features go by the
feature, entries of a `PerTask` by the task, those of a `PerHistory` by what the history reads. Where a shape cannot
tell one from the other, the layer begins anew.

What was measured or learned of a feature's values is taken while the feature makes the same ones of its column
(`Feature.same_values`): mean and deviation, bounds, the rows of its ids, its encoder, and the columns that read it.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, cast

import torch

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import Recipe, WarmStart
from livetrain.modules.layers.attention import ActivationUnit
from livetrain.modules.layers.bottom import PerHistory
from livetrain.modules.layers.experts import Experts, Level
from livetrain.modules.layers.fields import Fields
from livetrain.modules.layers.gather import Gather
from livetrain.modules.model import Model, stored_name
from livetrain.modules.network import PerTask
from livetrain.modules.tasks.heads import outputs

Parts = list[tuple[str, int]]  # (name, width) one after another
Places = tuple[torch.Tensor, torch.Tensor]  # of entries along one dimension: here, and where they come from
_TABLE = re.compile(r"\.embeddings\.([^.]+)\.weight$")  # in a stored name
_MAP = re.compile(r"hash\.maps\.")  # goes with its table
_TRANSFORM = re.compile(r"(?:hash|select)\.transforms\.of_([^.]+)\.")  # its buffers: bounds
_ENCODER = re.compile(r"dense\.encode\.encoders\.of_([^.]+)\.")
_EXPERTS, _SHARED = "(experts of) ", "(shared experts)"  # parts of an axis; no feature has such a name
_OTHERS = "it may read features or tasks that are others now"
_NEW = "features or tasks are new, or their values are others now"


@dataclass(frozen=True)
class Taken:
    """What a tensor begins with.

    Args:
        key: the old tensor's, as checkpoints store it.
        shape: the old tensor's.
        places: by dimension, which entries are taken; those of other dimensions are the same.
        state: whether its optimizer's state goes with it.
        rows_of: of a table whose ids have other rows than before, what tells where these were: the "map" of ids that
            it had, or its "hash".
    """

    key: str
    shape: torch.Size
    places: dict[int, Places] = field(default_factory=dict)
    state: bool = True
    rows_of: Literal["map", "hash"] | None = None


@dataclass(frozen=True)
class Line:
    """A line of the report: a table or a layer, what it begins with, and why nothing more."""

    name: str
    taken: str
    why: str


@dataclass(frozen=True)
class Fit:
    """Every tensor's old one, by the key under which checkpoints store it; those left out begin anew."""

    taken: dict[str, Taken]
    lines: list[Line]


def fit(recipe: Recipe, old: Recipe, path: str) -> Fit:
    """Return what of an old recipe's model a recipe's begins with.

    Args:
        recipe: the run's; without train.warm_start all that fits is taken.
        old: the one that the checkpoint was written with.
        path: of the checkpoint.

    Raises:
        BadInput: a name in map, only or except is nowhere, or nothing fits.
    """
    start = recipe.train.warm_start or WarmStart(run=path)
    models = [Model(each, device="meta", tables_device="meta") for each in (recipe, old)]
    _check_names(start, recipe, old, models[0])
    found = _Fitting(start, recipe, old, *models)
    for key, value in models[0].state_dict().items():
        if not _MAP.match(stored_name(key)):
            found.add(stored_name(key), value.shape)
    if all(_TRANSFORM.match(key) for key in found.taken):
        raise BadInput(f"{path}: nothing of this checkpoint fits the recipe; start from another run, or without one")
    return Fit(found.taken, found.lines())


class _Fitting:
    def __init__(self, start: WarmStart, recipe: Recipe, old: Recipe, model: Model, before: Model) -> None:
        self.start, self.recipe, self.old = start, recipe, old
        self.shapes = {stored_name(key): value.shape for key, value in before.state_dict().items()}
        self.tables = {name[1]: key for key in self.shapes if (name := _TABLE.search(key))}
        self.features = {name: self._same(name) for name in recipe.features}
        self.tasks = [self._old("tasks", name) for name in recipe.answered]
        self.axes = list(zip(_axes(model), _axes(before), strict=False))
        self.known, self.known_before = _known_axes(model, recipe), _known_axes(before, old)
        self.lists = _lists(model, len(recipe.answered)) & _lists(before, len(old.answered))
        self.no_task_in = (*(f"{path}." for path in self.lists), *_units(model))
        self.ends = _ends(model, self.lists)
        self.histories, self.histories_before = _histories(model), _histories(before)
        self.taken: dict[str, Taken] = {}
        self._fates: dict[str, list[tuple[str, str]]] = {}

    def _old(self, section: str, name: str) -> str | None:
        """Return the old name of a table, feature or task; None where it is to begin anew."""
        if f"{section}.{name}" in self.start.left_out:
            return None
        was = self.start.map.get(f"{section}.{name}", f"{section}.{name}").partition(".")[2]
        return was if was in getattr(self.old, section) else None

    def _same(self, name: str) -> str | None:
        """Return the old name of a feature that makes the same values as before; None of any other."""
        was = self._old("features", name)
        if was is None:
            return None
        now, before = self.recipe.features[name], self.old.features[was]
        same = now.same_values(before) and [self._same_ids(part) for part in now.parts] == before.parts
        same &= (None if now.alike is None else self._same(now.alike)) == before.alike
        return was if same else None

    def _same_ids(self, name: str) -> str | None:
        """Return the old name of a feature whose ids are the same as before, those of its column or those it makes."""
        was = self._old("features", name)
        if was is not None and self.recipe.features[name].plain and self.old.features[was].plain:
            return was
        return self._same(name)

    def _other_ids(self, table: str) -> str | None:
        """Return a feature that looks up other ids in a table than before; one that is new counts where it is alone."""
        same = {
            name: self._same_ids(name) is not None or (feature.plain and self._old("features", name) is None)
            for name, feature in self.recipe.features.items()
            if feature.looks_up() == table
        }
        others = (name for name in same if not same[name] and (self._old("features", name) or not any(same.values())))
        return next(others, None)

    def add(self, key: str, shape: torch.Size) -> None:
        """Find what a tensor begins with."""
        table, transform = _TABLE.search(key), _TRANSFORM.match(key)
        if transform:
            name, fate = f"features.{transform[1]}", self._buffer(key, transform[1])
        else:
            name = f"tables.{table[1]}" if table else f"layers.{key.removeprefix('dense.').removeprefix('network.')}"
            fate = (
                "it is left out"
                if not self.start.asks(name)
                else self._table(key, table[1])
                if table
                else self._layer(key, shape)
            )
            name = name if table else name.rpartition(".")[0]
        if isinstance(fate, str):
            self._fates.setdefault(name, []).append(("nothing", fate))
            return
        self.taken[key] = fate
        more = "" if fate.state else "without its optimizer's state: another optimizer"
        if table and fate.rows_of:
            more = "each id's row is taken from where it was" + (f", {more}" if more else "")
        elif table and fate.shape != shape:
            more = f"row r begins as row r mod {fate.shape[0]:,}" + (f", {more}" if more else "")
        part = "part" if any(len(here) < shape[dim] for dim, (here, _) in fate.places.items()) else "all"
        self._fates.setdefault(name, []).append((part, more or ("" if part == "all" else _NEW)))

    def _buffer(self, key: str, feature: str) -> Taken | str:
        was = self.features[feature]
        if was is None:
            return self._other_values(feature)
        old = key.replace(f".of_{feature}.", f".of_{was}.")
        return Taken(old, self.shapes[old]) if old in self.shapes else "there was no such buffer"

    def _other_values(self, feature: str) -> str:
        if self._old("features", feature) is None:
            return f"features.{feature} is new, or left out"
        return f"features.{feature} makes other values of its column than before"

    def _table(self, key: str, name: str) -> Taken | str:
        was = self._old("tables", name)
        if was is None:
            return "there was no such table" if f"tables.{name}" not in self.start.left_out else "it is left out"
        table, before = self.recipe.tables[name], self.old.tables[was]
        if table.dim != before.dim:
            return f"its dim was {before.dim} and is {table.dim}"
        if table.hash != before.hash and table.hash != "table":
            return f"its hash was {before.hash} and is {table.hash}: ids had other rows"
        if (other := self._other_ids(name)) is not None:
            return self._other_values(other)
        same = self.recipe.optimizer(name).kind == self.old.optimizer(was).kind
        if table.assign == "online" and before.hash != "table":
            return f"its hash was {before.hash}, and ids get rows while it trains, which begin by the id"
        layouts = [(each.rows, each.buckets, each.assign) for each in (table, before)]
        if table.hash == "table" and layouts[0] != layouts[1]:
            rows_of: Literal["map", "hash"] = "map" if before.hash == "table" else "hash"
            return Taken(self.tables[was], self.shapes[self.tables[was]], state=same, rows_of=rows_of)
        if table.rows % before.rows:
            return f"its rows were {before.rows:,} and {table.rows:,} are no whole multiple of that"
        return Taken(self.tables[was], self.shapes[self.tables[was]], state=same)

    def _layer(self, key: str, shape: torch.Size) -> Taken | str:
        if self.recipe.model.kind != self.old.model.kind:
            return f"model.kind was {self.old.model.kind}"
        encoder = _ENCODER.match(key)
        if encoder and self.features[encoder[1]] is None:
            return self._other_values(encoder[1])
        was = self._key(key)
        if was not in self.shapes:
            return "there was no such layer"
        if (changed := self._other_output(key, shape)) is not None:
            return changed
        before, places = self.shapes[was], {}
        if before.numel() and len(before) != len(shape):
            return f"its shape was {list(before)} and is {list(shape)}"
        for dim, (size, old) in enumerate(zip(shape, before, strict=True)):
            moved = [_places(*a) for a in self._moved(key, dim) if (_width(a[0]), _width(a[1])) == (size, old)]
            if not moved:
                if size != old:
                    return f"its shape was {list(before)} and is {list(shape)}"
                continue
            places[dim] = moved[0]
            if (
                size == old and self._axis(key, dim) is None
            ):  # or it is no such axis, but as wide: then nothing may move
                if not all(torch.equal(here, there) for here, there in moved):
                    return _OTHERS
                kept = torch.tensor(
                    sorted(set.intersection(*({*here.tolist()} for here, _ in moved))), dtype=torch.long
                )
                places[dim] = kept, kept
            if not len(places[dim][0]):
                return _NEW
        return Taken(was, before, places, self.recipe.optimizers.dense.kind == self.old.optimizers.dense.kind)

    def _other_output(self, key: str, shape: torch.Size) -> str | None:
        """Say why a task's own last layer, or what its kind keeps, begins anew; None where it does not."""
        at = self.ends.get(key.rpartition(".")[0])
        was = self.tasks[at] if at is not None else None
        if at is None or was is None:
            return None
        name, now, before = list(self.recipe.answered)[at], [*self.recipe.answered.values()][at], self.old.answered[was]
        if now.same_output(before) or shape[:1] != torch.Size(outputs({name: now})):
            return None
        kinds = f"was of kind {before.kind} and is of kind {now.kind}"
        return f"tasks.{name} {kinds if now.kind != before.kind else 'has other outputs'}"

    def _axis(self, key: str, dim: int) -> tuple[Parts, Parts] | None:
        """Return what a dimension runs over, here and before, where the layer's class says it."""
        path = key.rpartition(".")[0]
        if dim or path not in self.known or path not in self.known_before:
            return None
        return self.known[path], self.known_before[path]

    def _moved(self, key: str, dim: int) -> Iterator[tuple[Parts, Parts]]:
        """Yield what a dimension may run over and is not as it was, here and before; here by the old names."""
        known = self._axis(key, dim)
        for new, old in [known] if known else self.axes:
            named: Parts = [(self._known(name), width) for name, width in new]
            if named != old and (known or dim or _width(old) > 1):  # many a layer has one output
                yield named, old
        if dim or known or key.startswith(self.no_task_in):
            return
        tasks: Parts = []
        for was, (name, task) in zip(self.tasks, self.recipe.answered.items(), strict=True):
            same = was is not None and task.same_output(self.old.answered[was])
            tasks.append((was if was is not None and same else "", outputs({name: task})[0]))
        before: Parts = list(zip(self.old.answered, outputs(self.old.answered), strict=True))
        if tasks != before:
            yield tasks, before

    def _known(self, part: str) -> str:
        """Return the old name of a part of an axis; "" if it has none.

        A part is a feature, the features of a history, a task's experts or the shared ones.
        """
        if part == _SHARED:
            return part
        if part.startswith(_EXPERTS):
            was = self.tasks[list(self.recipe.answered).index(part.removeprefix(_EXPERTS))]
            return f"{_EXPERTS}{was}" if was is not None else ""
        names = [self.features[name] for name in part.split("+")]
        return "+".join(name or "" for name in names) if all(names) else ""

    def _key(self, key: str) -> str:
        """Return the old place of a layer."""
        if encoder := _ENCODER.match(key):
            return key.replace(f".of_{encoder[1]}.", f".of_{self.features[encoder[1]]}.")
        parts = key.split(".")
        for at, part in enumerate(parts):
            above = ".".join(parts[:at])
            if part.isdigit() and above in self.lists:
                was = self.tasks[int(part)]
                parts[at] = str(list(self.old.answered).index(was)) if was is not None else "(none)"
            elif part.isdigit() and above in self.histories:
                history = self._known(self.histories[above][int(part)][0])
                before = [name for name, _ in self.histories_before.get(above, [])]
                parts[at] = str(before.index(history)) if history in before else "(none)"
        return ".".join(parts)

    def lines(self) -> list[Line]:
        """Return the report, tables first; a layer's tensors have one line where they share a fate."""
        out = []
        for name, fates in self._fates.items():
            taken = {part for part, _ in fates}
            why = "; ".join(dict.fromkeys(why for _, why in fates if why))
            out.append(Line(name, taken.pop() if len(taken) == 1 else "part", why))
        return sorted(out, key=lambda line: not line.name.startswith("tables."))


def _width(parts: Parts) -> int:
    return sum(width for _, width in parts)


def _places(new: Parts, old: Parts) -> Places:
    """Return the entries of `new` that `old` has too: their numbers here, and there."""
    starts, at = {}, 0
    for name, width in old:
        starts[name, width] = at
        at += width
    here: list[int] = []
    there: list[int] = []
    at = 0
    for name, width in new:
        if (name, width) in starts:
            here += range(at, at + width)
            there += range(starts[name, width], starts[name, width] + width)
        at += width
    return torch.tensor(here, dtype=torch.long), torch.tensor(there, dtype=torch.long)


def _axes(model: Model) -> list[Parts]:
    """Return what layers' dimensions may run over: the dense features, or the features' numbers side by side."""
    dense: Parts = list(Counter(model.inputs.dense).items())
    dims = {**model.inputs.ids, **model.inputs.sequences}
    axes = [dense]
    histories = list(dict.fromkeys(itertools.chain.from_iterable(_histories(model).values())))
    for module in model.dense.network.modules():
        if isinstance(module, Gather):
            gathered = [(name, dims[name]) for name in [*module.ids, *module.pooled]]
            axes += [gathered + dense, gathered + dense + histories, gathered]
        elif isinstance(module, Fields):
            axes += [list(module.dims.items()) + dense, list(module.dims.items())]
            axes.append([(name, 1) for name in module.dims])
    return axes


def _histories(model: Model) -> dict[str, Parts]:
    """Return the events and side features, and the width, of every list of histories, by its place."""
    return {path: module.histories for path, module in model.named_modules() if isinstance(module, PerHistory)}


def _known_axes(model: Model, recipe: Recipe) -> dict[str, Parts]:
    """Return what the first dimension runs over of layers whose class says so: statistics, gates of all experts."""
    out: dict[str, Parts] = {"dense.normalise": list(model.numbers.items())}
    for path, module in model.named_modules():
        if isinstance(module, Level):
            experts = cast(list[Experts], list(module.own))
            parts = [(f"{_EXPERTS}{task}", own.count) for task, own in zip(recipe.answered, experts, strict=True)]
            for i in range(len(module.shared_gates)):
                out[f"{path}.shared_gates.{i}.linear"] = [*parts, (_SHARED, module.shared.count)]
    return out


def _lists(model: Model, tasks: int) -> set[str]:
    """Return the places of lists that have an entry per task."""
    return {path for path, module in model.named_modules() if isinstance(module, PerTask) and len(module) == tasks}


def _units(model: Model) -> tuple[str, ...]:
    """Return how the names of layers begin whose one output is an event's share in a history."""
    return tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, ActivationUnit))


def _ends(model: Model, lists: set[str]) -> dict[str, int]:
    """Return the place of the last layer of each entry of lists that have one per task, with the task's number."""
    out = {}
    for path in lists:
        for at, entry in enumerate(cast(PerTask, model.get_submodule(path))):
            layers = [name for name, module in entry.named_modules() if any(True for _ in module.parameters(False))]
            if layers:
                out[f"{path}.{at}.{layers[-1]}".rstrip(".")] = at
    return out


def _check_names(start: WarmStart, recipe: Recipe, old: Recipe, model: Model) -> None:
    """Raise BadInput for a name that is nowhere, with those that are nearest."""
    sections = ("tables", "features", "tasks")
    now, before = ([f"{s}.{name}" for s in sections for name in getattr(r, s)] for r in (recipe, old))
    for new, was in start.map.items():
        for name, known, whose in ((new, now, "this recipe"), (was, before, "the earlier run")):
            if name not in known:
                raise BadInput(f"train.warm_start.map: {whose} has no '{name}'{nearest(name, known)}")
        if new.partition(".")[0] != was.partition(".")[0]:
            raise BadInput(f"train.warm_start.map: '{new}' and '{was}' are of different kinds; map like to like")
    olds = list(start.map.values())
    if twice := next((name for name in olds if olds.count(name) > 1), None):
        raise BadInput(f"train.warm_start.map: two names begin as '{twice}'; leave one of them to begin anew")
    layers = {"layers"}
    for path, _ in model.dense.network.named_parameters():
        parts = path.split(".")
        layers |= {"layers." + ".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    whole = ["tables", *(name for name in now if name.startswith("tables.")), *sorted(layers)]
    for key, names, known in (("only", start.only or [], whole), ("except", start.left_out, [*whole, *now])):
        for name in names:
            if name not in known:
                raise BadInput(f"train.warm_start.{key}: there is no '{name}' here{nearest(name, known)}")
