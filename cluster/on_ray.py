"""Work of many parts, as the buckets of a day or files to score, done by the nodes of a Ray cluster."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from livetrain.cluster.joining import join
from livetrain.cluster.parcel import sources, staged
from livetrain.cluster.plugin_files import plugin_files
from livetrain.configs.errors import BadInput, without_credentials
from livetrain.configs.schema import Recipe
from livetrain.trainers.runtime import signals
from livetrain.trainers.runtime.process import ENVIRONMENT, ray_folder

Run = Callable[[Callable[[Any], Any], list[Any]], Iterator[Any]]  # some work on all of its parts, as they are done


@contextlib.contextmanager
def on_ray(address: str, recipe: Recipe | None = None) -> Iterator[Run]:
    """Connect to a cluster and yield what runs tasks there; sources travel, data lie on storage that all nodes share.

    Args:
        address: of the cluster, `auto` for the one that this machine belongs to, `local` for one of this machine's own.
        recipe: whose plugins travel too.

    Raises:
        BadInput: the address is a dashboard's; or what a task raises, on any node.
        NotNow: as `joining.join`.
    """
    if "://" in address and not address.startswith("ray://"):
        raise BadInput(
            f"--address: '{without_credentials(address)}' is a dashboard's, for jobs; name the cluster itself, as auto "
            "on one of its machines, or head:6379"
        )
    import ray

    ours = not ray.is_initialized()
    if ours:
        alone = address == "local"
        plugins = {name: path.read_bytes() for name, path in (plugin_files(recipe) if recipe else {}).items()}
        with staged(sources() | plugins) as folder, signals.kept():
            modules = [str(path) for path in folder.iterdir() if path.suffix in ("", ".py")]
            environment = {"env_vars": ENVIRONMENT, "py_modules": modules}
            options = {"include_dashboard": False, "_temp_dir": ray_folder()} if alone else {"runtime_env": environment}
            join(address, log_to_driver=False, logging_level=logging.ERROR, **options)

    def run(work: Callable[[Any], Any], tasks: list[Any]) -> Iterator[Any]:
        # Ray takes functions, and work may be a partial one.
        remote: Any = ray.remote(num_cpus=1)(lambda task: work(task))
        waiting = [remote.remote(task) for task in tasks]
        while waiting:
            (done,), waiting = ray.wait(waiting)
            try:
                yield ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None

    try:
        yield run
    finally:
        if ours:
            ray.shutdown()
