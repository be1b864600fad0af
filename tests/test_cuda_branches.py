"""What differs on a GPU, shown where there is none. docs/cuda.md lists every such place with the test that sees it.

Three stand-ins beside test_devices' FakeTensorMode: a tensor on the CPU that says it is on a GPU, so that the GPU's
branch computes real numbers; CPU streams that write down who waited for whom; and the calls that place a process.
"""

import ast
import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import ray
import ray.train.torch
import ray.tune
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Backend, BackendConfig

from livetrain.cluster import capacity, doctor, exchange, launch, places, ray_workers
from livetrain.cluster.sweep import driver as sweeps
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Cluster
from livetrain.modules.batch import Batch, Requests
from livetrain.modules.layers import bottom, compiled, dice, distributed
from livetrain.modules.layers.attention import ActivationUnit
from livetrain.modules.model import initial_values
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.evaluate import evaluation
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train import checkpoint, compiled_layers, memory, preflight, sharding, staging, step
from livetrain.trainers.train.gradients import combination
from livetrain.trainers.train.loop import Trainer
from livetrain.trainers.train.probes import step_times
from tests import samples, twins
from tests.modules.test_optimizers import PARTIAL

ROOT = Path(__file__).parents[1]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class OnGPU(torch.Tensor):
    """A tensor on the CPU that says that it is on a GPU."""

    is_cuda = True


def on_gpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(OnGPU)


# The list and the sources.

WORDS = {"cuda", "is_cuda", "pin_memory", "record_stream", "non_blocking", "use_gpu", "nccl", "pin"}
ROOMS = ("modules", "trainers", "cluster")


