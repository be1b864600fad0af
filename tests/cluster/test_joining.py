"""Ray that is not there, or does not start, is one sentence for whoever needs it."""

import pytest

from livetrain.cluster import doctor, ray_workers
from livetrain.cluster.joining import join
from livetrain.cluster.on_ray import on_ray
from livetrain.configs.errors import NotNow
from livetrain.configs.schema import Cluster


def fails(error: Exception):
    def init(**options):
        raise error

    return init


def test_a_ray_that_does_not_start_is_tried_again_later(monkeypatch):
    slow = Exception("The current node timed out during startup. This could happen because\nof much.")
    monkeypatch.setattr("ray.init", fails(slow))
    with pytest.raises(NotNow, match=r"cluster.workers: Ray does not start on this machine \(The current node timed"):
        join("local")
    with pytest.raises(NotNow, match="does not start"), ray_workers.attached(Cluster(workers=1)):
        pass
    with pytest.raises(NotNow, match="does not start"), on_ray("local"):
        pass


def test_a_cluster_that_does_not_answer_is_named_without_its_password(monkeypatch, tmp_path):
    monkeypatch.setattr("ray.init", fails(ConnectionError("nobody is there")))
    with pytest.raises(NotNow, match=r"no Ray cluster answers at ray://.*head:10001 \(nobody is there\)") as error:
        join("ray://me:secret@head:10001")
    assert "secret" not in str(error.value)
    with pytest.raises(NotNow, match="no Ray cluster answers at head:6379"):
        doctor.examine(None, tmp_path, "head:6379")
