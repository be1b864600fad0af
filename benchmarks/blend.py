"""A blend of channels: recall of what users clicked beside each channel alone, over seeds.

    livetrain data kuairand --raw DIR --out data/kuairand
    python benchmarks/blend.py --seeds 1 2 3
    python benchmarks/blend.py --world simulated --seeds 1 2 3    # its data: configs/recipes/base/simulated_social.yaml

Every clicked row of the test days asks for its item among all items of these days, as in benchmarks/recall.py.
Channels learn from the days for train, weights are searched on the day for valid, and the test days are looked at once
per seed. Kinds that are fitted have one run for all seeds. A call that was killed goes on.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from quality import add_training, made, rule, spread, trained

from livetrain.configs.blend_spec import BlendSpec
from livetrain.configs.load import load_recipe
from livetrain.trainers.recall.blend import blended
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions

HEAD = "| channel | weight | quota | recall@100 | only it @100 | share @100 | recall@500 | only it @500 | share @500 |"


@dataclass(frozen=True)
class World:
    """Recipes whose runs are the channels, the first one's rows being the requests; and slices of these."""

    title: str
    asks: str
    channels: tuple[str, ...]
    slices: dict[str, str]


WORLDS = {
    "kuairand": World(
        "KuaiRand-Pure",
        "videos",
        ("dssm_kuairand", "item_cf_kuairand", "als_kuairand", "tags_kuairand", "popular_kuairand", "latest_kuairand"),
        {"new_user": "len(video_id) = 0", "new_item": "video_count < 1.7"},
    ),
    "simulated": World(
        "simulated live streams",
        "streamers",
        ("dssm_simulated_content", "item_cf_simulated", "social_simulated", "interests_simulated", "popular_simulated"),
        {"new_user": "len(live_streamer) = 0", "new_item": "streamer_count < 1.7"},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=list(WORLDS), default="kuairand")
    parser.add_argument("--channels", nargs="+", help="names of recipes")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--blends", type=Path, default=Path("runs/blends"))
    parser.add_argument("--out", type=Path)
    add_training(parser)
    given = parser.parse_args()
    world = WORLDS[given.world]
    given.channels = given.channels or list(world.channels)
    given.out = given.out or Path(f"benchmarks/results/blend_{given.world}.md")
    torch.set_num_threads(threads())
    found = [one(given, seed) for seed in given.seeds]
    tests = [content["test"] for content in found]
    lines = [made(versions(), given), "", *intro(tests[0], world), HEAD, rule(HEAD)]
    blends = [" | ".join([spread(of(tests, "blend", f"recall_{size}")), "", ""]) for size in (100, 500)]
    lines.append(f"| **the blend** | | | {' | '.join(blends)} |")
    for name in given.channels:
        settings = [content["spec"]["channels"].get(name, {}) for content in found]
        weight, quota = (np.mean([own.get(key, 0) for own in settings]) for key in ("weight", "quota"))
        cells = [
            spread(of(tests, "channels", name, f"{w}_{k}")) for k in (100, 500) for w in ("recall", "only", "share")
        ]
        lines.append(f"| {name} | {weight:.2f} | {quota:.0f} | {' | '.join(cells)} |")
    gains = [f"recall@{size} {spread(of(tests, 'gain', size, 'recall'))}" for size in ("100", "500")]
    errors = [float(test["gain"]["100"]["standard_error"]) for test in tests]
    lines += ["", f"The blend over the best channel alone: {', '.join(gains)}; standard error of one seed over users "]
    lines[-1] += f"{np.mean(errors):.4f}."
    lines += ["", *slices(tests, given.channels, world)]
    given.out.write_text("\n".join([f"# Channels and their blend on {world.title}", "", *lines, ""]))
    print(f"written to {given.out}")


def one(given: argparse.Namespace, seed: int) -> dict:
    """Return what the blend of a seed's runs measured; runs and blend are made if they are not there."""
    runs = {name: made_for(given, name, seed) for name in given.channels}
    out = given.blends / f"{given.world}-seed{seed}"
    if (out / "manifest.json").exists():
        return json.loads((out / "blend.json").read_text())
    content = {
        "requests": str(runs[given.channels[0]]),
        "channels": {name: {"run": str(run)} for name, run in runs.items()},
        "slices": WORLDS[given.world].slices,
        "search": {"trials": given.trials, "at": 100, "seed": seed},
    }
    return blended(BlendSpec.model_validate(content), out, print)


def made_for(given: argparse.Namespace, name: str, seed: int) -> Path:
    """Return the run of a channel and a seed; what is fitted draws next to nothing, so it has one for all seeds."""
    path = Path(f"configs/recipes/{name}.yaml")
    return trained(path, given.seeds[0] if load_recipe(path).model.fitted else seed, given)[1]


def of(tests: list[dict], *keys: str) -> np.ndarray:
    """Return a figure of every seed."""
    found = []
    for test in tests:
        for key in keys:
            test = test[key]
        found.append(test)
    return np.array(found, float)


def intro(test: dict, world: World) -> list[str]:
    return [
        f"{test['requests']:,} clicked rows of the test days, {test['items']:,} {world.asks}; mean ± deviation over "
        "seeds. `only it`: share of the rows whose item is in the blend because of this channel alone; `share`: of the "
        "blend's candidates, those that the channel brought, others too or not.",
        "",
    ]


def slices(tests: list[dict], channels: list[str], world: World) -> list[str]:
    """Return a table of recall@100 by slices."""
    head = f"| slice | rows | the blend | {' | '.join(channels)} |"
    lines = ["recall@100 by slices:", "", head, rule(head)]
    for name, condition in world.slices.items():
        cells = [spread(of(tests, "slices", name, "blend", "recall_100"))]
        cells += [spread(of(tests, "slices", name, "channels", each, "recall_100")) for each in channels]
        lines.append(f"| {name}: `{condition}` | {tests[0]['slices'][name]['requests']:,} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
