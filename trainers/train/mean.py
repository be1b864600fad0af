"""A running mean of the dense part's parameters over the steps: what is evaluated and exported in their place."""

import contextlib
from collections.abc import Iterator, Mapping

import torch


class Mean:
    """The exponential mean of parameters, which begins as their plain mean.

        mean_t = d_t mean_{t-1} + (1 - d_t) p_t,   d_t = min(decay, (t - 1) / t)

    after steps t = 1, 2, ...: as long as fewer than 1 / (1 - decay) steps are done it is the mean of all of them, so
    the values before the first step never weigh in.

    Args:
        parameters: by name.
        decay: below 1.

    Source: Polyak and Juditsky 1992; Adam, 1412.6980, section 7.2.

    Example:
        >>> import torch
        >>> parameter = torch.nn.Parameter(torch.tensor([0.0]))
        >>> mean = Mean({"w": parameter}, decay=0.5)
        >>> for value in (1.0, 3.0, 6.0):
        ...     _ = parameter.data.fill_(value)
        ...     mean.update()
        >>> with mean.in_use():  # ((1 + 3) / 2 + 6) / 2
        ...     parameter.item()
        4.0
        >>> parameter.item()
        6.0
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], decay: float) -> None:
        self.parameters, self.decay = dict(parameters), decay
        self.values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.steps = torch.zeros((), dtype=torch.int64)  # taken in; on the host

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after a step."""
        self.steps += 1
        kept = min(self.decay, (int(self.steps) - 1) / int(self.steps))
        now = [parameter.detach() for parameter in self.parameters.values()]
        torch._foreach_lerp_(list(self.values.values()), now, 1 - kept)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Give the parameters the values of the mean inside."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            trained = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(trained)
