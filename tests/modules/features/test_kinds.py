"""Kinds of features with transforms of their own: the model and its exported file see the same."""

from typing import ClassVar, Literal

import pytest
import torch
from pydantic import ValidationError

from livetrain.configs.features.bucket import BucketFeature
from livetrain.configs.schema import EmbeddedFeature, Feature, Recipe
from livetrain.modules.features.carriers import split_numbers
from livetrain.modules.features.registry import register_feature, transforms
from livetrain.modules.features.transform import Transform
from livetrain.modules.model import Model, set_statistics
from livetrain.modules.serving.proof import prove
from livetrain.modules.serving.scorer import Scorer
from livetrain.trainers.runtime import ranks
from tests import twins
from tests.trainers.train.test_sharding import compare, train_sharded


class HourFeature(EmbeddedFeature):
    type: Literal["test_hour"]


@register_feature("test_hour", HourFeature)
class Hour(Transform):
    """Milliseconds -> the hour of the day."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.div(3_600_000, rounding_mode="floor").remainder(24)


class LogFeature(Feature):
    type: Literal["test_log"]


@register_feature("test_log", LogFeature)
class Log(Transform):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.abs().log1p()


class SignFeature(EmbeddedFeature):
    type: Literal["test_sign"]
    carrier: ClassVar[Literal["ids", "numbers"]] = "numbers"


@register_feature("test_sign", SignFeature)
class Sign(Transform):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.where(values.isnan(), 2, (values > 0).long())


def made(**changes) -> Recipe:
    added = {
        "features__time": {"type": "test_hour", "table": "hour"},
        "features__sign": {"type": "test_sign", "table": "sign", "column": "rate"},
        "features__log": {"type": "test_log", "column": "rate"},
        "features__plain": {"type": "dense"},
        "features__vector": {"type": "vector", "width": 5, "projection": 3},
        "features__mixed": {"type": "autodis", "dim": 4, "embeddings": 6, "missing_flag": True},
        "tables__hour": {"rows": 24, "dim": 8, "hash": "modulo", "sharding": "table_wise"},
        "tables__sign": {"rows": 3, "dim": 4, "hash": "modulo", "sharding": "data_parallel"},
    }
    return twins.recipe(**(added | changes))


def test_what_is_looked_up_and_what_the_network_gets():
    model, batch = Model(made()), twins.batches(made(), 1)[0]
    set_statistics(
        model,
        {"rate": [2.0], "log": [], "plain": [2.0], "vector": [], "mixed": [2.0]},
        {"rate": [4.0], "log": [], "plain": [4.0], "vector": [], "mixed": [4.0]},
        {},
    )
    rows = model.hash(batch.ids, batch.dense)
    assert rows.keys() == [*batch.ids.keys(), "sign"]
    assert torch.equal(rows["time"].values(), batch.ids["time"].values().div(3_600_000, rounding_mode="floor") % 24)
    assert torch.equal(rows["user"].values(), Model(twins.recipe()).hash.forward(_known(batch))["user"].values())
    rate, sign, log, plain, *vector, mixed = batch.dense.unbind(1)
    assert torch.equal(rows["sign"].values(), torch.where(sign.isnan(), 2, (sign > 0).long()))
    assert rows["sign"].lengths().tolist() == [1] * 48
    dense = model.dense.normalise(model.select(batch.dense))
    columns = [(rate - 2) / 4, log.abs().log1p(), (plain - 2) / 4, *vector, (mixed - 2) / 4, mixed.isnan().float()]
    wanted = torch.stack(columns, 1).nan_to_num(0.0)
    torch.testing.assert_close(dense, wanted)


def _known(batch):
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    names = ["user", "movie", "history", "rating"]
    return KeyedJaggedTensor(
        keys=names,
        values=torch.cat([batch.ids[name].values() for name in names]),
        lengths=torch.cat([batch.ids[name].lengths() for name in names]),
    )


def test_the_file_scores_as_the_model():
    recipe, batch = made(), twins.batches(made(), 1)[0]
    model = Model(recipe).eval()
    ids = {key: batch.ids[key].values() for key in batch.ids.keys()}  # noqa: SIM118
    lengths = {key: batch.ids[key].lengths() for key in batch.ids.keys()}  # noqa: SIM118
    dense = split_numbers(recipe.features, batch.dense)
    assert [tuple(dense[name].shape) for name in ("plain", "vector")] == [(48,), (48, 5)]
    found = torch.jit.script(Scorer(model, recipe).eval())(ids, lengths, dense)
    torch.testing.assert_close(found["click"], model(batch.ids, batch.dense)["click"].sigmoid())
    prove(recipe)


def test_one_rank_learns_what_plain_pytorch_learns():
    with ranks.alone(cuda=False):
        found = train_sharded(made())
    compare(found, made(), 2e-6)


def test_two_ranks_learn_what_plain_pytorch_learns(two_ranks):
    """Also what lies between the tables and the network: projections and mixtures."""
    made_for = twins.recipe(
        features__vector={"type": "vector", "width": 5, "projection": 3},
        features__mixed={"type": "autodis", "dim": 4, "embeddings": 6, "missing_flag": True},
        features__part={"type": "bucket", "bounds": [-1.0, 0.0, 1.0], "table": "part", "column": "rate"},
        tables__part={"rows": 5, "dim": 4, "hash": "modulo", "init_std": 0.1},
    )
    first, _ = two_ranks.run(train_sharded, made_for)
    compare(first, made_for, 2e-6)
    begun = Model(made_for).dense.state_dict()
    learned = [name for name in begun if name.startswith("encode.")]
    assert len(learned) == 5
    assert not any(torch.equal(begun[name], first["dense"][name]) for name in learned)


def test_kinds_that_cannot_be_are_refused():
    class Wrong(Feature):
        type: Literal["test_wrong"]
        carrier: ClassVar[Literal["ids", "numbers"]] = "ids"

    with pytest.raises(TypeError, match="feature 'test_wrong': the carrier ids cannot have the form dense"):
        register_feature("test_wrong", Wrong)(Transform)
    with pytest.raises(TypeError, match="Linear must be a subclass of Transform"):
        register_feature("test_linear", LogFeature)(torch.nn.Linear)
    with pytest.raises(ValidationError, match="features.time.table: there is no table 'nowhere'"):
        made(features__time={"type": "test_hour", "table": "nowhere"})


def test_a_column_of_numbers_is_sorted_into_buckets_without_a_warning(recwarn):
    """torch warns, once a process, of a column of a matrix, for it copies that anyway."""
    bucket = transforms({"part": BucketFeature(type="bucket", bounds=[0.0, 2.0], table="part", column="rate")})["part"]
    torch.set_warn_always(True)
    try:
        found = bucket(torch.tensor([[-1.0, 9.0], [0.0, 9.0], [3.0, 9.0], [torch.nan, 9.0]])[:, 0])
    finally:
        torch.set_warn_always(False)
    assert found.tolist() == [1, 2, 3, 0]
    assert not recwarn.list
