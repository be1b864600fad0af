"""The machines that `livetrain plan` forecasts for: what they can do, and where each figure is from."""

from typing import Annotated, Literal

from pydantic import Field

from livetrain.configs.schema.cluster import Topology
from livetrain.configs.schema.section import Section
from livetrain.configs.values import PositiveOrZero, Rate, Share, Text, real, whole

Microseconds = Annotated[float, real(0, 1e6)]


class Speeds(Section):
    """Matrix products of one worker, in TFLOP/s, by train.precision."""

    float32: Rate
    tf32: Rate
    bfloat16: Rate

    def of(self, precision: str) -> float:
        """Return the speed in FLOP/s."""
        return getattr(self, precision) * 1e12


class Reached(Section):
    """What part of the figures above a training step reaches."""

    products: Share = Field(1.0, description="of TFLOP/s, by matrix products")
    memory: Share = Field(1.0, description="of memory_gb_s, by all other operators")
    lookup: Share = Field(1.0, description="of memory_gb_s, by the tables' forward pass")
    update: Share = Field(1.0, description="of memory_gb_s, by the tables' backward pass with its update")
    links: Share = Field(1.0, description="of intra_gb_s and inter_gb_s")


class Waits(Section):
    """What takes time whatever its size, in microseconds."""

    operator: Microseconds = Field(description="of the host, to call one operator")
    group: Microseconds = Field(description="of the host, for one group of sharded tables in a step")
    lookup: Microseconds = Field(0.0, description="for a lookup, besides its bytes")
    row: Microseconds = Field(0.0, description="for a row that is updated, besides its bytes")
    intra: Microseconds = Field(description="a collective between workers of one node")
    inter: Microseconds = Field(description="more for each doubling of the nodes")
    peer: Microseconds = Field(description="an all-to-all more for each worker of another node")


class Reading(Section):
    """What a core of the host needs to bring batches, in microseconds."""

    row: Microseconds = Field(description="for a row")
    value: Microseconds = Field(description="for each id and number of it")


class Delays(Section):
    """By what the ranks' work differs, for the simulation."""

    deviation: Annotated[float, real(0, 10)] = Field(
        0.0, description="of the time of the same work, as part of its mean; lognormal"
    )
    stalls: Annotated[float, real(0, 1)] = Field(0.0, description="chance that a rank stands still in a step")
    stall_ms: PositiveOrZero = Field(0.0, description="mean of how long; exponential")


class Hardware(Section):
    """A kind of cluster; a worker is one GPU, or one process on CPUs. GB are 10^9 bytes but for memory, 2^30."""

    name: Text
    device: Literal["cpu", "cuda"]
    workers_per_node: Annotated[int, *whole(1, 1024)]
    cores: Annotated[int, *whole(1, 4096)] = Field(description="of the CPUs of a node")
    memory_gb: Rate = Field(description="of the worker's device; on CPUs its part of the node's")
    host_gb: Rate = Field(description="of the node's host, per worker")
    memory_gb_s: Rate = Field(description="of that memory, reads and writes together")
    host_gb_s: Rate = Field(description="between a GPU and its host, each way")
    intra_gb_s: Rate = Field(description="between workers of one node, each way")
    inter_gb_s: Rate = Field(description="between nodes, per worker, each way")
    tflops: Speeds
    reached: Reached = Reached()
    us: Waits
    reading_us: Reading
    delays: Delays = Delays()
    sources: list[Text] = Field(min_length=1, description="where the figures are from, and which are assumed")

    @property
    def ahead(self) -> bool:
        """Whether the host calls operators, and sends the next batch's ids, while the device computes: as of a GPU."""
        return self.device == "cuda"

    def topology(self) -> Topology:
        """Return what the planner of tables is told of these machines."""
        return Topology(
            workers_per_node=self.workers_per_node,
            hbm_gb=self.memory_gb,
            ddr_gb=self.host_gb,
            hbm_gb_s=self.memory_gb_s,
            ddr_gb_s=self.host_gb_s if self.ahead else self.memory_gb_s,  # over the bus, or as what computes reads it
            intra_gb_s=self.intra_gb_s,
            inter_gb_s=self.inter_gb_s,
        )
