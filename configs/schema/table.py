"""Embedding tables."""

from typing import Annotated, Literal

from pydantic import Field

from livetrain.configs.schema.optimizers import OfTables
from livetrain.configs.schema.section import Section
from livetrain.configs.values import Text, real, whole

Sharding = Literal["auto", "table_wise", "row_wise", "column_wise", "table_row_wise", "grid", "data_parallel"]


class InitialRows(Section):
    """The rows that a table begins with: those of the ids of a Parquet file."""

    file: Text = Field(description="Parquet file, or folder of them, on any filesystem that data.path may name")
    id: Text = Field("id", description="its column of ids: int64, or strings, which are hashed")
    vector: Text = Field("vector", description="its column of vectors: lists of dim numbers")


class Table(Section):
    """An embedding table, shared by every feature that names it."""

    rows: Annotated[int, *whole(1, 2**40)] = Field(description="ids that hash to one row share it")
    dim: Annotated[int, *whole(1, 2**16, multiple_of=4)] = Field(
        description="columns; a multiple of 4, as the fused kernels need"
    )
    hash: Literal["mix", "modulo"] = Field(
        "mix", description="id -> row: a mixing hash for any ids, or the plain remainder for ids that are 0..rows-1"
    )
    sharding: Sharding = Field(
        "auto",
        description="how the rows are spread over the ranks: whole tables, ranges of rows or of columns, ranges of "
        "rows over the ranks of one node, ranges of columns over nodes and of rows within each, or a copy on every "
        "rank; auto copies small tables and leaves the others to the planner",
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
    initial: InitialRows | None = Field(
        None, description="vectors of a file that the rows of its ids begin with; the other rows begin by init_std"
    )
    frozen: bool = Field(False, description="whether its rows keep their initial values")
