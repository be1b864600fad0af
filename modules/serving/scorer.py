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
from livetrain.modules.features.dense import Normalise
from livetrain.modules.fusion import Fused
from livetrain.modules.model import Model
from livetrain.modules.serving.answers import Answers
from livetrain.modules.serving.inputs import Lookup, Numbers, same_rows, source_of
from livetrain.modules.serving.quantized import ByteTable, FloatTable, stored
from livetrain.modules.tasks.registry import kinds

Tables = Quantization | Mapping[str, FloatTable | ByteTable]


class Features(nn.Module):
    """A recipe's features, or some of them, from a caller's tensors to what a network takes.

    Args:
        model: a plain model.
        recipe: its recipe.
        tables: how tables are stored, or the stored tables themselves.
        names: the features; all by default.
    """

    names: list[str]

    def __init__(self, model: Model, recipe: Recipe, tables: Tables, names: list[str] | None = None) -> None:
        super().__init__()
        chosen = {n: f for n, f in recipe.features.items() if names is None or n in names}
        self.names = list(chosen)
        keyed = {n: table for n, f in chosen.items() if (table := f.looks_up())}
        if isinstance(tables, str):
            weights = model.table_weights()
            tables = stored({name: weights[name] for name in set(keyed.values())}, tables, model.maps)
        made = model.transforms
        changed = {name: None if feature.plain else made[name] for name, feature in chosen.items()}
        lookups = []
        for name, table in keyed.items():
            modulo, pooling = recipe.tables[table].hash == "modulo", chosen[name].pooled or ""
            lookups.append(Lookup(name, source_of(name, recipe, made), tables[table], modulo, pooling))
        self.lookups = cast(Sequence[Lookup], nn.ModuleList(lookups))
        dense = {name: feature.numbers for name, feature in chosen.items() if feature.form == "dense"}
        numbers = (Numbers(name, changed[name], count, made[name].columns) for name, count in dense.items())
        self.numbers = cast(Sequence[Numbers], nn.ModuleList(numbers))

    @torch.jit.export
    def attach(self, tables: dict[str, Tensor]) -> None:
        """Use tables that lie outside the file, as the exports that have `stored` in their signature need.

        Args:
            tables: by the names in `stored`; see modules.tables.mapped.

        Raises:
            ValueError: one is missing, or has another shape or dtype.
        """
        for lookup in self.lookups:
            lookup.table.attach(tables)

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
            rows, first = same_rows(rows, first, count.size(0), lookup.name, shared)
        columns: list[Tensor] = []
        for number in self.numbers:
            column = number(dense)
            columns.append(column)
            rows, first = same_rows(rows, first, column.size(0), number.name, shared)
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
        tables: how tables are stored, or the stored tables themselves.
        fused: the formula that makes one score more of the predictions, `FUSED`.
    """

    shares: bool

    def __init__(self, model: Model, recipe: Recipe, tables: Tables = "none", fused: Fused | None = None) -> None:
        super().__init__(model, recipe, tables)
        self.dense = model.dense
        self.answers = Answers({**kinds(recipe.answered)}, fused)
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
        return self.answers(self.dense(values, counts, table, None, None, vectors))


class Encoder(Features):
    """One tower of a model that finds items: features of its side in, vectors out.

    Args:
        model: a plain model whose network has `towers`.
        recipe: its recipe.
        side: "user" or "item".
        tables: how tables are stored, or the stored tables themselves.
    """

    def __init__(self, model: Model, recipe: Recipe, side: Literal["user", "item"], tables: Tables = "none") -> None:
        towers = model.dense.network.towers
        super().__init__(model, recipe, tables, towers.names[side])
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
            (B, width) float32; of a user with several interests (B, K, width).

        Raises:
            ValueError: a feature is missing or does not fit the others.
        """
        values, counts, table, vectors = self._gather(ids, lengths, dense, False)
        table, vectors = self.normalise(table), self.normalise.events(vectors)
        if self.encode is not None:
            table, values = self.encode(table, values, vectors)
        return self.tower.encode(values, counts, table, None)
