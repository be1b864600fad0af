"""What may stand between the features and what a multi-task model's tasks share: the blocks of other models."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from livetrain.configs.errors import BadInput
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.bottom import Bottom, BottomConfig, Reading
from livetrain.modules.models.hstu import HSTUKeys
from livetrain.modules.models.multitask import MultiTaskConfig
from livetrain.modules.models.onetrans import OneTransKeys
from livetrain.modules.models.rankmixer import RankMixerKeys
from livetrain.modules.models.twin import TWINKeys


def _named(trunk: Any) -> Any:
    return {"kind": trunk} if isinstance(trunk, str) else trunk


Trunk = Annotated[RankMixerKeys | HSTUKeys | TWINKeys | OneTransKeys, Field(discriminator="kind")]


class TrunkedConfig(MultiTaskConfig):
    """The keys of a multi-task model whose features may go through another model's blocks first."""

    trunk: Annotated[Trunk | None, BeforeValidator(_named)] = Field(
        None, description="another model's blocks, which read the features: its kind, or its keys without the towers'"
    )

    @property
    def jumps(self) -> bool:
        return isinstance(self.trunk, TWINKeys)


def bottom_of(config: TrunkedConfig, inputs: Inputs) -> Reading:
    """Return what makes one vector of a row's features: `Bottom`, or the trunk that the config names.

    Raises:
        BadInput: the config does not fit the features.
    """
    if config.trunk is None:
        return Bottom(config, inputs)
    for key in ("attention_units", "softmax", "activation"):
        default = BottomConfig.model_fields[key].get_default(call_default_factory=True)
        if not config.trunk.has_unit and getattr(config, key) != default:
            raise BadInput(f"model.{key}: trunk '{config.trunk.kind}' has no activation unit; leave this key out")
    return config.trunk.bottom(config, inputs)
