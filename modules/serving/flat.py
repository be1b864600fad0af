"""What scores as a function of a flat list of tensors, for files that take no dicts: .pt2 and ONNX.

The list is made here alone, and signature.json has it as `flat`:

    inputs   by order {"name": "ids.X", "lengths.X" or "dense.X" (as the dicts of `Scorer.forward` hold it), "dtype",
             "width" (numbers of an entry; above 1 the tensor is (n, width)), "limit" of ids}
    once     features of which `rank` takes one row; of all others it takes one per candidate
    outputs  by order, (B,) float32 each; of a tower "vectors"
    ways     "forward" and "rank"; of a tower "forward" alone

A flat function asks no tensor which way to go, so what `Ids` asks is its caller's affair, and of `Columns` here: all
lengths are given, and add up to the number of ids; a list has at most `limit` ids, and where that is 0 one or none.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from livetrain.configs.schema import Recipe
from livetrain.modules.fusion import FUSED
from livetrain.modules.serving.inputs import Ids, numbers_of, same_rows
from livetrain.modules.serving.scorer import Features, Scorer

Way = Literal["forward", "rank"]
_ROWS, _EVENTS = 7, 12  # of the example: 0 and 1 would count as sizes that never change


def inputs(recipe: Recipe, names: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Return what a flat function of a recipe's features, or of some of them, takes, in its order."""
    found: list[dict[str, Any]] = []
    for name, feature in recipe.features.items():
        if names is not None and name not in names:
            continue
        if feature.carrier == "ids":
            limit = feature.limit if feature.lists else 0
            found.append({"name": f"ids.{name}", "dtype": "int64", "width": 1, "limit": limit})
            found.append({"name": f"lengths.{name}", "dtype": "int64", "width": 1})
            if (beside := recipe.beside(name)) is not None:
                found.append({"name": f"dense.{name}", "dtype": "float32", "width": beside[1]})
        elif feature.carrier == "numbers":
            found.append({"name": f"dense.{name}", "dtype": "float32", "width": feature.numbers})
    return found


def once(recipe: Recipe) -> list[str]:
    """Return the features of which `rank` takes one row: all but the candidate's, where the recipe says which those
    are; else the sequences, which are what repeating would cost."""
    if recipe.export.candidate is not None:
        return [name for name in recipe.features if name not in recipe.export.candidate]
    return [name for name, feature in recipe.features.items() if feature.form == "sequence"]


def about(module: Features, recipe: Recipe) -> dict[str, Any]:
    """Return what `flat` of signature.json holds of a module."""
    found: dict[str, Any] = {"inputs": inputs(recipe, module.names)}
    if not isinstance(module, Scorer):
        return found | {"once": [], "outputs": ["vectors"], "ways": ["forward"]}
    fused = [] if module.answers.fused is None else [FUSED]
    return found | {"once": once(recipe), "outputs": [*module.answers.kinds, *fused], "ways": ["forward", "rank"]}


