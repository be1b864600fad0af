import pytest
import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.registry import MODELS, parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.search import Search
from livetrain.modules.models.lr import LR
from livetrain.modules.models.registry import network
from livetrain.modules.network import REGULARISER

INPUTS = Inputs({"user": 4, "movie": 8}, {"seen": 8, "rated": 4, "genres": 4}, ["age", "price"], limits={"seen": 6})
ONE_DIM = Inputs({"user": 8, "movie": 8}, {"seen": 8, "rated": 8, "genres": 8}, ["age", "price"])
THIRDS = Inputs({"user": 6, "movie": 9}, {"seen": 9, "rated": 3, "genres": 6}, ["age", "price"])
ELEMENTWISE = ["fm", "nfm", "deepfm"]  # kinds that multiply factors element by element, so that tables need one dim
TASKS = ["click", "like"]
DECLARED = {task: Task(label=task) for task in TASKS}
DIN = {"kind": "din", "attention": [{"query": ["movie"], "events": ["seen"], "side": ["rated"]}], "pooled": ["genres"]}
FARM = {
    "kind": "farm",
    "attention": [*DIN["attention"], {"query": ["user"], "events": ["genres"]}],
    "width": 8,
    "frequency": {"cutoff": 2, "units": [4]},
    "expert_units": [16],
}
TWO = {
    "attention": [
        {"query": ["movie", "user"], "events": ["seen", "rated"]},
        {"query": ["user"], "events": ["genres"]},
    ]
}
KINDS = {
    "din": DIN,
    "din-softmax-relu": {**DIN, "softmax": True, "activation": "relu"},
    "din-two-histories": {**DIN, **TWO, "pooled": []},
    "farm": FARM,
    "farm-learned": {**FARM, "frequency": {"filter": "learned", "length": 4}},
    "farm-concat": {**FARM, "fuse": "concat", "frequency": None, "softmax": True, "levels": 2},
    "farm-one-domain": {**FARM, "attention": FARM["attention"][:1], "pooled": ["genres"]},
    "sasrec": {**DIN, "kind": "sasrec", "width": 8},
    "dnn": {"kind": "dnn"},
    "dnn-dice": {"kind": "dnn", "activation": "dice"},
    "lr": {"kind": "lr"},
    "fm": {"kind": "fm"},
    "nfm": {"kind": "nfm", "units": [16]},
    "nfm-dice": {"kind": "nfm", "activation": "dice"},
    "kfm": {"kind": "kfm"},
    "wide_deep": {"kind": "wide_deep"},
    "deepfm": {"kind": "deepfm"},
    "deepfm-kernel": {"kind": "deepfm", "products": "kernel"},
    "deepfm-dice": {"kind": "deepfm", "activation": "dice"},
    "dcnv2": {"kind": "dcnv2"},
    "dcnv2-stacked": {"kind": "dcnv2", "structure": "stacked", "cross_layers": 3, "rank": 4, "activation": "dice"},
    "dcnv2-crosses-alone": {"kind": "dcnv2", "structure": "stacked", "units": []},
    "shared_bottom": {**DIN, "kind": "shared_bottom"},
    "esmm": {**DIN, "kind": "esmm", "chains": [["click", "like"]], "tower_units": [16]},
    "mmoe": {**DIN, "kind": "mmoe", "expert_units": [16, 8], "activation": "relu"},
    "mmoe-without-attention": {"kind": "mmoe", "pooled": ["seen", "rated", "genres"], "expert_units": [16]},
    "cgc": {**DIN, "kind": "cgc", "own": 2, "expert_units": [16]},
    "ple": {**DIN, "kind": "ple", "shared": 2, "expert_units": [16, 8]},
    "rankmixer": {**DIN, "kind": "rankmixer", "tokens": 4, "width": 8, "tower_units": [16]},
    "pepnet": {**DIN, "kind": "pepnet", "domain": ["age"], "personal": ["movie", "user"], "gate_units": 8},
    "pepnet-of-the-domain": {**DIN, "kind": "pepnet", "domain": ["user", "age"], "tower_units": []},
    "pepnet-of-the-user": {**DIN, "kind": "pepnet", "personal": ["user"]},
    "stem": {**DIN, "kind": "stem", "own": 2, "expert_units": [16]},
    "hstu": {**DIN, "kind": "hstu", "width": 8, "length": 6},
    "shared-bottom-over-hstu": {**DIN, "kind": "shared_bottom", "trunk": {"kind": "hstu", "width": 8, "heads": 1}},
    "twin": {
        "kind": "twin",
        "search": DIN["attention"],
        "attention": DIN["attention"],
        "pooled": ["genres"],
        "nearest": 2,
    },
    "mmoe-over-twin": {
        "kind": "mmoe",
        "trunk": {
            "kind": "twin",
            "search": [*DIN["attention"], {"query": ["user"], "events": ["genres"]}],
            "nearest": 3,
        },
    },
    "onetrans": {**DIN, "kind": "onetrans", "width": 8, "length": 4, "newest": 2},
    "mmoe-over-onetrans": {
        **TWO,
        "kind": "mmoe",
        "trunk": {"kind": "onetrans", "width": 8, "heads": 1, "tokens": 3, "blocks": 3, "length": 6, "newest": 3},
    },
    "cgc-over-rankmixer": {**DIN, "kind": "cgc", "trunk": {"kind": "rankmixer", "tokens": 4, "width": 8}},
}
# Row by row: the length of each feature. The two sequences of one history are equally long.
ROWS = [
    {"user": 1, "movie": 1, "seen": 3, "rated": 3, "genres": 2},
    {"user": 0, "movie": 1, "seen": 0, "rated": 0, "genres": 0},
    {"user": 1, "movie": 0, "seen": 1, "rated": 1, "genres": 4},
    {"user": 1, "movie": 1, "seen": 5, "rated": 5, "genres": 1},
]
EMPTY = {"user": 0, "movie": 0, "seen": 0, "rated": 0, "genres": 0}


