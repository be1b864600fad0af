"""Explicit crosses of a vector's elements: the cross network of DCN-V2."""

from torch import Tensor, nn


class Cross(nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l; with a rank r, W_l = U_l V_l, U_l of size d x r and V_l of r x d.

    Args:
        width: d.
        layers: how many.
        rank: r; None for whole matrices.

    Source: Wang et al., "DCN V2", 2008.13535, equations 1 and 2.
    """

    def __init__(self, width: int, layers: int, rank: int | None = None) -> None:
        super().__init__()
        down = [nn.Identity() if rank is None else nn.Linear(width, rank, bias=False) for _ in range(layers)]
        up = [nn.Linear(rank or width, width) for _ in range(layers)]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        for linear in [*down, *up]:
            if isinstance(linear, nn.Linear):
                nn.init.xavier_normal_(linear.weight)
        for linear in up:
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, d). Returns: (B, d)."""
        first = x
        for down, up in zip(self.down, self.up):  # noqa: B905  TorchScript knows no strict=
            x = first * up(down(x)) + x
        return x
