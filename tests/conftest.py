"""What all tests share."""

import faulthandler
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from livetrain.modules.layers import compiled
from livetrain.trainers.train import compiled_layers
from tests import samples, wheels
from tests.pool import Pool

torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Have a crash in the interpreter's own end say in which threads it was; pytest has switched that off by now.

    One was seen once, in a process that had held torch, Ray, DuckDB and wandb side by side. The tests' status is not
    saved from it: whoever sees it again has its stack.
    """
    faulthandler.enable(sys.__stderr__)


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Pool]:
    """Two gloo ranks, kept for the whole session."""
    pool = Pool(2)
    yield pool
    pool.close()


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


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """A wheel of this checkout."""
    return wheels.build(tmp_path_factory.mktemp("wheel"))
