"""The files: bytes, documented form, and events that fit the rooms they are in."""

import re

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.simulator import Settings, simulate, write
from livetrain.trainers.runtime import manifest

PROFILE = "device_brand,device_price"
ONEHOT = ",".join(f"onehot_feat{n}" for n in range(7))
EVENT = "user_id,live_id,streamer_id,timestamp"
HEADERS = {
    "kuailive/streamer.csv": f"streamer_id,gender,age,country,{PROFILE},live_operation_tag,fans_user_num,"
    "fans_group_fans_num,follow_user_num,first_live_timestamp,accu_live_cnt,accu_live_duration,accu_play_cnt,"
    f"accu_play_duration,reg_timestamp,{ONEHOT}",
    "kuailive/room.csv": "p_date,live_id,streamer_id,live_type,start_timestamp,end_timestamp,live_content_category,"
    "live_name_id",
    "kuailive/user.csv": f"user_id,age,gender,country,{PROFILE},reg_timestamp,fans_num,follow_num,"
    "first_watch_live_timestamp,accu_watch_live_cnt,accu_watch_live_duration,is_live_streamer,is_photo_author,"
    + ONEHOT,
    "kuailive/click.csv": f"{EVENT},watch_live_time",
    "kuailive/negative.csv": EVENT,
    "kuailive/comment.csv": EVENT,
    "kuailive/like.csv": EVENT,
    "kuailive/gift.csv": f"{EVENT},gift_price",
    "kuailive-m3/live_interaction.csv": "user_id,live_id,author_id,live_play_start_timestamp,live_play_end_timestamp,"
    "p_date,live_source_category,enter_live_action,is_auto_play,is_follow_enter,is_follow_leave,play_duration,like_cnt,"
    "comment_cnt,send_gift_cnt,send_gift_num,follow_author_cnt,cancel_follow_author_cnt,share_cnt,report_live_cnt",
    "kuailive-m3/author_profile.csv": "author_id,is_photo_author,is_live_author,gender,age_segment,fans_user_num",
    "kuailive-m3/photo_tag.csv": "photo_id,first_level_category_name,second_level_category_name,"
    "third_level_category_name,fourth_level_category_name",
}
STAMP = pa.timestamp("ms")
SCHEMAS = {
    "live_show": {"live_id": pa.int64(), "user_id": pa.int64(), "author_id": pa.int64(), "show_timestamp": STAMP},
    "live_room_meta": {
        **{"live_id": pa.int64(), "author_id": pa.int64(), "live_name": pa.string()},
        **{"start_timestamp": STAMP, "end_timestamp": STAMP, "live_duration": pa.int64()},
    },
    "live_emb_64": {"live_id": pa.int64(), "embedding": pa.list_(pa.float32())},
    "photo_play": {
        **{"user_id": pa.int64(), "photo_id": pa.int64(), "author_id": pa.int64()},
        **{"enter_timestamp": STAMP, "leave_timestamp": STAMP, "enter_play_type": pa.string()},
        **{"is_complete_play": pa.int64(), "like_status_type": pa.int64()},
        **{"is_follow_before_play": pa.int64(), "is_follow_after_play": pa.int64()},
    },
    "photo_meta": {
        **{"photo_id": pa.int64(), "author_id": pa.int64(), "duration": pa.int64(), "display_type": pa.int64()},
        **{"cover_title": pa.string(), "video_texts": pa.string()},
    },
    "photo_emb_128": {"photo_id": pa.int64(), "feature": pa.list_(pa.float32())},
}
RANGE = re.compile(r"\d+-\d+|\d+\+")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """400 users, 2 days."""
    out = tmp_path_factory.mktemp("simulated") / "world"
    simulate(Settings(400, 2, seed=5), out)
    return out


@pytest.fixture(scope="module")
def sql(world):
    """Run a query in which {click} is the file click.csv, and so on; return its rows as columns."""
    names = {path.stem: f"'{path}'" for path in world.glob("kuailive*/*.*")} | {"truth": f"'{world}/truth/*/*.parquet'"}
    return lambda query: duckdb.sql(query.format(**names)).fetchnumpy()


