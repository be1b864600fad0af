"""How fast `livetrain data table` makes samples of a large log, in how much memory, and what a kill costs.

    python benchmarks/table.py --rows 10m

Generates a CSV log of 14 days (strings as ids, a price, a click) and a table of items (a brand, tags, a vector of 16
numbers), and prepares them by day, with two histories, counts of earlier days and of pairs. The first call is killed,
with all its processes, once half of the days are whole; the second one goes on. Memory is what the call and its
processes hold (PSS, so that shared pages count once), looked at twice a second.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import duckdb
from prepare import memory

from livetrain.trainers.data.simulator import count

DAYS = 14
SPEC = """
name: generated
log: {files: log.csv}
joins:
  items: {files: items.csv, key: sku, on: sku}
time: {column: at}
user: user
item: item
columns:
  user: {type: string, column: customer}
  item: {type: string, column: sku}
  brand: {type: string, column: items.brand}
  tags: {type: tags, column: items.tags}
  vector: {type: vector, width: 16, separator: " ", column: items.vector}
  price: {type: number}
labels:
  click: clicked = 'yes'
  buy: bought = '1'
histories:
  clicked: {of: [item, brand], when: click, last: 50}
  bought: {of: [item], when: buy, last: 20}
counts: [user, item, brand]
pairs: [item, brand]
split: {by: day}
"""


def generate(folder: Path, rows: int) -> None:
    """Write log.csv, in the order of time, and items.csv."""
    connection = duckdb.connect()
    connection.execute(f"SET memory_limit = '1GB'; SET temp_directory = '{folder}'; SELECT setseed(0.5)")
    connection.execute(f"""
        COPY (SELECT 'c' || floor(pow(random(), 2) * {max(rows // 50, 10)})::INT AS customer,
                     'sku-' || floor(pow(random(), 3) * {max(rows // 200, 10)})::INT AS sku,
                     make_timestamp(1777593600000000 + (n * {DAYS * 86400}.0 / {rows} * 1000000)::BIGINT) AS at,
                     round(random() * 300, 2) AS price, if(random() < 0.2, 'yes', 'no') AS clicked,
                     (random() < 0.03)::INT AS bought
              FROM range({rows}) t(n)) TO '{folder}/log.csv' (HEADER)""")
    connection.execute(f"""
        COPY (SELECT 'sku-' || n AS sku, 'brand ' || n % 500 AS brand,
                     concat_ws('|', 'tag ' || n % 7, 'tag ' || n % 31, 'tag ' || n % 101) AS tags,
                     list_aggregate([round(random(), 4) for _ in range(16)], 'string_agg', ' ') AS vector
              FROM range({max(rows // 200, 10)}) t(n)) TO '{folder}/items.csv' (HEADER)""")
    (folder / "spec.yaml").write_text(SPEC)


def run(folder: Path, days: int | None) -> tuple[float, int, int]:
    """Prepare, until `days` days are whole or to the end; return seconds, bytes at most, and days that are whole."""
    command = [sys.executable, "-m", "livetrain", "data", "table", "spec.yaml", "--out", "out"]
    started, peak = time.perf_counter(), 0
    child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None:
        time.sleep(0.5)
        peak = max(peak, memory(child.pid))
        if days is not None and len(list(folder.glob("out/date=*"))) >= days:
            os.killpg(child.pid, signal.SIGKILL)
    if days is None and child.returncode:
        sys.exit(child.returncode)
    return time.perf_counter() - started, peak, len(list(folder.glob("out/date=*")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="10m")
    rows = count(parser.parse_args().rows)
    with tempfile.TemporaryDirectory(prefix="table-") as name:
        folder = Path(name)
        generate(folder, rows)
        first, peak_first, done = run(folder, DAYS // 2)
        before = {path: path.stat().st_mtime_ns for path in folder.glob("out/date=*/*")}
        second, peak_second, every = run(folder, None)
        untouched = all(path.stat().st_mtime_ns == at for path, at in before.items())
        made = json.loads((folder / "out" / "dataset.json").read_text())
        sizes = [sum(path.stat().st_size for path in folder.glob(what)) for what in ("*.csv", "out/date=*/*.parquet")]
    written = sum(day["rows"] for day in made["days"].values())
    print(f"{rows:,} rows, {sizes[0] / 2**30:.2f} GiB of CSV, to {written:,} samples of {len(made['columns'])} columns")
    print(f"and {sizes[1] / 2**30:.2f} GiB, {every} days; {os.cpu_count()} cores, {platform.platform()}")
    print(f"duckdb {version('duckdb')}, pyarrow {version('pyarrow')}, Python {platform.python_version()}")
    print(f"killed after {done} days: {first:.0f} s, {peak_first / 2**30:.2f} GiB at most")
    print(f"went on to the end: {second:.0f} s, {peak_second / 2**30:.2f} GiB at most")
    print(f"partitions from before the kill touched: {'no' if untouched else 'yes'}")


if __name__ == "__main__":
    main()
