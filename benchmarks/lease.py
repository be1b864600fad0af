"""Parts of benchmarks/lease.sh that no other script does, and its table.

    python benchmarks/lease.py tests --device cuda --json lease.jsonl
    python benchmarks/lease.py hardware --device cuda --json lease.jsonl
    python benchmarks/lease.py table lease.jsonl

- tests: every test that needs a GPU. Those of tables behind a GPU cache are "cached-tests": a fault in managed memory
  can cost the whole machine, so they come last.
- hardware: what `livetrain plan` wants to know of a GPU, by the keys of configs/hardware: a copy within its memory, one
  from pinned host memory, a large matrix product by precision, and the host's time to call an operator.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NEEDS = "needs a GPU"  # why such a test is skipped elsewhere
CALLS = 1000  # of an operator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["tests", "cached-tests", "hardware", "table"])
    parser.add_argument("lines", type=Path, nargs="?", help="of the table: the file of figures")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path, help="file that gets a line per figure")
    given = parser.parse_args()
    if given.part == "table":
        print(table(map(json.loads, given.lines.read_text().splitlines())))
    elif given.part == "hardware":
        hardware(given.device, given.json)
    else:
        sys.exit(tests(given.part == "cached-tests", given.json))


def keep(file: Path | None, what: str, **found: Any) -> None:
    """Print a figure, and write it as a line of the file."""
    line = json.dumps({"part": os.environ.get("PART", what), "what": what, **found})
    print(line, flush=True)
    if file is not None:
        with file.open("a") as lines:
            lines.write(line + "\n")


class Chosen:
    """A plugin of pytest: only tests that need a GPU are run, and each one's outcome is kept as soon as it is known."""

    def __init__(self, cached: bool, file: Path | None) -> None:
        self._cached, self._file = cached, file

    def pytest_collection_modifyitems(self, items: list) -> None:
        items[:] = [item for item in items if needs_gpu(item) and behind_cache(item) == self._cached]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed or report.skipped or report.when == "call":
            why = str(report.longrepr).strip().splitlines()[-1] if report.failed else ""
            keep(self._file, "test", name=report.nodeid, outcome=report.outcome, why=why[:300])


def needs_gpu(item: Any) -> bool:
    """Return whether a test is skipped where there is no GPU."""
    return any(mark.kwargs.get("reason") == NEEDS for mark in item.iter_markers("skipif"))


def behind_cache(item: Any) -> bool:
    """Return whether a test puts tables into host memory behind a GPU cache."""
    return "host" in getattr(item, "callspec", argparse.Namespace(params={})).params.values()


def tests(cached: bool, file: Path | None) -> int:
    """Run the tests that need a GPU."""
    import pytest

    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if NEEDS in path.read_text()]
    words = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-W", "ignore", *files]
    return int(pytest.main(words, plugins=[Chosen(cached, file)]))


def hardware(kind: str, file: Path | None) -> None:
    """Measure what a plan wants to know of the device."""
    import torch
    from device import COPIED, copying, least, multiplying

    device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    keep(file, "device", name=torch.cuda.get_device_name() if kind == "cuda" else "CPU", torch=torch.__version__)
    small, host = torch.zeros(1, device=device), torch.zeros(COPIED // 4, pin_memory=kind == "cuda")
    there = torch.zeros(COPIED // 4, device=device)
    figures: dict[str, Callable[[], float]] = {
        "memory_gb_s": lambda: copying(device) / 1e9,
        "host_gb_s": lambda: COPIED / least(device, lambda: there.copy_(host, non_blocking=True)) / 1e9,
        "us.operator": lambda: 1e6 * least(device, lambda: [small.add_(1) for _ in range(CALLS)]) / CALLS,
        **{f"tflops.{each}": lambda e=each: multiplying(device, e) / 1e12 for each in ("bfloat16", "tf32", "float32")},
    }
    for key, measured in figures.items():
        keep(file, "hardware", key=key, value=measured())


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Return the table of a lease, in the order in which its parts came.

    Args:
        lines: of lease.jsonl: each has `what` it tells, and the figures of that.
    """
    rows: list[tuple[str, str, str]] = []
    tested: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        part, what = line.get("part", ""), line["what"]
        if what == "test":
            tested.setdefault(part, []).append(line)
        elif what == "end":
            if part in tested:
                rows += _tests(part, tested.pop(part))
            if line["code"]:
                rows.append((part, _END.get(line["code"], f"ended with {line['code']}"), f"after {line['seconds']} s"))
        else:
            rows.append((part, *_SAID[what](line)))
    head = "| part | what | figure |\n| --- | --- | --- |"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])


_END = {-1: "left out: no time was left", 124: "its time was up", 137: "killed"}


def _tests(part: str, found: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return a line of how many tests ended how, and one for each that failed."""
    counts = {end: sum(test["outcome"] == end for test in found) for end in ("passed", "failed", "skipped")}
    failed = [(part, f"failed: {test['name']}", test["why"]) for test in found if test["outcome"] == "failed"]
    return [(part, "tests", ", ".join(f"{count} {end}" for end, count in counts.items())), *failed]


def _rate(line: dict[str, Any]) -> tuple[str, str]:
    what = " ".join(filter(None, (line["recipe"], line["changes"], line["precision"], f"{line['batch']:,} rows")))
    busy = "" if line["busy"] is None else f", busy {line['busy']:.0%}"
    tables = f"tables at {line['tables'] / line['copied']:.0%} of a copy, all at {line['roofline']:.0%} of the roofline"
    took = f"{line['rows_per_s']:,.0f} rows/s, {line['step_ms']:.1f} ms{busy}"
    return what, f"{took}, {tables}, fed by {line['cores']:.1f} cores"


# What a line says: its second and third cell.
_SAID = {
    "device": lambda line: (line["name"], f"torch {line['torch']}"),
    "hardware": lambda line: (line["key"], f"{line['value']:,.4g}"),
    "agreement": lambda line: (
        f"{line['recipe']} beside a CPU, {line['steps']} steps",
        f"loss {line['loss']:.1e}, network {line['network']:.1e} apart",
    ),
    "rate": _rate,
}


if __name__ == "__main__":
    main()
