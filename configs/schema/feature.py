"""What every kind of feature is; the kinds themselves are in configs/features."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from livetrain.configs.schema.section import Section
from livetrain.configs.values import Name, Text


class Feature(Section):
    """Base of every kind of feature: which column it reads, what carries it, and what a network gets of it.

    The reader, the statistics, the checks and an exported file know carriers and forms only. What the model does with
    the values is in modules.features, by `type`.

    Attributes:
        carrier: ids (int64, any number per row) or numbers (one float32 per row, NaN = missing); or other features,
            of whose ids its own are made, so that it has no column.
        form: what a network gets: of an id feature at most one embedding per row, of a sequence as many as its list
            has ids, of a dense one a number. A form other than dense has a table.
        plain: the values in the column are those that are looked up or normalised.
    """

    type: str
    column: Text | None = Field(None, description="Parquet column, by default the feature's name")

    carrier: ClassVar[Literal["ids", "numbers", "features"]] = "numbers"
    form: ClassVar[Literal["id", "sequence", "dense"]] = "dense"
    plain: ClassVar[bool] = False

    @property
    def limit(self) -> int:
        """Most ids of a row; the newest ones count."""
        return 1

    @property
    def pooled(self) -> str | None:
        """How the embeddings of a row's list of ids become one: sum, mean, sqrtn or max; None where they do not."""
        return None

    @property
    def lists(self) -> bool:
        """Whether a row of the column is a list of ids."""
        return self.form == "sequence" or self.pooled is not None

    @property
    def weighted(self) -> str | None:
        """Column with a weight of each id of a list; None where all count alike."""
        return None

    @property
    def parts(self) -> list[str]:
        """The features of whose ids this one's are made, in the order in which they count."""
        return []

    def looks_up(self) -> str | None:
        """Return the table in which the feature's ids are looked up; None for numbers."""
        return None

    def signature(self, mean: float, std: float) -> dict[str, Any]:
        """Return what a server has to know: type, dtype (int64: in `ids`, float32: in `dense`), what is missing.

        Args:
            mean: of a dense feature that is normalised.
            std: likewise.
        """
        dtype, missing = ("int64", "length 0") if self.carrier == "ids" else ("float32", "NaN")
        return {"dtype": dtype, "missing": missing} | self.model_dump(exclude={"column"})


class EmbeddedFeature(Feature):
    """A feature whose ids are looked up in a table."""

    table: Name = Field(description="the table that the ids are looked up in")

    carrier: ClassVar[Literal["ids", "numbers", "features"]] = "ids"
    form: ClassVar[Literal["id", "sequence", "dense"]] = "id"

    def looks_up(self) -> str | None:
        return self.table
