"""The source that a spec names."""

from pathlib import Path

from livetrain.configs.stream_spec import FolderSource, KafkaSource, NatsSource
from livetrain.trainers.data.stream.sources.base import Source


def open_source(told: FolderSource | KafkaSource | NatsSource, folder: Path, work: Path) -> Source:
    """Return a source.

    Args:
        told: by the spec.
        folder: that paths are seen from.
        work: folder for copies.

    Raises:
        BadInput: its client is not installed, or what it is told is wrong.
    """
    if isinstance(told, FolderSource):
        from livetrain.trainers.data.stream.sources.folder import Folder

        return Folder(told.path if "://" in told.path else str(folder / told.path), work)
    if isinstance(told, KafkaSource):
        from livetrain.trainers.data.stream.sources.kafka import Kafka

        return Kafka(told)
    from livetrain.trainers.data.stream.sources.nats import Nats

    return Nats(told)
