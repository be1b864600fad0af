"""What a state tells of itself: of which columns it knows what, so that a request gets what the samples have.

    state/plan.json                    this
    state/attributes/<prefix>.parquet  what is known of ids, as far as rows from the horizon on can still see it

A plan holds all of an adapter but its SQL, and `of_plan` makes an adapter of it again, for the code that made the
samples (`known.py`). `columns` says the same once more, column by column, for a server in another language.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.sources.events.known import ENTRY, Options
from livetrain.trainers.data.sources.events.model import (
    COUNTED,
    PEOPLE,
    SHOWN,
    Adapter,
    Attributes,
    Label,
    Sequence,
)
from livetrain.trainers.runtime import manifest

PLAN = "plan.json"
DOMAINS = ("live", "video", PEOPLE)


def write(connection: duckdb.DuckDBPyConnection, adapter: Adapter, options: Options, horizon: int, state: Path) -> None:
    """Write the plan and the attributes of a state, for requests from `horizon` (ms) on."""
    (state / "attributes").mkdir(parents=True, exist_ok=True)
    for prefix, known in adapter.attributes.items():
        seen = f"WHERE _until >= {horizon}" if known.since else ""
        connection.execute(
            f"COPY (FROM attributes_{prefix} {seen}) TO '{state / 'attributes' / prefix}.parquet' (FORMAT parquet)"
        )
    manifest.write_json(state / PLAN, plan_of(adapter, options, horizon))


def plan_of(adapter: Adapter, options: Options, horizon: int) -> dict[str, Any]:
    """Return what a plan says."""
    content = {
        name: getattr(adapter, name)
        for name in ("name", "domain", "item", "author", "utc_offset_s", "context", "topics", "statistics", "visits")
    }
    content |= {
        "attributes": {p: asdict(a) | {"select": ""} for p, a in adapter.attributes.items()},
        "labels": {name: asdict(label) for name, label in adapter.labels.items()},
        "sequences": {name: asdict(s) | {"limit": options.entries(s.domain)} for name, s in adapter.sequences.items()},
    }
    return content | {"options": asdict(options), "horizon": horizon, "columns": columns_of(adapter)}


def of_plan(plan: dict[str, Any]) -> tuple[Adapter, Options]:
    """Return the adapter, without its SQL, and the options that a plan was made of."""
    own = {name: plan[name] for name in ("name", "domain", "item", "author", "utc_offset_s", "context", "visits")}
    lists = ("ids", "bags", "dense", "vectors")
    adapter = Adapter(
        **own,
        files={},
        exposures="",
        actions="",
        attributes={
            p: Attributes(**a | {name: tuple(a[name]) for name in lists}) for p, a in plan["attributes"].items()
        },
        labels={
            n: Label(**label | {"delay": label["delay"] and tuple(label["delay"])})
            for n, label in plan["labels"].items()
        },
        sequences={
            n: Sequence(**{key: value for key, value in s.items() if key != "limit"})
            for n, s in plan["sequences"].items()
        },
        topics={domain: (prefix, name) for domain, (prefix, name) in plan["topics"].items()},
        statistics=plan["statistics"],
    )
    return adapter, Options(**plan["options"])


def columns_of(adapter: Adapter) -> dict[str, dict[str, Any]]:
    """Return for each column of the samples, but the labels, how it is made: `is`, of what, and whose it is.

    `user` says whether it is the user's, one value a request, or the candidates'.
    """
    made: dict[str, dict[str, Any]] = {
        "user": {"is": "user"},
        adapter.item: {"is": "item"},
        adapter.author: {"is": "author"},
        "timestamp": {"is": "time"},
        "hour": {"is": "hour"},
        "weekday": {"is": "weekday"},
    }
    made |= {name: {"is": "context"} for name in adapter.context}
    if adapter.domain == "live":
        made |= {f"room_{what}": {"is": f"room {what}"} for what in ("viewers", "likes", "gifts")}
    for prefix, known in adapter.attributes.items():
        if known.key is None:
            continue
        for kind in ("ids", "bags", "dense", "vectors"):
            made |= {name: {"is": kind, "of": prefix} for name in getattr(known, kind)}
        if known.age:
            made[known.age] = {"is": "age", "of": prefix}
    places = {name: COUNTED.index(kind) for name, kind in adapter.rates.items()}
    for of, prefix in (*(("statistics", prefix) for prefix in adapter.statistics), ("seen", "user_seen")):
        made[f"{prefix}_count"] = {"is": "count", "from": of, "of": prefix, "place": 0}
        made |= {
            f"{prefix}_{name}_rate": {"is": "rate", "from": of, "of": prefix, "place": place}
            for name, place in places.items()
        }
    for prefix in adapter.pairs:
        made[f"{prefix}_count"] = {"is": "count", "from": "pairs", "of": prefix, "place": 0}
        made |= {
            f"{prefix}_{name}_count": {"is": "count", "from": "pairs", "of": prefix, "place": place}
            for name, place in places.items()
        }
        made[f"{prefix}_ago"] = {"is": "ago", "of": prefix}
    if (others := adapter.others) is not None:
        labels = {"count": 0} | {f"{name}_count": place for name, place in places.items()}
        made |= {
            f"{others}_{n}": {"is": "count", "from": "others", "of": others, "place": p} for n, p in labels.items()
        }
    for name, sequence in adapter.sequences.items():
        parts = {"item": sequence.item, "author": sequence.author, "topic": sequence.topic, "gap": "gap"}
        parts["action"] = "action" if sequence.action else None
        made |= {f"{name}_{suffix}": {"is": f"list {part}", "of": name} for part, suffix in parts.items() if suffix}
    if adapter.visits:
        made["user_visit_ago"] = {"is": "visit ago", "of": SHOWN}
    users = (
        "user",
        "time",
        "hour",
        "weekday",
        "visit ago",
        *(f"list {part}" for part in (*ENTRY[2:], "gap", "action")),
    )
    for how in made.values():
        if how["is"] in ("count", "rate"):
            key = {"statistics": adapter.statistics, "seen": {"user_seen": "user"}, "pairs": {}, "others": {}}[
                how["from"]
            ]
            how["user"] = key.get(how["of"]) == "user"
        elif how["is"] in ("ids", "bags", "dense", "vectors", "age"):
            how["user"] = adapter.attributes[how["of"]].key == "user"
        else:
            how["user"] = how["is"] in users
    return made


def read(state: Path) -> dict[str, Any]:
    """Return a state's plan.

    Raises:
        BadInput: there is none.
    """
    try:
        return json.loads((state / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BadInput(
            f"{state} has no {PLAN}, from which a feature store is filled: days have one since version 4 of an event "
            "log's samples; prepare the log again, in a new folder"
        ) from None
