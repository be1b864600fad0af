import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from livetrain.configs.registry import parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import compiled, others
from livetrain.modules.layers.align import Align
from livetrain.modules.layers.others import logsumexp_of_others, softplus_of_others
from livetrain.modules.models.registry import network
from livetrain.trainers.train import compiled_layers

ROWS, COLUMNS, WIDTH = 6, 14, 3


def batch(
    rows: int = ROWS, columns: int = COLUMNS, dtype: torch.dtype = torch.float64, width: int = WIDTH
) -> tuple[torch.Tensor, ...]:
    """Row 0 has no other column, for all that count are of its mark; column 3 is left out."""
    generator = torch.Generator().manual_seed(0)
    u, v = (4 * torch.randn(n, width, generator=generator, dtype=dtype) for n in (rows, columns))
    bias = torch.randn(columns, generator=generator, dtype=dtype)
    marks = torch.randint(1, 4, (columns,), generator=generator)
    bias[3] = -torch.inf
    return u, v, bias, torch.randint(1, 4, (rows,), generator=generator), marks


def plain(u, v, bias, mark, marks) -> torch.Tensor:
    scores = (u @ v.t() + bias).masked_fill(mark.unsqueeze(1) == marks, -torch.inf)
    none = scores.isneginf().all(1)
    return torch.where(none, others.NEVER, scores.masked_fill(none.unsqueeze(1), 0.0).logsumexp(1))


def plain_softplus(u, v, bias, mark, marks) -> torch.Tensor:
    scores = (u @ v.t() + bias).masked_fill(mark.unsqueeze(1) == marks, -torch.inf)
    return torch.nn.functional.softplus(scores).sum(1)


def both(function, u, v, *rest) -> tuple[torch.Tensor, ...]:
    """The result, and the gradients of a sum in which every row weighs otherwise."""
    u, v = u.clone().requires_grad_(), v.clone().requires_grad_()
    found = function(u, v, *rest)
    weights = torch.linspace(-1, 2, len(found), dtype=found.dtype)
    return found.detach(), *torch.autograd.grad((found * weights).sum(), (u, v))


@pytest.mark.parametrize("cells", [1, ROWS * 5, 2**22])
def test_blocks_of_any_size_equal_the_whole_matrix(monkeypatch, cells):
    monkeypatch.setattr(others, "CELLS", cells)
    u, v, bias, mark, marks = batch()
    for case in (marks, torch.where(marks == mark[0], marks, mark[0])):  # the second leaves row 0 nothing
        given = (u, v, bias, mark, case)
        # PyTorch's softplus(x) is x above 20.
        for ours, theirs, off in ((logsumexp_of_others, plain, 1e-12), (softplus_of_others, plain_softplus, 1e-7)):
            for found, wanted in zip(both(ours, *given), both(theirs, *given), strict=True):
                torch.testing.assert_close(found, wanted, rtol=off, atol=off)
    assert float(logsumexp_of_others(u, v, bias, mark, case)[0]) == others.NEVER
    assert float(softplus_of_others(u, v, bias, mark, case)[0]) == 0
    inputs = (u.requires_grad_(), v.requires_grad_())
    for function in (logsumexp_of_others, softplus_of_others):
        assert torch.autograd.gradcheck(lambda a, b, f=function: f(a, b, bias, mark, marks), inputs)


