"""Three orders of training rows that lie sorted by time: a full shuffle, shuffled row groups, and two levels.

    livetrain data kuairand --raw DIR --out data/kuairand
    python benchmarks/shuffle.py --seeds 1 2 3

A small network learns clicks from the days 04-25..05-05, each row once, and is measured on 05-06..05-08. Only the order
of the rows differs: `full shuffle` is one permutation of all; the others are those of trainers/data/read/order.py, in
`row groups` each of them is a run by itself, as it was once. The data are small, so everything is scaled down by 64:
windows of 64 rows for 4,096, row groups of 32 for 2,048, runs of 1,024 rows for 65,536.

The spread of a batch's day is the deviation of the mean day of a batch over an epoch's batches, a full shuffle's is 1.
With b rows of each shard in a batch, which lie near one another, it is at most about sqrt(b).

The second table counts what one rank of 64 opens in an epoch of 7,000 files of 1,400,000 rows and 34 columns by walking
through its windows: an open for every run that a shard enters, each with the footer of such a file.
"""

import argparse
import datetime
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from livetrain.modules.metrics import binary
from livetrain.trainers.data.read.order import Order

TRAIN = [f"2022-04-{day}" for day in range(25, 31)] + [f"2022-05-0{day}" for day in range(1, 6)]
TEST = [f"2022-05-0{day}" for day in range(6, 9)]
IDS = ("user", "video", "author", "tag", "tab", "hour", "weekday", "music_id", "upload_type")
NUMBERS = ("user_seen_click_rate", "user_click_rate", "video_click_rate", "author_click_rate", "duration")
ROWS = 2**15  # of each table
WINDOW, GROUP, RUN, BATCH = 64, 32, 1024, 384
FILES, FILE_ROWS, COLUMNS, WORLD = 7_000, 1_400_000, 34, 64


