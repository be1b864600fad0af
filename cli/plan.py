"""The command that forecasts a run on a cluster that is not there."""

import json
from pathlib import Path
from typing import Annotated

import typer

from livetrain.cli.arguments import Overrides, check_picture, load, raw
from livetrain.cli.terminal import loaded, note, out, say
from livetrain.configs.errors import BadInput


def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; see configs/recipes.")],
    overrides: Overrides = None,
    workers: Annotated[str, typer.Option(metavar="N,N,...", help="Numbers of workers.")] = "8,64,256,1024",
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What the machines can do: h100, h200, a100, cpu, or a YAML file like those in configs/hardware; by "
            "default cpu where the recipe says cluster.device: cpu, else h100.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to standard output, and no picture.")] = False,
    picture: Annotated[Path, typer.Option("--out", help="The picture to write.")] = Path("plan.png"),
) -> None:
    """Forecast a recipe on numbers of workers: memory, time of a step by part, rows per second, what limits.

    Needs neither a cluster nor a GPU, and no data: where data.path has some, lists and frequencies of ids are sampled
    from it. What a step computes is counted, where its tables lie is planned as for a run, and what it takes follows
    from the hardware file. Every advice was forecast again.

    Example: `livetrain plan configs/recipes/din_ml1m.yaml data.shards=1024 data.batch_size=4194304 --workers 8,64,1024`
    """
    from livetrain.configs.machines import load_hardware

    if not as_json:
        check_picture(picture)
    counts, machines = _counts(workers), load_hardware(hardware) if hardware else None
    # Not on the recipe's own workers, among whom the rows of so many others need not divide.
    settled = load(recipe, [*(overrides or []), f"cluster.workers={counts[0]}"])
    loaded("livetrain.trainers.forecast.forecast")
    from livetrain.trainers.forecast import forecast, show

    forecast.check_steps(settled)
    machines = machines or load_hardware("cpu" if settled.cluster.device == "cpu" else "h100")
    forecast.check_division(settled, counts)
    known, ids = forecast.known(settled)
    note(f"counting the step of {', '.join(f'{each:,}' for each in counts)} workers, and planning their tables")
    found = forecast.Forecaster(lambda more: load(recipe, [*(overrides or []), *more]), machines, known).all(counts)
    if as_json:
        raw(f"{json.dumps(show.plain(found, machines, ids), indent=2)}\n")
        return
    out.print(show.table(found))
    for line in show.remarks(found, machines, ids):
        say(line)
    try:
        show.draw(found, settled.name or recipe.stem, machines).savefig(picture)
    except OSError as error:
        raise BadInput(f"{picture}: cannot write here ({error.strerror}); choose another file with --out") from error
    say(f"picture: {picture}")


def _counts(text: str) -> list[int]:
    """Return the numbers of workers that an option names.

    Raises:
        BadInput: one is none.
    """
    out = []
    for word in text.split(","):
        if not word.strip().isdecimal() or not 1 <= int(word) <= 4096:
            raise BadInput(
                f"--workers: '{word.strip()}' is no number of workers from 1 to 4,096; write them as 8,64,256"
            )
        out.append(int(word))
    return sorted(set(out))
