"""What livetrain looks like in a terminal: runs a session in tmux, 100 columns wide, and keeps what stood there.

    python -m docs.terminal        # writes docs/start/terminal/*.txt

The data are made up, so that it takes a minute or two.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from livetrain.configs.load import dump_recipe
from tests import samples

OUT = Path(__file__).parent / "start" / "terminal"
SOCKET, NAME, COLUMNS, LONGEST_S = "livetrain-docs", "docs", 100, 900
SESSION = [  # (file, command, what stands there when the screen is kept; by default its end)
    ("start", "livetrain train recipe.yaml name=first", r"\d left"),
    ("train", None, None),
    ("wide", "livetrain train recipe.yaml name=wide 'model.units=[64]'", None),
    ("evaluating", "livetrain evaluate runs/first --split valid", r"[1-9]\d*/\d+ batches"),
    ("evaluate", None, None),
    ("mistake", "livetrain train recipe.yaml --train.epochs=2", None),
    ("runs", "livetrain runs", None),
    ("compare", "livetrain compare runs/first runs/wide", None),
]


def tmux(*words: str) -> str:
    done = subprocess.run(["tmux", "-L", SOCKET, *words], capture_output=True, text=True, check=True)
    return done.stdout


def screen() -> str:
    """Return what stands in the terminal, without what is empty below."""
    return "\n".join(line.rstrip() for line in tmux("capture-pane", "-p", "-S", "-", "-t", NAME).splitlines()).rstrip()


def wait(pattern: str) -> str:
    """Return the screen as soon as a pattern is on it."""
    stop = time.monotonic() + LONGEST_S
    while time.monotonic() < stop:
        if re.search(pattern, shown := screen()):
            return shown
        time.sleep(0.05)
    raise SystemExit(f"'{pattern}' did not come:\n{shown}")


def main() -> None:
    work = Path(tempfile.mkdtemp())
    samples.write(work / "data", rows=20_000)
    changes = {"evaluate__bootstrap": 100, "export__after_training": True, "train__log_every": 20}
    recipe = samples.recipe(Path("data"), **changes).model_copy(update={"name": None})
    (work / "recipe.yaml").write_text(dump_recipe(recipe, defaults=False))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shell = f"cd {shlex.quote(str(work))} && exec env PS1='$ ' PATH={shlex.quote(path)} OMP_NUM_THREADS=1 bash --norc"
    tmux("new-session", "-d", "-s", NAME, "-x", str(COLUMNS), "-y", "60", shell)
    OUT.mkdir(exist_ok=True)
    try:
        wait(r"^\$ *$")
        for file, command, pattern in SESSION:
            if command is not None:
                tmux("send-keys", "-t", NAME, "clear", "Enter")
                wait(r"^\$ *$")
                tmux("clear-history", "-t", NAME)
                tmux("send-keys", "-t", NAME, command, "Enter")
                wait(r"\$ livetrain")
            shown = wait(pattern or r"\n\$ *$")
            (OUT / f"{file}.txt").write_text(re.sub(r"\n\$ *$", "", shown) + "\n")
    finally:
        tmux("kill-session", "-t", NAME)
    (OUT / "wide.txt").unlink()


if __name__ == "__main__":
    main()
