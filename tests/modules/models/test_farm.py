"""What FARM does beyond what all models do: alignment, its switches, and its twin written from the formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from livetrain.configs.errors import BadInput
from livetrain.configs.registry import parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.align import signature
from livetrain.modules.models.registry import network
from livetrain.modules.network import REGULARISER

INPUTS = Inputs({"user": 4, "room": 8, "author": 4}, {"live": 8, "live_action": 4, "video": 4, "video_gap": 4}, ["age"])
TASKS = {task: Task(label=task) for task in ("click", "gift")}
CONFIG = {
    "kind": "farm",
    "attention": [
        {"query": ["room"], "events": ["live"], "side": ["live_action"]},
        {"query": ["author"], "events": ["video"], "side": ["video_gap"]},
    ],
    "width": 8,
    "frequency": {"cutoff": 2, "units": [4]},
    "align": {"user": "user", "weight": 0.5, "temperature": 0.2, "warmup": 2},
    "expert_units": [16],
}
LIVE, VIDEO = [3, 0, 12, 1, 5], [20, 4, 9, 0, 2]
USERS = [0, 1, 2, 3, 2]


def build(**changes):
    torch.manual_seed(0)
    config = parse_model({**CONFIG, **changes})
    return network(config.kind)(config, INPUTS, TASKS).double()


def batch(live: list[int] = LIVE, video: list[int] = VIDEO, users: list[int] = USERS):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size, people = len(live), draw(4, 4).float().double()
    values = {"user": people[users], "room": draw(size, 8), "author": draw(size, 4)}
    lengths = {name: torch.ones(size, dtype=torch.long) for name in values}
    for domain, side, counts in (("live", "live_action", live), ("video", "video_gap", video)):
        for name in (domain, side):
            values[name] = draw(sum(counts), INPUTS.sequences[name])
            lengths[name] = torch.tensor(counts)
    return values, lengths, draw(size, 1)


def attend(layer, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Softmax attention of one row's events, head by head."""
    q, (k, v) = layer.query(queries), layer.keys(keys).chunk(2, 1)
    heads = []
    for part in torch.arange(q.size(1)).chunk(layer.heads):
        scores = q[:, part] @ k[:, part].T / len(part) ** 0.5
        heads.append(scores.softmax(1) @ v[:, part])
    return layer.out(torch.cat(heads, 1))


