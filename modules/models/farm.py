"""FARM: frequency-aware model for cross-domain live-streaming recommendation (Kuaishou, KDD 2026, arXiv 2502.09375).

The paper has no public code, and what is known of it is its structure. What was decided here says so where it stands.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, cast

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import Section, Task
from livetrain.configs.values import CountOrZero, Dropout, FeatureName, Length, Size, Units, real, whole
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.layers.align import Align, signature
from livetrain.modules.layers.attention import ActivationUnit, Looking, looked
from livetrain.modules.layers.bottom import Attention, PerHistory, check_features
from livetrain.modules.layers.domain import Domain
from livetrain.modules.layers.frequency import Learned, Plain, Split
from livetrain.modules.layers.gather import Gather
from livetrain.modules.layers.sequence import Block, Cross, Positions, laid_out, laid_out_in_pairs
from livetrain.modules.models.ple import ExpertsConfig, Trunk
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import REGULARISER, Network
from livetrain.modules.tasks.heads import Heads


class FrequencyConfig(Section):
    """How a domain's events are filtered."""

    filter: Literal["split", "learned"] = Field(
        "split", description="gated low and high frequencies of each user's own length; or FMLP-Rec's learned filter"
    )
    cutoff: Annotated[float, real(1e-6, 2**16)] = Field(
        3, description="split: number of low frequencies, or below 1 the share of a user's own"
    )
    units: Units = Field([32], description="split: hidden layers of the gates")
    length: Annotated[int, *whole(2, 2**16)] | None = Field(
        None, description="learned: events to which every row is padded; newest ones count"
    )
    dropout: Dropout = 0.0

    @field_validator("cutoff")
    @classmethod
    def _whole(cls, cutoff: float) -> float:
        if cutoff >= 1 and cutoff != int(cutoff):
            raise BadInput(f"model.frequency.cutoff: {cutoff} is neither a number of frequencies nor a share below 1")
        return cutoff

    @model_validator(mode="after")
    def _length_where_needed(self) -> "FrequencyConfig":
        if self.filter == "learned" and self.length is None:
            raise BadInput("model.frequency.length: a learned filter needs it, as the longest max_length of the events")
        return self


class AlignConfig(Section):
    """How the two domains' views of a user are pulled together."""

    user: FeatureName = Field(description="id feature of the user, whose other rows are no negatives")
    weight: Annotated[float, real(0, 1e6)] = Field(
        0.1, description="of the alignment's loss beside the tasks'; 0 leaves it out"
    )
    temperature: Annotated[float, real(1e-3, 1000)] = 0.1
    warmup: CountOrZero = Field(0, description="steps in which the weight rises from 0")
    negatives: Literal["global", "rank"] = Field(
        "global", description="rows of the whole batch; or only of the rank, which learns otherwise on more ranks"
    )


class FARMConfig(ExpertsConfig):
    """One or two domains of events: filtered by frequency, aligned, fused by attention; then PLE."""

    kind: Literal["farm"] = "farm"
    attention: list[Attention] = Field(min_length=1, max_length=2, description="one history per domain")
    width: Size = Field(32, description="size of an event in either domain")
    frequency: FrequencyConfig | None = FrequencyConfig()
    align: AlignConfig | None = None
    fuse: Literal["attention", "concat"] = Field(
        "attention", description="self- and cross-attention before the candidate looks; or only the candidate's look"
    )
    blocks: Annotated[int, *whole(0, 256)] = Field(1, description="self-attention blocks per domain")
    heads: Size = 2
    positions: Length = Field(64, description="newest events that have a position of their own")
    levels: Annotated[int, *whole(1, 32)] = Field(1, description="of PLE; one level is CGC")

    @model_validator(mode="after")
    def _fits(self) -> "FARMConfig":
        if self.width % self.heads:
            raise BadInput(f"model.heads: {self.heads} heads do not divide model.width {self.width}")
        if self.align and self.align.weight and len(self.attention) == 1:
            raise BadInput("model.align: one domain has nothing to be aligned with; remove align, or add a history")
        return self


def _per_history(config: FARMConfig, modules: Iterable[nn.Module]) -> PerHistory:
    return PerHistory(modules, config.attention, [config.width] * len(config.attention))


