"""The runs of a folder: what became of each. Without torch, so that a list is there at once."""

import fcntl
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.trees import read_tree
from livetrain.trainers.runtime import run_folder
from livetrain.trainers.runtime.run_folder import LOCK, LOG

STYLES = {"running": "cyan", "exported": "green", "finished": "green", "stopped": "yellow", "failed": "red"}
_TAIL = 2**18  # bytes at the end of a log, in which its last training line stands


@dataclass(frozen=True)
class Listed:
    """A run's folder, as it is now.

    Args:
        folder: the run's.
        state: one of STYLES: `exported` is finished with an export; `stopped` was killed, interrupted or told to stop,
            and like `failed` goes on when it is started again.
        recipe: config.yaml's tree; empty where there is none that can be read.
        result: the content of result.json; empty of a run that has not finished.
        step: that training has come to, None before the first line.
        steps: of the whole training.
        metric: `<task>.<metric>` that picks its best checkpoint.
        best: the metrics on valid/ of the best checkpoint.
        changed: when there was the last sign of it, in seconds since 1970.
    """

    folder: Path
    state: str
    recipe: dict[str, Any]
    result: dict[str, Any]
    step: int | None
    steps: int | None
    metric: str | None
    best: dict[str, Any] = field(default_factory=dict)
    changed: float = 0.0

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def model(self) -> str | None:
        return _at(self.recipe, "model", "kind")

    @property
    def data(self) -> str | None:
        return _at(self.recipe, "data", "path")

    @property
    def tasks(self) -> list[str]:
        return list(_at(self.recipe, "tasks") or {})

    @property
    def valid(self) -> float | None:
        """The metric on valid/, of the best checkpoint."""
        return self.best.get(self.metric) if self.metric else None

    @property
    def test(self) -> float | None:
        """The metric on test/, once the run has finished."""
        return self.result.get(f"test.{self.metric}")

    @property
    def progress(self) -> str:
        """The state in words, of a run that has not finished with how far it is."""
        if self.result or self.step is None or self.steps is None:
            return self.state
        return f"{self.state} {self.step:,}/{self.steps:,}"


def listed(folder: Path) -> list[Listed]:
    """Return the runs in a folder, the newest first: runs/, or a sweep's folder, or one run's own.

    Raises:
        BadInput: there is no such folder.
    """
    if not folder.is_dir():
        beside = [str(path) for path in folder.parent.glob("*") if path.is_dir()] if folder.parent.is_dir() else []
        raise BadInput(f"{folder}: there is no such folder{nearest(str(folder), beside)}")
    inside = folder / "trials" if (folder / "sweep.json").exists() else folder
    places = [folder] if _is_run(folder) else sorted(path for path in inside.iterdir() if _is_run(path))
    return sorted(map(look, places), key=lambda run: -run.changed)


def sweeps(folder: Path) -> list[Path]:
    """Return the sweeps in a folder."""
    return sorted(path.parent for path in folder.glob("*/sweep.json"))


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() or (path / LOG).is_file()


def look(run: Path) -> Listed:
    """Return what a run's folder says, however little of it is whole."""
    recipe, result, last = _tree(run), _result(run), _last_lines(run)
    train = next((line for line in last if line.get("kind") == "train"), {})
    state = "stopped"
    if _held(run):
        state = "running"
    elif result:
        state = "exported" if run_folder.exported(run) else "finished"
    elif last and last[0].get("kind") == "failed":
        state = "failed"
    best = {key.removeprefix("valid."): value for key, value in result.items() if key.startswith("valid.")}
    if not result and (saved := run_folder.committed(run)):
        best = run_folder.content(saved[-1]).get("position", {}).get("valid") or {}
    times = [(run / name).stat().st_mtime for name in (LOG, "result.json", "config.yaml") if (run / name).exists()]
    metric = result.get("best_by") or result.get("selected") or _selected(recipe, best)
    return Listed(
        run, state, recipe, result, train.get("step"), train.get("steps"), metric, best, max(times, default=0.0)
    )


def _tree(run: Path) -> dict[str, Any]:
    try:
        return read_tree(run / "config.yaml", "recipe", "keys")[0]
    except BadInput:
        return {}


def _result(run: Path) -> dict[str, Any]:
    try:
        return run_folder.finished(run) or {}
    except OSError:
        return {}


def _last_lines(run: Path) -> list[dict[str, Any]]:
    """Return the lines at the end of a run's log, the last one first."""
    try:
        with (run / LOG).open("rb") as file:
            file.seek(max(file.seek(0, 2) - _TAIL, 0))
            texts = file.read().splitlines()
    except OSError:
        return []
    found = []
    for text in reversed(texts):
        try:
            line = json.loads(text)
        except ValueError:  # cut by a kill, or by where the tail begins
            continue
        found += [line] if isinstance(line, dict) else []
    return found


def _held(run: Path) -> bool:
    """Return whether a process trains the run, on this machine or on one whose locks the storage knows."""
    try:
        with open(run / LOCK, encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _selected(recipe: Mapping[str, Any], best: Iterable[str]) -> str | None:
    """Return what picks an unfinished run's checkpoints; the leading metric is the first of its task."""
    task = next(iter(_at(recipe, "tasks") or {}), "")
    chosen = _at(recipe, "train", "select")
    if chosen:
        return chosen if "." in chosen else f"{task}.{chosen}"
    return next((name for name in best if name.startswith(f"{task}.")), None)


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def runs_table(found: list[Listed], now: float | None = None) -> Table:
    """Return runs as a table for the terminal."""
    now = time.time() if now is None else now
    shown = Table(header_style="bold")
    for head in ("run", "state", "model", "data", "metric"):
        shown.add_column(head, overflow="fold")
    for head in ("valid", "test", "age"):
        shown.add_column(head, justify="right", no_wrap=True)
    for run in found:
        state = Text(run.progress, STYLES[run.state])
        words: list[str | Text] = [run.name, state, run.model or "-", _short(run.data), run.metric or "-"]
        shown.add_row(*words, number(run.valid), number(run.test), age(now - run.changed))
    return shown


def _short(path: str | None) -> str:
    """Return a path's last two parts."""
    return "/".join(path.rstrip("/").split("/")[-2:]) if path else "-"


def number(value: Any) -> str:
    """Return a figure with four digits, or - for none."""
    return f"{value:,.4f}" if isinstance(value, int | float) else "-"


def age(seconds: float) -> str:
    """Return how long ago something was.

    Example:
        >>> age(40), age(3000), age(90_000)
        ('40 s', '50 min', '25 h')
    """
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{max(seconds, 0) // size:.0f} {unit}"
    return f"{seconds // 86_400:,.0f} days"
