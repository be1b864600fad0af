"""The checks that a run makes of its own columns before it starts, on samples: a second, whatever the data's size.

Only what is certainly wrong is refused: an outcome of the row as a feature, by its name or because it equals a label.
"""

import itertools
import json
import math
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.checks import leaks
from livetrain.trainers.data.checks.dataset import PIECE, bounded, picked, spaced
from livetrain.trainers.data.checks.findings import Verdict, listed, share
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.columns import IdKind, is_text
from livetrain.trainers.data.read.files import open_filesystem
from livetrain.trainers.data.read.source import CorruptGroup, RowGroup, Source
from livetrain.trainers.data.read.spread import in_threads
from livetrain.trainers.data.read.statistics import Statistics
from livetrain.trainers.data.write import layout

PROBED = 32_768  # rows of train/ that are probed, and rows of each other split that are looked at
CROWDED = 0.5  # share of ids that share their row with another, from which on it is said
ROOM = 0.9  # of the rows of a table of ids: as full as it becomes before ids find no room
KNOWN = 1_048_576  # rows of train/ whose ids count as seen


def refuse_outcomes(recipe: Recipe) -> None:
    """Raise BadInput where a feature reads a label: a task's, or one that dataset.json lists under roles."""
    outcomes = dict.fromkeys(_labels(recipe), f"{layout.MANIFEST} lists it under roles.labels")
    outcomes |= {task.label: f"tasks.{name}.label" for name, task in recipe.tasks.items()}
    for name in recipe.features:
        for column in recipe.reads(name):
            if column in outcomes:
                raise BadInput(
                    f"features.{name}: column '{column}' is an outcome of the row ({outcomes[column]}), so the model "
                    "would be given its answer; remove the feature"
                )


def examine(
    recipe: Recipe, sources: dict[str, Source], statistics: dict[str, Statistics], note: Callable[[str], None]
) -> None:
    """Note label rates, nulls, unseen ids and the best single column for each label.

    Args:
        recipe: the run.
        sources: its splits; the first is learned from.
        statistics: of each split.
        note: told each sentence.

    Raises:
        BadInput: a feature equals a label on every sampled row, or its ids are strings in one split and numbers in
            another.
    """
    check_alike(recipe, sources)
    splits = list(sources)
    for task in recipe.tasks:
        rates = ", ".join(f"{_rate(statistics[split].rate[task])} in {split}" for split in splits)
        unknown = {split: statistics[split].unknown.get(task, 0.0) for split in splits}
        late = ", ".join(f"{share(value)} of {split}" for split, value in unknown.items() if value)
        note(f"label {task}: mean {rates}{f'; not known yet in {late}' if late else ''}")
    columns = list(dict.fromkeys(column for name in recipe.features for column in recipe.reads(name)))
    labels = list(dict.fromkeys(task.label for task in recipe.tasks.values()))
    skip = recipe.data.on_corrupt == "skip"
    train = read(sources[splits[0]], [*columns, *labels], PROBED, skip)
    later = {split: read(sources[split], columns, PROBED, skip) for split in splits[1:]}
    train = _with_ages(recipe, train)
    _refuse_copies(recipe, train)
    nulls = [text for name in columns if (text := _nulls(name, {splits[0]: train} | later))]
    if nulls:
        note(f"nulls: {'; '.join(nulls[:3])}{f'; {len(nulls) - 3} more columns' if len(nulls) > 3 else ''}")
    _note_beyond(recipe, sources, note)
    _note_crowded(recipe, statistics[splits[0]].distinct, note)
    _note_unseen(recipe, sources[splits[0]], statistics[splits[0]].rows, later, note)
    probed = list(dict.fromkeys(column for name in recipe.features for column in _told_by(recipe, name)))
    found = leaks.check(leaks.probe(train, probed, labels), labels)
    for finding in found:
        loud = "" if finding.verdict == Verdict.ok else f"{finding.verdict.value}: "
        note(f"{loud}leakage probe of {finding.subject}: {finding.text}")


