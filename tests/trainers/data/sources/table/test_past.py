"""What a row is told of the past against a plain-Python twin, whatever the split, the periods and the order."""

import datetime
import math
import random

import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from livetrain.configs.spec import Spec, load_spec
from livetrain.trainers.data.sources.table import prepare as preparing
from livetrain.trainers.data.write.ids import string_id

START = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)
LIMIT = 3
SPEC = """
log: {files: log.csv}
time: {column: at}
user: user
item: item
columns:
  user: {type: id}
  item: {type: string, column: shown}
  brand: {type: string}
  look: {type: vector, width: 2, separator: " "}
  row: {type: id}
labels:
  click: clicked = 'yes'
  buy: bought = '1'
histories:
  clicked: {of: [item, brand], when: click, last: 3}
  seen: {of: [item, look], last: 3}
counts: [user, brand]
pairs: [item, brand]
split: SPLIT
"""
BY_DAY, BY_TIME, LEFT_OUT = "{by: day}", "{by: time, valid: 0.3, test: 0.3}", "{by: leave_one_out}"

# minute of the log (ties are likely), user, item, brand or none, click, buy
rows_of_logs = st.tuples(
    st.integers(0, 12).map(lambda n: n * 360),
    *(st.integers(1, 3),) * 2,
    st.sampled_from([None, 1, 2]),
    *(st.booleans(),) * 2,
)
logs = st.lists(rows_of_logs, min_size=4, max_size=40)


