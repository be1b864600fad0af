"""A week of simulated live streams through `livetrain follow`: every 5 minutes, every hour, every day, and never.

    livetrain data simulate --users 20k --days 14 --out data/simulation
    livetrain data kuailive --raw data/simulation/kuailive --out data/simulated
    livetrain data replay data/simulation --out runs/week/topics --speed 0
    sed -i 's/^wait_s:/every_s: 300\\nwait_s:/' runs/week/topics/stream.yaml
    livetrain stream runs/week/topics/stream.yaml --out runs/week/live --drain
    python benchmarks/week.py follow              # the night, then each way, one after the other; goes on
    python benchmarks/week.py report              # the table and the picture

A night learns six days. Then the stream's minutes, which `livetrain stream` has made of the world's messages, are
followed by the command's own code, with checkpoints, alarms and deltas published; of every row it is kept what the
model foretold before it learned the row. `never` is the same with the learning left out. All ways see the same rows,
each once. Kinds: `table`, rows for ids of their own (configs/recipes/din_simulated_ids.yaml), and `mix`, the same by a
hash of equal memory. A way that is killed goes on from its newest checkpoint, and foretells the same again.
"""

import argparse
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ids import TABLES, hashed
from matplotlib.figure import Figure
from quality import made, rule

from livetrain.cluster import launch
from livetrain.cluster.stream import follow, following
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.metrics import binary
from livetrain.trainers.data.read import minutes
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export import export
from livetrain.trainers.observe.report import panels
from livetrain.trainers.runtime import manifest, runlog
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train.increments import STREAM, Learned, Line
from livetrain.trainers.train.loss import Output

DAY = 86_400
WAYS = {"never": DAY, "nightly": DAY, "hourly": 3600, "5 minutes": 300}
KINDS = ("table", "mix")
TASKS = ("click", "effective_view")  # what they are is known half a minute later
AGES = {  # of the room, s
    **{"all": (-1e12, 1e12), "below 10 min": (0, 600), "10 to 60 min": (600, 3600)},
    **{"1 to 4 h": (3600, 14_400), "above 4 h": (14_400, 1e12)},
}
EDGES = [0, 300, 600, 1200, 2400, 4800, 9600, 19_200, 38_400, 86_400]
DAYS = {"train": "2025-05-25..2025-05-30", "valid": "2025-05-31..2025-05-31", "test": "2025-06-01..2025-06-01"}
COLUMNS = ["timestamp", "room_age", *TASKS]
FEWEST = 3000  # rows of a point in the picture
AGAINST = "| task | age of room | a hash, every 5 minutes: AUC | rows for ids of their own |"
WORK = "| ids | way | increments | rows | rows/s | that raised an alarm | not published | bases | deltas |"
INTRO = """# A week of simulated live streams through `livetrain follow`: {of}

{made}
The runs are those of `python benchmarks/week.py follow`, on a two-core CPU VM (AMD EPYC), shared with other programs.

A night learned six days. `livetrain stream` made minutes of the world's messages, late and double ones among them, and
`livetrain follow` learned the days after the night from them: every 5 minutes, every hour, every day (`nightly`) or
never. All ways learn the same rows once and differ only in when. A row is judged before it is learned, by weights that
have learned all increments before its own; closing and publishing a minute, which takes two to three minutes, is not
counted. "never" is the AUC of the night's weights over the week; the others say by how many 1e-4 theirs is higher,
± the standard error by days. Days are those of UTC; the last one, which is not
whole, is not shown, and `nightly` does not learn it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("follow", "report"))
    parser.add_argument("--recipe", type=Path, default=Path("configs/recipes/din_simulated_ids.yaml"))
    parser.add_argument("--data", default="data/simulated", help="whole days, for the night")
    parser.add_argument("--live", type=Path, default=Path("runs/week/live"), help="what `livetrain stream` made")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/week"))
    parser.add_argument("--until", default="2025-06-07", help="report what happened before this day (UTC)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/week.md"))
    parser.set_defaults(workers=0)
    given = parser.parse_args()
    torch.set_num_threads(threads())
    if given.what == "report":
        report(given)
        return
    for kind in given.kinds:
        for way in given.ways:
            told = followed(kind, way, given)
            print(kind, way, *(f"{task} {auc(told, task):.5f}" for task in TASKS), flush=True)


def recipe(kind: str, given: argparse.Namespace) -> Recipe:
    """Return the night's recipe: of equal memory whatever its kind, and with the tasks that are known soon."""
    changes: dict[str, Any] = {
        **{"name": kind, "data.path": given.data, "data.days": DAYS, "follow.path": str(given.live.resolve())},
        **{"tasks.like": None, "tasks.comment": None, "tasks.gift": None, "optimizers.schedule.final": 0.3},
        **{"train.evaluate_every": 1.0, "train.seed": given.seed, "cluster.workers": 0},
    }
    found = load_recipe(given.recipe, **changes)
    tables = {name: hashed(found.tables[name]) for name in TABLES} if kind == "mix" else {}
    return found.model_copy(update={"tables": found.tables | tables})


