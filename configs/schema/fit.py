"""What must hold between a recipe's sections, each of which is sound alone."""

from typing import TYPE_CHECKING

from livetrain.configs import formula, registry
from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema.cluster import Cluster
from livetrain.configs.schema.feature import Feature
from livetrain.configs.schema.fusion import FUSED
from livetrain.configs.schema.table import BY_COLUMNS, MOST_ADMITTED, POOLED_ALONE, SLOTS, Table
from livetrain.configs.schema.task import Follower
from livetrain.configs.schema.train import Train

if TYPE_CHECKING:
    from livetrain.configs.schema.recipe import Recipe

_OF_STEPS = ("epochs", "patience", "checkpoint_every", "copies", "precision", "accumulate", "compile", "profile")


def check(recipe: "Recipe") -> None:
    """Raise BadInput where sections do not go together; `data` is already that of the run's ranks."""
    if recipe.model.fitted:
        _check_fitted(recipe)
    _check_tables(recipe)
    _check_parts(recipe)
    _check_vectors(recipe)
    _check_sharding(recipe)
    _check_arithmetic(recipe)
    _check_followers(recipe)
    _check_gradients(recipe)
    _check_rows(recipe)
    _check_groups(recipe)
    _check_negatives(recipe)
    _check_division(recipe)
    _check_slices(recipe)
    _check_fusion(recipe)
    check_candidate(recipe)


def check_candidate(recipe: "Recipe") -> None:
    """Refuse a feature of the candidate that there is not."""
    for name in recipe.export.candidate or []:
        if name not in recipe.features:
            raise BadInput(f"export.candidate: there is no feature '{name}'{nearest(name, recipe.features)}")


def _check_fusion(recipe: "Recipe") -> None:
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


def _check_slices(recipe: "Recipe") -> None:
    for name in recipe.evaluate.slices:
        if name in recipe.tasks:
            raise BadInput(
                f"evaluate.slices.{name}: a task has this name, and figures go by it; name the slice otherwise"
            )


def _check_fitted(recipe: "Recipe") -> None:
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


def _check_tables(recipe: "Recipe") -> None:
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


def _check_admitted(name: str, declared: Table, recipe: "Recipe") -> None:
    """Refuse what does not go together with a table of admitted ids, and its keys for any other table."""
    if declared.hash != "table":
        for key in ("admission", "assign", "eviction", "shared"):
            if getattr(declared, key) not in (None, "before"):
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
    if declared.assign == "online" and declared.memory == "host":
        raise BadInput(
            f"tables.{name}.assign: 'online' begins rows anew between steps, and those of memory: host are fetched "
            "ahead of them; use assign: before, or memory: gpu"
        )
    if declared.rows > MOST_ADMITTED and declared.assign == "before":
        raise BadInput(
            f"tables.{name}.rows: with hash: table every rank holds 8 bytes for each row, and rows end at "
            f"{MOST_ADMITTED:,}; use fewer, or assign: online"
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


def _check_parts(recipe: "Recipe") -> None:
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


def _check_vectors(recipe: "Recipe") -> None:
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


def _check_sharding(recipe: "Recipe") -> None:
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


def _check_arithmetic(recipe: "Recipe") -> None:
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


def _check_followers(recipe: "Recipe") -> None:
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


def _check_gradients(recipe: "Recipe") -> None:
    if len(recipe.tasks) > 1:
        return
    if recipe.gradients.kind != "sum":
        raise BadInput(
            f"gradients.kind: '{recipe.gradients.kind}' combines the gradients of several tasks, and "
            f"'{next(iter(recipe.tasks))}' is the only one; add tasks, or use kind: sum"
        )
    if getattr(recipe.gradients, "measure_every", None):
        raise BadInput("gradients.measure_every: one task has no other to be compared with; add tasks, or leave it out")


def _check_rows(recipe: "Recipe") -> None:
    """Refuse to compare gradients row by row where that is not done, or a table's place would tell whether it is."""
    gradients = recipe.gradients
    if gradients.scope != "rows":
        return
    if not registry.COMBINERS.owner(gradients.kind).by_rows:
        able = [kind for kind in registry.COMBINERS if registry.COMBINERS.owner(kind).by_rows]
        raise BadInput(
            f"gradients.scope: '{gradients.kind}' does not compare gradients row by row; use scope: shared, or kind: "
            f"{', '.join(able)}"
        )
    for name, table in recipe.tables.items():
        if table.sharding != "data_parallel" and not table.frozen:
            raise BadInput(
                f"gradients.scope: rows compares gradients in tables that every worker holds whole, and '{name}' may "
                f"be spread over them; write sharding: data_parallel in tables.{name}, or use scope: shared"
            )


def _check_groups(recipe: "Recipe") -> None:
    for task, column in recipe.groups().items():
        if not column:
            raise BadInput(
                f"tasks.{task}.group: kind {recipe.tasks[task].kind} compares the rows of a group, and nothing says "
                "which those are; name the column of the groups here, or in evaluate.group_by"
            )


def _check_negatives(recipe: "Recipe") -> None:
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


def check_batch(recipe: "Recipe") -> None:
    """Refuse a batch that would change with the workers of a range: what is learned must not."""
    rows, cluster = recipe.data.batch_size_per_worker, recipe.cluster
    if rows is not None and cluster.elastic:
        raise BadInput(
            "data.batch_size_per_worker: with a range of workers a step has the same rows whatever their number; write "
            f"data.batch_size: {rows * cluster.most}, which is {rows} on each of {cluster.most}"
        )


def _check_counts(recipe: "Recipe") -> None:
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


def _check_division(recipe: "Recipe") -> None:
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
