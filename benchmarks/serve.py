"""How long a request takes: in the process, from livetrain-serve, and from Ray Serve in Python, with the same file.

    make serve; pip install 'ray[serve]==2.60.0'
    python -m benchmarks.serve RUN                        # p50 and p99 at 10, 50 and 200 requests a second
    python -m benchmarks.serve RUN --soak 60 --rate 20    # a swap every minute: failed requests, memory
    python -m benchmarks.serve TOWERS --items 20000       # requests for items, by so many connections at once

Each request ranks 500 candidates of one user, another each time, made of the run's held-out rows. Requests are sent by
the clock, whether the one before has been answered or not, from this process; each server is another, with one thread
that scores. The three ways take turns, a stretch of each at a time, and a request's time begins when it is due.
"""

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from livetrain.modules.serving.loading import load
from livetrain.trainers.export import publish
from livetrain.trainers.export.deltas import publish_next
from livetrain.trainers.export.export import export
from livetrain.trainers.export.latency import CANDIDATES
from livetrain.trainers.export.rows import golden_inputs, held_out_rows, one_user
from livetrain.trainers.recall.build import Asked, build
from livetrain.trainers.recall.origin import origin
from livetrain.trainers.runtime import run_folder
from tests.serve.client import client
from tests.trainers.export.test_deltas import line

ROOT = Path(__file__).parents[1]
Send = Callable[[dict[str, np.ndarray]], Any]
USERS = 30


def requests(run: Path) -> list[dict[str, np.ndarray]]:
    """Return a request of each of some users, as the wire has them: ids and lists of a user once."""
    recipe = run_folder.recipe_of(run)
    rows = golden_inputs(held_out_rows(recipe, CANDIDATES))
    lists = [name for name, feature in recipe.features.items() if feature.form == "sequence"]
    candidate = {feature.looks_up() for name, feature in recipe.features.items() if name in lists}
    user = [name for name, f in recipe.features.items() if name in lists or f.looks_up() not in candidate]
    made = []
    for number in range(USERS):
        once, _ = one_user(rows, user, number)
        parts = zip(("ids", "lengths", "dense"), once, strict=True)
        made.append({f"{part}.{name}": value.numpy() for part, values in parts for name, value in values.items()})
    return made


def inside(folder: Path) -> Send:
    """Return the call in this process."""
    model = load(folder)

    def rank(given: dict[str, np.ndarray]) -> None:
        parts: dict[str, dict[str, torch.Tensor]] = {"ids": {}, "lengths": {}, "dense": {}}
        for key, value in given.items():
            part, _, name = key.partition(".")
            parts[part][name] = torch.from_numpy(value)
        with torch.no_grad():
            model.rank(parts["ids"], parts["lengths"], parts["dense"])

    return rank


def outside(url: str) -> Send:
    """Return the call over the wire."""
    ask = client.Client(url, 60.0)
    return lambda given: ask.infer("model", given)


