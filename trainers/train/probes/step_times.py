"""Where the time of a step goes: a few marks a step, cheap enough to be always on, and a profiler's trace on request.

A step is in exactly one part at any time, so the parts never count twice and sum to no more than the step; the rest is
what has no name (the learning rates, the metrics' sums, clearing gradients, checkpoints). On a CPU the marks are
readings of the host's clock. On a GPU they are events on the stream that computes, read when they have come to pass
without waiting for them: a part is then the time for which that stream was at it or stood still for it, so that an
exchange of ids hidden behind the step before costs nothing and shows as nothing.
"""

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.model import ReplicatedCollection
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.sharding import Sharded
from livetrain.trainers.train.step import SHARDED

# As they follow one another in a step.
PARTS = (
    "data_wait",  # for the reader's next batch
    "id_exchange",  # hashing the ids and sending them to the ranks that hold their rows
    "embedding_forward",  # looking rows up and sending them back
    "dense_forward",  # the network and the loss, whose count of rows is summed over ranks
    "dense_backward",  # the gradients of both, and combining those of the tasks
    "embedding_backward",  # sending rows' gradients to their tables; the tables' update is fused into it
    "all_reduce",  # what averaging the dense gradients over ranks, and what combining needs, still take after that
    "optimizer",  # the dense part's update
)


class HostClock:
    """Sums host time by part; no part (None) is not counted."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part: str | None = None
        self._since = 0.0

    def start(self) -> None:
        """Begin a step, in no part."""
        self._part = None

    def enter(self, part: str | None) -> None:
        """End the present part and begin another."""
        now = time.perf_counter()
        if self._part is not None:
            self._seconds[self._part] += now - self._since
        self._part, self._since = part, now

    def read(self) -> dict[str, float]:
        """Return milliseconds by part since the last reading."""
        read, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return {part: 1e3 * seconds for part, seconds in read.items()}


class DeviceClock:
    """Sums a CUDA stream's time by part, from events that are recorded and never waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._milliseconds = dict.fromkeys(PARTS, 0.0)
        self._marks: deque[tuple[str | None, torch.cuda.Event]] = deque()  # (part that begins here, event)
        self._spare: list[torch.cuda.Event] = []

    def start(self) -> None:
        """Begin a step, in no part, on the stream that is current."""
        self._fold()
        self._stream = torch.cuda.current_stream(self._device)
        self.enter(None)

    def enter(self, part: str | None) -> None:
        """End the present part and begin another."""
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record(self._stream)  # named, since the caller may be on another one
        self._marks.append((part, event))

    def read(self) -> dict[str, float]:
        """Return milliseconds by part since the last reading, up to where the device is now."""
        self._fold()
        read, self._milliseconds = self._milliseconds, dict.fromkeys(PARTS, 0.0)
        return read

    def _fold(self) -> None:
        while len(self._marks) > 1 and self._marks[1][1].query():
            part, event = self._marks.popleft()
            if part is not None:
                self._milliseconds[part] += event.elapsed_time(self._marks[0][1])
            self._spare.append(event)


