"""A run and an evaluation, from what the recipe asks for to the finished run folder.

They happen in this process, or by `ray_workers` on this machine's own Ray or a cluster.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from livetrain.cluster import fusing, places, ray_workers
from livetrain.cluster.alone import alone
from livetrain.cluster.nodes import cores
from livetrain.configs.errors import BadInput, NotNow
from livetrain.configs.load import dump_recipe
from livetrain.configs.schema import Days, Recipe
from livetrain.trainers.data.read import sidecar
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.spread import Looking, in_threads
from livetrain.trainers.evaluate.draws import Draws
from livetrain.trainers.export import export, fusion
from livetrain.trainers.fitted import run as fit
from livetrain.trainers.observe import weights_and_biases
from livetrain.trainers.observe.progress import Watcher
from livetrain.trainers.observe.report import report, spectrum
from livetrain.trainers.observe.waiting import waiting
from livetrain.trainers.recall.solving import TRAINERS
from livetrain.trainers.runtime import manifest, ranks, run_folder, runlog, signals
from livetrain.trainers.runtime.manifest import write_json, write_text
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.run_folder import ANOTHER, LAST, LOCK, find_checkpoint
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train import checkpoint, compatible, copies, preflight, warm_start
from livetrain.trainers.train.loop import Job, Trainer, remarks

log = logging.getLogger("livetrain")

_TELL_S = 0.25  # between words on how far an evaluation is


def train(recipe: Recipe, runs: Path, test: bool = True) -> dict[str, Any]:
    """Train a recipe to its end and return the content of its result.json.

    A run of the same name that did not finish goes on from its last checkpoint, or with its report and export.

    Args:
        recipe: the run; without a name it gets one from the model and the time.
        runs: folder of run folders, on storage that all workers share.
        test: whether the run ends with the metrics of the test split; `evaluate` gives them later too.

    Raises:
        BadInput: the recipe, its data or the run folder is wrong, or another process is training the run.
        RuntimeError: the workers failed more often than cluster.max_failures, or found no room; or the export failed.
        KeyboardInterrupt: the run was interrupted or told to stop, and how it goes on.
    """
    if recipe.name:
        run = preflight.run_folder(runs.resolve(), recipe.name)
    else:
        run = preflight.fresh_folder(runs.resolve(), f"{recipe.model.kind}-{time.strftime('%Y%m%d-%H%M%S')}")
    recipe = recipe.model_copy(update={"name": run.name})
    busy = f"{run}: another process is training this run; wait for its end, or give another name"
    with alone(run / LOCK, busy), weights_and_biases.shared(recipe, run):
        result = run_folder.finished(run)
        if result is not None and complete(recipe, run):
            raise BadInput(
                f"{run}: this run is finished; give another name, as name={run.name}-2, or remove the folder"
            )
        try:
            if result is None:
                result = _train(recipe, run, test)
            _show(recipe, run, result)
            if recipe.fusion is not None and fusion.found_in(run) is None:
                if run_folder.recipe_of(run).fusion is None:
                    raise BadInput(
                        f"fusion: {run} was trained without it; put the section into its config.yaml, then "
                        f"`livetrain fuse {run}`"
                    )
                _fuse(recipe, run, test)
            if recipe.export.after_training and not run_folder.exported(run):
                _export(run)
        except KeyboardInterrupt as interrupt:
            raise type(interrupt)(_how_to_go_on(run, signals.terminated())) from None
    return result


def shown(folder: Path) -> Path:
    """Return a folder as it is best read: from the working directory on, if it lies there."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def complete(recipe: Recipe, run: Path) -> bool:
    """Return whether a run was trained to its end, and all that it shows and exports is there and sent."""
    shows = (run / report.NAME).exists() and weights_and_biases.reported(recipe, run)
    return (
        run_folder.finished(run) is not None
        and shows
        and (run_folder.exported(run) or not recipe.export.after_training)
        and (recipe.fusion is None or fusion.found_in(run) is not None)
    )


def _train(recipe: Recipe, run: Path, test: bool) -> dict[str, Any]:
    started = time.perf_counter()
    with Watcher(run), _leaving_nothing(run), places.taken(run, places.TRAINING) as place:
        ray_workers.check_here(recipe.cluster)
        if recipe.train.copies is not None:
            for path in copies.fetch(recipe.train.copies, run):
                runlog.note(run, "note", text=f"brought {path.name} from train.copies")
        if found := run_folder.committed(run):
            compatible.check_same(found[-1], recipe, resume=True)
        else:
            if (begun := warm_start.find(recipe)) is not None:
                told = [fit.check_start(recipe, begun)] if recipe.model.fitted else warm_start.tell(recipe, begun, run)
                for text in told:
                    runlog.note(run, "note", text=text)
        note = partial(runlog.note, run, "note")
        sources, statistics = preflight.check(recipe, lambda text: note(text=text), _looking(recipe, run, run))
        runlog.note(run, "note", text=f"run {run.name}, in {shown(run)}")
        if found:
            _check_ids(found[-1], sources["train"], recipe)
        write_text(run / "config.yaml", dump_recipe(recipe))
        job = Job(recipe, run, sources, statistics, test)
        with signals.saving(run):
            try:
                if recipe.model.fitted:
                    result = on_ranks(partial(fit.fit, job, warm_start.find(recipe)), recipe, run, place)
                else:
                    result = on_ranks(partial(_train_here, job), recipe, run, place, partial(_plan, job))
            except NotNow:  # somebody else is at it
                raise
            except Exception as error:
                runlog.note(run, "failed", text=next(iter(str(error).splitlines()), type(error).__name__))
                raise
    result = {"name": recipe.name, **result, "wall_s": time.perf_counter() - started, "versions": versions()}
    write_json(run / "result.json", result)
    return result


