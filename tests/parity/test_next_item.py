"""Next-item networks against plain twins: padded PyTorch of the published equations, and the loss target by target."""

import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.configs.errors import BadInput
from livetrain.configs.registry import parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import masks, others
from livetrain.modules.layers.masks import ItemDropout, masked
from livetrain.modules.models.next_item import NextItem
from livetrain.modules.models.registry import network
from livetrain.modules.network import TARGETS
from livetrain.modules.tables.hashing import row
from tests.cases import often as run_often

D = 8
BARE = Inputs({"item": D}, {"seen": D}, [])
RICH = Inputs(
    {"user": 5, "item": D, "maker": 4},
    {"seen": D + 2, "makers": 4, "acts": 3, "tags": 3},
    ["age", "picture", "picture"],
    {"seen": "picture"},
)
TASKS = {"next": Task(label="label", kind="retrieval")}
# Rows: one lacks a history, one an item, one is padding; behind them items that the step shares, and one of nothing.
COUNT = [3, 0, 2, 4, 1, 0]
ITEMS = [3, 7, 5, None, 3, None]
SHARED = [3, 12, 7, 12, None]
WEIGHTS = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
OFTEN = {3: 0.5, 12: 1.5, 7: 0.25, 5: 0.125}
EVENTS = [3, 5, 7, 5, 9, 12, 12, 3, 7, 7]
ROWS, SIZE = len(ITEMS), len(ITEMS) + len(SHARED)


def build(kind: str, rich: bool, **changes) -> NextItem:
    torch.manual_seed(1)
    part = {"query": ["item"], "events": ["seen"]}
    if rich:
        part = {"query": ["item", "maker"], "events": ["seen", "makers"], "side": ["acts"]}
    content = {"kind": kind, "attention": [part], "pooled": ["tags"] if rich else [], "dropout": 0.0, "heads": 2}
    config = parse_model({**content, "item_dropout": 0.0, "positions": 3, **changes})
    model = network(kind)(config, RICH if rich else BARE, TASKS).double()
    with torch.no_grad():
        for parameter in model.parameters():  # no bias of 0, no scale of 1
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return model


