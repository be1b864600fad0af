"""The dense part as one graph: how many graphs there are, and that they learn what no graph would."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import ModelConfig, Recipe, Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.moving import Moving, written
from livetrain.modules.model import Model
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import Network
from livetrain.modules.tasks.heads import Heads
from livetrain.trainers.export.export import export
from livetrain.trainers.runtime import ranks, run_folder
from livetrain.trainers.train import compiled_dense
from livetrain.trainers.train.compiled_dense import CompiledDense
from livetrain.trainers.train.compiled_tasks import TasksAtOnce
from livetrain.trainers.train.probes.expert_use import Utilisation
from livetrain.trainers.train.sharding import shard
from tests import samples, twins
from tests.cases import often
from tests.trainers.train import test_farm as farm
from tests.trainers.train import test_loop as loop
from tests.trainers.train import test_sharding as one
from tests.trainers.train.gradients import test_combination as several

CPU = torch.device("cpu")
ATTENTION = several.ATTENTION["attention"]
EQUAL_DIMS = {"tables__rating__dim": 8}
IDS_ALONE = {name: {"type": "id", "table": name} for name in ("user", "movie")}
NCF_TABLES = {name: {"rows": 50, "dim": 8} for name in IDS_ALONE}
NCF = twins.recipe(
    features=IDS_ALONE, tables=NCF_TABLES, model={"kind": "ncf", "item": "movie", "product": 4, "units": [4]}
)
KINDS: dict[str, Callable[[], Recipe]] = {
    "din": lambda: twins.recipe(model__attention_units=[4], model__units=[4]),
    "din, softmax": lambda: twins.recipe(model__softmax=True),
    "sasrec": lambda: twins.recipe(model={"kind": "sasrec", "attention": ATTENTION, "width": 8, "units": [8]}),
    "farm": farm.recipe,
    "farm, concat": lambda: farm.recipe(model__fuse="concat", model__softmax=True),
    "dssm": lambda: twins.recipe(
        model={"kind": "dssm", "key": "movie", "units": [8], "width": 4, "activation": "dice"},
        tasks={"click": {"label": "label", "kind": "retrieval"}},
    ),
    "hstu_retrieval": lambda: twins.recipe(
        model={"kind": "hstu_retrieval", "attention": ATTENTION, "blocks": 1, "length": 6, "dropout": 0.0},
        tasks={"click": {"label": "label", "kind": "retrieval"}},
        features__history__times="when",
        features__history__until="now",
    ),
    "hstu": lambda: twins.recipe(
        model={"kind": "hstu", "attention": ATTENTION, "width": 8, "blocks": 2, "length": 6, "tower_units": [8]},
        features__history__times="when",
        features__history__until="now",
    ),
    "twin": lambda: twins.recipe(
        model={"kind": "twin", "search": ATTENTION, "nearest": 2, "head_width": 4, "tower_units": [8]}
    ),
    "onetrans": lambda: twins.recipe(
        model={"kind": "onetrans", "attention": ATTENTION, "width": 8, "newest": 3, "tower_units": [8]}
    ),
    "ncf": lambda: NCF,
    **{
        kind: lambda kind=kind: several.recipe("sum", model=several.MODELS[kind])
        for kind in ("shared bottom", "esmm", "mmoe", "ple", "rankmixer", "pepnet")
    },
    "cgc": lambda: several.recipe("sum"),
    **{kind: lambda kind=kind: twins.recipe(model={"kind": kind}) for kind in ("lr", "kfm")},
    **{
        kind: lambda kind=kind: twins.recipe(model={"kind": kind, "units": [8]})
        for kind in ("dnn", "wide_deep", "dcnv2")
    },
    **{
        kind: lambda kind=kind: twins.recipe(model={"kind": kind, "units": [8]}, **EQUAL_DIMS)
        for kind in ("nfm", "deepfm")
    },
    "fm": lambda: twins.recipe(model={"kind": "fm"}, **EQUAL_DIMS),
}


def given(model: Model, recipe: Recipe, seed: int, rows: int) -> tuple:
    """Return what the dense part gets of a batch of so many rows, in float64, with embeddings that gradients reach."""
    sized = recipe.model_copy(update={"data": recipe.data.model_copy(update={"batch_size": rows})})
    batch = twins.batches(sized, 1, seed)[0]
    with mock.patch.object(model.dense, "forward", lambda *inputs: inputs):
        values, lengths, dense, *rest = model(batch.ids, batch.dense, batch.weights, batch.vectors)
    return {name: found.detach().double() for name, found in values.items()}, lengths, dense.double(), *rest


def learned(model: Model, inputs: tuple) -> dict[str, Tensor]:
    """Return answers, the gradients of some sum of them, and the buffers after a step."""
    values = {name: found.clone().requires_grad_() for name, found in inputs[0].items()}
    model.zero_grad()
    answers = model.dense(values, *inputs[1:])
    torch.stack([(a * torch.linspace(-1, 2, a.numel()).view_as(a)).sum() for a in answers.values()]).sum().backward()
    written([layer for layer in model.dense.modules() if isinstance(layer, Moving)])
    reached = {**dict(model.dense.named_parameters()), **{f"of {name}": value for name, value in values.items()}}
    slopes = {f"gradient {name}": each.grad for name, each in reached.items() if each.grad is not None}
    buffers = {f"buffer {name}": buffer.clone() for name, buffer in model.dense.named_buffers()}
    return {name: answer.detach() for name, answer in answers.items()} | slopes | buffers


class Graphs:
    """A backend that counts the graphs it is given, and has another one compile them."""

    def __init__(self, backend: str = "aot_eager") -> None:
        self.backend, self.made = torch._dynamo.lookup_backend(backend), 0

    def __call__(self, graph: torch.fx.GraphModule, examples: list) -> Callable:
        self.made += 1
        return self.backend(graph, examples)


@pytest.fixture(autouse=True)
def fresh():
    """Graphs of other tests are forgotten."""
    torch._dynamo.reset()
    counters.clear()


def same(recipe: Recipe, graphs: Graphs, rows: list[int], tolerance: float = 1e-10) -> list[int]:
    """Hold a compiled dense part to one without graphs, batch by batch; return the graphs made up to each."""
    plain, compiled = Model(recipe).double().train(), Model(recipe).double().train()
    told: list[str] = []
    CompiledDense(compiled, recipe, told.append, graphs)
    made = []
    for seed, size in enumerate(rows):
        inputs = given(plain, recipe, seed, size)
        wanted, found = learned(plain, inputs), learned(compiled, inputs)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(
                found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
        made.append(graphs.made)
    assert told == []
    assert sum(counters["graph_break"].values()) == 0
    return made


@pytest.mark.parametrize("made", often(KINDS, ["din"]))
def test_one_graph_learns_what_none_would_whatever_batches_come(made):
    """Events, missing ids and empty histories differ in all of them; the rows are a rank's, always as many."""
    assert same(made(), Graphs(), [48] * 20) == [1] * 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["din", "mmoe", "farm"])
