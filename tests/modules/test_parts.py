"""A batch in parts: the gradients of the whole, for the memory of a part, or a sentence that says why not."""

import pytest
import torch

from livetrain.configs.errors import BadInput
from livetrain.modules.model import Model
from livetrain.modules.serving.proof import prove
from livetrain.trainers.runtime import ranks
from tests import twins
from tests.trainers.train.test_sharding import train_sharded

RELU = {"model__activation": "relu"}
TASKS = {"click": {"label": "label"}, "like": {"label": "like", "weight": 0.5}}


@pytest.mark.parametrize("parts", [2, 5])
def test_logits_and_gradients_are_those_of_the_whole(parts):
    """Of a number of rows that the parts do not divide, too."""
    made_for = twins.recipe(**RELU)
    batch = twins.batches(made_for, 1)[0]
    found = []
    for count in (1, parts):
        model = Model(made_for)
        model.dense.parts = count
        logits = model(batch.ids, batch.dense, batch.weights)["click"]
        (logits.sigmoid() * batch.weights).pow(2).sum().backward()
        found.append((logits.detach(), {name: p.grad for name, p in model.named_parameters()}))
    assert torch.allclose(found[1][0], found[0][0], atol=1e-6)
    for name, gradient in found[0][1].items():
        assert torch.allclose(found[1][1][name], gradient, atol=1e-6), name


def test_a_part_is_what_is_kept():
    made_for = twins.recipe(**RELU)
    batch = twins.batches(made_for, 1)[0]
    kept = {}
    for parts in (1, 8):
        model, sizes = Model(made_for), []
        model.dense.parts = parts

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(batch.ids, batch.dense, batch.weights)
        kept[parts] = sum(sizes)
    assert kept[8] < kept[1] / 3


@pytest.mark.parametrize("kind", ["sum", "pcgrad", "uncertainty"])
def test_combined_gradients_are_those_of_the_whole(kind):
    changes = {
        "tasks": TASKS,
        "gradients": {"kind": kind},
        "model": {
            "kind": "mmoe",
            "attention": [{"query": ["movie"], "events": ["history"], "side": ["rating"]}],
            "attention_units": [8],
            "tower_units": [8],
            "activation": "relu",
        },
    }
    found = []
    for parts in (1, 3):
        with ranks.alone(cuda=False):
            found.append(train_sharded(twins.recipe(**changes, train__accumulate=parts)))
    for part in ("tables", "dense"):
        for name, value in found[0][part].items():
            assert torch.allclose(found[1][part][name], value, atol=2e-6), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "train.accumulate: model.kind: 'din' learns of a row by the other rows of its batch .*activation: relu"),
        ({**RELU, "train__accumulate": 5}, "train.accumulate: 5 parts of 4 rows, which are a shard's of a batch"),
        ({**RELU, "gradients": {"kind": "pcgrad", "scope": "trunk"}, "tasks": TASKS}, "needed of all rows at once"),
    ],
)
def test_what_would_learn_something_else_is_refused(changes, message):
    with pytest.raises((BadInput, ValueError), match=message):
        prove(twins.recipe(**{"train__accumulate": 2, **changes}))