def batch(rich: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor, Tensor, Tensor]:
    """Return values, lengths, dense, weights, keys and often; the same item has the same embedding everywhere."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    all_items = [*ITEMS, *SHARED]
    known = torch.tensor([item for item in all_items if item is not None])
    lengths = {"item": torch.tensor([int(item is not None) for item in all_items])}
    lengths["seen"] = torch.tensor([*COUNT, *[0] * len(SHARED)])
    table, makers, pictures = draw(20, D), draw(20, 4), draw(20, 2)
    events = torch.tensor(EVENTS)
    values = {"item": table[known], "seen": table[events]}
    dense = torch.zeros(SIZE, 0, dtype=torch.float64)
    if rich:
        lengths |= {"maker": lengths["item"], "makers": lengths["seen"], "acts": lengths["seen"]}
        lengths["user"] = torch.tensor([1, 1, 0, 1, 1, 0] + [0] * len(SHARED))
        lengths["tags"] = torch.tensor([2, 1, 0, 1, 0, 0] + [0] * len(SHARED))
        values |= {"maker": makers[known], "makers": makers[events], "acts": draw(len(EVENTS), 3)}
        values["seen"] = torch.cat([values["seen"], pictures[events]], 1)
        values |= {"user": draw(4, 5), "tags": draw(4, 3)}
        dense = draw(SIZE, 3)
        dense[lengths["item"] > 0, 1:] = pictures[known]
    often = torch.tensor([OFTEN.get(item, 0.0) for item in all_items], dtype=torch.float64)
    return values, lengths, dense, torch.tensor(WEIGHTS).double(), torch.cat([known, events]), often


class Twin:
    """The networks row by row, of the model's own parameters."""

    def __init__(self, model: NextItem, rich: bool) -> None:
        self.model, self.rich, self.config = model, rich, model.config
        self.state = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}

    def item(self, embedding: Tensor, side: list[Tensor]) -> Tensor:
        if not self.rich:
            return embedding
        return embedding + self.state["towers.user.item.project.weight"] @ torch.cat(side)

    def body(self, events: Tensor) -> Tensor:
        """The states of one row's events (T, d)."""
        length, state = len(events), self.state
        ages = torch.arange(length - 1, -1, -1).clamp(max=self.config.positions - 1)
        x = (events + state["towers.user.body.positions.vectors"][ages]).unsqueeze(0)
        for number in range(self.config.blocks):
            x = getattr(self, self.config.kind)(x, f"towers.user.body.blocks.{number}.")
        if self.config.kind == "sasrec_retrieval":
            x = F.layer_norm(x, (D,), state["towers.user.body.norm.weight"], state["towers.user.body.norm.bias"], 1e-8)
        return x[0]

    def attention(self, query: Tensor, keys: Tensor, at: str) -> Tensor:
        """PyTorch's own multi-head attention."""
        of, length = self.state, query.shape[1]
        layer = nn.MultiheadAttention(D, 2, batch_first=True).double()
        weights = {
            "in_proj_weight": torch.cat([of[f"{at}attention.query.weight"], of[f"{at}attention.keys.weight"]]),
            "in_proj_bias": torch.cat([of[f"{at}attention.query.bias"], of[f"{at}attention.keys.bias"]]),
            "out_proj.weight": of[f"{at}attention.out.weight"],
            "out_proj.bias": of[f"{at}attention.out.bias"],
        }
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        found, _ = torch.func.functional_call(
            layer, weights, (query, keys, keys), {"attn_mask": later, "need_weights": False}
        )
        return found

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (D,), self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def sasrec_retrieval(self, x: Tensor, at: str) -> Tensor:
        """RecTools: the residual carries the normalised query; keys and values are not normalised."""
        query = self.layer_norm(x, f"{at}norm")
        x = query + self.attention(query, x, at)
        f = self.layer_norm(x, f"{at}forward_norm")
        return f + self.linear(self.linear(f, f"{at}hidden").relu(), f"{at}out")

    def esasrec(self, x: Tensor, at: str) -> Tensor:
        """LiGR."""
        n = self.layer_norm(x, f"{at}norm")
        x = x + self.linear(x, f"{at}attention_gate").sigmoid() * self.attention(n, n, at)
        one, other = self.linear(self.layer_norm(x, f"{at}forward_norm"), f"{at}hidden").chunk(2, 2)
        return x + self.linear(x, f"{at}forward_gate").sigmoid() * self.linear(F.silu(one) * other, f"{at}out")

    def compared(self, x: Tensor) -> Tensor:
        return x / x.norm().clamp(min=1e-12) if self.config.cosine else x

    def rows(self, values, lengths, dense):
        """Return of each row its states before and behind each event, its events, and its item, or None."""
        out = []
        for b in range(SIZE):
            at = {n: slice(int(each[:b].sum()), int(each[: b + 1].sum())) for n, each in lengths.items()}
            own = {n: values[n][at[n]] for n in values}
            item = None
            if len(own["item"]):
                item = self.item(own["item"][0], [dense[b, 1:], own["maker"][0]] if self.rich else [])
            events = [
                self.item(seen[:D], [seen[D:], own["makers"][k]] if self.rich else [])
                for k, seen in enumerate(own["seen"])
            ]
            states, context = [], None
            if events:
                read = torch.stack(events)
                if self.rich:
                    read = read + own["acts"] @ self.state["towers.user.project_side.weight"].t()
                states = list(self.body(read))
            if self.rich:
                user = own["user"][0] if len(own["user"]) else torch.zeros(5).double()
                tags = own["tags"].mean(0) if len(own["tags"]) else torch.zeros(3).double()
                context = self.state["towers.user.context.weight"] @ torch.cat([user, tags, dense[b, :1]])
            out.append((states, context, events, item))
        return out

    def users(self, rows) -> list[Tensor]:
        newest = [states[-1] if states else torch.zeros(D).double() for states, *_ in rows]
        return [self.compared(u if c is None else u + c) for u, (_, c, *_) in zip(newest, rows, strict=True)]

    def losses(self, rows, often: bool, in_batch: bool) -> list[tuple[Tensor, int]]:
        """Return every target's loss, and its row."""
        config, tau = self.config, self.config.temperature
        batch_too = in_batch or not often
        frequency = {i: sum(ITEMS[b] == i and WEIGHTS[b] > 0 for b in range(ROWS)) for i in set(ITEMS) - {None}}
        candidates = []
        for b, item in enumerate([*ITEMS, *SHARED]):
            if item is not None and (batch_too if b < ROWS else often):
                q = (OFTEN.get(item, 0.0) if often else 0.0) + (frequency.get(item, 0) if batch_too else 0)
                candidates.append((item, self.compared(rows[b][3]), q))
        found, at = [], 0
        for b in range(ROWS):
            states, context, events, item = rows[b]
            keys = [*EVENTS[at : at + len(events)], ITEMS[b]]
            at += len(events)
            before = [torch.zeros(D).double(), *states]
            if not config.every_event:
                pairs = [(before[-1], keys[-1], item)] if states or context is not None else []
            else:
                pairs = list(zip(before, keys, [*events, item], strict=True))[context is None :]
            for state, key, target in pairs:
                if key is None:
                    continue
                u = self.compared(state if context is None else state + context) / tau
                s = u @ self.compared(target)
                rest = [(u @ v, q) for other, v, q in candidates if other != key]
                if config.loss == "gbce":
                    n = len(rest)
                    a = n / max(sum(1 / q for _, q in rest), 1)
                    beta = min(a, 1) * config.calibration - config.calibration + 1
                    loss = -(beta * F.logsigmoid(s) + sum(F.logsigmoid(-other) for other, _ in rest)) / (n + 1)
                else:
                    weighted = [other - math.log(q) if config.log_q else other for other, q in rest]
                    loss = -F.log_softmax(torch.stack([s, *weighted]), 0)[0]
                found.append((loss, b))
        return found


