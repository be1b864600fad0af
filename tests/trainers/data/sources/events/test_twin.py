"""Every derived column against a plain-Python twin that recomputes it from the list of events, one row at a time."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings

from livetrain.trainers.data.sources.events.known import NOBODY, Options
from livetrain.trainers.data.write.ids import string_id
from tests.trainers.data.sources.events.logs import HOUR, START, Visit, prepared, streamer, visit_lists

DAY = 24 * 3_600_000
LIMIT, WINDOW, LONG = 3, 1_800_000, 30_000
OPTIONS = Options(live=LIMIT, window_s=WINDOW // 1000)


def events_of(visits):
    """Return (time, kind, user, item, time of the view or None, value) of everything that happened."""
    found = []
    for visit in visits:
        at = visit.ms
        found.append((at, "show", visit.user, visit.item, at, None))
        if visit.click:
            found.append((at, "click", visit.user, visit.item, at, None))
            found.append((at + 1000 * visit.watch, "watch", visit.user, visit.item, at, visit.watch))
            if 1000 * visit.watch >= LONG:
                found.append((at + LONG, "long", visit.user, visit.item, at, None))
        likes = {(at + 1000 * after, "like", visit.user, visit.item, None, None) for after in visit.likes}
        gifts = {(at + 1000 * after, "gift", visit.user, visit.item, None, 5) for after in visit.gifts}
        found += likes | gifts
    # A like of the same user, room and millisecond counts once, whichever view it came from.
    return sorted(set(found), key=lambda event: (event[0], event[1], event[2], event[3], event[4] or 0))


class Twin:
    """The row of one visit, from the list of all events."""

    def __init__(self, visits: list[Visit], visit: Visit):
        self.events, self.visit, self.at = events_of(visits), visit, visit.ms
        self.visits = visits
        self.day = START + (self.at - START) // DAY * DAY

    def owner(self, event, visits):
        """Return the latest of a user's views of a room at or before an event."""
        begin = event[0] if event[4] is None else event[4]
        mine = [v for v in visits if (v.user, v.item) == (event[2], event[3]) and v.ms <= begin]
        return max(mine, key=lambda v: v.ms, default=None)

    def label(self, kind, delay):
        """Return (1 or 0, sum of values, whether the delay is over) by the end of the day."""
        cut = self.day + DAY
        mine = [
            event
            for event in self.events
            if event[1] == kind
            and event[0] < cut
            and self.owner(event, self.visits) == self.visit
            and (event[0] if event[4] is None else event[4]) - self.at <= delay
        ]
        return int(bool(mine)), sum(event[5] or 0 for event in mine), self.at + delay <= cut

    def labels(self):
        cut, visit = self.day + DAY, self.visit
        over = not visit.click or self.at + 1000 * visit.watch < cut  # the view has ended
        long, _, decided = self.label("long", LONG)
        _, watched, passed = self.label("watch", WINDOW)
        made = {
            "click": int(visit.click),
            "effective_view": long if decided and (over or long) else None,
            "watch_time": watched if passed and over else None,
        }
        for kind in ("like", "gift"):
            given, value, known = self.label(kind, WINDOW)
            made[kind] = given if known else None
        made["gift_value"] = value if made["gift"] is not None else None
        return made

    def history(self):
        entered = sorted(
            (v for v in self.visits if v.click and v.user == self.visit.user and v.ms < self.at),
            key=lambda v: (v.ms, v.item),
        )
        bits = {"click": 1, "long": 2, "like": 4, "gift": 32}
        clicks = [v for v in self.visits if v.click]
        made = {"live_streamer": [], "live_category": [], "live_action": [], "live_gap": []}
        for view in entered[-LIMIT:]:
            done = {event[1] for event in self.events if event[0] < self.at and self.owner(event, clicks) == view}
            made["live_streamer"].append(streamer(view.item))
            made["live_category"].append(string_id(f"topic{view.item % 2}"))
            made["live_action"].append(sum(bit for kind, bit in bits.items() if kind in done))
            made["live_gap"].append(int(math.log2(max((self.at - view.ms) // 1000, 1))))
        return made

    def room(self):
        here = [event for event in self.events if event[3] == self.visit.item and event[0] < self.at]
        count = lambda kind, since: sum(event[1] == kind and event[0] >= since for event in here)  # noqa: E731
        recent = self.at - 300_000
        begun = START + 1000 * HOUR * (4 * self.visit.item - 6)
        return {
            "room_viewers": count("click", 0) - count("watch", 0),
            "room_likes": count("like", recent),
            "room_gifts": count("gift", recent),
            "room_age": (self.at - begun) / 1000 if begun < self.at else None,
        }

    def rates(self, prefix, mine, until):
        """Return counts and rates of a user's or a streamer's events before a moment."""
        seen = [event for event in self.events if mine(event) and event[0] < until]
        shown = sum(event[1] == "show" for event in seen)
        made = {f"{prefix}_count": math.log1p(shown)}
        for name, kind in (("click", "click"), ("effective_view", "long"), ("like", "like"), ("gift", "gift")):
            made[f"{prefix}_{name}_rate"] = sum(event[1] == kind for event in seen) / shown if shown else None
        return made

    def tallies(self, prefix, mine):
        """Return counts of earlier events of the row's own user, and the seconds since the last exposure."""
        seen = [event for event in self.events if event[2] == self.visit.user and mine(event) and event[0] < self.at]
        shown = [event[0] for event in seen if event[1] == "show"]
        made = {f"{prefix}_count": math.log1p(len(shown))}
        for name, kind in (("click", "click"), ("effective_view", "long"), ("like", "like"), ("gift", "gift")):
            made[f"{prefix}_{name}_count"] = math.log1p(sum(event[1] == kind for event in seen))
        return made | {f"{prefix}_ago": math.log1p((self.at - max(shown)) / 1000) if shown else None}

    def others(self, prefix, owner, topic):
        """Return what the user had with the streamer's other topics, by how often these were shown on earlier days."""
        theirs = [e[3] % 2 for e in self.events if e[1] == "show" and streamer(e[3]) == owner and e[0] < self.day]
        theirs = [other for other in theirs if other != topic]
        made = {}
        kinds = ("show", "click", "long", "like", "gift")
        names = ("count", "click_count", "effective_view_count", "like_count", "gift_count")
        for name, kind in zip(names, kinds, strict=True):
            mine = [e[3] % 2 for e in self.events if e[1] == kind and e[2] == self.visit.user and e[0] < self.at]
            mean = sum(mine.count(other) for other in theirs) / len(theirs) if theirs else None
            made[f"{prefix}_{name}"] = None if mean is None else math.log1p(mean)
        return made

    def row(self):
        user, owner = self.visit.user, streamer(self.visit.item)
        made = {"user": user, "room": self.visit.item, "streamer": owner, "timestamp": self.at}
        made |= self.labels() | self.history() | self.room()
        made |= self.rates("user", lambda event: event[2] == user, self.day)
        made |= self.rates("user_seen", lambda event: event[2] == user, self.at)
        made |= self.rates("streamer", lambda event: streamer(event[3]) == owner, self.day)
        made |= self.tallies("user_streamer", lambda event: streamer(event[3]) == owner)
        made |= self.tallies("user_room", lambda event: event[3] == self.visit.item)
        topic = self.visit.item % 2
        made |= self.tallies("user_live_content_category", lambda event: event[3] % 2 == topic)
        made |= self.others("user_other_live_content_category", owner, topic)
        local = (self.at + 8 * 3_600_000) // 1000
        return made | {"hour": local // 3600 % 24, "weekday": (local // 86400 + 3) % 7}


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=visit_lists)
@example(log=[Visit(3580, 1, 1, click=False), Visit(86380, 1, 1, gifts=(0, 5000)), Visit(223200, 1, 1, click=False)])
def test_rows_are_those_of_the_twin(tmp_path_factory, log):
    table = prepared("kuailive", tmp_path_factory.mktemp("log"), log, options=OPTIONS)
    rows = table.to_pylist()
    twins = [Twin(log, visit).row() for visit in sorted(log, key=lambda v: (v.ms, v.user, v.item))]
    for row, twin in zip(rows, twins, strict=True):
        for name, value in twin.items():
            wanted = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value  # columns are float32
            assert row[name] == wanted, (name, row)


def test_the_twin_sees_every_kind_of_value(tmp_path):
    """The strategy's logs are varied enough for the comparison above to mean something."""
    rng = np.random.default_rng(1)
    log = []
    for n, hour in enumerate([*rng.integers(0, 72, 60), 23, 47]):
        click, given = n % 3 > 0, (40,) if n % 3 and n % 5 == 0 else ()
        last = 179 if n >= 60 else n % 13  # two views that midnight finds going on
        log.append(
            Visit(int(hour) * HOUR + 20 * last, 1 + n % 3, 1 + n % 4, click, [20, 400, 9000][n % 3], given, given)
        )
    table = prepared("kuailive", tmp_path, log, options=OPTIONS)
    for name in ("effective_view", "watch_time", "like", "gift"):
        assert {0, None} < set(table[name].to_pylist()), name
    assert max(table["room_viewers"].to_pylist()) > 0
    assert max(len(row) for row in table["live_streamer"].to_pylist()) == LIMIT
    assert NOBODY not in {topic for row in table["live_category"].to_pylist() for topic in row}
