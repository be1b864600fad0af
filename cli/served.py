"""`livetrain skew` and `livetrain explain`: what a server's log of requests tells."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from livetrain.cli.terminal import WORSE, loaded, say
from livetrain.cli.terminal import out as screen
from livetrain.configs.errors import BadInput

if TYPE_CHECKING:
    from livetrain.configs.schema import Recipe

Log = Annotated[
    str, typer.Argument(metavar="LOG", help="The folder of a server's log, or of a day of it.", show_default=False)
]
Runs = Annotated[Path, typer.Option(help="Folder of run folders, where the run of a published model lies.")]


def skew(
    log: Log,
    samples: Annotated[
        Path, typer.Option(metavar="DIR", help="A prepared day, or a split: Parquet.", show_default=False)
    ],
    recipe: Annotated[
        Path, typer.Option(metavar="RECIPE|RUN", help="Whose features are compared.", show_default=False)
    ],
    within: Annotated[
        float, typer.Option(min=0, help="Seconds by which a request may be earlier than its exposure.")
    ] = 60,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(metavar="FEATURE=NUMBER", help="A difference that is none; else a millionth of the number."),
    ] = None,
    limit: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a feature's rows that may differ; beyond, the exit code is 3.")
    ] = 0.0,
    out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write it all there.")] = None,
) -> None:
    """Find where a day of logged requests differs from its samples.

    Example: `livetrain skew logs/rank --samples data/live/date=2026-11-29 --recipe runs/din`
    """
    loaded("livetrain.trainers.online.skew")
    from livetrain.trainers.online.samples import asked, files_of
    from livetrain.trainers.online.skew import skew as compared

    tolerances = {}
    for each in tolerance or []:
        name, _, number = each.partition("=")
        try:
            tolerances[name] = float(number)
        except ValueError:
            raise BadInput(f"--tolerance {each}: write FEATURE=NUMBER, as room_age=2") from None
    files = files_of(samples)
    how = asked(samples, files[0], within, tolerances)
    found = compared(log, files, _recipe(recipe), how)
    found["limit"] = limit
    table = Table(title=f"{found['joined']:,} of {found['samples']:,} samples were found in the log")
    for heading in ("feature", "rows", "differ", "largest", "how", "as"):
        table.add_column(heading, justify="left" if heading in ("feature", "how", "as") else "right")
    worse = []
    for name, each in sorted(found["features"].items(), key=lambda pair: -pair[1]["share"]):
        first: dict[str, Any] = next(iter(each["examples"]), {})
        told = f"{_cut(first['logged'])}, not {_cut(first['sample'])}" if first else ""
        kinds = ", ".join(f"{kind} ({count:,})" for kind, count in each["kinds"].items())
        table.add_row(name, f"{each['rows']:,}", f"{each['share']:.2%}", f"{each['largest']:.3g}", kinds, told)
        worse += [name] if each["share"] > limit else []
    if not found["joined"]:
        raise BadInput(
            f"{log}: none of its {found['logged']:,} candidates is a sample of {samples}; name the same day, or a "
            "larger --within"
        )
    screen.print(table)
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if worse:
        say(f"more than {limit:.2%} of the rows differ in {', '.join(worse)}")
        raise typer.Exit(WORSE)
    say("no feature differs in more rows than --limit allows")


def explain(
    log: Log,
    request: Annotated[str, typer.Option(metavar="ID", help="Of the request.", show_default=False)],
    run: Annotated[str, typer.Option(metavar="RUN|PUBLISHED", help="The model that answered it.", show_default=False)],
    candidate: Annotated[
        int | None, typer.Option(metavar="ITEM", help="Whose parts are told, by default the first place's.")
    ] = None,
    item: Annotated[
        str | None, typer.Option(metavar="FEATURE", help="That names candidates, by default as items are called.")
    ] = None,
    background: Annotated[
        int, typer.Option(min=0, max=100_000, help="Logged candidates that a feature is compared with; 0: missing.")
    ] = 64,
    top: Annotated[int, typer.Option(min=1, help="Rows of each table.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead.")] = False,
    page: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write a page (HTML) too.")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Tell why a logged request was answered as it was: features, what each adds to the scores, channels, places.

    Example: `livetrain explain logs/rank --request 7f3a91 --run published/din --candidate 31`
    """
    loaded("livetrain.trainers.online.explain")
    import pyarrow.compute as pc

    from livetrain.trainers.export.fusion import weights_in
    from livetrain.trainers.export.prediction import Predictor, weights_of
    from livetrain.trainers.export.served import Served
    from livetrain.trainers.online import request_log
    from livetrain.trainers.online.explain import explain as explained
    from livetrain.trainers.recall.origin import origin

    found = origin(run, runs)
    # What is published is a base with its deltas, as servers have it.
    model = Predictor(weights_of(found.run)).model if found.version is None else Served(run).score
    others = request_log.read(request_log.holding(log, request))
    one = others.filter(pc.equal(others["request_id"], request)).slice(0, 1)
    weights = weights_in(found.run, found.recipe)
    told = explained(one, others, found.recipe, model, item, candidate, background, log, weights)
    content = {"request": told.request, "candidates": told.candidates, "candidate": told.candidate}
    if page is not None:
        from livetrain.trainers.online.page import page as made

        page.write_text(made(content), encoding="utf-8")
    if as_json:
        say(json.dumps(content))
        return
    _show(content, top)


def _show(content: dict[str, Any], top: int) -> None:
    request, candidate = content["request"], content["candidate"]
    say(f"request {request['request_id']} of model {request.get('model')} {request.get('version')}")
    for name, value in request["user"].items():
        say(f"  {name}: {_cut(value)}")
    if (fusion := request["fusion"]) is not None:
        numbers = "".join(f", {name} {value:g}" for name, value in fusion["weights"].items())
        say(f"fused = {fusion['score']}{numbers}")
    rows = sorted(content["candidates"], key=lambda row: (row["place"] is None, row["place"]))
    headings = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(title=f"{len(rows)} candidates")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows[:top]:
        table.add_row(*(_cut(row.get(heading)) for heading in headings))
    screen.print(table)
    for task, each in candidate["tasks"].items():
        title = f"{task} of {candidate['item']}: {each['score']:.4f}; {each['scale']} {each['value']:+.4f}"
        table = Table(title=f"{title}, of {candidate['background']} {each['base']:+.4f}")
        table.add_column("feature")
        table.add_column("adds", justify="right")
        table.add_column("value")
        for name, part in list(each["parts"].items())[:top]:
            table.add_row(name, f"{part:+.4f}", _cut(candidate["features"][name]))
        table.add_row("all of them together, besides", f"{each['rest']:+.4f}", "")
        screen.print(table)
    apart = request["largest difference from the logged scores"]
    if apart is not None and apart > 1e-4:
        say(f"the logged scores differ by up to {apart:.2g}: another version answered than --run names")


def _cut(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _recipe(path: Path) -> "Recipe":
    from livetrain.configs.load import load_recipe
    from livetrain.trainers.runtime import run_folder

    return run_folder.recipe_of(path) if path.is_dir() else load_recipe(path)
