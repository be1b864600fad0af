"""What a run is: the typed recipe. Every key of a recipe file is a field here, with its unit and its default.

Nothing here imports torch: a recipe can be read, checked and changed on a laptop that will never train it.
"""

import contextlib
import re
from datetime import date, timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from livetrain.configs import plugins, registry
from livetrain.configs.errors import BadInput, nearest, shown
from livetrain.configs.values import (
    Count,
    CountOrZero,
    Name,
    Positive,
    PositiveOrZero,
    Rate,
    RunName,
    Seed,
    Share,
    Text,
    real,
    whole,
)

Quantization = Literal["none", "float16", "int8"]
_DAYS = re.compile(r"\d{4}-\d\d-\d\d\.\.\d{4}-\d\d-\d\d", re.ASCII)
_MOST_DAYS = 10_000  # of a split: each is a folder to look for
_PROFILED = re.compile(r"([1-9]\d{0,8})\.\.([1-9]\d{0,8})", re.ASCII)
_MOST_PROFILED = 1000  # steps: a trace is kept in memory until it is written


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Days(Section):
    """Which day partitions each split reads: first..last day, both included, as 2022-04-25..2022-05-04."""

    train: str
    valid: str
    test: str

    @field_validator("*", mode="before")
    @classmethod
    def _first_to_last(cls, value: Any, info: ValidationInfo) -> Any:
        first, last = date.max, date.min
        if isinstance(value, str) and _DAYS.fullmatch(value):
            with contextlib.suppress(ValueError):  # a month has no 31st
                first, last = map(date.fromisoformat, value.split(".."))
        if first > last:
            raise BadInput(
                f"data.days.{info.field_name} got {shown(value)}, wanted its first and last day, as "
                "2022-04-25..2022-05-04"
            )
        if (last - first).days >= _MOST_DAYS:
            raise BadInput(f"data.days.{info.field_name}: '{value}' are more than {_MOST_DAYS:,} days; correct one end")
        return f"{first}..{last}"  # however they were written

    @model_validator(mode="after")
    def _in_order(self) -> "Days":
        for earlier, later in (("train", "valid"), ("valid", "test")):
            if self.of(earlier)[-1] >= self.of(later)[0]:
                raise BadInput(
                    f"data.days: {later} ({getattr(self, later)}) must begin after {earlier} "
                    f"({getattr(self, earlier)}) ends; give days that follow one another"
                )
        return self

    def of(self, split: str) -> list[str]:
        """Return a split's days, each as 2022-04-25."""
        first, last = map(date.fromisoformat, getattr(self, split).split(".."))
        return [str(first + timedelta(days=number)) for number in range((last - first).days + 1)]


class Data(Section):
    """Where the samples lie and how they are read."""

    path: Text = Field(description="folder or URI (s3://, gs://, hdfs://) that holds train/, valid/ and test/, or days")
    days: Days | None = Field(None, description="the splits as days of path's partitions date=YYYY-MM-DD/")
    batch_size: whole(1, 2**24) = Field(1536, description="rows a step over all workers together")
    shards: whole(1, 2**16) = Field(
        192, description="virtual shards; sample order depends on them and never on the workers"
    )
    shuffle_window: Count = Field(4096, description="least rows that a shard shuffles together")
    threads: whole(1, 256) = Field(1, description="threads a worker that decode Parquet")
    prefetch: whole(1, 1024) = Field(4, description="batches that a worker keeps ready")
    on_corrupt: Literal["stop", "skip"] = Field("stop", description="an unreadable row group: stop, or skip and count")


