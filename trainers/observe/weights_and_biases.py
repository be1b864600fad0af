"""A run on Weights & Biases, for recipes with a `wandb` section. Without one nothing here imports wandb.

Rank 0 opens the run under an id that is kept in <run>/wandb/id, so that whatever comes later (the run resumed after a
kill, its report, its export) goes on under the same id. Curves have the trainer's step as their axis: a resumed run
sends the steps since its checkpoint once more, with the same values. wandb is a convenience: where it fails, one
warning says so and the run goes on without it.
"""

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from livetrain.configs.errors import BadInput, without_credentials
from livetrain.configs.load import dump_recipe
from livetrain.configs.schema import Recipe
from livetrain.trainers.runtime import manifest, ranks, run_folder
from livetrain.trainers.runtime.manifest import write_text

log = logging.getLogger("livetrain")

INIT_S, LOGIN_S, FINISH_S = 30, 15, 600  # longest waits for a server that is away, a person and an upload
_shared: dict[Path, Any] = {}  # by run folder what is open of a run, see `shared`
_APART = ("kind", "time", "split", "samples")  # of a log line, what is no figure


def check(recipe: Recipe) -> None:
    """Raise BadInput where a recipe asks for wandb and it is not installed."""
    if recipe.wandb is None:
        return
    try:
        version("wandb")  # not an import: a folder that is called wandb can be imported too
    except PackageNotFoundError:
        raise BadInput(
            "wandb: the package is not installed; pip install 'livetrain[wandb]', or leave wandb out of the recipe"
        ) from None


