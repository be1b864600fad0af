"""The inverted table as it answers requests, against dictionaries; as a script, quantised and mapped."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.configs.load import load_recipe
from livetrain.modules.fitted import fitted
from livetrain.modules.recall.fitted import Fitted, table
from livetrain.modules.recall.inverted import Inverted
from livetrain.modules.recall.keys import SliceKeys
from livetrain.modules.tables.mapped import Files, opened

RECIPE = {
    "data": {"path": "nowhere"},
    "features": {
        "item": {"type": "id"},
        "past": {"type": "sequence", "max_length": 4},
        "when": {"type": "sequence", "max_length": 4},
        "now": {"type": "id"},
    },
    "model": {"kind": "item_cf", "key": "item", "history": "past", "history_step": 0.5},
    "tasks": {"click": {"label": "label", "kind": "retrieval"}},
    "cluster": {"workers": 0},
}


def made(entries: dict[tuple[int, int], float], quantize="none", rest=None, **changes) -> Inverted:
    recipe = load_recipe({**RECIPE, **changes})
    keys, items = (np.array([pair[side] for pair in entries], np.int64) for side in (0, 1))
    model = fitted(recipe)
    assert isinstance(model, Fitted)
    return Inverted(model, recipe, table(keys, items, np.array([*entries.values()], float), rest=rest), quantize).eval()


def request(items: list[int | None], pasts: list[list[int]]) -> tuple[dict, dict, dict]:
    ids = {"item": [item for item in items if item is not None], "past": [key for past in pasts for key in past]}
    lengths = {"item": [int(item is not None) for item in items], "past": [len(past) for past in pasts]}
    return (*({n: torch.tensor(v, dtype=torch.int64) for n, v in part.items()} for part in (ids, lengths)), {})


def expected(entries: dict[tuple[int, int], float], past: list[int]) -> dict[int, float]:
    """Return the scores above 0 of all items for a history."""
    found: dict[int, float] = {}
    for newer, key in enumerate(reversed(past[-4:])):
        for (own, item), score in entries.items():
            if own == key:
                found[item] = found.get(item, 0.0) + 0.5**newer * score
    return found


small = st.integers(-3, 4)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.tuples(small, small), st.floats(0.125, 1, width=16), max_size=20),
    st.lists(st.tuples(st.none() | small, st.lists(small, max_size=6)), min_size=1, max_size=5),
)
def test_it_answers_what_dictionaries_do(entries, rows):
    model = made(entries)
    items, pasts = zip(*rows, strict=True)
    inputs = request(list(items), list(pasts))
    wanted = [expected(entries, past) for past in pasts]
    own = [of.get(item, 0.0) if item is not None else 0.0 for of, item in zip(wanted, items, strict=True)]
    torch.testing.assert_close(model(*inputs)["click"], torch.tensor(own))
    every = [[of.get(item, 0.0) for item in model.items.tolist()] for of in wanted]
    torch.testing.assert_close(model.of_all(*inputs), torch.tensor(every).reshape(len(rows), -1))
    found, scores = model.top(*inputs, 3)
    for of, best, values in zip(wanted, found.tolist(), scores.tolist(), strict=True):
        order = sorted(of, key=lambda item: (-np.float32(of[item]), item))[:3]
        assert best[: len(order)] == order
        assert values == pytest.approx([*(of[item] for item in order), *[-np.inf] * (3 - len(order))])


ENTRIES = {(1, 5): 0.5, (1, 6): 0.25, (2, 6): 1.0, (3, 7): 0.75, (3, 5): -0.5}


@pytest.mark.parametrize(("quantize", "close"), [("none", 0), ("float16", 1e-3), ("int8", 1e-2)])
def test_the_file_answers_as_the_model_wherever_its_table_lies(tmp_path, quantize, close):
    plain, stored = made(ENTRIES), made(ENTRIES, quantize)
    inputs = request([5, 6, None, 9], [[1, 2], [3, 2, 1], [1], []])
    files = Files(tmp_path)
    for name, part in stored.tensors().items():
        if part.numel():
            files.room(name, part.shape, part.dtype).copy_(part)
    inside = torch.jit.script(stored)
    wanted = plain(*inputs)["click"]
    torch.testing.assert_close(inside(*inputs)["click"], wanted, atol=close, rtol=0)
    stored.let_go()
    torch.jit.script(stored).save(str(tmp_path / "model.pt"))
    loaded = torch.jit.load(str(tmp_path / "model.pt"))
    with pytest.raises(Exception, match="map and attach it before scoring"):
        loaded(*inputs)
    loaded.attach(opened(tmp_path, files.index))
    torch.testing.assert_close(loaded(*inputs)["click"], wanted, atol=close, rtol=0)
    assert loaded.top(*inputs, 2)[0].tolist() == plain.top(*inputs, 2)[0].tolist()


def test_rank_repeats_what_is_given_once():
    model = made(ENTRIES)
    ids, lengths, dense = request([5, 6, 7], [[3, 1]])
    wanted = model(*request([5, 6, 7], [[3, 1]] * 3))["click"]
    torch.testing.assert_close(model.rank(ids, lengths, dense)["click"], wanted)
    assert wanted.abs().min() > 0


def test_lists_leave_out_what_was_seen():
    model = made(ENTRIES, evaluate={"seen": "past"})
    items, scores = model.top(*request([None, None], [[1, 6], [1, 2]]), 2)
    assert items.tolist() == [[5, 0], [6, 5]]
    assert scores.tolist() == [[0.25, -np.inf], [1.125, 0.25]]


def test_later_keys_count_what_earlier_ones_leave_them():
    rest = (np.array([1, 2, 3]), np.array([0.5, 0.25, 1.0]))
    scores = made(ENTRIES, rest=rest).of_all(*request([None] * 2, [[1, 9, 2], [1, 3]]))
    # The history's order is that of the keys: 1 has the weight 1/4, 9 is no key, 2 has 1, and half of it is left.
    torch.testing.assert_close(scores[0], torch.tensor([0.125, 0.0625 + 0.5, 0.0]))
    torch.testing.assert_close(scores[1], torch.tensor([0.25 - 0.25, 0.125, 0.5 * 0.75]))


def test_items_of_a_history_weigh_less_with_age():
    model = {"kind": "item_cf", "key": "item", "history": "past", "times": "when", "now": "now", "unit": "ms"}
    aged = made(ENTRIES, model=model | {"history_half_life": 2.0})
    ids, lengths, _ = request([6, 6], [[1, 2], [2]])
    hour = 3_600_000
    ids |= {"when": torch.tensor([0, 2 * hour, 9 * hour]), "now": torch.tensor([4 * hour])}
    lengths |= {"when": torch.tensor([2, 1]), "now": torch.tensor([1, 0])}  # the second row's age is not known
    torch.testing.assert_close(aged(ids, lengths, {})["click"], torch.tensor([0.25 * 0.25 + 0.5 * 1.0, 1.0]))
    lengths["when"] = torch.tensor([1, 2])
    with pytest.raises(ValueError, match="one time of each"):
        aged(ids, lengths, {})


def test_a_slice_lies_in_larger_ones_and_one_without_a_value_has_no_key():
    features = {"item": {"type": "id"}, "city": {"type": "id"}, "hour": {"type": "hour", "unit": "s"}}
    model = {"kind": "popular", "key": "item", "by": ["city", "hour"]}
    keys = torch.jit.script(
        SliceKeys(load_recipe({**RECIPE, "features": features, "model": model}), "item", ["city", "hour"])
    )
    ids = {"item": torch.arange(4), "city": torch.tensor([7, 7, 8]), "hour": torch.tensor([3600, 7300, 3700])}
    lengths = {"item": torch.ones(4), "city": torch.tensor([1, 1, 1, 0]), "hour": torch.tensor([1, 1, 0, 1])}
    found, counts, weights = keys(ids, {name: part.long() for name, part in lengths.items()}, {})
    assert counts.tolist() == [3, 3, 2, 1]
    first, second, third, last = found.split(counts.tolist())
    assert first[0] != second[0]
    assert (first[1:] == second[1:]).all()
    assert third[0] not in first
    assert {int(part[-1]) for part in (first, second, third, last)} == {0}
    assert len(set(first.tolist())) == 3
    assert (weights == 1).all()
