"""The specs by which a replayed world becomes samples; see configs.event_spec and docs/guide/streams.md."""

_OF = {"watch": ", watch_live_time: BIGINT", "gift": ", gift_price: DOUBLE"}
_TIMES = {"long": "timestamp + 30000", "watch": "timestamp + watch_live_time"}
_TOPICS = ("exposure", "click", "long", "watch", "like", "comment", "gift")
_TABLES = "".join(
    f"""\
  {name}:
    files: [topics/{name}/*.jsonl]
    columns: {{user_id: BIGINT, live_id: BIGINT, streamer_id: BIGINT, timestamp: BIGINT{_OF.get(name, "")}}}
    required: false
"""
    for name in _TOPICS
)
EVENTS = f"""\
# The event log of a replayed world. What is answered within two minutes counts, so that a minute can close soon.
name: replayed
item: room
author: streamer
utc_offset_s: 28800
window_s: 120
history: 50
tables:
{_TABLES}  room:
    files: [room.csv]
    columns: {{live_id: BIGINT, start_timestamp: BIGINT, live_type: VARCHAR, live_content_category: VARCHAR}}
  user:
    files: [user.csv]
    columns: {{user_id: BIGINT, age: VARCHAR, gender: VARCHAR, fans_num: VARCHAR}}
  streamer:
    files: [streamer.csv]
    columns: {{streamer_id: BIGINT, live_operation_tag: VARCHAR, fans_user_num: VARCHAR}}
exposures: SELECT user_id AS user, live_id AS item, streamer_id AS author, timestamp AS time FROM exposure
actions: >
  SELECT user_id AS user, live_id AS item, streamer_id AS author, timestamp AS time, 'click' AS kind,
  NULL::DOUBLE AS value, timestamp AS session FROM click
  UNION ALL SELECT user_id, live_id, streamer_id, timestamp + 30000, 'long', NULL, timestamp FROM long
  UNION ALL SELECT user_id, live_id, streamer_id, timestamp + watch_live_time, 'watch', watch_live_time / 1000.0,
  timestamp FROM watch
  UNION ALL SELECT user_id, live_id, streamer_id, timestamp, 'like', NULL, NULL FROM "like"
  UNION ALL SELECT user_id, live_id, streamer_id, timestamp, 'comment', NULL, NULL FROM comment
  UNION ALL SELECT user_id, live_id, streamer_id, timestamp, 'gift', gift_price, NULL FROM gift
attributes:
  room:
    key: item
    select: SELECT live_id AS id, live_type, live_content_category, start_timestamp AS start FROM room
    ids: [live_type, live_content_category]
    age: room_age
  user:
    key: user
    select: >
      SELECT user_id AS id, age AS user_age, gender AS user_gender, fans_num AS user_fans_num FROM "user"
    ids: [user_age, user_gender, user_fans_num]
  streamer:
    key: author
    select: >
      SELECT streamer_id AS id, live_operation_tag AS streamer_live_operation_tag,
      fans_user_num AS streamer_fans_user_num FROM streamer
    ids: [streamer_live_operation_tag, streamer_fans_user_num]
topics: {{live: room.live_content_category}}
labels:
  click: {{kind: click, delay: false}}
  effective_view: {{kind: long}}
  like: {{kind: like}}
  comment: {{kind: comment}}
  gift: {{kind: gift}}
  gift_value: {{kind: gift, total: true}}
  watch_time: {{kind: watch, total: true}}
sequences:
  live: {{domain: live, event: click, author: streamer, topic: category}}
statistics: {{user: user, streamer: author}}
"""

_QUIET_S = 180.0  # of the world: three files that do not land make a topic silent
_LEAST_S = 5.0  # of the clock


def stream(speed: float) -> str:
    """Return the spec of the stream of a world that is replayed at a speed.

    A topic's file lands each minute in which it has messages, so that it is silent after some minutes of the world.

    Example:
        >>> [line for speed in (1, 60, 0) for line in stream(speed).splitlines() if "idle_s" in line]
        ['idle_s: 180', 'idle_s: 5', 'idle_s: 60']
    """
    idle = max(_QUIET_S / speed, _LEAST_S) if speed else 60.0
    return "\n".join(
        [
            "# The stream of a replayed world: livetrain stream stream.yaml --out DIR",
            "events: events.yaml",
            "sources: {files: {kind: folder, path: topics}}",
            "topics:",
            *(f"  {name}: {{source: files, topic: {name}, time: {_TIMES.get(name, 'timestamp')}}}" for name in _TOPICS),
            "wait_s: 120",
            f"idle_s: {min(idle, 86_400):g}",
            "",
        ]
    )
