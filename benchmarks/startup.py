"""What it costs to start: the checks of train and of evaluate by number of files, and memory at 100,000 files.

    python benchmarks/startup.py --files 1 100 10000 --out benchmarks/results/startup.md

Files are small, so that what is measured is what comes per file. Every figure is of a process of its own, whose imports
and first compilations are over: processor time, how often a file was opened, and wall clock. `cold` is with nothing
kept, `kept` the same again. For the state before, `--package FOLDER` measures another checkout's livetrain.

Memory is that of the process above what it held before: of the driver that opens the split and pickles it, and of a
rank that unpickles it and lays out its part of 64 ranks' first epoch. The files are empty and their index is made up.
"""

import argparse
import datetime
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from livetrain.trainers.runtime.versions import versions

ROWS, DENSE = 256, 12  # of a file, in one row group
MEMORY_FILES = 100_000
RANKS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[1, 100, 10_000])
    parser.add_argument("--package", type=Path, help="a checkout to measure in the place of this one")
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--out", type=Path, help="file to add the tables to")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(CHILDREN[given.child[0]](*given.child[1:])))
        return
    lines = [head(), *starts(given.files, given.package), ""]
    if given.memory:
        lines += [*memory(), ""]
    print("\n".join(lines))
    if given.out:
        with given.out.open("a") as file:
            file.write("\n".join(lines))


def head() -> str:
    command = f"python benchmarks/startup.py {' '.join(sys.argv[1:])}"
    machine = "two-core CPU VM (AMD EPYC), shared with other work, so that wall clock is rough"
    made_with = ", ".join(map(" ".join, versions().items()))
    return f"Command: `{command}`. On {datetime.date.today()}: {machine}; {made_with}.\n"


def child(*words: object, package: Path | None = None) -> dict:
    """Measure in a process of its own, with this or another checkout's livetrain."""
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES="")
        if package:
            (Path(folder) / "livetrain").symlink_to(package.resolve())
            environment["PYTHONPATH"] = folder
        command = [sys.executable, __file__, "--child", *map(str, words)]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def starts(numbers: list[int], package: Path | None) -> list[str]:
    """Return a table of what the checks cost."""
    lines = ["| files of train/ | command | | processor s | opens | wall s |", "| --- | --- | --- | --- | --- | --- |"]
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            data = write(Path(folder) / "data", number)
            for command in ("train", "evaluate"):
                found = child("start", data, command, package=package)
                for what, (seconds, opens, wall) in found.items():
                    lines.append(f"| {number:,} | {command} | {what} | {seconds:.2f} | {opens:,} | {wall:.1f} |")
    return lines


