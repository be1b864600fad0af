"""An event log by a spec: what it shares with the adapter that is written in code is equal."""

import re
from pathlib import Path

import pytest

from livetrain.configs.errors import BadInput
from livetrain.configs.event_spec import EventSpec
from livetrain.configs.spec import load_spec, tells_events
from livetrain.trainers.data.sources.table.events import prepare_events
from tests.trainers.data.sources.events.logs import HOUR, START, Visit, prepared, samples

GUIDE = Path(__file__).parents[5] / "docs" / "guide" / "own-data.md"
SPEC = GUIDE.read_text(encoding="utf-8").partition("<!-- event log -->\n```yaml\n")[2].partition("```")[0]


def test_a_spec_gives_what_the_adapter_in_code_gives(tmp_path):
    log = [
        Visit(hour * HOUR + 20 * n, 1 + n % 3, 1 + n % 4, n % 3 > 0, 400, (), (40,) if n % 3 and n % 5 == 0 else ())
        for n, hour in enumerate([1, 1, 2, 5, 23, 24, 25, 25, 30, 47, 48, 50] * 3)
    ]
    wanted = prepared("kuailive", tmp_path, log)
    path = tmp_path / "out-raw" / "spec.yaml"
    path.write_text(SPEC)
    assert tells_events(path)
    prepare_events(load_spec(path, EventSpec), tmp_path / "by-spec", lambda what, done, days: None)
    found = samples(tmp_path / "by-spec")
    names = ["user", "room", "streamer", "timestamp", "hour", "click", "gift", "gift_value", "user_gender"]
    names += ["user_count", "streamer_click_rate", "user_seen_gift_rate", "user_streamer_count", "user_room_ago"]
    names += ["live_streamer", "live_category", "live_gap"]
    assert found.select(names).equals(wanted.select(names))
    for count in ("count", "click_count", "gift_count", "ago"):
        assert found[f"user_category_{count}"].equals(wanted[f"user_live_content_category_{count}"])
    assert max(found["user_category_count"].to_pylist()) > 0
    assert found["tags"].to_pylist() == [[topic] for topic in wanted["live_content_category"].to_pylist()]


def test_tables_may_have_any_name(tmp_path):
    prepared("kuailive", tmp_path, [Visit(hour * HOUR, 1 + hour % 2, 1) for hour in (1, 2, 26, 27)])
    path, renamed = tmp_path / "out-raw" / "spec.yaml", SPEC
    for name, other in {"clicks": "events", "shows": "exposures", "gifts": "carry", "users": "rows"}.items():
        renamed = re.sub(rf"\b{name}\b", other, renamed)
    for name, text in (("one", SPEC), ("other", renamed)):
        path.write_text(text)
        prepare_events(load_spec(path, EventSpec), tmp_path / name, lambda what, done, days: None)
    assert samples(tmp_path / "one").equals(samples(tmp_path / "other"))


FOLLOWS = """
follows: SELECT a AS user, b AS other, since AS time, what AS kind FROM follows
"""


def with_follows(path: Path, rows: list[tuple[int, int, int, str]]) -> None:
    """Write a log's spec with a table of who follows whom from which second on."""
    lines = [f"{a},{b},{START + 1000 * second},{kind}" for a, b, second, kind in rows]
    (path.parent / "follows.csv").write_text("\n".join(["a,b,since,what", *lines]) + "\n")
    spec = SPEC.replace("exposures: >", FOLLOWS.lstrip() + "exposures: >", 1)
    table = "  follows: {files: [follows.csv], columns: {a: BIGINT, b: BIGINT, since: BIGINT, what: VARCHAR}}\n"
    spec = spec.replace("tables:\n", "tables:\n" + table, 1)
    people = "".join(f"  {name}: {{domain: people, event: {kind}, author: user}}\n" for name, kind in PEOPLE)
    path.write_text(spec.replace("sequences:\n", "sequences:\n" + people, 1))


PEOPLE = (("followed", "follow"), ("friends", "friend"))


def test_who_is_followed_is_told_from_strictly_after_and_friends_are_friends_of_both(tmp_path):
    hours = [1, 2, 25, 26, 49]
    log = [Visit(hour * HOUR, user, 1) for hour in hours for user in (1, 2, 3)]
    prepared("kuailive", tmp_path, log)
    rows = [(1, 100, -40 * HOUR, "follow"), (1, 101, 2 * HOUR, "follow"), (2, 101, 26 * HOUR - 1, "follow")]
    rows += [(3, 1, 25 * HOUR, "friend"), (2, 3, 2 * HOUR - 1, "friend"), (1, 102, 3 * HOUR, "blocked")]
    path = tmp_path / "out-raw" / "spec.yaml"
    with_follows(path, rows)
    prepare_events(load_spec(path, EventSpec), tmp_path / "by-spec", lambda what, done, days: None)
    found = samples(tmp_path / "by-spec")
    for row in found.to_pylist():
        second = (row["timestamp"] - START) // 1000
        for name, kind in PEOPLE:
            wanted = [(since, b) for a, b, since, what in rows if (a, what) == (row["user"], kind) and since < second]
            if kind == "friend":
                wanted += [(s, a) for a, b, s, what in rows if (b, what) == (row["user"], kind) and s < second]
            assert row[f"{name}_user"] == [other for _, other in sorted(wanted)]
    assert max(map(len, found["friends_user"].to_pylist())) == 2
    assert found["user_count"].to_pylist() == samples(tmp_path / "out")["user_count"].to_pylist()  # these count rooms


def test_mistakes_about_people_are_named(tmp_path):
    prepared("kuailive", tmp_path, [Visit(0, 1, 1)])
    path = tmp_path / "out-raw" / "spec.yaml"
    with_follows(path, [])
    whole = path.read_text()
    for old, new, words in (
        (FOLLOWS.strip(), "", "sequences.followed.domain: nothing says who follows whom; add `follows`"),
        ("event: friend,", "event: click,", "sequences.friends.event: 'click' makes no entry of domain people"),
        ("event: friend, author: user", "event: friend, item: room", "sequences.friends: people have no item"),
        ("since AS time", "sinse AS time", "follows: DuckDB does not take it: .*sinse"),
    ):
        path.write_text(whole.replace(old, new, 1))
        with pytest.raises(BadInput, match=words):
            prepare_events(load_spec(path, EventSpec), tmp_path / "out2", lambda what, done, days: None)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("timestamp AS time FROM", "timestmp AS time FROM", r"line 14: exposures: DuckDB does not take it: .*timestmp"),
        ("{kind: gift}", "{kind: gifts}", r"line 33: labels.gift.kind got 'gifts'"),
        ("click.csv", "clicks.csv", r"there is no clicks.csv"),
        ("live: room.category", "live: room.categry", r"topics.live: 'room.categry' is no .* \(did you mean 'room.cat"),
        ("topics: {live: room.category}", "", r"sequences.live.topic: topics does not say what items of domain live"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, words):
    prepared("kuailive", tmp_path, [Visit(0, 1, 1)])
    path = tmp_path / "out-raw" / "spec.yaml"
    path.write_text(SPEC.replace(old, new, 1))
    with pytest.raises(BadInput, match=words):
        prepare_events(load_spec(path, EventSpec), tmp_path / "out2", lambda what, done, days: None)
