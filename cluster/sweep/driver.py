"""Running a sweep: Ray Tune starts the trials, and each trial is a training of its own by `cluster.launch`."""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from livetrain.cluster import capacity, launch, places, ray_workers
from livetrain.cluster.alone import alone
from livetrain.cluster.sweep.board import Board
from livetrain.cluster.sweep.results import Sweep
from livetrain.cluster.sweep.trials import ENDED, ERROR, Settings, Trial
from livetrain.configs import registry
from livetrain.configs.complaints import first_complaint
from livetrain.configs.errors import BadInput, NotNow
from livetrain.configs.load import load_recipe, override
from livetrain.configs.schema import Recipe
from livetrain.configs.space import load_space, parse_space
from livetrain.modules.fitted import fitted
from livetrain.modules.model import Model
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import Statistics, scan
from livetrain.trainers.evaluate import selection
from livetrain.trainers.evaluate.selection import check_select
from livetrain.trainers.observe.waiting import waiting
from livetrain.trainers.runtime import run_folder, scratch
from livetrain.trainers.runtime.manifest import write_text
from livetrain.trainers.runtime.process import set_up, threads
from livetrain.trainers.train import preflight

# What a trial holds that only starts workers and waits for them: no CPU, for its workers may need them all.
DRIVER: dict[str, float] = {"memory": 2**29}
POLL_S = 0.25  # between looks at a trial's log
ERROR_LENGTH = 2000  # characters of a failed trial's error that are kept
DIED = "\nthe trial's process died: it was killed, or memory ran out"


def tune(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    space: dict[str, Any] | str | Path,
    folder: str | Path | None = None,
    *,
    runs: str | Path = "runs",
    **settings: Any,
) -> Sweep:
    """Search a space for the recipe's best values, and return the sweep with its table, its best trial and its plots.

    Args:
        recipe: what every trial trains, but for the values drawn.
        space: dotted recipe keys and their domains, or a file with them; see configs/space.py.
        folder: the sweep's folder, on storage that all workers share; by default one in `runs`, named by the time.
        runs: folder of run folders and sweeps.
        settings: see `Settings`: metrics (by default what picks the recipe's checkpoints), samples, search, scheduler
            and seed.

    Raises:
        BadInput: the recipe, its data, the space, a metric or the folder is wrong; nothing was started then.
        KeyboardInterrupt: the sweep was interrupted; `resume` goes on with it.

    Example:
        >>> space = {"optimizers.dense.lr": {"choice": [0.001, 0.01]}}
        >>> sweep = tune("small.yaml", space, samples=2)  # doctest: +ELLIPSIS
        trial 00...
        >>> sweep.best.values, sweep.frame["state"].tolist()
        ({'optimizers.dense.lr': 0.01}, ['finished', 'finished'])
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    parsed = parse_space(space) if isinstance(space, dict) else load_space(space)
    asked = _settings(recipe, settings)
    name = f"{recipe.name or recipe.model.kind}-sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    sweep = Sweep(Path(folder or Path(runs) / name).resolve(), recipe, parsed, asked)
    with waiting("checking the recipe, the space and the data"):
        check(sweep)
    if folder is None:
        sweep.folder = preflight.fresh_folder(sweep.folder.parent, name)
    with _searched_here_alone(sweep.folder):
        sweep.create()
        return _search(sweep)


def resume(folder: str | Path) -> Sweep:
    """Go on with a sweep that was killed or interrupted: trials that ended stay, the others go on where they were.

    Raises:
        BadInput: the folder holds no sweep, it still runs, or the data are not what they were.
    """
    sweep = Sweep.open(folder)
    with waiting("checking the recipe, the space and the data"):
        check(sweep)
    with _searched_here_alone(sweep.folder):
        return _search(sweep)


def check(sweep: Sweep) -> None:
    """Raise BadInput for whatever is wrong with a sweep's recipe, data, space or metrics, before any trial."""
    registry.check_shared(sweep.recipe)
    if sweep.recipe.cluster.elastic:
        counts = ", ".join(map(str, sweep.recipe.counts()))
        raise BadInput(
            "cluster.workers: the trials of a sweep share the cluster, so each takes a plain number of workers; give "
            f"one, such as {counts}"
        )
    ray_workers.check_here(sweep.recipe.cluster)
    check_select(sweep.recipe)
    _ = sweep.metrics
    sweep.space.check(sweep.recipe, also=_build)
    for number in range(sweep.settings.samples):
        values = sweep.space.sample(sweep.settings.seed, number)
        try:
            override(sweep.recipe, values)
        except BadInput as error:
            drawn = ", ".join(f"{key}={value}" for key, value in values.items())
            raise BadInput(f"space: {drawn} do not go together: {error}; bind them with `when`") from None
    sources = {split: Source.open(sweep.recipe, split) for split in preflight.SPLITS}
    _check_defined(sweep, scan(sources["valid"], sweep.recipe))
    if sweep.settings.search == "optuna":
        from livetrain.cluster.sweep.search import check_optuna

        check_optuna()


