"""The commands below `livetrain data` that make a world and let it happen."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from livetrain.cli.arguments import here
from livetrain.cli.terminal import err, out, say


def simulate(
    users: Annotated[str, typer.Option(help="How many users: 500, 20k, 1.5m.")],
    days: Annotated[int, typer.Option(help="How many days of log, from 2025-05-25 on.")],
    folder: Annotated[
        Path,
        typer.Option("--out", parser=here, metavar="PATH", help="New folder for kuailive/, kuailive-m3/ and truth/."),
    ],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 7,
    conflict: Annotated[
        float,
        typer.Option(help="0..1: the interest behind clicks and that behind gifts correlate with 1 - 2 CONFLICT."),
    ] = 0.5,
    transfer: Annotated[
        float, typer.Option(help="0..1: how a user's interests in short videos correlate with those in live rooms.")
    ] = 0.7,
    social: Annotated[
        float, typer.Option(help="0..1: share of what is shown that leads where a friend was; 0: no friends.")
    ] = 0.0,
    content: Annotated[
        float,
        typer.Option(help="0..1: how much of a streamer's vector tells who that is; 0: no vectors, no interests."),
    ] = 0.0,
) -> None:
    """Write the logs of a simulated world in KuaiLive's and KuaiLive-M3's form, with every label's true probability.

    Example: `livetrain data simulate --users 20k --days 14 --seed 7 --out data/simulated`
    """
    from livetrain.trainers.data import simulator

    settings = simulator.Settings(simulator.count(users), days, seed, conflict, transfer, social, content)
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("simulating", total=None)
        rows = simulator.simulate(settings, folder, lambda done, total: bar.update(task, completed=done, total=total))
    exposures = rows["kuailive/click.csv"] + rows["kuailive/negative.csv"]
    plays = rows["kuailive-m3/photo_play.parquet"]
    say(f"{folder}: {exposures:,} live exposures and {plays:,} plays of short videos; kuailive/, kuailive-m3/, truth/")
    say("next, samples that recipes such as configs/recipes/din_simulated.yaml train on:")
    parts = [*(["people"] if social else []), *(["vectors", "interests"] if content else [])]
    more = "".join(f" --with {part}" for part in parts)
    say(f"  livetrain data kuailive --raw {folder / 'kuailive'} --out {folder}-samples{more}")


def replay(
    world: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `simulate` wrote.", show_default=False)],
    folder: Annotated[
        Path, typer.Option("--out", parser=here, metavar="PATH", help="Folder for the messages: new, or to go on with.")
    ],
    speed: Annotated[
        float, typer.Option(help="1: as it came; 600: ten minutes in a second; 0: without waiting.")
    ] = 600.0,
    days: Annotated[
        str | None, typer.Option(help="Only these days, such as 2025-06-06..2025-06-07.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of delays, and of what is late or comes twice.")] = 7,
    delay: Annotated[float, typer.Option(help="Seconds from an event to its message's arrival, in the mean.")] = 2.0,
    twice: Annotated[float, typer.Option(help="0..1: share of the messages that come twice.")] = 0.002,
    late: Annotated[float, typer.Option(help="0..1: share of the messages that are late, by up to an hour.")] = 0.001,
) -> None:
    """Let a simulated world happen: its messages land in files, in the order of time, for `livetrain stream` to read.

    A replay that was killed goes on when it is started again.

    Example: `livetrain data replay data/simulated --out data/topics --speed 600`
    """
    from livetrain.trainers.data.simulator import oracle
    from livetrain.trainers.data.simulator import replay as replaying

    how = replaying.Replay(seed, delay, twice, late)
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("replaying", total=None)

        def told(arrived: replaying.Arrived) -> None:
            bar.update(task, description=f"replayed up to {replaying.shown(arrived.end)}")

        come = replaying.replay(world, folder, how, speed, oracle.parse_days(days), told)
    say(f"{folder}: what came in {come:,} minutes; livetrain stream {folder / 'stream.yaml'} --out DIR makes samples")


def oracle(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `simulate` wrote.", show_default=False)],
    days: Annotated[
        str | None, typer.Option(help="Only these days, such as 2025-06-06..2025-06-07.", show_default=False)
    ] = None,
) -> None:
    """Print the best AUC, GAUC and UAUC that any model can reach on a simulated world, per task.

    Example: `livetrain data oracle data/simulated --days 2025-06-06..2025-06-07`
    """
    from livetrain.trainers.data.simulator import oracle as truth

    out.print(truth.oracle_table(truth.measure(folder, truth.parse_days(days))))
