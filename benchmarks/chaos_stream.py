"""What SIGKILL does to a stream and to what follows it: nothing that shows.

    python -m benchmarks.chaos_stream --kills 100

A story is `livetrain stream` and `livetrain follow` side by side on messages that land while they run: 24 minutes of
event time, of which the follower learns, checkpoints and publishes half a minute at a time. Both are killed, the
follower at moments that are drawn: at any, or placed. A placed kill waits until the disk shows

    minute      an increment has just been closed: its last minute has a manifest, and no checkpoint has learned it
    writing     a checkpoint has been begun and has no manifest
    checkpoint  a checkpoint is committed, and what it holds is not published
    publishing  a base or a delta has been begun, and no pointer names it
    published   a pointer has been written

and strikes up to a fraction of a second later. What a kill hit is read from the disk when the process is dead, so the
table says where kills were, not where they were meant. When a story's kills are used up both programs run to their end,
and then all must be as if nobody had killed anything: see `OfStreams`. Beside them a server takes in what is
published. Every twelfth story follows with a worker under Ray, and kills the driver, the worker, or all.

Stories are a function of --seed. Those that are done are in WORK/stories-SEED.jsonl: the same command goes on with the
next.
"""

import argparse
import json
import os
import random
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml

import livetrain.modules.models  # noqa: F401  (registers the kinds that a recipe may name)
from benchmarks import chaos_kills, chaos_live
from benchmarks.chaos_live import BEGIN, FIRST, LASTS, SLOT, TABLES, Disk, Place, Program
from livetrain.cluster import launch
from livetrain.configs.event_spec import EventSpec
from livetrain.configs.load import dump_recipe
from livetrain.configs.spec import load_spec
from livetrain.trainers.data.read import minutes
from livetrain.trainers.data.sources.table.events import prepare_events
from livetrain.trainers.export import deltas, export, publish
from livetrain.trainers.export.served import Served
from livetrain.trainers.runtime import run_folder, runlog
from livetrain.trainers.runtime.versions import versions

MOMENTS = {"any": 40, "minute": 18, "writing": 10, "checkpoint": 16, "publishing": 12, "published": 16}  # how often
LATEST_S = {"any": 10.0, "minute": 0.3, "writing": 0.01, "checkpoint": 0.0, "publishing": 0.01, "published": 0.05}
HITS = {
    "start": "before it had begun to follow",
    "minute": "an increment closed, no checkpoint of it yet",
    "writing": "a checkpoint begun, its manifest not written",
    "checkpoint": "a checkpoint committed, nothing of it published",
    "publishing": "a base or a delta begun, no pointer to it",
    "waiting": "all that was closed was learned and published",
}
PATIENCE_S = 90.0  # for a placed moment to come
LEADS = (180, 240, 100_000)  # s of event time by which messages may be ahead of what is learned
WELL = """Every story ended with both programs' exit code 0, minutes, weights, optimizer states, tables, ids and step
lines that are those of the run that nobody killed, to the last bit, a published model that is that run's full export to
the last bit, a server that had taken in all that was published meanwhile, and no process and no half-made file left."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL of the follower, and perhaps of the joiner with it."""

    moment: str
    delay: float
    victim: str  # under Ray
    joiner: bool


@dataclass(frozen=True)
class Story:
    """Kills, the workers of the follower, and how far messages may be ahead of what it has learned, in s."""

    number: int
    kills: list[Kill]
    workers: int
    lead: int

    @classmethod
    def draw(cls, seed: int, number: int) -> "Story":
        """Return the story of a number: a function of the seed."""
        draw, kills = random.Random(f"{seed}-{number}"), []
        ray = number % 12 == 3
        for moment in draw.choices(list(MOMENTS), list(MOMENTS.values()), k=6 if ray else 10):
            delay = draw.uniform(0, LATEST_S[moment] * (5 if ray and moment == "any" else 1))
            victim = draw.choice(chaos_kills.VICTIMS) if ray else "driver"
            kills.append(Kill(moment, delay, victim, draw.random() < 0.3))
        return cls(number, kills, int(ray), draw.choice(LEADS))


@dataclass
class Tale:
    """What became of a story; a line of WORK/stories.jsonl."""

    number: int
    workers: int
    kills: list[dict[str, Any]] = field(default_factory=list)
    joiner_kills: int = 0
    published: dict[str, int] = field(default_factory=dict)  # bases and deltas that the pointer names in the end
    refreshed: int = 0  # how often the server took something in
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


