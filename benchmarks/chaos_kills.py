"""What stories of kills share: marked processes that are started, struck and looked for, and the command line."""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).parents[1]
MARK = "LIVETRAIN_CHAOS"  # in the environment of every process of a story
VICTIMS = ("driver", "worker", "group")
GRACE_S = 30.0  # for processes to end after their command


def names(folder: Path | str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def started(words: list[str], log: Path, mark: Path) -> subprocess.Popen:
    """Start `livetrain` with these words, its output behind what is in `log`, and all its processes marked."""
    environment = {**os.environ, MARK: str(mark), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "livetrain", *words],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


class Inspection:
    """What must be right when a story is over, beside one that nobody killed. `failures` says what is not."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def go_through(self, *parts: Callable[[], None]) -> None:
        """Look at each part; one that cannot be looked at is a failure, too."""
        for part in parts:
            try:
                part()
            except Exception as error:
                self.failures.append(f"{part.__name__}: {type(error).__name__}: {error}")

    def check(self, right: bool, otherwise: str) -> None:
        if not right:
            self.failures.append(otherwise)


def strike(driver: int, victim: str) -> str:
    """Kill a driver, one of its workers, or all; return who was hit: where there is no worker the driver is."""
    try:
        one = psutil.Process(driver)
        family = one.children(recursive=True)
    except psutil.NoSuchProcess:
        return victim
    workers = [each for each in family if "RayTrainWorker" in _title(each)]
    if victim == "worker" and not workers:
        victim = "driver"
    for each in {"driver": [one], "worker": workers[-1:], "group": [one, *family]}[victim]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    return victim


def left(folder: Path) -> list[str]:
    """Return what a story has left: processes that were started with its mark and live, and half-made files."""
    stop = time.monotonic() + GRACE_S
    while (alive := list(_alive(folder))) and time.monotonic() < stop:
        time.sleep(0.2)
    failures = [f"processes are left: {[_title(one)[:60] for one in alive]}"] if alive else []
    for one in alive:
        one.kill()
    endings = (".scratch", ".draft", ".part", ".old")
    found = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith(endings)]
    return [*failures, *([f"left: {found[:5]}"] if found else [])]


def _alive(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(folder) and process.status() != "zombie":
                yield process
        except psutil.Error:
            continue


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def command(
    description: str, name: str, run: Callable[[int, int, Path], list], table: Callable[[list, argparse.Namespace], str]
) -> None:
    """Play stories as the command line asks, write their table, and exit with 1 where one failed.

    Args:
        description: of the command.
        name: of the page of results, `chaos_stream` for benchmarks/results/chaos_stream.md.
        run: called with the kills, the seed and the folder of work, returns the tales, each with `failures`.
        table: the page of the tales.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    work = Path(tempfile.gettempdir()) / f"livetrain-{name.replace('_', '-')}"
    parser.add_argument("--work", type=Path, default=work)
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/{name}.md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    tales = run(given.kills, given.seed, given.work.resolve())
    given.out.write_text(table(tales, given))
    print(given.out.read_text())
    sys.exit(any(tale.failures for tale in tales))