def view(domain, layer, events: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """F of one row: projection, then the gated low and high frequencies of its own events."""
    v = domain.project(events) + domain.project_side(side)
    spectrum = torch.fft.rfft(v, dim=0)
    spectrum[2:] = 0
    low = torch.fft.irfft(spectrum, n=len(v), dim=0)
    alpha, beta = layer.gate(v.mean(0, keepdim=True)).sigmoid().chunk(2, 1)
    return layer.norm(v + alpha * low + beta * (v - low))


def twin(model, values, lengths, dense) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
    """Logits (B, T), row by row from the docstring's formulas, and each row's mean F by domain, None without events."""
    names = [("live", "live_action", "room"), ("video", "video_gap", "author")]
    parts = {n: values[n].split(lengths[n].tolist()) for n in values}
    rows, pooled = [], []
    for row in range(len(dense)):
        fs = [
            view(model.domains[i], model.filters[i], parts[e][row], parts[s][row]) if len(parts[e][row]) else None
            for i, (e, s, _) in enumerate(names)
        ]
        pooled.append([None if f is None else f.mean(0) for f in fs])
        hs = []
        for i, f in enumerate(fs):
            if f is None:
                hs.append(None)
                continue
            f = f + model.fuse.positions[i].vectors[torch.arange(len(f) - 1, -1, -1)]
            (block,) = model.fuse.blocks[i]
            f = f + attend(block.attention, block.norm(f), block.norm(f))
            hs.append(f + block.out(block.hidden(block.forward_norm(f)).relu()))
        seen = []
        for i, (own, other) in enumerate(((hs[0], hs[1]), (hs[1], hs[0]))):
            cross, unit, domain = model.fuse.crosses[i], model.units[i], model.domains[i]
            if own is None:
                seen.append(torch.zeros(8, dtype=torch.float64))
                continue
            if other is not None:
                own = own + attend(cross.attention, cross.norm(own), cross.other_norm(other))
            c = model.fuse.norms[i](own)
            q = domain.norm(domain.project(parts[names[i][2]][row])).expand(len(c), -1)
            hidden = unit.activation(F.linear(torch.cat([q, c, q - c, q * c], 1), unit.first.weight, unit.first.bias))
            seen.append((unit.rest(hidden) * c).sum(0))
        x = torch.cat([values["user"][row], values["room"][row], values["author"][row], dense[row], *seen])
        rows.append(torch.stack(model.trunk(x.unsqueeze(0), None)).flatten())
    return torch.stack(rows), pooled


def test_equals_its_twin_row_by_row():
    model = build().eval()
    arguments = batch()
    logits = model(*arguments)
    wanted, _ = twin(model, *arguments)
    torch.testing.assert_close(torch.stack(list(logits.values()), 1), wanted)


def test_the_alignment_sees_users_with_both_domains_and_no_padding():
    model, (values, lengths, dense) = build().train(), batch()
    weights = torch.tensor([1.0, 1, 1, 1, 1])
    logits = model(values, lengths, dense, weights)
    _, pooled = twin(model, values, lengths, dense)
    rows = [0, 2, 4]  # row 1 has no live events and row 3 no videos; rows 2 and 4 are one user's
    a, b = (F.normalize(torch.stack([pooled[row][i] for row in rows]), dim=1) for i in (0, 1))
    scores = a @ b.T / 0.2
    scores[1, 2] = scores[2, 1] = -torch.inf
    wanted = -(scores.log_softmax(1).diagonal().sum() + scores.log_softmax(0).diagonal().sum()) / 6
    torch.testing.assert_close(logits[REGULARISER], 0.5 / 2 * wanted)  # half way through the warm-up
    weights[0] = 0
    torch.testing.assert_close(model(values, lengths, dense, weights)[REGULARISER], torch.zeros(()).double())


def test_the_alignment_trains_the_filters_and_nothing_behind_them():
    model, (values, lengths, dense) = build().train(), batch()
    model(values, lengths, dense, torch.ones(5))[REGULARISER].backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"domains", "filters"}


@pytest.mark.parametrize("changes", [{"align": None}, {"align": {"user": "user", "weight": 0}}])
def test_without_alignment_there_is_no_regulariser(changes):
    model = build(**changes).train()
    assert list(model(*batch(), torch.ones(5))) == list(TASKS)
    assert list(build().eval()(*batch())) == list(TASKS)


def test_rows_of_one_user_are_known_by_their_embedding():
    (values, _, _) = batch()
    marks = signature(values["user"])
    assert [[bool(a == b) for b in marks] for a in marks] == [[a == b for b in USERS] for a in USERS]


