"""Embedding tables."""

from typing import Annotated, Literal

from pydantic import Field

from livetrain.configs.schema.optimizers import OfTables
from livetrain.configs.schema.section import Section
from livetrain.configs.values import Text, real, whole

SLOTS = 8  # rows of a bucket: its keys are 64 bytes, which a processor fetches at once
MOST_ADMITTED = 2**33  # rows of a table of ids whose map every rank holds whole

Sharding = Literal["auto", "table_wise", "row_wise", "column_wise", "table_row_wise", "grid", "data_parallel"]
BY_COLUMNS = ("column_wise", "grid")
POOLED_ALONE = ("table_row_wise", "grid")  # torchrec has them for tables that are pooled where their rows lie


class InitialRows(Section):
    """The rows that a table begins with: those of the ids of a Parquet file."""

    file: Text = Field(description="Parquet file, or folder of them, on any filesystem that data.path may name")
    id: Text = Field("id", description="its column of ids: int64, or strings, which are hashed")
    vector: Text = Field("vector", description="its column of vectors: lists of dim numbers")


class Admission(Section):
    """From which sight on an id has a row of its own."""

    threshold: Annotated[int, *whole(1, 2**20)] = Field(
        1, description="lookups in the training data, from which on an id has a row; until then it shares one"
    )


class Eviction(Section):
    """Which ids give their rows back."""

    strategy: Literal["last_use", "none"] = Field(
        "last_use",
        description="where the table is full: the id that was last looked up longest ago makes room for a newer one, "
        "or none does and new ids share rows",
    )
    expire_days: Annotated[int, *whole(1, 36_500)] | None = Field(
        None, description="days of the data without a lookup after which an id gives its row back; null is never"
    )


class Table(Section):
    """An embedding table, shared by every feature that names it."""

    rows: Annotated[int, *whole(1, 2**40)] = Field(
        description="ids that hash to one row share it; with hash: table its capacity, the shared rows included"
    )
    dim: Annotated[int, *whole(1, 2**16, multiple_of=4)] = Field(
        description="columns; a multiple of 4, as the fused kernels need"
    )
    hash: Literal["mix", "modulo", "table"] = Field(
        "mix",
        description="id -> row: a mixing hash for any ids, the plain remainder for ids that are 0..rows-1, or a table "
        "of the ids that have been admitted, each with a row of its own",
    )
    assign: Literal["before", "online"] = Field(
        "before",
        description="of hash: table: when ids get rows: before a run or an increment begins, or batch by batch while "
        "it trains, by the rank that owns them",
    )
    admission: Admission | None = Field(None, description="of hash: table; by default every id is admitted at once")
    eviction: Eviction | None = Field(None, description="of hash: table; by default by last use, when there is no room")
    shared: Annotated[int, *whole(1, 2**40)] | None = Field(
        None, description="of hash: table: at least so many of the rows are for the ids that have none; by default 1/16"
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

    @property
    def buckets(self) -> int:
        """Buckets of `SLOTS` rows for admitted ids; the rows after them are shared."""
        return self._room // self.shards * self.shards

    @property
    def shards(self) -> int:
        """Equal parts of the buckets, each of which one rank looks after where ids get rows online; else one.

        A power of two, whose square is the most that the buckets allow: so an id's shard is a function of the table and
        of no ranks, and a shard is large enough that few ids are refused in one while there is room in others.
        """
        return 1 << (self._room.bit_length() - 1) // 2 if self.assign == "online" and self._room else 1

    @property
    def _room(self) -> int:
        if self.hash != "table":
            return 0
        return max(self.rows - (self.shared or max(self.rows // 16, 1)), 0) // SLOTS

    @property
    def threshold(self) -> int:
        """Lookups from which on an id is admitted."""
        return 1 if self.admission is None else self.admission.threshold

    @property
    def evicts(self) -> Eviction:
        """How ids give their rows back."""
        return self.eviction or Eviction()
