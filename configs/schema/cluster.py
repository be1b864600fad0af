"""Where a run trains."""

from typing import Annotated, Literal

from pydantic import Field

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


class Cluster(Section):
    """Where the run happens; nothing here changes what is learned."""

    workers: Annotated[int, *whole(0, 4096)] = Field(
        1, description="ranks; 0 trains inside the calling process, without Ray"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    address: Text | None = Field(None, description="a running Ray cluster; none starts Ray on this machine")
    cpus_per_worker: Annotated[float, real(0.001, 1024)] = 1
    max_failures: CountOrZero = Field(2, description="worker failures survived by restarting from the last checkpoint")
    timeout_s: Annotated[int, *whole(1, 30 * 86400)] = Field(
        600, description="longest wait for room, and for the other ranks"
    )
    quantize_comms: Literal["none", "fp16", "bf16"] = Field("none", description="type of embeddings on the wire")
    topology: Topology = Topology()