def followed(kind: str, way: str, given: argparse.Namespace) -> dict[str, np.ndarray]:
    """Follow the stream in one way, and return what was foretold: see `foretold`."""
    asked, runs = recipe(kind, given), given.runs.resolve() / f"seed{given.seed}"
    night = runs / "nights" / f"{kind}-{DAYS['test'][-10:]}"
    if not (night / "export" / manifest.MANIFEST).exists():
        launch.train(asked.model_copy(update={"name": night.name}), night.parent, test=False)
        export.export(night)
    place = runs / way.replace(" ", "-")
    (place / f"foretold-{kind}").mkdir(parents=True, exist_ok=True)
    if not (place / night.name).exists():
        (place / night.name).symlink_to(night)
    with unittest.mock.patch.object(following, "Line", kept(place / f"foretold-{kind}", learns=way != "never")):
        follow.follow(asked, place, str(place / f"models-{kind}"), WAYS[way], once=True)
    return foretold(place / f"foretold-{kind}", given.until)


def kept(place: Path, learns: bool) -> type[Line]:
    """Return a line that keeps what its model foretells of an increment before it learns it, if it `learns`."""

    class Kept(Line):
        def take(self, source: Source | None, end: int) -> Learned:
            self.scored: list[tuple[torch.Tensor, torch.Tensor]] = []
            found = super().take(source, end) if learns else self.judge(source, end)
            if source is not None:
                rows = pa.concat_tables([pq.ParquetFile(path).read(COLUMNS) for path in source.groups.paths])
                columns = {name: rows[name].cast(pa.float64()).to_numpy() for name in COLUMNS}
                numbers, logits = (torch.cat(parts) for parts in zip(*self.scored, strict=True))
                np.savez(place / f"{end}.npz", logits=logits[numbers.argsort()].numpy(), **columns)
            return found

        def judge(self, source: Source | None, end: int) -> Learned:
            if source is not None:
                self.job.sources[STREAM] = source
                self.evaluate(STREAM, draws=0)
            self.position |= {"taken": end, "open": True, "figures": {}}
            return Learned({}, [], True, 0.0)

        def _scored(self, split: str, reader: Reader) -> Iterator[Output]:
            for output in super()._scored(split, reader):
                assert output.logits is not None  # the module is in evaluation mode
                real = output.batch.rows >= 0
                self.scored.append((output.batch.rows[real], output.logits[real]))
                yield output

    return Kept


def foretold(place: Path, until: str) -> dict[str, np.ndarray]:
    """Return, of all rows before a day, `logits` (n, T) and the columns of COLUMNS; times in s since 1970."""
    parts = [dict(np.load(path)) for path in sorted(place.glob("*.npz"))]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found["timestamp"] /= 1000
    order, last = np.argsort(found["timestamp"], kind="stable"), minutes.started(f"{until}T00:00:00Z")
    return {name: values[order][found["timestamp"][order] < last] for name, values in found.items()}


def auc(found: dict[str, np.ndarray], task: str, rows: np.ndarray | slice = slice(None)) -> float:
    """Return the AUC of a task over some rows."""
    labels, logits = found[task][rows], found["logits"][rows, TASKS.index(task)]
    known = ~np.isnan(labels)
    return binary.auc(labels[known], logits[known])


def report(given: argparse.Namespace) -> None:
    """Write the tables and the picture of what has been followed."""
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    told = []
    for kind in given.kinds:
        for way in given.ways:
            place = given.runs / f"seed{given.seed}" / way.replace(" ", "-")
            found.setdefault(kind, {})[way] = foretold(place / f"foretold-{kind}", given.until)
            if way != "never":
                told.append(work(kind, way, place))
    head = "| ids | task | age of room | rows | never: AUC | " + " | ".join(given.ways[1:]) + " |"
    lines = [line(kind, task, age, ways) for kind, ways in found.items() for task in TASKS for age in AGES]
    text = [INTRO.format(made=made(versions(), given), of=given.recipe.stem), head, rule(head), *lines, ""]
    text += [f"![by time and by age of room]({given.out.stem}.png)", ""]
    if len(found) > 1:
        text += [AGAINST, rule(AGAINST), *(against(found, task, age) for task in TASKS for age in AGES), ""]
    text += [WORK, rule(WORK), *told, ""]
    given.out.write_text("\n".join(text))
    draw(found).savefig(given.out.with_suffix(".png"), dpi=60)
    print(given.out.read_text())


