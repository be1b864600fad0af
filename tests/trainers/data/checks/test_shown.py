"""What `livetrain data check` shows: tables, the picture, the exit code."""

import re

import matplotlib.image
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.checks import plot, whole
from livetrain.trainers.data.checks.findings import listed
from tests import pictures
from tests.trainers.data.checks.prepared import ROLES, day_name, day_rows, only, write


def shown(table, width: int = 200) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    def spoil(number, rows):
        rows["room"] += 1000 * number
        rows["planted"] = rows["click"].astype(np.float32)

    return whole.check(write(tmp_path_factory.mktemp("spoilt"), spoil=spoil))


def test_the_tables_show_every_column_and_every_finding(checked):
    columns = shown(whole.columns_table(checked))
    assert all(name in columns for name in checked.dataset.schema.names)
    line = next(line for line in columns.splitlines() if line.startswith("live_streamer "))
    assert re.split("  +", line.strip()) == ["live_streamer", "sequence", "int64 list", "length", *"00255"]
    line = next(line for line in columns.splitlines() if line.startswith("timestamp "))
    assert line.split() == ["timestamp", "time", "int64", "0", day_name(0), day_name(3)]
    findings = shown(whole.findings_table(checked))
    assert all(finding.subject in findings for finding in checked.findings)
    assert findings.count(" wrong ") == sum(finding.verdict == "wrong" for finding in checked.findings) > 0


def test_the_picture_shows_rates_unseen_ids_probes_and_lengths(checked, tmp_path):
    rates, unseen, probes, lengths = plot.draw(checked).axes
    (line,) = rates.get_lines()
    (label,) = [label for label in checked.labels if label.binary]
    assert line.get_ydata() == pytest.approx([day.mean for day in label.days])
    room = next(line for line in unseen.get_lines() if line.get_label() == "room")
    assert list(room.get_ydata()) == [1.0, 1.0, 1.0]
    assert probes.get_yticklabels()[-1].get_text() == "planted → click"
    assert probes.patches[-1].get_width() == pytest.approx(0.5)
    assert probes.patches[-1].get_facecolor() != probes.patches[0].get_facecolor()
    (step,) = lengths.get_lines()
    assert step.get_label() == "live_streamer, live_action: mean 2.5"
    assert day_name(0)[5:] in [unseen.xaxis.get_major_formatter()(tick, 0) for tick in unseen.get_xticks()]
    path = plot.write(checked, tmp_path / "check.png")
    assert matplotlib.image.imread(path).shape[:2] == (1000, 1600)
    assert [file.name for file in tmp_path.iterdir()] == ["check.png"]


def test_panels_without_data_say_so(tmp_path):
    roles = {"labels": [], "ids": ["user"], "dense": ["viewers"]}
    checked = whole.check(write(tmp_path, days=1, roles=roles))
    texts = [[text.get_text() for text in axes.texts] for axes in plot.draw(checked).axes]
    assert texts[0] == ["no label of 0 and 1"]
    assert texts[1] == ["no later part with ids"]
    assert texts[3] == ["no sequences"]


def test_a_picture_that_cannot_be_written_is_one_sentence(checked, tmp_path):
    with pytest.raises(BadInput, match="cannot be written .* name another file with --out"):
        plot.write(checked, tmp_path / "gone" / "check.png")


def test_what_is_cut_by_splits_is_one_day(tmp_path):
    """A tenth of the third day's rows is in train/ still, with a rate of its own."""
    folder = write(tmp_path, days=4, splits=True)
    rows = day_rows(2, 150) | {"click": np.ones(150, np.int8)}
    pq.write_table(pa.table(rows), folder / "train" / "part-2.parquet")
    checked = whole.check(folder)
    (label,) = [label for label in checked.labels if label.binary]
    assert len(label.days) == 5
    rates, unseen, *_ = plot.draw(checked).axes
    line = next(line for line in rates.get_lines() if line.get_label() == "click")
    assert len(line.get_xdata()) == 4
    both = np.concatenate([rows["click"], day_rows(2)["click"]])
    assert line.get_ydata()[2] == pytest.approx(both.mean())
    assert rates.get_xlabel() == f"{day_name(0)} to {day_name(3)}; dotted: where valid and test begin"
    pictures.check(plot.draw(checked))


