"""How many workers a run has while it goes on, and how often it is started again: Ray Train's two policies, ours.

Both live in Ray Train's controller, on the machine of the command. Each look at the cluster asks Ray itself: what Ray
Train's own policy goes by is up to 20 s old (its AutoscalingCoordinator), and Ray takes a machine that died for alive
for some 15 s more. A start that counts on it waits for it; so before one every machine is asked whether it is there.

    a machine dies           a worker's death, or its neighbours' broken connections, end the group: it starts again as
                             the largest number that has room, from the last checkpoint
    a machine is to leave    (`ray drain-node`, as a spot machine's notice or Kubernetes' preStop hook sends it) the
                             ranks are asked to save and leave; then as above
    a machine has come       the same, once it has been there for SETTLED_S
"""

import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state as cluster_state
from ray._raylet import RAY_NODE_ID_KEY  # type: ignore[attr-defined]
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision, ScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util import placement_group_table

from livetrain.cluster import places
from livetrain.cluster.capacity import counted, fitting
from livetrain.trainers.runtime import run_folder, runlog, signals

log = logging.getLogger("livetrain")

LOOK_S = 1.0  # between two looks at the nodes
ANSWER_S = 2.0  # after which a machine that does not answer is taken for dead
SETTLED_S = 20.0  # that room for more workers has to last, for machines come in groups


class NoRoom(Exception):
    """A run of a range of workers has waited for the fewest of them for as long as it may."""


@dataclass(frozen=True)
class Asked:
    """What a command asks of both policies.

    Attributes:
        counts: the numbers of workers that it may have, rising (`Recipe.counts`).
        place: the command's own in the run's folder.
        told: the folder whose log is told what happens.
        timeout_s: longest wait for room.
    """

    counts: Sequence[int]
    place: Path
    told: Path
    timeout_s: float

    @property
    def trains(self) -> bool:
        """Whether the command trains, and the run's folder tells of its own progress."""
        return self.place.name.startswith(places.TRAINING)

    def saved(self) -> set[Path]:
        """Return the checkpoints that a training has, or each line of one that follows a stream."""
        run = self.place.parent
        folders = [run, *(path.parent for path in run.glob("*/checkpoints"))] if self.trains else []
        return {path for folder in folders for path in run_folder.committed(folder)}

    def note(self, text: str) -> None:
        """Tell the log; a storage that fails for a moment is no reason to end a run."""
        try:
            runlog.note(self.told, "note", text=text)
        except OSError as error:
            log.warning(f"{text} ({error})")


def policies(trainer: Any, asked: Asked) -> dict[str, Any]:
    """Return what goes into the place of a trainer's own policies, by the name that its controller gives them."""
    return {
        "scaling_policy": Scaling(trainer.scaling_config, asked),
        "failure_policy": Limits(trainer.run_config.failure_config, asked),
    }


def largest(counts: Sequence[int], room: int) -> int:
    """Return the largest of the counts that has room, 0 where none has.

    Example:
        >>> largest((4, 6, 8, 12, 16), room=11)
        8
    """
    return max((count for count in counts if count <= room), default=0)


class Nodes:
    """What the machines of the Ray cluster have free, and which of them are to leave; looked at afresh each time.

    Args:
        wanted: by each worker, as of Ray's resources.
    """

    def __init__(self, wanted: Mapping[str, float]) -> None:
        self._wanted = dict(wanted)

    def leaving(self) -> set[str]:
        """Return the machines that have been told to leave."""
        return set(cluster_state.get_draining_nodes())

    def silent(self) -> set[str]:
        """Return the machines that Ray takes for alive, and where none of its processes answers."""

        def answers(node: Mapping[str, Any]) -> bool:
            place = node["NodeManagerAddress"], node["NodeManagerPort"]
            try:
                with socket.create_connection(place, timeout=ANSWER_S):
                    return True
            except OSError:
                return False

        there = [node for node in ray.nodes() if node["Alive"]]
        with ThreadPoolExecutor(64) as pool:
            return {
                node["NodeID"] for node, answered in zip(there, pool.map(answers, there), strict=True) if not answered
            }

    def room(self, group: Any, without: Collection[str] = ()) -> int:
        """Return for how many workers there is room, on machines that stay.

        Args:
            group: the run's own reservation, whose places count as free; or None.
            without: machines that do not count.
        """
        staying = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - self.leaving() - set(without)
        own = self.held(group)
        free = cluster_state.available_resources_per_node()
        return sum(own[node] + fitting(free.get(node, {}), self._wanted) for node in staying)

    def held(self, group: Any) -> Counter[str]:
        """Return how many workers' places a reservation holds, by machine."""
        if group is None:
            return Counter()
        found = placement_group_table(group)
        return Counter(found["bundles_to_node_id"].values() if found.get("state") != "REMOVED" else ())


