"""The newer rankers against plain twins: written from the papers' equations, on padded rows, one row at a time."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from livetrain.configs.registry import parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.rankmixer import mixed
from livetrain.modules.models.registry import network

TASKS = {name: Task(label=name) for name in ("click", "like")}
DENSE = ["age", "price"]
LENGTHS = [3, 0, 1, 5, 2, 4]
Row = dict[str, Tensor]  # (d,) of an id, (T, d) of a sequence, (D,) the dense features
State = dict[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return state[f"{name}.weight"] @ x + state[f"{name}.bias"]


def norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    return (x - x.mean()) / ((x - x.mean()) ** 2).mean().add(eps).sqrt()


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    return norm(x) * state[f"{name}.weight"] + state[f"{name}.bias"]


def tower(state: State, task: int, x: Tensor) -> Tensor:
    hidden = linear(state, f"trunk.towers.{task}.linears.0", x).clamp(min=0)
    return linear(state, f"trunk.towers.{task}.last", hidden)[0]


def towers(state: State, x: Tensor) -> list[Tensor]:
    return [tower(state, task, x) for task in range(len(TASKS))]


def mean(events: Tensor) -> Tensor:
    return events.sum(0) / max(len(events), 1)


def gathered(row: Row) -> Tensor:
    return torch.cat([row["user"], row["movie"], row["dense"]])


def rankmixer(state: State, row: Row, config) -> list[Tensor]:
    """RankMixer, 2507.15551: tokens by slices; token mixing, then a perceptron per token, LN after each sum."""
    e = torch.cat([row["user"], row["movie"], mean(row["seen"]), row["dense"]])
    count, slice_ = config.tokens, math.ceil(len(e) / config.tokens)
    e = torch.cat([e, e.new_zeros(slice_ * count - len(e))])
    weight, bias = state["bottom.tokens.project.weight"], state["bottom.tokens.project.bias"]
    tokens = [e[t * slice_ : (t + 1) * slice_] @ weight[t] + bias[t, 0] for t in range(count)]
    part = config.width // count
    for block in range(config.blocks):
        name = f"bottom.blocks.{block}"
        heads = [[token[h * part : (h + 1) * part] for h in range(count)] for token in tokens]
        mixed = [torch.cat([heads[t][h] for t in range(count)]) for h in range(count)]
        sums = [layer_norm(state, f"{name}.mixed_norm", m + x) for m, x in zip(mixed, tokens, strict=True)]
        tokens = []
        for t, s in enumerate(sums):
            hidden = s @ state[f"{name}.hidden.weight"][t] + state[f"{name}.hidden.bias"][t, 0]
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            out = hidden @ state[f"{name}.out.weight"][t] + state[f"{name}.out.bias"][t, 0]
            tokens.append(layer_norm(state, f"{name}.norm", out + s))
    return towers(state, sum(tokens) / count)


def gate(state: State, name: str, z: Tensor) -> Tensor:
    return 2 * linear(state, f"{name}.out", linear(state, f"{name}.hidden", z).clamp(min=0)).sigmoid()


def pepnet(state: State, row: Row, config) -> list[Tensor]:
    """PEPNet, 2302.01115: one gate on all features, then one on each hidden layer of each task; stopped gradients."""
    e = torch.cat([row["user"], row["movie"], mean(row["seen"]), row["dense"]])
    if config.domain:
        e = gate(state, "bottom.gate", torch.cat([row["movie"], row["dense"][:1], e.detach()])) * e
    z = torch.cat([row["user"], row["dense"][1:], e.detach()])
    out = []
    for task in range(len(TASKS)):
        h, name = e, f"trunk.towers.{task}"
        for layer in range(len(config.tower_units)):
            h = linear(state, f"{name}.linears.{layer}", h).clamp(min=0)
            h = h * gate(state, f"{name}.gates.{layer}", z)
        out.append(linear(state, f"{name}.last", h)[0])
    return out


def stem(state: State, row: Row, config) -> list[Tensor]:
    """STEM, 2308.13537: all experts forward, own and shared ones backward."""
    streams = []
    for part in range(3):
        e = [each.chunk(3, -1)[part] for each in (row["user"], row["movie"], mean(row["seen"]))]
        streams.append(torch.cat([*e, row["dense"]]))
    units = config.expert_units[0]

    def experts(name: str, count: int, x: Tensor) -> list[Tensor]:
        every = linear(state, f"{name}.first", x).clamp(min=0)
        return [every[i * units : (i + 1) * units] for i in range(count)]

    own = [experts(f"trunk.own.{task}", config.own, streams[task]) for task in range(2)]
    shared = experts("trunk.shared", config.shared, streams[2])
    out = []
    for task in range(2):
        seen = [e if other == task else e.detach() for other in range(2) for e in own[other]] + shared
        z = linear(state, f"trunk.gate_layers.{task}.linears.0", streams[task] + streams[2]).clamp(min=0)
        scores = linear(state, f"trunk.gates.{task}.linear", z).exp()
        out.append(tower(state, task, sum(s / scores.sum() * e for s, e in zip(scores, seen, strict=True))))
    return out


def hstu(state: State, row: Row, config) -> list[Tensor]:
    """HSTU, 2402.17152, equations 1 to 3, over one padded sequence [events, candidate] with a causal mask."""
    events = row["seen"] @ state["bottom.space.project.weight"].T
    if config.attention[0].side:
        events = events + row["rated"] @ state["bottom.space.project_side.weight"].T
    candidate = state["bottom.space.project.weight"] @ row["movie"] + state["bottom.waiting"]
    count, width = len(events) + 1, config.width
    x = torch.cat([events, candidate[None]]) * math.sqrt(width) + state["bottom.places.vectors"][:count]
    gaps = row["(gaps of) seen"][:, 0].tolist() if "(gaps of) seen" in row else None
    at = [sum(gaps[:i]) for i in range(count)] if gaps is not None else []  # the candidate's is the row's own
    size = width // config.heads
    for block in range(config.blocks):
        name = f"bottom.layers.{block}"
        z = torch.stack([norm(each, 1e-6) for each in x]) @ state[f"{name}.project"]
        u, v, q, k = (z * z.sigmoid()).split(width, 1)
        seen = []
        for i in range(count):
            heads = []
            for h in range(config.heads):
                own = slice(h * size, (h + 1) * size)
                total = torch.zeros(size, dtype=x.dtype)
                for j in range(i + 1):
                    score = q[i, own] @ k[j, own] + state[f"{name}.by_place"][i - j]
                    if gaps is not None:
                        score = score + state[f"{name}.by_gap"][int(math.log(max(at[i] - at[j], 1)) / 0.301)]
                    total = total + score * score.sigmoid() * v[j, own]
                heads.append(total / (config.length + 1))
            seen.append(u[i] * norm(torch.cat(heads), 1e-6))
        x = torch.stack([x[i] + linear(state, f"{name}.out", seen[i]) for i in range(count)])
    return towers(state, torch.cat([gathered(row), layer_norm(state, "bottom.norm", x[-1])]))


def twin(state: State, row: Row, config) -> list[Tensor]:
    """TWIN, 2302.02352, equations 3 to 6: by head a score of all events, the k largest, and softmax over those."""
    name, width, out = "bottom.long.0.search", config.head_width, []
    both = torch.cat([row["seen"], row["rated"]], 1)
    for h in range(config.heads):
        q = state[f"{name}.query.weight"][h * width : (h + 1) * width] @ row["movie"]
        scores = []
        for event, side in zip(row["seen"], row["rated"], strict=True):
            cross = state[f"{name}.beside.0"] @ side
            scores.append(
                q @ (state[f"{name}.key"][h] @ event) / math.sqrt(width) + cross * state[f"{name}.beta"][0, h]
            )
        best = sorted(range(len(scores)), key=lambda t: -scores[t])[: config.nearest]
        total = sum((scores[t].exp() for t in best), torch.zeros(()))
        found = [scores[t].exp() / total * (both[t] @ state[f"{name}.value"][h]) for t in best]
        out.append(sum(found, torch.zeros(width, dtype=both.dtype)))
    return towers(state, torch.cat([gathered(row), state[f"{name}.out.weight"] @ torch.cat(out)]))


def rms_norm(state: State, name: str, x: Tensor) -> Tensor:
    return x / ((x**2).mean() + 1e-6).sqrt() * state[f"{name}.weight"]


def onetrans(state: State, row: Row, config) -> list[Tensor]:
    """OneTrans, 2510.26104, equations 1 to 12, on one list of tokens, by loops over queries and keys."""
    width, count, names = config.width, config.tokens, [part.events[0] for part in config.attention]
    gathered_ = torch.cat([row["user"], row["movie"], row["dense"]])
    features = linear(state, "bottom.split", gathered_).split(width)
    tokens: list[tuple[int, Tensor | None]] = []  # (seconds ago, token); none where a shorter row has padding
    for i, name in enumerate(names):
        kept = row[name][-config.length :] @ state[f"bottom.spaces.{i}.project.weight"].T
        if f"(gaps of) {name}" in row:
            gaps = row[f"(gaps of) {name}"][:, 0].tolist()
            tokens += [
                (int(sum(gaps[len(gaps) - len(kept) + j :])), token + state["bottom.between"][i])
                for j, token in enumerate(kept)
            ]
        else:
            tokens += [(0, state["bottom.between"][i - 1])] if i > 0 else []
            tokens += [(0, None)] * (config.length - len(kept)) + [(0, token) for token in kept]
    if f"(gaps of) {names[0]}" in row:
        tokens.sort(key=lambda each: -each[0])
    total = len(state["bottom.places"])
    tokens = [(0, None)] * (total - len(tokens)) + tokens
    events = [
        None if token is None else token + place
        for (_, token), place in zip(tokens, state["bottom.places"], strict=True)
    ]
    for block in range(config.blocks):
        keep = total - (total - config.newest) * (block + 1) // config.blocks
        name = f"bottom.blocks.{block}"
        present = [event for event in events if event is not None]
        first = len(present) - sum(event is not None for event in events[-keep:])
        every = [*present, *features]

        def weights(part: str, place: int, x: Tensor, name=name, present=present) -> Tensor:
            if place < len(present):
                return linear(state, f"{name}.{'of_events' if part == 'of' else f'event_{part}'}", x)
            own = f"{name}.{'of_features' if part == 'of' else f'feature_{part}'}"
            return x @ state[f"{own}.weight"][place - len(present)] + state[f"{own}.bias"][place - len(present), 0]

        normed = [rms_norm(state, f"{name}.norm", x) for x in every]
        q, k, v = zip(*(weights("of", t, x).split(width) for t, x in enumerate(normed)), strict=True)
        out, size = [], width // config.heads
        for t in range(first, len(every)):
            heads = []
            for h in range(config.heads):
                own = slice(h * size, (h + 1) * size)
                scores = torch.stack([(q[t][own] @ k[j][own]) / math.sqrt(size) for j in range(t + 1)]).softmax(0)
                heads.append(sum(score * v[j][own] for j, score in enumerate(scores)))
            z = state[f"{name}.project.weight"] @ torch.cat(heads) + every[t]
            hidden = weights("hidden", t, rms_norm(state, f"{name}.forward_norm", z))
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            out.append(weights("out", t, hidden) + z)
        features, left = out[len(out) - count :], out[: len(out) - count]
        later = iter(left)  # each where it stood: padding of a later history lies between
        events = [None if event is None else next(later) for event in events[-keep:]]
    rest = [event for event in events if event is not None]
    return towers(state, torch.cat([*features, sum(rest) / len(rest) if rest else torch.zeros(width).double()]))


INPUTS = Inputs({"user": 4, "movie": 8}, {"seen": 8}, DENSE)
PEPNET = {"kind": "pepnet", "pooled": ["seen"], "personal": ["price", "user"], "gate_units": 6}
SIDE = [{"query": ["movie"], "events": ["seen"], "side": ["rated"]}]
TWIN = {"kind": "twin", "search": SIDE, "head_width": 5}
ONE = [{"query": ["movie"], "events": ["seen"]}]
TWO = [*ONE, {"query": ["user"], "events": ["liked"]}]
ONETRANS = {"kind": "onetrans", "width": 6, "tokens": 3, "length": 4, "newest": 2}
HSTU = {"kind": "hstu", "attention": ONE, "width": 6, "length": 6}
Twin = Callable[[State, Row, Any], list[Tensor]]
CASES: dict[str, tuple[Twin, dict, Inputs]] = {
    "rankmixer": (rankmixer, {"kind": "rankmixer", "pooled": ["seen"], "tokens": 4, "width": 12, "blocks": 3}, INPUTS),
    "pepnet": (pepnet, {**PEPNET, "domain": ["movie", "age"], "tower_units": [7, 5]}, INPUTS),
    "pepnet, the user alone": (pepnet, {**PEPNET, "tower_units": [6]}, INPUTS),
    "hstu": (hstu, {**HSTU, "attention": SIDE}, Inputs({"user": 4, "movie": 8}, {"seen": 8, "rated": 3}, DENSE)),
    "hstu, with times": (
        hstu,
        {**HSTU, "blocks": 3, "heads": 1},
        Inputs({"user": 4, "movie": 8}, {"seen": 8}, DENSE, timed=["seen"]),
    ),
    "twin": (twin, {**TWIN, "nearest": 2}, Inputs({"user": 4, "movie": 8}, {"seen": 8, "rated": 3}, DENSE)),
    "twin, all events": (twin, {**TWIN, "nearest": 9}, Inputs({"user": 4, "movie": 8}, {"seen": 8, "rated": 3}, DENSE)),
    "onetrans": (
        onetrans,
        {**ONETRANS, "attention": ONE},
        Inputs({"user": 4, "movie": 8}, {"seen": 8}, DENSE),
    ),
    "onetrans, one history after the other": (
        onetrans,
        {**ONETRANS, "attention": TWO, "blocks": 3, "heads": 1},
        Inputs({"user": 4, "movie": 8}, {"seen": 8, "liked": 4}, DENSE),
    ),
    "onetrans, histories merged by time": (
        onetrans,
        {**ONETRANS, "attention": TWO},
        Inputs({"user": 4, "movie": 8}, {"seen": 8, "liked": 4}, DENSE, timed=["seen", "liked"]),
    ),
    "stem": (
        stem,
        {"kind": "stem", "pooled": ["seen"], "own": 2, "shared": 3, "expert_units": [5], "gate_units": [4]},
        Inputs({"user": 3, "movie": 6}, {"seen": 6}, DENSE),
    ),
}


@pytest.mark.parametrize(("twin", "keys", "inputs"), CASES.values(), ids=CASES.keys())
def test_equals_the_plain_twin(twin, keys, inputs):
    torch.manual_seed(3)
    config = parse_model({"tower_units": [7], **keys})
    model = network(config.kind)(config, inputs, TASKS).double()
    for parameter in model.parameters():  # also those that start at 0 or 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    state = {name: value.detach().clone().requires_grad_() for name, value in model.state_dict().items()}
    counts = {name: torch.tensor(LENGTHS) for name in inputs.sequences} | {
        name: torch.ones(len(LENGTHS), dtype=torch.long) for name in inputs.ids
    }
    dims = {**inputs.ids, **inputs.sequences}
    values = {name: torch.randn(int(counts[name].sum()), dims[name]).double().requires_grad_() for name in dims}
    dense = torch.randn(len(LENGTHS), len(inputs.dense)).double().requires_grad_()
    beside = {f"(gaps of) {name}": torch.randint(0, 9999, (sum(LENGTHS), 1)).double() for name in inputs.timed}

    ours = model(values | beside, counts, dense, torch.ones(len(LENGTHS)).double())
    parts = {name: value.split(counts[name].tolist()) for name, value in values.items()}
    parts |= {name: value.split(LENGTHS) for name, value in beside.items()}
    theirs = []
    for place in range(len(LENGTHS)):
        row = {name: part[place] if name not in inputs.ids else part[place][0] for name, part in parts.items()}
        theirs.append(torch.stack(twin(state, {**row, "dense": dense[place]}, config)))
    for task, wanted in zip(TASKS, torch.stack(theirs, 1), strict=True):
        torch.testing.assert_close(ours[task], wanted, rtol=1e-9, atol=1e-10)

    upstream = torch.randn(len(TASKS), len(LENGTHS)).double()
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.numel()}
    reached = {**learned, **values, "dense": dense}
    found = torch.autograd.grad((torch.stack(list(ours.values())) * upstream).sum(), list(reached.values()))
    copies = {**{name: state[name] for name in learned}, **values, "dense": dense}
    wanted = torch.autograd.grad((torch.stack(theirs, 1) * upstream).sum(), list(copies.values()))
    for name, one, other in zip(reached, found, wanted, strict=True):
        assert bool(one.any()), name
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_exchanging_parts_undoes_itself():
    tokens = torch.randn(5, 4, 12)
    once = mixed(tokens)
    assert not torch.equal(once, tokens)
    assert torch.equal(mixed(once), tokens)
    for t in range(4):
        for h in range(4):
            assert torch.equal(once[:, h, 3 * t : 3 * t + 3], tokens[:, t, 3 * h : 3 * h + 3])


def test_a_task_of_stem_learns_its_own_and_the_shared_columns_alone():
    config = parse_model({"kind": "stem", "pooled": ["seen"]})
    model = network("stem")(config, Inputs({"user": 3}, {"seen": 6}, []), TASKS)
    values = {"user": torch.randn(4, 3).requires_grad_(), "seen": torch.randn(8, 6).requires_grad_()}
    lengths = {"user": torch.ones(4, dtype=torch.long), "seen": torch.tensor([2, 0, 5, 1])}
    logits = model(values, lengths, torch.zeros(4, 0), torch.ones(4))
    for own, task in enumerate(TASKS):
        for gradient in torch.autograd.grad(logits[task].sum(), list(values.values()), retain_graph=True):
            parts = gradient.chunk(3, 1)
            assert [bool(part.any()) for part in parts] == [own == 0, own == 1, True]
