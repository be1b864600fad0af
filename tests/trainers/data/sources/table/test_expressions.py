"""What expressions see: numbers of CSV are numbers there, one row at a time, and every column is made once."""

import random
import re
from pathlib import Path

import pyarrow.dataset
import pytest
import yaml

from livetrain.configs.errors import BadInput
from livetrain.configs.spec import Spec, load_spec
from livetrain.trainers.data.sources.table import starter
from livetrain.trainers.data.sources.table.prepare import prepare
from tests.trainers.data.sources.table import styles

PAGE = Path(__file__).parents[5] / "docs" / "guide" / "own-data.md"


def prepared(folder, spec):
    (folder / "spec.yaml").write_text(spec if isinstance(spec, str) else yaml.safe_dump(spec))
    made = prepare(load_spec(folder / "spec.yaml", Spec), folder / "out")
    paths = [str(path) for path in sorted(folder.glob("out/*/*.parquet"))]
    return made, pyarrow.dataset.dataset(paths).to_table().to_pylist()


def of_log(labels, columns=None, **more):
    return {
        "log": {"files": "log.csv"} | more,
        "columns": {"row": {"type": "id"}} | (columns or {}),
        "labels": labels,
    } | {"split": {"by": "random", "valid": 0.3, "test": 0.3}}


