"""Vectors that events carry, in the model: beside what, in which networks, and that sharded equals plain."""

import pytest
import torch
from pydantic import ValidationError

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.layers.bottom import Attention, BottomConfig, History
from livetrain.modules.model import Model
from livetrain.modules.serving.proof import prove
from livetrain.trainers.runtime import ranks
from tests import twins
from tests.trainers.train.test_sharding import compare, train_sharded


def made(**changes) -> Recipe:
    added = {
        "features__history__vectors": "pictures",
        "features__history__like": "picture",
        "features__picture": {"type": "vector", "width": 5, "normalise": True, "projection": 3},
        # A larger eps: see test_sharding.
        "optimizers__sparse__eps": 1e-3,
    }
    return twins.recipe(**(added | changes))


HISTORY = [{"query": ["movie"], "events": ["history"], "side": ["rating"]}]
TWO_TASKS = {"tasks__like": {"label": "like", "weight": 0.5}, "gradients": {"kind": "pcgrad"}}
SHARED = {"kind": "shared_bottom", "attention": HISTORY, "attention_units": [8], "tower_units": [8]}
CASES = {
    "DIN": {},
    "as they are, replicated": {"features__picture__projection": None, "tables__movie__sharding": "data_parallel"},
    "SASRec": {"model": {"kind": "sasrec", "attention": HISTORY, "width": 8, "units": [8], "blocks": 1}},
    "in parts": {"model__activation": "relu", "train__accumulate": 4},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_one_rank_equals_plain(changes):
    with ranks.alone(cuda=False):
        found = train_sharded(made(**changes))
    compare(found, made(**changes), 2e-6)


@pytest.mark.parametrize("name", ["DIN", "SASRec"])
def test_two_ranks_equal_plain(two_ranks, name):
    first, second = two_ranks.run(train_sharded, made(**CASES[name]))
    compare(first, made(**CASES[name]), 2e-6)
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])


@pytest.mark.slow
def test_combined_gradients_are_the_same_on_two_ranks(two_ranks):
    recipe = made(model=SHARED, optimizers__sparse__kind="sgd", **TWO_TASKS)
    with ranks.alone(cuda=False):
        one = train_sharded(recipe)
    two = two_ranks.run(train_sharded, recipe)[0]
    for part in ("dense", "tables"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, atol=2e-6, rtol=0)


NETWORKS = {
    "dnn": {"kind": "dnn", "units": [8]},
    "dcnv2": {"kind": "dcnv2", "units": [8]},
    "farm": {"kind": "farm", "attention": HISTORY, "width": 8, "tower_units": [8], "expert_units": [8]},
    "mmoe": SHARED | {"kind": "mmoe", "expert_units": [8]},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_that_reads_sequences_is_proved_with_wider_events(name):
    recipe = made(model=NETWORKS[name])
    assert Model(recipe).inputs.sequences == {"history": 8 + 3, "rating": 4}
    prove(recipe)


def test_a_candidate_faces_events_with_its_own_vector():
    inputs = Inputs({"movie": 4}, {"history": 6, "rating": 2}, ["rate", "picture", "picture"], {"history": "picture"})
    history = History(Attention(**HISTORY[0]), BottomConfig(kind="din", attention_units=[8]), inputs).eval()
    assert history.width == 6 + 2
    lengths = torch.tensor([2, 0, 1])
    values = {"movie": torch.randn(3, 4), "history": torch.randn(3, 6), "rating": torch.randn(3, 2)}
    counts = {"movie": torch.ones(3, dtype=torch.long), "history": lengths, "rating": lengths}
    dense = torch.randn(3, 3)
    found = history(values, counts, dense, None)
    query, segment = torch.cat([values["movie"], dense[:, 1:]], 1), jagged.segments(lengths, 3)
    for row in range(3):
        own = segment == row
        alone = history.unit(query[[row]], values["history"][own], values["rating"][own], lengths[[row]], None)
        torch.testing.assert_close(found[[row]], alone)


REFUSED = {
    r"vectors: name in `like` the feature of type vector": {"features__history__like": None},
    r"features.history.like: there is no feature 'pictur' .did you mean 'picture'": {
        "features__history__like": "pictur"
    },
    r"features.history.like: 'rate' is of type dense; name the feature of type vector": {
        "features__history__like": "rate"
    },
}


@pytest.mark.parametrize(("message", "changes"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_cannot_be_is_one_sentence(message, changes):
    with pytest.raises(ValidationError, match=message):
        made(**changes)


def test_networks_of_ids_alone_refuse_vectors():
    with pytest.raises(BadInput, match=r"features.history.vectors: lr has a weight for each id and none for what it"):
        Model(made(model={"kind": "lr"}))
    with pytest.raises(
        BadInput, match=r"an id of features.user has 8 numbers, one of features.history 11; .*no vectors"
    ):
        Model(made(model={"kind": "deepfm", "units": [8]}, tables__rating__dim=8))
