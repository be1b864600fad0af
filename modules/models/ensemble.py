"""An ensemble: several networks of one kind, each with a part of every table's columns, whose logits are averaged."""

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
)
from torch import Tensor, nn

from livetrain.configs import registry
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import ModelConfig, Task
from livetrain.configs.values import Few
from livetrain.modules.inputs import Inputs
from livetrain.modules.models.registry import network, register_model
from livetrain.modules.network import REGULARISER, TARGETS, Network


class EnsembleConfig(ModelConfig):
    """How many networks, and which."""

    kind: Literal["ensemble"] = "ensemble"
    members: Few = Field(4, description="networks, each with its part of every table's columns; their mean counts")
    of: Annotated[SerializeAsAny[ModelConfig], BeforeValidator(registry.MODELS.parse)] = Field(
        description="the members' kind and keys, as another recipe's model"
    )

    @property
    def jumps(self) -> bool:
        return self.of.jumps

    @field_validator("of")
    @classmethod
    def _is_trained(cls, of: ModelConfig) -> ModelConfig:
        if of.fitted:
            raise BadInput(f"model.of.kind: '{of.kind}' is fitted and not trained by steps; name a network's kind")
        return of

    @field_serializer("of", mode="wrap")
    def _named(self, of: ModelConfig, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"kind": of.kind} | write(of)  # which is its class's default, and left out where defaults are


@register_model("ensemble", EnsembleConfig)
class Ensemble(Network):
    """logit = mean_k logit_k of K networks, each with a loss of its own in training.

    Of a table of dim d member k has columns k d / K to (k + 1) d / K - 1, so that one lookup and one exchange between
    ranks serve all members. They begin with different numbers, and each learns from the same rows by itself:

        L = mean_k L(logit_k, label) + mean_k of what member k's network adds (REGULARISER)

    The gradient of member k is 1 / K of what it would be alone. Optimizers that divide by the gradients' size, number
    by number (adam, adagrad), therefore move each member as they would alone; rowwise_adagrad has one size for a row,
    which the members share.

    Source: Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep ensembles",
    NeurIPS 2017, 1612.01474: members that differ in their initial numbers, each with its own loss. That the logits are
    averaged and not the probabilities, so that the ensemble answers as any network does, is a decision of this project.

    Args:
        config: see `EnsembleConfig`.
        inputs: the recipe's features.
        tasks: one logit each.

    Raises:
        BadInput: a table's columns do not divide among the members, or these are of a kind that looks at more than a
            row's features.
    """

    parts: dict[str, int]
    several = True

    def __init__(self, config: EnsembleConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        self.count = config.members
        beside = {name: inputs.beside(name)[1] for name in inputs.sequences}
        dims = inputs.ids | {name: size - beside[name] for name, size in inputs.sequences.items()}
        for name, dim in dims.items():
            if dim % self.count:
                raise BadInput(
                    f"model.members: the table of features.{name} has dim {dim}, which does not divide among "
                    f"{self.count} members; use a dim of {dim // self.count * self.count or self.count} or "
                    f"{(dim // self.count + 1) * self.count}"
                )
        self.parts = {name: dim // self.count for name, dim in dims.items()}
        ids = {name: self.parts[name] for name in inputs.ids}
        sequences = {name: self.parts[name] + width for name, width in beside.items()}
        own, build = replace(inputs, ids=ids, sequences=sequences), network(config.of.kind)
        self.members = nn.ModuleList(build(config.of, own, tasks) for _ in range(self.count))
        first = self.members[0]
        if first.key is not None or first.towers is not None or first.takes_shared or first.several:
            raise BadInput(
                f"model.of.kind: '{config.of.kind}' finds items, compares ids or is an ensemble itself; name a kind "
                "that scores a row by its features"
            )
        self.shares = first.shares

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        answers: list[dict[str, Tensor]] = []
        for k, member in enumerate(self.members):
            own = values.copy()
            for name, dim in self.parts.items():
                value = values[name]  # the members' columns, and behind them the vectors that events carry
                own[name] = torch.cat([value[:, k * dim : (k + 1) * dim], value[:, self.count * dim :]], 1)
            answers.append(member(own, lengths, dense, weights))
        if self.training and not torch.jit.is_scripting():  # a scripted file only scores
            return self._apart(answers, dense.size(0))
        return {task: torch.stack([answer[task] for answer in answers]).mean(0) for task in answers[0]}

    @torch.jit.unused
    def _apart(self, answers: list[dict[str, Tensor]], size: int) -> dict[str, Tensor]:
        """Return the members' answers to each row, one after the other, and the mean of their own losses."""
        found: dict[str, Tensor] = {}
        for task in answers[0]:
            given = torch.stack([answer[task] for answer in answers], 1 if task != REGULARISER else 0)
            found[task] = given.mean(0) if task == REGULARISER else given.flatten(0, 1)
        each = torch.full((size,), self.count, device=next(iter(found.values())).device)
        return found | {TARGETS: each}