class Stage:
    """A story that is being played."""

    def __init__(self, story: Story, work: Path) -> None:
        self.story, self.tale = story, Tale(story.number, story.workers)
        self.place = Place(work / f"story-{story.number:03d}")
        prepare_place(self.place, work)
        self._slots, self._landed = LASTS // SLOT + 2, 0
        self._whole = work / "messages/topics"
        self.disk = Disk(self.place)
        self._joiner: Program | None = None
        self._served: Served | None = None

    def play(self) -> None:
        """Kill as the story says, then let both programs come to their end."""
        kills = deque(self.story.kills)
        try:
            while kills:
                follower = Program(self.place, "follow", self.story.workers)
                while kills and follower.code() is None:
                    self._kill(follower, kills.popleft())
                if (code := follower.code()) is not None and code not in (-9, 137):
                    raise RuntimeError(f"follow ended with {code} and nobody had killed it")
            self._land(self._slots)
            if follower.code() is None:  # a worker was the last to be killed
                follower.kill("group")
            if self._joiner is not None:
                self._joiner.kill("driver")
                self.tale.joiner_kills += 1
            for name in ("stream", "follow"):
                if code := Program(self.place, name, last=True).wait():
                    raise RuntimeError(f"{name} ended with {code}")
            self._refresh()
            named = (publish.current(str(self.place.models)) or {"versions": []})["versions"]
            self.tale.published = {"bases": len(named), "deltas": sum(len(each.get("deltas", ())) for each in named)}
        finally:
            if self._joiner is not None and self._joiner.code() is None:
                self._joiner.kill("group")

    def _kill(self, follower: Program, kill: Kill) -> None:
        """Kill at the moment that was drawn, or when it does not come, and note what was hit."""
        self.disk.restarted()
        self.disk.look()
        closed, stop, begun = self.disk.closed, time.monotonic() + PATIENCE_S * (3 if self.story.workers else 1), False
        while kill.moment != "any" and time.monotonic() < stop and follower.code() is None:
            self._tick()
            begun = begun or self._following()
            if begun and self.disk.at(kill.moment, closed):
                break
            time.sleep(0.002)
        stop = time.monotonic() + kill.delay
        while time.monotonic() < stop:
            if kill.delay > 0.5:
                self._tick()
            time.sleep(min(0.01, kill.delay))
        if follower.code() is not None:
            return
        hit = follower.kill(kill.victim)
        found = self.disk.hit(self._following())
        self.tale.kills.append({"moment": kill.moment, "hit": found, "victim": hit, "joiner": kill.joiner})
        if kill.joiner and self._joiner is not None:
            self._joiner.kill("driver")
            self.tale.joiner_kills += 1
        self._refresh()

    def _following(self) -> bool:
        """Return whether the follower has begun to follow since it was started."""
        lines = runlog.read(self.place.line.parent)
        return any("has learned up to" in line.get("text", "") for line in lines if line["time"] >= self.disk.since)

    def _tick(self) -> None:
        """Let messages land, keep the joiner at work, and look."""
        self.disk.look()
        if BEGIN + self._landed * SLOT - self.disk.taken < self.story.lead:
            self._land(self._landed + 1)
        if self._joiner is None or self._joiner.code() == -9:
            self._joiner = Program(self.place, "stream")
        elif (code := self._joiner.code()) is not None:
            raise RuntimeError(f"stream ended with {code} and nobody had killed it")

    def _land(self, slots: int) -> None:
        """Let messages of so many slots have landed, each file whole."""
        for slot in range(self._landed, min(slots, self._slots)):
            for table in TABLES:
                for partition in (0, 1):
                    name = f"{table}/partition={partition}/{slot:06d}.csv"
                    if (self._whole / name).exists():
                        os.link(self._whole / name, self.place.folder / "topics" / name)
        self._landed = max(self._landed, min(slots, self._slots))

    def _refresh(self) -> None:
        """Let a server take in what is published now."""
        if self._served is not None:
            self.tale.refreshed += self._served.refresh()
        elif publish.current(str(self.place.models)) is not None:
            self._served = Served(str(self.place.models))


