"""Whether the workers that a recipe asks for have room, on this machine or on a cluster, and what a start waits for."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Cluster

CROWDING = 2  # workers that may share a core of this machine: enough to try a recipe out
WORKER_BYTES = 256 * 2**20  # of host memory that a worker has to itself before it has any table
_POLL_S = 2.0  # between two looks at what a start waits for


def cpus_here(cluster: Cluster) -> int:
    """Return the CPUs that a Ray on this machine is started with: its cores, or what the workers ask for.

    Of a range of workers it is what as many of them ask for as fit.

    Raises:
        BadInput: the fewest workers ask for more than CROWDING times the cores, or for more memory than is left.
    """
    from livetrain.cluster.nodes import cores, free_memory

    here, free = cores(), free_memory()
    most = math.floor(CROWDING * here / cluster.cpus_per_worker)
    if cluster.least > most:
        raise BadInput(
            f"cluster.workers: {_workers(cluster, False)} do not fit on this machine of {counted(here, 'core')}; "
            f"{_mend(cluster, most)}, or name a cluster with cluster.address"
        )
    if cluster.least * WORKER_BYTES > free:
        raise BadInput(
            f"cluster.workers: {counted(cluster.least, 'worker')} take {cluster.least * WORKER_BYTES / 2**30:.1f} "
            f"GiB before any table, and this machine has {free / 2**30:.1f} GiB of memory free; lower it, or free some"
        )
    workers = min(cluster.most, max(cluster.least, min(most, free // WORKER_BYTES)))
    return max(here, math.ceil(workers * cluster.cpus_per_worker))


def check(cluster: Cluster, cuda: bool) -> None:
    """Compare the fewest workers of a run with what the nodes of the Ray cluster hold, or may come to hold.

    Raises:
        BadInput: they do not fit.
    """
    room = places(cluster, cuda)
    if room < max(cluster.least, 1):
        raise BadInput(
            f"cluster.workers: {_workers(cluster, cuda)} do not fit on the Ray cluster, which has room for {room} "
            f"on {counted(len(_nodes()), 'node')}; {_mend(cluster, room)}, or add nodes"
        )


def places(cluster: Cluster, cuda: bool) -> int:
    """Return for how many workers the Ray cluster has room, whole workers on each node, with the nodes it may add."""
    grown = sum(count * _fitting(node, cluster, cuda) for node, count in _groups())
    return max(places_now(cluster, cuda), grown)


def places_now(cluster: Cluster, cuda: bool) -> int:
    """Return for how many workers the nodes that are there have room."""
    return sum(_fitting(node, cluster, cuda) for node in _nodes())


def gpus() -> int:
    """Return how many GPUs the Ray cluster has, or may come to have."""
    return max(
        sum(int(node.get("GPU", 0)) for node in _nodes()),
        sum(count * int(node.get("GPU", 0)) for node, count in _groups()),
    )


def _fitting(node: Mapping[str, float], cluster: Cluster, cuda: bool) -> int:
    return fitting(node, each(cluster, cuda))


def each(cluster: Cluster, cuda: bool) -> dict[str, float]:
    """Return what Ray is asked for per worker."""
    return {"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cuda else {})}


def fitting(node: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """Return how many workers that want so much each have room on a node, counted as Ray does: in ten thousandths.

    Example:
        >>> fitting({"CPU": 8, "GPU": 2}, {"CPU": 0.5, "GPU": 1})
        2
    """
    return min(round(node.get(name, 0) * 10_000) // round(amount * 10_000) for name, amount in wanted.items())


def _nodes() -> list[dict[str, float]]:
    """Return the resources of every node of the Ray cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _groups() -> list[tuple[dict[str, float], int]]:
    """Return the kinds of node that an autoscaler may start: resources of one, and how many there may be."""
    from ray._private.state import state

    found = state.get_cluster_config()
    kinds = found.node_group_configs if found is not None else []
    return [(dict(kind.resources), 10**6 if kind.max_count < 0 else kind.max_count) for kind in kinds]


@contextlib.contextmanager
def watched(cluster: Cluster, cuda: bool, note: Callable[[str], None]) -> Iterator[None]:
    """Note what the start of workers waits for where others hold what they need, and when it goes on.

    Workers of a range are started where there is room for them, and never wait (see `elastic.Scaling`).

    Args:
        cluster: of the recipe.
        cuda: whether each worker takes a GPU.
        note: told of it.
    """
    from ray.util import placement_group_table

    before, over = set(placement_group_table()), threading.Event()

    def watch() -> None:
        waits = False
        while not over.wait(_POLL_S):
            groups = [group for name, group in placement_group_table().items() if name not in before]
            pending = any(group["state"] == "PENDING" and len(group["bundles"]) == cluster.most for group in groups)
            if pending != waits:
                starting = f"starting {asked(cluster)}"
                note(f"waiting: {lacking(cluster, cuda)}" if pending else starting)
            waits = pending

    def quietly() -> None:
        with contextlib.suppress(Exception):  # Ray may end meanwhile, and the start with it
            watch()

    thread = threading.Thread(target=quietly, name="capacity", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def lacking(cluster: Cluster, cuda: bool) -> str:
    """Say what the workers want, and how much of it is free."""
    import ray

    free = ray.available_resources()
    said = _cpus(free.get("CPU", 0)) + (f" and {counted(int(free.get('GPU', 0)), 'GPU')}" if cuda else "")
    return f"{_workers(cluster, cuda)} find no room, {said} are free"


def _cpus(number: float) -> str:
    return f"{number:g} CPU{'s' * (number != 1)}"


def counted(number: int, what: str) -> str:
    """Return a number of things in words, as ``2 GPUs``."""
    return f"{number} {what}{'s' * (number != 1)}"


def asked(cluster: Cluster) -> str:
    """Return how many workers a run may have in words, as ``2 to 4 workers``."""
    return f"{cluster.least} to " * cluster.elastic + counted(max(cluster.most, 1), "worker")


def _workers(cluster: Cluster, cuda: bool) -> str:
    gpu = " and a GPU" if cuda else ""
    return f"{counted(max(cluster.least, 1), 'worker')} of {_cpus(cluster.cpus_per_worker)}{gpu} each"


def _mend(cluster: Cluster, most: int) -> str:
    key = "cluster.workers.min" if cluster.elastic else "cluster.workers"
    return f"set {key} to {most} or fewer" if most > 0 else "lower cluster.cpus_per_worker"
