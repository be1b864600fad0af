"""What finds new streamers, and what new users, on simulated live streams: recall by slices, over seeds.

    livetrain data simulate --users 12k --days 14 --social 0.1 --content 0.3 --out data/simulation-social
    livetrain data kuailive --raw data/simulation-social/kuailive --out data/simulated-social \
        --with people --with vectors --with interests
    python benchmarks/cold_start.py --seeds 1 2 3

A streamer is new who was visited fewer than five times in the days of training, and unseen who was not shown there; a
user is new who has visited nobody. Every clicked row of the test days asks for its streamer: among all of these days,
and if it wants a new or an unseen one also among the new or the unseen ones alone, as a channel with reserved places is
asked. Checkpoints are chosen by recall of all rows on the day for valid. What is fitted has one run for all seeds.
"""

import argparse
import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import torch
from quality import add_training, made, rule, spread, trained

from livetrain.configs.blend_spec import BlendSpec
from livetrain.configs.load import load_recipe
from livetrain.trainers.evaluate.retrieval import QUERIES
from livetrain.trainers.recall.blend import Blend, day
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions

NO_TOPICS = ["features.live_content_category=null", "features.streamer_live_operation_tag=null"]
COUNTS = "streamer_fans_user_num, streamer_count, streamer_click_rate, streamer_effective_view_rate, "
COUNTS += "streamer_like_rate, streamer_gift_rate"
ARMS = {  # name of the line -> recipe, changes
    "popular": ("popular_simulated", []),
    "item_cf": ("item_cf_simulated", []),
    "interests": ("interests_simulated", []),
    "social": ("social_simulated", []),
    "towers: ids and counts": ("dssm_simulated_social", [*NO_TOPICS, f"model.item=[{COUNTS}]"]),
    "and the vector as numbers": ("dssm_simulated_content", [*NO_TOPICS, f"model.item=[{COUNTS}, streamer_vector]"]),
    "and the vector as first embedding": ("dssm_simulated_initial", [*NO_TOPICS, f"model.item=[{COUNTS}]"]),
    "towers: ids, counts and topics": ("dssm_simulated_social", []),
    "with topics and the vector as numbers": ("dssm_simulated_content", []),
    "with topics and the vector as first embedding": ("dssm_simulated_initial", []),
}
PARTS = {"": "all", "new_item.": "new streamer", "unseen.": "unseen streamer", "new_user.": "new user"}
AMONG = {"new_item": (10, 50), "unseen": (10,)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cold_start.md"))
    add_training(parser)
    given = parser.parse_args()
    torch.set_num_threads(threads())
    few = rare(Path("data"))
    lines, counts = [], {}
    for label in given.arms:
        name, changes = ARMS[label]
        path, results, ranks = Path(f"configs/recipes/{name}.yaml"), [], []
        for seed in given.seeds[:1] if load_recipe(path).model.fitted else given.seeds:
            folder = given.runs / "cold-start" / label.replace(" ", "-").replace(",", "").replace(":", "")
            of = argparse.Namespace(**{**vars(given), "runs": folder, "set": [*given.set, *slices(few), *changes]})
            run = trained(path, seed, of)[1]
            results.append(json.loads((run / "result.json").read_text()))
            ranks.append(among(run, few))
        counts = {part: f"{results[0][f'test.{part}click.queries']:,.0f}" for part in PARTS}
        cells = [spread(np.array([result[f"test.{part}click.recall_100"] for result in results])) for part in PARTS]
        cells += [spread(np.array([(r[part] < k).mean() for r in ranks])) for part, ks in AMONG.items() for k in ks]
        lines.append(f"| {label} | {len(results)} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    heads = [f"{title}: recall@100" for title in PARTS.values()]
    heads += [f"{PARTS[f'{part}.']} among these: recall@{k}" for part, ks in AMONG.items() for k in ks]
    head = f"| what | seeds | {' | '.join(heads)} |"
    asked = ", ".join(f"{title} {counts[part]}" for part, title in PARTS.items())
    there = ", ".join(f"{len(ids):,} {PARTS[f'{part}.']}s" for part, ids in few.items())
    intro = f"Rows that ask: {asked}. Of the log's streamers {there}. Mean ± deviation over seeds.\n"
    text = ["# New streamers and new users", "", made(versions(), given), "", intro, head, rule(head), *lines, ""]
    given.out.write_text("\n".join(text))
    print(f"written to {given.out}")


def rare(data: Path) -> dict[str, list[int]]:
    """Return the streamers of each slice, by what the days of training hold."""
    days = load_recipe(Path("configs/recipes/social_simulated.yaml")).data.days
    assert days is not None
    within = f"date BETWEEN '{days.of('train')[0]}' AND '{days.of('train')[-1]}'"
    found = duckdb.sql(
        f"SELECT streamer, count(*) FILTER ({within}) AS shown, count(*) FILTER ({within} AND click = 1) AS visited "
        f"FROM read_parquet('{data}/simulated-social/date=*/*.parquet', hive_partitioning = true) "
        "GROUP BY 1 HAVING visited < 5 ORDER BY 1"
    ).fetchall()
    return {"new_item": [one for one, *_ in found], "unseen": [one for one, shown, _ in found if not shown]}


def slices(few: dict[str, list[int]]) -> list[str]:
    """Return the slices as changes of a recipe."""
    asked = {part: f"streamer IN ({', '.join(map(str, ids))})" for part, ids in few.items()}
    asked["new_user"] = "len(live_streamer) = 0"
    return [f"evaluate.slices.{name}={condition}" for name, condition in asked.items()]


def among(run: Path, few: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Return, by slice, the place of each wanted item among the slice's items alone, from 0."""
    blend = Blend(BlendSpec.model_validate({"requests": str(run), "channels": {"one": {"run": str(run)}}}))
    of, found = day(blend, "test", QUERIES), {}
    for part, ids in few.items():
        there = np.isin(of.known, ids)
        asks = (of.wanted >= 0) & there[of.wanted]
        wanted = (there.cumsum() - 1)[of.wanted[asks]]
        blend.meet(of.items.filter(pa.array(there)), of.known[there])
        lists = blend.lists(of.requests.filter(pa.array(asks)), of.known[there], wanted)[0]
        hit = lists == wanted[:, None]
        found[part] = np.where(hit.any(1), hit.argmax(1), lists.shape[1])
    return found


if __name__ == "__main__":
    main()
