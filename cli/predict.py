"""The command `livetrain predict`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from livetrain import api
from livetrain.cli.arguments import Ray
from livetrain.cli.terminal import err, loaded, say
from livetrain.configs.errors import BadInput


class Side(StrEnum):
    user = "user"
    item = "item"


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/din_ml1m.")],
    data: Annotated[str, typer.Option(help="A Parquet file, or a folder of them; a path or a URI.")],
    out: Annotated[Path, typer.Option(help="Folder for the predictions: new, or to go on with.")],
    checkpoint: Annotated[
        str, typer.Option(metavar="best|last|DIR", help="Which checkpoint predicts, or the folder of an export.")
    ] = "best",
    keep: Annotated[
        str | None, typer.Option(metavar="COLUMN,...", help="Columns that pass through, by default all but lists.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only this many rows per value of --group, the best.")] = None,
    group: Annotated[str | None, typer.Option(help="The column for --top, such as user.")] = None,
    task: Annotated[str | None, typer.Option(help="The task for --top, by default the first.")] = None,
    vectors: Annotated[Side | None, typer.Option(help="Write the vectors of this side of a model with towers.")] = None,
    neighbours: Annotated[
        int | None, typer.Option(min=1, help="Write this many nearest rows of --items, of a model with towers.")
    ] = None,
    items: Annotated[str | None, typer.Option(help="Parquet with the items' features, for --neighbours.")] = None,
    key: Annotated[str | None, typer.Option(help="The column of --items that tells them apart.")] = None,
    address: Ray = None,
) -> None:
    """Score the rows of Parquet files, by a checkpoint or an exported file.

    Every file of the data becomes one file of predictions: its rows in their order, the columns that pass through, and
    TASK_score per task. A call that was killed goes on when it is made again.

    Example: `livetrain predict runs/din_ml1m --data data/ml-1m/test --out scores --top 10 --group user`
    """
    if (top is None) != (group is None):
        raise BadInput("--top, --group: one needs the other, as in --top 10 --group user")
    if len({neighbours is None, items is None, key is None}) > 1:
        raise BadInput("--neighbours, --items, --key: give all three, as in --neighbours 10 --items items --key item")
    if sum(option is not None for option in (top, vectors, neighbours)) > 1:
        raise BadInput("--top, --vectors, --neighbours: one at a time")
    trained = api.Run(run)
    loaded("livetrain.trainers.export.prediction_files")
    with Progress(console=err, transient=True) as bar:
        line = bar.add_task("scoring")
        found = api.predict(
            trained,
            data,
            out,
            source=checkpoint,
            keep=None if keep is None else keep.split(","),
            top=None if top is None or group is None else (top, group),
            task=task,
            vectors=vectors.value if vectors else None,
            neighbours=None if neighbours is None or items is None or key is None else (neighbours, items, key),
            address=address,
            progress=lambda done, every: bar.update(line, completed=done, total=every),
        )
    say(f"{out}: {found['rows']:,} rows in {len(found['files'])} files")