def build(config: dict, inputs: Inputs = INPUTS):
    torch.manual_seed(0)
    config = parse_model(config)
    return network(config.kind)(config, inputs, DECLARED)


@pytest.fixture(params=KINDS)
def config(request):
    return KINDS[request.param]


@pytest.fixture
def inputs(config):
    return {"stem": THIRDS}.get(config["kind"], ONE_DIM if config["kind"] in ELEMENTWISE else INPUTS)


@pytest.fixture
def model(config, inputs):
    return build(config, inputs)


def row(index: int, lengths: dict[str, int], inputs: Inputs = INPUTS) -> dict:
    generator = torch.Generator().manual_seed(index)
    dims = {**inputs.ids, **inputs.sequences}
    values = {name: torch.randn(length, dims[name], generator=generator) for name, length in lengths.items()}
    return {"values": values, "lengths": lengths, "dense": torch.randn(2, generator=generator)}


def collate(rows: list[dict]) -> tuple:
    """Return values, lengths and dense of a batch of rows."""
    values = {name: torch.cat([r["values"][name] for r in rows]) for name in rows[0]["values"]}
    lengths = {name: torch.tensor([r["lengths"][name] for r in rows]) for name in rows[0]["lengths"]}
    return values, lengths, torch.stack([r["dense"] for r in rows])


def batch(inputs: Inputs = INPUTS) -> list[dict]:
    return [row(index, lengths, inputs) for index, lengths in enumerate(ROWS)]


def test_every_model_is_registered():
    assert {"din", "dnn", "lr"} <= set(MODELS)
    with pytest.raises(BadInput, match="did you mean 'din'"):
        network("dim")


@pytest.mark.some(9)
def test_gives_a_logit_a_row_and_task(model, inputs):
    logits = model(*collate(batch(inputs)), torch.ones(4))
    assert list(logits) == TASKS
    assert all(value.shape == (4,) and value.dtype == torch.float32 for value in logits.values())
    assert not torch.equal(*logits.values())


@pytest.mark.some(9)
def test_a_score_does_not_depend_on_the_other_rows(model, inputs):
    model.eval()
    rows = batch(inputs)
    together = model(*collate(rows), None)
    reverse = model(*collate(rows[::-1]), None)
    for task in TASKS:
        torch.testing.assert_close(reverse[task].flip(0), together[task])
        alone = torch.cat([model(*collate([r]), None)[task] for r in rows])
        torch.testing.assert_close(alone, together[task])


