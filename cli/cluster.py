"""The commands of a cluster and of its nights: submit, nightly, publish, rollback, doctor."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from livetrain.cli.terminal import BAD_INPUT, WORSE, loaded, note, out, say
from livetrain.configs.errors import BadInput, without_credentials

if TYPE_CHECKING:
    pass
from livetrain.cli.arguments import Overrides, Which, interrupts_told, load, raw


class Weekday(StrEnum):
    monday = "monday"
    tuesday = "tuesday"
    wednesday = "wednesday"
    thursday = "thursday"
    friday = "friday"
    saturday = "saturday"
    sunday = "sunday"


def submit(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; see configs/recipes.")],
    runs: Annotated[Path, typer.Option(help="Absolute folder for runs, on storage that all nodes share.")],
    address: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
            help="The Ray cluster's dashboard, such as http://head:8265.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    job_id: Annotated[
        str | None, typer.Option("--id", help="The job's id, by default NAME-DATE. An id never runs twice.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the job is on the cluster.")] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C stops the job too, not only following it.")
    ] = False,
) -> None:
    """Train a recipe as a job of a running Ray cluster, follow its output, and exit with its code.

    livetrain's sources, the recipe and its plugins travel, nothing else. The same id attaches to a job that runs, and
    tells how one ended that has. Where the cluster wants a token, RAY_AUTH_TOKEN gives it.

    Example: `livetrain submit recipe.yaml data.path=/shared/data --runs /shared/runs --address http://head:8265`
    """
    settled = load(recipe, overrides)
    from livetrain.cluster import submit as jobs

    code = jobs.submit(
        settled, runs, address, job_id=job_id, detach=detach, cancel_on_interrupt=cancel, say=note, write=raw
    )
    raise typer.Exit(code)


def nightly(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file with data.days.")],
    publish: Annotated[str, typer.Option(help="Folder or URI of the published versions, which servers read.")],
    overrides: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Folder of the nights' runs.")] = Path("runs"),
    day: Annotated[
        str | None, typer.Option(help="The test split's last day, by default the newest of the data.")
    ] = None,
    days: Annotated[
        str | None,
        typer.Option(
            metavar="A..B", help="Make up for the missed nights of these days, in their order.", show_default=False
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1e6, help="By how much the new model may be worse than the published one.")
    ] = 0.002,
    keep: Annotated[
        int, typer.Option(min=1, max=10**6, help="Published versions that stay, and nights with their checkpoints.")
    ] = 7,
    cold: Annotated[bool, typer.Option("--cold", help="Begin anew, without last night's weights.")] = False,
    cold_on: Annotated[
        list[Weekday] | None,
        typer.Option(
            metavar="WEEKDAY",
            help="Begin anew where DAY is this weekday, as sunday, for a full retraining a week; may be given again.",
            show_default=False,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="A Ray cluster's dashboard, such as http://head:8265: the night is a job there.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Retrain on the newest days, begin with last night's model, and publish what is no worse.

    The recipe's days are moved on alike, until test ends with DAY. Started again, the command repeats nothing that is
    done. It exits with 3 where the new model is not published because it is worse than the present one, and with 4
    where it is to be asked again later: another night is at work, or a day of the data is not there yet.
    `livetrain rollback` takes a published model back.

    Example: `livetrain nightly configs/recipes/din_kuairand.yaml --publish /models/din --runs /shared/runs`
    """
    settled = load(recipe, overrides)
    settled = settled.model_copy(update={"name": settled.name or recipe.stem})
    loaded("livetrain.cluster.nightly")
    from livetrain.cluster import days as calendar

    asked = calendar.asked(day, days)
    if address is not None:
        if "://" not in publish and not Path(publish).is_absolute():
            raise BadInput(
                f"--publish: '{publish}' is relative; give a URI or a path that all nodes of the cluster share"
            )
        if without_credentials(publish) != publish:
            raise BadInput(
                f"--publish: {without_credentials(publish)} comes with a password, which is never sent; leave it out "
                "and give it to the cluster's environment"
            )
        from livetrain.cluster import submit as jobs

        options = ["--publish", publish, "--tolerance", str(tolerance), "--keep", str(keep)]
        options += [*(["--day", asked[0]] if day and asked else []), *(["--days", days] if days else [])]
        options += ["--cold"] if cold else []
        options += [word for weekday in cold_on or () for word in ("--cold-on", weekday.value)]
        raise typer.Exit(jobs.night(settled, runs, address, asked[-1] if asked else None, options, note, raw))
    from livetrain.cluster import nightly as nights

    def night(day: str) -> dict[str, Any] | None:
        anew = cold or list(Weekday)[calendar.weekday(day)] in (cold_on or ())
        return nights.night(settled, runs, day, publish, tolerance, keep, anew, say)

    with nights.asked_later():
        one = calendar.newest_day(settled) if asked is None else asked[0]
    with interrupts_told():
        pointer = night(one) if days is None or asked is None else nights.nights(asked, publish, night, say)
    if pointer is None:
        raise typer.Exit(WORSE)


