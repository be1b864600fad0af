"""Rows for ids of their own against a hash, at equal memory, over nights in which rooms, streamers and users drift.

    livetrain data simulate --users 3k --days 21 --out data/month
    livetrain data kuailive --raw data/month/kuailive --out data/month-simulated
    python benchmarks/ids.py --data data/month-simulated

Night after night each learns from one day more, begins with the night before, and is measured on the day after next.
Rooms live for hours; each day a twentieth of the users and streamers come anew under other ids (`drifted`), as none
leave the simulated world. A table of ids has 13 bytes per row for its map, 29 with a threshold: the hashed table of
equal memory has so many rows more. "Lost" is the share of a test day's lookups of ids that training has met
whose row is not theirs alone: shared with another id that was met, or one of the shared rows.

A night that is done is not trained again: the benchmark may be stopped and started. Rates are measured at the end, on
the last night: 20 steps of one kind, 20 of the other, and so on, by the processor time of this process, which other
processes disturb least.
"""

import argparse
import itertools
import json
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from quality import made, rule
from trainer import Ours

from livetrain.cluster import launch
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe, Table
from livetrain.modules.mixing import mix
from livetrain.modules.tables import hashing
from livetrain.modules.tables.ids import EMPTY
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import scan
from livetrain.trainers.export import ids as listing
from livetrain.trainers.runtime import ranks, run_folder
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train import ids

