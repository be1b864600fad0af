"""What SIGKILL does to runs and nights: nothing that shows.

    python -m benchmarks.chaos --kills 100

A story is a chain of commands on a small data set, each started again, with another number of workers, until it ends:
either train, evaluate, export, or one `nightly` behind an earlier, published night. On the way the driver, one worker,
or the driver with everything it has started is killed, at random moments of the start, the steps, a checkpoint, an
evaluation, the test, the report, the comparison with the published model, the export and the publication. Then all must
be as if nobody had killed anything: see `OfRuns`.

The stories are a function of --seed. Those that are done are in WORK/stories.jsonl: the same command goes on with the
next one, and writes the table when there are enough kills.
"""

import argparse
import json
import os
import random
import shutil
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import chain, count, cycle
from pathlib import Path
from typing import Any

import livetrain.modules.models  # noqa: F401  (registers the kinds that a recipe may name)
from benchmarks import chaos_kills
from benchmarks.chaos_inspect import OfRuns
from benchmarks.chaos_kills import VICTIMS, names, started, strike
from livetrain.configs.load import dump_recipe
from livetrain.trainers.runtime import manifest, run_folder, runlog
from livetrain.trainers.runtime.versions import versions
from tests import samples

DAYS = [f"2022-05-0{day}" for day in range(1, 6)]
TRAINING = ("step", "checkpoint", "evaluation")
PHASES = ("start", *TRAINING, "test", "report", "compare", "export", "measure", "replace", "publish")  # in their order
OF = {  # command -> its phases
    "train": ("start", *TRAINING, "test", "report", "export"),
    "evaluate": ("measure",),
    "export": ("replace",),  # the export that the training ended with
    "nightly": ("start", *TRAINING, "test", "report", "compare", "export", "publish"),
}
CHAINS = {"train": ("train", "evaluate", "export"), "night": ("nightly",)}
WELL = """Every story ended with exit code 0, the steps, samples and evaluations of the run that nobody killed, one test
line, whole checkpoints, a report, an export that scores its golden rows and is what was published, and no process and
no half-made file left."""
OFTEN = {"start": 1, "measure": 1, "step": 3, "checkpoint": 3, "publish": 3}  # how often a phase is drawn, otherwise 2
WITH_WORKERS = (*TRAINING, "test")  # phases in which there are some
LONGEST_S = 300.0  # of one attempt


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: at a moment of a phase, `delay` seconds later."""

    phase: str
    step: int  # that training must have come to, for the phases of TRAINING
    victim: str
    delay: float


@dataclass(frozen=True)
class Story:
    """A chain of commands, the kills on its way, and the workers of each attempt."""

    number: int
    chain: str
    kills: list[Kill]
    workers: list[int]

    @classmethod
    def draw(cls, seed: int, number: int, steps: int) -> "Story":
        """Return the story of a number: a function of the seed."""
        draw = random.Random(f"{seed}-{number}")
        name = draw.choice(list(CHAINS))
        phases = list(dict.fromkeys(chain.from_iterable(OF[command] for command in CHAINS[name])))
        kills = []
        for phase in draw.choices(phases, [OFTEN.get(phase, 2) for phase in phases], k=draw.randint(2, 6)):
            seconds = dict.fromkeys(("compare", "export", "measure", "replace"), 3.0) | {"start": 8.0, "report": 1.0}
            longest = seconds.get(phase, 0.05)
            victim = draw.choice(VICTIMS if phase in WITH_WORKERS else ("driver", "group"))
            kills.append(Kill(phase, draw.randint(1, steps), victim, draw.uniform(0, longest)))
        # In the order in which a chain comes by them; steps, checkpoints and evaluations take turns.
        kills.sort(key=lambda kill: (1, kill.step) if kill.phase in TRAINING else (PHASES.index(kill.phase), 0))
        return cls(number, name, kills, [draw.randrange(4) for _ in range(8)])


@dataclass
class Stage:
    """Where a story plays: its data and recipe are all stories', its runs and published models its own."""

    folder: Path
    recipe: Path
    day: str = DAYS[-1]

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def published(self) -> Path:
        return self.folder / "models"

    def run(self, chain: str) -> Path:
        return self.runs / ("trained" if chain == "train" else f"din-{self.day}")

    def words(self, command: str, workers: int, day: str | None = None) -> list[str]:
        """Return a command's arguments."""
        if command == "train":
            return ["train", str(self.recipe), "--runs", str(self.runs), "name=trained", f"cluster.workers={workers}"]
        if command == "nightly":
            where = ["--runs", str(self.runs), "--publish", str(self.published), "--day", day or self.day]
            return ["nightly", str(self.recipe), *where, "--tolerance", "1", f"cluster.workers={workers}"]
        return [command, str(self.run("train"))]


