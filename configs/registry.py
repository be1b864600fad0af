"""The models' config classes by `kind`. A model enters itself when modules is imported; configs imports no model."""

from typing import Any

from livetrain.configs.errors import BadInput, nearest, shown

_CONFIGS: dict[str, type] = {}


def register_config(kind: str, config: type) -> None:
    """Make `kind` a valid `model.kind`, checked by the pydantic class `config`."""
    if _CONFIGS.get(kind, config) is not config:
        raise ValueError(f"two models call themselves '{kind}'")
    _CONFIGS[kind] = config


def configs() -> dict[str, type]:
    """Return every registered config class by kind."""
    return dict(_CONFIGS)


def parse_model(value: Any) -> Any:
    """Turn a recipe's `model` mapping into the config class of its kind.

    Raises:
        BadInput: `kind` is missing or unknown.
        pydantic.ValidationError: another key is wrong.
    """
    if not isinstance(value, dict):
        return value
    kind = value.get("kind")
    if kind is None:
        raise BadInput(f"model.kind is missing{nearest('', _CONFIGS)}")
    if not isinstance(kind, str) or kind not in _CONFIGS:
        hint = nearest(kind if isinstance(kind, str) else "", _CONFIGS)
        raise BadInput(f"model.kind: there is no model {shown(kind)}{hint}")
    return _CONFIGS[kind].model_validate(value)
