"""A run that finds items, shared by what indexes and blends them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livetrain.cluster import launch
from tests import samples
from tests.trainers.evaluate.test_retrieval import MODEL, TASKS


@pytest.fixture(scope="session")
def towers(tmp_path_factory) -> Path:
    """A finished run of two towers, trained in this process. Tests leave its folder as they found it.

    It draws negatives, whose column no side of it asks of rows.
    """
    folder = tmp_path_factory.mktemp("towers")
    data = samples.write(folder / "data")
    changes = {"model": MODEL, "tasks": TASKS, "evaluate__slices": {"often": "user < 30"}, "train__epochs": 1}
    movies = pq.read_table(data / "train").column("movie").unique().drop_null()
    pq.write_table(pa.table({"movie": movies}), folder / "movies.parquet")
    changes["data__negatives"] = {"catalogue": str(folder / "movies.parquet"), "item": "movie", "shared": 8}
    changes["tables__movie__rows"] = 65_536  # no two movies share one, or they would be equally good
    launch.train(samples.recipe(data, name="towers", **changes), folder / "runs")
    return folder / "runs/towers"
