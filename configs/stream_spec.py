"""The spec of `livetrain stream`: which topics feed which tables of an event log, and how minutes are closed.

An event log's own spec (configs.event_spec) says what an exposure and an action are; this one says where their rows
come from while they happen. Everything that decides what the samples are is fixed for the life of a stream's folder;
`jobs` and `idle_s` may change while it runs, and `sources` and `store` when it is started again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, model_validator

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.event_spec import EventSpec
from livetrain.configs.schema.section import Section
from livetrain.configs.spec import Loaded, load_spec
from livetrain.configs.values import Name, Sql, Text, real, whole

FREE = ("jobs", "idle_s")
"""Keys that may change while a stream runs."""
Interval = Annotated[float, real(0.01, 86_400)]


class FolderSource(Section):
    """Files that land in a folder or a bucket, each whole; a topic is a subfolder, a partition one of its own."""

    kind: Literal["folder"]
    path: Text = Field(description="as seen from the spec, or a URI of s3, gs, abfs or hdfs")


class KafkaSource(Section):
    """Topics of Kafka, read by confluent-kafka."""

    kind: Literal["kafka"]
    servers: Text = Field(description="HOST:PORT,...")
    options: dict[Text, str | bool | int | float] = Field({}, description="of librdkafka, such as security.protocol")


class NatsSource(Section):
    """Subjects of a stream of NATS JetStream, read by nats-py; a subject is one partition."""

    kind: Literal["nats"]
    servers: Text = Field(description="nats://HOST:PORT,...")
    stream: Text = Field(description="JetStream's stream that keeps the subjects")


Source = Annotated[FolderSource | KafkaSource | NatsSource, Discriminator("kind")]


class Topic(Section):
    """The messages that are the rows of one table of the event log: JSON objects with its columns."""

    source: Name
    topic: Text = Field(description="Kafka's topic, NATS' subject, or a subfolder")
    time: Sql = Field(
        description="expression over the table's columns: the message's own time, ms since 1970; rows that are made of "
        "it must not be earlier"
    )


class ReadJob(Section):
    """How messages are taken."""

    every_s: Interval = Field(0.5, description="pause where there is nothing to read")
    messages: Annotated[int, *whole(1, 10**7)] = Field(100_000, description="of one turn, at most")


class JoinJob(Section):
    """How minutes are closed."""

    every_s: Interval = Field(1.0, description="pause between looks whether some can be")
    memory_mb: Annotated[int, *whole(100, 10**7)] = Field(1500, description="of DuckDB; what needs more goes to disk")
    threads: Annotated[int, *whole(1, 1024)] = 1


class TablesJob(Section):
    """How the files of tables that no topic feeds are read again."""

    every_s: Interval = 300.0


class ReportJob(Section):
    """How often the log says how far the stream is."""

    every_s: Interval = 60.0


class Jobs(Section):
    """The parts of the work, each with its interval; all of it may change while the stream runs."""

    read: ReadJob = ReadJob()
    join: JoinJob = JoinJob()
    tables: TablesJob = TablesJob()
    report: ReportJob = ReportJob()


class StreamSpec(Section):
    """Samples by the minute, from topics of exposures and actions."""

    events: Text | EventSpec = Field(description="the event log's spec: its file, as seen from here, or itself")
    sources: dict[Name, Source] = Field(min_length=1)
    topics: dict[Name, Topic] = Field(min_length=1, description="table of the event log -> where its rows come from")
    lanes: Annotated[int, *whole(1, 256)] = Field(1, description="processes; each makes the samples of its users")
    buckets: Annotated[int, *whole(1, 4096)] = Field(
        1, description="parts of a lane's users, of which one is in memory at a time when a day ends"
    )
    every_s: Annotated[int, *whole(1, 3600)] = Field(60, description="length of a minute; a day is a multiple of it")
    lateness_s: Annotated[int, *whole(0, 86_400)] = Field(
        10, description="a message older by more than the newest before it in its partition is late, and left out"
    )
    wait_s: Annotated[int, *whole(0, 86_400)] = Field(
        60, description="after a minute's end, for its actions; labels that are not known then are null"
    )
    idle_s: Interval = Field(60.0, description="a partition that is silent for so long is not waited for")
    ahead_s: Annotated[int, *whole(0, 10**9)] = Field(
        300, description="a message whose time is so far ahead of the clock is kept aside"
    )
    store: Text | None = Field(
        None, description="feature store that gets what happens as it comes: a folder, as seen from here, or redis://"
    )
    jobs: Jobs = Jobs()

    @model_validator(mode="after")
    def _fits(self) -> "StreamSpec":
        for table, topic in self.topics.items():
            if topic.source not in self.sources:
                raise BadInput(
                    f"topics.{table}.source: no source is called '{topic.source}'{nearest(topic.source, self.sources)}"
                )
        places = [(topic.source, topic.topic) for topic in self.topics.values()]
        twice = next((place for place in places if places.count(place) > 1), None)
        if twice is not None:
            raise BadInput(f"topics: '{twice[1]}' feeds two tables; give each a topic of its own")
        if 86_400 % self.every_s:
            raise BadInput(f"every_s: a day is no multiple of {self.every_s} s; choose one that divides 86400, as 60")
        return self


@dataclass(frozen=True)
class LoadedStream:
    """A stream's spec, its event log's, the file that it was read from, and the name of a place in it for messages."""

    spec: StreamSpec
    events: Loaded[EventSpec]
    path: Path
    where: Callable[[str], str]

    @property
    def folder(self) -> Path:
        """The folder that the spec's paths are seen from."""
        return self.path.parent

    @property
    def store(self) -> str | None:
        """The feature store that the stream adds to."""
        told = self.spec.store
        return told if told is None or "://" in told else str(self.folder / told)

    def fixed(self) -> dict[str, Any]:
        """Return what must stay as it is for the life of a stream's folder."""
        told = self.spec.model_dump(mode="json", exclude={*FREE, "events", "sources", "store"})
        return told | {"events": self.events.spec.model_dump(mode="json")}

    def remarks(self) -> list[str]:
        """Return sentences about what may be meant otherwise."""
        wait, window = self.spec.wait_s, self.events.spec.window_s
        early = [name for name, label in self.events.spec.labels.items() if not label.delay]
        if wait >= window or not early:
            return []
        return [
            f"{self.where('wait_s')}: labels of delay: false ({', '.join(early)[:80]}) stay 0 where the action comes "
            f"more than {wait} s after its minute; if some do, say delay: true, or wait_s: {window}"
        ]


def load_stream(path: Path) -> LoadedStream:
    """Read the spec of a stream, and the spec of its event log.

    Raises:
        BadInput: one sentence that names file, line, key and mend.
    """
    loaded = load_spec(path, StreamSpec)
    named = loaded.spec.events
    if isinstance(named, str):
        events = load_spec(loaded.folder / named, EventSpec)
    else:
        events = Loaded(named, loaded.folder, lambda place: loaded.where(f"events.{place}"))
    for table in loaded.spec.topics:
        if table not in events.spec.tables:
            hint = nearest(table, events.spec.tables)
            raise BadInput(f"{loaded.where(f'topics.{table}')}: the event log has no such table{hint}")
    if events.spec.utc_offset_s % loaded.spec.every_s:
        raise BadInput(
            f"{loaded.where('every_s')}: {loaded.spec.every_s} s do not divide utc_offset_s "
            f"{events.spec.utc_offset_s}, so that a minute would lie in two days; choose one that does"
        )
    return LoadedStream(loaded.spec, events, path, loaded.where)
