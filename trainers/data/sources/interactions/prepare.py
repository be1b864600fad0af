"""Files of interactions, from their paths to samples."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.sources.interactions.files import read_events, read_listed, read_table
from livetrain.trainers.data.sources.interactions.log import Names, named
from livetrain.trainers.data.sources.interactions.protocol import Staged, given_test, leave_one_out
from livetrain.trainers.data.sources.interactions.write import Rows, write


@dataclass(frozen=True)
class Source:
    """Where interactions lie, and in which form.

    Args:
        events: the file.
        form: of it, see `files`; by default as its name ends.
        names: role -> column, where it has another than a usual name.
        users, items: tables of what is known of them.
        test: events that test, one per user; by default each user's last.
        negatives: lists of items that those are ranked among.
    """

    events: Path
    form: str | None
    names: Mapping[str, str]
    users: Path | None = None
    items: Path | None = None
    test: Path | None = None
    negatives: Path | None = None

    def told(self) -> dict[str, str]:
        """Return what dataset.json says of it."""
        paths = {"events": self.events, "users": self.users, "items": self.items, "test": self.test}
        paths["negatives"] = self.negatives
        files = {role: path for role, path in paths.items() if path is not None and path.is_file()}
        digests = {f"{role}_sha256": hashlib.sha256(path.read_bytes()).hexdigest() for role, path in files.items()}
        said = {role: str(path.resolve()) for role, path in paths.items() if path is not None} | dict(self.names)
        return said | digests | ({} if self.form is None else {"form": self.form})


def prepare(
    source: Source,
    out: Path,
    rows: Rows = "users",
    teaches_valid: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Read files of interactions and write samples; return what dataset.json holds.

    Args:
        source: the files. They are held in memory, their text about twice.
        out, rows, teaches_valid, progress: see `write`.

    Raises:
        BadInput: see `read_events`, `given_test` and `write`.
    """
    if source.negatives is not None and source.test is None:
        raise BadInput("--negatives: are those of test events in a file of their own; name that by --test")
    if rows == "events" and source.negatives is None:
        raise BadInput("--rows events: rows per event are ranked among listed items; give --test and --negatives")
    return write(partial(_staged, source, progress), out, "next-item", source.told, rows, teaches_valid, progress)


def _staged(source: Source, progress: Callable[[str], None]) -> Staged:
    progress(f"reading {source.events}")
    events = read_events(source.events, source.form, source.names)
    test = None if source.test is None else read_events(source.test, source.form, source.names)
    listed = None if source.negatives is None else read_listed(source.negatives)
    parts = [events] if test is None else [events, test]
    users = _beside(named([part.user for part in parts]), source.users, source.names.get("user"), "user")
    others = [] if listed is None else [listed.negatives]
    items = _beside(named([*(part.item for part in parts), *others]), source.items, source.names.get("item"), "item")
    if test is None:
        return leave_one_out(events, users, items)
    return given_test(events, test, users, items, listed)


def _beside(names: Names, path: Path | None, key: str | None, role: str) -> Names:
    if path is None:
        return names
    table, key = read_table(path, key, role)
    return names.beside(table, key, str(path))