def _show(recipe: Recipe, run: Path, result: dict[str, Any]) -> None:
    """Draw what a finished run shows, and send it where the recipe says; a failure leaves the run trained."""
    try:
        spectrum.write_spectrum(run, result["spectra"])
        picture = report.write_report(run)
    except Exception as error:
        log.warning(f"{run}: the report is not drawn, for {type(error).__name__}: {error}; start the run again for it")
    else:
        weights_and_biases.report(recipe, run, picture, result)


def _fuse(recipe: Recipe, run: Path, test: bool) -> None:
    """Search the weights of the fused score; where that fails the run is whole all the same, as the message says."""
    assert recipe.fusion is not None
    say = partial(runlog.note, run, "note")
    again = f"the run itself is whole, and `livetrain fuse {shown(run)}` tries again"
    try:
        with waiting("searching the weights of the fused score"):
            found = fusing.fuse(run, say=lambda text: say(text=text))
            if test and (figures := fusing.measured(run, "test")) is not None:
                write_json(run / fusion.NAME, manifest.finite(found | {"test": figures}))
                fusing.tell(figures, recipe.fusion.by, "test", lambda text: say(text=text))
    except BadInput as error:
        raise type(error)(f"{error}; {again}") from error.__cause__


def _export(run: Path) -> None:
    """Export a finished run; where that fails the run is whole all the same, and the message says so."""
    again = f"the run itself is whole, and `livetrain export {shown(run)}` tries again"
    try:
        with waiting("exporting the model, and comparing the file's scores with the model's"):
            signature = export.export(run)
    except BadInput as error:
        raise type(error)(f"{error}; {again}") from error.__cause__
    except Exception as error:
        raise RuntimeError(f"the export failed ({type(error).__name__}: {error}); {again}") from error
    weights_and_biases.send_export(run, run / "export", signature)


def evaluate(run: Path, split: str, which: str, days: Days | None = None, mend: str | None = None) -> dict[str, Any]:
    """Return the metrics ``<split>.<task>.<metric>`` of a run's checkpoint; see `measure`."""
    return measure(run, split, which, days, mend)[0]


def measure(
    run: Path, split: str, which: str, days: Days | None = None, mend: str | None = None, draws: int | None = None
) -> tuple[dict[str, Any], Draws]:
    """Return the metrics of a run's checkpoint, computed by the run's number of workers, and what was drawn for them.

    Args:
        run: a run folder.
        split: train, valid or test.
        which: ``best`` or ``last`` checkpoint.
        days: what the splits read in the place of the run's own days.
        mend: what helps where the checkpoint is gone or damaged, for the message; by default another checkpoint.
        draws: of the bootstrap for intervals, by default as the run's recipe says.

    Returns:
        Metrics by ``<split>.<task>.<metric>``, and draws by ``<task>.<metric>``.

    Raises:
        BadInput: no such run, split or checkpoint, or the checkpoint is damaged.
    """
    if split not in preflight.SPLITS:
        raise BadInput(f"--split: '{split}' is none of {', '.join(preflight.SPLITS)}")
    run = run.resolve()
    path = find_checkpoint(run, which, mend or LAST)
    recipe = run_folder.recipe_of(run)
    if days is not None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"days": days})})
    if draws is not None:
        recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"bootstrap": draws})})
    with places.taken(run, places.EVALUATION) as place, Watcher(place):
        ray_workers.check_here(recipe.cluster)
        try:
            note = partial(runlog.note, place, "note")
            looking = _looking(recipe, run, place)
            sources = preflight.check_split(recipe, split, lambda text: note(text=text), looking)
        except BadInput as error:
            if days is not None:
                raise
            raise type(error)(f"{run / 'config.yaml'}: {error}") from error.__cause__
        for source in sources.values():
            _check_ids(path, source, recipe)
        job = Job(recipe, run, sources, None)
        work = partial(_evaluate_here, job, place, which, split, mend)
        if recipe.model.fitted:
            work = partial(fit.evaluate, job, path, place, split)
        found = on_ranks(work, recipe, place, place)
        return found, Draws.read(place)


def _check_ids(path: Path, source: Source, recipe: Recipe) -> None:
    """Raise BadInput where a split's ids are of another kind than those that a checkpoint was trained on."""
    compatible.check_ids(run_folder.content(path).get("ids", {}), source.id_kinds(recipe), recipe, source.folder)


