"""How many workers a run of a range has, and how often it is started again: Ray Train's policies without a cluster."""

import asyncio
import os
import socket
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle
from ray._private.label_utils import validate_label_selector
from ray.exceptions import RayActorError
from ray.train import RunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2._internal.execution.worker_group.worker import WorkerStatus
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from livetrain.cluster import capacity, doctor, elastic, places, ray_workers
from livetrain.cluster.sweep import tune
from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Cluster, Workers
from livetrain.trainers.data.read.order import Order
from livetrain.trainers.observe.report import contents
from livetrain.trainers.runtime import manifest, run_folder, runlog, signals
from livetrain.trainers.train.loop import joined
from livetrain.trainers.train.stopping import Listener
from tests import samples

CONFIG = {"num_workers": (2, 4), "resources_per_worker": {"CPU": 2}}


class Machines:
    """What `Nodes` tells, as a test has it."""

    def __init__(self, room: int) -> None:
        self.free, self.gone, self.own, self.dead = room, set(), Counter(), set()

    def silent(self) -> set[str]:
        return self.dead

    def room(self, group, without=()) -> int:
        return self.free - len(without)

    def leaving(self) -> set[str]:
        return self.gone

    def held(self, group) -> Counter[str]:
        return self.own


@pytest.fixture
def place(tmp_path) -> Path:
    """A training's own place in a run's folder, with the training listening."""
    made = tmp_path / "run" / f"{places.TRAINING}here-1-00000000.scratch"
    made.mkdir(parents=True)
    Listener(made.parent)
    return made


class Run:
    """A run under `Scaling`: 2, 3 or 4 workers, and a clock that the test moves."""

    def __init__(self, place: Path, counts=(2, 3, 4), room: int = 4) -> None:
        self.now, self.machines, self.place = 0.0, Machines(room), place
        asked = elastic.Asked(counts, place, place.parent, timeout_s=60)
        self.policy = elastic.Scaling(ScalingConfig(**CONFIG), asked, clock=lambda: self.now)
        self.policy._nodes = self.machines
        self.policy._maybe_send_resource_request = lambda: None
        self.group = SimpleNamespace(placement_group=object())

    def starts(self) -> int | None:
        """How many workers are started, if any are."""
        decision = self.policy.make_decision_for_non_running_worker_group()
        self.group = SimpleNamespace(placement_group=object())
        return None if isinstance(decision, NoopDecision) else decision.num_workers

    def asks(self, workers: int, after: float) -> bool:
        """Whether the workers have been told to save and leave, so much later."""
        self.now += after
        state = WorkerGroupState(0.0, self.group, [None] * workers, None)
        decision = self.policy.make_decision_for_running_worker_group(state, WorkerGroupPollStatus({}))
        assert isinstance(decision, NoopDecision)  # Ray would end them where they are
        return signals.asked(self.place.parent)

    def notes(self) -> list[str]:
        return [line["text"] for line in runlog.read(self.place.parent)]


