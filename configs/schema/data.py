"""Which samples are read, and how."""

import contextlib
import re
from datetime import date, timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from livetrain.configs.errors import BadInput, shown
from livetrain.configs.schema.section import Section
from livetrain.configs.values import Bound, Count, Rate, Share, TaskName, Text, real, whole

_DAYS = re.compile(r"\d{4}-\d\d-\d\d\.\.\d{4}-\d\d-\d\d", re.ASCII)
BATCH = ("batch_size", "batch_size_per_worker")  # two ways to say one number
MOST_ROWS = 2**30  # of a step, over all workers together
_MOST_DAYS = 10_000  # of a split: each is a folder to look for


class Days(Section):
    """Which day partitions each split reads: first..last day, both included, as 2022-04-25..2022-05-04."""

    train: str
    valid: str
    test: str

    @field_validator("*", mode="before")
    @classmethod
    def _first_to_last(cls, value: Any, info: ValidationInfo) -> Any:
        first, last = date.max, date.min
        if isinstance(value, str) and _DAYS.fullmatch(value):
            with contextlib.suppress(ValueError):  # a month has no 31st
                first, last = map(date.fromisoformat, value.split(".."))
        if first > last:
            raise BadInput(
                f"data.days.{info.field_name} got {shown(value)}, wanted its first and last day, as "
                "2022-04-25..2022-05-04"
            )
        if (last - first).days >= _MOST_DAYS:
            raise BadInput(f"data.days.{info.field_name}: '{value}' are more than {_MOST_DAYS:,} days; correct one end")
        return f"{first}..{last}"  # however they were written

    @model_validator(mode="after")
    def _in_order(self) -> "Days":
        for earlier, later in (("train", "valid"), ("valid", "test")):
            if self.of(earlier)[-1] >= self.of(later)[0]:
                raise BadInput(
                    f"data.days: {later} ({getattr(self, later)}) must begin after {earlier} "
                    f"({getattr(self, earlier)}) ends; give days that follow one another"
                )
        return self

    def of(self, split: str) -> list[str]:
        """Return a split's days, each as 2022-04-25."""
        first, last = map(date.fromisoformat, getattr(self, split).split(".."))
        return [str(first + timedelta(days=number)) for number in range((last - first).days + 1)]


class OnAir(Section):
    """Items that are there for a while: from start on, and before end."""

    start: Text = Field(description="column of the catalogue")
    end: Text = Field(description="column of the catalogue")
    time: Text = Field(description="column of the rows, in the same unit")


class Hard(Section):
    """Negatives that a retriever holds for near the row's own item."""

    path: Text = Field(description="Parquet file of items' ids and, of each, the list of its neighbours' ids")
    column: Text = Field("neighbours", description="of that file: the lists")
    share: Share = Field(0.5, description="of the draws that are made among the neighbours, where an item has any")


class Negatives(Section):
    """Items of a catalogue that the training split gets while it is read: of a row's own, and of a whole step's."""

    catalogue: Text = Field(description="Parquet file, one row per item, columns named as those of the samples")
    item: Text = Field(description="column of the items' ids, in the samples and in the catalogue")
    task: Annotated[TaskName | None, Bound()] = Field(
        None, description="whose positive rows get negatives of their own"
    )
    per_positive: Annotated[int, *whole(1, 1000)] = Field(4, description="negatives drawn for each positive row")
    shared: Annotated[int, *whole(1, 2**24)] | Literal["all"] | None = Field(
        None,
        description="items beside the rows of a step, over all workers together, for a model that finds items; all: "
        "every item of the catalogue",
    )
    popularity: Text | None = Field(None, description="column of the catalogue with counts; by default all are equal")
    power: Annotated[float, real(0, 10)] = Field(0.75, description="of the count, to which chances are proportional")
    within: list[Text] = Field([], description="columns that a drawn item shares with the row, as a day or a category")
    on_air: OnAir | None = Field(None, description="draw only what was on air at the time of the row")
    seen: list[Text] = Field([], description="columns of the samples with lists of items that are not drawn")
    hard: Hard | None = Field(None, description="draw a share among the neighbours of the row's own item")

    @model_validator(mode="after")
    def _of_rows_or_shared(self) -> "Negatives":
        if self.task is None and self.shared is None:
            raise BadInput(
                "data.negatives: say whose positive rows get negatives, as task: click, or how many items a step's "
                "rows share, as shared: 1024"
            )
        keys, fields = ("per_positive", "within", "on_air", "seen", "hard"), type(self).model_fields
        of_rows = [key for key in keys if getattr(self, key) != fields[key].default]
        if self.task is None and of_rows:
            raise BadInput(
                f"data.negatives.{of_rows[0]}: is of negatives that a row has of its own; name the task whose positive "
                "rows get them, or leave it out"
            )
        if self.popularity is None and self.power != fields["power"].default:
            raise BadInput(
                "data.negatives.power: is of counts, by which nothing is drawn here; name their column in popularity, "
                "or leave it out"
            )
        if self.task is None and self.shared == "all" and self.popularity:
            raise BadInput(
                "data.negatives.popularity: with shared: all nothing is drawn; leave it out, or say how many to draw"
            )
        return self


