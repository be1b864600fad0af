"""The commands of a model that learns all day: follow."""

from pathlib import Path
from typing import Annotated

import typer

from livetrain.cli.arguments import Overrides, interrupts_told, load
from livetrain.cli.terminal import loaded
from livetrain.configs.duration import seconds


def follow(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file with data.days and follow.")],
    publish: Annotated[str, typer.Option(help="Folder or URI of the published versions, which servers read.")],
    overrides: Overrides = None,
    every: Annotated[str, typer.Option(metavar="DURATION", help="Span of events that is learned in one go.")] = "5m",
    runs: Annotated[Path, typer.Option(help="Folder of the nights' runs; the follower's own comes there too.")] = Path(
        "runs"
    ),
    nights: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder or URI that `nightly` publishes to, so that no night is followed which was taken back.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[int, typer.Option(min=1, max=10**6, help="Published versions that stay.")] = 7,
    once: Annotated[
        bool, typer.Option("--once", help="End when all minutes that are closed are learned and published.")
    ] = False,
) -> None:
    """Learn minutes of a stream as they come, between two nights, and publish what was learned.

    It begins with the newest night's model and the first minute after its data, judges each increment before it learns
    it, and starts over from the next night by itself. Where figures raise an alarm nothing is published until they are
    back; learning goes on. Started again it goes on where it was.

    Example: `livetrain follow recipe.yaml --publish /models/live --every 5m --runs /shared/runs`
    """
    settled = load(recipe, overrides)
    settled = settled.model_copy(update={"name": settled.name or recipe.stem})
    length = seconds(every, "--every")
    loaded("livetrain.cluster.stream.follow")
    from livetrain.cluster.stream import follow as follower

    with interrupts_told():
        follower.follow(settled, runs, publish, length, nights, keep, once)
