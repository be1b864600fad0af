"""Where a run happens: in this process, on this machine's own Ray, or on a cluster.

Every trap of Ray Train that livetrain has to know of is handled in this file. The run folder is the only state: a
worker group that Ray starts again looks there for its newest committed checkpoint, so nothing is reported to Ray.
"""

import contextlib
import fcntl
import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from configs.errors import BadInput
from configs.load import dump_recipe, load_recipe
from configs.schema import Cluster, Days, Recipe
from trainers import checkpoint, preflight, ranks, report, runlog, spectrum, start, tracking
from trainers.export import find_checkpoint, versions
from trainers.loop import Job, Trainer
from trainers.manifest import write_json
from trainers.process import ENVIRONMENT, prepare
from trainers.progress import Watcher

Work = Callable[[torch.device], dict[str, Any]]

LOCK = ".lock"  # in a run's folder, held by the process that trains it
_PATIENCE_S = 20.0  # longest wait for a process that held a run and is on its way out

PLACEMENT = "placement.txt"  # in a run's folder while its workers live: the id of Ray's reservation for them


def train(recipe: Recipe, runs: Path, test: bool = True) -> dict[str, Any]:
    """Train a recipe to its end and return the content of its result.json.

    A run of the same name that did not finish goes on from its last checkpoint.

    Args:
        recipe: the run; without a name it gets one from the model and the time.
        runs: folder of run folders, on storage that all workers share.
        test: whether the run ends with the metrics of the test split; `evaluate` gives them later too.

    Raises:
        BadInput: the recipe, its data or the run folder is wrong, or another process is training the run.
        RuntimeError: the workers failed more often than cluster.max_failures.
    """
    if recipe.name:
        run = preflight.run_folder(runs.resolve(), recipe.name)
    else:
        run = preflight.fresh_folder(runs.resolve(), f"{recipe.model.kind}-{time.strftime('%Y%m%d-%H%M%S')}")
    recipe = recipe.model_copy(update={"name": run.name})
    with _alone(run):
        return _train(recipe, run, test)


def _train(recipe: Recipe, run: Path, test: bool) -> dict[str, Any]:
    _check_unfinished(run, recipe)
    started = time.perf_counter()
    with Watcher(run), _leaving_nothing(run):
        if not checkpoint.committed(run):
            start.find(recipe)
        sources, statistics = preflight.check(recipe, lambda text: runlog.note(run, "note", text=text))
        (run / "config.yaml").write_text(dump_recipe(recipe))
        job = Job(recipe, run, sources, statistics, test)
        result = _launch(partial(_train_here, job), recipe, run)
    result = {"name": recipe.name, **result, "wall_s": time.perf_counter() - started, "versions": versions()}
    write_json(run / "result.json", result)
    spectrum.write_spectrum(run, result["spectra"])
    tracking.report(recipe, run, report.write_report(run), result)
    return result


def evaluate(run: Path, split: str, which: str, days: Days | None = None) -> dict[str, Any]:
    """Return the metrics ``<split>.<task>.<metric>`` of a run's checkpoint, computed by the run's number of workers.

    Args:
        run: a run folder.
        split: train, valid or test.
        which: ``best`` or ``last`` checkpoint.
        days: what the splits read in the place of the run's own days.

    Raises:
        BadInput: no such run, split or checkpoint.
    """
    if split not in preflight.SPLITS:
        raise BadInput(f"--split: '{split}' is none of {', '.join(preflight.SPLITS)}")
    run = run.resolve()
    path = find_checkpoint(run, which)
    recipe = load_recipe(run / "config.yaml")
    if days is not None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"days": days})})
    with Watcher(run):
        sources, statistics = preflight.check(recipe, lambda text: runlog.note(run, "note", text=text))
        job = Job(recipe, run, sources, statistics)
        return _launch(partial(_evaluate_here, job, path, split), recipe, run)


def _check_unfinished(run: Path, recipe: Recipe) -> None:
    if (run / "result.json").exists():
        raise BadInput(f"{run}: this run is finished; give another name, as name={recipe.name}-2, or remove the folder")
    found = checkpoint.committed(run)
    if found:
        checkpoint.check_same(found[-1], recipe, resume=True)


@contextlib.contextmanager
def _leaving_nothing(run: Path) -> Iterator[None]:
    """Where a new run is refused before its first step, remove its folder, which was empty until now."""
    new = all(path.name == LOCK for path in run.iterdir())
    try:
        yield
    except BadInput:
        trained = checkpoint.committed(run) or any(line.get("kind") == "train" for line in runlog.read(run))
        if new and not trained:
            shutil.rmtree(run, ignore_errors=True)
        raise


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Keep a run to this process: two that write its checkpoints at once would damage both.

    A process that ends, or is killed, lets go of its run; one that is dying is waited for. Storage that knows no locks
    is taken as it is.

    Raises:
        BadInput: another process is training the run.
    """
    stop = time.monotonic() + _PATIENCE_S
    while True:
        run.mkdir(exist_ok=True)
        with open(run / LOCK, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = os.fstat(lock.fileno()).st_nlink > 0  # or whoever had it was refused, and left nothing
            except BlockingIOError:
                held = False
            except OSError:
                held = True
            if held:
                yield
                return
        if time.monotonic() > stop:
            raise BadInput(f"{run}: another process is training this run; wait for its end, or give another name")
        time.sleep(0.2)


def _train_here(job: Job, device: torch.device) -> dict[str, Any]:
    return Trainer(job, device).run()


def _evaluate_here(job: Job, path: Path, split: str, device: torch.device) -> dict[str, Any]:
    trainer = Trainer(job, device)
    checkpoint.load(trainer.sharded, job.recipe, path)
    metrics, _ = trainer.evaluate(split)
    return {f"{split}.{key}": value for key, value in metrics.items()}


def _launch(work: Work, recipe: Recipe, run: Path) -> dict[str, Any]:
    """Run `work` on every rank and return rank 0's result."""
    if recipe.cluster.workers == 0:
        return _in_process(work, recipe)
    return _on_ray(work, recipe, run)


