"""200 requests that must be refused: some written by hand, the others made of the vectors by a fault each."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COUNT = 200
_TYPES = {"INT64": "<i8", "FP32": "<f4"}


@dataclass
class Case:
    """A request, and a word that its refusal must have.

    Attributes:
        header: the field Inference-Header-Content-Length; None where the body is JSON for people.
    """

    name: str
    body: bytes
    header: str | None
    says: str = ""


class Binary:
    """A request in binary, taken apart, to be put together with a fault."""

    def __init__(self, body: bytes, header: int) -> None:
        self.head = json.loads(body[:header])
        self.parts: list[bytes] = []
        at = header
        for each in self.head["inputs"]:
            size = each["parameters"]["binary_data_size"]
            self.parts.append(body[at : at + size])
            at += size

    @property
    def inputs(self) -> list[dict[str, Any]]:
        return self.head["inputs"]

    def values(self, place: int) -> np.ndarray:
        each = self.inputs[place]
        return np.frombuffer(self.parts[place], _TYPES[each["datatype"]]).reshape(each["shape"]).copy()

    def put(self, place: int, values: np.ndarray) -> None:
        self.parts[place] = values.tobytes()
        self.inputs[place]["shape"] = [*values.shape]
        self.inputs[place]["parameters"]["binary_data_size"] = values.nbytes

    def case(self, name: str, says: str = "") -> Case:
        text = json.dumps(self.head).encode()
        return Case(name, text + b"".join(self.parts), str(len(text)), says)


def _shape(faulty: Callable[[list[int]], list[Any]]) -> Callable[[Binary, int, random.Random], str]:
    def fault(request: Binary, place: int, rng: random.Random) -> str:
        each = request.inputs[place]
        each["shape"] = faulty(each["shape"])
        return each["name"]

    return fault


def _type(request: Binary, place: int, rng: random.Random) -> str:
    each = request.inputs[place]
    each["datatype"] = rng.choice([t for t in ("INT64", "FP32", "INT32", "FP64", "BYTES", "") if t != each["datatype"]])
    return each["name"]


def _size(request: Binary, place: int, rng: random.Random) -> str:
    about = request.inputs[place]["parameters"]
    about["binary_data_size"] = rng.choice([-8, about["binary_data_size"] + 1, 2**40, 2**63, 1.5, "8", None])
    return request.inputs[place]["name"]


def _missing(request: Binary, place: int, rng: random.Random) -> str:
    name = request.inputs[place]["name"]
    while name in ("lengths.user", "lengths.movie", "lengths.city"):  # may be left out, where each row has an id
        place = rng.randrange(len(request.inputs))
        name = request.inputs[place]["name"]
    del request.inputs[place], request.parts[place]
    return name.partition(".")[2]


def _twice(request: Binary, place: int, rng: random.Random) -> str:
    request.inputs.append(request.inputs[place])
    request.parts.append(request.parts[place])
    return request.inputs[place]["name"]


def _unknown(request: Binary, place: int, rng: random.Random) -> str:
    each = request.inputs[place]
    part, _, name = each["name"].partition(".")
    each["name"] = rng.choice([f"{part}.{name}2", name, f"embedding.{name}", f"{part}.", "", 7, "\u0001" * 300])
    return ""


def _longer(request: Binary, place: int, rng: random.Random) -> str:
    values = request.values(place)
    request.put(place, np.concatenate([values] * 3 + [values[:0]]) if len(values) else np.ones(99, values.dtype))
    return request.inputs[place]["name"].partition(".")[2]


def _lengths(request: Binary, place: int, rng: random.Random) -> str:
    place = rng.choice([n for n, each in enumerate(request.inputs) if each["name"].startswith("lengths.")])
    values = request.values(place)
    values[rng.randrange(len(values))] += rng.choice([-1000, 1, 2**63 - 10, -1])
    request.put(place, values)
    return request.inputs[place]["name"]


def _infinite(request: Binary, place: int, rng: random.Random) -> str:
    place = rng.choice([n for n, each in enumerate(request.inputs) if each["datatype"] == "FP32" and request.parts[n]])
    values = request.values(place)
    values.flat[rng.randrange(values.size)] = rng.choice([np.inf, -np.inf])
    request.put(place, values)
    return request.inputs[place]["name"]


_FAULTS = {
    "negative size": _shape(lambda shape: [-1, *shape[1:]]),
    "a size more": _shape(lambda shape: [shape[0] + 1, *shape[1:]]),
    "sizes that overflow": _shape(lambda shape: [2**62, 4]),
    "too large": _shape(lambda shape: [2**63 - 1]),
    "size beyond 64 bits": _shape(lambda shape: [2**64]),
    "no shape": _shape(lambda shape: []),
    "three dimensions": _shape(lambda shape: [*shape, 1, 1][:3]),
    "a size that is no integer": _shape(lambda shape: [1.0, *shape[1:]]),
    "wrong datatype": _type,
    "wrong size in bytes": _size,
    "left out": _missing,
    "twice": _twice,
    "unknown name": _unknown,
    "more rows than others": _longer,
    "lengths that do not add up": _lengths,
    "infinite": _infinite,
}


def _binary(vectors: Path, rng: random.Random) -> Iterator[Case]:
    cases = json.loads((vectors / "cases.json").read_text(encoding="utf-8"))
    sent = {name: (vectors / f"{name}.request.bin").read_bytes() for name in cases}
    while True:
        for fault, change in _FAULTS.items():
            name = rng.choice([*cases])
            request = Binary(sent[name], cases[name]["header"])
            says = change(request, rng.randrange(len(request.inputs)), rng)
            yield request.case(f"{name}: {fault}", says)
        name = rng.choice([*cases])
        body, header = sent[name], cases[name]["header"]
        cut = rng.randrange(1, len(body))
        yield Case(f"{name}: {cut} bytes cut off", body[:-cut], str(header))
        yield Case(f"{name}: bytes added", body + rng.randbytes(rng.randrange(1, 40)), str(header))
        yield Case(f"{name}: header of another length", body, str(header + rng.choice([-9, -1, 1, 7, 8, 10**6])))


_WRONG: dict[str, list[Any]] = {
    "int64": [1.5, True, {"a": 1}, [[1]], 2**64, [None], -(2**64)],
    "float32": ["12", True, {"a": 1}, [[1.0]], 1e39, [["x"]]],
}


def _people(vectors: Path, rng: random.Random) -> Iterator[Case]:
    features = json.loads((vectors / "signature.json").read_text(encoding="utf-8"))["features"]
    sent = {
        name: json.loads((vectors / f"{name}.people.json").read_text(encoding="utf-8")) for name in ("rank", "rows")
    }

    def case(fault: str, content: Any, says: str = "") -> Case:
        return Case(f"people: {fault}", json.dumps(content).encode(), None, says)

    while True:
        for name, content in sent.items():
            part = rng.choice([key for key in ("user", "candidates", "rows") if key in content])
            feature = rng.choice([*content[part]])
            changed = json.loads(json.dumps(content))
            table = changed[part]
            wrong = rng.choice(_WRONG[features[feature]["dtype"]])
            table[feature] = wrong if part == "user" else [wrong] * len(table[feature])
            yield case(f"{name}: {wrong!r} as {feature}", changed, feature)
            changed = json.loads(json.dumps(content))
            del changed[part][feature]
            yield case(f"{name}: without {feature}", changed, feature)
            changed = json.loads(json.dumps(content))
            changed[part][feature + "x"] = changed[part][feature]
            yield case(f"{name}: {feature}x", changed, f"{feature}x")
            if part != "user":
                changed = json.loads(json.dumps(content))
                changed[part][feature].pop()
                yield case(f"{name}: {feature} a row short", changed, feature)
        text = json.dumps(sent["rank"]).encode()
        yield Case("people: cut off", text[: rng.randrange(len(text))], None)
        at = rng.randrange(len(text))
        yield Case("people: a byte that is no UTF-8", text[:at] + b"\xff" + text[at:], None)


def _by_hand(vectors: Path) -> Iterator[Case]:
    rank = json.loads((vectors / "rank.people.json").read_text(encoding="utf-8"))
    rows = json.loads((vectors / "rows.people.json").read_text(encoding="utf-8"))
    binary = (vectors / "rank.request.bin").read_bytes()
    header = json.loads((vectors / "cases.json").read_text(encoding="utf-8"))["rank"]["header"]

    def people(name: str, change: dict[str, Any], says: str = "") -> Case:
        return Case(name, json.dumps({**rank, **change}).encode(), None, says)

    many = {name: column[:1] * 10_001 for name, column in rank["candidates"].items()}
    yield Case("nothing", b"", None)
    yield Case("no JSON", b"hello", None)
    yield Case("a list", b"[]", None, "object")
    yield Case("a number", b"7", None, "object")
    yield Case("NaN", json.dumps({**rank, "user": {**rank["user"], "user": float("nan")}}).encode(), None, "null")
    yield Case("lists in lists", b'{"user": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, "deep")
    yield Case("objects in objects", b'{"a":' * 50_000 + b"1" + b"}" * 50_000, None, "deep")
    yield Case("deep, without an end", b"[" * 1_000_000, None, "deep")
    yield Case("5 MB of JSON", b'{"user": "' + b"x" * 5_000_000 + b'"}', None, "bytes")
    yield Case("a number beyond all types", b'{"user": {"user": 1e999}, "candidates": {}}', None)
    yield Case("half a character", b'{"user": {"city": "\\ud800"}, "candidates": {}}', None, "no JSON at byte")
    yield Case("a zero byte, and more", json.dumps(rank).encode() + b"\0hello", None, "zero byte")
    yield Case("two texts", json.dumps(rank).encode() * 2, None)
    yield people("rows, too", {"rows": rows["rows"]}, "rows")
    yield people("a key that nobody knows", {"usr": {}}, "usr")
    yield people("no table", {"candidates": [1, 2]}, "candidates")
    yield people("a feature twice", {"candidates": {**rank["candidates"], "user": [1] * 6}}, "user")
    yield people("too many candidates", {"candidates": many}, "10001")
    yield people("a number as request_id", {"request_id": 7}, "request_id")
    yield people("a long request_id", {"request_id": "x" * 201}, "request_id")
    yield people("channel of one", {"channel": ["hot"]}, "channel")
    yield people("channel of numbers", {"channel": [1] * 6}, "channel")
    yield people("exclude of one", {"exclude": 5}, "exclude")
    yield people("exclude of halves", {"exclude": [0.5]}, "exclude")
    yield people("top below 0", {"top": -1}, "top")
    yield people("top of a word", {"top": "all"}, "top")
    yield Case("a header that is no number", binary, "eight", "Inference-Header-Content-Length")
    yield Case("a negative header", binary, "-1", "Inference-Header-Content-Length")
    yield Case("a header of 40 digits", binary, "9" * 40, "Inference-Header-Content-Length")
    yield Case("a header beyond the body", binary, str(len(binary) + 1), "Inference-Header-Content-Length")
    yield Case("a header of 0", binary, "0")
    yield Case("17 MB", binary + bytes(17 << 20), str(header), "bytes")
    for name, head in {
        "no inputs": {},
        "inputs that are none": {"inputs": {"ids.user": [1]}},
        "an input that is none": {"inputs": [7]},
        "an input without a name": {"inputs": [{"datatype": "INT64", "shape": [1], "data": [1]}]},
        "values that are no list": {"inputs": [{"name": "ids.user", "datatype": "INT64", "shape": [1], "data": 1}]},
        "values of text": {"inputs": [{"name": "ids.user", "datatype": "INT64", "shape": [1], "data": ["a"]}]},
        "values missing": {"inputs": [{"name": "ids.user", "datatype": "INT64", "shape": [1]}]},
        "one value for two": {"inputs": [{"name": "ids.user", "datatype": "INT64", "shape": [2], "data": [1]}]},
        "ids of two dimensions": {"inputs": [{"name": "ids.user", "datatype": "INT64", "shape": [1, 1], "data": [1]}]},
        "ids of numbers": {"inputs": [{"name": "ids.rate", "datatype": "INT64", "shape": [1], "data": [1]}]},
        "numbers of ids": {"inputs": [{"name": "dense.user", "datatype": "FP32", "shape": [1], "data": [1]}]},
        "rows that are neither": {"parameters": {"rows": 1}, "inputs": []},
        "parameters that are none": {"parameters": [], "inputs": []},
        "outputs that are none": {"outputs": {}, "inputs": []},
        "an output without a name": {"outputs": [{}], "inputs": []},
        "an output twice": {"outputs": [{"name": "click"}] * 2, "inputs": []},
        "channel of integers": {"inputs": [{"name": "channel", "datatype": "INT64", "shape": [1], "data": [1]}]},
    }.items():
        text = json.dumps(head).encode()
        yield Case(name, text, str(len(text)))
    for name, tail in {
        "a string that ends early": b"\x05\x00\x00\x00ab",
        "a huge string": b"\xff\xff\xff\xffab",
    }.items():
        about = {"name": "channel", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(tail)}}
        text = json.dumps({"inputs": [about]}).encode()
        yield Case(name, text + tail, str(len(text)), "channel")


def corpus(vectors: Path) -> list[Case]:
    """Return `COUNT` requests, the same each time."""
    rng = random.Random(20261130)
    found = [*_by_hand(vectors)]
    made = [_binary(vectors, rng), _people(vectors, rng)]
    while len(found) < COUNT:
        found += [next(made[0]), next(made[1])]
    return found[:COUNT]
