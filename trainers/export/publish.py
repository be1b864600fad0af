"""Published models: what servers read. Each version is a folder that is whole or not there, and one pointer names one.

    <where>/current.json            {"version", "fence", "folder", ..., "versions"}: the one to serve, and all that stay
    <where>/<version>.<fence>/      an export: model.pt, signature.json, golden.json, ..., manifest.json (last)
    <where>/<version>.<fence>/deltas/<number>.<fence>/   what changed since: see trainers.export.deltas
    <where>/fences/<fence>          which folder a fence was given to

`fence` rises with every publication. A server remembers the largest fence that it has seen and ignores a pointer with a
smaller one: then a late writer, or a pointer read from a stale cache, never takes it back to an older model.

Any number of publishers may be at it at once, on any machines. A fence is created, so it is given once, and with it the
folder named after it: nobody else ever writes there. The pointer is replaced only as it was read: whoever finds it on
a newer version has lost and says so, and whoever finds a larger fence on it takes a new one. What the pointer drops
from `versions` is deleted, and never comes back to it; what a publisher left that was killed is deleted by those that
come `ABANDONED_S` later, when it could not be published any more.
"""

import contextlib
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from livetrain.configs.errors import BadInput, nearest, short
from livetrain.trainers.runtime import manifest
from livetrain.trainers.runtime.place import DRAFTS, Place, check_conditions, open_place

POINTER = "current.json"
LIMIT_S = 6 * 3600  # a publisher that takes longer gives up,
ABANDONED_S = 2 * LIMIT_S  # long before others take what it has written for left behind
_FENCES = "fences"
_FOLDER = re.compile(r"(?P<version>[^/]+)\.(?P<fence>\d{6,})")
_OF_POINTER = ("fence", "versions")  # the other entries describe a version


def current(where: str) -> dict[str, Any] | None:
    """Return what the pointer says, or None where nothing was published.

    Raises:
        BadInput: the place cannot be read, or its pointer is none of this project's.
    """
    return _read(open_place(where))[0]


def replaced(where: str, version: str) -> dict[str, Any] | None:
    """Return the pointer that publishing a version would replace, or None where nothing was published.

    Raises:
        BadInput: see `current`; a later version is published already, or this one was taken back.
    """
    place = open_place(where)
    before = _read(place)[0]
    _check_newer(place, before, version)
    return before


def settled(before: dict[str, Any]) -> str:
    """Return the version up to which all is settled: published, or too old to be, or taken back."""
    return max([before["version"], *(each["version"] for each in before["versions"] if each.get("rejected"))])


def damage(where: str, pointer: dict[str, Any]) -> str | None:
    """Return which file of the published version is missing or changed, in words, or None. Reads all of it.

    Raises:
        BadInput: the place cannot be read.
    """
    place = open_place(where)
    with complaints(place, "read"):
        return _damage_of(place, pointer)


def publish(export: Path, where: str, version: str, keep: int, **about: Any) -> dict[str, Any]:
    """Copy an export to where servers read, and let the pointer name it. The pointer is written last.

    Args:
        export: a folder that `trainers.export.export.export` wrote.
        where: folder or URI, see `trainers.runtime.place`.
        version: sorts after all published before it, as a date does; publishing the present one again replaces it.
        keep: versions that stay, this one included and those that were rejected not; older ones are deleted.
        about: further entries of the pointer.

    Returns:
        The pointer's content.

    Raises:
        BadInput: the export is damaged, the place cannot be written, or a later version is published already, maybe
            only since this one began. The pointer is another's.
    """
    files = manifest.read(export)
    if files is None or (damaged := manifest.damage(export, files)):
        raise BadInput(f"{damaged if files else f'{export}: no export is here'}; export the run again")
    place = open_place(where)
    before, _ = _read(place)
    _check_newer(place, before, version)
    with complaints(place, "written"):
        fence, begun = _claim(place, version), time.time()
        entry = {"version": version, "folder": _folder(version, fence), **about}
        place.make(entry["folder"])
        try:
            _copy(export, [*files["files"], manifest.MANIFEST], place, entry["folder"])
        except BaseException:
            _remove(place, entry["folder"])
            raise
        pointer, dropped = _point(place, entry, fence, keep, begun)
    with contextlib.suppress(OSError, BadInput):  # the version is published, whatever else still lies there
        _prune(place, dropped)
    return pointer


