"""The commands `livetrain index`, `livetrain blend` and `livetrain cut`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from livetrain.cli.terminal import WORSE, loaded, note, say
from livetrain.cli.terminal import out as screen
from livetrain.configs.errors import BadInput


class Kind(StrEnum):
    hnsw = "hnsw"
    ivf_pq = "ivf_pq"
    exact = "exact"


class Stored(StrEnum):
    none = "none"
    float16 = "float16"
    int8 = "int8"


Runs = Annotated[Path, typer.Option(help="Folder of run folders, where the run of a published model lies.")]


def index(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|PUBLISHED", help="A run's folder, or that of published models.", show_default=False
        ),
    ],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder or URI that the index is published in.")],
    catalogue: Annotated[
        str | None,
        typer.Option(
            help="Parquet of the items, by default evaluate.catalogue, and without it the items of the test split.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[Kind, typer.Option(help="A graph, lists of short codes, or every vector compared.")] = Kind.hnsw,
    quantize: Annotated[Stored, typer.Option(help="How hnsw and exact keep vectors.")] = Stored.none,
    min_recall: Annotated[
        float,
        typer.Option(min=0, max=1, help="Of the items that an exact search finds; below it nothing is published."),
    ] = 0.95,
    keep: Annotated[int, typer.Option(min=1, max=10**6, help="Published versions that stay.")] = 7,
    runs: Runs = Path("runs"),
) -> None:
    """Build an index of the items that a run finds, measure it against an exact search, and publish it.

    Versions lie in DIR as those of published models do, and `livetrain rollback DIR` goes back to an earlier one. It
    exits with 3 where the index finds too little of what an exact search finds, and nothing is published.

    Example: `livetrain index runs/dssm_kuairand --out indexes/dssm --kind ivf_pq --min-recall 0.9`
    """
    if kind == Kind.ivf_pq and quantize != Stored.none:
        raise BadInput("--quantize: ivf_pq keeps codes of its own; leave --quantize out, or use hnsw")
    loaded("livetrain.trainers.recall.build")
    from livetrain.trainers.recall.build import Asked, build
    from livetrain.trainers.recall.origin import origin

    asked = Asked(kind.value, quantize.value, catalogue, min_recall, keep)
    if build(origin(source, runs), out, asked, say) is None:
        raise typer.Exit(WORSE)


def _write_schema(wanted: bool) -> None:
    if wanted:
        import json

        from livetrain.configs.blend_spec import blend_json_schema

        typer.echo(json.dumps(blend_json_schema(), indent=2))
        raise typer.Exit


def blend(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SPEC|BLEND", help="A YAML file with channels, or the folder of a blend.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the blend, or for the candidates.")],
    requests: Annotated[
        str | None, typer.Option(help="Parquet of requests that get candidates, by a blend.", show_default=False)
    ] = None,
    catalogue: Annotated[
        str | None,
        typer.Option(
            help="With --requests: Parquet of the items that there are, by default as for `livetrain index`.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN,...", help="With --requests: columns that pass through, by default all but lists."
        ),
    ] = None,
    schema: Annotated[
        bool,
        typer.Option("--schema", is_eager=True, callback=_write_schema, help="Write the spec's JSON schema and stop."),
    ] = False,
) -> None:
    """Blend channels: search their weights on the validation split and measure on the test split, or find candidates.

    Example: `livetrain blend blend.yaml --out blends/first`, then
    `livetrain blend blends/first --requests requests.parquet --catalogue rooms.parquet --out candidates`
    """
    if not source.exists():
        raise BadInput(f"{source}: is not there; name a YAML file with channels, or the folder of a blend")
    if (requests is None) != source.is_file():
        raise BadInput("--requests: goes with the folder of a blend, and a spec stands alone")
    if requests is None and (catalogue or keep):
        raise BadInput("--catalogue, --keep: go with --requests")
    loaded("livetrain.trainers.recall.candidates")
    if requests is not None:
        from livetrain.trainers.recall.candidates import candidates

        found = candidates(source, requests, catalogue, out, None if keep is None else keep.split(","))
        say(f"{out}: candidates of {found['rows']:,} requests in {len(found['files'])} files")
        return
    from livetrain.configs.blend_spec import BlendSpec
    from livetrain.configs.spec import load_spec
    from livetrain.trainers.recall.blend import blended

    content = blended(load_spec(source, BlendSpec).spec, out, note)
    for split in ("valid", "test"):
        screen.print(_table(split, content[split], content["spec"]["channels"]))
    for size, gain in content["test"]["gain"].items():
        say(
            f"recall@{size} on test is {gain['recall']:+.4f} over {gain['over']} alone (standard error "
            f"{gain['standard_error']:.4f})"
        )


def _table(split: str, figures: dict[str, Any], channels: dict[str, Any]) -> Table:
    """Return a split's figures, a row per channel, and per slice the blend's."""
    sizes = [key.removeprefix("recall_") for key in figures["blend"]]
    table = Table(title=f"{split}: {figures['requests']:,} requests, {figures['items']:,} items")
    table.add_column("channel")
    for heading in (
        "weight",
        "quota",
        *(f"{what}@{size}" for size in sizes for what in ("recall", "only it", "share")),
    ):
        table.add_column(heading, justify="right")
    table.add_row(
        "the blend", "", "", *(cell for size in sizes for cell in (_digits(figures["blend"][f"recall_{size}"]), "", ""))
    )
    for name, part in figures["channels"].items():
        own = channels.get(name, {"weight": 0.0, "quota": 0})
        cells = [_digits(part[f"{what}_{size}"]) for size in sizes for what in ("recall", "only", "share")]
        table.add_row(name, f"{own['weight']:.3g}", f"{own.get('quota', '')}", *cells)
    for name, part in figures["slices"].items():
        cells = [cell for size in sizes for cell in (_digits(part["blend"][f"recall_{size}"]), "", "")]
        table.add_row(f"the blend, {name} ({part['requests']:,})", "", "", *cells)
    return table


def cut(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Parquet of scored candidates: a file or a folder.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the rows that are kept.")],
    group: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the requests.")],
    score: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the pre-rank's scores.")],
    keep: Annotated[int, typer.Option(help="Candidates that stay per request.")],
    regular: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Above 0 where the user often visits it.", show_default=False)
    ] = None,
    regulars: Annotated[int, typer.Option(help="Places that regulars get, whatever their scores.")] = 0,
    kind: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="What candidates are of, as a category.", show_default=False)
    ] = None,
    most: Annotated[int, typer.Option(help="Places that one kind gets at most, while others are there.")] = 0,
    against: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The ranker's scores, to compare with.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the ranker's best are to survive.")] = 10,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Above 0 where it was taken.", show_default=False)
    ] = None,
) -> None:
    """Cut scored candidates to those that a ranker is asked about, and say what survives.

    Example: `livetrain cut scores --out kept --group request --score click_score --keep 300 --regular visits
    --regulars 20 --kind category --most 100 --against ranker_score --label click`
    """
    loaded("livetrain.trainers.recall.cut")
    from livetrain.trainers.recall.cut import Rules
    from livetrain.trainers.recall.cut import cut as cut_by

    rules = Rules(group, score, keep, regular, regulars, kind, most, against, top, label)
    found = cut_by(data, out, rules)
    titles = {
        "ranker_top": f"of the ranker's best {top}",
        "ranker_best": "of its very best",
        "taken": "of what was taken",
        "regulars": "of regulars",
        "kinds": "kinds per list",
    }
    title = f"{found['kept']:,} of {found['rows']:,} candidates of {found['requests']:,} requests are kept"
    if not found["rules"]:  # no column tells what survives
        say(title)
        return
    table = Table(title=title)
    for heading in ("", "by these rules", "by score alone"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in found["rules"]:
        table.add_row(titles[name], *(_shown(found[by][name]) for by in ("rules", "score")))
    screen.print(table)
    if found.get("agreement") is not None:
        say(f"rank correlation of both scores within a request: {found['agreement']:.4f}")


def _shown(value: float | None) -> str:
    return "-" if value is None else _digits(value)


def _digits(value: float) -> str:
    return f"{value:.4f}"
