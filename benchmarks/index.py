"""Building and searching an index of items against comparing with all: recall, bytes and processor time.

    pip install 'livetrain[index]'
    python -m benchmarks.index --items 100000

Items and users are drawn near common centres, as towers leave them. How much a search looks at is the least that
reaches `--recall` on half of the users; the other half measure. One thread; times are of the processor, so whatever
else the machine does counts little.
"""

import argparse
import platform
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import faiss
import numpy as np

from livetrain.trainers.recall.build import recall
from livetrain.trainers.recall.nearest import Kind, Nearest, Stored

KINDS: tuple[tuple[Kind, Stored], ...] = (
    ("exact", "none"),
    ("exact", "int8"),
    ("hnsw", "none"),
    ("hnsw", "int8"),
    ("ivf_pq", "none"),
)
AIR = (1.0, 0.5, 0.01)  # shares of the items that are on the air
FOUND = 100
HEAD = (
    "| index | build s | MB | effort | recall@100 | ms per query | "
    + " | ".join(f"recall@100, ms with {share:.0%} on the air" for share in AIR[1:])
    + " |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/index.md"))
    given = parser.parse_args()
    faiss.omp_set_num_threads(1)
    items, users = drawn(given.items, given.queries, given.width)
    exact = Nearest.build(items, "exact", "none")
    lines = [line(items, users, exact, kind, stored, given.recall) for kind, stored in KINDS]
    command = f"python -m benchmarks.index --items {given.items} --recall {given.recall:g}"
    intro = [
        "# An index of items against comparing with all",
        "",
        f"Command: `{command}`",
        "",
        f"{date.today()}, two-core CPU VM (AMD EPYC), one thread, faiss {faiss.__version__}, Python "
        f"{platform.python_version()}. {given.items:,} items of {given.width} numbers, {given.queries} queries; "
        "seconds and milliseconds are of the processor, queries come one by one. Of `effort` see "
        "trainers/recall/nearest.py: it is the least power of two with the recall asked for, and with fewer items on "
        "the air it grows.",
        "",
    ]
    given.out.write_text("\n".join([*intro, HEAD, "| --- " * (HEAD.count("|") - 1) + "|", *lines, ""]))
    print(f"written to {given.out}")


def drawn(items: int, users: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors near common centres, a centre per 200 items."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(max(items // 200, 1), width))
    found = []
    for count in (items, users):
        rows = centres[rng.integers(0, len(centres), count)] + rng.normal(size=(count, width))
        found.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    return found[0], found[1]


def line(items: np.ndarray, users: np.ndarray, exact: Nearest, kind: Kind, stored: Stored, least: float) -> str:
    begun = time.process_time()
    index = Nearest.build(items, kind, stored)
    built = time.process_time() - begun
    for effort in index.efforts():
        index.effort = effort
        if recall(index, exact, users[::2], FOUND) >= least:
            break
    with TemporaryDirectory() as folder:
        index.write(Path(folder) / "index")
        size = (Path(folder) / "index").stat().st_size
    cells = []
    for share in AIR:
        allowed = None if share == 1 else np.random.default_rng(2).random(len(items)) < share
        found, wanted = (each.search(users[1::2], FOUND, allowed)[0] for each in (index, exact))
        hit = np.mean([np.isin(own, other).mean() for own, other in zip(wanted, found, strict=True)])
        begun = time.process_time()
        for user in users[1::2]:
            index.search(user[None], FOUND, allowed)
        took = 1e3 * (time.process_time() - begun) / len(users[1::2])
        cells.append(f"{hit:.3f} | {took:.2f}" if share == 1 else f"{hit:.3f}, {took:.2f}")
    made = f"| {kind}{'' if stored == 'none' else f', {stored}'} | {built:.1f} | {size / 1e6:.1f} | {index.effort:,} | "
    made += " | ".join(cells) + " |"
    print(made, flush=True)
    return made


if __name__ == "__main__":
    main()
