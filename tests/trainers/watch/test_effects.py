"""A minute's metrics, beside the same in NumPy, and the folder that keeps them."""

import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput, NotNow
from livetrain.trainers.watch.effects import MOST, OTHERS, SCHEMA, Measures, effects, parsed, ratios
from livetrain.trainers.watch.store import Store
from tests.trainers.watch.streams import BEGIN, close, open_stream, samples

MEASURES = Measures(
    parsed("--label", ["click", "gift", "watch_time"]),
    ratios(["conversion=gift/click"]),
    parsed("--score", ["click=click_score"]),
    parsed("--by", ["channel", "version", "sure=click_score > 0.4"]),
)


def by_hand(table, by, value):
    """The measures of a slice, row by row."""
    rows = table.to_pylist()
    names = {
        "": lambda row: "",
        "channel": lambda row: row["channel"] or "(none)",
        "version": lambda row: str(row["version"]),
        "sure": lambda row: str(row["click_score"] > 0.4).lower(),
    }
    rows = [row for row in rows if names[by](row) == value]
    known = [row for row in rows if row["gift"] is not None]
    clicks, gifts = [row["click"] for row in rows], [row["gift"] for row in known]
    scores = [row["click_score"] for row in rows]
    return {
        "rows": (len(rows), len(rows)),
        "click": (len(rows), sum(clicks), sum(scores), sum(clicks)),
        "gift": (len(known), sum(gifts)),
        "watch_time": (len(rows), sum(row["watch_time"] for row in rows)),
        "conversion": (sum(row["click"] for row in known), sum(gifts)),
    }


def test_every_slice_and_measure_is_what_counting_row_by_row_gives():
    table = samples(500, 1)
    found = effects(table, BEGIN, MEASURES, {"late": 7})
    assert found.schema == SCHEMA
    seen = {(row["by"], row["value"]) for row in found.to_pylist()}
    assert seen == {("", ""), *(("channel", name) for name in ("friend", "hot", 'near"by', "(none)")),
                    ("version", "6"), ("version", "7"), ("sure", "true"), ("sure", "false")}  # fmt: skip
    for by, value in seen:
        rows = {r["measure"]: r for r in found.to_pylist() if (r["by"], r["value"]) == (by, value)}
        for measure, (count, total, *scored) in by_hand(table, by, value).items():
            row = rows.pop(measure)
            assert (row["count"], row["sum"]) == pytest.approx((count, total))
            assert row["mean"] == pytest.approx(total / count)
            if scored:
                assert (row["score_sum"], row["label_sum"]) == pytest.approx(tuple(scored))
                assert row["pcoc"] == pytest.approx(scored[0] / scored[1])
            else:
                assert (row["scored"], row["pcoc"]) == (0, None)
        assert list(rows) == ([] if by else ["stream.late"])
    assert found.filter(pa.compute.equal(found["measure"], "stream.late"))["sum"].to_pylist() == [7]


def test_a_minute_without_samples_counts_none():
    found = effects(None, BEGIN, MEASURES, {"late": 2}).to_pylist()
    expected = dict.fromkeys(("rows", "click", "gift", "watch_time", "conversion"), 0.0) | {"stream.late": 2.0}
    assert {row["measure"]: row["sum"] for row in found} == expected
    assert {row["mean"] for row in found} == {None}


def test_what_is_rare_is_added_up_with_labels_that_are_not_known():
    kinds = [f"k{v:03d}" for v in range(MOST) for _ in range(2)] + ["rare1", "rare2", "rare3", "(others)"]
    label = [1] * 2 * MOST + [None, 1, 0, None]
    found = effects(
        pa.table({"label": label, "kind": kinds}), BEGIN, Measures({"label": "label"}, by={"kind": "kind"}), {}
    )
    (rows, others) = (row for row in found.to_pylist() if row["value"] == OTHERS)
    assert (rows["count"], others["count"], others["sum"], others["mean"]) == (4, 2, 1, 0.5)


@pytest.mark.parametrize("rows", [0, 3])
def test_a_minute_that_nothing_slices_is_counted_as_a_whole(rows):
    found = effects(samples(rows, 1), BEGIN, Measures({"watch_time": "watch_time"}), {"late": 1}).to_pylist()
    assert [(row["measure"], row["count"]) for row in found] == [
        ("rows", rows),
        ("watch_time", rows),
        ("stream.late", rows),
    ]
    assert {row["by"] for row in found} == {""}


@given(st.lists(st.integers(0, 2 * MOST), min_size=1, max_size=300))
@settings(max_examples=20, deadline=None)
def test_slices_add_up_however_many_values_there_are(values):
    table = pa.table({"label": pa.array([v % 2 for v in values]), "kind": pa.array([f"k{v}" for v in values])})
    found = effects(table, BEGIN, Measures({"label": "label"}, by={"kind": "kind"}), {}).to_pandas()
    parts = found[found["by"] == "kind"]
    assert parts["value"].nunique() == min(len(set(values)), MOST + 1)
    assert (OTHERS in set(parts["value"])) == (len(set(values)) > MOST)
    for measure in ("rows", "label"):
        whole = found[(found["by"] == "") & (found["measure"] == measure)]["sum"].item()
        assert parts[parts["measure"] == measure]["sum"].sum() == whole
    often = parts[(parts["measure"] == "rows") & (parts["value"] != OTHERS)]["sum"].min()
    left_out = sorted((values.count(v) for v in set(values)), reverse=True)[MOST:]
    assert all(count <= often for count in left_out)