def extend(draft: Path, where: str, before: dict[str, Any], **about: Any) -> dict[str, Any]:
    """Copy a delta to the version that the pointer names, and let the pointer list it. The pointer is written last.

    Args:
        draft: a folder with a manifest.
        where: folder or URI.
        before: the pointer, as whoever made the delta has read it: it fits that state alone.
        about: further entries of the delta in the pointer's ``deltas``.

    Returns:
        The pointer's content: ``deltas`` has one entry more, with its ``number``, ``folder`` and ``xxh64``.

    Raises:
        BadInput: the draft is damaged, the place cannot be written, or another publisher has replaced the pointer
            meanwhile. The pointer is another's.
    """
    files = manifest.read(draft)
    if files is None or (damaged := manifest.damage(draft, files)):
        raise BadInput(f"{damaged if files else f'{draft}: no delta is here'}; make the delta again")
    place = open_place(where)
    deltas = before.get("deltas", [])
    with complaints(place, "written"):
        fence, number = _claim(place, before["version"]), len(deltas) + 1
        folder = f"{before['folder']}/deltas/{number:06d}.{fence:06d}"
        place.make(folder)
        try:
            _copy(draft, [*files["files"], manifest.MANIFEST], place, folder)
        except BaseException:
            _remove(place, folder)
            raise
        seal = manifest.digest(draft / manifest.MANIFEST)["xxh64"]
        entry = {"number": number, "folder": folder, "xxh64": seal, **about}
        whole = {**_about(before), "deltas": [*deltas, entry]}
        versions = [whole if each["folder"] == before["folder"] else each for each in before["versions"]]
        pointer = {**whole, "fence": fence, "versions": versions}
        now, tag = _read(place)
        # Where that fails the pointer may name the delta all the same, so it stays; it goes with its base.
        if now != before or not place.swap(POINTER, tag, _encoded(pointer)):
            _remove(place, folder)
            raise BadInput(
                f"{place.shown(POINTER)} was replaced by another publisher meanwhile, so this delta is not "
                "published; make it again, from what is published now"
            )
    return pointer


def rollback(where: str, to: str | None = None) -> dict[str, Any]:
    """Let the pointer name an earlier version, under a larger fence, so that servers take it.

    Versions after it are marked as rejected: `replaced` and `publish` refuse them from then on.

    Args:
        where: folder or URI.
        to: the version, by default the newest before the present one that was not rejected.

    Returns:
        The pointer's content.

    Raises:
        BadInput: nothing is published there, the version does not stay there or is damaged, or another publisher has
            replaced the pointer meanwhile. The pointer is another's.
    """
    place = open_place(where)
    before, tag = _read(place)
    if before is None:
        raise BadInput(f"{place.shown()}: nothing is published here, as there is no {POINTER}; name another place")
    target = _earlier(place, before, to)
    with complaints(place, "written"):
        if damaged := _damage_of(place, target):
            raise BadInput(f"{damaged}; choose another version with --to")
        entry = {key: value for key, value in target.items() if key != "rejected"}
        newer = [each["folder"] for each in before["versions"] if each["version"] > entry["version"]]
        versions = [{**each, "rejected": True} if each["folder"] in newer else each for each in before["versions"]]
        versions = [entry if each["folder"] == entry["folder"] else each for each in versions]
        pointer = {**entry, "fence": _claim(place, entry["version"]), "versions": versions}
        if not place.swap(POINTER, tag, _encoded(pointer)):
            raise BadInput(
                f"{place.shown(POINTER)} was replaced by another publisher meanwhile; look at what it names, and start "
                "again if you still want to"
            )
    return pointer


def _folder(version: str, fence: int) -> str:
    return f"{version}.{fence:06d}"


def _earlier(place: Place, before: dict[str, Any], to: str | None) -> dict[str, Any]:
    """Return the version that a rollback goes to."""
    others = [each for each in before["versions"] if each["folder"] != before["folder"]]
    if to is None:
        found = [each for each in others if each["version"] < before["version"] and not each.get("rejected")]
        missing = f"{place.shown()}: no version before {before['version']} stays here; publish a new one"
    else:
        found = [each for each in others if each["version"] == to]
        missing = f"--to: {place.shown()} holds no version {to} beside the present one" + nearest(
            to, {each["version"] for each in others}
        )
    if not found:
        raise BadInput(missing)
    return sorted(found, key=lambda each: each["version"])[-1]  # of one version the last that was published


def _read(place: Place) -> tuple[dict[str, Any] | None, Any]:
    """Return the pointer and the tag with which it is replaced, or (None, None)."""
    with complaints(place, "read"):
        found = place.read(POINTER)
    if found is None:
        return None, None
    try:
        content = json.loads(found[0])
        content |= {"version": str(content["version"]), "fence": int(content["fence"])}
        content.setdefault("versions", [_about(content)])
        for each in (content, *content["versions"]):
            if _FOLDER.fullmatch(each["folder"]) is None or not isinstance(each["version"], str):
                raise ValueError(each)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{place.shown(POINTER)} is no pointer to a published model; choose another place") from error
    return content, found[1]


def _about(pointer: dict[str, Any]) -> dict[str, Any]:
    """Return what a pointer says of the version that it names."""
    return {key: value for key, value in pointer.items() if key not in _OF_POINTER}


def _encoded(pointer: dict[str, Any]) -> bytes:
    return json.dumps(manifest.finite(pointer), indent=1, allow_nan=False).encode()


def _check_newer(place: Place, before: dict[str, Any] | None, version: str) -> None:
    """Raise BadInput where a version may not take the pointer."""
    if before is None or version == before["version"] or version > settled(before):
        return
    if version < before["version"]:
        raise BadInput(
            f"{place.shown()}: version {before['version']} is published, and {version} is older; a model never goes "
            "back by accident: `livetrain rollback` goes back to an earlier version"
        )
    raise BadInput(
        f"{place.shown()}: `livetrain rollback` took back the versions up to {settled(before)}, so {version} is not "
        "published; publish a later one"
    )


