"""What a simulated world's test rows truly are: the best that scores could reach, and how near a run comes."""

import json
from pathlib import Path

import duckdb
import numpy as np
from quality import scores, spread
from variants import Run, row

from livetrain.configs.schema import Recipe
from livetrain.modules.metrics import binary
from livetrain.trainers.data.read.files import split_files


class Truth:
    """The true probabilities of a simulated world's test rows.

    Args:
        world: what `livetrain data simulate` wrote.
        recipe: names the samples made of it.
    """

    def __init__(self, world: Path, recipe: Recipe) -> None:
        files = ", ".join(f"'{path}'" for path in split_files(recipe, "test")[2])
        found = duckdb.sql(
            f"SELECT t.* FROM read_parquet([{files}], file_row_number = true, filename = true,"
            f" hive_partitioning = false) s JOIN read_parquet('{world}/truth/*/*.parquet', hive_partitioning = false) t"
            " ON t.user_id = s.user AND t.live_id = s.room AND t.timestamp = s.timestamp"
            " ORDER BY s.filename, s.file_row_number"
        ).to_arrow_table()
        self.name, self.rows = world.name, len(found)
        self._found = found

    def chance(self, task: str) -> np.ndarray:
        """Return (n,) the probability of a label, in the order of the split's rows."""
        return self._found[f"p_{task}"].to_numpy()

    def label(self, task: str) -> np.ndarray:
        """Return (n,) the label that came up."""
        return self._found[task].to_numpy()

    def expected_auc(self, task: str, score: np.ndarray) -> float:
        """Return the AUC of scores (n,) with every row a positive to the extent of its label's probability.

        That is the AUC's mean over other draws of the labels, near enough, and has none of their noise.
        """
        order = np.argsort(score, kind="stable")
        chance = self.chance(task)[order]
        return binary.auc_from_counts(chance, 1 - chance)

    def of_run(self, run: Run) -> dict[str, float]:
        """Return the expected AUC of a run's best checkpoint by binary task; kept beside the run."""
        kept = run.folder / "expected.json"
        if not kept.exists():
            found = scores(run.recipe, run.folder)
            if {len(each.logits) for each in found.values()} != {self.rows}:
                raise SystemExit(f"{run.folder}: the world's truth/ and the run's test split do not have the same rows")
            kept.write_text(json.dumps({task: self.expected_auc(task, each.logits) for task, each in found.items()}))
        return json.loads(kept.read_text())

    def row(self, name: str, task: str, runs: list[Run]) -> str:
        """Return a variant's line for a task."""
        expected = np.array([self.of_run(run)[task] for run in runs])
        way = 100 * (expected - 0.5) / (self.expected_auc(task, self.chance(task)) - 0.5)
        return row(name, task, runs, [spread(expected), f"**{way.mean():.1f} %**"])

    def oracle(self, task: str) -> str:
        """Return the line of the true probability itself."""
        auc = binary.auc(self.label(task), self.chance(task))
        gauc = binary.gauc(self.label(task), self.chance(task), self._found["user_id"].to_numpy())
        best = self.expected_auc(task, self.chance(task))
        return f"| the truth | {task} | - | {auc:.4f} | {gauc:.4f} | {best:.4f} | 100 % | - | - |"
