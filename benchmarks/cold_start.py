"""What finds new streamers, and what new users, on simulated live streams: recall by slices, over seeds.

    livetrain data simulate --users 12k --days 14 --social 0.1 --content 0.3 --out data/simulation-social
    livetrain data kuailive --raw data/simulation-social/kuailive --out data/simulated-social \
        --with people --with vectors --with interests
    python benchmarks/cold_start.py --seeds 1 2 3

A streamer is new who was visited fewer than five times in the days of training, and unseen who was not shown there; a
user is new who has visited nobody. Every clicked row of the test days asks for its streamer among all of these days.
Checkpoints are chosen by recall of all rows on the day for valid. What is fitted has one run for all seeds.
"""

import argparse
import json
from pathlib import Path

import duckdb
import numpy as np
import torch
from quality import add_training, made, rule, spread, trained

from livetrain.configs.load import load_recipe
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions

FITTED = ("popular_simulated", "interests_simulated", "item_cf_simulated", "social_simulated")
INITIAL = "tables.streamer.initial={file: data/simulation-social/kuailive/streamer_emb_64.parquet, id: streamer_id, "
INITIAL += "vector: embedding}"
TOWERS = {  # name of the line -> recipe, changes
    "ids, topics and counts": ("dssm_simulated_social", []),
    "the vector as numbers": ("dssm_simulated_content", []),
    "the vector as the embedding's first value": ("dssm_simulated_initial", []),
    "both": ("dssm_simulated_content", [INITIAL]),
}
PARTS = {"": "all", "new_item.": "new streamer", "unseen.": "unseen streamer", "new_user.": "new user"}
SIZES = (10, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cold_start.md"))
    add_training(parser)
    given = parser.parse_args()
    torch.set_num_threads(threads())
    of_slices = [f"evaluate.slices.{name}={condition}" for name, condition in slices(Path("data")).items()]
    lines, counts = [], {}
    for label, (name, changes) in ({name: (name, []) for name in FITTED} | TOWERS).items():
        path, results = Path(f"configs/recipes/{name}.yaml"), []
        for seed in given.seeds[:1] if load_recipe(path).model.fitted else given.seeds:
            folder = given.runs / "cold-start" / label.replace(" ", "-").replace(",", "")
            of = argparse.Namespace(**{**vars(given), "runs": folder, "set": [*given.set, *of_slices, *changes]})
            results.append(json.loads((trained(path, seed, of)[1] / "result.json").read_text()))
        counts = {part: f"{results[0][f'test.{part}click.queries']:,.0f}" for part in PARTS}
        cells = [
            spread(np.array([result[f"test.{part}click.recall_{size}"] for result in results]))
            for part in PARTS
            for size in SIZES
        ]
        lines.append(f"| {label} | {len(results)} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    heads = [f"{title}: recall@{size}" for title in PARTS.values() for size in SIZES]
    head = f"| what | seeds | {' | '.join(heads)} |"
    asked = ", ".join(f"{title} {counts[part]}" for part, title in PARTS.items())
    intro = f"Rows that ask: {asked}. Mean ± deviation over seeds. The last four are two towers.\n"
    text = ["# New streamers and new users", "", made(versions(), given), "", intro, head, rule(head), *lines, ""]
    given.out.write_text("\n".join(text))
    print(f"written to {given.out}")


def slices(data: Path) -> dict[str, str]:
    """Return the conditions of the slices, by what the days of training hold."""
    days = load_recipe(Path("configs/recipes/social_simulated.yaml")).data.days
    assert days is not None
    first, last = days.of("train")[0], days.of("train")[-1]
    rows = f"read_parquet('{data}/simulated-social/date=*/*.parquet', hive_partitioning = true)"
    found = duckdb.sql(
        f"SELECT streamer, count(*) FILTER (date BETWEEN '{first}' AND '{last}') AS shown, "
        f"count(*) FILTER (date BETWEEN '{first}' AND '{last}' AND click = 1) AS visited "
        f"FROM {rows} GROUP BY 1 HAVING visited < 5 ORDER BY 1"
    ).fetchall()
    new = ", ".join(str(streamer) for streamer, _, _ in found)
    unseen = ", ".join(str(streamer) for streamer, shown, _ in found if not shown)
    return {
        "new_item": f"streamer IN ({new})",
        "unseen": f"streamer IN ({unseen})",
        "new_user": "len(live_streamer) = 0",
    }


if __name__ == "__main__":
    main()