def check_alike(recipe: Recipe, sources: dict[str, Source]) -> None:
    """Raise BadInput where a split, or a catalogue, has strings and another numbers: of "7" and 7 the ids differ."""
    folders: dict[str, dict[IdKind, str]] = {}
    for source in sources.values():
        for name, kind in source.id_kinds(recipe).items():
            folders.setdefault(name, {}).setdefault(kind, source.folder)
    for name, found in folders.items():
        if len(found) == 2:
            raise BadInput(
                f"features.{name}: column '{recipe.column(name)}' holds strings in {found['strings']} and integers in "
                f"{found['integers']}, so their ids have nothing in common; write all splits with one schema"
            )


def _labels(recipe: Recipe) -> list[str]:
    """Return the labels that the dataset's manifest names; none where there is no manifest to read."""
    filesystem, root = open_filesystem(recipe.data.path)
    try:
        with filesystem.open_input_stream(f"{root}/{layout.MANIFEST}") as file:
            roles = json.loads(file.read()).get("roles", {})
    except (OSError, pa.ArrowException, ValueError, AttributeError):
        return []
    return list(roles.get("labels", [])) if isinstance(roles, dict) else []


def read(source: Source, columns: list[str], most: int, skip: bool) -> pa.Table:
    """Return about `most` rows, always the same ones: evenly spaced stretches of PIECE rows, or row groups if smaller.

    They are fewer where lists are long: of each stretch the first rows, as `bounded` says.

    Args:
        source: the split.
        columns: that are wanted.
        most: rows.
        skip: whether row groups that do not decode are left out.
    """
    candidates = 1 if source.candidates is None else source.candidates.most
    piece = max(PIECE // candidates, 1)  # stored rows
    whole = max(source.rows / len(source.groups), 1)
    wanted = math.ceil(most / candidates / min(whole, piece))
    chosen = [source.groups[place] for place in spaced(len(source.groups), wanted)]
    each = math.ceil(most / candidates / piece / len(chosen))
    pieces = sum(min(each, math.ceil(group.rows / piece)) for group in chosen)

    def read(group: RowGroup) -> pa.Table:
        try:
            found = picked(source.stretches(group, columns, piece), group.rows, each, piece)
            return pa.concat_tables(bounded(table, pieces) for table in found)
        except (BadInput, pa.ArrowException, OSError):
            pass
        try:
            return source.read(group, columns)  # which says what is wrong, if it is wrong once more
        except CorruptGroup:
            if not skip:
                raise
            return pa.schema([source.schema.field(name) for name in columns]).empty_table()

    return pa.concat_tables(in_threads(read, chosen))


def _told_by(recipe: Recipe, feature: str) -> list[str]:
    """Return the columns that a feature reads, and what it makes of two: a visit's times may tell nothing alone."""
    columns = recipe.columns(feature)
    return [*recipe.reads(feature), *([" until ".join(columns)] if len(columns) > 1 else [])]


def _with_ages(recipe: Recipe, train: pa.Table) -> pa.Table:
    """Return the rows with what `_told_by` names beside the columns that features read."""
    for name, feature in recipe.features.items():
        columns = recipe.columns(name)
        if len(columns) > 1 and (made := _told_by(recipe, name)[-1]) not in train.column_names:
            ages = carry.numbers(name, feature, [carry.whole(train[column]) for column in columns], "train")
            train = train.append_column(made, pa.array(ages, from_pandas=True))
    return train


def _refuse_copies(recipe: Recipe, train: pa.Table) -> None:
    for name in recipe.features:
        for (task, wanted), column in itertools.product(recipe.tasks.items(), _told_by(recipe, name)):
            if leaks.is_copy(train[column], train[wanted.label]):
                raise BadInput(
                    f"features.{name}: column '{column}' equals '{wanted.label}' (tasks.{task}.label) on "
                    f"every one of {len(train):,} sampled rows, so the model would be given its answer; "
                    "remove the feature"
                )


def _nulls(column: str, samples: dict[str, pa.Table]) -> str | None:
    shares = {split: table[column].null_count / max(len(table), 1) for split, table in samples.items()}
    if not any(shares.values()):
        return None
    return f"{column} {', '.join(f'{share(value)} of {split}' for split, value in shares.items())}"


def _note_beyond(recipe: Recipe, sources: dict[str, Source], note: Callable[[str], None]) -> None:
    """Say which ids that `hash: modulo` takes as they are lie beyond their table's rows, by the Parquet footers."""
    for name, feature in recipe.features.items():
        table = feature.looks_up()
        if table is None or recipe.tables[table].hash != "modulo" or not feature.plain:
            continue
        rows, beyond = recipe.tables[table].rows, []
        for split, source in sources.items():
            found = source.id_range(recipe.column(name))
            if found is not None and not (found[0] >= 0 and found[1] < rows):
                beyond.append(f"from {found[0]:,} to {found[1]:,} in {split}")
        if beyond:
            note(
                f"look: features.{name}: ids {', '.join(beyond)}, and tables.{table} has rows for 0 to {rows - 1:,} "
                "alone: with hash: modulo the others share them (id mod rows); raise rows, or use hash: mix"
            )


def _note_crowded(recipe: Recipe, distinct: dict[str, float], note: Callable[[str], None]) -> None:
    """Say where many ids share a row of a hashed table: n ids in R rows, of which 1 - e^(-n/R) do.

    Of a table of ids, where there are more than find room in its buckets.
    """
    worst: dict[str, tuple[float, str]] = {}
    for name, feature in recipe.features.items():
        table, column = feature.looks_up(), recipe.column(name)
        if table is not None and column in distinct and recipe.tables[table].hash != "modulo":
            worst[table] = max(worst.get(table, (0.0, "")), (distinct[column], column))
    for table, (count, column) in worst.items():
        rows = recipe.tables[table].rows
        if recipe.tables[table].hash == "table":
            if count > (room := ROOM * 8 * recipe.tables[table].buckets):
                note(
                    f"look: tables.{table}: about {float(f'{count:.2g}'):,.0f} ids of column {column} want rows of "
                    f"their own, and there is room for {room:,.0f}; the others are refused, or evict one another"
                )
            continue
        if (shared := 1 - math.exp(-count / rows)) > CROWDED:
            note(
                f"look: tables.{table}: the {rows:,} rows are shared by about {float(f'{count:.2g}'):,.0f} ids of "
                f"column {column}, {share(shared)} of which meet another one in their row; "
                f"rows: {math.ceil(count / -math.log1p(-CROWDED)):,} would leave {share(CROWDED)}"
            )


def _note_unseen(
    recipe: Recipe, train: Source, rows: int, later: dict[str, pa.Table], note: Callable[[str], None]
) -> None:
    ids = [recipe.column(name) for name, f in recipe.features.items() if f.form == "id" and f.plain and not f.lists]
    ids = list(dict.fromkeys(ids))
    if not ids:
        return
    known = read(train, ids, KNOWN, recipe.data.on_corrupt == "skip")
    most = "" if len(known) == rows else f", measured on {len(known):,} rows of it, so at most that"
    found = []
    for column in ids:
        seen = pc.unique(_wide(known[column]))
        shares = {split: _unseen(table[column], seen) for split, table in later.items()}
        if any(shares.values()):
            found.append(
                (max(shares.values()), f"{column} {', '.join(f'{share(v)} of {s}' for s, v in shares.items())}")
            )
    texts = [text for _, text in sorted(found, reverse=True)]
    note(f"ids not in train: {listed(texts) if texts else 'none'}{most}")


def _unseen(column: pa.ChunkedArray, seen: pa.Array) -> float:
    column = _wide(column.drop_null())
    return 1 - pc.sum(pc.is_in(column, value_set=seen)).as_py() / len(column) if len(column) else 0.0


def _wide(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ids as int64, for a split may store them in fewer bits than another; strings as they are."""
    return ids if is_text(ids.type) else ids.cast(pa.int64())


def _rate(value: float) -> str:
    return f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"
