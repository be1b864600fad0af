"""Channels blended: what each brings and only it brings, on days that have passed, and lists for requests to come.

blend.json      the spec with the weights that count, and all figures
manifest.json   written last
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from livetrain.configs.blend_spec import BlendSpec, Search
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import SEEN
from livetrain.modules.tables.hashing import mix
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.slices import Slices
from livetrain.trainers.evaluate.retrieval import QUERIES
from livetrain.trainers.recall import merging
from livetrain.trainers.recall.channels import channel, condition, unseen
from livetrain.trainers.recall.figures import Measured, figures
from livetrain.trainers.recall.merging import Pairs, Settings
from livetrain.trainers.recall.origin import ids, items, key_of, places_of, read, rows_of
from livetrain.trainers.runtime import manifest, run_folder

SETTLED = "blend.json"
BLOCK = 4096  # requests whose lists are in memory at once, and by which settings are searched
_WEIGHTS = (1e-2, 10.0)  # searched, on a scale of logarithms
Say = Callable[[str], None]


class Day(NamedTuple):
    """Requests of a split, each of which is a row whose item was wanted, and the items that there were."""

    requests: pa.Table  # with the columns that channels ask
    wanted: np.ndarray  # (n,) place of the item; -1 where it is none of those that there are
    marks: np.ndarray  # (n,) int64, bit i: the request is in the i-th slice
    groups: np.ndarray  # (n,) int64, whose request it is
    items: pa.Table  # with the columns that channels know
    known: np.ndarray  # (N,) int64 ids of the items


class Blend:
    """Channels, opened, and what each counts.

    Args:
        spec: which.

    Attributes:
        settings: the spec's weights, quotas and reserved places.
        slices: those of the run of `requests`, and the spec's own.

    Raises:
        BadInput: a channel cannot be opened, finds items of another column, asks a condition of what a request does not
            know, or the run of `requests` finds no items.
    """

    def __init__(self, spec: BlendSpec) -> None:
        self.spec = spec
        run_folder.check(Path(spec.requests))
        self.recipe = run_folder.recipe_of(Path(spec.requests))
        self.key = self.recipe.column(key_of(self.recipe))
        own = self.recipe.evaluate.slices
        self.slices = Slices(own | spec.slices, places=dict.fromkeys(spec.slices, "slices"))
        conditions = {name: condition(name, each) for name, each in spec.channels.items()}  # before any is opened
        self.channels = {name: channel(name, each, Path(spec.runs), self.key) for name, each in spec.channels.items()}
        known = {self.key, *(column for each in self.channels.values() for column in each.knows)}
        for name, when in conditions.items():
            if when is not None and (of_item := known.intersection(when.columns["when"])):
                raise BadInput(
                    f"channels.{name}.when: '{min(of_item)}' is known of an item, and a request has none yet; ask what "
                    "is known of the user"
                )
        self.settings = Settings(
            np.array([each.weight for each in spec.channels.values()]),
            np.array([spec.size if each.quota is None else each.quota for each in spec.channels.values()]),
            np.array([each.reserve for each in spec.channels.values()]),
        )
        self.seen = self.recipe.asides().get(SEEN)

    def asks(self) -> list[str]:
        """Return the columns that requests must have."""
        found = [column for each in self.channels.values() for column in each.asks]
        return list(dict.fromkeys([*found, *([self.seen] if self.seen else [])]))

    def items(self, catalogue: str | None, split: str) -> tuple[pa.Table, np.ndarray]:
        """Return the items that there are, see `trainers.recall.origin.items`, and their ids."""
        known = [column for each in self.channels.values() for column in each.knows]
        table = items(self.recipe, catalogue, [self.key, *known], split)
        return table, ids(table.column(self.key))

    def meet(self, table: pa.Table, known: np.ndarray) -> None:
        """Let the channels bring these items from now on, and no others."""
        for each in self.channels.values():
            each.meet(table, known)

    def lists(self, requests: pa.Table, known: np.ndarray, wanted: np.ndarray | None = None) -> list[np.ndarray]:
        """Return each channel's (n, size) places of items, the best first, without those that the user had.

        Args:
            requests: n.
            known: (N,) ids of the items.
            wanted: (n,) places that stay, had or not.
        """
        size, had = self.spec.size, np.zeros(0, np.int64)
        deep = size
        if self.seen:
            lists = carry.whole(requests.column(self.seen))
            lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
            values = carry.whole_ids(lists.flatten())
            owner = np.repeat(np.arange(len(lengths)), lengths)[values.is_valid().to_numpy(zero_copy_only=False)]
            places = places_of(values.drop_null().to_numpy(), known)
            stays = places < 0 if wanted is None else (places < 0) | (places == wanted[owner])
            had, deep = (owner * len(known) + places)[~stays], size + int(lengths.max(initial=0))
        found = (each.lists(requests, min(deep, len(known))) for each in self.channels.values())
        return [unseen(part, had, len(known), size) for part in found]


def day(blend: Blend, split: str, most: int) -> Day:
    """Read the requests of a split: its rows with a label of 1 and an item, or `most` of them, the same in every call.

    Memory: the columns that channels ask, of `most` rows; and the items.

    Raises:
        BadInput: the split cannot be read, lacks a column, or has no such row.
    """
    recipe = blend.recipe
    table, known = blend.items(None, split)
    (task, *_), slices = recipe.tasks.values(), blend.slices
    group = recipe.evaluate.group_by
    extra = [name for names in slices.columns.values() for name in names]
    columns = [blend.key, task.label, *blend.asks(), *extra, *([group] if group else [])]
    chosen: pa.Table | None = None
    places, first, files = np.zeros(0, np.int64), 0, rows_of(recipe, split)
    for rows in read(files, list(dict.fromkeys(columns))):
        if chosen is None:
            slices.check(rows.schema, split)
        positive = pc.and_(pc.equal(rows.column(task.label), 1), pc.is_valid(rows.column(blend.key)))
        at = np.flatnonzero(positive.fill_null(False).to_numpy(zero_copy_only=False))
        own = rows.take(pa.array(at))
        chosen, places = (
            own if chosen is None else pa.concat_tables([chosen, own]),
            np.concatenate([places, first + at]),
        )
        first += len(rows)
        if len(places) > most:  # those that evaluation chooses, see trainers.evaluate.retrieval
            kept = np.sort(mix(torch.from_numpy(places) + 1).argsort()[:most].numpy())
            chosen, places = chosen.take(pa.array(kept)), places[kept]
    if chosen is None or not len(chosen):
        raise BadInput(f"{files.named(files.paths[0])}: no row of {split} has {task.label} 1 and an item")
    wanted = places_of(ids(chosen.column(blend.key)), known)
    groups = ids(chosen.column(group)) if group else places
    marks = slices.marks(chosen) if slices.columns else np.zeros(len(chosen), np.int64)
    return Day(chosen.select(blend.asks()), wanted, marks, groups, table, known)


def check_days(blend: Blend, say: Say) -> None:
    """Refuse channels that have learned of the days by which the blend is searched and measured.

    Requests to come are of later days than any channel's, so this is of a blend's making alone.

    Args:
        blend: which.
        say: told of the channels of which it cannot be known.

    Raises:
        BadInput: a channel's run was trained on a day of the requests, or on a later one.
    """
    asked, unknown = blend.recipe.data, []
    for name, each in blend.channels.items():
        own = None if each.recipe is None else each.recipe.data
        if own is not None and own.days is not None and asked.days is not None:
            last, first = own.days.of("train")[-1], asked.days.of("valid")[0]
            if last >= first:
                raise BadInput(
                    f"channels.{name}: its run was trained on days up to {last} (data.days.train), and the requests of "
                    f"{blend.recipe.name} begin on {first} (data.days.valid), so it has seen what they want; name a "
                    "run that was trained on earlier days"
                )
        elif own is None or own.path != asked.path or (own.days is None) != (asked.days is None):
            unknown.append(name)
    if unknown:
        say(
            f"whether {', '.join(unknown)} learned of the days of the requests cannot be known here; if so, these "
            "figures are too good"
        )


def measure(blend: Blend, of: Day, settings: Settings) -> dict[str, Any]:
    """Return what `trainers.recall.figures.figures` has of a day."""
    blend.meet(of.items, of.known)
    measured = Measured(list(blend.channels), settings, blend.spec.size)
    for start in range(0, len(of.wanted), BLOCK):
        wanted = of.wanted[start : start + BLOCK]
        measured.add(blend.lists(of.requests.slice(start, BLOCK), of.known, wanted), wanted)
    return {"items": len(of.known)} | figures(measured, of.groups, of.marks, list(blend.slices.columns))


def searched(blend: Blend, of: Day, asked: Search) -> Settings:
    """Return the weights by which most of a day's wanted items are among the first candidates.

    The spec's own are one of the trials, so none on that day are worse. What is drawn next comes of Optuna's
    tree-structured Parzen estimator. Quotas stay: what they leave out is lost to the later candidates, which a search
    by the first ones does not see.

    Raises:
        BadInput: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise BadInput("search: Optuna is not installed; pip install 'livetrain[tune]', or leave search out") from None
    blend.meet(of.items, of.known)
    found, at = _findable(merging.pairs(blend.lists(of.requests, of.known, of.wanted)), of.wanted)

    def share(settings: Settings) -> float:
        place = merging.place_of(found, merging.scores(found, settings), at)
        return float((place <= asked.at).sum() / len(of.wanted))

    def drawn(trial: optuna.trial.BaseTrial) -> Settings:
        weights = [trial.suggest_float(f"{name}.weight", *_WEIGHTS, log=True) for name in blend.channels]
        return blend.settings._replace(weights=np.array(weights))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=asked.seed))
    study.optimize(lambda trial: share(drawn(trial)), n_trials=asked.trials - 1)
    if asked.trials == 1 or study.best_value <= share(blend.settings):
        return blend.settings
    return drawn(optuna.trial.FixedTrial(study.best_params))


