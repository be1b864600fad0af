"""What is counted of a task's labels: how many are known, their sum and their ends. Labels and weights are checked."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Task
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.data.read.measure import written


@dataclass(frozen=True)
class Labels:
    """Some rows' labels: how many rows these are, how many labels are known, their sum, the least and the largest."""

    rows: float
    known: float
    total: float
    least: float
    most: float

    def merge(self, other: "Labels") -> "Labels":
        sums = self.rows + other.rows, self.known + other.known, self.total + other.total
        return Labels(*sums, min(self.least, other.least), max(self.most, other.most))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of it, for a file; see `restored`."""
        return {"figures": np.array([self.rows, self.known, self.total, self.least, self.most])}

    @classmethod
    def restored(cls, arrays: dict[str, np.ndarray]) -> "Labels":
        """Undo `arrays`."""
        return cls(*arrays["figures"].tolist())


class Counting:
    """Counts a task's labels.

    Args:
        name: the task's.
        task: its section.

    Attributes:
        label: the column of the labels, which is not read where a footer shows that it is constant.
        columns: that are read in any case.
    """

    restored = staticmethod(Labels.restored)
    nothing = Labels(0.0, 0.0, 0.0, np.inf, -np.inf)

    def __init__(self, name: str, task: Task) -> None:
        self._name, self._task, self._kind = name, task, kinds({name: task})[name]
        self.label, self.columns = task.label, [task.sample_weight] if task.sample_weight else []

    @property
    def question(self) -> dict[str, Any]:
        """What is asked, so that an answer of equal words is this one's."""
        apart = {"weight", "negatives_kept", "group"}  # of the loss, not of the labels
        return {"task": self._task.model_dump(mode="json", exclude=apart), "code": written(type(self._kind))}

    def of(self, table: pa.Table, constant: int | None, rows: int, where: str) -> Labels:
        """Count rows.

        Args:
            table: with the columns and, unless it is constant, the label's.
            constant: the one value that all labels have, if so.
            rows: how many there are.
            where: the rows are, for messages.

        Raises:
            BadInput: a label is not of the task's kind, or null without `unknown: true`, or a weight is null, negative
                or infinite.
        """
        column = table.column(self.label) if constant is None else pa.chunked_array([[constant]])
        labels, times = self._known(column, where), 1 if constant is None else rows
        for weight in self.columns:
            self._check_weights(weight, table.column(weight), where)
        known, total = float(times * len(labels)), float(times * labels.sum())
        return Labels(float(rows), known, total, float(labels.min(initial=np.inf)), float(labels.max(initial=-np.inf)))

    def _known(self, column: pa.ChunkedArray, where: str) -> np.ndarray:
        """Return the known labels, float64."""
        numbers = column.cast(pa.float64(), safe=False).to_numpy()  # null = NaN
        known = ~np.isnan(numbers)
        bad = ~self._kind.fits(numbers)
        if self._task.unknown:
            bad &= known
        if bad.any():
            first = int(bad.argmax())
            mend = "" if known[first] else ", set unknown: true if it is not known yet"
            raise BadInput(
                f"{where}, row {first}: tasks.{self._name}.label '{self.label}' holds {column[first].as_py()}, but a "
                f"label is {self._kind.wanted}; correct the data{mend}, or leave such rows out"
            )
        return numbers[known]

    def _check_weights(self, weight: str, column: pa.ChunkedArray, where: str) -> None:
        numbers = column.cast(pa.float64(), safe=False).to_numpy()  # null = NaN
        bad = ~((numbers >= 0) & (numbers < np.finfo(np.float32).max))
        if bad.any():
            first = int(bad.argmax())
            raise BadInput(
                f"{where}, row {first}: tasks.{self._name}.sample_weight '{weight}' holds {column[first].as_py()}, but "
                "a weight is a finite number from 0 on; correct the data"
            )