def _filter(config: FARMConfig, name: str) -> nn.Module:
    frequency = config.frequency
    if frequency is None:
        return Plain(config.width)
    if frequency.filter == "learned":
        assert frequency.length is not None  # see FrequencyConfig
        return Learned(config.width, frequency.length, frequency.dropout)
    return Split(config.width, frequency.cutoff, frequency.units, frequency.dropout, name)


class _Fuse(nn.Module):
    """Self-attention in each domain, then each domain's events look at the other's.

    With one domain there is nothing to look at across.

    Args:
        config: width, heads, blocks, positions, dropout.
    """

    def __init__(self, config: FARMConfig) -> None:
        super().__init__()
        width, count = config.width, len(config.attention)
        self.positions = _per_history(config, (Positions(config.positions, width) for _ in range(count)))
        blocks = (
            nn.ModuleList(Block(width, config.heads, config.dropout, causal=False) for _ in range(config.blocks))
            for _ in range(count)
        )
        self.blocks = cast(Sequence[nn.ModuleList], _per_history(config, blocks))
        crosses = (Cross(width, config.heads, config.dropout) for _ in range(count if count > 1 else 0))
        self.crosses = _per_history(config, crosses)
        self.norms = _per_history(config, (nn.LayerNorm(width) for _ in range(count)))

    def forward(self, events: list[Tensor], lengths: list[Tensor]) -> list[Tensor]:
        """Args: (N, d) events and (B,) lengths per domain. Returns: (N, d) per domain."""
        own: list[Tensor] = []
        for i, (positions, blocks) in enumerate(zip(self.positions, self.blocks)):  # noqa: B905
            x = positions(events[i], lengths[i])
            layout = laid_out(lengths[i], x.size(0))
            for block in blocks:
                x = block(x, layout)
            own.append(x)
        mixed = own
        if len(own) == 2:
            layouts = list(laid_out_in_pairs(lengths[0], own[0].size(0), lengths[1], own[1].size(0)))
            mixed = []
            for i, cross in enumerate(self.crosses):
                mixed.append(cross(own[i], layouts[i], own[1 - i], layouts[1 - i]))
        out: list[Tensor] = []
        for i, norm in enumerate(self.norms):
            out.append(norm(mixed[i]))
        return out


