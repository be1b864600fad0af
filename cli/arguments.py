"""What the commands' arguments have in common."""

import contextlib
import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from livetrain.cli.terminal import err, note
from livetrain.configs.errors import BadInput, without_credentials
from livetrain.trainers.observe.waiting import waiting

if TYPE_CHECKING:
    from livetrain.configs.schema import Recipe


PICTURES = (".png", ".svg", ".pdf", ".jpg")


class Which(StrEnum):
    best = "best"
    last = "last"


class Split(StrEnum):
    train = "train"
    valid = "valid"
    test = "test"


Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/din_ml1m.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as train.epochs=2 cluster.workers=4."),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Work on this Ray cluster, such as auto or head:6379; all paths must be shared.",
        show_default=False,
    ),
]
Checkpoint = Annotated[Which, typer.Option(help="The best on the validation split, or the newest.")]


def here(text: str) -> Path:
    """Return the folder that samples are to be made in.

    Raises:
        BadInput: it is a URI, which as a path would be a folder of that name. typer puts the option before it.
    """
    if "://" in text:
        raise BadInput(f"{without_credentials(text)} is no folder; make the samples in one, and copy it there")
    return Path(text)


def check_picture(path: Path) -> None:
    """Refuse a file that no picture can be written to, before the work that it shows.

    Raises:
        BadInput: its name does not say what kind of picture, or nothing can be written there.
    """
    if path.suffix.lower() not in PICTURES:
        raise BadInput(f"--out: '{path}' is no picture's name; end it with {', '.join(PICTURES)}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        why = "it is a folder" if path.is_dir() else f"{path.parent} is no folder that can be written to"
        raise BadInput(f"{path}: cannot write here ({why}); choose another file with --out")


@contextlib.contextmanager
def interrupts_told() -> Iterator[None]:
    """Say what an interrupt says of what was interrupted."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if str(interrupt):
            note(str(interrupt))
        raise


def load(recipe: Path, overrides: list[str] | None) -> "Recipe":
    with waiting("reading the recipe", err):
        from livetrain.configs.load import load_recipe

        return load_recipe(recipe, overrides or [])


def raw(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
