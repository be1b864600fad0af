"""What the places of a recipe's mapping are, before it is checked: followed along the classes that will check it."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from livetrain.configs import registry
from livetrain.configs.schema import DenseOptimizer, Feature, Gradients, ModelConfig, SparseOptimizer, Task

# Sections whose declared class is only the base of their kinds' own.
OPEN: dict[Any, registry.Kinds] = {
    ModelConfig: registry.MODELS,
    Feature: registry.FEATURES,
    Task: registry.TASKS,
    Gradients: registry.COMBINERS,
    SparseOptimizer: registry.OPTIMIZERS,
    DenseOptimizer: registry.DENSE_OPTIMIZERS,
}


def bare(declared: Any) -> Any:
    """Return a type without Annotated and Optional."""
    return unwrap(declared)[0]


def unwrap(declared: Any) -> tuple[Any, list[Any]]:
    """Return a type without Annotated and Optional, and what it is annotated with."""
    if get_origin(declared) is Annotated:
        inner, *own = get_args(declared)
        kind, marks = unwrap(inner)
        return kind, marks + [one for mark in own for one in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]
    if get_origin(declared) in (Union, types.UnionType):
        arms = [arm for arm in get_args(declared) if arm is not type(None)]
        return unwrap(arms[0]) if len(arms) == 1 else (declared, [])
    return declared, []


def kind_of(declared: Any, section: Any) -> tuple[str | None, str | None]:
    """Return the key by which a section says of which kind it is, and the kind that it then is.

    Args:
        declared: the type that the section's place has in the schema.
        section: what stands there.

    Returns:
        (None, None) where all sections are of one kind; of a section that names none, the kind that it has by default.

    Example:
        >>> from livetrain.configs.schema import Recipe
        >>> kind_of(Recipe.model_fields["model"].annotation, {"kind": "din"})
        ('kind', 'din')
        >>> kind_of(Recipe.model_fields["gradients"].annotation, {"scope": "trunk"})
        ('kind', 'sum')
        >>> kind_of(Recipe.model_fields["train"].annotation, {"epochs": 2})
        (None, None)
    """
    declared = bare(declared)
    if declared in OPEN:
        key, default = OPEN[declared].key, OPEN[declared].default
    else:
        tags = [tag for arm in _arms(declared) for tag in _tags(arm)]
        if not tags:
            return None, None
        key, default = tags[0][0], next((kind for _, kind, is_default in tags if is_default), None)
    return key, section.get(key, default) if isinstance(section, dict) else None


def fields(declared: Any, section: dict) -> dict[str, FieldInfo]:
    """Return the fields, by key, of the class that checks a section; of every such class where its kind is unknown.

    Args:
        declared: the type that the section's place has in the schema.
        section: what stands there.
    """
    declared = bare(declared)
    _, kind = kind_of(declared, section)
    classes: list[Any] = [declared] if _is_section(declared) else _arms(declared)
    if declared in OPEN:
        known = OPEN[declared].configs()
        classes = [known[kind]] if isinstance(kind, str) and kind in known else list(known.values())
    elif kind is not None:
        classes = [arm for arm in classes if any(tag == kind for _, tag, _ in _tags(arm))] or classes
    return {field.alias or name: field for one in reversed(classes) for name, field in one.model_fields.items()}


def below(declared: Any, key: str, section: Any) -> Any:
    """Return the type that the schema has for what stands at a key of a section, or a number of a list."""
    declared = bare(declared)
    if get_origin(declared) in (dict, list):
        return get_args(declared)[-1]
    field = fields(declared, section).get(key) if isinstance(section, dict) else None
    return Any if field is None else field.annotation


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _arms(kind: Any) -> list[Any]:
    """Return the classes of which a section may be one; none where there is only one."""
    several = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else ()
    return [arm for arm in map(bare, several) if _is_section(arm)]


def _tags(arm: type[BaseModel]) -> Iterator[tuple[str, str, bool]]:
    """Yield the key, the value and whether it is the default of what tells a class from its siblings."""
    for name, field in arm.model_fields.items():
        values = get_args(field.annotation)
        if get_origin(field.annotation) is Literal and len(values) == 1:
            yield name, values[0], not field.is_required()
