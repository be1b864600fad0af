"""Checkpoints: sharded files by torch.distributed.checkpoint, then a manifest that commits them.

    <run>/checkpoints/step-00000640/  *.distcp, .metadata, manifest.json (last)

A checkpoint holds the tables' shards, the dense part, both optimizers' state, what the combiner of the tasks' gradients
has learned, the steps in which rows changed where those are tracked, and, in its manifest, the position in the data,
the best evaluation so far, the sharding plan and the recipe. It loads on any number of ranks.

Training waits only while every rank copies its own shards; a thread writes the copy, a block at a time (see
trainers.train.writing). The ranks' threads talk over a process group of their own, since collectives of two threads on
one group would meet each other's.
"""

import contextlib
import copy
import logging
import os
import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import yaml
from torch.utils.serialization import config

from livetrain.configs.errors import BadInput, NotNow
from livetrain.configs.load import dump_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model, stored_name
from livetrain.modules.tables.mapped import Room, in_memory
from livetrain.trainers.runtime import manifest, ranks, run_folder, runlog
from livetrain.trainers.runtime.run_folder import Damaged, committed, content
from livetrain.trainers.train import restore, staging, tracking
from livetrain.trainers.train.compatible import check_same
from livetrain.trainers.train.copies import Copies
from livetrain.trainers.train.sharding import Sharded
from livetrain.trainers.train.staging import Staging
from livetrain.trainers.train.writing import Planner, Writer

T = TypeVar("T")
log = logging.getLogger("livetrain")

# The writing thread leaves the processor to training where both want it.
NICE = 10


def state(sharded: Sharded) -> dict[str, Any]:
    """Return the live tensors of a sharded model, by name, with what GPU caches hold of them written back.

    Loading into them loads the model, once `Sharded.purge` has made the caches forget what was there before.
    """
    state: dict[str, Any] = {"model": _stored(sharded.model.state_dict())}
    update = sharded.pipeline.update
    if update.mean is not None:
        # What is evaluated and exported is the model; whoever goes on training needs the rest too.
        names = {name: name.removeprefix("model.") for name in update.mean.parameters}
        state["trained"] = {"steps": update.mean.steps} | {own: state["model"][own] for own in names.values()}
        state["model"] = state["model"] | {own: update.mean.values[name] for name, own in names.items()}
    sharded.online.settle()
    kept = {name: register.state() for name, register in sharded.registers.items()}
    for name in sharded.online.owners:
        state["model"][f"hash.maps.of_{name}.keys"], kept[name] = sharded.online.state(name)
    if kept:
        state["ids"] = kept
    if update.steps.counted:
        state["steps"] = {"tables": update.steps.done}
    for name, found in sharded.states().items():
        # An optimizer without state (plain SGD) must leave no empty entry: nothing would be written for it.
        if stored := _stored({key: values for key, values in found.items() if values}):
            state[f"optimizer_{name}"] = stored
    if learned := sharded.pipeline.combination.combiner.state_dict():
        state["gradients"] = learned
    if sharded.changes is not None and (changed := tracking.state(sharded)):
        state[tracking.NAME] = changed
    return state


def _stored(values: dict[str, Any]) -> dict[str, Any]:
    return {stored_name(name): value for name, value in values.items()}


class WriteFailed(Exception):
    """A rank could not do its part of a checkpoint; every rank knows, and can go on."""


