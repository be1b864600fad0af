"""What may stand between the features and what a multi-task model's tasks share: the blocks of other models."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.bottom import Bottom, Reading
from livetrain.modules.models.multitask import MultiTaskConfig
from livetrain.modules.models.rankmixer import RankMixerKeys


def _named(trunk: Any) -> Any:
    return {"kind": trunk} if isinstance(trunk, str) else trunk


class TrunkedConfig(MultiTaskConfig):
    """The keys of a multi-task model whose features may go through another model's blocks first."""

    trunk: Annotated[RankMixerKeys | None, BeforeValidator(_named)] = Field(
        None, description="another model's blocks, which read the features: its kind, or its keys without the tower's"
    )


def bottom_of(config: TrunkedConfig, inputs: Inputs) -> Reading:
    """Return what makes one vector of a row's features: `Bottom`, or the trunk that the config names.

    Raises:
        BadInput: the config does not fit the features.
    """
    return Bottom(config, inputs) if config.trunk is None else config.trunk.bottom(config, inputs)
