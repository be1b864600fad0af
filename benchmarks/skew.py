"""How much memory and time `livetrain skew` takes for logs of several sizes.

    python benchmarks/skew.py 2000 20000

A log is made as a server writes it, a file per five minutes, of requests with 200 candidates; one candidate of each was
shown, a second later, and is a sample. Each size is a `livetrain skew` of its own, whose peak of resident memory and
processor time the system tells; above an import of the same modules alone, which comes first.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from quality import made, rule

from livetrain.trainers.runtime.versions import versions

CANDIDATES, EVENTS, NUMBERS, FILES = 200, 50, 10, 288
DAY_MS, BEGIN = 86_400_000, 1_790_035_200_000
HEAD = "| requests | candidates | MB of the log's files | peak MB above imports | processor s above |"
DRY = "import livetrain.trainers.online.skew, livetrain.cli.main"


def recipe(data: Path) -> dict:
    ids = {name: {"type": "id", "table": name} for name in ("user", "room")}
    numbers = {f"number_{n}": {"type": "dense"} for n in range(NUMBERS)}
    history = {"type": "sequence", "table": "room", "max_length": EVENTS}
    return {
        "name": "skew",
        "data": {"path": str(data), "batch_size": 8, "shards": 2},
        "features": {**ids, "history": history, **numbers},
        "tables": {name: {"rows": 64, "dim": 4} for name in ("user", "room")},
        "model": {"kind": "lr"},
        "tasks": {"click": {"label": "click"}},
        "cluster": {"workers": 0, "device": "cpu"},
    }


def lists(values: np.ndarray) -> pa.ListArray:
    """Return (R, n) values as lists."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))


def write(folder: Path, requests: int) -> None:
    """Write a day's log and its samples."""
    log, day = folder / "log/date=2026-09-22", folder / "data/date=2026-09-22"
    log.mkdir(parents=True)
    day.mkdir(parents=True)
    draw, times = np.random.default_rng(0), np.linspace(BEGIN, BEGIN + DAY_MS - 1, requests).astype(np.int64)
    parts = []
    for number, time in enumerate(np.array_split(times, min(FILES, requests))):
        count = len(time)
        user, first = draw.integers(0, 10_000, (2, count))
        room = (first[:, None] + 7 * np.arange(CANDIDATES)) % 10_000
        history, numbers = (
            draw.integers(0, 10_000, (count, EVENTS)),
            draw.random((NUMBERS, count, CANDIDATES), np.float32),
        )
        asked = {"request_id": [f"{number}-{n}" for n in range(count)], "time": time, "user": user, "room": lists(room)}
        asked |= {"history": lists(history), **{f"number_{n}": lists(each) for n, each in enumerate(numbers)}}
        pq.write_table(pa.table(asked), log / f"{number:06}-host-0.parquet")
        shown = {"user": user, "room": room[:, 0], "timestamp": time + 1000, "history": lists(history)}
        shown |= {f"number_{n}": each[:, 0] for n, each in enumerate(numbers)}
        parts.append(pa.table({**shown, "click": np.zeros(count, np.int8)}))
    pq.write_table(pa.concat_tables(parts), day / "part-0.parquet", row_group_size=65_536)
    (folder / "skew.yaml").write_text(yaml.safe_dump(recipe(folder / "data")))


def ran(command: list[str]) -> tuple[float, float]:
    """Return MB of peak memory and seconds of processor time of a program."""
    # In a process of its own, for the peak that the system tells is that of all children.
    inside = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    inside += "u = resource.getrusage(resource.RUSAGE_CHILDREN); print(u.ru_maxrss / 1e3, u.ru_utime + u.ru_stime)"
    done = subprocess.run([sys.executable, "-c", inside, *command], check=True, capture_output=True, text=True)
    peak, seconds = done.stdout.split()
    return float(peak), float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=int, nargs="+", help="of a day")
    parser.set_defaults(workers=0)
    given = parser.parse_args()
    dry = ran([sys.executable, "-c", DRY])
    print(f"{made(versions(), given)}\n\nimports alone: {dry[0]:,.0f} MB, {dry[1]:.1f} processor s\n")
    print(f"{HEAD}\n{rule(HEAD)}")
    for requests in given.requests:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, requests)
            size = sum(path.stat().st_size for path in (folder / "log").rglob("*.parquet")) / 1e6
            command = [str(Path(sys.executable).parent / "livetrain"), "skew", str(folder / "log")]
            command += ["--samples", str(next((folder / "data").iterdir())), "--recipe", str(folder / "skew.yaml")]
            peak, seconds = ran(command)
        cells = [f"{requests:,}", f"{requests * CANDIDATES:,}", f"{size:,.0f}"]
        print("| " + " | ".join([*cells, f"{peak - dry[0]:,.0f}", f"{seconds - dry[1]:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
