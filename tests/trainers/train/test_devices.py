"""A training step never mixes devices, and waits for its own at most once: shown without a GPU.

The meta device stands for the GPU, under FakeTensorMode: it knows shapes and devices, refuses an operation on tensors
of two devices as a GPU does, and refuses whatever has a size that depends on values. `Waits` counts what else has the
host wait: a number read from the GPU, and copies to and from it that do not say otherwise.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs.features.cross import CrossFeature
from livetrain.configs.load import load_recipe
from livetrain.modules.batch import Batch, Requests
from livetrain.modules.features import cross as crossing
from livetrain.modules.layers import attend, buckets, compiled
from livetrain.modules.model import Model
from livetrain.modules.optimizers import dense_optimizer
from livetrain.modules.tables.adam import Steps
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.evaluate.evaluation import Evaluation
from livetrain.trainers.evaluate.retrieval import Retrieval
from livetrain.trainers.train.feed import Meter
from livetrain.trainers.train.gradients import combination as combine
from livetrain.trainers.train.gradients.combination import Combination
from livetrain.trainers.train.mean import Mean
from livetrain.trainers.train.step import DensePipeline, Step, Update
from tests.cases import often

# Of models that take steps: what is fitted takes none, and als solves a table at a time, on the host's word.
FITTED = ("als", "ease", "gbdt", "interests", "item_cf", "latest", "popular", "social", "tags")
RECIPES = [
    path
    for path in sorted((Path(__file__).parents[3] / "configs" / "recipes").glob("*.yaml"))
    if not path.stem.startswith(FITTED)
]
GPU = torch.device("meta")
ROWS, REQUESTS = 8, 3


class Nothing(compiled.Library):
    """Passes that compute nothing: what they are given was made before, and it lies where it should."""

    def __init__(self) -> None:
        super().__init__(GPU.type, torch.float32, towers=False)

    def call(self, name: str, *arguments: int | float | torch.Tensor | None) -> None:
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        assert {tensor.device for tensor in tensors} == {GPU}
        assert all(tensor.is_contiguous() for tensor in tensors)


class Waits(TorchDispatchMode):
    """Writes down each operation that has the host wait for the GPU, and answers for it.

    Attributes:
        found: their names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options, name = options or {}, function.overloadpacket.__name__
        if name == "_local_scalar_dense":
            if arguments[0].device == GPU:
                self.found.append("item")
            return 1.0 if arguments[0].is_floating_point() else 1  # any value
        made = function(*arguments, **options)
        if name in ("_to_copy", "copy_"):
            source, blocking = arguments[name == "copy_"], options.get("non_blocking", False)
            blocking = not (blocking or (name == "copy_" and len(arguments) > 2 and arguments[2]))
            if blocking and (source.device == GPU) != (made.device == GPU):
                self.found.append("copy to the GPU" if made.device == GPU else "copy to the host")
        return made


@pytest.fixture
def fake(monkeypatch):
    """FakeTensorMode with a GPU."""
    autocast = torch.autocast
    monkeypatch.setattr(FakeTensor, "is_cuda", property(lambda self: self.device == GPU), raising=False)
    monkeypatch.setattr(torch, "autocast", lambda kind, *a, **k: autocast("cpu" if kind == "meta" else kind, *a, **k))
    for name in ("is_autocast_enabled", "get_autocast_dtype"):  # which know no meta device
        asked = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda kind, asked=asked: asked("cpu" if kind == "meta" else kind))
    made, mode = torch.tensor, FakeTensorMode(allow_non_fake_inputs=True)  # parameters are none yet
    mode.waits = []

    def tensor(*values, device=None, **options):
        """A tensor made of a list on the host is copied to a GPU, which is waited for."""
        if device is not None and torch.device(device) == GPU:
            mode.waits.append(values)
        return made(*values, device=device, **options)

    def occupied(key, ones, twos):
        """What a layout of rows in groups waits for: how many rows each has."""
        mode.waits.append("occupied")
        return [ROWS], [8], [8]

    def kept(ids, there):
        """What a feature made of others waits for: how many rows have all of these."""
        mode.waits.append("kept")
        return ids

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(crossing, "_kept", kept)
    monkeypatch.setattr(buckets, "_occupied", occupied)
    monkeypatch.setattr(attend, "has_triton", lambda: True)
    fused = "_get_fused_kernels_supported_devices"
    monkeypatch.setattr(sys.modules[torch.optim.Optimizer.__module__], fused, lambda: ["meta"])
    return mode


