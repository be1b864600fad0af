import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.modules.model import Model, set_statistics
from livetrain.modules.serving.scorer import Scorer
from tests import twins
from tests.cases import often

MODELS = {
    "din": {},
    "din-softmax": {"model__softmax": True},
    "dnn": {"model": {"kind": "dnn", "units": [16]}},
    "lr": {"model": {"kind": "lr"}},
    "fm": {"model": {"kind": "fm"}, "tables__rating__dim": 8},
    "nfm": {"model": {"kind": "nfm", "units": [16]}, "tables__rating__dim": 8},
    "kfm": {"model": {"kind": "kfm"}},
    "ensemble": {"model": {"kind": "ensemble", "members": 2, "of": {"kind": "kfm"}}},
    "wide_deep": {"model": {"kind": "wide_deep", "units": [16]}},
    "deepfm": {"model": {"kind": "deepfm", "units": [16]}, "tables__rating__dim": 8},
    "dcnv2": {"model": {"kind": "dcnv2", "units": [16], "rank": 4}},
    "float16": {"tables__user__dtype": "float16"},
    "replicated": {"tables__rating__sharding": "data_parallel"},
    "no-dense": {"features__rate": {"type": "id", "table": "rating"}},
    "two-tasks": {"tasks": {"click": {"label": "a"}, "like": {"label": "b"}}},
}
BIG = 2**63 - 1
ids = st.one_of(st.integers(-50, 50), st.sampled_from([BIG, -BIG - 1, 0]))
rows = st.fixed_dictionaries(
    {
        "user": st.one_of(st.none(), ids),
        "movie": st.one_of(st.none(), ids),
        "events": st.lists(st.tuples(ids, ids), max_size=6),
        "rate": st.one_of(st.just(math.nan), st.floats(-1e3, 1e3, width=32)),
    }
)


def build(quantize: str = "none", **changes: Any) -> tuple[Model, torch.jit.ScriptModule]:
    """A model with weights that matter, and its scripted scorer after a round trip through a file."""
    recipe = twins.recipe(**changes)
    model = Model(recipe).eval().requires_grad_(False)
    dense = [name for name, feature in recipe.features.items() if feature.type == "dense"]
    set_statistics(model, dict.fromkeys(dense, [0.7]), dict.fromkeys(dense, [1.9]), {})
    generator = torch.Generator().manual_seed(3)
    for parameter in [*model.dense.network.parameters(), *model.dense.network.buffers()]:
        if parameter.is_floating_point():
            parameter.add_(torch.rand(parameter.shape, generator=generator) * 0.3)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Scorer(model, recipe, quantize).eval()), file)
    return model, torch.jit.load(io.BytesIO(file.getvalue()))


@pytest.fixture(scope="module")
def din():
    return build()


def inputs(samples: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], ...]:
    def lists(name):
        if name in ("history", "rating"):
            return [[event[name == "rating"] for event in sample["events"]] for sample in samples]
        return [[] if sample[name] is None else [sample[name]] for sample in samples]

    by_name = {name: lists(name) for name in ("user", "movie", "history", "rating")}
    values = {name: torch.tensor([x for part in parts for x in part]).long() for name, parts in by_name.items()}
    lengths = {name: torch.tensor([len(part) for part in parts]).long() for name, parts in by_name.items()}
    return values, lengths, {"rate": torch.tensor([sample["rate"] for sample in samples])}


def wanted(model: Model, samples: list[dict[str, Any]]) -> torch.Tensor:
    values, lengths, dense = inputs(samples)
    jagged = KeyedJaggedTensor(
        keys=list(values), values=torch.cat(list(values.values())), lengths=torch.cat(list(lengths.values()))
    )
    return torch.sigmoid(model(jagged, dense["rate"].unsqueeze(1), None)["click"])


def sample(user=1, movie=2, events=((3, 4), (5, 1)), rate=0.5) -> dict[str, Any]:
    return {"user": user, "movie": movie, "events": list(events), "rate": rate}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.some(6)
def test_the_file_scores_exactly_like_the_model(kind):
    model, scored = build(**MODELS[kind])
    recipe = twins.recipe(**MODELS[kind])
    for batch in twins.batches(recipe, 4):  # enough calls for TorchScript to optimise in between
        found = scored(*by_feature(batch))
        logits = model(batch.ids, batch.dense, None)
        assert list(found) == list(recipe.tasks)
        for task, logit in logits.items():
            assert found[task].dtype == torch.float32
            assert torch.equal(found[task], torch.sigmoid(logit))
            assert found[task].std() > 0


