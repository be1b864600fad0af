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
PARTS = ("all", "new streamer", "unseen streamer", "new user")
AMONG = {"new streamer": (10, 50), "unseen streamer": (10,)}
BLOCK = 4096  # requests whose lists are in memory at once


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
        path, found = Path(f"configs/recipes/{name}.yaml"), []
        for seed in given.seeds[:1] if load_recipe(path).model.fitted else given.seeds:
            folder = given.runs / label.replace(" ", "-").replace(":", "") if changes else given.runs
            of = argparse.Namespace(**{**vars(given), "runs": folder, "set": [*given.set, *changes]})
            found.append(places(trained(path, seed, of)[1], few))
        counts = {part: f"{len(found[0][part]):,}" for part in PARTS}
        cells = [spread(np.array([(one[part] < 100).mean() for one in found])) for part in PARTS]
        cells += [
            spread(np.array([(one[f"among {part}s"] < k).mean() for one in found]))
            for part, sizes in AMONG.items()
            for k in sizes
        ]
        lines.append(f"| {label} | {len(found)} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    heads = [f"{part}: recall@100" for part in PARTS]
    heads += [f"{part} among these: recall@{k}" for part, sizes in AMONG.items() for k in sizes]
    head = f"| what | seeds | {' | '.join(heads)} |"
    asked = ", ".join(f"{part} {count}" for part, count in counts.items())
    there = ", ".join(f"{len(ids):,} {part}s" for part, ids in few.items())
    intro = f"Rows that ask: {asked}. Of the log's streamers {there}. Mean ± deviation over seeds.\n"
    text = ["# New streamers and new users", "", made(versions(), given), "", intro, head, rule(head), *lines, ""]
    given.out.write_text("\n".join(text))
    print(f"written to {given.out}")


def rare(data: Path) -> dict[str, list[int]]:
    """Return the new and the unseen streamers, by what the days of training hold."""
    days = load_recipe(Path("configs/recipes/social_simulated.yaml")).data.days
    assert days is not None
    within = f"date BETWEEN '{days.of('train')[0]}' AND '{days.of('train')[-1]}'"
    found = duckdb.sql(
        f"SELECT streamer, count(*) FILTER ({within}) AS shown, count(*) FILTER ({within} AND click = 1) AS visited "
        f"FROM read_parquet('{data}/simulated-social/date=*/*.parquet', hive_partitioning = true) "
        "GROUP BY 1 HAVING visited < 5 ORDER BY 1"
    ).fetchall()
    return {
        "new streamer": [one for one, *_ in found],
        "unseen streamer": [one for one, shown, _ in found if not shown],
    }


def places(run: Path, few: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Return, by slice, the place of each wanted item from 0, 100 or more where it is not among the first hundred."""
    content = {"requests": str(run), "channels": {"one": {"run": str(run)}}, "size": 100}
    blend = Blend(BlendSpec.model_validate(content | {"slices": {"new_user": "len(live_streamer) = 0"}}))
    of = day(blend, "test", QUERIES)

    def among(there: np.ndarray, asks: np.ndarray) -> np.ndarray:
        """Return the places of some requests' items, (n,), among the items that `there` marks, (N,)."""
        known, requests = of.known[there], of.requests.filter(pa.array(asks))
        wanted = (there.cumsum() - 1)[of.wanted[asks]]
        blend.meet(of.items.filter(pa.array(there)), known)
        hits = [
            blend.lists(requests.slice(start, BLOCK), known)[0] == wanted[start : start + BLOCK, None]
            for start in range(0, len(wanted), BLOCK)
        ]
        hit = np.concatenate(hits)
        return np.where(hit.any(1), hit.argmax(1), 100)

    every = among(np.ones(len(of.known), bool), np.ones(len(of.wanted), bool))
    found = {"all": every, "new user": every[of.marks >> list(blend.slices.columns).index("new_user") & 1 == 1]}
    for part, ids in few.items():
        there = np.isin(of.known, ids)
        found[part] = every[there[of.wanted]]
        found[f"among {part}s"] = among(there, there[of.wanted])
    return found


if __name__ == "__main__":
    main()
