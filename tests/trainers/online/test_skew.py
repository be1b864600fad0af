"""Planted skews are each found and named, and a clean log has none."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from livetrain.cli import main as cli
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.trainers.online import windows
from tests.trainers.online import logged

NOW = 1_790_000_000_000
MINE = ["user", "seen", "hour", "age"]


def recipe(data) -> Recipe:
    tables = {name: {"rows": 64, "dim": 4} for name in ("user", "room", "tag")}
    return Recipe.model_validate(
        {
            "name": "skew",
            "data": {"path": str(data), "batch_size": 8, "shards": 2},
            "features": {
                "user": {"type": "id", "table": "user"},
                "room": {"type": "id", "table": "room"},
                "kind": {"type": "id", "table": "tag"},
                "seen": {"type": "sequence", "table": "room", "max_length": 4, "column": "history"},
                "tags": {"type": "bag", "table": "tag", "weights": "strength"},
                "price": {"type": "dense", "missing_flag": True},
                "title": {"type": "vector", "width": 3},
                "hour": {"type": "hour", "table": "hour", "column": "timestamp", "unit": "ms"},
                "age": {"type": "age", "column": "begun", "unit": "ms"},
            },
            "tables": tables | {"hour": {"rows": 24, "dim": 4, "hash": "modulo"}},
            "model": {"kind": "lr"},
            "tasks": {"click": {"label": "click"}},
            "cluster": {"workers": 0, "device": "cpu"},
        }
    )


def samples(count: int = 120) -> pa.Table:
    draw = np.random.default_rng(0)
    return pa.table(
        {
            "user": np.arange(count) % 7,
            "room": np.arange(count),
            "kind": [f"kind {n % 3}" if n % 5 else None for n in range(count)],
            "history": [draw.integers(0, 50, n % 7).tolist() for n in range(count)],
            "tags": pa.array([None if n % 11 == 0 else [n % 4, n % 4 + 1] for n in range(count)], pa.list_(pa.int64())),
            "strength": pa.array([None if n % 11 == 0 else [n / 8, 1.5] for n in range(count)], pa.list_(pa.float32())),
            "price": pa.array([None if n % 6 == 0 else n / 7 for n in range(count)], pa.float64()),
            "title": [draw.normal(size=3).tolist() for _ in range(count)],
            "timestamp": NOW + 60_000 * np.arange(count),
            "begun": NOW - 86_400_000 + np.arange(count),
            "click": pa.array(np.zeros(count, np.int8)),
        }
    )


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A day of samples, its recipe, and the log of the same requests, each two seconds before its exposure."""
    folder = tmp_path_factory.mktemp("skew")
    day = folder / "data/date=2026-11-29"
    day.mkdir(parents=True)
    pq.write_table(samples(), day / "part-0.parquet", row_group_size=50)
    made = recipe(folder / "data")
    (folder / "skew.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json", exclude_unset=True)))
    asked = samples()["timestamp"].to_numpy() - 2000
    log = logged.write(folder / "log", samples(), asked.tolist(), made, MINE)
    return folder, log


def run(folder, log, tmp_path, *more: str) -> tuple[int, dict]:
    command = ["skew", str(log), "--samples", str(folder / "data/date=2026-11-29")]
    command += ["--recipe", str(folder / "skew.yaml"), "--json", str(tmp_path / "skew.json"), *more]
    code = cli.app(command, standalone_mode=False)
    return code or 0, json.loads((tmp_path / "skew.json").read_text())


def spoilt(log: pa.Table, name: str, change, folder):
    """Write a log in which one column of every third request is changed."""
    rows = log[name].to_pylist()
    rows = [change(value) if n % 3 == 0 else value for n, value in enumerate(rows)]
    folder.mkdir()
    at = log.schema.get_field_index(name)
    pq.write_table(log.set_column(at, name, pa.array(rows, log.schema.field(name).type)), folder / "part.parquet")
    return folder


def first(change):
    """Change what belongs to the first of the candidates, the one that was shown."""
    return lambda values: [change(values[0]), *values[1:]]


