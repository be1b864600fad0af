"""A whole run."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from livetrain.configs import formula, plugins, registry
from livetrain.configs.schema import fit
from livetrain.configs.schema.cluster import Cluster
from livetrain.configs.schema.data import Data
from livetrain.configs.schema.export import Export, Wandb
from livetrain.configs.schema.feature import Feature
from livetrain.configs.schema.follow import Follow
from livetrain.configs.schema.fusion import Fusion
from livetrain.configs.schema.gradients import Gradients, Measured
from livetrain.configs.schema.model import ModelConfig
from livetrain.configs.schema.optimizers import Optimizers, SparseOptimizer
from livetrain.configs.schema.section import Section
from livetrain.configs.schema.table import Table
from livetrain.configs.schema.task import Follower, GroupTask, Task
from livetrain.configs.schema.train import CANDIDATES, SEEN, Evaluate, Train
from livetrain.configs.values import FeatureName, RunName, TableName, TaskName, Text


class Recipe(Section):
    """A whole run. See configs/recipes for complete ones."""

    name: RunName | None = Field(None, description="run folder below runs/")
    # Before the sections whose kinds they define: pydantic checks fields in this order.
    plugins: list[Text] = Field([], description="modules that define kinds of your own, as my_package.models")
    data: Data
    features: dict[FeatureName, Annotated[SerializeAsAny[Feature], BeforeValidator(registry.FEATURES.parse)]] = Field(
        min_length=1
    )
    tables: dict[TableName, Table] = {}
    model: SerializeAsAny[ModelConfig]
    tasks: dict[TaskName, Annotated[SerializeAsAny[Task], BeforeValidator(registry.TASKS.parse)]] = Field(min_length=1)
    gradients: Annotated[SerializeAsAny[Gradients], BeforeValidator(registry.COMBINERS.parse)] = Measured()
    optimizers: Optimizers = Optimizers()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    cluster: Cluster = Cluster()
    fusion: Fusion | None = Field(None, description="one score of the tasks' predictions")
    export: Export = Export()
    follow: Follow | None = Field(None, description="the stream that is learned from between two nights")
    wandb: Wandb | None = None

    @field_validator("plugins")
    @classmethod
    def _imported(cls, value: list[str]) -> list[str]:
        plugins.load(value)
        return value

    @field_validator("model", mode="before")
    @classmethod
    def _model_of_its_kind(cls, value: Any) -> Any:
        return registry.parse_model(value)

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        object.__setattr__(self, "plugins", registry.complete(self, self.plugins))
        fit.check_batch(self)
        object.__setattr__(self, "data", self.data.on(max(self.cluster.most, 1)))
        fit.check(self)
        return self

    def __setstate__(self, state: dict[Any, Any]) -> None:
        plugins.load(state["__dict__"]["plugins"])  # where the recipe was sent to
        super().__setstate__(state)

    @property
    def answered(self) -> dict[str, Task]:
        """The tasks that the model answers for, and exports: all but those that only teach others."""
        return {name: task for name, task in self.tasks.items() if not isinstance(task, Follower)}

    def column(self, feature: str) -> str:
        """Return the Parquet column that feeds `feature`."""
        return self.features[feature].column or feature

    def columns(self, feature: str) -> tuple[str, ...]:
        """Return the Parquet columns whose values `feature` is made of, `column` first; none of a feature of others."""
        if self.features[feature].parts:
            return ()
        second = self.features[feature].second_column
        return (self.column(feature),) if second is None else (self.column(feature), second)

    def reads(self, feature: str) -> tuple[str, ...]:
        """Return every Parquet column that `feature` reads: its `columns`, and those of what lies beside its ids."""
        beside = self.beside(feature)
        return self.columns(feature) if beside is None else (*self.columns(feature), *beside[0])

    def beside(self, feature: str) -> tuple[tuple[str, ...], int] | None:
        """Return the Parquet columns of the numbers that each id of `feature` has, and how many these are."""
        declared = self.features[feature]
        if declared.carried is not None and declared.up_to is not None:
            return (declared.carried, declared.up_to), 1
        if declared.carried is not None and declared.alike is not None:
            return (declared.carried,), self.features[declared.alike].numbers
        return None if declared.weighted is None else ((declared.weighted,), 1)

    def optimizer(self, table: str) -> SparseOptimizer:
        """Return the optimizer section of a table: its own, or that of all tables."""
        return self.tables[table].optimizer or self.optimizers.sparse

    def counts(self) -> tuple[int, ...]:
        """Return every number of ranks that the run may have, rising: of a range those that share data.shards evenly.

        One number of a recipe that names one, which is 1 of a run without Ray.
        """
        cluster = self.cluster
        if not cluster.elastic:
            return (max(cluster.most, 1),)
        return tuple(n for n in range(cluster.least, cluster.most + 1) if self.data.shards % n == 0)

    def apart(self, table: str) -> str | None:
        """Return a feature that needs the rows of a table one by one, so that they cannot be added up where they lie;
        None where there is none."""
        users = ((name, feature) for name, feature in self.features.items() if feature.looks_up() == table)
        return next((name for name, f in users if f.form == "sequence" or f.pooled == "max"), None)

    def select(self) -> str:
        """Return the metric on the validation split that picks the best checkpoint; a bare one is the first task's."""
        name, task = next(iter(self.tasks.items()))
        wanted = self.train.select or registry.TASKS.owner(task.kind).leading
        return wanted if "." in wanted else f"{name}.{wanted}"

    def groups(self) -> dict[str, str]:
        """Return the column of the groups by task, of those whose rows are compared with their group's."""
        return {
            name: task.group or self.evaluate.group_by or ""
            for name, task in self.tasks.items()
            if isinstance(task, GroupTask)
        }

    def judged(self) -> dict[str, float]:
        """Return how much each task's metric counts in choosing the weights of fusion, of those that it is judged by.

        By default those tasks of the formula that have labels of 0 and 1.
        """
        if self.fusion is None or self.fusion.tasks:
            return {} if self.fusion is None else dict(self.fusion.tasks)
        used = formula.named(self.fusion.steps(list(self.answered)))
        chosen = {name: registry.TASKS.owner(task.kind) for name, task in self.answered.items() if name in used}
        return {name: 1.0 for name, kind in chosen.items() if not kind.numeric}

    def asides(self) -> dict[str, str]:
        """Return the columns of lists that an evaluation reads besides, by `SEEN` and `CANDIDATES`.

        evaluate.seen and evaluate.candidates name a sequence feature, whose column is meant, or a column.
        """
        named = {SEEN: self.evaluate.seen, CANDIDATES: self.evaluate.candidates}
        of_features = {name: self.column(name) for name, f in self.features.items() if f.form == "sequence"}
        return {part: of_features.get(name, name) for part, name in named.items() if name is not None}
