"""The internal form of an event log, and what an adapter says about the files that it is read from.

Every source becomes the tables below; everything behind them (labels, histories, room state, statistics) is the same
for all sources. A new source is one new adapter: which files, and one SELECT per table.

**exposures**: what was shown to whom; one becomes one row of the samples. Key: (user, item, time).

| column | type | meaning |
| --- | --- | --- |
| user | int64 | who saw it |
| item | int64 | what was shown: a room (live) or a video |
| author | int64 | whose it is: the streamer, or the video's author; null where the source does not say |
| time | int64 | when, ms since 1970-01-01 UTC |
| day | date | the log's day, in the source's time zone: the partition |
| ... | | the adapter's `context`: what else was known when it was shown |

**actions**: what users did. Key: (user, domain, item, time, kind, value).

| column | type | meaning |
| --- | --- | --- |
| user, item, author, day | | as above |
| domain | string | `live` or `video`; `people` where a user follows or befriends `item`, who is `author` too |
| time | int64 | from when on it is known, ms: a like when it is given, a watch when it ends |
| kind | int32 | one of the codes below |
| value | double | WATCH: seconds watched; GIFT: its price; otherwise how often, null = once |
| session | int64 | ms; when the play or the exposure that it belongs to began, where the source says so, else null |

**users**, **authors**, **rooms**, **videos**: one row per id, the `attributes` of an adapter: `id` (int64), categories
and ranges such as "24-30" as strings (they become `string_id`s), numbers as doubles, and of rooms and videos `start`
(ms, when it went on air or was uploaded). A room's end is checked and not read: at exposure time nobody knows it.
Missing values are null everywhere.
"""

from dataclasses import dataclass, field

import pyarrow as pa

EXPOSURE = 0
CLICK, LONG, LIKE, COMMENT, FOLLOW, GIFT, PROFILE = 1, 2, 4, 8, 16, 32, 64
"""Kinds of actions; also the bits of `*_action` columns. LONG: an effective or long view. GIFT: a gift or a forward."""
WATCH = 128  # the end of a play, with its length
FRIEND = 256  # from now on a friend of another; the other has an action of this kind too
PEOPLE = "people"
SHOWN, RETURNED = "shown", "returned"  # the sequence of all exposures; the label of `Adapter.visits`
VISIT_MS = 1_800_000  # without an exposure that end a visit
BITS = (CLICK, LONG, LIKE, COMMENT, FOLLOW, GIFT, PROFILE)
COUNTED = (EXPOSURE, *BITS)  # kinds that statistics and pairs count, in this order

EXPOSURES = pa.schema(
    [("user", pa.int64()), ("item", pa.int64()), ("author", pa.int64()), ("time", pa.int64()), ("day", pa.date32())]
)
ACTIONS = pa.schema(
    [
        ("user", pa.int64()),
        ("domain", pa.string()),
        ("item", pa.int64()),
        ("author", pa.int64()),
        ("time", pa.int64()),
        ("kind", pa.int32()),
        ("value", pa.float64()),
        ("session", pa.int64()),
        ("day", pa.date32()),
    ]
)


@dataclass(frozen=True)
class RawFile:
    """One raw table: its files and their columns.

    Args:
        names: glob patterns; all files that match are read, as one table: CSV with a header, Parquet, or an array of
            NumPy (.npy), whose columns are `row`, from 0, and `vector`.
        columns: name -> DuckDB type of what is read.
        optional: the same, of columns that may be missing: they are null then.
        unused: columns that are known and not read. Any further column is named in the report.
        required: whether the source cannot do without it; else it is an empty table where it is missing.
        checks: words -> SQL condition; rows that fulfil it are counted in the report under these words.
    """

    names: tuple[str, ...]
    columns: dict[str, str]
    optional: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    required: bool = True
    checks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Label:
    """One label column, made from the actions of one kind that answer an exposure.

    Args:
        kind: of the actions.
        delay: the options whose sum says how many seconds after the exposure an action still counts, and before which
            the label is not known; None: the source records it with the exposure, so it is always known.
        total: the sum of the actions' values (float32) instead of 0 and 1 (int8).
        session: the source tells it when the play ends: not known while a play that was begun goes on.
    """

    kind: int
    delay: tuple[str, ...] | None = None
    total: bool = False
    session: bool = False


