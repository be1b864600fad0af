"""What an exported file costs to serve, by how its tables are stored: size, AUC, latency and rows/s on one thread.

    livetrain train configs/recipes/din_ml1m.yaml name=din
    python benchmarks/serving.py runs/din

Each call scores 500 held-out rows as candidates of one user, another one each time. "once" is the file's `rank`, which
gets the user's features once; "repeated" is its `forward` on rows that repeat them, made before the clock starts. All
six ways take turns, call by call. `livetrain export RUN --bench` prints the same table.
"""

import argparse
import datetime
import os
import platform
from pathlib import Path

from livetrain.trainers.runtime.process import set_up

set_up()  # as livetrain does, before PyTorch is imported

from livetrain.trainers.export import latency  # noqa: E402
from livetrain.trainers.runtime.versions import versions  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--candidate", nargs="+", help="the candidate's features, where they cannot be told")
    parser.add_argument("--rounds", type=int, default=20, help="passes over 30 users")
    given = parser.parse_args()
    measured = latency.compare(given.run, candidate=given.candidate, rounds=given.rounds)
    head, *lines = latency.cells(measured)
    for line in (head, ["---"] * len(head), *lines):
        print("|", " | ".join(line), "|")
    found = versions()
    huge = os.environ["THP_MEM_ALLOC_ENABLE"]
    print(f"\n{measured[0].candidates} candidates, {len(measured[0].rank)} calls each, one thread;", end=" ")
    print(f"THP_MEM_ALLOC_ENABLE={huge};", end=" ")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores of {_processor()};", end=" ")
    print(f"python {found['python']}, torch {found['torch']}; {datetime.date.today()}")
    print("largest difference of a probability from the model's:", end=" ")
    print(", ".join(f"{m.quantize} {m.parity['largest_difference']:.1e}" for m in measured))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
