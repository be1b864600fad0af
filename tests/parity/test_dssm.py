"""DSSM against a plain twin: the softmax of every positive row, item by item, in float64."""

import io
import math

import pytest
import torch
from torch import Tensor

from livetrain.configs.errors import BadInput
from livetrain.configs.registry import parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.models.dssm import DSSM
from livetrain.modules.models.registry import network

INPUTS = Inputs({"user": 4, "movie": 8, "maker": 4}, {"seen": 8, "genres": 4}, ["age", "price"])
MODEL = {"kind": "dssm", "key": "movie", "item": ["maker", "genres", "price"], "units": [6], "width": 5}
TASKS = {"click": Task(label="click", kind="retrieval")}
# Rows: movie 3 comes twice, row 3 has no movie, row 4 is padding, row 6 has neither history nor genres.
MOVIES = [3, 7, 3, None, 9, 11, 12]
WEIGHTS = [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
SEEN, GENRES = [2, 1, 3, 1, 2, 4, 0], [1, 2, 1, 0, 1, 1, 0]


def build(**changes) -> DSSM:
    torch.manual_seed(1)
    config = parse_model({**MODEL, **changes})
    return network("dssm")(config, INPUTS, TASKS).double()


def batch() -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Return values, lengths, dense, weights and keys; rows of one movie have one embedding."""
    generator = torch.Generator().manual_seed(2)
    rows = len(MOVIES)
    lengths = {name: torch.ones(rows, dtype=torch.long) for name in INPUTS.ids}
    lengths["movie"] = torch.tensor([int(movie is not None) for movie in MOVIES])
    lengths |= {"seen": torch.tensor(SEEN), "genres": torch.tensor(GENRES)}
    dims = {**INPUTS.ids, **INPUTS.sequences}
    values = {n: torch.randn(int(lengths[n].sum()), dims[n], generator=generator).double() for n in dims}
    keys = torch.tensor([movie for movie in MOVIES if movie is not None])
    table = torch.randn(20, dims["movie"], generator=generator).double()
    values["movie"] = table[keys]
    dense = torch.randn(rows, 2, generator=generator).double()
    return values, lengths, dense, torch.tensor(WEIGHTS).double(), keys


def vector(state: dict[str, Tensor], side: str, parts: list[Tensor]) -> Tensor:
    x = torch.cat(parts)
    hidden = (
        state[f"towers.{side}.layers.linears.0.weight"] @ x + state[f"towers.{side}.layers.linears.0.bias"]
    ).relu()
    out = state[f"towers.{side}.layers.last.weight"] @ hidden + state[f"towers.{side}.layers.last.bias"]
    return out / out.square().sum().sqrt()


def vectors(state, values, lengths, dense) -> tuple[list[Tensor], list[Tensor]]:
    """Every row's user and item."""
    users, items = [], []
    for b in range(len(MOVIES)):
        at = {n: slice(int(length[:b].sum()), int(length[: b + 1].sum())) for n, length in lengths.items()}
        own = {n: values[n][at[n]] for n in values}
        whole = {n: own[n].mean(0) if len(own[n]) else torch.zeros(own[n].shape[1]).double() for n in own}
        users.append(vector(state, "user", [whole["user"], whole["seen"], dense[b, :1]]))
        items.append(vector(state, "item", [whole["movie"], whole["maker"], whole["genres"], dense[b, 1:]]))
    return users, items


@pytest.mark.parametrize("log_q", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_the_softmax_item_by_item(log_q, temperature):
    model = build(log_q=log_q, temperature=temperature)
    values, lengths, dense, weights, keys = batch()
    labels = torch.tensor([1.0, 1, 0, 1, 0, 1, 1]).double()
    state = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    ours = {name: value.clone().requires_grad_() for name, value in values.items()}
    theirs = {name: value.clone().requires_grad_() for name, value in values.items()}

    for batches in (1, 2):  # what is known of the frequencies is of the batches so far
        z = model(ours, lengths, dense, weights, keys)["click"]
        users, items = vectors(state, theirs, lengths, dense)
        often = {movie: MOVIES.count(movie) for movie in MOVIES}
        gap = {movie: 1 / often[movie] for movie in MOVIES}  # in every batch: B stays at 1 / how often
        terms = []
        for i in range(len(MOVIES)):
            scores = []
            for j in range(len(MOVIES)):
                hit = MOVIES[i] is not None and MOVIES[i] == MOVIES[j]
                if i == j or (WEIGHTS[j] > 0 and MOVIES[j] is not None and not hit):
                    correction = math.log(gap[MOVIES[j]]) if log_q and MOVIES[j] is not None else 0.0
                    scores.append((j, users[i] @ items[j] / temperature + correction))
            top = next(score for j, score in scores if j == i)
            terms.append(-torch.log(top.exp() / sum(score.exp() for _, score in scores)))
        chosen = [i for i in range(len(MOVIES)) if labels[i] and WEIGHTS[i] and MOVIES[i] is not None]
        wanted = sum(terms[i] for i in chosen)
        found = (torch.nn.functional.softplus(-z) * labels * weights).sum()
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8, msg=lambda t, b=batches: f"batch {b}: {t}")
    found.backward()
    wanted.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-6, atol=1e-8)
    for name, value in ours.items():
        torch.testing.assert_close(value.grad, theirs[name].grad, rtol=1e-6, atol=1e-8)


