"""The best click AUC that any model can reach from a simulated world's logs, and how far models get on that way.

    livetrain data simulate --users 20k --days 14 --seed 7 --out data/simulation
    livetrain data kuailive --raw data/simulation/kuailive --out data/simulated
    python benchmarks/limit.py --seeds 1 2 3

Nobody ranks better than by the chance of a click given all that is logged before: the true chance, averaged over the
posterior of what the logs do not hold (posterior.py). A day's rows are scored with samples drawn given all days before,
weighted by what the user was shown and did earlier on that day. What the samples are given beyond the logs makes the
limit one from above: the streamers' true popularity, who is on air when, and which of two topics of a streamer is the
first; in the first of the limits also the streamers' quality and second topic, and the bursts. With some of the users
alone, the streamers are learned from these users' exposures alone.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from exposures import Rows, T, read
from latents import place
from posterior import Chain, Posterior
from quality import add_training, made, rule, scores, spread, trained

from livetrain.configs.load import load_recipe
from livetrain.modules.metrics import binary
from livetrain.trainers.data.read.files import split_files
from livetrain.trainers.data.simulator.profiles import Ids
from livetrain.trainers.data.simulator.settings import DAY_MS, START_MS, Settings
from livetrain.trainers.data.simulator.state import BURST_ENDS, BURST_STARTS
from livetrain.trainers.data.simulator.world import World, build
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions

BURST = BURST_STARTS / (BURST_STARTS + BURST_ENDS)  # share of time, where nobody tells
FOUND = "## Found"
HEAD = "| ranked by | seeds | test AUC | way to the truth | log loss |"
RECIPES = [Path(f"configs/recipes/din_simulated{counts}.yaml") for counts in ("", "_pairs", "_topics")]


@dataclass(frozen=True)
class Limit:
    """What a posterior scores: its name, and what it knows and looks at."""

    name: str
    known: bool = False
    shown: bool = True


LIMITS = [
    Limit("the limit, all of streamers and bursts given", known=True),
    Limit("the limit"),
    Limit("the limit of clicks and watch times alone", shown=False),
]


def scored(
    limit: Limit, world: World, rows: Rows, on_air: torch.Tensor, days: list[int], given: argparse.Namespace
) -> np.ndarray:
    """Return (n,) chances of the rows of `days`, in the order of `rows`; kept beside the runs."""
    kept = given.runs / f"limit{LIMITS.index(limit)}-{given.users}.npy"
    if not kept.exists():
        if not limit.known:
            rows = Rows(**vars(rows) | {"burst": torch.full_like(rows.burst, BURST)})
        found, chain = torch.zeros(len(rows.user)), None
        for day in days:
            past = rows.where(rows.day < day)
            chain = Chain(world, on_air, past, known=limit.known, shown=limit.shown, seed=day, before=chain)
            posterior = Posterior(chain, given.samples, given.thin, given.burn if day == days[0] else given.burn // 4)
            asked = rows.day == day
            found[asked] = posterior.score(rows.where(asked), on_air, limit.shown)
            tell(limit, day, posterior, rows.where(asked), found[asked], world)
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, found[torch.isin(rows.day, torch.tensor(days))].numpy())
    return np.load(kept)


def tell(limit: Limit, day: int, posterior: Posterior, rows: Rows, chance: torch.Tensor, world: World) -> None:
    """Print what tells a right sampler from a wrong one: chances are rates, and the ranks of the truth even."""
    present = torch.unique(rows.user)
    true = torch.from_numpy(world.users.live_click)[present]
    rank = (posterior.of["x"][:, present] < true).float().mean(0)
    tenths = torch.chunk(torch.argsort(chance), 10)
    aucs = [f"{binary.auc(rows.click.numpy(), score.numpy()):.4f}" for score in (chance, rows.chance)]
    print(limit.name, f"day {day}: AUC, and the true chance's", *aucs)
    print(
        "chance and rate by tenths", *(f"{chance[part].mean():.3f} {rows.click[part].mean():.3f}," for part in tenths)
    )
    print("ranks of the true interests", (torch.histc(rank, 10, 0, 1) / rank.numel()).numpy().round(3), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="*", default=RECIPES)
    parser.add_argument("--world", type=Path, default=Path("data/simulation"))
    parser.add_argument("--users", type=int, default=4000, help="so many users, drawn evenly")
    parser.add_argument("--limits", type=int, nargs="*", default=[0, 1, 2], help="which of the limits")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--thin", type=int, default=4, help="sweeps per sample")
    parser.add_argument("--burn", type=int, default=300, help="sweeps before the first sample")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/limit.md"))
    add_training(parser)
    given = parser.parse_args()
    torch.set_num_threads(threads())
    world = build(Settings(**json.loads((given.world / "manifest.json").read_text())["settings"]))
    if world.settings.conflict != 0.5 or world.settings.social:
        raise SystemExit(f"{given.world}: likes or friends tell of interests there, which this does not read")
    rows, on_air = read(world, given.world)
    recipe = load_recipe(given.recipes[0], given.set)
    test = pq.read_table(
        [str(path) for path in split_files(recipe, "test")[2]], columns=["user", "room", "timestamp"], partitioning=None
    )
    time = test["timestamp"].to_numpy()
    days = sorted(set(((time - START_MS) // DAY_MS).tolist()))
    asked = rows.where(torch.isin(rows.day, torch.tensor(days)))
    ids = Ids(world)
    user, room = place(ids.user, test["user"].to_numpy()), place(ids.room, test["room"].to_numpy())
    by_key, to = np.lexsort((time, room, user)), np.lexsort((asked.time, asked.room, asked.user))
    if not np.array_equal(user[by_key], asked.user[to]) or not np.array_equal(time[by_key], asked.time[to]):
        raise SystemExit(f"{given.world}: this is not the world of the recipe's test rows")
    row_of = np.empty(len(to), np.int64)
    row_of[to] = by_key  # of an exposure, its row of the test split
    chosen = torch.zeros(len(world.users), dtype=torch.bool)
    chosen[torch.from_numpy(np.random.default_rng(0).permutation(len(world.users))[: given.users])] = True
    part = chosen[asked.user].numpy()
    found = {"the true chance": [asked.chance.numpy()[part]]}
    for number in given.limits:
        limit = LIMITS[number]
        found[limit.name] = [scored(limit, world, rows.where(chosen[rows.user]), on_air, days, given)]
    for path in given.recipes:
        runs = [trained(path, seed, given) for seed in given.seeds]
        found[path.stem] = [scores(recipe, run)["click"].logits[row_of][part] for recipe, run in runs]
    text = "\n".join(tables(found, asked.where(torch.from_numpy(part)), rows, given))
    kept = given.out.read_text() if given.out.exists() else ""
    given.out.write_text(text + (f"\n{FOUND}{kept.split(FOUND, 1)[1]}" if FOUND in kept else ""))
    print(text)


def tables(found: dict[str, list[np.ndarray]], asked: Rows, rows: Rows, given: argparse.Namespace) -> list[str]:
    """Return the lines of the file: everyone's AUC, and the same by how much was known of the user and the topic."""
    label = asked.click.numpy()
    earlier = before(rows, rows.user, asked)
    on_topic = before(rows, rows.user * T + rows.topic, asked)
    parts = {"all rows": np.ones(len(label), bool)}
    for name, number, borders in (
        ("of the user", earlier, (0, 20, 50, 100)),
        ("of the topic to the user", on_topic, (0, 1, 4, 16)),
    ):
        for low, high in zip(borders, (*borders[1:], None), strict=True):
            words = f"{low} to {high - 1}" if high and high - 1 > low else f"{low}" if high else f"{low} or more"
            parts[f"{words} earlier exposures {name}"] = (number >= low) & (number < (high or np.inf))
    best = {part: binary.auc(label[rows_of], found["the true chance"][0][rows_of]) for part, rows_of in parts.items()}
    lines = [intro(asked, given), HEAD, rule(HEAD)]
    for name, scores_of in found.items():
        aucs = np.array([binary.auc(label, score) for score in scores_of])
        ways = 100 * (aucs - 0.5) / (best["all rows"] - 0.5)
        lines.append(
            f"| {name} | {len(aucs)} | {spread(aucs)} | **{ways.mean():.1f} %** | {loss(label, scores_of, name)} |"
        )
    head = f"| rows | share | {' | '.join(found)} |"
    lines += ["", "The same by what was there to learn from: AUC, and per cent of the way.", "", head, rule(head)]
    for part, rows_of in parts.items():
        cells = []
        for scores_of in found.values():
            auc = np.mean([binary.auc(label[rows_of], score[rows_of]) for score in scores_of])
            cells.append(f"{auc:.4f} ({100 * (auc - 0.5) / (best[part] - 0.5):.0f} %)")
        lines.append(f"| {part} | {100 * rows_of.mean():.0f} % | {' | '.join(cells)} |")
    return [*lines, ""]


