"""YAML files as mappings, lists and plain values: read, with the line of each key, and written."""

import re
from pathlib import Path
from typing import Any

import yaml

from livetrain.configs.errors import BadInput, cut, nearest, plain, shown

DEEPEST = 64  # values one within the other
_LARGEST = 2**20  # bytes of a file
_MOST_VALUES = 20_000  # of a file, whatever its anchors multiply
_LONGEST = 1024  # bits of a whole number: Python itself writes none that is much longer
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
        if self.depth > DEEPEST:
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


def read_tree(path: Path, what: str, keys: str) -> tuple[dict, dict[tuple[str, ...], int]]:
    """Return a YAML file's mapping, and the line of each of its keys.

    Args:
        path: the file.
        what: what the file is, for messages.
        keys: what its keys are, for messages.

    Raises:
        BadInput: it cannot be read, is no YAML, sets a key twice, or is no mapping.
    """
    tree, lines = parse(_text(path, what), str(path))
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


def parse(text: str, path: str | None = None) -> tuple[Any, dict[tuple[str, ...], int]]:
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


def dump_tree(tree: Any) -> str:
    """Return mappings, lists and plain values as YAML that `load_recipe` reads back unchanged."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=118)