def test_learns_from_mixed_negatives():
    """Items that the step shares stand beside the rows', and q is of both ways to be among the negatives."""
    model = build()
    values, lengths, dense, weights, keys = batch()
    shared, often = [7, 20, 3, 20], {3: 0.5, 7: 0.25, 9: 0.125, 11: 0.25, 12: 0.5, 20: 1.5}
    generator = torch.Generator().manual_seed(4)
    movies, every = torch.randn(20, 8, generator=generator).double(), [*MOVIES, *shared]
    own = {"movie": torch.tensor([1] * 4), "maker": torch.tensor([1, 0, 1, 1]), "genres": torch.tensor([0, 2, 1, 0])}
    more = {"movie": movies[torch.tensor(shared) - 3], "maker": movies[:3, :4], "genres": movies[3:6, 4:]}
    values = {n: torch.cat([value, more.get(n, value[:0])]) for n, value in values.items()}
    lengths = {n: torch.cat([each, own.get(n, torch.zeros(4, dtype=torch.long))]) for n, each in lengths.items()}
    dense, keys = torch.cat([dense, movies[:4, :2]]), torch.cat([keys, torch.tensor(shared)])
    given = torch.tensor([often.get(movie, 0.0) for movie in every]).double()
    state = dict(model.named_parameters())
    users, items = [], []
    for b in range(len(every)):
        at = {n: slice(int(each[:b].sum()), int(each[: b + 1].sum())) for n, each in lengths.items()}
        whole = {n: v[at[n]].mean(0) if len(v[at[n]]) else torch.zeros(v.shape[1]).double() for n, v in values.items()}
        users.append(vector(state, "user", [whole["user"], whole["seen"], dense[b, :1]]))
        items.append(vector(state, "item", [whole["movie"], whole["maker"], whole["genres"], dense[b, 1:]]))
    there = [WEIGHTS[b] > 0 and MOVIES[b] is not None for b in range(len(MOVIES))] + [True] * 4
    log_q = [math.log(sum(MOVIES[b] == m for b in range(7) if there[b]) + often[m]) if m else 0 for m in every]
    z = model(values, lengths, dense, weights, keys, given)["click"]
    for i in range(len(MOVIES)):
        if there[i]:
            scores = [users[i] @ items[j] / 0.1 - log_q[j] for j in range(len(every))]
            rest = [scores[j] for j in range(len(every)) if there[j] and every[j] != every[i]]
            torch.testing.assert_close(z[i], scores[i] - torch.stack(rest).logsumexp(0), rtol=1e-6, atol=1e-6)
    z[weights > 0].clamp(max=99).sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


def test_answers_the_cosine_when_it_does_not_train():
    model = build().eval()
    values, lengths, dense, weights, _ = batch()
    users, items = vectors(dict(model.named_parameters()), values, lengths, dense)
    wanted = torch.stack([user @ item for user, item in zip(users, items, strict=True)])
    for arguments in ((values, lengths, dense, weights), (values, lengths, dense)):
        torch.testing.assert_close(model(*arguments)["click"], wanted)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    torch.testing.assert_close(scripted(values, lengths, dense, None)["click"], wanted)
    assert not any("rarity" in name for name in scripted.state_dict())


def test_padding_changes_nothing():
    model = build()
    values, lengths, dense, weights, keys = batch()
    whole = model(values, lengths, dense, weights, keys)["click"][weights > 0]
    kept = [b for b in range(len(MOVIES)) if WEIGHTS[b]]
    rows = {n: torch.repeat_interleave(torch.arange(len(MOVIES)), length) for n, length in lengths.items()}
    real = {n: weights[row] > 0 for n, row in rows.items()}
    fewer = {n: value[real[n]] for n, value in values.items()}
    short = {n: length[kept] for n, length in lengths.items()}
    alone = build()(fewer, short, dense[kept], weights[kept], keys[real["movie"]])["click"]
    torch.testing.assert_close(whole, alone)


def test_a_row_alone_has_nothing_to_learn():
    model = build()
    values = {n: torch.randn(1, dim).double().requires_grad_() for n, dim in {**INPUTS.ids, **INPUTS.sequences}.items()}
    lengths = {n: torch.tensor([1]) for n in values}
    z = model(values, lengths, torch.zeros(1, 2).double(), torch.ones(1).double(), torch.tensor([5]))["click"]
    loss = torch.nn.functional.softplus(-z).sum()
    loss.backward()
    assert float(loss) == 0
    assert all(bool((value.grad == 0).all()) for value in values.values())


def test_bfloat16_keeps_the_softmax_in_float32():
    model = build().float()
    values, lengths, dense, weights, keys = batch()
    values = {n: value.float() for n, value in values.items()}
    full = model(values, lengths, dense.float(), weights.float(), keys)["click"]
    with torch.autocast("cpu", torch.bfloat16):
        low = model(values, lengths, dense.float(), weights.float(), keys)["click"]
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full, rtol=0.1, atol=0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "film"}, r"model.key: there is no id feature 'film'"),
        ({"key": "seen"}, r"model.key: there is no id feature 'seen'"),
        ({"item": ["makr"]}, r"model.item: there is no feature 'makr' .did you mean 'maker'"),
        ({"item": ["user", "maker", "seen", "genres", "age", "price"]}, r"model.item: names every feature"),
    ],
)
def test_names_what_is_wrong(change, message):
    with pytest.raises(BadInput, match=message):
        build(**change)


def test_learns_one_task():
    tasks = TASKS | {"like": Task(label="like", kind="retrieval")}
    with pytest.raises(BadInput, match="tasks: dssm learns one vector of each side, for one task, and here are 2"):
        network("dssm")(parse_model(MODEL), INPUTS, tasks)
