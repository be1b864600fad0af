"""How fast raw logs become samples, and in how much memory.

    livetrain data simulate --users 80k --days 14 --seed 7 --out data/simulated-80k
    python benchmarks/prepare.py kuailive-m3 --raw data/simulated-80k/kuailive-m3

Prepares all days in a child process, and adds up what its processes hold of memory (PSS, so that shared pages count
once) ten times a second. CPU seconds are those of all its processes: they mean something where other programs run too,
and two cores need at least half of them. Events are the rows of exposures, plays, likes, comments and gifts.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

from livetrain.trainers.data.write import layout

EVENTS = ("click", "negative", "comment", "like", "gift", "live_interaction", "live_show", "photo_play", "log_")


def tree(root: int) -> list[int]:
    """Return a process and all that it has started, directly or not."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # it has ended meanwhile
            continue
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def memory(root: int) -> int:
    """Return the bytes that a process and its descendants hold."""
    total = 0
    for process in tree(root):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", choices=["kuailive", "kuailive-m3", "kuairand"])
    parser.add_argument("--raw", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prepare-") as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "livetrain", "data", given.source, "--raw", str(given.raw), "--out", str(out)]
        started, peak, over = time.perf_counter(), 0, threading.Event()
        child = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.1):
                peak = max(peak, memory(child.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = child.wait()
        seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        over.set()
        watcher.join()
        if code:
            sys.exit(code)
        prepared = layout.finished(out)
        size = sum(path.stat().st_size for path in out.glob("date=*/*.parquet"))
    raw = prepared["report"]["raw"]
    events = sum(n for words, n in raw.items() if words.endswith(": rows") and words.startswith(EVENTS))
    rows = sum(day["rows"] for day in prepared["days"].values())
    print(f"{platform.machine()}, {os.cpu_count()} cores, duckdb {version('duckdb')}, pyarrow {version('pyarrow')}")
    print("| source | days | events | samples | seconds | CPU seconds | events/s | peak memory | samples on disk |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {given.source} | {len(prepared['days'])} | {events:,} | {rows:,} | {seconds:,.0f} | "
        f"{used.ru_utime + used.ru_stime:,.0f} | "
        f"{events / seconds:,.0f} | {peak / 2**30:.2f} GiB | {size / 2**30:.2f} GiB |"
    )


if __name__ == "__main__":
    main()