class Feature(Section):
    """Base of every kind of feature: which column it reads, what carries it, and what a network gets of it.

    The reader, the statistics, the checks and an exported file know carriers and forms only. What the model does with
    the values is in modules.features, by `type`.

    Attributes:
        carrier: ids (int64, any number per row) or numbers (one float32 per row, NaN = missing).
        form: what a network gets: of an id feature at most one embedding per row, of a sequence as many as its list
            has ids, of a dense one a number. A form other than dense has a table.
        plain: the values in the column are those that are looked up or normalised.
    """

    type: str
    column: Text | None = Field(None, description="Parquet column, by default the feature's name")

    carrier: ClassVar[Literal["ids", "numbers"]] = "numbers"
    form: ClassVar[Literal["id", "sequence", "dense"]] = "dense"
    plain: ClassVar[bool] = False

    @property
    def limit(self) -> int:
        """Most ids of a row; the newest ones count."""
        return 1

    def looks_up(self) -> str | None:
        """Return the table in which the feature's ids are looked up; None for numbers."""
        return None

    def signature(self, mean: float, std: float) -> dict[str, Any]:
        """Return what a server has to know: type, dtype (int64: in `ids`, float32: in `dense`), what is missing.

        Args:
            mean: of a dense feature that is normalised.
            std: likewise.
        """
        dtype, missing = ("int64", "length 0") if self.carrier == "ids" else ("float32", "NaN")
        return {"dtype": dtype, "missing": missing} | self.model_dump(exclude={"column"})


class EmbeddedFeature(Feature):
    """A feature whose ids are looked up in a table."""

    table: Name

    carrier: ClassVar[Literal["ids", "numbers"]] = "ids"
    form: ClassVar[Literal["id", "sequence", "dense"]] = "id"

    def looks_up(self) -> str | None:
        return self.table


class Table(Section):
    """An embedding table, shared by every feature that names it."""

    rows: whole(1, 2**40)
    dim: whole(1, 2**16, multiple_of=4) = Field(description="columns; a multiple of 4, as the fused kernels need")
    hash: Literal["mix", "modulo"] = Field(
        "mix", description="id -> row: a mixing hash for any ids, or the plain remainder for ids that are 0..rows-1"
    )
    sharding: Literal["auto", "table_wise", "row_wise", "column_wise", "data_parallel"] = "auto"
    dtype: Literal["float32", "float16"] = "float32"
    memory: Literal["auto", "gpu", "host"] = Field(
        "auto",
        description="on GPUs: rows in GPU memory, or in host memory behind a GPU cache; auto puts the largest tables "
        "behind a cache where not all fit",
    )
    cache: real(1e-6, 1) = Field(0.2, description="part of a table in host memory that its GPU cache holds")
    init_std: real(0, 1000) = Field(0.01, description="deviation of the normal initial values")


class Task(Section):
    """One thing to predict: a label column, what kind of label it is, and its weight in the loss."""

    label: Text
    kind: str = Field(
        "binary",
        description="binary: 0 or 1; watch_time: a time, whose expected value is predicted; regression: a number, in "
        "squared logarithms; retrieval: 0 or 1, whose positives are to be found among all items; or a registered kind",
    )
    weight: real(1e-6, 1e6) = 1.0
    unknown: bool = Field(False, description="null labels are not known yet: the task learns from the other rows")
    sample_weight: Text | None = Field(None, description="column of the rows' weights in this task's training loss")
    negatives_kept: Share = Field(1.0, description="share of this label's negatives that the training split has kept")

    @model_validator(mode="after")
    def _weighs_by_another(self) -> "Task":
        if self.sample_weight == self.label:
            raise BadInput(
                f"sample_weight: '{self.label}' is the label itself, by which every 0 would count for nothing; name a "
                "column of weights, or leave sample_weight out"
            )
        return self

    @model_validator(mode="after")
    def _negatives_exist(self) -> "Task":
        if self.negatives_kept != 1 and not registry.TASKS.owner(self.kind).odds:
            raise BadInput(
                f"negatives_kept: a task of kind {self.kind} has no negatives; give the rows that were kept a "
                "sample_weight of 1 / the share instead"
            )
        return self


class SparseOptimizer(Section):
    """The optimizer fused into the tables' backward pass."""

    kind: str = Field("rowwise_adagrad", description="rowwise_adagrad, adagrad, sgd, adam, or a registered kind")
    lr: Positive = 0.02
    eps: Positive = 1e-8
    weight_decay: PositiveOrZero = Field(0.0, description="L2 on the rows that a batch touches")


