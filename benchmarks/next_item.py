"""Finding the next item on public data by published protocols: this project's models beside published figures.

    livetrain data ml-1m --protocol next-item --out data/ml-1m-next
    livetrain data next-item toys_and_games.txt --out data/toys
    livetrain data next-item AMusic.train.rating --test AMusic.test.rating \\
      --negatives AMusic.test.negative --out data/amusic          # and --rows events --out data/amusic-events
    livetrain data next-item ml-1m.train.rating --test ml-1m.test.rating \\
      --negatives ml-1m.test.negative.gz --out data/ncf-ml-1m     # and --rows events --out data/ncf-ml-1m-events,
                                  # and --rows events --train-on-valid --out data/ncf-ml-1m-events-final
    python benchmarks/next_item.py --seeds 1 2 3

Each run keeps the checkpoint that is best on the validation events; the test events are read once, after that. Runs go
to --runs as <recipe>-seed<n>; one that is there and whose recipe is unchanged is read and not trained again, so the
command goes on where it was stopped. The tables are written again after each run, of the runs that are there; what else
the file says, of parts without a run here too, stays as it is.
"""

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import add_training, made, rule, spread, trained

from livetrain.trainers.runtime.process import threads

RECIPES = Path("configs/recipes")
BOOTSTRAP = 200  # draws of users
HEAD = "| model | seeds | valid HR@10 | valid NDCG@10 | HR@10 | NDCG@10 | error | best step | processor min |"
CPU = "cpu_s.json"  # in a run's folder
RETRIEVAL, LISTS = ("recall_10", "ndcg_10"), ("list_hr_10", "list_ndcg_10")


@dataclass(frozen=True)
class Part:
    """A set of data, its recipes and what was published on it.

    Args:
        title: of its table.
        recipes: their names.
        published: model -> HR@10 and NDCG@10.
        source: of those.
        fixed: recipes without chance in them, of which one seed is enough.
    """

    title: str
    recipes: list[str]
    published: dict[str, tuple[float, float]]
    source: str
    fixed: frozenset[str] = field(default=frozenset())


_BENCHMARK = "github.com/blondered/transformer_benchmark at 2b03992, README: recomputed on one split by its authors"
_RENDLE = "Rendle et al., RecSys 2020 (2005.09683), and RecSys 2022 (2110.14037)"
PARTS = [
    Part(
        "MovieLens-1M, leave-one-out among all movies",
        ["sasrec_ml1m_next", "esasrec_ml1m_next", "hstu_ml1m_next"],
        {
            "SASRec, sampled softmax": (0.2929, 0.1684),
            "eSASRec": (0.3133, 0.1772),
            "HSTU": (0.3037, 0.1719),
        },
        _BENCHMARK,
    ),
    Part(
        "Amazon Toys, leave-one-out among all items",
        ["item_cf_toys", "sasrec_toys", "esasrec_toys", "hstu_toys", "comirec_toys"],
        {
            "SASRec, sampled softmax": (0.0970, 0.0580),
            "eSASRec": (0.0939, 0.0538),
            "HSTU": (0.0778, 0.0450),
        },
        _BENCHMARK,
        frozenset({"item_cf_toys"}),
    ),
    Part(
        "MovieLens-1M, NCF's split, among 99 listed movies",
        ["als_ncf", "ease_ncf", "item_cf_ncf", "mf_ncf", "mf_ncf_final", "neumf_ncf"],
        {
            "MF": (0.729, 0.452),
            "EASE": (0.719, 0.449),
            "iALS": (0.711, 0.438),
            "NeuMF": (0.709, 0.435),
            "item-kNN": (0.669, 0.398),
        },
        _RENDLE,
        frozenset({"ease_ncf", "item_cf_ncf"}),
    ),
    Part(
        "AMusic, DeepCF's split, among 99 listed items",
        ["als_amusic", "ease_amusic", "item_cf_amusic", "mf_amusic", "neumf_amusic"],
        {},
        "",
        frozenset({"ease_amusic", "item_cf_amusic"}),
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="RECIPE", help="names of recipes; all by default")
    parser.add_argument("--show", action="store_true", help="write the table of what is there, and train nothing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/next_item.md"))
    add_training(parser)
    given = parser.parse_args()
    given.set = [f"evaluate.bootstrap={BOOTSTRAP}", *given.set]
    torch.set_num_threads(threads())
    for part in PARTS:
        for name in part.recipes:
            for seed in given.seeds[: 1 if name in part.fixed else None]:
                if not given.show and (not given.only or name in given.only):
                    run(name, seed, given)
                    write(given)
    write(given)
    print(given.out.read_text())


