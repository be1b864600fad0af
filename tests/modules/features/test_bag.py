"""Bags and crosses: what they compute, and that sharded equals plain, whatever their tables' treatment."""

import pytest
import torch
from pydantic import ValidationError
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model
from livetrain.modules.serving.proof import prove
from livetrain.modules.serving.scorer import Scorer
from livetrain.trainers.export.rows import inputs_of, one_user
from livetrain.trainers.runtime import ranks
from tests import twins
from tests.cases import often
from tests.pool import Pool
from tests.trainers.train.test_sharding import STEPS, compare, train_sharded


def made(**changes) -> Recipe:
    """Bags in a table with an id, in a sequence's, of max, and in a replicated one; crosses of two and of three."""
    added = {
        "features__tags": {"type": "bag", "table": "tag", "weights": "w"},
        "features__topics": {"type": "bag", "table": "tag", "pooling": "sqrtn"},
        "features__topic": {"type": "id", "table": "tag"},
        "features__liked": {"type": "bag", "table": "movie", "pooling": "sum", "weights": "w"},
        "features__marks": {"type": "bag", "table": "mark", "pooling": "max"},
        "features__notes": {"type": "bag", "table": "note", "pooling": "mean"},
        "features__both": {"type": "cross", "table": "cross", "of": ["user", "movie"]},
        "features__three": {"type": "cross", "table": "tag", "of": ["movie", "topic", "user"]},
        "tables__tag": {"rows": 50, "dim": 8, "sharding": "row_wise", "init_std": 0.1},
        "tables__mark": {"rows": 30, "dim": 4, "sharding": "table_wise", "init_std": 0.1},
        "tables__note": {"rows": 30, "dim": 4, "sharding": "data_parallel", "init_std": 0.1},
        # A larger eps: see test_sharding.
        "optimizers__sparse__eps": 1e-3,
        "tables__cross": {"rows": 99, "dim": 4, "sharding": "row_wise", "init_std": 0.1},
    }
    return twins.recipe(**(added | changes))


CASES = {
    "row-wise": {},
    "table-wise": {"tables__tag__sharding": "table_wise"},
    "column-wise SGD": {"tables__tag__sharding": "column_wise", "optimizers__sparse__kind": "sgd"},
    "data-parallel": {"tables__tag__sharding": "data_parallel"},
    "Adagrad": {"optimizers__sparse__kind": "adagrad"},
    "row-wise Adagrad with L2": {"optimizers__sparse__weight_decay": 0.1, "tables__note__sharding": "row_wise"},
    "Adam": {"optimizers__sparse": {"kind": "adam", "lr": 0.01, "eps": 1e-3}},
    "an optimizer per table": {
        "tables__tag__optimizer": {"kind": "adam", "lr": 0.01, "eps": 1e-3},
        "tables__cross__optimizer": {"kind": "sgd", "lr": 0.1},
        "tables__movie__optimizer": {"kind": "adagrad", "lr": 0.1, "eps": 1e-3},
    },
    "frozen": {"tables__tag__frozen": True, "tables__note__frozen": True},
    "L2 on one table": {"tables__note__optimizer": {"lr": 0.02, "eps": 1e-3, "weight_decay": 0.1}},
    "in parts": {"model__activation": "relu", "train__accumulate": 4},
    "two dims": {"tables__note__sharding": "table_wise"},
}


@pytest.mark.parametrize("changes", often(CASES, ("row-wise", "row-wise Adagrad with L2", "Adam", "two dims")))
def test_one_rank_equals_plain(changes):
    with ranks.alone(cuda=False):
        found = train_sharded(made(**changes))
    compare(found, made(**changes), 2e-6)


@pytest.mark.parametrize("changes", often(CASES, ("column-wise SGD", "an optimizer per table", "in parts")))
@pytest.mark.some(1)
def test_two_ranks_equal_plain(two_ranks, changes):
    first, second = two_ranks.run(train_sharded, made(**changes))
    compare(first, made(**changes), 2e-6)
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["row-wise", "an optimizer per table"])
def test_four_ranks_equal_plain(name):
    pool = Pool(4)
    try:
        compare(pool.run(train_sharded, made(**CASES[name]))[0], made(**CASES[name]), 2e-6)
    finally:
        pool.close()


LOOSE = {
    "fp16 tables": {"tables__tag__dtype": "float16", "tables__movie__dtype": "float16"},
    "fp16 on the wire": {"cluster__quantize_comms": "fp16"},
    "bf16 on the wire": {"cluster__quantize_comms": "bf16"},
}


@pytest.mark.parametrize("changes", often(LOOSE, ("bf16 on the wire",)))
def test_fewer_bits_stay_close(two_ranks, changes):
    first, second = two_ranks.run(train_sharded, made(**changes))
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])
    exact, losses, _ = twins.train_plain(made(), twins.batches(made(), STEPS))
    assert 0 < (torch.tensor(first["losses"])[:, 0] - torch.tensor(losses)).abs().max() < 5e-3
    apart = (first["tables"]["tag"] - exact.table_weights()["tag"].detach()).abs()
    assert 0 < apart.max() < 2e-2


def test_what_is_pooled_where_its_rows_lie():
    model = Model(made())
    pooled = {name for name, tables in model.tables.items() if isinstance(tables, EmbeddingBagCollection)}
    assert pooled == {"dim8_pooled"}
    assert list(model.tables["dim8_pooled"].embedding_bags) == ["tag"]


def test_the_file_scores_as_the_model_and_ranks_as_it_scores():
    recipe = made()
    model, batch = Model(recipe).eval(), twins.batches(recipe, 1)[0]
    scored = torch.jit.script(Scorer(model, recipe).eval())
    given = inputs_of(batch, recipe)
    torch.testing.assert_close(scored(*given)["click"], model(batch.ids, batch.dense)["click"].sigmoid())
    for row in (0, 3):
        once, repeated = one_user(given, ["user", "history", "rating", "tags", "liked"], row)
        torch.testing.assert_close(scored.rank(*once)["click"], scored(*repeated)["click"])
    prove(recipe)


REFUSED = {
    r"features.both.of: there is no feature 'usr' .did you mean 'user'": {"features__both__of": ["usr", "movie"]},
    r"features.both.of: 'history' is of type sequence, which has no id of each row": {
        "features__both__of": ["history", "movie"]
    },
    r"features.both.of: 'tags' is of type bag": {"features__both__of": ["tags", "movie"]},
    r"features.both.of: 'three' is of type cross": {"features__both__of": ["three", "movie"]},
    r"features.both.of: 'rate' is of type dense": {"features__both__of": ["rate", "movie"]},
    r"of: names a feature twice": {"features__both__of": ["user", "user"]},
    r"column: a cross is made of other features": {"features__both__column": "user"},
    r"weights: the largest of each number has no weights": {"features__marks__weights": "w"},
}


@pytest.mark.parametrize(("message", "changes"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_cannot_be_is_one_sentence(message, changes):
    with pytest.raises(ValidationError, match=message):
        made(**changes)


def test_a_cross_of_both_towers_and_a_key_that_is_none_are_refused():
    task = {"click": {"label": "label", "kind": "retrieval"}}
    two = {"kind": "dssm", "key": "movie", "units": [8]}
    with pytest.raises(BadInput, match="features.both.of: user, movie and both itself are of both towers"):
        Model(made(model=two, tasks=task))
    with pytest.raises(BadInput, match="model.key: 'tags' is of type bag, which has no id of each row in the data"):
        Model(made(model=two | {"key": "tags"}, tasks=task))
