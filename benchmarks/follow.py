"""How long it takes from a closed minute to what was learned of it being published, and of what that consists.

    livetrain data simulate --users 20k --days 14 --out data/simulation
    livetrain data kuailive --raw data/simulation/kuailive --out data/simulated
    python benchmarks/follow.py --minutes 5

A night learns two simulated days and is followed by `livetrain follow --every 1m`, in a process of its own. This one
closes a minute every 60 seconds, with `--rows` samples of the night's last day, and looks when what is published.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from quality import made, rule

from livetrain.cluster import nightly
from livetrain.cluster.stream.publishing import version_of
from livetrain.configs.load import dump_recipe, load_recipe
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read import minutes as stream
from livetrain.trainers.runtime import manifest, runlog
from livetrain.trainers.runtime.versions import versions

EACH = 60
DAYS = {"train": "2025-06-03..2025-06-04", "valid": "2025-06-05..2025-06-05", "test": "2025-06-06..2025-06-06"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("configs/recipes/din_simulated_follow.yaml"))
    parser.add_argument("--minutes", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2000, help="samples of a minute")
    parser.add_argument("--workers", type=int, default=1, help="Ray workers; 0 trains inside the follower's process")
    parser.add_argument("--work", type=Path, default=Path("runs/follow"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/follow.md"))
    given = parser.parse_args()
    work = given.work.resolve()
    recipe, command = begun(given, work)
    rows = pq.read_table(sorted(Path(recipe.data.path).glob("date=2025-06-07/*.parquet"))[0])
    manifest.write_json(_made(work / "live") / stream.STREAM, {"lanes": 1, "every_s": EACH, "columns": {}})
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as follower:
        try:
            closed, published = _live(work, rows, given)
        finally:
            follower.terminate()
    _write(given, work, closed, published)


def begun(given: argparse.Namespace, work: Path) -> tuple[Recipe, list[str]]:
    """Return a recipe whose night is published in a folder that is empty else, and the command that follows it."""
    recipe = load_recipe(
        given.recipe, [f"cluster.workers={given.workers}"], **{"data.days": DAYS, "follow.path": str(work / "live")}
    )
    recipe = recipe.model_copy(update={"name": "din"})
    alone = recipe.model_copy(update={"cluster": recipe.cluster.of(0)})
    nightly.night(alone, work / "runs", "2025-06-06", str(work / "nights"), 1.0, 7, False, print)
    for left in ("live", "models", "runs/din-follow"):
        shutil.rmtree(work / left, ignore_errors=True)
    (work / "din.yaml").write_text(dump_recipe(recipe))
    command = [sys.executable, "-m", "livetrain", "follow", str(work / "din.yaml"), "--every", "1m"]
    command += ["--publish", str(work / "models"), "--nights", str(work / "nights"), "--runs", str(work / "runs")]
    return recipe, command


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _live(work: Path, rows: pa.Table, given: argparse.Namespace) -> tuple[dict[int, float], dict[str, float]]:
    """Close minutes as they pass; return when each was closed, by its end, and when each version was published."""
    closed, published = dict[int, float](), dict[str, float]()
    wait(work)
    start = int(time.time()) // EACH * EACH
    until = start + (given.minutes + 3) * EACH
    while time.time() < until and version_of(start + given.minutes * EACH) not in published:
        number = len(closed)
        if number < given.minutes and time.time() >= start + (number + 1) * EACH:
            begin = start + number * EACH
            close(work / "live", begin, rows.slice(number * given.rows, given.rows))
            closed[begin + EACH] = time.time()
        look(work, published)
        time.sleep(0.05)
    return closed, published


def wait(work: Path) -> None:
    """Wait until the follower waits for the stream."""
    while not any("has learned up to" in line.get("text", "") for line in runlog.read(work / "runs/din-follow")):
        time.sleep(0.5)


def look(work: Path, published: dict[str, float]) -> None:
    """Note when the version that is published now was seen first."""
    with contextlib.suppress(OSError, ValueError):
        version = json.loads((work / "models/current.json").read_text())
        last = [version, *version.get("deltas", [])][-1]
        published.setdefault(last["version"], time.time())


def close(live: Path, begin: int, rows: pa.Table, each: int = EACH) -> None:
    """Close the minute of a stream that begins at a time (s since 1970) and is `each` seconds long."""
    folder = _made(live / stream.folder_of(begin) / "lane=0")
    pq.write_table(rows, folder / "part-0.parquet")
    files = {"part-0.parquet": manifest.digest(folder / "part-0.parquet")}
    about = {"start": begin, "end": begin + each, "counts": {}, "watermark": float(begin + each)}
    manifest.commit(folder, files, rows=len(rows), offsets={}, **about)


def _write(given: argparse.Namespace, work: Path, closed: dict[int, float], published: dict[str, float]) -> None:
    line = work / "runs/din-follow/2025-06-06"
    learned = {each["end"]: each for each in runlog.read(line) if each["kind"] == "increment"}
    head = "| minute | samples | seen after | judged and learned in | then published in | from closed to published |"
    lines, whole = [], []
    for end, at in closed.items():
        if (found := learned.get(end)) is None:
            continue
        seen = found["time"] - at - found["took_s"]
        out = published.get(version_of(end))
        parts = [f"{seen:.1f} s", f"{found['took_s']:.1f} s"]
        if out is not None:
            parts += [f"{out - found['time']:.1f} s", f"**{out - at:.1f} s**"]
            whole.append(out - at)
        lines.append(f"| {stream.name_of(end - EACH)[11:16]} | {found['rows']:,} | " + " | ".join(parts) + " |")
    told = f"median {statistics.median(whole):.1f} s, most {max(whole):.1f} s, of {len(whole)}" if whole else "none"
    text = f"""# From a closed minute to what is published: {given.recipe.stem}

{made(versions(), given)}

From the moment at which a minute is closed to the pointer that names a model which has learned it: {told}.
"""
    given.out.write_text("\n".join([text, head, rule(head), *lines, ""]))
    print(given.out.read_text())


if __name__ == "__main__":
    main()