def test_a_run_starts_as_many_as_fit_and_waits_for_the_fewest(place, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    run = Run(place, counts=(2, 4))
    for room, started in ((9, 4), (4, 4), (3, 2), (2, 2), (1, None), (1, None), (0, None)):
        run.machines.free = room
        assert run.starts() == started
    assert run.notes()[-2:] == [
        f"waiting: there is room for {found}, and 2 are the fewest" for found in ("1 worker", "0 workers")
    ]
    run.now = 59
    assert run.starts() is None
    run.machines.free = 2
    assert run.starts() == 2
    assert not run.asks(2, after=0)  # they run: whoever waits next waits from then on
    run.machines.free, run.now = 0, 100
    assert run.starts() is None
    run.now = 161
    with pytest.raises(elastic.NoRoom):
        run.starts()


def test_a_plain_number_waits_for_its_place_as_ever(place):
    assert Run(place, counts=(4,), room=0).starts() == 4


def test_room_for_more_is_taken_once_it_lasts(place):
    run = Run(place)
    assert not run.asks(4, after=100)
    assert not run.asks(3, after=2)
    assert not run.asks(3, after=elastic.SETTLED_S - 3)
    run.machines.free = 3  # the machine was there for a moment only
    assert not run.asks(3, after=4)
    run.machines.free = 4
    assert not run.asks(3, after=4)
    assert run.asks(3, after=elastic.SETTLED_S)
    assert run.notes() == ["there is room for 4 workers: the 3 save, and start again as so many"]
    assert run.asks(3, after=elastic.SETTLED_S)
    assert len(run.notes()) == 1


def test_a_machine_that_ray_takes_for_alive_is_left_out(place):
    run = Run(place)
    run.machines.dead = {"b", "a"}
    assert run.starts() == 2
    chosen = run.policy.on_controller_start_worker_group(scaling_config=None, num_workers=2)
    assert chosen == {"ray.io/node-id": "!in(a, b)"}
    assert validate_label_selector(chosen) is None  # or Ray would not take it
    assert not run.asks(2, after=0)
    assert not run.asks(2, after=elastic.SETTLED_S + 1)  # there seems to be room for 4
    run.machines.dead = set()
    assert run.asks(2, after=2)
    assert run.starts() == 4
    assert run.policy.on_controller_start_worker_group(scaling_config=None, num_workers=4) is None


def test_machines_are_asked_whether_they_are_there(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as raylet, socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # and does not listen
        ports = {"there": raylet.getsockname()[1], "dead": other.getsockname()[1], "long gone": 1}
        nodes = [
            {"NodeID": name, "Alive": name != "long gone", "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
            for name, port in ports.items()
        ]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        assert elastic.Nodes({"CPU": 1}).silent() == {"dead"}


def test_room_between_two_counts_is_left_alone(place):
    run = Run(place, counts=(2, 4), room=3)
    assert not run.asks(2, after=1)
    assert not run.asks(2, after=1000)


@pytest.mark.parametrize("counts", [(2, 3, 4), (4,)])
def test_a_machine_that_is_to_leave_ends_its_workers_at_a_checkpoint(place, counts):
    run = Run(place, counts)
    run.machines.own, run.machines.gone = Counter({"mine": 2}), {"another's"}
    assert not run.asks(4, after=5)
    run.machines.gone = {"mine"}
    assert run.asks(4, after=5)
    assert run.notes() == ["1 machine of the run is to leave: its workers save, and start again"]
    Listener(place.parent)  # of the workers that start then
    run.machines.own = Counter({"other": 2})
    assert not run.asks(2, after=5)


def test_an_evaluation_beside_a_training_asks_it_nothing(place):
    beside = place.with_name(place.name.replace(places.TRAINING, places.EVALUATION))
    run = Run(beside)
    run.machines.own, run.machines.gone = Counter({"mine": 2}), {"mine"}
    assert not run.asks(4, after=5)


def test_room_is_what_is_free_and_what_the_run_holds_itself(monkeypatch):
    """Of machines that are there and stay; Ray's figures are as its state accessor gives them."""
    alive = [{"NodeID": name, "Alive": name != "dead"} for name in ("full", "half", "dead", "leaves")]
    free = {"full": {}, "half": {"CPU": 5.0}, "leaves": {"CPU": 8.0}, "dead": {"CPU": 8.0}}
    table = {"state": "RESCHEDULING", "bundles_to_node_id": {0: "full", 1: "full", 2: "dead", 3: "leaves", 4: ""}}
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    monkeypatch.setattr(elastic.cluster_state, "get_draining_nodes", lambda: {"leaves": 0})
    monkeypatch.setattr(elastic.cluster_state, "available_resources_per_node", lambda: free)
    monkeypatch.setattr(elastic, "placement_group_table", lambda group: table)
    nodes = elastic.Nodes({"CPU": 2})
    assert nodes.room(None) == 2
    assert nodes.room("mine") == 2 + 2
    assert nodes.room("mine", without={"half"}) == 2
    table["state"] = "REMOVED"
    assert nodes.room("mine") == 2


def lost(*errors: Exception) -> WorkerGroupError:
    return WorkerGroupError("lost", dict(enumerate(errors)))


def preempted() -> Exception:
    gone = RayActorError()
    gone._preempted = True
    return WorkerHealthCheckFailedError("gone", gone)


@pytest.mark.parametrize("cause", [ValueError("a bug"), preempted()])
def test_failures_are_counted_between_checkpoints(place, monkeypatch, cause):
    """Of any kind: Ray Train knows no end of machines that are taken away, and counts others over the whole run."""
    saved: list[Path] = []
    monkeypatch.setattr(run_folder, "committed", lambda run: saved)
    asked = elastic.Asked((2, 4), place, place.parent, 60)
    policy = elastic.Limits(FailureConfig(max_failures=1, max_preemption_failures=1, controller_failure_limit=1), asked)
    for step in ("step-1", "step-2", "step-3"):
        saved.append(Path(step))
        assert policy.make_decision(lost(cause)) == FailureDecision.RETRY
    assert policy.make_decision(lost(signals.Again(), ValueError("a connection"))) == FailureDecision.RETRY
    assert policy.make_decision(ControllerError(WorkerGroupStartupTimeoutError(2))) == FailureDecision.RETRY
    assert policy.make_decision(lost(cause)) == FailureDecision.RAISE
    assert len([line for line in runlog.read(place.parent) if "start again" in line["text"]]) == 4


class Group:
    """Workers as Ray Train's controller has them: what they do next is in `does`; how many there were is in `sizes`."""

    does: list[Exception | str] = []  # noqa: RUF012
    sizes: list[int] = []  # noqa: RUF012

    @classmethod
    def create(cls, train_run_context, worker_group_context, callbacks) -> "Group":
        made = cls()
        made.workers = [None] * worker_group_context.num_workers
        cls.sizes.append(len(made.workers))
        handle = SimpleNamespace(placement_group=object())
        made.state = WorkerGroupState(0.0, handle, made.workers, None)
        return made

    def get_workers(self) -> list:
        return self.workers

    def get_worker_group_state(self) -> WorkerGroupState:
        return self.state

    def get_latest_poll_status(self) -> None:
        return None

    def shutdown(self) -> None:
        self.workers = []

    def poll_status(self, timeout: float) -> WorkerGroupPollStatus:
        done = self.does.pop(0)
        error = done if isinstance(done, Exception) else None
        return WorkerGroupPollStatus({0: WorkerStatus(running=done == "trains", error=error)})


def controlled(run: Run, does: list[Exception | str], monkeypatch) -> TrainController:
    """Let Ray Train's own controller run workers that do so, under both policies."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
    monkeypatch.setattr(elastic.Scaling, "after_controller_start", lambda *_: None)
    monkeypatch.setattr(TrainController, "worker_group_cls", Group)
    monkeypatch.setattr(Group, "does", does)
    monkeypatch.setattr(Group, "sizes", [])
    failures = FailureConfig(max_failures=1, max_preemption_failures=1)
    kept = RunConfig(name="kept", storage_path=str(run.place / "ray"), failure_config=failures)
    context = TrainRunContext(
        run_config=kept,
        train_loop_config={},
        scaling_config=ScalingConfig(**CONFIG),
        backend_config=None,
        dataset_config=None,
    )
    limits = elastic.Limits(failures, elastic.Asked((2, 3, 4), run.place, run.place.parent, 60))
    controller = TrainController(None, context, run.policy, limits)
    asyncio.run(controller.run())
    return controller


@pytest.fixture
def ray_that_ends():
    """Fitting starts a Ray, which no other test is to find."""
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_that_ends")
def test_both_policies_travel_to_rays_controller(place, monkeypatch):
    """In the place of Ray Train's own, as it sends them; with the waits of a range."""
    sent: dict[str, Any] = {}
    monkeypatch.setattr(
        TorchTrainer, "_initialize_and_run_controller", lambda self, **parts: sent.update(parts) or done
    )
    done = SimpleNamespace(error=None)
    failures = FailureConfig(max_failures=1, max_preemption_failures=1, controller_failure_limit=-1)
    kept = RunConfig(storage_path=str(place / "ray"), failure_config=failures)
    trainer = TorchTrainer(lambda: None, scaling_config=ScalingConfig(**CONFIG), run_config=kept)
    for name in ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"):
        monkeypatch.setenv(name, "")  # put back afterwards
    cluster = Cluster(workers=Workers(min=2, max=4))
    ray_workers._fit(trainer, cluster, elastic.policies(trainer, elastic.Asked((2, 4), place, place.parent, 60)))
    assert os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == str(ray_workers.PLACED_S)
    scaling, limits = (
        cloudpickle.loads(cloudpickle.dumps(sent[name])) for name in ("scaling_policy", "failure_policy")
    )
    assert (type(scaling), type(limits)) == (elastic.Scaling, elastic.Limits)
    assert scaling._each == {"CPU": 2}
    assert limits.make_decision(lost(ValueError("once"))) == FailureDecision.RETRY
    assert limits.make_decision(lost(ValueError("twice"))) == FailureDecision.RAISE


def test_rays_controller_goes_on_with_what_is_left_and_takes_in_what_comes(place, monkeypatch):
    run = Run(place)
    monkeypatch.setattr(run.machines, "room", lambda group, without=(): (4, 3, 4, 2, 2)[len(Group.sizes)])
    bug = ValueError("a connection")
    found = controlled(run, ["trains", preempted(), "trains", signals.Again(), bug, "done"], monkeypatch)
    assert Group.sizes == [4, 3, 4, 2]
    assert found.get_training_failed_error() is None


def test_rays_controller_ends_by_both_limits(place, monkeypatch):
    run = Run(place)
    error = controlled(run, [ValueError("a bug"), ValueError("a bug")], monkeypatch).get_training_failed_error()
    assert isinstance(error, WorkerGroupError)
    assert Group.sizes == [4, 4]
    run.machines.free = 1
    monkeypatch.setattr(time, "sleep", lambda seconds: setattr(run, "now", run.now + 30))
    monkeypatch.setattr(ray, "available_resources", dict)
    failed = controlled(run, [], monkeypatch).get_training_failed_error()
    assert (
        ray_workers._failure(failed, Cluster(workers=Workers(min=2, max=4), timeout_s=60), False)
        .args[0]
        .startswith("cluster.workers: 2 workers of 1 CPU each find no room, 0 CPUs are free, after 60 s of waiting")
    )


def test_a_refusal_ends_the_run_at_once(place):
    policy = elastic.Limits(FailureConfig(max_failures=9), elastic.Asked((2,), place, place.parent, 60))
    (place / places.REFUSAL).write_text("{}")
    assert policy.make_decision(lost(BadInput("no"))) == FailureDecision.RAISE


@settings(max_examples=30)
@given(st.integers(1, 64), st.integers(1, 40), st.integers(0, 40))
def test_the_counts_are_those_that_share_the_shards_evenly(shards, least, more):
    """Against the order of samples itself."""
    order = Order([1000], [0], shards=shards, batch_size=shards, window=10, most=10, run=100, seed=0, shuffle=True)

    def shares(count: int) -> bool:
        try:
            return len({len(order.owned(rank, count)) for rank in range(count)}) == 1
        except BadInput:
            return False

    wanted = tuple(count for count in range(least, least + more + 1) if shares(count))
    made = {"data__shards": shards, "data__batch_size": shards}
    workers = {"min": least, "max": least + more}
    if wanted:
        assert samples.recipe(Path("data"), cluster__workers=workers, **made).counts() == wanted
    else:
        with pytest.raises(ValueError, match=rf"cluster\.workers: {shards} data\.shards divide among no number"):
            samples.recipe(Path("data"), cluster__workers=workers, **made)


def test_a_range_of_workers_has_one_batch():
    with pytest.raises(
        ValueError, match=r"data\.batch_size_per_worker: .* data\.batch_size: 2048, which is 512 on each of 4"
    ):
        load_recipe(
            samples.recipe(Path("data")), data={"batch_size_per_worker": 512}, cluster={"workers": {"min": 1, "max": 4}}
        )


def test_the_word_to_start_again_is_heard_once(tmp_path):
    assert not signals.ask(tmp_path)  # nobody listens
    listener = Listener(tmp_path)
    assert not listener.told()
    assert signals.ask(tmp_path)
    assert not signals.ask(tmp_path)
    assert listener.told()
    assert not Listener(tmp_path).told()  # of the workers that start then
    with signals.saving(tmp_path):
        assert not list(tmp_path.iterdir())


def test_what_was_trained_by_how_many_is_kept_by_step():
    counts: list[dict[str, int]] = []
    for step, workers in ((0, 3), (80, 2), (40, 2), (120, 2), (160, 3)):  # from 80 on one attempt's work was lost
        counts = joined(counts, step, workers)
    assert [tuple(part.values()) for part in counts] == [(0, 3), (40, 2), (160, 3)]
    assert contents._workers({"workers": 3, "workers_by_step": counts}, {}) == "3, 2 and 3"
    assert contents._workers({}, {"workers": {"min": 4, "max": 16}}) == "4 to 16"


def test_a_sweep_and_a_doctor_say_what_a_range_means(tmp_path):
    recipe = samples.recipe(tmp_path, cluster__workers={"min": 2, "max": 5})
    with pytest.raises(BadInput, match=r"^cluster\.workers: the trials of a sweep .* give one, such as 2, 3, 4$"):
        tune(recipe, {"train.seed": {"choice": [1]}}, tmp_path / "sweep")
    assert doctor.counts_that_work(recipe, room=3) == (
        "2, 3, 4 share 12 data.shards evenly, of 2 to 5 no other; there is room for 3 now, so 3 would train"
    )
    with pytest.raises(BadInput, match=r"room for 1 worker now, and the run waits until there is for 2; add nodes"):
        doctor.counts_that_work(recipe, room=1)


def test_a_machine_is_started_with_what_fits_of_a_range(monkeypatch):
    monkeypatch.setattr("livetrain.cluster.nodes.cores", lambda: 2)
    monkeypatch.setattr("livetrain.cluster.nodes.free_memory", lambda: 2**36)
    assert capacity.cpus_here(Cluster(workers=Workers(min=1, max=64))) == 4
    mend = r"set cluster\.workers\.min to 4 or fewer"
    with pytest.raises(BadInput, match=rf"5 workers of 1 CPU each do not fit .* {mend}"):
        capacity.cpus_here(Cluster(workers=Workers(min=5, max=64)))


def test_what_a_follower_saves_in_the_folders_of_its_lines_counts(tmp_path):
    """Otherwise a training of weeks would end with the third machine that goes."""
    asked = elastic.Asked((1,), tmp_path / f"{places.TRAINING}x", tmp_path, timeout_s=60)
    for folder in (tmp_path, tmp_path / "2022-05-04"):
        for step in (1, 2):
            path = run_folder.checkpoint(folder, step)
            path.mkdir(parents=True)
            if step == 1:
                manifest.commit(path, {})
    assert asked.saved() == {run_folder.checkpoint(folder, 1) for folder in (tmp_path, tmp_path / "2022-05-04")}
    assert elastic.Asked((1,), tmp_path / f"{places.EVALUATION}x", tmp_path, timeout_s=60).saved() == set()
