"""No row knows what happened at its own moment or later: changing all of that changes no feature of it."""

from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from livetrain.trainers.data.sources.events.sources import ADAPTERS
from tests.cases import often
from tests.trainers.data.sources.events.logs import SOURCES, START, moments, prepared, visit_lists


def known_later(visit, cut, source, drawn):
    """Return a visit that looks the same up to `cut`, excluded, and is otherwise like `drawn`."""
    shift = 1 if source == "kuailive-m3" else 0  # its plays begin a second after they were offered
    if visit.time + shift >= cut:
        return replace(drawn, time=visit.time, user=visit.user, item=visit.item)
    changes = {}
    if visit.time + shift + visit.watch >= cut:
        changes["watch"] = max(cut - visit.time - shift, drawn.watch)
        if source != "kuailive":  # told when the play ends
            changes |= {"likes": drawn.likes, "gifts": drawn.gifts} if visit.click or source == "kuairand" else {}
    if source == "kuailive" and visit.click:
        for kind in ("likes", "gifts"):
            before = [after for after in getattr(visit, kind) if visit.time + after < cut]
            later = [after for after in getattr(drawn, kind) if visit.time + after >= cut]
            changes[kind] = (*before, *later)
    return replace(visit, **changes)


def rewritten(log, cut, source, others):
    """Return the log with everything at or after `cut` changed, left out or added."""
    kept = []
    for number, visit in enumerate(log):
        drawn = others[number % len(others)]
        if visit.time < cut:
            # Short videos are played an hour after the visit, so that hour has to stay as it is.
            frozen = source == "kuailive-m3" and visit.time + 3600 + visit.watch < cut
            kept.append(visit if frozen else known_later(visit, cut, source, drawn))
        elif drawn.click:
            kept.append(replace(visit, watch=drawn.watch, likes=drawn.likes, gifts=drawn.gifts, click=True))
    taken = {(visit.user, visit.item, visit.time) for visit in kept}
    new = [visit for visit in others if visit.time >= cut and (visit.user, visit.item, visit.time) not in taken]
    return kept + new


@pytest.mark.parametrize("source", often({source: source for source in SOURCES}, ("kuailive",)))
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=visit_lists, others=visit_lists, cut=moments)
def test_later_events_change_no_feature(tmp_path_factory, source, log, others, cut):
    folder = tmp_path_factory.mktemp("log")
    cut = max(cut, min(visit.time for visit in log) + 1)  # some row must lie before
    before = prepared(source, folder, log, "before")
    after = prepared(source, folder, rewritten(log, cut, source, others), "after")
    last = START + 1000 * cut
    features = [name for name in before.column_names if name not in ADAPTERS[source].labels]
    keys = ("timestamp", "user", ADAPTERS[source].item)

    def rows(table: pa.Table) -> dict:
        chosen = table.select(features).to_pylist()
        return {tuple(row[key] for key in keys): row for row in chosen if row["timestamp"] <= last}

    old, new = rows(before), rows(after)
    assert {key for key in old if key[0] < last} == {key for key in new if key[0] < last}
    common = old.keys() & new.keys()
    assert common
    for key in common:
        assert old[key] == new[key]