def _check_defined(sweep: Sweep, statistics: Statistics) -> None:
    """Raise BadInput where the validation split's labels leave a metric undefined, whatever is trained."""
    for metric in sweep.metrics:
        for name in metric.names:
            task = selection.parts(name)[1]
            needs = selection.metric_of(sweep.recipe, name).needs
            if statistics.unknown.get(task) == 1 or not needs.met(statistics.single.get(task)):
                other = selection.stand_in(sweep.recipe, name)
                raise BadInput(
                    f"--metric '{metric.text}': {name} is undefined on valid, for it needs {needs}; start a sweep by "
                    f"another metric, such as valid/{other}, or with other rows as valid"
                )


def _build(recipe: Recipe) -> None:
    """Raise BadInput where a model refuses the recipe, or no other process can import it."""
    registry.check_shared(recipe)
    if fitted(recipe) is None:
        Model(recipe, device="meta", tables_device="meta")


def _settings(recipe: Recipe, given: dict[str, Any]) -> Settings:
    from pydantic import ValidationError

    given = {"metrics": [f"valid/{recipe.select().removeprefix(f'{next(iter(recipe.tasks))}.')}"], **given}
    if len(given["metrics"]) > 1 and given.get("scheduler") is None:
        given["scheduler"] = "none"
    given = {key: value for key, value in given.items() if value is not None}
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        raise BadInput(f"sweep: {first_complaint(error, Settings, given).sentence}") from None
    if len(settings.metrics) > 1 and settings.scheduler == "asha":
        raise BadInput(
            "--scheduler asha: it stops trials by one number and there are several metrics; join them in one "
            "expression, or use --scheduler none"
        )
    return settings


def _search(sweep: Sweep) -> Sweep:
    Console(stderr=True).print(
        f"sweep {sweep.folder.name}, in {launch.shown(sweep.folder)}", markup=False, highlight=False, soft_wrap=True
    )
    try:
        with contextlib.ExitStack() as stack:
            with waiting("starting Ray"):
                stack.enter_context(ray_workers.attached(sweep.recipe.cluster))
            _settle_all(sweep)
            if any(trial.state not in ENDED for trial in sweep.trials) or len(sweep.trials) < sweep.settings.samples:
                _run(sweep)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; livetrain tune --resume {sweep.folder} goes on with it") from None
    left = [trial.number for trial in sweep.trials if trial.state not in ENDED]
    if left or len(sweep.trials) < sweep.settings.samples:
        raise RuntimeError(
            f"not all trials of {sweep.folder} have ended, and Ray did not say why; livetrain tune --resume "
            f"{sweep.folder} goes on with them"
        )
    from livetrain.cluster.sweep import plots

    plots.write(sweep)
    return sweep


