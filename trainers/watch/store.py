"""A stream's metrics folder: a Parquet file per closed minute, whole or not there.

    METRICS/measures.json                           what is measured; written first, once
    METRICS/date=YYYY-MM-DD/time=HHMMSS.parquet     see `effects`

A file is a function of its minute and of measures.json alone, and appears under its name once it is on the disk. So who
was killed goes on with the minutes that have none, and two who measure at once write the same.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.configs.errors import BadInput, short
from livetrain.trainers.data.read import minutes
from livetrain.trainers.data.read.files import open_filesystem
from livetrain.trainers.data.read.minutes import Minute
from livetrain.trainers.runtime import manifest, scratch
from livetrain.trainers.watch.effects import Measures, effects

MEASURES = "measures.json"


class Store:
    """The metrics of one stream.

    Args:
        stream: the stream's folder or URI.
        folder: where they are kept; local.
        measures: what is measured; None for what was when the folder was begun.

    Attributes:
        measures: None where nothing is asked for, and nothing was before.

    Raises:
        NotNow: there is no stream (yet).
        BadInput: the folder was begun with other measures, a column is not there, or something cannot be read.
    """

    def __init__(self, stream: str, folder: Path, measures: Measures | None) -> None:
        self.stream, self.folder = stream, folder
        about = minutes.about(stream)
        self.every_s: int = about["every_s"]
        self.measures = self._settled(measures, list(about["columns"]))
        self._columns = [] if self.measures is None else self.measures.columns()
        self._last: str | None = None  # up to here every minute has its file: they are written in order
        if self.measures is not None and (kept := self._kept()):
            name = str(kept[-1].relative_to(self.folder)).removesuffix(".parquet")
            self._last = minutes.name_of(minutes.start_of(name))

    def _settled(self, measures: Measures | None, columns: list[str]) -> Measures | None:
        path = self.folder / MEASURES
        try:
            kept = Measures.of(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            kept = None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path} cannot be read ({short(error)}); remove {self.folder}, it is made again") from None
        if measures is None or measures == kept:
            return kept
        if kept is not None:
            raise BadInput(
                f"{self.folder} was begun with other --label, --per, --score or --by; give those, none of them, or "
                "another --metrics"
            )
        measures.check(columns)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            manifest.write_json(path, measures.content())
        except OSError as error:
            raise BadInput(f"{self.folder} cannot be written ({short(error)}); choose another --metrics") from error
        return measures

    def measure(self) -> Iterator[Minute]:
        """Yield the closed minutes of which there is no file, each once its file is there.

        Raises:
            BadInput: a minute cannot be read, or the file not be written.
        """
        for minute in minutes.closed(self.stream, self._last):
            if self.measures is not None and not self.path(minute.start).exists():
                self._write(minute, self.measures)
                yield minute
            self._last = minute.name

    def path(self, start: int) -> Path:
        """Return the file of the minute that begins at a time, s since 1970."""
        return self.folder / f"{minutes.folder_of(start)}.parquet"

    def newest(self) -> int | None:
        """Return when the newest minute begins of which there is a file, s since 1970; None before there is one."""
        return None if self._last is None else minutes.started(self._last)

    def read(self, since: int) -> pa.Table | None:
        """Return what is kept of the minutes that begin at `since` or later, in their order."""
        found = [path for path in self._kept() if path >= self.path(since)]
        return pa.concat_tables([pq.read_table(path, partitioning=None) for path in found]) if found else None

    def _kept(self) -> list[Path]:
        return sorted(self.folder.glob("date=*/time=*.parquet"))

    def _write(self, minute: Minute, measures: Measures) -> None:
        path = self.path(minute.start)
        try:
            made = effects(self._samples(minute), minute.start, measures, minute.counts)
            path.parent.mkdir(exist_ok=True)
            draft = path.with_name(f".{path.name}.{scratch.label()}{manifest.DRAFT}")
            try:
                pq.write_table(made, draft)
                manifest.sync(draft)
                os.replace(draft, path)
            finally:
                draft.unlink(missing_ok=True)
            manifest.sync(path.parent)
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"minute {minute.name} cannot be measured ({short(error)}); see to its files") from error

    def _samples(self, minute: Minute) -> pa.Table | None:
        """Return the columns of a minute that are asked for."""
        if not minute.files:
            return None
        filesystem, _ = open_filesystem(self.stream)
        read = [
            pq.read_table(path, columns=self._columns, filesystem=filesystem, partitioning=None)
            for path in minute.files
        ]
        return pa.concat_tables(read)
