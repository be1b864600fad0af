"""Which minutes an increment has, and which are left out."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetrain.cluster.stream import telling
from livetrain.cluster.stream.windows import increment, shed
from livetrain.configs import duration
from livetrain.configs.errors import BadInput
from livetrain.trainers.data.read.minutes import Minute, name_of
from livetrain.trainers.evaluate import drift
from livetrain.trainers.runtime import run_folder

EACH = 60


def minutes(starts: list[int], rows: int = 10) -> list[Minute]:
    return [Minute(name_of(s), s, s + EACH, (f"{s}.parquet",) if rows else (), rows, {}, 0.0) for s in starts]


closed = st.tuples(st.integers(0, 50), st.sets(st.integers(0, 40), min_size=1)).map(
    lambda found: minutes(sorted(EACH * (found[0] + each) for each in found[1]))
)


@given(closed, st.integers(1, 7), st.integers(0, 60))
def test_increments_take_every_minute_once_whenever_they_are_looked_for(found, times, begin):
    """What is closed when somebody looks changes nothing of what an increment has."""
    every, taken = EACH * times, EACH * begin
    whole, at = [], taken
    while (next_ := increment(found, at, every)) is not None:
        whole.append(next_)
        at = next_.end
    assert [m for one in whole for m in one.minutes] == [m for m in found if taken <= m.start < at]
    assert not [m for m in found if m.start >= at] or found[-1].end < (found[-1].start // every + 1) * every
    for one in whole:
        assert one.end % every == 0
        assert one.end - one.start <= every
    seen, at = [], taken
    for many in range(1, len(found) + 1):  # they come one by one
        while (next_ := increment(found[:many], at, every)) is not None:
            seen.append(next_)
            at = next_.end
    assert seen == whole


@given(closed, st.integers(1, 5), st.integers(1, 30), st.integers(0, 60))
def test_what_is_shed_is_whole_increments_that_lie_far_behind(found, times, after, begin):
    every, taken, after = EACH * times, EACH * begin, EACH * after
    left = shed(found, taken, every, after)
    newest = found[-1].end
    far = [m for m in found if m.start >= taken and (m.start // every + 1) * every <= newest - after]
    if left is None:
        assert not far
        return
    assert left.end % every == 0
    assert taken <= left.start < left.end <= newest - after < left.end + every
    assert (left.minutes, left.rows) == (len(far), 10 * len(far))
    assert shed(found, left.end, every, after) is None
    assert shed(found, taken, every, None) is None


def test_durations_are_read_and_written():
    for text, many in {"90s": 90, "5m": 300, "2h": 7200, "1d": 86_400}.items():
        assert duration.seconds(text, "--every") == many
        assert duration.written(many) == text
    for text in ("5", "0m", "m", "5 m", "-5m", "400d", 5, None, "999999d"):
        with pytest.raises(BadInput, match="--every: .* is no duration; write a number and its unit"):
            duration.seconds(text, "--every")


def test_a_chart_judges_by_what_raised_no_alarm(tmp_path):
    from tests import samples

    data = samples.recipe(tmp_path, follow__path="x", evaluate__slices={"old": "user > 50"}, evaluate__group_by=None)
    charts = drift.Charts(data)
    assert drift.watched(data) == {
        f"{part}click.{name}": better
        for part in ("", "old.")
        for name, better in {"auc": 1, "log_loss": -1, "pcoc": 0}.items()
    }
    good = {"click.auc": 0.7, "click.log_loss": 0.5, "click.pcoc": 1.0, "old.click.auc": 0.6}
    good |= {"rows": 200.0, "old.rows": 100.0}
    for k in range(drift.FEWEST):
        assert charts.take({**good, "click.auc": 0.7 + 0.01 * (k % 2), "click.pcoc": 1.1 if k % 2 else 1 / 1.1}) == []
    assert charts.take({**good, "click.auc": 0.95, "click.log_loss": 0.1}) == []  # better is never wrong
    low = charts.limits("click.auc").low
    assert charts.take({**good, "click.auc": low - 1e-6}) == ["click.auc"]
    assert charts.take({**good, "click.auc": low - 1e-6}) == ["click.auc"]  # it has not moved the limits
    assert charts.take({**good, "click.auc": low + 1e-6}) == []
    limits = charts.limits("click.pcoc")
    assert limits.low * limits.high == pytest.approx(1, abs=0.02)
    assert charts.take({**good, "click.pcoc": limits.high * 1.01}) == ["click.pcoc"]
    assert charts.take({**good, "click.pcoc": float("nan")}) == ["click.pcoc"]  # no positive at all
    assert charts.take({**good, "old.click.auc": float("nan")}) == []  # a slice may have no rows
    again = drift.Charts(data, charts.kept)
    assert again.kept == charts.kept


def test_figures_of_a_few_events_are_left_alone_and_so_is_an_alarm(tmp_path):
    from tests import samples

    data = samples.recipe(tmp_path, follow__path="x", evaluate__slices={"old": "user > 50"}, evaluate__group_by=None)
    charts = drift.Charts(data)
    good = {f"{part}click.{name}": 0.6 for part in ("", "old.") for name in ("auc", "log_loss", "pcoc")}
    many = {"rows": float(drift.EVENTS), "old.rows": drift.EVENTS - 1.0}
    for _ in range(drift.FEWEST):
        assert charts.take(good | many) == []
    assert len(charts.kept["click.auc"]) == drift.FEWEST
    assert charts.kept["old.click.auc"] == []  # one event short
    few, kept = {"rows": drift.EVENTS - 1.0}, dict(charts.kept)
    assert charts.take({"click.auc": 0.1, "click.pcoc": float("nan")} | few) == []
    assert charts.take(good | many | {"click.auc": 0.1}) == ["click.auc"]
    again = drift.Charts(data, charts.kept, ["click.auc"])  # as who was killed goes on
    for each in (charts, again):
        assert each.take(good | few) == ["click.auc"]  # a few good ones are no proof
        assert {name: values[:8] for name, values in each.kept.items()} == kept
        assert each.take(good | many) == []


@given(st.lists(st.floats(0, 1), min_size=drift.FEWEST, max_size=30))
def test_no_limit_lies_beyond_what_a_figure_can_be(before):
    found = drift.limits(before, better=1, tolerance=0.01, least=0.0)
    assert 0 <= found.low <= max(before)
    assert found.high == float("inf")


def test_an_auc_of_scattered_figures_is_expected_to_be_one(tmp_path):
    from tests import samples

    charts = drift.Charts(samples.recipe(tmp_path, follow__path="x", evaluate__group_by=None))
    for k in range(drift.FEWEST):
        charts.take({"rows": 200.0, "click.auc": 0.9 if k % 2 else 0.2, "click.log_loss": 0.5, "click.pcoc": 1.0})
    assert charts.limits("click.auc").low == 0.0
    assert charts.limits("click.pcoc").low > 0


def test_what_is_said_of_time():
    assert telling.lag(100, 160)["behind_s"] == 60.0
    assert telling.lag(100, None)["behind_s"] == 0.0
    assert telling.span(3600) == "1 h"


def test_what_is_over_is_said_of_what_is_known():
    learned = SimpleNamespace(alarms=[], figures={"click.auc": 0.7})
    said = list(telling.alarms(SimpleNamespace(gate=()), learned, {"click.auc", "click.pcoc"}))
    assert said == ["over: click.auc is 0.7000, as expected", "over: click.pcoc is undefined"]


def test_a_followers_folder_names_its_lines(tmp_path):
    (tmp_path / "2026-11-29").mkdir()
    (tmp_path / "2026-11-29" / "config.yaml").touch()
    with pytest.raises(BadInput, match="the lines of a follower; name one of them, as .*2026-11-29$"):
        run_folder.check(tmp_path)