def written(folder, log, split):
    """Write a log as CSV in the given order, and its spec."""
    lines = ["at,user,shown,brand,look,clicked,bought,row"]
    for number, (minute, user, item, brand, click, buy) in enumerate(log):
        at = (START + datetime.timedelta(minutes=minute)).strftime("%Y-%m-%d %H:%M:%S")
        known = "," if brand is None else f"b{brand},{item} -0.5"
        lines.append(f"{at},{user},i{item},{known},{['no', 'yes'][click]},{int(buy)},{number}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    (folder / "spec.yaml").write_text(SPEC.replace("SPLIT", split))
    return folder / "spec.yaml"


def prepared(folder, log, split):
    preparing.prepare(load_spec(written(folder, log, split), Spec), folder / "out")
    return rows(folder / "out")


def rows(out):
    """Return all rows by their number in the log, with the folder that they lie in."""
    found = {}
    for path in sorted(out.glob("[dtv]*/*.parquet")):
        for row in pa.parquet.read_table(path, partitioning=None).to_pylist():
            found[row["row"]] = row | {"part": path.parent.name}
    return found


def twin(log, number):
    """Return what a row should be told, from the list of all rows."""
    minute, user, item, brand, *_ = log[number]
    at, day = 60 * minute, minute // 1440
    earlier = sorted((n for n in range(len(log)) if log[n][0] < minute), key=lambda n: (log[n][0], n))
    made = {}
    for name, asked in (("clicked", lambda row: row[4]), ("seen", lambda row: True)):
        past = [log[n] for n in earlier if log[n][1] == user and asked(log[n])][-LIMIT:]
        made[f"{name}_item"] = [string_id(f"i{row[2]}") for row in past]
        made[f"{name}_gap"] = [int(math.log2(max(at - 60 * row[0], 1))) for row in past]
        if name == "clicked":
            made["clicked_brand"] = [-1 if row[3] is None else string_id(f"b{row[3]}") for row in past]
        else:
            made["seen_look"] = [[None, None] if row[3] is None else [row[2], -0.5] for row in past]
    for prefix, mine, kept in (
        ("user", lambda row: row[1] == user, lambda row: row[0] // 1440 < day),
        ("brand", lambda row: row[3] == brand and brand is not None, lambda row: row[0] // 1440 < day),
        ("user_seen", lambda row: row[1] == user, lambda row: True),
    ):
        past = [log[n] for n in earlier if mine(log[n]) and kept(log[n])]
        made[f"{prefix}_count"] = math.log1p(len(past))
        for label, place in (("click", 4), ("buy", 5)):
            made[f"{prefix}_{label}_rate"] = sum(row[place] for row in past) / len(past) if past else None
    for prefix, mine in (
        ("user_item", lambda row: row[1:3] == (user, item)),
        ("user_brand", lambda row: row[1] == user and row[3] == brand and brand is not None),
    ):
        past = [log[n] for n in earlier if mine(log[n])]
        made[f"{prefix}_count"] = math.log1p(len(past))
        for label, place in (("click", 4), ("buy", 5)):
            made[f"{prefix}_{label}_count"] = math.log1p(sum(row[place] for row in past))
        made[f"{prefix}_ago"] = math.log1p(at - 60 * max(row[0] for row in past)) if past else None
    return made


def compare(found, log):
    assert sorted(found) == list(range(len(log)))
    for number, row in found.items():
        for name, value in twin(log, number).items():
            wanted = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value  # columns are float32
            assert row[name] == wanted, (name, row)


@pytest.fixture(
    params=[pytest.param(1, id="a period per day"), pytest.param(10**6, id="one period", marks=pytest.mark.slow)]
)
def _periods(request, monkeypatch):
    monkeypatch.setattr(preparing, "PERIOD_ROWS", request.param)


@pytest.mark.usefixtures("_periods")
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=logs)
def test_rows_of_splits_are_those_of_the_twin(tmp_path_factory, log):
    compare(prepared(tmp_path_factory.mktemp("log"), [*log, *LAST], BY_TIME), [*log, *LAST])


LAST = [(minute, 1, 1, 1, True, False) for minute in (4300, 4301, 4302, 4303)]  # rows for every split


@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=logs)
def test_rows_of_days_are_those_of_the_twin(tmp_path_factory, log):
    found = prepared(tmp_path_factory.mktemp("log"), log, BY_DAY)
    compare(found, log)
    for number, row in found.items():
        assert row["part"] == f"date=2026-05-{1 + log[number][0] // 1440:02}"


def busy(rows=300):
    rng = random.Random(1)
    brands = [None, 1, 2]
    return [
        (
            rng.randrange(48) * 90,
            rng.randint(1, 9),
            rng.randint(1, 5),
            rng.choice(brands),
            *(rng.random() < 0.4 for _ in "cb"),
        )
        for _ in range(rows)
    ]


def test_users_parts_and_a_longer_log_change_nothing(tmp_path, monkeypatch):
    log = busy()
    first = [row for row in log if row[0] < 1440]
    monkeypatch.setattr(preparing, "BUCKET_ROWS", 30)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    prepared(tmp_path, first, BY_DAY)
    before = {path: path.read_bytes() for path in tmp_path.glob("out/date=*/*.parquet")}
    ordered = first + [row for row in log if row[0] >= 1440]
    compare(prepared(tmp_path, ordered, BY_DAY), ordered)
    assert len(before) > 2
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("split", [BY_DAY, pytest.param(BY_TIME, marks=pytest.mark.slow), LEFT_OUT])
def test_a_preparation_that_was_killed_goes_on(tmp_path, monkeypatch, split):
    log = busy()
    monkeypatch.setattr(preparing, "PERIOD_ROWS", 1)
    spec = load_spec(written(tmp_path, log, split), Spec)
    commit, committed = preparing._Preparation._commit, []

    def killed(self, span, work, counts):
        if len(committed) == 2:
            raise KeyboardInterrupt
        commit(self, span, work, counts)
        committed.append(span.number)

    monkeypatch.setattr(preparing._Preparation, "_commit", killed)
    with pytest.raises(KeyboardInterrupt):
        preparing.prepare(spec, tmp_path / "out")
    assert not any((tmp_path / "out" / part).exists() for part in ("train", "valid", "test"))

    def noted(self, span, work, counts):
        commit(self, span, work, counts)
        committed.append(span.number)

    monkeypatch.setattr(preparing._Preparation, "_commit", noted)
    preparing.prepare(spec, tmp_path / "out")
    assert len(committed) == len(set(committed)) == len({minute // 1440 for minute, *_ in log})
    compare(rows(tmp_path / "out"), log)


def test_the_last_row_of_each_user_is_left_out(tmp_path):
    log = busy()
    found = prepared(tmp_path, log, LEFT_OUT)
    for user in {row[1] for row in log}:
        own = sorted((n for n in range(len(log)) if log[n][1] == user), key=lambda n: (log[n][0], n))
        assert [found[n]["part"] for n in own] == ["train"] * (len(own) - 2) + ["valid", "test"]


@pytest.mark.parametrize("by", [pytest.param("random", marks=pytest.mark.slow), "user", "time"])
def test_splits_have_their_shares_and_a_seed(tmp_path, by):
    log = [(n % 4000, n % 997, 1, 1, True, False) for n in range(4000)]
    found = prepared(tmp_path, log, f"{{by: {by}, valid: 0.2, test: 0.1}}")
    shares = [sum(row["part"] == part for row in found.values()) / len(log) for part in ("train", "valid", "test")]
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.03)
    if by == "user":
        assert len({(row["user"], row["part"]) for row in found.values()}) == 997
    if by == "time":
        newest = {
            part: [row["timestamp"] for row in found.values() if row["part"] == part]
            for part in ("train", "valid", "test")
        }
        assert max(newest["train"]) < min(newest["valid"])
        assert max(newest["valid"]) < min(newest["test"])