def test_the_spec_of_the_page_runs_as_it_stands(tmp_path):
    rng = random.Random(1)
    prices = {n: round(rng.uniform(5, 90), 2) for n in range(9)}
    products = [[f"{n}", "Acme", "new|eco", prices[n], " ".join(["0.5"] * 64)] for n in prices]
    styles.write(tmp_path / "products.csv", ["sku", "brand", "tags", "price", "vector"], products)
    (tmp_path / "logs").mkdir()
    paid = {}
    for part in range(2):
        rows = []
        for n in range(60):
            row, product = part * 60 + n, rng.randrange(9)
            at = f"{1 + row // 9:02}.05.2026 08:{n:02}"
            paid[row] = prices[product] - (1234.5 if row == 7 else round(rng.uniform(0, 5), 2))
            cost = prices[product] - paid[row]
            text = "1.234,5" if row == 7 else f"{cost:.2f}".replace(".", ",")
            bought = "" if n % 3 or part else "1"  # one of the files has none
            rows.append([f"c{rng.randrange(5)}", product, at, rng.choice(["Yes", "no"]), text, bought, row])
        header = ["Customer", "Product Code", "Event Time", "clicked", "paid", "amount", "row"]
        styles.write(tmp_path / "logs" / f"{part}.csv", header, rows, ";")
    block = re.search(r"## The spec\n\n```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert block
    spec = block[1].replace("products.parquet", "products.csv").replace("columns:\n", "columns:\n  row: {type: id}\n")
    made, rows = prepared(tmp_path, spec)
    assert sorted(row["row"] for row in rows) == list(range(120))
    for row in rows:
        assert row["rebate"] == pytest.approx(paid[row["row"]], abs=1e-3)
        assert row["purchase"] == (row["row"] < 60 and row["row"] % 3 == 0)
    assert set(made["columns"]) <= {name for name, _ in load_spec(tmp_path / "spec.yaml", Spec).spec.names()} | {
        "timestamp",
        "hour",
        "weekday",
    }


def test_numbers_of_csv_are_numbers_in_expressions(tmp_path):
    rows = [[n, n % 5, f"0{n}", f"{n}.5", f"p{n}"] for n in range(50)]
    styles.write(tmp_path / "log.csv", ["row", "stars", "code", "cost", "name"], rows)
    columns = {"dear": {"type": "number", "column": "round(cost) + 1"}, "kept": {"type": "text", "column": "stars"}}
    made, rows = prepared(tmp_path, of_log({"liked": "stars >= 4", "coded": "length(code) = 3"}, columns))
    for row in rows:
        n = row["row"]
        assert (row["liked"], row["coded"], row["kept"]) == (n % 5 >= 4, n > 9, str(n % 5))
        assert row["dear"] == n + 2


def test_a_later_value_that_is_no_number_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("livetrain.trainers.data.sources.table.files._HEAD", 20)
    styles.write(tmp_path / "log.csv", ["row", "stars"], [[n, "many" if n == 30 else n % 5] for n in range(50)])
    made, rows = prepared(tmp_path, of_log({"liked": "stars >= 4"}))
    assert made["report"]["rows"]["log.stars: null in expressions because the value is no number"] == 1
    assert [row["row"] for row in rows if row["liked"] is None] == [30]


def test_texts_that_are_no_numbers_where_rows_are_chosen_joined_and_dated_are_counted_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr("livetrain.trainers.data.sources.table.files._HEAD", 20)
    log = [[n, "many" if n in (30, 31) else n, n % 7, f"2026-05-01 10:{n:02d}:00"] for n in range(50)]
    styles.write(tmp_path / "log.csv", ["row", "stars", "item", "at"], log)
    items = [[n, "free" if n == 39 else n] for n in range(40)]
    styles.write(tmp_path / "items.csv", ["id", "price"], items)
    join = {"files": "items.csv", "key": "id", "on": "stars % 7", "where": "price >= 0"}
    spec = of_log(
        {"y": "row > 3"}, {"price": {"type": "number", "column": "items.price"}}, where="stars >= 0 OR row = 31"
    )
    spec |= {"joins": {"items": join}, "time": {"column": "1767225600 + stars * 60", "format": "s"}}
    made, rows = prepared(tmp_path, spec)
    counted = {words: n for words, n in made["report"]["raw"].items() if words.endswith("the value is no number")}
    assert counted == {
        "log.stars: null in log.where because the value is no number": 2,
        "items.price: null in joins.items.where because the value is no number": 1,
        "log.stars: null in joins.items.on because the value is no number": 1,
        "log.stars: null in time.column because the value is no number": 1,
    }
    (note,) = [note for note in made["report"]["notes"] if "no number" in note]
    assert (
        "log.stars: no number in 2 rows, such as 'many', and null in log.where; items.price: no number in 1 r" in note
    )
    assert sorted(row["row"] for row in rows) == [n for n in range(50) if n not in (30, 31)]


def test_a_decimal_comma_takes_points_for_groups_of_three_alone(tmp_path):
    texts = ["3,45", "1.234,5", "1.234", "3.45", "12.34,5"] * 4
    styles.write(tmp_path / "log.csv", ["row", "cost", "y"], [[n, text, 1] for n, text in enumerate(texts)], ";")
    spec = of_log({"y": "y = 1"}, {"cost": {"type": "number"}}, delimiter=";", decimal=",")
    made, rows = prepared(tmp_path, spec)
    told = {texts[row["row"]]: row["cost"] for row in rows}
    assert told == {"3,45": pytest.approx(3.45), "1.234,5": 1234.5, "1.234": 1234, "3.45": None, "12.34,5": None}
    assert made["report"]["rows"]["cost: null because the value is no number"] == 8


def test_several_rows_of_an_id_are_counted_and_told(tmp_path):
    styles.write(tmp_path / "log.csv", ["row", "item"], [[n, n % 3] for n in range(30)])
    styles.write(tmp_path / "items.csv", ["id", "price"], [[0, 5], [1, 6], [0, 7], [0, 8]])
    spec = of_log({"y": "row > 3"}, {"price": {"type": "number", "column": "items.price"}})
    made, rows = prepared(tmp_path, spec | {"joins": {"items": {"files": "items.csv", "key": "id", "on": "item"}}})
    assert made["report"]["raw"]["joins.items: ids with several rows, of which the first is taken"] == 1
    assert any("joins.items: 1 of its ids have several rows" in note for note in made["report"]["notes"])
    assert {row["price"] for row in rows if row["row"] % 3 == 0} == {5}


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("lead(row) OVER () > 3", "a function of several rows"),
        ("count(*) > 1", r"count\(\), a function of several rows"),
        ("max(row) > 1", r"max\(\), a function of several rows"),
        ("row IN (SELECT 1)", "a query"),
        ("random() > 0.5", r"random\(\), which answers otherwise"),
    ],
)
def test_an_expression_is_of_one_row(tmp_path, expression, why):
    path = styles.write(tmp_path / "log.csv", ["row", "item"], [[n, n % 3] for n in range(30)])
    for place, spec in (
        ("labels.y", of_log({"y": expression})),
        ("columns.a.column", of_log({"y": "row > 3"}, {"a": {"type": "number", "column": expression}})),
        ("log.where", of_log({"y": "row > 3"}, where=expression)),
    ):
        with pytest.raises(BadInput, match=rf"{place}: .* holds ({why})"):
            prepared(tmp_path, spec)
    with pytest.raises(BadInput, match=f"--label y: .* holds ({why})"):
        starter.init([str(path)], tmp_path, None, {"y": expression})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"columns": {"user_count": "number"}},
            r"counts \(user\): it makes a column 'user_count', as columns.user_count",
        ),
        (
            {"columns": {"past_gap": "number"}},
            r"histories.past: it makes a column 'past_gap', as columns.past_gap does",
        ),
        ({"columns": {"user_item_ago": "number"}}, r"pairs \(item\): it makes a column 'user_item_ago', as columns"),
        ({"columns": {"Item": "id"}}, r"columns.item: it makes a column 'item', as columns.Item does"),
        ({"labels": {"item": "y = 1"}}, r"labels.item: it makes a column 'item', as columns.item does"),
        ({"counts": ["user", "user"]}, r"counts \(user\): .*'user_count'"),
        ({"columns": {"hour": "id"}}, r"columns.*hour: livetrain makes a column of this name"),
    ],
)
def test_every_column_is_made_once(tmp_path, change, words):
    columns = {"user": "id", "item": "id"} | change.get("columns", {})
    spec = {"log": {"files": "log.csv"}, "time": {"column": "at"}, "user": "user", "item": "item"}
    spec |= {"columns": {name: {"type": kind} for name, kind in columns.items()}}
    spec |= {"labels": {"y": "y = 1"} | change.get("labels", {}), "histories": {"past": {"of": ["item"]}}}
    spec |= {"counts": change.get("counts", ["user"]), "pairs": ["item"], "split": {"by": "time"}}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(BadInput, match=words):
        load_spec(tmp_path / "spec.yaml", Spec)