@dataclass(frozen=True)
class Sequence:
    """One behaviour sequence: a group of parallel list columns `<name>_<suffix>`.

    Args:
        domain: whose events.
        event: the kind that makes an entry: EXPOSURE, CLICK or LIKE; of domain `people` FOLLOW or FRIEND.
        item: suffix of the column of rooms or videos; None leaves it out.
        author: suffix of the column of streamers or authors, or of people; None leaves it out.
        topic: suffix of the column of the items' categories (`Adapter.topics`); None leaves it out.
        action: also give `<name>_action`, the bits of what had been done with an entry before the row's time.
    """

    domain: str
    event: int
    item: str | None
    author: str | None
    topic: str | None = None
    action: bool = True


@dataclass(frozen=True)
class Attributes:
    """What is known of every id of one kind.

    Args:
        key: column of the exposures that holds the id: user, item or author; None keeps it for topics alone.
        select: SELECT over the raw tables that gives `id` and the columns.
        ids: columns that are categories: strings in the SELECT, ids in the samples.
        bags: columns of several categories per id: lists of strings in the SELECT, lists of ids in the samples.
        dense: columns that are numbers.
        vectors: columns that are lists of numbers, as of an item's text or picture.
        age: samples' column for the seconds since `start` (ms), which the SELECT then gives too; null before it.
        since: column of the SELECT, ms, from when on a row is known: at any moment the newest from strictly before it
            counts. None: an id has one row, which is always known.
    """

    key: str | None
    select: str
    ids: tuple[str, ...] = ()
    bags: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    age: str | None = None
    vectors: tuple[str, ...] = ()
    since: str | None = None

    def of(self, table: str, key: str, moment: str) -> str:
        """Return the SQL condition by which a row of `table`, from `stage.load_attributes`, is what is known of an id.

        Args:
            table: its name.
            key: expression for the id.
            moment: expression for the time, ms, at which it is to be known.
        """
        within = f" AND {moment} > {table}.{self.since} AND {moment} <= {table}._until" if self.since else ""
        return f"{key} = {table}.id{within}"


@dataclass(frozen=True)
class Adapter:
    """A source: its files, and how they become the internal form. SQL is DuckDB's, over tables named as in `files`.

    The SELECTs may call `day_of(ms)`, the date in the source's time zone, and `getvariable('<option>_ms')`.

    Args:
        name: of the source on the command line.
        domain: of the exposures, `live` or `video`.
        item: name of the samples' column for what was shown.
        author: the same for whose it is.
        utc_offset_s: of the source's time zone; its days begin at local midnight.
        overlap_s: how long before its local midnight a log's day may begin.
        exposures: SELECT that gives the exposures.
        context: further columns of the exposures -> "id" (an integer) or "dense".
        actions: SELECT that gives the actions.
        attributes: prefix of nothing but the report -> what is known of ids.
        labels: column -> label.
        sequences: name -> sequence.
        topics: domain -> (prefix of attributes, column of them) that says what an item is about.
        statistics: prefix of the columns -> key (user, item or author) that earlier days are summed by.
        earlier: sequence -> SELECT of entries from before the log: user, item, author, time, bits.
        terms: of use of the data.
        visits: whether samples tell how long ago the user's visit before ended (`user_visit_ago`), and whether she came
            back within a day (`RETURNED`); `SHOWN` is one of the sequences then.
    """

    name: str
    domain: str
    item: str
    author: str
    utc_offset_s: int
    files: dict[str, RawFile]
    exposures: str
    actions: str
    attributes: dict[str, Attributes]
    labels: dict[str, Label]
    sequences: dict[str, Sequence]
    statistics: dict[str, str]
    topics: dict[str, tuple[str, str]] = field(default_factory=dict)
    overlap_s: int = 0
    context: dict[str, str] = field(default_factory=dict)
    earlier: dict[str, str] = field(default_factory=dict)
    terms: str = ""
    visits: bool = False

    @property
    def outcomes(self) -> list[str]:
        """Names of all labels."""
        return [*self.labels, *([RETURNED] if self.visits else [])]

    @property
    def rates(self) -> dict[str, int]:
        """Label -> kind of everything that statistics count."""
        return {name: label.kind for name, label in self.labels.items() if label.kind in BITS and not label.total}

    @property
    def pairs(self) -> dict[str, str]:
        """Prefix of the columns -> key (author, item, topic) that is counted together with the user, up to each row."""
        found = {f"user_{self.author}": "author", f"user_{self.item}": "item"}
        if self.domain in self.topics:
            found[f"user_{self.topics[self.domain][1]}"] = "topic"
        return found

    @property
    def others(self) -> str | None:
        """Prefix of the columns that count a user's past with what else an author is about; None without topics."""
        return f"user_other_{self.topics[self.domain][1]}" if self.domain in self.topics else None
