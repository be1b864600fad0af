"""`livetrain store`: the features that a server looks up."""

import json
from pathlib import Path
from typing import Annotated

import typer

from livetrain.cli.terminal import note, say

app = typer.Typer(no_args_is_help=True)
Place = Annotated[
    str, typer.Option("--store", metavar="PATH|URL", help="A folder, or redis://HOST:PORT/DB.", show_default=False)
]


@app.command()
def fill(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DAY|DATA|RUN|MINUTES",
            help="A prepared day of an event log, its data set (the newest day), a run on it, or a stream's folder.",
            show_default=False,
        ),
    ],
    place: Place,
    keep_days: Annotated[
        int, typer.Option(min=1, help="Users of whom nothing was seen for so many days are left out.")
    ] = 180,
    runs: Annotated[Path, typer.Option(help="Folder of run folders, where RUN lies.")] = Path("runs"),
) -> None:
    """Put what is known after a day into a store. Requests see all of it or what was there before.

    Example: `livetrain store fill data/live --store stores/live`
    """
    from livetrain.trainers.data.store.fill import fill as filled
    from livetrain.trainers.data.store.kv import open_store

    store = open_store(place, create=True)
    found = filled(store, source, keep_days, runs, note)
    store.close()
    for kind, count in found.keys.items():
        say(f"{kind}: {count:,} ids, {found.bytes[kind] / count:,.0f} bytes each")
    say(f"generation {found.generation} is in use; {found.gone:,} users were left out as gone")


@app.command()
def get(
    kind: Annotated[str, typer.Argument(help="user, or what the event log calls its items and authors.")],
    number: Annotated[int, typer.Argument(metavar="ID")],
    place: Place,
) -> None:
    """Show what a store holds of one id, as JSON.

    Example: `livetrain store get user 17 --store stores/live`
    """
    from livetrain.trainers.data.store.kv import open_store
    from livetrain.trainers.data.store.look import look

    store = open_store(place)
    say(json.dumps(look(store, kind, number), ensure_ascii=False))
    store.close()