@pytest.mark.parametrize("own", [[], ["video", "video_gap"]], ids=["both histories", "one history"])
@pytest.mark.parametrize("fuse", ["attention", "concat"])
def test_one_user_for_all_candidates(own, fuse):
    """What a server asks: histories of one row, candidates of many."""
    model = build(fuse=fuse).eval()
    values, lengths, dense = batch([7] * 6, [12] * 6, [1] * 6)
    shared = [name for name in ("user", "live", "live_action", "video", "video_gap") if name not in own]
    once = {n: v[: len(v) // 6] if n in shared else v for n, v in values.items()}
    repeated = {n: v[: len(v) // 6].repeat(6, 1) if n in shared else v for n, v in values.items()}
    wanted = model(repeated, lengths, dense)
    found = model(once, {n: v[:1] if n in shared else v for n, v in lengths.items()}, dense)
    torch.testing.assert_close(found, wanted)


def test_a_batch_without_events_has_the_same_graph():
    """The ranks' backward passes must meet, whatever their rows lack."""
    model, found = build().train(), []
    for arguments in (batch(), batch([0] * 5, [0] * 5)):
        model.zero_grad()
        sum(logit.sum() for logit in model(*arguments, torch.ones(5)).values()).backward()
        found.append({name for name, p in model.named_parameters() if p.grad is not None})
    assert found[0] == found[1] == {name for name, _ in model.named_parameters()}


def test_switches_leave_parts_out():
    def parts(**changes):
        return {type(m).__name__ for m in build(**changes).modules()} & {
            "Split",
            "Learned",
            "Plain",
            "Cross",
            "Align",
            "_Fuse",
        }

    assert parts() == {"Split", "Cross", "Align", "_Fuse"}
    assert parts(frequency=None) == {"Plain", "Cross", "Align", "_Fuse"}
    assert parts(frequency={"filter": "learned", "length": 9}) == {"Learned", "Cross", "Align", "_Fuse"}
    assert parts(fuse="concat") == {"Split", "Align"}
    assert parts(align={"user": "user", "weight": 0}) == {"Split", "Cross", "_Fuse"}
    assert len(build(levels=3, blocks=2).trunk.levels) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"align": {"user": "usr"}}, r"model.align.user: .* 'usr' .did you mean 'user'"),
        ({"attention": CONFIG["attention"][:1]}, "one domain has nothing to be aligned with"),
        ({"attention": CONFIG["attention"][:1], "align": None}, "features.video: no part of the model reads"),
        ({"heads": 3}, "3 heads do not divide model.width 8"),
        ({"frequency": {"cutoff": 2.5}}, "2.5 is neither a number of frequencies nor a share"),
        ({"frequency": {"filter": "learned"}}, "model.frequency.length: a learned filter needs it"),
    ],
)
def test_names_what_is_wrong(changes, message):
    with pytest.raises((BadInput, ValueError), match=message):
        build(**changes)


def sasrec():
    torch.manual_seed(0)
    config = parse_model(
        {
            "kind": "sasrec",
            "attention": CONFIG["attention"][:1],
            "pooled": ["video", "video_gap"],
            "width": 8,
            "heads": 2,
        }
    )
    return network("sasrec")(config, INPUTS, TASKS).double().eval()


def test_sasrec_equals_its_twin_row_by_row():
    """Against torch's encoder layer, which is SASRec's block when it normalises first."""
    model, (values, lengths, dense) = sasrec(), batch()
    states = []
    for row, part in enumerate(values["live"].split(LIVE)):
        if len(part) == 0:
            states.append(torch.zeros(8).double())
            continue
        x = model.domain.project(part) + model.domain.project_side(values["live_action"].split(LIVE)[row])
        x = x + model.positions.vectors[torch.arange(len(part) - 1, -1, -1)]
        for block in model.blocks:
            x = encoder(block)(x[None], src_mask=torch.ones(len(part), len(part)).triu(1).bool())[0]
        states.append(model.norm(x)[-1])
    state, query = torch.stack(states), model.domain.norm(model.domain.project(values["room"]))
    means = [
        torch.stack([p.mean(0) if len(p) else torch.zeros(4).double() for p in values[n].split(VIDEO)])
        for n in ("video", "video_gap")
    ]
    rest = [values["user"], values["room"], values["author"], *means, dense]
    wanted = model.tower(torch.cat([*rest, state, query, state * query], 1))
    torch.testing.assert_close(torch.stack(list(model(values, lengths, dense).values()), 1), wanted)


def encoder(block) -> nn.TransformerEncoderLayer:
    theirs = nn.TransformerEncoderLayer(8, 2, 8, 0.0, "relu", batch_first=True, norm_first=True).double().eval()
    attention = block.attention
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([attention.query.weight, attention.keys.weight]),
            "self_attn.in_proj_bias": torch.cat([attention.query.bias, attention.keys.bias]),
            "self_attn.out_proj.weight": attention.out.weight,
            "self_attn.out_proj.bias": torch.zeros(8),
            **{f"linear1.{k}": v for k, v in block.hidden.state_dict().items()},
            **{f"linear2.{k}": v for k, v in block.out.state_dict().items()},
            **{f"norm1.{k}": v for k, v in block.norm.state_dict().items()},
            **{f"norm2.{k}": v for k, v in block.forward_norm.state_dict().items()},
        }
    )
    return theirs
