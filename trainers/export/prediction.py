"""Predictions for any rows: by a run's checkpoint, or by the file that was exported of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Evaluate
from livetrain.modules.model import Model
from livetrain.modules.serving.scorer import Encoder, Scorer
from livetrain.trainers.data.read.decode import Decoder
from livetrain.trainers.data.read.files import check_columns, settled, wanted_columns
from livetrain.trainers.data.read.records import Columns
from livetrain.trainers.export.export import plain_model
from livetrain.trainers.runtime import manifest, run_folder

CHUNK = 8192  # rows that are scored at once
Side = Literal["user", "item"]


class Predictor:
    """What predicts for tables of rows: columns in, one more column per task out, or one vector per row.

    Args:
        run: the run's folder.
        source: ``best`` or ``last`` of its checkpoints, or the folder of an export of it.
        vectors: answer the vectors of this side, of a model with two towers, in the place of predictions.

    Attributes:
        recipe: the run's, without tasks' labels: rows need not have any.
        names: the columns that it adds.
        identity: says which weights these are.

    Raises:
        BadInput: there is no such checkpoint or export, it is damaged, or the model has no towers.
    """

    def __init__(self, run: Path, source: str | Path = "best", vectors: Side | None = None) -> None:
        whole = run_folder.recipe_of(run)
        towers = Model(whole, device="meta", tables_device="meta").dense.network.towers
        if vectors and towers is None:
            raise BadInput(f"vectors: model.kind '{whole.model.kind}' has no towers; a model with two has, as dssm")
        self._model: nn.Module
        if source in ("best", "last"):
            path = run_folder.find_checkpoint(run, str(source))
            model = plain_model(whole, path)
            self._model = (Encoder(model, whole, vectors) if vectors else Scorer(model, whole)).eval()
        else:
            path = Path(source)
            self._model = _exported(path, vectors)
        self.vectors = vectors
        self.identity = {"source": str(path.resolve()), "files": run_folder.content(path)["files"]}
        # A row's labels, weights and group are nobody's business here, nor are the other tower's features.
        named = whole.features if towers is None or not vectors else dict.fromkeys(towers.names[vectors])
        features = {name: whole.features[name] for name in whole.features if name in named}
        self.recipe = whole.model_copy(update={"tasks": {}, "evaluate": Evaluate(), "features": features})
        self.names = [f"{vectors}_vector"] if vectors else [f"{task}_score" for task in whole.tasks]
        self._decoder = Decoder(self.recipe, groups=False)
        self._wanted = wanted_columns(self.recipe)
        self._dense = [name for name, feature in self.recipe.features.items() if feature.carrier == "numbers"]

    @property
    def columns(self) -> list[str]:
        """The columns that rows must have."""
        return self._decoder.columns

    def check(self, schema: pa.Schema, name: str) -> None:
        """Raise BadInput where rows of a schema cannot be scored; `name` is theirs, for the message."""
        check_columns(name, schema, self._wanted)

    def predict(self, table: pa.Table, name: str = "the table") -> pa.Table:
        """Return the added columns for the rows of a table, in its order.

        Raises:
            BadInput: a column that the features need is missing, or is of another type.
        """
        plain = check_columns(name, table.schema, self._wanted)
        schema = settled(plain, self._wanted)
        fitting = pa.Table.from_arrays([table.column(field.name).cast(field.type) for field in schema], schema=schema)
        columns = self._decoder.decode(fitting.combine_chunks(), 0)
        parts: list[list[np.ndarray]] = [[] for _ in self.names]
        with torch.inference_mode():
            for inputs in _chunks(columns, self._decoder.keys, self._dense, table.num_rows):
                for part, found in zip(parts, self._scored(inputs), strict=True):
                    part.append(found.float().numpy())
        return pa.table([_array(part, self.vectors is not None) for part in parts], names=self.names)

    def _scored(self, inputs: tuple[dict[str, Tensor], ...]) -> list[Tensor]:
        found = self._model(*inputs)
        return [found] if self.vectors else list(found.values())


def _exported(folder: Path, vectors: Side | None) -> nn.Module:
    """Load an export's file once its hashes are right."""
    found = manifest.read(folder)
    file = f"{vectors or 'model'}.pt"
    if found is None or file not in found["files"]:
        raise BadInput(f"{folder}: holds no export with {file}; name an export's folder, or --checkpoint best or last")
    if damage := manifest.damage(folder, found):
        raise BadInput(f"{damage}; export the run again")
    return torch.jit.load(str(folder / file)).eval()


def _chunks(columns: Columns, keys: list[str], dense: list[str], rows: int) -> Iterator[tuple[dict[str, Tensor], ...]]:
    """Yield decoded rows as the scorer takes them, CHUNK rows at a time: ids, lengths and numbers by feature."""
    for start in range(0, rows, CHUNK):
        stop = min(start + CHUNK, rows)
        ids, lengths = {}, {}
        for key, column in zip(keys, columns.ids, strict=True):
            first, last = (start, stop) if column.offsets is None else column.offsets[[start, stop]].tolist()
            counts = np.ones(stop - start, np.int64)
            if column.offsets is not None:
                counts = np.diff(column.offsets[start : stop + 1]).astype(np.int64)
            ids[key], lengths[key] = torch.tensor(column.values[first:last]), torch.from_numpy(counts)
        numbers = {name: torch.tensor(values[start:stop]) for name, values in zip(dense, columns.floats, strict=False)}
        yield ids, lengths, numbers


def _array(parts: list[np.ndarray], vectors: bool) -> pa.Array:
    if not vectors:
        return pa.array(np.concatenate(parts) if parts else np.zeros(0, np.float32), pa.float32())
    if not parts:
        return pa.array([], pa.list_(pa.float32()))
    whole = np.concatenate(parts)
    return pa.FixedSizeListArray.from_arrays(pa.array(whole.ravel(), pa.float32()), whole.shape[1])


def score(predictor: Predictor, table: Any) -> Any:
    """Return a table (pyarrow) or frame (pandas) with the predictions as further columns, in the same order."""
    given = table if isinstance(table, pa.Table) else pa.Table.from_pandas(table, preserve_index=False)
    clash = sorted({*predictor.names} & {*given.column_names})
    if clash:
        raise BadInput(f"the table has a column '{clash[0]}' already; drop or rename it")
    found = predictor.predict(given)
    if given is table:
        for name in found.column_names:
            table = table.append_column(name, found.column(name))
        return table
    return table.assign(**{name: found.column(name).to_pandas().to_numpy() for name in found.column_names})
