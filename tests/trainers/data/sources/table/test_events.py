"""An event log by a spec: what it shares with the adapter that is written in code is equal."""

import pytest

from livetrain.configs.errors import BadInput
from livetrain.configs.event_spec import EventSpec
from livetrain.configs.spec import load_spec, tells_events
from livetrain.trainers.data.sources.table.events import prepare_events
from tests.trainers.data.sources.events.logs import HOUR, Visit, prepared, samples

SPEC = """
name: rooms
domain: live
item: room
author: streamer
utc_offset_s: 28800
tables:
  clicks:
    files: [click.csv]
    columns: &event {user_id: BIGINT, live_id: BIGINT, streamer_id: BIGINT, timestamp: BIGINT}
  shows: {files: [negative.csv], columns: *event}
  gifts: {files: [gift.csv], columns: {<<: *event, gift_price: DOUBLE}}
  users: {files: [user.csv], columns: {user_id: BIGINT, gender: VARCHAR}}
exposures: >
  SELECT user_id AS user, live_id AS item, streamer_id AS author, timestamp AS time FROM clicks
  UNION ALL SELECT user_id, live_id, streamer_id, timestamp FROM shows
actions: >
  SELECT user_id AS user, live_id AS item, streamer_id AS author, timestamp AS time, 'click' AS kind, NULL AS value,
         timestamp AS session FROM clicks
  UNION ALL SELECT user_id, live_id, streamer_id, timestamp, 'gift', gift_price, NULL FROM gifts
attributes:
  user: {key: user, select: "SELECT user_id AS id, gender AS user_gender FROM users", ids: [user_gender]}
labels:
  click: {kind: click, delay: false}
  gift: {kind: gift}
  gift_value: {kind: gift, total: true}
statistics: {user: user, streamer: author}
"""


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
    assert found.select(names).equals(wanted.select(names))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("timestamp AS time FROM", "timestmp AS time FROM", r"line 14: exposures: DuckDB does not take it: .*timestmp"),
        ("{kind: gift}", "{kind: gifts}", r"line 25: labels.gift.kind got 'gifts'"),
        ("click.csv", "clicks.csv", r"there is no clicks.csv"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, words):
    prepared("kuailive", tmp_path, [Visit(0, 1, 1)])
    path = tmp_path / "out-raw" / "spec.yaml"
    path.write_text(SPEC.replace(old, new, 1))
    with pytest.raises(BadInput, match=words):
        prepare_events(load_spec(path, EventSpec), tmp_path / "out2", lambda what, done, days: None)
