"""What every model's section is; the models' own are in modules/models."""

from typing import ClassVar

from pydantic import Field

from livetrain.configs.schema.section import Section
from livetrain.configs.values import FeatureName, Text, Unit


class ModelConfig(Section):
    """Base of every model's own config; `kind` is the name under which the model is registered."""

    kind: Text

    fitted: ClassVar[bool] = False  # in one go, and not trained by steps
    finds: ClassVar[bool] = False  # fitted, and finds items by an inverted table

    @property
    def jumps(self) -> bool:
        """Whether a score jumps where two numbers that choose what is read differ by rounding alone, as a search does.

        Of a file of such a model the worst row of each thousand may differ from the model by more than the tolerance.
        """
        return False

    def also_reads(self) -> list[tuple[str, str, str]]:
        """Return (column, kind, recipe key) of what the model is fitted on besides features and labels.

        The kinds are those of trainers.data.read.columns, as "group", of ids of any type, "number" and "unix time".
        They are read of the training split alone.
        """
        return []


class FittedConfig(ModelConfig):
    """Base of the config of a model that is fitted in one go and finds items; see modules.recall.fitted."""

    fitted: ClassVar[bool] = True
    finds: ClassVar[bool] = True

    key: FeatureName = Field(description="id feature that tells items apart")
    unit: Unit = Field("s", description="of times that are integers, counted since 1970; timestamps have their own")


class FittedRankerConfig(ModelConfig):
    """Base of the config of a model that is fitted in one go and scores rows; see modules.fitted."""

    fitted: ClassVar[bool] = True