KINDS = ("mix", "table", "online")
TABLES = ("user", "streamer", "room")
PERIOD = 20  # days after which a user or a streamer has another id
FIRST = date(2025, 5, 25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("configs/recipes/din_simulated_ids.yaml"))
    parser.add_argument("--data", type=Path, default=Path("data/month-simulated"))
    parser.add_argument("--rows", type=int, nargs=3, default=[3072, 2048, 4096], help="of user, streamer and room")
    parser.add_argument("--nights", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=20, help="of 20 steps of each kind, for the rates")
    parser.add_argument("--ranks", type=int, default=1, help="processes beside each other, for the rates")
    parser.add_argument("--rates", action="store_true", help="these alone, without nights")
    parser.add_argument("--workers", type=int, default=0, help="Ray workers; 0 trains inside this process")
    parser.add_argument("--runs", type=Path, default=Path("runs/ids"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ids.md"))
    given = parser.parse_args()
    torch.set_num_threads(threads())
    data = drifted(given.data, given.runs / "drifted")
    if given.rates:
        print(told(together(given, data)))
        return
    found = {kind: nights(kind, given, data) for kind in KINDS}
    given.out.write_text(page(found, together(given, data), given))
    print(given.out.read_text())


def drifted(data: Path, out: Path) -> Path:
    """Write the samples with ids of users and streamers that live for `PERIOD` days, each from a day of its own on."""
    for day in sorted(data.glob("date=*")):
        place = out / day.name / "part-0.parquet"
        if place.exists():
            continue
        number = (date.fromisoformat(day.name[5:]) - FIRST).days
        table = pq.read_table(sorted(day.glob("*.parquet")))
        for name in ("user", "streamer", "live_streamer"):
            column = table[name].combine_chunks()
            if pa.types.is_list(column.type):
                values = pa.ListArray.from_arrays(column.offsets, aged(column.values, number))
            else:
                values = aged(column, number)
            table = table.set_column(table.schema.get_field_index(name), name, values)
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, place, row_group_size=4096)
    return out


def aged(values: pa.Array, day: int) -> pa.Array:
    """Return ids with the number of their life in their upper bits."""
    known = np.asarray(values.fill_null(0)).astype(np.int64)
    life = (day + mix(known.astype(np.uint64)).astype(np.int64) % PERIOD) // PERIOD
    return pa.array(known + (life << 40), mask=np.asarray(values.is_null()))


def recipe(kind: str, given: argparse.Namespace, data: Path, night: int) -> Recipe:
    """Return the recipe of a night: a day to learn from, the next to choose by, the one after to measure on."""
    days = [str(FIRST + timedelta(days=night + n)) for n in range(3)]
    changes: dict = {
        "name": f"{kind}-{night:02}",
        "data.path": str(data),
        "data.days": {split: f"{day}..{day}" for split, day in zip(("train", "valid", "test"), days, strict=True)},
        "cluster.workers": given.workers,
        "export.after_training": False,
        "train.evaluate_every": 1.0,
    }
    if night:
        changes["train.warm_start"] = {"run": str(given.runs / f"{kind}-{night - 1:02}")}
    made_for = load_recipe(given.recipe, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    tables = dict(made_for.tables)
    for name, rows in zip(TABLES, given.rows, strict=True):
        table = tables[name].model_copy(update={"rows": rows})
        if kind == "mix":
            table = hashed(table)
        if kind == "online":
            table = table.model_copy(update={"assign": "online"})
        tables[name] = table
    return made_for.model_copy(update={"tables": tables})


def hashed(table: Table) -> Table:
    """Return a table by a hash that takes the memory of one of ids."""
    own = 4 * table.dim + 4  # weights and the row's accumulator
    rows = table.rows * (own + 13 + (16 if table.threshold > 1 else 0)) // own
    return table.model_copy(update={"hash": "mix", "admission": None, "eviction": None, "rows": rows})


def nights(kind: str, given: argparse.Namespace, data: Path) -> list[dict]:
    """Train all nights of one kind of table; return what each has found."""
    out, met = [], {name: np.zeros(0, np.int64) for name in TABLES}
    for night in range(given.nights):
        made_for = recipe(kind, given, data, night)
        result = run_folder.finished(given.runs / made_for.name) or launch.train(made_for, given.runs)
        counted = {
            name: made_for.tables[name].model_copy(update={"hash": "table", "assign": "before"}) for name in TABLES
        }
        asked = made_for.model_copy(update={"tables": made_for.tables | counted})
        lookups = {}
        for split in ("train", "test"):
            ((_, lookups[split]),) = ids.intervals(Source.open(made_for, split), asked)
        met = {name: np.union1d(met[name], lookups["train"][name].ids) for name in TABLES}
        held = listing.kept(given.runs / made_for.name, "best") if kind != "mix" else {}
        own = {name: held[name].map.keys if held else None for name in TABLES}
        out.append(
            {
                "result": result,
                "met": {name: len(ids_) for name, ids_ in met.items()},
                "lost": {n: lost(lookups["test"][n], met[n], made_for.tables[n].rows, own[n]) for n in TABLES},
            }
        )
    return out


def rates(given: argparse.Namespace, data: Path) -> dict[str, np.ndarray]:
    """Return milliseconds of processor time per step, (rounds,) of each kind."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with ranks.alone(cuda=False):  # but where this is one of several
        ours = {}
        for kind in found:
            made_for = recipe(kind, given, data, given.nights - 1)
            source = Source.open(made_for, "train")
            one = ours[kind] = Ours(made_for, scan(source, made_for))
            ids.assign(one.trainer.sharded, made_for, source)
            one.batches = itertools.chain.from_iterable(map(one.trainer.reader.batches, itertools.count()))
            one.steps(20)
        for each in range(given.rounds):
            for kind in KINDS if each % 2 else KINDS[::-1]:
                start = time.process_time()
                ours[kind].steps(20)
                found[kind].append((time.process_time() - start) / 20 * 1e3)
    return {kind: np.array(each) for kind, each in found.items()}


def together(given: argparse.Namespace, data: Path) -> dict[str, np.ndarray]:
    """Return `rates`, of several processes the sum of theirs."""
    if given.ranks == 1:
        return rates(given, data)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one_of, (given, data, Path(folder)), nprocs=given.ranks)
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(given.ranks)]
    return {kind: np.sum([each[kind] for each in found], axis=0) for kind in KINDS}


def _one_of(rank: int, given: argparse.Namespace, data: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=given.ranks)
    found = rates(given, data)
    (folder / f"{rank}.json").write_text(json.dumps({kind: each.tolist() for kind, each in found.items()}))
    dist.barrier()


def told(times: dict[str, np.ndarray]) -> str:
    """Say how long steps take, and the rates that follow."""
    said = [f"{kind} {np.median(each):.2f} ms, least {each.min():.2f}" for kind, each in times.items()]
    apart = {kind: np.quantile(times["mix"] / each, (0.25, 0.5, 0.75)) for kind, each in times.items() if kind != "mix"}
    ratios = [f"{kind} {middle:.2f} ({low:.2f} and {high:.2f})" for kind, (low, middle, high) in apart.items()]
    return (
        f"Processor time of a step, reading included, median of {len(times['mix'])} interleaved rounds: "
        f"{'; '.join(said)}. Rows per second of it, with mix as one: {', '.join(ratios)} (quartiles)."
    )


def lost(test: ids.Sights, met: np.ndarray, rows: int, keys: torch.Tensor | None) -> float:
    """Return the share of a day's lookups of ids that were met before whose row is not theirs alone."""
    known = np.isin(test.ids, met)
    asked, weight = test.ids[known], test.counts[known]
    if keys is not None:
        alone = np.isin(asked, keys[keys != EMPTY].numpy())
    else:
        each = np.bincount(hashing.row(torch.from_numpy(met), rows, False).numpy(), minlength=rows)
        alone = each[hashing.row(torch.from_numpy(asked), rows, False).numpy()] == 1
    return float(weight[~alone].sum() / max(weight.sum(), 1))


def page(found: dict[str, list[dict]], times: dict[str, np.ndarray], given: argparse.Namespace) -> str:
    """Return the results as a page."""
    tasks = [key[5:-4] for key in found["mix"][0]["result"] if key.startswith("test.") and key.endswith(".auc")]
    tasks = [task for task in tasks if "." not in task]
    head = "| night | " + " | ".join(f"{t} {kind}" for t in tasks for kind in KINDS) + " | "
    head += " | ".join(f"{name} lost {kind}" for name in TABLES for kind in KINDS) + " |"
    lines = []
    for night, of in enumerate(zip(*(found[kind] for kind in KINDS), strict=True)):
        aucs = [f"{each['result'][f'test.{task}.auc'] or 0:.4f}" for task in tasks for each in of]
        shares = [f"{each['lost'][name]:.1%}" for name in TABLES for each in of]
        lines.append(f"| {night} | {' | '.join([*aucs, *shares])} |")
    gains = []
    for kind in KINDS[1:]:
        for task in tasks:
            key = f"test.{task}.auc"
            both = [(a["result"][key], b["result"][key]) for a, b in zip(found["mix"], found[kind], strict=True)]
            gained = np.array([own - mixed for mixed, own in both if own and mixed])
            gains.append(
                f"{kind} {task} {gained.mean():+.4f} ± {gained.std():.4f} (ahead in {(gained > 0).sum()} of "
                f"{len(gained)})"
            )
    held = "; ".join(
        f"{kind} {name} {of[name]['ids']:,} of {of[name]['rows']:,}, {of[name]['admitted']:,} admitted, "
        f"{of[name]['evicted']:,} evicted, {of[name]['expired']:,} expired, {of[name]['refused']:,} refused"
        for kind in KINDS[1:]
        for of in [found[kind][-1]["result"]["tables"]]
        for name in TABLES
    )
    return f"""# Rows for ids of their own against a hash: {given.recipe.stem}

{made(versions(), given)}

Test AUC, less that of mix, mean ± deviation over {len(lines)} nights: {"; ".join(gains)}.

{told(times)} Other processes shared the machine.

Ids met by the last night: {", ".join(f"{count:,} of {name}" for name, count in found["mix"][-1]["met"].items())}. \
Held then: {held}.

{head}
{rule(head)}
{chr(10).join(lines)}
"""


if __name__ == "__main__":
    main()