def _in_process(work: Work, recipe: Recipe) -> dict[str, Any]:
    cuda = recipe.cluster.device != "cpu" and torch.cuda.is_available()
    if recipe.cluster.device == "cuda" and not cuda:
        raise BadInput("cluster.device: this machine has no GPU that torch can use; use device: cpu, or auto")
    with ranks.alone(cuda):
        return work(torch.device("cuda", 0) if cuda else torch.device("cpu"))


def _on_ray(work: Work, recipe: Recipe, run: Path) -> dict[str, Any]:
    cluster = recipe.cluster
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths of a recipe mean the caller's folder
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # else the end is noticed up to 2 s late
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    outcome, refusal = run / "outcome.json", run / "refused.txt"
    for stale in (outcome, refusal):
        stale.unlink(missing_ok=True)
    runlog.note(run, "note", text=f"starting {cluster.workers} workers")
    with _connected(recipe) as cuda:
        release(run)
        trainer = TorchTrainer(
            partial(_on_worker, work, run),
            train_loop_config={},
            scaling_config=ScalingConfig(
                num_workers=cluster.workers,
                use_gpu=cuda,
                resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cuda else {})},
            ),
            # A name of its own each time: Ray takes a finished name for a finished job and does nothing.
            run_config=RunConfig(
                name=f"{run.name}-{time.time_ns()}",
                storage_path=str(run / "ray"),
                failure_config=FailureConfig(max_failures=cluster.max_failures),
            ),
            torch_config=TorchConfig(backend=ranks.backend(cuda), timeout_s=cluster.timeout_s),
        )
        try:
            trainer.fit()
        except Exception as error:
            if not refusal.exists():
                raise RuntimeError(f"the workers failed more than {cluster.max_failures} times: {error}") from error
        finally:
            (run / PLACEMENT).unlink(missing_ok=True)
            shutil.rmtree(run / "ray", ignore_errors=True)  # Ray's own notes on a run that is told in full elsewhere
    if refusal.exists():
        raise BadInput(refusal.read_text())
    content = json.loads(outcome.read_text())
    outcome.unlink()
    return content


def _on_worker(work: Work, run: Path, _config: dict[str, Any]) -> None:
    """What a Ray worker does. Its outcome travels through the run folder."""
    prepare()
    from ray.train.torch import get_device
    from ray.util import get_current_placement_group

    if not (run / "config.yaml").exists():
        raise RuntimeError(f"{platform.node()} does not see {run}: --runs must lie on storage that all nodes share")
    refusal = run / "refused.txt"
    if refusal.exists():  # Ray starts the group again, but that cannot mend bad input: end at once
        return
    if ranks.is_main():
        (run / PLACEMENT).write_text(get_current_placement_group().id.hex())
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        result = work(device)
    except BadInput as error:
        refusal.write_text(str(error))
        raise
    if ranks.is_main():
        write_json(run / "outcome.json", result)


def release(run: Path) -> None:
    """End the workers of a run whose own driver is gone or is to go, and free what Ray holds for them, at once.

    Ray Train leaves that to a helper which asks the dashboard; where there is none, nothing would ever free it.
    """
    import ray
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    note = run / PLACEMENT
    if note.exists():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(note.read_text()))))
        note.unlink(missing_ok=True)


@contextlib.contextmanager
def _connected(recipe: Recipe) -> Iterator[bool]:
    """Connect to the recipe's Ray cluster, or start one on this machine; yield whether workers get GPUs."""
    with attached(recipe.cluster):
        yield on_gpus(recipe.cluster)


@contextlib.contextmanager
def attached(cluster: Cluster, dashboard: bool = False) -> Iterator[None]:
    """Connect to the Ray cluster that a recipe names (else RAY_ADDRESS), or start one on this machine.

    Args:
        cluster: of the recipe.
        dashboard: whether a Ray that is started here has one, which Ray's own helpers need to tidy up after a driver.
    """
    import ray

    ours = not ray.is_initialized()
    if ours:
        address = cluster.address or os.environ.get("RAY_ADDRESS")
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address:
            ray.init(address=address, runtime_env={"env_vars": ENVIRONMENT}, **quiet)
        else:
            cpus = max(os.cpu_count() or 1, math.ceil(cluster.workers * cluster.cpus_per_worker))
            # Nobody looks at the dashboard of a Ray that ends with its run; it takes ten processes and a gigabyte.
            ray.init(address="local", num_cpus=cpus, include_dashboard=dashboard, **quiet)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def on_gpus(cluster: Cluster) -> bool:
    """Return whether workers get a GPU each.

    Raises:
        BadInput: they should, and there are too few.
    """
    import ray

    gpus, wanted = int(ray.cluster_resources().get("GPU", 0)), max(cluster.workers, 1)
    cuda = cluster.device == "cuda" or (cluster.device == "auto" and gpus >= wanted)
    if cuda and gpus < wanted:
        raise BadInput(
            f"cluster.device: cuda needs {wanted} GPUs, one a worker, and the Ray cluster has {gpus}; "
            "lower cluster.workers, or use device: cpu"
        )
    return cuda
