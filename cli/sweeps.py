"""The commands below `livetrain tune`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from livetrain.cli.terminal import FAILED, complain, loaded, out, say
from livetrain.configs.errors import BadInput

if TYPE_CHECKING:
    pass
from livetrain.cli.arguments import Overrides, interrupts_told, load


class _SearchFirst(TyperGroup):
    """A group whose first word is a command of it, or else the first argument of its command `search`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["search", *args]
        return super().parse_args(ctx, args)


tune = typer.Typer(cls=_SearchFirst, no_args_is_help=True)


class Search(StrEnum):
    random = "random"
    optuna = "optuna"


class Scheduler(StrEnum):
    asha = "asha"
    none = "none"


@tune.command("search")
def tune_search(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A YAML file; see configs/recipes.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    space: Annotated[
        Path | None, typer.Option(help="A YAML file of keys and values; see configs/spaces.", show_default=False)
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Trials, by default 20.", show_default=False)] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="What to choose by: valid/auc, valid/TASK.METRIC, or an expression over them; several options give a "
            "Pareto front. By default what picks the recipe's checkpoints (train.select).",
            show_default=False,
        ),
    ] = None,
    search: Annotated[
        Search | None, typer.Option(help="How values are drawn, by default random.", show_default=False)
    ] = None,
    scheduler: Annotated[
        Scheduler | None,
        typer.Option(
            help="Whether ASHA stops trials early, as it does by default where there is one metric.", show_default=False
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws, by default 1.", show_default=False)] = None,
    runs: Annotated[
        Path | None,
        typer.Option(help="Folder that the sweep's own folder is made in, by default runs.", show_default=False),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="The sweep's own folder, by default NAME-sweep-TIME in --runs.", show_default=False),
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
    if resumed is not None and (given or any(part is not None for part in (recipe, space, runs, folder))):
        raise BadInput("tune: --resume goes on with what the sweep's folder says; leave all other arguments out")
    settled = load(recipe, overrides) if recipe is not None and space is not None else None
    if resumed is None and settled is None:
        raise BadInput("tune: a sweep needs RECIPE and --space, or --resume DIR")
    if runs is not None and folder is not None:
        raise BadInput("tune: --runs names the folder around the sweep's, and --out the sweep's own; leave one out")
    loaded("livetrain.cluster.sweep.driver")
    from livetrain.cluster import sweep as sweeps
    from livetrain.cluster.sweep import board

    with interrupts_told():
        if resumed is not None:
            found = sweeps.resume(resumed)
        else:
            assert settled is not None
            assert space is not None
            found = sweeps.tune(settled, space, folder, runs=runs or Path("runs"), **given)
    out.print(board.trials_table(found))
    say(f"everything is in {found.folder}: sweep.json, parallel.png, importance.png, curves.png, best.png")
    if not any(trial.state == "finished" for trial in found.trials):
        complain("no trial has finished; the table and sweep.json say why")
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
