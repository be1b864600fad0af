"""How long a step takes, from what it computes and exchanges and from what the machines can do.

A step is cut where ranks wait for each other:

    tables' forward pass | embeddings there | network, cut by its all-reduces | gradients back | tables' update

Each stretch takes what its bytes take at the rate of memory or links, its operations at that of matrix products, and
what takes time whatever its size. The host of a GPU calls operators ahead, so calling them costs only what the GPU does
not take longer for; the ids of the next batch travel meanwhile. A CPU does one after the other.
"""

from dataclasses import dataclass

import numpy as np

from livetrain.configs.schema.hardware import Hardware
from livetrain.trainers.forecast.counts import Counts
from livetrain.trainers.forecast.loads import ID, Loads

PARTS = {
    "dense": "the network, its losses and optimizer, on the device",
    "calls": "calling operators, beyond what the device takes",
    "tables": "looking rows up and updating them, of the mean rank",
    "skew": "more for the rank whose rows are asked for most",
    "inside": "embeddings and gradients between workers of a node",
    "between": "the same between nodes",
    "all_reduce": "averaging the network's gradients",
    "latency": "of all collectives",
    "cores": "waiting for the reader, and for cores that others use",
}
# What is left of the operators and of the bytes of elementwise ones where the network is compiled: torch.compile of
# din_ml1m, mmoe_kuairand and farm_kuairand leaves .36 to .37 of the launches, and of din_ml1m .30 of the bytes.
COMPILED_CALLS, COMPILED_BYTES = 0.36, 0.30


@dataclass(frozen=True)
class Work:
    """What one rank of a run does in a step.

    Attributes:
        world: number of ranks.
        rows: of its batch.
        values: ids and numbers of a row, which the reader brings.
        threads: of the reader.
        precision: train.precision.
        compiled: whether the network is compiled.
        counts: what its network does.
        loads: what the tables of all ranks do.
    """

    world: int
    rows: float
    values: float
    threads: int
    precision: str
    compiled: bool
    counts: Counts
    loads: Loads


@dataclass(frozen=True, eq=False)
class Stretches:
    """The stretches of a step in seconds; (R,) where ranks differ.

    Attributes:
        forward: tables' forward pass.
        backward: tables' backward pass and update.
        inside: embeddings one way, within the node.
        between: the same between nodes.
        dense: the network.
        calls: of the host, for all operators.
        exchange: latency of one exchange of embeddings, of all groups.
        ids: latency of the exchange of ids, where nothing hides it.
        reduces: bytes of each all-reduce over the links.
        reduce: latency of one all-reduce.
        reading: of one core, for the rank's batch.
    """

    forward: np.ndarray
    backward: np.ndarray
    inside: np.ndarray
    between: np.ndarray
    dense: float
    calls: float
    exchange: float
    ids: float
    reduces: tuple[float, ...]
    reduce: float
    reading: float


def stretches(work: Work, hardware: Hardware, lookups: np.ndarray | None = None) -> Stretches:
    """Return the stretches of a step.

    Args:
        work: of a rank.
        hardware: the machines.
        lookups: (S,) of every shard in this step, by default those expected.
    """
    loads, reached, us = work.loads, hardware.reached, hardware.us
    asked = loads.lookups if lookups is None else lookups
    memory = hardware.memory_gb_s * 1e9
    missed = asked * loads.missed / (hardware.host_gb_s * 1e9) / 2  # half on the way in, half out
    forward = asked * (loads.read / (memory * reached.lookup) + us.lookup / 1e6) + missed
    backward = asked * loads.updated / (memory * reached.update) + missed
    backward = backward + loads.touched * (loads.written / (memory * reached.update) + us.row / 1e6)
    inside, between = _exchanged(work, hardware, asked)
    counts = work.counts
    calls, moved = counts.operators, counts.bytes
    if work.compiled:
        calls, moved = calls * COMPILED_CALLS, moved * COMPILED_BYTES
    dense = counts.flops / (hardware.tflops.of(work.precision) * reached.products)
    dense += (moved + counts.products) / (memory * reached.memory)
    alone, groups = work.world == 1, loads.groups
    wait = 0.0 if alone else _all_to_all(work.world, hardware)
    local = node(work.world, hardware)
    link = hardware.intra_gb_s if local == work.world else min(hardware.intra_gb_s, local * hardware.inter_gb_s)
    share = 2 * (work.world - 1) / work.world
    return Stretches(
        forward=loads.by_rank(forward),
        backward=loads.by_rank(backward),
        inside=inside,
        between=between,
        dense=dense,
        calls=(calls * us.operator + groups * us.group) / 1e6,
        exchange=groups * wait,
        ids=0.0 if hardware.ahead or not groups else (1 + 2 * groups) * wait,
        reduces=() if alone else tuple(share * sent / (link * 1e9 * reached.links) for sent in counts.collectives),
        reduce=0.0 if alone else _all_reduce(work.world, hardware),
        reading=work.rows * (hardware.reading_us.row + hardware.reading_us.value * work.values) / 1e6,
    )


