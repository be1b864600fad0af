"""What all tests share."""

import faulthandler
import importlib.util
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import settings

from livetrain.modules.layers import compiled
from livetrain.modules.tables.initial import Initial
from livetrain.trainers.train import compiled_layers
from tests import samples, store, wheels
from tests.pool import Pool

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where Triton is imported: its kernels run on the CPU
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of runs in this process, which would have the machine otherwise
# Every run of the suite checks the same examples, without a clock: hypothesis' own profile "ci". Others by "random".
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Have a crash in the interpreter's own end say in which threads it was; pytest has switched that off by now.

    One was seen once, in a process that had held torch, Ray, DuckDB and wandb side by side. The tests' status is not
    saved from it: whoever sees it again has its stack.
    """
    faulthandler.enable(sys.__stderr__)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave most of a family to the slow suite: of a test marked `some(n)` n cases run each time, spread evenly."""
    families: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("some") and not item.get_closest_marker("slow"):
            families.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in families.values():
        marker = cases[0].get_closest_marker("some")
        assert marker is not None
        (count,) = marker.args
        often = {place * len(cases) // count for place in range(count)}
        for place, case in enumerate(cases):
            if place not in often:
                case.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Pool]:
    """Two gloo ranks, kept for the whole session."""
    pool = Pool(2)
    yield pool
    pool.close()


@pytest.fixture
def drawn_on_the_host(monkeypatch) -> None:
    """Let a table begin with the same rows on a GPU as on a CPU."""
    blocks = Initial.blocks

    def moved(self: Initial, rows: range, columns: range, device: torch.device) -> Iterator[tuple[slice, torch.Tensor]]:
        return ((where, values.to(device)) for where, values in blocks(self, rows, columns))

    monkeypatch.setattr(Initial, "blocks", moved)


@pytest.fixture(scope="module", params=["plain", "compiled"])
def way(request) -> Iterator[str]:
    """How layers train on the CPU: as they are written, and by compiled passes."""
    if request.param == "compiled":
        compiled.use(compiled_layers.library(torch.float32), compiled_layers.library(torch.float64))
    yield request.param
    compiled.use()


@pytest.fixture(autouse=True)
def _as_written_after(request) -> Iterator[None]:
    """A run switches compiled passes on for its process: off again, or later tests would depend on earlier ones."""
    yield
    if "way" not in request.fixturenames:
        compiled.use()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """A finished run of `samples.recipe`, trained in this process. Tests leave its folder as they found it."""
    from livetrain.cluster import launch

    folder = tmp_path_factory.mktemp("small")
    data = samples.write(folder / "data")
    part = data / "train/part-0.parquet"
    table = pq.read_table(part)
    pq.write_table(table.append_column("timestamp", pa.array(range(5000, 5000 + len(table)))), part)
    launch.train(samples.recipe(data), folder / "runs")
    return folder / "runs/small"


@pytest.fixture
def home(small_run, tmp_path, monkeypatch) -> Path:
    """A folder to work in with `small.yaml`, livetrain's own recipes, the finished run that `small_run` is, and an
    index."""
    (tmp_path / "small.yaml").symlink_to(small_run / "config.yaml")
    (tmp_path / "configs").symlink_to(wheels.ROOT / "configs")
    copy = tmp_path / "runs/small"
    copy.mkdir(parents=True)
    for path in small_run.iterdir():
        if path.name != ".lock":
            (copy / path.name).symlink_to(path)
    if importlib.util.find_spec("faiss"):
        from tests import indexes

        indexes.write(tmp_path / "indexes/small", indexes.unit(50, 8), indexes.FIFTY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def _stored() -> Iterator[tuple[str, store.Network]]:
    network = store.Network()
    with store.served(network=network) as uri:
        yield uri, network


@pytest.fixture(scope="session")
def bucket(_stored) -> str:
    """The URI of a folder in a bucket of an object store on this machine."""
    return _stored[0]


@pytest.fixture(params=["folder", "bucket"])
def where(request, tmp_path) -> str:
    """A place where nothing is yet: a folder, or one in that bucket."""
    if request.param == "bucket":
        return request.getfixturevalue("bucket").replace("/in/it", f"/in/{uuid.uuid4().hex}")
    return str(tmp_path / "place")


@pytest.fixture
def network(_stored) -> Iterator[store.Network]:
    """What lies between that store and its clients: nothing but what a test puts there."""
    network = _stored[1]
    vars(network).update(vars(store.Network()))
    yield network
    vars(network).update(vars(store.Network()))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """A wheel of this checkout."""
    return wheels.build(tmp_path_factory.mktemp("wheel"))
