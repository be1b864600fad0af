"""The commands of one run: train, evaluate, export."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from livetrain.cli.terminal import complain, loaded, out, say

if TYPE_CHECKING:
    from livetrain.configs.schema import Quantization
from livetrain.cli.arguments import Checkpoint, Overrides, Run, Split, Which, interrupts_told, load


class Quantize(StrEnum):
    none = "none"
    float16 = "float16"
    int8 = "int8"


def _write_schema(wanted: bool) -> None:
    if wanted:
        import json

        from livetrain.configs.json_schema import json_schema

        typer.echo(json.dumps(json_schema(), indent=2))
        raise typer.Exit


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
    """Train what a recipe says, and leave metrics, checkpoints, a report and an export in runs/NAME.

    A wrong recipe or wrong data end the command with one sentence before training starts. A run that was killed goes
    on from its last checkpoint when it is started again under its name; without a name every start is a new run.

    Example: `livetrain train configs/recipes/din_ml1m.yaml train.epochs=2 tables.movie.dim=32 name=wide`
    """
    settled = load(recipe, overrides)
    loaded("livetrain.cluster.launch")
    from livetrain import api
    from livetrain.trainers.observe.report.summary import summary_table, table_lines

    with interrupts_told():
        run = api.train(settled, runs=runs)
    result = run.result
    out.print(summary_table(result))
    for line in table_lines(result):
        say(line)
    say(f"everything is in {run.folder}; plots: report.png and report.html{_exported(run.folder)}")


def _exported(run: Path) -> str:
    """Say how well the file that scores does so, if the run has one."""
    import json

    from livetrain.trainers.export import export as exporter

    try:
        signature = json.loads((run / "export" / "signature.json").read_text(encoding="utf-8"))
    except OSError:
        return ""
    return f"; the file that scores: export/model.pt; {exporter.lines(signature)[0]}"


def evaluate(
    run: Run,
    split: Annotated[Split, typer.Option(help="Which part of the data to score.")] = Split.test,
    checkpoint: Checkpoint = Which.best,
) -> None:
    """Measure a trained run on a split: AUC, GAUC, log loss, calibration.

    Example: `livetrain evaluate runs/din_ml1m --split test`
    """
    from livetrain import api

    trained = api.Run(run)
    loaded("livetrain.cluster.launch")
    metrics = api.evaluate(trained, split.value, checkpoint.value)
    from livetrain.trainers.observe.report.summary import summary_table

    out.print(summary_table({"name": f"{run}, {checkpoint.value} checkpoint", **metrics}))
    if trained.recipe.fusion is not None and checkpoint is Which.best:
        from livetrain.cluster import fusing

        if (found := fusing.measured(run, split.value)) is not None:
            fusing.tell(found, trained.recipe.fusion.by, split.value, say)


def fuse(
    run: Run,
    valid: Annotated[
        str | None,
        typer.Option(
            metavar="DAYS",
            help="Days that judge, as 2026-01-05..2026-01-06; by default the run's own.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Search the weights of a run's fused score anew, without training it again, and renew its export.

    The recipe's section `fusion` has the formula. Points that no other beats on all tasks are printed and kept in
    RUN/fusion.json, with the one that is chosen on the validation split.

    Example: `livetrain fuse runs/gbdt_kuairand --valid 2022-05-05..2022-05-05`
    """
    from livetrain import api

    trained = api.Run(run)
    loaded("livetrain.cluster.fusing")
    from livetrain.cluster import fusing
    from livetrain.trainers.runtime import run_folder
    from livetrain.trainers.runtime.process import set_up

    set_up()
    fusing.fuse(trained.folder, None if valid is None else fusing.judged_on(trained.recipe, valid), say)
    if run_folder.exported(trained.folder):
        api.export(trained, warn=complain)
        say(f"{trained.folder / 'export'}: model.pt with the new weights")


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
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Also write model.pt2, compiled for this kind of processor: takes minutes. By default as the recipe "
            "says.",
            show_default=False,
        ),
    ] = None,
    onnx: Annotated[
        bool | None,
        typer.Option(
            "--onnx/--no-onnx",
            help="Also write model.onnx, which ranks in ONNX Runtime. By default as the recipe says.",
            show_default=False,
        ),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also a version of a model in this model repository of Triton Inference Server.",
            show_default=False,
        ),
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FEATURE",
            help="A feature of the candidate, all others being the user's, which the rank of model.pt2 and model.onnx "
            "takes once; by default the recipe's export.candidate. And for --bench, by default the ids that share a "
            "table with a sequence.",
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

    trained = api.Run(run)
    loaded("livetrain.trainers.export.export")
    how: Quantization | None = quantize.value if quantize else None
    named = {"compiled": compiled, "onnx": onnx, "candidate": candidate}
    asked = {key: value for key, value in named.items() if value is not None}
    signature = api.export(
        trained, folder, checkpoint=checkpoint.value, quantize=how, triton=triton, warn=complain, **asked
    )
    from livetrain.trainers.export import export as exporter

    towers = "user.pt, item.pt, " if "towers" in signature else ""
    files = len(signature.get("stored", ()))
    beside = f"{files} files of tables, " if files else ""
    more = "".join(f"{name}, " for name in exporter.more(signature))
    say(f"{folder or run / 'export'}: model.pt, {towers}{more}{beside}signature.json, golden.json")
    for line in exporter.lines(signature):
        say(line)
    if triton is not None:
        say(f"{triton / run.resolve().name}: the newest version of this model for Triton")
    if bench:
        from livetrain.trainers.export import latency

        out.print(latency.latency_table(latency.compare(run, checkpoint.value, candidate)))
