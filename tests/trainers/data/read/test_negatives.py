"""Negatives drawn while reading: which may be drawn, how often, and that nothing but seed, epoch and row decides."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe, load_recipe
from livetrain.modules.features.carriers import Carried
from livetrain.trainers.data.read import negatives
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.write.ids import string_id
from tests import samples
from tests.trainers.train import test_loop as loop

ITEMS = 60
EACH = 3


def write(folder, rows=1200, items=ITEMS, groups=128):
    """Samples with a day, a time and a price, and a catalogue; an item has another price in it than in any sample."""
    data = samples.write(folder / "data", rows=rows)
    rng = np.random.default_rng(0)
    ids = np.arange(items) * 7
    for split in ("train", "valid", "test"):
        file = data / split / "part-0.parquet"
        table = pq.read_table(file)
        count = len(table)
        table = table.drop(["movie", "history", "rating"])
        table = table.append_column("movie", pa.array(rng.choice(ids, count), mask=rng.random(count) < 0.05))
        lengths = rng.integers(0, 5, count)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        place = np.arange(count)  # half of the rows have the lists of the row before
        again = pa.array(np.maximum.accumulate(np.where(rng.random(count) < 0.5, place, 0)))
        for name, values in (
            ("history", rng.choice(ids, int(offsets[-1]))),
            ("rating", rng.integers(1, 6, int(offsets[-1]))),
        ):
            stored = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
            table = table.append_column(name, stored.take(again))
        table = table.append_column("day", pa.array(rng.integers(0, 4, count), mask=rng.random(count) < 0.02))
        table = table.append_column("time", pa.array(rng.integers(0, 1000, count)))
        table = table.append_column("price", pa.array(np.zeros(count, np.float32)))
        pq.write_table(table, file, row_group_size=groups)
    start = rng.integers(0, 900, items)
    catalogue = {
        "movie": rng.permutation(ids),
        "price": (1 + np.arange(items)).astype(np.float32),
        "day": rng.integers(0, 4, items),
        "count": rng.integers(1, 50, items),
        "start": start,
        "end": start + rng.integers(1, 400, items),
    }
    pq.write_table(pa.table(catalogue), folder / "catalogue.parquet")
    return data


def recipe_of(folder, kept=1, **section):
    drawn = {"catalogue": str(folder / "catalogue.parquet"), "item": "movie", "task": "click", "per_positive": EACH}
    return samples.recipe(
        folder / "data",
        data__negatives=drawn | section,
        features__price={"type": "dense"},
        tasks={
            "click": {"label": "label", "negatives_kept": kept},
            "like": {"label": "like", "negatives_kept": 1},
        },
    )


def opened(recipe):
    source, said = Source.open(recipe, "train"), []
    negatives.count(source, recipe, said.append)
    return source, said


def rows_of(source, recipe, epoch=0, start=0, rank=0, world=1):
    """Return every row as read: number -> (user, movie, history, price, labels)."""
    out = {}
    for batch in Reader(source, recipe, rank=rank, world=world, shuffle=True).batches(epoch, start):
        columns = {}
        for key in batch.ids.keys():  # noqa: SIM118
            part = batch.ids[key]
            ends = np.cumsum(part.lengths().numpy())
            columns[key] = np.split(part.values().numpy(), ends[:-1])
        for i in np.flatnonzero(batch.weights.numpy()):
            ids = [columns[key][i].tolist() for key in ("user", "movie", "history")]
            out[int(batch.rows[i])] = (*ids, float(batch.dense[i, 1]), batch.labels[i].tolist())
    return out


def test_they_are_counted_once(tmp_path, monkeypatch):
    """Until another catalogue, or other asking, would make other counts."""
    write(tmp_path)
    pairs = recipe_of(tmp_path, within=["day"]), recipe_of(tmp_path, seen=["history"])
    first = [opened(recipe)[0].drawn for recipe in pairs]
    with monkeypatch.context() as patched:
        patched.setattr(Source, "read", lambda *arguments: pytest.fail("rows were read again"))
        again = [opened(recipe)[0].drawn for recipe in pairs]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert not np.array_equal(*first)
    catalogue = pq.read_table(tmp_path / "catalogue.parquet")
    pq.write_table(catalogue.filter(pc.equal(catalogue["day"], 0)), tmp_path / "catalogue.parquet")
    fewer = opened(pairs[0])[0].drawn
    assert fewer.sum() < first[0].sum()
    (tmp_path / "data/train/_livetrain").rename(tmp_path / "gone")
    assert np.array_equal(opened(pairs[0])[0].drawn, fewer)


def slow(recipe, row, catalogue):
    """Return the items that a row may get."""
    section, allowed = recipe.data.negatives, set()
    for item in catalogue:
        fits = item["movie"] != row["movie"]
        fits &= all(item[column] == row[column] for column in section.within)
        fits &= not any(item["movie"] in row[column] for column in section.seen)
        if section.on_air:
            fits &= item["start"] <= row["time"] < item["end"]
        if fits:
            allowed.add(item["movie"])
    return allowed


AIR = {"start": "start", "end": "end", "time": "time"}
CASES = {
    "uniform": {},
    "popular": {"popularity": "count"},
    "same day, unseen": {"within": ["day"], "seen": ["history"]},
    "on air": {"on_air": AIR, "popularity": "count", "power": 2},
    "all at once": {"within": ["day"], "seen": ["history"], "on_air": AIR},
}


@pytest.mark.parametrize("section", CASES.values(), ids=CASES)
def test_what_is_drawn_may_be_drawn(tmp_path, section):
    data = write(tmp_path)
    recipe = recipe_of(tmp_path, **section)
    source, said = opened(recipe)
    stored = pq.read_table(data / "train/part-0.parquet").to_pylist()
    catalogue = pq.read_table(tmp_path / "catalogue.parquet").to_pylist()
    price = {item["movie"]: item["price"] for item in catalogue}
    found = rows_of(source, recipe)
    number = without = 0
    drawn = set()
    for row in stored:
        user, movie, history, cost, labels = found.pop(number)
        assert (user, movie) == ([row["user"]], [] if row["movie"] is None else [row["movie"]])
        assert (history, cost, labels) == (row["history"][-6:], 0.0, [row["label"], row["like"]])
        number += 1
        allowed = slow(recipe, row, catalogue) if row["label"] else set()
        without += bool(row["label"]) and not allowed
        for _ in range(EACH if allowed else 0):
            assert found[number][0] == user
            assert found[number][2] == history
            assert found[number][4] == [0.0, 0.0]
            (item,) = found[number][1]
            assert item in allowed
            assert found.pop(number)[3] == price[item]
            drawn.add(item)
            number += 1
    assert not found
    assert (without > 0) == ("have no item that may be drawn" in said[0])
    assert len(drawn) > ITEMS / 2


def test_nothing_but_seed_epoch_and_row_decides(tmp_path):
    write(tmp_path)
    recipe = recipe_of(tmp_path, seen=["history"])
    source, _ = opened(recipe)
    whole = rows_of(source, recipe)
    assert rows_of(source, recipe) == whole
    halves = [rows_of(source, recipe, rank=rank, world=2) for rank in range(2)]
    assert halves[0] | halves[1] == whole
    later = rows_of(source, recipe, start=7)
    assert later
    assert all(whole[number] == row for number, row in later.items())
    other = rows_of(source, recipe, epoch=1)
    assert other.keys() == whole.keys()
    changed = [number for number in whole if other[number][1] != whole[number][1]]
    drawn = len(whole) - 1200
    assert 0.9 * drawn < len(changed) <= drawn
    file = tmp_path / "data/train/part-0.parquet"
    pq.write_table(pq.read_table(file), file, row_group_size=500)
    again, _ = opened(recipe)
    assert len(again.groups) != len(source.groups)
    assert rows_of(again, recipe) == whole
    seeded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 2})})
    assert sum(row[1] != whole[n][1] for n, row in rows_of(again, seeded).items()) > 0.9 * drawn


@pytest.mark.parametrize("integers", [False, True], ids=["strings", "integers where the samples have strings"])
def test_a_catalogue_may_have_strings_weighted_bags_and_vectors(tmp_path, integers):
    data, draw = write(tmp_path, rows=400), np.random.default_rng(1)
    items = pq.read_table(tmp_path / "catalogue.parquet")
    names = items["movie"].to_pylist()
    tags = [[f"t{name}"] * (place % 3) for place, name in enumerate(names)]
    weights, pictures = [draw.normal(size=len(row)).astype(np.float32) for row in tags], draw.normal(size=(ITEMS, 2))
    movies = items["movie"] if integers else pa.array(list(map(str, names))).dictionary_encode()
    items = items.set_column(0, "movie", movies).append_column("tags", pa.array(tags))
    items = items.append_column("tag_weights", pa.array(weights))
    items = items.append_column("picture", pa.array(pictures.tolist(), pa.list_(pa.float32(), 2)))
    pq.write_table(items, tmp_path / "catalogue.parquet")
    file = data / "train/part-0.parquet"
    table = pq.read_table(file)
    seen = table["history"].combine_chunks()
    texts = pa.ListArray.from_arrays(seen.offsets, seen.flatten().cast(pa.string()))
    beside = pa.array(draw.normal(size=(len(seen.flatten()), 2)).tolist(), pa.list_(pa.float32(), 2))
    for name, column in (
        ("movie", table["movie"].cast(pa.string())),
        ("history", texts),
        ("tags", pa.array([["own"]] * len(table))),
        ("tag_weights", pa.array([[9.0]] * len(table))),
        ("picture", pa.array([[9.0, 9.0]] * len(table))),
        ("pictures", pa.ListArray.from_arrays(seen.offsets, beside)),
    ):
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table.append_column(name, column)
    pq.write_table(table, file, row_group_size=128)
    made = recipe_of(tmp_path, seen=["history"])
    added = {
        "tags": {"type": "bag", "table": "movie", "weights": "tag_weights"},
        "picture": {"type": "vector", "width": 2},
        "history": {"type": "sequence", "table": "movie", "max_length": 6, "vectors": "pictures", "like": "picture"},
    }
    tree = yaml.safe_load(dump_recipe(made))
    made = load_recipe(tree | {"features": tree["features"] | added})
    source, _ = opened(made)
    rows = {}
    for batch in Reader(source, made, rank=0, world=1, shuffle=True).batches(0):
        vectors = Carried(made.features)(batch.ids, batch.vectors)["history"]
        lists = {key: batch.ids[key].to_dense() for key in batch.ids.keys()}  # noqa: SIM118
        own = vectors.split(batch.ids["history"].lengths().tolist())
        for i in np.flatnonzero(batch.weights.numpy()):
            weighed = batch.ids["tags"].to_dense_weights()[i].tolist()
            told = {key: part[i].tolist() for key, part in lists.items()}
            rows[int(batch.rows[i])] = told | {"w": weighed, "numbers": batch.dense[i].tolist(), "v": own[i].tolist()}
    assert len(rows) > 400
    ids = {string_id(str(name)): place for place, name in enumerate(names)}
    positive = None
    for number in sorted(rows):
        row = rows[number]
        price, picture = row["numbers"][-3], row["numbers"][-2:]
        if price == 0:
            assert (row["w"], picture) == ([9.0], [9.0, 9.0])
            positive = row
            continue
        place = ids[row["movie"][0]]
        assert row["movie"] != positive["movie"]
        assert not set(row["movie"]) & set(row["history"])
        assert row["tags"] == [string_id(tag) for tag in tags[place]]
        assert row["w"] == pytest.approx(weights[place])
        assert (price, picture) == (place + 1, pytest.approx(pictures[place], rel=1e-6))
        assert (row["history"], row["v"]) == (positive["history"], positive["v"])


@pytest.mark.parametrize("power", [pytest.param(None, marks=pytest.mark.slow), 0.5])
def test_how_often_an_item_is_drawn(tmp_path, power):
    write(tmp_path, rows=8000, items=12)
    recipe = recipe_of(tmp_path, **({} if power is None else {"popularity": "count", "power": power}))
    source, _ = opened(recipe)
    found = rows_of(source, recipe)
    catalogue = pq.read_table(tmp_path / "catalogue.parquet")
    chances = catalogue["count"].to_numpy() ** (power or 0.0)
    chances = dict(zip(catalogue["movie"].to_pylist(), chances / chances.sum(), strict=True))
    counts, wanted, own, variance = dict.fromkeys(chances, 0), dict.fromkeys(chances, 0.0), None, 0.0
    for number in sorted(found):
        _, movie, _, price, _ = found[number]
        if price == 0:
            own = movie
            continue
        counts[movie[0]] += 1
        for item, chance in chances.items():
            if [item] != own:
                wanted[item] += chance / (1 - (chances[own[0]] if own else 0.0))
    for item, expected in wanted.items():
        variance = max(variance, abs(counts[item] - expected) / np.sqrt(expected + 1))
    assert sum(counts.values()) > 9000
    assert variance < 4.5


def test_a_share_comes_from_neighbours(tmp_path):
    write(tmp_path)
    neighbours = {7 * i: [7 * ((i + 1) % ITEMS), 7 * ((i + 2) % ITEMS), -5] for i in range(ITEMS - 10)}
    table = pa.table({"movie": list(neighbours), "neighbours": list(neighbours.values())})
    pq.write_table(table, tmp_path / "near.parquet")
    recipe = recipe_of(tmp_path, hard={"path": str(tmp_path / "near.parquet"), "share": 0.6})
    source, _ = opened(recipe)
    found = rows_of(source, recipe)
    near = total = far = 0
    own = None
    for number in sorted(found):
        _, movie, _, price, _ = found[number]
        if price == 0:
            own = movie
        elif own and own[0] in neighbours:
            total += 1
            near += movie[0] in neighbours[own[0]]
        else:
            far += 1
    assert far > 0
    assert near / total == pytest.approx(0.6 + 0.4 * 2 / (ITEMS - 1), abs=0.04)


@pytest.mark.slow
def test_a_run_counts_them(tmp_path):
    write(tmp_path, rows=600)
    recipe = recipe_of(tmp_path, within=["day"])
    source, said = opened(recipe)
    launch.train(recipe, tmp_path / "runs")
    lines = [json.loads(line) for line in (tmp_path / "runs/small/metrics.jsonl").read_text().splitlines()]
    steps = -(-(600 + sum(source.drawn)) // 96)
    assert lines[-1]["step"] in (2 * steps, 2 * (steps + 1))
    assert said[0].startswith("negatives: 3 for each of ")
    result = json.loads((tmp_path / "runs/small/result.json").read_text())
    (tmp_path / "catalogue.parquet").unlink()  # an evaluation draws nothing
    assert launch.evaluate(tmp_path / "runs/small", "test", "best")["test.click.auc"] == result["test.click.auc"]


def changes_of(folder, **more):
    """Return what a recipe of samples with negatives changes; SGD, so that ranks differ by rounding alone."""
    made = recipe_of(folder, seen=["history"])
    return {
        "data__negatives": made.data.negatives.model_dump(exclude_unset=True),
        "features__price": {"type": "dense"},
        "tasks": {name: task.model_dump(exclude_unset=True) for name, task in made.tasks.items()},
        "optimizers__sparse__kind": "sgd",
        "optimizers__dense__kind": "sgd",
        "train__epochs": 2,
    } | more


@pytest.mark.slow
def test_a_killed_run_goes_on_bitwise(tmp_path):
    """Within the second epoch, whose negatives are others than the first one's."""
    data = write(tmp_path, rows=600)
    runs = [
        loop.job(data, tmp_path / name, **changes_of(tmp_path, train__checkpoint_every=3)) for name in ("whole", "cut")
    ]
    whole = loop.train(runs[0])
    steps = whole["result"]["step"]
    assert steps > 2 * 600 / 96 + 4  # what is drawn is trained on
    loop.train(runs[1], kill_at=steps // 2 + 4)
    assert loop.same(loop.train(runs[1]), whole)


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(two_ranks, tmp_path):
    data = write(tmp_path, rows=600)
    made = changes_of(tmp_path)
    one = loop.train(loop.job(data, tmp_path / "one", **made))
    two = two_ranks.run(loop.train, loop.job(data, tmp_path / "two", **made))[0]
    assert two["result"]["step"] == one["result"]["step"]
    for name, value in one["dense"].items():
        torch.testing.assert_close(two["dense"][name], value, atol=1e-5, rtol=1e-4, msg=name)


def spoil(folder, column, values):
    file = folder / "catalogue.parquet"
    table = pq.read_table(file)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values(table[column].to_pylist()))), file)


