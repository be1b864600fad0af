"""Topics of Kafka, by confluent-kafka. Where a stream goes on is in its manifests: no offsets of a group are read."""

import logging
from collections.abc import Iterator
from typing import Any

from livetrain.configs.errors import BadInput
from livetrain.configs.stream_spec import KafkaSource
from livetrain.trainers.data.stream.clock import Place
from livetrain.trainers.data.stream.sources.base import Messages

log = logging.getLogger("livetrain")

_PATIENCE_S = 10.0  # for a broker's answer
_WAIT_S = 0.2  # for messages
_TURN = 10_000  # messages of one call


class Kafka:
    """A source of Kafka's topics.

    Raises:
        BadInput: confluent-kafka is not installed, or librdkafka does not take the options.
    """

    def __init__(self, told: KafkaSource):
        try:
            import confluent_kafka
        except ImportError:
            raise BadInput("a source of kind kafka needs confluent-kafka; pip install 'livetrain[kafka]'") from None
        self._kafka = confluent_kafka
        options = {"bootstrap.servers": told.servers, "group.id": "livetrain", "isolation.level": "read_committed"}
        fixed = {"enable.auto.commit": False, "auto.offset.reset": "error", "enable.partition.eof": False}
        try:
            self._consumer = confluent_kafka.Consumer(
                {**options, **told.options, **fixed, "error_cb": self._failed, "log_level": 3}
            )
        except (confluent_kafka.KafkaException, TypeError, ValueError) as error:
            words = error.args[0] if error.args else error
            text = words.str() if hasattr(words, "str") else str(words)
            raise BadInput(
                f"sources: librdkafka does not take the options of {told.servers} ({text}); correct them"
            ) from None
        self._places: dict[tuple[str, int], Place] = {}
        self._next: dict[Place, int] = {}
        self._ends: dict[Place, int] = {}
        self._paused: set[Place] = set()
        self._wrong: str | None = None

    def _failed(self, error: Any) -> None:
        if error.code() == self._kafka.KafkaError._ALL_BROKERS_DOWN:
            self._wrong = error.str()

    def _asked(self, work: Any) -> Any:
        try:
            return work()
        except self._kafka.KafkaException as error:
            raise OSError(error.args[0].str()) from error

    def partitions(self, topic: str) -> list[str]:
        found = self._asked(lambda: self._consumer.list_topics(topic, timeout=_PATIENCE_S)).topics[topic]
        if found.error is not None:
            raise OSError(f"topic {topic}: {found.error.str()}")
        return [str(number) for number in sorted(found.partitions)]

    def open(self, place: Place, topic: str, offset: Any) -> None:
        at = self._kafka.TopicPartition(topic, int(place[1]))
        low, high = self._asked(lambda: self._consumer.get_watermark_offsets(at, timeout=_PATIENCE_S))
        if offset is not None and not low <= offset <= high:
            raise BadInput(
                f"topic {topic}, partition {place[1]} has offsets {low} to {high}, and the stream goes on at {offset}: "
                "messages are lost; restore them, or begin in a new folder"
            )
        self._places[topic, at.partition] = place
        self._next[place], self._ends[place] = low if offset is None else offset, high
        self._asked(
            lambda: self._consumer.incremental_assign(
                [self._kafka.TopicPartition(topic, at.partition, self._next[place])]
            )
        )

    def poll(self, places: set[Place], most: int) -> Iterator[Messages]:
        self._hold(set(self._places.values()) - places)
        self._wrong = None
        left = most
        while left > 0:
            found = self._asked(lambda: self._consumer.consume(min(left, _TURN), _WAIT_S if left == most else 0))  # noqa: B023
            if self._wrong is not None and not found:
                raise OSError(self._wrong)
            parts: dict[Place, list[Any]] = {}
            wrong = [message for message in found if message.error()]
            for message in found:
                if not message.error():
                    parts.setdefault(self._places[message.topic(), message.partition()], []).append(message)
            for place, part in parts.items():
                self._next[place] = part[-1].offset() + 1
                yield Messages(
                    place,
                    [message.value() for message in part],
                    [f"offset {message.offset()}" for message in part],
                    [message.timestamp()[1] if message.timestamp()[0] else 1 << 62 for message in part],
                    range(len(part)),
                    self._next[place],
                )
            if wrong:  # once the others are taken, as they will not come again
                self._complain(wrong[0].error(), wrong[0])
            left -= len(found)
            if not found:
                return

    def _complain(self, error: Any, message: Any) -> None:
        lost = (self._kafka.KafkaError._AUTO_OFFSET_RESET, self._kafka.KafkaError.OFFSET_OUT_OF_RANGE)
        if error.code() in lost:
            raise BadInput(
                f"topic {message.topic()}, partition {message.partition()}: the offset at which the stream goes on is "
                "no longer kept, so that messages are lost; restore them, or begin in a new folder"
            )
        raise OSError(error.str())

    def _hold(self, held: set[Place]) -> None:
        """Pause the partitions that are far ahead, and go on with the others."""
        at = {place: self._kafka.TopicPartition(*key) for key, place in self._places.items()}
        for places, change in (
            (held - self._paused, self._consumer.pause),
            (self._paused - held, self._consumer.resume),
        ):
            if places:
                self._asked(lambda change=change, places=places: change([at[place] for place in places]))
        self._paused = held

    def ended(self, place: Place) -> bool:
        """Return whether all was read; the end of a transaction is an offset without a message."""
        if self._next[place] < self._ends[place]:
            at = next(key for key, each in self._places.items() if each == place)
            position = self._consumer.position([self._kafka.TopicPartition(*at)])[0].offset
            self._next[place] = max(self._next[place], position)
        return self._next[place] >= self._ends[place]

    def close(self) -> None:
        self._consumer.close()
