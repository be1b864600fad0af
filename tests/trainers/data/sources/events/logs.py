"""Small event logs, written as the raw files of every source in their documented form."""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from livetrain.trainers.data.sources.events.prepare import prepare
from livetrain.trainers.data.sources.events.sources import ADAPTERS

START = 1_748_102_400_000  # ms; 2025-05-25 00:00 in UTC+8
HOUR = 3600
SOURCES = ("kuailive", "kuailive-m3", "kuairand")  # a package of somebody else's may have entered others

USER_CSV = (
    "user_id,age,gender,country,device_brand,device_price,reg_timestamp,fans_num,follow_num,first_watch_live_timestamp,"
    "accu_watch_live_cnt,accu_watch_live_duration,is_live_streamer,is_photo_author,onehot_feat0,onehot_feat1,"
    "onehot_feat2,onehot_feat3,onehot_feat4,onehot_feat5,onehot_feat6"
)
STREAMER_CSV = (
    "streamer_id,gender,age,country,device_brand,device_price,live_operation_tag,fans_user_num,fans_group_fans_num,"
    "follow_user_num,first_live_timestamp,accu_live_cnt,accu_live_duration,accu_play_cnt,accu_play_duration,"
    "reg_timestamp,onehot_feat0,onehot_feat1,onehot_feat2,onehot_feat3,onehot_feat4,onehot_feat5,onehot_feat6"
)
ROOM_CSV = "p_date,live_id,streamer_id,live_type,start_timestamp,end_timestamp,live_content_category,live_name_id"
EVENT_CSV = "user_id,live_id,streamer_id,timestamp"


@dataclass(frozen=True, order=True)
class Visit:
    """What one user did with one item that he was shown.

    Args:
        time: seconds since START.
        click: whether he went in.
        watch: seconds that he stayed.
        likes, gifts: seconds after `time` at which he gave them; sources that count them tell when he leaves.
    """

    time: int
    user: int
    item: int
    click: bool = True
    watch: int = 60
    likes: tuple[int, ...] = ()
    gifts: tuple[int, ...] = ()

    @property
    def ms(self) -> int:
        return START + 1000 * self.time


def streamer(item: int) -> int:
    """Return whose item it is."""
    return 100 + item % 3


# Few users and items, and times on a grid that has the last seconds of an hour, so that ties, sequels and what goes on
# at midnight are common.
moments = st.builds(lambda hour, step: hour * HOUR + 20 * step, st.integers(0, 71), st.integers(0, 12) | st.just(179))
offsets = st.lists(st.sampled_from([0, 20, 40, 300, 5000]), max_size=2).map(tuple)
visits = st.builds(
    Visit,
    moments,
    st.integers(1, 3),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([0, 20, 30, 400, 9000]),
    offsets,
    offsets,
)
visit_lists = st.lists(
    visits, min_size=1, max_size=25, unique_by=lambda visit: (visit.user, visit.item, visit.time)
).map(lambda made: [visit if visit.click else replace(visit, likes=(), gifts=()) for visit in made])


