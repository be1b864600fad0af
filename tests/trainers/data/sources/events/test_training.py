"""From raw KuaiLive files to a trained, evaluated and exported run, by the commands that a user would type."""

import json
import sys

import pytest
import yaml

from livetrain.cli import main as cli
from tests.trainers.data.sources.events.logs import HOUR, Visit, write

RECIPE = {
    "data": {
        "days": {
            "train": "2025-05-25..2025-05-26",
            "valid": "2025-05-27..2025-05-27",
            "test": "2025-05-28..2025-05-28",
        },
        "batch_size": 48,
        "shards": 12,
    },
    "features": {
        "user": {"type": "id", "table": "user"},
        "streamer": {"type": "id", "table": "streamer"},
        "room_age": {"type": "dense"},
        "room_viewers": {"type": "dense"},
        "live_streamer": {"type": "sequence", "table": "streamer"},
        "live_action": {"type": "sequence", "table": "action"},
        "live_gap": {"type": "sequence", "table": "gap"},
    },
    "tables": {
        "user": {"rows": 64, "dim": 8},
        "streamer": {"rows": 64, "dim": 8},
        "action": {"rows": 128, "dim": 8, "hash": "modulo"},
        "gap": {"rows": 32, "dim": 8, "hash": "modulo"},
    },
    "model": {
        "kind": "din",
        "attention": [{"query": ["streamer"], "events": ["live_streamer"], "side": ["live_action", "live_gap"]}],
        "attention_units": [8],
        "units": [16],
    },
    "tasks": {"click": {"label": "click"}},
    "train": {"log_every": 1},
    "evaluate": {"group_by": "user"},
    "cluster": {"workers": 0, "device": "cpu"},
}


@pytest.fixture
def call(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["livetrain", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, capsys.readouterr()
        return capsys.readouterr().out

    return call


def test_from_raw_files_to_a_result(tmp_path, call):
    log = [Visit(96 * HOUR * n // 400, 1 + n % 7, 1 + n % 4, (n * 7) % 5 < 2, 45) for n in range(400)]
    raw, out = write("kuailive", tmp_path / "raw", log), tmp_path / "kuailive"
    said = call("data", "kuailive", "--raw", raw, "--out", out)
    assert "kuailive: 400 rows" in said
    assert f"{out}: 4 days; options, columns and this report: dataset.json" in " ".join(said.split())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"data": RECIPE["data"] | {"path": str(out)}}))
    call("train", recipe, "name=days", "--runs", tmp_path / "runs")
    result = json.loads((tmp_path / "runs/days/result.json").read_text())
    assert 0 <= result["test.click.auc"] <= 1
    call("export", tmp_path / "runs/days")
    trained_on = json.loads((tmp_path / "runs/days/export/signature.json").read_text())["training"]
    assert trained_on["rows"] == 200
    first, last = trained_on["window"]
    assert last - first < 48 * HOUR * 1000
