"""Experts, the gates that mix them, and the level of CGC that multi-task networks stack."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.modules.layers.precision import widen
from livetrain.modules.network import PerTask


class Experts(nn.Module):
    """n perceptrons of one shape on one input, computed together.

    E_i(x) = relu(W_iL ... relu(W_i1 x + b_i1) ... + b_iL),  i = 1..n

    The first layers of all experts are one wide product, and each further layer is one batched product. All parameters
    of an `Experts` belong to the same tasks, so a task's gradient never computes another task's part.

    Args:
        count: n.
        width: size of the input.
        units: sizes of the layers, at least one; the last is the size of an expert's output.
        dropout: share of activations dropped in training.
    """

    def __init__(self, count: int, width: int, units: list[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.count = count
        self.first = nn.Linear(width, count * units[0])
        self.rest = nn.ModuleList(Batched(count, m, n) for m, n in zip(units[:-1], units[1:], strict=True))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, width). Returns: (B, n, units[-1])."""
        hidden = self.dropout(self.first(x).relu()).view(x.size(0), self.count, -1)
        for layer in self.rest:
            hidden = self.dropout(layer(hidden).relu())
        return hidden


class Batched(nn.Module):
    """n linear layers, each on an input of its own: (B, n, width) -> (B, n, outputs); initialised as nn.Linear."""

    def __init__(self, count: int, width: int, outputs: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(count, width, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x.transpose(0, 1), self.weight).transpose(0, 1)


class Gate(nn.Module):
    """g = softmax(W x + b), the share of each expert in a row's mixture, in float32 or wider.

    trainers.train.probes.expert_use watches these modules, and reads what they output; in a compiled graph, into
    which no hook sees, they leave it as `shares`.

    Args:
        width: size of the input.
        name: what the mixture is for, as a task; in the names of the logged figures.
        experts: a name for each expert that is mixed.
    """

    shares = None

    def __init__(self, width: int, name: str, experts: list[str]) -> None:
        super().__init__()
        self.name = name
        self.experts = list(experts)
        self.linear = nn.Linear(width, len(experts))

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, width). Returns: (B, n), summing to 1 over a row."""
        shares = F.softmax(widen(self.linear(x)), 1)
        if not torch.jit.is_scripting():
            self._leave(shares)
        return shares

    @torch.jit.unused
    def _leave(self, shares: Tensor) -> None:
        if torch.compiler.is_compiling():
            self.shares = shares.detach()


def mix(shares: Tensor, groups: list[Tensor]) -> Tensor:
    """Return sum_i g_i E_i over the experts of all groups, one group after the other.

    Args:
        shares: (B, n), n experts in all.
        groups: (B, n_j, d) each.

    Returns:
        (B, d) of the experts' type.
    """
    sizes = [group.size(1) for group in groups]
    parts = [
        (part.unsqueeze(2).to(group.dtype) * group).sum(1)
        for part, group in zip(shares.split(sizes, 1), groups)  # noqa: B905  TorchScript knows no strict=
    ]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


class Level(nn.Module):
    """One level of customised gate control: task k mixes its own experts and the shared ones.

    s_k' = sum_i g_k(s_k)_i [own experts of k on s_k, shared experts on s]_i     for each task k
    s'   = sum_i g(s)_i [own experts of every task, shared experts]_i            except in the last level

    Each gate sees its own stream: task k's gate s_k, the shared gate s. In the first level all streams are x. The last
    level has no shared gate, for nothing would read s'.

    Args:
        tasks: T names.
        width: size of every stream.
        own: experts of each task.
        shared: experts of all tasks.
        units: layers of an expert.
        dropout: in the experts.
        label: put before the gates' names where there are several levels.
        last: without shared gate.

    Source: Tang et al., "Progressive layered extraction (PLE)", RecSys 2020, sections 4.1 and 4.2.
    """

    def __init__(
        self,
        tasks: list[str],
        width: int,
        own: int,
        shared: int,
        units: list[int],
        dropout: float,
        label: str,
        last: bool,
    ) -> None:
        super().__init__()
        ours, theirs = [f"own{i}" for i in range(own)], [f"shared{i}" for i in range(shared)]
        self.own = PerTask(Experts(own, width, units, dropout) for _ in tasks)
        self.shared = Experts(shared, width, units, dropout)
        self.gates = PerTask(Gate(width, label + task, ours + theirs) for task in tasks)
        everyone = [f"{task}_{expert}" for task in tasks for expert in ours] + theirs
        self.shared_gates = nn.ModuleList([] if last else [Gate(width, f"{label}shared", everyone)])

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        """Take the streams through the level.

        Args:
            streams: (B, width) of each task, then that of the shared stream.

        Returns:
            (B, units[-1]) of each task, then, except in the last level, that of the shared stream.
        """
        shared = self.shared(streams[-1])  # (B, m_s, d)
        groups: list[Tensor] = []
        out: list[Tensor] = []
        for i, (experts, gate) in enumerate(zip(self.own, self.gates)):  # noqa: B905
            groups.append(experts(streams[i]))  # (B, m_k, d)
            out.append(mix(gate(streams[i]), [groups[i], shared]))
        groups.append(shared)
        for gate in self.shared_gates:
            out.append(mix(gate(streams[-1]), groups))
        return out