def mentions(source: ast.AST, within: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the functions, and classes where it is in none, that name CUDA or ask whether a device is a CPU."""
    if isinstance(source, ast.FunctionDef | ast.ClassDef):
        within = (*within, source.name)
    if isinstance(source, ast.Expr) and isinstance(source.value, ast.Constant):
        return  # a docstring
    names = [getattr(source, key, None) for key in ("id", "attr", "arg", "name")]
    if isinstance(source, ast.Constant) and isinstance(source.value, str):
        names.append(source.value)
    asks = isinstance(source, ast.Compare) and any(getattr(x, "value", None) == "cpu" for x in source.comparators)
    if asks or WORDS.intersection(names) or any("cuda:" in str(name) for name in names):
        yield ".".join(within) or "(module)"
    for child in ast.iter_child_nodes(source):
        yield from mentions(child, within)


def listed() -> list[tuple[str, str, str]]:
    """Return the rows of docs/cuda.md: file, place, tests."""
    text = (ROOT / "docs/cuda.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([\w/]+\.py)` \| `([\w.()]+)` \| .* \| (.+) \|$", text, re.MULTILINE)


def test_the_list_names_every_place_in_the_sources():
    found = set()
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "cpu" in text or any(word in text for word in WORDS):
            found |= {(str(path.relative_to(ROOT)), place) for place in mentions(ast.parse(text))}
    assert {(file, place) for file, place, _ in listed()} == found


def test_every_test_in_the_list_exists():
    for file, place, tests in listed():
        named_tests = re.findall(r"`(test_\w+)::(test_\w+)`", tests)
        assert named_tests, (file, place)
        for module, test in named_tests:
            (path,) = (ROOT / "tests").rglob(f"{module}.py")
            assert f"def {test}(" in path.read_text(encoding="utf-8"), (file, place, test)


# Layers: the GPU's branch computes what the CPU's does.


def test_a_gpu_scores_all_candidates_at_once_as_a_cpu_does_by_tiles():
    torch.manual_seed(0)
    unit = ActivationUnit(4, 0, [8], "dice", softmax=True).eval()
    query, events = torch.randn(7, 4), torch.randn(5, 4)
    with mock.patch.object(torch.Tensor, "split", autospec=True, side_effect=torch.Tensor.split) as split:
        found = unit.shared(on_gpu(query), events, None, 5)
    assert {call.args[1] for call in split.call_args_list if call.args[0].shape == query.shape} == {7}
    torch.testing.assert_close(found.as_subclass(torch.Tensor), unit.shared(query, events, None, 5))


def test_lists_of_one_history_that_differ_are_asserted_on_a_gpu():
    lengths = torch.tensor([1, 0, 3])
    assert bottom._parallel(on_gpu(lengths), on_gpu(lengths.clone()))
    with pytest.raises(RuntimeError):
        bottom._parallel(on_gpu(lengths), on_gpu(torch.tensor([1, 1, 2])))
    assert not bottom._parallel(lengths, torch.tensor([1, 1, 2]))


def test_a_gpus_gram_matrix_is_a_cpus():
    rows = list(torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)))
    found, wanted = torch.ones(3, 3), torch.ones(3, 3)
    combination._add_gram(found, [on_gpu(row) for row in rows])
    combination._add_gram(wanted, rows)
    torch.testing.assert_close(found, wanted)


def test_rows_that_changed_hands_outlive_the_stream_that_found_them(monkeypatch):
    noted = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the step's")
    monkeypatch.setattr(OnGPU, "record_stream", lambda tensor, stream: noted.append(stream))
    own = {"rows": 40, "dim": 8, "hash": "table", "assign": "online"}
    with ranks.alone(cuda=False):
        sharded = sharding.shard(twins.recipe(tables__user=own), CPU)
    rows, ids = torch.tensor([5, 2]), torch.tensor([70, -3])
    sharded.online._apply({"user": (on_gpu(rows), on_gpu(ids))})
    assert noted == ["the step's", "the step's"]
    (weight,) = (value for key, value in sharded.model.state_dict().items() if key.endswith("user.weight"))
    (shard,) = weight.local_shards()
    assert torch.equal(shard.tensor[rows], initial_values(sharded.recipe, "user").of_ids(ids, range(8)))


def test_each_device_has_its_own_passes():
    own = {device: compiled.Library(device, torch.float32, towers=device == "cpu") for device in ("cpu", "meta")}
    compiled.use(*own.values())
    for device, library in own.items():
        assert compiled.library_for(torch.zeros(1, device=device)) is library
        assert compiled.library_for(torch.zeros(1, device=device, dtype=torch.float64)) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled.library_for(torch.zeros(1)) is None
        assert not compiled.reads_rows("cpu")
    assert [compiled.reads_rows(device) for device in own] == [True, False]
    compiled.use()
    assert not compiled.reads_rows("cpu")


def test_a_gpu_is_not_asked_whether_all_rows_count():
    assert dice.valid_rows(torch.ones(3), torch.zeros(1)) is None
    assert dice.valid_rows(torch.ones(3, device="meta"), torch.zeros(1)).device.type == "meta"


def test_a_run_on_a_gpu_trains_by_tritons_passes_where_there_is_triton(monkeypatch, caplog):
    monkeypatch.setattr(compiled_layers, "has_triton", lambda: False)
    compiled_layers.enable(dice.Dice(2), GPU)
    assert "no module triton" in caplog.text
    passes = SimpleNamespace(Triton=lambda device: compiled.Library(device, torch.float32, towers=False))
    monkeypatch.setitem(sys.modules, "livetrain.modules.layers.gpu.passes", passes)
    monkeypatch.setattr(compiled_layers, "has_triton", lambda: True)
    compiled_layers.enable(dice.Dice(2), GPU)
    assert set(compiled._libraries) == {("cuda", torch.float32)}
    compiled.use()


# Batches on their way.


def a_batch() -> Batch:
    made_for = twins.recipe(tasks__click__sample_weight="worth")
    batch = twins.batches(made_for, 1)[0]
    return Batch(batch.ids, batch.dense, batch.labels, batch.weights, batch.rows, batch.rows.clone(), batch.labels)


@pytest.mark.parametrize("change", ["to", "pin_memory", "record_stream"])
def test_all_of_a_batch_moves(change):
    batch, seen = replace(a_batch(), requests=Requests(torch.zeros(4, dtype=torch.long), 2, {})), []

    def note(tensor, *given, **named_):
        seen.append((tensor.data_ptr(), given, named_))
        return tensor

    def tensors(one: Batch) -> set[int]:
        assert one.requests is not None
        plain = (one.dense, one.labels, one.weights, one.rows, one.groups, one.sample_weights, one.requests.of)
        return {tensor.data_ptr() for tensor in (*plain, one.ids.values(), one.ids.lengths())}

    given = {"to": (torch.device("meta"), True), "pin_memory": (), "record_stream": ("a stream",)}[change]
    with mock.patch.object(torch.Tensor, change, note):
        getattr(batch, change)(*given)
    assert tensors(batch) <= {pointer for pointer, _, _ in seen}
    if change == "to":
        assert all(named_.get("non_blocking", given[-1:] == (True,)) for _, given, named_ in seen)


def test_batches_are_pinned_for_the_gpu_of_the_thread_that_reads(tmp_path, monkeypatch):
    recipe = samples.recipe(samples.write(tmp_path, rows=400), cluster__device="auto")
    chosen, pinned = {}, []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.update({threading.get_ident(): device}))

    def pin(batch: Batch) -> Batch:
        pinned.append((chosen.get(threading.get_ident()), batch))
        return batch

    monkeypatch.setattr(Batch, "pin_memory", pin)
    for wanted in (True, False):
        reader = Reader(Source.open(recipe, "train"), recipe, rank=0, world=1, shuffle=True, pin=wanted)
        batches = list(reader.batches(0))
        assert [(device, id(batch)) for device, batch in pinned] == [(1, id(batch)) for batch in batches if wanted]
        pinned.clear()


@pytest.mark.parametrize(("device", "pins"), [(GPU, True), (CPU, False)])
def test_a_run_pins_where_it_trains_on_a_gpu_and_not_where_the_machine_has_one(tmp_path, monkeypatch, device, pins):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    recipe = samples.recipe(samples.write(tmp_path, rows=400), cluster__device="auto")
    job = SimpleNamespace(sources={"train": Source.open(recipe, "train")})
    trainer = SimpleNamespace(job=job, recipe=recipe, device=device)
    assert Trainer._reader(trainer, "train", shuffle=True)._pin is pins


# Streams.


class Stream:
    """A stream that writes down what it waited for. Its device has streams too, but one."""

    device = CPU

    def __init__(self, name: str, said: list) -> None:
        self.name, self.said = name, said

    def wait_stream(self, other: "Stream") -> None:
        self.said.append((self.name, "waits for", other.name))


class Streams:
    """Streams of a pretended GPU: `current` is the one in whose context the host is."""

    def __init__(self) -> None:
        self.said: list[tuple] = []
        self.current = self.main = Stream("main", self.said)
        self.ids, self.rows = Stream("ids", self.said), Stream("rows", self.said)

    @contextlib.contextmanager
    def context(self, stream: Stream | None) -> Iterator[None]:
        before, self.current = self.current, stream or self.current
        yield
        self.current = before

    def note(self, what: str, *more: object) -> None:
        self.said.append((self.current.name, what, *more))


def test_rows_are_fetched_on_a_stream_of_their_own_that_the_step_waits_for(monkeypatch):
    streams = Streams()
    monkeypatch.setattr(torch.cpu, "current_stream", lambda *_: streams.current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: streams.current)
    monkeypatch.setattr(Batch, "record_stream", lambda batch, stream: streams.note("keeps for", stream.name))

    def fetch(batch, context, modules, device, stream_context, ids, forward) -> dict:
        streams.note("fetches", context.index, stream_context == streams.context, ids.name, forward.name)
        return {}

    monkeypatch.setattr(step, "_prefetch_embeddings", fetch)
    with ranks.alone(cuda=False):
        sharded = sharding.shard(twins.recipe(), CPU)
    pipeline = step.CachedTablePipeline(sharded.module, sharded.pipeline.update, CPU)
    pipeline._prefetch_stream, pipeline._data_dist_stream = streams.rows, streams.ids
    pipeline._stream_context = streams.context
    for method in ("_init_pipelined_modules", "wait_sparse_data_dist", "_set_module_context"):
        monkeypatch.setattr(pipeline, method, lambda *_: None)
    coming = iter([a_batch()])

    def enqueue(_batches) -> bool:
        arrived = [(batch, SimpleNamespace(index=7)) for batch in coming]
        pipeline.batches.extend(batch for batch, _ in arrived)
        pipeline.contexts.extend(context for _, context in arrived)
        return bool(arrived)

    monkeypatch.setattr(pipeline, "enqueue_batch", enqueue)
    pipeline._arrive(iter([]))
    assert streams.said == [
        ("rows", "waits for", "main"),  # for what was loaded into the tables
        ("rows", "keeps for", "rows"),
        ("rows", "fetches", 7, True, "ids", "main"),
        ("main", "waits for", "rows"),
        ("main", "keeps for", "main"),
    ]


def test_a_cached_pipeline_has_a_stream_of_its_own_on_a_gpu(monkeypatch):
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda *given, **named_: made.append(given) or len(made))
    monkeypatch.setattr(step.TrainPipelineSparseDist, "__init__", lambda *_, **__: None)
    assert step.CachedTablePipeline(torch.nn.Module(), None, GPU)._prefetch_stream == 1
    assert made == [(GPU,)]
    assert step.CachedTablePipeline(torch.nn.Module(), None, CPU)._prefetch_stream is None


def test_a_batch_for_a_model_without_tables_goes_to_its_device():
    pipeline = step.DensePipeline(torch.nn.Module(), None, torch.device("meta"))
    with mock.patch.object(Batch, "to", autospec=True) as to:
        pipeline._arrive(iter([a_batch()]))
    assert to.call_args.args[1:] == (torch.device("meta"),)
    assert to.call_args.kwargs == {"non_blocking": True}


# Checkpoints.


def test_a_checkpoint_is_written_once_the_gpu_has_copied_it(tmp_path, monkeypatch):
    order, recipe = [], twins.recipe()
    stream = SimpleNamespace(synchronize=lambda: order.append("waited"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream if device == GPU else None)
    monkeypatch.setattr(checkpoint, "state", lambda sharded: {})
    monkeypatch.setattr(staging.Staging, "copy", lambda *_: order.append("copied"))
    monkeypatch.setattr(checkpoint, "write", lambda *_: order.append("written"))
    for device, wanted in ((GPU, ["copied", "waited", "written"]), (CPU, ["copied", "written"])):
        with checkpoint.Saver(SimpleNamespace(device=device, plan=dict, changes=None), recipe, tmp_path) as saver:
            saver.save(1, {})
            saver.wait()
        assert order == wanted
        order.clear()


def test_a_gpus_tensors_are_copied_to_memory_that_is_pinned_once_and_as_large_as_they(monkeypatch):
    pinned = {}
    cuda = SimpleNamespace(
        cudaHostRegister=lambda place, size, flags: pinned.update({place: size}) or 0,
        cudaHostUnregister=lambda place: pinned.pop(place),
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    on_a_gpu, on_the_host = staging.Staging(), staging.Staging()
    found = on_a_gpu.copy({"a": on_gpu(torch.ones(20)), "b": torch.ones(2)})
    assert (found["a"].sum(), found["b"].tolist()) == (20, [1, 1])
    on_the_host.copy({"b": torch.ones(2)})
    on_a_gpu.copy({"a": on_gpu(torch.ones(20)), "b": torch.ones(2)})
    assert list(pinned.values()) == [2 * 64 + 64]
    del found, on_a_gpu
    assert not pinned  # before the memory is anybody else's


# Evaluation.


def test_an_evaluation_on_a_gpu_takes_rows_to_the_host_every_64_batches(monkeypatch):
    recipe = twins.recipe()
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(9, 1, generator=generator), (torch.rand(9, 1, generator=generator) < 0.5).float())] * 70

    class Away(torch.Tensor):
        device = GPU

    moved, flush = [], evaluation.Evaluation._flush

    def counted(self) -> None:
        moved.append(len(self._pending))
        flush(self)

    monkeypatch.setattr(evaluation.Evaluation, "_flush", counted)
    found = []
    for place in (lambda x: x, lambda x: x.as_subclass(Away)):
        moved.clear()
        one = evaluation.Evaluation(kinds(recipe.tasks))
        for logits, labels in batches:
            one.update(place(logits), labels, torch.ones(9))
        found.append((one.compute(), [count for count in moved if count]))
    assert found[0][0] == found[1][0]
    assert (found[0][1], found[1][1]) == ([1] * 70, [64, 6])


# What places a process, and what it is asked of.


def test_a_gpus_group_has_gloo_for_what_lies_on_the_host(monkeypatch):
    assert BackendConfig(Backend(ranks.backend(True))).device_backend_map == {"cpu": "gloo", "cuda": "nccl"}
    assert ranks.backend(False) == "gloo"
    begun = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: begun.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    for cuda in (True, False):
        with ranks.alone(cuda):
            pass
    assert begun == ["cpu:gloo,cuda:nccl", "gloo"]


def test_a_gpus_sums_have_a_group_of_nccl(monkeypatch):
    made = []
    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(distributed, "group", lambda: dist.group.WORLD)
    monkeypatch.setattr(distributed, "use", made.append)
    monkeypatch.setattr(dist, "new_group", lambda **given: given)
    for cuda in (True, False):
        ranks.of_sums(cuda, timedelta(seconds=3))
    assert made == [{"backend": backend, "timeout": timedelta(seconds=3)} for backend in ("nccl", "gloo")]


def test_a_steps_draws_on_a_gpu_are_its_own(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeds.append)
    for at in ((1, 7), (1, 8), (1, 7)):
        ranks.seed_step(*at)
    assert seeds[0] == seeds[2] != seeds[1]


@pytest.mark.parametrize(("precision", "wanted"), [("tf32", "high"), ("float32", "highest")])
def test_tf32_is_used_on_a_gpu_where_the_recipe_says_so(monkeypatch, precision, wanted):
    class Enough(Exception):
        pass

    set_to = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", set_to.append)
    monkeypatch.setattr(sharding, "_fused", mock.Mock(side_effect=Enough))
    for device in (CPU, GPU):
        with pytest.raises(Enough):
            sharding.shard(twins.recipe(train__precision=precision), device)
    assert set_to == [wanted]


def test_a_gpus_steps_are_timed_by_its_events(monkeypatch):
    with ranks.alone(cuda=False):
        sharded = sharding.shard(twins.recipe(), CPU)
    assert isinstance(step_times.Breakdown(sharded)._clock, step_times.HostClock)
    sharded.device = GPU
    assert isinstance(step_times.Breakdown(sharded)._clock, step_times.DeviceClock)


def test_a_profile_of_a_gpu_has_its_kernels(tmp_path, monkeypatch):
    kinds_ = torch.profiler.ProfilerActivity
    waited, profiler = [], mock.MagicMock()
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.profiler, "profile", profiler)
    recipe = twins.recipe(train__profile="1..1")
    for device, activities, order in (
        (GPU, [kinds_.CPU, kinds_.CUDA], "self_device_time_total"),
        (CPU, [kinds_.CPU], "self_cpu_time_total"),
    ):
        profiler.return_value.export_chrome_trace = lambda path: Path(path).touch()
        profile = step_times.Profile(recipe, tmp_path, device, 3)
        profile.before(1)
        profile.end()
        assert profiler.call_args.kwargs == {"activities": activities}
        assert profiler.return_value.key_averages.return_value.table.call_args.kwargs["sort_by"] == order
    assert waited == [GPU]


@pytest.mark.parametrize(
    ("device", "there", "wanted"),
    [("auto", True, GPU), ("auto", False, CPU), ("cpu", True, CPU), ("cuda", True, GPU), ("cuda", False, None)],
)
def test_a_run_in_this_process_takes_the_gpu_there_is(monkeypatch, device, there, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(ranks, "alone", lambda cuda: contextlib.nullcontext())
    recipe = twins.recipe(cluster__device=device)
    if wanted is None:
        with pytest.raises(BadInput, match="this machine has no GPU that torch can use"):
            launch._in_process(lambda found: found, recipe)
    else:
        assert launch._in_process(lambda found: found, recipe) == wanted


@pytest.mark.parametrize(("given", "wanted"), [(None, 3), ("2", 2)])
def test_a_run_in_this_process_computes_with_the_cores_that_it_may_use(monkeypatch, given, wanted):
    monkeypatch.setattr(launch, "cores", lambda: 3)
    monkeypatch.setattr(ranks, "alone", lambda cuda: contextlib.nullcontext())
    monkeypatch.delenv("OMP_NUM_THREADS")
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before = torch.get_num_threads()
    assert launch._in_process(lambda device: torch.get_num_threads(), twins.recipe()) == wanted
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("cuda", [True, False])
def test_workers_of_a_run_ask_for_a_gpu_each(tmp_path, monkeypatch, cuda):
    trainer = mock.MagicMock()
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", trainer)
    monkeypatch.setattr(ray_workers, "_connected", lambda recipe: contextlib.nullcontext(cuda))
    place = tmp_path / f"{places.EVALUATION}of-this-test"
    place.mkdir()
    told: list[str] = []  # the driver plans for what the workers will have, before there are any
    trainer.return_value.fit = lambda: (place / places.OUTCOME).write_text("{}") and told.append("fits")
    monkeypatch.setattr(capacity, "watched", lambda *_: contextlib.nullcontext())
    ray_workers.run(None, samples.recipe(tmp_path, cluster__workers=2), tmp_path, place, told.append)
    assert told == ["cuda" if cuda else "cpu", "fits"]
    scaling, how = (trainer.call_args.kwargs[key] for key in ("scaling_config", "torch_config"))
    assert scaling.use_gpu is cuda
    assert scaling.resources_per_worker.get("GPU", 0) == int(cuda)
    assert how.backend == ranks.backend(cuda)


@pytest.mark.parametrize("device", [GPU, CPU])
def test_a_worker_takes_its_gpu_before_it_works(tmp_path, monkeypatch, device):
    order = []
    monkeypatch.setattr(ray_workers, "set_up", lambda: None)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: device)
    monkeypatch.setattr(ray.util, "get_current_placement_group", mock.MagicMock())
    monkeypatch.setattr(ranks, "is_main", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch.cuda, "set_device", order.append)
    monkeypatch.setattr(ray_workers, "pickle", SimpleNamespace(loads=lambda work: work))
    ray_workers._on_worker(lambda found: order.append("works") or {}, [], tmp_path, False, {})
    assert order == ([GPU, "works"] if device == GPU else ["works"])


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "wanted"),
    [("auto", 2, 2, True), ("auto", 2, 1, False), ("cpu", 1, 4, False), ("cuda", 2, 2, True), ("cuda", 2, 1, None)],
)
def test_a_cluster_has_a_gpu_for_every_worker_or_for_none(monkeypatch, device, workers, gpus, wanted):
    monkeypatch.setattr(capacity, "gpus", lambda: gpus)
    cluster = Cluster(workers=workers, device=device)
    if wanted is None:
        with pytest.raises(BadInput, match="cluster.device: cuda needs 2 GPUs"):
            ray_workers.on_gpus(cluster)
    else:
        assert ray_workers.on_gpus(cluster) is wanted


@pytest.mark.parametrize(("workers", "wanted"), [(0, {"CPU": 1, "GPU": 1}), (2, sweeps.DRIVER)])
def test_a_trial_without_workers_takes_a_gpu_itself(tmp_path, monkeypatch, workers, wanted):
    asked = []
    monkeypatch.setattr(ray_workers, "on_gpus", lambda cluster: True)
    monkeypatch.setattr(sweeps, "at_once", lambda recipe, cuda: 1 if cuda else 0)
    for name in ("Board", "_follower"):
        monkeypatch.setattr(sweeps, name, mock.MagicMock())
    for name in ("search.Search", "search.scheduler"):
        monkeypatch.setattr(f"livetrain.cluster.sweep.{name}", mock.MagicMock())
    monkeypatch.setattr(ray.tune, "run", mock.MagicMock())
    monkeypatch.setattr(ray.tune, "with_resources", lambda work, factory: asked.extend(factory.bundles))
    recipe = samples.recipe(tmp_path, cluster__workers=workers)
    sweep = SimpleNamespace(recipe=recipe, trials=[], settings=SimpleNamespace(samples=1), folder=tmp_path)
    with mock.patch.dict(os.environ):
        sweeps._run(sweep)
    assert asked == [wanted]
    assert ray.tune.run.call_args.kwargs["max_concurrent_trials"] == 1


class Placed(Exception):
    pass


@pytest.mark.parametrize("cuda", [True, False])
def test_the_exchange_of_workers_asks_for_what_a_run_would(monkeypatch, cuda):
    bundles, options, worker = [], [], mock.MagicMock()
    group = mock.MagicMock()
    monkeypatch.setattr(exchange, "placement_group", lambda each, strategy: bundles.extend(each) or group)
    monkeypatch.setattr(exchange, "remove_placement_group", lambda group: None)
    worker.options = lambda **given: options.append(given) or worker
    monkeypatch.setattr(ray, "remote", lambda kind: worker)
    monkeypatch.setattr(ray, "get", mock.Mock(side_effect=Placed("no answer")))
    with pytest.raises(BadInput, match="NCCL_SOCKET_IFNAME" if cuda else "GLOO_SOCKET_IFNAME"):
        exchange.exchange(Cluster(workers=2), cuda)
    assert [bundle.get("GPU", 0) for bundle in bundles] == [int(cuda)] * 2
    assert [given["num_gpus"] for given in options] == [int(cuda)] * 2


@pytest.mark.parametrize("cuda", [True, False])
def test_an_exchanging_worker_takes_its_gpu_and_says_what_is_free(monkeypatch, cuda):
    order = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: order.append("takes"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: order.append("asks") or (5, 9))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: order.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(exchange, "_measure", lambda rank, world, device: order.append(device.type) or 1.0)
    monkeypatch.setattr(ray, "get_runtime_context", mock.MagicMock())
    found = exchange.Worker().run(0, 1, "tcp://nowhere:1", cuda)
    assert found.gpu_free == (5 if cuda else 0)
    assert order == (["takes", "asks", ranks.backend(True), "cuda"] if cuda else ["gloo", "cpu"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_a_gpu_sends_arrives():
    with ranks.alone(cuda=True):
        assert exchange._measure(0, 1, GPU) == 0


@pytest.mark.parametrize("cuda", [True, False])
def test_the_doctor_names_what_carried_the_exchange(monkeypatch, cuda):
    seen = [exchange.Exchanged(rank, "a", 1e9, 0) for rank in range(2)]
    monkeypatch.setattr(doctor, "exchange", lambda cluster, asked: seen if asked is cuda else None)
    met = []
    said = doctor.workers_exchange(Cluster(workers=2), cuda, met)
    assert met == seen
    assert ("over NCCL" in said, "over gloo" in said) == (cuda, not cuda)


def test_what_is_lacking_names_gpus(monkeypatch):
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0, "GPU": 1.0})
    said = capacity.lacking(Cluster(workers=2), True)
    assert said == "2 workers of 1 CPU and a GPU each find no room, 3 CPUs and 1 GPU are free"
    assert "GPU" not in capacity.lacking(Cluster(workers=2), False)


def test_the_most_gpu_memory_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory.peak()["gpu"] == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = memory.peak()
    assert found["gpu"] == 7
    assert found["host"] > 2**20


def test_gpu_memory_counts(monkeypatch):
    recipe = samples.recipe("data", cluster__device="auto")
    monkeypatch.setattr(memory, "free_memory", lambda: 5)
    assert memory._available(recipe) == 5
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=7))
    assert memory._available(recipe) == 5 + 2 * 7


@pytest.mark.parametrize("gpu", [True, False])
def test_an_optimizer_of_gpus_is_refused_early_only_where_a_cpu_trains(monkeypatch, gpu):
    """Before the data are looked for, which are not there."""
    recipe = samples.recipe("nowhere", optimizers__sparse={"kind": PARTIAL}, cluster__workers=0, cluster__device="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(memory, "check", lambda *_, **__: None)
    with pytest.raises(BadInput, match="there is no folder" if gpu else f"no fused {PARTIAL} on CPU"):
        preflight.check(recipe, print)