def test_other_numbers_of_rows_cost_one_more_graph(kind):
    assert same(KINDS[kind](), Graphs(), [48, 36, 24, 60, 48, 12]) == [1, 2, 2, 2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["din", "farm", "mmoe"])
def test_inductors_kernels_learn_the_same(kind):
    assert same(KINDS[kind](), Graphs("inductor"), [48] * 3, 1e-9) == [1] * 3


class AsksConfig(ModelConfig):
    kind: Literal["test_asks"] = "test_asks"


@register_model("test_asks", AsksConfig)
class Asks(Network):
    """What a plugin's network may do: ask for a value, which no graph can know, and draw at random."""

    def __init__(self, config: ModelConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        self.dropout, self.linear, self.heads = nn.Dropout(0.5), nn.Linear(8, 1), Heads(tasks)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, values, lengths, dense, weights=None):
        x = self.dropout(self.row(values, lengths, "user", dense.size(0)))
        return self.heads([self.answer(x).squeeze(1)])

    def answer(self, x: Tensor) -> Tensor:
        return self.linear(x) if float(x.detach().sum()) > 1e9 else self.linear(x) + 1


class WritesConfig(ModelConfig):
    kind: Literal["test_writes"] = "test_writes"


@register_model("test_writes", WritesConfig)
class Writes(Asks):
    """Its backward pass might read what its forward pass has overwritten."""

    def answer(self, x: Tensor) -> Tensor:
        y = self.linear((x - self.seen).exp())
        self.seen.add_(x.detach().mean(0))
        return y


