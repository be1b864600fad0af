"""Rows for ids of their own against a hash, at equal memory, through a follower over a month in which ids drift.

    livetrain data simulate --users 3k --days 28 --out data/month
    livetrain data kuailive --raw data/month/kuailive --out data/month-simulated
    python benchmarks/ids_stream.py --data data/month-simulated

A night learns the first day. Then `livetrain follow` takes the days after it as a stream, --every hours at a time: each
increment is judged before its ids are admitted and it is learned. Rooms live for hours, and each day a twentieth of the
users and streamers come anew under other ids, as in ids.py, which also says what equal memory is and what is lost: the
share of a day's lookups of ids met before it whose row is not theirs alone, by what was held when the day began.
Times are those of the data's own days.

A day that is done is a line of RUNS/KIND.jsonl and is not followed again: the benchmark may be stopped and started.
"""

import argparse
import json
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import ids as nights
import numpy as np
import pyarrow.parquet as pq
import torch
from follow import close
from ids import FIRST, TABLES
from matplotlib.figure import Figure
from quality import made, rule

from livetrain.cluster import launch
from livetrain.cluster.stream import follow
from livetrain.configs.schema import Follow, Recipe
from livetrain.trainers.data.read import minutes
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export import export
from livetrain.trainers.export import ids as listing
from livetrain.trainers.observe.report import panels
from livetrain.trainers.runtime import manifest, runlog
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train import ids