class Attempt:
    """One start of a command.

    Args:
        stage: where.
        command: what.
        workers: how many it is told to have.
        chain: whose.
        day: of a night, by default the story's.
    """

    def __init__(self, stage: Stage, command: str, workers: int, chain: str, day: str | None = None) -> None:
        self.stage, self.command, self.workers, self.run = stage, command, workers, stage.run(chain)
        self.began = time.time()
        self.listed = set(names(stage.published))
        self.log = stage.folder / "output.txt"
        with self.log.open("ab") as log:
            log.write(f"\n--- {command}, {workers} workers\n".encode())
        self.process = started(stage.words(command, workers, day), self.log, stage.folder)

    def due(self, kill: Kill) -> bool:
        """Return whether a kill's moment has come; its delay comes after it."""
        if kill.phase not in OF[self.command]:
            return False
        match kill.phase:
            case "start":
                return True
            case "report":
                return (self.run / "result.json").exists()
            case "compare" | "measure":
                return any(
                    path.startswith(".evaluate-")
                    for run in names(self.stage.runs)
                    for path in names(self.stage.runs / run)
                )
            case "export" | "replace":
                return any(path.startswith(".export.") for path in names(self.run))
            case "publish":
                return bool(set(names(self.stage.published)) - self.listed)
        if kill.phase == "checkpoint":
            steps = [int(path[5:]) for path in names(self.run / "checkpoints") if path.startswith("step-")]
            begun = [step for step in steps if step >= kill.step and self._reached(step)]
            return any(manifest.read(run_folder.checkpoint(self.run, step)) is None for step in begun)
        lines = [line for line in self._lines() if "step" in line]
        if kill.phase == "test":
            return any("evaluating test" in line.get("text", "") for line in lines)
        kind = "eval" if kill.phase == "evaluation" else "train"
        return any(line["kind"] == kind and line["step"] >= kill.step for line in lines)

    def strike(self, victim: str) -> str:
        """Kill; return who was hit: where there is no worker the driver is."""
        return strike(self.process.pid, victim)

    def _lines(self) -> list[dict[str, Any]]:
        return [line for line in runlog.read(self.run) if line.get("time", 0) >= self.began]

    def _reached(self, step: int) -> bool:
        return any(line.get("step", 0) >= step for line in self._lines())


@dataclass
class Tale:
    """What became of a story; a line of WORK/stories.jsonl."""

    number: int
    chain: str
    kills: list[dict[str, Any]] = field(default_factory=list)
    attempts: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def play(story: Story, stage: Stage, most: int) -> Tale:
    """Run a story's chain, with at most so many kills, and tell how it went. What it left is still to be inspected."""
    tale, began = Tale(story.number, story.chain), time.monotonic()
    kills, workers = deque(story.kills[:most]), cycle(story.workers)
    for command in CHAINS[story.chain]:
        while not tale.failures:
            number = next(workers)
            if kills and kills[0].victim == "worker":
                number = max(number, 1)  # or there would be none to kill
            attempt = Attempt(stage, command, number, story.chain)
            tale.attempts += 1
            was_hit = _follow(attempt, kills, tale)
            if was_hit:
                continue
            code = attempt.process.wait()
            finished = "this run is finished" in attempt.log.read_text(errors="replace").rsplit("\n--- ", 1)[-1]
            # A kill after all was done, before the process ended: the next start finds nothing left to do.
            if code and not (code == 2 and finished and command == "train"):
                tale.failures.append(f"{command} on {attempt.workers} workers ended with {code}")
            break
        while kills and kills[0].phase in OF[command]:  # their moments did not come
            kills.popleft()
    tale.seconds = time.monotonic() - began
    return tale


def _follow(attempt: Attempt, kills: deque[Kill], tale: Tale) -> bool:
    """Kill as the story says until the attempt ends; return whether it was itself killed."""
    stop = time.monotonic() + LONGEST_S
    while attempt.process.poll() is None:
        if time.monotonic() > stop:
            tale.failures.append(f"{attempt.command} on {attempt.workers} workers did not end in {LONGEST_S:.0f} s")
            attempt.strike("group")
            attempt.process.wait()
            return False
        due = next((number for number, kill in enumerate(kills) if attempt.due(kill)), None)
        if due is not None:
            for _ in range(due):  # their moments were missed
                kills.popleft()
            kill = kills.popleft()
            time.sleep(kill.delay)
            if attempt.process.poll() is None:
                victim = attempt.strike(kill.victim)
                tale.kills.append({"phase": kill.phase, "victim": victim, "workers": attempt.workers})
                if victim != "worker":
                    attempt.process.wait()
                    return True
        time.sleep(0.004)
    return False