def _findable(found: Pairs, wanted: np.ndarray) -> tuple[Pairs, np.ndarray]:
    """Return the pairs of the requests whose wanted item some channel has brought, and which pair that is of each."""
    there = merging.of_items(found, wanted) >= 0
    kept, number = there[found.request], there.cumsum() - 1
    some = Pairs(int(there.sum()), number[found.request[kept]], found.item[kept], found.ranks[kept])
    return some, merging.of_items(some, wanted[there])


def blended(spec: BlendSpec, out: Path, say: Say) -> dict[str, Any]:
    """Search a blend's settings on the validation split, measure it on the test split, once, and write it.

    Args:
        spec: which.
        out: a new folder, or that of an earlier blend, which is replaced.
        say: told what is done.

    Returns:
        The content of blend.json: `spec`, `valid` and `test`.

    Raises:
        BadInput: what `Blend`, `check_days` and `day` raise it for, or the folder holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / SETTLED).exists():
        raise BadInput(f"{out}: holds something that is no blend; name a new folder with --out")
    blend = Blend(spec)
    check_days(blend, say)
    settings = blend.settings
    valid = day(blend, "valid", BLOCK)
    if spec.search is not None:
        say(f"searching weights by {len(valid.wanted):,} requests of valid")
        settings = searched(blend, valid, spec.search)
    content = {
        "spec": _settled(spec, settings).model_dump(mode="json", exclude_none=True),
        "valid": measure(blend, valid, settings),
    }
    say("measuring on test")
    content["test"] = measure(blend, day(blend, "test", QUERIES), settings)
    out.mkdir(parents=True, exist_ok=True)
    (out / manifest.MANIFEST).unlink(missing_ok=True)
    manifest.write_json(out / SETTLED, content)
    manifest.commit(out, {SETTLED: manifest.digest(out / SETTLED)})
    return content


def _settled(spec: BlendSpec, settings: Settings) -> BlendSpec:
    """Return a spec with these settings as its own, and nothing to search."""
    channels = {
        name: each.model_copy(update={"weight": float(weight), "quota": int(quota), "reserve": int(reserve)})
        for (name, each), weight, quota, reserve in zip(spec.channels.items(), *settings, strict=True)
        if quota
    }
    return spec.model_copy(update={"channels": channels, "search": None})
