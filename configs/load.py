"""Recipe files: read, overridden, checked, written back. Whatever is wrong becomes one sentence that names the key."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.json_schema import models_json_schema

from configs import registry
from configs.complaints import first_complaint
from configs.errors import BadInput, nearest, without_credentials
from configs.schema import Recipe

_NAMED = ("features", "tables", "tasks")  # sections whose keys are the recipe's own names
_PASSWORD = re.compile(r"(?<=://)[^/@\s:]*:(?!\d+(?:/|$))(?:[^/\s]*@|[^@\s]*@)")
_SECRET_OPTION = re.compile(r"(?i)([?&][^=&\s]*(?:key|secret|token|sig|pass|pwd|cred|auth)[^=&\s]*=)[^&\s]*")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: 1e-3 is a number, while yes, 12:30 and 2026-11-22 are text."""

    yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a YAML 1.1 or 1.2 reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _resolvers() -> None:
    def plain(tag: str, pattern: str, first: str) -> None:
        _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), list(first))

    plain("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
    plain("int", "[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789")
    plain("float", _FLOAT.pattern, "-+.0123456789")
    plain("merge", "<<", "<")
    _Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
    _Dumper.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(rf"(?:{_FLOAT.pattern})\Z"), list("-+.0123456789")
    )
    _Dumper.add_representer(list, _short_list)


def _short_list(dumper: yaml.SafeDumper, value: list) -> yaml.Node:
    scalars = not any(isinstance(part, dict | list) for part in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=scalars)


_resolvers()


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file, apply the overrides in their order, and check the whole.

    The models must be registered before (``import modules.models``), for `model.kind` to be known.

    A file with the key ``base``, the path of another recipe file from its own folder, is that recipe with the file's
    keys put over it: mappings are merged key by key, anything else is replaced. The base may have a base of its own,
    and need not be complete.

    Args:
        path: a YAML file.
        overrides: ``dotted.key=value`` with a YAML value, such as ``train.epochs=2`` or ``tables.movie.dim=32``.

    Returns:
        The recipe with every default filled in.

    Raises:
        BadInput: one sentence that names the file or the override, the key, and what would be right.

    Example:
        >>> load_recipe("configs/recipes/din_ml1m.yaml", ["train.epochs=2"]).train.epochs  # doctest: +SKIP
        2
    """
    tree, places = _read(Path(path))
    keys = []
    for text in overrides:
        dotted, value = _parse_override(text)
        tree = _put(tree, dotted, value, text)
        keys.append((dotted, without_credentials(text)))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        place, sentence = first_complaint(error, Recipe, tree)
        where = _where(str(path), place, places, keys)
        raise BadInput(f"{where}: {without_credentials(sentence)}") from None


def override(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """Return a recipe with other values at some dotted keys, checked like a recipe that was read.

    Raises:
        BadInput: a key is none, or the whole is no valid recipe any more.

    Example:
        >>> override(recipe, {"optimizers.dense.lr": 0.01}).optimizers.dense.lr  # doctest: +SKIP
        0.01
    """
    tree: Any = recipe.model_dump(mode="json")
    for key, value in values.items():
        tree = _put(tree, tuple(key.split(".")), value, f"{key}={value}")
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
    tree = recipe.model_dump(mode="json", exclude_defaults=not defaults)
    tree["model"] = {"kind": recipe.model.kind} | tree["model"]  # a kind is its class's default
    return dump_tree(_map_text(tree, without_credentials))


def dump_tree(tree: Any) -> str:
    """Return mappings, lists and plain values as YAML that `load_recipe` reads back unchanged."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=118)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, `model` being one of the registered kinds. Editors complete keys from it."""
    kinds = registry.configs()
    modes = [(config, "validation") for config in (Recipe, *kinds.values())]
    places, schema = models_json_schema(modes, ref_template="#/$defs/{model}")
    definitions = schema["$defs"]
    options = [places[config, "validation"] for config in kinds.values()]
    for option in options:
        part = definitions[option["$ref"].rsplit("/", 1)[1]]
        part["required"] = sorted({*part.get("required", []), "kind"})
    recipe = definitions["Recipe"]
    recipe["properties"]["model"] = {"oneOf": options, "title": "Model"}
    recipe["properties"]["base"] = {"type": "string", "description": "recipe file that this one is put over"}
    recipe |= {"if": {"required": ["base"]}, "else": {"required": recipe.pop("required")}}
    definitions.pop("ModelConfig", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "livetrain recipe",
        "$ref": "#/$defs/Recipe",
        "$defs": definitions,
    }


