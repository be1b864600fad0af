"""Whether workers have room: on this machine, on a cluster's nodes, and on those that an autoscaler may add."""

import logging
import threading
import time
from collections.abc import Iterator

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.core.generated import autoscaler_pb2
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put
from ray.util import placement_group, remove_placement_group

from livetrain.cluster import capacity, launch, ray_workers
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Cluster
from tests import samples

GIB = 2**30


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray of two CPUs."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture
def machine(monkeypatch):
    """Say how large this machine is."""

    def say(cores: int, free: int) -> None:
        monkeypatch.setattr("livetrain.cluster.nodes.cores", lambda: cores)
        monkeypatch.setattr("livetrain.cluster.nodes.free_memory", lambda: free)

    return say


@pytest.mark.parametrize(
    ("workers", "cpus", "cores", "started_with"),
    [(2, 1, 2, 2), (3, 1, 2, 3), (4, 1, 2, 4), (2, 1, 1, 2), (3, 0.5, 2, 2), (1, 1, 64, 64), (3, 1.5, 4, 5)],
)
def test_what_a_machine_holds_is_started(machine, workers, cpus, cores, started_with):
    machine(cores, 64 * GIB)
    assert capacity.cpus_here(Cluster(workers=workers, cpus_per_worker=cpus)) == started_with


@pytest.mark.parametrize(
    ("workers", "cpus", "cores", "free", "sentence"),
    [
        (
            64,
            1,
            2,
            64,
            "64 workers of 1 CPU each do not fit on this machine of 2 cores; set cluster.workers to 4 or fewer",
        ),
        (
            5,
            1,
            2,
            64,
            "5 workers of 1 CPU each do not fit on this machine of 2 cores; set cluster.workers to 4 or fewer",
        ),
        (
            1,
            16,
            2,
            64,
            "1 worker of 16 CPUs each do not fit on this machine of 2 cores; lower cluster.cpus_per_worker",
        ),
        (
            32,
            1,
            64,
            3,
            "32 workers take 8.0 GiB before any table, and this machine has 3.0 GiB of memory free; lower it",
        ),
        (
            2,
            1,
            64,
            0.2,
            "2 workers take 0.5 GiB before any table, and this machine has 0.2 GiB of memory free; lower it",
        ),
    ],
)
def test_what_a_machine_does_not_hold_is_refused(machine, workers, cpus, cores, free, sentence):
    machine(cores, int(free * GIB))
    with pytest.raises(BadInput) as error:
        capacity.cpus_here(Cluster(workers=workers, cpus_per_worker=cpus))
    assert str(error.value).startswith(f"cluster.workers: {sentence}")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("command", ["train", "tune"])
def test_it_is_refused_before_anything_starts(machine, monkeypatch, tmp_path, command):
    from livetrain.cluster.sweep import tune

    machine(2, 64 * GIB)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", None)
    recipe = samples.recipe(tmp_path / "no data", cluster__workers=12)
    commands = {
        "train": lambda: launch.train(recipe, tmp_path),
        "tune": lambda: tune(recipe, {"train.seed": {"choice": [1]}}, tmp_path / "sweep"),
    }
    with pytest.raises(BadInput, match=r"^cluster\.workers: 12 workers"):
        commands[command]()
    assert list(tmp_path.iterdir()) == []


NODE = st.fixed_dictionaries({"CPU": st.integers(0, 9), "GPU": st.integers(0, 4)})


@given(st.lists(NODE, max_size=5), st.integers(0, 20), st.sampled_from([0.1, 0.5, 1, 1.5, 3]), st.booleans())
def test_workers_fit_where_they_can_be_laid_one_by_one(nodes, workers, cpus, cuda):
    """Against laying workers on nodes until none has room."""
    laid, left = 0, [(node["CPU"] * 10, node["GPU"]) for node in nodes]
    for tenths, cards in left:
        while tenths >= cpus * 10 and (cards or not cuda):
            laid, tenths, cards = laid + 1, tenths - cpus * 10, cards - 1
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
        patched.setattr(capacity, "_groups", list)
        cluster = Cluster(workers=workers, cpus_per_worker=cpus)
        assert capacity.places(cluster, cuda) == laid
        if laid >= max(workers, 1):
            capacity.check(cluster, cuda)
        else:
            with pytest.raises(BadInput, match=f"has room for {laid} on "):
                capacity.check(cluster, cuda)


