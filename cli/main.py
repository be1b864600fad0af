"""The front door: one command, one short function, one call downwards.

torch and Ray are imported inside the commands, so that `livetrain --help` answers at once.
"""

import contextlib
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup
from typer.exceptions import TyperException

import livetrain
from livetrain.cli import data, predict
from livetrain.cli.terminal import BAD_INPUT, NOT_NOW, err, note, out, say
from livetrain.configs.errors import BadInput, NotNow, cut, without_credentials
from livetrain.trainers.runtime import signals
from livetrain.trainers.runtime.process import in_utf8, prepare

if TYPE_CHECKING:
    from livetrain.configs.schema import Quantization, Recipe

HELP = """Train recommenders on many GPUs: from Parquet to a TorchScript file that scores.

**Exit codes**: 0 done · 1 the run failed · 2 bad input (a recipe, a file or an argument; one sentence says what
to mend) · 3 `nightly`: the new model is worse than the published one · 4 not now: the same command may do it later ·
130 interrupted · 143 stopped by SIGTERM, what was trained is saved.

**Start here**: `livetrain data ml-1m --protocol rechorus --out data/ml-1m-rechorus`, then
`livetrain train configs/recipes/din_ml1m.yaml`
"""
FAILED, WORSE = 1, 3

app = typer.Typer(
    help=HELP,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(predict.predict)
app.add_typer(data.app, name="data", help="Prepare a dataset: raw logs in, Parquet that `train` reads out.")


class _SearchFirst(TyperGroup):
    """A group whose first word is a command of it, or else the first argument of its command `search`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["search", *args]
        return super().parse_args(ctx, args)


tune = typer.Typer(cls=_SearchFirst, no_args_is_help=True)
app.add_typer(
    tune,
    name="tune",
    help="Search a recipe's best values: `livetrain tune RECIPE --space SPACE`; see `livetrain tune search --help`.",
)


class Split(StrEnum):
    train = "train"
    valid = "valid"
    test = "test"


class Which(StrEnum):
    best = "best"
    last = "last"


class Search(StrEnum):
    random = "random"
    optuna = "optuna"


class Scheduler(StrEnum):
    asha = "asha"
    none = "none"


class Weekday(StrEnum):
    monday = "monday"
    tuesday = "tuesday"
    wednesday = "wednesday"
    thursday = "thursday"
    friday = "friday"
    saturday = "saturday"
    sunday = "sunday"


class Quantize(StrEnum):
    none = "none"
    float16 = "float16"
    int8 = "int8"


Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/din_ml1m.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE...", help="Changes to the recipe, such as train.epochs=2 cluster.workers=4."),
]
Checkpoint = Annotated[Which, typer.Option(help="The best on the validation split, or the newest.")]


def _write_schema(wanted: bool) -> None:
    if wanted:
        import json

        from livetrain.configs.load import json_schema

        typer.echo(json.dumps(json_schema(), indent=2))
        raise typer.Exit


def _write_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"livetrain {livetrain.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", envvar="LIVETRAIN_DEBUG", help="Print the traceback when a run fails.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_write_version, help="Write the version and stop.")
    ] = False,
) -> None:
    if verbose:
        os.environ["LIVETRAIN_DEBUG"] = "1"


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; see configs/recipes.")],
    overrides: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Folder that the run's own folder is made in.")] = Path("runs"),
    schema: Annotated[
        bool,
        typer.Option(
            "--schema", is_eager=True, callback=_write_schema, help="Write the recipes' JSON schema and stop."
        ),
    ] = False,
) -> None:
    """Train what a recipe says, and leave metrics, checkpoints and a report in runs/NAME.

    A wrong recipe or wrong data end the command with one sentence before training starts. A run that was killed goes
    on from its last checkpoint when it is started again under its name; without a name every start is a new run.

    Example: `livetrain train configs/recipes/din_ml1m.yaml train.epochs=2 tables.movie.dim=32 name=wide`
    """
    settled = _load(recipe, overrides)
    from livetrain import api
    from livetrain.trainers.observe.report.summary import summary_table, table_lines

    with _interrupts_told():
        run = api.train(settled, runs=runs)
    result = run.result
    out.print(summary_table(result))
    for line in table_lines(result):
        say(line)
    say(f"everything is in {run.folder}; plots: report.png")


@app.command()
def evaluate(
    run: Run,
    split: Annotated[Split, typer.Option(help="Which part of the data to score.")] = Split.test,
    checkpoint: Checkpoint = Which.best,
) -> None:
    """Measure a trained run on a split: AUC, GAUC, log loss, calibration.

    Example: `livetrain evaluate runs/din_ml1m --split test`
    """
    from livetrain import api

    metrics = api.evaluate(run, split.value, checkpoint.value)
    from livetrain.trainers.observe.report.summary import summary_table

    out.print(summary_table(metrics))


@app.command()
def export(
    run: Run,
    checkpoint: Checkpoint = Which.best,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder to write, by default RUN/export.", show_default=False)
    ] = None,
    quantize: Annotated[
        Quantize | None, typer.Option(help="How tables are stored, by default as the recipe says.", show_default=False)
    ] = None,
    bench: Annotated[
        bool, typer.Option("--bench", help="Also time 500 candidates of one user, for every way to store tables.")
    ] = False,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FEATURE",
            help="For --bench: a feature of the candidate. By default the ids that share a table with a sequence.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a run's model as one TorchScript file, with its signature and scored example rows.

    The file appears only after it has given the trained model's scores on held-out rows, up to a tolerance where
    tables are quantised.

    Example: `livetrain export runs/din_ml1m --quantize int8 --bench --out served/2026-11-24`
    """
    from livetrain import api

    how: Quantization | None = quantize.value if quantize else None
    signature = api.export(run, folder, checkpoint=checkpoint.value, quantize=how, warn=_complain)
    from livetrain.trainers.export import export as exporter

    towers = "user.pt, item.pt, " if "towers" in signature else ""
    say(f"{folder or run / 'export'}: model.pt, {towers}signature.json, golden.json")
    for line in exporter.lines(signature):
        say(line)
    if bench:
        from livetrain.trainers.export import latency

        out.print(latency.latency_table(latency.compare(run, checkpoint.value, candidate)))


@tune.command("search")
def tune_search(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A YAML file; see configs/recipes.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    space: Annotated[
        Path | None, typer.Option(help="A YAML file of keys and values; see configs/spaces.", show_default=False)
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Trials.", show_default="20")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="What to choose by: valid/auc, valid/TASK.METRIC, or an expression over them; several options give a "
            "Pareto front.",
            show_default="valid/auc",
        ),
    ] = None,
    search: Annotated[Search | None, typer.Option(help="How values are drawn.", show_default="random")] = None,
    scheduler: Annotated[
        Scheduler | None,
        typer.Option(
            help="Whether ASHA stops trials early, as it does by default where there is one metric.", show_default=False
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws.", show_default="1")] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="The sweep's folder, by default runs/NAME-sweep-TIME.", show_default=False),
    ] = None,
    resumed: Annotated[
        Path | None,
        typer.Option("--resume", metavar="DIR", help="Go on with a sweep that was killed.", show_default=False),
    ] = None,
) -> None:
    """Train a recipe with many values of its keys, and say which were best on the validation split.

    Every trial is a training with a run folder of its own, DIR/trials/N; as many train at a time as the cluster has
    room for. Trials that fall behind are stopped early; one that fails is started again from its checkpoint.

    Example: `livetrain tune RECIPE --space configs/spaces/din.yaml --samples 20 --metric valid/auc`
    """
    asked = {"metrics": metric, "samples": samples, "search": search, "scheduler": scheduler, "seed": seed}
    given = {key: getattr(value, "value", value) for key, value in asked.items() if value is not None}
    if resumed is not None and (given or any(part is not None for part in (recipe, space, folder))):
        raise BadInput("tune: --resume goes on with what the sweep's folder says; leave all other arguments out")
    settled = _load(recipe, overrides) if recipe is not None and space is not None else None
    if resumed is None and settled is None:
        raise BadInput("tune: a sweep needs RECIPE and --space, or --resume DIR")
    from livetrain.cluster import sweep as sweeps
    from livetrain.cluster.sweep import board

    with _interrupts_told():
        if resumed is not None:
            found = sweeps.resume(resumed)
        else:
            assert settled is not None
            assert space is not None
            found = sweeps.tune(settled, space, folder, **given)
    out.print(board.trials_table(found))
    say(f"everything is in {found.folder}: sweep.json, parallel.png, importance.png, curves.png, best.png")
    if not any(trial.state == "finished" for trial in found.trials):
        _complain("no trial has finished; the table and sweep.json say why")
        raise typer.Exit(FAILED)
    say(f"best: {found.run(found.best)}; its recipe: livetrain tune best {found.folder} --out recipe.yaml")


@tune.command("best")
def tune_best(
    sweep: Annotated[Path, typer.Argument(metavar="DIR", help="A sweep's folder.", show_default=False)],
    file: Annotated[Path, typer.Option("--out", help="The recipe file to write.", show_default=False)],
    trial: Annotated[
        int | None, typer.Option(help="Another trial than the best, by its number.", show_default=False)
    ] = None,
) -> None:
    """Write a sweep's best trial as a recipe that trains it again.

    Of several metrics the first one decides, unless --trial names another trial of the Pareto front.

    Example: `livetrain tune best runs/din_ml1m-sweep --out configs/recipes/din_tuned.yaml`
    """
    from livetrain.cluster.sweep.results import Sweep
    from livetrain.trainers.runtime.manifest import write_text

    text = Sweep.open(sweep).winner(trial)
    try:
        write_text(file, text)
    except OSError as error:
        raise BadInput(f"{file}: cannot write here ({error.strerror}); choose another file with --out") from error
    say(text.split("\n", 1)[0].removeprefix("# "))
    say(f"written to {file}; livetrain train {file} trains it")


@app.command()
def submit(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; see configs/recipes.")],
    runs: Annotated[Path, typer.Option(help="Absolute folder for runs, on storage that all nodes share.")],
    address: Annotated[
        str,
        typer.Option(
            envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
            help="The cluster's dashboard, such as http://head:8265.",
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
    settled = _load(recipe, overrides)
    from livetrain.cluster import submit as jobs

    code = jobs.submit(
        settled, runs, address, job_id=job_id, detach=detach, cancel_on_interrupt=cancel, say=note, write=_raw
    )
    raise typer.Exit(code)


@app.command()
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
            help="Begin anew where DAY is this weekday, as for a full retraining a week; it may be given again.",
            show_default=False,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="A cluster's dashboard, such as http://head:8265: the night is a job there.", show_default=False
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
    settled = _load(recipe, overrides)
    settled = settled.model_copy(update={"name": settled.name or recipe.stem})
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
        raise typer.Exit(jobs.night(settled, runs, address, asked[-1] if asked else None, options, note, _raw))
    from livetrain.cluster import nightly as nights

    def night(day: str) -> dict[str, Any] | None:
        anew = cold or list(Weekday)[calendar.weekday(day)] in (cold_on or ())
        return nights.night(settled, runs, day, publish, tolerance, keep, anew, say)

    with nights.asked_later():
        one = calendar.newest_day(settled) if asked is None else asked[0]
    with _interrupts_told():
        pointer = night(one) if days is None or asked is None else nights.nights(asked, publish, night, say)
    if pointer is None:
        raise typer.Exit(WORSE)


@app.command()
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


@app.command()
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="Whose workers, tables and data to check.")
    ] = None,
    overrides: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Folder for runs, on storage that all nodes share.")] = Path("runs"),
    address: Annotated[
        str | None,
        typer.Option(
            help="The Ray cluster, by default the recipe's or this machine's own; http://head:8265 asks from inside.",
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
    settled = _load(recipe, overrides) if recipe else None
    if address and address.startswith(("http://", "https://")):
        from livetrain.cluster import submit as jobs

        raise typer.Exit(jobs.ask("doctor", settled, runs, address, say=note, write=_raw))
    from livetrain.cluster import doctor as checks

    findings = checks.examine(settled, runs, address, progress=note)
    out.print(checks.findings_table(findings))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else BAD_INPUT)


@contextlib.contextmanager
def _interrupts_told() -> Iterator[None]:
    """Say what an interrupt says of what was interrupted."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if str(interrupt):
            note(str(interrupt))
        raise


def _load(recipe: Path, overrides: list[str] | None) -> "Recipe":
    from livetrain.configs.load import load_recipe

    return load_recipe(recipe, overrides or [])


def _raw(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _complain(sentence: str) -> None:
    err.print(Text(without_credentials(sentence), "red"), soft_wrap=True)


def _report_failure(error: Exception) -> None:
    """Say in one line what broke; the traceback goes to a file, or to the terminal when asked for."""
    story = without_credentials(traceback.format_exc())
    first = next(iter(str(error).splitlines()), "")
    _complain(f"failed: {type(error).__name__}: {first}")
    if os.environ.get("LIVETRAIN_DEBUG", "0") not in ("", "0"):
        err.print(Text(story), soft_wrap=True)
        return
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="livetrain-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as log:
            log.write(story)
    except OSError:  # no folder for temporary files
        err.print(Text(story), soft_wrap=True)
        return
    err.print(Text(f"the traceback is in {log.name}"), soft_wrap=True)


def _usage(error: TyperException) -> str:
    """Return what is wrong with the command line itself as one sentence that names the command."""
    words = error.format_message().strip().rstrip(".")
    words = re.sub(r"\. (Did you mean.*)", lambda hint: f" ({hint[1][:1].lower()}{hint[1][1:]})", words)
    words = re.sub(r"Value error, |, unable to parse.*", "", words).replace("Input should be ", "wanted ")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "livetrain"
    option = getattr(error, "option_name", None)  # of an option that there is not
    if option and "." in option:
        return f"{command}: '{cut(option)}' is no option; a change of the recipe is written without dashes, KEY=VALUE"
    return f"{command}: {words[:1].lower()}{cut(words[1:], 150)}; see {command} --help"


def main() -> None:
    """Run the command line; the console script `livetrain` is this function."""
    in_utf8()
    try:
        prepare()
        signals.install()
        code = app(standalone_mode=False, prog_name="livetrain")
    except BadInput as error:
        _complain(str(error))
        code = NOT_NOW if isinstance(error, NotNow) else BAD_INPUT
    except TyperException as error:
        if error.format_message():  # empty where a group was called without a command: its help stands there already
            _complain(str(BadInput(_usage(error))))
        code = BAD_INPUT
    except Exception as error:
        if not signals.ending():  # or it is only what ending does to work that goes on
            _report_failure(error)
        code = FAILED
    sys.exit(signals.exit_code(code or 0))
