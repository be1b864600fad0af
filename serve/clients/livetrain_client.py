"""A client of livetrain-serve and of Triton: the Open Inference Protocol v2 over HTTP, with binary tensors.

Needs Python 3.10 and numpy; copy this file to where you need it. It is one file for that, whatever its length.

    client = Client("http://127.0.0.1:8080", timeout=0.5)
    answer = client.rank(
        "din", user={"user": 17, "history": [4, 9]}, candidates={"video": [31, 8], "length": [12.5, None]}
    )
    answer.scores["click"]    # float32, a score per candidate

Retries: a request is sent again once, and only where a connection that was kept open turns out to have been closed by
the server before it answered anything. Nothing is sent again after a timeout, an error or `Busy`: who has less time
left than a second attempt takes, or has another server to ask, knows better.
"""

import http.client
import json
import socket
import struct
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]
Inputs = Mapping[str, Sequence[int]]  # of a model: the shapes of its tensors by name, -1 where any size goes
_DTYPES = {"INT64": np.dtype("<i8"), "FP32": np.dtype("<f4")}
_HEADER = "Inference-Header-Content-Length"


class ServerError(Exception):
    """No scores came. Base of all that `Client` raises about the server."""


class Refused(ServerError):
    """The request is wrong: the same one will be refused again.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Busy(ServerError):
    """The server has more to do than it can in time (HTTP 429 or 503): ask another, or later."""


class TimedOut(ServerError):
    """No answer within the client's timeout."""


class Unreachable(ServerError):
    """No connection, or one that broke, or an answer that is none."""


@dataclass
class Answer:
    """What a server answered.

    Attributes:
        scores: float32 by task (and ``fused``), one per candidate or row.
        other: further outputs, as ``order``, the candidates' places, best first, int64.
        id: the request's.
        model: its name.
        version: its version.
        fence: of its publication, and `delta` the last one taken in; None from a server that has none.
    """

    scores: Tensors
    other: Tensors
    id: str
    model: str
    version: str
    fence: int | None = None
    delta: int | None = None


class Client:
    """Speaks to one server, over a connection per thread, which stays open.

    Args:
        url: as ``http://host:8080``.
        timeout: seconds that a connection, and each wait for bytes, may take.

    Raises:
        ValueError: of another kind of URL.
    """

    def __init__(self, url: str, timeout: float = 1.0) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url: {url!r} is none; give one as http://host:8080")
        self._url, self._parts, self._timeout = url, parts, timeout
        self._own = threading.local()
        self._inputs: dict[str, Inputs] = {}

    def rank(
        self,
        model: str | None,
        user: Mapping[str, Any],
        candidates: Mapping[str, Any],
        *,
        channel: Sequence[str] = (),
        request_id: str = "",
    ) -> Answer:
        """Score candidates of one user.

        Args:
            model: its name; None for livetrain-serve's own ranking, with pre-rank and re-ranking where it has them.
            user: feature -> an id, a list of ids, a number or a vector; None is missing. Strings are hashed. Ids with
                weights, vectors or times beside them are ``{"ids": [...], "weights": [...]}``.
            candidates: feature -> a value per candidate, likewise.
            channel: what recall says of each candidate, for the server's log.
            request_id: for the server's log; one is drawn where there is none.

        Raises:
            ServerError: of the kind that it is.
        """
        given = tensors(self._inputs_of(model), user, one=True)
        given |= tensors(self._inputs_of(model), candidates, one=False)
        return self.infer(model, given, channel=channel, request_id=request_id)

    def rows(self, model: str, columns: Mapping[str, Any], *, request_id: str = "") -> Answer:
        """Score rows: feature -> a value per row. Arguments and errors as `rank`."""
        given = tensors(self._inputs_of(model), columns, one=False)
        return self.infer(model, given, rows=True, request_id=request_id)

    def retrieve(
        self, user: Mapping[str, Any], top: int, exclude: Sequence[int] = (), *, request_id: str = ""
    ) -> Answer:
        """Find the best items of livetrain-serve's index: ``other["items"]`` and ``scores["score"]``, best first."""
        given = tensors(None, user, one=True)
        if len(exclude):
            given["exclude"] = np.asarray(exclude, np.int64)
        body, header = encode(given, request_id=request_id, parameters={"top": top})
        return self._post("/retrieve", body, header)

    def infer(
        self,
        model: str | None,
        given: Tensors,
        *,
        rows: bool = False,
        channel: Sequence[str] = (),
        request_id: str = "",
    ) -> Answer:
        """Send tensors as they are: ``ids.F`` and ``lengths.F`` int64, ``dense.F`` float32. Errors as `rank`."""
        body, header = encode(given, request_id=request_id, channel=channel, parameters={"rows": True} if rows else {})
        return self._post("/rank" if model is None else f"/v2/models/{_quoted(model)}/infer", body, header)

    def ready(self) -> bool:
        """Return whether the server is there and ready to score."""
        try:
            return self._exchange("GET", "/v2/health/ready", b"", {})[0] == 200
        except ServerError:
            return False

    def _inputs_of(self, model: str | None) -> Inputs | None:
        """Return a model's tensors, which tell ids from numbers; asked for once."""
        if model is None:
            return None
        if model not in self._inputs:
            status, _, body = self._exchange("GET", f"/v2/models/{_quoted(model)}", b"", {})
            content = _parsed(status, body)
            self._inputs[model] = {each["name"]: each["shape"] for each in content["inputs"]}
        return self._inputs[model]

    def _post(self, path: str, body: bytes, header: int) -> Answer:
        fields = {"Content-Type": "application/octet-stream", _HEADER: str(header)}
        status, length, found = self._exchange("POST", path, body, fields)
        if status != 200:
            _parsed(status, found)
        try:
            return decode(found, length)
        except (ValueError, KeyError, TypeError) as error:
            raise Unreachable(f"{self._url}: its answer cannot be read ({error})") from error

    def _exchange(self, method: str, path: str, body: bytes, fields: dict[str, str]) -> tuple[int, int | None, bytes]:
        """Return the status, the length of the answer's JSON where it has tensors behind, and the answer."""
        kept = getattr(self._own, "connection", None)
        for connection in (kept, None) if kept is not None else (None,):
            try:
                try:
                    connection = connection or self._connected()
                    connection.request(method, self._parts.path.rstrip("/") + path, body or None, fields)
                    answer = connection.getresponse()
                except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                    self._drop()
                    if connection is not kept:
                        raise
                    continue  # it was closed since the last answer
                content, length = answer.read(), answer.getheader(_HEADER)
                if answer.will_close:
                    self._drop()
                return answer.status, None if length is None else int(length), content
            except TimeoutError as error:
                self._drop()
                raise TimedOut(f"{self._url}: no answer in {self._timeout:g} s") from error
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                raise Unreachable(f"{self._url}: {error or type(error).__name__}") from error
        raise AssertionError("the last attempt returns or raises")

    def _connected(self) -> http.client.HTTPConnection:
        secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=self._timeout)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._own.connection = connection
        return connection

    def _drop(self) -> None:
        connection = getattr(self._own, "connection", None)
        if connection is not None:
            connection.close()
        self._own.connection = None


