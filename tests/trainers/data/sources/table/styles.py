"""Tables as strangers write them: a style per function, each very unlike the others."""

import csv
import datetime
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq

START = datetime.datetime(2024, 3, 1, 7, 30)


def events(rows: int, users: int = 40, items: int = 25, seed: int = 1):
    """Yield (time, user, item, outcome, number) of a log whose outcome depends on user and item."""
    rng = random.Random(seed)
    at = START
    for _ in range(rows):
        at += datetime.timedelta(seconds=rng.randint(0, 7200))
        user, item = rng.randrange(users), rng.randrange(items)
        yield at, user, item, rng.random() < 0.2 + 0.6 * ((user + item) % 3 == 0), rng.uniform(1, 90)


def write(
    path: Path, header: list[str] | None, rows: list[list], delimiter: str = ",", encoding: str = "utf-8"
) -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows(([header] if header else []) + rows)
    return path


def shop(folder: Path) -> list[Path]:
    """Strings, tags, a price, a vector in one column; item and user tables; a leak beside the purchase."""
    rng = random.Random(2)
    log = [
        [f"c-{u:03}", f"SKU{i}", at.isoformat(), int(y), int(y and rng.random() < 0.5), ""]
        for at, u, i, y, _ in events(600)
    ]
    for row in log:
        row[5] = f"{rng.uniform(5, 50):.2f}" if row[4] else ""
    items = [
        [
            f"SKU{i}",
            rng.choice(["Acme", "Zola", "Ürün"]),
            "|".join(rng.sample(["new", "sale", "eco", "kids"], rng.randint(0, 3))),
        ]
        + [
            f"{rng.uniform(1, 300):.2f}",
            " ".join(f"{rng.gauss(0, 1):.3f}" for _ in range(8)),
            f"A fine thing number {i} for you",
        ]
        for i in range(25)
    ]
    users = [[f"c-{u:03}", rng.choice("MF"), 18 + u, rng.choice(["DE", "FR", "IN"])] for u in range(40)]
    return [
        write(
            folder / "clicks.csv", ["customer_id", "sku", "event_time", "clicked", "purchase", "purchase_value"], log
        ),
        write(folder / "products.csv", ["sku", "Brand", "tags", "price", "embedding", "Title"], items),
        write(folder / "customers.csv", ["customer_id", "gender", "age", "country"], users),
    ]


def ratings(folder: Path) -> list[Path]:
    """Tabs, no header, seconds since 1970, a rating of 1 to 5."""
    rows = [[u, i, 1 + (int(n) + 2 * y) % 5, int(at.timestamp())] for at, u, i, y, n in events(500)]
    return [write(folder / "u.data.tsv", None, rows, "\t")]


def european(folder: Path) -> list[Path]:
    """Semicolons, decimal commas, day.month.year, ja and nein as yes and no in capitals, Latin 1."""
    rows = [
        [f"Käufer {u}", f"Größe {i}", at.strftime("%d.%m.%Y %H:%M"), f"{n:.2f}".replace(".", ","), "YES" if y else "NO"]
        for at, u, i, y, n in events(400)
    ]
    return [write(folder / "verkauf.csv", ["Kunde", "Artikel", "Datum", "Preis (€)", "gekauft"], rows, ";", "cp1252")]


def american(folder: Path) -> list[Path]:
    """A byte order mark, spaces and capitals in names, month/day/year and AM, dollars with thousands, Y and N."""
    rows = [
        [f"{at:%m/%d/%Y %I:%M %p}", 1000 + u, 77000 + i, f"${n * 40:,.2f}", f"{n:.0f}%", "Y" if y else "N"]
        for at, u, i, y, n in events(450)
    ]
    header = ["Order Date", "Member ID", "Item Number", "List Price", "Discount", "Converted?"]
    return [write(folder / "orders.csv", header, rows, encoding="utf-8-sig")]


def doubled(folder: Path) -> list[Path]:
    """Names that stand twice, that are empty or differ by capitals; quoted line ends; constant and empty columns."""
    rows = [
        [n, u, f"p{i}", "a\nb" if i % 2 else 'say "x", y', "", "web", int(y), round(x, 3), round(x / 2, 3)]
        for n, (at, u, i, y, x) in enumerate(events(300))
    ]
    return [
        write(folder / "export.csv", ["", "user", "item", "Note", "empty", "Channel", "label", "score", "Score"], rows)
    ]