class Breakdown:
    """Times the parts of a sharded model's steps on this rank.

    Args:
        sharded: its pipeline and modules are hooked into; nothing that is computed changes.

    Example:
        >>> from livetrain.configs.load import load_recipe
        >>> from livetrain.trainers.train.sharding import shard
        >>> with ranks.alone(cuda=False):
        ...     sharded = shard(load_recipe("small.yaml"), torch.device("cpu"))
        ...     breakdown = Breakdown(sharded)
        ...     with breakdown.step():
        ...         pass  # here it is sharded.pipeline.progress(feed)
        >>> breakdown.read(seconds=0.5)["ms.step"]
        500.0
    """

    def __init__(self, sharded: Sharded) -> None:
        self._clock = DeviceClock(sharded.device) if sharded.device.type == "cuda" else HostClock()
        self._stepping, self._steps = False, 0
        self._part: str | None = None
        pipeline = sharded.pipeline
        for method, part in pipeline.PARTS.items():
            self._during(pipeline, method, part)
        self._during(pipeline.update, "backward", "dense_backward")
        for method in ("_average", "_end_averaging"):
            self._during(pipeline.combination, method, "all_reduce", then="dense_backward")
        self._during(pipeline.update, "step", "optimizer")
        for module in sharded.module.modules():
            if isinstance(module, SHARDED):  # waits for its ids first, then looks them up
                module.register_forward_pre_hook(lambda *_: self._enter("id_exchange"))
                self._during(module, "compute_and_output_dist", "embedding_forward", then="embedding_forward")
            elif isinstance(module, ReplicatedCollection):
                module.register_forward_pre_hook(lambda *_: self._enter("embedding_forward"))
        # First, for the hook that may cut the graph here hides the embeddings from those after it.
        sharded.model.dense.register_forward_pre_hook(self._at_dense, prepend=True)
        sharded.module.register_forward_hook(lambda *_: self._enter(None))

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Time what is done inside as one training step. What the pipeline does outside of it is not timed."""
        self._clock.start()
        self._stepping = True
        try:
            yield
        finally:
            self._enter(None)
            self._stepping = False
            self._steps += 1

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, the time that they let a step wait being its `data_wait`."""
        while True:
            self._enter("data_wait")
            batch = next(batches, None)
            self._enter(None)
            if batch is None:
                return
            yield batch

    def read(self, seconds: float) -> dict[str, float]:
        """Return milliseconds per step since the last reading: ``ms.step``, and ``ms.<part>`` for every part.

        Args:
            seconds: what those steps took in all.
        """
        steps, self._steps = max(self._steps, 1), 0
        parts = {f"ms.{part}": total / steps for part, total in self._clock.read().items()}
        return {"ms.step": 1e3 * seconds / steps, **parts}

    def _enter(self, part: str | None) -> None:
        if self._stepping and part != self._part:
            self._part = part
            self._clock.enter(part)

    def _during(self, owner: Any, method: str, part: str, then: str | None = None) -> None:
        """Make a call of a method belong to a part, and what follows to the part `then`.

        Raises:
            RuntimeError: the owner has no such method, so that the part would silently be left out.
        """
        call = getattr(owner, method, None)
        if call is None:
            raise RuntimeError(f"{type(owner).__name__} has no {method}, whose time is the step's part {part!r}")

        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter(part)
            try:
                return call(*args, **kwargs)
            finally:
                self._enter(then)

        setattr(owner, method, timed)

    def _at_dense(self, _module: torch.nn.Module, inputs: tuple[dict[str, torch.Tensor], ...]) -> None:
        if not self._stepping:
            return
        self._enter("dense_forward")
        for value in inputs[0].values():
            if value.requires_grad:
                # Autograd runs what was made last first: where it comes to any embedding, the network is done.
                value.register_hook(self._at_embeddings)

    def _at_embeddings(self, _gradient: torch.Tensor) -> None:
        self._enter("embedding_backward")


class Profile:
    """A torch profiler trace of the steps that train.profile names, by rank 0.

        <run>/profile/  trace.json.gz (for chrome://tracing or ui.perfetto.dev), operators.txt

    Args:
        recipe: the run.
        run: the run folder.
        device: this rank's device.
        total: steps of the run.

    Raises:
        BadInput: train.profile begins after the run's last step.
    """

    def __init__(self, recipe: Recipe, run: Path, device: torch.device, total: int) -> None:
        steps = recipe.train.profiled()
        if steps and steps.start > total:
            raise BadInput(f"train.profile: step {steps.start} never comes, the run has {total}; name earlier steps")
        self._steps = steps if ranks.is_main() else range(0)
        self._folder, self._device = run / "profile", device
        self._profiler: torch.profiler.profile | None = None
        self._recorded: list[int] = []

    def before(self, step: int) -> None:
        """Start or end the recording where it has to before a step, counted from 1."""
        if step not in self._steps:
            return self.end()
        if self._profiler is None:
            kinds = torch.profiler.ProfilerActivity
            self._profiler = torch.profiler.profile(
                activities=[kinds.CPU, kinds.CUDA] if self._device.type == "cuda" else [kinds.CPU]
            )
            self._profiler.start()
        return self._recorded.append(step)

    def end(self) -> None:
        """Write what was recorded, if anything was: an evaluation would fill the trace with other work."""
        if self._profiler is None:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._profiler.stop()
        self._folder.mkdir(exist_ok=True)
        draft = self._folder / "draft.json.gz"
        self._profiler.export_chrome_trace(str(draft))
        draft.replace(self._folder / "trace.json.gz")
        order = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        table = self._profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=80)
        heading = f"steps {self._recorded[0]} to {self._recorded[-1]} on rank 0, operators by {order}"
        (self._folder / "operators.txt").write_text(f"{heading}\n{table}\n", encoding="utf-8")
        self._profiler, self._steps = None, range(0)