CASES = {
    "softmax": {},
    "as published, without log q": {"log_q": False},
    "other rows' items too": {"in_batch": True},
    "cosine": {"cosine": True, "temperature": 0.2},
    "cosine at the least temperature": {"cosine": True, "temperature": 1e-3},
    "gBCE": {"loss": "gbce"},
    "the newest alone": {"every_event": False},
}


@pytest.mark.parametrize("kind", ["sasrec_retrieval", "esasrec"])
@pytest.mark.parametrize("rich", [False, True])
@pytest.mark.parametrize("changes", run_often(CASES, ("softmax", "other rows' items too", "gBCE")))
def test_equals_the_equations(kind, rich, changes, monkeypatch):
    monkeypatch.setattr(others, "CELLS", 7)  # of which no matrix of scores is made at once
    model = build(kind, rich, **changes)
    values, lengths, dense, weights, keys, often = batch(rich)
    twin = Twin(model, rich)
    ours = {name: value.clone().requires_grad_() for name, value in values.items()}
    theirs = {name: value.clone().requires_grad_() for name, value in values.items()}
    for shared in (True, False):
        if not shared:  # then the other rows' items are all there is
            model.rarity = type(model.rarity)() if model.rarity is not None else None
            ours, theirs = ({n: v.detach().clone().requires_grad_() for n, v in values.items()} for _ in range(2))
        model.zero_grad()
        given = (ours, lengths, dense, weights, keys, often)
        if not shared:
            kept = {n: v[: int(lengths[n][:ROWS].sum())] for n, v in ours.items()}
            real = torch.cat([keys[: len(kept["item"])], keys[-len(EVENTS) :]])
            given = (kept, {n: each[:ROWS] for n, each in lengths.items()}, dense[:ROWS], weights, real, None)
        answer = model(*given)
        wanted = twin.losses(twin.rows(theirs, lengths, dense), shared, bool(changes.get("in_batch")))
        found = F.softplus(-answer["next"])
        each = answer.get(TARGETS, torch.ones(ROWS, dtype=torch.long))
        assert int(each.sum()) == len(found)
        of = torch.repeat_interleave(torch.arange(ROWS), each)
        for b in range(ROWS):
            own = [loss for loss, row in wanted if row == b]
            torch.testing.assert_close(found[of == b].sum(), sum(own, torch.zeros(()).double()), rtol=1e-6, atol=1e-9)
        found.sum().backward()
        total = sum(loss for loss, _ in wanted)
        gradients = torch.autograd.grad(total, [*twin.state.values(), *theirs.values()], allow_unused=True)
        mine = [*(parameter.grad for parameter in model.parameters()), *(value.grad for value in ours.values())]
        for name, one, other in zip([*twin.state, *theirs], mine, gradients, strict=True):
            one, other = (torch.zeros(()).double() if g is None else g for g in (one, other))
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-8), name


