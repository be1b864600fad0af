"""NCF: neural collaborative filtering (He et al., WWW 2017, arXiv 1708.05031): GMF, MLP and NeuMF."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import ModelConfig, Task
from livetrain.configs.values import Dropout, FeatureName, Units, whole
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.mlp import MLP
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import Network
from livetrain.modules.tasks.heads import Heads, outputs


class NCFConfig(ModelConfig):
    """A user and an item, by their product, by a perceptron, or by both."""

    kind: Literal["ncf"] = "ncf"
    user: FeatureName = Field("user", description="id feature")
    item: FeatureName = Field(description="id feature")
    product: Annotated[int, *whole(0, 2**16)] = Field(
        8, description="columns of either id's table row whose products count; 0: MLP alone"
    )
    units: Units = Field([64, 32, 16, 8], description="hidden layers on the other columns; without these, GMF alone")
    dropout: Dropout = 0.0


@register_model("ncf", NCFConfig)
class NCF(Network):
    """logits = W [p_u * q_i, MLP([p'_u, q'_i])] + b, one row of W per task: equation 12, NeuMF.

    p and q are the first `product` columns of the two table rows, p' and q' the others. A table has as many columns as
    both parts of the paper's two tables have together, and is looked up once. All parts are trained at once, without
    the paper's pre-training of either. W begins with .5 for the products, and as usual for the rest.

    Args:
        config: see `NCFConfig`.
        inputs: the recipe's features: the two ids and nothing else.
        tasks: one logit each.

    Raises:
        BadInput: the recipe lacks a feature or has others, or a table has fewer columns than are multiplied.
    """

    shares = True

    def __init__(self, config: NCFConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        self.user, self.item, self.product = config.user, config.item, config.product
        pair = {"user": config.user, "item": config.item}
        for key, name in pair.items():
            if name not in inputs.ids:
                raise BadInput(f"model.{key}: there is no id feature '{name}'{nearest(name, inputs.ids)}")
            if inputs.ids[name] < config.product:
                raise BadInput(
                    f"model.product: {config.product} columns are more than the table of features.{name} has, dim "
                    f"{inputs.ids[name]}; raise its dim, or lower model.product"
                )
        for name in [*inputs.ids, *inputs.sequences, *inputs.dense]:
            if name not in pair.values():
                raise BadInput(f"features.{name}: ncf reads model.user and model.item only; remove it")
        rest = sum(inputs.ids[name] - config.product for name in pair.values())
        self.mlp = MLP(rest, config.units, "relu", config.dropout) if rest else None
        width = config.product + ((config.units or [rest])[-1] if rest else 0)
        self.last = nn.Linear(width, sum(outputs(tasks)))
        with torch.no_grad():  # p * q begins as a factorisation: the usual draw makes p and q grow against decay
            self.last.weight[:, : config.product] = 0.5
        self.heads = Heads(tasks)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        user = self.row(values, lengths, self.user, dense.size(0))
        item = self.row(values, lengths, self.item, dense.size(0))
        parts = [user[:, : self.product] * item[:, : self.product]]
        if self.mlp is not None:
            parts.append(self.mlp(torch.cat([user[:, self.product :], item[:, self.product :]], 1)))
        return self.heads(self.last(torch.cat(parts, 1)).unbind(1))
