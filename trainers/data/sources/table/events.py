"""From the spec of an event log to an adapter of trainers/data/sources/events, which does the rest."""

import tempfile
from pathlib import Path
from typing import Any

import duckdb

from livetrain.configs.errors import BadInput
from livetrain.configs.event_spec import EventSpec
from livetrain.configs.spec import Loaded
from livetrain.trainers.data.sources.events import model, raw, stage
from livetrain.trainers.data.sources.events.known import Options
from livetrain.trainers.data.sources.events.prepare import Map, Progress, prepare
from livetrain.trainers.data.sources.table.files import quoted, short

KINDS = {"click": model.CLICK, "long": model.LONG, "like": model.LIKE, "comment": model.COMMENT}
KINDS |= {"follow": model.FOLLOW, "gift": model.GIFT, "profile": model.PROFILE, "watch": model.WATCH}
KINDS |= {"exposure": model.EXPOSURE}
RELATIONS = {"follow": model.FOLLOW, "friend": model.FRIEND}


def prepare_events(loaded: Loaded[EventSpec], out: Path, progress: Progress, run: Map | None = None) -> dict[str, Any]:
    """Write the samples of an event log, a partition per day; see `events.prepare.prepare`.

    Raises:
        BadInput: also where DuckDB does not take a SELECT of the spec.
    """
    spec = loaded.spec
    made, options = adapter(spec), Options(live=spec.history, video=spec.history, window_s=spec.window_s)
    _check(loaded, made, options)
    return prepare(made, loaded.folder, out, options, progress, run)


def adapter(spec: EventSpec) -> model.Adapter:
    """Return a spec as the adapter of a source."""
    context = "".join(f", {quoted(name)}" for name in spec.context)
    kinds = " ".join(f"WHEN '{name}' THEN {code}" for name, code in KINDS.items() if code != model.EXPOSURE)
    return model.Adapter(
        name=spec.name,
        domain=spec.domain,
        item=spec.item,
        author=spec.author,
        utc_offset_s=spec.utc_offset_s,
        files={
            quoted(name): model.RawFile(tuple(table.files), table.columns, required=table.required)
            for name, table in spec.tables.items()
        },
        exposures=f"SELECT user, item, author, time, day_of(time) AS day{context} FROM ({spec.exposures})",
        context=dict(spec.context),
        actions=f"""SELECT user, '{spec.domain}' AS domain, item, author, time, CASE kind {kinds} END AS kind,
                           CAST(value AS DOUBLE) AS value, CAST(session AS BIGINT) AS session, day_of(time) AS day
                    FROM ({spec.actions}) WHERE kind IN ({", ".join(f"'{name}'" for name in KINDS)})
                    {"UNION ALL" if spec.follows is not None else ""} {follows_of(spec)}""",
        attributes={
            name: model.Attributes(
                *(known.key, known.select, tuple(known.ids), tuple(known.bags), tuple(known.dense), known.age),
                vectors=tuple(known.vectors),
                since=known.since,
            )
            for name, known in spec.attributes.items()
        },
        labels={
            name: model.Label(KINDS[label.kind], ("window_s",) if label.delay else None, label.total)
            for name, label in spec.labels.items()
        },
        sequences={
            name: model.Sequence(
                part.domain,
                (KINDS | RELATIONS)[part.event],
                part.item,
                part.author,
                part.topic,
                action=part.domain != model.PEOPLE,
            )
            for name, part in spec.sequences.items()
        },
        topics={domain: (topic.split(".")[0], topic.split(".")[1]) for domain, topic in spec.topics.items()},
        statistics=dict(spec.statistics),
    )


def follows_of(spec: EventSpec) -> str:
    """Return the SELECT of who follows and befriends whom as actions, or nothing; a friendship counts for both."""
    if spec.follows is None:
        return ""
    one, both = (f"SELECT {pair}, time, kind FROM ({spec.follows})" for pair in ("user, other", "other, user"))
    kinds = " ".join(f"WHEN '{name}' THEN {code}" for name, code in RELATIONS.items())
    return f"""
        SELECT user, '{model.PEOPLE}' AS domain, other AS item, other AS author, time, CASE kind {kinds} END AS kind,
               NULL::DOUBLE AS value, NULL::BIGINT AS session, day_of(time) AS day
        FROM ({one} UNION ALL {both} WHERE kind = 'friend') WHERE kind IN ('follow', 'friend')"""


def _check(loaded: Loaded[EventSpec], made: model.Adapter, options: Options) -> None:
    """Let DuckDB read every SELECT before work starts."""
    with (
        tempfile.TemporaryDirectory(prefix="livetrain-spec-") as work,
        stage.connect(made, options, Path(work)) as connection,
    ):
        raw.open_raw(connection, made, loaded.folder)
        selects = {"exposures": made.exposures}
        if loaded.spec.follows is not None:  # it is a part of the actions' SELECT, which comes after
            selects["follows"] = f"SELECT user, other, time, kind FROM ({loaded.spec.follows})"
        selects["actions"] = made.actions
        selects |= {f"attributes.{name}.select": known.select for name, known in made.attributes.items()}
        for place, select in selects.items():
            try:
                connection.execute(f"DESCRIBE {select}")
            except duckdb.Error as error:
                raise BadInput(f"{loaded.where(place)}: DuckDB does not take it: {short(error)}") from None