def tensors(inputs: Inputs | None, columns: Mapping[str, Any], one: bool) -> Tensors:
    """Return features as tensors, by the names that the server knows.

    Args:
        inputs: the model's tensors, which say what are ids and what numbers, and how wide a vector is; without them
            by the values: integers and strings are ids, floats numbers, and None of either a missing number.
        columns: feature -> a value per row, or the value of `one` row.
        one: whether each column is a single value.

    Raises:
        ValueError: a value is neither.

    Example:
        >>> tensors(None, {"user": 17, "history": [4, 9]}, one=True)["lengths.history"]
        array([2])
    """
    found: Tensors = {}
    for name, column in columns.items():
        values = [column] if one else column
        try:
            if _numbers(inputs, name, values):
                found[f"dense.{name}"] = _dense(values, (inputs or {}).get(f"dense.{name}", ()))
            else:
                found |= _ids(name, values, f"dense.{name}" in (inputs or {}))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def _numbers(inputs: Inputs | None, name: str, values: Any) -> bool:
    if inputs is not None:
        if f"ids.{name}" not in inputs and f"dense.{name}" not in inputs:
            raise ValueError("is no feature that the model reads")
        return f"ids.{name}" not in inputs
    if isinstance(values, np.ndarray):
        return values.dtype.kind == "f"
    flat = [
        v for each in values for v in (each if isinstance(each, Sequence) and not isinstance(each, str) else [each])
    ]
    return any(isinstance(v, float) for v in flat) or (bool(flat) and all(v is None for v in flat))


def _dense(values: Any, shape: Sequence[int] = ()) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values, "<f4")
    width = shape[1] if len(shape) > 1 else next((len(v) for v in values if isinstance(v, Sequence | np.ndarray)), 0)
    blank: Any = [None] * width if width else None
    return np.array([blank if v is None else v for v in values], dtype=object).astype("<f4")


def _ids(name: str, values: Any, with_beside: bool) -> Tensors:
    if isinstance(values, np.ndarray) and values.ndim == 1:
        if values.dtype.kind not in "iu":
            raise ValueError("ids must be integers, for a float loses digits")
        return {f"ids.{name}": np.ascontiguousarray(values, "<i8")}
    ids: list[int] = []
    lengths: list[int] = []
    beside: list[Any] = []
    for value in values:
        lists = value
        if isinstance(value, Mapping):
            (other,) = (key for key in value if key != "ids")
            lists = value["ids"]
            beside.extend(value[other])
        listed = isinstance(lists, Sequence | np.ndarray) and not isinstance(lists, str)
        own = lists if listed else [] if lists is None else [lists]
        ids.extend(_id(each) for each in own)
        lengths.append(len(own))
    found = {f"ids.{name}": np.array(ids, "<i8"), f"lengths.{name}": np.array(lengths, "<i8")}
    if with_beside or any(isinstance(value, Mapping) for value in values):
        found[f"dense.{name}"] = _dense(beside)
    return found