def _how_to_go_on(run: Path, stopped: bool) -> str:
    if run_folder.finished(run) is not None:
        return f"{run.name} was interrupted; it is trained, and started again under this name it ends as it would have"
    saved = run_folder.committed(run)
    at = f"its checkpoint of step {int(saved[-1].name.split('-')[1])}" if saved else "its start: it has no checkpoint"
    ended = "stopped" if stopped else "interrupted"
    return f"{run.name} was {ended}; started again under this name it goes on from {at}"


@contextlib.contextmanager
def _leaving_nothing(run: Path) -> Iterator[None]:
    """Where a new run is refused before its first step, remove its folder, which was empty until now."""
    new = all(path.name == LOCK or path.name.startswith((places.TRAINING, places.EVALUATION)) for path in run.iterdir())
    try:
        yield
    except BadInput:
        trained = run_folder.committed(run) or any(line.get("kind") == "train" for line in runlog.read(run))
        if new and not trained:
            shutil.rmtree(run, ignore_errors=True)
        raise


def _train_here(job: Job, device: torch.device) -> dict[str, Any]:
    return TRAINERS.get(job.recipe.model.kind, Trainer)(job, device).run()


def _evaluate_here(
    job: Job, told: Path, which: str, split: str, mend: str | None, device: torch.device
) -> dict[str, Any]:
    trainer, tried = Trainer(job, device), None
    while True:
        path = ranks.from_main(find_checkpoint(job.run, which, mend or LAST) if ranks.is_main() else None)
        try:
            checkpoint.load(trainer.sharded, job.recipe, path)
            break
        except run_folder.Damaged as error:
            if path == tried or manifest.read(path) is not None:
                raise BadInput(f"{error}; {mend or ANOTHER}") from None
            tried = path  # a training beside has newer ones and deletes the old
    if ranks.is_main():
        runlog.note(told, "note", text=f"evaluating {split} with {path.name}")
        trainer.tell = _teller(told)
    metrics, found = trainer.evaluate(split, job.recipe.evaluate.bootstrap)
    if ranks.is_main():
        found.draws.write(told)
        for text in remarks(job.recipe, split, metrics, found.bounded):
            runlog.note(told, "note", text=text)
    return {f"{split}.{key}": value for key, value in metrics.items()}


def _looking(recipe: Recipe, run: Path, told: Path) -> Looking:
    """Return how a run's data are looked at: by its workers if it has some, and what is learned stays beside the data.

    Where these cannot be written to it stays beside the run's folder, for all runs there.

    Args:
        recipe: the run's.
        run: its folder.
        told: the folder whose log is told how far it is.
    """
    tell = _teller(told)
    spread = ray_workers.spread(recipe) if recipe.cluster.most else in_threads
    return Looking(
        run.parent / sidecar.NAME, spread, lambda name, unit, done, of: tell(f"looking at {name}", done, of, unit)
    )


def _teller(told: Path) -> Callable[..., None]:
    """Return what writes into a log how far something is, a few times per second; `Tell` of an evaluation."""
    due = 0.0

    def tell(what: str, done: int, of: int, unit: str = "batches") -> None:
        nonlocal due
        if not done or time.monotonic() >= due:
            runlog.note(told, "stage", text=what, **({"done": done, "of": of, "unit": unit} if of else {}))
            due = time.monotonic() + _TELL_S

    return tell


def _plan(job: Job, device: str) -> None:
    """Have the tables planned once, before there are ranks that would wait for it; see `Job.plan`."""
    job.plan(job.recipe, job.recipe.cluster.most, device)


def on_ranks(
    work: ray_workers.Work, recipe: Recipe, told: Path, place: Path, before: ray_workers.Before | None = None
) -> dict[str, Any]:
    """Run `work` on every rank and return rank 0's result.

    Args:
        work: of a rank.
        recipe: the run.
        told: the folder whose log is told what happens.
        place: this command's own in the run's folder.
        before: done before there are workers.
    """
    if recipe.cluster.most == 0:
        places.clear(place, lambda left: not (left / places.PLACEMENT).exists())  # to free what Ray holds takes Ray
        return _in_process(work, recipe)
    return ray_workers.run(work, recipe, told, place, before)


def _in_process(work: ray_workers.Work, recipe: Recipe) -> dict[str, Any]:
    cuda = recipe.cluster.device != "cpu" and torch.cuda.is_available()
    if recipe.cluster.device == "cuda" and not cuda:
        raise BadInput("cluster.device: this machine has no GPU that torch can use; use device: cpu, or auto")
    before = torch.get_num_threads()
    # Alone it has the machine. OpenMP would start a thread for every core that is there, in a container that may use
    # fewer too, and they would wait for each other.
    torch.set_num_threads(threads(otherwise=cores()))
    try:
        with ranks.alone(cuda):
            return work(torch.device("cuda", 0) if cuda else torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