def write(data: Path, files: int) -> Path:
    """Write train/ of so many files, and valid/ and test/ of one each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", files), ("valid", 1), ("test", 1)):
        (data / split).mkdir(parents=True)
        for number in range(count):
            columns = {"user": rng.integers(0, 1000, ROWS), "item": rng.integers(0, 5000, ROWS)}
            columns |= {f"x{n}": rng.normal(size=ROWS).astype(np.float32) for n in range(DENSE)}
            columns |= {"click": (rng.random(ROWS) < 0.3).astype(np.int8)}
            pq.write_table(pa.table(columns), data / split / f"part-{number:05d}.parquet", compression="lz4")
    return data


def recipe(data: str):
    from livetrain.configs.schema import Recipe

    features = {"user": {"type": "id", "table": "user"}, "item": {"type": "id", "table": "item"}}
    return Recipe.model_validate(
        {
            "data": {"path": data, "batch_size": 64, "shards": RANKS, "shuffle_window": 1024},
            "features": features | {f"x{n}": {"type": "dense"} for n in range(DENSE)},
            "tables": {"user": {"rows": 1024, "dim": 8}, "item": {"rows": 8192, "dim": 8}},
            "model": {"kind": "deepfm"},
            "tasks": {"click": {"label": "click"}},
            "cluster": {"workers": 0, "device": "cpu"},
        }
    )


def start(data: str, command: str) -> dict:
    """Check twice, after a check of a small dataset that pays for what is paid once per process."""
    from livetrain.trainers.data.read import source
    from livetrain.trainers.train import preflight

    modules = {
        name.rpartition(".")[2]: module
        for name, module in sys.modules.items()
        if name.startswith("livetrain.trainers.data.read.")
    }

    opens = 0

    def counted(owner: object, name: str) -> None:
        own = getattr(owner, name)

        def call(*given, **named):
            nonlocal opens
            opens += 1
            return own(*given, **named)

        setattr(owner, name, call)

    def check(data: str) -> None:
        made = recipe(data)
        if command == "train":
            preflight.check(made, lambda text: None)
        elif hasattr(preflight, "check_split"):
            preflight.check_split(made, "test", lambda text: None)
        else:
            preflight.check(made, lambda text: None, trains=False)

    counted(modules.get("index", source), "read_footer")
    counted(source.Source, "_opened")
    if "sidecar" in modules:
        counted(modules["sidecar"], "_unpacked")
    with tempfile.TemporaryDirectory() as folder:
        check(str(write(Path(folder) / "data", 1)))
    for kept in Path(data).glob("*/_livetrain"):
        shutil.rmtree(kept)
    found = {}
    for what in ("cold", "kept") if "sidecar" in modules else ("always",):
        opens, cpu, wall = 0, time.process_time(), time.perf_counter()
        check(data)
        found[what] = time.process_time() - cpu, opens, time.perf_counter() - wall
    return found


def memory() -> list[str]:
    """Return a table of peak memory above what the processes held before, at 100,000 files."""
    lines = [
        f"| {MEMORY_FILES:,} files of | row groups | driver, MiB | of that pickled | rank of {RANKS}, MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for groups, rows in ((2, 50_000), (49, 2048)):
        with tempfile.TemporaryDirectory() as folder:
            data, pickled = Path(folder) / "data", Path(folder) / "source"
            child("fabricate", data, groups, rows)
            driver = child("driver", data, pickled)["mib"]
            rank = child("rank", data, pickled)["mib"]
            size = pickled.stat().st_size / 2**20
        lines.append(
            f"| {groups} x {rows:,} rows | {groups * MEMORY_FILES:,} | {driver:,.0f} | {size:,.0f} | {rank:,.0f} |"
        )
    return lines


def fabricate(data: str, groups: str, rows: str) -> dict:
    """Make a training split of empty files whose index says that each has so many row groups of so many rows."""
    from livetrain.trainers.data.read import index, sidecar
    from livetrain.trainers.data.read.files import split_folders

    write(Path(data), 1)
    (real,) = (Path(data) / "train").iterdir()
    one = index.look(fs.LocalFileSystem(), [str(real)])
    real.unlink()
    for number in range(MEMORY_FILES):
        (Path(data) / "train" / f"part-{number:05d}-of-a-night-of-this-size.parquet").touch()
    system, _, (folder,) = split_folders(recipe(data), "train")
    files = np.repeat(np.arange(MEMORY_FILES, dtype=np.int32), int(groups))
    numbers = np.tile(np.arange(int(groups), dtype=np.int32), MEMORY_FILES)
    paths = [info.path for info in folder.files]
    made = index.Groups(paths, files, numbers, np.full(len(files), int(rows), np.int64))
    figures = {column: replace(part, groups=len(files)) for column, part in one.figures.items()}
    whole = index.Index(paths, one.schemas, np.zeros(MEMORY_FILES, np.int32), made, figures)
    sidecar.Sidecar.of(system, folder).write("index", *index.stored(whole))
    return {}


def driver(data: str, out: str) -> dict:
    """Open the split, as a start does, and pickle it for the ranks."""
    from livetrain.trainers.data.read.source import Source

    made, before = recipe(data), resident()
    Path(out).write_bytes(pickle.dumps(Source.open(made, "train")))
    return {"mib": resident() - before}


def rank(data: str, pickled: str) -> dict:
    """Lay out what one rank reads of the first epoch."""
    from livetrain.trainers.data.read.reader import Reader

    made, before = recipe(data), resident()
    with open(pickled, "rb") as file:
        source = pickle.load(file)
    reader = Reader(source, made, rank=3, world=RANKS, shuffle=True)
    reader._order.windows(0, reader._shards)
    return {"mib": resident() - before}


def resident() -> float:
    """Return this process's peak of resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


CHILDREN = {"start": start, "fabricate": fabricate, "driver": driver, "rank": rank}

if __name__ == "__main__":
    main()