@register_model("farm", FARMConfig)
class FARM(Network):
    """logits = PLE([ids, pooled sequences, dense, what the candidate saw in each domain]).

    For each domain, short video and live as a rule, over a user's events k:

        V = W e_k + U s_k                  event with its action signals
        F = filter(V)                      see layers.frequency
        L_align(mean F_1, mean F_2)        see layers.align; before fusion, in training only
        H = self-attention(F + position);  C_1 = H_1 + cross-attention(H_1, H_2), and the other way round
        seen = activation unit(q, LayerNorm(C))   as in DIN, q the candidate in V's space

    Decided here, as the public sources leave them open: the candidate's attention is DIN's unit; positions enter after
    the filter, whose spectrum is the events' alone; a row takes part in the alignment if it has events in both domains;
    rows are of one user if the user's embeddings are the same, bit by bit, so users that share a table's row count as
    one, and all unknown ones as one.

    In training the answer has a further entry, `REGULARISER`: the weighted loss of the alignment.

    Args:
        config: see `FARMConfig`.
        inputs: the recipe's features.
        tasks: own experts and a gate in each level, and a tower, each.

    Raises:
        BadInput: the config does not fit the features.
    """

    shares = True
    user: str

    if TYPE_CHECKING:  # TorchScript would read it
        trunk: Trunk

    def __init__(self, config: FARMConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        check_features(config.attention, config.pooled, inputs)
        width, align = config.width, config.align
        self.gather = Gather(inputs, config.pooled)
        domains = _per_history(config, (Domain(part, inputs, width) for part in config.attention))
        self.domains = cast(Sequence[Domain], domains)
        self.filters = _per_history(config, (_filter(config, part.events[0]) for part in config.attention))
        self.user = align.user if align else ""
        self.align = None
        if align and align.user not in inputs.ids:
            raise BadInput(f"model.align.user: there is no id feature '{align.user}'{nearest(align.user, inputs.ids)}")
        if align and align.weight:
            self.align = Align(align.weight, align.temperature, align.warmup, align.negatives == "global")
        self.fuse = _Fuse(config) if config.fuse == "attention" else None
        units = (
            ActivationUnit(width, 0, config.attention_units, config.activation, config.softmax)
            for _ in config.attention
        )
        self.units = cast(Sequence[ActivationUnit], _per_history(config, units))
        x = self.gather.width + width * len(config.attention)
        self.trunk = Trunk(config, tasks, x, config.levels)
        self.heads = Heads(tasks)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        size = dense.size(0)
        views: list[Tensor] = []  # (N, d) per domain
        counts: list[Tensor] = []  # (B,)
        names: list[str] = []
        for domain, filtered in zip(self.domains, self.filters):  # noqa: B905  TorchScript knows no strict=
            events, count = domain(values, lengths)
            views.append(filtered(events, count))
            counts.append(count)
            names.append(domain.events[0])
        request = jagged.request_of(lengths)
        rows = max([count.size(0) for count in counts])
        for i, count in enumerate(counts):
            if count.size(0) < rows and request is None:  # one history for all rows, beside another one per row
                views[i], counts[i] = views[i].repeat(rows, 1), count.repeat(rows)
            elif count.size(0) < rows:  # one history per request, beside another one per row
                assert request is not None
                total = jagged.events_of(lengths, names[i])
                place, counts[i] = jagged.repeated(count, request, total)
                views[i] = views[i].index_select(0, place)
        fused = views
        if self.fuse is not None:
            fused = self.fuse(views, counts)
        if self.training and not torch.jit.is_scripting():  # a scripted file only scores
            return self._train(views, counts, fused, values, lengths, dense, weights)
        parts = [self.gather(values, lengths, dense)]
        for i, (domain, unit) in enumerate(zip(self.domains, self.units)):  # noqa: B905
            query = domain.candidate(values, lengths, dense)
            if counts[i].size(0) == size:
                parts.append(unit(query, fused[i], None, counts[i], weights))
            elif request is not None:  # one history per request
                total = jagged.events_of(lengths, domain.events[0])
                parts.append(unit(query, fused[i], None, counts[i], weights, request, total))
            else:  # one history for all rows
                parts.append(unit.shared(query, fused[i], None))
        return self.heads(self.trunk(torch.cat(parts, 1), weights))

    @torch.jit.unused
    def _train(
        self,
        views: list[Tensor],
        counts: list[Tensor],
        fused: list[Tensor],
        values: dict[str, Tensor],
        lengths: dict[str, Tensor],
        dense: Tensor,
        weights: Tensor | None,
    ) -> dict[str, Tensor]:
        """Go on from each domain's events before and after fusion. What is summed over ranks goes together."""
        request, size = jagged.request_of(lengths), dense.size(0)
        valid = jagged.of_rows((counts[0] > 0) & (counts[-1] > 0), lengths, size)
        if weights is not None:
            valid = valid & (weights > 0)
        taking_part = None if self.align is None else self.align.count(valid)
        units: list[Looking] = []
        for i, (domain, unit) in enumerate(zip(self.domains, self.units, strict=True)):
            query = domain.candidate(values, lengths, dense)
            if request is None or counts[i].size(0) == size:
                units.append(unit.look(query, fused[i], None, counts[i], weights))
            else:  # one history per request
                total = jagged.events_of(lengths, domain.events[0])
                units.append(unit.look(query, fused[i], None, counts[i], weights, request, total))
        logits = self.heads(self.trunk(torch.cat([self.gather(values, lengths, dense), *looked(units)], 1), weights))
        if self.align is not None:  # of each domain's events before fusion; a user counts as often as there are rows
            pooled = [jagged.pool(view, count, True) for view, count in zip(views, counts, strict=True)]
            user = jagged.rows(values[self.user], lengths[self.user])
            one, other, user = (jagged.of_rows(each, lengths, size) for each in (*pooled, user))
            logits[REGULARISER] = self.align(one, other, signature(user), valid, taking_part)
        return logits
