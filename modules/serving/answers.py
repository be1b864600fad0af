"""From logits to what a caller gets: each task's prediction, and the one score that a formula makes of them."""

from torch import Tensor, nn

from livetrain.modules.fusion import FUSED, Fused


class Answers(nn.Module):
    """The end of everything that scores. torch.jit.script accepts it.

    Args:
        kinds: of the tasks that are answered, by name.
        fused: the formula that makes one score more of the predictions, `FUSED`.

    Example:
        >>> import torch
        >>> Answers({"click": nn.Sigmoid()})({"click": torch.zeros(2)})
        {'click': tensor([0.5000, 0.5000])}
    """

    name: str

    def __init__(self, kinds: dict[str, nn.Module], fused: Fused | None = None) -> None:
        super().__init__()
        self.kinds = nn.ModuleDict(kinds)
        self.fused = fused
        self.name = FUSED

    def forward(self, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """Args: logits by task, (B,) each. Returns: by task, and by `FUSED`, (B,) float32."""
        out: dict[str, Tensor] = {}
        for task, kind in self.kinds.items():
            out[task] = kind(logits[task])
        fused = self.fused
        if fused is not None:
            out[self.name] = fused(out)
        return out
