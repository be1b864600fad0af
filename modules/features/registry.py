"""The kinds of features by `features.X.type`, and what each does in the model."""

from collections.abc import Callable, Mapping

from livetrain.configs.registry import FEATURES
from livetrain.configs.schema import Feature
from livetrain.modules.features.transform import Transform


def register_feature(kind: str, config: type[Feature]) -> Callable[[type[Transform]], type[Transform]]:
    """Make the decorated `Transform` what the model does with features of ``type: kind``.

    Args:
        kind: the name in recipes.
        config: checks the recipe's section and says which carrier and form the feature has.

    Raises:
        TypeError: the class is no `Transform`, or turns ids to numbers.
    """

    def enter(owner: type[Transform]) -> type[Transform]:
        if not issubclass(owner, Transform):
            raise TypeError(f"feature '{kind}': {owner.__name__} must be a subclass of Transform")
        if (config.carrier, config.form) in (("ids", "dense"), ("numbers", "sequence")):
            raise TypeError(f"feature '{kind}': the carrier {config.carrier} cannot have the form {config.form}")
        FEATURES.register(kind, config, owner)
        return owner

    return enter


def transforms(features: Mapping[str, Feature]) -> dict[str, Transform]:
    """Return each feature's transform."""
    return {name: FEATURES.owner(feature.type)(feature) for name, feature in features.items()}