@pytest.mark.some(9)
def test_rows_of_weight_0_change_nothing_in_training(model, inputs):
    rows = batch(inputs)
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    for padding in ([], [row(7, ROWS[0], inputs), row(8, EMPTY, inputs), row(9, ROWS[3], inputs)]):
        model.load_state_dict(state)
        model.zero_grad()
        padded = rows[:2] + padding + rows[2:]
        weights = torch.tensor([1.0, 1.0] + [0.0] * len(padding) + [1.0, 1.0])
        values, lengths, dense = collate(padded)
        values = {name: value.requires_grad_() for name, value in values.items()}
        logits = model(values, lengths, dense, weights)
        loss = torch.stack([logits[task].sigmoid() * (weights > 0) for task in TASKS]).sum()
        loss.backward()
        gradients = {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.numel()}
        real = {name: weights.repeat_interleave(lengths[name]) > 0 for name in values}
        assert not any(bool(value.grad[~real[name]].any()) for name, value in values.items())
        embeddings = {f"{name}.values": value.grad[real[name]] for name, value in values.items()}
        seen.append({"loss": loss.detach(), **gradients, **embeddings, **model.state_dict()})
        seen[-1] = {name: value.clone() for name, value in seen[-1].items()}
    assert seen[0].keys() == seen[1].keys()
    for name, value in seen[0].items():
        torch.testing.assert_close(seen[1][name], value, rtol=1e-4, atol=1e-6, msg=lambda t, name=name: f"{name}: {t}")


@pytest.mark.some(9)
def test_every_input_and_parameter_has_a_gradient(model, inputs):
    for part in model.modules():
        if isinstance(part, Search):
            torch.nn.init.normal_(part.beta)  # begins at 0, and what it is multiplied with learns from then on
    values, lengths, dense = collate(batch(inputs))
    values = {name: value.requires_grad_() for name, value in values.items()}
    dense.requires_grad_()
    logits = model(values, lengths, dense, torch.ones(4))
    sum((logits[task] * torch.arange(1, 5)).sum() for task in TASKS).backward()
    # What is added to all scores that a softmax takes changes nothing: its gradient is 0 but for rounding.
    shifts = {f"{name}.rest.last.bias" for name, part in model.named_modules() if getattr(part, "softmax", False)}
    for name, tensor in {**values, "dense": dense, **dict(model.named_parameters())}.items():
        assert tensor.grad is not None or not tensor.numel(), name
        if name in shifts or not tensor.numel():
            continue
        if name != "dense" or not isinstance(model, LR):  # the weights of LR start at 0
            assert bool(tensor.grad.any()), name


@pytest.mark.some(12)
def test_scripted_equals_eager(model, inputs):
    model(*collate(batch(inputs)), torch.ones(4))  # moves the running statistics
    model.eval()
    scripted = torch.jit.script(model)
    for rows in (batch(inputs), batch(inputs)[:1], [row(7, EMPTY, inputs)] * 2):
        arguments = collate(rows)
        expected = model(*arguments, None)
        for _ in range(3):  # the profiling executor changes its mind in the first calls
            actual = scripted(*arguments, None)
            for task in TASKS:
                torch.testing.assert_close(actual[task], expected[task])


@pytest.mark.some(9)
def test_bfloat16_autocast_stays_close(model, inputs):
    values, lengths, dense = collate(batch(inputs))
    values = {name: value.requires_grad_() for name, value in values.items()}
    model.eval()
    full = model(values, lengths, dense, None)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        low = model.eval()(values, lengths, dense, None)
        trained = model.train()(values, lengths, dense, torch.ones(4))
    for task in TASKS:
        assert low[task].dtype == torch.float32
        torch.testing.assert_close(low[task], full[task], rtol=0.05, atol=0.05)
    sum(logits.sum() for logits in trained.values()).backward()
    assert all(value.grad.dtype == torch.float32 and bool(value.grad.isfinite().all()) for value in values.values())


def test_empty_recipe_parts():
    only_dense = build({"kind": "dnn"}, Inputs({}, {}, ["age"]))
    assert only_dense({}, {}, torch.randn(3, 1), None)["click"].shape == (3,)
    only_ids = build({"kind": "lr"}, Inputs({"user": 4}, {}, []))
    logits = only_ids({"user": torch.randn(2, 4)}, {"user": torch.tensor([1, 1])}, torch.zeros(2, 0), None)
    assert logits["like"].shape == (2,)


