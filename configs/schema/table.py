"""Embedding tables."""

from typing import Annotated, Literal

from pydantic import Field

from livetrain.configs.schema.optimizers import OfTables
from livetrain.configs.schema.section import Section
from livetrain.configs.values import real, whole


class Table(Section):
    """An embedding table, shared by every feature that names it."""

    rows: Annotated[int, *whole(1, 2**40)] = Field(description="ids that hash to one row share it")
    dim: Annotated[int, *whole(1, 2**16, multiple_of=4)] = Field(
        description="columns; a multiple of 4, as the fused kernels need"
    )
    hash: Literal["mix", "modulo"] = Field(
        "mix", description="id -> row: a mixing hash for any ids, or the plain remainder for ids that are 0..rows-1"
    )
    sharding: Literal["auto", "table_wise", "row_wise", "column_wise", "data_parallel"] = Field(
        "auto", description="how the rows are spread over the ranks; auto leaves it to the planner"
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="of the stored numbers")
    memory: Literal["auto", "gpu", "host"] = Field(
        "auto",
        description="on GPUs: rows in GPU memory, or in host memory behind a GPU cache; auto puts the largest tables "
        "behind a cache where not all fit",
    )
    cache: Annotated[float, real(1e-6, 1)] = Field(
        0.2, description="part of a table in host memory that its GPU cache holds"
    )
    init_std: Annotated[float, real(0, 1000)] = Field(0.01, description="deviation of the normal initial values")
    optimizer: OfTables | None = Field(
        None,
        description="this table's own, in the place of optimizers.sparse; keys that it leaves out have their defaults",
    )
    frozen: bool = Field(False, description="whether its rows keep their initial values")
