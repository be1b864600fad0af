"""From the tasks' losses to one gradient, exact under sharding.

The optimizers of sharded tables are fused into their backward pass, which may therefore run only once a step. So a
step that looks at each task's gradient cuts the graph in two:

    tables -> [cut at the embeddings] -> bottom -> [cut at the trunk] -> trunk, towers -> logits -> [cut] -> losses

Above the cut one pass per task leaves its gradient at the cut and in the parameters there. Their Gram matrix, summed
over ranks, gives the combiner's weights. Below the cut the weighted sum of the tasks' gradients goes back, once.

Every step cuts at the embeddings, for what lies below waits for other ranks: the gradients of the dense part are there
before, and their one sum over ranks is made while the tables' gradients travel and their rows move.

- Scope `shared` compares at the embeddings: the Gram matrix covers every dense parameter that tasks share, and the
  embeddings of the batch. On a GPU the tasks' passes from the trunk's input down are one, batched by torch.func.vmap,
  so that each sum over ranks on the way is made once for all tasks. The embeddings stand in for the rows of the tables,
  which misses one case: two tasks that pull the same row apart through different samples conflict in that row, but at
  none of the embeddings.
- Scope `rows` does the same, and compares in every row of the tables too, see trainers.train.gradients.rows.
- Scope `trunk` compares at the input of the network's module `trunk`: the Gram matrix is that of the gradients there,
  and what lies below sees one backward pass, as in a plain sum.

A parameter that one task alone reaches keeps that task's gradient, without the combiner's weight. Replicated tables are
tables like the others, since where a table lies must not change what is learned. A combiner that needs no gradients
takes one ordinary backward pass.

A network's regulariser (see modules.network) is added to the sum, whatever the combiner: it is no task, so it
is in no Gram matrix and has no weight but its own.

The losses carry a factor R, the number of ranks (see trainers.train.loss), so losses and dense gradients are averages
over ranks. Of the gradient at the cut every rank holds its own rows, R times too large: the Gram matrix there is the
sum of the ranks' divided by R^2.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Recipe
from livetrain.modules.gradients import combiner as gradients
from livetrain.modules.layers.dice import RunningDice
from livetrain.modules.layers.distributed import Bucket, Later
from livetrain.modules.layers.moving import unmoved
from livetrain.modules.model import Model
from livetrain.modules.network import REGULARISER
from livetrain.modules.tables.touched import Touched
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.compiled_dense import CompiledDense
from livetrain.trainers.train.gradients.rows import Rows


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
        touched: what marks the rows of those tables; the marks are summed over ranks with the gradients.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Model,
        dense: list[nn.Parameter],
        replicated: list[nn.Parameter],
        device: torch.device,
        touched: Sequence[Touched] = (),
    ) -> None:
        self._touched = touched
        self._config, self._tasks, self._part = recipe.gradients, list(recipe.tasks), model.dense
        self._dense, self._replicated, self._device = dense, replicated, device
        self._kinds = kinds(recipe.tasks)
        tasks, each = recipe.tasks.values(), self._kinds.values()
        self._task_weights = torch.tensor([task.weight for task in tasks], device=device)
        # The loss of knowing nothing. Where it depends on the labels' size the first batch will tell.
        untrained = [task.weight * kind.untrained for task, kind in zip(tasks, each, strict=True)]
        self.combiner = gradients.combiner(
            recipe.gradients, gradients.Start(torch.tensor(untrained, dtype=torch.float64), recipe.train.seed)
        )
        self.monitor = Monitor(self._tasks)
        self._seed = recipe.train.seed
        self.step = 0  # steps before this one
        self._ready = False  # whether the parameters hold a combined gradient that no optimizer has used
        self._running = [module for module in model.modules() if isinstance(module, RunningDice)]
        self._embeddings: dict[str, tuple[Tensor, Tensor]] = {}  # (end of the graph below, leaf of the graph above)
        self._at_trunk: tuple[Tensor, Tensor] | None = None  # the same
        self._logits: list[tuple[Tensor, Tensor]] = []  # the same, by task
        self._regulariser: Tensor | None = None
        self._splits: dict[bool, _Split] = {}
        self._kept: dict[str, bool] = {}  # whether a feature's embeddings come from a replicated table
        self._everywhere = recipe.gradients.scope != "trunk"  # whether the cut is at the embeddings
        self._rows = Rows(self.combiner, model, replicated) if recipe.gradients.scope == "rows" else None
        self._whole = model.dense.parts == 1  # whether the trunk is called once a step
        self._compiled: CompiledDense | None = None
        self._measured: Tensor | None = None  # the losses of the step, where they are asked for again
        self._traced: tuple[list[Tensor], tuple[Tensor, Tensor] | None] = [], None  # logits and cut, by no graph
        # Whether the tasks' passes can be one; None until that was tried. On a CPU they are not: what is as large as
        # all tasks' histories comes from the system anew with every operation, which costs more than it saves.
        self.batches: bool | None = None if device.type == "cuda" else False
        if len(self._tasks) > 1 and model.dense.network.trunk is not None:
            model.dense.network.trunk.register_forward_pre_hook(self._before_trunk)
        model.dense.register_forward_pre_hook(self._before_dense)
        model.dense.register_forward_hook(self._after_dense)

    def begin(self, rates: Mapping[str, float]) -> None:
        """Tell the combiner, before the first step, what a model loses that knows the labels' rates and no more.

        Args:
            rates: mean of each task's known labels in the training split.
        """
        each = zip(self._tasks, self._task_weights.tolist(), strict=True)
        known = [weight * self._kinds[task].base_loss(rates[task]) for task, weight in each]
        self.combiner.begin(torch.tensor(known, dtype=torch.float64))

    def by_graphs(self, compiled: CompiledDense) -> None:
        """Combine the gradients of a dense part that is compiled. A graph has no cut but that of scope trunk."""
        self._compiled, self._whole = compiled, not self._everywhere

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
        seen = [(dice, Later(dice.seen)) for dice in self._running if dice.seen is not None]
        for marks in self._touched:
            marks.send()
        losses = losses * self._task_weights
        if self._by_task:
            self._several_passes(losses)
        else:
            self._one_pass(losses)
        for dice, moments in seen:
            dice.follow(moments.total())
        self.monitor.add_regulariser(self._regulariser)
        self._forget()
        self.step += 1
        self._ready = True

    def _forget(self) -> None:
        """Let go of the graph."""
        self._embeddings, self._at_trunk, self._logits, self._regulariser = {}, None, [], None
        self._traced = [], None
        if self._rows is not None:
            self._rows.forget()

    @property
    def looks_again(self) -> bool:
        """Whether a step ends with `look_again`."""
        return self.combiner.looks_again

    def look_again(self, losses: Callable[[], Tensor]) -> None:
        """Tell the combiner what the step has done to the losses of its batch.

        Args:
            losses: passes the batch through the model as it is now, and returns (T,) as `backward` got them.
        """
        assert self._measured is not None  # by the step
        ranks.seed_step(self._seed, self.step - 1)  # as for the first pass
        with torch.no_grad(), unmoved(self._part):
            (averaged,) = self._average([losses() * self._task_weights])
        self.combiner.learn(self._measured, averaged.double().cpu())

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
            weights = self._weights(None, averaged.double().cpu())
            total = (losses * weights.to(losses, non_blocking=True)).sum()
        (total if self._regulariser is None else total + self._regulariser).backward()
        if self._config.kind != "sum":
            for own, weight in zip(self._split().own, weights.tolist(), strict=True):
                for parameter in own:
                    parameter.grad /= weight  # it came with the loss
        self._below({name: leaf.grad for name, (_, leaf) in self._embeddings.items()}, self._dense)

    def _weights(self, gram: Tensor | None, losses: Tensor) -> Tensor:
        """Return the combiner's weights (T,), of figures of all ranks on the host."""
        self._measured = losses
        weights = self.combiner(gram, losses, self.step)
        self.monitor.add(gram, weights)
        return weights

    def _several_passes(self, losses: Tensor) -> None:
        split = self._split()
        found = self._pass_by_task(losses, split)
        count = len(losses)
        gram = torch.zeros(count, count, device=self._device)  # of this rank's rows
        for rows in found.at_cut:
            _add_gram(gram, rows[:count])
        own = [gradient for gradients_ in found.own for gradient in gradients_]
        if self._everywhere:
            gram, losses, shared, *own = self._average([gram, losses.detach(), found.shared, *own])
            gram = torch.addmm(gram / ranks.world(), shared[:count], shared[:count].T)
        else:
            shared = found.shared
            gram, losses = self._average([gram, losses.detach()])
            gram = gram / ranks.world()
        gram, losses = torch.cat([gram, losses.unsqueeze(0)]).double().cpu().split([count, 1])
        weights = self._weights(gram, losses[0])
        weights = nn.functional.pad(weights, (0, len(shared) - count), value=1.0)
        self._assign(weights, split, shared, own, found.at_cut)

    def _assign(
        self, weights: Tensor, split: _Split, shared: Tensor, own: list[Tensor], at_cut: list[list[Tensor]]
    ) -> None:
        """Set the gradients of the parameters above the cut, then run backward below it."""
        combined = (weights.to(shared, non_blocking=True) @ shared).split([p.numel() for p in split.shared])
        for parameter, gradient in zip(split.shared, combined, strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        for parameter, gradient in zip((p for each in split.own for p in each), own, strict=True):
            parameter.grad = gradient
        on_device = weights.to(self._device, torch.float32, non_blocking=True)
        starts = [_weighted(weights, on_device, rows) for rows in at_cut]
        if self._everywhere:  # all dense parameters lie above that cut, and are averaged
            given = dict(zip(self._embeddings, starts, strict=True))
            if self._rows is None:
                self._below(given, [])
                return
            kept = {name: rows for name, rows in zip(given, at_cut, strict=True) if self._is_kept(name)}
            ends = [self._embeddings[name][0] for name in kept]
            self.monitor.add_rows(self._rows.combine(ends, [*kept.values()], self._average, self.step))
            self._back({name: start for name, start in given.items() if name not in kept})  # of frozen tables
            return
        assert self._at_trunk is not None  # or there would be no such scope
        ends = [self._at_trunk[0]]
        if self._regulariser is not None:  # all of it lies below that cut
            ends, starts = [*ends, self._regulariser], [*starts, torch.ones_like(self._regulariser)]
        if ends[0].requires_grad:  # a model of dense features alone has nothing to learn there
            torch.autograd.backward(ends, starts)
        self._below({name: leaf.grad for name, (_, leaf) in self._embeddings.items()}, self._dense)

    def _below(self, gradients_: Mapping[str, Tensor | None], dense: list[nn.Parameter]) -> None:
        """Go on below the embeddings, from their gradients, while those of dense parameters are averaged over ranks."""
        given = {name: gradient for name, gradient in gradients_.items() if gradient is not None}
        self._back({name: gradient for name, gradient in given.items() if self._is_kept(name)})
        averaging = self._begin_averaging(dense + self._replicated)
        self._back({name: gradient for name, gradient in given.items() if not self._is_kept(name)})
        self._end_averaging(averaging)

    def _back(self, gradients_: dict[str, Tensor]) -> None:
        """Run backward from the embeddings of some features."""
        names = [name for name in gradients_ if self._embeddings[name][0].requires_grad]
        if names:
            torch.autograd.backward([self._embeddings[name][0] for name in names], [gradients_[name] for name in names])

    def _is_kept(self, feature: str) -> bool:
        """Return whether a feature's embeddings come from a table that every rank holds whole."""
        if feature not in self._kept:
            replicated = {id(parameter) for parameter in self._replicated}
            self._kept[feature] = not replicated.isdisjoint(_leaves(self._embeddings[feature][0]))
        return self._kept[feature]

    def _pass_by_task(self, losses: Tensor, split: _Split) -> _ByTask:
        """Run backward from each task's logits to the cut and to the parameters on the way.

        In the same order on every rank: one pass per task as far as the trunk's input, then one for all.
        """
        # A task's loss sees its own logits alone, so one pass gives the derivative of each. From there on each task's
        # pass meets only what it shares with others and its own part; the stacked losses would lead through all towers.
        starts = list(torch.autograd.grad(losses, [leaf for _, leaf in self._logits], torch.ones_like(losses)))
        ends, owned = [logits for logits, _ in self._logits], list(split.own)
        trunk = self._at_trunk if self._everywhere else None
        if self._everywhere and self._regulariser is not None:
            ends, starts = [*ends, self._regulariser], [*starts, torch.ones_like(self._regulariser)]
            owned.append([])
        leaves = [leaf for _, leaf in self._compared()]
        inputs = [*leaves, *split.shared]
        own: list[list[Tensor]] = []
        rows: list[list[Tensor | None]] = []  # of every input, by task
        at_trunk: list[Tensor] = []
        above = [] if trunk is None else [trunk[1]]
        ways = list(zip(ends, starts, owned, strict=True))

        # A graph answers to all its logits: what it is not given of them autograd would fill in, pass by pass.
        none_of = {} if self._compiled is None else {start.shape: torch.zeros_like(start) for start in starts}

        def passes(keep: bool) -> list[tuple[Tensor, ...]]:
            found = []
            for row, (end, start, own) in enumerate(ways):
                kept = keep or trunk is not None or row + 1 < len(ways)
                roots, given = [end], [start]
                if none_of:
                    roots, given = ends, [start if each is start else none_of[each.shape] for each in starts]
                found.append(
                    torch.autograd.grad(roots, [*above, *inputs, *own], given, retain_graph=kept, allow_unused=True)
                )
            return found

        for row, found in enumerate(passes(False) if self._compiled is None else self._compiled.several_passes(passes)):
            if trunk is not None and row < len(self._tasks):
                at_trunk.append(torch.zeros_like(trunk[1]) if found[0] is None else found[0])
            rows.append(list(found[len(above) : len(above) + len(inputs)]))
            own.append(list(found[len(above) + len(inputs) :]))
        if trunk is not None:
            for mine, further in zip(rows, self._batched(trunk[0], at_trunk, inputs), strict=False):
                mine[:] = [b if a is None else a if b is None else a + b for a, b in zip(mine, further, strict=True)]
        of_inputs = zip(inputs, zip(*rows, strict=True), strict=True)
        dense = [[torch.zeros_like(x) if g is None else g for g in each] for x, each in of_inputs]
        shared = [_stacked(each).reshape(len(each), -1).float() for each in dense[len(leaves) :]]
        beside = torch.cat(shared, 1) if shared else torch.zeros(len(starts), 0, device=self._device)
        return _ByTask(dense[: len(leaves)], beside, own)

    def _batched(self, end: Tensor, starts: list[Tensor], inputs: list[Tensor]) -> list[list[Tensor | None]]:
        """Return the gradients of inputs, by task, from each task's gradient of what they make.

        On a GPU all tasks in one pass, where each operation of it can be batched; otherwise task after task.
        """
        if not end.requires_grad:
            return [[None] * len(inputs) for _ in starts]

        def back(start: Tensor, retain: bool, **unused: bool) -> tuple[Tensor, ...]:
            return torch.autograd.grad(end, inputs, start, retain_graph=retain, **unused)

        if self.batches is not False:
            try:
                once = torch.func.vmap(lambda start: back(start, self.batches is None, materialize_grads=True))
                with warnings.catch_warnings():  # of operators that vmap has to call task after task
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    found = once(torch.stack(starts))
            except RuntimeError as error:
                # What it could so far, it can. Memory that ran out did so on this rank alone, and others go on batched.
                if self.batches or isinstance(error, torch.OutOfMemoryError):
                    raise
                self.batches = False
            else:
                self.batches = True
                return [[each[task] for each in found] for task in range(len(starts))]
        ways = [back(start, task + 1 < len(starts), allow_unused=True) for task, start in enumerate(starts)]
        return [list(way) for way in ways]

    def _average(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the averages over ranks, by one flat all-reduce, which others ride on."""
        if ranks.world() == 1 or not tensors:
            return tensors
        totals = Bucket(tensors).wait()
        return [total.to(tensor.dtype) / ranks.world() for total, tensor in zip(totals, tensors, strict=True)]

    def _begin_averaging(self, parameters: list[nn.Parameter]) -> tuple[list[Tensor], Bucket] | None:
        """Begin to average gradients over ranks; a parameter that got none takes part with zeros."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        found = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return (found, Bucket(found)) if found and ranks.world() > 1 else None

    def _end_averaging(self, begun: tuple[list[Tensor], Bucket] | None) -> None:
        """Leave the averages in the parameters."""
        if begun is not None:
            found, bucket = begun
            totals = bucket.wait()
            torch._foreach_div_(totals, ranks.world())
            torch._foreach_copy_(found, totals)

    def _compared(self) -> list[tuple[Tensor, Tensor]]:
        """Return the cut at which the tasks' gradients are compared."""
        if not self._everywhere and self._at_trunk is not None:
            return [self._at_trunk]
        return list(self._embeddings.values())

    def _split(self) -> _Split:
        """Return how tasks share the parameters above the cut, found once from the graph. Collective the first time.

        Raises:
            RuntimeError: a table is reached past the cut, or ranks differ.
        """
        if self._by_task not in self._splits:
            roots, cut = self._traced
            reached = [_leaves(logits) for logits in roots]
            if cut is not None and self._everywhere:
                end, leaf = cut
                reached = [found | _leaves(end) if id(leaf) in found else found for found in reached]
            if self._by_task and not self._everywhere:
                known = {id(p) for p in self._dense} | ({id(cut[1])} if cut is not None else set())
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

    def _before_dense(self, dense: nn.Module, inputs: tuple) -> tuple | None:
        """Cut between tables and the dense part."""
        self._forget()
        if not (dense.training and torch.is_grad_enabled()):
            return None
        for dice in self._running:
            dice.seen = None  # by a pass that no backward pass followed
        if self._rows is not None:
            self._rows.begin()
        values, *rest = inputs
        self._embeddings = {name: (value, _leaf(value)) for name, value in values.items()}
        return {name: leaf for name, (_, leaf) in self._embeddings.items()}, *rest

    def _before_trunk(self, trunk: nn.Module, inputs: tuple) -> tuple | None:
        """Cut between the bottom and the trunk."""
        if not (self._whole and self._by_task and trunk.training and torch.is_grad_enabled()):
            return None
        x, *rest = inputs
        self._at_trunk = (x, _leaf(x))
        return self._at_trunk[1], *rest

    def _after_dense(self, dense: nn.Module, inputs: tuple, logits: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Cut between the network and the loss, which mixes the tasks' graphs."""
        if not (dense.training and torch.is_grad_enabled()):
            return None
        self._regulariser = logits.get(REGULARISER)
        self._logits = [(logits[task], _leaf(logits[task])) for task in self._tasks]
        self._trace(inputs, logits)
        return (
            {**logits, **{task: leaf for task, (_, leaf) in zip(self._tasks, self._logits, strict=True)}}
            if self._by_task
            else None
        )

    def _trace(self, inputs: tuple, logits: dict[str, Tensor]) -> None:
        """Keep what `_split` finds the tasks' parameters from: logits by no compiled graph, whose logits reach all."""
        cut, seen = self._at_trunk, [dice.seen for dice in self._running]
        asked = self._by_task or self._config.kind != "sum"
        if asked and self._compiled is not None and self._by_task not in self._splits:
            logits = self._compiled.eagerly(*inputs)
        self._traced = [logits[task] for task in self._tasks], self._at_trunk
        self._at_trunk = cut
        for dice, before in zip(self._running, seen, strict=True):
            dice.seen = before


def _slices_of(rows: list[Tensor]) -> Tensor | None:
    """Return T tensors of one shape as one, (T, ...), if they lie in memory as its slices do; None otherwise."""
    first, places = rows[0], [row.storage_offset() for row in rows]
    step = places[-1] - places[-2] if len(rows) > 1 else 0
    for task, row in enumerate(rows):
        apart = row.untyped_storage()._cdata != first.untyped_storage()._cdata or row.dtype != first.dtype
        if apart or row.stride() != first.stride() or places[task] != places[0] + task * step:
            return None
    return first.as_strided((len(rows), *first.shape), (step, *first.stride()))


def _stacked(rows: list[Tensor]) -> Tensor:
    """Return T tensors of one shape as one, (T, ...)."""
    whole = _slices_of(rows)
    return torch.stack(rows) if whole is None else whole


def _add_gram(gram: Tensor, rows: list[Tensor]) -> None:
    """Add the inner products of T gradients of one shape to a float32 (T, T) matrix."""
    if rows[0].is_cuda or _slices_of(rows) is not None:  # one product instead of many small kernels
        stacked = _stacked(rows).reshape(len(rows), -1).float()
        gram.addmm_(stacked, stacked.T)
        return
    flat = [row.reshape(-1).float() for row in rows]
    for i, one in enumerate(flat):  # on a CPU stacking costs more than all products
        for j, other in enumerate(flat[: i + 1]):
            product = one @ other
            gram[i, j] += product
            if i != j:
                gram[j, i] += product


def _weighted(weights: Tensor, on_device: Tensor, rows: list[Tensor]) -> Tensor:
    """Return sum_t w_t rows_t, of weights on the host and, the same, where the rows are."""
    whole = _slices_of(rows)
    if whole is not None:
        return (on_device.to(whole.dtype) @ whole.reshape(len(rows), -1)).view_as(rows[0])
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
        self._rows: Tensor | None = None  # (2,): those in conflict, and all with gradients of several tasks
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

    def add_rows(self, counts: Tensor) -> None:
        """Take in, (2,), how many rows of tables were in conflict in a step, and how many more than one task moved."""
        self._rows = counts if self._rows is None else self._rows + counts

    def add_regulariser(self, loss: Tensor | None) -> None:
        """Take in a step's regulariser, if the network has one: (), R times this rank's part of it."""
        if loss is not None:
            self._regularisers.append(loss.detach())

    def read(self) -> dict[str, float]:
        """Return means over the steps since the last reading, for the log, and start anew. Collective.

        ``grad.<task>.weight``, and of the steps that were measured ``grad.<task>.norm``, ``grad.cos.<task>.<task>`` and
        ``grad.conflict``, the share of them in which any two tasks' gradients pointed against each other, and with
        scope `rows` ``grad.conflict.rows``, the share of the rows that several tasks moved in which any two's did;
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
        if self._rows is not None:
            conflicts, rows = self._rows.tolist()
            yield "grad.conflict.rows", conflicts / max(rows, 1)
