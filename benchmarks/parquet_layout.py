"""Which Parquet layout feeds training fastest: size and decode speed on one thread.

    python benchmarks/parquet_layout.py [data/ml-1m-rechorus]

Takes rows of a prepared training split, writes them again in each layout, and reads back what the DIN recipe reads: row
group by row group, in random order, columns pruned, ids widened to the int64 that a batch carries. Rates are rows per
second of CPU time of the one thread, best of ROUNDS, so a busy machine disturbs them little.

A shard's interval of the epoch rarely starts where a row group does, and what lies before in that row group is decoded
too: half a row group of g rows per shard in the mean, where a split of N rows does not fit into data.shuffle_gb. The
last column is the rate that remains in an epoch of ten million rows: rows/s * N / (N + S g / 2), S = 192 shards.

The choice that follows from the table is in benchmarks/results/parquet_layout.md.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 262_144
SHARDS, WHOLE = 192, 10_000_000
ROUNDS = 11
IDS = ["user", "movie", "gender", "age", "occupation", "zip", "hour", "weekday", "period"]
LISTS = ["genres", "history", "history_rating"]
DENSE = ["user_rate", "user_count", "movie_rate", "movie_count"]
COLUMNS = [*IDS, *LISTS, *DENSE, "label"]
BASE = {"group": 2048, "ids": "int64", "elements": "not null", "encoding": "dictionary", "compression": "lz4"}


def layouts():
    """Yield (title, layouts to compare), each a change of BASE."""
    yield "Row group size", [BASE | {"group": group} for group in (512, 1024, 2048, 4096, 8192, 16384, 65536)]
    yield "Type of small ids and of their lists", [BASE | {"ids": ids} for ids in ("int32", "int64")]
    yield "List elements", [BASE | {"elements": elements} for elements in ("not null", "nullable")]
    yield (
        "Encoding and compression",
        [
            BASE | {"encoding": encoding, "compression": compression}
            for encoding in ("dictionary", "plain", "delta")
            for compression in ("none", "snappy", "lz4", "zstd")
        ],
    )


def retyped(table: pa.Table, ids: str, elements: str) -> pa.Table:
    """Return the table with its ids, those that fit into int32, in type `ids`, and list elements nullable or not."""
    fields = []
    for field in table.schema:
        kind = field.type.value_type if pa.types.is_list(field.type) else field.type
        kind = pa.int64() if ids == "int64" and kind == pa.int32() else kind
        if pa.types.is_list(field.type):
            kind = pa.list_(pa.field("element", kind, nullable=elements == "nullable"))
        fields.append(pa.field(field.name, kind))
    return table.cast(pa.schema(fields))


def write(table: pa.Table, path: Path, layout: dict) -> None:
    integers = [name for name in [*IDS, *LISTS] if name in table.column_names]
    paths = [f"{name}.list.element" if name in LISTS else name for name in integers]
    encoding = {"use_dictionary": True}
    if layout["encoding"] != "dictionary":
        kind = {"plain": "PLAIN", "delta": "DELTA_BINARY_PACKED"}[layout["encoding"]]
        encoding = {"use_dictionary": DENSE, "column_encoding": dict.fromkeys(paths, kind)}
    pq.write_table(table, path, row_group_size=layout["group"], compression=layout["compression"], **encoding)


def decode(path: Path) -> float:
    """Read every row group once in random order; return the CPU seconds that it took."""
    file = pq.ParquetFile(path)
    order = np.random.default_rng(0).permutation(file.num_row_groups)
    start = time.process_time()
    for group in order:
        table = file.read_row_group(int(group), columns=COLUMNS, use_threads=False)
        for name in [*IDS, *LISTS]:
            values = table[name].combine_chunks()
            (values.flatten() if name in LISTS else values).cast(pa.int64())
    return time.process_time() - start


def main() -> None:
    pa.set_cpu_count(1)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data/ml-1m-rechorus")
    file = pq.ParquetFile(sorted((folder / "train").glob("*.parquet"))[0])
    whole = file.metadata.num_rows
    table = file.read(columns=COLUMNS).slice(whole // 3, ROWS).combine_chunks()
    events = len(table["history"].combine_chunks().values)
    print(f"{len(table):,} of {whole:,} rows, {len(COLUMNS)} columns, {events:,} history events")
    print(f"pyarrow {pa.__version__}; rows/s of one thread's CPU time")
    with tempfile.TemporaryDirectory() as scratch:
        for title, choices in layouts():
            paths = [Path(scratch) / f"{n}.parquet" for n in range(len(choices))]
            for layout, path in zip(choices, paths, strict=True):
                write(retyped(table, layout["ids"], layout["elements"]), path, layout)
            # Rounds over all layouts, so that a busy quarter of a minute is no one layout's bad luck.
            rounds = [[decode(path) for path in paths] for _ in range(ROUNDS)]
            report(title, choices, [path.stat().st_size for path in paths], np.min(rounds, axis=0), len(table))


def report(title: str, choices: list[dict], sizes: list[int], seconds: np.ndarray, rows: int) -> None:
    """Print one comparison as a table."""
    print(f"\n{title}\n\n| {' | '.join(BASE)} | bytes/row | rows/s | rows/s, {SHARDS} shards |")
    print(f"|{' --- |' * (len(BASE) + 3)}", flush=True)
    for layout, size, spent in zip(choices, sizes, seconds, strict=True):
        shared = rows / spent * WHOLE / (WHOLE + SHARDS * layout["group"] / 2)
        print(f"| {' | '.join(map(str, layout.values()))} | {size / rows:.1f} | {rows / spent:,.0f} | {shared:,.0f} |")


if __name__ == "__main__":
    main()
