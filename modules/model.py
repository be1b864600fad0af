"""The one shape of every model: hash -> tables -> dense.

    ids (KJT of raw int64) -> IdHash -> KJT of rows -> one EmbeddingCollection a dim -> Dense -> {task: logit}

Tables whose embeddings are pooled where their rows lie are in an EmbeddingBagCollection a dim (see features.bag).

The same object trains (its tables sharded from outside), scores and exports, so the three cannot disagree.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Follower, Recipe
from livetrain.modules.batch import Requests
from livetrain.modules.features.bag import Found, Weigh, pools_where_rows_lie
from livetrain.modules.features.carriers import Carried, Encode, Prepare, Select, has_transforms
from livetrain.modules.features.dense import Normalise
from livetrain.modules.features.registry import transforms
from livetrain.modules.features.transform import Transform
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.layers.exporting import exporting
from livetrain.modules.models.registry import network
from livetrain.modules.network import TARGETS, Network
from livetrain.modules.tables.hashing import IdHash
from livetrain.modules.tables.ids import EMPTY, IdMap
from livetrain.modules.tables.initial import Initial
from livetrain.modules.tables.mapped import Room
from livetrain.modules.tasks.registry import kinds

_REPLICATED, _POOLED = "_replicated", "_pooled"  # endings of collections' names
_TABLES = ("embeddings", "embedding_bags")  # what torchrec calls the tables of a collection, unpooled and pooled
_DTYPES = {"float32": DataType.FP32, "float16": DataType.FP16}


class ReplicatedCollection(EmbeddingCollection):
    """Tables that every rank holds whole (sharding: data_parallel), trained as ordinary parameters.

    A class of its own so that no sharder takes it: torchrec's data-parallel kernel pools sequences on CPU.
    """


class PooledCollection(EmbeddingBagCollection):
    """Tables whose embeddings are pooled where their rows lie (see features.bag); plain, also of float16."""

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Args: table rows with weights. Returns: their weighted sums, (B, dim) by feature."""
        out = {}
        for config in self.embedding_bag_configs():
            for name in config.feature_names:
                part = features[name]
                found = nn.functional.embedding(part.values(), self.embedding_bags[config.name].weight).float()
                out[name] = jagged.pool(found * part.weights().unsqueeze(1), part.lengths(), False)
        return KeyedTensor.from_tensor_list(list(out), list(out.values()))


