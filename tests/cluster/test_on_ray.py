"""A day's buckets as tasks of a real Ray cluster."""

import pytest

from livetrain.cluster.on_ray import on_ray
from livetrain.configs.errors import BadInput
from livetrain.trainers.data.sources.events import prepare as preparation
from livetrain.trainers.data.sources.events.sources import ADAPTERS
from tests.trainers.data.sources.events.logs import HOUR, Visit, samples, write


def refuse(task):
    raise BadInput(f"bucket {task.bucket} is refused")


@pytest.mark.slow
def test_ray_makes_the_same_partitions(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "BUCKET_ROWS", 10)
    log = [Visit(HOUR * n, 1 + n % 5, 1 + n % 4, n % 3 > 0) for n in range(30)]
    raw = write("kuailive", tmp_path / "raw", log)
    preparation.prepare(ADAPTERS["kuailive"], raw, tmp_path / "here", run=map)
    with on_ray("local") as run:
        preparation.prepare(ADAPTERS["kuailive"], raw, tmp_path / "ray", run=run)
        names = [
            [str(path.relative_to(tmp_path / out)) for path in sorted((tmp_path / out).glob("date=*/*"))]
            for out in ("here", "ray")
        ]
        assert names[0] == names[1]
        assert sum(name.startswith("date=2025-05-25/part") for name in names[0]) == 3
        assert samples(tmp_path / "here").equals(samples(tmp_path / "ray"))
        # What a task refuses arrives as it is, and leaves no partition.
        monkeypatch.setattr(preparation.bucket, "build", refuse)
        with pytest.raises(BadInput, match=r"^bucket \d is refused$"):
            preparation.prepare(ADAPTERS["kuailive"], raw, tmp_path / "refused", run=run)
    assert not list((tmp_path / "refused").glob("date=*"))