class OfStreams(chaos_kills.Inspection):
    """Of a stream's minutes, what the follower holds and logged, and what is published."""

    def __init__(self, place: Place, golden: Place) -> None:
        super().__init__()
        self.place, self.golden = place, golden
        self.go_through(self.minutes, self.state, self.log, self.published, self.leftovers)

    def both(self, found: Callable[[Place], Any]) -> tuple[Any, Any]:
        return found(self.place), found(self.golden)

    def minutes(self) -> None:
        """The stream's minutes are the same, byte for byte, and so are their counts."""

        def parts(place: Place) -> dict[str, bytes]:
            found = place.live.glob("date=*/time=*/lane=0/part-0.parquet")
            return {str(path.relative_to(place.live)): path.read_bytes() for path in found}

        ours, theirs = self.both(parts)
        self.check(ours == theirs, f"minutes: {len(ours)} parts, not the other run's {len(theirs)}, or other bytes")
        ours, theirs = self.both(lambda place: [(m.name, m.rows, m.counts) for m in minutes.closed(str(place.live))])
        counted = [sum((Counter(each) for _, _, each in told), Counter()) for told in (ours, theirs)]
        self.check([m[:2] for m in ours] == [m[:2] for m in theirs], "minutes: other rows")
        self.check(counted[0] == counted[1], f"minutes: counted {counted[0]}, not {counted[1]}")

    def state(self) -> None:
        """The newest checkpoint holds the same weights, optimizer states, ids, step, and up to when it has learned."""

        def held(place: Place) -> dict[str, bytes]:
            return {path.name: path.read_bytes() for path in run_folder.committed(place.line)[-1].glob("*.distcp")}

        def position(place: Place) -> dict[str, Any]:
            told = run_folder.content(run_folder.committed(place.line)[-1])
            return {"step": told["step"]} | {
                key: told["position"][key] for key in ("taken", "increments", "shed", "rows")
            }

        ours, theirs = self.both(held)
        self.check(ours == theirs, "state: the checkpoint's numbers are not the other run's")
        ours, theirs = self.both(position)
        self.check(ours == theirs, f"state: {ours}, not {theirs}")

    def log(self) -> None:
        """Every increment and every step stands once, in order, with the rows, samples and figures of the other run."""
        keys = {"increment": ("start", "end", "rows", "step"), "train": ("step", "samples", "loss"), "eval": None}
        for kind, wanted in keys.items():

            def lines(place: Place, kind: str = kind, wanted: tuple[str, ...] | None = wanted) -> list[dict[str, Any]]:
                found = [line for line in runlog.read(place.line) if line["kind"] == kind]
                return [
                    {k: v for k, v in line.items() if (k in wanted if wanted else k not in ("time", "seconds"))}
                    for line in found
                ]

            ours, theirs = self.both(lines)
            other = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), "")
            self.check(
                ours == theirs, f"log: {len(ours)} lines {kind}, not the other run's {len(theirs)}, or others {other}"
            )

    def published(self) -> None:
        """A server that begins now has, to the last bit, the full export of the run that nobody killed."""

        def served(place: Place) -> tuple[str, dict[str, torch.Tensor]]:
            found = Served(str(place.models))
            with found.use() as models:
                return deltas.newest(found.pointer)["version"], dict(models["model.pt"].state_dict())

        (ours, held), (theirs, wanted) = self.both(served)
        self.check(ours == theirs, f"published: {ours}, not {theirs}")
        self.check(held.keys() == wanted.keys(), "published: other tensors")
        apart = [name for name in held.keys() & wanted.keys() if not torch.equal(held[name], wanted[name])]
        self.check(not apart, f"published: other numbers in {apart[:3]}")

    def leftovers(self) -> None:
        """No process lives, and nothing half-made lies about."""
        self.failures += chaos_kills.left(self.place.folder)


def prepare_place(place: Place, work: Path) -> None:
    """Make a new folder with a night, and what the programs are told."""
    shutil.rmtree(place.folder, ignore_errors=True)
    for table in TABLES:
        for partition in (0, 1):
            (place.folder / "topics" / table / f"partition={partition}").mkdir(parents=True)
    shutil.copytree(work / "night", place.folder / "runs", symlinks=True)
    for name, text in (("events.yaml", chaos_live.EVENTS), ("stream.yaml", yaml.safe_dump(chaos_live.STREAM))):
        (place.folder / name).write_text(text)
    shutil.copyfile(work / "messages/rooms.csv", place.folder / "rooms.csv")
    (place.folder / "din.yaml").write_text(dump_recipe(chaos_live.recipe(work)))


