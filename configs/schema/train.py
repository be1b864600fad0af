"""How long a run trains, and what it is measured by."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from livetrain.configs.errors import BadInput, shown
from livetrain.configs.schema.section import Section
from livetrain.configs.values import (
    Count,
    Few,
    Length,
    ListName,
    MetricName,
    PartName,
    Seed,
    Share,
    SliceName,
    Text,
    whole,
)

SEEN, CANDIDATES = "(seen)", "(candidates)"  # lists that evaluations read besides; no feature can have such a name
_PROFILED = re.compile(r"([1-9]\d{0,8})\.\.([1-9]\d{0,8})", re.ASCII)
_MOST_PROFILED = 1000  # steps: a trace is kept in memory until it is written


class WarmStart(Section):
    """What a run begins with, by names such as tables.user, features.age, tasks.click and layers.trunk.experts."""

    model_config = ConfigDict(serialize_by_alias=True)

    run: Text = Field(description="run folder whose best checkpoint this run begins with")
    map: dict[PartName, Text] = Field({}, description="names here to names there, as tables.video: tables.movie")
    only: list[PartName] | None = Field(None, description="tables and layers that are taken; all that fit by default")
    left_out: list[PartName] = Field([], alias="except", description="what begins anew although it might fit")

    def asks(self, name: str) -> bool:
        """Return whether a table or layer is to be taken, if it fits."""
        inside = [f"{name}.".startswith(f"{one}.") for one in self.only or []]
        outside = [f"{name}.".startswith(f"{one}.") for one in self.left_out]
        return (self.only is None or any(inside)) and not any(outside)


def _as_section(value: Any) -> Any:
    return {"run": value} if isinstance(value, str) else value


Start = Annotated[WarmStart, BeforeValidator(_as_section, json_schema_input_type=str | WarmStart)]


class Train(Section):
    epochs: Count = Field(1, description="passes over the training split")
    seed: Seed = Field(1, description="of initial values, the order of samples and dropout")
    evaluate_every: Share = Field(1.0, description="epochs between evaluations on valid/")
    patience: Count | None = Field(None, description="stop after this many evaluations without a better one")
    checkpoint_every: Count | None = Field(None, description="steps between checkpoints besides evaluations")
    keep: Count = Field(2, description="newest checkpoints kept, besides the best")
    copies: Text | None = Field(
        None,
        description="folder or URI (s3, gs, abfs) that gets a copy of each checkpoint; another machine goes on from it",
    )
    select: MetricName | None = Field(
        None,
        description="metric on valid/ that picks the best, as gauc or like.auc; by default the first task's main one",
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32", description="of the dense part: tf32 speeds up matrix products on GPUs, bfloat16 autocasts"
    )
    log_every: Count = Field(20, description="steps between lines of metrics.jsonl")
    warm_start: Start | None = Field(None, description="what this run begins with: a run folder, or a section")
    accumulate: Few = Field(
        1,
        description="parts in which each rank trains the network on its share of a batch, one after another: less "
        "memory, the same gradients",
    )
    compile: bool | Literal["cuda_graphs"] | None = Field(
        None,
        description="train the network as one compiled graph: by default on a GPU, where it can be; true refuses one "
        "that cannot be; cuda_graphs also replays its parts of fixed shape",
    )
    profile: str | None = Field(None, description="first..last step, as 20..30: write a torch profiler trace of them")

    @field_validator("profile", mode="before")
    @classmethod
    def _first_to_last(cls, value: Any) -> Any:
        if value is None:
            return None
        ends = _PROFILED.fullmatch(value) if isinstance(value, str) else None
        first, last = map(int, ends.groups()) if ends else (0, -1)
        if first > last:
            raise BadInput(f"train.profile got {shown(value)}, wanted the first and the last step, from 1, as 20..30")
        if last - first >= _MOST_PROFILED:
            raise BadInput(f"train.profile: '{value}' are more than {_MOST_PROFILED:,} steps; write fewer, as 20..30")
        return value

    def profiled(self) -> range:
        """Return the steps, counted from 1 as in metrics.jsonl, that a profiler records: none by default."""
        first, last = map(int, self.profile.split("..")) if self.profile else (1, 0)
        return range(first, last + 1)


class Evaluate(Section):
    group_by: Text | None = Field(
        None,
        description="column (integers or strings) of what is ranked together, as a user or a request: for GAUC and "
        "metrics of lists",
    )
    slices: Annotated[dict[SliceName, Text], Field(max_length=32)] = Field(
        {}, description="conditions over columns, such as new_user: user_count < 3; their rows get metrics of their own"
    )
    top: Annotated[list[Length], Field(max_length=16)] = Field(
        [10], description="k of HR@k, recall@k and NDCG@k of each group's list"
    )
    catalogue: Text | None = Field(
        None,
        description="Parquet of the items, a file or a folder, that retrieval ranks; else the split's items",
    )
    seen: ListName | None = Field(
        None,
        description="items that retrieval leaves out of a row's list: a sequence feature, of which the whole column "
        "counts, or any column of lists",
    )
    candidates: ListName | None = Field(
        None, description="items that retrieval ranks a row's among, in the place of all: a column of lists"
    )
    bootstrap: Annotated[int, *whole(0, 10_000)] = Field(
        0, description="draws of whole groups from which the test's metrics get 95 % intervals"
    )
    memory: Literal["auto", "exact", "bounded"] = Field(
        "auto",
        description="exact keeps every row; bounded: binned AUC, GAUC on a sample of groups; auto is exact up to 20 "
        "million rows of a split",
    )

    @model_validator(mode="after")
    def _candidates_are_of_a_catalogue(self) -> "Evaluate":
        if self.candidates is not None and self.catalogue is None:
            raise BadInput(
                "evaluate.candidates: of a list those items are ranked that the catalogue has; name it in "
                "evaluate.catalogue, or those that no row of the split is about would be left out"
            )
        return self