def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    where: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder or URI of the published versions.", show_default=False)
    ],
    version: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="A name that sorts after those published before, by default the time of day in UTC.",
            show_default=False,
        ),
    ] = None,
    delta: Annotated[
        bool, typer.Option("--delta", help="Publish what has changed since what is published, and nothing else.")
    ] = False,
    checkpoint: Annotated[Which | None, typer.Option(help="Which; of a delta the last by default.")] = None,
    keep: Annotated[int, typer.Option(min=1, help="Versions that stay.")] = 7,
) -> None:
    """Publish a run's model for servers: a whole version, or with --delta the rows that changed since.

    A delta needs a run that tracks which rows change, as those of `livetrain follow` do, and a base of that run. It
    belongs to the version that is published, and servers take it in at once and whole.

    Example: `livetrain publish runs/din-follow/2026-11-29 /models/din --delta`
    """
    import time

    from livetrain.trainers.export import deltas, export
    from livetrain.trainers.export import publish as published

    if delta:
        before = published.current(where)
        pointer = deltas.publish_delta(run, where, checkpoint.value if checkpoint else "last")
        if pointer == before:
            say(f"{without_credentials(where)}: this checkpoint is published already; fence {pointer['fence']}")
            return
        last = deltas.newest(pointer)
        say(
            f"{without_credentials(where)}: delta {last['number']} of {pointer['folder']}, up to step {last['step']}: "
            f"{last['rows']:,} rows, {last['bytes'] / 1e6:,.2f} MB; fence {pointer['fence']}"
        )
        return
    name = version or time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    published.replaced(where, name)
    export.export(run, checkpoint.value if checkpoint else "best")
    pointer = published.publish(run / "export", where, name, keep, run=run.name)
    say(f"{without_credentials(where)}: servers are pointed to {pointer['folder']}, with fence {pointer['fence']}")


def rollback(
    where: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder or URI of the published versions.", show_default=False)
    ],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="Which to go back to, by default the one before the present.", show_default=False
        ),
    ] = None,
) -> None:
    """Point servers back to an earlier published version, as the present one turned out to be bad.

    The version's files are checked first. It gets a larger fence, which servers follow. The versions after it are not
    published again, also if their nights are started again; that of the next day is.

    Example: `livetrain rollback /models/din --to 2022-05-07`
    """
    from livetrain.trainers.export import publish

    pointer = publish.rollback(where, to)
    say(f"{without_credentials(where)}: servers are pointed to {pointer['folder']}, with fence {pointer['fence']}")
    taken_back = [each["folder"] for each in pointer["versions"] if each.get("rejected")]
    if taken_back:
        say(f"taken back: {', '.join(taken_back)}")


def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="Whose workers, tables and data to check.")
    ] = None,
    overrides: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Folder for runs, on storage that all nodes share.")] = Path("runs"),
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="The Ray cluster, such as auto or head:6379, by default the recipe's or this machine's own; "
            "http://head:8265 asks from inside.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check a cluster before a job: versions, exchange between workers, shared storage, memory, the tables' plan.

    Exits with 0 when all is well, and with 2 otherwise; every line that failed says what to mend.

    Example: `livetrain doctor configs/recipes/din_ml1m.yaml --runs /shared/runs --address auto`
    """
    if overrides and recipe is None:
        raise BadInput("doctor: KEY=VALUE changes a recipe, and none is named; put RECIPE before it")
    settled = load(recipe, overrides) if recipe else None
    if address and address.startswith(("http://", "https://")):
        from livetrain.cluster import submit as jobs

        raise typer.Exit(jobs.ask("doctor", settled, runs, address, say=note, write=raw))
    loaded("livetrain.cluster.doctor")
    from livetrain.cluster import doctor as checks

    findings = checks.examine(settled, runs, address, progress=note)
    out.print(checks.findings_table(findings))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else BAD_INPUT)
