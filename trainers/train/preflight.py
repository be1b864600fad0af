"""Everything that can be wrong with a run, asked before it starts."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import xxhash

from livetrain.configs import registry
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.fitted import fitted
from livetrain.modules.model import Model
from livetrain.modules.models.next_item import NextItemConfig
from livetrain.modules.serving.proof import prove
from livetrain.trainers.data.checks import brief, leaks, pretrained
from livetrain.trainers.data.read import negatives
from livetrain.trainers.data.read.catalogue import CATALOGUE, Catalogue
from livetrain.trainers.data.read.measure import measures, written
from livetrain.trainers.data.read.source import CorruptGroup, Source
from livetrain.trainers.data.read.spread import HERE, Looking
from livetrain.trainers.data.read.statistics import Statistics, scan
from livetrain.trainers.evaluate.selection import check_select, parts, stand_in, undefined
from livetrain.trainers.observe import weights_and_biases
from livetrain.trainers.runtime import scratch
from livetrain.trainers.train import compiled_dense, ids, memory
from livetrain.trainers.train.sharding import check_device

SPLITS = ("train", "valid", "test")


def check(
    recipe: Recipe, progress: Callable[[str], None], looking: Looking = HERE
) -> tuple[dict[str, Source], Statistics]:
    """Open and check the model and the data of a run; return its splits and the training split's statistics.

    Args:
        recipe: the run.
        progress: told what is being done, a line at a time.
        looking: how data are looked at of which nothing is kept.

    Raises:
        BadInput: the first thing that is wrong, with the mend.
    """
    weights_and_biases.check(recipe)
    check_select(recipe)
    if (waits := _check_model(recipe, trains=True)) is not None:
        progress(waits)
    _check_request(recipe)
    progress("checking the data")
    besides = {"train": recipe.model.also_reads()}
    sources = {split: Source.open(recipe, split, looking.at(split), besides.get(split, ())) for split in SPLITS}
    for name, column in recipe.groups().items():
        _check_groups(sources["train"], column, f"tasks.{name}.group")
    if recipe.evaluate.group_by:
        for split in SPLITS[1:]:
            _check_groups(sources[split], recipe.evaluate.group_by, "evaluate.group_by")
    if sources["train"].candidates is not None:
        _check_key(recipe, sources["train"])
    brief.refuse_outcomes(recipe)
    statistics = {split: scan(sources[split], recipe, looking.at(split)) for split in SPLITS}
    ids.prepare(sources["train"], recipe, looking.at("train"))
    negatives.count(sources["train"], recipe, progress, looking.at("train for negatives"))
    _check_shared(recipe, sources["train"])
    _check_known(sources["train"], recipe, statistics["train"])
    _check_measurable(sources["valid"], recipe, statistics["valid"])
    for split in SPLITS:
        _note_one_class(split, recipe, statistics[split], progress)
    _examine(recipe, sources, statistics, progress)
    pretrained.check(recipe, sources["train"], progress)
    catalogue = _catalogue(recipe)
    brief.check_alike(recipe, {"train": sources["train"]} | catalogue)
    return sources | catalogue, statistics["train"]


def _check_request(recipe: Recipe) -> None:
    """Raise BadInput where a user's features tell which item is wanted, or a key of the loss counts for nothing."""
    if fitted(recipe) is not None:  # whose features have been looked at, see `Fitted.feature`
        return
    network = Model(recipe, device="meta", tables_device="meta").dense.network
    if network.towers is not None and network.key is not None:
        own = recipe.column(network.key)
        for name in network.towers.names["user"]:
            if own in recipe.reads(name):
                raise BadInput(
                    f"features.{name}: reads the column '{own}', which tells which item is wanted, and a request does "
                    "not know that; name a column of the request or of its user"
                )
    shared = recipe.data.negatives is not None and recipe.data.negatives.shared is not None
    if isinstance(recipe.model, NextItemConfig) and recipe.model.in_batch and not shared:
        raise BadInput(
            "model.in_batch: adds the rows' items to those of data.negatives.shared, and without these they are the "
            "candidates anyway; say shared, or leave it out"
        )


