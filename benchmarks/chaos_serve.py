"""What SIGKILL does to a server, to its feature store and who fills it, and to who publishes: nothing wrong is served.

    make serve; pip install 'livetrain[store]'
    python -m benchmarks.chaos_serve --kills 40

In a story livetrain-serve answers two clients all the time: one sends whole rows, the other ids alone, whose features
the store has. Meanwhile one process trains on and publishes a base or a delta after each step, and another fills the
store with a night and tells it a day's events, again and again. Every other story's store is a folder, the others' a
Redis. One of these processes is killed, at a random moment or as it writes, and started again.

Then each answer must be, to 1e-5, what a published version says of that fence and delta, of features that the store had
before or after it was told the day; each refusal must be one of those that docs/guide/server.md has; no later answer is
of an older version; the server's log is readable and says of each request what was answered; and in the end all is
served that is published. The stories are a function of --seed; WORK/stories-SEED.jsonl keeps those that are done.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import chaos_kills, redis_server
from benchmarks.chaos_answers import ROOMS, STREAMERS, Answer, Wanted, states
from benchmarks.chaos_live import forks
from livetrain.configs.load import dump_recipe, load_recipe
from livetrain.trainers.data.store import kv
from livetrain.trainers.data.store.kv import open_store
from livetrain.trainers.export import publish
from livetrain.trainers.export.deltas import publish_next
from livetrain.trainers.export.rows import golden_inputs
from livetrain.trainers.export.served import Served
from livetrain.trainers.online import request_log
from livetrain.trainers.runtime.versions import versions
from tests.serve.client import client
from tests.trainers.export.test_deltas import line
from tests.trainers.online import worlds

PROGRAM = chaos_kills.ROOT / "serve/build/livetrain-serve"
VICTIMS = {"server": 5, "publisher": 4, "writer": 3, "redis": 3}  # how often each is drawn
KILLS = 10  # of a story
LEASE_S = 2  # for which a fill of Redis may be silent, in the place of two minutes
REST_S = 1.0  # between two fills
PATIENCE_S = 20.0  # for a placed moment to come
LONGEST_S = 400.0  # for a process to be up again
USERS = [1, 2, 3, 4, 777]
HITS = {
    "server, otherwise": "the server",
    "server, taking in": "the server, as something newer was published than it had taken in",
    "publisher, otherwise": "the publisher, as it trained or wrote a checkpoint",
    "publisher, writing": "the publisher, a base or a delta begun, no pointer to it",
    "writer, resting": "who fills the store, between two fills",
    "writer, filling": "who fills the store, as it wrote a night",
    "writer, telling": "who fills the store, as it told it events",
    "redis, otherwise": "Redis, with all that it held",
}
AWAY = ("does not answer", "was never filled")  # parts of the sentences by which the store is excused
WELL = """Every answer was, to 1e-5, what a published version says of its fence and delta, of features that the store
had before or after it was told the day; nothing was refused but for a stated reason; no later answer was of an older
version; every file of the server's log could be read and had the scores that were answered; in the end all was served
that was published.