class DenseOptimizer(Section):
    """The optimizer of everything that is not a table."""

    kind: Literal["adam", "adamw", "adagrad", "sgd"] = "adam"
    lr: Positive = 1e-3
    weight_decay: PositiveOrZero = 0.0
    clip_norm: Positive | None = Field(None, description="largest global norm of the dense gradient")


class Schedule(Section):
    """The learning rates' factor by step, the same for both optimizers."""

    warmup_steps: CountOrZero = Field(0, description="steps of linear rise from 0")
    decay: Literal["constant", "linear", "cosine"] = "constant"
    final: real(0, 1) = Field(0.0, description="factor at the last step, for linear and cosine")


class Optimizers(Section):
    sparse: Annotated[SerializeAsAny[SparseOptimizer], BeforeValidator(registry.OPTIMIZERS.parse)] = SparseOptimizer()
    dense: DenseOptimizer = DenseOptimizer()
    schedule: Schedule = Schedule()


Scope = Annotated[
    Literal["shared", "trunk"],
    Field(description="where gradients are compared: in all that is shared, or, cheaper, at the input of the trunk"),
]
MeasureEvery = Annotated[
    Count | None, Field(description="steps between measurements of the tasks' gradients, which cost as in pcgrad")
]


class SumOfGradients(Section):
    """The tasks' losses, each with its task's weight, are added."""

    kind: Literal["sum"] = "sum"
    scope: Scope = "shared"
    measure_every: MeasureEvery = None


class PCGrad(Section):
    """Gradients of tasks are projected so that none points against another (2001.06782)."""

    kind: Literal["pcgrad"]
    scope: Scope = "shared"


class GradNorm(Section):
    """Task weights that make the tasks train at similar rates (1711.02257)."""

    kind: Literal["gradnorm"]
    scope: Scope = "shared"
    alpha: real(0, 100) = Field(1.5, description="how strongly the rates are pulled together")
    lr: Positive = Field(0.025, description="of the task weights, whatever the schedule")


class Uncertainty(Section):
    """Task weights exp(-s) with a learned s a task (1705.07115)."""

    kind: Literal["uncertainty"]
    scope: Scope = "shared"
    lr: Positive = Field(0.025, description="of s, whatever the schedule")
    measure_every: MeasureEvery = None


Gradients = SumOfGradients | PCGrad | GradNorm | Uncertainty


class Train(Section):
    epochs: Count = 1
    seed: Seed = 1
    evaluate_every: Share = Field(1.0, description="epochs between evaluations on valid/")
    patience: Count | None = Field(None, description="stop after this many evaluations without a better one")
    checkpoint_every: Count | None = Field(None, description="steps between checkpoints besides evaluations")
    keep: Count = Field(2, description="newest checkpoints kept, besides the best")
    select: Text | None = Field(
        None, description="metric on valid/ that picks the best, by default the one that leads the first task's kind"
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32", description="of the dense part: tf32 speeds up matrix products on GPUs, bfloat16 autocasts"
    )
    log_every: Count = Field(20, description="steps between lines of metrics.jsonl")
    warm_start: Text | None = Field(None, description="run folder whose best checkpoint this run begins with")
    profile: str | None = Field(None, description="first..last step, as 20..30: write a torch profiler trace of them")

    @field_validator("profile", mode="before")
    @classmethod
    def _first_to_last(cls, value: Any) -> Any:
        if value is None:
            return None
        ends = _PROFILED.fullmatch(value) if isinstance(value, str) else None
        first, last = map(int, ends.groups()) if ends else (0, -1)
        if first > last:
            raise BadInput(f"train.profile got {shown(value)}, wanted the first and the last step, from 1, as 20..30")
        if last - first >= _MOST_PROFILED:
            raise BadInput(f"train.profile: '{value}' are more than {_MOST_PROFILED:,} steps; write fewer, as 20..30")
        return value

    def profiled(self) -> range:
        """Return the steps, counted from 1 as in metrics.jsonl, that a profiler records: none by default."""
        first, last = map(int, self.profile.split("..")) if self.profile else (1, 0)
        return range(first, last + 1)


