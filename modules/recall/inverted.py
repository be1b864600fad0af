"""What is exported of a fitted model: a request's features in, scores of items and the best items out."""

from typing import cast

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Quantization, Recipe
from livetrain.modules.features.registry import transforms
from livetrain.modules.recall.entries import best, entries, find, summed, weighed
from livetrain.modules.recall.fitted import Fitted, Table
from livetrain.modules.serving.inputs import Ids, repeated, source_of

ROWS = 1024  # rows whose entries are in memory at once, where many are to be scored
PARTS = (
    "keys",
    "offsets",
    "items",
    "places",
    "scores",
    "rest",
    "affine",
)  # the table's tensors, in a file or beside it


class Inverted(nn.Module):
    """An inverted table that answers requests: score(row, item) = sum_k weight_k(row) * table[k, item].

    An item that no key of a row leads to has the score 0, and so has one that the table does not know.

    `forward` scores each row's own item, `rank` many items of one user, `top` finds the best of all items. It calls
    nothing but PyTorch, and torch.jit.script accepts it. Its tensors may lie outside the file; see `attach`.

    Args:
        model: the recipe's.
        recipe: the run.
        table: what the model has learned.
        quantize: how the scores are stored: as float32, in float16, or in 8 bits between the least and the largest of
            each key.
    """

    task: str
    key: str
    keys: Tensor
    offsets: Tensor
    items: Tensor
    places: Tensor
    scores: Tensor
    rest: Tensor
    affine: Tensor

    def __init__(self, model: Fitted, recipe: Recipe, table: Table, quantize: Quantization = "none") -> None:
        super().__init__()
        self.task = next(iter(recipe.tasks))
        made = transforms(recipe.features)
        self.key = model.key
        self.own = cast(Ids, source_of(model.key, recipe, made))
        self.request = model.request()
        seen = recipe.evaluate.seen
        seen = seen if seen in recipe.features else None  # a column that is none a request does not give
        self.seen = source_of(seen, recipe, made) if seen else None
        self.names = list(dict.fromkeys([model.key, *model.features, *([seen] if seen else [])]))
        for name in ("keys", "offsets", "items", "places", "rest"):
            self.register_buffer(name, torch.from_numpy(getattr(table, name)))
        scores, affine = _stored(torch.from_numpy(table.scores), self.offsets, quantize)
        self.register_buffer("scores", scores)
        self.register_buffer("affine", affine)  # (K, 2) scale and offset of each key, of 8 bits; else (0, 2)

    def tensors(self) -> dict[str, Tensor]:
        """Return the table's tensors, which `attach` takes."""
        return {name: getattr(self, name) for name in PARTS}

    def let_go(self) -> None:
        """Forget the table, so that a file that this is saved in holds none: it is to be attached."""
        for name in PARTS:
            setattr(self, name, getattr(self, name)[:0].clone())

    @torch.jit.export
    def attach(self, tables: dict[str, Tensor]) -> None:
        """Use a table that lies outside the file, as the exports that have `stored` in their signature need.

        Raises:
            ValueError: the scores are of another type.
        """
        if "scores" in tables and tables["scores"].dtype != self.scores.dtype:
            raise ValueError("tables: 'scores' are of another type")
        self.keys = tables.get("keys", self.keys)
        self.offsets = tables.get("offsets", self.offsets)
        self.items = tables.get("items", self.items)
        self.places = tables.get("places", self.places)
        self.scores = tables.get("scores", self.scores)
        self.rest = tables.get("rest", self.rest)
        self.affine = tables.get("affine", self.affine)

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Score the item of each of B rows.

        Args:
            ids: feature -> (N,), see modules.serving.inputs.Ids; features that the model does not read may be there.
            lengths: feature -> (B,), likewise.
            dense: feature -> (B,) numbers, likewise.

        Returns:
            task -> (B,) float32 scores; 0 of a row without an item.

        Raises:
            ValueError: a feature is missing or does not fit the others.
        """
        row, key, weights, size = self._keys(ids, lengths, dense)
        values, counts, _ = self.own(ids, lengths, dense)
        if counts.numel() != size:
            raise ValueError("lengths: there are " + str(size) + " requests and " + str(counts.numel()) + " items")
        wanted = torch.zeros(size, dtype=torch.int64)
        wanted[counts > 0] = values
        place, known = find(self.items, wanted)
        known = torch.logical_and(known, counts > 0)
        at, found = self._entry(key, place[row])
        score = torch.where(torch.logical_and(found, known[row]), self._values(at, key) * weights, 0.0)
        return {self.task: torch.zeros(size).index_add_(0, row, score)}

    @torch.jit.export
    def rank(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> dict[str, Tensor]:
        """Score B items of one user: `forward` of B rows, of which features that are one row's count for all.

        Args:
            ids: feature -> ids of one row, or of B rows, one per item.
            lengths: feature -> (1,) or (B,), likewise.
            dense: feature -> (1,) or (B,) numbers, likewise.

        Returns:
            task -> (B,) float32 scores.

        Raises:
            ValueError: a feature is missing, or has neither one row nor as many as the others.
        """
        every, counts, numbers = repeated(self.names, ids, lengths, dense)
        return self.forward(every, counts, numbers)

    @torch.jit.export
    def of_all(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> Tensor:
        """Return the score of every item for each of B rows, (B, N) float32, in the order of `items`.

        Args:
            ids, lengths, dense: as of `forward`; the item is not read.
        """
        row, item, value, size = self._spread(ids, lengths, dense)
        count = self.items.numel()
        return torch.zeros(size * count).index_add_(0, row * count + item, value).view(size, count)

    @torch.jit.export
    def top(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor], k: int
    ) -> tuple[Tensor, Tensor]:
        """Find the k best items of each of B rows, without those that evaluate.seen names.

        Args:
            ids, lengths, dense: as of `forward`; the item is not read.
            k: length of the lists.

        Returns:
            (B, k) int64 items and (B, k) float32 scores, the best first; of items with equal scores the least comes
            first. Only items that a key leads to are in a list; one that ends early goes on with the score -inf.
        """
        row, item, value, size = self._spread(ids, lengths, dense)
        count = max(self.items.numel(), 1)
        pairs, sums = summed(row, item, value, count)
        had = self.seen
        if had is not None:
            values, counts, _ = had(ids, lengths, dense)
            at, known = find(self.items, values)
            owner = torch.repeat_interleave(torch.arange(counts.numel()), counts)
            stays = torch.logical_not(torch.isin(pairs, (owner * count + at)[known]))
            pairs, sums = pairs[stays], sums[stays]
        places, scores = best(pairs, sums, count, size, k)
        if self.items.numel() == 0:
            return torch.zeros_like(places), scores
        return torch.where(places >= 0, self.items[places.clamp(min=0)], 0), scores

    def _keys(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return the keys that the table has: (M,) row, (M,) place in `keys`, (M,) weight; and the number of rows."""
        if self.offsets.numel() == 0:
            raise ValueError("tables: the table lies in files of its own; map and attach it before scoring")
        keys, counts, weights = self.request(ids, lengths, dense)
        row, place, weights = weighed(self.keys, self.rest, keys, counts, weights)
        return row, place, weights, counts.numel()

    def _entry(self, key: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Return the entry of each pair of a key's and an item's place, and whether there is one: by halving."""
        low, end = self.offsets[key], self.offsets[key + 1]
        high = end
        while low.numel() > 0 and bool((low < high).any()):
            middle = torch.div(low + high, 2, rounding_mode="floor")
            less = torch.logical_and(low < high, self.places[middle.clamp(max=self.places.numel() - 1)] < item)
            high = torch.where(less, high, torch.minimum(middle, high))
            low = torch.where(less, middle + 1, low)
        at = low.clamp(max=max(self.places.numel() - 1, 0))
        if at.numel() == 0:
            return at, torch.zeros_like(at, dtype=torch.bool)
        return at, torch.logical_and(low < end, self.places[at] == item)

    def _spread(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return all entries of the rows' keys: (E,) row, (E,) item's place, (E,) value; and the number of rows."""
        row, key, weights, size = self._keys(ids, lengths, dense)
        entry, of = entries(self.offsets, key)
        value = self._values(entry, key[of]) * weights[of]
        return row[of], self.places[entry].to(torch.int64), value, size

    def _values(self, entry: Tensor, key: Tensor) -> Tensor:
        """Return the scores of entries, (E,) float32, of the keys at the places `key`."""
        found = self.scores[entry].to(torch.float32)
        if self.affine.numel() > 0:
            affine = self.affine[key]
            found = affine[:, 1] + affine[:, 0] * found
        return found


def _stored(scores: Tensor, offsets: Tensor, quantize: Quantization) -> tuple[Tensor, Tensor]:
    """Return scores as they are stored, and scale and offset of each key where they need them.

    As modules.serving.quantized.ByteTable has it for a row: q = round((x - offset) / scale), scale = (max - min) / 255.
    """
    none = torch.zeros(0, 2)
    if quantize != "int8":
        return (scores.half() if quantize == "float16" else scores), none
    key = torch.repeat_interleave(torch.arange(offsets.numel() - 1), offsets.diff())
    least = torch.zeros(offsets.numel() - 1).scatter_reduce(0, key, scores, "amin", include_self=False)
    most = torch.zeros(offsets.numel() - 1).scatter_reduce(0, key, scores, "amax", include_self=False)
    scale = (most - least) / 255
    steps = (scores - least[key]) / torch.where(scale > 0, scale, 1)[key]
    return steps.round().clamp(0, 255).to(torch.uint8), torch.stack([scale, least], 1)
