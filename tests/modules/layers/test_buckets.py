import torch
from hypothesis import given
from hypothesis import strategies as st

from livetrain.modules.layers import buckets as under_test
from livetrain.modules.layers.buckets import buckets, ladder, pad, paired, present, unpad

LENGTHS = st.lists(st.sampled_from([0, 1, 2, 7, 8, 9, 10, 11, 16, 17, 33, 70]), min_size=1, max_size=8)
SIZES = ladder(4, torch.zeros(1)).tolist()


def events(lengths: list[int], seed: int = 0) -> torch.Tensor:
    return torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(seed))


def test_sizes_waste_little():
    assert SIZES[:10] == [8, 10, 12, 14, 16, 20, 24, 28, 32, 40]
    octaves = ladder(1, torch.zeros(1)).tolist()
    assert octaves[:5] == [8, 16, 32, 64, 128]
    assert octaves[-1] == SIZES[-1] == 2**23
    for length in range(8, 1001):
        assert min(size for size in SIZES if size >= length) < 1.25 * length


@given(LENGTHS)
def test_every_row_lies_in_the_group_of_its_own_length(lengths):
    values = events(lengths)
    layout = buckets(torch.tensor(lengths), len(values))
    assert sorted(layout.rows.tolist()) == [row for row, length in enumerate(lengths) if length]
    parts = values.split(lengths)
    rows = iter(layout.rows.tolist())
    for block, mask, size in zip(pad(values, layout), present(layout), layout.sizes, strict=True):
        for padded, there in zip(block, mask, strict=True):
            row = next(rows)
            assert size == min(s for s in SIZES if s >= lengths[row])
            assert there.tolist() == [place < lengths[row] for place in range(size)]
            assert torch.equal(padded[there], parts[row])
            assert not padded[~there].any()


@given(LENGTHS)
def test_out_of_the_groups_comes_what_went_in(lengths):
    """Where no row has an event, too: the result hangs in the graph."""
    values = events(lengths).requires_grad_()
    layout = buckets(torch.tensor(lengths).int(), len(values))
    back = unpad([2 * block for block in pad(values, layout)], layout, values[:0])
    assert torch.equal(back, 2 * values)
    back.sum().backward()
    assert torch.equal(values.grad, torch.full_like(values, 2.0))


@given(st.lists(st.tuples(st.sampled_from([0, 1, 8, 9, 40]), st.sampled_from([0, 3, 16, 17])), min_size=1, max_size=8))
def test_pairs_meet_in_the_same_place(pairs):
    one, two = ([pair[i] for pair in pairs] for i in (0, 1))
    a, b = events(one), events(two, 1)
    layouts = paired(torch.tensor(one), len(a), torch.tensor(two), len(b))
    assert layouts[0].counts == layouts[1].counts
    assert torch.equal(layouts[0].rows, layouts[1].rows)
    kept = [row for row, pair in enumerate(pairs) if all(pair)]
    assert sorted(layouts[0].rows.tolist()) == kept
    for values, lengths, layout in zip((a, b), (one, two), layouts, strict=True):
        back = unpad(pad(values, layout), layout, values[:0]).split(lengths)
        for row, part in enumerate(values.split(lengths)):
            assert torch.equal(back[row], part if row in kept else torch.zeros_like(part))


def test_scripted():
    lengths = [3, 0, 12, 100, 3]
    values = events(lengths)
    for name in ("buckets", "paired"):
        function = getattr(under_test, name)
        arguments = (torch.tensor(lengths), len(values)) * (2 if name == "paired" else 1)
        expected, actual = function(*arguments), torch.jit.script(function)(*arguments)
        for ours, theirs in zip(*((x if name == "paired" else [x]) for x in (expected, actual)), strict=True):
            assert torch.equal(ours.place, theirs.place)
            assert (ours.counts, ours.sizes) == (theirs.counts, theirs.sizes)
