"""Recipes: read, overridden, checked, written back. Whatever is wrong becomes one sentence that names the key."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from livetrain.configs.bases import merge, on_base, read
from livetrain.configs.complaints import first_complaint
from livetrain.configs.errors import BadInput, cut, shown, without_credentials
from livetrain.configs.overrides import get, parse_override, put, quoted, short
from livetrain.configs.schema import Recipe
from livetrain.configs.trees import dump_tree


def load_recipe(
    source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = (), /, **values: Any
) -> Recipe:
    """Read a recipe, put other values over it, and check the whole.

    A recipe with the key ``base``, the path of another recipe file from its own folder, is that recipe with its own
    keys put over it: mappings are merged key by key, anything else is replaced. The base may have a base of its own,
    and need not be complete.

    Args:
        source: a YAML file, what such a file holds, or a recipe.
        overrides: as on the command line: ``dotted.key=value`` with a YAML value, such as ``train.epochs=2``.
        values: other values by key, put over the recipe like a recipe over its base. A key may be dotted.

    Returns:
        The recipe with every default filled in.

    Raises:
        BadInput: one sentence that names the file or the override, the key, and what would be right.

    Example:
        >>> recipe = load_recipe("configs/recipes/din_ml1m.yaml", train={"epochs": 2}, name="twice")
        >>> recipe.train.epochs, recipe.name
        (2, 'twice')
        >>> load_recipe(recipe, **{"tables.movie.dim": 32}).tables["movie"].dim
        32
    """
    tree, places, name = _open(source)
    keys = []
    for text in overrides:
        dotted, value = parse_override(text)
        tree = put(tree, dotted, value, quoted(text))
        keys.append((dotted, short(text)))
    for key, value in values.items():
        dotted, text = tuple(key.split(".")), f"{key}={value}"
        tree = put(tree, dotted, merge(get(tree, dotted), value), quoted(text))
        keys.append((dotted, short(text)))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        place, sentence = first_complaint(error, Recipe, tree)
        where = _where(name, place, places, keys)
        raise BadInput(f"{where}: {without_credentials(sentence)}") from None


def _open(source: str | Path | Mapping[str, Any] | Recipe) -> tuple[dict, dict[tuple[str, ...], str], str]:
    """Return a recipe's mapping, where each of its keys stands, and what to call it."""
    if isinstance(source, str | Path):
        return *read(Path(source)), str(source)
    tree = _tree(source, defaults=False) if isinstance(source, Recipe) else dict(source)
    return *on_base(tree, {}, Path("recipe"), ()), "recipe"


def override(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """Return a recipe with other values at some dotted keys, checked like a recipe that was read.

    Raises:
        BadInput: a key is none, or the whole is no valid recipe any more.

    Example:
        >>> recipe = load_recipe("configs/recipes/din_ml1m.yaml")
        >>> override(recipe, {"optimizers.dense.lr": 0.01}).optimizers.dense.lr
        0.01
    """
    tree: Any = recipe.model_dump(mode="json")
    for key, value in values.items():
        tree = put(tree, tuple(key.split(".")), value, quoted(f"{key}={shown(value)}"))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise BadInput(first_complaint(error, Recipe, tree)[1]) from None


def dump_recipe(recipe: Recipe, defaults: bool = True) -> str:
    """Return the recipe as YAML: keys in the schema's order, no credentials, every default shown unless told otherwise.

    ``load_recipe`` of this text gives an equal recipe; only a password inside a URI is left out, as it belongs in the
    environment.

    Args:
        recipe: what to write.
        defaults: False leaves out what is as the schema has it.
    """
    return dump_tree(_map_text(_tree(recipe, defaults), without_credentials))


def _tree(recipe: Recipe, defaults: bool) -> dict[str, Any]:
    """Return a recipe as mappings, lists and plain values, with or without what is as the schema has it."""
    tree = recipe.model_dump(mode="json", exclude_defaults=not defaults)
    tree["model"] = {"kind": recipe.model.kind} | tree["model"]  # a kind is its class's default
    for name, task in recipe.tasks.items() if recipe.data.negatives else ():
        if "negatives_kept" in task.model_fields_set:  # has to be said beside drawn negatives, be it the default
            tree["tasks"][name]["negatives_kept"] = task.negatives_kept
    return tree


def _where(
    path: str, place: tuple[str, ...], places: dict[tuple[str, ...], str], overrides: list[tuple[tuple[str, ...], str]]
) -> str:
    """Name who said what stands at `place`: the last override that touches it, or else a line of the file."""
    for keys, text in reversed(overrides):
        if place and (place[: len(keys)] == keys or keys[: len(place)] == place):
            return f"override '{text}'"
    if not place and overrides:
        return f"{path} with {cut(' '.join(text for _, text in overrides), 100)}"
    if not place:
        return path
    while place and place not in places:
        place = place[:-1]
    return places.get(place, path)


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _map_text(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [_map_text(part, change) for part in value]
    return change(value) if isinstance(value, str) else value