def test_a_killed_watcher_goes_on_and_nothing_is_lost_or_doubled(tmp_path):
    live = open_stream(tmp_path / "live", lanes=2)
    for number in range(12):
        for lane in range(2):
            close(live, number, samples(40, 2 * number + lane) if number % 5 else None, lane)
    close(live, 12, samples(40, 99), lane=0)  # not closed: the other lane has none
    undisturbed = Store(str(live), tmp_path / "whole", MEASURES)
    assert [minute.start for minute in undisturbed.measure()] == [BEGIN + 60 * number for number in range(12)]
    code = f"""
import os, signal, sys
from livetrain.trainers.watch import store
from tests.trainers.watch.test_effects import MEASURES
at, many = sys.argv[1], int(sys.argv[2])
inner = getattr(store.os if at == "replace" else store.manifest, at)
def killed(*given):
    global many
    many -= 1
    if many < 0: os.kill(os.getpid(), signal.SIGKILL)
    return inner(*given)
watched = store.Store({str(live)!r}, store.Path({str(tmp_path / "killed")!r}), MEASURES)
setattr(store.os if at == "replace" else store.manifest, at, killed)
list(watched.measure())
"""
    ends = [subprocess.run([sys.executable, "-c", code, at, many], cwd=".", check=False).returncode
            for at, many in (("replace", "3"), ("sync", "2"), ("sync", "3"), ("replace", "50"))]  # fmt: skip
    assert ends == [-signal.SIGKILL] * 3 + [0]
    files = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.parquet")}
    assert {p.relative_to(tmp_path / "killed") for p in (tmp_path / "killed").rglob("*.parquet")
            if not p.name.startswith(".")} == files  # fmt: skip
    for path in files:
        assert (tmp_path / "killed" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    assert len(undisturbed.read(BEGIN)) == sum(len(pq.read_table(tmp_path / "whole" / path)) for path in files)
    assert len(undisturbed.read(BEGIN + 660)) == len(pq.read_table(undisturbed.path(BEGIN + 660)))


def test_what_was_measured_is_kept_and_new_minutes_are_measured(tmp_path):
    live = open_stream(tmp_path / "live")
    assert Store(str(live), live / "metrics", None).measures is None
    close(live, 0, samples(50, 1))
    first = Store(str(live), live / "metrics", MEASURES)
    assert first.newest() is None
    assert len(list(first.measure())) == 1
    close(live, 1, samples(50, 2))
    again = Store(str(live), live / "metrics", None)
    assert (again.measures, again.newest()) == (MEASURES, BEGIN)
    assert [minute.start for minute in again.measure()] == [BEGIN + 60]
    assert list(again.measure()) == []
    assert again.newest() == BEGIN + 60


def test_duckdb_asks_for_what_nobody_foresaw(tmp_path):
    live = open_stream(tmp_path / "live")
    for number in range(3):
        close(live, number, samples(50, number))
    list(Store(str(live), live / "metrics", MEASURES).measure())
    import duckdb

    events = f"read_parquet('{live}/date=*/**/*.parquet')"
    assert duckdb.sql(f"SELECT count(*) FROM {events} WHERE date = '2026-11-30'").fetchall() == [(150,)]
    kept = duckdb.sql(
        f"SELECT sum(sum) / sum(count) FROM read_parquet('{live}/metrics/**/*.parquet') "
        "WHERE measure = 'click' AND \"by\" = ''"
    ).fetchall()
    assert kept == duckdb.sql(f"SELECT avg(click) FROM {events}").fetchall()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": {"clik": '"clik"'}}, "no column 'clik'.*did you mean 'click'"),
        ({"by": {"all": "count(*)"}}, "--by all: 'count.*function of several rows"),
        ({"by": {"bad": "click >"}}, "--by bad: .*no SQL expression"),
        ({"per": {"x": ("gift", "clicks")}}, "--per x: 'clicks' is none of --label"),
        ({"scores": {"like": "click_score"}}, "--score like: that is none of --label"),
    ],
)
def test_what_is_not_there_is_named_before_anything_is_written(tmp_path, change, sentence):
    live = open_stream(tmp_path / "live")
    parts = {"labels": MEASURES.labels, "per": MEASURES.per, "scores": MEASURES.scores, "by": MEASURES.by} | change
    with pytest.raises(BadInput, match=sentence):
        Store(str(live), live / "metrics", Measures(**parts))
    assert not (live / "metrics").exists()


def test_a_folder_is_of_one_stream_and_one_set_of_measures(tmp_path):
    with pytest.raises(NotNow, match="start `livetrain stream` first"):
        Store(str(tmp_path), tmp_path / "metrics", MEASURES)
    live = open_stream(tmp_path / "live")
    Store(str(live), live / "metrics", MEASURES)
    with pytest.raises(BadInput, match="begun with other --label"):
        Store(str(live), live / "metrics", Measures({"click": '"click"'}))
    close(live, 0, samples(5, 0))
    (live / "metrics/measures.json").write_text("{")
    with pytest.raises(BadInput, match="it is made again"):
        Store(str(live), live / "metrics", None)


def test_what_cannot_be_computed_is_said():
    table = pa.table({"channel": pa.array(["hot"])})
    with pytest.raises(BadInput, match="cannot be computed"):
        effects(table, BEGIN, Measures({"x": '"channel"'}), {})
    for text in ("=x", "a=", "a"):
        with pytest.raises(BadInput, match="each name once"):
            parsed("--by", ["a", text])
    with pytest.raises(BadInput, match="NAME=A/B"):
        ratios(["conversion=gift"])
