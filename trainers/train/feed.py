"""What a training step is fed, and what is counted of it between two lines of the log."""

import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from livetrain.modules.batch import Batch
from livetrain.modules.tables.hashing import mix
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.loss import Output

SKIPPED = "skipped rows"  # beside the names of sequence features, which have no spaces


class Feed:
    """Hands out `count` batches of a reader, and counts the time that the step waits for them."""

    def __init__(self, batches: Iterator[Batch], count: int, reader: Reader) -> None:
        self._batches = islice(batches, count)
        self._reader = reader
        self._handed: deque[dict[str, int]] = deque()
        self.waited = 0.0

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            batch = next(self._batches)
        finally:
            self.waited += time.perf_counter() - start
        self._handed.append({**self._reader.cut, SKIPPED: self._reader.skipped_rows})
        return batch

    def left_out(self) -> dict[str, int]:
        """Return what the reader had left out by the batch that was just trained; the pipeline holds later ones."""
        return self._handed.popleft()


class Meter:
    """What happened since the last line of the log: loss, rows, time, waiting, and a hash of the rows trained."""

    def __init__(self) -> None:
        self._begin(0.0)

    def _begin(self, waited: float) -> None:
        self.started, self.waited_before = time.perf_counter(), waited
        self.sums: torch.Tensor | None = None
        self.samples: torch.Tensor | None = None

    def add(self, output: Output) -> None:
        rows = output.batch.rows
        # Order within the batch and among ranks does not matter: a sum of mixed row numbers, padding left out.
        samples = torch.where(rows >= 0, mix(rows), torch.zeros_like(rows)).sum()
        sums = torch.cat([output.loss_sums, output.weight_sums, output.count.reshape(1)])
        if self.sums is None or self.samples is None:
            self.sums, self.samples = sums, samples
        else:
            self.sums, self.samples = self.sums + sums, self.samples + samples

    def read(self, waited: float) -> dict[str, Any]:
        """Return the figures over all ranks and start anew. Collective."""
        assert self.sums is not None  # a line comes after a step
        assert self.samples is not None
        *totals, rows = ranks.summed(self.sums.double()).tolist()
        samples = int(ranks.summed(self.samples.reshape(1)).item())
        seconds = time.perf_counter() - self.started
        sums, weights = totals[: len(totals) // 2], totals[len(totals) // 2 :]
        out = {
            "losses": [part / weight if weight else 0.0 for part, weight in zip(sums, weights, strict=True)],
            "rows": rows,
            "seconds": seconds,
            "rows_per_s": rows / seconds,
            "data_wait": (waited - self.waited_before) / seconds,
            "samples": f"{samples & (2**64 - 1):016x}",
        }
        self._begin(waited)
        return out