WHY = {
    "test_asks": r"'test_asks' cannot be compiled \(.*at test_compiled_dense.py:\d+\)",
    "test_writes": r"'test_writes' cannot be compiled \(it writes to its buffer network.seen in training; use ",
}


@pytest.mark.parametrize("kind", WHY)
def test_a_network_that_cannot_be_compiled_trains_without_as_if_nothing_had_been_tried(kind):
    recipe = twins.recipe(model={"kind": kind})
    plain, compiled = Model(recipe).double().train(), Model(recipe).double().train()
    told: list[str] = []
    CompiledDense(compiled, recipe, told.append, "eager")
    for seed in range(2):
        inputs, found = given(plain, recipe, seed, 48), []
        for model in (plain, compiled):
            ranks.seed_step(1, seed)
            found.append(learned(model, inputs))
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert len(told) == 1
    assert re.fullmatch(f"trains without a compiled graph: model.kind {WHY[kind]}.*", told[0])


@pytest.mark.parametrize("kind", WHY)
def test_a_network_that_cannot_be_compiled_is_refused_where_the_recipe_asks(kind):
    recipe = twins.recipe(model={"kind": kind}, train__compile=True)
    with pytest.raises(BadInput, match=f"train.compile: model.kind {WHY[kind]}.*leave train.compile out, or mend"):
        compiled_dense.check(recipe)


def test_who_is_compiled():
    gpu = torch.device("cuda")
    asked = {None: (True, False), True: (True, True), False: (False, False), "cuda_graphs": (True, True)}
    for said, answers in asked.items():
        recipe = twins.recipe(train__compile=said)
        assert tuple(compiled_dense.wanted(recipe, device) for device in (gpu, CPU)) == answers
    parts = {"model__activation": "relu", "train__accumulate": 2}
    assert not compiled_dense.wanted(twins.recipe(**parts), gpu)
    with pytest.raises(ValueError, match="train.compile: a batch that is trained in parts is no single graph"):
        twins.recipe(**parts, train__compile=True)


def test_cuda_graphs_are_asked_for_where_the_shape_is_fixed_alone():
    """A rank's rows are a constant of the graph, so the tower's products have no unknown size; the events' have one."""
    recipe, found = twins.recipe(train__compile="cuda_graphs"), []

    def backend(graph: torch.fx.GraphModule, examples: list, options: dict) -> Callable:
        found.append((graph, options))
        return graph.forward

    model = Model(recipe).double().train()
    CompiledDense(model, recipe, backend=backend)
    model.dense(*given(model, recipe, 0, 48))
    ((graph, options),) = found
    # By these two inductor puts what has an unknown size outside the CUDA graphs, instead of one graph per size.
    assert options["triton.cudagraphs"]
    assert options["graph_partition"]
    assert options["triton.cudagraph_skip_dynamic_graphs"]
    called = [node for node in graph.graph.nodes if node.op == "call_function"]
    products = [node.meta["example_value"].shape for node in called if "linear" in str(node.target)]
    fixed = [shape for shape in products if not any(isinstance(size, torch.SymInt) for size in shape)]
    assert [tuple(shape) for shape in fixed] == [(48, 8), (48, 16), (48, 8), (48, 1)]  # the candidate, and the tower
    assert len(products) > len(fixed)


def trained(train: Callable, made_for: Recipe, backend: str | TasksAtOnce) -> dict:
    """Train on this group's ranks by graphs, as a function of another test's does without."""

    def compiled(recipe: Recipe, device: torch.device):
        sharded = shard(recipe, device)
        compiled_dense.enable(sharded, pytest.fail, backend)
        return sharded

    with mock.patch.dict(train.__globals__, shard=compiled):
        return train(made_for)


ONE_TASK = {"din": KINDS["din"], "farm": farm.recipe}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ONE_TASK)
def test_graphs_on_two_ranks_are_plain_pytorch(two_ranks, kind):
    made_for = ONE_TASK[kind]()
    first, second = two_ranks.run(trained, one.train_sharded, made_for, "aot_eager")
    one.compare(first, made_for, 5e-6)
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])