def zeros(*size, dtype=torch.float32):
    return torch.zeros(*size, dtype=dtype, device=GPU)


def batch_of(recipe):
    """Rows of what the recipe reads, with three events in every list that may have as many."""
    keyed = {name: f for name, f in recipe.features.items() if f.carrier == "ids"}
    shared = recipe.data.layout == "request"  # then lists are
    rows = {name: REQUESTS if shared and f.form == "sequence" else ROWS for name, f in keyed.items()}
    each = {name: min(3, f.max_length) if f.form == "sequence" else 1 for name, f in keyed.items()}
    counts = [rows[name] * each[name] for name in keyed]
    ids = KeyedJaggedTensor(
        keys=list(keyed),
        values=zeros(sum(counts), dtype=torch.int64),
        weights=zeros(sum(counts)) if any(f.weighted for f in keyed.values()) else None,
        lengths=zeros(len(keyed) * ROWS, dtype=torch.int64),
        stride=ROWS,
        length_per_key=counts,
    )
    labels, row = zeros(ROWS, len(recipe.tasks)), zeros(ROWS, dtype=torch.int64)
    weights = torch.ones_like(labels) if any(task.sample_weight for task in recipe.tasks.values()) else None
    dense = zeros(ROWS, sum(f.numbers for f in recipe.features.values() if f.carrier == "numbers"))
    carried = {name: recipe.beside(name)[1] for name, f in keyed.items() if f.carried}
    of = dict(zip(keyed, counts, strict=True))
    vectors = zeros(sum(of[name] * width for name, width in carried.items())) if carried else None
    beside, lengths = list(recipe.asides()), zeros(len(recipe.asides()) * ROWS, dtype=torch.int64)
    one = zeros(len(lengths), dtype=torch.int64)
    asides = KeyedJaggedTensor(beside, one, lengths=lengths, stride=ROWS, length_per_key=[ROWS] * len(beside))
    return Batch(
        ids,
        dense,
        labels,
        weights=zeros(ROWS),
        rows=row,
        groups=None,
        sample_weights=weights,
        asides=asides if beside else None,
        vectors=vectors,
        requests=Requests(row, REQUESTS, {name: ROWS * each[name] for name in keyed if rows[name] == REQUESTS})
        if shared
        else None,
    )


def train(recipe, fake, combiner=None):
    """Take a whole step, and count it; `combiner` answers in the place of the combiner, which decides on the host.

    All is the run's own, but that tables are not sharded.
    """
    step = Step(Model(recipe, device="meta", tables_device="meta"), recipe).to(GPU)
    parameters = dict(step.model.dense.named_parameters())
    dense = list(parameters.values())
    combination = Combination(recipe, step.model, dense, [], GPU)
    if combiner is not None:
        combination.combiner = combiner
        combination.monitor.add = lambda gram, weights: None
    optimizer = KeyedOptimizerWrapper(parameters, dense_optimizer(recipe).make)
    optimizer.init_state()
    update = Update({"dense": optimizer}, combination, dense, 1.0, Steps(True), Mean(parameters, 0.9))
    pipeline, meter = DensePipeline(step, update, GPU), Meter()
    fake.waits.clear()  # what is made once may wait
    with fake, Waits() as waits:
        meter.add(pipeline.progress(iter([batch_of(recipe)])))
    assert all(parameter.grad.device == GPU for parameter in dense)
    return fake.waits + waits.found


KINDS = {path.stem.partition("_")[0]: path for path in RECIPES}  # one recipe for every kind of model
STEPS = {f"{path.stem} by {way}": (path, way) for path in RECIPES for way in ("passes", "plain PyTorch")}
EACH_TIME = {f"{path.stem} by passes" for path in KINDS.values()} | {
    "din_ml1m by plain PyTorch",
    "sasrec_kuairand_requests by passes",
}


