"""What scores as a function of a flat list of tensors, for files that take no dicts: .pt2 and ONNX.

The list is made here alone, and signature.json has it as `flat`:

    inputs   by order {"name": "ids.X", "lengths.X" or "dense.X" (as the dicts of `Scorer.forward` hold it), "dtype",
             "width" (numbers of an entry; above 1 the tensor is (n, width)), "limit"}
    once     features of which `rank` takes one row; of all others it takes one per candidate
    outputs  by order, (B,) float32 each; of a tower "vectors"

A flat function asks no tensor which way to go, so what `Ids` asks is its caller's affair: lengths are given, and add up
to the number of ids; a list has no more ids than its `limit`, the newest last; an id feature (`limit` 1) one or none.
"""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from livetrain.configs.schema import Recipe
from livetrain.modules.fusion import FUSED
from livetrain.modules.serving.scorer import Encoder, Features, Scorer

Way = Literal["forward", "rank"]
_ROWS, _EVENTS = 7, 12  # of the example: 0 and 1 would count as sizes that never change


def inputs(recipe: Recipe, names: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Return what a flat function of a recipe's features, or of some of them, takes, in its order."""
    found: list[dict[str, Any]] = []
    for name, feature in recipe.features.items():
        if names is not None and name not in names:
            continue
        if feature.carrier == "ids":
            limit = feature.limit if feature.lists else 1
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


def outputs(module: Features) -> list[str]:
    """Return the names of what a module answers, in its order."""
    if not isinstance(module, Scorer):
        return ["vectors"]
    return [*module.answers.kinds] + ([] if module.answers.fused is None else [FUSED])


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


def exported(module: Scorer | Encoder, recipe: Recipe, way: Way) -> ExportedProgram:
    """Return what torch.export records of a module, for any numbers of rows and ids. Its tensors are the module's.

    Args:
        module: in evaluation mode, with its tables.
        recipe: its recipe.
        way: "rank" or "forward", which is all that an `Encoder` has.

    Raises:
        ValueError: a size would be that of the example.
    """
    taken = inputs(recipe, module.names)
    shared = {*once(recipe)} if way == "rank" else set()
    columns, sizes = [], []
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
    for column, size, node in zip(taken, sizes, found, strict=True):
        if size and isinstance(node.meta["val"].size(0), int):
            raise ValueError(f"'{column['name']}' would have {node.meta['val'].size(0)} entries in every call")
    return program
