"""Tags and people lead to items as sums in plain Python say, in any number of shards and parts of the rows."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.fitted import fitted
from livetrain.modules.recall.fitted import NO_ID, Lists, Rows, Table
from livetrain.modules.recall.inverted import Inverted
from livetrain.modules.recall.joined import spread
from livetrain.trainers.export.export import export
from livetrain.trainers.recall import shards, social
from tests.trainers.recall import tastes

COUNT, HOUR = 400, 3600
TAGS = {"kind": "tags", "key": "item", "tags": {"topic": "liked", "songs": "heard"}, "time": "at", "unit": "s"}
SOCIAL = {"kind": "social", "key": "item", "people": ["friends", "followed"], "user": "who", "author": "whose"}
SOCIAL |= {"time": "at"}
LISTS = ("songs", "liked", "heard", "friends", "followed")


def recipe(model: dict, data: str = "nowhere") -> Recipe:
    features = {"item": {"type": "id"}, "topic": {"type": "id"}}
    features |= {name: {"type": "sequence", "max_length": 9} for name in LISTS}
    return tastes.recipe(data, model=model, tables={}, train={}, evaluate={}, features=features)  # type: ignore[arg-type]


def drawn() -> dict[str, np.ndarray | list]:
    """Columns of rows: people and items of few, some unknown, of two days."""
    draw = np.random.default_rng(0)
    table: dict[str, np.ndarray | list] = {
        "label": draw.random(COUNT) < 0.7,
        "item": draw.integers(0, 30, COUNT) - 5,
        "topic": draw.integers(0, 6, COUNT),
        "at": draw.integers(0, 48, COUNT) * float(HOUR),
        "who": np.where(draw.random(COUNT) < 0.1, NO_ID, draw.integers(0, 12, COUNT)),
        "whose": np.where(draw.random(COUNT) < 0.1, NO_ID, draw.integers(0, 12, COUNT)),
    }
    table["at"] = np.where(draw.random(COUNT) < 0.05, np.nan, table["at"])
    for name in LISTS:
        table[name] = [draw.integers(0, 6, size).tolist() for size in draw.integers(0, 4, COUNT)]
    return table


def parts(table: dict, size: int) -> Iterator[Rows]:
    """The rows as a fit sees them, so many at a time."""
    for first in range(0, COUNT, size):
        cut = {name: column[first : first + size] for name, column in table.items()}
        ids = {name: Lists(cut[name], np.ones(len(cut[name]), np.int64)) for name in ("item", "topic")}
        for name in LISTS:
            lengths = np.array([len(own) for own in cut[name]])
            ids[name] = Lists(np.array([one for own in cut[name] for one in own], np.int64), lengths)
        yield Rows(first, cut["label"], ids, {name: cut[name] for name in ("at", "who", "whose")})


def weight(table: dict, row: int, half_life: float | None) -> float:
    newest = np.nanmax(table["at"][table["label"]])
    at = newest if np.isnan(table["at"][row]) else table["at"][row]
    return 1.0 if half_life is None else 2 ** (-(newest - at) / HOUR / half_life)


def share(counts: dict, prior: float) -> dict:
    total: defaultdict = defaultdict(float)
    for (key, _), count in counts.items():
        total[key] += count
    return {pair: count / (total[pair[0]] + prior) for pair, count in counts.items()}


def cut(scores: dict, most: int) -> dict:
    """The entries of each key that stay."""
    found = {}
    for key in {key for key, _ in scores}:
        own = sorted((-score, item) for (k, item), score in scores.items() if k == key)
        found |= {(key, item): -score for score, item in own[:most]}
    return found


def of_tags(table: dict, half_life: float | None, prior: float, most: int) -> dict:
    counts: defaultdict = defaultdict(float)
    for row in np.flatnonzero(table["label"]):
        for space, tags in enumerate([[table["topic"][row]], table["songs"][row]]):
            for tag in tags:
                counts[(space, tag), table["item"][row]] += weight(table, row, half_life)
    return cut(share(counts, prior), most)


def of_people(table: dict, half_life: float | None, prior: float, most: int, hops: int, step: float) -> dict:
    own, went, visits = (defaultdict(float) for _ in range(3))
    for row in np.flatnonzero(table["label"]):
        item, who, whose, counts = (*(table[n][row] for n in ("item", "who", "whose")), weight(table, row, half_life))
        if whose != NO_ID:
            own[(0, whose), item] += counts
        if who != NO_ID:
            went[(0, who), item] += counts
        if NO_ID not in (who, whose):
            visits[(0, who), (0, whose)] += counts
    owned, found = cut(share(own, prior), most), defaultdict(float)
    for pair, score in owned.items():
        found[pair] += score
    for pair, score in share(went, prior).items() if hops else ():
        found[pair] += step * score
    for (who, whose), visit in share(visits, prior).items() if hops == 2 else ():
        for (person, item), score in owned.items():
            if person == whose:
                found[who, item] += step**2 * visit * score
    return cut(found, most)


def content(table: Table) -> dict:
    """The entries of a table, by key and item."""
    found = {}
    for key, span in zip(table.keys.tolist(), pairwise(table.offsets.tolist()), strict=True):
        places = table.places[slice(*span)]
        assert (np.diff(places) > 0).all()
        found |= {(key, int(table.items[p])): float(s) for p, s in zip(places, table.scores[slice(*span)], strict=True)}
    assert (np.diff(table.keys) > 0).all()
    return found


def keyed(wanted: dict) -> dict:
    """The same by the keys that tables have."""
    return {(int(spread(torch.tensor([tag]), space)), item): score for ((space, tag), item), score in wanted.items()}


def compare(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    assert max(abs(found[pair] - wanted[pair]) for pair in wanted) < 1e-6


@pytest.mark.parametrize(("half_life", "size", "count", "most"), [(None, 400, 1, 1000), (5.0, 37, 6, 3)])
def test_tags_are_counted_by_hand(half_life, size, count, most):
    table = drawn()
    made = recipe({**TAGS, "half_life": half_life, "prior": 2.0, "most": most, "shards": count})
    model = fitted(made)
    state = model.fit(parts(table, size))
    assert len([name for name in state if name.startswith("keys-")]) == count
    wanted = of_tags(table, half_life, 2.0, most)
    compare(content(model.table(state)), keyed(wanted))
    scorer = torch.jit.script(Inverted(model, made, model.table(state)).eval())
    ids = {"liked": torch.tensor([3, 3, 1]), "heard": torch.tensor([2, 5]), "item": torch.tensor([4, 9])}
    lengths = {"liked": torch.tensor([2, 1]), "heard": torch.tensor([0, 2])}
    found = scorer(ids, lengths, {})["click"]
    assert found[0] == pytest.approx(2 * wanted.get(((0, 3), 4), 0), abs=1e-6)
    assert found[1] == pytest.approx(sum(wanted.get((key, 9), 0) for key in ((0, 1), (1, 2), (1, 5))), abs=1e-6)


@pytest.mark.parametrize(("hops", "half_life", "size", "count", "most"), [(0, None, 400, 1, 9), (2, 5.0, 37, 6, 4)])
def test_people_lead_to_items_as_counted_by_hand(monkeypatch, hops, half_life, size, count, most):
    monkeypatch.setattr(social, "PIECE", 7)
    table = drawn()
    asked = {"half_life": half_life, "prior": 1.5, "most": most, "shards": count, "hops": hops, "hop_step": 0.4}
    made = recipe({**SOCIAL, **asked})
    model = fitted(made)
    state = model.fit(parts(table, size))
    wanted = of_people(table, half_life, 1.5, most, hops, 0.4)
    compare(content(model.table(state)), keyed(wanted))
    scorer = torch.jit.script(Inverted(model, made, model.table(state)).eval())
    ids = {"friends": torch.tensor([3, 1]), "followed": torch.tensor([3]), "item": torch.tensor([8])}
    found = scorer(ids, {"friends": torch.tensor([2]), "followed": torch.tensor([1])}, {})["click"]
    assert found[0] == pytest.approx(sum(wanted.get(((0, who), 8), 0) for who in (3, 1, 3)), abs=1e-6)


def test_one_hop_is_what_people_went_to():
    table = drawn()
    model = fitted(recipe({**SOCIAL, "hops": 1}))
    compare(content(model.table(model.fit(parts(table, 100)))), keyed(of_people(table, None, 10.0, 1000, 1, 0.5)))


def test_a_shard_s_files_are_read_by_themselves():
    """A key lies in the shard that its leading bits say, so a server of one shard answers for its keys."""
    model = fitted(recipe({**TAGS, "shards": 5}))
    state = model.fit(parts(drawn(), 100))
    whole = content(model.table(state))
    for shard in range(5):
        keys = state[f"keys-{shard:05d}"]
        assert (shards.shard_of(keys, 5) == shard).all()
        owner = np.repeat(keys, state[f"counts-{shard:05d}"]).tolist()
        pairs = zip(owner, state[f"items-{shard:05d}"].tolist(), strict=True)
        own = dict(zip(pairs, state[f"scores-{shard:05d}"].tolist(), strict=True))
        assert own == {pair: score for pair, score in whole.items() if pair[0] in set(keys.tolist())}


def test_a_run_is_fitted_evaluated_and_exported(tmp_path):
    table = drawn()
    for split in ("train", "valid", "test"):
        (tmp_path / split).mkdir()
        columns = {**table, "label": table["label"].astype(np.int8), "at": np.nan_to_num(table["at"]).astype(np.int64)}
        pq.write_table(pa.table(columns), tmp_path / split / "part-0.parquet", row_group_size=64)
    made = recipe({**TAGS, "half_life": 5.0, "shards": 3}, str(tmp_path))
    launch.train(made, tmp_path / "runs")
    run = tmp_path / "runs/factors"
    assert (run / "result.json").exists()
    assert export(run, out=tmp_path / "out", quantize="int8")["parity"]["largest_difference"] < 0.01


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({**TAGS, "tags": {"topic": "liket"}}, r"model.tags.topic: there is no feature of ids 'liket' \(did you mean"),
        ({**TAGS, "time": None, "half_life": 2.0}, "model.half_life: ages need the times of rows"),
        ({**SOCIAL, "people": ["frends"]}, r"model.people.0: there is no feature of ids 'frends' \(did you mean"),
        ({**SOCIAL, "hops": 3}, "hops"),
        (
            {**SOCIAL, "people": ["friends", "item"]},
            "model.people.1: 'item' reads the column 'item', which tells which",
        ),
        ({**SOCIAL, "author": "friends"}, "model.people.0: .*'friends', which tells whose the wanted item is"),
        ({**TAGS, "tags": {"topic": "item"}}, "model.tags.topic: 'item' reads the column 'item', which tells which"),
        ({**TAGS, "tags": {"topic": "topic"}}, "model.tags.topic: .* tells the tags of the wanted item, and a request"),
        ({**TAGS, "tags": {"topic": "liked", "songs": "topic"}}, "model.tags.songs: .* tells the tags of the wanted"),
    ],
)
def test_mistakes_are_named(changes, words):
    with pytest.raises((BadInput, ValidationError), match=words):
        fitted(recipe(changes))
