"""What all tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from modules.layers import compiled
from tests import samples
from tests.pool import Pool
from trainers import build

torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.livetrain_status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End with the tests' own status, at once.

    A process that has held torch, Ray, DuckDB and wandb side by side has been seen to crash in these libraries' own
    clean-up, after the last test and its fixtures were done with.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(getattr(config, "livetrain_status", 1))


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
        compiled.use(build.library(torch.float32), build.library(torch.float64))
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
    from cluster import launch

    folder = tmp_path_factory.mktemp("small")
    data = samples.write(folder / "data")
    part = data / "train/part-0.parquet"
    table = pq.read_table(part)
    pq.write_table(table.append_column("timestamp", pa.array(range(5000, 5000 + len(table)))), part)
    launch.train(samples.recipe(data), folder / "runs")
    return folder / "runs/small"