class Served:
    """livetrain-serve over a folder of published versions, until the end of a `with`. about: more of the model."""

    def __init__(self, program: Path, where: str, folder: Path, **about: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        content = {"port": port, "threads": 1, "deadline_ms": 60_000, "queue": 1000}
        content["models"] = {"model": {"published": where, **about}}
        (folder / "serve.json").write_text(json.dumps(content))
        self.url = f"http://127.0.0.1:{port}"
        # A session of its own, as Ray's processes have: Linux shares a busy processor out by sessions.
        self.process = subprocess.Popen([str(program), str(folder / "serve.json")], start_new_session=True)
        try:
            until(self._ready)
        except BaseException:
            self.process.kill()
            raise

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise SystemExit(f"livetrain-serve ended with {self.process.returncode} before it served")
        return client.Client(self.url, 5.0).ready()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def spent(self) -> float:
        """Return the processor time that it has had, in seconds."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> tuple[float, float]:
        """Return the process's resident memory in MB, and how much of it is no file's."""
        said = dict(line.split(":", 1) for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines())
        resident, anonymous = (int(said[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))
        return resident, anonymous


def ray_serve(folder: Path, port: int) -> str:
    """Start Ray Serve with the same file and the same wire; return its URL."""
    import ray
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    class Ranker:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self.model = load(folder)

        async def __call__(self, asked: Request) -> Response:
            body, length = await asked.body(), int(asked.headers["Inference-Header-Content-Length"])
            at, parts = length, {"ids": {}, "lengths": {}, "dense": {}}
            for each in json.loads(body[:length])["inputs"]:
                size = each["parameters"]["binary_data_size"]
                values = np.frombuffer(
                    body,
                    {"INT64": "<i8", "FP32": "<f4"}[each["datatype"]],
                    offset=at,
                    count=size // (8 if each["datatype"] == "INT64" else 4),
                )
                part, _, name = each["name"].partition(".")
                parts[part][name], at = torch.from_numpy(values.copy().reshape(each["shape"])), at + size
            with torch.no_grad():
                scores = self.model.rank(parts["ids"], parts["lengths"], parts["dense"])
            tensors = {name: value.numpy().tobytes() for name, value in scores.items()}
            outputs = [
                {
                    "name": name,
                    "datatype": "FP32",
                    "shape": [len(value) // 4],
                    "parameters": {"binary_data_size": len(value)},
                }
                for name, value in tensors.items()
            ]
            head = json.dumps({"model_name": "model", "model_version": "1", "id": "", "outputs": outputs}).encode()
            return Response(
                head + b"".join(tensors.values()),
                media_type="application/octet-stream",
                headers={"Inference-Header-Content-Length": str(len(head))},
            )

    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}
    )
    serve.start(http_options={"port": port})
    serve.run(serve.deployment(Ranker, max_ongoing_requests=1000).bind(), route_prefix="/")
    return f"http://127.0.0.1:{port}"


def until(there: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            raise TimeoutError("the server does not come up")
        time.sleep(0.1)


def stretch(
    send: Send, given: list[dict], rate: float, seconds: float, pool: ThreadPoolExecutor
) -> tuple[list, Counter]:
    """Send requests by the clock; return the seconds of each, from when it was due, and what failed."""
    took: list[float] = []
    failed: Counter = Counter()
    begun = time.perf_counter() + 0.05

    def one(number: int) -> None:
        due = begun + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        try:
            send(given[number % len(given)])
            took.append(time.perf_counter() - due)
        except client.ServerError as error:
            failed[type(error).__name__] += 1

    list(pool.map(one, range(int(rate * seconds))))
    return took, failed


def compare(run: Path, program: Path, rates: list[float], seconds: float, rounds: int) -> None:
    given = requests(run)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(32) as pool, ThreadPoolExecutor(1) as one:
        where = str(Path(folder) / "models")
        pointer = publish.publish(run / "export", where, "1", 2)
        with Served(program, where, Path(folder)) as served:
            ways = {"in the process": (inside(Path(where) / pointer["folder"]), one)}
            ways["livetrain-serve"] = (outside(served.url), pool)
            ways["Ray Serve"] = (outside(ray_serve(Path(where) / pointer["folder"], 18091)), pool)
            for send, threads in ways.values():
                stretch(send, given, 20, 3, threads)
            print("| requests/s | way | requests | failed | p50 ms | p99 ms |\n| --- | --- | --- | --- | --- | --- |")
            for rate in rates:
                took: dict[str, list[float]] = {name: [] for name in ways}
                failed: dict[str, Counter] = {name: Counter() for name in ways}
                for _ in range(rounds):
                    for name, (send, threads) in ways.items():
                        found, wrong = stretch(send, given, rate, seconds / rounds, threads)
                        took[name] += found
                        failed[name] += wrong
                for name, found in took.items():
                    p50, p99 = (1e3 * float(np.quantile(found, share)) for share in (0.5, 0.99))
                    wrong = sum(failed[name].values())
                    print(f"| {rate:g} | {name} | {len(found) + wrong} | {wrong} | {p50:.2f} | {p99:.2f} |", flush=True)


def soak(run: Path, program: Path, minutes: float, rate: float, every: float, deltas: int) -> None:
    """Send requests for a while, as the run's model is trained on and published again and again."""
    given, begun = requests(run), time.monotonic()
    recipe = run_folder.recipe_of(run)
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(8) as pool,
        ThreadPoolExecutor(1) as other,
        line(Path(folder) / "line", recipe) as training,
    ):
        where, versions = str(Path(folder) / "models"), 0

        def publish_one() -> None:
            nonlocal versions
            training.go(1).save()
            publish_next(training.run, where, f"{versions:06d}", 2, most=deltas, share=1e9, say=lambda _: None)
            versions += 1

        publish_one()
        with Served(program, where, Path(folder)) as served:
            send = outside(served.url)
            print("| minute | requests | failed | p50 ms | p99 ms | fence | delta | RSS MB | without files |")
            print("| --- " * 9 + "|")
            total = Counter()
            while time.monotonic() - begun < 60 * minutes:
                stretched = other.submit(stretch, send, given, rate, every, pool)
                time.sleep(every / 2)
                publish_one()
                took, failed = stretched.result()
                wrong = sum(failed.values())
                total.update(requests=len(took) + wrong, failed=wrong)
                p50, p99 = (1e3 * float(np.quantile(took, share)) for share in (0.5, 0.99)) if took else (0, 0)
                now = send(given[0])
                resident, anonymous = served.memory()
                print(
                    f"| {(time.monotonic() - begun) / 60:.0f} | {len(took) + wrong} | {wrong} | {p50:.2f} | {p99:.2f} "
                    f"| {now.fence} | {now.delta} | {resident:.1f} | {anonymous:.1f} |",
                    flush=True,
                )
        requested = f"{total['requests']:,} requests, {total['failed']} failed, {versions - 1} swaps"
        print(f"{requested}; ended with {served.process.returncode}")


