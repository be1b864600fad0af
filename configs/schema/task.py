"""What every kind of task is; the kinds themselves are in modules/tasks."""

from typing import Annotated

from pydantic import Field, model_validator

from livetrain.configs import registry
from livetrain.configs.errors import BadInput
from livetrain.configs.schema.section import Section
from livetrain.configs.values import Share, TaskName, Text, real


class Task(Section):
    """One thing to predict: a label column, what kind of label it is, and its weight in the loss."""

    label: Text = Field(description="Parquet column of the label")
    kind: str = Field(
        "binary",
        description="of a label of 0 and 1: binary, focal, smoothed, jrc, pairwise, listwise, or retrieval, whose "
        "positives are to be found among all items; of a number: watch_time and ordinal, whose expected value is "
        "predicted, regression, huber, quantile; of another model's predictions: distilled, distilled_list; or a "
        "registered kind",
    )
    weight: Annotated[float, real(1e-6, 1e6)] = Field(1.0, description="of this task's loss among those of all tasks")
    unknown: bool = Field(False, description="null labels are not known yet: the task learns from the other rows")
    sample_weight: Text | None = Field(None, description="column of the rows' weights in this task's training loss")
    negatives_kept: Share = Field(1.0, description="share of this label's negatives that the training split has kept")

    def same_output(self, old: "Task") -> bool:
        """Return whether a network's output for this task means what it meant by an older section of the task."""
        return self.kind == old.kind

    @model_validator(mode="after")
    def _weighs_by_another(self) -> "Task":
        if self.sample_weight == self.label:
            raise BadInput(
                f"sample_weight: '{self.label}' is the label itself, by which every 0 would count for nothing; name a "
                "column of weights, or leave sample_weight out"
            )
        return self

    @model_validator(mode="after")
    def _negatives_exist(self) -> "Task":
        if self.negatives_kept != 1 and not registry.TASKS.owner(self.kind).odds:
            raise BadInput(
                f"negatives_kept: a task of kind {self.kind} has no negatives; give the rows that were kept a "
                "sample_weight of 1 / the share instead"
            )
        return self


class Follower(Task):
    """A task that has no output of its own: another one's logit learns its label too."""

    of: TaskName = Field(description="task whose logit learns this label too")


class GroupTask(Task):
    """A task whose rows are compared with the other rows of their group."""

    group: Text | None = Field(
        None,
        description="column of the groups, integers or strings, as a request or a user; by default evaluate.group_by",
    )
