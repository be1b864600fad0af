"""What `livetrain init` does: it looks at files, guesses, and writes a spec and a recipe."""

import re
import tempfile
from pathlib import Path

from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.configs.spec import Files, Spec, load_spec
from livetrain.configs.values import RUN_NAME
from livetrain.trainers.data.sources.events.stage import database
from livetrain.trainers.data.sources.table import files, look, select
from livetrain.trainers.data.sources.table.columns import columns
from livetrain.trainers.data.sources.table.guess import guess
from livetrain.trainers.data.sources.table.guessed import Guess, plain
from livetrain.trainers.data.sources.table.recipe_text import recipe_text
from livetrain.trainers.data.sources.table.spec_text import spec_text
from livetrain.trainers.runtime.manifest import write_text


def init(paths: list[str], folder: Path, name: str | None, labels: dict[str, str]) -> tuple[Path, Path, Guess]:
    """Look at some files and write a spec and a recipe that trains on them.

    Args:
        paths: files, or URIs.
        folder: for the two files; their paths in the spec are seen from there.
        name: of the dataset and of the run, by default the log's file name.
        labels: expressions to predict, instead of guesses.

    Returns:
        The spec, the recipe, and what was guessed.

    Raises:
        BadInput: a file cannot be read or is given twice, nothing looks like an outcome, the name is none, or one of
            the two files exists already.
    """
    if name is not None and not re.fullmatch(RUN_NAME, name):
        raise BadInput(f"--name {name}: write letters, digits, . _ and -, a letter or digit first")
    paths = files.found(Files(files=paths), Path())
    with tempfile.TemporaryDirectory(prefix="livetrain-init-") as work, database(Path(work)) as connection:
        select.add_functions(connection)
        looked = [look.look(connection, path, number, Path(work)) for number, path in enumerate(paths)]
        found = guess(connection, looked, labels)
    stem = name or plain(found.log.path.rpartition("/")[2].split(".")[0], ())
    spec, recipe = folder / f"{stem}_data.yaml", folder / f"{stem}.yaml"
    for path in (spec, recipe):
        if path.exists():
            raise BadInput(f"{path} exists already; remove it, or choose another --name or --out")
    made = columns(found)
    texts = {spec: spec_text(found, made, stem, folder), recipe: recipe_text(found, made, stem, spec)}
    with tempfile.TemporaryDirectory(prefix="livetrain-init-") as draft:  # nothing is written that cannot be read
        drafts = {path: Path(draft, path.name) for path in texts}
        for path, content in texts.items():
            write_text(drafts[path], content)
        try:
            load_spec(drafts[spec], Spec)
            load_recipe(drafts[recipe])
        except BadInput as error:
            raise BadInput(f"{str(error).replace(f'{draft}/', '')}; nothing is written") from None
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in texts.items():
        write_text(path, content)
    return spec, recipe, found


def reasons(found: Guess) -> list[str]:
    """Return what was guessed, for the terminal."""
    left = [f"left out: {column}, {why}" for column, why in found.left.items() if why not in ("a label", "the time")]
    return [*found.why, *left]
