"""What lies in memory while boosted trees are fitted, by rows: the growth of a process, beside the matrix on disk.

    livetrain data simulate --users 20k --days 14 --seed 7 --out data/simulation
    livetrain data kuailive --raw data/simulation/kuailive --out data/simulated
    python benchmarks/trees_memory.py configs/recipes/gbdt_simulated.yaml --first 2025-06-04 2025-06-01 2025-05-25

Each line is a process of its own that learns from --first to the recipe's last training day. Growth is counted from the
moment at which the libraries are loaded. "own" is memory that the process needs, "mapped" pages of files, which the
system takes back when it needs room. Trees are few: how many there are hardly changes what lies in memory.
"""

import argparse
import multiprocessing
import tempfile
import threading
from pathlib import Path

from quality import rule

from livetrain.configs.load import load_recipe
from livetrain.modules.fitted import fitted
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.fitted.rows import passes
from livetrain.trainers.trees import boost

HEAD = "| rows | columns | matrix on disk, MiB | own, MiB | mapped, MiB | own, bytes per row |"
PARTS = {"own": "RssAnon", "mapped": "RssFile"}
EVERY_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--first", nargs="+", required=True, help="first days of training")
    parser.add_argument("--trees", type=int, default=5, help="of each task")
    given = parser.parse_args()
    print(HEAD, rule(HEAD), sep="\n", flush=True)
    for first in given.first:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows, columns, disk, own, mapped = pool.apply(grown, (given.recipe, first, given.trees))
        sizes = " | ".join(f"{size / 2**20:,.0f}" for size in (disk, own, mapped))
        print(f"| {rows:,} | {columns} | {sizes} | {own / rows:,.0f} |", flush=True)


def grown(path: Path, first: str, trees: int) -> tuple[int, int, int, int, int]:
    """Return the training rows, their columns, the bytes of their matrix, and what the process grew by at most."""
    recipe = load_recipe(path, [f"model.trees={trees}", "cluster.workers=0"])
    days = recipe.data.days
    assert days is not None
    last = days.of("train")[-1]
    recipe = load_recipe(path, [f"model.trees={trees}", "cluster.workers=0", f"data.days.train={first}..{last}"])
    boost.library()
    model = fitted(recipe)
    splits = [passes(Source.open(recipe, split), recipe) for split in ("train", "valid")]
    next(iter(splits[1]()))  # what a reader loads
    before, most, ended = held(), dict.fromkeys(PARTS, 0), threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY_S):
            for part, size in held().items():
                most[part] = max(most[part], size - before[part])

    watching = threading.Thread(target=watch)
    watching.start()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        state = model.fit(*splits, Path(folder))
        disk = (Path(folder) / "train.f32").stat().st_size
    ended.set()
    watching.join()
    columns = len(model.module(state).columns.columns)
    return disk // (4 * columns), columns, disk, most["own"], most["mapped"]


def held() -> dict[str, int]:
    """Return the bytes that this process holds, by part."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {part: int(told[name].split()[0]) * 1024 for part, name in PARTS.items()}


if __name__ == "__main__":
    main()