def prepare(work: Path) -> Stage:
    """Make the data, the recipe, and the runs that nobody kills; return their stage."""
    golden = Stage(work / "golden", work / "recipe.yaml")
    if (golden.folder / "whole").exists():
        return golden
    shutil.rmtree(work, ignore_errors=True)
    golden.folder.mkdir(parents=True)
    for number, day in enumerate(DAYS):
        drawn = samples.write(work / "drawn" / day, rows=960, seed=number)
        shutil.copytree(drawn / "train", work / "data" / f"date={day}")
    days = {"train": f"{DAYS[0]}..{DAYS[1]}", "valid": f"{DAYS[2]}..{DAYS[2]}", "test": f"{DAYS[3]}..{DAYS[3]}"}
    recipe = samples.recipe(
        work / "data",
        name="din",
        data__days=days,
        train__evaluate_every=0.25,
        train__checkpoint_every=3,
        evaluate__group_by=None,
        cluster__max_failures=20,
        cluster__cpus_per_worker=0.5,
        export__after_training=True,
    )
    golden.recipe.write_text(dump_recipe(recipe))
    for command, name, day in (
        ("nightly", "night", DAYS[3]),
        *((command, "train", None) for command in CHAINS["train"]),
    ):
        _done(Attempt(golden, command, 0, name, day))
    # What every night of a story finds: the night before, and its model published.
    shutil.copytree(golden.runs / f"din-{DAYS[3]}", work / "before" / "runs" / f"din-{DAYS[3]}")
    shutil.copytree(golden.published, work / "before" / "models")
    _done(Attempt(golden, "nightly", 0, "night"))
    (golden.folder / "whole").touch()
    return golden


def _done(attempt: Attempt) -> None:
    if attempt.process.wait(LONGEST_S):
        raise RuntimeError(f"{attempt.command} failed with nobody killing it; see {attempt.log}")


def tell(story: Story, work: Path, golden: Stage, most: int) -> Tale:
    """Play a story on a stage of its own and inspect it; the stage stays where something was wrong."""
    stage = Stage(work / f"story-{story.number:03d}", golden.recipe)
    shutil.rmtree(stage.folder, ignore_errors=True)
    stage.folder.mkdir()
    if story.chain == "night":
        shutil.copytree(work / "before", stage.folder, dirs_exist_ok=True)
    tale = play(story, stage, most)
    tale.failures += OfRuns(story, stage, golden).failures
    if not tale.failures:
        shutil.rmtree(stage.folder)
    return tale


def table(tales: list[Tale], given: argparse.Namespace) -> str:
    """Return the page of results."""
    kills = [kill for tale in tales for kill in tale.kills]
    failed = [tale for tale in tales if tale.failures]
    by = Counter((kill["phase"], kill["victim"]) for kill in kills)
    head = f"| killed during | {' | '.join(VICTIMS)} | in all |"
    rows = [
        f"| {phase} | {' | '.join(str(by[phase, v]) for v in VICTIMS)} | {sum(by[phase, v] for v in VICTIMS)} |"
        for phase in PHASES
    ]
    rows.append(f"| all | {' | '.join(str(sum(by[p, v] for p in PHASES)) for v in VICTIMS)} | {len(kills)} |")
    workers = Counter(kill["workers"] for kill in kills)
    shown = ", ".join(f"{workers[n]} on {n}" for n in sorted(workers))
    lines = [f"- story {tale.number} ({tale.chain}): {'; '.join(tale.failures)}" for tale in failed]
    made_with = ", ".join(map(" ".join, versions().items()))
    return f"""# {len(kills)} random SIGKILLs

Command: `python -m benchmarks.chaos --kills {given.kills} --seed {given.seed}`; {os.cpu_count()} cores; {made_with}.

{len(tales)} stories ({", ".join(f"{n} {name}" for name, n in Counter(tale.chain for tale in tales).items())}) of
{sum(tale.attempts for tale in tales)} attempts, {sum(tale.seconds for tale in tales) / 60:.0f} minutes;
kills by the workers of the attempt (0: no Ray): {shown}.
**Stories with a failure: {len(failed)}.**

{head}
{"|" + " --- |" * (head.count("|") - 1)}
{chr(10).join(rows)}

{chr(10).join(lines) if lines else WELL}
"""


def run(kills: int, seed: int, work: Path) -> list[Tale]:
    """Play stories until there were so many kills; those that `work` tells of are not played again."""
    golden = prepare(work)
    steps = max(line["step"] for line in runlog.read(golden.run("train")) if line["kind"] == "train")
    told = work / f"stories-{seed}.jsonl"
    tales = [Tale(**json.loads(line)) for line in told.read_text().splitlines()] if told.exists() else []
    for number in count(len(tales)):
        left = kills - sum(len(tale.kills) for tale in tales)
        if left <= 0:
            return tales
        tale = tell(Story.draw(seed, number, steps), work, golden, left)
        tales.append(tale)
        with told.open("a") as file:
            file.write(json.dumps(vars(tale)) + "\n")
        hits = ", ".join(f"{kill['victim']} of {kill['workers']} in {kill['phase']}" for kill in tale.kills)
        end = "; ".join(tale.failures) or "all is right"
        print(f"story {number}, {tale.chain}, {tale.seconds:.0f} s: {hits or 'nobody was killed'}: {end}", flush=True)
    raise AssertionError


if __name__ == "__main__":
    chaos_kills.command(__doc__, "chaos", run, table)