@pytest.mark.parametrize("kind", ["fm", "nfm", "kfm", "wide_deep", "deepfm", "dcnv2"])
def test_interactions_without_some_type_of_feature(kind):
    user = ({"user": torch.randn(2, 4)}, {"user": torch.tensor([1, 1])})
    seen = ({"seen": torch.randn(3, 4)}, {"seen": torch.tensor([0, 3])})
    for inputs, (values, lengths), dense in (
        (Inputs({"user": 4}, {}, []), user, 0),
        (Inputs({}, {"seen": 4}, ["age"]), seen, 1),
        (Inputs({}, {}, ["age", "price"]), ({}, {}), 2),
    ):
        if kind in ELEMENTWISE and dense == 2:
            with pytest.raises(BadInput, match="no feature has a table; add an id or a sequence feature"):
                build({"kind": kind}, inputs)
            continue
        logits = build({"kind": kind}, inputs)(values, lengths, torch.randn(2, dense), None)
        assert all(logit.shape == (2,) and bool(logit.isfinite().all()) for logit in logits.values())


def test_lr_is_a_sum_of_columns():
    model = build({"kind": "lr"})
    with torch.no_grad():
        model.linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        model.linear.bias.copy_(torch.tensor([0.5, -0.5]))
    rows = batch()
    logits = model(*collate(rows), None)
    for index, r in enumerate(rows):
        for t, task in enumerate(TASKS):
            ids = sum(float(value[:, t].sum()) for value in r["values"].values())
            expected = ids + float(r["dense"] @ model.linear.weight[t].detach()) + float(model.linear.bias[t])
            assert float(logits[task][index]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": [{"query": ["film"], "events": ["seen"]}]}, r"attention.0.query: .*'film'"),
        ({"attention": [{"query": ["movie"], "events": ["sen"]}]}, r"attention.0.events: .*did you mean 'seen'"),
        ({"attention": [{"query": ["movie"], "events": ["seen"], "side": ["rate"]}]}, r"side: .*'rate'"),
        ({"attention": [{"query": ["user"], "events": ["seen"]}]}, r"'user' has dim 4 .*'seen' dim 8"),
        ({"pooled": ["genre"]}, r"model.pooled: .*did you mean 'genres'"),
        ({"pooled": []}, r"features.genres: no part of the model reads"),
        ({"pooled": ["genres", "movie"]}, r"no sequence feature 'movie'"),
    ],
)
def test_din_names_what_is_wrong(change, message):
    with pytest.raises(BadInput, match=message):
        build({**DIN, **change})


def test_din_pairs_query_and_events():
    with pytest.raises(ValueError, match="pair them one to one"):
        parse_model({"kind": "din", "attention": [{"query": ["movie"], "events": ["seen", "rated"]}]})


@pytest.mark.parametrize("scripted", [False, True])
def test_din_refuses_lists_of_one_history_that_are_not_parallel(scripted):
    """Even where the totals agree: row 0 lacks what row 1 has too much."""
    values, lengths, dense = collate(batch())
    lengths["rated"] = lengths["rated"].flip(0)
    assert not torch.equal(lengths["rated"], lengths["seen"])
    model = torch.jit.script(build(DIN)) if scripted else build(DIN)
    error = torch.jit.Error if scripted else BadInput
    with pytest.raises(error, match="features seen and rated: the lists of one history must have the same length"):
        model(values, lengths, dense, None)


def test_lr_needs_a_column_a_task():
    config = parse_model({"kind": "lr"})
    with pytest.raises(BadInput, match=r"the table of features.user has dim 4 for 5; raise its dim"):
        network("lr")(config, INPUTS, {task: Task(label=task) for task in "abcde"})


@pytest.mark.parametrize("kind", ["fm", "nfm", "kfm", "wide_deep", "deepfm"])
def test_factors_need_columns_beside_those_of_the_tasks(kind):
    tasks = {task: Task(label=task) for task in "abcd"}
    with pytest.raises(BadInput, match=r"features.user has dim 4, and its first 4, .*; raise its dim"):
        network(kind)(parse_model({"kind": kind}), INPUTS, tasks)


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_factors_multiplied_element_by_element_have_one_size(kind):
    with pytest.raises(BadInput, match=r"features.user has 4 numbers, one of features.movie 8; .* or use kind kfm"):
        build({"kind": kind})