COMBINERS = {
    "pcgrad": ({"kind": "pcgrad"}, "aot_eager"),
    "pcgrad, inductor": ({"kind": "pcgrad"}, "inductor"),  # whose backward pass would use donated buffers again
    "pcgrad at the trunk": ({"kind": "pcgrad", "scope": "trunk"}, "aot_eager"),
    "gradnorm at the trunk": ({"kind": "gradnorm", "scope": "trunk", "lr": 1.0}, "aot_eager"),
    "uncertainty, measured": ({"kind": "uncertainty", "lr": 0.1, "measure_every": 3}, "aot_eager"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("config", "backend"), COMBINERS.values(), ids=COMBINERS.keys())
def test_tasks_are_combined_as_by_plain_pytorch(two_ranks, config, backend):
    made_for = several.recipe(config["kind"], gradients=config)
    wanted = several.train_reference(made_for, several.combiner_of(made_for))
    found = two_ranks.run(trained, several.train_sharded, made_for, backend)
    several.compare(found[0], wanted)


class Passes:
    """Compiles passes to what they are, and counts runs: of the forward one, of each backward one, of all at once."""

    def __init__(self, batches: bool) -> None:
        self.batches, self.kinds, self.ran = batches, iter(("forward", "backward", "at once")), Counter()

    def __call__(self, graph: torch.fx.GraphModule, examples: list, **options: Any) -> Callable:
        kind = next(self.kinds)
        assert bool(options.get("is_backward")) == (kind != "forward")
        if kind == "at once" and not self.batches:
            raise NotImplementedError("cannot be compiled")

        def run(given: list) -> Any:
            self.ran[kind] += 1
            return graph(*given)

        run._boxed_call = True
        return run


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.some(1)
def test_the_tasks_passes_are_one_where_that_can_be(batches):
    """Whether it can be or not: what is learned is what each task's own pass would leave."""
    made_for, passes = several.recipe("pcgrad"), Passes(batches)
    wanted = several.train_reference(made_for, several.combiner_of(made_for))
    with ranks.alone(cuda=False):
        found = trained(several.train_sharded, made_for, TasksAtOnce(passes))
    several.compare(found, wanted)
    steps = passes.ran["forward"]
    assert steps > 3
    assert passes.ran["at once"] == (steps if batches else 0)
    assert passes.ran["backward"] == (0 if batches else 3 * steps)


@pytest.mark.slow
def test_gates_are_seen_in_a_graph():
    made_for = several.recipe("sum", model=several.MODELS["mmoe"])
    figures = []
    for compiled in (False, True):
        model = Model(made_for).train()
        if compiled:
            CompiledDense(model, made_for, pytest.fail, "aot_eager")
        (batch,) = twins.batches(made_for, 1)
        watched = Utilisation(model.dense)
        with watched.watching(True):
            model(batch.ids, batch.dense, batch.weights)
        figures.append(watched.read(batch.weights))
    assert figures[0]
    assert figures[1] == pytest.approx(figures[0], abs=1e-6)


@pytest.mark.slow
def test_a_compiled_run_is_resumed_bitwise_and_exported(tmp_path):
    data = samples.write(tmp_path / "data", rows=960)
    changes = {"train__compile": True, "model__dropout": 0.2, "train__checkpoint_every": 4}
    run, whole = loop.finished(data, tmp_path / "whole", **changes)
    made = loop.job(data, tmp_path / "killed", **changes)
    loop.train(made, kill_at=13)
    assert run_folder.committed(tmp_path / "killed")
    assert loop.same(loop.train(made), whole)
    assert export(run)  # a file that scores as the checkpoint does, of which neither knows a graph


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("asked", [None, "cuda_graphs"])
@pytest.mark.parametrize("kind", ["din", "mmoe", "farm"])
def test_a_gpus_graphs_learn_what_none_would(kind, asked):
    recipe, found = KINDS[kind](), []
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"compile": asked})})
    for compiled in (False, True):
        model = Model(recipe, device="cuda", tables_device="cuda").train()
        if compiled:
            CompiledDense(model, recipe, pytest.fail)
        for seed in range(4):
            (batch,) = twins.batches(recipe, 1, seed)
            batch = batch.to(torch.device("cuda"))
            model.zero_grad()
            answers = model(batch.ids, batch.dense, batch.weights, batch.vectors)
            torch.stack([answer.square().mean() for answer in answers.values()]).sum().backward()
            written([layer for layer in model.dense.modules() if isinstance(layer, Moving)])
        found.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})
    for name, slope in found[0].items():
        torch.testing.assert_close(found[1][name], slope, rtol=1e-3, atol=1e-5)
