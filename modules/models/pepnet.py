"""PEPNet: embeddings gated by the domain, towers gated by the user (Chang et al., KDD 2023, arXiv 2302.01115)."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import Task
from livetrain.configs.values import FeatureName, Size
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.layers.bottom import Bottom, Reading
from livetrain.modules.models.multitask import MultiTask, MultiTaskConfig, Towers
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import PerTask
from livetrain.modules.tasks.heads import Heads, outputs


class PEPNetConfig(MultiTaskConfig):
    """A tower per task; gates by the domain on what all towers read, gates by the user on every hidden layer."""

    kind: Literal["pepnet"] = "pepnet"
    domain: list[FeatureName] = Field(
        [], description="id and dense features that tell the domain, as scene or hour: they gate the features (EPNet)"
    )
    personal: list[FeatureName] = Field(
        [], description="id and dense features of user, item and author: they gate the towers' layers (PPNet)"
    )
    gate_units: Size = Field(64, description="hidden units of each gate")

    @model_validator(mode="after")
    def _gates_something(self) -> "PEPNetConfig":
        if not self.domain and not self.personal:
            raise BadInput("model: pepnet without domain and personal gates nothing; name features, or use kind: dnn")
        if self.personal and not self.tower_units:
            raise BadInput(
                "model.personal: it gates the towers' hidden layers, and model.tower_units has none; add one"
            )
        return self


class Chosen(nn.Module):
    """Some id and dense features of a row, one after the other.

    Args:
        key: of the config, for messages.
        names: of the features.
        inputs: the recipe's.

    Attributes:
        width: of what `forward` answers.

    Raises:
        BadInput: there is no such id or dense feature.
    """

    ids: list[str]
    columns: Tensor

    def __init__(self, key: str, names: list[str], inputs: Inputs) -> None:
        super().__init__()
        known = [*inputs.ids, *dict.fromkeys(inputs.dense)]
        for name in names:
            if name not in known:
                raise BadInput(f"{key}: there is no id or dense feature '{name}'{nearest(name, known)}")
        self.ids = [name for name in names if name in inputs.ids]
        columns = [column for column, name in enumerate(inputs.dense) if name in names]
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.long), persistent=False)
        self.width = sum(inputs.ids[name] for name in self.ids) + len(columns)

    def forward(self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor) -> Tensor:
        """Return (B, width), ids before numbers; arguments as `Bottom`'s."""
        found = [jagged.of_rows(jagged.rows(values[name], lengths[name]), lengths, dense.size(0)) for name in self.ids]
        return torch.cat(found + [dense.index_select(1, self.columns)], 1)


class Gate(nn.Module):
    """g = 2 sigmoid(W2 relu(W1 z + b1) + b2): 1 leaves a number as it is.

    Args:
        width: of z.
        units: hidden.
        size: of g.

    Source: PEPNet, 2302.01115, equations 1 and 2.
    """

    def __init__(self, width: int, units: int, size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, units)
        self.out = nn.Linear(units, size)

    def forward(self, z: Tensor) -> Tensor:
        """Args: z (B, width). Returns: (B, size), between 0 and 2."""
        return 2 * self.out(self.hidden(z).relu()).sigmoid()


class EPNet(Reading):
    """x = [Gate([d, stop(e)]) * e, p]:  e all features of `Bottom`, d those of the domain, p the personal ones.

    Behind stop() no gradient goes back: of e alone the gate learns nothing about the features.

    Args:
        config: see `PEPNetConfig`.
        inputs: the recipe's features.

    Attributes:
        gated: width of e.
        width: of x.
    """

    def __init__(self, config: PEPNetConfig, inputs: Inputs) -> None:
        super().__init__()
        self.bottom = Bottom(config, inputs)
        self.gated = self.bottom.width
        self.domain = Chosen("model.domain", config.domain, inputs)
        self.personal = Chosen("model.personal", config.personal, inputs)
        self.gate = Gate(self.domain.width + self.gated, config.gate_units, self.gated) if config.domain else None
        self.width = self.gated + self.personal.width

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """See `Reading`."""
        e = self.bottom(values, lengths, dense, weights)
        if self.gate is not None:
            e = self.gate(torch.cat([self.domain(values, lengths, dense), e.detach()], 1)) * e
        return torch.cat([e, self.personal(values, lengths, dense)], 1)


class _Tower(nn.Module):
    """h_l = relu(W_l h_{l-1} + b_l) * Gate_l(z), then a linear layer."""

    def __init__(self, config: PEPNetConfig, width: int, personal: int, count: int) -> None:
        super().__init__()
        sizes = [width, *config.tower_units]
        self.linears = nn.ModuleList(nn.Linear(m, n) for m, n in zip(sizes[:-1], config.tower_units, strict=True))
        self.gates = nn.ModuleList(Gate(personal + width, config.gate_units, n) for n in config.tower_units)
        self.dropout = nn.Dropout(config.dropout)
        self.last = nn.Linear(sizes[-1], count)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Args: h (B, width), z (B, personal + width). Returns: (B, outputs)."""
        for linear, gate in zip(self.linears, self.gates):  # noqa: B905  TorchScript knows no strict=
            h = self.dropout(linear(h).relu() * gate(z))
        return self.last(h)


class PPNet(nn.Module):
    """y_k = tower_k(e), each hidden layer l times Gate_kl([p, stop(e)]), of x = [e, p].

    Args:
        config: see `PEPNetConfig`.
        tasks: a tower, with gates of its own, each.
        gated: width of e.
        personal: of p.
    """

    def __init__(self, config: PEPNetConfig, tasks: dict[str, Task], gated: int, personal: int) -> None:
        super().__init__()
        self.sizes = [gated, personal]
        self.towers = PerTask(_Tower(config, gated, personal, count) for count in outputs(tasks))

    def forward(self, x: Tensor, weights: Tensor | None) -> list[Tensor]:
        """Args: x (B, width). Returns: the tasks' outputs, (B,) each."""
        e, personal = x.split(self.sizes, 1)
        z = torch.cat([personal, e.detach()], 1)
        out: list[Tensor] = []
        for tower in self.towers:
            out += tower(e, z).unbind(1)
        return out


@register_model("pepnet", PEPNetConfig)
class PEPNet(MultiTask):
    """y_k = the k-th output of `PPNet` on what `EPNet` made of the features; without personal features of `Towers`.

    Features that the gates read are features of the rows too, and are gated with the others. A feature on the same
    column with a small table of its own, named here alone, keeps what gates learn apart from what towers do.

    Args:
        config: see `PEPNetConfig`.
        inputs: the recipe's features.
        tasks: a tower, with gates of its own, each.

    Raises:
        BadInput: the config does not fit the features, see `Bottom`; a gate's feature is no id or dense feature.
    """

    def __init__(self, config: PEPNetConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        bottom = EPNet(config, inputs)
        if config.personal:
            trunk: nn.Module = PPNet(config, tasks, bottom.gated, bottom.personal.width)
        else:
            trunk = Towers(config, tasks, bottom.width)
        super().__init__(bottom, trunk, Heads(tasks))