BAD = {
    "tokens that do not divide": (
        {**DIN, "kind": "rankmixer", "tokens": 5, "width": 16},
        r"5 tokens exchange parts of width 16.*set width: 15",
    ),
    "more tokens than numbers": (
        {**DIN, "kind": "rankmixer", "tokens": 200, "width": 200},
        r"have 30 numbers in all, too few for 200 tokens",
    ),
    "no such trunk": ({**DIN, "kind": "cgc", "trunk": "rankmixr"}, r"rankmixr"),
    "a trunk of a tower's keys": (
        {**DIN, "kind": "cgc", "trunk": {"kind": "rankmixer", "tower_units": [8]}},
        "tower_units",
    ),
    "no gate": ({**DIN, "kind": "pepnet"}, "gates nothing"),
    "a gate on nothing": ({**DIN, "kind": "pepnet", "personal": ["user"], "tower_units": []}, "has none"),
    "a gate by a history": (
        {**DIN, "kind": "pepnet", "domain": ["seen"]},
        r"model.domain: there is no id or dense .*'seen'",
    ),
    "heads that do not divide": ({**DIN, "kind": "hstu", "width": 9}, r"model.heads: 2 heads do not divide width 9"),
    "two histories": (
        {**KINDS["din-two-histories"], "kind": "hstu"},
        r"model.attention: 'hstu' reads one history and not 2",
    ),
    "a history without places": (
        {**DIN, "kind": "hstu", "length": 5},
        r"model.length: 5 is less than the max_length 6 of 'seen'",
    ),
    "a key that the trunk has no use for": (
        {**DIN, "kind": "cgc", "trunk": "hstu", "softmax": True},
        r"model.softmax: trunk 'hstu'",
    ),
    "a search in no history": (
        {"kind": "twin", "search": [{"query": ["movie"], "events": ["sen"]}]},
        r"model.search.0.events: there is no sequence feature 'sen' .did you mean 'seen'",
    ),
    "a history beside the search": (
        {"kind": "twin", "search": [{"query": ["movie"], "events": ["seen"]}]},
        r"features.rated: no part of the model reads",
    ),
    "no events": (
        {"kind": "onetrans", "pooled": ["seen", "rated", "genres"]},
        r"model.attention: 'onetrans' has no history",
    ),
    "fewer events than leave": (
        {**DIN, "kind": "onetrans", "length": 4},
        r"model.newest: 8 events leave .* of 4 in all",
    ),
    "a dim that cannot be cut": ({**DIN, "kind": "stem"}, r"tables.user.dim: 'stem' cuts a row into 3 .* set it to 12"),
}


@pytest.mark.parametrize(("config", "message"), BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_named(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(config)
    assert len(str(caught.value)) < 300 or not isinstance(caught.value, BadInput)


def test_a_trunk_may_be_its_name_alone():
    assert parse_model({**DIN, "kind": "cgc", "trunk": "rankmixer"}).trunk.tokens == 8


@pytest.mark.parametrize("kind", ["fm", "kfm", "deepfm"])
def test_rows_that_are_looked_up_are_held_small(kind):
    """Each as often as it is looked up, rows of padding not, and only in training."""
    inputs = Inputs({"user": 4, "movie": 4}, {"seen": 4}, [])
    net = build({"kind": kind, "l2": 0.5}, inputs).train()
    user, movie, seen = torch.randn(3, 4), torch.randn(3, 4), torch.randn(2, 4)
    values = {"user": user, "movie": movie, "seen": seen}
    lengths = {"user": torch.ones(3).long(), "movie": torch.ones(3).long(), "seen": torch.tensor([2, 0, 0])}
    found = net(values, lengths, torch.zeros(3, 0), torch.tensor([1.0, 2.0, 0.0]))[REGULARISER]
    wanted = user[:2].square().sum() + movie[:2].square().sum() + seen.mean(0).square().sum()
    torch.testing.assert_close(found, 0.5 * wanted / 2)
    assert REGULARISER not in net.eval()(values, lengths, torch.zeros(3, 0), None)
    assert REGULARISER not in build({"kind": kind}, inputs).train()(values, lengths, torch.zeros(3, 0), None)
