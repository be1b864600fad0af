"""A whole run, and what must hold between its sections."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from livetrain.configs import formula, plugins, registry
from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema.cluster import Cluster
from livetrain.configs.schema.data import Data
from livetrain.configs.schema.export import Export, Wandb
from livetrain.configs.schema.feature import Feature
from livetrain.configs.schema.follow import Follow
from livetrain.configs.schema.fusion import FUSED, Fusion
from livetrain.configs.schema.gradients import Gradients, Measured
from livetrain.configs.schema.model import ModelConfig
from livetrain.configs.schema.optimizers import Optimizers, SparseOptimizer
from livetrain.configs.schema.section import Section
from livetrain.configs.schema.table import SLOTS, Table
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
        _check_batch(self)
        object.__setattr__(self, "data", self.data.on(max(self.cluster.most, 1)))
        if self.model.fitted:
            _check_fitted(self)
        _check_tables(self)
        _check_parts(self)
        _check_vectors(self)
        _check_sharding(self)
        _check_arithmetic(self)
        _check_followers(self)
        _check_gradients(self)
        _check_groups(self)
        _check_negatives(self)
        _check_division(self)
        _check_slices(self)
        _check_fusion(self)
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


def _check_fusion(recipe: Recipe) -> None:
    """Refuse a formula that is none over the recipe's tasks, or that nothing can judge."""
    fusion = recipe.fusion
    if fusion is None:
        return
    if FUSED in recipe.tasks:
        raise BadInput(f"tasks.{FUSED}: the score of fusion has this name; name the task otherwise")
    if both := sorted({*fusion.weights} & {*recipe.tasks}):
        raise BadInput(f"fusion.weights.{both[0]}: a task has this name; name the weight otherwise")
    used = formula.named(fusion.steps(list(recipe.answered)))
    if unused := [name for name in fusion.weights if name not in used]:
        raise BadInput(f"fusion.weights.{unused[0]}: fusion.score does not use it; leave it out")
    if not any(name in recipe.answered for name in used):
        raise BadInput("fusion.score: no task is in the formula; name at least one")
    if recipe.evaluate.group_by is None:
        raise BadInput("fusion: its score is judged within groups; name their column in evaluate.group_by")
    for name in fusion.tasks:
        if name not in recipe.answered:
            raise BadInput(f"fusion.tasks: there is no task '{name}'{nearest(name, recipe.answered)}")
    judged = recipe.judged()
    if not judged:
        raise BadInput("fusion.tasks: no task of the formula has metrics of groups, as binary ones have; add one")
    for name in judged:
        task = recipe.tasks[name]
        kind = registry.TASKS.owner(task.kind)(task)
        kind.measure_lists(recipe.evaluate.top)
        known = [metric for metric, one in kind.metrics.items() if one.grouped and one.better]
        if fusion.by not in known:
            mend = nearest(fusion.by, known) if known else "; name tasks that have some in fusion.tasks"
            raise BadInput(f"fusion.by: task '{name}' has no metric of groups '{fusion.by}'{mend}")


def _check_slices(recipe: Recipe) -> None:
    for name in recipe.evaluate.slices:
        if name in recipe.tasks:
            raise BadInput(
                f"evaluate.slices.{name}: a task has this name, and figures go by it; name the slice otherwise"
            )


MOST_ADMITTED = 2**33

_OF_STEPS = ("epochs", "patience", "checkpoint_every", "copies", "precision", "accumulate", "compile", "profile")


def _check_fitted(recipe: Recipe) -> None:
    """Refuse what a model cannot have that is fitted in one go, by one process."""
    kind = recipe.model.kind
    if recipe.cluster.most > 1:
        raise BadInput(f"cluster.workers: '{kind}' is fitted by one process; use workers: 0, or 1")
    tasks = recipe.tasks.items()
    if recipe.model.finds and (
        len(tasks) > 1 or not registry.TASKS.owner(next(iter(recipe.tasks.values())).kind).towers
    ):
        raise BadInput(f"tasks: '{kind}' finds items for one task of kind retrieval; leave the other tasks out")
    if recipe.follow is not None:
        raise BadInput(f"follow: '{kind}' is fitted in one go and learns nothing between two nights; leave it out")
    if recipe.data.negatives is not None:
        raise BadInput(f"data.negatives: '{kind}' is fitted without negatives; leave them out")
    for key in _OF_STEPS:
        if getattr(recipe.train, key) != Train.model_fields[key].default:
            raise BadInput(f"train.{key}: '{kind}' is fitted and not trained by steps; leave it out")