def test_a_clean_log_has_none(clean, tmp_path, capsys):
    folder, _ = clean
    code, found = run(folder, folder / "log", tmp_path)
    assert code == 0
    assert found["joined"] == found["samples"] == 120
    assert found["logged"] == 360
    assert {each["differ"] for each in found["features"].values()} == {0}
    assert {each["rows"] for each in found["features"].values()} == {120}
    assert "no feature differs in more rows than --limit allows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "change", "kind", "largest"),
    [
        ("price", first(lambda price: 2.0 if price is None else price + 0.25), "another number", 0.25),
        ("price", first(lambda price: None), "missing in the log", 0),
        ("price", first(lambda price: 1.0 if price is None else price), "missing in the samples", 0),
        ("title", first(lambda title: [title[0], title[1] + 1, title[2]]), "another number", 1),
        ("kind", first(lambda kind: 17), "other ids", 1),
        ("kind", first(lambda kind: None), "missing in the log", 1),
        ("tags", first(lambda tags: tags[::-1]), "another order", 0),
        ("tags.weights", first(lambda weights: [each + 0.5 for each in weights]), "another number", 0.5),
        ("seen", lambda seen: seen[1:], "fewer ids", 1),
        ("seen", lambda seen: [7, *seen], "more ids", 1),
        ("seen", lambda seen: [each + 1 for each in seen], "other ids", 0),
        ("hour", lambda hour: hour + 3600, "other ids", 0),
        ("age", lambda age: age + 8 * 3600, "another number", 28_800),
    ],
)
def test_a_planted_skew_is_found_and_named(clean, tmp_path, name, change, kind, largest):
    folder, log = clean
    code, found = run(folder, spoilt(log, name, change, tmp_path / "log"), tmp_path)
    assert code == 3
    name = name.removesuffix(".weights")
    assert [other for other, each in found["features"].items() if each["differ"]] == [name]
    each = found["features"][name]
    assert kind in each["kinds"]
    assert 0 < each["differ"] <= 40
    assert each["largest"] == pytest.approx(largest, rel=1e-4)
    example = each["examples"][0]
    assert example["item"] % 3 == 0
    assert example["logged"] != example["sample"]


def test_a_longer_list_differs_in_nothing_that_is_read(clean, tmp_path):
    folder, log = clean
    rows = samples()["history"].to_pylist()
    at = log.schema.get_field_index("seen")
    (tmp_path / "log").mkdir()
    pq.write_table(log.set_column(at, "seen", pa.array(rows)), tmp_path / "log/part.parquet")
    assert run(folder, tmp_path / "log", tmp_path)[0] == 0


def test_limit_and_tolerance_say_what_is_allowed(clean, tmp_path):
    folder, log = clean
    changed = spoilt(log, "age", lambda age: age + 2, tmp_path / "log")
    assert run(folder, changed, tmp_path)[0] == 3
    assert run(folder, changed, tmp_path, "--tolerance", "age=2.5")[0] == 0
    assert run(folder, changed, tmp_path, "--limit", "0.34")[0] == 0
    assert run(folder, changed, tmp_path, "--limit", "0.33")[0] == 3


def test_a_recipe_that_reads_no_item_is_named_with_the_column(clean, tmp_path):
    folder, _ = clean
    content = yaml.safe_load((folder / "skew.yaml").read_text())
    content["features"].pop("room")
    (tmp_path / "skew.yaml").write_text(yaml.safe_dump(content))
    command = ["skew", str(folder / "log"), "--samples", str(folder / "data/date=2026-11-29")]
    with pytest.raises(BadInput, match="skew: has no id feature of column 'room', .*name one that has"):
        cli.app([*command, "--recipe", str(tmp_path / "skew.yaml")], standalone_mode=False)


def test_rows_are_found_by_user_item_and_time_or_by_the_request(clean, tmp_path):
    folder, log = clean
    code, found = run(folder, folder / "log", tmp_path, "--within", "2")
    assert found["joined"] == 120
    with pytest.raises(BadInput, match="none of its 360 candidates is a sample of"):
        run(folder, folder / "log", tmp_path, "--within", "1")
    half = log.slice(0, 60)
    (tmp_path / "log").mkdir()
    pq.write_table(half, tmp_path / "log/part.parquet")
    assert run(folder, tmp_path / "log", tmp_path)[1]["joined"] == 60
    day = tmp_path / "data/date=2026-11-29"
    day.mkdir(parents=True)
    named = samples().append_column("request_id", pa.array([f"r{n}" for n in range(120)]))
    late = pa.array(named["timestamp"].to_numpy() + 10**9)  # of no use to find a request by
    pq.write_table(named.set_column(named.schema.get_field_index("timestamp"), "timestamp", late), day / "p.parquet")
    command = ["skew", str(folder / "log"), "--samples", str(day), "--recipe", str(folder / "skew.yaml")]
    assert cli.app([*command, "--json", str(tmp_path / "s.json")], standalone_mode=False) == 3
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["joined"] == 120
    assert {name for name, each in found["features"].items() if each["differ"]} == {"hour", "age"}


