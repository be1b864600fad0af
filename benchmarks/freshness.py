"""What fresh weights are worth: one night's model, relearned nightly, hourly, every 5 minutes or never, over the days
that follow it, on simulated live streams.

    livetrain data simulate --users 20k --days 14 --seed 7 --out data/simulation
    livetrain data kuailive --raw data/simulation/kuailive --out data/simulated
    python benchmarks/freshness.py learn                 # the night, then each way, one after the other; goes on
    python benchmarks/freshness.py report                # the table and the picture

The days are replayed by event time, without waiting. Every row is scored before it is learned, by the weights that
would have been there: those of the last refresh before it, which had learned what was closed by then, that is what had
happened --closing minutes earlier. All ways learn the same batches, each batch the rows of 5 minutes, in one pass, and
differ only in when: so the steps are as many, and none sees more. A night's and an hour's batches are shuffled.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from quality import made, rule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.cluster import launch
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.metrics import binary
from livetrain.trainers.data.read.files import split_files
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.observe.report import panels
from livetrain.trainers.runtime import ranks
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.run_folder import find_checkpoint
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train import checkpoint
from livetrain.trainers.train.loop import Job, Trainer
from livetrain.trainers.train.schedule import factor

WINDOW, UTC8 = 300, 8 * 3600
WAYS = {"never": None, "nightly": 86_400, "hourly": 3600, "5 minutes": 300}
TASKS = ("click", "effective_view")  # what they are is known half a minute later
PARTS = {  # age of the room, s
    **{"all": (-1e12, 1e12), "below 10 min": (0, 600), "10 to 60 min": (600, 3600)},
    **{"1 to 4 h": (3600, 14_400), "above 4 h": (14_400, 1e12)},
}
EDGES = [0, 300, 600, 1200, 2400, 4800, 9600, 19_200, 38_400, 86_400]
HEAD = "| setting | task | age of room | rows | seeds | never: AUC | nightly | hourly | 5 minutes |"
INTRO = """# What fresh weights are worth on simulated live streams

{made}
Made by `learn --seed N`, and with `--label uncounted --set features.room_viewers=null ...` for the second setting. A
two-core CPU VM (AMD EPYC) that other work shared; the figures do not depend on its speed.

"never" is the AUC of one night's weights over the five days after it; the others say by how many 1e-4 theirs is higher,
mean ± deviation over seeds. A row is scored before it is learned, by weights that had learned what was closed 5 minutes
before their last refresh. `hashed`: configs/recipes/din_simulated.yaml with the room's id, the tasks click and
effective_view, and rates that end at .3. `uncounted`: without the columns of what was counted of the room and the
streamer up to the exposure, which are fresh whatever the weights are. `uncounted` was added when the
first seed of `hashed` was known; nothing else was chosen by these figures.
"""
REMARKS = """![click AUC more than never, by day and by age of room](freshness.png)

What can be said of so few seeds: an hour brings most of what five minutes bring, and both bring most in rooms that have
been on air for hours, whose rows were learned while they went on; in rooms that have just opened they lose a little.
Over all rows the gain is of the size of its deviation.
Without counted columns there is more to gain. The simulated world has no sudden trends: interests stand still, and what
moves (bursts, popularity) is told by columns as well. Where taste moves by the hour more is to be expected.