def write(source: str, folder: Path, visits: Iterable[Visit]) -> Path:
    """Write the raw files of a source below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    {"kuailive": _kuailive, "kuailive-m3": _m3, "kuairand": _kuairand}[source](folder, sorted(visits))
    return folder


def prepared(source: str, folder: Path, visits: Iterable[Visit], name: str = "out", **options) -> pa.Table:
    """Return the samples of a log, by time, user and item."""
    raw = write(source, folder / f"{name}-raw", visits)
    prepare(ADAPTERS[source], raw, folder / name, **options)
    return samples(folder / name)


def samples(out: Path) -> pa.Table:
    """Return all samples of a prepared log, by time, user and item."""
    parts = [pq.read_table(path, partitioning=None) for path in sorted(out.glob("date=*/*.parquet"))]
    table = pa.concat_tables(parts)
    return table.sort_by([(name, "ascending") for name in ("timestamp", "user", table.column_names[1])])


def _lines(path: Path, header: str, rows: Iterable[tuple]) -> None:
    text = "".join(",".join("" if value is None else str(value) for value in row) + "\n" for row in rows)
    path.write_bytes(f"{header}\n{text}".encode())


def _kuailive(folder: Path, visits: list[Visit]) -> None:
    key = {visit: (visit.user, visit.item, streamer(visit.item)) for visit in visits}
    clicks, shows = [v for v in visits if v.click], [v for v in visits if not v.click]
    _lines(folder / "click.csv", f"{EVENT_CSV},watch_live_time", [(*key[v], v.ms, 1000 * v.watch) for v in clicks])
    _lines(folder / "negative.csv", EVENT_CSV, [(*key[v], v.ms) for v in shows])
    _lines(folder / "comment.csv", EVENT_CSV, [])
    likes = [(*key[v], v.ms + 1000 * after) for v in visits for after in v.likes]
    _lines(folder / "like.csv", EVENT_CSV, likes)
    gifts = [(*key[v], v.ms + 1000 * after, 5) for v in visits for after in v.gifts]
    _lines(folder / "gift.csv", f"{EVENT_CSV},gift_price", gifts)
    rooms = [
        (
            20250525,
            item,
            streamer(item),
            1,
            START + 1000 * HOUR * (4 * item - 6),
            START + 10**9,
            f"topic{item % 2}",
            item,
        )
        for item in range(1, 5)
    ]
    _lines(folder / "room.csv", ROOM_CSV, rooms)
    users = [(user, "24-30", "F", *[None] * 3, "2020-01-31", "5000+", *[None] * 4, 0, 1, *[0] * 7) for user in (1, 2)]
    _lines(folder / "user.csv", USER_CSV, users)
    streamers = [(100 + n, "M", "31-40", "China", *[None] * 11, "2019-07-03", *[1] * 7) for n in range(3)]
    _lines(folder / "streamer.csv", STREAMER_CSV, streamers)


def _stamps(seconds: Iterable[int]) -> pa.Array:
    return pa.array([START + 1000 * second for second in seconds], pa.int64()).cast(pa.timestamp("ms"))


def _m3(folder: Path, visits: list[Visit]) -> None:
    """Rooms are the items; every visit is also a play of the short video of the same number, an hour later."""
    shows, clicks = visits, [v for v in visits if v.click]

    def ids(chosen: list[Visit], item: str) -> dict[str, pa.Array]:
        names = {"user_id": "user", item: "item"}
        made = {name: pa.array([getattr(v, field) for v in chosen], pa.int64()) for name, field in names.items()}
        return made | {"author_id": pa.array([streamer(v.item) for v in chosen], pa.int64())}

    show = ids(shows, "live_id") | {"show_timestamp": _stamps(v.time for v in shows)}
    pq.write_table(pa.table(show), folder / "live_show.parquet")
    header = (
        "user_id,live_id,author_id,live_play_start_timestamp,live_play_end_timestamp,p_date,live_source_category,"
        "enter_live_action,is_auto_play,is_follow_enter,is_follow_leave,play_duration,like_cnt,comment_cnt,send_gift_cnt,"
        "send_gift_num,follow_author_cnt,cancel_follow_author_cnt,share_cnt,report_live_cnt"
    )

    def text(second: int) -> str:
        moment = datetime.datetime.fromtimestamp(START // 1000 + second, datetime.UTC)
        return moment.strftime("%Y-%m-%d %H:%M:%S.000")

    rows = [
        (v.user, v.item, streamer(v.item), text(v.time + 1), text(v.time + 1 + v.watch), 20250525, "feed", "click")
        + (0, 0, 0, 1000 * v.watch, len(v.likes), 0, len(v.gifts), 3 * len(v.gifts), 0, 0, 0, 0)
        for v in clicks
    ]
    _lines(folder / "live_interaction.csv", header, rows)
    plays = ids(visits, "photo_id") | {
        "enter_timestamp": _stamps(v.time + HOUR for v in visits),
        "leave_timestamp": _stamps(v.time + HOUR + v.watch for v in visits),
        "enter_play_type": pa.array(["slide_up"] * len(visits)),
        **{
            name: pa.array([int(bool(v.likes)) for v in visits])
            for name in ("is_complete_play", "like_status_type", "is_follow_after_play")
        },
        "is_follow_before_play": pa.array([0] * len(visits)),
    }
    pq.write_table(pa.table(plays), folder / "photo_play.parquet")
    items = range(1, 5)
    rooms = {
        "live_id": pa.array(items, pa.int64()),
        "author_id": pa.array([streamer(item) for item in items], pa.int64()),
        "live_name": pa.array([f"title {item}" for item in items]),
        "start_timestamp": _stamps(HOUR * (4 * item - 6) for item in items),
        "end_timestamp": pa.array([None] * 4, pa.timestamp("ms")),
        "live_duration": pa.array([None] * 4, pa.int64()),
    }
    pq.write_table(pa.table(rooms), folder / "live_room_meta.parquet")
    levels = ",".join(f"{level}_level_category_name" for level in ("first", "second", "third", "fourth"))
    _lines(
        folder / "photo_tag.csv", f"photo_id,{levels}", [(1, "food", "noodles", None, None), (2, "music", *[None] * 3)]
    )
    profile = "author_id,is_photo_author,is_live_author,gender,age_segment,fans_user_num"
    _lines(folder / "author_profile.csv", profile, [(100 + n, 1, 1, "F", "18-23", "1k-1w") for n in range(3)])


def _kuairand(folder: Path, visits: list[Visit]) -> None:
    """The log's date runs two hours ahead of the clock."""
    header = (
        "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
        "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
    )
    day = np.datetime64("2025-05-25")
    rows = [
        (v.user, v.item, str(day + (v.time + 2 * HOUR) // (24 * HOUR)).replace("-", ""), 0, v.ms, int(v.click))
        + (int(bool(v.likes)), 0, 0, int(bool(v.gifts)), 0, int(v.watch >= 30), 1000 * v.watch, 20_000, 0, 0, 0, 0, 1)
        for v in visits
    ]
    _lines(folder / "log_standard_4_22_to_5_08_pure.csv", header, rows)
    ranges = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
    names = ["user_id", "user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author"]
    names += [name for part in ranges for name in (part, f"{part}_range")] + [f"onehot_feat{n}" for n in range(18)]
    users = [(user, "full_active", 0, 0, 0, *[5, '"(0,10]"'] * 4, *[1] * 18) for user in (1, 2)]
    _lines(folder / "user_features_pure.csv", ",".join(names), users)
    header = (
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
        "music_id,music_type,tag"
    )
    videos = [
        (
            n,
            streamer(n),
            "NORMAL",
            f"2025-05-{19 + 2 * n}",
            "Kmovie",
            0.0,
            20_000,
            720,
            1280,
            n,
            9.0,
            ["", 1, '"7,1"'][n % 3],
        )
        for n in range(1, 5)
    ]
    _lines(folder / "video_features_basic_pure.csv", header, videos)