def _check_tables(recipe: Recipe) -> None:
    used = set()
    for name, feature in recipe.features.items():
        table = feature.looks_up()
        if table is None:
            if feature.embedded and not recipe.model.fitted:
                raise BadInput(f"features.{name}.table is missing; name the table that its ids are looked up in")
            continue
        if table not in recipe.tables:
            raise BadInput(f"features.{name}.table: there is no table '{table}'{nearest(table, recipe.tables)}")
        used.add(table)
        _check_made(name, feature, table, recipe.tables[table])
        if recipe.tables[table].initial is not None and not (feature.carrier == "ids" and feature.plain):
            raise BadInput(
                f"tables.{table}.initial: features.{name} makes its ids itself, so no file holds their vectors; "
                "give that feature a table of its own"
            )
        if recipe.tables[table].hash == "table" and not (feature.carrier == "ids" and feature.plain):
            raise BadInput(
                f"tables.{table}.hash: 'table' counts the ids of columns, and features.{name} makes its ids itself; "
                "give that feature a table of its own, of hash: mix or modulo"
            )
    for name, declared in recipe.tables.items():
        if name not in used:
            raise BadInput(f"tables.{name}: no feature uses this table; remove it or name it in a feature")
        _check_admitted(name, declared, recipe)


def _check_admitted(name: str, declared: Table, recipe: Recipe) -> None:
    """Refuse what does not go together with a table of admitted ids, and its keys for any other table."""
    if declared.hash != "table":
        for key in ("admission", "eviction", "shared"):
            if getattr(declared, key) is not None:
                raise BadInput(
                    f"tables.{name}.{key}: is for hash: table, and this one is '{declared.hash}'; leave it out"
                )
        return
    if recipe.model.fitted:
        raise BadInput(f"tables.{name}.hash: '{recipe.model.kind}' is fitted in one go; use hash: mix")
    for key in ("initial", "frozen"):
        if getattr(declared, key):
            raise BadInput(
                f"tables.{name}.{key}: with hash: table a row begins by its id and is trained; use hash: mix, or leave "
                f"{key} out"
            )
    if not declared.buckets:
        raise BadInput(
            f"tables.{name}.rows: {declared.rows} rows, {declared.shared or 1} of them shared, leave no bucket of "
            f"{SLOTS} for admitted ids; use more rows"
        )
    if declared.rows > MOST_ADMITTED:
        raise BadInput(
            f"tables.{name}.rows: with hash: table every rank holds 8 bytes for each row, and rows end at "
            f"{MOST_ADMITTED:,}; use fewer, or hash: mix"
        )
    if declared.evicts.expire_days is None:
        return
    if declared.evicts.strategy == "none":
        raise BadInput(f"tables.{name}.eviction.expire_days: strategy 'none' evicts no id; use strategy: last_use")
    if recipe.data.days is None:
        raise BadInput(
            f"tables.{name}.eviction.expire_days: counts days of the data, and data.days names none; name them, or "
            "leave expire_days out"
        )


def _check_made(name: str, feature: Feature, table: str, declared: Table) -> None:
    """Refuse a table in which ids that the feature makes would share rows."""
    if feature.ids is None:
        return
    if declared.hash != "modulo":
        raise BadInput(
            f"tables.{table}.hash: features.{name} makes the ids 0 to {feature.ids - 1}, and '{declared.hash}' would "
            "let some of them share a row; use hash: modulo"
        )
    if declared.rows < feature.ids:
        raise BadInput(
            f"tables.{table}.rows: features.{name} makes the ids 0 to {feature.ids - 1}, more than the table's "
            f"{declared.rows} rows; use rows: {feature.ids}"
        )


def _check_parts(recipe: Recipe) -> None:
    """Refuse a feature that is made of others which have no one id per row."""
    for name, feature in recipe.features.items():
        for part in feature.parts:
            if part not in recipe.features:
                raise BadInput(f"features.{name}.of: there is no feature '{part}'{nearest(part, recipe.features)}")
            other = recipe.features[part]
            if other.form != "id" or other.lists or other.parts:
                raise BadInput(
                    f"features.{name}.of: '{part}' is of type {other.type}, which has no id of each row; name features "
                    "that have one, as those of type id"
                )


