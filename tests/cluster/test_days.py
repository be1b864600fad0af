"""The days of a night: how they are written, which the data have, and that all of them are whole."""

import json
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetrain.cluster import days
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.trainers.runtime import manifest
from tests import samples

SPLITS = {"train": "2022-05-01..2022-05-02", "valid": "2022-05-03..2022-05-03", "test": "2022-05-04..2022-05-04"}


def recipe(data: Path, **days: str) -> Recipe:
    return samples.recipe(data, name="din", data__days={**SPLITS, **days})


@pytest.fixture
def data(tmp_path) -> Path:
    """Four days, each with the manifest that a preparation leaves."""
    for day in range(1, 5):
        folder = tmp_path / f"date=2022-05-0{day}"
        folder.mkdir()
        for part in ("part-0.parquet", "part-1.parquet"):
            pq.write_table(pa.table({"user": [day]}), folder / part)
        manifest.commit(folder, {path.name: manifest.digest(path) for path in sorted(folder.iterdir())}, rows=2)
    return tmp_path


@given(st.dates(min_value=date(2, 1, 1)), st.integers(0, 40))
def test_a_day_is_the_same_however_it_is_written(day, more):
    year, week, weekday = day.isocalendar()
    forms = [str(day), f"{day:%Y%m%d}".zfill(8), f"{year:04}-W{week:02}-{weekday}", f"{year:04}W{week:02}{weekday}"]
    assert all(days.asked(form, None) == [str(day)] for form in forms)
    assert days.weekday(str(day)) == day.weekday()
    if (date.max - day).days > more:
        last = day + timedelta(more)
        for form in forms:
            found = days.asked(None, f"{form}..{last}")
            assert found == [str(day + timedelta(number)) for number in range(more + 1)]


@pytest.mark.parametrize(
    ("day", "span", "message"),
    [
        ("2022-05-32", None, "--day: '2022-05-32' is no day; write it as 2022-05-08"),
        ("2022-05-08T00:00", None, "--day: '2022-05-08T00:00' is no day"),
        ("", None, "--day: '' is no day"),
        ("x" * 1000, None, "--day: 'x{50}' is no day"),
        (None, "2022-05-08", "--days: '2022-05-08' is no first and last day; write them as 2022-05-04..2022-05-08"),
        (None, "2022-05-08..2022-05-07", "--days: '2022-05-08..2022-05-07' is no first and last day"),
        (None, "a..b..c", "--days: 'a..b..c' is no first and last day"),
        ("2022-05-08", "2022-05-08..2022-05-09", "--days: --day names a day already; leave one of them out"),
    ],
)
def test_what_is_no_day_is_refused(day, span, message):
    with pytest.raises(BadInput, match=message):
        days.asked(day, span)


@pytest.mark.parametrize("day", ["0001-01-01", "0001-01-03", "00010102"])
def test_days_before_the_first_of_all_are_refused(day):
    with pytest.raises(BadInput, match=r"--day: 0001-01-0\d leaves no room for the days before it; name a later one"):
        days.moved(recipe(Path("data")), day)


def test_the_newest_day_is_a_day(data):
    for name in ("date=2025-06-03.tmp", "date=__HIVE_DEFAULT_PARTITION__", "date=20250603", "date=2025-06-31", "date="):
        (data / name).mkdir()
    (data / "date=2025-06-04").write_text("no folder")
    assert days.newest_day(recipe(data)) == "2022-05-04"


def test_data_without_a_day_are_named(tmp_path):
    (tmp_path / "date=__HIVE_DEFAULT_PARTITION__").mkdir()
    with pytest.raises(BadInput, match="data.path: .* has no partition date=YYYY-MM-DD; prepare a day first"):
        days.newest_day(recipe(tmp_path))


def test_data_that_cannot_be_listed_are_named(tmp_path):
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(BadInput, match=r"^data.path: .*/data cannot be read \(.*\); correct data.path$"):
        days.newest_day(recipe(tmp_path / "data"))


def _cut(folder: Path) -> None:
    (folder / "part-1.parquet").write_bytes(b"PAR1")


def _other(folder: Path) -> None:
    (folder / manifest.MANIFEST).write_text(json.dumps({"rows": 2}))


@pytest.mark.parametrize("day", ["2022-05-01", "2022-05-04"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "part-1.parquet").unlink(), "part-1.parquet is missing"),
        (lambda folder: (folder / manifest.MANIFEST).unlink(), "it has no manifest.json, and other days have one"),
        (lambda folder: (folder / manifest.MANIFEST).write_text('{"files": {'), "its manifest.json is damaged"),
        (lambda folder: (folder / "part-2.parquet").touch(), "part-2.parquet is not in its manifest"),
        (_cut, r"part-1.parquet has 4 bytes, and not \d+ as its manifest says"),
        (_other, "its manifest.json is damaged"),
        (lambda folder: (folder / manifest.MANIFEST).write_text('{"files": {"a": 1}}'), "its manifest.json is damaged"),
    ],
)
def test_a_day_that_is_not_whole_is_named(data, day, spoil, message):
    days.check_whole(recipe(data))
    spoil(data / f"date={day}")
    with pytest.raises(
        BadInput, match=rf"^data.path: .*/date={day} is not whole: {message}; prepare that day again, or"
    ):
        days.check_whole(recipe(data))


def test_days_that_others_have_written_need_no_manifest(data):
    for folder in data.iterdir():
        (folder / manifest.MANIFEST).unlink()
        (folder / "part-2.parquet").touch()
        (folder / "_SUCCESS").touch()
    days.check_whole(recipe(data))


def test_only_the_nights_own_days_must_be_whole(data):
    (data / "date=2022-05-05").mkdir()
    (data / "date=2022-05-06.tmp").mkdir()
    days.check_whole(recipe(data))
