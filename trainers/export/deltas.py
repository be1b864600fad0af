"""Publishing what changed: a base, then deltas, each written from a checkpoint of a training that tracks its changes.

    <where>/<version>.<fence>/deltas/<number>.<fence>/
        delta.bin, delta.json    see modules.serving.deltas
        golden.json              the base's golden rows, with the scores that they have from this delta on
        manifest.json            (last) hashes; base, number and lineage; `before`: the xxh64 of the manifest before it

The pointer (see trainers.export.publish) lists a version's deltas with the xxh64 of their manifests, numbered from 1 on
without a hole. A delta holds every row that changed after the step that was published before it, so one that was made
and never published is no loss: the next is asked for from the step that is.

Before it is published it is taken in as a server takes it, over the base and the deltas that are published. Then the
golden rows must have the checkpoint's scores, as those of an export must, and everything outside the tables, and some
thousand rows of each table whether or not they changed, must be the checkpoint's to the last bit.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from livetrain.configs.errors import BadInput, may_pass
from livetrain.configs.schema import Quantization, Recipe
from livetrain.modules.fitted import fitted
from livetrain.modules.model import Model
from livetrain.modules.serving import deltas
from livetrain.modules.serving.quantized import stored
from livetrain.modules.serving.scorer import Features
from livetrain.trainers.export import fusion, publish
from livetrain.trainers.export.export import export, parts, plain_model
from livetrain.trainers.export.kept import Kept
from livetrain.trainers.export.parity import apart, check_close
from livetrain.trainers.export.rows import golden_inputs
from livetrain.trainers.export.served import Served, wanted
from livetrain.trainers.runtime import manifest, run_folder, scratch
from livetrain.trainers.runtime.place import Place, open_place
from livetrain.trainers.runtime.run_folder import find_checkpoint
from livetrain.trainers.train import restore, tracking

log = logging.getLogger("livetrain")

MOST, SHARE = 300, 0.5  # deltas of a base, and their bytes as a share of its own: more than that a new base replaces
_LOOKED_AT = 4096  # rows of each table that are compared to the last bit


class NeedsBase(BadInput):
    """No delta can follow on what is published; a new base can."""

    @property
    def why(self) -> str:
        """What stands against it, without what to do about it."""
        return str(self).rpartition("; ")[0] or str(self)


def publish_next(
    run: Path,
    where: str,
    version: str,
    keep: int,
    which: str | Path = "last",
    most: int = MOST,
    share: float = SHARE,
    kept: Kept | None = None,
    say: Callable[[str], None] = log.info,
    **about: Any,
) -> dict[str, Any]:
    """Publish a checkpoint: as a delta where one can follow, else as a base.

    Args:
        run: the run folder.
        where: folder or URI of the published versions.
        version: see `publish.publish`; a delta keeps its own beside that of its base, see `newest`.
        keep: versions that stay when a base is published.
        which: ``last`` or ``best``, or a checkpoint.
        most: deltas of a base.
        share: of a base's bytes that its deltas may take in all.
        kept: of `where`; who publishes there again and again hands the same one in each time.
        say: told in a line why it becomes a base.
        about: further entries of the pointer, or of the delta in it.

    Returns:
        The pointer's content.

    Raises:
        BadInput: as `publish_delta`, `export.export` and `publish.publish`.
    """
    try:
        return publish_delta(run, where, which, most, share, kept, version=version, **about)
    except NeedsBase as error:
        why = error.why
    if kept is not None:
        kept.drop()
    say(f"{version} becomes a base, as no delta can follow: {why}")
    export(run, which)
    return publish.publish(run / "export", where, version, keep, **{"run": run.name, **about})


def newest(pointer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entries of what a pointer names as a whole: of its last delta, or its own where it has none."""
    return [pointer, *pointer.get("deltas", [])][-1]