def _claim(place: Place, version: str) -> int:
    """Return a fence that nobody else has or gets, larger than the pointer's."""
    before, _ = _read(place)
    fence = before["fence"] if before is not None else 0
    while True:
        fence += 1
        name = f"{_FENCES}/{fence:06d}"
        content = f"{_folder(version, fence)} {platform.node()} {os.getpid()} {uuid.uuid4().hex}\n".encode()
        if place.swap(name, None, content):
            check_conditions(place, name)
            before, _ = _read(place)
            if before is None or before["fence"] < fence:  # else it may have been given out and forgotten since
                return fence
            fence = before["fence"]


def _damage_of(place: Place, version: dict[str, Any]) -> str | None:
    """Return what is damaged of a version, its deltas too, in words, or None."""
    folders = {version["folder"]: None} | {each["folder"]: each["xxh64"] for each in version.get("deltas", [])}
    return next((damaged for folder, seal in folders.items() if (damaged := _damage(place, folder, seal))), None)


def _copy(export: Path, names: list[str], place: Place, folder: str) -> None:
    """Copy an export to an empty folder, its manifest last, and see that all has arrived."""
    for name in names:
        place.put(export / name, f"{folder}/{name}")
    place.sync(folder)
    if damaged := _damage(place, folder):
        raise BadInput(f"{damaged}; it changed while it was copied, so publish it again")


def _damage(place: Place, folder: str, seal: str | None = None) -> str | None:
    """Return what is damaged of a folder, in words, or None; `seal`: its manifest's own xxh64, where that is known."""
    found = place.read(f"{folder}/{manifest.MANIFEST}")
    if found is not None and seal is not None and manifest.digest_of([found[0]])["xxh64"] != seal:
        found = None
    content = None if found is None else manifest.parsed(found[0])
    if content is None:
        return f"{place.shown(folder)} is not whole: its {manifest.MANIFEST} is missing or damaged"
    for name, wanted in sorted(content["files"].items()):
        path = f"{folder}/{name}"
        try:
            changed = manifest.difference(manifest.digest_of(place.parts(path)), wanted)
        except FileNotFoundError:
            return f"{place.shown(path)} is missing"
        if changed:
            return f"{place.shown(path)} {changed}"
    return None


def _point(
    place: Place, entry: dict[str, Any], fence: int, keep: int, begun: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Let the pointer name a version, unless a later one is published.

    Returns:
        The pointer's content, and the versions that it has dropped.
    """
    while True:
        before, tag = _read(place)
        try:
            _check_newer(place, before, entry["version"])
            if time.time() - begun > LIMIT_S:
                raise BadInput(
                    f"{place.shown(entry['folder'])}: copying it took more than {LIMIT_S // 3600} hours, so it is not "
                    "published; choose a faster place"
                )
        except BadInput:
            _remove(place, entry["folder"])
            raise
        if before is not None and before["fence"] >= fence:
            fence = _claim(place, entry["version"])
            continue
        versions = [*(before["versions"] if before is not None else []), entry]
        first = [number for number, each in enumerate(versions) if not each.get("rejected")][-keep:][0]
        pointer = {**entry, "fence": fence, "versions": versions[first:]}
        if place.swap(POINTER, tag, _encoded(pointer)):
            return pointer, versions[:first]


def _remove(place: Place, folder: str) -> None:
    with contextlib.suppress(OSError):
        place.remove(folder)


def _prune(place: Place, dropped: list[dict[str, Any]]) -> None:
    """Delete the versions that this publisher's pointer has dropped, and what killed publishers have left."""
    for each in dropped:
        place.remove(each["folder"])
    found = {**place.listed(), **{name: at for part in (_FENCES, DRAFTS) for name, at in _below(place, part)}}
    pointer, _ = _read(place)  # after the listing: what is old there and not named now never will be
    now = found.get(POINTER)
    if pointer is None or now is None:
        return
    kept = {each["folder"] for each in (pointer, *pointer["versions"])}
    folders = {int(match["fence"]): match[0] for match in map(_FOLDER.fullmatch, found) if match}
    for name, written in found.items():
        part, _, last = name.partition("/")
        fence = int(last) if part == _FENCES and last.isdecimal() else None
        folder = folders.get(fence) if fence is not None else None
        if not last or written is None or folder in kept or now - written <= ABANDONED_S:
            continue
        if folder is not None:
            place.remove(folder)
        if fence is None or fence < pointer["fence"]:
            place.remove(name)


def _below(place: Place, part: str) -> Iterator[tuple[str, float | None]]:
    return ((f"{part}/{name}", written) for name, written in place.listed(part).items())


@contextlib.contextmanager
def complaints(place: Place, done: str) -> Iterator[None]:
    """Turn what fails in a place into a sentence."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{place.shown()} cannot be {done} ({short(error)}); mend the place, or choose another"
        ) from error