@pytest.mark.parametrize("kind", ["sasrec_retrieval", "esasrec"])
@pytest.mark.parametrize("rich", [False, True])
def test_answers_the_product_of_both_vectors_when_it_does_not_train(kind, rich):
    model = build(kind, rich, cosine=True, temperature=0.2).eval()
    values, lengths, dense, weights, _, _ = batch(rich)
    twin = Twin(model, rich)
    rows = twin.rows(values, lengths, dense)
    users = twin.users(rows)
    has = lengths["item"] > 0
    wanted = torch.stack([users[b] @ twin.compared(rows[b][3]) for b in range(SIZE) if has[b]]).detach()
    torch.testing.assert_close(model(values, lengths, dense)["next"][has], wanted)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    torch.testing.assert_close(scripted(values, lengths, dense, None)["next"][has], wanted)
    assert not any("rarity" in name or "dropout.seed" in name for name in scripted.state_dict())


def test_matrices_begin_as_in_the_published_code():
    """PyTorch's attention draws its three matrices as one; LiGR's W_1 and W_3 are two."""
    torch.manual_seed(4)
    config = parse_model({"kind": "esasrec", "attention": [{"query": ["item"], "events": ["seen"]}], "positions": 3})
    wide = Inputs({"item": 128}, {"seen": 128}, [])
    block = network("esasrec")(config, wide, TASKS).towers.user.body.blocks[0]
    one, other = block.hidden.weight.chunk(2)
    for matrix, deviation in [
        (one, math.sqrt(2 / (128 + 512))),
        (other, math.sqrt(2 / (128 + 512))),
        (block.attention.query.weight, math.sqrt(2 / (128 + 384))),
        (block.attention.keys.weight, math.sqrt(2 / (128 + 384))),
        (block.attention.out.weight, math.sqrt(2 / 256)),
    ]:
        assert float(matrix.std()) == pytest.approx(deviation, rel=0.05)
    layers = (block.attention.query, block.attention.keys, block.attention.out)
    assert not any(layer.bias.any() for layer in layers)


def test_all_items_once_are_the_full_softmax():
    model = build("sasrec_retrieval", False)
    items = 20
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(items, D, generator=generator, dtype=torch.float64)
    count, own = torch.tensor([4, 2]), torch.tensor([5, 6])
    events = torch.randint(0, items, (6,), generator=generator)
    lengths = {"item": torch.ones(2 + items, dtype=torch.long), "seen": torch.cat([count, torch.zeros(items).long()])}
    every = torch.cat([own, torch.arange(items)])
    values, dense = {"item": table[every], "seen": table[events]}, torch.zeros(2 + items, 0).double()
    often = torch.ones(2 + items).double()
    z = model(values, lengths, dense, torch.ones(2).double(), torch.cat([every, events]), often)["next"]
    states, _ = model.towers.user.states(values["seen"], values, {"seen": count})
    targets = torch.cat([events[1:4], own[:1], events[5:], own[1:]])
    torch.testing.assert_close(F.softplus(-z), F.cross_entropy(states @ table.t(), targets, reduction="none"))


