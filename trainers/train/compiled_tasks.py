"""The backward pass of a compiled graph, for the gradients of all tasks at once.

A combiner that compares the tasks' gradients runs a graph's backward pass once per task. The passes differ in nothing
but the gradients of the logits that they begin with, so they can be one, batched over tasks by torch.func.vmap. PyTorch
refuses vmap around a compiled pass, hence this way around:

    1. the tasks' passes run, and the graph only keeps what reaches it of each, and answers nothing;
    2. the graph's backward pass, made batched and compiled at the first step, answers for all tasks;
    3. the tasks' passes run again, and the graph gives each its part.

Passes 1 and 3 compute nothing but what lies outside the graph, which is next to nothing.
"""

import copy
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, detect_fake_mode, tracing
from torch.fx.experimental.proxy_tensor import make_fx

from livetrain.modules.serving.proof import short

log = logging.getLogger("livetrain")

Compiler = Callable[..., Callable[[list], Any]]
Answer = TypeVar("Answer")


class TasksAtOnce:
    """A backend of torch.compile: PyTorch's own, but for backward passes, of which several can be one.

    Args:
        compiler: of one pass; inductor's by default.
        options: of inductor, or None.
    """

    def __init__(self, compiler: Compiler | None = None, options: dict[str, Any] | None = None) -> None:
        self._compiler, self._options = compiler, options
        self._kept: list[tuple[_Backward, list]] | None = None  # what reached a graph, while that is kept
        self._parts: list[list] = []  # what the graph still has to answer, of one task after the other
        self._works = True

    def __call__(self, graph: fx.GraphModule, examples: list) -> Callable:
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # seconds, of runs that compile

        compiler = self._compiler or compile_fx_inner

        def one(graph: fx.GraphModule, examples: list, **options: Any) -> Any:
            if options.get("is_backward"):
                return _Backward(self, compiler, graph, examples, options)
            return compiler(graph, examples, **options)

        made: Any = compile_fx(graph, examples, inner_compile=one, config_patches=self._options)
        return made

    def __enter__(self) -> None:
        self._kept = []

    def __exit__(self, *_: object) -> None:
        self._kept = None

    def run(self, passes: Callable[[bool], Answer]) -> Answer:
        """Run the tasks' passes as one where that can be, and otherwise one after the other.

        Args:
            passes: runs all of them in the same order each time; told whether the graph has to be kept afterwards.
        """
        if not self._works:
            return passes(False)
        with self:
            passes(True)
            kept = self._kept
        assert kept is not None
        if len({id(backward) for backward, _ in kept}) == 1:
            backward, every = kept[0][0], [given for _, given in kept]
            try:
                backward.prepare(len(every))
            except torch.OutOfMemoryError:  # of this rank alone; the others go on with one pass
                raise
            except Exception as error:  # an operator that cannot be batched, or compiled when it is: on all ranks alike
                self._works = False
                log.info("the tasks' backward passes run one after the other: %s", short(error))
            else:
                self._parts = backward.of_all(every)
        try:
            return passes(False)
        finally:
            self._parts = []

    def answer(self, backward: "_Backward", given: list) -> list | None:
        """Return what a pass is to answer; None where it has to be computed."""
        if self._kept is not None:
            self._kept.append((backward, list(given)))
            return [None] * backward.count
        return self._parts.pop(0) if self._parts else None


def _scatter(x: Tensor, part: Tensor, dim: int = 0, start: int | None = None, end: int | None = None) -> Tensor:
    """Return x with a part in the place of a slice, whose ends may be counted from the end of x."""
    places: list[slice] = [slice(None)] * x.dim()
    before, behind = list(places), list(places)
    before[dim], behind[dim] = slice(0, start or 0), slice(x.size(dim) if end is None else end, None)
    return torch.cat([x[tuple(before)], part, x[tuple(behind)]], dim)


# What vmap does one task after the other, or takes for something else.
_INSTEAD: dict[str, Callable] = {
    "prims.fma.default": lambda x, y, z: x * y + z,
    "aten.slice_scatter.default": _scatter,
}


class _Backward:
    """A graph's backward pass, as autograd calls it."""

    def __init__(
        self, owner: TasksAtOnce, compiler: Compiler, graph: fx.GraphModule, examples: list, options: dict[str, Any]
    ) -> None:
        self._boxed_call = True  # given one list, which it may empty; of the instance, for what wraps it to copy
        self._owner, self._compiler, self._options = owner, compiler, options
        self._graph, self._examples = copy.deepcopy(graph), list(examples)  # compiling changes a graph
        for node in self._graph.graph.nodes:
            if node.op == "call_function":
                node.target = _INSTEAD.get(str(node.target), node.target)
        self._graph.recompile()
        inputs = self._graph.graph.find_nodes(op="placeholder")
        self._begins = [str(node.target).startswith("tangents") for node in inputs]  # as AOTAutograd calls them
        outputs: Any = self._graph.graph.output_node().args[0]
        self._answered = [place for place, output in enumerate(outputs) if output is not None]
        self.count = len(outputs)
        self._one = compiler(graph, examples, **options)
        self._all: dict[int, Callable[[list], Any]] = {}  # by the number of tasks

    def __call__(self, given: list) -> Any:
        answer = self._owner.answer(self, given)
        return self._one(given) if answer is None else answer

    def prepare(self, tasks: int) -> None:
        """Make the pass of so many tasks, if there is none yet."""
        if tasks not in self._all:
            self._all[tasks] = self._compiled(tasks)

    def of_all(self, given: list[list]) -> list[list]:
        """Return what the pass answers to each of T lists of arguments, differing in what it begins with."""
        once = [each for each, begins in zip(given[0], self._begins, strict=True) if not begins]
        varied = [[each for each, begins in zip(own, self._begins, strict=True) if begins] for own in given]
        found = self._all[len(given)]([*once, *(each for own in varied for each in own)])
        answers: list[list] = [[None] * self.count for _ in given]
        for place, stacked in zip(self._answered, found, strict=True):
            for task, answer in enumerate(answers):
                answer[place] = stacked[task]
        return answers

    def _compiled(self, tasks: int) -> Callable[[list], Any]:
        from torch._inductor.decomposition import select_decomp_table

        once = [each for each, begins in zip(self._examples, self._begins, strict=True) if not begins]
        begun = [each for each, begins in zip(self._examples, self._begins, strict=True) if begins]

        dims = tuple(0 if begins else None for begins in self._begins)

        def one(*given: Any) -> list[Tensor]:
            found = self._graph(*given)
            return [found[place] for place in self._answered]

        def every(*given: Any) -> list[Tensor]:
            whole, parts = iter(given[: len(once)]), given[len(once) :]
            own = [parts[task * len(begun) : (task + 1) * len(begun)] for task in range(tasks)]
            stacked = iter([torch.stack(each) for each in zip(*own, strict=True)])
            arguments = [next(stacked) if begins else next(whole) for begins in self._begins]
            return torch.func.vmap(one, in_dims=dims)(*arguments)

        mode = detect_fake_mode(self._examples)
        assert mode is not None
        with tracing(TracingContext(mode)), mode:
            # Every task has its own: tracing knows a tensor by what it is, and would take one for all.
            examples = [*once, *(each.clone() for _ in range(tasks) for each in begun)]
            batched = make_fx(every, decomposition_table=select_decomp_table())(*examples)
        with tracing(TracingContext(mode)):
            return self._compiler(batched, examples, **self._options)
