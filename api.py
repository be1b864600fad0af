"""The public API: what the command line calls, for Python files and notebooks.

torch and Ray are imported inside the functions, so that `import livetrain` costs nothing.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from livetrain.configs.errors import BadInput

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from torch import nn

    from livetrain.configs.schema import Quantization, Recipe
    from livetrain.trainers.export.prediction import Side
    from livetrain.trainers.observe.compare import Compared

Split = Literal["train", "valid", "test"]
Which = Literal["best", "last"]
Table = TypeVar("Table", "pandas.DataFrame", "pyarrow.Table")
log = logging.getLogger("livetrain")


class Run:
    """A run's folder, as `train` leaves it or while it still trains.

    Args:
        folder: such as ``runs/din_ml1m``.

    Raises:
        BadInput: the folder holds no run.

    Example:
        >>> run = Run("runs/small")
        >>> run.metrics("eval")[["step", "split", "click.auc"]].round(1).tail(2)
           step  split  click.auc
        3    42  valid        0.8
        4    32   test        0.8
        >>> run.result["best_step"], run.report.name
        (32, 'report.png')
        >>> sum(weight.numel() for weight in run.model().dense.parameters())
        826
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        from livetrain.trainers.runtime import run_folder

        run_folder.check(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def recipe(self) -> "Recipe":
        """The recipe that was trained, every default filled in."""
        from livetrain.trainers.runtime import run_folder

        return run_folder.recipe_of(self.folder)

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json: metrics as ``test.<task>.<metric>``, rows per second, versions and more.

        Raises:
            BadInput: the run has not finished.
        """
        try:
            return json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            raise BadInput(f"{self.folder}: this run has not finished (no whole result.json); train it on") from None

    @property
    def report(self) -> Path:
        """The path of the report's picture, which is there once the run has finished."""
        return self.folder / "report.png"

    def metrics(self, kind: Literal["train", "eval"] | None = None) -> "pandas.DataFrame":
        """Return the lines of metrics.jsonl, in order: a row per line, a column per key.

        Args:
            kind: ``train`` for the lines of training, ``eval`` for one line per evaluation; by default all lines,
                notes and the beginnings of stages too.
        """
        import pandas

        from livetrain.trainers.runtime import runlog

        return pandas.DataFrame([line for line in runlog.read(self.folder) if kind in (None, line["kind"])])

    def model(self, checkpoint: Which = "best") -> "nn.Module":
        """Return a checkpoint's model, whole, on the CPU: float32, evaluation mode, no gradients.

        Tables of more than 4 GiB in all lie in files without a name in TMPDIR, mapped.

        Raises:
            BadInput: there is no such checkpoint, or it is damaged.
        """
        from livetrain.trainers.export.export import plain_model
        from livetrain.trainers.export.fitted import learned
        from livetrain.trainers.runtime.run_folder import find_checkpoint

        load = learned if self.recipe.model.fitted else plain_model
        return load(self.recipe, find_checkpoint(self.folder, checkpoint))

    def evaluate(self, split: Split = "test", checkpoint: Which = "best") -> dict[str, float]:
        """As the function `evaluate`."""
        return evaluate(self, split, checkpoint)

    def predict(self, table: "Table", source: "Which | str | Path" = "best") -> "Table":
        """Return a table with the predictions for its rows, one column ``<task>_score`` per task, in the same order.

        Args:
            table: a pandas DataFrame or a pyarrow Table with the columns that the features need; no labels.
            source: the checkpoint that predicts, or the folder of an export.

        Raises:
            BadInput: a column is missing or of another type, or there is no such checkpoint.

        Example:
            >>> import pandas
            >>> run = Run("runs/small")
            >>> scored = run.predict(pandas.read_parquet(f"{run.recipe.data.path}/test", dtype_backend="pyarrow"))
            >>> list(scored.columns[-2:]), bool(scored.click_score.between(0, 1).all())
            (['worth', 'click_score'], True)
        """
        from livetrain.trainers.export.prediction import predictor, score, weights_of

        return score(predictor(weights_of(self.folder, source)), table)

    def export(
        self, out: str | Path | None = None, *, checkpoint: Which = "best", quantize: "Quantization | None" = None
    ) -> dict[str, Any]:
        """As the function `export`."""
        return export(self, out, checkpoint=checkpoint, quantize=quantize)


def train(recipe: "str | Path | Mapping[str, Any] | Recipe", /, *, runs: str | Path = "runs", **overrides: Any) -> Run:
    """Train a recipe to its end, and export it. A run of the same name that was killed goes on where it was.

    Args:
        recipe: a YAML file, what such a file holds, or what `load_recipe` returns.
        runs: the folder that the run's own folder is made in.
        overrides: other values by key, put over the recipe: ``train={"epochs": 2}`` or ``**{"train.epochs": 2}``.

    Raises:
        BadInput: the recipe, its data or the run's folder is wrong; nothing was trained then. Or the export failed: the
            message says so, and the run is whole.

    Example:
        >>> run = train("small.yaml", train={"epochs": 1}, name="again")  # doctest: +ELLIPSIS
        checking the data
        ...
        >>> run.result["test.click.auc"] > 0.7
        True
    """
    from livetrain.configs.load import load_recipe
    from livetrain.trainers.runtime.process import set_up

    settled = load_recipe(recipe, **overrides)
    set_up()
    from livetrain.cluster import launch

    return Run(Path(runs) / launch.train(settled, Path(runs))["name"])


def evaluate(run: Run | str | Path, split: Split = "test", checkpoint: Which = "best") -> dict[str, float]:
    """Measure a run's checkpoint on a split, with the run's number of workers.

    Returns:
        Metrics by ``<split>.<task>.<metric>``.

    Raises:
        BadInput: there is no such run, split or checkpoint.

    Example:
        >>> metrics = evaluate("runs/small", "valid")  # doctest: +ELLIPSIS
        checking the data
        ...
        >>> round(metrics["valid.click.auc"], 1)
        0.8
    """
    run = run if isinstance(run, Run) else Run(run)
    from livetrain.trainers.runtime.process import set_up

    set_up()
    from livetrain.cluster import launch

    return launch.evaluate(run.folder, split, checkpoint)


def predict(
    run: Run | str | Path,
    data: str | Path,
    out: str | Path,
    *,
    source: "Which | str | Path" = "best",
    keep: Sequence[str] | None = None,
    top: tuple[int, str] | None = None,
    task: str | None = None,
    vectors: "Side | None" = None,
    neighbours: tuple[int, str, str] | None = None,
    address: str | None = None,
    progress: Callable[[int, int], None] = lambda done, files: None,
) -> dict[str, Any]:
    """Write the predictions of a run for every row of some Parquet files, file by file, in their order.

    Args:
        run: which.
        data: a Parquet file, or a folder of them; a path or a URI.
        out: a new folder. A call that was killed goes on there when it is made again.
        source: the checkpoint that predicts, or the folder of an export.
        keep: columns that pass through, by default all but lists.
        top: ``(10, "user")`` writes the ten best rows per user only.
        task: the task by which they are the best, by default the first.
        vectors: write the vectors of this side of a model with two towers in the place of predictions.
        neighbours: ``(10, "items.parquet", "item")`` writes the ten nearest items of each row, by the column that tells
            items apart.
        address: of a Ray cluster whose nodes score, such as ``auto``; all paths must be shared.
        progress: told files done and files in all.

    Returns:
        The folder's manifest: `rows`, and the digests of its `files`.

    Raises:
        NotNow: another process writes to `out`.
        BadInput: there is no such run, checkpoint or data, or rows that cannot be scored: nothing is written then.

    Example:
        >>> run = Run("runs/small")
        >>> predict(run, f"{run.recipe.data.path}/test", "scores", top=(10, "user"))["rows"] > 100
        True
    """
    run = run if isinstance(run, Run) else Run(run)
    from livetrain.trainers.runtime.process import set_up

    set_up()
    from livetrain.cluster.alone import alone
    from livetrain.cluster.on_ray import on_ray
    from livetrain.trainers.export import prediction_files as files

    if task and top is None:
        raise BadInput("--task: says by which predictions rows are the best, so it goes with --top")
    files.check_place(Path(out), str(data))  # before the lock is made beside it
    lock = Path(out).with_name(f".{Path(out).name}.lock")
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(lock, f"{out}: another process predicts into this folder; wait for it", patience=0))
        stack.callback(lock.unlink, missing_ok=True)
        run_all = stack.enter_context(on_ray(address, run.recipe)) if address else map
        return files.predict(
            run.folder,
            str(data),
            Path(out),
            source=str(source),
            keep=keep,
            best=files.Best(*top, task) if top else None,
            vectors=vectors,
            neighbours=files.Neighbours(*neighbours) if neighbours else None,
            run_all=run_all,
            progress=progress,
        )


