"""From the tasks' losses to one gradient, exact under sharding.

The optimizers of sharded tables are fused into their backward pass, which may therefore run only once a step. So a
step that looks at each task's gradient cuts the graph in two:

    tables -> [cut of scope shared] -> bottom -> [cut of scope trunk] -> trunk, towers -> logits -> [cut] -> losses

Above the cut one pass per task leaves its gradient at the cut and in the parameters there. Their Gram matrix, summed
over ranks, gives the combiner's weights. Below the cut the weighted sum of the tasks' gradients goes back, once.

- Scope `shared` cuts at the embeddings: the Gram matrix covers every dense parameter that tasks share, and the
  embeddings of the batch. They stand in for the rows of the tables, which misses one case: two tasks that
  pull the same row apart through different samples conflict in that row, but at none of the embeddings.
- Scope `trunk` cuts at the input of the network's module `trunk`: the Gram matrix is that of the gradients there, and
  what lies below sees one backward pass, as in a plain sum.

A parameter that one task alone reaches keeps that task's gradient, without the combiner's weight. Replicated tables are
tables like the others, since where a table lies must not change what is learned. A combiner that needs no gradients
takes one ordinary backward pass.

A network's regulariser (see modules.network) is added to the sum, whatever the combiner: it is no task, so it
is in no Gram matrix and has no weight but its own.

The losses carry a factor R, the number of ranks (see trainers.train.loss), so losses and dense gradients are averages
over ranks. Of the gradient at the cut every rank holds its own rows, R times too large: the Gram matrix there is the
sum of the ranks' divided by R^2.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from livetrain.configs.schema import Recipe
from livetrain.modules import gradients
from livetrain.modules.model import Model
from livetrain.modules.network import REGULARISER
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.compiled_dense import CompiledDense


@dataclass
class _Split:
    """The parameters that more than one task reaches, and those that one task reaches alone, by task."""

    shared: list[nn.Parameter]
    own: list[list[nn.Parameter]]


@dataclass
class _ByTask:
    """The gradients of T tasks above the cut, on this rank, and last, if that lies there, of the regulariser."""

    at_cut: list[list[Tensor]]  # of every leaf, by task
    shared: Tensor  # (T, P) or (T + 1, P), all shared parameters side by side
    own: list[list[Tensor]]  # of every own parameter, by task


class Combination:
    """Combines the gradients of a model's tasks as the recipe says.

    Args:
        recipe: the run.
        model: hooks on its dense part make the cuts in steps that need them; nothing else about it changes.
        dense: the parameters of the dense part.
        replicated: those of tables that every rank holds whole.
        device: this rank's. A GPU's step waits for it once, for one small copy to the host, where the combiner asks
            for gradients or losses.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Model,
        dense: list[nn.Parameter],
        replicated: list[nn.Parameter],
        device: torch.device,
    ) -> None:
        self._config, self._tasks = recipe.gradients, list(recipe.tasks)
        self._dense, self._replicated, self._device = dense, replicated, device
        tasks, each = recipe.tasks.values(), kinds(recipe.tasks).values()
        self._task_weights = torch.tensor([task.weight for task in tasks], device=device)
        # The loss of knowing nothing. Where it depends on the labels' size the first batch will tell.
        untrained = [task.weight * kind.untrained for task, kind in zip(tasks, each, strict=True)]
        self.combiner = gradients.combiner(
            recipe.gradients, torch.tensor(untrained, dtype=torch.float64), recipe.train.seed
        )
        self.monitor = Monitor(self._tasks)
        self.step = 0  # steps before this one
        self._ready = False  # whether the parameters hold a combined gradient that no optimizer has used
        self._cut: list[tuple[Tensor, Tensor]] = []  # (end of the graph below, leaf of the graph above)
        self._logits: list[tuple[Tensor, Tensor]] = []  # the same, by task
        self._regulariser: Tensor | None = None
        self._splits: dict[bool, _Split] = {}
        self.compiled: CompiledDense | None = None  # the graphs of the dense part, where it has some
        self._traced: tuple[list[Tensor], list[Tensor]] = [], []  # logits and the leaves of the cut, by no graph
        if len(self._tasks) > 1:
            if self._config.scope == "trunk":
                assert model.dense.network.trunk is not None  # see Model
                model.dense.network.trunk.register_forward_pre_hook(self._at_trunk)
            else:
                model.dense.register_forward_pre_hook(self._at_embeddings)
        model.dense.register_forward_hook(self._at_logits)

    @property
    def _by_task(self) -> bool:
        """Whether this step takes the tasks' gradients apart."""
        every = getattr(self._config, "measure_every", None)
        return self.combiner.needs_gram or (every is not None and self.step % every == 0)

    def backward(self, losses: Tensor) -> None:
        """Leave the combined gradient, averaged over ranks, in all parameters, and update the sharded tables.

        Args:
            losses: (T,), R times this rank's part of the global batch's losses.

        Raises:
            RuntimeError: no optimizer has used the gradient before this one.
        """
        if self._ready:
            raise RuntimeError("the gradient of the step before moved no parameter: its optimizers took no step")
        losses = losses * self._task_weights
        if self._by_task:
            self._several_passes(losses)
        else:
            self._one_pass(losses)
        self.monitor.add_regulariser(self._regulariser)
        self._cut, self._logits, self._traced, self._regulariser = (
            [],
            [],
            ([], []),
            None,
        )  # or they would keep the graph
        self.step += 1
        self._ready = True

    def take(self) -> None:
        """Mark the combined gradient as used.

        Raises:
            RuntimeError: the parameters hold none; what they hold is one rank's, and not what the recipe asks for.
        """
        if not self._ready:
            raise RuntimeError("a step went past the gradient combiner: its gradients are of one rank and uncombined")
        self._ready = False

    def _one_pass(self, losses: Tensor) -> None:
        if self._config.kind == "sum":
            total = losses.sum()
        else:
            (averaged,) = self._average([losses.detach()])
            weights = self.combiner(None, averaged.double().cpu(), self.step)
            self.monitor.add(None, weights)
            total = (losses * weights.to(losses)).sum()
        (total if self._regulariser is None else total + self._regulariser).backward()
        if self._config.kind != "sum":
            for own, weight in zip(self._split().own, weights.tolist(), strict=True):
                for parameter in own:
                    parameter.grad /= weight  # it came with the loss
        self._average_gradients(self._dense + self._replicated)

    def _several_passes(self, losses: Tensor) -> None:
        split = self._split()
        found = self._pass_by_task(losses, split)
        count = len(losses)
        gram = torch.zeros(count, count, device=self._device)  # of this rank's rows
        for rows in found.at_cut:
            gram += _gram(rows[:count])
        own = [gradient for gradients_ in found.own for gradient in gradients_]
        if self._config.scope == "shared":
            gram, losses, shared, *own = self._average([gram, losses.detach(), found.shared, *own])
            gram = gram / ranks.world() + shared[:count] @ shared[:count].T
        else:
            shared = found.shared
            gram, losses = self._average([gram, losses.detach()])
            gram = gram / ranks.world()
        gram, losses = torch.cat([gram, losses.unsqueeze(0)]).double().cpu().split([count, 1])
        weights = self.combiner(gram, losses[0], self.step)
        self.monitor.add(gram, weights)
        weights = nn.functional.pad(weights, (0, len(shared) - count), value=1.0)
        self._assign(weights, split, shared, own, found.at_cut)

    def _assign(
        self, weights: Tensor, split: _Split, shared: Tensor, own: list[Tensor], at_cut: list[list[Tensor]]
    ) -> None:
        """Set the gradients of the parameters above the cut, then run backward below it."""
        combined = (weights.to(shared.device, shared.dtype) @ shared).split([p.numel() for p in split.shared])
        for parameter, gradient in zip(split.shared, combined, strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        for parameter, gradient in zip((p for each in split.own for p in each), own, strict=True):
            parameter.grad = gradient
        cut = [(end, rows) for (end, _), rows in zip(self._cut, at_cut, strict=True) if end.requires_grad]
        ends, starts = [end for end, _ in cut], [_weighted(weights, rows) for _, rows in cut]
        if self._config.scope == "trunk" and self._regulariser is not None:  # all of it lies below that cut
            ends, starts = [*ends, self._regulariser], [*starts, torch.ones_like(self._regulariser)]
        if ends:  # a model of dense features alone has nothing to learn there
            torch.autograd.backward(ends, starts)
        averaged = self._config.scope == "shared"  # all dense parameters lie above that cut
        self._average_gradients(self._replicated if averaged else self._dense + self._replicated)

    def _pass_by_task(self, losses: Tensor, split: _Split) -> _ByTask:
        """Run backward from each task's logits to the cut and to the parameters on the way.

        One pass per task, in the same order on every rank, and not one for all: Dice sums over ranks within its
        backward pass, which autograd cannot batch.
        """
        # A task's loss sees its own logits alone, so one pass gives the derivative of each. From there on each task's
        # pass meets only what it shares with others and its own part; the stacked losses would lead through all towers.
        starts = list(torch.autograd.grad(losses.sum(), [leaf for _, leaf in self._logits]))
        ends, owned = [logits for logits, _ in self._logits], list(split.own)
        if self._config.scope == "shared" and self._regulariser is not None:
            ends, starts = [*ends, self._regulariser], [*starts, torch.ones_like(self._regulariser)]
            owned.append([])
        leaves = [leaf for _, leaf in self._cut]
        sizes = [p.numel() for p in split.shared]
        shared = torch.zeros(len(starts), sum(sizes), device=self._device)
        at_cut: list[list[Tensor]] = [[] for _ in leaves]
        own = []
        for row, (end, start, parameters) in enumerate(zip(ends, starts, owned, strict=True)):
            found = torch.autograd.grad(
                end,
                [*leaves, *split.shared, *parameters],
                start,
                retain_graph=row + 1 < len(starts),
                allow_unused=True,
            )
            for leaf, rows, gradient in zip(leaves, at_cut, found[: len(leaves)], strict=True):
                rows.append(torch.zeros_like(leaf) if gradient is None else gradient)
            of_shared = found[len(leaves) : len(leaves) + len(sizes)]
            for place, gradient in zip(shared[row].split(sizes), of_shared, strict=True):
                if gradient is not None:
                    place.copy_(gradient.reshape(-1))
            own.append(list(found[len(leaves) + len(sizes) :]))
        return _ByTask(at_cut, shared, own)

    def _average(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the averages over ranks, in float32, by one flat all-reduce."""
        if ranks.world() == 1 or not tensors:
            return tensors
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= ranks.world()
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def _average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Average gradients over ranks; a parameter that got none takes part with zeros."""
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        for parameter, grad, mean in zip(parameters, grads, self._average(grads), strict=True):
            parameter.grad = grad.copy_(mean)

    def _split(self) -> _Split:
        """Return how tasks share the parameters above the cut, found once from the graph. Collective the first time.

        Raises:
            RuntimeError: a table is reached past the cut, or ranks differ.
        """
        if self._by_task not in self._splits:
            roots, cut = self._traced
            reached = [_leaves(logits) for logits in roots]
            if self._by_task:
                known = {id(p) for p in self._dense} | {id(leaf) for leaf in cut}
                if any(leaf not in known for leaves in reached for leaf in leaves):
                    raise RuntimeError(
                        f"a table is read past the input of the shared trunk; gradients.scope {self._config.scope} "
                        "would not train it: use scope shared, or let the model's trunk see it"
                    )
            by_tasks = [tuple(t for t, leaves in enumerate(reached) if id(p) in leaves) for p in self._dense]
            if any(other != by_tasks for other in ranks.gather(by_tasks)):
                raise RuntimeError("the ranks' graphs differ in which tasks reach which parameter")
            self._splits[self._by_task] = _Split(
                [p for p, tasks in zip(self._dense, by_tasks, strict=True) if len(tasks) > 1],
                [
                    [p for p, tasks in zip(self._dense, by_tasks, strict=True) if tasks == (task,)]
                    for task in range(len(reached))
                ],
            )
        return self._splits[self._by_task]

    def _at_embeddings(self, dense: nn.Module, inputs: tuple) -> tuple | None:
        """Cut between tables and the dense part."""
        if not (self._by_task and dense.training and torch.is_grad_enabled()):
            return None
        values, *rest = inputs
        self._cut = [(value, _leaf(value)) for value in values.values()]
        return dict(zip(values, (leaf for _, leaf in self._cut), strict=True)), *rest

    def _at_trunk(self, trunk: nn.Module, inputs: tuple) -> tuple | None:
        """Cut between the bottom and the trunk."""
        if not (self._by_task and trunk.training and torch.is_grad_enabled()):
            return None
        x, *rest = inputs
        self._cut = [(x, _leaf(x))]
        return self._cut[0][1], *rest

    def _at_logits(self, dense: nn.Module, inputs: tuple, logits: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Cut between the network and the loss, which mixes the tasks' graphs."""
        if not (dense.training and torch.is_grad_enabled()):
            return None
        self._regulariser = logits.get(REGULARISER)
        self._logits = [(logits[task], _leaf(logits[task])) for task in self._tasks]
        self._trace(inputs, logits)
        return (
            {task: leaf for task, (_, leaf) in zip(self._tasks, self._logits, strict=True)} if self._by_task else None
        )

    def _trace(self, inputs: tuple, logits: dict[str, Tensor]) -> None:
        """Keep what `_split` finds the tasks' parameters from: logits by no compiled graph, whose logits reach all."""
        cut = self._cut
        asked = self._by_task or self._config.kind != "sum"
        if asked and self.compiled is not None and self._by_task not in self._splits:
            logits = self.compiled.eagerly(*inputs)
        self._traced = [logits[task] for task in self._tasks], [leaf for _, leaf in self._cut]
        self._cut = cut


def _gram(rows: list[Tensor]) -> Tensor:
    """Return the (T, T) float32 inner products of T gradients of one shape."""
    flat = [row.reshape(-1).float() for row in rows]
    if flat[0].is_cuda:  # one product instead of many small kernels
        stacked = torch.stack(flat)
        return stacked @ stacked.T
    gram = flat[0].new_empty(len(flat), len(flat))  # on a CPU stacking costs more than all products
    for i, one in enumerate(flat):
        for j, other in enumerate(flat[: i + 1]):
            gram[i, j] = gram[j, i] = one @ other
    return gram


def _weighted(weights: Tensor, rows: list[Tensor]) -> Tensor:
    """Return sum_t w_t rows_t."""
    total = rows[0] * float(weights[0])  # not in place: autograd may have given one tensor to several inputs
    for row, weight in zip(rows[1:], weights[1:].tolist(), strict=True):
        total.add_(row, alpha=weight)
    return total


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _leaves(root: Tensor) -> set[int]:
    """Return the ids of all leaves that backward from a tensor reaches."""
    found, seen, waiting = set(), set(), [root.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return found


class Monitor:
    """What the combiner saw and answered since the last line of the log.

    Args:
        tasks: their names.
    """

    def __init__(self, tasks: list[str]) -> None:
        self._tasks = tasks
        self._clear()

    def _clear(self) -> None:
        count = len(self._tasks)
        self._steps = self._measured = self._conflicts = 0
        self._weights, self._norms = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
        self._cosines = torch.zeros(count, count, dtype=torch.float64)
        self._regularisers: list[Tensor] = []

    def add(self, gram: Tensor | None, weights: Tensor) -> None:
        """Take in a step: the Gram matrix (T, T), None where it was not measured, and the weights (T,)."""
        self._steps += 1
        self._weights += weights
        if gram is not None:
            self._measured += 1
            self._conflicts += gradients.conflicting(gram)
            self._norms += gram.diagonal().clamp(min=0).sqrt()
            self._cosines += gradients.cosines(gram)

    def add_regulariser(self, loss: Tensor | None) -> None:
        """Take in a step's regulariser, if the network has one: (), R times this rank's part of it."""
        if loss is not None:
            self._regularisers.append(loss.detach())

    def read(self) -> dict[str, float]:
        """Return means over the steps since the last reading, for the log, and start anew. Collective.

        ``grad.<task>.weight``, and of the steps that were measured ``grad.<task>.norm``, ``grad.cos.<task>.<task>`` and
        ``grad.conflict``, the share of them in which any two tasks' gradients pointed against each other;
        ``regulariser`` where the network has one.
        """
        out = dict(self._figures())
        self._clear()
        return out

    def _figures(self) -> Iterator[tuple[str, float]]:
        if self._regularisers:
            yield "regulariser", float(ranks.summed(torch.stack(self._regularisers).mean())) / ranks.world()
        for i, task in enumerate(self._tasks):
            if self._steps:
                yield f"grad.{task}.weight", float(self._weights[i]) / self._steps
            if self._measured:
                yield f"grad.{task}.norm", float(self._norms[i]) / self._measured
        if self._measured:
            for i, task in enumerate(self._tasks):
                for j in range(i):
                    yield f"grad.cos.{self._tasks[j]}.{task}", float(self._cosines[j, i]) / self._measured
            yield "grad.conflict", self._conflicts / self._measured
