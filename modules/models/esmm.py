"""ESMM: entire space multi-task model (Ma et al., SIGIR 2018, arXiv 1804.07931), on chains of any length."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import Task
from livetrain.configs.values import TaskName, Units
from livetrain.modules.inputs import Inputs
from livetrain.modules.models.multitask import MultiTask, Towers
from livetrain.modules.models.registry import register_model
from livetrain.modules.models.trunks import TrunkedConfig, bottom_of
from livetrain.modules.tasks.heads import Heads
from livetrain.modules.tasks.registry import kinds

Chain = Annotated[list[TaskName], Field(min_length=2)]


class ESMMConfig(TrunkedConfig):
    """A tower per task on shared embeddings; tasks of a chain predict that everything up to them happens."""

    kind: Literal["esmm"] = "esmm"
    tower_units: Units = Field([200, 80], description="hidden layers of each task's tower")
    chains: list[Chain] = Field(
        min_length=1,
        description="tasks in the order in which they can happen, as [click, effective_view, gift]; a label further "
        "down is that of the joint event: 1 only where every label before it is 1",
    )

    @field_validator("chains")
    @classmethod
    def _one_way_to_each(cls, chains: list[list[str]]) -> list[list[str]]:
        _before(chains)
        return chains


def _before(chains: list[list[str]]) -> dict[str, str]:
    """Return the task before each task that has one.

    Raises:
        BadInput: a task stands twice in a chain, or after different tasks.
    """
    before: dict[str, str] = {}
    for i, chain in enumerate(chains):
        for place, task in enumerate(chain):
            if task in chain[:place]:
                raise BadInput(f"model.chains.{i}: task '{task}' stands in this chain twice; remove one")
        for first, then in zip(chain[:-1], chain[1:], strict=True):
            if before.setdefault(then, first) != first:
                raise BadInput(
                    f"model.chains.{i}: task '{then}' follows '{first}' here and '{before[then]}' in another chain; "
                    "a task has one way to happen, so let the chains begin alike"
                )
    for chain in chains:
        if chain[0] in before:
            raise BadInput(
                f"model.chains: task '{chain[0]}' begins one chain and follows '{before[chain[0]]}' in another; "
                "begin every chain with what comes first"
            )
    return before


@register_model("esmm", ESMMConfig)
class ESMM(MultiTask):
    """p_k = product over the tasks j up to k in k's chain of sigmoid(tower_j(x)), x from `Bottom`.

    tower_k's own output is the logit of k given the task before it, which never has a loss of its own: it is learned
    through the products, from all impressions rather than from those where the task before it happened. A task outside
    the chains has its tower's logit.

    Args:
        config: see `ESMMConfig`.
        inputs: the recipe's features.
        tasks: one tower each.

    Raises:
        BadInput: the config does not fit the features (see `Bottom`), a chain names no task or one that is not binary,
            or a task down a chain has `negatives_kept`.
    """

    def __init__(self, config: ESMMConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        before = _before(config.chains)
        for i, chain in enumerate(config.chains):
            for task in chain:
                _check(f"model.chains.{i}", task, task in before, tasks)
        bottom = bottom_of(config, inputs)
        super().__init__(bottom, Towers(config, tasks, bottom.width), Heads(tasks, before))


def _check(key: str, task: str, follows: bool, tasks: dict[str, Task]) -> None:
    if task not in tasks:
        raise BadInput(f"{key}: there is no task '{task}'{nearest(task, tasks)}")
    kind = kinds({task: tasks[task]})[task]
    if not kind.odds or kind.outputs > 1:
        raise BadInput(f"{key}: task '{task}' is of kind {tasks[task].kind}, and only binary tasks form a chain")
    if follows and tasks[task].negatives_kept != 1:
        raise BadInput(
            f"tasks.{task}.negatives_kept: '{task}' is down a chain, where the kept share of negatives is not the "
            "same in all rows; down-sample the negatives of the chain's first task and set its negatives_kept"
        )