@pytest.mark.usefixtures("ray_here")
def test_more_workers_than_a_cluster_holds_are_refused(tmp_path):
    data = samples.write(tmp_path / "data", rows=200)
    for name, cluster in (("many", {"workers": 3}), ("wide", {"workers": 1, "cpus_per_worker": 3})):
        recipe = samples.recipe(data, name=name, cluster=cluster | {"device": "cpu"}, data__batch_size=24)
        with pytest.raises(BadInput, match=r"^cluster\.workers: .* do not fit on the Ray cluster, .* on 1 node;"):
            launch.train(recipe, tmp_path / "runs")
        assert not (tmp_path / "runs" / name).exists()


@pytest.fixture
def autoscaler(ray_here) -> Iterator[None]:
    """The cluster says of itself, as Ray's autoscaler does, that it may grow by two nodes of 8 CPUs and 4 GPUs."""
    grows = autoscaler_pb2.NodeGroupConfig(name="gpus", resources={"CPU": 8, "GPU": 4}, max_count=2)
    config = autoscaler_pb2.ClusterConfig(node_group_configs=[grows])
    key, namespace = ray._raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, ray._raylet.GCS_AUTOSCALER_STATE_NAMESPACE
    _internal_kv_put(key, config.SerializeToString(), namespace=namespace)
    yield
    _internal_kv_del(key, namespace=namespace)


@pytest.mark.usefixtures("autoscaler")
def test_nodes_that_are_to_come_count():
    assert capacity.gpus() == 8
    assert ray_workers.on_gpus(Cluster(workers=8))
    capacity.check(Cluster(workers=8), cuda=True)
    capacity.check(Cluster(workers=4, cpus_per_worker=4), cuda=False)
    with pytest.raises(BadInput, match="5 workers of 4 CPUs each do not fit"):
        capacity.check(Cluster(workers=5, cpus_per_worker=4), cuda=False)
    assert not ray_workers.on_gpus(Cluster(workers=9))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_start_says_what_it_waits_for_and_gives_up(tmp_path):
    """Another job holds both CPUs."""
    data = samples.write(tmp_path / "data", rows=200)
    held = placement_group([{"CPU": 2}])
    assert held.wait(30)
    recipe = samples.recipe(data, cluster={"workers": 2, "timeout_s": 6, "max_failures": 1}, data__batch_size=24)
    try:
        with pytest.raises(
            RuntimeError, match=r"^cluster\.workers: 2 workers of 1 CPU each find no room, 0 CPUs are free"
        ):
            launch.train(recipe, tmp_path)
    finally:
        remove_placement_group(held)
    notes = (tmp_path / "small/metrics.jsonl").read_text()
    assert "waiting: 2 workers of 1 CPU each find no room, 0 CPUs are free" in notes


@pytest.mark.usefixtures("ray_here")
@pytest.mark.slow
def test_a_start_that_waited_says_that_it_goes_on():
    held, said = placement_group([{"CPU": 2}]), []
    assert held.wait(30)
    with capacity.watched(Cluster(workers=2), False, said.append):
        wanted = placement_group([{"CPU": 1}] * 2)
        _until(lambda: said)
        remove_placement_group(held)
        assert wanted.wait(30)
        _until(lambda: len(said) == 2)
    remove_placement_group(wanted)
    assert said == ["waiting: 2 workers of 1 CPU each find no room, 0 CPUs are free", "starting 2 workers"]
    assert not any(thread.name == "capacity" for thread in threading.enumerate())


def _until(met, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
