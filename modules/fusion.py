"""One score of several tasks' predictions, by a formula; in the search of its weights and in the exported file."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from livetrain.configs.schema import FUSED, Fusion

__all__ = ["FUSED", "Fused"]


class Fused(nn.Module):
    """A formula over predictions, with the weights that were chosen. torch.jit.script accepts it.

    Args:
        fusion: the recipe's section.
        tasks: the recipe's, by name.
        weights: of each of the section's weights its value.

    Example:
        >>> fusion = Fusion(score="click ** a * max(like, .5)", weights={"a": [0, 2]})
        >>> fused = Fused(fusion, ["click", "like"], {"a": 2})
        >>> fused({"click": torch.tensor([0.5, 0.1]), "like": torch.tensor([0.2, 0.8])})
        tensor([0.1250, 0.0080])
    """

    operations: list[str]
    numbers: list[float]
    names: list[str]

    def __init__(self, fusion: Fusion, tasks: list[str], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.operations, self.numbers, self.names = list[str](), list[float](), list[str]()
        for operation, value in fusion.steps(tasks):
            weight = operation == "name" and value in weights
            self.operations.append("number" if weight else operation)
            self.numbers.append(float(weights[value]) if weight else 0.0 if operation == "name" else float(value))
            self.names.append(value if operation == "name" and not weight else "")

    def forward(self, predictions: dict[str, Tensor]) -> Tensor:
        """Args: predictions by task, (B,) each. Returns: (B,) float32, NaN where the formula has no value."""
        size = 0
        for values in predictions.values():
            size = values.numel()
        stack: list[Tensor] = []
        for i, operation in enumerate(self.operations):
            if operation == "number":
                stack.append(torch.full((size,), self.numbers[i], dtype=torch.float64))
                continue
            if operation == "name":
                stack.append(predictions[self.names[i]].to(torch.float64))
                continue
            last = stack.pop()
            if operation == "negative":
                last = -last
            elif operation == "log":
                last = torch.log(last)
            elif operation == "exp":
                last = torch.exp(last)
            elif operation == "sqrt":
                last = torch.sqrt(last)
            elif operation == "abs":
                last = torch.abs(last)
            elif operation == "+":
                last = stack.pop() + last
            elif operation == "-":
                last = stack.pop() - last
            elif operation == "*":
                last = stack.pop() * last
            elif operation == "/":
                last = stack.pop() / last
            elif operation == "**":
                last = torch.pow(stack.pop(), last)
            else:
                for _ in range(int(self.numbers[i]) - 1):
                    other = stack.pop()
                    last = torch.minimum(other, last) if operation == "min" else torch.maximum(other, last)
            stack.append(last)
        return stack[0].to(torch.float32)
