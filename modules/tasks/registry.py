"""The kinds of tasks by `tasks.X.kind`, and the metrics that they are judged by."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from livetrain.configs.registry import TASKS
from livetrain.configs.schema import Follower, GroupTask, Task
from livetrain.modules.tasks import lists
from livetrain.modules.tasks.kind import Metric, TaskKind


def register_task(kind: str, config: type[Task] = Task) -> Callable[[type[TaskKind]], type[TaskKind]]:
    """Make the decorated `TaskKind` that of ``tasks.X.kind: kind``.

    Args:
        kind: the name in recipes.
        config: checks the recipe's section; a subclass of `Task` where the kind has keys of its own.

    Raises:
        TypeError: the class is no `TaskKind`, or compares rows by group and its config has no group.
        ValueError: it writes a metric by the name of another kind's that means something else.
    """

    def enter(owner: type[TaskKind]) -> type[TaskKind]:
        if not issubclass(owner, TaskKind):
            raise TypeError(
                f"task '{kind}': {owner.__name__} must be a subclass of livetrain.modules.tasks.kind.TaskKind"
            )
        if owner.by_group and not issubclass(config, GroupTask):
            raise TypeError(f"task '{kind}': the config of a kind that is by_group must be a subclass of GroupTask")
        if owner.follows != issubclass(config, Follower):
            raise TypeError(f"task '{kind}': a kind that follows, and no other, has a config that is a Follower")
        owner.config = config
        others = [other for known, other in TASKS.entered().items() if known != kind]
        for name, metric in owner.metrics.items():
            if any(other.metrics.get(name, metric) != metric for other in others):
                raise ValueError(f"task '{kind}': another kind's metric '{name}' is another one; name yours otherwise")
        TASKS.register(kind, config, owner)
        return owner

    return enter


def kinds(tasks: Mapping[str, Task], top: Sequence[int] | None = None) -> dict[str, TaskKind]:
    """Return each task's kind, which measures lists of these lengths, if any are given."""
    found = {name: TASKS.owner(task.kind)(task) for name, task in tasks.items()}
    for kind in found.values() if top is not None else ():
        kind.measure_lists(top)
    return found


def metrics(names: Iterable[str] = ()) -> dict[str, Metric]:
    """Return the metrics of all kinds by name, in the order in which tables show them.

    Args:
        names: of figures; those of lists, whose lengths recipes say, are added.
    """
    found = {name: metric for kind in TASKS for name, metric in TASKS.owner(kind).metrics.items()}
    return found | {name: metric for name in names if (metric := lists.metric(name))}


def leading(names: Sequence[str]) -> str | None:
    """Return which of the metrics that an evaluation wrote of a task says most; None where none of them is known.

    It is that of the kind that writes them. Several kinds may write the same: an evaluation writes a task's leading
    metric first.
    """
    known = metrics()
    names = [name for name in names if name in known]
    owners = [TASKS.owner(kind) for kind in TASKS]
    found = [kind.leading for kind in owners if kind.leading in names and set(names) <= set(kind.metrics)]
    return min(found, key=names.index, default=None)