def test_a_model_of_dense_features_alone_needs_no_ids():
    features = {"rate": {"type": "dense"}, "count": {"type": "dense"}}
    model, scored = build(model={"kind": "lr"}, features=features, tables={})
    dense = torch.tensor([[0.5, 3.0], [math.nan, -1.0]])
    none = torch.zeros(0, dtype=torch.int64)
    logits = model(KeyedJaggedTensor(keys=[], values=none, lengths=none), dense, None)["click"]
    found = scored({}, {}, {"count": dense[:, 1], "rate": dense[:, 0]})["click"]
    assert torch.equal(found, torch.sigmoid(logits))
    assert found[0] != found[1]


@settings(max_examples=60, deadline=None)
@given(samples=st.lists(rows, min_size=1, max_size=12))
def test_any_rows_score_like_the_model(din, samples):
    model, scored = din
    found = scored(*inputs(samples))["click"]
    assert torch.equal(found, wanted(model, samples))
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize(
    "samples",
    [
        [sample()],
        [sample(events=())],
        [sample(events=()), sample(events=(), user=7)],
        [sample(user=None, movie=None, events=(), rate=math.nan)],
        [sample(), sample(events=()), sample(user=None)],
        [sample(user=-BIG - 1, movie=BIG, events=[(BIG, -1), (-1, BIG)])] * 300,
    ],
    ids=["one row", "no history", "nobody has history", "nothing known", "mixed", "many extreme ids"],
)
def test_edges_score_like_the_model(din, samples):
    model, scored = din
    assert torch.equal(scored(*inputs(samples))["click"], wanted(model, samples))


def test_a_missing_id_is_not_the_id_zero(din):
    _, scored = din
    absent, zero = scored(*inputs([sample(user=None), sample(user=0)]))["click"]
    assert absent != zero


@settings(max_examples=40, deadline=None)
@given(histories=st.lists(st.lists(st.tuples(ids, ids), max_size=20), min_size=1, max_size=5))
def test_a_long_history_counts_by_its_newest_events(din, histories):
    _, scored = din
    whole = [sample(events=events) for events in histories]
    newest = [sample(events=events[-6:]) for events in histories]
    assert torch.equal(scored(*inputs(whole))["click"], scored(*inputs(newest))["click"])


def test_lengths_of_ids_may_be_left_out_and_ids_may_be_int32(din):
    _, scored = din
    values, lengths, dense = inputs([sample(), sample(user=4)])
    full = scored(values, lengths, dense)["click"]
    some = {name: lengths[name].int() for name in ("history", "rating")}
    assert torch.equal(scored({k: v.int() for k, v in values.items()}, some, dense)["click"], full)


def test_features_that_the_model_does_not_know_are_ignored(din):
    _, scored = din
    values, lengths, dense = inputs([sample()])
    more = {**values, "next_years_feature": torch.tensor([1])}
    assert torch.equal(scored(more, lengths, dense)["click"], scored(values, lengths, dense)["click"])


def by_feature(batch) -> tuple[dict[str, torch.Tensor], ...]:
    keys = batch.ids.keys()
    values, lengths = ({k: getattr(batch.ids[k], part)() for k in keys} for part in ("values", "lengths"))
    return values, lengths, {"rate": batch.dense[:, 0]} if batch.dense.shape[1] else {}


def one_user(call: tuple[dict[str, torch.Tensor], ...], user: list[str], row: int, times: int) -> tuple[dict, ...]:
    """The features of `user` as those of one row, so many times; the others as they are."""
    values, lengths, dense = ({**part} for part in call)
    for name in user:
        if name in values:
            before, count = int(lengths[name][:row].sum()), lengths[name][row]
            values[name] = values[name][before : before + int(count)].repeat(times)
            lengths[name] = count.repeat(times)
        elif name in dense:
            dense[name] = dense[name][row].repeat(times)
    return values, lengths, dense


USERS = {"much": ["user", "history", "rating", "rate"], "lists": ["history", "rating"], "item": ["movie"], "none": []}
RANKED = {f"{kind}-{user}": (kind, USERS[user]) for kind in MODELS for user in USERS}


@pytest.mark.parametrize(("kind", "user"), often(RANKED, list(RANKED)[::5]))
@pytest.mark.some(5)
def test_rank_scores_candidates_like_rows_that_repeat_the_user(kind, user):
    _, scored = build(**MODELS[kind])
    (batch,) = twins.batches(twins.recipe(**MODELS[kind]), 1)
    call, size = by_feature(batch), batch.weights.numel()
    for row in (*range(8), size - 1):
        found = scored.rank(*one_user(call, user, row, 1))
        wanted = scored(*one_user(call, user, row, size))
        assert list(found) == list(wanted)
        for task, scores in wanted.items():
            torch.testing.assert_close(found[task], scores, rtol=0, atol=1e-6)
            assert scores.std() > 0


