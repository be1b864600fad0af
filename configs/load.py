"""Recipes: read, overridden, checked, written back. Whatever is wrong becomes one sentence that names the key."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from livetrain.configs.bases import Spot, merge, on_base, read, take_away
from livetrain.configs.complaints import Complaint, first_complaint
from livetrain.configs.errors import BadInput, cut, shown, without_credentials
from livetrain.configs.overrides import get, parse_override, put, quoted, short
from livetrain.configs.removal import Place
from livetrain.configs.schema import Recipe
from livetrain.configs.shape import below
from livetrain.configs.trees import dump_tree


def load_recipe(
    source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = (), /, **values: Any
) -> Recipe:
    """Read a recipe, put other values over it, and check the whole.

    A recipe with the key ``base``, the path of another recipe file from its own folder, is that recipe with its own
    keys put over it. Mappings are merged key by key; a section of another kind, and anything else, is replaced. A null
    takes a feature, table, task or slice away, wherever it is named. The base may have a base of its own, and need not
    be complete.

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
    tree, spots, name = _open(source)
    said: list[tuple[Place, str]] = []
    for text in overrides:
        dotted, value = parse_override(text)
        tree, places = _changed(tree, dotted, value, quoted(text))
        said += [(place, short(text)) for place in places]
    for key, value in values.items():
        dotted, text = tuple(key.split(".")), f"{key}={value}"
        tree, places = _changed(tree, dotted, value, quoted(text), merged=True)
        said += [(place, short(text)) for place in places]
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        complaint = first_complaint(error, Recipe, tree)
        where = _where(name, complaint, spots, said)
        raise BadInput(f"{where}: {without_credentials(complaint.sentence)}") from None


def _changed(tree: dict, keys: Place, value: Any, said: str, merged: bool = False) -> tuple[dict, list[Place]]:
    """Return a recipe's mapping with another value at some keys, and the places that this has changed.

    Args:
        tree: the mapping.
        keys: where the value comes.
        value: a null takes a feature, table, task or slice away, as in a recipe over its base.
        said: what asks for it, for messages.
        merged: put a mapping over the one that is there, not into its place.
    """
    over = value
    for key in reversed(keys):
        over = {key: over}
    tree, over, anew = take_away(tree, over, lambda _: said)
    if keys[-1] in (get(over, keys[:-1]) or ()):  # it was no such null
        declared = reduce(lambda kind, n: below(kind, keys[n], get(tree, keys[:n])), range(len(keys)), Recipe)
        value = get(over, keys)
        tree = put(tree, keys, merge(get(tree, keys), value, declared) if merged else value, said)
    return tree, [keys, *anew]


def _open(source: str | Path | Mapping[str, Any] | Recipe) -> tuple[dict, dict[Place, Spot], str]:
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
        tree, _ = _changed(tree, tuple(key.split(".")), value, quoted(f"{key}={shown(value)}"))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise BadInput(first_complaint(error, Recipe, tree).sentence) from None


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
    for name, task in recipe.tasks.items() if recipe.data.negatives and recipe.data.negatives.task else ():
        if "negatives_kept" in task.model_fields_set:  # has to be said beside drawn negatives, be it the default
            tree["tasks"][name]["negatives_kept"] = task.negatives_kept
    return tree


def _where(path: str, complaint: Complaint, spots: dict[Place, Spot], said: list[tuple[Place, str]]) -> str:
    """Name who is to blame: the last override that touches the place of a complaint, or else a line of a file.

    A recipe is to blame for what its base is not: where something is missing, where parts do not fit one another, and
    where it names the kind of a section whose keys are the base's.

    Args:
        path: what was loaded.
        complaint: what is wrong.
        spots: where each key stands.
        said: the places that overrides changed, and those overrides.
    """
    place = complaint.place
    if complaint.across and said:
        return f"{path} with {cut(' '.join(dict.fromkeys(text for _, text in said)), 100)}"
    for keys, text in reversed(said):
        if place and (place[: len(keys)] == keys or keys[: len(place)] == place):
            return f"override '{text}'"
    spot = next((spots[place[:n]] for n in range(len(place), 0, -1) if place[:n] in spots), None)
    if spot is None:
        return path
    if complaint.lacks or complaint.across:
        return f"{path}, on {spot}" if spot.depth else str(spot)
    tags = [spots[tag] for n in range(len(place)) for key in ("kind", "type") if (tag := (*place[:n], key)) in spots]
    return f"{tags[-1]}, on {spot}" if tags and tags[-1].depth < spot.depth else str(spot)


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _map_text(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [_map_text(part, change) for part in value]
    return change(value) if isinstance(value, str) else value
