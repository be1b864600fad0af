"""What a run on a CPU gains where malloc keeps freed memory, and what that costs in memory.

    python benchmarks/allocator.py

For each recipe one run per setting is started, and they take their steps in turns: with glibc as it is by itself, as
livetrain sets it (`ALLOCATOR` in trainers/runtime/process.py), and with nothing ever given back. Told are the processor
time of a step, of one thread, reading included, its page faults, and the run's peak memory so far.
"""

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

SETTINGS = {
    "glibc by itself": {},
    "as livetrain sets it": None,
    "never given back": {"mmap_max": 0, "trim_threshold": 2**31 - 1},
}
WARM = 20  # steps of a run before its first turn
RECIPES = ("farm_kuairand", "cgc_kuairand", "din_kuairand_cross", "rankmixer_kuairand")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10, help="in a turn")
    parser.add_argument("--settings", type=json.loads, default=SETTINGS, help="what mallopt is told, by names")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        run(given.run[0], json.loads(given.run[1]), given.run[2])
        return
    print(f"{datetime.date.today()}, one thread, load {os.getloadavg()[0]:.0f}.\n")
    print("| recipe | malloc | step, ms | of glibc's own, median (range) | page faults a step | peak memory, MiB |")
    print("| --- " * 6 + "|")
    for recipe in given.recipes:
        with tempfile.TemporaryDirectory() as folder:
            sides = [Side(recipe, setting, folder) for setting in given.settings.values()]
            found = [[side.steps(given.steps) for side in sides] for _ in range(given.rounds)]
            for side in sides:
                side.end()
        for i, name in enumerate(given.settings):
            took, faults, memory = zip(*(turn[i] for turn in found), strict=True)
            ratios = [one / turn[0][0] for one, turn in zip(took, found, strict=True)]
            share = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
            costs = f"{statistics.median(faults):,.0f} | {max(memory):,.0f}"
            print(f"| {recipe} | {name} | {statistics.median(took):.1f} | {share} | {costs} |", flush=True)


class Side:
    """A run of a recipe, malloc being told a setting."""

    def __init__(self, recipe: str, setting: dict[str, int] | None, folder: str) -> None:
        command = [sys.executable, __file__, "--run", recipe, json.dumps(setting), folder]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self.steps(WARM)

    def steps(self, number: int) -> list[float]:
        """Let it take so many steps; return the means of ms and of page faults, and its peak memory so far in MiB."""
        assert self._process.stdin
        assert self._process.stdout
        print(number, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def run(recipe: str, setting: dict[str, int] | None, folder: str) -> None:
    """Train, waiting before each turn for the number of its steps, and answering what they cost."""
    from livetrain.trainers.runtime import process

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a run prints
    if setting is not None:
        process.ALLOCATOR = setting

    from livetrain.cli.main import main as livetrain
    from livetrain.trainers.train import loop

    class Feed(loop.Feed):
        """Takes turns where a step has been made."""

        turn, left, before = 0, 0, (0.0, 0)

        def __next__(self):
            if self.left == 0:
                self.left = self.turn = int(sys.stdin.readline())
                self.before = so_far()
            return super().__next__()

        def left_out(self):
            self.left -= 1
            if self.left == 0:
                cost = [(now - then) / self.turn for now, then in zip(so_far(), self.before, strict=True)]
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(json.dumps([*cost, memory]), file=answers, flush=True)
            return super().left_out()

    loop.Feed = Feed
    more = ["cluster.workers=0", "cluster.device=cpu", f"name=run{os.getpid()}", "--runs", folder]
    sys.argv = ["livetrain", "train", f"configs/recipes/{recipe}.yaml", *more]
    livetrain()


def so_far() -> tuple[float, int]:
    """Return this process's processor time in ms and its page faults."""
    return 1e3 * time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