class Tracker:
    """Sends a run's log lines to wandb on rank 0; does nothing elsewhere, or without a wandb section.

    A context manager: leaving it by an exception marks the run as failed.

    Args:
        recipe: the run.
        run: the run folder.
        warn: told, once, why wandb is left out from here on.
    """

    def __init__(self, recipe: Recipe, run: Path, warn: Callable[[str], None] = log.warning) -> None:
        self._recipe, self._folder, self._warn = recipe, run, warn
        self._run: Any = None

    def __enter__(self) -> "Tracker":
        if self._recipe.wandb is not None and ranks.is_main():
            self._run = _shared.get(self._folder)
            if self._run is None:
                self._try(self._start)
            if self._folder in _shared:
                _shared[self._folder] = self._run
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if kind is None and self._folder in _shared:
            return  # more may come
        run = self._run
        self._try(lambda: run.finish(exit_code=0 if kind is None else 1))
        self._forget()

    def line(self, kind: str, content: dict[str, Any]) -> None:
        """Send a line of metrics.jsonl: training figures as ``train/...``, an evaluation's as ``<split>/...``."""
        if kind in ("train", "eval"):
            self._try(self._log, content.get("split", "train"), content)

    def report(self, picture: Path, result: dict[str, Any]) -> None:
        """Send a finished run's report, the picture and the page beside it, and the figures of its result."""
        self._try(self._report, picture, result)

    def export(self, folder: Path, signature: dict[str, Any]) -> None:
        """Send an export as an artifact of type model, with its checkpoint, metrics and parity figures."""
        self._try(self._export, folder, signature)

    def _try(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do something with the run, if it is there; after a failure it is not."""
        if self._run is None and action != self._start:
            return
        try:
            action(*arguments)
        except Exception as error:
            self._forget()
            reason = without_credentials(" ".join(str(error).split())) or type(error).__name__
            write_text(_failure(self._folder), reason)
            self._warn(f"wandb failed, the run goes on without it: {reason}")

    def _forget(self) -> None:
        self._run = None
        if self._folder in _shared:
            _shared[self._folder] = None

    def _start(self) -> None:
        (self._folder / "wandb").mkdir(exist_ok=True)
        _failure(self._folder).unlink(missing_ok=True)
        import wandb

        asked = self._recipe.wandb
        assert asked is not None  # see __enter__
        self._run = wandb.init(
            project=asked.project,
            entity=asked.entity,
            mode=asked.mode,
            tags=asked.tags,
            group=asked.group,
            name=self._recipe.name,
            id=_run_id(self._folder, self._recipe),
            resume="allow",
            dir=str(self._folder),
            config=yaml.safe_load(dump_recipe(self._recipe)),
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=INIT_S,
                login_timeout=LOGIN_S,
                finish_timeout=FINISH_S,
                finish_timeout_raises=True,
                # The command line and the git remote may hold what the recipe's dump leaves out.
                x_disable_meta=True,
                disable_git=True,
                disable_code=True,
            ),
        )
        self._run.define_metric("*", step_metric="step")

    def _log(self, split: str, content: dict[str, Any]) -> None:
        figures = {f"{split}/{k}": v for k, v in manifest.finite(content).items() if k not in (*_APART, "step")}
        self._run.log({"step": content["step"], **figures})

    def _report(self, picture: Path, result: dict[str, Any]) -> None:
        import wandb

        page = wandb.Html(str(picture.with_suffix(".html")), inject=False)  # as it is
        self._run.log({"step": result["step"], "report": wandb.Image(str(picture)), "report_page": page})
        figures = {k: v for k, v in manifest.finite(result).items() if isinstance(v, int | float)}
        self._run.summary.update(figures)

    def _export(self, folder: Path, signature: dict[str, Any]) -> None:
        import wandb

        about: dict[str, Any] = {key: signature[key] for key in ("checkpoint", "metrics", "parity") if key in signature}
        artifact = wandb.Artifact(f"{self._recipe.name}-model", type="model", metadata=about)
        # Uploaded before this ends, the files need no copy; one that is synchronised later does.
        offline = self._recipe.wandb is not None and self._recipe.wandb.mode == "offline"
        artifact.add_dir(str(folder), policy="mutable" if offline else "immutable")
        self._run.log_artifact(artifact)


@contextmanager
def shared(recipe: Recipe, run: Path) -> Iterator[None]:
    """Send what this process sends of a run within as one, so in one folder of wandb's: curves, report and export."""
    _shared[run] = None
    try:
        yield
    finally:
        if (opened := _shared.pop(run)) is not None:
            tracker = Tracker(recipe, run)
            tracker._run = opened
            tracker.__exit__(None, None, None)  # what it was sent is whole: it was left without an error


def report(recipe: Recipe, run: Path, picture: Path, result: dict[str, Any]) -> None:
    """Send a finished run's report and result, unless wandb failed while it trained, which was warned of then."""
    if not reported(recipe, run):
        with Tracker(recipe, run) as tracker:
            tracker.report(picture, result)
        write_text(_reported(run), "")


def reported(recipe: Recipe, run: Path) -> bool:
    """Return whether there is nothing to send of a finished run any more."""
    return recipe.wandb is None or _failure(run).exists() or _reported(run).exists()


def send_export(run: Path, folder: Path, signature: dict[str, Any], warn: Callable[[str], None] = log.warning) -> None:
    """Add an export to what a run that was trained before has sent, where its recipe has a wandb section."""
    with Tracker(run_folder.recipe_of(run), run.resolve(), warn) as tracker:
        tracker.export(folder, signature)


def _failure(run: Path) -> Path:
    """Return the file that says why wandb failed in the newest attempt; it is there only then."""
    return run / "wandb" / "failed"


def _reported(run: Path) -> Path:
    """Return the file that is there once a finished run's report was sent."""
    return run / "wandb" / "reported"


def _run_id(run: Path, recipe: Recipe) -> str:
    """Return the run's id: its name, and a draw that tells it from an earlier run of that name; made once."""
    path = run / "wandb" / "id"
    if not path.exists():
        assert recipe.name is not None  # a run's recipe has one
        write_text(path, f"{recipe.name[:64]}-{secrets.token_hex(4)}")
    return path.read_text(encoding="utf-8")