class Flat(nn.Module):
    """A `Scorer` or `Encoder` as a function of a flat list.

    Args:
        module: with its tables.
        names: of the inputs, by order.
        way: which method.
    """

    def __init__(self, module: Features, names: Sequence[str], way: Way) -> None:
        super().__init__()
        self.module, self.names, self.way = module, list(names), way

    def forward(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """Args: columns, by order. Returns: by order."""
        parts: dict[str, dict[str, Tensor]] = {"ids": {}, "lengths": {}, "dense": {}}
        for name, column in zip(self.names, columns, strict=True):
            part, _, feature = name.partition(".")
            parts[part][feature] = column
        found = getattr(self.module, self.way)(*parts.values())
        return (found,) if isinstance(found, Tensor) else tuple(found.values())


def exported(module: Features, recipe: Recipe, way: Way) -> ExportedProgram:
    """Return what torch.export records of a module, for any numbers of rows and ids. Its tensors are the module's.

    Args:
        module: a `Scorer` or `Encoder` in evaluation mode, with its tables.
        recipe: its recipe.
        way: "rank" or "forward", which is all that an `Encoder` has.

    Raises:
        ValueError: a size would be that of the example.
    """
    taken = inputs(recipe, module.names)
    shared = {*once(recipe)} if way == "rank" else set()
    columns: list[Tensor] = []
    sizes: list[dict[int, Any]] = []
    for column in taken:
        part, _, name = column["name"].partition(".")
        of_ids = part == "ids" or recipe.features[name].carrier == "ids"
        rows = 1 if name in shared else _ROWS
        size = rows if part == "lengths" or not of_ids else _EVENTS
        shape = [size] if column["width"] == 1 else [size, column["width"]]
        columns.append(torch.zeros(shape, dtype=getattr(torch, column["dtype"])))
        sizes.append({} if size == 1 else {0: Dim.AUTO})
    flat = Flat(module, [column["name"] for column in taken], way).eval()
    with torch.no_grad():
        program = export(flat, tuple(columns), dynamic_shapes=(tuple(sizes),), strict=False)
    found = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    for column, dynamic, node in zip(taken, sizes, found, strict=True):
        if dynamic and isinstance(node.meta["val"].size(0), int):
            raise ValueError(f"'{column['name']}' would have {node.meta['val'].size(0)} entries in every call")
    return program


class Columns:
    """From the dicts that a caller gives to what a flat function takes: checked, cut, and by order.

    Args:
        about: `flat` of signature.json.

    Example:
        >>> columns = Columns({"inputs": [{"name": "ids.seen", "width": 1, "limit": 2},
        ...     {"name": "lengths.seen", "width": 1}, {"name": "dense.age", "width": 1}], "once": ["seen"]})
        >>> seen, age = torch.tensor([7, 8, 9]), torch.tensor([1.0, 2.0])
        >>> columns.rank({"seen": seen}, {"seen": torch.tensor([3])}, {"age": age})
        ('rank', [tensor([8, 9]), tensor([2]), tensor([1., 2.])])
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        given = {column["name"]: column for column in about["inputs"]}
        self._names, self._once = list(given), about["once"]
        self._ids: list[Ids] = []
        self._numbers: dict[str, int] = {}
        for key, column in given.items():
            part, _, name = key.partition(".")
            if part == "ids":
                beside = given.get(f"dense.{name}", {"width": 0})["width"]
                self._ids.append(Ids(name, column["limit"], beside, None))
            elif part == "dense" and f"ids.{name}" not in given:
                self._numbers[name] = column["width"]

    def forward(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> list[Tensor]:
        """Return rows by order; arguments and errors as of `Scorer.forward`."""
        found, _ = self._read(ids, lengths, dense, False)
        return [column for columns in found.values() for column in columns]

    def rank(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Way, list[Tensor]]:
        """Return candidates by order, and the way that takes them: `forward` where a feature that `rank` takes once
        comes once per candidate. Arguments and errors as of `Scorer.rank`."""
        found, rows = self._read(ids, lengths, dense, True)
        size = next((count for count in rows.values() if count != 1), 1)
        whole = any(rows[name] != 1 for name in self._once)
        for name, columns in found.items():
            if rows[name] != size and (whole or name not in self._once):
                found[name] = [column.repeat([size] + [1] * (column.dim() - 1)) for column in columns]
        return "forward" if whole else "rank", [column for columns in found.values() for column in columns]

    def _read(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor], shared: bool
    ) -> tuple[dict[str, list[Tensor]], dict[str, int]]:
        """Return each feature's columns, and its number of rows."""
        read: dict[str, list[Tensor]] = {}
        rows: dict[str, int] = {}
        for feature in self._ids:
            value, length, beside = feature(ids, lengths, dense)
            read[feature.name] = [value, length] + ([] if beside is None else [beside])
            rows[feature.name] = length.size(0)
        for name, width in self._numbers.items():
            read[name] = [numbers_of(dense, name, width)]
            rows[name] = read[name][0].size(0)
        size, first = -1, ""
        for name, count in rows.items():
            size, first = same_rows(size, first, count, name, shared)
        order = dict.fromkeys(name.partition(".")[2] for name in self._names)
        return {name: read[name] for name in order}, rows
