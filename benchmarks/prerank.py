"""A light model distilled from a ranker: how far they agree, what its cut keeps, and what each costs to serve.

    livetrain data simulate --users 20k --days 14 --seed 7 --out data/simulation
    livetrain data kuailive --raw data/simulation/kuailive --out data/simulated
    livetrain train configs/recipes/din_simulated_pairs.yaml name=ranker cluster.workers=0
    python benchmarks/prerank.py --ranker runs/ranker

A request is a row of the samples: a user at a moment. Its candidates are the room that she was shown, whose label is
known, and all rooms that anybody was shown in the ten minutes of the clock before, whose labels are null; each with
what the newest such row says of the room, and with the user's own counts up to the request. The ranker scores all of
them, the light model learns from requests of four days, and is measured on requests of the day after the next.
"""

import argparse
import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import torch
from quality import made, rule

from livetrain.cluster import launch
from livetrain.configs.load import load_recipe
from livetrain.trainers.export import latency
from livetrain.trainers.export.prediction_files import predict
from livetrain.trainers.recall.cut import Rules, cut
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions

RECIPE = Path("benchmarks/prerank.yaml")
SPLITS = {"train": ("2025-06-01..2025-06-04", 1500), "valid": ("2025-06-05..2025-06-05", 150)}
SPLITS["test"] = ("2025-06-06..2025-06-06", 400)
ITEM = ("streamer_", "live_content_category", "room")  # what begins so is the room's, all else the user's
DONE = {"": "true"} | {f"{name}_": f's."{name}" > 0' for name in ("click", "effective_view", "like", "gift")}
PAIRS = {"user_streamer": "streamer", "user_live_content_category": "live_content_category"}
SLOT_MS = 600_000
KEEP = (20, 50, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranker", type=Path, default=Path("runs/ranker"), help="a run of din_simulated_pairs")
    parser.add_argument("--data", type=Path, default=Path("data/simulated"))
    parser.add_argument("--folder", type=Path, default=Path("data/prerank"))
    parser.add_argument("--runs", type=Path, default=Path("runs/prerank"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/prerank.md"))
    given = argparse.Namespace(**vars(parser.parse_args()), workers=0)
    torch.set_num_threads(threads())
    counts = {split: candidates(given, split) for split in SPLITS}
    recipe = load_recipe(RECIPE, [f"data.path={given.folder}", "name=prerank"])
    if not (given.runs / "prerank" / "result.json").exists():
        launch.train(recipe, given.runs)
    scored = given.folder / "scored"
    if not scored.exists():
        predict(given.runs / "prerank", str(given.folder / "test"), scored)
    lines = [intro(given, counts), HEAD, rule(HEAD)]
    for keep in KEEP:
        lines += cells(keep, figures(scored, given.folder / f"kept-{keep}", keep))
    lines += ["", SERVED, rule(SERVED)]
    for name, run in (("ranker", given.ranker), ("pre-rank", given.runs / "prerank")):
        names = json.loads((run / "export" / "signature.json").read_text())["features"]
        own = [feature for feature in names if feature.startswith((*ITEM, *PAIRS))]
        as_trained = latency.compare(run, candidate=own, rounds=10)[0]
        p50, p99 = np.percentile(as_trained.rank, [50, 99]) * 1e3
        size = as_trained.sizes["file"] / 1e6
        lines.append(f"| {name} | {len(names)} | {size:.1f} | {as_trained.candidates} | {p50:.2f} | {p99:.2f} |")
    given.out.write_text("\n".join([*lines, ""]))
    print(given.out.read_text())


def candidates(given: argparse.Namespace, split: str) -> tuple[int, int]:
    """Write a split's candidates with the ranker's scores, if they are not there; return requests and rows."""
    out = given.folder / split
    if not out.exists():
        raw, scored = given.folder / f"raw-{split}", given.folder / f"ranked-{split}"
        shutil.rmtree(raw, ignore_errors=True)
        raw.mkdir(parents=True)
        with duckdb.connect() as connection:
            connection.execute(f"COPY ({query(connection, given.data, *SPLITS[split])}) TO '{raw}/part-0.parquet'")
        shutil.rmtree(scored, ignore_errors=True)
        predict(given.ranker, str(raw), scored)
        out.mkdir()
        duckdb.sql(
            f"COPY (SELECT * EXCLUDE ({', '.join(SCORES)}), click_score AS ranker_score"
            f" FROM read_parquet('{scored}/*.parquet') ORDER BY request) TO '{out}/part-0.parquet'"
        )
        shutil.rmtree(raw)
    return duckdb.sql(f"SELECT count(DISTINCT request), count(*) FROM read_parquet('{out}/*.parquet')").fetchall()[0]


SCORES = [f"{task}_score" for task in ("click", "effective_view", "like", "comment", "gift")]


def query(connection: duckdb.DuckDBPyConnection, data: Path, days: str, number: int) -> str:
    """Return the SELECT of candidates: rows of the samples' columns, and `request`."""
    first, last = days.split("..")
    connection.execute(
        f"CREATE VIEW samples AS SELECT * FROM read_parquet('{data}/date=*/*.parquet', hive_partitioning = false);"
        f"CREATE VIEW asked AS SELECT *, timestamp // {SLOT_MS} AS slot FROM read_parquet("
        f"'{data}/date=*/*.parquet', hive_partitioning = true, hive_types = {{'date': DATE}})"
        f" WHERE date BETWEEN '{first}' AND '{last}';"
        f"CREATE TABLE requests AS SELECT row_number() OVER (ORDER BY hash(user, room, timestamp)) AS request, *"
        f" EXCLUDE (date) FROM asked QUALIFY request <= {number};"
        "CREATE TABLE rooms AS SELECT * EXCLUDE (date) FROM asked"
        " QUALIFY row_number() OVER (PARTITION BY room, slot ORDER BY timestamp DESC, user) = 1"
    )
    columns = [name for (name,) in connection.execute("SELECT column_name FROM (DESCRIBE samples)").fetchall()]
    paired = [name for name in columns if name.startswith(tuple(PAIRS))]
    labels = ["click", "effective_view", "watch_time", "like", "comment", "gift", "gift_value"]
    others = [name for name in columns if name not in (*paired, *labels)]
    select = [f"{'i' if name.startswith(ITEM) else 'r'}.{name}" for name in others]
    joins = []
    for prefix, key in PAIRS.items():
        counted = ", ".join(f"count(*) FILTER ({what}) AS {name}count" for name, what in DONE.items())
        connection.execute(
            f"CREATE TABLE {prefix} AS SELECT request, s.{key} AS key, max(s.timestamp) AS last, {counted}"
            " FROM requests r JOIN samples s ON s.user = r.user AND s.timestamp < r.timestamp GROUP BY ALL"
        )
        joins.append(f"LEFT JOIN {prefix} ON {prefix}.request = r.request AND {prefix}.key = i.{key}")
        select += [f"ln(1 + coalesce({prefix}.{name}count, 0))::FLOAT AS {prefix}_{name}count" for name in DONE]
        select.append(f"ln(1 + (r.timestamp - {prefix}.last) / 1000)::FLOAT AS {prefix}_ago")
    shown = "CASE WHEN i.room = r.room THEN r.click END AS click"
    return (
        f"SELECT r.request, {shown}, {', '.join(select)} FROM requests r JOIN ("
        "FROM rooms UNION ALL BY NAME SELECT * EXCLUDE (request, slot), slot - 1 AS slot FROM requests) i"
        f" ON i.slot = r.slot - 1 {' '.join(joins)}"
        " QUALIFY row_number() OVER (PARTITION BY r.request, i.room ORDER BY i.user = r.user DESC, i.timestamp) = 1"
    )


def figures(scored: Path, out: Path, keep: int) -> dict:
    """Return what a cut to `keep` candidates keeps."""
    shutil.rmtree(out, ignore_errors=True)
    rules = Rules(
        group="request",
        score="click_score",
        keep=keep,
        regular="user_streamer_click_count",
        regulars=keep // 10,
        kind="live_content_category",
        most=keep * 2 // 5,
        against="ranker_score",
        label="click",
    )
    return cut(str(scored), out, rules)


HEAD = (
    "| kept | cut | agreement | of the ranker's best 10 | of its very best | of what was taken | of regulars "
    "| kinds per list |"
)
SERVED = "| model | features | file, MB | candidates | p50, ms | p99, ms |"


def cells(keep: int, found: dict) -> list[str]:
    """Return a cut's two lines of the table."""
    shares = ("ranker_top", "ranker_best", "taken", "regulars")
    lines = []
    for name, words in (("score", "by score alone"), ("rules", "with regulars and kinds")):
        kept = " | ".join(f"{found[name][share]:.3f}" for share in shares)
        lines.append(f"| {keep} | {words} | {found['agreement']:.3f} | {kept} | {found[name]['kinds']:.1f} |")
    return lines


def intro(given: argparse.Namespace, counts: dict[str, tuple[int, int]]) -> str:
    """Return what stands above the tables."""
    told = "; ".join(f"{split} {requests:,} requests, {rows:,} rows" for split, (requests, rows) in counts.items())
    return f"""# A pre-rank distilled from a ranker, simulated

Data: `livetrain data simulate --users 20k --days 14 --seed 7 --out data/simulation`, then
`livetrain data kuailive --raw data/simulation/kuailive --out data/simulated`. Ranker: `din_simulated_pairs`.
{made(versions(), given)}

Candidates: {told}.
A tenth of the places is for rooms of streamers whom the user clicked before, and at most two fifths are of one topic.
Agreement: Spearman's rank correlation within a request.
"""


if __name__ == "__main__":
    main()
