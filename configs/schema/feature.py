"""What every kind of feature is; the kinds themselves are in configs/features."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from livetrain.configs.schema.section import Section
from livetrain.configs.values import Bound, TableName, Text

Holds = Literal["id", "sequence", "dense", "vector", "time", "unix time"]


class Feature(Section):
    """Base of every kind of feature: which columns it reads, what carries it, and what a network gets of it.

    The reader, the statistics, the checks and an exported file know carriers and forms only. What the model does with
    the values is in modules.features, by `type`.

    Attributes:
        carrier: ids (int64, any number per row) or numbers (`numbers` float32 per row, NaN = missing); or other
            features, of whose ids its own are made, so that it has no column.
        form: what a network gets: of an id feature at most one embedding per row, of a sequence as many as its list
            has ids, of a dense one numbers. A form other than dense has a table.
        apart: keys that change no value, see `same_values`.
    """

    type: str
    column: Text | None = Field(None, description="Parquet column, by default the feature's name")

    carrier: ClassVar[Literal["ids", "numbers", "features"]] = "numbers"
    form: ClassVar[Literal["id", "sequence", "dense"]] = "dense"
    apart: ClassVar[frozenset[str]] = frozenset({"column"})

    def same_values(self, old: "Feature") -> bool:
        """Return whether a table or a network gets the values that it got by an older section of the feature.

        Then what was measured and learned of them holds still. A column may be renamed: the feature's name says what is
        in it. What became of `parts` is not asked here.

        >>> from livetrain.configs.features.age import AgeFeature
        >>> days = AgeFeature(type="age")
        >>> days.same_values(AgeFeature(type="age", column="born"))
        True
        >>> days.same_values(AgeFeature(type="age", per="hours"))
        False
        """
        apart = {*self.apart}
        return self.model_dump(exclude=apart) == old.model_dump(exclude=apart)

    @property
    def embedded(self) -> bool:
        """Whether its ids are looked up in a table."""
        return False

    @property
    def plain(self) -> bool:
        """Whether the values in the column are those that are looked up, or that the network gets once normalised."""
        return False

    @property
    def numbers(self) -> int:
        """Numbers of a row, which are columns of a batch's dense tensor; of the carrier numbers alone."""
        return 1

    @property
    def holds(self) -> Holds:
        """What its columns hold: "dense", a number, and "id" or "sequence" of ids, as they are; "vector", lists of
        numbers; "time", or "unix time" where integers count in `time_unit` since 1970; both are carried in seconds."""
        if self.carrier == "numbers":
            return "dense"
        return "sequence" if self.lists else "id"

    @property
    def time_unit(self) -> str | None:
        """The unit of integers that are times, in `column` or `carried`: s, ms, us or ns."""
        return None

    @property
    def second_column(self) -> str | None:
        """A second column of times: then the number is the time from the first one to this one, in seconds."""
        return None

    @property
    def ids(self) -> int | None:
        """How many ids the feature makes of its values, from 0 on; None where the column's own are looked up."""
        return None

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
    def carried(self) -> str | None:
        """Column with a vector, or the time, of each id of a list; None where ids carry neither."""
        return None

    @property
    def up_to(self) -> str | None:
        """Column of the time of a row, where `carried` holds times: what is carried is the seconds from each id's to
        the next one's, and of the newest to this one. None where it holds vectors."""
        return None

    @property
    def alike(self) -> str | None:
        """The feature of the kind vector whose width, normalisation and encoder `carried` has."""
        return None

    @property
    def parts(self) -> list[str]:
        """The features of whose ids this one's are made, in the order in which they count."""
        return []

    def looks_up(self) -> str | None:
        """Return the table in which the feature's ids are looked up; None for numbers."""
        return None

    def signature(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        """Return what a server has to know: type, dtype (int64: in `ids`, float32: in `dense`), what is missing.

        Args:
            mean: of a dense feature's columns that are normalised, perhaps none.
            std: likewise.
        """
        dtype, missing = ("int64", "length 0") if self.carrier == "ids" else ("float32", "NaN")
        return {"dtype": dtype, "missing": missing} | self.model_dump(exclude={"column"})


class EmbeddedFeature(Feature):
    """A feature whose ids are looked up in a table."""

    table: Annotated[TableName | None, Bound()] = Field(
        None, description="the table that the ids are looked up in; only a model that is fitted needs none"
    )

    carrier: ClassVar[Literal["ids", "numbers", "features"]] = "ids"
    form: ClassVar[Literal["id", "sequence", "dense"]] = "id"
    apart: ClassVar[frozenset[str]] = frozenset({"column", "table"})

    @property
    def embedded(self) -> bool:
        return True

    def looks_up(self) -> str | None:
        return self.table
