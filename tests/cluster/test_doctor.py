"""The doctor against this machine's own Ray, and each of its complaints."""

import dataclasses
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from rich.console import Console
from typer.testing import CliRunner

import livetrain
from livetrain.cli import main as cli
from livetrain.cluster import doctor, exchange, nodes, ray_workers
from livetrain.cluster.exchange import Exchanged
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Cluster, Workers
from livetrain.modules.model import Model
from livetrain.trainers.train import memory, planning, sharding
from tests import samples

GIB = 2**30


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_sound_cluster_passes_every_check(tmp_path):
    recipe = samples.recipe(samples.write(tmp_path / "data"), cluster__workers=2, cluster__cpus_per_worker=0.5)
    findings = doctor.examine(recipe, tmp_path / "runs", None)
    assert [finding for finding in findings if not finding.ok] == []
    texts = {finding.check: finding.text for finding in findings}
    assert list(texts) == ["nodes", "versions", "storage", "data", "devices", "exchange", "batch", "plan", "memory"]
    assert texts["batch"] == "96 rows per step, 48 on each of 2 workers"
    assert texts["nodes"].startswith("1 node with 2 CPUs and ")
    assert "2 workers on 1 node: all-to-all over gloo" in texts["exchange"]
    assert "user row_wise on 2 ranks" in texts["plan"]
    assert not (tmp_path / "runs").exists()
    cluster = recipe.cluster.model_copy(update={"workers": Workers(min=1, max=5)})
    findings = doctor.examine(recipe.model_copy(update={"cluster": cluster}), tmp_path / "runs", None)
    assert [finding for finding in findings if not finding.ok] == []
    texts = {finding.check: finding.text for finding in findings}
    assert list(texts)[4:] == [
        *("devices", "workers", "exchange", "batch", "plan of 1", "memory of 1", "plan of 4", "memory of 4"),
    ]
    assert texts["workers"].startswith(
        "1, 2, 3, 4 share 12 data.shards evenly, of 1 to 5 no other; there is room for 4"
    )
    assert "user row_wise on 4 ranks" in texts["plan of 4"]


@pytest.mark.usefixtures("ray_here")
@pytest.mark.slow
def test_every_complaint_of_a_cluster_is_a_line_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "PLACED_S", 1)
    (tmp_path / "runs").write_text("a file")
    recipe = samples.recipe(tmp_path / "nothing", cluster__workers=4, tables__user__rows=2**40)
    findings = {finding.check: finding for finding in doctor.examine(recipe, tmp_path / "runs", None)}
    failed = {check: finding.text for check, finding in findings.items() if not finding.ok}
    assert list(failed) == ["storage", "data", "exchange", "plan"]
    assert "cannot write here (" in failed["storage"]
    assert "choose another folder with --runs" in failed["storage"]
    assert failed["data"].startswith("data.path: there is no folder")
    assert failed["exchange"].startswith("cluster.workers: 4 workers of 1 CPU find no room, ")
    assert failed["plan"].startswith("tables: no sharding plan fits 4 workers")


@pytest.mark.usefixtures("ray_here")
@pytest.mark.slow
def test_gpus_that_are_not_there_end_the_examination(tmp_path):
    recipe = samples.recipe(samples.write(tmp_path / "data"), cluster__workers=6, cluster__device="cuda")
    last = doctor.examine(recipe, tmp_path, None)[-1]
    assert (last.check, last.ok) == ("devices", False)
    assert "cluster.device: cuda needs 6 GPUs" in last.text


def node(name: str) -> dict:
    return {"NodeManagerHostname": name, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 8.0}, "Alive": True}


def answer(host: str = "a", torch: str = "2.13.0", free: int = 64 * GIB, gpus: tuple = ()) -> dict:
    return {"host": host, "versions": {"python": "3.11.7", "torch": torch}, "free": free, "gpus": list(gpus)}


@pytest.mark.parametrize(("limit", "wanted"), [("max 100000", None), ("300000 100000", 3), ("50000 100000", 1)])
def test_a_container_has_the_cores_of_its_own_limit(tmp_path, monkeypatch, limit, wanted):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    assert nodes.cores(tmp_path) == 16
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(f"{limit}\n")
    assert nodes.cores(tmp_path) == (wanted or 16)