def publish_delta(
    run: Path,
    where: str,
    which: str | Path = "last",
    most: int = MOST,
    share: float = SHARE,
    kept: Kept | None = None,
    **about: Any,
) -> dict[str, Any]:
    """Publish what has changed in a checkpoint since what is published. Arguments as of `publish_next`.

    Returns:
        The pointer's content, as it was where the checkpoint is published already.

    Raises:
        NeedsBase: nothing is published there, or the base is another training's, or so many or large deltas have
            followed, or a server asks for a new one.
        BadInput: there is no such checkpoint, or a later one is published, or the place cannot be read or written, or
            the model that a server would have scores otherwise. Nothing is published.
    """
    path, recipe = which if isinstance(which, Path) else find_checkpoint(run, which), run_folder.recipe_of(run)
    content = run_folder.content(path)
    if fitted(recipe) is not None:
        raise NeedsBase(f"{run}: '{recipe.model.kind}' is fitted as a whole, so it has no deltas; publish it as a base")
    pointer = publish.current(where)
    if pointer is None:
        raise NeedsBase(f"{where}: nothing is published here that a delta could follow on; publish a base")
    place = open_place(where)
    signature = _read(place, f"{pointer['folder']}/signature.json")
    done = pointer.get("deltas", [])
    since = done[-1]["step"] if done else signature["checkpoint"]["step"]
    _check_follows(place, pointer, signature, content, since, most, share)
    if content["step"] == since:
        return pointer
    kept = kept or Kept(where)
    scratch.sweep(run, ".delta-")
    with scratch.place(run, ".delta-") as draft:
        folder = draft / "delta"
        folder.mkdir()
        try:
            served = kept.lend(pointer)
        except BadInput as error:
            if may_pass(error):
                raise
            raise NeedsBase(str(error)) from error  # what is published cannot be served
        if (served.pointer["fence"], served.number) != (pointer["fence"], len(done)):
            raise BadInput(f"{where}: another publisher has replaced the pointer meanwhile; make the delta again")
        state = _State(plain_model(recipe, path), recipe, run, path, served)
        count = _write(folder, state, _changed(path, content, recipe, since))
        own = {"base": pointer["folder"], "number": len(done) + 1, "lineage": signature["lineage"]}
        own |= {"step": content["step"], "since": since, "before": done[-1]["xxh64"] if done else None}
        try:
            served.take(folder, own)
        except BadInput as error:
            raise NeedsBase(str(error)) from error
        golden = state.check(served, content["step"])
        manifest.write_json(folder / "golden.json", golden)
        digests = {name.name: manifest.digest(name) for name in sorted(folder.iterdir())}
        manifest.commit(folder, digests, format=deltas.FORMAT, **own)
        size = sum(each["bytes"] for each in digests.values())
        about = {"step": content["step"], "rows": count, "bytes": size, **about}
        pointer = publish.extend(folder, where, pointer, **about)
        kept.give_back(served, pointer)
        return pointer


def _read(place: Place, name: str) -> dict[str, Any]:
    with publish.complaints(place, "read"):
        found = place.read(name)
    try:
        return json.loads(b"" if found is None else found[0])
    except ValueError as error:
        raise NeedsBase(f"{place.shown(name)} is missing or damaged; publish a new base") from error


def _check_follows(
    place: Place,
    pointer: dict[str, Any],
    signature: dict[str, Any],
    content: dict[str, Any],
    since: int,
    most: int,
    share: float,
) -> None:
    """Raise where no delta of a checkpoint can follow on what is published, which has learned up to step `since`."""
    tracked, shown = content.get(tracking.NAME), place.shown(pointer["folder"])
    if tracked is None:
        raise NeedsBase(f"{shown}: this training does not track which rows change, so it has no deltas; publish a base")
    if signature.get("lineage") != tracked["lineage"]:
        raise NeedsBase(f"{shown} is of another training, so no delta of this one follows on it; publish a new base")
    if tracked["since"] > since:
        raise NeedsBase(
            f"{shown}: has learned up to step {since}, and changes are known from step {tracked['since']} on; "
            "publish a new base"
        )
    if content["step"] < since:
        raise BadInput(
            f"{shown}: step {since} is published, and this checkpoint is of step {content['step']}; train on"
        )
    if publish.settled(pointer) > pointer["version"]:
        raise NeedsBase(f"{shown}: `livetrain rollback` took back what followed on it; publish a new base")
    done = pointer.get("deltas", [])
    if len(done) >= most:
        raise NeedsBase(f"{shown} has {len(done)} deltas, and {most} are the most; publish a new base")
    size = sum(each["bytes"] for each in _read(place, f"{pointer['folder']}/{manifest.MANIFEST}")["files"].values())
    if (taken := sum(each["bytes"] for each in done)) > share * size:
        raise NeedsBase(f"{shown}: its deltas take {taken / size:.0%} of its own size; publish a new base")
    with publish.complaints(place, "read"):
        asked = place.read(wanted(pointer["folder"]))
    if asked is not None:
        why = asked[0].decode(errors="replace").strip()[:120]
        raise NeedsBase(f"{shown}: a server asks for a new base ({why}); publish one")


def _changed(path: Path, content: dict[str, Any], recipe: Recipe, since: int) -> dict[str, Tensor]:
    """Return the rows of each table that changed after a step, rising."""
    reader, found = restore.Reader(path, set(content["files"])), {}
    for name, table in recipe.tables.items():
        if table.frozen:
            found[name] = torch.zeros(0, dtype=torch.int64)
            continue
        blocks = reader.blocks(f"{tracking.NAME}.{name}", lambda _: True)
        rows = [(steps > since).nonzero().squeeze(1) + first for (first, *_), steps in blocks]
        found[name] = torch.cat(rows).sort().values
    return found


