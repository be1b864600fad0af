"""benchmarks/lease.sh: each part's figures are kept whatever becomes of the others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import lease

SCRIPT = Path(__file__).parents[1] / "benchmarks/lease.sh"
RATE = {
    **{"recipe": "din_ml1m", "changes": "train.compile=true", "precision": "tf32", "batch": 98304, "busy": 0.912},
    **{"rows_per_s": 7.1e6, "step_ms": 13.8, "tables": 2.4e12, "copied": 4e12, "roofline": 0.31, "cores": 14.2},
}

# A Python that runs no part: the tests die after a figure, the hardware hangs, the rates print and fail.
PYTHON = """#!/usr/bin/env bash
line=${@: -1}
case "$*" in
  *"import livetrain"*) ;;
  *"lease.py table"*) exec %s "$@" ;;
  *"lease.py tests"*)
    echo '{"part": "tests", "what": "test", "name": "a", "outcome": "passed", "why": ""}' >>"$line"
    kill -9 $$ ;;
  *"lease.py hardware"*)
    echo '{"part": "hardware", "what": "hardware", "key": "us.operator", "value": 4.25}' >>"$line"
    sleep 60 ;;
  *device.py*) echo "as told: $PART"; exit 3 ;;
esac
"""


def test_a_part_that_dies_or_hangs_costs_only_its_own_figures(tmp_path):
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(PYTHON % sys.executable)
    python.chmod(0o755)
    words = [SCRIPT, "--device", "cpu", "--out", out, "--seconds", "3", "--parts", "cached tests hardware cached-tests"]
    printed = subprocess.run(words, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True).stdout
    lines = (out / "lease.md").read_text().splitlines()
    assert lines[2:] == [
        "| tests | tests | 1 passed, 0 failed, 0 skipped |",
        "| tests | killed | after 0 s |",
        "| hardware | us.operator | 4.25 |",
        "| hardware | its time was up | after 3 s |",
        "| cached | left out: no time was left | after 0 s |",
        "| cached-tests | left out: no time was left | after 0 s |",
    ]
    assert printed.endswith("\n".join(lines) + "\n")
    ended = [json.loads(line)["part"] for line in (out / "lease.jsonl").read_text().splitlines() if '"end"' in line]
    assert ended == ["tests", "hardware", "cached", "cached-tests"]  # in order of worth, not as they were named


def test_the_table_has_a_line_per_figure():
    failed = {"part": "tests", "what": "test", "name": "test_b", "outcome": "failed", "why": "AssertionError: 1 != 2"}
    found = lease.table(
        [
            failed | {"name": "test_a", "outcome": "passed"},
            failed,
            {"part": "tests", "what": "end", "code": 1, "seconds": 70},
            {"part": "hardware", "what": "device", "name": "A GPU", "torch": "2.11.0+cu130"},
            {"part": "hardware", "what": "hardware", "key": "memory_gb_s", "value": 4123.4},
            {"part": "hardware", "what": "hardware", "key": "tflops.tf32", "value": 401.26},
            {"part": "hardware", "what": "end", "code": 0, "seconds": 12},
            {"what": "agreement", "recipe": "din_ml1m", "steps": 10, "loss": 1.2e-7, "network": 3e-5},
            {"part": "rates", "what": "rate", **RATE},
            {"part": "rates", "what": "rate", **RATE, "changes": "", "busy": None},
        ]
    )
    assert found.splitlines()[2:] == [
        "| tests | tests | 1 passed, 1 failed, 0 skipped |",
        "| tests | failed: test_b | AssertionError: 1 != 2 |",
        "| tests | ended with 1 | after 70 s |",
        "| hardware | A GPU | torch 2.11.0+cu130 |",
        "| hardware | memory_gb_s | 4,123 |",
        "| hardware | tflops.tf32 | 401.3 |",
        "|  | din_ml1m beside a CPU, 10 steps | loss 1.2e-07, network 3.0e-05 apart |",
        "| rates | din_ml1m train.compile=true tf32 98,304 rows | 7,100,000 rows/s, 13.8 ms, busy 91%, tables at 60% "
        "of a copy, all at 31% of the roofline, fed by 14.2 cores |",
        "| rates | din_ml1m tf32 98,304 rows | 7,100,000 rows/s, 13.8 ms, tables at 60% of a copy, all at 31% of the "
        "roofline, fed by 14.2 cores |",
    ]


@pytest.mark.slow
def test_every_part_is_rehearsed_on_a_cpu(tmp_path):
    words = [SCRIPT, "--device", "cpu", "--out", tmp_path, "--seconds", "1500"]
    subprocess.run(words, env=os.environ | {"PYTHON": sys.executable}, check=True)
    lines = [json.loads(line) for line in (tmp_path / "lease.jsonl").read_text().splitlines()]
    ends = [(line["part"], line["code"]) for line in lines if line["what"] == "end"]
    assert ends == [
        *[("tests", 0), ("hardware", 0), ("rates", 0), ("cached", 0), ("cached-tests", 0)],
    ]
    told = {(line["part"], line["what"]) for line in lines}
    assert told >= {
        ("hardware", "copy"),
        ("hardware", "product"),
        ("hardware", "launch"),
        ("hardware", "from the host"),
    }
    assert told >= {("rates", "rate"), ("rates", "agreement"), ("cached", "rate")}
    tests = [line for line in lines if line["what"] == "test"]
    assert {line["outcome"] for line in tests} == {"skipped"}  # here; but all are found
    assert {line["part"] for line in tests} == {"tests", "cached-tests"}