def test_weekdays_are_no_unseen_ids(tmp_path):
    def spoil(number, rows):
        rows["weekday"] = np.full(len(rows["user"]), number % 7)
        rows["room"] += 1000 * number

    folder = write(tmp_path, spoil=spoil, roles=ROLES | {"ids": [*ROLES["ids"], "weekday"]})
    _, unseen, *_ = plot.draw(whole.check(folder)).axes
    assert [line.get_label() for line in unseen.get_lines() if line.get_zorder() > 1] == ["room"]
    assert only(folder, "unseen ids", "weekday").text.endswith("a longer log to learn from would have them all")
    assert "calendar" not in only(folder, "unseen ids", "room").text


LONG = "how_often_the_user_has_watched_this_streamer_in_the_last_thirty_days"


@pytest.mark.parametrize(
    ("days", "splits"),
    [(1, False), pytest.param(3, True, marks=pytest.mark.slow), pytest.param(15, False, marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_the_picture_can_be_read_whatever_the_data(tmp_path, monkeypatch, days, splits):
    """Many columns, long names, labels of very different rates, one of which has no positive and one no known row."""
    monkeypatch.setattr("livetrain.trainers.data.checks.leaks.SAMPLE", 2048)
    rng = np.random.default_rng(1)

    def spoil(number, rows):
        count = len(rows["user"])
        for place in range(12):
            rows[f"{LONG}_{place}_label"] = (rng.random(count) < 0.3 / 3**place).astype(np.int8)
        rows["no_row_is_known"] = np.full(count, np.nan, np.float32)
        for place in range(60):
            rows[f"v_{place}"] = rng.normal(size=count).astype(np.float32)
        rows[f"{LONG}_id"] = rng.integers(0, 10**6, count)
        rows[f"{LONG}_events"] = rows["live_action"]
        rows["planted"] = rows[f"{LONG}_0_label"].astype(np.float32)

    names = [f"{LONG}_{place}_label" for place in range(12)]
    roles = ROLES | {
        "labels": [*names, "no_row_is_known"],
        "ids": [*ROLES["ids"], f"{LONG}_id"],
        "dense": [f"v_{place}" for place in range(60)],
        "sequences": ["live_streamer", f"{LONG}_events"],
    }
    folder = write(tmp_path / LONG, days=days, splits=splits, spoil=spoil, roles=roles)
    pictures.check(plot.draw(whole.check(folder)))


@pytest.mark.slow
def test_numbered_columns_are_one_line_and_nothing_is_cut(tmp_path):
    """The k-th of 64 columns is k on the first day, k + 1 on the next, and null in more than half of the rows."""

    def spoil(number, rows):
        place = np.arange(len(rows["user"]))
        for k in range(64):
            values = np.full(len(place), k + number, np.float32)
            rows[f"v_{k}"] = pa.array(values, mask=place % 200 < 101 + k)

    names = [f"v_{k}" for k in range(64)]
    folder = write(tmp_path, days=8, spoil=spoil, roles=ROLES | {"dense": ["viewers", *names]})
    checked = whole.check(folder)
    wide, narrow = (shown(whole.columns_table(checked, width), width) for width in (120, 80))
    (line,) = [line for line in wide.splitlines() if line.startswith("v_")]
    figures = ["83.2 %", "0", "31.5", "34.5", "37.5", "70"]  # quantiles by the seven days to learn from
    assert re.split("  +", line.strip()) == ["v_0 .. v_63", "dense", "64 x float", *figures]
    for text, width in ((wide, 120), (narrow, 80)):
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
    assert "99 %" not in narrow
    found = only(folder, "ranges", "v_0 .. v_63")
    assert found.text == "most of all v_63: null in 83.2 % of rows"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["v_0", "v_1", "v_2", "a"], "v_0 .. v_2, a"),
        (["v_0", "v_1", "a"], "v_0, v_1, a"),
        (["v_08", "v_09", "v_10", "v_12"], "v_08 .. v_10, v_12"),
        (["v_9", "v_10", "v_11"], "v_9 .. v_11"),
        ([f"v_{place}" for place in range(9)] + list("abcdef"), "v_0 .. v_8, a, b, c and 3 more"),
        (["2025-05-30", "2025-05-31", "2025-06-01"], "2025-05-30, 2025-05-31, 2025-06-01"),
        ([], ""),
    ],
)
def test_names_that_count_up_are_said_as_one(names, said):
    assert listed(names) == said