def _write(folder: Path, state: "_State", changed: dict[str, Tensor]) -> int:
    """Write a delta's numbers and index; return how many rows it has in all."""
    writer = deltas.Writer(folder)
    rows = {name: writer.put(each) for name, each in changed.items()}
    values: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for file, module in state.modules.items():
        by_rows = {}
        for key, (table, part) in state.by_rows(module).items():
            by_rows[key] = {"table": table, "values": part}
        for table in {each["table"] for each in by_rows.values()}:
            if not any(name.startswith(f"{table}.") for name in values):
                found = state.rows_of(module, table, changed[table])
                values |= {part: writer.put(value) for part, value in found.items()}
        files[file] = {
            "rows": by_rows,
            "whole": {key: writer.put(value) for key, value in state.whole(module).items()},
        }
    writer.close(rows, values, files)
    return sum(map(len, changed.values()))


class _State:
    """A checkpoint's model as an export's files hold it.

    Args:
        model: plain.
        recipe: its recipe.
        run: its run folder.
        path: the checkpoint.
        served: what is published: its files say which tensors count, for a network may have some for training alone.

    Attributes:
        modules: what is scripted, by the name of its file, with tables as they were trained.
    """

    def __init__(self, model: Model, recipe: Recipe, run: Path, path: Path, served: Served) -> None:
        self._recipe = recipe
        self._quantize: Quantization = served.signature["quantize"]
        tables = stored(model.table_weights(), "none", model.maps)
        fused = fusion.fused_of(run, recipe, path)
        self.modules = {f"{name}.pt": module for name, module in parts(model, recipe, tables, fused)}
        with served.use() as models:
            if models.keys() != self.modules.keys():
                raise NeedsBase(f"{run}: the base has other files than an export of this checkpoint; publish a new one")
            self._known = {name for each in models.values() for name in each.state_dict()}

    def _owners(self, module: Features) -> Iterator[tuple[str, str, nn.Module]]:
        """Yield what holds a tensor by rows of a table: the table, the prefix of its names, and itself."""
        for number, lookup in enumerate(module.lookups):
            for path, part in lookup.named_modules():
                name = getattr(part, "name", None)
                if name in self._recipe.tables and getattr(part, "rows", 0) == lookup.table.rows and path:
                    yield str(name), f"lookups.{number}.{path}", part

    def _stored(self, table: str, part: nn.Module, rows: Tensor) -> dict[str, Tensor]:
        """Return rows of what `_owners` yields, as an export stores them, by its own names."""
        if (weight := getattr(part, "weight", None)) is not None:
            return deltas.stored_rows(weight[rows], self._quantize, table)
        return {f"{table}.{name}": value[rows] for name, value in part.named_buffers()}

    def by_rows(self, module: Features) -> dict[str, tuple[str, str]]:
        """Return the tensors that are changed by rows: the table of each, and its part of it."""
        none = torch.zeros(0, dtype=torch.int64)
        return {
            f"{prefix}.{name.partition('.')[2]}": (table, name)
            for table, prefix, part in self._owners(module)
            for name in self._stored(table, part, none)
        }

    def rows_of(self, module: Features, table: str, rows: Tensor) -> dict[str, Tensor]:
        """Return rows of a table as an export stores them, by part."""
        found: dict[str, Tensor] = {}
        for name, _, part in self._owners(module):
            if name == table and (not found or not hasattr(part, "weight")):
                found |= self._stored(table, part, rows)
        return found

    def whole(self, module: Features) -> dict[str, Tensor]:
        """Return the other tensors, by name."""
        prefixes = tuple(f"{prefix}." for _, prefix, _ in self._owners(module))
        return {
            name: value
            for name, value in module.state_dict().items()
            if name in self._known and not name.startswith(prefixes)
        }

    def check(self, served: Served, step: int) -> dict[str, Any]:
        """Return the golden rows with a server's scores, once its model is seen to be this one.

        Raises:
            BadInput: it is not.
        """
        generator = torch.Generator().manual_seed(step)
        inputs = golden_inputs(served.golden)
        with served.use() as models, torch.no_grad():
            for file, module in self.modules.items():
                state = models[file].state_dict()
                for name, value in self.whole(module).items():
                    self._check_same(f"{file}: {name}", state[name], value)
                for key, (table, part) in self.by_rows(module).items():
                    rows = torch.randint(len(state[key]), (_LOOKED_AT,), generator=generator)
                    self._check_same(f"{file}: {key}", state[key][rows], self.rows_of(module, table, rows)[part])
            scores, own = models["model.pt"](*inputs), self.modules["model.pt"](*inputs)
        key = "tolerance" if self._quantize == "none" else f"tolerance_{self._quantize}"
        what = "on the golden rows a server's predictions differ from the model's"
        for task, score in scores.items():
            check_close(what, apart(score, own[task], self._recipe.model.jumps), key, self._recipe)
        return {**served.golden, "scores": {task: score.tolist() for task, score in scores.items()}}

    def _check_same(self, what: str, found: Tensor, wanted: Tensor) -> None:
        if not torch.equal(found, wanted.reshape(found.shape)):
            words = (
                f"{what} of a server that takes this delta in would not be the checkpoint's, so it is not published; "
                "publish a new base, and report this"
            )
            log.warning("%s", words)
            raise NeedsBase(words)
