"""The dense part trains as one compiled graph (torch.compile): on a GPU by default, elsewhere where the recipe asks.

    hooks of clock and combiner [ dense.forward: one graph, forward and backward ] hooks of the combiner

With gradients.scope `trunk` the combiner cuts at the trunk's input, so there is a graph up to it and one from it on.
Evaluation, export and serving never see a graph. What the rules here are for:

- Events, ids and requests differ from batch to batch, so their numbers are unknowns of the graph, and each its own:
  torch would otherwise take two that are equal at first for one, and compile anew where they part. The rows of a rank's
  batch are a constant, so that what depends on them alone has a fixed shape; another number makes them unknown.
- Buffers are written outside the graph (see modules.layers.moving). A network that writes to one within it is not
  compiled: its gradients might be wrong without an error.
- A backward pass per task runs one compiled backward pass several times. Then none of its buffers may be used again for
  another value (be "donated"), which is settled when the graph is made; each of the passes checks it again.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch._functorch.config
import torch.fx.experimental._config
from torch import Tensor, nn

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.layers.moving import unmoved
from livetrain.modules.model import Model
from livetrain.modules.serving.proof import short, trial
from livetrain.trainers.train.compiled_tasks import TasksAtOnce

if TYPE_CHECKING:
    from livetrain.trainers.train.sharding import Sharded

log = logging.getLogger("livetrain")

# Of a graph whose sizes are partly unknown, the parts of fixed shape are CUDA graphs, and only they.
CUDA_GRAPHS = {"triton.cudagraphs": True, "triton.cudagraph_skip_dynamic_graphs": True, "graph_partition": True}

Answer = dict[str, Tensor]
Passes = TypeVar("Passes")


class CompiledDense:
    """Lets a model's dense part train by compiled graphs.

    The first step compiles, and the backward pass of the first batch.

    Args:
        model: the `forward` of its dense part is replaced, within the hooks on it.
        recipe: where it asks for graphs, a network that cannot be compiled is refused; otherwise it trains without.
        tell: told why a network trains without.
        backend: torch.compile's.
    """

    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        tell: Callable[[str], None] = log.warning,
        backend: str | Callable = "inductor",
    ) -> None:
        self._dense, self._recipe, self._tell = model.dense, recipe, tell
        self._options: dict[str, Any] | None = CUDA_GRAPHS if recipe.train.compile == "cuda_graphs" else None
        if backend == "inductor" and len(recipe.tasks) > 1 and recipe.gradients.scope != "trunk":
            backend = TasksAtOnce(options=self._options)
        self._backend = backend
        self.active = True
        self._proved = False  # whether a step went through
        network: Any = model.dense.network  # of which methods are replaced
        if len(recipe.tasks) > 1 and recipe.gradients.scope == "trunk":
            assert network.trunk is not None  # see Model
            # Disabled, so that the graph of the network ends where the trunk is called, with the combiner's hook on it.
            network.trunk.forward = torch.compiler.disable(self._instead(network.trunk, whole=True, first=False))
            network.forward = self._instead(network, whole=False, first=True)
        else:
            dense: Any = model.dense
            dense.forward = self._instead(dense, whole=True, first=True)

    def eagerly(self, *inputs: Any) -> Answer:
        """Answer as `Dense.forward` does, by no graph, and change neither buffers nor the draws that follow.

        Of this answer autograd tells which parameter which logit reaches; every output of a graph reaches all.
        """
        device, active = inputs[2].device, self.active
        self.active = False
        try:
            with unmoved(self._dense), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                return self._dense.forward(*inputs)
        finally:
            self.active = active

    def several_passes(self, passes: Callable[[bool], Passes]) -> Passes:
        """Run a graph's backward pass several times; on this thread, for the setting holds on no other.

        Args:
            passes: runs them, and may be called twice; told whether the graph has to be kept afterwards.
        """
        with torch.autograd.set_multithreading_enabled(False), torch._functorch.config.patch(donated_buffer=False):
            return self._backend.run(passes) if isinstance(self._backend, TasksAtOnce) else passes(False)

    def _instead(self, module: nn.Module, whole: bool, first: bool) -> Callable[..., Answer]:
        """Return what takes the place of a module's forward.

        Args:
            module: the dense part, or one of the two that it is cut into.
            whole: whether it must be one graph.
            first: whether a step enters the graphs here.
        """
        eager = module.forward
        options = None if isinstance(self._backend, TasksAtOnce) else self._options
        graph = torch.compile(eager, fullgraph=whole, backend=self._backend, options=options)

        def forward(*inputs: Any) -> Answer:
            if not (self.active and self._dense.training and torch.is_grad_enabled()):
                return eager(*inputs)
            if not first:
                return graph(*inputs)
            _mark(*inputs)
            with self._settings():
                return graph(*inputs) if self._proved else self._prove(graph, eager, inputs)

        return forward

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        """Set how graphs are made, which any step may come to."""
        by_task = len(self._recipe.tasks) > 1
        with torch.fx.experimental._config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            if by_task:
                with torch._functorch.config.patch(donated_buffer=False):
                    yield
            else:
                yield

    def _prove(self, graph: Callable[..., Answer], eager: Callable[..., Answer], inputs: tuple) -> Answer:
        """Take the first step through the graph; where that cannot be, leave graphs alone from now on.

        Raises:
            BadInput: it cannot be, and the recipe asks for it.
        """
        device = inputs[2].device
        buffers = {name: (buffer, buffer.clone(), buffer._version) for name, buffer in self._dense.named_buffers()}
        draws = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        try:
            answer = graph(*inputs)
            written = [name for name, (buffer, _, version) in buffers.items() if buffer._version != version]
            why = f"it writes to its buffer {written[0]} in training; use modules.layers.moving" if written else ""
        except Exception as error:  # one that is the network's own comes again without a graph
            why = short(error)
        if not why:
            self._proved = True
            return answer
        complaint = f"model.kind '{self._recipe.model.kind}' cannot be compiled ({why})"
        if self._recipe.train.compile:
            raise BadInput(f"train.compile: {complaint}; leave train.compile out, or mend the network's forward")
        self._tell(f"trains without a compiled graph: {complaint}")
        self.active = False
        with torch.no_grad():
            for buffer, before, _ in buffers.values():
                buffer.copy_(before)
        torch.set_rng_state(draws[0])
        if draws[1] is not None:
            torch.cuda.set_rng_state(draws[1], device)
        return eager(*inputs)


def _mark(values: Answer, lengths: Answer, dense: Tensor, *rest: Tensor | Answer | None) -> None:
    """Mark the sizes that differ from batch to batch, among the arguments of `Dense.forward` or of a network's."""
    parts = [*values.values(), *(length for length in lengths.values() if length.size(0) != dense.size(0))]
    for more in rest[1:]:  # without the weights
        parts += more.values() if isinstance(more, dict) else [] if more is None else [more]
    for part in parts:
        torch._dynamo.maybe_mark_dynamic(part, 0)


def enable(sharded: "Sharded", tell: Callable[[str], None] = log.warning, backend: str | Callable = "inductor") -> None:
    """Let a model train by compiled graphs; arguments as of `CompiledDense`."""
    sharded.pipeline.combination.by_graphs(CompiledDense(sharded.model, sharded.recipe, tell, backend))


def check(recipe: Recipe) -> None:
    """Refuse a network that cannot be compiled where the recipe asks for it, by a trial on made-up rows.

    Raises:
        BadInput: it cannot be.
    """
    if recipe.train.compile:
        model, inputs = trial(recipe)
        CompiledDense(model, recipe, backend="eager")
        model(*inputs)


def wanted(recipe: Recipe, device: torch.device) -> bool:
    """Return whether a run's dense part is to be compiled: where the recipe does not say, on a GPU."""
    if recipe.train.compile is None:
        return device.type == "cuda" and recipe.train.accumulate == 1
    return bool(recipe.train.compile)