class Data(Section):
    """Where the samples lie and how they are read."""

    path: Text = Field(description="folder or URI (s3://, gs://, hdfs://) that holds train/, valid/ and test/, or days")
    days: Days | None = Field(None, description="the splits as days of path's partitions date=YYYY-MM-DD/")
    layout: Literal["row", "request"] = Field(
        "row",
        description="request: a user's columns once, and lists of what each candidate has; then batch_size, "
        "shuffle_window and row groups count requests",
    )
    candidates: Annotated[int, *whole(1, 2**16)] | None = Field(
        None, description="layout request: the most candidates of a request"
    )
    batch_size: Annotated[int, *whole(1, MOST_ROWS)] = Field(
        1536, description="rows per step over all workers together"
    )
    batch_size_per_worker: Annotated[int, *whole(1, MOST_ROWS)] | None = Field(
        None,
        description="rows per step of each worker, in the place of batch_size: that becomes so many times "
        "cluster.workers when the recipe is read, and stays when the run goes on with other workers",
    )
    shards: Annotated[int, *whole(1, 2**16)] = Field(
        192, description="virtual shards; sample order depends on them and never on the workers"
    )
    shuffle_window: Count = Field(4096, description="rows that a shard shuffles together, about")
    shuffle_gb: Rate = Field(
        2,
        description="memory for rows that are shuffled, over all workers together: a split that fits is shuffled in "
        "one or two windows per shard; of another each shard holds two, smaller ones where they would not fit",
    )
    threads: Annotated[int, *whole(1, 256)] = Field(1, description="threads per worker that decode Parquet")
    prefetch: Annotated[int, *whole(1, 1024)] = Field(4, description="batches that a worker keeps ready")
    on_corrupt: Literal["stop", "skip"] = Field("stop", description="an unreadable row group: stop, or skip and count")
    negatives: Negatives | None = Field(None, description="draw negatives while the training split is read")

    def on(self, workers: int) -> "Data":
        """Return these data as so many workers read them: from now on `batch_size` alone says what a step has.

        Raises:
            BadInput: both ways of saying it are used, the rows are too many, or do not divide among a worker's shards.

        Example:
            >>> Data(path="data", batch_size_per_worker=480).on(workers=8).batch_size
            3840
        """
        rows = self.batch_size_per_worker
        if rows is None:
            return self
        if "batch_size" in self.model_fields_set:
            raise BadInput(
                f"data.batch_size_per_worker: {rows} rows are said beside data.batch_size: "
                f"{self.batch_size}; leave out one of the two"
            )
        if rows * workers > MOST_ROWS:
            raise BadInput(
                f"data.batch_size_per_worker: {rows} rows on {workers} workers are {rows * workers} per step, and "
                f"{MOST_ROWS} are the most; lower it"
            )
        shards = self.shards // workers
        if self.shards % workers == 0 and rows % shards:
            near = ", ".join(str(n) for n in (rows // shards * shards, (rows // shards + 1) * shards) if n)
            raise BadInput(
                f"data.batch_size_per_worker: {rows} rows do not divide among the {shards} data.shards of each of "
                f"{workers} workers; {near} would"
            )
        return self.model_copy(update={"batch_size": rows * workers, "batch_size_per_worker": None})

    @model_validator(mode="after")
    def _requests_have_a_cap(self) -> "Data":
        if (self.layout == "request") != (self.candidates is not None):
            raise BadInput(
                "data.candidates: layout request needs the most candidates that a request has, as candidates: 8"
                if self.candidates is None
                else "data.candidates: belongs to layout: request; set that, or leave candidates out"
            )
        if self.layout == "request" and self.negatives is not None:
            raise BadInput(
                "data.negatives: are drawn for rows, and layout request has a request's candidates in one row; use "
                "layout: row, or write the negatives as candidates with label 0"
            )
        return self