class Saver:
    """Writes a run's checkpoints while training goes on, one at a time. A context manager; every call is collective.

    A write that fails leaves no trace but a warning and a note in the run's log. Its copy is kept, for it may be the
    best so far: it is written once more before the next checkpoint is copied or the run ends, while training waits.
    The copy takes as much host memory as the rank's shards and their optimizers' state (see `Staging`). Where that is
    not free when the first checkpoint is due, the run says so, and from then on training waits while one is written, a
    block at a time.

    Args:
        sharded: what to save.
        recipe: kept in the manifests, so that a checkpoint of another model is told apart.
        run: the run folder, on storage that every rank shares.
        trained: what to keep in the manifests of the training split.
    """

    def __init__(self, sharded: Sharded, recipe: Recipe, run: Path, trained: Mapping[str, Any] | None = None) -> None:
        self._sharded, self._recipe, self._run = sharded, recipe, run
        # Made once: it takes four times as long as the copy of 64 MiB, while training waits.
        self._constant = {"recipe": yaml.safe_load(dump_recipe(recipe)), **(trained or {})}
        self._staging = Staging()
        self._fits: bool | None = None  # whether the copies do
        self._elsewhere: Copies | None = None
        self._thread: threading.Thread | None = None
        self._left: list[Callable[[], None]] = []  # to be done of the last checkpoint
        self._error: BaseException | None = None

    def __enter__(self) -> "Saver":
        # The ranks' threads wait for the slowest of them to write, or to send, which nobody trains slower for.
        self._group = dist.new_group(backend="gloo", timeout=ranks.PATIENCE) if ranks.world() > 1 else None
        if (where := self._recipe.train.copies) is not None:
            try:
                take = partial(Copies.taken, where, self._run.name)
                fence = _together(lambda: take() if ranks.is_main() else None, self._group)[0]
            except WriteFailed as error:
                raise NotNow(f"train.copies: {error}; start the run again once that is mended") from error
            self._elsewhere = self._opened(where, fence)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # A run that ends early still commits what it copied: the ranks' threads need no rank's training.
        self._join()
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def _opened(self, where: str, fence: int | None) -> Copies:
        """Return the run's copies; where one rank cannot open them no rank trains."""
        assert fence is not None  # rank 0's
        opened: list[Copies] = []
        try:
            _together(lambda: opened.append(Copies(where, self._run.name, fence)), self._group)
        except WriteFailed as error:
            raise NotNow(f"train.copies: {error}; start the run again once that is mended") from error
        return opened[0]

    def save(self, step: int, position: dict[str, Any]) -> None:
        """Copy the state of `step` and begin to write it, once the write before it is done.

        Args:
            step: optimizer steps done.
            position: JSON-able state of the loop (best metric, evaluations without a better one ...).

        Raises:
            NotNow: the checkpoint before this one could not be written twice.
        """
        self.wait()
        content = {
            "step": step,
            "position": copy.deepcopy(position),
            "workers": ranks.world(),
            "plan": self._sharded.plan(),
            **self._constant,
        }
        if (changes := self._sharded.changes) is not None:
            content[tracking.NAME] = {"lineage": changes.lineage, "since": changes.since}
        live = state(self._sharded)
        copies = self._copies(live)
        saved = self._staging.copy(live) if copies else live
        if copies and self._sharded.device.type == "cuda":
            torch.cuda.current_stream(self._sharded.device).synchronize()
        self._left = [partial(write, saved, self._run, content, self._group)]
        if self._elsewhere is not None:
            self._left.append(partial(send, self._elsewhere, self._run, step, self._group))
        if not copies:
            self._attempt()
            self.wait()
            return
        self._thread = threading.Thread(target=self._in_background, name="checkpoint", daemon=True)
        self._thread.start()

    def _copies(self, live: dict[str, Any]) -> bool:
        """Return whether states are copied: whether the first one's copies fit. Collective."""
        if self._fits is None:
            reason = staging.refused(live)
            self._fits = reason is None
            if reason is not None and ranks.is_main():
                log.warning(reason)
                runlog.note(self._run, "note", text=reason)
        return self._fits

    def wait(self) -> None:
        """Return when everything saved is committed.

        Raises:
            NotNow: the last checkpoint could not be written or copied, in the background and once more now.
            BadInput: another training has taken the run over.
        """
        self._join()
        if isinstance(self._error, WriteFailed):
            self._attempt()
        if isinstance(self._error, WriteFailed):
            raise NotNow(
                f"{self._run}: a checkpoint could not be written, twice ({self._error}); make space or mend the "
                "storage, then start the run again: it goes on from its last checkpoint"
            )
        if self._error is not None:
            raise self._error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _in_background(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        self._attempt()

    def _attempt(self) -> None:
        try:
            while self._left:
                self._left[0]()
                self._left.pop(0)
            self._error = None
        except BaseException as error:
            self._error = error


def write(state: dict[str, Any], run: Path, content: dict[str, Any], group: dist.ProcessGroup | None) -> None:
    """Write a state, commit it and prune what is older. Collective over `group`; None is this process alone.

    Args:
        state: tensors by name, as `Saver` copied them.
        run: the run folder.
        content: of the manifest: step, position, workers, plan, recipe, ids.
        group: a group that nothing else uses meanwhile.

    Raises:
        WriteFailed: on every rank, where one of them could not do its part.
    """
    step, main = content["step"], ranks.is_main()
    path = run_folder.checkpoint(run, step)
    try:
        _together(lambda: _empty(path) if main else None, group)
        digests = _together(lambda: _write_tensors(state, path, group), group)
        files = {name: entry for part in digests for name, entry in part.items()}
        _together(lambda: manifest.commit(path, files, **content) if main else None, group)
    except WriteFailed as error:
        if main:
            shutil.rmtree(path, ignore_errors=True)
            text = f"the checkpoint of step {step} could not be written: {error}"
            log.warning(text)
            with contextlib.suppress(OSError):  # the log lies on the same storage
                runlog.note(run, "note", text=text)
        raise
    if main:
        with contextlib.suppress(OSError):  # a storage that will not delete is no reason to stop training
            prune(run, content["recipe"]["train"]["keep"], content["position"]["best_step"], path)


def send(copies: Copies, run: Path, step: int, group: dist.ProcessGroup | None) -> None:
    """Copy the committed checkpoint of a step to `train.copies`. Collective over `group`, as `write` is.

    Raises:
        WriteFailed: on every rank, where one of them could not do its part.
        BadInput: another training has taken the run over.
    """
    path, share = run_folder.checkpoint(run, step), (ranks.rank(), ranks.world())
    try:
        _together(lambda: copies.begin(path) if ranks.is_main() else None, group)
        _together(lambda: copies.put(path, share), group)
        ours = _together(lambda: copies.commit(path, run) if ranks.is_main() else None, group)[0]
    except WriteFailed as error:
        if ranks.is_main():
            text = f"the checkpoint of step {step} could not be copied: {error}"
            log.warning(text)
            with contextlib.suppress(OSError):
                runlog.note(run, "note", text=text)
        raise WriteFailed(f"to train.copies: {error}") from error
    if not ours:
        raise BadInput(
            f"{copies.place.shown()}: another training of this run has begun since and took it over, so this one ends; "
            "see that no two are started"
        )


def _together(work: Callable[[], T], group: dist.ProcessGroup | None) -> list[T]:
    """Do a rank's part of the work; return every rank's result, or raise WriteFailed on every rank."""
    mine: T | WriteFailed
    try:
        mine = work()
    except (Exception, dcp.CheckpointException) as error:  # the latter is no Exception
        mine = WriteFailed(_in_words(error))
    everyone: list[Any] = [mine]
    if group is not None:
        everyone = [None] * ranks.world()
        dist.all_gather_object(everyone, mine, group=group)
    for result in everyone:
        if isinstance(result, WriteFailed):
            raise result
    return everyone


def _in_words(error: BaseException) -> str:
    if isinstance(error, dcp.CheckpointException):
        return "; ".join(f"rank {rank}: {_in_words(cause)}" for rank, (cause, _) in error.failures.items())
    return f"{type(error).__name__}: {error}"


def _write_tensors(state: dict[str, Any], path: Path, group: dist.ProcessGroup | None) -> dict[str, dict[str, Any]]:
    """Write this rank's part of a state; return the digests of its files."""
    writer = Writer(path)
    # The manifest's hashes are what is checked. torch adds `patch` to the module when it is imported.
    with config.patch({"save.compute_crc32": False}):  # type: ignore[attr-defined]
        dcp.save(state, storage_writer=writer, planner=Planner(), process_group=group, no_dist=group is None)
    return writer.digests


def _empty(path: Path) -> None:
    """Make an empty folder. What lies there was never committed, or is of a run that was resumed further back."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def prune(run: Path, keep: int, best: int | None, newest: Path) -> None:
    """Delete what is older than the newest `keep` checkpoints, except that of step `best`, and what a kill has left.

    Those beyond `newest`, the one just committed, are left of a run that was resumed further back: they do not count.
    """
    whole = committed(run)
    kept = [path for path in whole if path > newest or (best is not None and path == run_folder.checkpoint(run, best))]
    kept += [path for path in whole if path <= newest][-keep:]
    for path in (run / "checkpoints").iterdir():
        if path not in kept:
            with contextlib.suppress(OSError):  # a storage that will not delete is no reason to stop training
                (path / manifest.MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(path)


def load_latest(sharded: Sharded, recipe: Recipe, run: Path) -> dict[str, Any] | None:
    """Load the newest undamaged checkpoint of a run into a sharded model. Collective.

    Where a newer one is damaged, rows of its steps may be published, and come out otherwise this time. So what goes on
    from an older one has a lineage of its own: no delta of it follows on them.

    Returns:
        Its manifest, or None where the run has none.

    Raises:
        BadInput: it belongs to another model, or to a run of other values.
    """
    paths, changes = ranks.from_main(committed(run)), sharded.changes
    drawn = changes.lineage if changes is not None else ""
    for path in reversed(paths):
        try:
            found = load(sharded, recipe, path, resume=True)
        except Damaged as error:
            if ranks.is_main():
                text = f"{error}; falling back to the checkpoint before it"
                log.warning(text)
                runlog.note(run, "note", text=text)
            continue
        if changes is not None and path != paths[-1]:
            changes.lineage = drawn
        return found
    return None


def load(sharded: Sharded, recipe: Recipe, path: Path, resume: bool = False) -> dict[str, Any]:
    """Load one committed checkpoint into a sharded model, in place, on any number of ranks. Collective.

    Returns:
        Its manifest.

    Raises:
        Damaged: it is not whole.
        BadInput: it belongs to another model or, for `resume`, to a run of other values.
    """
    found = content(path)
    check_same(path, recipe, resume)
    wanted = state(sharded)
    if tracking.NAME not in found:
        wanted.pop(tracking.NAME, None)
    read(wanted, path)
    if sharded.changes is not None:  # only now: one that is damaged has changed nothing
        tracking.taken_up(sharded.changes, found, same=resume)
    sharded.purge()
    return found


def load_plain(model: Model, path: Path, room: Room = in_memory) -> None:
    """Load a checkpoint into a plain model, in one process, without a process group.

    Args:
        model: its tables may be on the meta device: they are made anew.
        path: the checkpoint.
        room: where the tables are to lie. Besides them and the dense part it takes a block of memory (see
            `writing.BLOCK`) to read into; of checkpoints that were written as one entry per shard, a shard.
    """
    model.place_tables(room)
    own = model.state_dict()
    state = {"model": _stored(own)}
    read(state, path)
    model.load_state_dict({name: state["model"][stored_name(name)] for name in own}, assign=True)


def opened(path: Path) -> restore.Reader:
    """Return the reader of a checkpoint, once every file of it is as its manifest says. Collective.

    All loading goes through here. The ranks share the work of checking; no pickle in the files can run anything.

    Raises:
        Damaged: the checkpoint is not whole.
        BadInput: its layout is none.
    """
    found = content(path)
    damaged = [d for d in ranks.gather(manifest.damage(path, found, (ranks.rank(), ranks.world()))) if d]
    if damaged:
        raise Damaged(damaged[0])
    gone: str | None = None
    try:
        reader = restore.Reader(path, set(found["files"]))
    except OSError as error:
        gone = str(error)
    if where := [each for each in ranks.gather(gone) if each]:
        raise Damaged(f"{path}: this checkpoint is gone ({where[0]})")
    return reader


def read(state: dict[str, Any], path: Path, whole: bool = True) -> restore.Reader:
    """Fill the tensors of a state from a checkpoint, a block at a time. Collective.

    Args:
        state: tensors by name, as `state` returns them.
        path: the checkpoint.
        whole: whether all of them must be there; otherwise those that are not are taken out of `state`.

    Returns:
        The checkpoint's reader, for what is read otherwise.

    Raises:
        Damaged: the checkpoint is not whole.
        BadInput: its files are no checkpoint's.
    """
    reader = opened(path)
    if not whole:
        _leave_out(state, reader.read_metadata().state_dict_metadata, "")
    try:
        dcp.load(state, storage_reader=reader, planner=restore.Planner(), no_dist=ranks.world() == 1)
    except dcp.CheckpointException as error:  # which is no Exception
        if any(isinstance(cause, OSError) for cause, _ in error.failures.values()):
            content(path)  # a training beside may have deleted it meanwhile
            raise RuntimeError(f"{path}: {_in_words(error)}") from error
        raise BadInput(
            f"{path}: this checkpoint does not hold what the recipe's model has ({_in_words(error)[:120]}); "
            "take another"
        ) from error
    return reader


def _leave_out(state: dict[str, Any], there: Collection[str], above: str) -> None:
    """Take out of a state what is not among the names `there`."""
    for key, value in list(state.items()):
        if isinstance(value, dict):
            _leave_out(value, there, f"{above}{key}.")
        if (isinstance(value, dict) and not value) or not (isinstance(value, dict) or f"{above}{key}" in there):
            del state[key]
