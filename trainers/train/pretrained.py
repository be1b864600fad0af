"""Tables begin with rows of a file: the rows of their ids are the vectors, and the others keep their initial values."""

from collections.abc import Collection

import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.tables.hashing import row
from livetrain.trainers.data.read.vectors import Vectors
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.sharding import Sharded


def fill(sharded: Sharded, recipe: Recipe, besides: Collection[str] = ()) -> None:
    """Write the vectors of every table's file into the shards that this rank holds. Collective.

    Where several ids have one row, that of the first in the file counts: the table is the same for any number of ranks
    and any sharding. Every rank reads the file a part at a time and keeps what its own shards hold.

    Args:
        sharded: what to fill, in place.
        recipe: its recipe.
        besides: tables that begin otherwise.

    Raises:
        BadInput: on every rank, where a file is not what it has to be.
    """
    failed: BadInput | None = None
    try:
        for name, table in recipe.tables.items():
            if table.initial is not None and name not in besides:
                _fill(sharded, recipe, name)
    except BadInput as error:
        failed = error
    if told := [each for each in ranks.gather(failed) if each is not None]:
        raise told[0]
    sharded.purge()


@torch.no_grad()
def _fill(sharded: Sharded, recipe: Recipe, name: str) -> None:
    table = recipe.tables[name]
    pieces = [(weight, first, column) for one, weight, first, column in sharded.shards() if one == name]
    for path, collection in sharded.model.tables.items():
        if path.endswith("replicated") and name in collection.embeddings:  # type: ignore[operator]
            pieces.append((collection.embeddings[name].weight, 0, 0))  # type: ignore[index, union-attr]
    free = [torch.ones(len(weight), dtype=torch.bool) for weight, _, _ in pieces]
    for ids, numbers in Vectors(recipe, name).parts():
        places = row(torch.from_numpy(ids.copy()), table.rows, table.hash == "modulo")
        vectors = torch.from_numpy(numbers)
        for (weight, first, column), left in zip(pieces, free, strict=True):
            here = ((places >= first) & (places < first + len(weight))).nonzero().squeeze(1)
            here = here[left[places[here] - first]]
            rows, which = _first(places[here] - first)
            left[rows] = False
            part = vectors[here[which], column : column + weight.shape[1]]
            weight[rows.to(weight.device)] = part.to(weight)


def _first(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distinct rows, and the place at which each stands first."""
    found, inverse = rows.unique(return_inverse=True)
    places = torch.full((len(found),), len(rows), dtype=torch.long)
    return found, places.scatter_reduce(0, inverse, torch.arange(len(rows)), "amin")
