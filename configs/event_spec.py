"""The spec of an event log whose exposures and actions are apart: the tables of trainers/data/sources/events/model.py.

Every SELECT is DuckDB's SQL over the tables that `tables` names. Ids are whole numbers; `string_id(text)` makes one of
a string. Times are ms since 1970, and `day_of(ms)` is the date of one.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema.section import Section
from livetrain.configs.values import Name, RunName, Sql, Text, whole

Kind = Literal["click", "long", "like", "comment", "follow", "gift", "profile", "watch"]
Domain = Literal["live", "video"]
Seconds = Annotated[int, *whole(0, 10**9)]


class EventTable(Section):
    """A raw table of the log: CSV with a header, Parquet, or an array of NumPy with the columns row and vector."""

    files: list[Text] = Field(min_length=1, description="patterns, as seen from the spec's folder")
    columns: dict[Text, Text] = Field(min_length=1, description="name -> DuckDB's type")
    required: bool = Field(True, description="false: an empty table where there is no file")


class EventAttributes(Section):
    """What is known of every user, item or author."""

    key: Literal["user", "item", "author"] | None = Field(
        None, description="whose id `id` is; left out of what is known for `topics` alone"
    )
    select: Sql = Field(description="SELECT that gives id and the columns, and with `age` also start (ms)")
    ids: list[Name] = Field([], description="columns that are categories")
    bags: list[Name] = Field([], description="columns with a list of categories")
    dense: list[Name] = Field([], description="columns that are numbers")
    vectors: list[Name] = Field([], description="columns with a list of numbers, as of a text or a picture")
    age: Name | None = Field(None, description="column of the samples for the seconds since start")
    since: Name | None = Field(
        None,
        description="column of the SELECT: ms, from when on what a row says is known; of several rows of one id the "
        "newest from before an exposure counts there. Left out, an id has one row, which counts always",
    )


class EventLabel(Section):
    """A label, made from the actions of one kind that answer an exposure."""

    kind: Kind
    delay: bool = Field(True, description="false: the log records the action with the exposure, so it is always known")
    total: bool = Field(False, description="the sum of the actions' values instead of 0 and 1")


class EventSequence(Section):
    """A history of rooms or videos, with what the user did there; or of the people whom the user follows."""

    domain: Literal["live", "video", "people"]
    event: Literal["exposure", "click", "like", "follow", "friend"] = Field(
        "click", description="what makes an entry; of domain people `follow` or `friend`, see `follows`"
    )
    item: Name | None = Field(None, description="suffix of its column of items; left out, there is none")
    author: Name | None = Field(None, description="the same of whose they are")
    topic: Name | None = Field(None, description="the same of what they are about")


class EventSpec(Section):
    """Samples from an event log: exposures, and the actions that answer them within a time."""

    name: RunName = "events"
    domain: Domain = "live"
    item: Name = Field(description="name of the samples' column for what was shown")
    author: Name = Field(description="the same for whose it is")
    utc_offset_s: Annotated[int, *whole(-86_400, 86_400)] = Field(0, description="of the log's days")
    window_s: Annotated[int, *whole(1, 10**9)] = Field(
        3600, description="seconds in which an action answers an exposure"
    )
    history: Annotated[int, *whole(1, 2**16)] = Field(50, description="entries of a sequence")
    tables: dict[Name, EventTable] = Field(min_length=1)
    exposures: Sql = Field(description="SELECT that gives user, item, author and time, and the columns of context")
    context: dict[Name, Literal["id", "dense"]] = {}
    actions: Sql = Field(
        description="SELECT that gives user, item, author, time, kind (click, long, like, comment, follow, gift, "
        "profile or watch), value (of a watch its seconds, of a gift its price, otherwise null) and session (ms when "
        "the play began, or null)"
    )
    follows: Sql | None = Field(
        None,
        description="SELECT that gives user, other, time (ms, from when on) and kind: follow, or friend, which counts "
        "for both; each pair once",
    )
    attributes: dict[Name, EventAttributes] = {}
    topics: dict[Domain, Text] = Field(
        {},
        description="domain -> ATTRIBUTES.COLUMN of ids: what its items are about, as live: room.category",
    )
    labels: dict[Name, EventLabel] = Field(min_length=1)
    sequences: dict[Name, EventSequence] = {}
    statistics: dict[Name, Literal["user", "item", "author"]] = Field({}, description="prefix -> what is counted by")

    @model_validator(mode="after")
    def _fits(self) -> "EventSpec":
        for place in ("exposures", "actions", *(["follows"] if self.follows is not None else [])):
            if "select" not in getattr(self, place).lower():
                raise BadInput(f"{place}: it is no SELECT; write SELECT ... FROM one of the tables")
        if "user" not in self.statistics:
            raise BadInput(f"statistics: user is missing{nearest('user', self.statistics)}; add user: user")
        columns = [f"{name}.{column}" for name, known in self.attributes.items() for column in known.ids]
        for domain, topic in self.topics.items():
            if topic not in columns:
                raise BadInput(f"topics.{domain}: '{topic}' is no ATTRIBUTES.COLUMN of ids{nearest(topic, columns)}")
        for name, sequence in self.sequences.items():
            _check_people(name, sequence, self.follows is not None)
            if sequence.topic and sequence.domain not in self.topics:
                raise BadInput(
                    f"sequences.{name}.topic: topics does not say what items of domain {sequence.domain} are about; "
                    f"add topics: {{{sequence.domain}: ATTRIBUTES.COLUMN}}"
                )
        return self


def _check_people(name: str, sequence: EventSequence, follows: bool) -> None:
    """Refuse people who are no people, and rooms that somebody befriends."""
    people, key = sequence.domain == "people", f"sequences.{name}"
    if people != (sequence.event in ("follow", "friend")):
        raise BadInput(
            f"{key}.event: '{sequence.event}' makes no entry of domain {sequence.domain}; of people that is follow or "
            "friend, and of live and video exposure, click or like"
        )
    if not people:
        return
    if not follows:
        raise BadInput(
            f"{key}.domain: nothing says who follows whom; add `follows`, a SELECT of user, other, time, kind"
        )
    if sequence.author is None or sequence.item or sequence.topic:
        raise BadInput(f"{key}: people have no item and no topic; name their column alone, as author: user")
