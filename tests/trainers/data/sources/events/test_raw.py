"""Raw files as they come: in their documented form, byte for byte, and wrong in every way that can be named."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.sources.events.prepare import prepare
from livetrain.trainers.data.sources.events.sources import ADAPTERS
from livetrain.trainers.data.write import layout
from livetrain.trainers.data.write.ids import string_id
from tests.trainers.data.sources.events.logs import HOUR, SOURCES, START, Visit, prepared, samples, write

LOG = [Visit(HOUR * n + 60, 1 + n % 2, 1 + n % 4, n % 3 > 0, 45, (30,) if n % 4 == 1 else ()) for n in range(12)]
LOG = [visit if visit.click else replace(visit, likes=()) for visit in LOG]

KUAILIVE = {  # the published example values; a user without age, a price that is missing, a room without a category
    "click.csv": "user_id,live_id,streamer_id,timestamp,watch_live_time\n"
    "10,900,56006,1748131200001,35000\n11,900,56006,1748131230000,1200\n10,901,56007,1748131300000,\n",
    "negative.csv": "user_id,live_id,streamer_id,timestamp\n11,901,56007,1748131290000\n",
    "comment.csv": "user_id,live_id,streamer_id,timestamp\n10,900,56006,1748131220000\n",
    "like.csv": "user_id,live_id,streamer_id,timestamp\n10,900,56006,1748131225000\n10,900,56006,1748131226000\n",
    "gift.csv": "user_id,live_id,streamer_id,timestamp,gift_price\n10,900,56006,1748131221000,10\n"
    "10,901,56007,1748131301000,\n",
    "room.csv": "p_date,live_id,streamer_id,live_type,start_timestamp,end_timestamp,live_content_category,"
    "live_name_id\n"
    "20250525,900,56006,1,1748131180878,1748138380878,Relationship,17\n20250525,901,56007,1,1748131100000,1748138380878,,0\n",
    "user.csv": "user_id,age,gender,country,device_brand,device_price,reg_timestamp,fans_num,follow_num,"
    "first_watch_live_timestamp,accu_watch_live_cnt,accu_watch_live_duration,is_live_streamer,is_photo_author,"
    "onehot_feat0,onehot_feat1,onehot_feat2,onehot_feat3,onehot_feat4,onehot_feat5,onehot_feat6\n"
    "10,24-30,M,China,APPLE,5000+,2014-07-03,0-10,100-500,2018-02-04,1000-5000,100000000-500000000,0,1,1,0,0,1,0,0,1\n"
    "11,,F,China,,0-1000,2019-01-01,,,,10-50,1000000-5000000,0,0,0,0,0,0,0,0,0\n",
    "streamer.csv": "streamer_id,gender,age,country,device_brand,device_price,live_operation_tag,fans_user_num,"
    "fans_group_fans_num,follow_user_num,first_live_timestamp,accu_live_cnt,accu_live_duration,accu_play_cnt,"
    "accu_play_duration,reg_timestamp,onehot_feat0,onehot_feat1,onehot_feat2,onehot_feat3,onehot_feat4,onehot_feat5,"
    "onehot_feat6\n"
    "56006,M,24-30,China,APPLE,5000+,Relationship,10000-100000,0-10,1000-10000,2018-02-04,100-500,"
    "500000000-1000000000,100000-500000,50000000000-100000000000,2014-07-03,1,0,0,0,0,0,1\n"
    "56007,,,,,,,,,,,,,,,,,,,,,,\n",
}


def test_kuailive_in_its_documented_form(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, text in KUAILIVE.items():
        (raw / name).write_bytes(text.encode())
    (raw / "title_embeddings.npy").write_bytes(b"not read")
    found = prepare(ADAPTERS["kuailive"], raw, tmp_path / "out")
    first, second, third, last = samples(tmp_path / "out").to_pylist()
    assert [row["timestamp"] - 1748131200000 for row in (first, second, third, last)] == [1, 30000, 90000, 100000]
    assert first["user_age"] == string_id("24-30")
    assert first["user_device_price"] == string_id("5000+")
    assert first["streamer_accu_play_duration"] == string_id("50000000000-100000000000")
    assert second["user_age"] is None
    assert last["streamer_fans_user_num"] is None
    assert last["live_content_category"] is None
    assert first["room_age"] == pytest.approx((1748131200001 - 1748131180878) / 1000)
    assert {name: first[name] for name in ("click", "effective_view", "like", "comment", "gift", "gift_value")} == {
        **dict.fromkeys(("click", "effective_view", "like", "comment", "gift"), 1),
        "gift_value": 10.0,
    }
    assert first["watch_time"] == 35.0
    assert (second["effective_view"], second["watch_time"], second["gift"]) == (0, pytest.approx(1.2), 0)
    assert (third["click"], third["watch_time"]) == (0, 0.0)
    assert (last["click"], last["effective_view"], last["watch_time"]) == (1, None, None)  # how long is not told
    assert (last["gift"], last["gift_value"]) == (1, None)
    assert (second["room_viewers"], second["room_likes"], second["room_gifts"]) == (1, 2, 1)
    assert (last["live_streamer"], last["live_action"]) == ([56006], [1 + 2 + 4 + 8 + 32])
    assert last["live_category"] == [string_id("Relationship")]
    raw_counts = found["report"]["raw"]
    assert raw_counts["click.csv: watch_live_time is missing: watch_time null"] == 1
    assert raw_counts["gift.csv: gift_price is missing: gift_value null"] == 1


@pytest.mark.parametrize("source", SOURCES)
def test_every_required_file_and_column_is_named_when_missing(tmp_path, source):
    raw = write(source, tmp_path / "raw", LOG)
    adapter = ADAPTERS[source]
    for file in adapter.files.values():
        path = next((path for name in file.names for path in raw.glob(name)), None)
        if path is None:
            continue
        whole = path.read_bytes()
        if path.suffix == ".csv":
            lost = list(file.columns)[-1]
            path.write_bytes(whole.replace(lost.encode(), b"x_" + lost[1:].encode(), 1))
            with pytest.raises(BadInput, match=rf"{path.name} has no column '{lost}'"):
                prepare(adapter, raw, tmp_path / "out")
        path.unlink()
        if file.required:
            with pytest.raises(BadInput, match=r"there is no .*--raw needs") as error:
                prepare(adapter, raw, tmp_path / "out")
            assert file.names[0] in str(error.value)
        path.write_bytes(whole)
    prepare(adapter, raw, tmp_path / "out")  # and nothing of what failed is in the way
    assert layout.finished(tmp_path / "out")["days"]


def test_missing_folder(tmp_path):
    with pytest.raises(BadInput, match=f"--raw: there is no folder {tmp_path}/none; give the one that holds click.csv"):
        prepare(ADAPTERS["kuailive"], tmp_path / "none", tmp_path / "out")


def broken(tmp_path, name, change):
    raw = write("kuailive", tmp_path / "raw", LOG)
    path = raw / name
    path.write_text(change(path.read_text()))
    return prepare(ADAPTERS["kuailive"], raw, tmp_path / "out")["report"]


def add(line):
    return lambda text: text + line + "\n"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("click.csv", add("1,2,101,yesterday,5"), "click.csv, line 10: timestamp is 'yesterday', not a whole number"),
        ("like.csv", add("1,2,101"), "like.csv, line 4: 3 fields where 4 belong; correct the file"),
        ("user.csv", lambda text: "", "user.csv is empty; its first line must name its columns"),
        ("room.csv", lambda text: text.replace("p_date", "live_id", 1), "column 'live_id' stands twice"),
        (
            "negative.csv",
            add(f"1,2,101,{START // 1000}"),
            "outside the years 2000 to 2100; correct the log's times",
        ),
        ("negative.csv", add(f"1,2,101,{START - 10**11}"), "days between have none; correct the log's times"),
    ],
)
def test_what_cannot_be_read_stops_with_one_sentence(tmp_path, name, change, says):
    with pytest.raises(BadInput) as error:
        broken(tmp_path, name, change)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("date=*"))


@pytest.mark.parametrize(
    ("name", "change", "part", "words"),
    [
        (
            "click.csv",
            add(f"77,2,101,{START + 5000},5"),
            "days",
            "exposures of a user that no file describes: kept, its attributes null",
        ),
        (
            "click.csv",
            add(f"1,99,101,{START + 5000},5"),
            "days",
            "exposures of a room that no file describes: kept, its attributes null",
        ),
        ("click.csv", add(f"1,,101,{START + 5000},5"), "days", "exposures without user, item or time: dropped"),
        ("click.csv", add("1,2,101,,5"), "raw", "exposures without a time: dropped"),
        (
            "click.csv",
            add(f"1,2,101,{START + 5000},-5"),
            "raw",
            "click.csv: watch_live_time is negative: taken as missing",
        ),
        (
            "negative.csv",
            lambda text: text + text.splitlines()[1] + "\n",
            "days",
            "exposures of the same user, item and time: one kept",
        ),
        ("like.csv", lambda text: text + text.splitlines()[1] + "\n", "days", "actions that stand twice: one kept"),
        ("like.csv", add(f",2,101,{START + 5000}"), "days", "actions without user, item or time: dropped"),
        ("like.csv", add("1,2,101,"), "raw", "actions without a time: dropped"),
        (
            "like.csv",
            add(f"2,3,101,{START + 1000}"),
            "days",
            "actions that answer no exposure: kept, in histories and statistics",
        ),
        (
            "room.csv",
            add(f"20250525,55,101,1,{START},{START - 1},x,1"),
            "raw",
            "room.csv: ends before it starts: its start taken as unknown, room_age null",
        ),
        (
            "user.csv",
            lambda text: text + text.splitlines()[1] + "\n",
            "raw",
            "user: rows without an id or of one that stands twice: dropped",
        ),
    ],
)
@pytest.mark.some(5)
def test_what_is_odd_is_counted(tmp_path, name, change, part, words):
    report = broken(tmp_path, name, change)
    assert report[part][words] == 1
    clean = prepare(ADAPTERS["kuailive"], write("kuailive", tmp_path / "clean", LOG), tmp_path / "other")
    assert clean["report"][part][words] == 0


def test_rows_of_unknown_ids_are_kept(tmp_path):
    table = samples_of(tmp_path, "click.csv", add(f"77,99,999,{START + 5000},5000"))
    (row,) = table.filter(pc.equal(table["user"], 77)).to_pylist()
    assert (row["room"], row["streamer"], row["user_age"], row["room_age"], row["click"]) == (99, 999, None, None, 1)


def test_unknown_columns_and_missing_optional_files_are_noted(tmp_path):
    notes = broken(tmp_path, "gift.csv", lambda text: text.replace("gift_price", "gift_price,colour", 1))["notes"]
    assert notes == ["gift.csv: unknown column 'colour' is not read"]
    raw = write("kuailive-m3", tmp_path / "m3", LOG)
    (raw / "photo_tag.csv").unlink()
    notes = prepare(ADAPTERS["kuailive-m3"], raw, tmp_path / "m3-out")["report"]["notes"]
    assert notes == ["there is no photo_tag.csv: nothing is known of what it tells"]


def test_order_of_lines_does_not_matter(tmp_path):
    shuffled = samples_of(
        tmp_path / "a", "click.csv", lambda text: "\n".join([(lines := text.splitlines())[0], *lines[:0:-1]]) + "\n"
    )
    assert shuffled.equals(samples_of(tmp_path / "b", "click.csv", lambda text: text))


def samples_of(folder, name, change) -> pa.Table:
    folder.mkdir(exist_ok=True)
    broken(folder, name, change)
    return samples(folder / "out")


def test_kuailive_m3_joins_shows_and_plays(tmp_path):
    log = [Visit(HOUR, 1, 2, True, 40, (5,), (6, 7)), Visit(HOUR + 50, 1, 3, False), Visit(3 * HOUR, 1, 1, True, 5)]
    first, second, third = prepared("kuailive-m3", tmp_path, log).to_pylist()
    assert [row["click"] for row in (first, second, third)] == [1, 0, 1]
    assert [row["watch_time"] for row in (first, second, third)] == [40.0, 0.0, 5.0]
    assert [row["effective_view"] for row in (first, second, third)] == [1, 0, 0]
    assert (first["like"], first["gift"], first["gift_value"], second["like"]) == (1, 1, 6.0, 0)
    assert (second["live_streamer"], second["live_action"]) == ([102], [1 + 2 + 4 + 32])
    assert third["video_id"] == [2, 3]  # played an hour after the visits
    assert third["video_category"] == [string_id("music"), -1]
    assert third["video_action"] == [1 + 2 + 4 + 16, 1]