def _read(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict, dict[tuple[str, ...], str]]:
    """Return the mapping of a file on its base, and where each of its keys stands, as ``file, line n``.

    Args:
        path: the file.
        above: the files that are built on this one.
    """
    tree, lines = read_tree(path, "recipe", "keys (data, features, model, tasks, ...)")
    places = {place: f"{path}, line {line}" for place, line in lines.items()}
    if "base" not in tree:
        return tree, places
    base, where = tree.pop("base"), places.pop(("base",))
    if not isinstance(base, str):
        raise BadInput(f"{where}: base is the path of another recipe file, not {_shape(base)}")
    file, above = path.parent / base, (*above, path.resolve())
    if not file.is_file():
        raise BadInput(f"{where}: base: there is no recipe file {file}; write its path as seen from {path.parent}/")
    if file.resolve() in above:
        raise BadInput(f"{where}: base: {file} is itself built on {path}; name a file that is not")
    under, places_under = _read(file, above)
    return _merge(under, tree), places_under | places


def _merge(under: Any, over: Any) -> Any:
    """Return `over` put on `under`: mappings key by key, anything else as a whole."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return under | {key: _merge(under.get(key), value) for key, value in over.items()}


def read_tree(path: Path, what: str, keys: str) -> tuple[dict, dict[tuple[str, ...], int]]:
    """Return a YAML file's mapping, and the line of each of its keys.

    Args:
        path: the file.
        what: what the file is, for messages.
        keys: what its keys are, for messages.

    Raises:
        BadInput: it cannot be read, is no YAML, sets a key twice, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [str(other) for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise BadInput(f"{path}: there is no such {what} file{nearest(str(path), beside)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise BadInput(f"{path}: this {what} cannot be read ({reason})") from None
    lines: dict[tuple[str, ...], int] = {}
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            _note_lines(node, (), lines, str(path), set())
        tree = None if node is None else loader.construct_document(node)
    except BadInput:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput(f"{path}{_mark(error)}: this is no valid YAML ({_problem(error)})") from None
    finally:
        loader.dispose()
    if not isinstance(tree, dict):
        raise BadInput(f"{path}: a {what} is a mapping of {keys}, not {_shape(tree)}")
    return tree, lines


def _note_lines(
    node: yaml.Node, place: tuple[str, ...], lines: dict[tuple[str, ...], int], path: str, seen: set[int]
) -> None:
    """Note the line of every key below `node`; refuse a key that stands twice, of which YAML would keep the last."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _note_lines(child, (*place, str(index)), lines, path, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, child in node.value:
        here = (*place, key.value if isinstance(key.value, str) else "?")
        line = key.start_mark.line + 1
        if here in lines and key.value != "<<":
            dotted = ".".join(map(str, here))
            raise BadInput(f"{path}, line {line}: {dotted} is already set in line {lines[here]}; keep one of them")
        lines[here] = line
        _note_lines(child, here, lines, path, seen)


def _mark(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _problem(error: Exception) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _shape(value: Any) -> str:
    return {type(None): "an empty file", list: "a list"}.get(type(value), "a single value")


def _parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    dotted, equals, value = text.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        raise BadInput(f"override '{without_credentials(text)}': write it as dotted.key=value, as in train.epochs=2")
    try:
        return keys, yaml.load(value, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        shown = without_credentials(text)
        raise BadInput(f"override '{shown}': the value is no valid YAML ({_problem(error)})") from None


def _put(tree: Any, keys: tuple[str, ...], value: Any, text: str, done: tuple[str, ...] = ()) -> Any:
    """Return a copy of `tree` with `value` at `keys`; what YAML aliases share elsewhere in the tree stays as it was."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(tree, list):
        if not key.isdigit() or int(key) >= len(tree):
            raise BadInput(f"override '{text}': {'.'.join(done)} is a list of {len(tree)}; count from 0, not '{key}'")
        index = int(key)
        return [*tree[:index], _put(tree[index], rest, value, text, (*done, key)), *tree[index + 1 :]]
    if tree is not None and not isinstance(tree, dict):
        raise BadInput(f"override '{without_credentials(text)}': {'.'.join(done)} is one value and has no keys")
    tree = tree or {}
    if rest and len(done) == 1 and done[0] in _NAMED and key not in tree:
        raise BadInput(f"override '{text}': the recipe has no {done[0][:-1]} '{key}'{nearest(key, map(str, tree))}")
    return {**tree, key: _put(tree.get(key), rest, value, text, (*done, key))}


def _where(
    path: str, place: tuple[str, ...], places: dict[tuple[str, ...], str], overrides: list[tuple[tuple[str, ...], str]]
) -> str:
    """Name who said what stands at `place`: the last override that touches it, or else a line of the file."""
    for keys, text in reversed(overrides):
        if place and (place[: len(keys)] == keys or keys[: len(place)] == place):
            return f"override '{text}'"
    if not place:
        return f"{path} with {' '.join(text for _, text in overrides)}" if overrides else path
    while place and place not in places:
        place = place[:-1]
    return places.get(place, path)


def _map_text(value: Any, change) -> Any:
    if isinstance(value, dict):
        return {key: _map_text(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [_map_text(part, change) for part in value]
    return change(value) if isinstance(value, str) else value