def test_equals_the_whole_matrix_in_float32(monkeypatch):
    monkeypatch.setattr(others, "CELLS", 64 * 50)
    u, *rest = batch(64, 512, torch.float32)  # scores of up to 12, as cosines by a temperature of 0.1 have
    for found, wanted in zip(both(logsumexp_of_others, u / 16, *rest), both(plain, u / 16, *rest), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("threads", [1, 2])
def test_passes_equal_the_whole_matrix(monkeypatch, threads):
    """Of several blocks of columns, tiles of rows and threads; a sum of nothing, and what is not a number."""
    library, called = compiled_layers.library(torch.float64), []
    call = library.call
    monkeypatch.setattr(library, "call", lambda *given: (called.append(given[0]), call(*given)))
    before = torch.get_num_threads()
    with compiled.unused():
        compiled.use(library)
        try:
            torch.set_num_threads(threads)
            for rows, columns in ((110, 1100), (1, 1), (3, 530), (600, 40)):
                u, v, bias, mark, marks = batch(rows, columns + 3, width=16)
                for case in (marks, torch.where(marks == mark[0], marks, mark[0])):
                    given = (u, v, bias, mark, case)
                    for found, wanted in zip(both(logsumexp_of_others, *given), both(plain, *given), strict=True):
                        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
                assert float(logsumexp_of_others(*given)[0]) == others.NEVER
            u[0, 0] = torch.nan
            assert logsumexp_of_others(u, v, bias, mark, marks)[:2].isnan().tolist() == [True, False]
        finally:
            torch.set_num_threads(before)
    assert called.count("others_backward") == 8


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest tensor has that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


def test_no_matrix_of_all_scores_ever_exists(monkeypatch):
    """Forward and backward: what remains is a block of scores, or one vector per column."""
    monkeypatch.setattr(others, "CELLS", 32 * 16)
    given = batch(32, 1024, torch.float32)
    largest = {}
    for function in (plain, logsumexp_of_others, softplus_of_others):
        with Largest() as seen:
            both(function, *given)
        largest[function] = seen.elements
    assert largest == {plain: 32 * 1024, logsumexp_of_others: 1024 * WIDTH, softplus_of_others: 1024 * WIDTH}


SIZE = 256  # rows of one batch: the matrix has 65,536 scores
INPUTS = Inputs({"user": 4, "item": 4}, {}, [])


def aligned() -> torch.Tensor:
    one, other = (torch.randn(SIZE, 4, requires_grad=True) for _ in range(2))
    return Align(1.0, 0.1, 0, True)(one, other, torch.arange(SIZE) % 50, torch.ones(SIZE) > 0)


def towers() -> torch.Tensor:
    config = parse_model({"kind": "dssm", "key": "item", "units": [4], "width": 4, "log_q": False})
    model = network("dssm")(config, INPUTS, {"click": Task(label="click", kind="retrieval")})
    values = {name: torch.randn(SIZE, 4, requires_grad=True) for name in INPUTS.ids}
    ones = torch.ones(SIZE, dtype=torch.long)
    return model(values, dict.fromkeys(values, ones), torch.zeros(SIZE, 0), ones.float(), torch.arange(SIZE))["click"]


@pytest.mark.parametrize("loss", [aligned, towers])
def test_no_layer_makes_the_matrix_either(monkeypatch, loss):
    monkeypatch.setattr(others, "CELLS", SIZE * 8)
    with Largest() as seen:
        loss().sum().backward()
    assert seen.elements <= SIZE * 8


def towers_of(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """z and the gradient of the rows' vectors, as a rank has them that has these rows."""
    torch.manual_seed(0)
    config = parse_model({"kind": "dssm", "key": "item", "units": [4], "width": 4})
    model = network("dssm")(config, INPUTS, {"click": Task(label="click", kind="retrieval")})
    keys = torch.tensor([3, 4, 3, 5, 6, 4, 8, 9])
    values = {name: torch.randn(8, 4)[rows].requires_grad_() for name in INPUTS.ids}
    weights = torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 1])[rows]
    lengths = dict.fromkeys(values, torch.ones(len(weights), dtype=torch.long))
    z = model(values, lengths, torch.zeros(len(weights), 0), weights, keys[rows])["click"]
    (torch.nn.functional.softplus(-z) * weights).sum().backward()
    return z.detach(), values["item"].grad


def half() -> tuple[torch.Tensor, torch.Tensor]:
    others.CELLS = 12  # blocks of three columns
    try:
        return towers_of(slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4))
    finally:
        others.CELLS = 2**22


def test_two_ranks_equal_one(two_ranks):
    for found, wanted in zip(zip(*two_ranks.run(half), strict=True), towers_of(slice(0, 8)), strict=True):
        torch.testing.assert_close(torch.cat(found), wanted, rtol=1e-5, atol=1e-6)