def _check_key(recipe: Recipe, train: Source) -> None:
    """Raise BadInput where a network tells rows apart by a feature that all candidates of a request share."""
    model = fitted(recipe)
    if model is not None and not recipe.model.finds:
        return
    key = Model(recipe, device="meta", tables_device="meta").key if model is None else model.key
    if key is None or train.candidates is None or recipe.column(key) in train.candidates.names:
        return
    raise BadInput(
        f"model.key: column '{recipe.column(key)}' of {train.folder} has one id per request, and '{recipe.model.kind}' "
        "tells candidates apart by it; store a list with one id per candidate"
    )


def _check_shared(recipe: Recipe, train: Source) -> None:
    """Raise BadInput where items that a step shares lack what rows know of theirs, which would tell the two apart."""
    section = recipe.data.negatives
    if section is None or section.shared is None:
        return
    taken = negatives.Negatives(recipe, train).taken
    lacking = [name for name in _item(recipe) or [] if name not in taken]
    if lacking:
        raise BadInput(
            f"{section.catalogue}: has no column for the item's feature '{lacking[0]}', which the items that a step "
            "shares would lack and the rows' items have; add the column, or leave the feature out of the model's item"
        )


def _examine(
    recipe: Recipe, sources: dict[str, Source], statistics: dict[str, Statistics], progress: Callable[[str], None]
) -> None:
    """Do what `brief.examine` does, or say again what it said of the same files to the same features and tasks."""
    keys = {split: [part.sidecar.key for part in source.partitions] for split, source in sources.items()}
    asked = {
        "features": {name: feature.model_dump(mode="json") for name, feature in recipe.features.items()},
        "tasks": {name: task.model_dump(mode="json", include={"label"}) for name, task in recipe.tasks.items()},
        "tables": {
            name: table.model_dump(mode="json", include={"rows", "hash"}) for name, table in recipe.tables.items()
        },
        "data": keys,
        "on_corrupt": recipe.data.on_corrupt,
        "candidates": recipe.data.candidates,
        "code": [written(module) for module in (brief, leaks)],
    }
    last, known = sources["train"].partitions[-1].sidecar, all(all(own) for own in keys.values())
    name = f"brief-{xxhash.xxh128_hexdigest(json.dumps(asked, sort_keys=True).encode())}"
    kept = last.read(name) if known else None
    said: list[str] = [] if kept is None else kept[0]["said"]
    if kept is None:
        brief.examine(recipe, sources, statistics, said.append)
    for text in said:
        progress(text)
    if kept is None and known:
        last.write(name, {"said": said}, {})


def check_split(
    recipe: Recipe, split: str, progress: Callable[[str], None], looking: Looking = HERE
) -> dict[str, Source]:
    """Open and check what an evaluation of one split reads: that split alone, and the catalogue.

    Args:
        recipe: the run.
        split: train, valid or test.
        progress, looking: as of `check`.

    Raises:
        BadInput: the first thing that is wrong, with the mend.
    """
    check_select(recipe)
    _check_model(recipe, trains=False)
    progress("checking the data")
    source = Source.open(recipe, split, looking.at(split))
    if recipe.evaluate.group_by:
        _check_groups(source, recipe.evaluate.group_by, "evaluate.group_by")
    brief.refuse_outcomes(recipe)
    _note_one_class(split, recipe, scan(source, recipe, looking.at(split)), progress)
    return {split: source} | _catalogue(recipe)


def _check_model(recipe: Recipe, trains: bool) -> str | None:
    """Raise BadInput where a recipe's model cannot be built, or its tables find no memory; return `memory.check`'s."""
    if recipe.cluster.most:
        registry.check_shared(recipe)
    if recipe.model.fitted:
        return None
    if recipe.cluster.device == "cpu" or not (recipe.cluster.most or torch.cuda.is_available()):
        check_device(recipe, torch.device("cpu"))  # of other runs the device is known once there is a cluster
    waits = memory.check(recipe, Model(recipe, device="meta", tables_device="meta"), saves=trains)
    prove(recipe)
    if trains:
        compiled_dense.check(recipe)
    return waits