@pytest.mark.slow
def test_shared_items_stand_for_the_whole_catalogue():
    """The mean over draws of what the others add up to is what all of them add up to."""
    model = build("sasrec_retrieval", False)
    items, drawn = 20, 8
    generator = torch.Generator().manual_seed(0)
    table = 0.3 * torch.randn(items, D, generator=generator, dtype=torch.float64)
    chance = torch.rand(items, generator=generator).double()
    chance /= chance.sum()
    events = torch.tensor([4, 9])
    lengths = {"item": torch.ones(1 + drawn, dtype=torch.long), "seen": torch.tensor([2] + [0] * drawn)}
    states, _ = model.towers.user.states(table[events], {}, {"seen": torch.tensor([2])})
    sums = []
    for _ in range(3000):
        found = torch.multinomial(chance, drawn, replacement=True, generator=generator)
        every = torch.cat([torch.tensor([7]), found])
        values, often = {"item": table[every], "seen": table[events]}, drawn * chance[every]
        given = (torch.zeros(1 + drawn, 0).double(), torch.ones(1).double(), torch.cat([every, events]), often)
        z = model(values, lengths, *given)["next"][-1].detach()
        sums.append((states[-1] @ table[7] - z).exp())
    scores = (states[-1] @ table.t()).detach()
    wanted = scores.exp().sum() - scores[7].exp()
    assert float(torch.stack(sums).mean()) == pytest.approx(float(wanted), rel=0.02)


def test_an_item_loses_the_same_numbers_wherever_it_stands():
    torch.manual_seed(3)
    dropout, keys = ItemDropout(0.25), torch.arange(50_000)
    first, again = dropout.masks(6), dropout.masks(6)
    assert first.cells.shape == (masks.ROWS, 6)
    one, other = (masked(torch.ones(50_000, 6), keys, part) for part in (first, again))
    assert one.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float(one.mean()) == pytest.approx(1, abs=0.03)
    assert float((one != other).float().mean()) == pytest.approx(2 * 0.25 * 0.75, abs=0.03)  # each step anew
    assert torch.equal(masked(torch.ones(3, 6), keys[:3], first), one[:3])
    held = ItemDropout(0.25)
    held.load_state_dict({**dropout.state_dict(), "steps": torch.zeros((), dtype=torch.long)})
    assert all(map(torch.equal, held.masks(6), first))  # a function of the seed and the step
    together = row(keys[:9000] + first.salt, masks.ROWS, False) == row(keys[9000:18000] + first.salt, masks.ROWS, False)
    apart = row(keys[:9000] + again.salt, masks.ROWS, False) != row(keys[9000:18000] + again.salt, masks.ROWS, False)
    assert bool(apart[together].all())  # who shares a mask does so in this step alone
    assert dropout.eval().masks(6) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "model.heads: 3 heads do not divide the 8 columns of the items' table"),
        ({"cosine": True}, "model.temperature: of cosines, which are at most 1, a temperature of 1 leaves"),
        ({"attention": [{"query": ["itm"], "events": ["seen"]}]}, "there is no id feature 'itm'"),
    ],
)
def test_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):  # pydantic's, of what its section alone tells
        build("sasrec_retrieval", False, **change)


def test_learns_one_task():
    config = parse_model({"kind": "esasrec", "attention": [{"query": ["item"], "events": ["seen"]}]})
    with pytest.raises(BadInput, match="tasks: esasrec learns one vector of each side, for one task, and here are 2"):
        network("esasrec")(config, BARE, TASKS | {"like": Task(label="like", kind="retrieval")})