def test_a_file_is_named_once(tmp_path):
    path = styles.write(tmp_path / "log.csv", ["row", "click"], [[n, n % 2] for n in range(30)])
    for files in (["log.csv", "log.csv"], ["*.csv", "./log.csv"]):
        with pytest.raises(BadInput, match="log.files: .*log.csv is named twice"):
            prepared(tmp_path, of_log({"y": "click = 1"}) | {"log": {"files": files}})
    with pytest.raises(BadInput, match="log.csv is named twice"):
        starter.init([str(path), str(tmp_path / "." / "log.csv")], tmp_path, None, {})


def test_init_names_columns_that_are_free_and_writes_nothing_that_cannot_be_read(tmp_path):
    header = ["user", "item", "time", "click", "user_count", "past_item", "gap"]
    rows = [
        [
            f"u{n % 9}",
            f"i{n % 7}",
            f"2026-05-{1 + n // 60:02} 08:00:{n % 60:02}",
            n % 2,
            n / 3,
            f"i{n % 5}",
            f"g{n % 3}",
        ]
        for n in range(400)
    ]
    path = styles.write(tmp_path / "log.csv", header, rows)
    with pytest.raises(BadInput, match=r"labels.*hour.*nothing is written"):
        starter.init([str(path)], tmp_path, None, {"hour": "item = 'i1'"})
    spec, _, _ = starter.init([str(path)], tmp_path, None, {})
    assert {"c_user_count", "c_past_item", "c_gap"} <= set(load_spec(spec, Spec).spec.columns)


def test_init_takes_an_expression_over_numbers(tmp_path):
    rows = [[f"u{n % 9}", f"i{n % 7}", 1 + n % 5, f"{n},5"] for n in range(100)]
    path = styles.write(tmp_path / "log.csv", ["user", "item", "stars", "preis"], rows, ";")
    spec, _, _ = starter.init([str(path)], tmp_path, None, {"liked": "stars >= 4", "dear": "preis > 9.5"})
    prepare(load_spec(spec, Spec), tmp_path / "out")
    assert load_spec(spec, Spec).spec.labels["liked"] == "stars >= 4"


def test_init_refuses_what_it_cannot_look_at(tmp_path):
    (tmp_path / "noise.csv").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "long.csv").write_text('"' + "x" * 200_000)
    for names, run, words in (
        (["nope.csv"], None, "there is no file .*nope.csv"),
        (["."], None, "is a folder; name its files"),
        (["noise.csv"], None, "noise.csv is no text"),
        (["long.csv"], None, "long.csv cannot be read as CSV"),
        (["noise.csv"], "a/b", "--name a/b: write letters"),
    ):
        with pytest.raises(BadInput, match=words):
            starter.init([str(tmp_path / name) for name in names], tmp_path, run, {})
