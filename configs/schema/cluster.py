"""Where a run trains."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from livetrain.configs.errors import BadInput
from livetrain.configs.schema.section import Section
from livetrain.configs.values import CountOrZero, Rate, Text, real, whole


class Topology(Section):
    """The machines that the sharding planner plans for. The defaults are one H100 node's."""

    workers_per_node: Annotated[int, *whole(1, 1024)] = 8
    hbm_gb: Rate = Field(80, description="GPU memory per worker")
    ddr_gb: Rate = Field(128, description="host memory per worker")
    hbm_gb_s: Rate = 3350
    ddr_gb_s: Rate = 100
    intra_gb_s: Rate = Field(450, description="between workers of one node, each way")
    inter_gb_s: Rate = Field(50, description="between nodes, each way")


class Workers(Section):
    """As many ranks as there is room for, within these ends: machines may leave a run and join it."""

    min: Annotated[int, *whole(1, 4096)] = Field(description="ranks below which the run waits for machines")
    max: Annotated[int, *whole(1, 4096)]

    @model_validator(mode="after")
    def _rises(self) -> "Workers":
        if self.min > self.max:
            raise BadInput(f"cluster.workers: min {self.min} is above max {self.max}; swap them")
        return self


def _arm(value: Any) -> str:
    return "Workers" if isinstance(value, dict | Workers) else "int"


class Cluster(Section):
    """Where the run happens; nothing here changes what is learned."""

    workers: Annotated[
        Annotated[Annotated[int, *whole(0, 4096)], Tag("int")] | Annotated[Workers, Tag("Workers")], Discriminator(_arm)
    ] = Field(
        1,
        description="ranks; 0 trains inside the calling process, without Ray; {min: 4, max: 16} as many as there is "
        "room for, while the run goes on",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    address: Text | None = Field(None, description="a running Ray cluster; none starts Ray on this machine")
    cpus_per_worker: Annotated[float, real(0.001, 1024)] = 1
    max_failures: CountOrZero = Field(
        2, description="failures of workers, with no new checkpoint between them, after which the run starts them again"
    )
    timeout_s: Annotated[int, *whole(1, 30 * 86400)] = Field(
        600, description="longest wait for room, and for the other ranks"
    )
    quantize_comms: Literal["none", "fp16", "bf16"] = Field("none", description="type of embeddings on the wire")
    topology: Topology = Topology()

    @property
    def least(self) -> int:
        """The fewest ranks that the run may have."""
        return self.workers.min if isinstance(self.workers, Workers) else self.workers

    @property
    def most(self) -> int:
        """The most ranks that the run may have."""
        return self.workers.max if isinstance(self.workers, Workers) else self.workers

    @property
    def elastic(self) -> bool:
        """Whether the number of ranks may change while the run goes on."""
        return isinstance(self.workers, Workers)

    def of(self, workers: int) -> "Cluster":
        """Return this section with a plain number of ranks."""
        return self.model_copy(update={"workers": workers})
