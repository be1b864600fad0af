"""Is the simulated world like KuaiLive, and is it hard? Calibration, baselines on the way to the oracle, and speed.

    python benchmarks/simulator.py [--users 20k] [--days 14] [--out benchmarks/results/simulator.md]

Simulates a world, puts its figures beside KuaiLive's published and measured ones, and scores the last two days with
what can be had without a sequence model: popularity, logistic regression on ids and running rates, and, as a stand-in
for everything that a user's history reveals, boosted trees on hand-made counts of what he did with the candidate's
topic and streamer before. The way is (AUC - 0.5) / (oracle's AUC - 0.5).
"""

import argparse
import datetime
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import sklearn
from quality import processor
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from livetrain.modules.metrics import binary
from livetrain.trainers.data.simulator import Settings, count, simulate

TASKS = ("click", "effective_view", "like", "gift")
TREE_ROWS = 400_000  # random rows before the test days that boosted trees learn from
ROWS = 'select count(*) from "{}"'
FEW = 10  # earlier live exposures below which a user counts as one with few live events
SOURCES = {
    "A": "KuaiLive's authors, on its project page (github.com/imgkkk574/KuaiLive)",
    "B": "number of rows of the public negative.csv, as GiftLive (C) gives it, with A's clicks",
    "C": "measured on the public files by github.com/ViskaWei/GiftLive (EDA and delay audit of 2026-01-08)",
    "D": "measured on the public files' shop rooms by github.com/Towfienes/AISC2026_LIVEFIT (kuailive-calibration.md)",
    "E": "KuaiLive-M3's authors (klm3.py: 111 M plays, 35 M views and 92 M impressions without a view)",
}

# (what, published or measured, source, key of `figures`)
PUBLISHED = [
    ("users", "23,772", "A", "users"),
    ("streamers per user", "19.0", "A", "streamers_per_user"),
    ("live exposures per user and day", "35.3", "B", "exposures_per_user_day"),
    ("rooms per streamer and day", "1.22", "A", "rooms_per_streamer_day"),
    ("clicks per exposure", "0.279", "B", "click"),
    ("comments per click", "0.0400", "A", "comment"),
    ("likes per click", "0.0365", "A", "like"),
    ("gifts per click", "0.0148", "A", "gift"),
    ("follows per click", "not available", "", "follow"),
    ("watch time of a click, quartiles, s", "1.8 / 5.4 / 34", "D", "watch_quartiles"),
    ("watch time of a click, 90 %, s", "205", "D", "watch_90"),
    ("watch time of a click, mean, s", "122", "D", "watch_mean"),
    ("clicks that last over a minute", "0.19", "D", "watch_minute"),
    ("room length, quartiles, min", "85 / 134 / 202", "D", "room_quartiles"),
    ("room length, mean, min", "166", "D", "room_mean"),
    ("gift price, 50 / 90 / 95 / 99 %", "2 / 88 / 298 / 1,488", "C", "price"),
    ("gift price, mean", "82.7", "C", "price_mean"),
    ("revenue from the top 1 % of giving users", "0.599", "C", "revenue_users"),
    ("revenue of the top 1 % of gifted streamers", "0.534", "C", "revenue_streamers"),
    ("gifts outside every view", "0.120", "C", "late_gifts"),
    ("busiest hour (UTC+8)", "20, if C's 12 is UTC", "C", "busiest"),
    ("plays of short videos per live exposure", "0.87", "E", "plays_per_exposure"),
    ("Zipf exponent of exposures over streamers", "not available", "", "zipf_streamers"),
    ("Zipf exponent of exposures over users", "not available", "", "zipf_users"),
]


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        speed = timed(given.speed_users, given.days, Path(scratch) / "large")
        print(speed, flush=True)
        folder, settings = Path(scratch) / "world", Settings(count(given.users), given.days, given.seed)
        simulate(settings, folder)
        con = opened(folder)
        text = document(given, speed, calibration(con, settings), hardness(con))
    given.out.write_text(text)
    print(text)


def timed(users: str, days: int, out: Path) -> str:
    """Simulate in a process of its own; return how fast it was and what memory it took."""
    words = [
        sys.executable,
        "-m",
        "livetrain",
        "data",
        "simulate",
        "--users",
        users,
        "--days",
        str(days),
        "--out",
        str(out),
    ]
    begun = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    seconds = time.perf_counter() - begun
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    con, size = opened(out), sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    exposures, plays = (con.execute(f"select count(*) from {name}").fetchone()[0] for name in ("truth", "play"))
    con.close()
    shutil.rmtree(out)
    return (
        f"{users} users and {days} days: {exposures:,} live exposures and {plays:,} plays of videos in {seconds:.0f} s "
        f"({usage.ru_utime + usage.ru_stime:.0f} s of processor time), {size / 1e9:.1f} GB of files written and hashed "
        f"included: {exposures / seconds * 60 / 1e6:.1f} M live exposures per minute; peak memory "
        f"{usage.ru_maxrss / 1e6:.2f} GB; the machine's load average was {os.getloadavg()[0]:.0f}."
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", default="20k")
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--speed-users", default="100k", help="users of the world that is only timed")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/simulator.md"))
    return parser.parse_args()