def test_a_log_in_stretches_has_the_same_findings(clean, tmp_path, monkeypatch):
    folder, log = clean
    wrong = first(lambda price: 2.0 if price is None else price + 0.25)
    spoilt(log, "price", wrong, tmp_path / "log")
    shuffled = pq.read_table(tmp_path / "log/part.parquet").take(np.random.default_rng(1).permutation(120))
    (tmp_path / "log/part.parquet").unlink()
    for number in range(3):  # as three servers write, and the samples in no order either
        pq.write_table(shuffled.slice(40 * number, 40), tmp_path / f"log/{number}.parquet", row_group_size=13)
    day = tmp_path / "data/date=2026-11-29"
    for named in (False, True):
        told = samples().append_column("request_id", pa.array([f"r{n}" for n in range(120)])) if named else samples()
        day.mkdir(parents=True, exist_ok=True)
        rows = told.take(np.random.default_rng(2).permutation(120))
        pq.write_table(rows, day / "part-0.parquet", row_group_size=50)
        found = []
        for most, at_a_time in ((250_000, 256), (30, 7)):
            monkeypatch.setattr(windows, "CANDIDATES", most)
            monkeypatch.setattr(windows, "_REQUESTS", at_a_time)
            assert len(windows.Log(str(tmp_path / "log")).stretches("room")) == (1 if most > 30 else 12)
            command = ["skew", str(tmp_path / "log"), "--samples", str(day), "--recipe", str(folder / "skew.yaml")]
            assert cli.app([*command, "--json", str(tmp_path / "s.json")], standalone_mode=False) == 3
            found.append(json.loads((tmp_path / "s.json").read_text()))
            for each in found[-1]["features"].values():
                each.pop("examples")
        assert found[0] == found[1]
        assert (found[0]["joined"], found[0]["logged"]) == (120, 360)
        assert found[0]["features"]["price"]["kinds"] == {"another number": 20, "missing in the samples": 20}


def test_of_an_id_that_was_given_twice_the_newest_request_counts(clean, tmp_path, monkeypatch):
    folder, log = clean
    monkeypatch.setattr(windows, "CANDIDATES", 30)
    later = spoilt(log, "price", first(lambda price: 99.0), tmp_path / "log")
    rows = pq.read_table(later / "part.parquet").slice(0, 1)
    at = rows.schema.get_field_index("time")
    rows = rows.set_column(at, "time", pa.array([log["time"][-1].as_py() + 10_000]))
    pq.write_table(pa.concat_tables([log, rows]), later / "part.parquet")
    day = tmp_path / "data/date=2026-11-29"
    day.mkdir(parents=True)
    named = samples().append_column("request_id", pa.array([f"r{n}" for n in range(120)]))
    pq.write_table(named, day / "part-0.parquet")
    command = ["skew", str(later), "--samples", str(day), "--recipe", str(folder / "skew.yaml")]
    assert cli.app([*command, "--json", str(tmp_path / "s.json")], standalone_mode=False) == 3
    found = json.loads((tmp_path / "s.json").read_text())
    assert (found["joined"], found["features"]["price"]["differ"]) == (120, 1)


def test_what_is_no_log_is_named(clean, tmp_path):
    folder, log = clean
    (tmp_path / "log").mkdir()
    for change, words in [
        (lambda: (tmp_path / "log/p.parquet").write_text("x"), "is no log of requests"),
        (lambda: pq.write_table(log.drop_columns("time"), tmp_path / "log/p.parquet"), "has no column 'time'"),
        (lambda: pq.write_table(log.drop_columns("tags"), tmp_path / "log/p.parquet"), "has no feature 'tags'"),
        (
            lambda: pq.write_table(log.drop_columns("tags.weights"), tmp_path / "log/p.parquet"),
            "no 'tags.weights', which",
        ),
        (lambda: (tmp_path / "log/p.parquet").unlink(), "holds no log of requests"),
    ]:
        change()
        with pytest.raises(BadInput, match=words):
            run(folder, tmp_path / "log", tmp_path)
    with pytest.raises(BadInput, match="holds no Parquet; name a prepared day or a split, as .*date=2026-11-29"):
        cli.app(
            ["skew", str(folder / "log"), "--samples", str(folder / "data"), "--recipe", str(folder / "skew.yaml")],
            standalone_mode=False,
        )
    for word, words in (("age", "write FEATURE=NUMBER"), ("ages=1", "the recipe has no such feature")):
        with pytest.raises(BadInput, match=words):
            run(folder, folder / "log", tmp_path, "--tolerance", word)