def parts(work: Work, hardware: Hardware) -> dict[str, float]:
    """Return the seconds of a step by `PARTS`; their sum is the step.

    Skew is what the rank with the most to do in a stretch takes longer than the mean, as all wait for it there.

    Args:
        work: of a rank.
        hardware: the machines.
    """
    found = stretches(work, hardware)
    tables = float((found.forward + found.backward).mean())
    exchange = found.inside + found.between
    out = {
        "dense": found.dense,
        "calls": calls(found, hardware),
        "tables": tables,
        "skew": float(sum(each.max() - each.mean() for each in (found.forward, found.backward, exchange, exchange))),
        "inside": 2 * float(found.inside.mean()),
        "between": 2 * float(found.between.mean()),
        "all_reduce": sum(found.reduces),
        "latency": 2 * found.exchange + found.ids + len(found.reduces) * found.reduce,
    }
    return out | {"cores": cores(sum(out.values()), found.reading, work, hardware)}


def calls(found: Stretches, hardware: Hardware) -> float:
    """Return the seconds in which a device waits for the host to call operators."""
    if not hardware.ahead:
        return found.calls
    return max(found.calls - found.dense - float((found.forward + found.backward).mean()), 0.0)


def cores(step: float, reading: float, work: Work, hardware: Hardware) -> float:
    """Return the seconds by which a step of `step` waits for the reader, or for the node's cores.

    The node's workers share its cores: each one's reader, and on CPUs the step itself.
    """
    busy = reading + (0.0 if hardware.ahead else step)
    crowded = busy * node(work.world, hardware) / hardware.cores
    return max(reading / work.threads - step, crowded - step, 0.0)


def node(world: int, hardware: Hardware) -> int:
    """Return how many workers a node has."""
    return min(hardware.workers_per_node, world)


def _exchanged(work: Work, hardware: Hardware, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds (R,), within and between nodes, in which each rank sends the embeddings of its shards.

    Every rank asks alike, so the part of a rank's embeddings that stays in its node is that of the node's other ranks.
    """
    loads, world, local = work.loads, work.world, node(work.world, hardware)
    sent = asked * loads.sent + loads.pooled * (1 - loads.stepped)
    added = loads.pooled * loads.stepped  # within the node each rank gets a part, and sends that on
    inside = sent * (local - 1) / world + added * (local - 1) / local
    between = sent * (world - local) / world + added * (world - local) / world / local
    if not hardware.ahead:  # nothing hides the ids
        inside = inside + asked * ID / 2 * (local - 1) / world
        between = between + asked * ID / 2 * (world - local) / world
    links = (hardware.intra_gb_s * 1e9 * hardware.reached.links, hardware.inter_gb_s * 1e9 * hardware.reached.links)
    return loads.by_rank(inside) / links[0], loads.by_rank(between) / links[1]


def _all_reduce(world: int, hardware: Hardware) -> float:
    nodes = world / node(world, hardware)
    return (hardware.us.intra + hardware.us.inter * np.log2(nodes)) / 1e6


def _all_to_all(world: int, hardware: Hardware) -> float:
    return (hardware.us.intra + hardware.us.peer * (world - node(world, hardware))) / 1e6