def opened(folder: Path) -> duckdb.DuckDBPyConnection:
    """Return a database with the raw files as views, and the truth as `truth`."""
    con = duckdb.connect()
    for name in ("click", "negative", "like", "comment", "gift", "room", "streamer"):
        con.execute(f"create view \"{name}\" as from read_csv('{folder}/kuailive/{name}.csv')")
    con.execute(f"create view play as from '{folder}/kuailive-m3/photo_play.parquet'")
    con.execute(f"create view tag as from read_csv('{folder}/kuailive-m3/photo_tag.csv')")
    con.execute(f"create view truth as from read_parquet('{folder}/truth/*/*.parquet', hive_partitioning=false)")
    return con


def calibration(con: duckdb.DuckDBPyConnection, settings: Settings) -> str:
    """Return the table published | simulated."""

    def column(query: str) -> np.ndarray:
        return next(iter(con.execute(query).fetchnumpy().values()))

    def number(query: str) -> float:
        return float(column(query)[0])

    def counts(key: str) -> np.ndarray:
        return np.sort(column(f"select count(*) from truth group by {key}"))[::-1]

    def top(key: str) -> float:
        revenue = np.sort(column(f"select sum(gift_price) from gift group by {key}"))[::-1]
        return float(revenue[: max(1, len(revenue) // 100)].sum() / revenue.sum())

    def slashed(values: np.ndarray, digits: int) -> str:
        return " / ".join(f"{value:,.{digits}f}" for value in values)

    exposures, clicks, shown = (number(f"select count(*) from {name}") for name in ("truth", "click", "play"))
    streamers = number("select count(*) from streamer")
    watch = column("select watch_live_time / 1000 from click")
    length = column("select (end_timestamp - start_timestamp) / 60000 from room")
    price = column("select gift_price from gift")
    hours = column(
        "select count(*) n from truth group by (timestamp // 3600000 + 8) % 24 order by (timestamp // 3600000 + 8) % 24"
    )
    late = number(
        "select avg((late > 0)::int) from (select min(g.timestamp - c.timestamp - c.watch_live_time) late from gift g "
        "asof join click c on g.user_id = c.user_id and g.live_id = c.live_id and g.timestamp >= c.timestamp "
        "group by g.user_id, g.live_id, c.timestamp)"
    )
    figures = {
        "users": f"{settings.users:,}",
        "streamers_per_user": f"{streamers / settings.users:.2f}",
        "exposures_per_user_day": f"{exposures / settings.users / settings.days:.1f}",
        "rooms_per_streamer_day": f"{number('select count(*) from room') / streamers / settings.days:.2f}",
        "click": f"{clicks / exposures:.3f}",
        **{kind: f"{number(ROWS.format(kind)) / clicks:.4f}" for kind in ("comment", "like", "gift")},
        "follow": f"{number('select sum(follow) from truth') / clicks:.4f}",
        "watch_quartiles": slashed(np.quantile(watch, (0.25, 0.5, 0.75)), 1),
        "watch_90": f"{np.quantile(watch, 0.9):.0f}",
        "watch_mean": f"{watch.mean():.0f}",
        "watch_minute": f"{(watch > 60).mean():.2f}",
        "room_quartiles": slashed(np.quantile(length, (0.25, 0.5, 0.75)), 0),
        "room_mean": f"{length.mean():.0f}",
        "price": slashed(np.quantile(price, (0.5, 0.9, 0.95, 0.99)), 0),
        "price_mean": f"{price.mean():.1f}",
        "revenue_users": f"{top('user_id'):.3f}",
        "revenue_streamers": f"{top('streamer_id'):.3f}",
        "late_gifts": f"{late:.3f}",
        "busiest": str(np.argmax(hours)),
        "plays_per_exposure": f"{shown / exposures:.2f}",
        "zipf_streamers": f"{zipf(counts('streamer_id')):.2f}",
        "zipf_users": f"{zipf(counts('user_id')):.2f}",
    }
    lines = [f"| {what} | {known} | {figures[key]} | {source} |" for what, known, source, key in PUBLISHED]
    legend = "; ".join(f"{letter}: {source}" for letter, source in SOURCES.items())
    return "\n".join(
        ["| figure | KuaiLive | simulated | source |", "| --- | --- | --- | --- |", *lines, "", legend + "."]
    )


def zipf(sizes: np.ndarray) -> float:
    """Return s of size ~ rank^-s, least squares on logs over the first tenth of the ranks."""
    head = sizes[: max(10, len(sizes) // 10)]
    return -float(np.polyfit(np.log(np.arange(1, len(head) + 1)), np.log(head), 1)[0])


HISTORY = """
create table log as
    select t.*, r.live_content_category topic, s.live_operation_tag side,
        (t.timestamp - r.start_timestamp) / 60000 age,
        dense_rank() over (order by (t.timestamp + 28800000) // 86400000) as day
    from truth t join room r using (live_id) join streamer s on s.streamer_id = t.streamer_id;
create table counted as select *,
    {running_user}, {running_topic}, {running_pair}, {running_streamer} from log;
create table watched as
    select user_id, first_level_category_name topic, epoch_ms(enter_timestamp) ts,
        count(*) over topics v_n, sum(is_complete_play) over topics v_complete,
        sum(like_status_type) over topics v_like, count(*) over everything v_all
    from play join tag using (photo_id)
    window topics as (partition by user_id, first_level_category_name order by enter_timestamp),
        everything as (partition by user_id order by enter_timestamp);
create table seen as
    select user_id, topic, timestamp ts, count(*) over topics n, sum(click) over topics click
    from log window topics as (partition by user_id, topic order by timestamp);
create table features as
    select c.*, v.v_n, v.v_complete, v.v_like, a.v_all, w.v_n v2_n, w.v_complete v2_complete, o.n o_n, o.click o_click
    from counted c
    asof left join watched v on c.user_id = v.user_id and c.topic = v.topic and c.timestamp > v.ts
    asof left join watched w on c.user_id = w.user_id and c.side = w.topic and c.timestamp > w.ts
    asof left join seen o on c.user_id = o.user_id and c.side = o.topic and c.timestamp > o.ts
    asof left join (select user_id, ts, v_all from watched) a on c.user_id = a.user_id and c.timestamp > a.ts;
"""


def history(con: duckdb.DuckDBPyConnection) -> dict[str, np.ndarray]:
    """Return every exposure with counts of what came strictly before it; (n,) each."""

    def running(prefix: str, keys: str) -> str:
        over = f"over (partition by {keys} order by timestamp rows between unbounded preceding and 1 preceding)"
        sums = (f'coalesce(sum("{task}") {over}, 0) {prefix}_{task}' for task in TASKS)
        return ", ".join([f"count(*) {over} {prefix}_n", *sums])

    groups = {"user": "user_id", "topic": "user_id, topic", "pair": "user_id, streamer_id", "streamer": "streamer_id"}
    con.execute("set memory_limit = '4GB'; set threads = 2")
    con.execute(HISTORY.format(**{f"running_{name}": running(name, keys) for name, keys in groups.items()}))
    found: pa.Table = con.sql("select *, hash(topic) % 97 kind from features").to_arrow_table()
    numbers = [f.name for f in found.schema if not pa.types.is_string(f.type) and not f.name.startswith("ts")]
    return {name: found[name].to_numpy().astype(np.float64) for name in numbers}


def hardness(con: duckdb.DuckDBPyConnection) -> str:
    """Return the table of baselines on the last two days, in share of the way to the oracle."""
    log = history(con)
    last = log["day"].max()
    train, test = (log["day"] > 3) & (log["day"] < last - 1), log["day"] >= last - 1
    few = log["user_n"] < FEW
    lines = ["| task | oracle's AUC | " + " | ".join(MODELS) + " |", "|" + " --- |" * (len(MODELS) + 2)]
    detail = ["| task | model | users with few live events | others |", "| --- | --- | --- | --- |"]
    for task in TASKS:
        label, true = log[task], log[f"p_{task}"]
        cells = []
        for name, score in MODELS.items():
            scores = score(log, task, train, test)
            cells.append(f"{binary.auc(label[test], scores):.4f} ({way(label, scores, true, test):.0%})")
            parts = [way(label, scores, true, test, test & chosen) for chosen in (few, ~few)]
            detail.append(f"| {task} | {name} | {parts[0]:.0%} | {parts[1]:.0%} |")
            print(task, name, cells[-1], flush=True)
        lines.append(f"| {task} | {binary.auc(label[test], true[test]):.4f} | " + " | ".join(cells) + " |")
    split = (
        f"The same way, for the {few[test].mean():.0%} of test rows before which a user had fewer than {FEW} live "
        "exposures, and for the others, each against the oracle on the same rows:"
    )
    return "\n".join([*lines, "", split, "", *detail])


def way(
    label: np.ndarray, scores: np.ndarray, true: np.ndarray, test: np.ndarray, part: np.ndarray | None = None
) -> float:
    """Return the share of the way from 0.5 to the oracle's AUC; `scores` are those of the rows in `test`."""
    rows = test if part is None else part
    best = binary.auc(label[rows], true[rows])
    return (binary.auc(label[rows], scores[rows[test]]) - 0.5) / (best - 0.5)


def rate(log: dict[str, np.ndarray], group: str, task: str, weight: float = 5.0) -> np.ndarray:
    """Return a group's earlier rate of a task, drawn to the overall rate."""
    return (log[f"{group}_{task}"] + weight * log[task].mean()) / (log[f"{group}_n"] + weight)


def popularity(log: dict[str, np.ndarray], task: str, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    return rate(log, "streamer", task)[test]


def statistics(log: dict[str, np.ndarray], task: str) -> np.ndarray:
    """Return (n, k) running rates and counts of users and streamers."""
    rates = [rate(log, group, each) for group in ("user", "streamer") for each in {"click", task}]
    columns = [np.log(each) for each in rates] + [np.log1p(log["user_n"]), np.log1p(log["streamer_n"]), log["age"] / 60]
    return np.stack(columns, axis=1)


def logistic(log: dict[str, np.ndarray], task: str, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Logistic regression on ids of user, streamer, room and topic, and on running rates and counts."""
    dense = statistics(log, task)
    dense = (dense - dense[train].mean(axis=0)) / dense[train].std(axis=0)
    parts = [sparse.csr_matrix(dense)]
    for name in ("user_id", "streamer_id", "live_id", "kind"):
        ids = np.nan_to_num(log[name]).astype(np.int64)
        parts.append(sparse.csr_matrix((np.ones(len(ids)), ids, np.arange(len(ids) + 1))))
    rows = sparse.hstack(parts).tocsr()
    model = LogisticRegression(C=0.3, max_iter=100).fit(rows[train], log[task][train])
    return model.decision_function(rows[test])


def trees(videos: bool, histories: bool = True):
    """Return a scorer by boosted trees on running rates, the user's own history, and his videos."""

    def score(log: dict[str, np.ndarray], task: str, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        columns = [statistics(log, task)]
        if histories:
            own = [rate(log, group, each, 3.0) for group in ("topic", "pair") for each in {"click", task, "like"}]
            own += [log["topic_n"], log["pair_n"], (log["topic_click"] + 0.25) / (log["user_click"] + 3), log["kind"]]
            columns += [np.stack([*own, (log["o_click"] + 1) / (log["o_n"] + 3), log["o_n"]], axis=1)]
        if videos:
            n = np.nan_to_num(log["v_n"])
            seen = [
                (np.nan_to_num(log[f"v_{kind}"]) + 3 * low) / (n + 3)
                for kind, low in (("complete", 0.3), ("like", 0.03))
            ]
            seen += [n, (n + 0.25) / (np.nan_to_num(log["v_all"]) + 3), log["v2_n"], log["v2_complete"] / log["v2_n"]]
            columns.append(np.stack(seen, axis=1))
        rows = np.concatenate(columns, axis=1)
        some = np.random.default_rng(0).permutation(np.flatnonzero(train))[:TREE_ROWS]
        model = HistGradientBoostingClassifier(
            max_iter=150, learning_rate=0.06, max_leaf_nodes=15, min_samples_leaf=200, random_state=0
        )
        return model.fit(rows[some], log[task][some]).decision_function(rows[test])

    return score


MODELS = {
    "popularity": popularity,
    "logistic regression": logistic,
    "trees, rates": trees(videos=False, histories=False),
    "trees, live history": trees(videos=False),
    "trees, live and video history": trees(videos=True),
}


def document(given: argparse.Namespace, speed: str, calibrated: str, hard: str) -> str:
    """Return the Markdown file."""
    sizes = f"--users {given.users} --days {given.days} --seed {given.seed} --speed-users {given.speed_users}"
    return f"""# The simulated world: calibration and difficulty

Command: `python benchmarks/simulator.py {sizes}`
On {datetime.date.today()}: {processor()}; numpy {np.__version__}, scikit-learn {sklearn.__version__}.

## Speed

{speed}

## Calibration

Settled before any model was trained on simulated data. Sizes are deliberately smaller than KuaiLive's: its users were
shown 741 live rooms each in 21 days and its streamers are 19 per user; a simulated user sees few, so that users with
few live events are common, and streamers are few enough for their ids to be learnt.

{calibrated}

## Difficulty

AUC on the last two days, and its share of the way from 0.5 to the oracle's. Popularity: the streamer's earlier rate.
Logistic regression: ids of user, streamer, room and topic, running rates and counts. Trees: boosted trees on the same
rates, then also on counts of what the user did before with the candidate's topic, its second topic and its streamer,
then also with videos on these topics. The last two stand for what a sequence model can learn from histories.

{hard}
"""


if __name__ == "__main__":
    main()
