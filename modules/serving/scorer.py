"""The model as a server calls it: tensors by feature in, predictions by task out. trainers.export.export scripts it.

`forward` scores rows as the model was trained on them. `rank` scores many candidates of one user, whose features come
once, are looked up once and, in DIN, are attended to without being repeated.

What it needs is plain PyTorch: neither torchrec nor fbgemm has to be loaded, in Python or in C++.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Quantization, Recipe
from livetrain.modules.features.bag import pool
from livetrain.modules.features.cross import cross
from livetrain.modules.features.dense import Normalise
from livetrain.modules.model import Model
from livetrain.modules.serving.quantized import ByteTable, FloatTable, store
from livetrain.modules.tables import hashing
from livetrain.modules.tasks.registry import kinds


class Ids(nn.Module):
    """The ids of one feature whose carrier is ids: raw ids -> those to look up, a list cut to its newest entries.

    Args:
        name: the feature.
        limit: longest list per row; 0 for a feature with at most one id.
        beside: numbers that each id has: 1 of a weight, or those of a vector; 0 for none.
        transform: from the caller's ids to those that are looked up; None where they are the same.
    """

    name: str
    limit: int
    beside: int

    def __init__(self, name: str, limit: int, beside: int, transform: nn.Module | None) -> None:
        super().__init__()
        self.name = name
        self.limit = limit
        self.beside = beside
        self.transform = transform

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Take one feature's ids.

        Args:
            ids: feature -> (N,) integers of any value, row after row, newest last.
            lengths: feature -> (B,) integers, N = their sum. An id feature's may be left out when N = B.
            dense: feature -> what lies beside its ids: (N,) weights, or (N, w) vectors.

        Returns:
            (M,) int64 ids, (B,) int64 lengths, M = their sum, and what lies beside the ids or None.

        Raises:
            ValueError: the feature or what lies beside it is missing, its ids are no integers, or lengths do not fit.
        """
        if self.name not in ids:
            raise ValueError("ids: the feature '" + self.name + "' is missing")
        value = ids[self.name]
        if value.is_floating_point() and value.numel() > 0:  # an empty list becomes a float tensor all too easily
            raise ValueError("ids: those of '" + self.name + "' must be integers, for a float loses digits")
        value = value.to(torch.int64)
        if self.name in lengths:
            length = lengths[self.name].to(torch.int64)
        elif self.limit == 0:
            length = torch.ones_like(value)
        else:
            raise ValueError("lengths: those of the lists '" + self.name + "' are missing")
        beside: Tensor | None = None
        if self.beside > 0:
            beside = _numbers(dense, self.name, self.beside)
            if beside.numel() != value.numel() * self.beside:
                raise ValueError("dense: '" + self.name + "' needs one weight or vector of each of its ids")
        value, length, beside = self._cut(value, length, beside)
        if self.transform is not None:
            value = self.transform(value)
        return value, length, beside

    def _cut(self, value: Tensor, length: Tensor, beside: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        if length.numel() == 0 and value.numel() == 0:
            return value, length, beside
        if length.numel() == 0 or int(length.min()) < 0 or int(length.sum()) != value.numel():
            raise ValueError("lengths: those of '" + self.name + "' do not add up to its number of ids")
        if int(length.max()) <= max(self.limit, 1):
            return value, length, beside
        if self.limit == 0:
            raise ValueError("lengths: '" + self.name + "' is an id feature, so a row has one id or none")
        ends = torch.repeat_interleave(torch.cumsum(length, 0), length)  # (N,), where the row of each id ends
        newest = ends - torch.arange(value.numel(), device=value.device) <= self.limit
        if beside is not None:
            beside = beside[newest]
        return value[newest], torch.clamp(length, max=self.limit), beside


class NumberIds(nn.Module):
    """The ids of one feature that are made of numbers.

    Args:
        name: the feature.
        transform: (B,) float32 -> (B,) int64 ids.
        numbers: per row, see `_numbers`.
    """

    name: str
    width: int

    def __init__(self, name: str, transform: nn.Module, numbers: int) -> None:
        super().__init__()
        self.name = name
        self.width = numbers
        self.transform = transform

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (B,) int64 ids, lengths, all 1, and nothing beside them; arguments as `Ids.forward`."""
        value = self.transform(_numbers(dense, self.name, self.width))
        return value, torch.ones_like(value), None


class CrossIds(nn.Module):
    """The ids of one feature that are made of other features' ids, see modules.features.cross.

    Args:
        name: the feature.
        parts: `Ids` or `NumberIds` of those others.
    """

    name: str

    def __init__(self, name: str, parts: list[nn.Module]) -> None:
        super().__init__()
        self.name = name
        self.parts = cast(Sequence[Ids | NumberIds], nn.ModuleList(parts))

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (M,) int64 ids, (B,) lengths, and nothing beside them; arguments as `Ids.forward`.

        Raises:
            ValueError: also where the parts' rows are neither as many nor one.
        """
        values: list[Tensor] = []
        counts: list[Tensor] = []
        rows, first = -1, ""
        for part in self.parts:
            value, length, _ = part(ids, lengths, dense)
            values.append(value)
            counts.append(length)
            rows, first = _same(rows, first, length.size(0), part.name, True)
        made, there = cross(values, counts)
        return made, there, None


class Lookup(nn.Module):
    """One feature that is looked up: a caller's tensors -> embeddings.

    Args:
        name: the feature.
        source: `Ids` or the like.
        table: rows (N,) -> (N, dim) float32, see modules.serving.quantized; shared with every other feature of it.
        modulo: whether an id's row is its plain remainder (see `hashing.row`).
        pooling: how a row's embeddings become one; "" where they do not.
    """

    name: str
    modulo: bool
    pooling: str

    def __init__(self, name: str, source: nn.Module, table: FloatTable | ByteTable, modulo: bool, pooling: str) -> None:
        super().__init__()
        self.name = name
        self.source = source
        self.table = table
        self.modulo = modulo
        self.pooling = pooling

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Look a feature's ids up; arguments as `Ids.forward`.

        Returns:
            (M, dim) float32 embeddings, (B,) int64 lengths, M = their sum, and (M, w) vectors beside them, or None.
        """
        value, length, beside = self.source(ids, lengths, dense)
        found = self.table(hashing.row(value, self.table.rows, self.modulo))
        if self.pooling != "":
            return pool(found, length, beside, self.pooling), torch.ones_like(length), None
        if beside is not None and beside.dim() == 1:  # vectors of one number
            beside = beside.unsqueeze(1)
        return found, length, beside


class Numbers(nn.Module):
    """One feature that the network gets as numbers, transformed.

    Args:
        name: the feature.
        transform: (B,) or (B, w) float32 -> (B,) or (B, columns) float32; None where they stay as they are.
        numbers: per row, see `_numbers`.
        columns: how many the transform makes of them.
    """

    name: str
    width: int
    columns: int

    def __init__(self, name: str, transform: nn.Module | None, numbers: int, columns: int) -> None:
        super().__init__()
        self.name = name
        self.transform = transform
        self.width = numbers
        self.columns = columns

    def forward(self, dense: dict[str, Tensor]) -> Tensor:
        """Args: dense, as `Scorer.forward`. Returns: (B, columns)."""
        found = _numbers(dense, self.name, self.width)
        if self.transform is not None:
            found = self.transform(found)
        return found.reshape(-1, self.columns)


def _numbers(dense: dict[str, Tensor], name: str, width: int) -> Tensor:
    """Return a feature's numbers, (B,), or (B, width) of a width above 1."""
    if name not in dense:
        raise ValueError("dense: the feature '" + name + "' is missing")
    found = dense[name].to(torch.float32)
    if width > 1 and found.numel() == 0:  # as an empty list becomes a tensor of one dimension
        return found.reshape(0, width)
    if width > 1 and (found.dim() != 2 or found.size(1) != width):
        raise ValueError("dense: '" + name + "' must be (rows, " + str(width) + "), not " + str(list(found.size())))
    return found


def _source(name: str, recipe: Recipe, transforms: Mapping[str, nn.Module]) -> nn.Module:
    """Return what makes a feature's ids of a caller's tensors."""
    feature, transform = recipe.features[name], transforms[name]
    if feature.parts:
        return CrossIds(name, [_source(part, recipe, transforms) for part in feature.parts])
    if feature.carrier == "numbers":
        return NumberIds(name, transform, feature.numbers)
    limit = feature.limit if feature.lists else 0
    beside = recipe.beside(name)
    return Ids(name, limit, 0 if beside is None else beside[1], None if feature.plain else transform)


class Features(nn.Module):
    """A recipe's features, or some of them, from a caller's tensors to what a network takes.

    Args:
        model: a plain model.
        recipe: its recipe.
        quantize: how tables are stored.
        names: the features; all by default.
    """

    def __init__(self, model: Model, recipe: Recipe, quantize: Quantization, names: list[str] | None = None) -> None:
        super().__init__()
        chosen = {n: f for n, f in recipe.features.items() if names is None or n in names}
        keyed = {n: table for n, f in chosen.items() if (table := f.looks_up())}
        weights = model.table_weights()
        tables = {name: store(weights[name], quantize) for name in set(keyed.values())}
        made = model.transforms
        changed = {name: None if feature.plain else made[name] for name, feature in chosen.items()}
        lookups = []
        for name, table in keyed.items():
            modulo, pooling = recipe.tables[table].hash == "modulo", chosen[name].pooled or ""
            lookups.append(Lookup(name, _source(name, recipe, made), tables[table], modulo, pooling))
        self.lookups = cast(Sequence[Lookup], nn.ModuleList(lookups))
        dense = {name: feature.numbers for name, feature in chosen.items() if feature.form == "dense"}
        numbers = (Numbers(name, changed[name], count, made[name].columns) for name, count in dense.items())
        self.numbers = cast(Sequence[Numbers], nn.ModuleList(numbers))

    def _gather(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor], shared: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Return embeddings and lengths by feature, the dense table (B, D), and the vectors that events carry."""
        values: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        vectors: dict[str, Tensor] = {}
        rows, first = -1, ""
        for lookup in self.lookups:
            found, count, beside = lookup(ids, lengths, dense)
            values[lookup.name], counts[lookup.name] = found, count
            if beside is not None:
                vectors[lookup.name] = beside
            rows, first = _same(rows, first, count.size(0), lookup.name, shared)
        columns: list[Tensor] = []
        for number in self.numbers:
            column = number(dense)
            columns.append(column)
            rows, first = _same(rows, first, column.size(0), number.name, shared)
        if len(columns) > 0:
            table = torch.cat([column.expand(rows, -1) for column in columns], dim=1)  # (B, D)
            return values, counts, table, vectors
        return values, counts, torch.zeros(rows, 0, device=counts[first].device), vectors


class Scorer(Features):
    """What is exported: ids, lengths and dense by feature -> by task a probability, or the number that it predicts.

    The dense part is the model's own, and so are the tables unless they are quantised. Only the way to the tables is a
    second one, without KeyedJaggedTensor, which would tie the file to fbgemm's operators; parity before each export
    covers it.

    Args:
        model: a plain model.
        recipe: its recipe.
        quantize: how tables are stored.
    """

    shares: bool

    def __init__(self, model: Model, recipe: Recipe, quantize: Quantization = "none") -> None:
        super().__init__(model, recipe, quantize)
        self.dense = model.dense
        self.kinds = nn.ModuleDict(kinds(recipe.tasks))
        self.shares = model.dense.network.shares

    def forward(
        self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Score B rows.

        Args:
            ids: feature -> (N,), see `Ids`.
            lengths: feature -> (B,), see `Ids`.
            dense: feature -> (B,) numbers, or (B, w) of a feature of w > 1 per row, not normalised; NaN is a missing
                value. Of a bag with weights (N,), those; of a sequence with vectors (N, w), those.

        Returns:
            task -> (B,) float32 predictions.

        Raises:
            ValueError: a feature is missing or does not fit the others.
        """
        values, counts, table, vectors = self._gather(ids, lengths, dense, False)
        return self._score(values, counts, table, vectors)

    @torch.jit.export
    def rank(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> dict[str, Tensor]:
        """Score B candidates of one user: `forward` of B rows that each repeat the user, without the repetition.

        Args:
            ids: feature -> ids of one row, which are the user's, or of B rows, one per candidate; see `Ids`.
            lengths: feature -> (1,) or (B,), likewise.
            dense: feature -> (1,) or (B,) numbers, or (1, w) or (B, w), likewise.

        Returns:
            task -> (B,) float32 predictions.

        Raises:
            ValueError: a feature is missing, or has neither one row nor as many as the other candidates' features.
        """
        values, counts, table, vectors = self._gather(ids, lengths, dense, True)
        size = table.size(0)
        if not self.shares:
            for lookup in self.lookups:
                if counts[lookup.name].size(0) != size:
                    values[lookup.name] = values[lookup.name].repeat(size, 1)
                    if lookup.name in vectors:
                        vectors[lookup.name] = vectors[lookup.name].repeat(size, 1)
                    counts[lookup.name] = counts[lookup.name].expand(size)
        return self._score(values, counts, table, vectors)

    def _score(
        self, values: dict[str, Tensor], counts: dict[str, Tensor], table: Tensor, vectors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        logits = self.dense(values, counts, table, None, None, vectors)
        out: dict[str, Tensor] = {}
        for task, kind in self.kinds.items():
            out[task] = kind(logits[task])
        return out


class Encoder(Features):
    """One tower of a model that finds items: features of its side in, vectors out.

    Args:
        model: a plain model whose network has `towers`.
        recipe: its recipe.
        side: "user" or "item".
        quantize: how tables are stored.
    """

    def __init__(
        self, model: Model, recipe: Recipe, side: Literal["user", "item"], quantize: Quantization = "none"
    ) -> None:
        towers = model.dense.network.towers
        super().__init__(model, recipe, quantize, towers.names[side])
        self.tower = getattr(towers, side)
        features = [name for name, columns in model.numbers.items() for _ in range(columns)]
        own = [column for column, name in enumerate(features) if name in towers.names[side]]
        # The side's own columns, and behind those the ones that its events alone have a part in.
        like = {name: feature for name, feature in model.inputs.like.items() if name in towers.names[side]}
        own += [column for column, name in enumerate(features) if name in {*like.values()} - {*towers.names[side]}]
        taken = [features[column] for column in own]
        whole = model.dense.normalise
        self.normalise = Normalise(len(own), {name: taken.index(feature) for name, feature in like.items()})
        self.normalise.mean, self.normalise.std = whole.mean[own], whole.std[own]
        self.encode = None if model.dense.encode is None else model.dense.encode.of(towers.names[side])

    def forward(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> Tensor:
        """Return the vectors of B rows.

        Args:
            ids: feature -> (N,), see `Ids`; features of the other side may be there and are not read.
            lengths: feature -> (B,), likewise.
            dense: feature -> (B,) or (B, w) numbers, not normalised; likewise.

        Returns:
            (B, width) float32, of length 1.

        Raises:
            ValueError: a feature is missing or does not fit the others.
        """
        values, counts, table, vectors = self._gather(ids, lengths, dense, False)
        table, vectors = self.normalise(table), self.normalise.events(vectors)
        if self.encode is not None:
            table, values = self.encode(table, values, vectors)
        return self.tower.encode(values, counts, table, None)


def _same(rows: int, first: str, found: int, name: str, shared: bool) -> tuple[int, str]:
    """Return the number of rows after one more feature, and a feature that has it; one row fits all if `shared`."""
    if rows >= 0 and rows != found:
        if shared and found == 1:
            return rows, first
        if not (shared and rows == 1):
            raise ValueError("'" + first + "' has " + str(rows) + " rows and '" + name + "' has " + str(found))
    return found, name
