"""The networks by `model.kind`."""

from collections.abc import Callable

from livetrain.configs.errors import BadInput
from livetrain.configs.registry import MODELS
from livetrain.configs.schema import ModelConfig, Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.network import Network


def register_model(kind: str, config: type[ModelConfig]) -> Callable[[type[Network]], type[Network]]:
    """Make the decorated `Network` that of ``model.kind: kind``.

    Args:
        kind: the name in recipes.
        config: subclass of configs.schema.ModelConfig, whose fields are the keys of the recipe's section `model`.

    Raises:
        TypeError: the class is no `Network`.
    """

    return MODELS.entering(kind, config, Network, "livetrain.Network")


def network(kind: str) -> Callable[[ModelConfig, Inputs, dict[str, Task]], Network]:
    """Return the network class of `kind`, which is called with its config, the features and the tasks.

    Raises:
        BadInput: no model has this name, or it is fitted and has no network.
    """
    owner = MODELS.owner(kind)
    if getattr(MODELS.configs()[kind], "fitted", False):
        raise BadInput(f"model.kind: '{kind}' is fitted and not trained by steps, so it has no network and no tables")
    return owner
