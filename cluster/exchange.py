"""A real exchange between the workers of a run-to-be, over the same collectives that its embeddings will take."""

import socket
import statistics
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from livetrain.cluster.capacity import counted
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Cluster
from livetrain.trainers.runtime import ranks

BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}  # what a worker sends, to all together
ROUNDS = 5
PLACED_S, DONE_S = 60, 180


@dataclass(frozen=True)
class Exchanged:
    """What a worker has seen: bytes per second that left it for the others, and the free memory of its GPU (bytes)."""

    rank: int
    node: str
    rate: float
    gpu_free: int


class Worker:
    """One rank, run by Ray where a worker of the run would be."""

    def meeting_point(self) -> str:
        """Return an address of this machine for the process group to meet at."""
        with socket.socket() as one:
            one.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{one.getsockname()[1]}"

    def run(self, rank: int, world: int, meet: str, cuda: bool) -> Exchanged:
        """Join the others, check what arrives, and measure."""
        device = torch.device("cuda", 0) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        free = torch.cuda.mem_get_info(device)[0] if cuda else 0
        wait = timedelta(seconds=DONE_S / 2)
        dist.init_process_group(ranks.backend(cuda), init_method=meet, rank=rank, world_size=world, timeout=wait)
        try:
            rate = _measure(rank, world, device)
        finally:
            dist.destroy_process_group()
        return Exchanged(rank, ray.get_runtime_context().get_node_id(), rate, free)


def exchange(cluster: Cluster, cuda: bool) -> list[Exchanged]:
    """Start the workers that a run would have and let them exchange data; return what each has seen, by rank.

    Raises:
        BadInput: the cluster has no room for the workers, or they do not reach each other.
    """
    wanted = {"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cuda else {})}
    group = placement_group([wanted] * cluster.most, strategy="PACK")
    try:
        if not group.wait(PLACED_S):
            free = ray.available_resources()
            raise BadInput(
                f"cluster.workers: {counted(cluster.most, 'worker')} of {_resources(wanted)} find no room, "
                f"{_resources({name: free.get(name, 0) for name in wanted})} are free; wait for other jobs, add nodes, "
                "or lower cluster.workers or cluster.cpus_per_worker"
            )
        return _exchange(cluster, cuda, group)
    finally:
        remove_placement_group(group)  # ends the workers too


def _exchange(cluster: Cluster, cuda: bool, group: PlacementGroup) -> list[Exchanged]:
    def worker(index: int) -> Any:
        placed = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        options = {"num_cpus": cluster.cpus_per_worker, "num_gpus": int(cuda), "scheduling_strategy": placed}
        return ray.remote(Worker).options(**options).remote()

    workers = [worker(index) for index in range(cluster.most)]
    try:
        meet = ray.get(workers[0].meeting_point.remote(), timeout=DONE_S)
        running = [one.run.remote(rank, len(workers), meet, cuda) for rank, one in enumerate(workers)]
        return ray.get(running, timeout=DONE_S)
    except Exception as error:
        cause = getattr(error, "cause", None) or error
        why = next(iter(str(cause).strip().splitlines()), "")
        mend = "the NVIDIA driver and the CUDA build of torch" if cuda else "that no firewall is between the nodes"
        raise BadInput(
            f"the {len(workers)} workers cannot exchange data ({type(cause).__name__}: {why}); check {mend}, and the "
            f"network interface ({'NCCL' if cuda else 'GLOO'}_SOCKET_IFNAME)"
        ) from error


def _measure(rank: int, world: int, device: torch.device) -> float:
    """Return the median bytes per second that leave this rank in an all-to-all whose outcome is right."""
    part = BYTES[device.type] // 4 // world
    sent = (torch.arange(world, device=device, dtype=torch.float32) + rank * world).repeat_interleave(part)
    got = torch.empty_like(sent)  # part i holds i * world + rank
    seconds = []
    for _ in range(ROUNDS + 1):
        dist.barrier()
        began = time.perf_counter()
        dist.all_to_all_single(got, sent)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    expected = (torch.arange(world, device=device, dtype=torch.float32) * world + rank).repeat_interleave(part)
    if not torch.equal(got, expected):
        raise RuntimeError(f"rank {rank} received other data than was sent")
    return part * (world - 1) * 4 / statistics.median(seconds[1:])


def _resources(wanted: dict[str, float]) -> str:
    return " and ".join(f"{count:g} {name}" for name, count in wanted.items())