def loss(label: np.ndarray, scores_of: list[np.ndarray], name: str) -> str:
    """Return the mean log loss; of a recipe's logits, of its chances."""
    chances = scores_of if "the" in name.split()[:1] else [1 / (1 + np.exp(-score)) for score in scores_of]
    return spread(np.array([-np.mean(np.log(np.where(label > 0, chance, 1 - chance))) for chance in chances]))


def before(rows: Rows, key: torch.Tensor, asked: Rows) -> np.ndarray:
    """Return (m,) how many exposures with the same key there were before each one that is asked about."""
    order = torch.argsort(key, stable=True)  # rows are by time within a user
    turn = torch.empty_like(order)
    count = torch.bincount(key)
    turn[order] = torch.arange(len(order)) - (torch.cumsum(count, 0) - count)[key[order]]
    kept = torch.isin(rows.day, torch.unique(asked.day)) & torch.isin(rows.user, torch.unique(asked.user))
    return turn[kept].numpy()


def intro(asked: Rows, given: argparse.Namespace) -> str:
    """Return what stands above the tables."""
    return f"""# The limit: what any model can reach from a simulated world's logs

Data: `livetrain data simulate --users 20k --days 14 --seed 7 --out data/simulation`, then
`livetrain data kuailive --raw data/simulation/kuailive --out data/simulated`.
{made(versions(), given)}

Click on {len(asked.user):,} rows of the last two days, of {given.users:,} users drawn evenly. The limit is the true
chance, averaged over {given.samples} samples of the posterior of all that the logs do not hold: what a user likes, her
readiness, patience and favourites, the streamers' quality and second topic, and whether a room has a burst.
Way = (AUC - .5) / (the true chance's - .5).
"""


if __name__ == "__main__":
    main()