@pytest.mark.parametrize(("path", "way"), often(STEPS, EACH_TIME))
@pytest.mark.some(12)
def test_no_step_mixes_devices_or_waits(path, way, fake):
    """By a GPU's passes, and where Dice and activation units compute as they are written."""
    compiled.use(*([Nothing()] if way == "passes" else []))
    recipe = load_recipe(str(path), ["data.path=nowhere", "gradients={kind: sum}"])
    # What several interests learn of every event lies in groups of like lengths, which the host has to know.
    made = [feature for feature in recipe.features.values() if isinstance(feature, CrossFeature)]
    assert train(recipe, fake) == ["kept"] * len(made) + ["occupied"] * (recipe.model.kind == "comirec")


def test_ids_are_looked_up_in_their_map_without_waiting(fake):
    assert train(load_recipe(str(RECIPES[0].with_name("din_simulated_ids.yaml")), ["data.path=nowhere"]), fake) == []


def test_what_lies_beside_ids_mixes_no_devices_and_waits_for_none(fake):
    """Vectors of events, and weights of a bag."""
    changes = ["data.path=nowhere", "features.picture={type: vector, width: 4, normalise: true, projection: 2}"]
    changes += ["features.video_id.vectors=pictures", "features.video_id.like=picture"]
    changes += ["features.marks={type: bag, table: tag, column: like_tag, weights: scores}"]
    train(load_recipe(str(RECIPES[0].with_name("din_kuairand.yaml")), changes), fake)


@pytest.mark.parametrize("path", KINDS.values(), ids=KINDS.keys())
@pytest.mark.some(8)
def test_no_evaluation_mixes_devices_or_waits(path, fake):
    recipe = load_recipe(str(path), ["data.path=nowhere"])
    step = Step(Model(recipe, device="meta", tables_device="meta"), recipe).to(GPU).eval()
    retrieval = Retrieval(step.model.dense.network, recipe)
    evaluation = Evaluation(kinds(recipe.tasks), memory=recipe.evaluate.memory)
    with fake, torch.no_grad(), retrieval.watching():
        batch = batch_of(recipe)
        logits = step(batch)[1].logits
        evaluation.update(logits, batch.labels, batch.weights, zeros(ROWS, dtype=torch.int64))
        retrieval.add(batch)
    assert logits.device == GPU
    assert len(evaluation._pending) == 1


@pytest.mark.parametrize(("kind", "scope"), [("pcgrad", "shared"), ("pcgrad", "trunk"), ("uncertainty", "shared")])
def test_gradients_by_task_wait_once(kind, scope, fake, monkeypatch):
    """For one copy to the host, of the Gram matrix, if it is asked for, and the losses."""
    recipe = load_recipe(
        "configs/recipes/mmoe_kuairand.yaml", ["data.path=nowhere", f"gradients={{kind: {kind}, scope: {scope}}}"]
    )
    asked = []
    monkeypatch.setattr(
        combine, "_weighted", lambda _, on_device, rows: sum(rows)
    )  # reads weights, which are on the host

    class Combiner:
        needs_gram, looks_again = kind == "pcgrad", False

        def __call__(self, gram, losses, step):
            asked.append((None if gram is None else gram.device.type, losses.device.type))
            return torch.ones(len(losses), dtype=torch.float64)

    assert train(recipe, fake, Combiner()) == ["copy to the host"]
    assert asked == [("cpu" if Combiner.needs_gram else None, "cpu")]


WAITING = {
    "item": lambda x: x.sum().item(),
    "copy to the host": lambda x: x.cpu(),
    "copy to the GPU": lambda x: torch.zeros(3).to(GPU),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_counted(name, fake):
    with fake, Waits() as waits:
        WAITING[name](zeros(ROWS))
        zeros(ROWS).to("cpu", non_blocking=True)
    assert waits.found == [name]


@pytest.mark.parametrize(
    "sized", [torch.nonzero, torch.unique, lambda x: x[x > 0], lambda x: torch.repeat_interleave(x)]
)
def test_what_has_a_size_that_values_decide_is_refused(sized, fake):
    with fake, Waits(), pytest.raises(DynamicOutputShapeException):
        sized(zeros(ROWS, dtype=torch.int64))


@pytest.mark.parametrize("wrong", [lambda x: x + torch.arange(ROWS), lambda x: x * float(x.sum())])
def test_what_is_wrong_is_seen(wrong, fake):
    with fake, pytest.raises((RuntimeError, DataDependentOutputException)):
        wrong(zeros(ROWS))