def hashes(folder):
    return manifest.read(folder)["files"]


def test_the_same_settings_give_the_same_bytes_and_another_seed_or_dial_others(tmp_path):
    settings = {"a": (7,), "again": (7,), "seed": (8,), "conflict": (7, 0.9), "transfer": (7, 0.5, 0.1)}
    for name, chosen in settings.items():
        simulate(Settings(40, 1, *chosen), tmp_path / name)
    first = hashes(tmp_path / "a")
    assert hashes(tmp_path / "again") == first
    assert manifest.damage(tmp_path / "a", manifest.read(tmp_path / "a")) is None
    truth = "truth/date=2025-05-25/part-0.parquet"
    for other in ("seed", "conflict", "transfer"):
        assert hashes(tmp_path / other)[truth] != first[truth], other


def test_the_rows_do_not_depend_on_how_many_are_written_at_a_time(world, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "BUFFER", 97)
    simulate(Settings(400, 2, seed=5), tmp_path / "pieces")
    for name, known in hashes(world).items():
        if name.endswith(".parquet"):
            assert pq.read_table(tmp_path / "pieces" / name, partitioning=None) == pq.read_table(
                world / name, partitioning=None
            )
        else:
            assert hashes(tmp_path / "pieces")[name] == known, name


def test_every_documented_file_is_there_with_its_header_and_types(world):
    found = {str(path.relative_to(world)) for path in world.glob("kuailive*/*")}
    tables = {f"kuailive-m3/{name}.parquet" for name in SCHEMAS}
    assert found == {*HEADERS, *tables, "kuailive/title_embeddings.npy"}
    for name, header in HEADERS.items():
        assert (world / name).read_bytes().split(b"\n", 1)[0].decode() == header, name
    for name, schema in SCHEMAS.items():
        found = pq.read_schema(world / f"kuailive-m3/{name}.parquet")
        assert {field.name: field.type for field in found} == schema, name
    assert {path.parent.name for path in world.glob("truth/*/part-0.parquet")} == {"date=2025-05-25", "date=2025-05-26"}


def test_values_have_the_published_form(world, sql):
    lines = (world / "kuailive/click.csv").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"\d+,\d+,\d+,17\d{11},\d+", line) for line in lines)
    user = sql("from read_csv({user}, all_varchar=true)")
    for name in ("fans_num", "follow_num", "accu_watch_live_cnt", "accu_watch_live_duration"):
        given = user[name][~np.ma.getmaskarray(user[name])]
        assert len(given) > 300
        assert all(map(RANGE.fullmatch, given)), name
    assert np.ma.getmaskarray(user["age"]).any(), "some ages are missing"
    assert all(re.fullmatch(r"\d{4}-\d{2}-\d{2}", day) for day in user["reg_timestamp"])
    room = sql("from read_csv({room}) where start_timestamp >= 1748102400000 order by start_timestamp")
    assert set(room["p_date"]) == {20250525, 20250526}
    assert np.ma.getmaskarray(room["live_content_category"]).any()
    titles = np.load(world / "kuailive/title_embeddings.npy")
    assert titles.shape[1] == 128
    assert titles.dtype == np.float32
    assert 0 == room["live_name_id"].min() < room["live_name_id"].max() < len(titles)
    text = (world / "kuailive-m3/live_interaction.csv").read_text().splitlines()[1].split(",")
    assert re.fullmatch(r"2025-05-2\d \d\d:\d\d:\d\d\.\d{3}", text[3])


@pytest.mark.parametrize("kind", ["click", "negative", "comment", "like", "gift"])
def test_events_fall_into_their_room_name_its_streamer_and_never_repeat(sql, kind):
    event = sql(
        f"select e.*, r.start_timestamp begins, r.end_timestamp ends, r.streamer_id owner from read_csv({{{kind}}}) e "
        "left join read_csv({room}) r using (live_id)"
    )
    assert len(event["timestamp"]) > 10
    assert (event["owner"] == event["streamer_id"]).all()
    stop = event["timestamp"] + (event["watch_live_time"] if kind == "click" else 0)
    assert (event["begins"] <= event["timestamp"]).all()
    assert (stop <= event["ends"]).all()
    assert (stop <= 1748102400000 + 2 * 86_400_000).all()
    keys = np.stack([event[name] for name in ("user_id", "live_id", "timestamp")], axis=1)
    assert len(np.unique(keys, axis=0)) == len(keys)
    assert set(event["user_id"]) <= set(sql("from read_csv({user})")["user_id"])


