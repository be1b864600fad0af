"""From a machine's end, or its arrival, to the next step trained: three machines of Ray on this one.

    python -m benchmarks.elastic --repeats 3 --out benchmarks/results/elastic.md

A run of 1 to 3 workers loses a machine (its processes are killed), gains one, and one is told to leave. Measured by
the wall clock, from the event to the first line of a step after it, with the time of the log's own notes between. What
a machine has to do for it is mostly to start Python and import torch and TorchRec on every worker, so the load of the
machine counts, and stands in the table. `Ray's own` is the same with the policies of Ray Train in the place of
cluster/elastic.py, as `ScalingConfig(num_workers=(1, 3))` has them.
"""

import argparse
import datetime
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from livetrain.configs.load import dump_recipe
from livetrain.trainers.runtime import runlog
from livetrain.trainers.runtime.versions import versions
from tests import machines, samples

LONGEST_S = 400.0
STEPS = 40  # that are trained between two events
PARTS = ("noticed", "starts", "resumes", "trains", "load")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--policies", nargs="+", default=["livetrain", "ray"], choices=["livetrain", "ray"])
    parser.add_argument("--out", type=Path, help="file to write the table to")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        with_rays_own(given.child)
        return
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for policy in given.policies:
        for _ in range(given.repeats):
            for event, measured in story(policy):
                found.setdefault((policy, event), []).append(measured)
                print(policy, event, measured, flush=True)
    text = table(found)
    print(text)
    if given.out:
        given.out.write_text(text)


def with_rays_own(words: list[str]) -> None:
    """Run livetrain with the policies, and the waits, that Ray Train has by itself."""
    from livetrain.cli import main as cli
    from livetrain.cluster import elastic, ray_workers

    elastic.policies = lambda trainer, asked: {}
    ray_workers.PLACED_S = 60.0
    sys.argv = ["livetrain", *words]
    cli.main()


def story(policy: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what each event took, in seconds."""
    with tempfile.TemporaryDirectory() as folder, machines.started(Path(folder)) as cluster:
        for name in ("a", "b", "c"):
            cluster.join(name)
        data = samples.write(Path(folder) / "data", rows=20_000)
        recipe = samples.recipe(data, train__epochs=1000, train__checkpoint_every=20)
        (Path(folder) / "recipe.yaml").write_text(dump_recipe(recipe))
        words = ["train", f"{folder}/recipe.yaml", "--runs", folder, "cluster.workers={min: 1, max: 3}"]
        command = launch(cluster, policy, words)
        run = Path(folder) / "small"
        trained(run, command, lambda line: line["step"] > STEPS)
        events = {"dies": lambda: cluster.kill("b"), "joins": lambda: cluster.join("d")}
        if policy == "livetrain":  # by itself Ray lets workers go on until the machine is gone
            events["is told to leave"] = lambda: cluster.notify("c")
        for event, happens in events.items():
            happens()
            yield event, after(run, command, time.time())
        os.kill(command.pid, signal.SIGTERM)
        command.communicate(timeout=120)


def launch(cluster: machines.Machines, policy: str, words: list[str]) -> subprocess.Popen:
    """Start livetrain on the head."""
    if policy == "livetrain":
        return cluster.livetrain(*words)
    command = [sys.executable, __file__, "--child", *words]
    where = {**cluster.variables, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(command, env=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def after(run: Path, command: subprocess.Popen, event: float) -> dict[str, float]:
    """Return the seconds from an event to what follows it."""

    def follows(line: dict) -> bool:
        again = resumed(run, event)
        return again is not None and line["time"] > again["time"]

    first = trained(run, command, follows)
    again = resumed(run, event)
    assert again is not None
    told = ("workers failed", "there is room for", "1 machine of the run is to leave")
    noticed = next((x["time"] for x in notes(run, event) if x["text"].startswith(told)), None)
    starts = [x["time"] for x in notes(run, event) if x["text"].startswith("starting")]
    out = {"trains": first["time"] - event, "resumes": again["time"] - event, "load": os.getloadavg()[0]}
    out |= {"noticed": noticed - event} if noticed else {}
    out |= {"starts": starts[0] - event} if starts else {}
    trained(run, command, lambda line: line["time"] > first["time"] and line["step"] > first["step"] + STEPS)
    return out


def trained(run: Path, command: subprocess.Popen, wanted: Callable[[dict], bool]) -> dict:
    """Wait for a line of a step that a test holds for, once the run was resumed for the last time."""
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end:
        assert command.poll() is None, command.communicate()[0]
        found = lines(run)
        begun = max((n for n, line in enumerate(found) if line.get("text", "").startswith("resumed")), default=0)
        for line in found[begun:]:
            if line["kind"] == "train" and wanted(line):
                return line
        time.sleep(0.2)
    raise TimeoutError(str([line["text"] for line in lines(run) if line["kind"] == "note"]))


def lines(run: Path) -> list[dict]:
    return runlog.read(run)


def notes(run: Path, since: float) -> list[dict]:
    return [line for line in lines(run) if line["kind"] == "note" and line["time"] > since]


def resumed(run: Path, since: float) -> dict | None:
    return next((line for line in notes(run, since) if line["text"].startswith("resumed at step")), None)


def table(found: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    """Return the table, medians with the range of what is measured."""
    command = f"python -m benchmarks.elastic {' '.join(sys.argv[1:])}"
    machine = "two-core CPU VM (AMD EPYC), shared with other work, whose load is in the table: wall clock is rough"
    made_with = ", ".join(map(" ".join, versions().items()))
    rows = ["| policy | a machine | noticed | workers start | resumed | first step | load |", "|" + " --- |" * 7]

    def cell(values: list[float]) -> str:
        if not values:
            return "-"
        return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"

    for (policy, event), measured in found.items():
        parts = [
            [one[key] for one in measured if key in one] for key in ("noticed", "starts", "resumes", "trains", "load")
        ]
        name = "livetrain" if policy == "livetrain" else "Ray's own"
        rows.append(f"| {name} | {event} | " + " | ".join(map(cell, parts)) + " |")
    return f"""# From a machine's end or arrival to the next step

Command: `{command}`. On {datetime.date.today()}: {machine}; {made_with}.

Seconds from the event, median (range). A run of 1 to 3 workers on three machines of one CPU each, all on this one.

{chr(10).join(rows)}
"""


if __name__ == "__main__":
    main()
