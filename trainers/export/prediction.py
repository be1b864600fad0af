"""Predictions for any rows: by a run's checkpoint, or by the file that was exported of it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import FUSED, Evaluate, Recipe
from livetrain.modules.fitted import fitted
from livetrain.modules.model import Model
from livetrain.modules.recall.inverted import ROWS
from livetrain.modules.serving.loading import load
from livetrain.modules.serving.scorer import Encoder, Scorer
from livetrain.trainers.data.read.columns import (
    check_columns,
    flat_schema,
    id_kinds,
    is_null,
    of_candidates,
    settled,
    wanted_columns,
)
from livetrain.trainers.data.read.decode import Decoder
from livetrain.trainers.data.read.files import short
from livetrain.trainers.data.read.records import Columns, running
from livetrain.trainers.data.read.requests import Candidates
from livetrain.trainers.export.export import plain_model
from livetrain.trainers.export.fitted import learned
from livetrain.trainers.export.fusion import fused_of
from livetrain.trainers.runtime import manifest, run_folder
from livetrain.trainers.train import compatible

CHUNK = 8192  # rows that are scored at once
_ANY = 2**31 - 1  # candidates of a request: no batch has to hold so many
Side = Literal["user", "item"]


@dataclass(frozen=True)
class Weights:
    """Which weights predict, for every process that takes part.

    Attributes:
        run: the run's folder, for its recipe.
        folder: the checkpoint, or the export.
        exported: whether it is an export.
        digest: of all its files; another one would be another model.
        vectors: which tower's vectors are wanted in the place of predictions.
        ids: of each feature what its ids were in training, as far as the weights tell.
    """

    run: Path
    folder: Path
    exported: bool
    digest: str
    vectors: Side | None = None
    ids: tuple[tuple[str, str], ...] = ()


def weights_of(run: Path, source: str | Path = "best", vectors: Side | None = None) -> Weights:
    """Find the weights of a run.

    Args:
        run: the run's folder.
        source: ``best`` or ``last`` of its checkpoints, or the folder of an export of it.
        vectors: answer the vectors of this side, of a model with two towers, in the place of predictions.

    Raises:
        BadInput: there is no such checkpoint or export, or it is another run's; or the model has no towers.
    """
    run_folder.check(run)
    recipe, exported = run_folder.recipe_of(run), source not in ("best", "last")
    if vectors and _towers(recipe) is None:
        raise BadInput(f"vectors: model.kind '{recipe.model.kind}' has no towers; a model with two has, as dssm")
    folder = Path(source) if exported else run_folder.find_checkpoint(run, str(source))
    found = manifest.read(folder)
    if exported:
        _check_export(folder, found, _file(recipe, vectors), recipe)
    ids = tuple(_ids_of(folder, exported).items())
    return Weights(run.resolve(), folder.resolve(), exported, _digest(found), vectors, ids)


def _file(recipe: Recipe, vectors: Side | None) -> str:
    """Return which file of an export is needed: a fitted model has one, whichever side of it is asked for."""
    return "model.pt" if recipe.model.finds or vectors is None else f"{vectors}.pt"


def _digest(found: dict[str, Any] | None) -> str:
    """Return the digest of what a manifest says of its files; "" where there is none."""
    return "" if found is None else hashlib.sha256(json.dumps(found["files"], sort_keys=True).encode()).hexdigest()


def _check_export(folder: Path, found: dict[str, Any] | None, file: str, recipe: Recipe) -> None:
    if found is None or file not in found["files"]:
        raise BadInput(f"{folder}: holds no export with {file}; name an export's folder, or --checkpoint best or last")
    if damage := manifest.damage(folder, found):
        raise BadInput(f"{damage}; export the run again")
    signature = json.loads((folder / "signature.json").read_text(encoding="utf-8"))
    parts = {"tasks": set(recipe.answered), "features": set(recipe.features), "tables": set(recipe.tables)}
    other = [key for key, own in parts.items() if set(signature[key]) != own]
    if other or signature["model"] != manifest.finite(recipe.model.model_dump(mode="json")):
        what = f"other {other[0]}" if other else "another model"
        raise BadInput(f"{folder}: is the export of another run, with {what}; name one of this run")


class Predictor:
    """What predicts for tables of rows: columns in, one more column per task out, or one vector per row.

    Args:
        weights: which; see `weights_of`.

    Attributes:
        recipe: the run's, but for tasks: rows need no labels.
        names: the columns that it adds.

    Raises:
        BadInput: the checkpoint is damaged, or there is another one in its place by now.
    """

    def __init__(self, weights: Weights) -> None:
        whole = run_folder.recipe_of(weights.run)
        self.vectors = weights.vectors
        self._model: Any = _load(weights, whole)
        # A row's labels, weights, group and negatives are nobody's business here, nor are the other tower's features.
        features = whole.features
        if self.vectors and (towers := _towers(whole)):
            own = set(towers[self.vectors])
            features = {name: feature for name, feature in features.items() if name in own}
        data = whole.data.model_copy(update={"negatives": None})
        asked = {"tasks": {}, "evaluate": Evaluate(), "data": data, "features": features}
        self.recipe = whole.model_copy(update=asked)
        self._trained_on = dict(weights.ids)
        fused = getattr(getattr(self._model, "answers", self._model), "fused", None)  # older exports have it themselves
        self._tasks = [*whole.answered, *([FUSED] if fused is not None else [])]
        self.names = [f"{self.vectors}_vector"] if self.vectors else [f"{task}_score" for task in self._tasks]
        bare = self.recipe.model_copy(update={"features": whole.features})
        self._decoder = Decoder(bare, groups=False, names=features)
        self._wanted = wanted_columns(self.recipe)
        self._dense = [name for name, feature in self.recipe.features.items() if feature.carrier == "numbers"]

    @property
    def model(self) -> Any:
        """What is called with ids, lengths and dense by feature."""
        return self._model

    @property
    def columns(self) -> list[str]:
        """The columns that rows must have."""
        return self._decoder.columns

    def check(self, schema: pa.Schema, name: str) -> None:
        """Raise BadInput where rows of a schema cannot be scored; `name` is theirs, for the message."""
        self._types(schema, name)

    def lists(self, schema: pa.Schema, name: str) -> bool:
        """Say whether rows of a schema are requests, of which each gets a list; `name` and errors as of `check`."""
        return bool(of_candidates(settled(self._types(schema, name), self._wanted), self._wanted))

    def _types(self, schema: pa.Schema, name: str) -> dict[str, pa.DataType]:
        types = check_columns(name, schema, self._wanted, self.recipe.data.layout == "request")
        stored = settled(types, self._wanted)
        flat = flat_schema(stored, of_candidates(stored, self._wanted))
        kinds = id_kinds(self.recipe, {field.name: field.type for field in flat})
        kinds = {feature: kind for feature, kind in kinds.items() if not is_null(types[self.recipe.column(feature)])}
        compatible.check_ids(self._trained_on, kinds, self.recipe, name)
        return types

    def predict(self, table: pa.Table, name: str = "the table") -> pa.Table:
        """Return the added columns for the rows of a table, in its order.

        Of a run on requests the table may hold requests, which get a list with a prediction of each candidate, or rows.

        Raises:
            BadInput: a column that the features need is missing, or is of another type.
        """
        fitting = self._fitting(table, name)
        requests = Candidates(of_candidates(fitting.schema, self._wanted), _ANY)
        counts = requests.counts(fitting, name) if requests.names else None
        rows = fitting if counts is None else requests.flattened(fitting, name)
        parts: list[list[np.ndarray]] = [[] for _ in self.names]
        with torch.inference_mode():
            for inputs in self._inputs(rows, name):
                for part, found in zip(parts, self._scored(inputs), strict=True):
                    part.append(found.float().numpy())
        made = [_array(np.concatenate(part)) for part in parts]
        if counts is not None:
            offsets = pa.array(running(counts), pa.int32())
            made = [pa.ListArray.from_arrays(offsets, part) for part in made]
        return pa.table(made, names=self.names)

    def ids_of(self, items: pa.Table, name: str) -> np.ndarray:
        """Return the ids of items, (n,) int64, of a model that is fitted; `vectors` is "item".

        Raises:
            BadInput: a row has none.
        """
        (feature,) = self.recipe.features
        parts = [ids[feature].numpy() for ids, _, _ in self._inputs(self._fitting(items, name), name)]
        if len(found := np.concatenate(parts)) != len(items):
            raise BadInput(f"{name}: column '{self.recipe.column(feature)}' is null in a row; give every item its id")
        return found

    def scores_of(self, table: pa.Table, name: str, items: np.ndarray, cells: int) -> Iterator[np.ndarray]:
        """Yield the scores of items for the rows of a table, (n, items) float32, of a model that is fitted.

        Args:
            table: the rows.
            name: of their file.
            items: (items,) ids.
            cells: scores that are in memory at once, at most, or those of a row.
        """
        known: np.ndarray = self._model.items.numpy()
        place = np.searchsorted(known, items).clip(max=max(len(known) - 1, 0))
        there = known[place] == items if len(known) else np.zeros(len(items), bool)
        rows, step = self._fitting(table, name), max(1, min(cells // max(len(known), len(items)), ROWS))
        for start in range(0, len(table), step):
            part = rows.slice(start, step)
            scores = np.zeros((len(part), len(items)), np.float32)
            with torch.inference_mode():
                for inputs in self._inputs(part, name) if there.any() else ():
                    scores[:, there] = self._model.of_all(*inputs).numpy()[:, place[there]]
            yield scores

    def _fitting(self, table: pa.Table, name: str) -> pa.Table:
        """Return the columns that the features need, in the types that they are decoded from."""
        schema = settled(self._types(table.schema, name), self._wanted)
        return pa.Table.from_arrays([table.column(field.name).cast(field.type) for field in schema], schema=schema)

    def _inputs(self, rows: pa.Table, name: str) -> Iterator[tuple[dict[str, Tensor], ...]]:
        """Yield rows as the model takes them, CHUNK rows at a time."""
        columns = self._decoder.decode(rows.combine_chunks(), 0, name)
        yield from chunks(columns, self._decoder, self._dense, rows.num_rows)

    def _scored(self, inputs: tuple[dict[str, Tensor], ...]) -> list[Tensor]:
        found = self._model(*inputs)
        return [found] if self.vectors else [found[task] for task in self._tasks]


@lru_cache(maxsize=1)
def predictor(weights: Weights) -> Predictor:
    """Return the predictor of some weights, which this process loads once."""
    return Predictor(weights)


def _load(weights: Weights, recipe: Recipe) -> nn.Module:
    if _digest(manifest.read(weights.folder)) != weights.digest:
        raise BadInput(f"{weights.folder}: is gone, or another model is in its place by now; start again")
    if weights.exported:
        return load(weights.folder, _file(recipe, weights.vectors))
    fused = fused_of(weights.run, recipe, weights.folder)
    if recipe.model.fitted:
        return learned(recipe, weights.folder, fused)
    model = plain_model(recipe, weights.folder)
    return (Encoder(model, recipe, weights.vectors) if weights.vectors else Scorer(model, recipe, fused=fused)).eval()


def _ids_of(folder: Path, exported: bool) -> dict[str, str]:
    if not exported:
        return run_folder.content(folder).get("ids", {})
    features = json.loads((folder / "signature.json").read_text(encoding="utf-8"))["features"]
    return {name: feature["ids"] for name, feature in features.items() if "ids" in feature}


def _towers(recipe: Recipe) -> dict[str, list[str]] | None:
    """Return the features of each tower of a recipe's model, or of each side of one that is fitted; None of others."""
    if (model := fitted(recipe)) is not None:
        return {"user": model.features, "item": [model.key]} if recipe.model.finds else None
    towers = Model(recipe, device="meta", tables_device="meta").dense.network.towers
    return None if towers is None else towers.names


