"""Training steps of next-item networks over the same step in plain padded PyTorch, by processor time.

    python benchmarks/next_item_steps.py RECIPE [KEY=VALUE ...] --steps 20

The twin is what a researcher writes: left-padded (B, T) histories, nn.MultiheadAttention, an nn.Embedding whose whole
table is masked once per step, sampled softmax over the same shared items by one matrix of logits, torch.optim.Adam on
everything. Steps alternate between both, so that what else the machine does hits them alike.
"""

import argparse
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.sharding import shard


class Twin(nn.Module):
    """SASRec of padded rows, see the module."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        model, table = recipe.model, recipe.tables["item"]
        self.length = recipe.features["history"].limit
        self.table, width = nn.Embedding(table.rows, table.dim, padding_idx=0), table.dim
        nn.init.normal_(self.table.weight, std=table.init_std)
        self.positions = nn.Parameter(0.02 * torch.randn(self.length, width))
        self.norms, self.attention = nn.ModuleList(), nn.ModuleList()
        self.forward_norms, self.hidden, self.out = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(model.blocks):
            self.norms.append(nn.LayerNorm(width))
            self.forward_norms.append(nn.LayerNorm(width))
            self.attention.append(nn.MultiheadAttention(width, model.heads, batch_first=True))
            self.hidden.append(nn.Linear(width, width))
            self.out.append(nn.Linear(width, width))
        self.norm = nn.LayerNorm(width, eps=1e-8)
        self.share, self.drop = model.item_dropout, nn.Dropout(model.dropout)

    def forward(self, history: Tensor, target: Tensor, shared: Tensor) -> Tensor:
        """Args: (B, T) items, 0 = none, (B,), (n,). Returns: the mean loss of all targets."""
        table = F.dropout(self.table.weight, self.share, self.training)
        real, x = history > 0, table[history]
        x = self.drop(x + self.positions.flip(0))
        later = torch.ones(self.length, self.length, dtype=torch.bool).triu(1)
        blocks = zip(self.norms, self.attention, self.forward_norms, self.hidden, self.out, strict=True)
        for norm, attention, forward_norm, hidden, out in blocks:
            x = x * real.unsqueeze(2)
            query = norm(x)
            x = query + attention(query, x, x, attn_mask=later, need_weights=False)[0]
            query = forward_norm(x)
            x = query + self.drop(out(self.drop(hidden(query).relu())))
        wanted = torch.cat([history[:, 1:], target.unsqueeze(1)], 1)[real]
        states, others = self.norm(x)[real], table[shared]
        scores = (states @ others.t()).masked_fill(wanted.unsqueeze(1) == shared, -torch.inf)
        scores = scores + torch.log(torch.tensor(len(self.table.weight) / len(shared)))
        return F.cross_entropy(
            torch.cat([(states * table[wanted]).sum(1, keepdim=True), scores], 1), torch.zeros_like(wanted)
        )


def padded(batch: Batch, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch as the twin takes it."""
    rows, item, events = len(batch.rows), batch.ids["item"], batch.ids["history"]
    history = torch.zeros(rows, length, dtype=torch.long)
    for b, (start, count) in enumerate(zip(events.offsets().tolist(), events.lengths()[:rows].tolist(), strict=False)):
        history[b, length - count :] = events.values()[start : start + count]
    values = item.values()
    real = int(item.lengths()[:rows].sum())
    target = torch.zeros(rows, dtype=torch.long)
    target[item.lengths()[:rows] > 0] = values[:real]
    return history, target, values[real:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("changes", nargs="*")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(given.recipe, given.changes)
    with ranks.alone(cuda=False):
        ours, twin = shard(recipe, torch.device("cpu")), Twin(recipe)
        ours.module.train()
        ours.set_rates(1.0)
        optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
        source = Source.open(recipe, "train")
        batches = list(Reader(source, recipe, rank=0, world=1, shuffle=True).batches(0, 0, given.steps + 2))
        feed, times, targets = iter(batches), [0.0, 0.0], 0.0
        for number, batch in enumerate(batches):
            history, target, shared = padded(batch, twin.length)
            start = time.process_time()
            ranks.seed_step(1, number)
            output = ours.pipeline.progress(feed)
            middle = time.process_time()
            optimizer.zero_grad()
            twin(history, target, shared).backward()
            optimizer.step()
            end = time.process_time()
            if number > 1:
                times[0], times[1] = times[0] + middle - start, times[1] + end - middle
                targets += float(output.weight_sums)
    mine, theirs = (1e6 * seconds / targets for seconds in times)
    print(f"{recipe.model.kind}: {targets / given.steps:,.0f} targets per step")
    print(
        f"microseconds of one processor per target: {mine:.1f}, padded PyTorch {theirs:.1f}, ratio {mine / theirs:.2f}"
    )


if __name__ == "__main__":
    main()
