"""DSSM: two towers whose vectors meet in one product, so that the best of millions of items are found by an index.

Huang et al., "Learning deep structured semantic models for web search using clickthrough data", CIKM 2013, trained as
in Yi et al., RecSys 2019 (10.1145/3298689.3346996).
"""

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import ModelConfig, Task
from livetrain.configs.values import Dropout, FeatureName, Size, Units, real
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged, products
from livetrain.modules.layers.candidates import gathered, none_where
from livetrain.modules.layers.gather import Gather
from livetrain.modules.layers.mlp import MLP, Activation
from livetrain.modules.layers.others import logsumexp_of_others
from livetrain.modules.layers.precision import widen
from livetrain.modules.layers.rarity import Rarity
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import Network


class DSSMConfig(ModelConfig):
    """A tower for the user and one for the item."""

    kind: Literal["dssm"] = "dssm"
    key: FeatureName = Field(description="id feature that tells items apart; one of the item's")
    item: list[FeatureName] = Field([], description="the item's other features; all that are not named are the user's")
    width: Size = Field(32, description="size of the two vectors")
    units: Units = Field([128, 64], description="hidden layers of each tower")
    activation: Activation = "relu"
    dropout: Dropout = 0.0
    temperature: Annotated[float, real(1e-3, 1000)] = Field(0.1, description="divides the cosine in the softmax")
    log_q: bool = Field(True, description="correct for how often an item is in batches")


class Tower(nn.Module):
    """vector = MLP([ids, mean of each sequence, dense]) / its length

    Args:
        config: see `DSSMConfig`.
        inputs: the features of this side.
        columns: which columns of the dense tensor are this side's.
    """

    columns: Tensor

    def __init__(self, config: DSSMConfig, inputs: Inputs, columns: list[int]) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.long), persistent=False)
        self.gather = Gather(inputs, list(inputs.sequences))
        self.layers = MLP(self.gather.width, config.units, config.activation, config.dropout, config.width)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Return the vectors.

        Args:
            values: feature -> (sum of lengths, dim) embeddings; those of the other side may be there too.
            lengths: feature -> (B,), or fewer of a feature that rows share, see `Network`.
            dense: (B, D), all columns, normalised.
            weights: (B,), 0 marks padding; None when serving.

        Returns:
            (B, width), of length 1, float32 or wider.
        """
        return self.encode(values, lengths, dense.index_select(1, self.columns), weights)

    def encode(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Do what `forward` does from this side's columns of `dense` alone."""
        x = self.gather(values, lengths, dense)
        return F.normalize(widen(self.layers(x, weights)), dim=1)


class Towers(nn.Module):
    """Both vectors of each row.

    Args:
        config: see `DSSMConfig`.
        inputs: the recipe's features.

    Attributes:
        names: the features of each side, "user" and "item".

    Raises:
        BadInput: the config names an unknown feature, or leaves the user none.
    """

    def __init__(self, config: DSSMConfig, inputs: Inputs) -> None:
        super().__init__()
        known = list(dict.fromkeys([*inputs.ids, *inputs.sequences, *inputs.dense]))
        if config.key not in inputs.ids:
            raise BadInput(f"model.key: there is no id feature '{config.key}'{nearest(config.key, inputs.ids)}")
        for name in config.item:
            if name not in known:
                raise BadInput(f"model.item: there is no feature '{name}'{nearest(name, known)}")
        items = [name for name in known if name in [config.key, *config.item]]
        users = [name for name in known if name not in items]
        if not users:
            raise BadInput("model.item: names every feature, and the user's tower needs one; leave the user's out")
        self.names = {"user": users, "item": items}
        self.user = _tower(config, inputs, users)
        self.item = _tower(config, inputs, items)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the user's and the item's vector of each row, (B, width) both; arguments as `Tower.forward`."""
        return self.user(values, lengths, dense, weights), self.item(values, lengths, dense, weights)


def _tower(config: DSSMConfig, inputs: Inputs, names: list[str]) -> Tower:
    return Tower(config, inputs.only(names), [column for column, name in enumerate(inputs.dense) if name in names])


@register_model("dssm", DSSMConfig)
class DSSM(Network):
    """score = <u, v>, the cosine of the two towers' vectors.

    In training a row's item stands against the items of all other rows of the *global* batch, by a softmax:

        s_ij = <u_i, v_j> / tau - log q_j,    loss_i = -log(e^s_ii / sum_j e^s_ij) = softplus(-z_i),
        z_i = s_ii - log sum_{j != i} e^s_ij

    and z_i is the logit that this network answers. q_j is how often the item is in batches (see `Rarity`): without it
    popular items, drawn as negatives so often, would be held down. j runs over rows of any label, for what was shown
    and not wanted is a good negative; another row with the same item is left out. Only rows that have an item and whose
    label is 1 teach (see modules.tasks.retrieval).

    Where the rows of a step share items (data.negatives.shared), j runs over those too, and q_j is the sum of both ways
    to be there: mixed negatives, Yang et al., WWW 2020 companion (10.1145/3366424.3386195), with the q of the mixture.

    Args:
        config: see `DSSMConfig`.
        inputs: the recipe's features.
        tasks: one.

    Raises:
        BadInput: see `Towers`; several tasks.
    """

    if TYPE_CHECKING:  # TorchScript would read it
        key: str

    shares = takes_shared = True
    __jit_ignored_attributes__ = ["rarity"]  # which only training needs, and which is large

    def __init__(self, config: DSSMConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        if len(tasks) > 1:
            raise BadInput(f"tasks: dssm learns one vector of each side, for one task, and here are {len(tasks)}")
        self.task = next(iter(tasks))
        self.key = config.key
        self.temperature = config.temperature
        self.towers = Towers(config, inputs)
        self.rarity = Rarity() if config.log_q else None

    def forward(
        self,
        values: dict[str, Tensor],
        lengths: dict[str, Tensor],
        dense: Tensor,
        weights: Tensor | None = None,
        keys: Tensor | None = None,
        often: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if self.training and not torch.jit.is_scripting():
            assert keys is not None  # see Network.key
            assert weights is not None
            return {self.task: self._against_others(values, lengths, dense, weights, keys, often)}
        user, item = self.towers(values, lengths, dense, weights)
        return {self.task: products.of_pairs(user, item)}

    @torch.jit.unused
    def _against_others(
        self,
        values: dict[str, Tensor],
        lengths: dict[str, Tensor],
        dense: Tensor,
        weights: Tensor,
        keys: Tensor,
        often: Tensor | None,
    ) -> Tensor:
        """Return z of each of B rows, behind which `dense` may have items alone; arguments as of `forward`."""
        size, there = weights.size(0), lengths[self.key] > 0
        keys = jagged.rows(keys.unsqueeze(1), lengths[self.key]).squeeze(1)  # (B + n,)
        counts, every = lengths, weights
        if often is not None:
            counts = {name: each[:size] for name, each in lengths.items()}
            every = torch.cat([weights, there[size:].to(weights.dtype)])
        user = self.towers.user(values, counts, dense[:size], weights)  # (B, width)
        item = self.towers.item(values, lengths, dense, every)  # (B + n, width)
        valid = there[:size] & (weights > 0)
        with torch.autocast(user.device.type, enabled=False):
            found = gathered(item, keys, valid, there[size:], often, self.rarity)
            own = (user * item[:size]).sum(1) / self.temperature
            if self.rarity is not None:
                own = own - found.log_q[found.first : found.first + size]
            bias = found.bias(self.rarity is not None)
            others = logsumexp_of_others(user / self.temperature, found.vectors, bias, keys[:size], found.keys)
            return none_where(valid, own - others)
