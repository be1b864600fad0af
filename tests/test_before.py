"""A small run as it was on 2026-11-29: the same recipe still logs the same, and its checkpoint still loads."""

import json
from pathlib import Path

import pytest
import torch

from livetrain.configs.schema import Recipe
from livetrain.trainers.export import export
from livetrain.trainers.runtime import manifest, runlog
from livetrain.trainers.runtime.run_folder import find_checkpoint

BEFORE = Path(__file__).parent / "before"
OF_THE_CLOCK = ("time", "rows_per_s", "data_wait", "ms.")


def lines(read: list[dict]) -> list[dict]:
    return [{key: line[key] for key in line if not key.startswith(OF_THE_CLOCK)} for line in read]


def test_the_same_recipe_logs_the_same(small_run):
    before = [json.loads(line) for line in (BEFORE / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    now = lines(runlog.read(small_run))
    before, now = ([line for line in log if "text" not in line] for log in (before, now))  # words may be others
    for one, other in zip(now, before, strict=True):
        assert one.keys() >= other.keys()  # figures were added since
        for key, value in other.items():  # another processor rounds otherwise
            wanted = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert one[key] == wanted, other


def test_its_checkpoint_loads_and_is_todays(small_run):
    recipe = Recipe.model_validate(manifest.read(BEFORE / "checkpoint")["recipe"])
    loaded = export.plain_model(recipe, BEFORE / "checkpoint").state_dict()
    today = export.plain_model(recipe, find_checkpoint(small_run, "best")).state_dict()
    assert loaded.keys() == today.keys()
    for name, value in loaded.items():
        torch.testing.assert_close(value, today[name], rtol=1e-4, atol=1e-6, msg=name)
