"""The memory of what comes after training, for tables three times as large as the bound that is promised for it.

    livetrain train configs/recipes/dnn_simulated.yaml name=small
    python benchmarks/tables.py runs/small --table user

A run's table is widened to --rows and a checkpoint of it written, its rows as they begin: memory does not depend on
what was learned. Then every kind of work is done by a process of its own, which says when it is ready: the anonymous
memory that it has then is that of an idle process, and while it works its own (`RssAnon` in /proc, every 2 ms)
is followed from outside. Pages of mapped files do not count, for the system drops them when it wants them. The bound is
dense part + 2 blocks + idle process; of work on a sharded model (saving, a warm start) the process is idle when its
tables are there.
"""

import argparse
import datetime
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

from livetrain.trainers.runtime.process import set_up

set_up()

import torch  # noqa: E402

from livetrain.configs.load import dump_recipe  # noqa: E402
from livetrain.configs.schema import Recipe  # noqa: E402
from livetrain.modules.model import Model  # noqa: E402
from livetrain.trainers.export import export, prediction, prediction_files, publish  # noqa: E402
from livetrain.trainers.runtime import manifest, ranks, run_folder  # noqa: E402
from livetrain.trainers.runtime.versions import versions  # noqa: E402
from livetrain.trainers.train import checkpoint, memory, warm_start, writing  # noqa: E402
from livetrain.trainers.train.sharding import shard  # noqa: E402

Ready = Callable[[], None]
CPU, MIB = torch.device("cpu"), 2**20


def widened(run: Path, table: str, rows: int, to: Path) -> Recipe:
    """Copy a run with a larger table; return its recipe."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("export", "*.scratch"))
    recipe = run_folder.recipe_of(run)
    tables = recipe.tables | {table: recipe.tables[table].model_copy(update={"rows": rows})}
    recipe = recipe.model_copy(update={"tables": tables})
    (to / "config.yaml").write_text(dump_recipe(recipe))
    return recipe


def save(ready: Ready, recipe: Recipe, run: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of live tables, as where no copy fits."""
    with ranks.alone(cuda=False):
        sharded = shard(recipe, CPU)
        ready()
        checkpoint.write(checkpoint.state(sharded), run, content | {"recipe": recipe.model_dump(mode="json")}, None)


def resume(ready: Ready, recipe: Recipe, run: Path) -> None:
    with ranks.alone(cuda=False):
        sharded = shard(recipe, CPU)
        ready()
        checkpoint.load(sharded, recipe, run_folder.find_checkpoint(run, "best"))


def grow(ready: Ready, recipe: Recipe, run: Path, table: str) -> None:
    """Begin with the run's tables, one of them twice as long."""
    longer = recipe.tables[table].model_copy(update={"rows": 2 * recipe.tables[table].rows})
    recipe = recipe.model_copy(update={"tables": recipe.tables | {table: longer}})
    with ranks.alone(cuda=False):
        sharded = shard(recipe, CPU)
        ready()
        warm_start.load(sharded, recipe, run_folder.find_checkpoint(run, "best"))


def exported(ready: Ready, run: Path, out: Path, quantize: str, tables: str) -> None:
    recipe = run_folder.recipe_of(run)
    recipe = recipe.model_copy(update={"export": recipe.export.model_copy(update={"tables": tables})})
    with mock.patch.object(run_folder, "recipe_of", return_value=recipe):
        ready()
        export.export(run, out=out, quantize=quantize)


def published(ready: Ready, out: Path, where: Path) -> None:
    ready()
    publish.publish(out, str(where), "1", keep=1)


def predicted(ready: Ready, run: Path, source: str, out: Path) -> None:
    recipe = run_folder.recipe_of(run)
    ready()
    part = f"date={recipe.data.days.test.split('..')[0]}" if recipe.data.days else "test"
    prediction_files.predict(run, f"{recipe.data.path}/{part}", out, source=source, keep=[])


def laid(ready: Ready, run: Path, recipe: Recipe) -> None:
    """Make the model of a checkpoint whose tables are too large for memory, as predicting by one does."""
    ready()
    with mock.patch.object(export, "MAPPED", 0):
        prediction.Predictor(prediction.weights_of(run))


