"""The closed minutes of a stream's folder, as `livetrain stream` writes them and `livetrain follow` learns from them.

    OUT/stream.json                                          version, lanes, every_s, columns, spec; written first, once
    OUT/date=YYYY-MM-DD/time=HHMMSS/lane=K/part-0.parquet    samples whose exposures fall into [start, start + every_s)
    OUT/date=YYYY-MM-DD/time=HHMMSS/lane=K/manifest.json     written last: files, rows, counts, offsets, watermark

Dates and times are UTC, of the events themselves. A minute without samples has manifests and no part.
"""

import calendar
import json
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import fs

from livetrain.configs.errors import BadInput, NotNow, short
from livetrain.trainers.data.read.files import open_filesystem, shown
from livetrain.trainers.runtime import manifest

STREAM = "stream.json"
_NAME, _FOLDER = "%Y-%m-%dT%H:%M:%SZ", "date=%Y-%m-%d/time=%H%M%S"


@dataclass(frozen=True)
class Minute:
    """An interval of a stream that all lanes have closed.

    Args:
        name: when it begins, as "2026-11-30T12:07:00Z"; names sort as times do.
        start, end: s since 1970, UTC; `end` is no part of it.
        files: paths of its parts in the filesystem that `open_filesystem` returns for the stream, sorted by lane.
        rows: samples in them.
        counts: words -> how many, summed over the lanes; see docs/guide/streams.md.
        watermark: s since 1970; the lanes' lowest when they closed it.
    """

    name: str
    start: int
    end: int
    files: tuple[str, ...]
    rows: int
    counts: dict[str, int]
    watermark: float


def name_of(start: int) -> str:
    """Return the name of the minute that begins at a time (s since 1970).

    Example:
        >>> name_of(1_796_040_420)
        '2026-11-30T12:07:00Z'
    """
    return time.strftime(_NAME, time.gmtime(start))


def folder_of(start: int) -> str:
    """Return the folder, below the stream's, of the minute that begins at a time (s since 1970).

    Example:
        >>> folder_of(1_796_040_420)
        'date=2026-11-30/time=120700'
    """
    return time.strftime(_FOLDER, time.gmtime(start))


def start_of(folder: str) -> int:
    """Return when the minute of a folder begins, s since 1970: what `folder_of` makes a name of.

    Example:
        >>> start_of("date=2026-11-30/time=120700")
        1796040420
    """
    return calendar.timegm(time.strptime(folder, _FOLDER))


def about(path: str) -> dict[str, Any]:
    """Return stream.json of a stream's folder: `lanes`, `every_s`, `columns` (name -> type as pyarrow writes it).

    Raises:
        NotNow: there is none (yet).
        BadInput: it, or the folder, cannot be read.
    """
    filesystem, root = open_filesystem(path, "the stream's folder")
    return _about(filesystem, root)


def closed(path: str, after: str | None = None) -> list[Minute]:
    """Return the minutes that all lanes of a stream have closed, in the order of time.

    A lane closes its minutes one after the other, so what is not later than the newest that each lane has closed will
    not change any more. Before its first one a lane has no samples.

    Args:
        path: the stream's folder, local or a URI.
        after: name of a minute; only later ones are listed. One that was deleted since is as good.

    Raises:
        NotNow: there is no stream.json (yet).
        BadInput: the folder cannot be read, or is damaged.
    """
    filesystem, root = open_filesystem(path, "the stream's folder")
    lanes = _about(filesystem, root)["lanes"]
    least = None if after is None else started(after)
    try:
        found = _committed(filesystem, root, least)
        newest = [max((start for start, lane in found if lane == each), default=None) for each in range(lanes)]
        if any(start is None for start in newest):
            return []
        ended = min(start for start in newest if start is not None)
        parts: dict[int, list[tuple[str, dict[str, Any]]]] = {}
        for start, lane in sorted(found):
            if start <= ended:
                parts.setdefault(start, []).append((found[start, lane], _manifest(filesystem, found[start, lane])))
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{shown(filesystem, root)}: the stream cannot be read ({short(error)}); restore it") from error
    return [_minute(start, part) for start, part in parts.items()]


def started(name: str) -> int:
    """Return when the minute of a name begins, s since 1970.

    Raises:
        BadInput: it is no name of a minute.
    """
    try:
        return calendar.timegm(time.strptime(name, _NAME))
    except ValueError:
        raise BadInput(f"'{name}' names no minute; give one as 2026-11-30T12:07:00Z") from None


def _about(filesystem: fs.FileSystem, root: str) -> dict[str, Any]:
    path = f"{root}/{STREAM}"
    try:
        with filesystem.open_input_stream(path) as file:
            return json.loads(file.read())
    except FileNotFoundError:
        raise NotNow(
            f"{shown(filesystem, path)} is not there; start `livetrain stream` first, or correct the path"
        ) from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{shown(filesystem, path)} cannot be read ({short(error)}); restore it") from None


def _committed(filesystem: fs.FileSystem, root: str, after: int | None) -> dict[tuple[int, int], str]:
    """Return (start, lane) -> folder of every manifest that there is of minutes after one."""
    found = {}
    least = "" if after is None else folder_of(after)
    for day in filesystem.get_file_info(fs.FileSelector(root)):
        if not day.base_name.startswith("date=") or day.base_name < least.partition("/")[0]:
            continue
        for info in filesystem.get_file_info(fs.FileSelector(day.path, recursive=True)):
            if info.base_name != manifest.MANIFEST:
                continue
            *_, date, moment, lane, _ = info.path.split("/")
            if f"{date}/{moment}" > least:
                start = start_of(f"{date}/{moment}")
                found[start, int(lane.removeprefix("lane="))] = info.path.rpartition("/")[0]
    return found


def _manifest(filesystem: fs.FileSystem, folder: str) -> dict[str, Any]:
    path = f"{folder}/{manifest.MANIFEST}"
    with filesystem.open_input_stream(path) as file:
        content = manifest.parsed(file.read())
    if content is None:
        raise BadInput(f"{shown(filesystem, path)} is no manifest; restore it")
    return content


def _minute(start: int, parts: list[tuple[str, dict[str, Any]]]) -> Minute:
    counts: dict[str, int] = {}
    for _, content in parts:
        for words, count in content["counts"].items():
            counts[words] = counts.get(words, 0) + count
    return Minute(
        name_of(start),
        start,
        parts[0][1]["end"],
        tuple(f"{folder}/{name}" for folder, content in parts for name in sorted(content["files"])),
        sum(content["rows"] for _, content in parts),
        counts,
        min(content["watermark"] for _, content in parts),
    )
