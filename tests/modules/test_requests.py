"""Rows that share a user's features: what is learned is that of flat rows, and the user's side is computed once."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from livetrain.modules.layers import compiled
from livetrain.modules.model import Model
from livetrain.modules.network import REGULARISER, TARGETS
from livetrain.modules.serving.proof import prove
from livetrain.trainers.train import compiled_layers
from tests import twins
from tests.cases import often
from tests.shared_rows import USER, shared

ATTENTION = [{"query": ["movie"], "events": ["history"], "side": ["rating"]}]
TWO = [{"query": ["movie"], "events": ["history"]}, {"query": ["movie"], "events": ["watched"]}]
WATCHED = {"features__watched": {"type": "sequence", "table": "movie", "max_length": 6}}
BAG = {
    "features__tags": {"type": "bag", "table": "tag", "max_length": 4, "pooling": "sqrtn"},
    "features__clock": {"type": "bag", "table": "movie", "max_length": 4, "pooling": "max"},
    "tables__tag": {"rows": 40, "dim": 8, "sharding": "row_wise"},
}
VECTORS = {
    "features__picture": {"type": "vector", "width": 3},
    "features__history": {"type": "sequence", "table": "movie", "max_length": 6, "vectors": "p", "like": "picture"},
}
CROSS = {
    "features__pair": {"type": "cross", "of": ["user", "movie"], "table": "user"},
    "features__quarter": {"type": "bucket", "column": "x", "table": "rating", "bounds": [-1, 0, 1]},
}
TIMES = {"features__history__times": "when", "features__history__until": "now"}
TWIN = {"kind": "twin", "search": ATTENTION, "nearest": 2, "heads": 2, "head_width": 4}
ONETRANS = {"kind": "onetrans", "width": 8, "newest": 3}
HSTU = {"kind": "hstu", "attention": ATTENTION, "width": 8, "length": 6}
FARM = {"kind": "farm", "width": 8, "heads": 2, "attention_units": [8], "levels": 1}
ALIGN = {"align": {"user": "user", "weight": 0.5}}
CASES: dict[str, dict[str, Any]] = {
    "din": {},
    "din, softmax": {"model__softmax": True},
    "din, ReLU": {"model__activation": "relu"},
    "din, a history of the candidate": {"users": ("user",)},
    "din in parts": {"model__activation": "relu", "train__accumulate": 2},
    "sasrec": {"model": {"kind": "sasrec", "attention": ATTENTION, "width": 8, "units": [8]}},
    "farm": {"model": {**FARM, "attention": ATTENTION}},
    "farm, two domains": {"model": {**FARM, **ALIGN, "attention": TWO}, **WATCHED, "drop": "rating"},
    "farm, the other domain the candidate's": {
        "model": {**FARM, **ALIGN, "attention": TWO},
        **WATCHED,
        "drop": "rating",
        "users": ("user", "history"),
    },
    "mmoe": {"model": {"kind": "mmoe", "attention": ATTENTION}, "tasks__like": {"label": "like"}},
    "mmoe over rankmixer": {
        "model": {"kind": "mmoe", "attention": ATTENTION, "trunk": {"kind": "rankmixer", "tokens": 4, "width": 8}}
    },
    "pepnet": {"model": {"kind": "pepnet", "attention": ATTENTION, "domain": ["rate"], "personal": ["user", "movie"]}},
    "stem": {"model": {"kind": "stem", "attention": ATTENTION}},
    "hstu": {"model": HSTU},
    "twin": {"model": TWIN},
    "onetrans": {"model": {**ONETRANS, "attention": ATTENTION}},
    "onetrans, two histories": {"model": {**ONETRANS, "attention": TWO}, **WATCHED, "drop": "rating"},
    "onetrans, the other history the candidate's": {
        "model": {**ONETRANS, "attention": TWO},
        **WATCHED,
        "drop": "rating",
        "users": ("user", "history"),
    },
    "hstu, times": {"model": HSTU, **TIMES, "width": 1},
    "dnn": {"model": {"kind": "dnn", "units": [8]}, **BAG, "users": (*USER, "tags", "clock")},
    "dnn, a cross": {"model": {"kind": "dnn", "units": [8]}, **CROSS},
    "dnn, vectors of events": {"model": {"kind": "dnn", "units": [8]}, **VECTORS},
    "kfm": {"model": {"kind": "kfm"}},
    "ensemble": {"model": {"kind": "ensemble", "members": 2, "of": {"kind": "kfm", "l2": 0.1}}, **VECTORS},
    "lr, which knows no requests": {"model": {"kind": "lr"}},
    "lr in parts": {"model": {"kind": "lr"}, "train__accumulate": 3},
    "dssm": {
        "model": {"kind": "dssm", "key": "movie", "units": [8], "width": 4},
        "tasks": {"click": {"label": "label", "kind": "retrieval"}},
    },
}


def made(users: tuple[str, ...] = USER, drop: str = "", width: int = 3, **changes: Any):
    recipe = twins.recipe(**changes)
    if drop:
        tables = {name: table for name, table in recipe.tables.items() if name != drop}
        features = {name: feature for name, feature in recipe.features.items() if name != drop}
        recipe = recipe.model_copy(update={"tables": tables, "features": features})
    return recipe, shared(twins.batches(recipe, 1)[0], (*users, "watched"), width=width)


def learned(recipe, batch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the answer of a new model for a batch, and the gradients of some sum of it."""
    model = Model(recipe)
    logits = model(batch.ids, batch.dense, batch.weights, batch.vectors, batch.requests)
    real = batch.weights > 0
    if TARGETS in logits:
        real = real.repeat_interleave(logits.pop(TARGETS))
    logits = {task: logit if task == REGULARISER else logit[real] for task, logit in logits.items()}
    loss = torch.stack([(logit * torch.linspace(-1, 2, logit.numel())).sum() for logit in logits.values()]).sum()
    loss.backward()
    return logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