def _check_vectors(recipe: Recipe) -> None:
    """Refuse a sequence whose vectors are like no vector of a row."""
    for name, feature in recipe.features.items():
        if feature.alike is None:
            continue
        if feature.alike not in recipe.features:
            raise BadInput(
                f"features.{name}.like: there is no feature '{feature.alike}'{nearest(feature.alike, recipe.features)}"
            )
        other = recipe.features[feature.alike]
        if other.holds != "vector" or not other.plain:
            raise BadInput(
                f"features.{name}.like: '{feature.alike}' is of type {other.type}; name the feature of type vector "
                "that the candidate has"
            )


BY_COLUMNS = ("column_wise", "grid")
POOLED_ALONE = ("table_row_wise", "grid")  # torchrec has them for tables that are pooled where their rows lie


def _check_sharding(recipe: Recipe) -> None:
    """Refuse a table whose rows are asked to be added up before they travel where they are needed one by one."""
    for name, table in recipe.tables.items():
        if table.sharding not in POOLED_ALONE or (apart := recipe.apart(name)) is None:
            continue
        why = f"is of type {recipe.features[apart].type}" + (
            "" if recipe.features[apart].form == "sequence" else " with pooling: max"
        )
        raise BadInput(
            f"tables.{name}.sharding: {table.sharding} adds up the rows of a sum before they travel, and "
            f"features.{apart} {why}, which needs every row; use row_wise or table_wise, or give features.{apart} a "
            "table of its own"
        )


def _check_arithmetic(recipe: Recipe) -> None:
    """Refuse what the fused optimizers would compute otherwise than plain PyTorch."""
    for name, table in recipe.tables.items():
        key = f"tables.{name}.optimizer" if table.optimizer else "optimizers.sparse"
        if table.frozen:
            if table.optimizer:
                raise BadInput(f"tables.{name}: a frozen table has no optimizer; leave out one of the two keys")
            continue
        sparse = recipe.optimizer(name)
        optimizer = registry.OPTIMIZERS.owner(sparse.kind)
        if sparse.weight_decay and not optimizer.decays:
            raise BadInput(
                f"{key}.weight_decay: '{sparse.kind}' ignores it on some devices; "
                "use kind: rowwise_adagrad, or weight_decay: 0"
            )
        if table.sharding in BY_COLUMNS and not optimizer.by_columns:
            able = [kind for kind in registry.OPTIMIZERS if registry.OPTIMIZERS.owner(kind).by_columns]
            raise BadInput(
                f"tables.{name}.sharding: {table.sharding} splits rows, and of parts '{sparse.kind}' would learn "
                f"something else than of whole ones; use row_wise or table_wise, or {key}.kind: {' or '.join(able)}"
            )
        if table.sharding == "data_parallel" and not optimizer.replicated:
            raise BadInput(
                f"tables.{name}.sharding: as data_parallel, '{sparse.kind}' would learn something else; "
                f"use another sharding or another {key}.kind"
            )


def _check_followers(recipe: Recipe) -> None:
    if not recipe.answered:
        raise BadInput(
            f"tasks: {', '.join(recipe.tasks)} teach other tasks, and there are none to learn; add one with a label"
        )
    for name, task in recipe.tasks.items():
        if not isinstance(task, Follower):
            continue
        if task.of not in recipe.answered:
            raise BadInput(
                f"tasks.{name}.of: there is no task '{task.of}' that has a logit{nearest(task.of, recipe.answered)}; "
                "name one that predicts a probability"
            )
        followed = recipe.tasks[task.of].kind
        if not registry.TASKS.owner(followed).odds:
            raise BadInput(
                f"tasks.{name}.of: '{task.of}', of kind {followed}, predicts no probability, which is what {task.kind} "
                "teaches; use kind: binary there"
            )


def _check_gradients(recipe: Recipe) -> None:
    if len(recipe.tasks) > 1:
        return
    if recipe.gradients.kind != "sum":
        raise BadInput(
            f"gradients.kind: '{recipe.gradients.kind}' combines the gradients of several tasks, and "
            f"'{next(iter(recipe.tasks))}' is the only one; add tasks, or use kind: sum"
        )
    if getattr(recipe.gradients, "measure_every", None):
        raise BadInput("gradients.measure_every: one task has no other to be compared with; add tasks, or leave it out")