class Evaluate(Section):
    group_by: Text | None = Field(None, description="int64 column whose groups GAUC and UAUC average, as a user id")
    memory: Literal["exact", "bounded"] = Field("exact", description="bounded: binned AUC, GAUC on a sample of groups")


class Topology(Section):
    """The machines that the sharding planner plans for. The defaults are one H100 node's."""

    workers_per_node: whole(1, 1024) = 8
    hbm_gb: Rate = Field(80, description="GPU memory a worker")
    ddr_gb: Rate = Field(128, description="host memory a worker")
    hbm_gb_s: Rate = 3350
    ddr_gb_s: Rate = 100
    intra_gb_s: Rate = Field(450, description="between workers of one node, each way")
    inter_gb_s: Rate = Field(50, description="between nodes, each way")


class Cluster(Section):
    """Where the run happens; nothing here changes what is learned."""

    workers: whole(0, 4096) = Field(1, description="ranks; 0 trains inside the calling process, without Ray")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    address: Text | None = Field(None, description="a running Ray cluster; none starts Ray on this machine")
    cpus_per_worker: real(0.001, 1024) = 1
    max_failures: CountOrZero = Field(2, description="worker failures survived by restarting from the last checkpoint")
    timeout_s: whole(1, 30 * 86400) = Field(600, description="longest wait for room, and for the other ranks")
    quantize_comms: Literal["none", "fp16", "bf16"] = Field("none", description="type of embeddings on the wire")
    topology: Topology = Topology()


class Export(Section):
    quantize: Quantization = Field("none", description="how the file stores tables; the dense part stays float32")
    parity_rows: whole(1, 2**24) = Field(4096, description="held-out rows on which file and model must agree")
    golden_rows: whole(1, 2**20) = Field(32, description="rows written to golden.json with their scores")
    golden: Literal["synthetic", "rows"] = Field(
        "synthetic", description="which rows those are: drawn, without any user's data, or the held-out rows themselves"
    )
    tolerance: Share = Field(
        1e-5, description="largest difference of a prediction (relative above 1), tables as trained"
    )
    tolerance_float16: Share = Field(1e-3, description="the same for quantize: float16")
    tolerance_int8: Share = Field(1e-2, description="the same for quantize: int8")


class Wandb(Section):
    """Weights & Biases: what metrics.jsonl gets, the report and the exports go there too. The key is its own affair."""

    project: Text
    entity: Text | None = Field(None, description="user or team, by default the one logged in")
    mode: Literal["online", "offline"] = Field("online", description="offline: kept in the run folder for `wandb sync`")
    tags: list[Text] = []
    group: Text | None = Field(None, description="runs that belong together; a sweep sets its own name for its trials")


class ModelConfig(Section):
    """Base of every model's own config; `kind` is the name under which the model is registered."""

    kind: Text


class Recipe(Section):
    """A whole run. See configs/recipes for complete ones."""

    name: RunName | None = Field(None, description="run folder below runs/")
    # Before the sections whose kinds they define: pydantic checks fields in this order.
    plugins: list[Text] = Field([], description="modules of your own with kinds of models, as my_package.models")
    data: Data
    features: dict[Name, Annotated[SerializeAsAny[Feature], BeforeValidator(registry.FEATURES.parse)]] = Field(
        min_length=1
    )
    tables: dict[Name, Table] = {}
    model: SerializeAsAny[ModelConfig]
    tasks: dict[Name, Annotated[SerializeAsAny[Task], BeforeValidator(registry.TASKS.parse)]] = Field(min_length=1)
    gradients: Gradients = Field(SumOfGradients(), discriminator="kind")
    optimizers: Optimizers = Optimizers()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    cluster: Cluster = Cluster()
    export: Export = Export()
    wandb: Wandb | None = None

    @field_validator("plugins")
    @classmethod
    def _imported(cls, value: list[str]) -> list[str]:
        plugins.load(value)
        return value

    @field_validator("gradients", mode="before")
    @classmethod
    def _summed_by_default(cls, value: Any) -> Any:
        return {"kind": "sum", **value} if isinstance(value, dict) else value

    @field_validator("model", mode="before")
    @classmethod
    def _model_of_its_kind(cls, value: Any) -> Any:
        return registry.parse_model(value)

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        object.__setattr__(self, "plugins", registry.complete(self, self.plugins))
        _check_tables(self)
        _check_arithmetic(self)
        _check_gradients(self)
        _check_division(self)
        return self

    def __setstate__(self, state: dict[Any, Any]) -> None:
        plugins.load(state["__dict__"]["plugins"])  # where the recipe was sent to
        super().__setstate__(state)

    def column(self, feature: str) -> str:
        """Return the Parquet column that feeds `feature`."""
        return self.features[feature].column or feature

    def select(self) -> str:
        """Return the metric on the validation split that picks the best checkpoint."""
        name, task = next(iter(self.tasks.items()))
        return self.train.select or f"{name}.{registry.TASKS.owner(task.kind).leading}"