def test_rank_of_rows_that_share_nothing_is_forward(din):
    _, scored = din
    rows = inputs([sample(), sample(user=4, events=()), sample(movie=None)])
    for call in (rows, inputs([sample()])):
        assert torch.equal(scored.rank(*call)["click"], scored(*call)["click"])


@pytest.mark.parametrize("events", [(), ((3, 4),), ((3, 4),) * 9])
def test_a_user_without_candidates_gets_no_scores(din, events):
    _, scored = din
    values, lengths, dense = inputs([sample(events=events)])
    none = torch.zeros(0, dtype=torch.int64)
    assert scored.rank({**values, "movie": none}, {**lengths, "movie": none}, dense)["click"].shape == (0,)


def test_rank_looks_the_user_up_once():
    recipe = twins.recipe()
    scorer = Scorer(Model(recipe), recipe).eval()
    asked = {}
    for lookup in scorer.lookups:
        # Two features share a table, so the rows are counted where each feature asks for them.
        lookup.register_forward_hook(lambda module, _, out: asked.update({module.name: out[0].size(0)}))
    values, lengths, dense = inputs([sample(events=[(3, 4), (5, 1)])])
    many = torch.arange(300)
    scorer.rank({**values, "movie": many}, {**lengths, "movie": torch.ones_like(many)}, dense)
    assert asked == {"user": 1, "movie": 300, "history": 2, "rating": 2}


@pytest.mark.parametrize("way", ["rank", "forward"])
@pytest.mark.parametrize("kind", ["din", "lr", "float16"])
@pytest.mark.parametrize(("quantize", "most"), [("float16", 1e-3), ("int8", 1e-2)])
@pytest.mark.some(4)
def test_quantised_tables_score_almost_like_the_model(quantize, most, kind, way):
    model, scored = build(quantize, **MODELS[kind])
    for batch in twins.batches(twins.recipe(**MODELS[kind]), 3):
        found = getattr(scored, way)(*by_feature(batch))["click"]
        off = (found - torch.sigmoid(model(batch.ids, batch.dense, None)["click"])).abs().max()
        assert 0 < off < most


def without(part: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in part.items() if key != name}


WRONG = {
    "ids: the feature 'movie' is missing": lambda v, n, d: (without(v, "movie"), n, d),
    "lengths: those of the lists 'history' are missing": lambda v, n, d: (v, without(n, "history"), d),
    "dense: the feature 'rate' is missing": lambda v, n, d: (v, n, {}),
    "those of 'history' do not add up": lambda v, n, d: (v, {**n, "history": torch.tensor([2, 1])}, d),
    "those of 'rating' do not add up": lambda v, n, d: (v, {**n, "rating": torch.tensor([5, -1])}, d),
    "those of 'user' do not add up": lambda v, n, d: (v, {**n, "user": torch.tensor([], dtype=torch.int64)}, d),
    "'user' must be integers": lambda v, n, d: ({**v, "user": torch.tensor([1.0, 2.0])}, n, d),
    "'user' is an id feature": lambda v, n, d: (v, {**n, "user": torch.tensor([2, 0])}, d),
    "lists of one history must have the same length": lambda v, n, d: (v, {**n, "rating": torch.tensor([1, 3])}, d),
    "'user' has 3 rows and 'movie' has 2": lambda v, n, d: (
        {**v, "user": torch.tensor([1, 2, 3])},
        without(n, "user"),
        d,
    ),
    "'rating' has 2 rows and 'rate' has 1": lambda v, n, d: (v, n, {"rate": torch.tensor([1.0])}),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_calls_are_told_apart(din, sentence):
    model, scored = din
    call = WRONG[sentence](*inputs([sample(), sample()]))
    with pytest.raises(ValueError, match=sentence):
        Scorer(model, twins.recipe())(*call)
    with pytest.raises(torch.jit.Error, match=f"ValueError: .*{sentence}"):
        scored(*call)


def test_rank_refuses_features_that_are_neither_the_users_nor_of_each_candidate(din):
    _, scored = din
    values, lengths, dense = inputs([sample()] * 3)
    two = {**values, "movie": torch.tensor([1, 2])}
    with pytest.raises(torch.jit.Error, match="ValueError: 'user' has 3 rows and 'movie' has 2"):
        scored.rank(two, without(lengths, "movie"), dense)


@pytest.mark.parametrize(("quantize", "bytes_a_row"), [("none", 32), ("float16", 16), ("int8", 16)])
def test_a_table_that_two_features_share_is_in_the_file_once(quantize, bytes_a_row):
    recipe = twins.recipe(tables__movie__rows=50_000)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Scorer(Model(recipe), recipe, quantize)), file)
    table = 50_000 * bytes_a_row
    assert table < file.getbuffer().nbytes < 1.5 * table
