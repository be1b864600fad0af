"""Copies of a run's checkpoints in a bucket or another folder, from which another machine goes on with the run.

    <copies>/<run>/last.json                {"fence", "by", "checkpoints": {step-00000640: its folder here}}
    <copies>/<run>/step-00000640.000003/    a checkpoint as in the run's folder, the run's log, and its manifest last

A training takes the pointer before its first step, under a fence larger than the one before, and replaces it after each
copy only as it has read it and under its own fence. So one that was cut off for a while, whose run goes on elsewhere,
finds another's fence when it comes back, and ends: it overwrites nothing, and only deletes what came before it.
"""

import contextlib
import json
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

from livetrain.configs.errors import BadInput, short
from livetrain.trainers.runtime import manifest, run_folder, scratch
from livetrain.trainers.runtime.place import Place, check_conditions, open_place

POINTER = "last.json"
_STEP = re.compile(r"step-\d{8,}")
_MEND = f"remove {POINTER} there to begin anew"


class Copies:
    """The copies of one run, for one training. Rank 0 takes the pointer; every rank writes its part of the files."""

    def __init__(self, where: str, run: str, fence: int) -> None:
        self.place, self.fence = _place(where, run), fence

    @classmethod
    def taken(cls, where: str, run: str) -> int:
        """Take the pointer, as a training does that begins or goes on; return its fence.

        Raises:
            OSError: the place cannot be written, or another training takes the pointer at the same moment.
        """
        place = _place(where, run)
        found, tag = _read(place)
        fence = found["fence"] + 1
        if not place.swap(POINTER, tag, _encoded(found["checkpoints"], fence)):
            raise OSError(f"{place.shown(POINTER)}: another training of this run began just now")
        return fence

    def put(self, path: Path, share: tuple[int, int]) -> None:
        """Copy a rank's part of a committed checkpoint's files.

        Args:
            path: the checkpoint, in the run's folder.
            share: (this rank, ranks).
        """
        rank, ranks = share
        for name in sorted(run_folder.content(path)["files"])[rank::ranks]:
            self.place.put(path / name, f"{self._folder(path)}/{name}")

    def begin(self, path: Path) -> None:
        """Make the folder of a checkpoint's copy, without what an attempt before has left there."""
        self.place.remove(self._folder(path))
        self.place.make(self._folder(path))

    def commit(self, path: Path, run: Path) -> bool:
        """Write the manifest of a copy that is there, and let the pointer name it; delete what the run has deleted.

        Returns:
            Whether the run is still this training's; otherwise nothing was written.
        """
        folder = self._folder(path)
        self.place.swap(f"{folder}/{run_folder.LOG}", None, (run / run_folder.LOG).read_bytes())
        self.place.put(path / manifest.MANIFEST, f"{folder}/{manifest.MANIFEST}")
        self.place.sync(folder)
        found, tag = _read(self.place)
        kept = {one.name for one in run_folder.committed(run)}
        checkpoints = {step: there for step, there in found["checkpoints"].items() if step in kept} | {
            path.name: folder
        }
        if found["fence"] != self.fence or not self.place.swap(POINTER, tag, _encoded(checkpoints, self.fence)):
            self.place.remove(folder)
            return False
        with contextlib.suppress(OSError):  # a storage that will not delete is no reason to stop training
            for name in self.place.listed():
                step, _, fence = name.partition(".")
                ours = step.startswith("step-") and fence.isdecimal() and int(fence) <= self.fence
                if ours and name not in checkpoints.values():
                    self.place.remove(name)
        return True

    def _folder(self, path: Path) -> str:
        return f"{path.name}.{self.fence:06d}"


def fetch(where: str, run: Path) -> list[Path]:
    """Bring the newest copied checkpoint of a run to its folder, with the run's log and the best checkpoint.

    Nothing is brought to where a checkpoint as new lies. The place is tried out, too.

    Returns:
        The checkpoints that were brought, the newest first.

    Raises:
        BadInput: the place cannot be reached or ignores conditions on a write, or a copy is not whole.
    """
    place = _place(where, run.name)
    try:
        probe = f"probe-{uuid.uuid4().hex}"
        place.swap(probe, None, probe.encode())
        check_conditions(place, probe)
        place.remove(probe)
        there = _read(place)[0]["checkpoints"]
        here = [path.name for path in run_folder.committed(run)]
        if not there or (here and max(here) >= max(there)):
            return []
        brought = [_brought(place, there[max(there)], run / "checkpoints" / max(there))]
        best = run_folder.content(brought[0])["position"]["best_step"]
        name = max(there) if best is None else run_folder.checkpoint(run, best).name
        if name in there and name not in (max(there), *here):
            brought.append(_brought(place, there[name], run / "checkpoints" / name))
        if (lines := place.read(f"{there[max(there)]}/{run_folder.LOG}")) is not None:
            manifest.write_text(run / run_folder.LOG, lines[0].decode(errors="replace"))
        return brought
    except OSError as error:
        raise BadInput(
            f"train.copies: {place.shown()} cannot be reached ({short(error)}); mend the place, or choose another"
        ) from error


def _brought(place: Place, folder: str, path: Path) -> Path:
    """Copy a checkpoint to its path, whole or not at all."""
    found = place.read(f"{folder}/{manifest.MANIFEST}")
    content = None if found is None else manifest.parsed(found[0])
    if content is None:
        raise BadInput(f"{place.shown(folder)} is not whole, as its {manifest.MANIFEST} is missing; {_MEND}")
    if any(Path(name).name != name or name in ("", ".", "..") for name in content["files"]):
        raise BadInput(f"{place.shown(folder)}: its {manifest.MANIFEST} names files elsewhere; {_MEND}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch.place(path.parent, ".brought-") as draft:
        for name, wanted in content["files"].items():
            with (draft / name).open("xb") as file:
                for part in place.parts(f"{folder}/{name}"):
                    file.write(part)
            if changed := manifest.difference(manifest.digest(draft / name), wanted):
                raise BadInput(f"{place.shown(folder)}/{name} {changed}; {_MEND}")
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        for name in content["files"]:
            (draft / name).rename(path / name)
        files = content.pop("files")
        manifest.commit(path, files, **content)
    return path


def _place(where: str, run: str) -> Place:
    base, mark, options = where.partition("?")
    return open_place(f"{base.rstrip('/')}/{run}{mark}{options}", "checkpoints are copied")


def _read(place: Place) -> tuple[dict[str, Any], Any]:
    """Return the pointer, or that of no training before, and the tag with which it is replaced."""
    found = place.read(POINTER)
    if found is None:
        return {"fence": 0, "checkpoints": {}}, None
    try:
        content = json.loads(found[0])
        for step, folder in content["checkpoints"].items():  # nothing here may name a place elsewhere
            if not (_STEP.fullmatch(step) and folder.startswith(f"{step}.") and folder[len(step) + 1 :].isdecimal()):
                raise ValueError(step)
        return {"fence": int(content["fence"]), "checkpoints": dict(content["checkpoints"])}, found[1]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{place.shown(POINTER)} is no pointer to a run's checkpoints; choose another place") from error


def _encoded(checkpoints: dict[str, str], fence: int) -> bytes:
    return json.dumps({"fence": fence, "by": scratch.label(), "checkpoints": checkpoints}, indent=1).encode()