Not measured: exact rows for room ids (`hash: table`) beside hashed ones.
"""
RECIPE = Path("configs/recipes/din_simulated.yaml")
CHANGES = [  # the room itself too, and only what is known soon; rates that do not end at 0
    *("features.room={type: id, table: room}", "tables.room={rows: 262144, dim: 8}"),
    *("tasks.like=null", "tasks.comment=null", "tasks.gift=null"),
    *("optimizers.schedule={decay: linear, final: 0.3}", "train.evaluate_every=1", "cluster.workers=0"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("learn", "report"))
    parser.add_argument("--data", default="data/simulated")
    parser.add_argument("--night", default="2025-05-26..2025-06-01", help="days that the night learns")
    parser.add_argument("--days", type=int, default=5, help="that are replayed after it")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--closing", type=int, default=5, help="minutes until what happened is closed")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the recipe")
    parser.add_argument("--label", default="hashed", help="name of this setting in the table and in --runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/freshness"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/freshness.md"))
    parser.set_defaults(workers=0)
    given = parser.parse_args()
    torch.set_num_threads(threads())
    if given.what == "report":
        report(given)
        return
    recipe = night(given)
    batches = None
    for way in given.ways:
        path = scores(given, way)
        if not path.exists():
            batches = batches or list(windows(recipe, given))
            found = replay(recipe, given, WAYS[way], batches)
            np.savez_compressed(path, **found)
        print(given.label, way, *(f"{task} {auc(dict(np.load(path)), task):.5f}" for task in TASKS), flush=True)


def scores(given: argparse.Namespace, way: str, label: str | None = None, seed: int | None = None) -> Path:
    return given.runs / f"{label or given.label}-seed{seed or given.seed}-{way.replace(' ', '')}.npz"


def night(given: argparse.Namespace) -> Recipe:
    """Return the recipe, trained on the days of the night if it was not yet."""
    last = date.fromisoformat(given.night.split("..")[1])
    days = [str(last + timedelta(n)) for n in range(1, 3)]
    changes = [f"data.days.{split}={day}..{day}" for split, day in zip(("valid", "test"), days, strict=True)]
    changes += [f"data.path={given.data}", f"data.days.train={given.night}", f"train.seed={given.seed}"]
    name = f"{given.label}-seed{given.seed}"
    recipe = load_recipe(RECIPE, [*CHANGES, *changes, f"name={name}", *given.set])
    if not (given.runs / name / "result.json").exists():
        launch.train(recipe, given.runs, test=False)
    return recipe


@dataclass(frozen=True)
class Window:
    """The rows of 5 minutes."""

    start: int  # s since 1970
    batch: Batch
    age: np.ndarray  # (n,) s, of the room


def windows(recipe: Recipe, given: argparse.Namespace) -> Iterator[Window]:
    """Yield the windows of the days after the night, in their order."""
    last = date.fromisoformat(given.night.split("..")[1])
    with tempfile.TemporaryDirectory() as sorted_days:
        for number in range(1, given.days + 1):
            day = str(last + timedelta(number))
            around = {"train": "2000-01-01..2000-01-01", "valid": f"{day}..{day}", "test": "2100-01-01..2100-01-01"}
            of_day = recipe.data.days.model_copy(update=around)
            data = recipe.data.model_copy(update={"days": of_day})
            _, _, paths = split_files(recipe.model_copy(update={"data": data}), "valid")
            table = pa.concat_tables([pq.read_table(path, partitioning=None) for path in paths]).sort_by("timestamp")
            folder = Path(sorted_days, f"date={day}")
            folder.mkdir()
            pq.write_table(table, folder / "part-0.parquet")
            data = data.model_copy(update={"path": sorted_days, "batch_size": len(table), "shards": 1})
            whole = recipe.model_copy(update={"data": data})
            reader = Reader(Source.open(whole, "valid"), whole, rank=0, world=1, shuffle=False)
            (batch,) = reader.batches(0)
            seconds, age = table["timestamp"].to_numpy() // 1000, table["room_age"].to_numpy()
            starts = seconds // WINDOW * WINDOW
            for start in np.unique(starts):
                first, end = np.searchsorted(starts, [start, start + 1])
                yield Window(int(start), cut(batch, int(first), int(end)), age[first:end])


def cut(batch: Batch, first: int, end: int) -> Batch:
    """Return rows [first, end) of a batch that is as a training step wants it."""
    ids, size = batch.ids, len(batch.rows)
    offsets = ids.offsets()
    places = [(k * size + first, k * size + end) for k in range(len(ids.keys()))]
    shorter = KeyedJaggedTensor(
        keys=list(ids.keys()),
        values=torch.cat([ids.values()[offsets[a] : offsets[b]] for a, b in places]),
        lengths=torch.cat([ids.lengths()[a:b] for a, b in places]),
    )
    weights = None if batch.sample_weights is None else batch.sample_weights[first:end]
    parts = {name: getattr(batch, name)[first:end] for name in ("dense", "labels", "weights", "rows")}
    return replace(batch, ids=shorter, sample_weights=weights, groups=None, slices=None, **parts)


class Replay(Trainer):
    """The night's model as it goes on."""

    def __init__(self, recipe: Recipe, run: Path) -> None:
        super().__init__(Job(recipe, run, {}, None), torch.device("cpu"))
        begun = checkpoint.load(self.sharded, recipe, find_checkpoint(run, "last"))
        self.step = begun["step"]
        self.sharded.set_rates(factor(self.step, self.step, recipe))  # that with which the night ended

    def learn(self, batches: list[Batch]) -> None:
        self.sharded.module.train()
        feed = iter(batches)
        for _ in batches:
            ranks.seed_step(self.recipe.train.seed, self.step)
            self.sharded.pipeline.progress(feed)
            self.step += 1

    def score(self, batch: Batch) -> np.ndarray:
        """Return (n, T) logits."""
        self.sharded.module.eval()
        with torch.no_grad():
            logits = self.sharded.pipeline.progress(iter([batch])).logits
        assert logits is not None
        return logits.numpy()


