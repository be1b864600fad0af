"""Every kind of task's loss as its paper writes it: row by row, pair by pair, in the order of the formula."""

import torch

from livetrain.configs.schema import Task


def loss(
    task: Task,
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return a task's loss over rows whose labels are known: logits (n,) or (n, outputs), weights (n,)."""
    if groups is not None:
        return _BY_GROUP[task.kind](task, logits, labels, weights, groups)
    each = row(task, logits, labels)
    return (each * weights).sum() / weights.sum()


def row(task: Task, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return each row's loss; of watch time with each row once more as a negative of weight 1 where it is positive."""
    p = torch.sigmoid(z)
    if task.kind in ("binary", "distilled"):
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p))
    if task.kind == "focal":
        own = torch.where(y == 1, p, 1 - p)
        alpha = 1.0 if task.alpha is None else torch.where(y == 1, task.alpha, 1 - task.alpha)
        return -alpha * (1 - own) ** task.gamma * torch.log(own)
    if task.kind == "smoothed":
        spread = torch.where(y == 1, 1 - task.smoothing / 2, task.smoothing / 2)
        return -(spread * torch.log(p) + (1 - spread) * torch.log(1 - p))
    if task.kind == "retrieval":  # of positives
        return -torch.log(p)
    if task.kind == "regression":
        return (z - torch.log(1 + y)) ** 2
    if task.kind == "watch_time":
        positive, negative = torch.where(y > 0, y, 0), torch.ones_like(y)
        return -(positive * torch.log(p) + negative * torch.log(1 - p))
    if task.kind == "huber":
        error = (z - y).abs()
        return torch.where(error <= task.delta, error**2 / 2, task.delta * (error - task.delta / 2))
    if task.kind == "quantile":
        error = torch.log(1 + y) - z
        return torch.where(error > 0, task.quantile * error, (task.quantile - 1) * error)
    return torch.stack([_ordinal(task, chances, float(time)) for chances, time in zip(p, y, strict=True)])


def _ordinal(task: Task, chances: torch.Tensor, time: float) -> torch.Tensor:
    ends, total, restored = [0.0, *task.thresholds], torch.zeros((), dtype=chances.dtype), 0.0
    for m, q in enumerate(chances):
        way = 1.0 if time > ends[m + 1] else max(time - ends[m], 0.0) / (ends[m + 1] - ends[m])
        total = total - (way * torch.log(q) + (1 - way) * torch.log(1 - q)) / len(chances)
        restored = restored + q * (ends[m + 1] - ends[m])
        if m:
            total = total + task.order * (q - chances[m - 1]).clamp(min=0)
    return total + task.restoration * ((restored - min(time, ends[-1])) / ends[-1]) ** 2 / 2


def _groups(labels: torch.Tensor, weights: torch.Tensor, groups: torch.Tensor) -> list[tuple[list[int], list[int]]]:
    """Return the rows that count, of each group with both classes: positives and negatives."""
    out = []
    for group in sorted(set(groups.tolist())):
        rows = [i for i in range(len(groups)) if groups[i] == group and weights[i] > 0]
        positives = [i for i in rows if labels[i] == 1]
        if positives and len(positives) < len(rows):
            out.append((positives, [i for i in rows if labels[i] == 0]))
    return out


def _mean(parts: list[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    return sum(parts) / len(parts) if parts else logits.sum() * 0.0


def _pairwise(task, logits, labels, weights, groups):
    means = []
    for positives, negatives in _groups(labels, weights, groups):
        total = among = 0.0
        for i in positives:
            for j in negatives:
                total = total - weights[i] * weights[j] * torch.log(torch.sigmoid(logits[i] - logits[j]))
                among += float(weights[i] * weights[j])
        means.append(total / among)
    return _mean(means, logits)


def _listwise(task, logits, labels, weights, groups):
    means = []
    for positives, negatives in _groups(labels, weights, groups):
        whole = sum(weights[j] * torch.exp(logits[j]) for j in [*positives, *negatives])
        total = sum(-weights[i] * torch.log(torch.exp(logits[i]) / whole) for i in positives)
        means.append(total / sum(float(weights[i]) for i in positives))
    return _mean(means, logits)


def _jrc(task, logits, labels, weights, groups):
    """By the paper's listing, of masks of B x B and softmax over the context."""
    same = (groups.unsqueeze(0) == groups.unsqueeze(1)).to(logits.dtype) * weights.unsqueeze(1)  # (B, B)
    total = logits.sum() * 0.0
    for b in range(len(labels)):
        own = int(labels[b])
        within = torch.exp(logits[b, own]) / (same[:, b] * torch.exp(logits[:, own])).sum()
        calibrated = torch.softmax(logits[b], 0)[own]
        if weights[b] > 0:
            each = task.alpha * torch.log(calibrated) + (1 - task.alpha) * torch.log(within)
            total = total - weights[b] * each
    return total / weights.sum()


def _distilled_list(task, logits, labels, weights, groups):
    means, teachers = [], torch.logit(labels.clamp(1e-6, 1 - 1e-6))
    for group in sorted(set(groups.tolist())):
        rows = [i for i in range(len(groups)) if groups[i] == group and weights[i] > 0]
        exponentials = [[torch.exp(z[i] / task.temperature) for i in rows] for z in (teachers, logits)]
        whole = [sum(weights[i] * e for i, e in zip(rows, each, strict=True)) for each in exponentials]
        shares = zip(*([e / all_ for e in each] for each, all_ in zip(exponentials, whole, strict=True)), strict=True)
        if rows:
            means.append(sum(weights[i] * q * torch.log(q / s) for i, (q, s) in zip(rows, shares, strict=True)))
    return _mean(means, logits)


_BY_GROUP = {"distilled_list": _distilled_list, "pairwise": _pairwise, "listwise": _listwise, "jrc": _jrc}
