"""A run's workers on Ray: on this machine's own, or on a cluster's.

Every trap of Ray Train that livetrain has to know of is handled in this file. The run folder is the only state: a
worker group that Ray starts again looks there for its newest committed checkpoint, so nothing is reported to Ray.
"""

import contextlib
import itertools
import json
import logging
import os
import pickle
import platform
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from livetrain.cluster import capacity, places
from livetrain.cluster.joining import join
from livetrain.configs import plugins
from livetrain.configs.errors import BadInput, NotNow, may_pass
from livetrain.configs.schema import Cluster, Recipe
from livetrain.trainers.data.read.spread import Spread, in_threads
from livetrain.trainers.runtime import ranks, runlog, scratch, signals
from livetrain.trainers.runtime.manifest import write_json, write_text
from livetrain.trainers.runtime.process import ENVIRONMENT, ray_folder, set_up, threads

PLACED_S = 10.0  # longest wait for a place that was free a moment ago
_FEW = 64  # parts of a look at data that threads of this process do in the time that Ray takes to start

Work = Callable[[torch.device], dict[str, Any]]
"""What a rank does on its device; rank 0's result is the command's."""

Before = Callable[[str], None]
"""What the driver does before there are workers, given the device type that these will have."""


def run(work: Work, recipe: Recipe, told: Path, place: Path, before: Before | None = None) -> dict[str, Any]:
    """Run `work` on every worker and return rank 0's result.

    Args:
        work: of a worker, given its device.
        recipe: the run.
        told: the folder whose log is told what happens.
        place: the command's own in the run's folder.
        before: done before there are workers.

    Raises:
        BadInput: a worker refused the recipe or its data, or the cluster lacks room or GPUs.
        NotNow: workers of an earlier start still train this run.
        RuntimeError: the workers failed more often than cluster.max_failures, or found no room.
        KeyboardInterrupt: this process was interrupted or told to stop.
    """
    cluster = recipe.cluster
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths of a recipe mean the caller's folder
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # else the end is noticed up to 2 s late
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from livetrain.cluster import elastic

    runlog.note(told, "note", text=f"starting {capacity.asked(cluster)}")
    lasting = ray.is_initialized() or bool(cluster.address or os.environ.get("RAY_ADDRESS"))
    with _connected(recipe) as cuda:
        if before is not None:
            before("cuda" if cuda else "cpu")
        if place.name.startswith(places.TRAINING):
            places.release(place.parent)
        places.clear(place, places.free)
        trainer = TorchTrainer(
            partial(_on_worker, pickle.dumps(work), recipe.plugins, place, lasting),
            train_loop_config={},
            scaling_config=ScalingConfig(  # a checker sees that of Ray Train's first version, here and below
                num_workers=(cluster.least, cluster.most) if cluster.elastic else cluster.most,  # type: ignore[arg-type]
                use_gpu=cuda,
                resources_per_worker=capacity.each(cluster, cuda),
            ),
            # A name of its own each time: Ray takes a finished name for a finished job and does nothing.
            run_config=RunConfig(
                name=f"{place.parent.name}-{time.time_ns()}",
                storage_path=str(place / "ray"),  # Ray's own notes on a run that is told in full elsewhere
                failure_config=FailureConfig(  # type: ignore[call-arg]
                    max_failures=cluster.max_failures,
                    max_preemption_failures=cluster.max_failures,
                    # A start of workers of a range is bounded by time, see `elastic.Scaling`.
                    controller_failure_limit=-1 if cluster.elastic else cluster.max_failures,
                ),
            ),
            torch_config=TorchConfig(backend=ranks.backend(cuda), timeout_s=cluster.timeout_s),
        )
        try:
            with capacity.watched(cluster, cuda, lambda text: runlog.note(told, "note", text=text)):
                asked = elastic.Asked(recipe.counts(), place, told, cluster.timeout_s)
                _fit(trainer, cluster, elastic.policies(trainer, asked))
        except Exception as error:
            if not (place / places.REFUSAL).exists():
                raise _failure(error, cluster, cuda) from error
        except KeyboardInterrupt:
            with contextlib.suppress(Exception):  # Ray may have been told to end as well
                places.free(place)
            raise
    if (place / places.REFUSAL).exists():
        refusal = json.loads((place / places.REFUSAL).read_text(encoding="utf-8"))
        raise (NotNow if refusal["later"] else BadInput)(refusal["sentence"])
    if signals.terminated() and not (place / places.OUTCOME).exists():
        raise signals.Stopped
    return json.loads((place / places.OUTCOME).read_text(encoding="utf-8"))


def _fit(trainer: Any, cluster: Cluster, policies: dict[str, Any]) -> None:
    """Train until the end, or until this process is interrupted; its workers end with it.

    Args:
        trainer: Ray Train's.
        cluster: of the recipe.
        policies: of Ray Train's controller, in the place of its own.
    """
    import ray
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    # Ray's helper against reservations that outlive their controller asks the dashboard for it, of a Ray without one
    # whatever answers at 127.0.0.1:8265. Where that is another Ray's, it frees the workers of a run that is well.
    made, run = trainer._create_default_callbacks, trainer._initialize_and_run_controller
    trainer._create_default_callbacks = lambda: [
        one for one in made() if not isinstance(one, PlacementGroupCleanerCallback)
    ]
    trainer._initialize_and_run_controller = lambda **parts: run(**parts | policies)
    # A range takes room that is free. For a plain number's Ray waits so often; altogether it is cluster.timeout_s.
    waits = PLACED_S if cluster.elastic else cluster.timeout_s / (cluster.max_failures + 1)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(waits)
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # cluster/elastic.py looks for machines that are to leave
    controllers: list[Any] = []
    # What Ray does on Ctrl-C may wait for its workers for ever, and takes the signal from who calls this.
    trainer._register_sigint_handler = controllers.append
    try:
        signals.heed()
        trainer.fit()
    except KeyboardInterrupt:
        for controller in controllers:
            ray.kill(controller)
        raise