def _check_groups(recipe: Recipe) -> None:
    for task, column in recipe.groups().items():
        if not column:
            raise BadInput(
                f"tasks.{task}.group: kind {recipe.tasks[task].kind} compares the rows of a group, and nothing says "
                "which those are; name the column of the groups here, or in evaluate.group_by"
            )


def _check_negatives(recipe: Recipe) -> None:
    section = recipe.data.negatives
    if section is None or section.task is None:
        return
    if section.task not in recipe.tasks:
        raise BadInput(f"data.negatives.task: there is no task '{section.task}'{nearest(section.task, recipe.tasks)}")
    if registry.TASKS.owner(recipe.tasks[section.task].kind).numeric:
        raise BadInput(
            f"data.negatives.task: the labels of '{section.task}' are numbers, and only a label of 0 and 1 has "
            "positives; name another task"
        )
    for name, task in recipe.tasks.items():
        if registry.TASKS.owner(task.kind).odds and "negatives_kept" not in task.model_fields_set:
            raise BadInput(
                f"tasks.{name}.negatives_kept: drawn negatives change the probability that '{name}' predicts; set it "
                "to per_positive / (items - 1) where all negatives are drawn and all items alike, or to 1 to predict "
                "that among the rows trained on"
            )


def _check_batch(recipe: Recipe) -> None:
    """Refuse a batch that would change with the workers of a range: what is learned must not."""
    rows, cluster = recipe.data.batch_size_per_worker, recipe.cluster
    if rows is not None and cluster.elastic:
        raise BadInput(
            "data.batch_size_per_worker: with a range of workers a step has the same rows whatever their number; write "
            f"data.batch_size: {rows * cluster.most}, which is {rows} on each of {cluster.most}"
        )


def _check_counts(recipe: Recipe) -> None:
    """Refuse workers among whom the shards do not divide, and a range with no number among whom they do."""
    batch, shards, cluster = recipe.data.batch_size, recipe.data.shards, recipe.cluster
    if cluster.elastic:
        if not recipe.counts():
            near = sorted((n for n in range(1, shards + 1) if shards % n == 0), key=lambda n: _outside(n, cluster))
            raise BadInput(
                f"cluster.workers: {shards} data.shards divide among no number of workers from {cluster.least} to "
                f"{cluster.most}; a range with {' or '.join(map(str, sorted(near[:2])))} would do"
            )
        return
    workers = max(cluster.most, 1)
    if shards % workers:
        wanted = [n for n in range(workers, 4 * max(shards, workers) + 1, workers) if batch % n == 0][:5]
        near_one = max(round(shards / workers), 1) * workers
        rows = max(round(batch / near_one), 1) * near_one
        mend = (
            f"data.shards of {', '.join(map(str, wanted))} would"
            if wanted
            else f"data.shards of {near_one} with a data.batch_size of {rows} would"
        )
        raise BadInput(f"data.shards: {shards} shards do not divide among {workers} workers; {mend}")


def _outside(count: int, cluster: Cluster) -> int:
    """Return how far a number of workers lies outside the range."""
    return max(cluster.least - count, count - cluster.most)


def _check_division(recipe: Recipe) -> None:
    batch, shards = recipe.data.batch_size, recipe.data.shards
    _check_counts(recipe)
    if recipe.train.accumulate > batch // shards:
        raise BadInput(
            f"train.accumulate: {recipe.train.accumulate} parts of {batch // shards} rows, which are a shard's of a "
            "batch, leave some empty; lower it, or raise data.batch_size"
        )
    if recipe.train.accumulate > 1 and recipe.train.compile:
        raise BadInput(
            "train.compile: a batch that is trained in parts is no single graph; leave train.compile out, or use "
            "accumulate: 1"
        )
    if recipe.train.accumulate > 1 and recipe.gradients.scope == "trunk":
        raise BadInput(
            "train.accumulate: with gradients.scope: trunk the gradients at the trunk's input are needed of all rows "
            "at once; use scope: shared, or accumulate: 1"
        )
    if batch % shards:
        below = batch // shards * shards
        near_ones = ", ".join(str(n) for n in (below, below + shards) if n)
        raise BadInput(f"data.batch_size: {batch} rows do not divide among {shards} data.shards; {near_ones} would")