@pytest.mark.parametrize(
    ("section", "column", "values", "said"),
    [
        ({"within": ["category"]}, None, None, "data.negatives.within.0: .*has no column 'category'"),
        ({"popularity": "counts"}, None, None, r"catalogue.parquet has no column 'counts' \(did you mean 'count'"),
        ({}, "movie", lambda x: [None, *x[1:]], "column 'movie' of .* is null in 1 items; fill it"),
        ({}, "movie", lambda x: [x[1], *x[1:]], "names an item twice in column 'movie'; keep one of each"),
        ({"popularity": "count"}, "count", lambda x: [0, *x[1:]], "holds 0, and a count must be above 0"),
        ({"on_air": AIR}, "end", lambda x: [-1, *x[1:]], "ends before it starts"),
        ({"on_air": AIR}, "start", lambda x: [10**6 for _ in x], "ends before it starts"),
        ({"within": ["day"]}, "day", lambda x: [9] * len(x), "none of the .* positive rows of tasks.click has an item"),
        ({"task": "clik"}, None, None, r"there is no task 'clik' \(did you mean 'click'"),
        ({"catalogue": "nowhere.parquet"}, None, None, "nowhere.parquet cannot be read"),
        (
            {},
            "movie",
            lambda x: [f"m{n}" for n in x],
            "column 'movie' of .* is string, and that of the training split is i",
        ),
        ({"hard": {"path": "nowhere.parquet"}}, None, None, "data.negatives.hard.path: nowhere.parquet cannot be read"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, section, column, values, said):
    write(tmp_path, rows=200)
    if column:
        spoil(tmp_path, column, values)
    with pytest.raises((BadInput, ValueError), match=said):
        opened(recipe_of(tmp_path, **section))


def test_a_probability_asks_for_the_share(tmp_path):
    write(tmp_path, rows=200)
    recipe = recipe_of(tmp_path)
    assert load_recipe(recipe) == recipe
    assert dump_recipe(recipe, defaults=False).count("negatives_kept: 1.0") == 2
    tasks = {"click": {"label": "label"}}
    with pytest.raises(ValueError, match="tasks.click.negatives_kept: drawn negatives change the probability"):
        samples.recipe(tmp_path / "data", data__negatives=recipe.data.negatives.model_dump(), tasks=tasks)
    tasks["click"]["kind"] = "pairwise"
    samples.recipe(tmp_path / "data", data__negatives=recipe.data.negatives.model_dump(), tasks=tasks)


def test_the_share_is_how_often_each_other_item_is_drawn(tmp_path):
    data = write(tmp_path, rows=6000, items=12)
    file = data / "train/part-0.parquet"
    table = pq.read_table(file)
    table = table.set_column(table.column_names.index("label"), "label", pa.array(np.ones(len(table), np.int8)))
    table = table.filter(table["movie"].is_valid())
    pq.write_table(table, file)
    share = EACH / 11
    with pytest.raises(BadInput, match=r"negatives_kept: 0.5, but 3 of the 11 other items are drawn; set 0.2727"):
        opened(recipe_of(tmp_path, kept=0.5))
    recipe = recipe_of(tmp_path, kept=share)
    found = rows_of(opened(recipe)[0], recipe)
    own, drawn = None, dict.fromkeys(((a * 7, b * 7) for a in range(12) for b in range(12)), 0)
    for number in sorted(found):
        _, (movie,), _, price, _ = found[number]
        own = movie if price == 0 else own
        drawn[own, movie] += price != 0
    count = table["movie"].value_counts().to_pylist()
    for pair in count:
        for item in range(0, 84, 7):
            wanted = 0 if item == pair["values"] else share * pair["counts"]
            assert abs(drawn[pair["values"], item] - wanted) <= 5 * np.sqrt(wanted)


def test_features_are_told_apart(tmp_path):
    write(tmp_path, rows=200)
    _, said = opened(recipe_of(tmp_path))
    assert said[1].startswith("negatives: a drawn row has its item's movie, price, and its positive's user, ")
