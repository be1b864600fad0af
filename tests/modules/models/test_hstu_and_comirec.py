"""What HSTU and ComiRec make of a history, against their equations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.candidates import Candidates
from livetrain.modules.layers.pointwise import clocks
from livetrain.modules.model import Model
from livetrain.modules.models.comirec import ComiRecBody, ComiRecConfig
from livetrain.modules.models.hstu_retrieval import HSTUBody, HSTURetrievalConfig
from livetrain.trainers.train import compiled_dense
from tests import twins
from tests.modules.layers.test_pointwise import layer_row_by_row

HISTORY = [{"query": ["movie"], "events": ["history"], "side": ["rating"]}]
RETRIEVAL = {"click": {"label": "label", "kind": "retrieval"}}
TIMES = {"features__history__times": "when", "features__history__until": "now"}
ROWS = st.lists(st.integers(0, 9), min_size=1, max_size=5)


@pytest.mark.parametrize("seen_from", ["next", "event"])
def test_hstu_s_body_is_its_layers_with_places_and_times(seen_from):
    torch.manual_seed(0)
    config = HSTURetrievalConfig(attention=[{"query": ["movie"], "events": ["history"]}], length=5, seen_from=seen_from)
    inputs = Inputs({"movie": 4}, {"history": 4}, [], timed=["history"])
    body = HSTUBody(config, inputs, 4).eval().double()
    for parameter in body.parameters():
        torch.nn.init.normal_(parameter)
    count, events = torch.tensor([3, 0, 7]), torch.randn(10, 4, dtype=torch.float64)
    gaps = torch.exp(16 * torch.rand(10)).floor()
    wanted = 2 * events + body.places.vectors[torch.tensor([0, 1, 2, 0, 1, 2, 3, 4, 4, 4])]
    for layer in body.layers:
        wanted = layer_row_by_row(layer, wanted, count, clocks(gaps, count, seen_from == "next"))
    found = body(events, count, {"(gaps of) history": gaps.unsqueeze(1)}, {})
    torch.testing.assert_close(found, wanted)
    later = body(events, count, {"(gaps of) history": (gaps + 1e6 * (torch.arange(10) == 9)).unsqueeze(1)}, {})
    assert torch.equal(later[:9], found[:9])
    assert torch.equal(later[9], found[9]) == (seen_from == "event")  # the request's time is the newest event's gap


def interests_of(body: ComiRecBody, events: torch.Tensor) -> torch.Tensor:
    """Return the interests (K, d) of one row's events, by the paper's formula."""
    scores = torch.tanh((events + body.positions[: len(events)]) @ body.hidden.weight.T) @ body.out.weight.T
    return scores.softmax(0).T @ events


@settings(max_examples=10, deadline=None)
@given(ROWS)
def test_comirec_knows_the_interests_behind_every_event(rows):
    torch.manual_seed(0)
    attention = [{"query": ["movie"], "events": ["history"]}]
    body = ComiRecBody(ComiRecConfig(attention=attention, interests=3, positions=9), 4).eval()
    torch.nn.init.normal_(body.positions)
    torch.nn.init.normal_(body.hidden.weight)
    events, count = torch.randn(sum(rows), 4), torch.tensor(rows)
    found = body(events, count, {}, {})
    assert found.shape == (sum(rows), 3, 4)
    start = 0
    for length in rows:
        for stop in range(1, length + 1):
            own = events[start : start + stop]
            torch.testing.assert_close(found[start + stop - 1], interests_of(body, own), atol=1e-5, rtol=1e-4)
        start += length


def test_a_target_teaches_the_interest_that_is_nearest_to_it():
    network = Model(twins.recipe(model={"kind": "comirec", "attention": HISTORY}, tasks=RETRIEVAL)).dense.network
    torch.manual_seed(0)
    states = torch.randn(6, 4, 8, requires_grad=True)
    targets, keys = torch.randn(6, 8), torch.arange(6)
    candidates = Candidates(targets, keys, torch.zeros(6), torch.ones(6, dtype=torch.bool), 0)
    found = network._logits(states, targets, keys, torch.ones(6, dtype=torch.bool), candidates)
    nearest = torch.einsum("pkd,pd->pk", states, targets).argmax(1)
    chosen = states.detach()[torch.arange(6), nearest]
    scores = chosen @ targets.T
    others = scores.masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf)
    torch.testing.assert_close(found, scores.diagonal() - others.logsumexp(1))
    found.sum().backward()
    taught = torch.nn.functional.one_hot(nearest, 4).bool()
    assert (states.grad[taught].abs().sum(1) > 0).all()
    assert not states.grad[~taught].any()


def test_heads_that_do_not_divide_the_table_are_named():
    with pytest.raises(BadInput, match="model.heads: 3 heads do not divide the 8 columns of the items' table"):
        Model(twins.recipe(model={"kind": "hstu_retrieval", "attention": HISTORY, "heads": 3}, tasks=RETRIEVAL))


@pytest.mark.slow
def test_comirec_trains_without_a_graph_and_says_so():
    """Rows are padded in groups, of which only their lengths tell how many there are."""
    recipe = twins.recipe(model={"kind": "comirec", "attention": HISTORY}, tasks=RETRIEVAL, train__compile=True)
    with pytest.raises(
        BadInput, match="train.compile: model.kind 'comirec' cannot be compiled.*leave train.compile out"
    ):
        compiled_dense.check(recipe)


def test_scores_of_any_size_leave_numbers():
    torch.manual_seed(0)
    attention = [{"query": ["movie"], "events": ["history"]}]
    body = ComiRecBody(ComiRecConfig(attention=attention, interests=2, positions=9), 4).eval()
    torch.nn.init.constant_(body.hidden.weight, 5.0)
    torch.nn.init.constant_(body.out.weight, 20.0)  # scores of 320, whose exp is no float32
    events = torch.tensor([[1.0] * 4, [-1.0] * 4, [1.0] * 4]).requires_grad_()
    found = body(events, torch.tensor([3]), {}, {})
    torch.testing.assert_close(found[2], torch.ones(2, 4))  # of the two that weigh most
    found.sum().backward()
    assert events.grad.isfinite().all()


@pytest.mark.parametrize(("kind", "key"), [("hstu_retrieval", "length"), ("comirec", "positions")])
def test_a_history_has_a_place_for_each_event(kind, key):
    model = {"kind": kind, "attention": HISTORY, key: 3}
    with pytest.raises(BadInput, match=rf"model.{key}: 3 is less than the max_length \d+ of 'history'"):
        Model(twins.recipe(model=model, tasks=RETRIEVAL), device="meta", tables_device="meta")


def test_an_item_has_one_table():
    model = {"kind": "sasrec_retrieval", "attention": [{"query": ["user"], "events": ["history"], "side": ["rating"]}]}
    recipe = twins.recipe(model=model, tasks=RETRIEVAL, tables__user__dim=8)
    with pytest.raises(BadInput, match=r"query 'user' is of table user and its events 'history' are of movie"):
        Model(recipe, device="meta", tables_device="meta")
