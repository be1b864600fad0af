"""Single values put into a recipe's mapping, as ``train.epochs=2`` on the command line."""

from typing import Any

from livetrain.configs.errors import BadInput, cut, nearest, plain, without_credentials
from livetrain.configs.trees import DEEPEST, parse

_NAMED = ("features", "tables", "tasks")  # sections whose keys are the recipe's own names


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    dotted, equals, value = text.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        raise BadInput(f"{quoted(text)}: write it as dotted.key=value, as in train.epochs=2")
    if len(keys) > DEEPEST:
        raise BadInput(f"{quoted(text)}: no key of a recipe lies {len(keys)} levels deep; write it as train.epochs=2")
    try:
        return keys, parse(value)[0]
    except BadInput as error:
        raise BadInput(f"{quoted(text)}{error}") from None


def quoted(text: str) -> str:
    return f"override '{short(text)}'"


def short(text: str) -> str:
    """Return an override as messages show it."""
    return cut(plain(without_credentials(text)), 60)


def put(tree: Any, keys: tuple[str, ...], value: Any, said: str, done: tuple[str, ...] = ()) -> Any:
    """Return a copy of `tree` with `value` at `keys`; what YAML aliases share elsewhere in the tree stays as it was."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(tree, list):
        index = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else len(tree)
        if index >= len(tree):
            raise BadInput(f"{said}: {'.'.join(done)} is a list of {len(tree)}; count from 0, not '{cut(key)}'")
        return [*tree[:index], put(tree[index], rest, value, said, (*done, key)), *tree[index + 1 :]]
    if tree is not None and not isinstance(tree, dict):
        raise BadInput(f"{said}: {'.'.join(done)} is one value and has no keys")
    tree = tree or {}
    if rest and len(done) == 1 and done[0] in _NAMED and key not in tree:
        hint = nearest(key, map(str, tree))
        raise BadInput(f"{said}: the recipe has no {done[0][:-1]} '{cut(key)}'{hint}")
    return {**tree, key: put(tree.get(key), rest, value, said, (*done, key))}


def get(tree: Any, keys: tuple[str, ...]) -> Any:
    """Return what stands at `keys`, or None; of a list, its part by number."""
    for key in keys:
        if isinstance(tree, list):
            tree = dict(zip(map(str, range(len(tree))), tree, strict=True))
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