def within(found: dict[str, np.ndarray], age: str) -> np.ndarray:
    """Return which rows are of rooms of an age; one whose age is not known is in `all` alone."""
    low, high = AGES[age]
    return (found["room_age"] >= low) & (found["room_age"] < high) | (age == "all")


def more(one: dict[str, np.ndarray], other: dict[str, np.ndarray], task: str, rows: np.ndarray) -> str:
    """Return by how many 1e-4 the AUC of `one` is above that of `other`, and its standard error, by days."""
    assert np.array_equal(one["timestamp"], other["timestamp"])
    day = one["timestamp"] // DAY
    gained = [auc(one, task, rows & (day == each)) - auc(other, task, rows & (day == each)) for each in np.unique(day)]
    whole = auc(one, task, rows) - auc(other, task, rows)
    return f"{1e4 * whole:+.1f} ± {1e4 * np.std(gained, ddof=1) / len(gained) ** 0.5:.1f}"


def line(kind: str, task: str, age: str, ways: dict[str, dict[str, np.ndarray]]) -> str:
    """Return the line of a task and an age of rooms: the AUC of never, and what the others add to it."""
    never = ways["never"]
    rows = within(never, age)
    cells = [kind, task, age, f"{rows.sum():,}", f"{auc(never, task, rows):.4f}"]
    return f"| {' | '.join([*cells, *(more(ways[way], never, task, rows) for way in list(ways)[1:])])} |"


def against(found: dict[str, dict[str, dict[str, np.ndarray]]], task: str, age: str) -> str:
    """Return the line of a task and an age of rooms: what rows for ids of their own add to a hash."""
    own, hashes = (found[kind]["5 minutes"] for kind in ("table", "mix"))
    rows = within(own, age)
    return f"| {task} | {age} | {auc(hashes, task, rows):.4f} | {more(own, hashes, task, rows)} |"


def work(kind: str, way: str, place: Path) -> str:
    """Return the line of what a follower has done, by its own log."""
    (folder,) = (place / f"{kind}-follow").glob("????-??-??")
    taken = {each["start"]: each for each in runlog.read(folder) if each["kind"] == "increment"}.values()
    rows, took = sum(each["rows"] for each in taken), sum(each["took_s"] for each in taken)
    alarmed, shut = sum(each["alarmed"] > 0 for each in taken), sum(not each["open"] for each in taken)
    says = [each["text"] for each in runlog.read(place / f"{kind}-follow") if each["kind"] == "note"]
    out = [each for each in says if each.startswith("published ")]
    deltas = sum(" as delta " in each for each in out)
    cells = [kind, way, f"{len(taken):,}", f"{rows:,}", f"{rows / took:,.0f}", f"{alarmed}", f"{shut}"]
    return f"| {' | '.join([*cells, f'{len(out) - deltas}', f'{deltas}'])} |"


def draw(found: dict[str, dict[str, dict[str, np.ndarray]]]) -> Figure:
    """Draw, by kind, the click AUC by half day, and what each way adds to that of never, by half day and by age."""
    figure = Figure((18, 3.6 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), 3, squeeze=False)
    for (kind, ways), (whole, over, ages) in zip(found.items(), axes, strict=True):
        panels.panel(whole, f"{kind}: click AUC, judged before it is learned", "days after the night", "", 0.8)
        panels.panel(over, "more than never", "days after the night", "1e-4", 0.8)
        panels.panel(ages, "more than never, by age of room", "minutes", "1e-4", 0.8)
        ages.set_xscale("log")
        since = (ways["never"]["timestamp"] - ways["never"]["timestamp"][0]) / DAY
        halves, by_age = (since, np.arange(0, 8, 0.5), 1.0), (ways["never"]["room_age"], np.array(EDGES), 60.0)
        for place, way in enumerate(ways):
            style = panels.task_style(place)
            whole.plot(*curve(ways[way], None, *halves), label=way, **style)
            if way != "never":
                over.plot(*curve(ways[way], ways["never"], *halves), label=way, **style)
                ages.plot(*curve(ways[way], ways["never"], *by_age), label=way, **style)
        panels.legend_beside(whole)
        panels.legend_beside(ages)
    return figure


def curve(
    one: dict[str, np.ndarray], other: dict[str, np.ndarray] | None, by: np.ndarray, edges: np.ndarray, unit: float
) -> tuple[list[float], list[float]]:
    """Return middles between edges, and the click AUC there, or by how many 1e-4 it is above that of another."""
    x, y = [], []
    for low, high in zip(edges, edges[1:], strict=False):
        rows = (by >= low) & (by < high)
        if rows.sum() > FEWEST:
            found = auc(one, "click", rows)
            x.append((low + high) / 2 / unit)
            y.append(found if other is None else 1e4 * (found - auc(other, "click", rows)))
    return x, y


if __name__ == "__main__":
    main()
