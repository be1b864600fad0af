"""What a source of messages is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from livetrain.trainers.data.stream.clock import Place


@dataclass(frozen=True)
class Messages:
    """Messages of one partition, in its order.

    Args:
        place: the partition.
        values: each message's bytes, or None of one without; or the file that holds the rows, Parquet or CSV.
        names: what to call each in a message; of a file one name.
        stamps: when the source got each, ms since 1970; one for all of a file.
        turns: which of them came together, rising numbers: of those none makes another late. Of a file 0 counts.
        next: the offset after them; None where more of the same file follows.
    """

    place: Place
    values: list[bytes | None] | Path
    names: list[str]
    stamps: list[int]
    turns: Sequence[int]
    next: Any


class Source(Protocol):
    """Where messages come from. What fails there and may pass is an OSError."""

    def partitions(self, topic: str) -> list[str]:
        """Return the names of a topic's partitions as they are now."""

    def open(self, place: Place, topic: str, offset: Any) -> None:
        """Read a partition from an offset on; from its beginning where that is None.

        Raises:
            BadInput: the source no longer has what comes after the offset.
        """

    def poll(self, places: set[Place], most: int) -> Iterator[Messages]:
        """Yield what there is now of some of the opened partitions, `most` messages at most, a file whole."""

    def ended(self, place: Place) -> bool:
        """Return whether all has been read that was there when the partition was opened."""

    def close(self) -> None:
        """Let go of everything."""
