"""Visits: how long ago the last one ended, and whether the user came back within a day, which the next day tells."""

import shutil

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from livetrain.trainers.data.sources.events import kuailive, returns
from livetrain.trainers.data.sources.events import prepare as preparation
from livetrain.trainers.data.sources.events.prepare import prepare
from livetrain.trainers.data.write import layout
from livetrain.trainers.runtime import manifest
from tests.trainers.data.sources.events.logs import START, samples, write
from tests.trainers.data.sources.events.test_partitions import make_log, until

VISITS = kuailive.with_parts(["visits"])
HALF_HOUR, DAY = 1_800_000, 86_400_000


def starts(times: list[int]) -> list[int]:
    """When each visit of one user begins, of all her exposures in order."""
    return [now for last, now in zip([-(10**15), *times], times, strict=False) if now - last > HALF_HOUR]


@example([(1, 0), (1, 144)])  # a day later, to the millisecond
@example([(1, 0), (1, 145)])
@example([(1, 0), (1, 3), (1, 6)])  # half an hour apart: one visit
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 200)), min_size=1, max_size=40, unique=True))
def test_who_came_back_is_who_began_another_visit_within_a_day(events):
    user = np.array([one for one, _ in events])
    time = np.array([tenths * 600_000 for _, tenths in events])  # tenths of 100 minutes: over a day, on borders too
    found = returns.came_back(user, time, user, time)
    for n, (who, at) in enumerate(zip(user, time, strict=True)):
        own = sorted(time[user == who].tolist())
        assert found[n] == any(at < begin <= at + DAY for begin in starts(own))


@pytest.fixture
def log(monkeypatch):
    monkeypatch.setattr(preparation, "BUCKET_ROWS", 25)
    return make_log(count=120)


def test_the_next_day_tells_and_nothing_else_changes(tmp_path, log):
    raw = write("kuailive", tmp_path / "raw", log)
    prepare(VISITS, raw, tmp_path / "once", run=map)
    for days in range(1, 5):
        raw = write("kuailive", tmp_path / f"raw-{days}", log if days == 4 else until(log, days, "kuailive"))
        prepare(VISITS, raw, tmp_path / "nights", run=map)
        rows = samples(tmp_path / "nights")
        today = rows["timestamp"].to_numpy() >= START + (days - 1) * DAY
        unknown = rows["returned"].is_null().to_numpy()
        assert (unknown == today).all()
        assert today.any()
    assert samples(tmp_path / "nights").equals(samples(tmp_path / "once"))
    plain = prepare(kuailive.ADAPTER, raw, tmp_path / "plain", run=map)
    rows, without = samples(tmp_path / "once"), samples(tmp_path / "plain")
    assert rows.select(without.column_names).equals(without)
    assert "returned" in layout.finished(tmp_path / "once")["roles"]["labels"]
    assert "returned" not in plain["roles"]["labels"]
    table = rows.to_pylist()
    assert {row["returned"] for row in table} == {0, 1, None}
    for row in table:
        own = sorted(one["timestamp"] for one in table if one["user"] == row["user"])
        if row["returned"] is not None:
            assert row["returned"] == any(row["timestamp"] < at <= row["timestamp"] + DAY for at in starts(own))
        earlier = [at for at in own if at < row["timestamp"]]
        following = [*earlier[1:], row["timestamp"]]
        ends = [at for at, after in zip(earlier, following, strict=False) if after - at > HALF_HOUR]
        if ends:
            assert row["user_visit_ago"] == pytest.approx(np.log1p((row["timestamp"] - ends[-1]) / 1000), rel=1e-6)
        else:
            assert row["user_visit_ago"] is None


@pytest.mark.parametrize("moment", ["before it is whole", "before the old one is away", "between both"])
def test_a_kill_leaves_every_partition_whole_and_the_next_preparation_finishes(tmp_path, log, monkeypatch, moment):
    prepare(VISITS, write("kuailive", tmp_path / "raw-2", until(log, 2, "kuailive")), tmp_path / "out", run=map)
    raw = write("kuailive", tmp_path / "raw", log)
    prepare(VISITS, raw, tmp_path / "once", run=map)
    wanted = samples(tmp_path / "once")

    def killed(*given) -> None:
        if moment == "between both":
            shutil.move(given[0], given[2] / "old")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "before it is whole":
            patch.setattr(
                manifest, "commit", lambda at, *a, **k: killed() if "_told" in str(at) else COMMIT(at, *a, **k)
            )
        else:
            patch.setattr(returns, "_replace", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(VISITS, raw, tmp_path / "out", run=map)
    prepare(VISITS, raw, tmp_path / "out", run=map)
    assert samples(tmp_path / "out").equals(wanted)
    assert not (tmp_path / "out" / "_told").exists()
    for folder in (tmp_path / "out").glob("date=*"):
        assert manifest.damage(folder, manifest.read(folder)) is None


COMMIT = manifest.commit