def _failure(error: Exception, cluster: Cluster, cuda: bool) -> RuntimeError:
    """Return how a training by Ray failed, in words."""
    cause = type(getattr(error, "controller_failure", None)).__name__
    if cause in ("WorkerGroupStartupTimeoutError", "NoRoom"):
        return RuntimeError(
            f"cluster.workers: {capacity.lacking(cluster, cuda)}, after {cluster.timeout_s} s of waiting "
            "(cluster.timeout_s); wait for other jobs, add nodes, or lower cluster.workers"
        )
    return RuntimeError(
        f"the workers failed more than {cluster.max_failures} times with no new checkpoint between "
        f"(cluster.max_failures): {error}"
    )


def _on_worker(work: bytes, needed: list[str], place: Path, lasting: bool, _config: dict[str, Any]) -> None:
    """What a Ray worker does. Its outcome travels through its command's place.

    Args:
        work: of a rank, pickled; it can be read once the recipe's plugins are there.
        needed: these plugins.
        place: the command's.
        lasting: whether Ray outlives the command, and with it what it holds for the workers.
    """
    set_up()
    from ray.train.torch import get_device
    from ray.util import get_current_placement_group

    if not place.exists():
        raise RuntimeError(
            f"{platform.node()} does not see {place.parent}: --runs must lie on storage that all nodes share"
        )
    if (place / places.REFUSAL).exists():  # Ray starts the group again, but that cannot mend bad input: end at once
        return
    if lasting and ranks.is_main():
        group = get_current_placement_group()
        assert group is not None  # Ray Train places its workers in one
        write_text(place / places.PLACEMENT, group.id.hex())
    torch.set_num_threads(threads())
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with scratch.held(place):
        try:
            _import_here(needed)
            result = pickle.loads(work)(device)
        except BadInput as error:
            write_json(place / places.REFUSAL, {"sentence": str(error), "later": may_pass(error)})
            raise
        except signals.Stopped:  # as its driver knows, or Ray's controller
            if signals.asked(place.parent):
                raise signals.Again("it has saved, and is to start again") from None
            return
        if ranks.is_main():
            write_json(place / places.OUTCOME, result)


def _import_here(needed: list[str]) -> None:
    try:
        plugins.load(needed)
    except BadInput as error:
        raise BadInput(f"{error}; this is so on {platform.node()}, where a worker runs") from None


def spread(recipe: Recipe) -> Spread:
    """Return what looks at a run's data on all CPUs of its Ray cluster; a little of it is not worth the way there."""

    def run(work: Callable[[Any], Any], parts: Iterable[Any], threads: int | None = None) -> Generator[Any, None, None]:
        rest = iter(parts)
        first = list(itertools.islice(rest, _FEW))
        if len(first) < _FEW:
            yield from in_threads(work, first, threads)
            return
        import ray

        with attached(recipe.cluster):
            packed, remote = ray.put(pickle.dumps(work)), ray.remote(num_cpus=1)(_look)
            most, begun = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1), deque[Any]()
            try:
                for part in itertools.chain(first, rest):
                    begun.append(remote.remote(packed, recipe.plugins, part))
                    if len(begun) >= most:
                        yield ray.get(begun.popleft())
                while begun:
                    yield ray.get(begun.popleft())
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None

    return run


def _look(work: bytes, needed: list[str], part: Any) -> Any:
    """Do a part of a look at the data, in a task of Ray."""
    set_up()
    _import_here(needed)
    return pickle.loads(work)(part)


@contextlib.contextmanager
def _connected(recipe: Recipe) -> Iterator[bool]:
    """Connect to the recipe's Ray cluster, or start one on this machine; yield whether workers get GPUs."""
    with attached(recipe.cluster):
        cuda = on_gpus(recipe.cluster)
        capacity.check(recipe.cluster, cuda)
        yield cuda


def check_here(cluster: Cluster) -> None:
    """Raise BadInput, before anything is started, where the workers do not fit on this machine and are to run here."""
    if cluster.most and not (cluster.address or os.environ.get("RAY_ADDRESS")):
        import ray

        if not ray.is_initialized():
            capacity.cpus_here(cluster)


@contextlib.contextmanager
def attached(cluster: Cluster) -> Iterator[None]:
    """Connect to the Ray cluster that a recipe names (else RAY_ADDRESS), or start one on this machine.

    Raises:
        NotNow: as `joining.join`.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with signals.kept():
            if address:
                join(address, runtime_env={"env_vars": ENVIRONMENT}, **quiet)
            else:
                # Nobody looks at the dashboard of a Ray that ends with its run; it takes ten processes and a gigabyte.
                cpus = capacity.cpus_here(cluster)
                join("local", num_cpus=cpus, include_dashboard=False, _temp_dir=ray_folder(), **quiet)
        yield
    finally:
        ray.shutdown()


def on_gpus(cluster: Cluster) -> bool:
    """Return whether workers get a GPU each.

    Raises:
        BadInput: they should, and there are too few.
    """
    gpus, wanted = capacity.gpus(), max(cluster.least, 1)
    cuda = cluster.device == "cuda" or (cluster.device == "auto" and gpus >= wanted)
    if cuda and gpus < wanted:
        raise BadInput(
            f"cluster.device: cuda needs {wanted} GPUs, one per worker, and the Ray cluster has {gpus}; "
            "lower cluster.workers, or use device: cpu"
        )
    return cuda
