"""From pydantic's list of errors to one sentence: the key, what it got, what it wanted."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from configs import registry
from configs.errors import BadInput, nearest
from configs.schema import ModelConfig

_WANTED = {
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "string_pattern_mismatch": "a name of letters, digits and _",
}


def first_complaint(error: ValidationError, root: type[BaseModel], tree: Any) -> tuple[tuple[str, ...], str]:
    """Return the place of the error that is most worth mending, and one sentence about it.

    An unknown key comes first: a misspelt key is often also the cause of a missing one.

    Args:
        error: what validating `tree` as `root` raised. Errors raised inside validators are unwrapped.
        root: the class that was validated.
        tree: the data that was validated.
    """
    found: dict[tuple[str, ...], str] = {}
    details = list(_sentences(error, root, tree))
    for place, sentence, _ in sorted(details, key=lambda detail: not detail[2]):
        found.setdefault(place, sentence)
    place, sentence = next(iter(found.items()))
    more = len(found) - 1
    return place, sentence + (f" (and {more} more error{'s' if more > 1 else ''})" if more else "")


def _sentences(error: ValidationError, root: type[BaseModel], tree: Any) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """Yield (place, sentence, is it an unknown key) of every error, in pydantic's order."""
    for detail in error.errors(include_url=False):
        cause = detail.get("ctx", {}).get("error")
        place, owner = _locate(root, detail["loc"], tree)
        key = ".".join(place)
        if isinstance(cause, BadInput):
            yield *_placed(place, key, str(cause)), False
        else:
            yield place, _sentence(key, detail, owner), detail["type"] == "extra_forbidden"


def _placed(place: tuple[str, ...], key: str, words: str) -> tuple[tuple[str, ...], str]:
    """Return where a validator's own words belong: they may name a key below the one that was checked."""
    if not place:
        return place, words
    named = tuple(words.split(" ")[0].rstrip(":").split("."))
    if named[0] != place[0]:
        return place, f"{key}: {words}"
    return (named if named[: len(place)] == place else place), words


def _locate(root: Any, loc: tuple, tree: Any) -> tuple[tuple[str, ...], Any]:
    """Follow pydantic's `loc` through the types.

    Returns:
        The keys as the recipe writes them, without the names that pydantic gives to a union's arms, and the class that
        owns the last key.
    """
    place: list[str] = []
    kind, owner = root, root
    for part in loc:
        kind = _model_class(tree) if _bare(kind) is ModelConfig else _bare(kind)
        if get_origin(kind) in (Union, types.UnionType):
            kind = next((arm for arm in get_args(kind) if _is_arm(arm, part)), kind)
            continue
        if part == "[key]":
            continue
        place.append(str(part))
        owner = kind
        if get_origin(kind) in (dict, list, tuple):
            kind = get_args(kind)[-1]
        elif isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
            kind = kind.model_fields[part].annotation
    return tuple(place), owner


def _model_class(tree: Any) -> type[BaseModel]:
    """Return the config class that checked the recipe's `model`: its declared type is only the classes' base."""
    return registry.configs().get(tree["model"].get("kind"), ModelConfig)


def _bare(kind: Any) -> Any:
    """Strip Annotated and Optional."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        arms = [arm for arm in get_args(kind) if arm is not type(None)]
        return _bare(arms[0]) if len(arms) == 1 else kind
    return kind


def _is_arm(arm: Any, name: str) -> bool:
    """Tell whether pydantic calls this arm of a union `name`: by its class, or by the value of its discriminator."""
    arm = _bare(arm)
    if not (isinstance(arm, type) and issubclass(arm, BaseModel)):
        return getattr(arm, "__name__", str(arm)) == name
    tags = [
        get_args(field.annotation) for field in arm.model_fields.values() if get_origin(field.annotation) is Literal
    ]
    return name == arm.__name__ or any((name,) == tag for tag in tags)


def _sentence(key: str, detail: dict, owner: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {key}{nearest(str(detail['loc'][-1]), getattr(owner, 'model_fields', ()))}"
    if kind == "missing":
        return f"{key} is missing"
    if kind == "union_tag_not_found":
        name = context["discriminator"].strip("'")
        return f"{key}.{name} is missing"
    if kind == "union_tag_invalid":
        name, known = context["discriminator"].strip("'"), _quoted(context["expected_tags"])
        return f"{key}.{name} got '{context['tag']}', wanted one of {', '.join(known)}{_close(context['tag'], known)}"
    if kind == "literal_error":
        known = _quoted(context["expected"])
        got = detail["input"]
        return f"{key} got {_shown(got)}, wanted one of {', '.join(known)}{_close(str(got), known)}"
    if kind == "invalid_key":
        return f"the key {key} is no text; put it in quotes"
    if kind in ("too_short", "too_long"):
        return f"{key}: {detail['msg'].replace(' after validation', '')}"
    wanted = _WANTED.get(kind) or detail["msg"].removeprefix("Input should be ")
    hint = " in quotes" if kind == "string_type" and isinstance(detail["input"], int | float) else ""
    return f"{key} got {_shown(detail['input'])}, wanted {wanted}{hint}"


def _quoted(expected: str) -> list[str]:
    return expected.replace("'", "").replace(" or ", ", ").split(", ")


def _close(word: str, known: list[str]) -> str:
    hint = nearest(word, known)
    return hint if "did you mean" in hint else ""


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | BaseModel):
        return "a mapping of keys"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return repr(text if len(text) <= 60 else text[:57] + "...") if isinstance(value, str) else text
