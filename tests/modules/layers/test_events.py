"""Layers around a row's events by compiled passes, against the same layers as they are written, in float64."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import attend, compiled, events, frequency, sequence
from livetrain.modules.layers.bottom import Attention as Part
from livetrain.modules.layers.domain import Domain
from livetrain.trainers.train import compiled_layers

ROWS = st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), min_size=1, max_size=5)


def both_ways(layer: nn.Module, tensors: list[Tensor], run: Callable[[], Tensor]) -> None:
    """Hold what `run` gives, and its gradients, by passes to that without."""
    found: dict[bool, list[Tensor]] = {}
    inputs = [*tensors, *layer.parameters()]
    library = compiled_layers.library(torch.float64)
    calls = []
    for by_passes in (False, True):
        with compiled.unused():
            if by_passes:
                compiled.use(library)
                with pytest.MonkeyPatch.context() as patch:
                    call = library.call
                    patch.setattr(library, "call", lambda *given, call=call: (calls.append(given[0]), call(*given)))
                    out = run()
                    gradients = torch.autograd.grad(weighed(out), inputs, allow_unused=True)
            else:
                out = run()
                gradients = torch.autograd.grad(weighed(out), inputs, allow_unused=True)
        found[by_passes] = [out, *(torch.zeros(0) if g is None else g for g in gradients)]
    assert calls
    for plain, passed in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(passed, plain, rtol=1e-9, atol=1e-10)


def weighed(out: Tensor) -> Tensor:
    return (out * torch.arange(out.numel(), dtype=out.dtype).view_as(out).cos()).sum()


def drawn(lengths: list[int], width: int = 32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(len(lengths))
    x = torch.randn(sum(lengths), width, generator=draw, dtype=torch.float64)
    return x.requires_grad_(), torch.tensor(lengths, dtype=torch.long)


@pytest.mark.parametrize(("heads", "causal"), [(2, False), (4, True)])
@settings(max_examples=10, deadline=None)
@given(ROWS)
def test_a_block(heads, causal, rows):
    torch.manual_seed(0)
    block = sequence.Block(32, heads, 0.0, causal).double().train()
    x, lengths = drawn([one for one, _ in rows])
    both_ways(block, [x], lambda: block(x, sequence.laid_out(lengths, len(x))))


@settings(max_examples=10, deadline=None)
@given(ROWS)
@example([(3, 0), (0, 2)])  # no row has events on both sides
@example([(0, 0), (0, 0)])
def test_events_that_look_across(rows):
    torch.manual_seed(0)
    cross = sequence.Cross(32, 2, 0.0).double().train()
    x, asks = drawn([one for one, _ in rows])
    y, answers = drawn([other for _, other in rows])

    def run() -> Tensor:
        one, other = sequence.laid_out_in_pairs(asks, len(x), answers, len(y))
        return cross(x, one, y, other)

    both_ways(cross, [x, y], run)


@pytest.mark.parametrize("cutoff", [1, 3, 0.5])
@settings(max_examples=8, deadline=None)
@given(ROWS)
def test_the_filter(cutoff, rows):
    torch.manual_seed(0)
    split = frequency.Split(32, cutoff, [8], 0.0).double().train()
    x, lengths = drawn([one for one, _ in rows])
    both_ways(split, [x], lambda: split(x, lengths))


def test_many_events_and_threads():
    """More events than a sum in float32 takes, rows of several tiles, and rows that threads share."""
    torch.manual_seed(0)
    block = sequence.Block(48, 3, 0.0, True).double().train()
    x, lengths = drawn([600, *[9] * 120, 0], 48)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        both_ways(block, [x], lambda: block(x, sequence.laid_out(lengths, len(x))))
    finally:
        torch.set_num_threads(before)


def test_events_of_any_width_enter_a_domain():
    torch.manual_seed(0)
    inputs = Inputs({"item": 20}, {"history": 20, "action": 5}, [])
    domain = Domain(Part(query=["item"], events=["history"], side=["action"]), inputs, 32).double().train()
    (x, lengths), (side, _) = drawn([3, 0, 60], 20), drawn([3, 0, 60], 5)
    values, counts = {"history": x, "action": side}, {"history": lengths, "action": lengths}
    both_ways(domain, [x, side], lambda: domain(values, counts)[0])


def test_attention_of_any_width_reads_rows_as_they_lie():
    q, lengths = drawn([5, 0, 90, 1], 10)
    wide, others = drawn([50, 3, 0, 1], 20)  # keys and values lie side by side
    k, v = wide.chunk(2, 1)
    both_ways(nn.Module(), [q, wide], lambda: attend.attend(q, k, v, lengths, others, 2, False))


def test_gradients_of_several_tasks_by_one_backward_pass():
    torch.manual_seed(0)
    block, split = sequence.Block(32, 2, 0.0, False).train(), frequency.Split(32, 3, [8], 0.0).train()
    x, lengths = drawn([20, 0, 7])
    x = x.detach().float().requires_grad_()
    inputs = [x, *block.parameters(), *split.parameters()]
    with compiled.unused():
        compiled.use(compiled_layers.library())
        out = block(split(x, lengths), sequence.laid_out(lengths, len(x)))
        tasks = torch.randn(3, *out.shape)
        found = torch.func.vmap(lambda task: torch.autograd.grad(out, inputs, task, retain_graph=True))(tasks)
        wanted = [torch.autograd.grad(out, inputs, task, retain_graph=True) for task in tasks]
    for all_, each in zip(found, zip(*wanted, strict=True), strict=True):
        torch.testing.assert_close(all_, torch.stack(each))


def test_what_passes_cannot_do_is_left_to_pytorch():
    """Dropout, widths that vectors do not fill, narrow types, and a graph that PyTorch compiles."""
    with compiled.unused():
        compiled.use(compiled_layers.library())
        x = torch.randn(4, 32)
        assert events.passes_for(x, 32) is not None
        assert events.passes_for(x, 24) is None
        assert events.passes_for(x.double(), 32) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert events.passes_for(x, 32) is None
            assert not attend.reads_rows(torch.tensor([4]))
        torch.manual_seed(0)
        block = sequence.Block(32, 2, 0.5, False).train()
        layout = sequence.laid_out(torch.tensor([4]), 4)
        torch.manual_seed(1)
        found = block(x, layout)
        torch.manual_seed(1)
        torch.testing.assert_close(found, block._as_written(x, layout))
        assert (found != block.eval()(x, layout)).any()
