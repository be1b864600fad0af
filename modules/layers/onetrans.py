"""OneTrans: events and features as the tokens of one transformer, in which no event sees a feature."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.modules.layers import jagged
from livetrain.modules.layers.experts import Batched


def of_rows(x: Tensor, lengths: dict[str, Tensor], size: int) -> Tensor:
    """Do what jagged.of_rows does, of (R, ...) of any shape."""
    return jagged.of_rows(x.flatten(1), lengths, size).view([size] + list(x.size())[1:])


class OneTransBlock(nn.Module):
    """z = Attention(RMSNorm(x)) + x;  x' = W2 gelu(W1 RMSNorm(z) + b1) + b2 + z,  x = [events, features]

    All events share one set of W1, W2 and of the weights of queries, keys and values; each feature token has an own
    one. Attention is causal over [events, features]: an event sees earlier events, a feature token all events and
    earlier feature tokens. Only the newest events ask: the others are keys and values of this block, and gone after it.

    Args:
        count: feature tokens.
        width: d.
        heads: h, divides d.
        expansion: hidden units for each of d numbers.

    Source: OneTrans, 2510.26104, sections 3.3 and 3.4; decided here: GELU, and one output projection for all tokens.
    """

    def __init__(self, count: int, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.forward_norm = nn.RMSNorm(width, eps=1e-6)
        self.of_events = nn.Linear(width, 3 * width)
        self.of_features = Batched(count, width, 3 * width)
        self.project = nn.Linear(width, width, bias=False)
        self.event_hidden = nn.Linear(width, expansion * width)
        self.event_out = nn.Linear(expansion * width, width)
        self.feature_hidden = Batched(count, width, expansion * width)
        self.feature_out = Batched(count, expansion * width, width)

    def forward(
        self, events: Tensor, there: Tensor, features: Tensor, lengths: dict[str, Tensor], keep: int
    ) -> tuple[Tensor, Tensor]:
        """Take both through the block.

        Args:
            events: (R, T, d), the newest at the end; of rows, of requests, or of all rows together (R = 1).
            there: (R, T) bool, false where there is no event.
            features: (B, L, d).
            lengths: a network's, which says whose requests rows are.
            keep: K, of the newest events, which go on.

        Returns:
            (R, K, d) and (B, L, d).
        """
        size, total, count = features.size(0), events.size(1), features.size(1)
        q, k, v = self.of_events(self.norm(events)).chunk(3, 2)
        own_q, own_k, own_v = self.of_features(self.norm(features)).chunk(3, 2)
        place = torch.arange(total, device=events.device)
        asking = place[total - keep :].unsqueeze(1)
        # What stands in an event's place where there is none sees itself, for a softmax needs something.
        sees = ((place <= asking) & there.unsqueeze(1)) | (place == asking)  # (R, K, T)
        seen = self._attend(q[:, total - keep :], k, v, sees)
        kept = self.project(seen) + events[:, total - keep :]
        kept = self.event_out(F.gelu(self.event_hidden(self.forward_norm(kept)))) + kept

        both = of_rows(torch.cat([k, v], 2), lengths, size)
        k, v = torch.cat([both[:, :, : k.size(2)], own_k], 1), torch.cat([both[:, :, k.size(2) :], own_v], 1)
        order = torch.arange(count, device=events.device)
        before = (order <= order.unsqueeze(1)).expand(size, -1, -1)  # (B, L, L)
        sees = torch.cat([of_rows(there, lengths, size).unsqueeze(1).expand(-1, count, -1), before], 2)
        features = self.project(self._attend(own_q, k, v, sees)) + features
        return kept, self.feature_out(F.gelu(self.feature_hidden(self.forward_norm(features)))) + features

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
        """Return (n, T, d) of queries (n, T, d), keys and values (n, S, d), and what sees what, (n, T, S)."""
        seen = F.scaled_dot_product_attention(self._part(q), self._part(k), self._part(v), attn_mask=sees.unsqueeze(1))
        return seen.transpose(1, 2).flatten(2)

    def _part(self, x: Tensor) -> Tensor:
        """Part (n, T, d) among heads: (n, h, T, d / h)."""
        return x.unflatten(2, [self.heads, -1]).transpose(1, 2)
