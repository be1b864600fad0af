"""The front door: one command, one short function, one call downwards.

torch and Ray are imported inside the commands, so that `livetrain --help` answers at once.
"""

import os
import re
import sys
import tempfile
import traceback
from typing import Annotated

import typer
from rich.text import Text
from typer.exceptions import TyperException

import livetrain
from livetrain.cli import (
    cluster,
    data,
    ids,
    init,
    live,
    look,
    plan,
    predict,
    recall,
    runs,
    served,
    store,
    stream,
    sweeps,
    watch,
)
from livetrain.cli.terminal import BAD_INPUT, FAILED, NOT_NOW, complain, err
from livetrain.configs.errors import BadInput, NotNow, cut, without_credentials
from livetrain.trainers.runtime import signals
from livetrain.trainers.runtime.process import in_utf8, set_up

HELP = """Train recommenders on many GPUs: from Parquet to a TorchScript file that scores.

**Exit codes**: 0 done · 1 the run failed · 2 bad input (a recipe, a file or an argument; one sentence says what
to mend) · 3 `nightly`, `index`: what is new is worse than asked, and is not published; `skew`: more rows differ than
asked · 4 not now: the same command may do it later · 130 interrupted · 143 stopped by SIGTERM, what was trained is
saved.

**Start here**: `livetrain data ml-1m --protocol rechorus --out data/ml-1m-rechorus`, then
`livetrain train configs/recipes/din_ml1m.yaml`
"""

app = typer.Typer(
    help=HELP,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    *(init.init, runs.train, runs.evaluate, runs.fuse, runs.export, predict.predict, look.runs, look.compare),
    *(recall.index, recall.blend, recall.cut),
    *(plan.plan, cluster.submit, cluster.nightly, live.follow, cluster.publish, cluster.rollback, cluster.doctor),
    *(stream.stream, watch.watch, served.skew, served.explain, ids.hash, ids.ids),
):
    app.command()(command)
app.add_typer(data.app, name="data", help="Prepare a dataset: raw logs in, Parquet that `train` reads out.")
app.add_typer(store.app, name="store", help="Keep the features that a server looks up, as the samples have them.")
app.add_typer(
    sweeps.tune,
    name="tune",
    help="Search a recipe's best values: `livetrain tune RECIPE --space SPACE`; see `livetrain tune search --help`.",
)


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


def _report_failure(error: Exception) -> None:
    """Say in one line what broke; the traceback goes to a file, or to the terminal when asked for."""
    story = without_credentials(traceback.format_exc())
    first = next(iter(str(error).splitlines()), "")
    complain(f"failed: {type(error).__name__}: {first}")
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
        key = cut(option.lstrip("-"))
        return f"{command}: '--{key}' is no option; a change of the recipe is KEY=VALUE without dashes: {key}=VALUE"
    return f"{command}: {words[:1].lower()}{cut(words[1:], 150)}; see {command} --help"


def main() -> None:
    """Run the command line; the console script `livetrain` is this function."""
    in_utf8()
    try:
        set_up()
        signals.install()
        code = app(standalone_mode=False, prog_name="livetrain")
    except BadInput as error:
        complain(str(error))
        code = NOT_NOW if isinstance(error, NotNow) else BAD_INPUT
    except TyperException as error:
        if error.format_message():  # empty where a group was called without a command: its help stands there already
            complain(str(BadInput(_usage(error))))
        code = BAD_INPUT
    except Exception as error:
        if not signals.ending():  # or it is only what ending does to work that goes on
            _report_failure(error)
        code = FAILED
    sys.exit(signals.exit_code(code or 0))