def _catalogue(recipe: Recipe) -> dict[str, Source]:
    """Return evaluate.catalogue, opened and checked, if the recipe has one.

    Raises:
        BadInput: nothing is to be ranked by it, or what it holds of the item cannot be read as the splits are.
    """
    asked = recipe.evaluate
    key = next((key for key in ("catalogue", "seen", "candidates") if getattr(asked, key)), None)
    if key is None:
        return {}
    item = _item(recipe)
    if item is None:
        raise BadInput(
            f"evaluate.{key}: is for models that find items, and '{recipe.model.kind}' has no towers; leave it out"
        )
    if not asked.catalogue:
        return {}
    catalogue = Catalogue.of_recipe(recipe, item)
    measured = list(measures(recipe, item).values())
    columns = list(dict.fromkeys(column for measure in measured for column in measure.columns))
    for group in catalogue.groups:
        try:
            rows = catalogue.read(group, columns)
            for measure in measured:
                measure.of(rows, 0, catalogue.place(group))
        except CorruptGroup:
            if recipe.data.on_corrupt == "stop":
                raise
    return {CATALOGUE: catalogue}


def _item(recipe: Recipe) -> list[str] | None:
    """Return the item's features, of a model that finds items; None of another one."""
    if (model := fitted(recipe)) is not None:
        return [model.key] if recipe.model.finds else None
    towers = Model(recipe, device="meta", tables_device="meta").dense.network.towers
    return None if towers is None else towers.names["item"]


def _check_groups(source: Source, column: str, key: str) -> None:
    """Raise BadInput where a row belongs to no group: it would count as one more user's, or teach nothing."""
    count = source.nulls(column)
    if count:
        raise BadInput(
            f"{source.folder}: column '{column}' is null in {count:,} rows, and {key} needs it in every row; fill it, "
            f"or leave {key} out"
        )


def _check_known(source: Source, recipe: Recipe, statistics: Statistics) -> None:
    """Raise BadInput where a task has nothing to learn from."""
    for name, share in statistics.unknown.items():
        if share == 1:
            raise BadInput(
                f"{source.folder}: tasks.{name}.label '{recipe.tasks[name].label}' is null in every row, so nothing "
                "can be learned of it; wait until labels are known, or leave the task out"
            )


def _check_measurable(source: Source, recipe: Recipe, statistics: Statistics) -> None:
    """Raise BadInput where no metric of the split could pick a checkpoint."""
    task = parts(recipe.select())[1]
    if not {recipe.select(), stand_in(recipe, recipe.select())} <= set(undefined(recipe, task, statistics)):
        return
    label = f"tasks.{task}.label '{recipe.tasks[task].label}'"
    what = f"{label} is {'0' if statistics.unknown[task] < 1 else 'null'} in every row"
    raise BadInput(
        f"{source.folder}: {what}, so {recipe.select()} is undefined and nothing picks the best checkpoint; take "
        "other rows as valid, or set train.select to another task's metric"
    )


def _note_one_class(split: str, recipe: Recipe, statistics: Statistics, progress: Callable[[str], None]) -> None:
    """Say which metrics a split's labels leave undefined, and what then picks the best checkpoint."""
    for task in recipe.tasks:
        lacking = [name for name in undefined(recipe, task, statistics) if not parts(name)[0]]
        if not lacking:
            continue
        only = statistics.single.get(task)
        what = f"no label of {task} is known" if only is None else f"every known label of {task} is {only:g}"
        if split == "train":
            progress(f"train: {what}, and nothing else can be learned of it")
            continue
        chosen = split == "valid" and recipe.select() in lacking
        instead = f"; {stand_in(recipe, recipe.select())} picks the best checkpoint" if chosen else ""
        verb = "is" if len(lacking) == 1 else "are"
        progress(f"{split}: {what}, so {', '.join(lacking)} {verb} undefined there{instead}")


def run_folder(runs: Path, name: str) -> Path:
    """Create (or find) a run's folder and prove that it can be written to.

    Raises:
        BadInput: it cannot.
    """
    run = runs / name
    with _writing(run):
        run.mkdir(parents=True, exist_ok=True)
        probe = run / f".probe-{scratch.label()}"
        probe.write_bytes(b"")
        probe.unlink()
    return run


def fresh_folder(runs: Path, name: str) -> Path:
    """Create a folder that nobody else has: NAME, or NAME-2 and so on where others that start now have that.

    Raises:
        BadInput: none can be created.
    """
    folder, number = runs / name, 1
    with _writing(folder):
        runs.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1
                folder = runs / f"{name}-{number}"


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(f"{folder}: cannot write here ({error.strerror}); choose another folder with --runs") from error
