"""What each group of features is worth on simulated live streams: DIN with all of them, and without each.

    livetrain data simulate --users 20k --days 14 --seed 7 --out data/simulation
    livetrain data kuailive --raw data/simulation/kuailive --with visits --live-history 100 --out data/simulated-shown
    python benchmarks/features.py --seeds 1 2 3

A run keeps the checkpoint that is best on the validation day; the test days are read once, after that. "loses": the
test figure of all features less that without the group, for the same seed, times 1e4, mean ± deviation over seeds.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from quality import add_training, made, rule, spread, trained

from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions

RECIPE = Path("configs/recipes/din_simulated_pairs.yaml")
VISITS = Path("configs/recipes/cgc_simulated_visits.yaml")
DATA = "data.path=data/simulated-shown"
HOUR = [
    "features.hour_topic={type: cross, of: [hour, live_content_category], table: hour_topic}",
    "tables.hour_topic={rows: 4096, dim: 8}",
]
DONE = ("count", "click_count", "effective_view_count", "like_count", "gift_count")
RATES = ("count", "click_rate", "effective_view_rate", "like_rate", "comment_rate", "gift_rate")
GROUPS = {
    "counts of the user with the topic": [f"user_live_content_category_{name}" for name in DONE],
    "counts of the user with the streamer": [f"user_streamer_{name}" for name in DONE],
    "time since the last such room": ["user_live_content_category_ago", "user_streamer_ago"],
    "the user's rates so far": [f"user_seen_{name}" for name in RATES],
    "the streamer's rates of earlier days": [f"streamer_{name}" for name in RATES],
    "the room's state": ["room_age", "room_viewers", "room_likes", "room_gifts"],
}
TASKS = ("click", "effective_view", "like", "gift")
OF_VISITS = {
    "all": [],
    "without the time since the last visit": ["features.user_visit_ago=null"],
    "without the task of coming back": ["tasks.returned=null"],
}
FOUND = "## Found"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/features.md"))
    add_training(parser)
    parser.set_defaults(runs=Path("runs/features"))
    given = parser.parse_args()
    torch.set_num_threads(threads())
    variants = {"all": HOUR, "without hour x topic": []}
    for name, columns in GROUPS.items():
        variants[f"without {name}"] = [*HOUR, *(f"features.{column}=null" for column in columns)]
    lines = [intro(given), *table(measured(RECIPE, variants, given), TASKS)]
    lines += ["", "CGC with the time since the last visit, and with one task more: whether the user comes back.", ""]
    lines += [*table(measured(VISITS, OF_VISITS, given), ("returned", *TASKS)), ""]
    text = "\n".join(lines)
    kept = given.out.read_text() if given.out.exists() else ""
    given.out.write_text(text + (f"\n{FOUND}{kept.split(FOUND, 1)[1]}" if FOUND in kept else ""))
    print(text)


def measured(recipe: Path, variants: dict[str, list[str]], given: argparse.Namespace) -> dict[str, list[dict]]:
    """Return each variant's results, one per seed; runs that are not there are trained."""
    found: dict[str, list[dict]] = {name: [] for name in variants}
    for seed in given.seeds:
        for name, changes in variants.items():
            folder = given.runs / recipe.stem / name.replace(" ", "-").replace("'", "")
            own = argparse.Namespace(**vars(given) | {"set": [DATA, *changes, *given.set], "runs": folder})
            _, run = trained(recipe, seed, own)
            found[name].append(json.loads((run / "result.json").read_text()))
            print(recipe.stem, name, seed, f"{found[name][-1]['valid.click.auc']:.4f}", flush=True)
    return found


def table(found: dict[str, list[dict]], tasks: tuple[str, ...]) -> list[str]:
    """Return the lines of a table: each variant's figures, and what it loses against all features."""
    columns = (*(f"{task} AUC" for task in tasks), "click GAUC")
    head = f"| features | seeds | valid click AUC | {' | '.join(f'{column} | loses' for column in columns)} |"
    lines = [head, rule(head)]
    for name, results in found.items():
        cells = [name, str(len(results)), spread(np.array([one["valid.click.auc"] for one in results]))]
        for key in (*(f"test.{task}.auc" for task in tasks), "test.click.gauc"):
            if key not in results[0]:
                cells += ["-", "-"]
                continue
            own, whole = (np.array([one[key] for one in each]) for each in (results, found["all"]))
            lost = 1e4 * (whole - own)
            shown = f"{lost.mean():.0f}" + (f" ± {lost.std(ddof=1):.0f}" if len(lost) > 1 else "")
            cells += [spread(own), "-" if name == "all" else shown]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def intro(given: argparse.Namespace) -> str:
    """Return what stands above the tables."""
    return f"""# What features are worth on simulated live streams

Data: `livetrain data simulate --users 20k --days 14 --seed 7 --out data/simulation`, then `livetrain data kuailive
--raw data/simulation/kuailive --with visits --live-history 100 --out data/simulated-shown`.
{made(versions(), given)}

DIN with all of these features, and without each group. Mean ± deviation over seeds; "loses" times 1e4, against all
features with the same seed. Click GAUC is by user.
"""


if __name__ == "__main__":
    main()