class Dense(nn.Module):
    """Everything after the tables: normalisation and what is learned of numbers, then the model's own network.

    A module of its own because it is a leaf to torchrec's tracer and is scripted whole. All but the normalisation runs
    under autocast, if asked.
    """

    def __init__(
        self, network: Network, normalise: Normalise, encode: Encode | None, bfloat16: bool, device_type: str
    ) -> None:
        super().__init__()
        self.parts = 1  # of a batch that are trained on one after another, see `in_parts`
        self.followed: dict[str, tuple[str, float]] = {}  # task -> whose logit it has, and what training added to that
        self.normalise = normalise
        self.encode = encode
        self.network = network
        self.in_bfloat16 = bfloat16
        self.device_type = device_type

    def forward(
        self,
        values: dict[str, torch.Tensor],
        lengths: dict[str, torch.Tensor],
        dense: torch.Tensor,
        weights: torch.Tensor | None,
        keys: torch.Tensor | None = None,
        vectors: dict[str, torch.Tensor] | None = None,
        often: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the logits (B,) by task from jagged embeddings, (N_f, dim) and (B,) per feature, and dense (B, D).

        `keys` are the raw ids that the network asks for (see modules.network), `vectors` those that events carry,
        (N_f, w) by feature, NaN = missing, and `often` is `Batch.often`. Features that rows share are as `Found` says.
        """
        dense = self.normalise(dense)
        if vectors is not None:
            vectors = self.normalise.events(vectors)
        if torch.jit.is_scripting() or exporting():
            if self.encode is not None:
                dense, values = self.encode(dense, values, vectors)
            return self.network(values, lengths, dense, weights)
        in_parts = self.parts > 1 and self.training and torch.is_grad_enabled()
        if in_parts or not self.network.shares:
            values, lengths, vectors = jagged.each_its_own(values, lengths, vectors)
        if in_parts:
            return self.in_parts(values, lengths, dense, weights, keys, vectors)
        return self.answer(values, lengths, dense, weights, keys, vectors, often)

    @torch.jit.unused
    def answer(
        self,
        values: dict[str, torch.Tensor],
        lengths: dict[str, torch.Tensor],
        dense: torch.Tensor,
        weights: torch.Tensor | None,
        keys: torch.Tensor | None,
        vectors: dict[str, torch.Tensor] | None,
        often: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return what the network answers, in float32. Arguments as of `forward`, with numbers normalised."""
        with torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=self.in_bfloat16):
            if self.encode is not None:
                dense, values = self.encode(dense, values, vectors)
            if keys is None:
                logits = self.network(values, lengths, dense, weights)
            elif self.network.takes_shared:
                logits = self.network(values, lengths, dense, weights, keys, often)
            else:
                logits = self.network(values, lengths, dense, weights, keys)
        logits = {task: logit if task == TARGETS else logit.float() for task, logit in logits.items()}
        for task, (of, correction) in self.followed.items():
            logits[task] = logits[of] + (correction if self.training else 0.0)  # its label is of all impressions
        return logits

    @torch.jit.unused
    def in_parts(
        self,
        values: dict[str, torch.Tensor],
        lengths: dict[str, torch.Tensor],
        dense: torch.Tensor,
        weights: torch.Tensor | None,
        keys: torch.Tensor | None,
        vectors: dict[str, torch.Tensor] | None,
    ) -> dict[str, torch.Tensor]:
        """Answer for a batch part by part, and keep of each part its logits alone.

        The backward pass computes each part once more, then its gradients, which add up (activation checkpointing,
        Chen et al., 1604.06174). So the network's activations take the memory of one part, while losses, the
        combination of the tasks' gradients and the tables' one fused update see the whole batch.
        """
        ends = [dense.size(0) * part // self.parts for part in range(self.parts + 1)]
        sizes = [end - start for start, end in zip(ends, ends[1:], strict=False)]
        # Where each part's entries begin, by feature. On a GPU this waits for the lengths, once per batch.
        starts = {name: functional.pad(each.long().cumsum(0), (1, 0))[ends] for name, each in lengths.items()}
        counts = {name: each.diff().tolist() for name, each in starts.items()}
        split_values = {name: each.split(counts[name]) for name, each in values.items()}
        split_vectors = {name: each.split(counts[name]) for name, each in (vectors or {}).items()}
        split_lengths = {name: each.split(sizes) for name, each in lengths.items()}
        split_keys = keys.split(counts[self.network.key]) if keys is not None and self.network.key is not None else None
        answers = [
            checkpoint(
                self.answer,
                {name: each[part] for name, each in split_values.items()},
                {name: each[part] for name, each in split_lengths.items()},
                dense.split(sizes)[part],
                weights.split(sizes)[part] if weights is not None else None,
                split_keys[part] if split_keys is not None else None,
                {name: each[part] for name, each in split_vectors.items()},
                use_reentrant=False,
            )
            for part in range(self.parts)
        ]
        return {task: torch.cat([answer[task] for answer in answers]) for task in answers[0]}


class Model(nn.Module):
    """A recipe's model, plain: no process group, no sharding.

    Args:
        recipe: what to build.
        device: where dense parameters and replicated tables are made.
        tables_device: where the other tables are made; ``meta`` when they will be sharded.
        replicated_device: where replicated tables are made instead; ``meta`` when all tables come from elsewhere.

    Dense parameters depend on train.seed alone; table rows on (train.seed, table, row), see modules.tables.initial.

    Raises:
        BadInput: the model's config names features that the recipe lacks, or leaves some unused, or the recipe asks for
            gradients at a trunk that the model has not, or the model finds items and a task does not, or the reverse,
            or a table has a name that PyTorch's modules use.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: str | torch.device = "cpu",
        tables_device: str | torch.device = "cpu",
        replicated_device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        features, tables = recipe.features, recipe.tables
        used = {name: table for name, f in features.items() if (table := f.looks_up())}
        order = ("ids", "numbers", "features")  # those made of numbers come after ids, those made of others last
        keyed = sorted(used, key=lambda name: order.index(features[name].carrier))
        # No modules of this one: `hash` owns them.
        self.maps = {
            name: IdMap.of(name, table, tables_device if table.assign == "online" else device)
            for name, table in tables.items()
            if table.hash == "table"
        }
        hashing = IdHash(
            keyed,
            [tables[used[n]].rows for n in keyed],
            [tables[used[n]].hash == "modulo" for n in keyed],
            {n: (used[n], self.maps[used[n]]) for n in keyed if used[n] in self.maps},
        )
        changed, made = has_transforms(features), transforms(features)
        self.transforms: dict[str, Transform] = made  # no modules of this one: `hash` and `select` own them
        self.hash = Prepare(features, made, hashing).to(device) if changed else hashing
        self.select = Select(features, made).to(device) if changed else None
        self.tables = nn.ModuleDict()
        collections: dict[str, list[str]] = {}
        for name, members in _collections(recipe).items():
            users = {table: [f for f in keyed if used[f] == table] for table in members}
            collections[name] = [feature for table in members for feature in users[table]]
            where = (replicated_device or device) if name.endswith(_REPLICATED) else tables_device
            self.tables[name] = _collection(recipe, name, users, torch.device(where))
        pooled = [name for name in collections if name.endswith(_POOLED)]
        self.weigh = Weigh(features, [feature for name in pooled for feature in collections[name]])
        self.found = Found(features, collections, pooled)
        like = {name: feature.alike for name, feature in features.items() if feature.alike is not None}
        timed = [name for name, feature in features.items() if feature.up_to is not None]
        self.carried = Carried(features) if like or timed else None
        dims = {name: tables[table].dim for name, table in used.items()}
        self.numbers = {n: made[n].columns for n, f in features.items() if f.form == "dense"}  # before encoders
        nowhere = torch.device("meta") if torch.device(device).type == "meta" else contextlib.nullcontext()
        with torch.random.fork_rng(devices=[]), nowhere:
            torch.manual_seed(recipe.train.seed)
            encoders = {name: made[name].encoder() for name in self.numbers}
            encode = Encode(self.numbers, encoders, like) if any(encoders.values()) or like or timed else None
            encoded = {name: _encoded(encoders[name], count) for name, count in self.numbers.items()}
            beside = {name: encoded[feature] for name, feature in like.items()}
            inputs = Inputs(
                ids={n: d for n, d in dims.items() if features[n].form == "id"},
                sequences={n: d + beside.get(n, 0) for n, d in dims.items() if features[n].form == "sequence"},
                dense=[name for name, count in encoded.items() for _ in range(count)],
                like=like,
                timed=timed,
                tables=used,
                limits={n: f.limit for n, f in features.items() if f.form == "sequence"},
            )
            self.inputs = inputs
            net = network(recipe.model.kind)(recipe.model, inputs, recipe.answered)
        self.key, self.events = net.key, net.events
        _check(recipe, net)
        bfloat16 = recipe.train.precision == "bfloat16"
        starts = dict(zip(self.numbers, itertools.accumulate(self.numbers.values(), initial=0), strict=False))
        normalise = Normalise(sum(self.numbers.values()), {name: starts[feature] for name, feature in like.items()})
        self.dense = Dense(net, normalise, encode, bfloat16, torch.device(device).type).to(device)
        self.dense.parts = recipe.train.accumulate
        self.dense.followed = {
            name: (task.of, math.log(recipe.tasks[task.of].negatives_kept))
            for name, task in recipe.tasks.items()
            if isinstance(task, Follower)
        }
        for name, weight in self.table_weights().items():
            if not weight.is_meta:
                initial_values(recipe, name).fill(weight.data)

    def table_weights(self) -> dict[str, torch.Tensor]:
        """Return the weights (rows, dim) of each table of a plain model."""
        return {name: table.weight for name, table in self._tables()}

    def place_tables(self, room: Room) -> None:
        """Let the tables of a plain model lie where `room` gives them place, with the numbers that lie there."""
        for name, table in self._tables():
            table.weight = nn.Parameter(room(name, table.weight.shape, table.weight.dtype), requires_grad=False)
        for map in self.maps.values():
            if map.keys.is_meta:
                map.keys = torch.full((map.rows,), EMPTY)

    def _tables(self) -> Iterator[tuple[str, nn.Embedding | nn.EmbeddingBag]]:
        for collection in self.tables.values():
            yield from getattr(collection, _TABLES[isinstance(collection, EmbeddingBagCollection)]).items()

    def forward(
        self,
        ids: KeyedJaggedTensor,
        dense: torch.Tensor,
        weights: torch.Tensor | None = None,
        vectors: torch.Tensor | None = None,
        requests: Requests | None = None,
        often: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the logits (B,) by task.

        Args:
            ids: raw int64 ids, one key per id or sequence feature, B rows per key.
            dense: (B, W) float32, NaN = missing; the columns of features whose carrier is numbers, as in `Batch`.
            weights: (B,), 0 marks padding rows; None when serving.
            vectors: `Batch.vectors`, where events carry some.
            requests: `Batch.requests`, where rows share features.
            often: `Batch.often`, where they share items.
        """
        values: dict[str, torch.Tensor] = {}
        lengths: dict[str, torch.Tensor] = {}
        if len(self.tables):
            rows = self.hash(ids) if self.select is None else self.hash(ids, dense, requests)
            weighed = self.weigh(ids, rows) if self.found.pooled else rows
            found = [
                collection(weighed if name in self.found.pooled else rows) for name, collection in self.tables.items()
            ]
            values, lengths = self.found(found, ids, rows, requests)
        if self.select is not None:
            dense = self.select(dense)
        keys = None if self.key is None or weights is None else ids[self.key].values()
        if keys is not None and self.events is not None:
            keys = torch.cat([keys, ids[self.events].values()])
        carried = None if self.carried is None else self.carried(ids, vectors)
        return self.dense(values, lengths, dense, weights, keys, carried, often)


def _check(recipe: Recipe, net: Network) -> None:
    """Refuse what the recipe asks of its model and the model is not made for."""
    features = recipe.features
    if recipe.gradients.scope == "trunk" and net.trunk is None:
        raise BadInput(
            f"gradients.scope: '{recipe.model.kind}' has no trunk that its tasks share; use scope: shared, or "
            "another model.kind"
        )
    for name, kind in kinds(recipe.answered).items():
        named = recipe.tasks[name].kind
        if kind.towers and net.towers is None:
            raise BadInput(
                f"tasks.{name}.kind: {named} needs a model with two towers, and '{recipe.model.kind}' has none; "
                "use model.kind: dssm, or kind: binary"
            )
        if net.towers is not None and not kind.towers:
            raise BadInput(
                f"tasks.{name}.kind: '{recipe.model.kind}' finds items and predicts no {kind.output}; "
                "use kind: retrieval"
            )
    for name, kind in kinds(recipe.tasks).items():
        if kind.by_group and net.several:
            raise BadInput(
                f"tasks.{name}.kind: '{recipe.tasks[name].kind}' compares rows of a group, and '{recipe.model.kind}' "
                "learns several answers of each row by itself; use kind: binary, or another model.kind"
            )
    if recipe.data.negatives is not None and recipe.data.negatives.shared is not None and not net.takes_shared:
        raise BadInput(
            f"data.negatives.shared: are for models that find items, and '{recipe.model.kind}' takes none; give each "
            "positive row its own, by task and per_positive"
        )
    if net.key is not None and (features[net.key].carrier != "ids" or features[net.key].lists):
        raise BadInput(
            f"model.key: '{net.key}' is of type {features[net.key].type}, which has no id of each row in the data; "
            "name another"
        )
    for name, feature in features.items():
        parts = {name, *feature.parts}
        if net.towers is not None and not any(parts <= {*own} for own in net.towers.names.values()):
            raise BadInput(
                f"features.{name}.of: {', '.join(feature.parts)} and {name} itself are of both towers; name in "
                "model.item all of them or none"
            )


def _collections(recipe: Recipe) -> dict[str, list[str]]:
    """Group tables by dim, apart if replicated or pooled: tables of one collection share dim and treatment."""
    groups: dict[str, list[str]] = {}
    taken = nn.ModuleDict()
    for name, table in recipe.tables.items():
        if hasattr(taken, name):
            raise BadInput(f"tables.{name}: PyTorch's own modules use this name; choose another, as {name}_table")
        ending = _REPLICATED if table.sharding == "data_parallel" else ""
        ending = _POOLED if pools_where_rows_lie(recipe, name) else ending
        groups.setdefault(f"dim{table.dim}{ending}", []).append(name)
    return groups


def _collection(recipe: Recipe, name: str, users: dict[str, list[str]], device: torch.device) -> nn.Module:
    """Return a collection of tables, named as `_collections` says: {table: its features}."""
    pooled = name.endswith(_POOLED)
    kind = EmbeddingBagConfig if pooled else EmbeddingConfig
    configs = [
        kind(
            name=table,
            num_embeddings=recipe.tables[table].rows,
            embedding_dim=recipe.tables[table].dim,
            feature_names=features,
            data_type=_DTYPES[recipe.tables[table].dtype],
            **({"pooling": PoolingType.SUM} if pooled else {}),
        )
        for table, features in users.items()
    ]
    if pooled:
        return PooledCollection(tables=configs, is_weighted=True, device=device)
    return (ReplicatedCollection if name.endswith(_REPLICATED) else EmbeddingCollection)(tables=configs, device=device)


def stored_name(name: str) -> str:
    """Return the name under which a checkpoint keeps a parameter: of a table the same, wherever its rows lie."""
    plain = f".{_TABLES[False]}."
    name = name.replace("hash.hashing.maps.", "hash.maps.")  # whether or not other features change their ids
    return name.replace(f"{_POOLED}.{_TABLES[True]}.", plain).replace(f"{_REPLICATED}{plain}", plain)


def initial_values(recipe: Recipe, table: str) -> Initial:
    """Return the initial values of a recipe's table."""
    declared = recipe.tables[table]
    return Initial(recipe.train.seed, table, declared.dim, declared.init_std)


def _encoded(encoder: nn.Module | None, columns: int) -> int:
    """Return how many columns the network gets of a feature's."""
    if encoder is None:
        return columns
    with torch.no_grad():
        return encoder(torch.zeros(2, columns)).shape[1]


def measured(model: Model) -> dict[str, slice]:
    """Return where `Normalise` has the columns of each dense feature that are normalised, of some perhaps none."""
    ends = [0, *itertools.accumulate(model.numbers.values())]
    return {n: slice(end, end + model.transforms[n].measured) for n, end in zip(model.numbers, ends, strict=False)}


def set_statistics(
    model: Model,
    mean: Mapping[str, Sequence[float]],
    std: Mapping[str, Sequence[float]],
    quantiles: Mapping[str, Sequence[float]],
) -> None:
    """Store what was measured on the training split in the model.

    Args:
        model: in place.
        mean: of the columns of each dense feature that are normalised (see `Transform.measured`).
        std: their deviation.
        quantiles: of each feature that asks for them.
    """
    for name, place in measured(model).items():
        for stored, given in ((model.dense.normalise.mean, mean), (model.dense.normalise.std, std)):
            stored[place] = torch.as_tensor(given[name], dtype=torch.float32)
    for name, transform in model.transforms.items():
        if transform.quantiles:
            transform.cut_at(torch.as_tensor(quantiles[name], dtype=torch.float32))
