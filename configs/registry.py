"""The models' config classes by `kind`. A model enters itself when it is imported; see configs.plugins."""

from typing import Any

from livetrain.configs import plugins
from livetrain.configs.errors import BadInput, nearest, shown

_CONFIGS: dict[str, type] = {}


def register_config(kind: str, config: type) -> None:
    """Make `kind` a valid `model.kind`, checked by the pydantic class `config`.

    A class that was defined again, as by a notebook's cell that ran again, takes the place of its former self.
    """
    before = _CONFIGS.get(kind, config)
    if (before.__module__, before.__qualname__) != (config.__module__, config.__qualname__):
        raise ValueError(f"two models call themselves '{kind}'")
    _CONFIGS[kind] = config


def configs() -> dict[str, type]:
    """Return every known config class by kind."""
    plugins.load()
    return dict(_CONFIGS)


def parse_model(value: Any) -> Any:
    """Turn a recipe's `model` mapping into the config class of its kind.

    Raises:
        BadInput: `kind` is missing or unknown.
        pydantic.ValidationError: another key is wrong.
    """
    if not isinstance(value, dict):
        return value
    kind, known = value.get("kind"), configs()
    if kind is None:
        raise BadInput(f"model.kind is missing{nearest('', known)}")
    if not isinstance(kind, str) or kind not in known:
        hint = nearest(kind if isinstance(kind, str) else "", known)
        raise BadInput(
            f"model.kind: there is no model {shown(kind)}{hint}; one of your own needs its module under plugins"
        )
    return known[kind].model_validate(value)