COMPILED = ("din", "din, softmax", "farm", "farm, two domains")
EACH = {name: (name, False) for name in CASES} | {f"{name}, compiled": (name, True) for name in COMPILED}
OFTEN = ["din, compiled", "farm, the other domain the candidate's", "dnn", "dnn, vectors of events", "dnn, a cross"]


@pytest.mark.parametrize(("name", "passes"), often(EACH, [*OFTEN, "sasrec", "lr, which knows no requests"]))
def test_requests_teach_what_their_rows_teach(name, passes):
    recipe, (flat, requests) = made(**CASES[name])
    if passes:
        compiled.use(compiled_layers.library())
    try:
        wanted, slopes = learned(recipe, flat)
        found, own = learned(recipe, requests)
    finally:
        compiled.use()
    for task, logit in wanted.items():
        torch.testing.assert_close(found[task], logit, atol=1e-6, rtol=1e-5)
    assert own.keys() == slopes.keys()
    for key, slope in slopes.items():
        torch.testing.assert_close(own[key], slope, atol=2e-5, rtol=1e-4, msg=key)
    # What an inverse index into torchrec's lookup would lose in silence: gradients of the user's tables.
    (user,) = (slope for key, slope in own.items() if key.endswith("user.weight"))
    assert user.abs().sum() > 0.1


RANKERS = ["hstu, times", "twin", "onetrans, two histories", "pepnet", "stem", "mmoe over rankmixer"]


@pytest.mark.parametrize("name", RANKERS)
@pytest.mark.some(3)
def test_the_exported_file_scores_and_ranks_alike(name):
    recipe, _ = made(**{"data__layout": "request", "data__candidates": 4, **CASES[name]})
    prove(recipe)


class _Shapes(TorchDispatchMode):
    """Records the shapes of all floating-point results."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else [out]:
            if isinstance(part, torch.Tensor) and part.is_floating_point():
                self.found.add(tuple(part.shape))
        return out


def work(recipe, batch, of: str) -> int:
    """Return the multiplications of the parts of a network whose names begin so, forward and back."""
    counter = FlopCounterMode(display=False)
    with counter:
        learned(recipe, batch)
    names = [name for name in counter.get_flop_counts() if name.startswith(f"Model.dense.network.{of}")]
    return sum(sum(counter.get_flop_counts()[name].values()) for name in names if name.count(".") == 3 + of.count("."))


@pytest.mark.parametrize(
    ("name", "part"), [("sasrec", "blocks.0"), ("onetrans", "bottom.spaces.0"), ("farm", "filters.0"), ("farm", "fuse")]
)
def test_a_history_is_encoded_once_per_request(name, part):
    recipe, (flat, requests) = made(**CASES[name])
    users = requests.requests.size
    lengths = requests.ids["history"].lengths()[:users]
    alone = work(recipe, _rows(requests, flat), part)
    assert 0 < work(recipe, requests, part) == alone < work(recipe, flat, part) / 2
    assert int(lengths.sum()) * 2 < int(flat.ids["history"].lengths().sum())


def test_hstu_takes_a_request_s_events_through_its_layers_once():
    recipe, (_, requests) = made(**CASES["hstu"])
    with _Shapes() as shapes:
        learned(recipe, requests)
    events, rows = int(requests.ids["history"].lengths().sum()), len(requests.rows)
    assert {shape[0] for shape in shapes.found if shape[1:] == (4 * 8,)} == {events, rows, 8}  # and weights


def _rows(requests, flat):
    """Return a flat batch with one row of each request."""
    of = requests.requests.of.tolist()
    first = torch.tensor([of.index(number) for number in range(requests.requests.size)])
    keys = list(flat.ids.keys())
    lists = {key: [flat.ids[key].to_dense()[row] for row in first.tolist()] for key in keys}
    ids = twins._keyed(
        keys, [torch.cat(lists[k]) for k in keys], [torch.tensor([len(row) for row in lists[k]]) for k in keys]
    )
    parts = {name: getattr(flat, name)[first] for name in ("dense", "labels", "weights", "rows")}
    return type(flat)(ids=ids, **parts)


def test_compiled_passes_read_a_request_s_events_where_they_are(monkeypatch):
    """Pairs of a candidate and an event are the candidates' work; for them events are neither copied nor looked up."""
    recipe, (flat, requests) = made()
    library, calls = compiled_layers.library(), []
    call = compiled.Native.call
    monkeypatch.setattr(compiled.Native, "call", lambda self, *given: (calls.append(given), call(self, *given))[1])
    compiled.use(library)
    try:
        with _Shapes() as shapes:
            learned(recipe, requests)
    finally:
        compiled.use()
    pairs, events = requests.requests.keys["history"], int(requests.ids["history"].lengths().sum())
    assert 2 * events < pairs == int(flat.ids["history"].lengths().sum())
    width = 8 + 4
    for name in ("first_forward", "first_backward", "pool_forward", "pool_backward"):
        (given,) = (given for given in calls if given[0] == name)
        assert (events, width) in [tuple(part.shape) for part in given if isinstance(part, torch.Tensor)]
    assert not any(shape[:1] == (pairs,) and shape[1:] in [(width,), (8,), (4,)] for shape in shapes.found)
