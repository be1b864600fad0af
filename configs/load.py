"""Recipe files: read, overridden, checked, written back. Whatever is wrong becomes one sentence that names the key."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema

from livetrain.configs import registry
from livetrain.configs.complaints import first_complaint
from livetrain.configs.errors import BadInput, cut, nearest, plain, shown, without_credentials
from livetrain.configs.schema import Recipe

_NAMED = ("features", "tables", "tasks")  # sections whose keys are the recipe's own names
_LARGEST = 2**20  # bytes of a recipe file
_MOST_VALUES = 20_000  # of a recipe, whatever its anchors multiply
_MOST_BASES = 32  # files of which each is built on the next
_LONGEST = 1024  # bits of a whole number: Python itself writes none that is much longer
_DEEPEST = 64  # values one within the other, or keys of an override
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: 1e-3 is a number, while yes, 12:30 and 2026-11-22 are text."""

    yaml_implicit_resolvers = {}
    depth = values = 0  # of what is being read
    yaml_constructors = {  # plain values only: no bytes, dates, sets or pairs, which a recipe has no use for
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rsplit(":", 1)[-1] in ("null", "bool", "int", "float", "str", "seq", "map")
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read a value, as PyYAML calls it for each; what no recipe is ends here, not with the machine's memory."""
        self.depth, self.values = self.depth + 1, self.values + 1
        if self.depth > _DEEPEST:
            raise _Excess("nested too deeply", "no recipe needs more than a few levels")
        if self.values > _MOST_VALUES:
            raise _Excess(f"of more than {_MOST_VALUES:,} values", "leave some out")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Excess(Exception):
    """Valid YAML that no recipe is: (what it is, the mend)."""


def _number(loader: _Loader, node: yaml.ScalarNode) -> int:
    number = yaml.SafeLoader.construct_yaml_int(loader, node)
    if number.bit_length() > _LONGEST:
        raise yaml.constructor.ConstructorError(problem="a number has too many digits", problem_mark=node.start_mark)
    return number


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a YAML 1.1 or 1.2 reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _resolvers() -> None:
    _Loader.add_constructor("tag:yaml.org,2002:int", _number)

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
        dotted, value = _parse_override(text)
        tree = _put(tree, dotted, value, _quoted(text))
        keys.append((dotted, _short(text)))
    for key, value in values.items():
        dotted, text = tuple(key.split(".")), f"{key}={value}"
        tree = _put(tree, dotted, _merge(_get(tree, dotted), value), _quoted(text))
        keys.append((dotted, _short(text)))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        place, sentence = first_complaint(error, Recipe, tree)
        where = _where(name, place, places, keys)
        raise BadInput(f"{where}: {without_credentials(sentence)}") from None


def _open(source: str | Path | Mapping[str, Any] | Recipe) -> tuple[dict, dict[tuple[str, ...], str], str]:
    """Return a recipe's mapping, where each of its keys stands, and what to call it."""
    if isinstance(source, str | Path):
        return *_read(Path(source)), str(source)
    tree = _tree(source, defaults=False) if isinstance(source, Recipe) else dict(source)
    return *_on_base(tree, {}, Path("recipe"), ()), "recipe"


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
        tree = _put(tree, tuple(key.split(".")), value, _quoted(f"{key}={shown(value)}"))
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


def dump_tree(tree: Any) -> str:
    """Return mappings, lists and plain values as YAML that `load_recipe` reads back unchanged."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=118)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, `model` being one of the registered kinds. Editors complete keys from it."""
    classes: list[type[BaseModel]] = [
        Recipe,
        *(config for kinds in registry.ALL for config in kinds.configs().values()),
    ]
    modes: list[tuple[type[BaseModel], Literal["validation"]]] = [
        (config, "validation") for config in dict.fromkeys(classes)
    ]
    places, schema = models_json_schema(modes, ref_template="#/$defs/{model}")
    definitions = schema["$defs"]
    recipe = definitions["Recipe"]
    recipe["properties"]["model"] = _one_of(registry.MODELS, places, definitions) | {"title": "Model"}
    for section, kinds in (("features", registry.FEATURES), ("tasks", registry.TASKS)):
        named = recipe["properties"][section]["patternProperties"]
        named |= dict.fromkeys(named, _one_of(kinds, places, definitions))
    optimizers = definitions["Optimizers"]["properties"]
    for part, kinds in (("sparse", registry.OPTIMIZERS), ("dense", registry.DENSE_OPTIMIZERS)):
        optimizers[part] |= _one_of(kinds, places, definitions)
        optimizers[part].pop("$ref", None)
    of_table = definitions["Table"]["properties"]["optimizer"]
    of_table["anyOf"] = [*_one_of(registry.OPTIMIZERS, places, definitions)["oneOf"], {"type": "null"}]
    recipe["properties"]["base"] = {"type": "string", "description": "recipe file that this one is put over"}
    recipe |= {"if": {"required": ["base"]}, "else": {"required": recipe.pop("required")}}
    for base in ("ModelConfig", "Feature"):
        definitions.pop(base, None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "livetrain recipe",
        "$ref": "#/$defs/Recipe",
        "$defs": definitions,
    }


def _one_of(kinds: registry.Kinds, places: dict, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a section that is one of some kinds, each by its own class."""
    by_class: dict[type, list[str]] = {}
    for kind, config in kinds.configs().items():
        by_class.setdefault(config, []).append(kind)
    options = []
    for config, names in by_class.items():
        options.append(places[config, "validation"])
        part = definitions[options[-1]["$ref"].rsplit("/", 1)[1]]
        part["properties"][kinds.key] |= {"enum": names}
        part["properties"][kinds.key].pop("const", None)
        if kinds.default not in names:
            part["required"] = sorted({*part.get("required", []), kinds.key})
    return {"oneOf": options}


def _read(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict, dict[tuple[str, ...], str]]:
    """Return the mapping of a file on its base, and where each of its keys stands, as ``file, line n``.

    Args:
        path: the file.
        above: the files that are built on this one.
    """
    tree, lines = read_tree(path, "recipe", "keys (data, features, model, tasks, ...)")
    return _on_base(tree, {place: f"{path}, line {line}" for place, line in lines.items()}, path, above)


def _on_base(
    tree: dict, places: dict[tuple[str, ...], str], path: Path, above: tuple[Path, ...]
) -> tuple[dict, dict[tuple[str, ...], str]]:
    """Return a recipe's mapping put on its base, if it has one, and where each key stands."""
    if "base" not in tree:
        return tree, places
    base, where = tree.pop("base"), places.pop(("base",), str(path))
    if not isinstance(base, str):
        raise BadInput(f"{where}: base is the path of another recipe file, not {shown(base)}")
    file, above = path.parent / base, (*above, path.resolve())
    if not is_file(file):
        raise BadInput(f"{where}: base: there is no recipe file {file}; write its path as seen from {path.parent}/")
    if file.resolve() in above:
        raise BadInput(f"{where}: base: {file} is itself built on {path}; name a file that is not")
    if len(above) > _MOST_BASES:
        raise BadInput(f"{where}: base: more than {_MOST_BASES} files are built on one another; write some into one")
    under, places_under = _read(file, above)
    return _merge(under, tree), places_under | places


def is_file(path: Path) -> bool:
    """Return whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


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
    tree, lines = _parse(_text(path, what), str(path))
    if not isinstance(tree, dict):
        got = "an empty file" if tree is None else shown(tree)
        raise BadInput(f"{path}: a {what} is a mapping of {keys}, not {got}")
    return tree, lines


def _text(path: Path, what: str) -> str:
    """Return a file's text, whatever byte order mark begins it.

    Raises:
        BadInput: it cannot be read, is no UTF-8, or is far too large.
    """
    try:
        if path.exists() and not path.is_file() and path.parts[:2] != ("/", "dev"):  # <(command) is /dev/fd/63
            raise BadInput(f"{path}: this {what} cannot be read (it is no file); name a YAML file")
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        beside = [str(other) for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise BadInput(f"{path}: there is no such {what} file{nearest(str(path), beside)}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        reason = getattr(error, "strerror", None) or "no file has such a name"
        raise BadInput(f"{path}: this {what} cannot be read ({reason}); name a YAML file") from None
    if len(content) > _LARGEST:
        raise BadInput(f"{path}: this {what} cannot be read (it is above {_LARGEST // 2**20} MiB); name a YAML file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{path}, line {content.count(10, 0, error.start) + 1}"
        raise BadInput(f"{where}: this {what} cannot be read (it is no UTF-8 text); save it as UTF-8") from None


def _parse(text: str, path: str | None = None) -> tuple[Any, dict[tuple[str, ...], int]]:
    """Return YAML's value and the line of each of its keys.

    Args:
        text: YAML, of a file or of an override's value.
        path: of the file, for messages; None for a value.

    Raises:
        BadInput: it is no YAML, sets a key twice, or its anchors contain themselves or multiply beyond measure.
    """
    lines: dict[tuple[str, ...], int] = {}
    what = "this" if path else "the value"
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _examine(node, (), lines, path, {})
        return loader.construct_document(node), lines
    except BadInput:
        raise
    except _Excess as error:
        raise BadInput(f"{path or ''}: {what} is {error.args[0]}; {error.args[1]}") from None
    except Exception as error:  # of !!int and the like PyYAML's constructors raise a KeyError, an IndexError ...
        where = f"{path}{_mark(error, text)}" if path else ""
        raise BadInput(f"{where}: {what} is no valid YAML ({_problem(error)})") from None


def _examine(
    node: yaml.Node, place: tuple[str, ...], lines: dict[tuple[str, ...], int], path: str | None, sizes: dict[int, int]
) -> int:
    """Return how many values are below `node`, its aliases' counted each time, and note the line of every key.

    Args:
        node: of a tree in which no value is built yet.
        place: its keys.
        lines: gets the lines.
        path: of the file, for messages.
        sizes: of the nodes seen so far, by identity; 0 of those that are being counted.

    Raises:
        BadInput: a key stands twice, of which YAML would keep the last, or a value contains itself.
        _Excess: there are too many values.
    """
    where = f"{path}, line {node.start_mark.line + 1}" if path else ""
    if id(node) in sizes:  # an alias
        if not sizes[id(node)]:
            raise BadInput(f"{where}: this value contains itself by an anchor; write it out")
        return sizes[id(node)]
    sizes[id(node)], size = 0, 1
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            size += _examine(child, (*place, str(index)), lines, path, sizes)
    elif isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            here = (*place, key.value if isinstance(key.value, str) else "?")
            line = key.start_mark.line + 1
            if here in lines and key.value != "<<":
                dotted, said = cut(".".join(here)), f"{path}, line {line}: " if path else ": "
                first = f" in line {lines[here]}" if path else ""
                raise BadInput(f"{said}{dotted} is already set{first}; keep one of them")
            lines[here] = line
            size += _examine(child, here, lines, path, sizes)
    if size > _MOST_VALUES:
        raise _Excess(f"of more than {_MOST_VALUES:,} values, as its anchors multiply", "write fewer")
    sizes[id(node)] = size
    return size


def _mark(error: Exception, text: str) -> str:
    """Return where YAML's error is, as ``, line 3``."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return f", line {mark.line + 1}"
    at = getattr(error, "position", None)  # of a character that no YAML holds
    return "" if at is None else f", line {text.count(chr(10), 0, at) + 1}"


def _problem(error: Exception) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"it holds the character {plain(chr(error.character))}, which no text has; remove it"
    problem = getattr(error, "problem", None)
    if problem == "but found another document":
        return "it holds several documents, parted by ---; keep one"
    if problem and "could not determine a constructor" in problem:
        return f"no recipe holds values of {problem.rsplit(' ', 1)[-1]}; write plain ones"
    if not isinstance(error, yaml.YAMLError):
        return f"it names a type that the value has not: {error}"
    return " ".join(str(problem or error).split())


def _parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    dotted, equals, value = text.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        raise BadInput(f"{_quoted(text)}: write it as dotted.key=value, as in train.epochs=2")
    if len(keys) > _DEEPEST:
        raise BadInput(f"{_quoted(text)}: no key of a recipe lies {len(keys)} levels deep; write it as train.epochs=2")
    try:
        return keys, _parse(value)[0]
    except BadInput as error:
        raise BadInput(f"{_quoted(text)}{error}") from None


def _quoted(text: str) -> str:
    return f"override '{_short(text)}'"


def _short(text: str) -> str:
    """Return an override as messages show it."""
    return cut(plain(without_credentials(text)), 60)


def _put(tree: Any, keys: tuple[str, ...], value: Any, said: str, done: tuple[str, ...] = ()) -> Any:
    """Return a copy of `tree` with `value` at `keys`; what YAML aliases share elsewhere in the tree stays as it was."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(tree, list):
        index = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else len(tree)
        if index >= len(tree):
            raise BadInput(f"{said}: {'.'.join(done)} is a list of {len(tree)}; count from 0, not '{cut(key)}'")
        return [*tree[:index], _put(tree[index], rest, value, said, (*done, key)), *tree[index + 1 :]]
    if tree is not None and not isinstance(tree, dict):
        raise BadInput(f"{said}: {'.'.join(done)} is one value and has no keys")
    tree = tree or {}
    if rest and len(done) == 1 and done[0] in _NAMED and key not in tree:
        hint = nearest(key, map(str, tree))
        raise BadInput(f"{said}: the recipe has no {done[0][:-1]} '{cut(key)}'{hint}")
    return {**tree, key: _put(tree.get(key), rest, value, said, (*done, key))}


def _get(tree: Any, keys: tuple[str, ...]) -> Any:
    """Return what stands at `keys`, or None; of a list, its part by number."""
    for key in keys:
        if isinstance(tree, list):
            tree = dict(zip(map(str, range(len(tree))), tree, strict=True))
        tree = tree.get(key) if isinstance(tree, dict) else None
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
