"""Census-Income (KDD): the protocol's split, and what a recipe reaches over seeds.

    python benchmarks/census.py split census-income.test.gz
    livetrain data table benchmarks/census.yaml --out data/census
    python benchmarks/census.py table runs/census-*

The split is drawn as `numpy.random.default_rng(0).permutation` of the rows: the first 60 % train, the rows up to two
thirds choose the checkpoint, and the last third is the test.
"""

import argparse
import csv
import gzip
import itertools
import json
from pathlib import Path

import numpy as np

# fmt: off
COLUMNS = [
    "age", "class_worker", "det_ind_code", "det_occ_code", "education", "wage_per_hour", "hs_college",
    "marital_stat", "major_ind_code", "major_occ_code", "race", "hisp_origin", "sex", "union_member",
    "unemp_reason", "full_or_part_emp", "capital_gains", "capital_losses", "stock_dividends", "tax_filer_stat",
    "region_prev_res", "state_prev_res", "det_hh_fam_stat", "det_hh_summ", "instance_weight", "mig_chg_msa",
    "mig_chg_reg", "mig_move_reg", "mig_same", "mig_prev_sunbelt", "num_emp", "fam_under_18", "country_father",
    "country_mother", "country_self", "citizenship", "own_or_self", "vet_question", "vet_benefits", "weeks_worked",
    "year", "income_50k",
]
# fmt: on
TASKS = ("income", "never_married")


def split(path: Path, out: Path) -> None:
    """Write the rows as a CSV file with the names of their columns, and the split that each falls to."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.reader(file, skipinitialspace=True))
    order = np.random.default_rng(0).permutation(len(rows))
    splits = np.full(len(rows), "test", dtype=object)
    train, valid = int(0.6 * len(rows)), len(rows) * 2 // 3
    splits[order[:train]], splits[order[train:valid]] = "train", "valid"
    with gzip.open(out, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "part"])
        writer.writerows([*(value.strip() for value in row), part] for row, part in zip(rows, splits, strict=True))


def table(runs: list[Path]) -> None:
    """Print the mean and deviation over seeds of runs named RECIPE-SEED."""
    found = sorted((run.name.rpartition("-")[0], run) for run in runs if (run / "result.json").exists())
    keys = [f"{split}.{task}.auc" for split in ("valid", "test") for task in TASKS]
    print("| run | seeds |", " | ".join(keys), "|")
    print("| --- |" * 1, " --- |" * (len(keys) + 1))
    for name, group in itertools.groupby(found, key=lambda one: one[0]):
        results = [json.loads((run / "result.json").read_text()) for _, run in group]
        cells = []
        for key in keys:
            values = [result[key] for result in results if key in result]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.4f}{spread}" if values else "")
        print(f"| {name} | {len(results)} |", " | ".join(cells), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("split")
    one.add_argument("path", type=Path)
    one.add_argument("--out", type=Path, default=Path(__file__).with_name("census.csv.gz"))
    other = commands.add_parser("table")
    other.add_argument("runs", type=Path, nargs="+")
    given = parser.parse_args()
    if given.command == "split":
        split(given.path, given.out)
    else:
        table(given.runs)


if __name__ == "__main__":
    main()