def export(
    run: Run | str | Path,
    out: str | Path | None = None,
    *,
    checkpoint: Which = "best",
    quantize: "Quantization | None" = None,
    triton: str | Path | None = None,
    warn: Callable[[str], None] = log.warning,
    **asked: Any,
) -> dict[str, Any]:
    """Write a run's model as one TorchScript file, with its signature and scored example rows.

    Args:
        run: which.
        out: the folder to write, by default the run's ``export``; an earlier export there is replaced.
        checkpoint: the best on the validation split, or the newest.
        quantize: how tables are stored, by default as the recipe says.
        triton: a model repository of Triton, in which it becomes the newest version of a model named as the run.
        warn: told why Weights & Biases, where the recipe names it, has not got the export.
        asked: other values of the recipe's ``export``: ``compiled``, ``onnx``, ``candidate``.

    Returns:
        The signature, as signature.json holds it.

    Raises:
        BadInput: there is no such run or checkpoint, the folder cannot be written, or the file's scores on held-out
            rows are not the model's: then nothing is written.

    Example:
        >>> signature = export("runs/small", "served")
        >>> signature["tasks"], signature["parity"]["rows"]
        ({'click': {'label': 'label', 'output': 'probability'}}, 500)
    """
    run = run if isinstance(run, Run) else Run(run)
    from livetrain.trainers.export import export as exporter
    from livetrain.trainers.observe import weights_and_biases

    folder = run.folder / "export" if out is None else Path(out)
    signature = exporter.export(run.folder, checkpoint, folder, quantize, **asked)
    if triton is not None:
        from livetrain.trainers.export import triton as repository

        repository.write(folder, Path(triton), run.folder.name)
    weights_and_biases.send_export(run.folder, folder, signature, warn)
    return signature