def _searched_here_alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Keep a sweep to this process."""
    busy = f"{folder}: this sweep is running already; wait for its end, or stop it first"
    return alone(folder / "lock", busy, patience=0)


def _run(sweep: Sweep) -> None:
    """Train what is left of a sweep. Ray is there."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the runs have logs of their own
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it waits for the trials; theirs is saved without
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"  # the table tells of them
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that fails early, or is short, reports nothing
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune as ray_tune
    from ray.tune import CLIReporter
    from ray.tune.execution.placement_groups import PlacementGroupFactory

    from livetrain.cluster.sweep.search import Search, scheduler

    cuda = ray_workers.on_gpus(sweep.recipe.cluster)
    board = Board(sweep)
    remaining = sweep.settings.samples - sum(trial.state in ENDED for trial in sweep.trials)
    cluster = sweep.recipe.cluster
    own: dict[str, float] = (
        {"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cuda else {}) if cluster.most == 0 else DRIVER
    )
    with board:
        ray_tune.run(  # not a Tuner, which pickles all of this for a restore that sweeps do without
            ray_tune.with_resources(
                partial(_trial, sweep.folder, sweep.recipe, os.getcwd()), PlacementGroupFactory([own])
            ),
            name="tune",
            storage_path=str(sweep.folder / "ray"),
            search_alg=Search(sweep, partial(_settle, sweep, board)),
            scheduler=scheduler(sweep),
            num_samples=remaining,
            # Tune does not see what the workers of a trial take, so it is told how many trials there is room for.
            max_concurrent_trials=at_once(sweep.recipe, cuda),
            max_failures=cluster.max_failures,
            raise_on_failed_trial=False,
            callbacks=[_follower(sweep, board)],
            verbose=0,
            progress_reporter=CLIReporter(),  # silent then; the one that Tune finds for a notebook clears the board
        )
    shutil.rmtree(sweep.folder / "ray", ignore_errors=True)  # Tune's own notes: the sweep's are beside them
    for trial in sweep.trials:  # of those that Tune has stopped
        if sweep.run(trial).exists():
            scratch.sweep(sweep.run(trial), places.TRAINING)


def at_once(recipe: Recipe, cuda: bool) -> int:
    """Return how many trials the cluster has room for at the same time: worker by worker, node by node.

    Raises:
        BadInput: there is not even room for one.
    """
    cluster = recipe.cluster
    workers = max(cluster.most, 1)
    capacity.check(cluster, cuda)
    return max(capacity.places_now(cluster, cuda) // workers, 1)  # one waits for nodes that are to come


def _trial(folder: Path, recipe: Recipe, home: str, config: dict[str, Any]) -> None:
    """One trial, in a process that Tune has started: train, and report every evaluation as it comes.

    What no retry can mend is left in the trial's error.txt; any other exception makes Tune start the trial again.
    """
    set_up()
    with contextlib.suppress(OSError):  # on another machine the folder need not be there
        os.chdir(home)
    torch.set_num_threads(threads())
    sweep = Sweep.open(folder)
    sweep.recipe = recipe  # its file is without the credentials of URIs
    trial = Trial(config["number"], config["values"])
    run = sweep.run(trial)
    (run / ERROR).unlink(missing_ok=True)
    made = trial_recipe(sweep, trial)
    if launch.complete(made, run):
        return
    over = threading.Event()
    reporter = threading.Thread(target=_report, args=(sweep, trial, over), daemon=True)
    reporter.start()
    try:
        launch.train(made, folder / "trials", test=False)
    except NotNow:  # Tune tries again, or --resume does
        raise
    except BadInput as error:
        run.mkdir(parents=True, exist_ok=True)
        write_text(run / ERROR, str(error))
    finally:
        over.set()
        reporter.join()


def trial_recipe(sweep: Sweep, trial: Trial) -> Recipe:
    """Return the recipe of a trial's run: its name, no export, no copies, the sweep as its group on Weights & Biases.

    It survives no failure by itself: Tune starts a trial again as a whole, as often as the sweep's recipe says.
    """
    recipe = sweep.recipe_of(trial)
    group = recipe.wandb and recipe.wandb.model_copy(update={"group": recipe.wandb.group or sweep.folder.name})
    cluster = recipe.cluster.model_copy(update={"max_failures": 0})
    export = recipe.export.model_copy(update={"after_training": False})
    own = {
        "cluster": cluster,
        "export": export,
        "fusion": None,
        "train": recipe.train.model_copy(update={"copies": None}),
    }
    return recipe.model_copy(update={"name": trial.name, "wandb": group, **own})


def _report(sweep: Sweep, trial: Trial, over: threading.Event) -> None:
    """Tell Tune of every evaluation in the trial's log but its last, until training is over.

    A trial that goes on after a kill tells of its earlier ones again. Tune ends this thread where it stops the trial.
    """
    from ray import tune as ray_tune

    from livetrain.cluster.sweep.search import reported

    told, last = 0, sweep.recipe_of(trial).train.epochs
    while not over.wait(POLL_S):
        new = [line for line in sweep.evaluations(trial) if line["step"] > told and line["epoch"] < last]
        for line in new:
            ray_tune.report(reported(sweep, line) | {"scores": line["scores"], "at": line["epoch"]})
            told = line["step"]


def _follower(sweep: Sweep, board: Board) -> Any:
    """Return Tune's callback that keeps the trials' states as they change."""
    from ray.tune import Callback

    class Follower(Callback):
        """Writes down what Tune says of the trials."""

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            own = sweep.trials[trial.config["number"]]
            own.state = "running"
            board.started(own)
            sweep.save()

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            if "scores" in result:
                own = sweep.trials[trial.config["number"]]
                own.scores, own.epoch = result["scores"], result["at"]

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            own = sweep.trials[trial.config["number"]]
            text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
            own.error = text[-ERROR_LENGTH:] + (DIED if "actor died" in text or not text else "")
            board.ended(own)
            sweep.save()

    return Follower()


def _settle(sweep: Sweep, board: Board, number: int, gave_up: bool) -> None:
    """Write down the end of a trial that Tune is done with; of one that it gave up the follower is told why."""
    trial = sweep.trials[number]
    places.release(sweep.run(trial))
    _read(sweep, trial)
    if trial.state not in ENDED:
        trial.state = "failed" if gave_up else "stopped"
    trial.seconds = board.seconds(trial)
    if not gave_up:
        board.ended(trial)
    sweep.save()


def _settle_all(sweep: Sweep) -> None:
    """Bring the trials of a sweep that was killed to what their run folders say."""
    for trial in sweep.trials:
        if trial.state not in ENDED:
            trial.state = "waiting"
            _read(sweep, trial)
    sweep.save()


def _read(sweep: Sweep, trial: Trial) -> None:
    """Take a trial's scores, and whether it has finished or failed, from its run folder."""
    run = sweep.run(trial)
    evaluations = sweep.evaluations(trial)
    if evaluations:
        trial.scores, trial.epoch = evaluations[-1]["scores"], evaluations[-1]["epoch"]
    if run_folder.finished(run) is not None:
        trial.state = "finished"
    elif (run / ERROR).exists():
        trial.state, trial.error = "failed", (run / ERROR).read_text(encoding="utf-8")[-ERROR_LENGTH:]