def run(name: str, seed: int, given: argparse.Namespace) -> None:
    """Train a recipe, unless it is there, and keep the processor time that it took."""
    before, there = time.process_time(), (given.runs / f"{name}-seed{seed}" / "result.json").exists()
    _, folder = trained(RECIPES / f"{name}.yaml", seed, given)
    if not there:
        (folder / CPU).write_text(json.dumps(time.process_time() - before))


def read(folder: Path) -> dict[str, Any]:
    """Return a run's figures, and the seconds of processor time that it took, if they are known."""
    seconds = {"cpu_s": json.loads((folder / CPU).read_text())} if (folder / CPU).exists() else {}
    return json.loads((folder / "result.json").read_text()) | seconds


def write(given: argparse.Namespace) -> None:
    """Write the tables of the runs that are there, and keep the other sections of the file."""
    tables, versions, kept = [], {}, sections(given.out)
    for part in PARTS:
        before = kept.pop(part.title, "")
        lines = []
        for name in part.recipes:
            folders = [given.runs / f"{name}-seed{seed}" for seed in given.seeds]
            results = [read(folder) for folder in folders if (folder / "result.json").exists()]
            if results:
                lines.append(line(name, results))
                versions = results[-1].get("versions", versions)
        if not lines:
            tables += [before] if before else []
            continue
        lines += [published(name, *figures) for name, figures in part.published.items()]
        source = [f"Published: {part.source}.", ""] if part.source else []
        tables += [f"## {part.title}", "", HEAD, rule(HEAD), *lines, "", *source]
    head = f"""# The next item, by published protocols

{made(versions, given)}

Mean ± deviation over seeds. "error": the bootstrap's standard error of the first seed's HR@10 over users, which is what
another draw of users would move any of these figures by. Settings and checkpoints are chosen on the validation events,
whose figures are not to be compared with published ones. "processor min": of a whole run, for each seed.
"""
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("\n".join([head, *tables, *kept.values()]))


def sections(file: Path) -> dict[str, str]:
    """Return a file's sections by their titles; empty if it is not there."""
    parts = ("\n" + file.read_text()).split("\n## ")[1:] if file.exists() else []
    return {part.split("\n", 1)[0]: f"## {part.rstrip()}\n" for part in parts}


def line(name: str, results: list[dict[str, Any]]) -> str:
    """Return a recipe's line from the results of its seeds."""
    first = results[0]
    metrics = next(pair for pair in (RETRIEVAL, LISTS) if any(key.endswith(f".{pair[0]}") for key in first))
    task = next(key.split(".")[1] for key in first if key.endswith(f".{metrics[0]}") and key.startswith("test."))

    def of(key: str) -> str:
        return spread(np.array([result[key] for result in results]))

    low, high = (first[f"test.{task}.{metrics[0]}_{end}"] for end in ("low", "high"))
    cells = [of(f"{split}.{task}.{metric}") for split in ("valid", "test") for metric in metrics]
    steps = ", ".join(f"{result['best_step']:,}" for result in results)
    minutes = ", ".join(f"{result['cpu_s'] / 60:.1f}" for result in results if "cpu_s" in result)
    return f"| {' | '.join([name, str(len(results)), *cells, f'{(high - low) / 3.92:.4f}', steps, minutes])} |"


def published(name: str, hits: float, gain: float) -> str:
    return f"| *published: {name}* | | | | {hits:.4f} | {gain:.4f} | | | |"


if __name__ == "__main__":
    main()