def chunks(columns: Columns, decoder: Decoder, dense: list[str], rows: int) -> Iterator[tuple[dict[str, Tensor], ...]]:
    """Yield decoded rows as the scorer takes them, CHUNK rows at a time: ids, lengths and numbers by feature."""
    beside = {name: decoder.numbers(columns, name) for name in decoder.beside}
    for start in range(0, max(rows, 1), CHUNK):  # without rows one chunk of none, which tells a vector's width
        stop = min(start + CHUNK, rows)
        ids, lengths = {}, {}
        numbers = {name: torch.tensor(values[start:stop]) for name, values in zip(dense, columns.floats, strict=False)}
        for key, column in zip(decoder.keys, columns.ids, strict=False):
            values, counts = column.cut(start, stop)
            ids[key], lengths[key] = torch.tensor(values), torch.from_numpy(counts)
            if key in beside:
                numbers[key] = torch.tensor(column._replace(values=beside[key]).cut(start, stop)[0])
        yield ids, lengths, numbers


def _array(values: np.ndarray) -> pa.Array:
    """Return (n,) predictions, or (n, width) or (n, interests, width) vectors, as a column."""
    made = pa.array(values.ravel(), pa.float32())
    for size in reversed(values.shape[1:]):
        made = pa.FixedSizeListArray.from_arrays(made, size)
    return made


def score(predictor: Predictor, table: Any) -> Any:
    """Return a table (pyarrow) or frame (pandas) with the predictions as further columns, in the same order."""
    names = table.column_names if isinstance(table, pa.Table) else list(table.columns)
    if clash := sorted({*predictor.names} & {*names}):
        raise BadInput(f"the table has a column '{clash[0]}' already; drop or rename it")
    if isinstance(table, pa.Table):
        for name, column in zip(predictor.names, predictor.predict(table).columns, strict=True):
            table = table.append_column(name, column)
        return table
    needed = [name for name in predictor.columns if name in names]
    try:
        given = pa.Table.from_pandas(table[needed], preserve_index=False)
    except pa.ArrowException as error:
        raise BadInput(f"the table: {short(error)}; give its columns one type each") from error
    found = predictor.predict(given)
    columns = {name: found.column(name).to_pandas().to_numpy() for name in found.column_names}
    return table.assign(**columns)
