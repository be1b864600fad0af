"""Publishers that race: two processes at once, on a folder and on a bucket, and whether anything is ever wrong after.

    python benchmarks/races.py

Every round has a place of its own with two versions in it. Two processes that wait at one barrier then publish, or one
publishes and one rolls back, while this process keeps reading the pointer as a server does. The table counts the rounds
after which `_wrong` finds anything. The bucket is one of moto's S3 server, which answers one request at a time.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from livetrain.configs.errors import BadInput
from livetrain.trainers.export import publish
from livetrain.trainers.runtime import manifest
from livetrain.trainers.runtime.place import open_place

ROOT = Path(__file__).parents[1]
BEFORE = ("2026-01-01", "2026-01-02")
NEW = ("2026-01-03", "2026-01-04")
SCENES: dict[str, list[tuple[str | None, int]]] = {  # of each process the version and how many stay; None rolls back
    "the same day": [(NEW[0], 7), (NEW[0], 7)],
    "different days": [(NEW[0], 7), (NEW[1], 7)],
    "different days, one version stays": [(NEW[0], 1), (NEW[1], 1)],
    "a rollback beside a publisher": [(None, 7), (NEW[0], 7)],
}
MODEL_BYTES = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="of each scene, in each place")
    parser.add_argument("--places", nargs="+", default=["folder", "bucket"], choices=["folder", "bucket"])
    parser.add_argument("--seed", type=int, default=1, help="of the processes' head starts")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/races.md")
    given = parser.parse_args()
    lines, failures = [], []
    with tempfile.TemporaryDirectory() as scratch, _racers(Path(scratch), 2) as racers:
        for kind in given.places:
            with _place(kind, Path(scratch)) as where:
                for scene, parts in SCENES.items():
                    found = [
                        _round(f"{where[0]}/{number}{where[1]}", parts, racers, random.Random(f"{given.seed} {number}"))
                        for number in range(len(lines) * given.rounds, (len(lines) + 1) * given.rounds)
                    ]
                    lines.append(_line(kind, scene, found))
                    failures += [f"- {kind}, {scene}: {text}" for _, wrong in found for text in wrong]
                    print(lines[-1], flush=True)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("livetrain", "obstore", "moto", "pyarrow"))
    counted = [f"- {count} x {text[2:]}" for text, count in Counter(failures).most_common()]
    given.out.write_text(
        f"""# Publishers that race

Command: `{shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])}`
On {datetime.date.today()}: {os.cpu_count()} cores; python {sys.version.split()[0]}, {libraries}.

| place | what two processes did at once | rounds | both succeeded | one lost, and said so | failures |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(lines)}

{chr(10).join(counted) or "After every round: " + WRONG}
"""
    )
    print(given.out.read_text())
    sys.exit(bool(failures))


WRONG = """no fence was given out twice, and none fell under a reader's eyes; the pointer was on the last
success, and on the newest day where nothing was rolled back; whoever lost did so to a newer version and ended by a
sentence; every version that stays was whole and its own publisher's, and nothing else was left."""