def test_a_streamers_rooms_do_not_overlap_and_a_new_one_was_never_on_air_before(sql):
    later = sql(
        "select min(start_timestamp - before) gap from (select start_timestamp, lag(end_timestamp) over "
        "(partition by streamer_id order by start_timestamp) before from read_csv({room}))"
    )
    assert later["gap"][0] >= 60_000
    new = sql(
        "select count(distinct streamer_id) streamers, min(start_timestamp) first from read_csv({room}) r join "
        "read_csv({streamer}) s using (streamer_id) where first_live_timestamp = date '2025-05-26'"
    )
    assert new["first"][0] >= 1748102400000 + 86_400_000
    assert new["streamers"][0] > 0


def test_both_forms_and_the_truth_tell_one_story(sql):
    both = sql("""
        select c.watch_live_time = i.play_duration w, t.click, t.watch_time * 1000 - c.watch_live_time d,
            t.effective_view = (c.watch_live_time >= 30000) e, i.like_cnt, i.follow_author_cnt, t.like, t.follow,
            i.is_follow_enter before, t.gift, i.send_gift_cnt
        from read_csv({click}) c
        join read_csv({live_interaction}) i on i.user_id = c.user_id and i.live_id = c.live_id
            and epoch_ms(i.live_play_start_timestamp) = c.timestamp
        join {truth} t on t.user_id = c.user_id and t.live_id = c.live_id and t.timestamp = c.timestamp
    """)
    rows = sql(
        "select (select count(*) from {click}) clicks, (select count(*) from {negative}) others, (select count(*) "
        "from {live_show}) shown, (select count(*) from {truth}) truth, (select sum(click) from {truth}) ones"
    )
    assert len(both["w"]) == rows["clicks"][0] == rows["ones"][0]
    assert rows["others"][0] == rows["shown"][0] == rows["truth"][0] - rows["clicks"][0]
    assert both["w"].all()
    assert both["e"].all()
    assert np.abs(both["d"]).max() < 1
    assert ((both["like_cnt"] > 0) == both["like"]).all()
    assert (both["follow_author_cnt"] == both["follow"]).all()
    assert ((both["send_gift_cnt"] > 0) == both["gift"]).all()
    assert not (both["before"] & both["follow"]).any(), "nobody follows twice"


def test_some_gifts_come_after_the_view_and_the_rest_during_it(tmp_path):
    simulate(Settings(3000, 1, seed=3), tmp_path / "w")
    late = duckdb.sql(
        f"with g as (from '{tmp_path}/w/kuailive/gift.csv'), c as (from '{tmp_path}/w/kuailive/click.csv') select "
        "min(g.timestamp - c.timestamp - c.watch_live_time) past from g asof join c on g.user_id = c.user_id and "
        "g.live_id = c.live_id and g.timestamp >= c.timestamp group by g.user_id, g.live_id, c.timestamp"
    ).fetchnumpy()["past"]
    share = (late > 0).mean()
    assert abs(share - 0.12) < 4 * np.sqrt(0.12 * 0.88 / len(late))
    assert late.max() > 3_600_000, "hours later"


def test_a_full_folder_is_refused_and_a_failure_leaves_nothing(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        simulate(Settings(40, 1, seed=1), tmp_path / "full")

    def dies(done, total):
        raise KeyboardInterrupt

    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyboardInterrupt):
        simulate(Settings(40, 1, seed=1), tmp_path / "empty", dies)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "full", "note"]


def test_what_a_killed_attempt_left_is_cleared(tmp_path):
    (tmp_path / ".w.unfinished/kuailive").mkdir(parents=True)
    (tmp_path / ".w.unfinished/kuailive/old.csv").write_text("half")
    simulate(Settings(20, 1, seed=1), tmp_path / "w")
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert not (tmp_path / "w/kuailive/old.csv").exists()