"No connection" is a connection that nobody took, or that broke, while the server was killed and began again: each
client tries 20 times a second."""
ASKED = {  # of Tale.answers, how the page calls them
    "whole": "answered, whole rows",
    "night": "answered, ids alone, of what the store had of the night",
    "told": "answered, ids alone, of the night and the day's events",
    "logged": "of all that were answered, in a file of the log",
    "away": "refused, as the store was away or empty",
    "unreachable": "no connection",
}


@dataclass
class Tale:
    """What became of a story; a line of WORK/stories-SEED.jsonl."""

    number: int
    store: str
    kills: list[str] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


# What runs in processes of its own


def publisher(folder: Path) -> None:
    """Train a step and publish, again and again."""
    torch.set_num_threads(1)
    recipe = load_recipe(folder / "recipe.yaml", [])
    with line(folder / "run", recipe) as training:
        while not (folder / "enough").exists():
            training.go(1).save()
            publish_next(training.run, str(folder / "models"), f"{training.step:08d}", 100_000, most=8, share=1e9)


def writer(folder: Path, place: str, work: Path) -> None:
    """Fill the store with a night and tell it the day after, again and again."""
    kv._LEASE_S = LEASE_S
    days = sorted((work / "out").glob("date=*"))
    phase = folder / "phase"
    for number in count():
        phase.write_text("resting")
        time.sleep(REST_S)
        last = (folder / "enough").exists()  # a Redis that was killed just before is filled once more
        try:
            store = open_store(place, create=True)
            phase.write_text("filling")
            worlds.filled(store, days[-2])
            phase.write_text("telling")
            worlds.told(store, worlds.EVERYTHING, work / "raw", days[-1], folder / f"told-{os.getpid()}-{number}")
            store.close()
        except kv.NotNow:
            continue  # Redis is away, or the lease of a fill that was killed still runs
        if last:
            return


class Stage:
    """A story that is being played."""

    def __init__(self, seed: int, number: int, work: Path, most: int) -> None:
        self.most = min(KILLS, most)
        self.draw = random.Random(f"{seed}-{number}")
        self.tale = Tale(number, "folder" if number % 2 else "Redis")
        self.work, self.folder = work, work / f"story-{number:03d}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        shutil.copyfile(work / "recipe.yaml", self.folder / "recipe.yaml")
        self.ports = [redis_server.free_port(), redis_server.free_port()]
        self.place = str(self.folder / "store") if number % 2 else f"redis://127.0.0.1:{self.ports[1]}/0"
        self.models = str(self.folder / "models")
        self.url = f"http://127.0.0.1:{self.ports[0]}"
        self.answers: list[Answer] = []
        self._running: dict[str, subprocess.Popen | BaseProcess] = {}
        self._ends = threading.Event()
        content = {"port": self.ports[0], "threads": 1, "deadline_ms": 20_000, "refresh_ms": 100}
        content["models"] = {"din": {"published": self.models}}
        content |= {"rank": {"model": "din", "by": "click"}, "store": {"place": self.place}}
        content["log"] = {"path": str(self.folder / "log"), "share": 1, "seconds": 1}
        (self.folder / "serve.json").write_text(json.dumps(content))

    def play(self) -> None:
        """Let all begin, kill as it is drawn, and let all come to its end."""
        try:
            for name in ["redis"] * (self.tale.store == "Redis") + ["publisher", "writer"]:
                self._start(name)
            self._wait(lambda: publish.current(self.models) is not None, "a model is published")
            self._wait(lambda: self._phase() == "telling", "the store is filled")
            self._start("server")
            self.inputs = golden_inputs(Served(self.models).golden)
            asking = [threading.Thread(target=self._ask, args=(whole,)) for whole in (_tensors(self.inputs), None)]
            for each in asking:
                each.start()
            try:
                self._up()
                for _ in range(self.most):
                    self._kill()
                (self.folder / "enough").touch()
                for name in ("publisher", "writer"):
                    self._wait(lambda name=name: _code(self._running[name]) == 0, f"the {name} ends")
                self._settle()
            finally:
                self._ends.set()
                for each in asking:
                    each.join()
            server = self._running["server"]
            server.terminate()
            self._wait(lambda: _code(server) == 0, "the server stops")
        finally:
            for each in self._running.values():
                if _code(each) is None:
                    each.kill()

    def _start(self, name: str) -> None:
        with (self.folder / f"{name}.txt").open("ab") as log:
            if name == "server":
                # A killed server's index of names is gone with it, so all that it says comes from what is published.
                command = [str(PROGRAM), str(self.folder / "serve.json")]
                self._running[name] = subprocess.Popen(command, stderr=log)
            elif name == "redis":
                self._running[name] = redis_server.start(self.ports[1], self.folder, log)
            else:
                target, more = (publisher, ()) if name == "publisher" else (writer, (self.place, self.work))
                self._running[name] = forks().Process(target=target, args=(self.folder, *more), daemon=True)
                self._running[name].start()

    def _wait(self, there: Any, what: str) -> None:
        stop = time.monotonic() + LONGEST_S
        while not there():
            if time.monotonic() > stop:
                raise RuntimeError(f"in {LONGEST_S:.0f} s it is not so that {what}")
            self._nobody_else_ended()
            time.sleep(0.02)

    def _nobody_else_ended(self) -> None:
        for name, each in self._running.items():
            if _code(each) not in (None, 0):
                raise RuntimeError(f"the {name} ended with {_code(each)}, and nobody had killed it")

    def _up(self) -> None:
        asked = client.Client(self.url, 5.0)
        self._wait(asked.ready, "the server is up")

    def _phase(self) -> str:
        with_phase = self.folder / "phase"
        return with_phase.read_text() if with_phase.exists() else ""

    def _writing(self) -> bool:
        """Whether a base or a delta is begun that no pointer names."""
        pointer = publish.current(self.models) or {"versions": []}
        named = {each["folder"] for each in pointer["versions"]}
        named |= {delta["folder"] for each in pointer["versions"] for delta in each.get("deltas", ())}
        bases = {name for name in chaos_kills.names(self.models) if name[:1].isdigit()}
        newest = f"{max(bases, default='')}/deltas"
        return bool((bases | {f"{newest}/{each}" for each in chaos_kills.names(f"{self.models}/{newest}")}) - named)

    def _behind(self) -> bool:
        """Whether the server has not yet taken in what is published."""
        newest = max((each.fence for each in self.answers[-20:]), default=0)
        return (publish.current(self.models) or {"fence": 0})["fence"] > newest

    def _kill(self) -> None:
        """Kill one of them at a moment that is drawn, and start it again."""
        names = [name for name in VICTIMS if name in self._running]
        victim = self.draw.choices(names, [VICTIMS[name] for name in names])[0]
        placed, stop = self.draw.random() < 0.7, time.monotonic() + PATIENCE_S
        kind = self.draw.choice(["filling", "telling"])
        moments = {"server": self._behind, "publisher": self._writing, "writer": lambda: self._phase() == kind}
        time.sleep(self.draw.uniform(0, 2))
        while placed and time.monotonic() < stop and not moments.get(victim, lambda: True)():
            time.sleep(0.001)
        time.sleep(self.draw.uniform(0, 0.1 if placed else 1))
        self._nobody_else_ended()
        hit = self._phase() if victim == "writer" else "otherwise"
        if victim == "server" and self._behind():
            hit = "taking in"
        self._running[victim].kill()
        self._running[victim].wait() if victim in ("server", "redis") else self._running[victim].join()
        if victim == "publisher" and self._writing():
            hit = "writing"
        self.tale.kills.append(f"{victim}, {hit}")
        time.sleep(self.draw.uniform(0, 1.5))
        self._start(victim)
        if victim == "server":
            self._up()

    def _settle(self) -> None:
        """Wait until all that is published is served, and what the store holds is answered from."""
        fence, begun = publish.current(self.models)["fence"], time.time()
        for whole in (True, False):
            self._wait(
                lambda whole=whole: any(
                    each.whole == whole and each.began > begun and each.fence == fence for each in self.answers[-50:]
                ),
                "the newest version answers",
            )

    # The clients

    def _ask(self, whole: dict[str, np.ndarray] | None) -> None:
        ask, draw, number = client.Client(self.url, 30.0), random.Random(0), 0
        while not self._ends.wait(0.05):
            user, number = draw.choice(USERS), number + 1
            answer = Answer(whole is not None, time.time(), 0.0, user, f"{number}-{whole is not None}")
            few = {"ids.user": [user], "ids.room": ROOMS, "ids.streamer": STREAMERS}
            given = whole or {name: np.array(ids) for name, ids in few.items()}
            try:
                found = ask.infer("din", given, rows=whole is not None, request_id=answer.id)
                answer.fence, answer.delta = found.fence or 0, found.delta or 0
                answer.scores = np.stack([found.scores[task] for task in ("click", "like")])
            except client.ServerError as error:
                answer.refused = f"{type(error).__name__}: {error}"
            answer.ended = time.time()
            self.answers.append(answer)

    # What must be so

    @cached_property
    def wanted(self) -> "Wanted":
        return Wanted(self)

    def check(self) -> None:
        tale, failures = self.tale, self.tale.failures
        answered = [each for each in self.answers if each.scores is not None]
        refused = [each for each in self.answers if each.scores is None]
        for each in refused:
            if not each.refused.startswith("Unreachable") and not _away(each):
                failures.append(f"refused: {each.refused[:200]}")
        for whole in (True, False):
            fences = [each.fence for each in sorted(answered, key=lambda each: each.began) if each.whole == whole]
            if fences != sorted(fences):
                failures.append("an answer is of an older version than one before it")
        wanted, known = self.wanted, Counter[str]()
        by_state: dict[tuple[int, int], list[Answer]] = {}
        published = Counter[str]()
        for each in answered:
            by_state.setdefault((each.fence, each.delta), []).append(each)
        for state, served in states(self.folder):
            published["deltas" if state[1] else "bases"] += 1
            for each in by_state.pop(state, []):
                if (of := wanted.of(served, each)) is None:
                    failures.append(f"request {each.id} of fence {state[0]}, delta {state[1]} has other scores")
                else:
                    known[of] += 1
        if by_state:
            failures.append(f"answers of what was never published: {sorted(by_state)[:5]}")
        tale.published = dict(published)
        failures += self._logged({each.id: each for each in answered})
        tale.answers = {
            **known,
            "away": sum(map(_away, refused)),
            "unreachable": sum(each.refused.startswith("Unreachable") for each in refused),
            **tale.answers,
        }
        del failures[20:]

    def _logged(self, answers: dict[str, Answer]) -> list[str]:
        """Compare the server's log, of which a killed one loses what was in no file yet."""
        table, failures, same = request_log.read(str(self.folder / "log")), [], 0
        scores = [table[f"scores.{task}"].to_pylist() for task in ("click", "like")]
        for row, name in enumerate(table["request_id"].to_pylist()):
            if (answer := answers.get(name)) is not None:
                same += 1
                if not np.allclose(np.array([each[row] for each in scores], np.float32), answer.scores, atol=1e-7):
                    failures.append(f"log: request {name} has other scores than were answered")
        self.tale.answers["logged"] = same
        return failures if same else ["log: no request that was answered is in it"]