@contextmanager
def _place(kind: str, scratch: Path) -> Iterator[tuple[str, str]]:
    """Yield the begin and the end of the URIs of a place's folders."""
    if kind == "folder":
        yield str(scratch / "models"), ""
        return
    server = subprocess.Popen([sys.executable, "-m", "tests.store"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        path, query = server.stdout.readline().strip().split("?")
        os.environ["NO_PROXY"] = "127.0.0.1"
        yield path, f"?{query}"
    finally:
        server.terminate()
        server.wait()


def _export(folder: Path, mark: str) -> Path:
    """Write what `publish` takes for an export; every file of it says whose it is."""
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(mark.encode() * (MODEL_BYTES // len(mark)))
    (folder / "signature.json").write_text(json.dumps({"run": mark}))
    manifest.commit(folder, {path.name: manifest.digest(path) for path in sorted(folder.iterdir())})
    return folder


class _Racers:
    """Processes that do one thing each, all at the same moment, as often as they are asked."""

    def __init__(self, scratch: Path, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._barrier = context.Barrier(count)  # kept here until the processes have it
        self.exports = [_export(scratch / f"export-{number}", f"racer-{number} ") for number in range(count)]
        self.before = _export(scratch / "export-before", "before ")
        self._pipes, self._processes = [], []
        for export in self.exports:
            here, there = context.Pipe()
            self._pipes.append(here)
            self._processes.append(context.Process(target=_race, args=(export, self._barrier, there), daemon=True))
            self._processes[-1].start()

    def race(self, where: str, parts: list[tuple[str | None, int]], waits: list[float]) -> list[tuple[str, Any]]:
        """Return of each process what it came to; meanwhile read the pointer, whose fence must not fall."""
        for pipe, part, wait in zip(self._pipes, parts, waits, strict=True):
            pipe.send((where, *part, wait))
        fences = []
        while not all(pipe.poll() for pipe in self._pipes):
            fences.append(publish.current(where)["fence"])
            time.sleep(0.01)  # the processor is the racers'
        self.fell = fences != sorted(fences)
        return [pipe.recv() for pipe in self._pipes]

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


@contextmanager
def _racers(scratch: Path, count: int) -> Iterator[_Racers]:
    racers = _Racers(scratch, count)
    try:
        yield racers
    finally:
        racers.close()


def _race(export: Path, barrier: Any, pipe: Any) -> None:
    """Be a racer: take what to do from a pipe, wait for the others, do it, and say what it came to."""
    while True:
        where, wanted, keep, wait = pipe.recv()
        barrier.wait()
        time.sleep(wait)
        try:
            if wanted is None:
                found = "success", publish.rollback(where)
            else:
                found = "success", publish.publish(export, where, wanted, keep, run=export.name)
        except BadInput as error:
            found = "lost", str(error)
        except Exception as error:
            found = "failed", f"{type(error).__name__}: {error}"
        pipe.send(found)


def _round(where: str, parts: list, racers: _Racers, drawn: random.Random) -> tuple[list[str], list[str]]:
    """Return what the two processes came to, and what was wrong afterwards."""
    for day in BEFORE:
        before = publish.publish(racers.before, where, day, 7, run="export-before")
    waits = [0.0, drawn.choice([0, drawn.uniform(0, 0.05)])]
    drawn.shuffle(waits)
    found = racers.race(where, parts, waits)
    return [what for what, _ in found], [*_wrong(where, parts, found, before), *["a fence fell"] * racers.fell]


def _wrong(where: str, parts: list, found: list[tuple[str, Any]], before: dict[str, Any]) -> list[str]:
    """Return in words what must not be."""
    wrong = [f"an end without a sentence of its own: {text}" for what, text in found if what == "failed"]
    done = [pointer for what, pointer in found if what == "success"]
    fences, pointer = [before["fence"], *(each["fence"] for each in done)], publish.current(where)
    back = any(day is None for day, _ in parts)
    if len(set(fences)) < len(fences):
        wrong.append("a fence was given out twice")
    if pointer["fence"] != max(fences) or pointer not in [before, *done]:
        wrong.append("the pointer is not the last success")
    if not back and pointer["version"] != max(day for day, _ in parts):
        wrong.append("the pointer is on an older day")
    for (day, _), (what, _) in zip(parts, found, strict=True):
        if what == "lost" and day is not None and not day < _newest(pointer):
            wrong.append("one lost to nothing newer")
    here = open_place(where)
    stay = {each["folder"]: each for each in (*pointer.get("versions", ()), pointer)}
    for folder, each in stay.items():
        wrong += [f"{text}" for text in _broken(here, folder, each["run"])]
    if left := {name for name, at in here.listed().items() if at is None and name.startswith("2026")} - {*stay}:
        wrong.append(f"{len(left)} folder(s) that nothing names")
    return wrong


def _newest(pointer: dict[str, Any]) -> str:
    """Return the newest version that the pointer speaks of."""
    return max([pointer["version"], *(each["version"] for each in pointer.get("versions", ()))])


def _broken(here: Any, folder: str, run: str) -> Iterator[str]:
    """Yield what is wrong with a version that stays; read with nothing of what published it."""
    found = here.read(f"{folder}/{manifest.MANIFEST}")
    if found is None:
        yield "a version that stays has no manifest"
        return
    for name, wanted in json.loads(found[0])["files"].items():
        content = here.read(f"{folder}/{name}")
        if content is None or manifest.digest_of([content[0]]) != wanted:
            yield "a version that stays is not as its manifest says"
        elif run.replace("export", "racer").replace("racer-before", "before").encode() not in content[0]:
            yield "a version that stays is another publisher's"


def _line(kind: str, scene: str, found: list[tuple[list[str], list[str]]]) -> str:
    ends = Counter(tuple(sorted(ends)) for ends, _ in found)
    cells = [kind, scene, len(found), ends["success", "success"], ends["lost", "success"]]
    return f"| {' | '.join(map(str, [*cells, sum(bool(wrong) for _, wrong in found)]))} |"


if __name__ == "__main__":
    main()