def _check_tables(recipe: Recipe) -> None:
    used = set()
    for name, feature in recipe.features.items():
        table = feature.looks_up()
        if table is None:
            continue
        if table not in recipe.tables:
            raise BadInput(f"features.{name}.table: there is no table '{table}'{nearest(table, recipe.tables)}")
        used.add(table)
    for name in recipe.tables:
        if name not in used:
            raise BadInput(f"tables.{name}: no feature uses this table; remove it or name it in a feature")


def _check_arithmetic(recipe: Recipe) -> None:
    """Refuse what the fused optimizers would compute otherwise than plain PyTorch."""
    sparse, optimizer = recipe.optimizers.sparse, registry.OPTIMIZERS.owner(recipe.optimizers.sparse.kind)
    if sparse.weight_decay and not optimizer.decays:
        raise BadInput(
            f"optimizers.sparse.weight_decay: '{sparse.kind}' ignores it on some devices; "
            "use kind: rowwise_adagrad, or weight_decay: 0"
        )
    for name, table in recipe.tables.items():
        if table.sharding == "column_wise" and not optimizer.by_columns:
            raise BadInput(
                f"tables.{name}.sharding: column_wise keeps one accumulator a column shard, so '{sparse.kind}' would "
                "learn something else than on one worker; use row_wise or table_wise, or optimizers.sparse.kind: sgd"
            )
        if table.sharding == "data_parallel" and sparse.weight_decay:
            raise BadInput(
                f"tables.{name}.sharding: data_parallel would decay every row, not the touched ones; "
                "use another sharding or optimizers.sparse.weight_decay: 0"
            )
        if table.sharding == "data_parallel" and not optimizer.replicated:
            raise BadInput(
                f"tables.{name}.sharding: as data_parallel, '{sparse.kind}' would move untouched rows; "
                "use another sharding or another optimizers.sparse.kind"
            )


def _check_gradients(recipe: Recipe) -> None:
    if len(recipe.tasks) > 1:
        return
    if recipe.gradients.kind != "sum":
        raise BadInput(
            f"gradients.kind: '{recipe.gradients.kind}' combines the gradients of several tasks, and "
            f"'{next(iter(recipe.tasks))}' is the only one; add tasks, or use kind: sum"
        )
    if recipe.gradients.measure_every:
        raise BadInput("gradients.measure_every: one task has no other to be compared with; add tasks, or leave it out")


def _check_division(recipe: Recipe) -> None:
    batch, shards, workers = recipe.data.batch_size, recipe.data.shards, max(recipe.cluster.workers, 1)
    if shards % workers:
        wanted = [n for n in range(workers, 4 * max(shards, workers) + 1, workers) if batch % n == 0][:5]
        near = max(round(shards / workers), 1) * workers
        mend = (
            f"data.shards of {', '.join(map(str, wanted))} would"
            if wanted
            else (f"data.shards of {near} with a data.batch_size of {max(round(batch / near), 1) * near} would")
        )
        raise BadInput(f"data.shards: {shards} shards do not divide among {workers} workers; {mend}")
    if batch % shards:
        below = batch // shards * shards
        wanted = ", ".join(str(n) for n in (below, below + shards) if n)
        raise BadInput(f"data.batch_size: {batch} rows do not divide among {shards} data.shards; {wanted} would")