def floats(folder: Path) -> list[Path]:
    """Ids as 12.0, times in milliseconds, holes everywhere."""
    rng = random.Random(3)
    rows = [
        [
            f"{u}.0",
            f"{i}.0",
            int(at.timestamp() * 1000),
            "" if rng.random() < 0.1 else f"{x:.1f}",
            "True" if y else "False",
        ]
        for at, u, i, y, x in events(500)
    ]
    return [write(folder / "views.csv", ["uid", "video_id", "ts", "duration", "liked"], rows)]


def lines(folder: Path) -> list[Path]:
    """JSON lines, packed, with lists and nested things."""
    path = folder / "stream.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for at, u, i, y, x in events(350):
            row = {"viewer": f"v{u}", "roomId": i, "startedAt": at.isoformat() + "Z", "topics": [f"t{i % 4}", "live"]}
            row |= {"emb": [x, x / 2, 0.5, -x], "device": {"os": "ios"}, "gift": bool(y), "viewers": int(x)}
            file.write(json.dumps(row) + "\n")
    return [path]


def parquet(folder: Path) -> list[Path]:
    """Parquet with timestamps, dictionaries, lists, booleans, a wide vector in numbered columns."""
    log = list(events(500))
    table = pa.table(
        {
            "userId": pa.array([u for _, u, *_ in log], pa.int32()),
            "productId": pa.array([f"p{row[2]}" for row in log]).dictionary_encode(),
            "eventTimestamp": pa.array([row[0] for row in log], pa.timestamp("us", "UTC")),
            "category": pa.array([f"c{row[2] % 5}" for row in log]).dictionary_encode(),
            "watched": pa.array([row[3] for row in log]),
            "quality": pa.array([row[4] for row in log], pa.float32()),
        }
        | {f"emb_{k}": pa.array([row[4] * k / 9 for row in log], pa.float32()) for k in range(12)}
    )
    pq.write_table(table, folder / "log.parquet")
    return [folder / "log.parquet"]


def orc(folder: Path) -> list[Path]:
    """ORC, without a time."""
    log = list(events(400))
    table = pa.table(
        {
            "account": [f"a{row[1]}" for row in log],
            "song": [f"s{row[2]}" for row in log],
            "tempo": [row[4] for row in log],
            "skipped": [int(row[3]) for row in log],
        }
    )
    pa.orc.write_table(table, folder / "plays.orc")
    return [folder / "plays.orc"]


def kinds(folder: Path) -> list[Path]:
    """A row per event, whose kind is in a column."""
    rng = random.Random(5)
    rows = [
        [
            f"{at:%Y-%m-%d %H:%M:%S} UTC",
            rng.choice(["view", "view", "cart", "purchase"]),
            i,
            f"s.{i % 4}",
            f"{x:.2f}",
            u,
            f"z{n}",
        ]
        for n, (at, u, i, _, x) in enumerate(events(500))
    ]
    header = ["event_time", "event_type", "product_id", "category_code", "price", "user_id", "user_session"]
    return [write(folder / "2019-Nov.csv", header, rows)]


def tiny(folder: Path) -> list[Path]:
    """A hundred rows with numbers only, no user and no time."""
    rng = random.Random(6)
    rows = [[*(round(rng.gauss(0, 1), 4) for _ in range(5)), rng.randrange(3), rng.randrange(2)] for _ in range(100)]
    return [write(folder / "train.csv", ["x1", "x2", "x3", "x4", "x5", "segment", "target"], rows)]


def watched(folder: Path) -> list[Path]:
    """No outcome of two values: a number of seconds is predicted; date and clock apart; two files of one log."""
    rows = [[f"{at:%Y-%m-%d}", f"{at:%H:%M:%S}", u, i, f"{x:.1f}"] for at, u, i, _, x in events(400)]
    header = ["date", "time", "listener", "podcast", "listen_seconds"]
    return [write(folder / "part1.csv", header, rows[:200]), write(folder / "part2.csv", header, rows[200:])]


STYLES: list[Callable[[Path], list[Path]]] = [
    *(shop, ratings, european, american, doubled, floats, lines, parquet, orc, kinds, tiny, watched)
]
