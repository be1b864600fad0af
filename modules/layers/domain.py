"""The events of one domain and the candidate that is compared with them, in one space."""

import torch
from torch import Tensor, nn

from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.bottom import Attention, Query, check_parallel
from livetrain.modules.layers.events import layer, passes_for


class Space(nn.Module):
    """V_k = W e_k + U s_k for events,  W e for the candidate.

    The candidate's features are the counterparts of an event's, so both go through one W; s are what an event has and
    a candidate has not, such as its action signals and the time since it. There is no bias: beside it new embeddings,
    which are small, would all look alike once they are normalised.

    Args:
        part: the features.
        inputs: the recipe's.
        width: d, size of V and q.
    """

    events: list[str]
    side: list[str]

    def __init__(self, part: Attention, inputs: Inputs, width: int) -> None:
        super().__init__()
        self.query = Query(part, inputs)
        self.events = list(part.events)
        self.side = list(part.side)
        self.project = nn.Linear(sum(inputs.sequences[name] for name in part.events), width, bias=False)
        side = sum(inputs.sequences[name] for name in part.side)
        self.project_side = nn.Linear(side, width, bias=False) if part.side else None

    def forward(self, values: dict[str, Tensor], lengths: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the events of each row, (N, d), and how many it has, (B,); or those of what rows share.

        Args:
            values: feature -> (sum of lengths, dim) embeddings.
            lengths: feature -> (B,), or fewer of features that rows share, see `Network`.

        Raises:
            BadInput: the domain's lists differ in length; ValueError when scripted.
        """
        check_parallel(lengths, self.events + self.side)
        events = torch.cat([values[name] for name in self.events], 1)
        side = torch.cat([values[name] for name in self.side], 1) if self.side else None
        if self.training and not torch.jit.is_scripting():  # a scripted file only scores
            return self._train(events, side), lengths[self.events[0]]
        return self._as_written(events, side), lengths[self.events[0]]

    def _as_written(self, events: Tensor, side: Tensor | None) -> Tensor:
        out = self.project(events)
        if self.project_side is not None and side is not None:
            out = out + self.project_side(side)
        return out

    @torch.jit.unused
    def _train(self, events: Tensor, side: Tensor | None) -> Tensor:
        library = passes_for(events, self.project.out_features)
        if library is None:
            return self._as_written(events, side)
        out = layer(library, events, None, [self.project])
        if self.project_side is not None and side is not None:
            out = layer(library, side, None, [self.project_side], beside=out)
        return out

    def projected(self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor) -> Tensor:
        """Return the candidate of each of B rows, (B, d); dense is the network's, (B, D)."""
        return self.project(self.query(values, lengths, dense))


class Domain(Space):
    """A `Space` in which the candidate is normalised: q = LayerNorm(W e).

    Args:
        part: the features.
        inputs: the recipe's.
        width: d, size of V and q.
    """

    def __init__(self, part: Attention, inputs: Inputs, width: int) -> None:
        super().__init__(part, inputs, width)
        self.norm = nn.LayerNorm(width)

    def candidate(self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor) -> Tensor:
        """Return the candidate of each of B rows, (B, d); dense is the network's, (B, D)."""
        return self.norm(self.projected(values, lengths, dense))