def prepare(work: Path) -> Place:
    """Make messages, a night, and the run that nobody kills; return its place."""
    golden = Place(work / "golden")
    if (golden.folder / "whole").exists():
        return golden
    shutil.rmtree(work, ignore_errors=True)
    chaos_live.land(work / "log", 1, FIRST, 3 * 86_400, 1500)
    chaos_live.land(work / "messages", 2, BEGIN, LASTS, 2400)
    (work / "log/events.yaml").write_text(chaos_live.EVENTS)
    prepare_events(load_spec(work / "log/events.yaml", EventSpec), work / "days", lambda *_: None)
    recipe = chaos_live.recipe(work)
    launch.train(recipe.model_copy(update={"name": "din-2025-05-27"}), work / "night")
    export.export(work / "night/din-2025-05-27")
    prepare_place(golden, work)
    shutil.copytree(work / "messages/topics", golden.folder / "topics", dirs_exist_ok=True)
    for name in ("stream", "follow"):
        if Program(golden, name, last=True).wait():
            raise RuntimeError(f"{name} failed with nobody killing it; see {golden.folder}/{name}.txt")
    (golden.folder / "whole").touch()
    return golden


def tell(story: Story, work: Path, golden: Place) -> Tale:
    """Play a story and inspect it; its folder stays where something was wrong."""
    stage, began = Stage(story, work), time.monotonic()
    try:
        stage.play()
    except Exception as error:
        stage.tale.failures.append(f"{type(error).__name__}: {error}")
    stage.tale.failures += OfStreams(stage.place, golden).failures
    stage.tale.seconds = time.monotonic() - began
    if not stage.tale.failures:
        shutil.rmtree(stage.place.folder)
    return stage.tale


def table(tales: list[Tale], given: argparse.Namespace) -> str:
    """Return the page of results."""
    kills = [(kill, tale.workers) for tale in tales for kill in tale.kills]
    alone, ray = (Counter(kill["hit"] for kill, workers in kills if bool(workers) == under) for under in (False, True))
    rows = [f"| {words} | {alone[hit]} | {ray[hit]} | {alone[hit] + ray[hit]} |" for hit, words in HITS.items()]
    refreshed = sum(tale.refreshed for tale in tales)
    published = sum((Counter(tale.published) for tale in tales), Counter())
    victims = Counter(kill["victim"] for kill, workers in kills if workers)
    failed = [f"- story {tale.number}: {'; '.join(tale.failures)}" for tale in tales if tale.failures]
    made_with = ", ".join(map(" ".join, versions().items()))
    joiner = sum(tale.joiner_kills for tale in tales)
    return f"""# {len(kills)} SIGKILLs of a follower, and {joiner} of the joiner beside it

Command: `python -m benchmarks.chaos_stream --kills {given.kills} --seed {given.seed}`; on \
{time.strftime("%Y-%m-%d")}, {os.cpu_count()} cores (AMD EPYC), other programs beside it; {made_with}.

{len(tales)} stories, {sum(tale.seconds for tale in tales) / 60:.0f} minutes. The pointers name
{published["bases"]} bases and {published["deltas"]} deltas, and a server took in what was new {refreshed} times
meanwhile. Kills under Ray: {", ".join(f"{many} of the {who}" for who, many in victims.items()) or "none"}.
**Stories with a failure: {len(failed)}.**

| what a kill hit | no Ray | one worker under Ray | in all |
| --- | --- | --- | --- |
{chr(10).join(rows)}
| all | {alone.total()} | {ray.total()} | {len(kills)} |

{chr(10).join(failed) or WELL}
"""


def run(kills: int, seed: int, work: Path) -> list[Tale]:
    """Play stories until there were so many kills; those that `work` tells of are not played again."""
    golden = prepare(work)
    told = work / f"stories-{seed}.jsonl"
    tales = [Tale(**json.loads(line)) for line in told.read_text().splitlines()] if told.exists() else []
    for number in count(len(tales)):
        if sum(len(tale.kills) for tale in tales) >= kills:
            break
        tale = tell(Story.draw(seed, number), work, golden)
        tales.append(tale)
        with told.open("a") as file:
            file.write(json.dumps(asdict(tale)) + "\n")
        hits = ", ".join(f"{kill['moment']}: {kill['hit']}" for kill in tale.kills)
        end = "; ".join(tale.failures) or "all is right"
        print(f"story {number}, {tale.workers} workers, {tale.seconds:.0f} s: {hits}: {end}", flush=True)
    return tales


if __name__ == "__main__":
    chaos_kills.command(__doc__, "chaos_stream", run, table)