def test_workers_that_this_machine_does_not_hold_are_said_as_such(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    recipe = samples.recipe(tmp_path, cluster__workers=4096, data__shards=4096, data__batch_size=4096)
    with pytest.raises(BadInput, match=r"^cluster\.workers: 4096 workers of 1 CPU each do not fit on this machine"):
        doctor.examine(recipe, tmp_path, None)


def test_a_node_that_cannot_run_livetrain():
    silent = {"b": "ModuleNotFoundError: No module named 'cluster'"}
    with pytest.raises(BadInput, match=r"node beta \(10.0.0.1\) and 0 other of 2 nodes .*No module named"):
        doctor.nodes_answer({"a": node("alpha"), "b": node("beta")}, {"a": answer()}, silent)


def test_nodes_are_counted_with_their_gpus():
    answers = {"a": answer(gpus=[("H100", 80 * GIB)] * 8), "b": answer(gpus=[("H100", 80 * GIB)] * 7 + [("A100", GIB)])}
    said = doctor.nodes_answer({"a": node("a"), "b": node("b")}, answers, {})
    assert said == "2 nodes with 16 CPUs and 15 H100, 1 A100"


def test_other_versions_are_named():
    assert doctor.versions_agree(answer(), {"a": answer()}) == "everywhere python 3.11.7, torch 2.13.0"
    with pytest.raises(BadInput, match=r"beta has torch 2\.12\.0, and the driver on a 2\.13\.0; set both up"):
        doctor.versions_agree(answer(), {"a": answer(), "b": answer("beta", torch="2.12.0")})


def test_a_topology_that_claims_more_than_the_gpus_have(monkeypatch):
    monkeypatch.setattr(ray_workers, "on_gpus", lambda cluster: True)
    answers = {"a": answer(gpus=[("H100", 81559 * 2**20), ("A100", 40 * 10**9)])}
    with pytest.raises(BadInput, match="counts on 80 GB per GPU, and the smallest has 40; set it to 40"):
        doctor.devices_suffice(Cluster(workers=2), answers)
    fits = {"a": answer(gpus=[("H100", 81559 * 2**20)])}
    assert doctor.devices_suffice(Cluster(workers=1), fits) == "1 worker, one GPU of at least 86 GB each"


def test_storage_that_a_node_does_not_share(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "SEEN_S", 0.0)
    both = {"a": node("alpha"), "b": node("beta")}

    def only_a_writes(nodes, question, folder, token):
        Path(folder, "a").write_text(token)
        return {"a": "", "b": ""}, {}

    monkeypatch.setattr(doctor, "ask", only_a_writes)
    with pytest.raises(BadInput, match="node beta .* does not share it .its file does not arrive here.; mount one"):
        doctor.storage_is_shared(tmp_path, both)
    monkeypatch.setattr(doctor, "ask", lambda *_: ({"a": "the driver's file is not there"}, {}))
    with pytest.raises(BadInput, match="node alpha .* does not share it .the driver's file is not there."):
        doctor.storage_is_shared(tmp_path, both)
    assert list(tmp_path.iterdir()) == []


def test_data_that_a_node_sees_otherwise(tmp_path, monkeypatch):
    recipe = samples.recipe(samples.write(tmp_path / "data"))
    here = doctor.files_seen(recipe)
    assert {split: len(names) for split, names in here.items()} == {"train": 1, "valid": 1, "test": 1}
    monkeypatch.setattr(doctor, "ask", lambda *_: ({"a": here, "b": {**here, "train": []}}, {}))
    with pytest.raises(BadInput, match="node beta .* sees other files in .* than the driver"):
        doctor.data_is_seen(recipe, {"a": node("alpha"), "b": node("beta")})


@pytest.mark.parametrize(("kind", "state"), [("rowwise_adagrad", 4), ("adagrad", 32), ("sgd", 0)])
def test_need_counts_weights_and_state_on_every_plan(tmp_path, kind, state):
    tables = {
        "user": {"rows": 1000, "dim": 8, "sharding": "row_wise"},
        "movie": {"rows": 500, "dim": 8, "sharding": "table_wise", "dtype": "float16"},
        "rating": {"rows": 100, "dim": 8, "sharding": "data_parallel"},
    }
    recipe = samples.recipe(tmp_path, tables=tables, optimizers__sparse__kind=kind)
    plan = sharding.dry_plan(recipe, 2, "cpu")
    held = memory.per_rank(recipe, plan)
    user, movie, rating = 500 * (32 + state), 500 * (16 + state), 100 * (32 + state)
    tables = held["host"]["weights"] + held["host"]["optimizer state"]
    assert sorted(tables) == [user + rating, user + rating + movie]
    assert held["gpu"] == {}
    assert (held["host"]["gradients"] >= 100 * 32).all()  # of the replicated one, and of the dense part
    assert (held["host"]["checkpoint copy"] - tables == held["host"]["dense part"]).all()
    found = doctor.need(recipe, plan)
    assert found.gpu == [0, 0]
    assert found.copied == held["host"]["checkpoint copy"].tolist()
    assert np.subtract(found.host, tables).tolist() == [min(np.subtract(found.host, tables))] * 2  # the rest is alike
    on_gpus = memory.per_rank(recipe, dataclasses.replace(plan, device="cuda"))
    assert (on_gpus["gpu"]["weights"] + on_gpus["gpu"]["optimizer state"] == tables).all()
    assert (on_gpus["host"]["checkpoint copy"] == held["host"]["checkpoint copy"]).all()


@pytest.mark.parametrize(("threshold", "each"), [(1, 13), (2, 29)])
def test_every_worker_holds_all_of_the_map_of_a_table_of_ids(tmp_path, threshold, each):
    """Against a hash over as many rows, which has no map; the model's own check counts the same."""
    ids = {"hash": "table", "admission": {"threshold": threshold}}
    made = [
        samples.recipe(tmp_path, tables__user={"rows": 4096, "dim": 8, "sharding": "row_wise", **kind})
        for kind in ({}, ids)
    ]
    for world in (1, 2, 4):
        plain, known = (sharding.dry_plan(one, world, "cpu") for one in made)
        before, after = doctor.need(made[0], plain), doctor.need(made[1], known)
        assert np.subtract(after.host, before.host).tolist() == [4096 * each] * world  # never divided among them
        assert np.subtract(after.copied, before.copied).tolist() == [4096 * each] * world
        before = doctor.need(made[0], dataclasses.replace(plain, device="cuda"))
        after = doctor.need(made[1], dataclasses.replace(known, device="cuda"))
        assert np.subtract(after.gpu, before.gpu).tolist() == [4096 * 8] * world  # the keys, which are looked up there
        assert np.subtract(after.host, before.host).tolist() == [4096 * each] * world
    plain, known = (memory.needs(one, Model(one, "meta", "meta")) for one in made)
    assert sum(part.bytes for part in known) - sum(part.bytes for part in plain) == 4096 * each


def planned_by_a_rank(recipe) -> dict:
    import torch

    return sharding.shard(recipe, torch.device("cpu")).plan()


@pytest.mark.slow
def test_the_dry_plan_is_the_one_that_ranks_make(tmp_path, two_ranks):
    recipe = samples.recipe(tmp_path, tables__user__sharding="auto", tables__movie__sharding="auto", cluster__workers=2)
    dry = sharding.dry_plan(recipe, 2, "cpu")
    found = planning.placed(recipe, dry)
    assert two_ranks.run(planned_by_a_rank, recipe) == [found, found]


def met(rank: int, node: str = "a", gpu_free: int = 0) -> Exchanged:
    return Exchanged(rank, node, 1e9, gpu_free)


def test_host_memory_is_what_all_workers_of_a_machine_need():
    tables = doctor.Need(gpu=[0, 0], host=[40 * GIB, 40 * GIB], copied=[10 * GIB, 40 * GIB])
    spread = doctor.memory_suffices(tables, [met(0), met(1, "b")], {"a": answer("a"), "b": answer("b")})
    assert spread == (
        "it takes 40.0 GiB per worker of the host, which has at least 64.0 GiB free; training will wait while "
        "checkpoints are written: a copy takes 40.0 GiB of memory on b, which has 24.0 GiB left"
    )
    with pytest.raises(BadInput, match=r"the workers on a need 80\.0 GiB of host memory, and 64\.0 GiB are free"):
        doctor.memory_suffices(tables, [met(0), met(1)], {"a": answer("a")})


def test_gpu_memory_is_what_each_worker_needs():
    tables = doctor.Need(gpu=[40 * GIB, 60 * GIB], host=[0, 0], copied=[20 * GIB, 30 * GIB])
    with pytest.raises(BadInput, match=r"rank 1 needs 60\.0 GiB on its GPU, which has 50\.0 GiB free"):
        doctor.memory_suffices(tables, [met(0, gpu_free=50 * GIB), met(1, gpu_free=50 * GIB)], {"a": answer()})
    said = doctor.memory_suffices(tables, [met(0, gpu_free=79 * GIB), met(1, gpu_free=79 * GIB)], {"a": answer()})
    assert said.startswith("it takes 60.0 GiB per GPU, which has at least 79.0 GiB free; ")
    assert said.endswith("; a copy of a checkpoint takes 30.0 GiB more")


def test_a_containers_limit_is_the_memory_there_is(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert nodes.free_memory(tmp_path) == 8000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert nodes.free_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("5000\n")
    assert nodes.free_memory(tmp_path) == 4000


def test_the_table_shows_what_failed_as_it_is_written():
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(
        doctor.findings_table([doctor.Finding("nodes", True, "2 [old] nodes"), doctor.Finding("plan", False, "no")])
    )
    text = console.export_text()
    assert "2 [old] nodes" in text
    assert [line.split("│")[2].strip() for line in text.splitlines() if line.startswith("│")] == ["ok", "failed"]


@pytest.mark.parametrize(("well", "code"), [(True, 0), (False, 2)])
def test_the_command_exits_with_what_was_found(monkeypatch, well, code):
    asked = []

    def examine(recipe, runs, address, progress):
        asked.append((recipe.train.epochs, runs, address))
        return [doctor.Finding("nodes", True, "one"), doctor.Finding("plan", well, "x")]

    monkeypatch.setattr(doctor, "examine", examine)
    recipe = str(Path(livetrain.__file__).parent / "configs/recipes/din_ml1m.yaml")
    words = ["doctor", recipe, "train.epochs=3", "--runs", "/shared", "--address", "auto"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == code
    assert asked == [(3, Path("/shared"), "auto")]


def test_the_plan_is_made_of_what_the_data_tell(tmp_path):
    recipe = samples.recipe(samples.write(tmp_path / "data"))
    assert doctor.known_ids(recipe, tmp_path)["movie"].mean == pytest.approx(0.95, abs=0.02)
    assert doctor.known_ids(samples.recipe(tmp_path / "nowhere"), tmp_path) is None