class Scaling(ScalingPolicy):
    """Chooses how many workers are started, and tells the ranks when others would do better.

    Args:
        config: Ray Train's, with what each worker wants.
        asked: the command's.
        clock: seconds that only rise.
    """

    def __init__(self, config: ScalingConfig, asked: Asked, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(config)
        self._asked, self._clock = asked, clock
        self._each = config._resources_per_worker_not_none
        self._nodes = Nodes(self._each)
        self._group: Any = None  # the reservation of the workers that are, or were last
        self._idle: float | None = None  # since when there are none
        self._silent: set[str] = set()  # machines that a start does without
        self._said = 0  # for how many workers there was room when the log was last told
        self._looked = self._larger = float("-inf")  # the last look; since when there is room for more

    def _get_num_workers_for_resource_request(self) -> int:
        return self._asked.counts[-1]

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start as many workers as fit; of a plain number Ray waits for the room.

        Raises:
            NoRoom: there was none for the fewest, for as long as the run waits.
        """
        self._maybe_send_resource_request()
        counts, self._larger = self._asked.counts, float("-inf")
        if len(counts) == 1:
            return ResizeDecision(num_workers=counts[0], resources_per_worker=self._each)
        now = self._clock()
        self._idle = now if self._idle is None else self._idle
        if now - self._idle > self._asked.timeout_s:
            raise NoRoom
        self._silent = self._nodes.silent()
        room = self._nodes.room(self._group, self._silent)
        count = largest(counts, room)
        if count:
            self._asked.note(f"starting {counted(count, 'worker')}")
            return ResizeDecision(num_workers=count, resources_per_worker=self._each)
        if self._said != room + 1:
            self._asked.note(f"waiting: there is room for {counted(room, 'worker')}, and {counts[0]} are the fewest")
            self._said = room + 1
        time.sleep(LOOK_S)  # Ray asks again at once
        return NoopDecision()

    def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> dict[str, str] | None:
        """Keep workers from machines that do not answer, which Ray may choose all the same."""
        return {RAY_NODE_ID_KEY: f"!in({', '.join(sorted(self._silent))})"} if self._silent else None

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Look whether a machine is to leave or has come, and ask the ranks to save and leave then.

        Ray would end the workers where they are, and lose what was trained since the last checkpoint; so it is never
        asked to.
        """
        self._maybe_send_resource_request()
        now = self._clock()
        if self._group is not (group := worker_group_state.placement_group_handle.placement_group):
            self._group, self._idle, self._said, self._larger = group, None, 0, float("-inf")
        if now - self._looked < LOOK_S:
            return NoopDecision()
        self._looked = now
        count = worker_group_state.num_workers
        if leaving := self._nodes.leaving() & set(self._nodes.held(group)):
            self._ask(f"{counted(len(leaving), 'machine')} of the run is to leave: its workers save, and start again")
        elif len(self._asked.counts) > 1 and (more := largest(self._asked.counts, self._nodes.room(group))) > count:
            self._larger = now if self._larger == float("-inf") else self._larger
            if now - self._larger >= SETTLED_S and self._fits(more, group):
                self._ask(f"there is room for {more} workers: the {count} save, and start again as so many")
        else:
            self._larger = float("-inf")
        return NoopDecision()

    def _fits(self, count: int, group: Any) -> bool:
        return self._nodes.room(group, self._nodes.silent()) >= count

    def _ask(self, text: str) -> None:
        """Ask the ranks to save and leave, where a training listens and has not been asked yet."""
        if self._asked.trains and signals.ask(self._asked.place.parent):
            self._asked.note(text)


class Limits(DefaultFailurePolicy):
    """Starts workers again that failed, at most so many times with no new checkpoint between.

    Ray Train counts over a run's whole length, so that a run of a week on machines that come and go would end by the
    third that goes; and it never ends where machines are taken away, or workers find no place.

    Args:
        config: Ray Train's, with the limits.
        asked: the command's.
    """

    def __init__(self, config: FailureConfig, asked: Asked) -> None:
        super().__init__(config)
        self._asked = asked
        self._saved: set[Path] = set()

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Return whether workers are started again."""
        if (self._asked.place / places.REFUSAL).exists():  # which no start can mend
            return FailureDecision.RAISE
        causes = training_failed_error.worker_failures if isinstance(training_failed_error, WorkerGroupError) else {}
        if any(isinstance(cause, signals.Again) for cause in causes.values()):
            return FailureDecision.RETRY  # it has saved
        saved = self._asked.saved()
        if saved - self._saved:
            self._saved = saved
            self._worker_group_failures = self._preemption_failures = self._controller_failures = 0
        decision = super().make_decision(training_failed_error)
        if decision == FailureDecision.RETRY:
            self._asked.note(f"workers failed ({_in_short(causes)}), and start again")
        return decision


def _in_short(causes: Mapping[int, Exception]) -> str:
    """Return what ended which rank, of those that Ray has heard of by then."""
    if not causes:
        return "they could not be started"
    rank, cause = min(causes.items())
    said = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    return f"rank {rank}: {said[:120]}" + f", and {len(causes) - 1} more" * (len(causes) > 1)