def replay(recipe: Recipe, given: argparse.Namespace, every: int | None, found: list[Window]) -> dict[str, np.ndarray]:
    """Return time, age, labels and logits of all rows, scored by weights that are refreshed `every` so many seconds."""
    random, waiting, rows = np.random.default_rng(given.seed), list(found), []
    with ranks.alone(False):
        model = Replay(recipe, given.runs / recipe.name)
        for window in found:
            if every is not None:
                refreshed = (window.start + UTC8) // every * every - UTC8
                closed = [w for w in waiting if w.start + WINDOW + 60 * given.closing <= refreshed]
                waiting = waiting[len(closed) :]
                model.learn([closed[place].batch for place in random.permutation(len(closed))])
            times = np.full(len(window.age), window.start)
            rows.append((times, window.age, window.batch.labels.numpy(), model.score(window.batch)))
    names = ("time", "age", "labels", "logits")
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*rows, strict=True), strict=True)}


def auc(found: dict[str, Any], task: str, rows: np.ndarray | slice = slice(None)) -> float:
    """Return the AUC of a task over some rows."""
    place = TASKS.index(task)
    labels, logits = found["labels"][rows, place], found["logits"][rows, place]
    known = ~np.isnan(labels)
    return binary.auc(labels[known], logits[known])


def report(given: argparse.Namespace) -> None:
    """Write the table and the picture of all settings that are there."""
    found: dict[str, dict[int, dict[str, dict[str, np.ndarray]]]] = {}
    for path in sorted(given.runs.glob("*-seed*-*.npz")):
        label, seed, way = path.stem.rsplit("-", 2)
        way = next(name for name in WAYS if name.replace(" ", "") == way)
        found.setdefault(label, {}).setdefault(int(seed.removeprefix("seed")), {})[way] = dict(np.load(path))
    whole = {
        label: {seed: ways for seed, ways in seeds.items() if len(ways) == len(WAYS)} for label, seeds in found.items()
    }
    lines = [HEAD, rule(HEAD)]
    for label, seeds in whole.items():
        lines += [line(label, task, part, rows, seeds) for task in TASKS for part, rows in PARTS.items() if seeds]
    given.out.write_text("\n".join([INTRO.format(made=made(versions(), given)), *lines, "", REMARKS]))
    draw({label: seeds for label, seeds in whole.items() if seeds}).savefig(given.out.with_suffix(".png"), dpi=60)
    print("\n".join(lines))


def line(label: str, task: str, part: str, rows: tuple[float, float], seeds: dict) -> str:
    """Return the line of a task and an age of rooms: the AUC of never, and what the others add to it."""
    aucs, count = {way: [] for way in WAYS}, 0
    for ways in seeds.values():
        for way, kept in ways.items():
            inside = (kept["age"] >= rows[0]) & (kept["age"] < rows[1])
            aucs[way].append(auc(kept, task, inside))
            count = int(inside.sum())
    never = np.array(aucs["never"])
    cells = [f"{never.mean():.4f}"]
    for way in list(WAYS)[1:]:
        more = 1e4 * (np.array(aucs[way]) - never)
        cells.append(f"{more.mean():+.1f}" + (f" ± {more.std(ddof=1):.1f}" if len(more) > 1 else ""))
    return f"| {label} | {task} | {part} | {count:,} | {len(seeds)} | {' | '.join(cells)} |"


def draw(whole: dict) -> Figure:
    """Draw, by setting, what each way adds to the click AUC of never, over the days and by age of room."""
    figure = Figure((13, 3.4 * len(whole)), layout="constrained")
    axes = figure.subplots(len(whole), 2, squeeze=False)
    for row, (label, seeds) in enumerate(whole.items()):
        over, ages = axes[row]
        panels.panel(over, f"{label}: click AUC more than never, by day", "days after the night", "1e-4", 0.8)
        panels.panel(ages, f"{label}: the same by age of room", "minutes", "1e-4", 0.8)
        for place, way in enumerate(list(WAYS)[1:]):
            style = panels.task_style(place)
            for axis, name, edges in ((over, "time", None), (ages, "age", EDGES)):
                x, y = gains(seeds, way, name, edges)
                axis.plot(x, y, label=way, **style)
        ages.set_xscale("log")
        panels.legend_beside(ages)
    return figure


def gains(seeds: dict, way: str, by: str, edges: list[float] | None) -> tuple[list[float], list[float]]:
    """Return places and means over seeds of 1e4 times (AUC - AUC of never), by half day or by age in minutes."""
    x, y = [], []
    first = min(kept["never"]["time"].min() for kept in seeds.values())
    bins = edges or [first + 43_200 * n for n in range(40)]
    for low, high in zip(bins, bins[1:], strict=False):
        more = []
        for ways in seeds.values():
            inside = (ways[way][by] >= low) & (ways[way][by] < high)
            if inside.sum() > 3000:
                more.append(1e4 * (auc(ways[way], "click", inside) - auc(ways["never"], "click", inside)))
        if more:
            x.append((low + high) / 2 / 60 if edges else ((low + high) / 2 - first) / 86_400)
            y.append(float(np.mean(more)))
    return x, y


if __name__ == "__main__":
    main()