def runs(folder: str | Path = "runs") -> "pandas.DataFrame":
    """List the runs of a folder, a row each, the newest first.

    Args:
        folder: of runs, or a sweep's.

    Returns:
        `run`, `state` (running, exported, finished, stopped or failed; the last two go on when they are started again),
        `model`, `data`, `tasks`, `metric` that picks the best checkpoint with its figures `valid` and `test`, `step` of
        `steps`, `seconds`, `rows_per_s`, when it last `changed`, and its `folder`.

    Raises:
        BadInput: there is no such folder.

    Example:
        >>> runs("runs")[["run", "state", "model", "metric", "step"]]
             run     state model     metric  step
        0  small  finished   din  click.auc    42
    """
    import pandas

    from livetrain.trainers.observe.runs import listed

    columns = ["run", "state", "model", "data", "tasks", "metric", "valid", "test", "step", "steps"]
    rows = [
        {"run": run.name, **{key: getattr(run, key) for key in columns[1:]}}
        | {"seconds": run.result.get("wall_s"), "rows_per_s": run.result.get("rows_per_s")}
        | {"changed": pandas.Timestamp(run.changed, unit="s", tz="UTC"), "folder": str(run.folder)}
        for run in listed(Path(folder))
    ]
    return pandas.DataFrame(rows, columns=[*columns, "seconds", "rows_per_s", "changed", "folder"])


def comparison(
    runs: "Sequence[Run | str | Path]", split: Split | None = None, checkpoint: Which = "best", draws: int = 200
) -> "Compared":
    """Return what `compare` is a table of."""
    from livetrain.trainers.observe.compare import compared
    from livetrain.trainers.runtime import run_folder

    folders = [run.folder if isinstance(run, Run) else Path(run) for run in runs]
    if split is None:
        return compared(folders, None, "test")
    for folder in folders:  # all, before any is measured
        run_folder.find_checkpoint(folder, checkpoint)
    compared(folders, None, split)
    from livetrain.cluster import launch
    from livetrain.trainers.runtime.process import set_up

    set_up()
    return compared(folders, [launch.measure(folder, split, checkpoint, draws=draws) for folder in folders], split)


def compare(
    runs: "Sequence[Run | str | Path]", split: Split | None = None, checkpoint: Which = "best"
) -> "pandas.DataFrame":
    """Compare the figures of runs with those of the first one.

    Args:
        runs: two or more.
        split: where to measure all of them now, with 200 draws; by default what their tests have left.
        checkpoint: which of each is measured, with `split`.

    Returns:
        A row per metric and run: `metric` as ``test.<task>.<metric>``, `run`, `value` and its interval `low` to `high`,
        and `difference` to the first run's value with `difference_low` to `difference_high`, its 95 % interval by a
        bootstrap that draws the same groups of rows for both. Intervals are nan where a run kept no draws
        (`evaluate.bootstrap`), or was measured on other rows.

    Raises:
        BadInput: there are not two runs, or one is none or cannot be measured.

    Example:
        >>> import shutil
        >>> again = shutil.copytree("runs/small", "runs/again")
        >>> found = compare(["runs/small", again], "valid")  # doctest: +ELLIPSIS
        checking the data
        ...
        >>> found[found.metric == "valid.click.auc"][["run", "difference", "difference_low"]]
             run  difference  difference_low
        0  small         NaN             NaN
        1  again         0.0             0.0
    """
    return comparison(runs, split, checkpoint).frame