HOUR, UTC8 = 3600, 8 * 3600
KINDS = ("mix", "table")
TASKS = ("click", "effective_view")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("configs/recipes/din_simulated_ids.yaml"))
    parser.add_argument("--data", type=Path, default=Path("data/month-simulated"))
    parser.add_argument("--rows", type=int, nargs=3, default=[3072, 2048, 4096], help="of user, streamer and room")
    parser.add_argument("--days", type=int, default=27, help="that are followed")
    parser.add_argument("--every", type=int, default=2, help="hours of an increment")
    parser.add_argument("--runs", type=Path, default=Path("runs/ids-stream"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ids_stream.md"))
    parser.set_defaults(workers=0)
    given = parser.parse_args()
    given.runs = given.runs.resolve()
    torch.set_num_threads(threads())
    data = nights.drifted(given.data, given.runs / "drifted")
    found = {kind: list(followed(kind, given, data)) for kind in KINDS}
    given.out.write_text(page(found, given))
    draw(found).savefig(given.out.with_suffix(".png"), dpi=60)
    print(given.out.read_text())


def recipe(kind: str, given: argparse.Namespace, data: Path) -> Recipe:
    """Return what is followed: of equal memory, and with the two tasks that are known soon."""
    found = nights.recipe(kind, given, data, 0)
    schedule = found.optimizers.schedule.model_copy(update={"final": 0.3})
    changes = {
        "name": kind,
        "tasks": {task: found.tasks[task] for task in TASKS},
        "optimizers": found.optimizers.model_copy(update={"schedule": schedule}),
        "follow": Follow(path=str(given.runs / f"live-{kind}")),
    }
    return found.model_copy(update=changes)


def followed(kind: str, given: argparse.Namespace, data: Path) -> Iterator[dict[str, Any]]:
    """Yield a line per day, those that are known and those that are followed now."""
    path, asked = given.runs / f"{kind}.jsonl", recipe(kind, given, data)
    known = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    yield from known
    night = given.runs / f"{kind}-{FIRST + timedelta(2)}"
    if not (night / "export" / manifest.MANIFEST).exists():
        launch.train(asked.model_copy(update={"name": night.name}), given.runs)
        export.export(night)
    line = given.runs / f"{kind}-follow" / night.name.removeprefix(f"{kind}-")
    met = {name: np.zeros(0, np.int64) for name in TABLES}
    for number in range(given.days + 1):
        day = FIRST + timedelta(number)
        sights = sights_of(asked, day)
        if number > len(known):
            held = listing.kept(line if number > 1 else night, "last") if kind == "table" else {}
            own = {name: held[name].map.keys if held else None for name in TABLES}
            lost = {n: nights.lost(sights[n], met[n], asked.tables[n].rows, own[n]) for n in TABLES}
            told = {"day": str(day), "lost": lost} | learned(asked, given, data, day, line)
            with path.open("a") as file:
                file.write(json.dumps(told) + "\n")
            print(kind, told["day"], {task: round(told["auc"][task], 4) for task in TASKS}, lost, flush=True)
            yield told
        met = {name: np.union1d(met[name], sights[name].ids) for name in TABLES}


def sights_of(asked: Recipe, day: date) -> dict[str, Any]:
    """Return the lookups of a day, by table."""
    tables = {name: asked.tables[name].model_copy(update={"hash": "table"}) for name in TABLES}
    assert asked.data.days is not None
    days = asked.data.days.model_copy(update={"train": f"{day}..{day}"})
    of_day = asked.model_copy(
        update={"tables": asked.tables | tables, "data": asked.data.model_copy(update={"days": days})}
    )
    ((_, found),) = ids.intervals(Source.open(of_day, "train"), of_day)
    return found


def learned(asked: Recipe, given: argparse.Namespace, data: Path, day: date, line: Path) -> dict[str, Any]:
    """Follow a day, and return what its increments say: their AUCs' mean by rows, and the tables at its end."""
    live, every = given.runs / f"live-{asked.name}", given.every * HOUR
    live.mkdir(exist_ok=True)
    manifest.write_json(live / minutes.STREAM, {"lanes": 1, "every_s": every, "columns": {}})
    rows = pq.read_table(data / f"date={day}" / "part-0.parquet").sort_by("timestamp")
    starts = (rows["timestamp"].to_numpy() // 1000 + UTC8) // every * every
    begin = (day - date(1970, 1, 1)).days * 86_400
    for start in range(begin, begin + 86_400, every):
        first, end = np.searchsorted(starts, [start, start + every])
        if not (live / minutes.folder_of(start) / "lane=0" / manifest.MANIFEST).exists():
            close(live, start, rows.slice(first, end - first), every)
    follow.follow(asked, given.runs, str(given.runs / f"models-{asked.name}"), every, once=True)
    lines = [each for each in runlog.read(line) if each["kind"] in ("eval", "increment")]
    pairs = [(a, b) for a, b in zip(lines, lines[1:], strict=False) if (a["kind"], b["kind"]) == ("eval", "increment")]
    of_day = [(judged, taken) for judged, taken in pairs if begin <= taken["start"] < begin + 86_400]
    aucs = {}
    for task in TASKS:
        judged = [(of[f"{task}.auc"], taken["rows"]) for of, taken in of_day if of[f"{task}.auc"] is not None]
        aucs[task] = sum(auc * rows for auc, rows in judged) / sum(rows for _, rows in judged)
    return {
        "rows": sum(taken["rows"] for _, taken in of_day),
        "auc": aucs,
        "took_s": sum(taken["took_s"] for _, taken in of_day),
        "tables": of_day[-1][1]["tables"],
    }


def page(found: dict[str, list[dict[str, Any]]], given: argparse.Namespace) -> str:
    """Return the results as a page."""
    pairs = list(zip(*(found[kind] for kind in KINDS), strict=True))
    head = "| day | rows | " + " | ".join(f"{t} mix | {t} table" for t in TASKS) + " | "
    head += " | ".join(f"{name} lost mix | {name} lost table" for name in TABLES)
    head += " | " + " | ".join(f"{name} held | {name} admitted | {name} gone" for name in TABLES) + " |"
    lines, before = [], dict.fromkeys(TABLES, (0, 0))
    for mixed, own in pairs:
        cells = [own["day"], f"{own['rows']:,}"]
        cells += [f"{each['auc'][task]:.4f}" for task in TASKS for each in (mixed, own)]
        cells += [f"{each['lost'][name]:.1%}" for name in TABLES for each in (mixed, own)]
        for name in TABLES:
            now = own["tables"][name]
            came = (now["admitted"], now["evicted"] + now["expired"])
            cells += [f"{now['ids']:,}", *(f"{a - b:,}" for a, b in zip(came, before[name], strict=True))]
            before[name] = came
        lines.append(f"| {' | '.join(cells)} |")
    gains = []
    for task in TASKS:
        gained = np.array([own["auc"][task] - mixed["auc"][task] for mixed, own in pairs])
        ahead = f"ahead on {(gained > 0).sum()} of {len(gained)} days"
        gains.append(f"{task} {gained.mean():+.4f} ± {gained.std():.4f} ({ahead})")
    took = {kind: [(each["rows"], each["took_s"]) for each in found[kind]] for kind in KINDS}
    rates = [f"{kind} {sum(rows for rows, _ in each) / sum(s for _, s in each):,.0f}" for kind, each in took.items()]
    return f"""# Rows for ids of their own against a hash, through a follower: {given.recipe.stem}

{made(versions(), given)}
A two-core CPU VM (AMD EPYC) that other work shared.

Prequential AUC (an increment is judged before it is learned; increments' AUCs by their rows), table - mix, mean ±
deviation over days: {"; ".join(gains)}.

Judged and learned rows per second of the clock: {", ".join(rates)}.

![AUC, what is lost, and ids that came and went, by day]({given.out.stem}.png)

{head}
{rule(head)}
{chr(10).join(lines)}

"held": ids with a row of their own when the day has ended; "gone": evicted or expired on it, of the first day also in
the night before.
"""


def draw(found: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draw, by day, the AUCs, the shares that are lost, and the ids that are held, have come and have gone."""
    figure = Figure((13, 10), layout="constrained")
    aucs, lost, held = figure.subplots(3, 1)
    panels.panel(aucs, "prequential AUC", "", "", 0.8)
    panels.panel(lost, "lookups of known ids whose row is not theirs alone", "", "", 0.8)
    panels.panel(held, "table: ids with a row; admitted so far (dotted)", "day", "", 0.8)
    x = range(1, len(found["mix"]) + 1)
    for kind, dashes in zip(KINDS, ("--", "-"), strict=True):
        for number, task in enumerate(TASKS):
            y = [each["auc"][task] for each in found[kind]]
            aucs.plot(x, y, dashes, label=f"{task}, {kind}", **panels.task_style(number))
        for number, name in enumerate(TABLES):
            y = [each["lost"][name] for each in found[kind]]
            lost.plot(x, y, dashes, label=f"{name}, {kind}", **panels.task_style(number))
    for number, name in enumerate(TABLES):
        style = panels.task_style(number)
        held.plot(x, [each["tables"][name]["ids"] for each in found["table"]], label=name, **style)
        held.plot(x, [each["tables"][name]["admitted"] for each in found["table"]], ":", **style)
    for axis in (aucs, lost, held):
        panels.legend_beside(axis)
    return figure


if __name__ == "__main__":
    main()