def _tensors(inputs: Any) -> dict[str, np.ndarray]:
    parts = zip(("ids", "lengths", "dense"), inputs, strict=True)
    return {f"{part}.{name}": value.numpy() for part, values in parts for name, value in values.items()}


def _away(answer: Answer) -> bool:
    return answer.refused.startswith("Busy") and any(part in answer.refused for part in AWAY)


def _code(process: subprocess.Popen | BaseProcess) -> int | None:
    return process.exitcode if isinstance(process, BaseProcess) else process.poll()


def prepare(work: Path) -> None:
    """Make a small event log, its prepared days, and the recipe."""
    if (work / "recipe.yaml").exists():
        return
    shutil.rmtree(work, ignore_errors=True)
    worlds.prepared(work, 3)
    (work / "recipe.yaml").write_text(dump_recipe(worlds.recipe(work / "out")))


def tell(seed: int, number: int, work: Path, most: int) -> Tale:
    """Play a story of so many kills at most; its folder stays where something was wrong."""
    stage, began = Stage(seed, number, work, most), time.monotonic()
    for part in (stage.play, stage.check):
        try:
            part()
        except Exception as error:
            stage.tale.failures.append(f"{part.__name__}: {type(error).__name__}: {error}")
    stage.tale.seconds = time.monotonic() - began
    if not stage.tale.failures:
        shutil.rmtree(stage.folder)
    return stage.tale


