"""runs/<name>/metrics.jsonl: what a run says while it goes on, one JSON object per line, written by rank 0."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from livetrain.trainers.runtime import ranks, run_folder
from livetrain.trainers.runtime.manifest import finite, write_text

NAME = run_folder.LOG


class RunLog:
    """Appends lines to a run's metrics.jsonl.

    Args:
        run: the run folder.
        step: the step at which this attempt starts; lines of a lost attempt beyond it are dropped, and its evaluation
            of test, which ends a run: so that a resumed run's log reads as if it had never stopped.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / NAME
        self.listeners: list[Callable[[str, dict[str, Any]], None]] = []  # told (kind, content) of each line
        if ranks.is_main() and self.path.exists():
            kept = [line for line in read(run) if line.get("step", 0) <= step and line.get("split") != "test"]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, kind: str, **content: Any) -> None:
        """Append a line; does nothing on the other ranks."""
        if ranks.is_main():
            note(self.path.parent, kind, **content)
            for listener in self.listeners:
                listener(kind, content)


def note(run: Path, kind: str, **content: Any) -> None:
    """Append one line to a run's log from outside the training loop."""
    line = json.dumps(finite({"kind": kind, "time": round(time.time(), 3), **content}), allow_nan=False)
    with (run / NAME).open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a kill cut the last line short
                line = "\n" + line
        file.write(line.encode() + b"\n")


def read(run: Path) -> list[dict[str, Any]]:
    """Return a run's lines; a last line that a kill cut short is left out."""
    path, out = run / NAME, []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            out.append(line)
    return out