def _id(value: Any) -> int:
    if isinstance(value, str):
        return hashed(value)
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"an id is an integer or a string, not {value!r}")
    return int(value)


def encode(
    given: Tensors,
    *,
    request_id: str = "",
    channel: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
) -> tuple[bytes, int]:
    """Return a request, and how many of its bytes are JSON.

    Ids and lengths come first, and the JSON ends at a multiple of 8 bytes, so that the server need not copy tensors.

    Raises:
        ValueError: a tensor is neither int64 nor float32.
    """
    parts: list[bytes] = []
    inputs: list[dict[str, Any]] = []
    for name, values in sorted(given.items(), key=lambda item: (item[1].dtype.kind == "f", item[0])):
        datatype = next((key for key, dtype in _DTYPES.items() if dtype == values.dtype), None)
        if datatype is None:
            raise ValueError(f"{name}: tensors are int64 or float32, not {values.dtype}")
        parts.append(np.ascontiguousarray(values).tobytes())
        inputs.append(_input(name, datatype, [*values.shape], parts[-1]))
    if len(channel):
        texts = [text.encode() for text in channel]
        parts.append(b"".join(struct.pack("<I", len(text)) + text for text in texts))
        inputs.append(_input("channel", "BYTES", [len(texts)], parts[-1]))
    head: dict[str, Any] = {"id": request_id} if request_id else {}
    head |= {"parameters": {**(parameters or {}), "binary_data_output": True}, "inputs": inputs}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return text + b"".join(parts), len(text)


def _input(name: str, datatype: str, shape: list[int], part: bytes) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(part)}}


def decode(body: bytes, header: int | None) -> Answer:
    """Return an answer; `header` says how many of its bytes are JSON, None all of them.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    head = json.loads(body[:header])
    at = len(body) if header is None else header
    found: Tensors = {}
    for each in head["outputs"]:
        dtype, shape = _DTYPES[each["datatype"]], each["shape"]
        size = each.get("parameters", {}).get("binary_data_size")
        if size is None:
            found[each["name"]] = np.array(each["data"], dtype=object).astype(dtype).reshape(shape)
        else:
            found[each["name"]] = np.frombuffer(body[at : at + size], dtype).reshape(shape)
            at += size
    if at != len(body):
        raise ValueError(f"it has {len(body)} bytes, and its JSON tells of {at}")
    about = head.get("parameters") or {}
    return Answer(
        scores={name: values for name, values in found.items() if values.dtype.kind == "f"},
        other={name: values for name, values in found.items() if values.dtype.kind != "f"},
        id=head.get("id", ""),
        model=head.get("model_name", ""),
        version=head.get("model_version", ""),
        fence=about.get("fence"),
        delta=about.get("delta"),
    )


def _parsed(status: int, body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        content = {}
    sentence = content.get("error") or f"status {status}"
    if status in (429, 503):
        raise Busy(sentence)
    if 400 <= status < 500:
        raise Refused(status, sentence)
    if status != 200 or not content:
        raise Unreachable(sentence)
    return content


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")


_P = (11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579, 2870177450012600261)
_ALL = 2**64 - 1


def hashed(text: str) -> int:
    """Return the id that a string is: XXH64 (seed 0) of its UTF-8 bytes, as a signed 64-bit integer.

    Example:
        >>> hashed("F")
        -878615982807369771
    """
    data = text.encode()
    value, at = _P[4], len(data) // 32 * 32
    if at:
        lanes = [(_P[0] + _P[1]) & _ALL, _P[1], 0, -_P[0] & _ALL]
        for words in struct.iter_unpack("<4Q", data[:at]):
            lanes = [_round(lane, word) for lane, word in zip(lanes, words, strict=True)]
        value = sum(_turned(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & _ALL
        for lane in lanes:
            value = ((value ^ _round(0, lane)) * _P[0] + _P[3]) & _ALL
    value = (value + len(data)) & _ALL
    for (word,) in struct.iter_unpack("<Q", data[at : len(data) // 8 * 8]):
        value = (_turned(value ^ _round(0, word), 27) * _P[0] + _P[3]) & _ALL
    at = len(data) // 8 * 8
    if len(data) - at >= 4:
        value ^= struct.unpack_from("<I", data, at)[0] * _P[0] & _ALL
        value = (_turned(value, 23) * _P[1] + _P[2]) & _ALL
        at += 4
    for byte in data[at:]:
        value = _turned(value ^ (byte * _P[4] & _ALL), 11) * _P[0] & _ALL
    value = (value ^ value >> 33) * _P[1] & _ALL
    value = (value ^ value >> 29) * _P[2] & _ALL
    value ^= value >> 32
    return value - 2**64 if value >= 2**63 else value


def _turned(value: int, by: int) -> int:
    return (value << by | value >> (64 - by)) & _ALL


def _round(lane: int, word: int) -> int:
    return _turned((lane + word * _P[1]) & _ALL, 31) * _P[0] & _ALL
