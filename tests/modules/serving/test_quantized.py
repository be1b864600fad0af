import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from livetrain.modules.serving import quantized
from livetrain.modules.serving.quantized import ByteTable, FloatTable, store

FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
TABLES = st.integers(1, 3).flatmap(lambda k: st.lists(st.lists(FLOATS, min_size=4 * k, max_size=4 * k), min_size=1))


def everything(table: torch.nn.Module) -> torch.Tensor:
    return table(torch.arange(table.rows))


def normal(rows: int, dim: int = 16) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)) * 0.1


@given(TABLES.filter(lambda rows: len({len(row) for row in rows}) == 1))
@settings(max_examples=200)
def test_no_number_is_off_by_more_than_half_a_step_of_its_row(rows):
    weight = torch.tensor(rows)
    half = (weight.amax(1) - weight.amin(1)).double() / 255 / 2
    rounding = weight.abs().amax(1) * 2.0**-22
    off = (everything(ByteTable(weight)).double() - weight.double()).abs().amax(1)
    assert (off <= half + rounding).all()


def test_the_bound_is_reached_so_the_step_is_no_smaller_than_said():
    weight = torch.tensor([[0.0, 255.0, 10.5, 3.0]])
    assert everything(ByteTable(weight)).tolist() == [[0.0, 255.0, 10.0, 3.0]]


@pytest.mark.parametrize("value", [0.0, -3.7, 1e-30, 1e30])
def test_a_constant_row_is_kept_exactly(value):
    weight = torch.full((2, 4), value)
    assert torch.equal(everything(ByteTable(weight)), weight)


def test_the_numbers_are_those_of_torchs_own_8_bit_rows():
    weight = normal(5000)
    table = ByteTable(weight)
    packed = torch.ops.quantized.embedding_bag_byte_prepack(weight)
    assert torch.equal(packed[:, 16:].view(torch.float32), table.affine)
    steps = packed[:, :16].int() - table.steps.int()
    assert steps.abs().max() <= 1  # torch multiplies by the step's inverse, which moves a rare tie
    assert (steps != 0).float().mean() < 1e-3
    mine = torch.cat([table.steps, table.affine.view(torch.uint8)], 1)
    assert torch.equal(torch.ops.quantized.embedding_bag_byte_unpack(mine), everything(table))


def test_a_float16_table_quantises_like_its_numbers():
    weight = normal(50).half()
    assert torch.equal(everything(ByteTable(weight)), everything(ByteTable(weight.float())))
    assert torch.equal(everything(store(weight, "float16")), weight.float())


def test_blocks_change_nothing(monkeypatch):
    weight = normal(50)
    whole = ByteTable(weight)
    monkeypatch.setattr(quantized, "_BLOCK", 7)
    blocks = ByteTable(weight)
    assert torch.equal(whole.steps, blocks.steps)
    assert torch.equal(whole.affine, blocks.affine)


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest float tensor that an operation makes outside the memory of `given`."""

    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()
        self.given = given.untyped_storage().data_ptr()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple) else (out,):
            if made.is_floating_point() and made.untyped_storage().data_ptr() != self.given:
                self.bytes = max(self.bytes, made.nbytes)
        return out


def test_a_huge_table_is_never_held_twice_as_floats(monkeypatch):
    weight = normal(4000)
    monkeypatch.setattr(quantized, "_BLOCK", 100)
    with Largest(weight) as largest:
        ByteTable(weight)
    assert 0 < largest.bytes <= 4000 * 2 * 4  # scales and offsets are all that is kept in floats


def test_a_table_that_stays_as_it_is_stays_where_it_is():
    weight = normal(8)
    assert store(weight, "none").weight.data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("quantize", ["none", "float16", "int8"])
def test_every_table_scripts_and_gives_float32(quantize):
    table = store(normal(30), quantize)
    scripted = torch.jit.script(table)
    rows = torch.tensor([29, 0, 0, 7])
    for some in (rows, rows[:0]):
        found = scripted(some)
        assert found.dtype == torch.float32
        assert torch.equal(found, table(some))
    assert isinstance(table, ByteTable if quantize == "int8" else FloatTable)
