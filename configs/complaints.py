"""From pydantic's list of errors to one sentence: the key, what it got, what it wanted."""

import types
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from livetrain.configs.errors import BadInput, cut, nearest, plain, shown
from livetrain.configs.shape import OPEN, bare

# What a place wants, by pydantic's type of error and, in braces, that type's own figures.
_WANTED = {
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_unicode": "text of UTF-8",
    "string_too_long": "at most {max_length} characters",
    "list_type": "a list",
    "tuple_type": "a list",
}
_MOST = 1000  # errors that are looked at
# What text wants, by the pattern that it does not match.
_PATTERNS = {
    "^[A-Za-z][A-Za-z0-9_]*$": "a name of letters, digits and _ that begins with a letter",
    "^[A-Za-z0-9][A-Za-z0-9._-]*$": "a name of letters, digits, '.', '_' and '-' that begins with a letter or a digit",
}


class Complaint(NamedTuple):
    """What is wrong at a place of the data.

    Attributes:
        place: the keys.
        sentence: one about it.
        lacks: something is missing there.
        across: parts of the data do not fit one another, of which the place is one.
    """

    place: tuple[str, ...]
    sentence: str
    lacks: bool = False
    across: bool = False


def first_complaint(error: ValidationError, root: type[BaseModel], tree: Any) -> Complaint:
    """Return what is most worth mending of an error.

    An unknown key comes first: a misspelt key is often also the cause of a missing one.

    Args:
        error: what validating `tree` as `root` raised. Errors raised inside validators are unwrapped.
        root: the class that was validated.
        tree: the data that was validated.
    """
    details = error.errors(include_url=False)[:_MOST]
    places = [_locate(root, detail["loc"], tree) for detail in details]
    first = next((n for n, detail in enumerate(details) if detail["type"] == "extra_forbidden"), 0)
    more = len({place for place, _ in places}) - 1
    place, sentence = _told(details[first], *places[first])
    return Complaint(
        place,
        sentence + (f" (and {more} more error{'s' if more > 1 else ''})" if more else ""),
        lacks=" is missing" in sentence,
        across=not places[first][0],
    )


def _told(detail: Mapping[str, Any], place: tuple[str, ...], owner: Any) -> tuple[tuple[str, ...], str]:
    """Return an error's place and sentence: a validator's own words, or ours for pydantic's."""
    cause = detail.get("ctx", {}).get("error")
    key = cut(plain(".".join(place)), 80)
    if isinstance(cause, BadInput):
        return _placed(place, key, str(cause))
    return place, _sentence(key, detail, owner)


def _placed(place: tuple[str, ...], key: str, words: str) -> tuple[tuple[str, ...], str]:
    """Return where a validator's own words belong: they may name a key below the one that was checked."""
    named = tuple(words.split(" ")[0].rstrip(":").split("."))
    if place and named[0] != place[0]:
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
        kind = bare(kind)
        if kind in OPEN:
            kind = OPEN[kind].config(_at(tree, place), kind)
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


def _at(tree: Any, place: list[str]) -> Any:
    """Return what stands at a place of the data, None where there is nothing."""
    for key in place:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _is_arm(arm: Any, name: str) -> bool:
    """Tell whether pydantic calls this arm of a union `name`: by its class, or by the value of its discriminator."""
    arm = bare(arm)
    if not (isinstance(arm, type) and issubclass(arm, BaseModel)):
        return getattr(arm, "__name__", str(arm)) == name
    tags = [
        get_args(field.annotation) for field in arm.model_fields.values() if get_origin(field.annotation) is Literal
    ]
    return name == arm.__name__ or any((name,) == tag for tag in tags)


def _sentence(key: str, detail: Mapping[str, Any], owner: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        fields = getattr(owner, "model_fields", {})
        known = [field.alias or name for name, field in fields.items()]
        return f"unknown key {key}{nearest(str(detail['loc'][-1]), known)}"
    if kind == "missing":
        return f"{key} is missing"
    if kind == "union_tag_not_found":
        name = context["discriminator"].strip("'")
        return f"{key}.{name} is missing"
    if kind == "union_tag_invalid":
        name, known = context["discriminator"].strip("'"), _quoted(context["expected_tags"])
        got = detail["input"].get(name) if isinstance(detail["input"], dict) else context["tag"]
        return f"{key}.{name} got {shown(got)}, wanted one of {', '.join(known)}{_close(got, known)}"
    if kind == "literal_error":
        known = _quoted(context["expected"])
        got = detail["input"]
        return f"{key} got {shown(got)}, wanted one of {', '.join(known)}{_close(got, known)}"
    if kind == "invalid_key" or (kind == "string_type" and detail["loc"][-1] == "[key]"):
        return f"the key {key} is no text; put it in quotes"
    if kind in ("too_short", "too_long"):
        bound, count = ("least", context["min_length"]) if kind == "too_short" else ("most", context["max_length"])
        entries = "keys" if isinstance(detail["input"], dict) else "entries"
        return f"{key} has {len(detail['input'])} {entries}, wanted at {bound} {count}"
    got = detail["input"]
    if kind == "string_pattern_mismatch":
        text = "text without control characters" if got else "text that is not empty"
        wanted = _PATTERNS.get(context["pattern"], text)
    elif kind == "greater_than_equal" and got <= 0 < context["ge"] <= 1:
        wanted = "greater than 0"
    else:
        # A kind that the table lacks is told as a fact alone: pydantic's own words are not a user's.
        wanted = _WANTED.get(kind, "another value").format_map({k: _figure(v) for k, v in context.items()})
    hint = " in quotes" if kind == "string_type" and type(got) in (int, float, bool) else ""
    bare = " without quotes" if kind in ("int_type", "float_type") and isinstance(got, str) else ""
    return f"{key} got {shown(got)}, wanted {wanted}{hint}{bare}"


def _figure(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _quoted(expected: str) -> list[str]:
    return expected.replace("'", "").replace(" or ", ", ").split(", ")


def _close(word: Any, known: list[str]) -> str:
    hint = nearest(word, known) if isinstance(word, str) else ""
    return hint if "did you mean" in hint else ""