def _child(pipe: Connection, work: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)

    def ready() -> None:
        pipe.send("ready")
        pipe.recv()

    work(ready, *arguments)
    pipe.send("done")


def measure(work: Callable, *arguments: Any) -> tuple[int, int, float]:
    """Return what a process holds when it is ready and at most while it works, in bytes, and its processor seconds."""
    context = multiprocessing.get_context("fork")  # everything is imported once
    ours, theirs = context.Pipe()
    child = context.Process(target=_child, args=(theirs, work, arguments))
    child.start()
    theirs.close()
    assert ours.recv() == "ready"
    idle = most = _anonymous(child.pid)
    before = _seconds(child.pid)
    ours.send("go")
    while not ours.poll(0.002):
        most = max(most, _anonymous(child.pid))
    seconds = _seconds(child.pid) - before
    ours.recv()
    child.join()
    return idle, most, seconds


def _anonymous(process: int | None) -> int:
    with open(f"/proc/{process}/status", encoding="utf-8") as lines:
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def _seconds(process: int | None) -> float:
    words = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--table", default="user")
    parser.add_argument("--rows", type=int, help="by default as many as make the tables 3.2 times the bound")
    parser.add_argument("--folder", type=Path, help="for files, on a disk (the system's temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/tables.md")
    given = parser.parse_args()
    small = run_folder.recipe_of(given.run)
    model = Model(small, device="meta", tables_device="meta")
    dense = sum(part.numel() * part.element_size() for part in (*model.dense.parameters(), *model.dense.buffers()))
    idle, _, _ = measure(nothing)
    bound = idle + dense + 2 * writing.BLOCK
    row = memory.ELEMENT[small.tables[given.table].dtype] * small.tables[given.table].dim
    rows = given.rows or int(3.2 * bound) // row
    lines = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        place, run = Path(folder), Path(folder) / "run"
        recipe = widened(given.run, given.table, rows, run)
        size = export._bytes(recipe, "none")
        found = manifest.read(run_folder.find_checkpoint(run, "best"))
        assert found is not None
        content = {key: value for key, value in found.items() if key != "files"}
        work: dict[str, tuple] = {"checkpoint, written without a copy": (save, recipe, run, content)}
        work["checkpoint, resumed"] = (resume, recipe, run)
        work["warm start, the table twice as long"] = (grow, recipe, run, given.table)
        for quantize in ("none", "float16", "int8"):
            kind = "" if quantize == "none" else f", {quantize}"
            work[f"export, tables mapped{kind}"] = (exported, run, place / quantize, quantize, "mapped")
        work["publish, to a folder"] = (published, place / "none", place / "served")
        work["predict by the mapped export"] = (predicted, run, str(place / "none"), place / "scores")
        work["predict by the checkpoint, tables in files"] = (laid, run, recipe)
        work["export, tables inside (they fit)"] = (exported, run, place / "inside", "none", "inside")
        for name, (function, *arguments) in work.items():
            before, most, seconds = measure(function, *arguments)
            limit = before + dense + 2 * writing.BLOCK
            cells = (before, most, most - before, limit)
            shown = " | ".join(f"{cell / MIB:,.0f}" for cell in cells)
            lines.append(f"| {name} | {shown} | {'yes' if most <= limit else 'no'} | {seconds:.1f} |")
            print(lines[-1], flush=True)
    page = "\n".join(
        [
            "# Memory of checkpoints and exports of large tables\n",
            f"Command: `python {' '.join(sys.argv)}`, {datetime.date.today()}, two-core CPU VM (AMD EPYC).",
            f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}.\n",
            f"Tables: {size / MIB:,.0f} MiB in all, {rows:,} rows of {given.table}; a block: {writing.BLOCK / MIB:.0f} "
            f"MiB; the dense part: {dense / MIB:.1f} MiB; an idle process: {idle / MIB:,.0f} MiB. So dense part + 2 "
            f"blocks + idle process are {bound / MIB:,.0f} MiB, and the tables are {size / bound:.1f} times that.\n",
            "| work, one process each | idle, MiB | most, MiB | more than idle, MiB | bound, MiB | within | "
            "processor time, s |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *lines,
        ]
    )
    given.out.write_text(page + "\n")


def nothing(ready: Ready) -> None:
    """Do nothing, with everything imported."""
    ready()


if __name__ == "__main__":
    main()
