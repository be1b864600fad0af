import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.modules.tables.hashing import IdHash, mix, row

ANY_ID = st.integers(-(2**63), 2**63 - 1)
ANY_IDS = st.lists(ANY_ID | st.sampled_from([0, 1, -1, -(2**63), 2**63 - 1]), max_size=20)


def splitmix(value: int) -> int:
    """The finaliser in Python's unbounded integers."""
    z = value % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) % 2**63


@given(ANY_IDS)
def test_mix_is_splitmix64(ids):
    given_ids = torch.tensor(ids, dtype=torch.int64)
    assert mix(given_ids).tolist() == [splitmix(i) for i in ids]
    assert given_ids.tolist() == ids  # the caller's tensor is left alone


def test_published_vectors():
    # The first outputs of the splitmix64 generator with seed 0: its state advances by the golden ratio.
    state = [k * 0x9E3779B97F4A7C15 % 2**64 for k in (1, 2, 3)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in state])
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix(signed).tolist() == [o % 2**63 for o in outputs]


@given(ANY_IDS, st.integers(1, 2**40), st.integers(1, 2**20), st.booleans())
def test_tables_grow_by_integer_factors(ids, rows, factor, modulo):
    ids = torch.tensor(ids, dtype=torch.int64)
    small, large = row(ids, rows, modulo), row(ids, rows * factor, modulo)
    assert torch.equal(large % rows, small)
    assert bool(((small >= 0) & (small < rows)).all())


def test_modulo_keeps_small_ids():
    assert row(torch.tensor([0, 6, 7, -1]), 7, True).tolist() == [0, 6, 0, 6]


def test_consecutive_ids_fill_a_table_evenly():
    rows = 1024
    counts = torch.bincount(row(torch.arange(64 * rows), rows, False), minlength=rows)
    # Chi-squared of a fair hash is rows - 1 = 1023 with deviation 45.
    chi_squared = float(((counts - 64) ** 2 / 64).sum())
    assert 1023 - 5 * 45 < chi_squared < 1023 + 5 * 45


def batch(ids: list[list[list[int]]], keys: list[str], weighted: bool = False) -> KeyedJaggedTensor:
    values = [i for feature in ids for cell in feature for i in cell]
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.tensor(values, dtype=torch.int64),
        lengths=torch.tensor([len(cell) for feature in ids for cell in feature]),
        weights=torch.arange(len(values)).float() if weighted else None,
    )


@given(
    st.integers(1, 4).flatmap(
        lambda rows: st.lists(
            st.lists(st.lists(ANY_ID, max_size=3), min_size=rows, max_size=rows), min_size=3, max_size=3
        )
    ),
    st.booleans(),
)
def test_id_hash_replaces_values_only(ids, weighted):
    keys, rows, modulo = ["user", "movie", "seen"], [10, 7, 1000], [False, True, False]
    features = batch(ids, keys, weighted)
    before = features.values().clone()
    hashed = IdHash(keys, rows, modulo)(features)
    expected = [
        i % rows[f] if modulo[f] else splitmix(i) % rows[f]
        for f, feature in enumerate(ids)
        for cell in feature
        for i in cell
    ]
    assert hashed.values().tolist() == expected
    assert torch.equal(features.values(), before)
    assert hashed.keys() == keys
    assert hashed.stride() == features.stride()
    assert torch.equal(hashed.lengths(), features.lengths())
    assert torch.equal(hashed.offsets(), features.offsets())
    assert hashed.weights_or_none() is None
    parts = hashed.split([1, 2])
    assert parts[1].values().tolist() == expected[sum(len(cell) for cell in ids[0]) :]


def test_id_hash_scripts_and_has_no_state():
    keys = ["user", "seen"]
    module = IdHash(keys, [10, 1000], [True, False])
    scripted = torch.jit.script(module)
    for ids in ([[[3], [], [-9]], [[1, 2], [5], []]], [[[], []], [[], []]]):
        features = batch(ids, keys)
        assert torch.equal(scripted(features).values(), module(features).values())
        assert torch.equal(scripted(features).lengths(), features.lengths())
    assert module.state_dict() == {}
    assert list(module.parameters()) == []


def test_id_hash_refuses_other_features():
    with pytest.raises(ValueError, match=r"\['a', 'b'\].*\['b', 'a'\]"):
        IdHash(["a", "b"], [3, 4], [False, False])(batch([[[1]], [[2]]], ["b", "a"]))
    with pytest.raises(ValueError, match="one per feature"):
        IdHash(["a", "b"], [3], [False, False])
