"""Where the thresholds of the leakage probes come from, and what checking data costs.

    LIVETRAIN_DATA=DIR python benchmarks/checks.py --data data/ml-1m-rechorus

Probes every column of KuaiRand-Pure's published log (LIVETRAIN_DATA/kuairand/log_*.parquet), whose columns are known to
be outcomes of their row or known before it, against six labels; then times `livetrain data check` and the checks that a
run makes, on a prepared dataset.
"""

import argparse
import datetime
import os
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from quality import processor

from livetrain.configs.load import load_recipe
from livetrain.trainers.data.checks import brief, leaks, whole
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import scan
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train import preflight

LABELS = ["is_click", "long_view", "is_like", "is_profile_enter", "is_follow", "is_comment"]
# Outcomes of the row besides the labels: what was watched, and what was derived from that and from the labels.
OUTCOMES = ["play_time_ms", "watch_ratio", "finish", "long_watch", "is_positive", "like", "profile_stay_time"]
OUTCOMES += ["comment_stay_time", "is_forward", "is_hate"]
ROWS = 180_000  # the first days


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/ml-1m-rechorus"), help="prepared dataset to time")
    parser.add_argument("--recipe", type=Path, default=Path("configs/recipes/din_ml1m.yaml"), help="of that dataset")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checks.md"))
    given = parser.parse_args()
    text = "\n".join([head(), *probes(), "", *times(given.data, given.recipe), ""])
    given.out.write_text(text)
    print(text)


def head() -> str:
    made_with = ", ".join(map(" ".join, versions().items()))
    return f"""# Checking data: thresholds and cost

Command: `python benchmarks/checks.py {" ".join(sys.argv[1:])}`, LIVETRAIN_DATA being a folder with kuairand/.
On {datetime.date.today()}: {processor()}; {made_with}.
"""


def probes() -> list[str]:
    """Return a table: for every label the best columns known before the row, and all outcomes, by AUC."""
    folder = Path(os.environ["LIVETRAIN_DATA"]) / "kuairand"
    tables = [pq.read_table(path).replace_schema_metadata(None) for path in sorted(folder.glob("log_*.parquet"))]
    log = pa.concat_tables(tables, promote_options="default").slice(0, ROWS)
    columns = [column.name for column in log.schema if column.name not in LABELS]
    found = leaks.probe(log, columns, LABELS)
    lines = [
        f"## One column against one label, KuaiRand-Pure, {len(log):,} rows",
        "",
        f"Verdicts: look from {leaks.LOOK}, wrong from {leaks.WRONG}, each less two standard errors. Boosted trees on",
        "columns known before the row reach .730 for click, .728 for long_view, .831 for like (`quality_kuairand.md`).",
        "",
        "| label | best columns known before the row | outcomes of the row |",
        "| --- | --- | --- |",
    ]
    for label in LABELS:
        ranked = sorted((p for p in found if p.label == label), key=lambda p: -p.auc)
        before = [f"{p.column} {p.auc:.3f}" for p in ranked if p.column not in OUTCOMES][:4]
        after = [f"{p.column} {p.auc:.3f} ({p.verdict.value})" for p in ranked if p.column in OUTCOMES and p.auc > 0.6]
        lines.append(f"| {label} | {', '.join(before)} | {', '.join(after)} |")
    return lines


def times(data: Path, path: Path) -> list[str]:
    """Return a table of seconds, each the best of three."""
    recipe = load_recipe(path, [f"data.path={data}"])
    sources = {split: Source.open(recipe, split) for split in preflight.SPLITS}
    statistics = {split: scan(source, recipe) for split, source in sources.items()}
    rows = sum(source.rows for source in sources.values())
    full = best(lambda: whole.check(data))
    short = best(lambda: brief.examine(recipe, sources, statistics, lambda text: None))
    return [
        f"## Seconds for {rows:,} rows ({data.name}), best of three",
        "",
        "| what | seconds |",
        "| --- | --- |",
        f"| `livetrain data check`, without start and picture | {full:.2f} |",
        f"| what a run of {path.stem} checks in brief | {short:.2f} |",
    ]


def best(call) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