def table(tales: list[Tale], given: argparse.Namespace) -> str:
    """Return the page of results."""
    by = Counter((kill, tale.store) for tale in tales for kill in tale.kills)
    places = ("folder", "Redis")
    rows = [f"| {words} | {' | '.join(str(by[hit, place]) for place in places)} |" for hit, words in HITS.items()]
    total = [str(sum(len(tale.kills) for tale in tales if tale.store == place)) for place in places]
    answers = sum((Counter(tale.answers) for tale in tales), Counter())
    published = sum((Counter(tale.published) for tale in tales), Counter())
    failed = [f"- story {tale.number}: {'; '.join(tale.failures)}" for tale in tales if tale.failures]
    made_with = ", ".join(map(" ".join, versions().items()))
    asked = "\n".join(f"| {words} | {answers[name]:,} |" for name, words in ASKED.items())
    return f"""# {sum(map(int, total))} SIGKILLs of a server, its feature store, and who fills it and publishes

Command: `make serve; python -m benchmarks.chaos_serve --kills {given.kills} --seed {given.seed}`; on \
{time.strftime("%Y-%m-%d")}, {os.cpu_count()} cores (AMD EPYC), other programs beside it; {made_with}.

{len(tales)} stories, {sum(tale.seconds for tale in tales) / 60:.0f} minutes; {published["bases"]} bases and
{published["deltas"]} deltas were published. **Stories with a failure: {len(failed)}.**

| what a kill hit | store in a folder | in Redis |
| --- | --- | --- |
{chr(10).join(rows)}
| all | {" | ".join(total)} |

| what two clients got, 20 times a second each at most | requests |
| --- | --- |
{asked}

{chr(10).join(failed) or WELL}
"""


def run(kills: int, seed: int, work: Path) -> list[Tale]:
    """Play stories until there were so many kills; those that `work` tells of are not played again."""
    if not PROGRAM.exists():
        raise SystemExit(f"{PROGRAM} is missing; build it with `make serve`")
    prepare(work)
    told = work / f"stories-{seed}.jsonl"
    tales = [Tale(**json.loads(line)) for line in told.read_text().splitlines()] if told.exists() else []
    for number in count(len(tales)):
        if (left := kills - sum(len(tale.kills) for tale in tales)) <= 0:
            break
        tale = tell(seed, number, work, left)
        tales.append(tale)
        with told.open("a") as file:
            file.write(json.dumps(asdict(tale)) + "\n")
        end = "; ".join(tale.failures) or "all is right"
        print(f"story {number}, {tale.store}, {tale.seconds:.0f} s: {'; '.join(tale.kills)}: {end}", flush=True)
    return tales


if __name__ == "__main__":
    chaos_kills.command(__doc__, "chaos_serve", run, table)