def bare(url: str, requests: list[bytes], ends: float, took: list[float]) -> None:
    """Send requests over a connection, one after the other, with as little work as may be."""
    parts = urllib.parse.urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in itertools.cycle(requests):
            begun = time.perf_counter()
            if begun > ends:
                return
            connection.sendall(request)
            answer = connection.recv(1 << 16)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), answer
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            while len(body) < length:
                body += connection.recv(1 << 16)
            took.append(time.perf_counter() - begun)


def together(run: Path, program: Path, items: int, seconds: float) -> None:
    """Ask for items over more and more connections at once, each of which asks again as it is answered."""
    recipe = run_folder.recipe_of(run)
    with tempfile.TemporaryDirectory() as folder:
        where, index, draw = str(Path(folder) / "models"), str(Path(folder) / "index"), np.random.default_rng(0)
        publish.publish(run / "export", where, "1", 2)
        names = json.loads((run / "export/signature.json").read_text())["towers"]
        columns = {recipe.column(name): draw.integers(0, 2**62, items) for name in names["item"]}
        pq.write_table(pa.table(columns), Path(folder) / "items.parquet")
        build(origin(where, run.parent), index, Asked("exact", least=0.1, catalogue=f"{folder}/items.parquet"), print)
        rows, asked = golden_inputs(held_out_rows(recipe, USERS)), []
        for number in range(USERS):
            once, _ = one_user(rows, names["user"], number)
            parts = zip(("ids", "lengths", "dense"), once, strict=True)
            given = {
                f"{part}.{name}": v.numpy() for part, of in parts for name, v in of.items() if name in names["user"]
            }
            body, header = client.encode(given, parameters={"top": 100})
            head = f"POST /retrieve HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n"
            asked.append(f"{head}Inference-Header-Content-Length: {header}\r\n\r\n".encode() + body)
        with Served(program, where, Path(folder), kind="retrieve", index=index) as served:
            print("| connections | answers/s | processor ms per answer | p50 ms | p99 ms |\n" + "| --- " * 5 + "|")
            for connections in (1, 2, 4, 8, 16, 32):
                took: list[float] = []
                before, begun = served.spent(), time.perf_counter()
                threads = [
                    threading.Thread(
                        target=bare, args=(served.url, asked[number:] + asked[:number], begun + seconds, took)
                    )
                    for number in range(connections)
                ]
                for each in threads:
                    each.start()
                for each in threads:
                    each.join()
                each_ms = 1e3 * (served.spent() - before) / len(took)
                p50, p99 = (1e3 * float(np.quantile(took, share)) for share in (0.5, 0.99))
                rate = len(took) / (time.perf_counter() - begun)
                print(f"| {connections} | {rate:.0f} | {each_ms:.3f} | {p50:.1f} | {p99:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run, whose export is served; it is exported where it is not yet")
    parser.add_argument("--program", type=Path, default=ROOT / "serve/build/livetrain-serve")
    parser.add_argument("--rates", type=float, nargs="+", default=[10, 50, 200])
    parser.add_argument("--seconds", type=float, default=20, help="of each way at each rate")
    parser.add_argument("--rounds", type=int, default=4, help="stretches that these are parted into")
    parser.add_argument("--soak", type=float, default=0, help="minutes of requests with swaps, in place of the rates")
    parser.add_argument("--items", type=int, default=0, help="of an exact index that is asked, in place of the rates")
    parser.add_argument("--rate", type=float, default=10, help="of --soak, requests a second")
    parser.add_argument("--every", type=float, default=60, help="of --soak, seconds between swaps")
    parser.add_argument("--deltas", type=int, default=4, help="of --soak, swaps by a delta after each by a base")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if not (asked.run / "export/manifest.json").exists():
        export(asked.run)
    print(f"load average {os.getloadavg()[0]:.1f}, python {sys.version.split()[0]}, torch {torch.__version__}")
    if asked.items:
        together(asked.run, asked.program, asked.items, asked.seconds)
    elif asked.soak:
        soak(asked.run, asked.program, asked.soak, asked.rate, asked.every, asked.deltas)
    else:
        compare(asked.run, asked.program, asked.rates, asked.seconds, asked.rounds)


if __name__ == "__main__":
    main()
