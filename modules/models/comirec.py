"""ComiRec: several vectors of a user, one per interest, by self-attention (Cen et al., KDD 2020, 2005.09347)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from livetrain.configs.values import Few, Length
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.buckets import buckets, pad, unpad
from livetrain.modules.layers.hstu import placed
from livetrain.modules.models.next_item import Body, NextItem, NextItemConfig, check_places
from livetrain.modules.models.registry import register_model

MOST = 30.0  # of a score's size; e^60 between two events is a choice already


class ComiRecConfig(NextItemConfig):
    """Self-attention that sorts a history into a few interests."""

    kind: Literal["comirec"] = "comirec"
    interests: Few = Field(4, description="vectors of a user")
    positions: Length = Field(50, description="events that have a position of their own: the history's max_length")


class ComiRecBody(Body):
    """V_k = sum_j a_jk v_j,   a_k = softmax over events of (tanh((v + p) W_1) W_2)_k

    The state behind an event is that of the events up to it: sums of exp, weighted and not, that each event adds to.
    Scores beyond `MOST` count as that.
    Positions p count from the oldest event, so that what an event adds is the same in every state after it.

    Args:
        config: see `ComiRecConfig`.
        width: d.

    Source: ComiRec-SA, section 3.2.2, with W_1 of 4 d columns; that positions weigh and are not summed is a decision of
    this project.
    """

    def __init__(self, config: ComiRecConfig, width: int) -> None:
        super().__init__()
        self.interests, self.most = config.interests, MOST  # TorchScript sees no names of the file
        self.positions = nn.Parameter(torch.randn(config.positions, width) * 0.02)
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(4 * width, config.interests, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, events: Tensor, count: Tensor, values: dict[str, Tensor], lengths: dict[str, Tensor]) -> Tensor:
        """See `Body`."""
        events = self.dropout(events)
        scores = self.out(torch.tanh(self.hidden(events + placed(self.positions, count, events.size(0)))))  # (N, K)
        layout = buckets(count, events.size(0))
        states: list[Tensor] = []
        for x, score in zip(pad(events, layout), pad(scores, layout)):  # noqa: B905  TorchScript knows no strict=
            # Sums over the events so far have no largest score to take off: within MOST float32 holds them exactly.
            weight = score.float().clamp(-self.most, self.most).exp().unsqueeze(3)  # (n, T, K, 1)
            summed = (weight * x.float().unsqueeze(2)).cumsum(1) / weight.cumsum(1)
            states.append(summed.flatten(2))
        none = (scores[:0, :1].float() * events[:0].float()).repeat(1, self.interests)
        return unpad(states, layout, none).unflatten(1, [self.interests, -1])


@register_model("comirec", ComiRecConfig)
class ComiRec(NextItem):
    """ComiRec-SA: see `NextItem` for targets and losses, `ComiRecBody` for what reads the events.

    A target is learned by the interest that is nearest to it, and an item's score is that of its nearest interest.

    Args:
        config: see `ComiRecConfig`.
        inputs: the recipe's features.
        tasks: one.
    """

    def body(self, config: ComiRecConfig, inputs: Inputs, width: int) -> Body:
        """See `NextItem`."""
        check_places("positions", config.positions, config, inputs)
        return ComiRecBody(config, width)