class Network(nn.Module):
    """Ids' embeddings and some rates, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(ROWS, 8, sparse=True) for _ in IDS])
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.05)
        self.layers = nn.Sequential(nn.Linear(8 * len(IDS) + len(NUMBERS), 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        looked_up = [table(ids[:, place]) for place, table in enumerate(self.tables)]
        return self.layers(torch.cat([*looked_up, numbers], 1))[:, 0]


def read(data: Path, days: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]:
    """Return the rows of some days in the order of their time: ids, numbers, labels and days."""
    parts = []
    for number, day in enumerate(days):
        columns = [*IDS, *NUMBERS, "click", "timestamp"]
        found = [
            pq.read_table(path, columns=columns, partitioning=None) for path in (data / f"date={day}").glob("*.parquet")
        ]
        parts += [table.append_column("day", pa.array(np.full(len(table), number))) for table in found]
    table = pa.concat_tables(parts).sort_by("timestamp")
    hashed = [table[name].fill_null(-1).to_numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) for name in IDS]
    ids = np.stack([(column >> np.uint64(40)) % np.uint64(ROWS) for column in hashed], 1).astype(np.int64)
    numbers = np.stack([table[name].fill_null(0).to_numpy() for name in NUMBERS], 1)
    numbers = np.nan_to_num((numbers - np.nanmean(numbers, 0)) / np.nanstd(numbers, 0)).astype(np.float32)
    labels = table["click"].fill_null(0).to_numpy().astype(np.float32)
    return torch.from_numpy(ids), torch.from_numpy(numbers), torch.from_numpy(labels), table["day"].to_numpy()


def batches(how: str, rows: int, shards: int, seed: int) -> list[np.ndarray]:
    """Return the rows of an epoch's whole batches."""
    if how == "full shuffle":
        order = np.random.default_rng(seed).permutation(rows)
        return [order[start : start + BATCH] for start in range(0, rows - BATCH + 1, BATCH)]
    groups = -(-rows // GROUP)
    sizes = np.minimum(GROUP, rows - GROUP * np.arange(groups))
    run = {"row groups": GROUP, "two levels": RUN, "file order": RUN}[how]
    order = Order(
        sizes,
        np.zeros(groups, np.int64),
        shards=shards,
        batch_size=BATCH,
        window=WINDOW,
        most=WINDOW,
        run=run,
        seed=seed,
        shuffle=how != "file order",
    )
    streams = []
    for shard in range(shards):
        parts = []
        for window in order.windows(0, [shard])[0]:
            stored = np.concatenate(
                [piece.group * GROUP + np.arange(piece.start, piece.stop) for piece in window.pieces]
            )
            drawn = order.permutation(0, shard, window)
            parts.append(stored if drawn is None else stored[drawn])
        streams.append(np.concatenate([*parts, np.full(order.steps * order.slice - order.rows_of(shard), -1)]))
    steps = np.stack(streams).reshape(shards, order.steps, order.slice).transpose(1, 0, 2).reshape(order.steps, -1)
    return [step[step >= 0] for step in steps]


def learn(train: tuple, test: tuple, order: list[np.ndarray], seed: int) -> float:
    """Return the test AUC of a network that has seen the batches once."""
    torch.manual_seed(seed)
    network = Network()
    sparse = torch.optim.Adagrad(network.tables.parameters(), lr=0.05)
    dense = torch.optim.Adam(network.layers.parameters(), lr=1e-3)
    for rows in order:
        chosen = torch.from_numpy(rows)
        ids, numbers, labels = (part[chosen] for part in train[:3])
        loss = nn.functional.binary_cross_entropy_with_logits(network(ids, numbers), labels)
        sparse.zero_grad()
        dense.zero_grad()
        loss.backward()
        sparse.step()
        dense.step()
    with torch.no_grad():
        return binary.auc(test[2].numpy(), network(test[0], test[1]).numpy())


def opens(group: int, run: int) -> tuple[int, int]:
    """Return how many files a rank opens in an epoch, and the bytes of a file's footer."""
    each = np.full(-(-FILE_ROWS // group), group)
    each[-1] = FILE_ROWS - each[:-1].sum()
    files = np.repeat(np.arange(FILES), len(each))
    order = Order(
        np.tile(each, FILES), files, shards=192, batch_size=1536, window=4096, most=4096, run=run, seed=1, shuffle=True
    )
    entered = 0
    for windows in order.windows(0, order.owned(0, WORLD)):
        before = None
        for window in windows:
            for piece in window.pieces:
                now = order.run(piece.group)
                entered += now != before
                before = now
    sink = io.BytesIO()
    table = pa.table({f"column_{n}": np.arange(len(each)) for n in range(COLUMNS)})
    pq.write_table(table, sink, row_group_size=1)
    return entered, pq.read_metadata(sink).serialized_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/kuairand"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--shards", type=int, nargs="+", default=[192, 12])
    given = parser.parse_args()
    torch.set_num_threads(1)
    train, test = read(given.data, TRAIN), read(given.data, TEST)
    rows = len(train[2])
    print(f"{rows:,} rows of {len(TRAIN)} days, {len(test[2]):,} of {len(TEST)} days to measure\n")
    print("| order | shards | test AUC | of the seeds | spread of a batch's day |\n|" + " --- |" * 5)
    full = 0.0
    cases = [
        ("full shuffle", 1),
        *((how, n) for n in given.shards for how in ("row groups", "two levels", "file order")),
        ("file order", 1),
    ]
    for how, shards in cases:
        found, spreads = [], []
        for seed in given.seeds:
            order = batches(how, rows, shards, seed)
            spreads.append(np.std([train[3][step].mean() for step in order if len(step) > BATCH // 2]))
            found.append(learn(train, test, order, seed))
        full = full or float(np.mean(spreads))
        cells = (f"{np.mean(found):.4f}", f"{np.std(found, ddof=1):.4f}", f"{np.mean(spreads) / full:.2f}")
        print(f"| {how} | {shards} | {' | '.join(cells)} |", flush=True)
    print("\n| row groups | runs | opens per epoch and rank | a footer, KiB | footers read, MiB |\n|" + " --- |" * 5)
    for group, run in ((2048, 1), (2048, 65_536), (65_536, 65_536)):
        entered, size = opens(group, run)
        print(
            f"| {group:,} | {max(run, group):,} | {entered:,} | {size / 2**10:,.0f} | {entered * size / 2**20:,.0f} |"
        )
    print(f"\n{datetime.date.today()}, numpy {np.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
