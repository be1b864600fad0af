import copy
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from cluster import launch
from configs.errors import BadInput
from configs.load import dump_recipe, load_recipe
from tests import samples
from trainers import checkpoint, manifest, metrics
from trainers import export as exporter
from trainers.export import export

FILES = ["golden.json", "manifest.json", "model.pt", "signature.json"]
DNN = {"model": {"kind": "dnn", "units": [16]}}
LR = {"model": {"kind": "lr"}, "features": {"rate": {"type": "dense"}}, "tables": {}}

SERVER = """
import json, math, sys
import torch

golden = json.load(open("golden.json"))
ids = {name: torch.tensor(values, dtype=torch.int64) for name, values in golden["ids"].items()}
lengths = {name: torch.tensor(values) for name, values in golden["lengths"].items()}
dense = {n: torch.tensor([math.nan if x is None else x for x in values]) for n, values in golden["dense"].items()}
scores = torch.jit.load("model.pt")(ids, lengths, dense)
assert {task: score.tolist() for task, score in scores.items()} == golden["scores"]
assert not {"torchrec", "fbgemm_gpu", "modules"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def served(small_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("served") / "first"
    export(small_run, out=out)
    return out


@pytest.fixture
def copied(small_run, tmp_path) -> Callable[..., Path]:
    """Copy the run to another place, with overrides in its recipe."""

    def copied(*overrides: str) -> Path:
        run = tmp_path / "elsewhere" / "moved"
        shutil.copytree(small_run, run)
        (run / "config.yaml").write_text(dump_recipe(load_recipe(small_run / "config.yaml", list(overrides))))
        return run

    return copied


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_an_export_is_four_files_with_the_manifest_over_the_others(served):
    assert sorted(content(served)) == FILES
    assert sorted(manifest.read(served)["files"]) == [name for name in FILES if name != "manifest.json"]
    assert manifest.damage(served, manifest.read(served)) is None
    assert sorted(path.name for path in served.parent.iterdir()) == ["first"]


def test_a_fresh_process_with_plain_torch_reproduces_the_golden_rows(served):
    done = subprocess.run([sys.executable, "-c", SERVER], cwd=served, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_golden_rows_are_held_out_rows_with_their_gaps(served, small_run):
    golden = read(served / "golden.json")
    test = pq.read_table(small_run.parents[1] / "data/test").to_pylist()
    known = {(row["user"], row["rate"] and torch.tensor(row["rate"]).item(), len(row["history"][-6:])) for row in test}
    picked = zip(golden["ids"]["user"], golden["dense"]["rate"], golden["lengths"]["history"], strict=True)
    assert golden["rows"] == 32
    assert set(picked) <= known
    assert None in golden["dense"]["rate"]
    assert 0 in golden["lengths"]["movie"]
    assert 0 in golden["lengths"]["history"]


def test_the_file_alone_repeats_the_runs_test_metrics(served, small_run):
    table = pq.read_table(small_run.parents[1] / "data/test")
    lists = {k: table[k].to_pylist() for k in ("history", "rating")}  # longer than max_length, too
    lists |= {k: [[] if x is None else [x] for x in table[k].to_pylist()] for k in ("user", "movie")}
    ids = {k: torch.tensor([x for part in parts for x in part]) for k, parts in lists.items()}
    lengths = {k: torch.tensor([len(part) for part in parts]) for k, parts in lists.items()}
    rate = torch.tensor([math.nan if x is None else x for x in table["rate"].to_pylist()])
    scores = torch.jit.load(served / "model.pt")(ids, lengths, {"rate": rate})["click"]
    assert not scores.requires_grad
    found = metrics.auc(table["label"].to_numpy(), scores)
    assert found == pytest.approx(read(small_run / "result.json")["test.click.auc"], abs=1e-4)


def test_the_signature_says_what_a_caller_needs(served, small_run):
    signature, result = read(served / "signature.json"), read(small_run / "result.json")
    features = signature["features"]
    assert {name: feature["type"] for name, feature in features.items()} == {
        "user": "id",
        "movie": "id",
        "history": "sequence",
        "rating": "sequence",
        "rate": "dense",
    }
    assert features["history"]["max_length"] == 6
    assert features["history"]["table"] == features["movie"]["table"] == "movie"
    assert features["rate"]["mean"] == pytest.approx(3, abs=0.2)
    assert features["rate"]["std"] == pytest.approx(2, abs=0.2)
    assert signature["tables"]["movie"] == {"rows": 512, "dim": 8, "hash": "mix", "dtype": "float32"}
    assert "splitmix64" in signature["hashing"]
    assert signature["tasks"] == {"click": {"label": "label", "output": "probability"}}
    assert signature["training"]["rows"] == 2000
    assert signature["training"]["window"] == [5000, 6999]
    assert signature["checkpoint"]["step"] == result["best_step"]
    assert signature["metrics"]["valid.click.auc"] == result["valid.click.auc"]
    assert signature["metrics"]["test.click.log_loss"] == result["test.click.log_loss"]
    assert signature["parity"]["rows"] == 500
    assert signature["parity"]["largest_difference"] == 0
    assert signature["parity"]["click.auc"]["file"] == pytest.approx(result["test.click.auc"], abs=1e-4)
    assert {"python", "torch", "torchrec"} <= set(signature["versions"])


def test_the_last_checkpoint_comes_with_its_own_metrics(small_run, tmp_path):
    signature = export(small_run, "last", tmp_path / "out")
    result = read(small_run / "result.json")
    assert signature["checkpoint"]["step"] == result["step"]
    log = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    own = [
        line for line in log if line["kind"] == "eval" and line["split"] == "valid" and line["step"] == result["step"]
    ]
    assert signature["metrics"]["valid.click.auc"] == own[-1]["click.auc"]


def test_a_run_that_was_moved_exports_beside_itself(copied, served):
    run = copied()
    export(run)
    assert sorted(content(run / "export")) == FILES
    assert read(run / "export/golden.json") == read(served / "golden.json")


def test_the_recipe_says_how_many_rows_are_proved_and_kept(copied):
    run = copied("export.parity_rows=150", "export.golden_rows=200")
    assert export(run)["parity"]["rows"] == 150
    golden = read(run / "export/golden.json")
    assert golden["rows"] == len(golden["scores"]["click"]) == len(golden["lengths"]["user"]) == 200


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("dnn", DNN), ("lr", LR), ("bfloat16", {"train__precision": "bfloat16", "tables__movie__dtype": "float16"})],
)
def test_every_kind_of_model_exports(small_run, tmp_path, kind, changes):
    recipe = samples.recipe(small_run.parents[1] / "data", name=kind, train__epochs=1, **changes)
    launch.train(recipe, tmp_path)
    signature = export(tmp_path / kind)
    assert signature["parity"]["largest_difference"] == 0
    assert signature["parity"]["rows"] == 500
    golden = read(tmp_path / kind / "export/golden.json")
    scored = torch.jit.load(tmp_path / kind / "export/model.pt")
    assert scored(*exporter.golden_inputs(golden))["click"].tolist() == golden["scores"]["click"]
    parts = {name: value.dtype for name, value in scored.state_dict().items() if value.is_floating_point()}
    half = {name for name, dtype in parts.items() if dtype != torch.float32}
    assert all(name.startswith("lookups") for name in half)
    assert bool(half) == (kind == "bfloat16")


def broken(by: float) -> Callable:
    """A `script` whose file has slightly other weights than the model, as a mistake in scripting would give it."""
    script = exporter.script

    def breaks(model, recipe):
        off = copy.deepcopy(model)
        for weight in off.dense.network.parameters():
            weight.add_(by)
        return script(off, recipe)

    return breaks


@pytest.mark.parametrize("by", [1e-3, math.nan])
def test_a_file_that_scores_otherwise_never_appears(small_run, served, tmp_path, monkeypatch, by):
    earlier, new = tmp_path / "earlier", tmp_path / "new"
    shutil.copytree(served, earlier)
    before = content(earlier)
    monkeypatch.setattr(exporter, "script", broken(by))
    for out in (earlier, new):
        with pytest.raises(BadInput, match="on 500 held-out rows .* nothing was exported"):
            export(small_run, out=out)
    assert content(earlier) == before
    assert [path.name for path in tmp_path.iterdir()] == ["earlier"]


def test_a_new_export_replaces_an_earlier_one_as_a_whole(small_run, served, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(served, out)
    (out / "notes.txt").write_text("of the earlier one")
    step = export(small_run, "last", out)["checkpoint"]["step"]
    assert sorted(content(out)) == FILES
    assert read(out / "signature.json")["checkpoint"]["step"] == step
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_export_leaves_the_earlier_one(small_run, served, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(served, out)
    before = content(out)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        export(small_run, "last", out)
    assert content(out) == before


def test_a_place_that_holds_something_else_is_refused(small_run, tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.tex").write_text("kept")
    newest = checkpoint.committed(small_run)[-1]
    for out in (file, folder, newest, small_run):
        before = sorted(out.rglob("*"))
        with pytest.raises(BadInput, match=f"{out}: holds something that is not an export; name a new"):
            export(small_run, out=out)
        assert sorted(out.rglob("*")) == before
    with pytest.raises(BadInput, match=f"{file}: cannot write here .*; name another folder with --out"):
        export(small_run, out=file / "below")
    assert file.read_text() == "kept"


def test_a_link_to_an_export_stays_a_link(small_run, served, tmp_path):
    shutil.copytree(served, tmp_path / "versions/1")
    (tmp_path / "current").symlink_to("versions/1")
    step = export(small_run, "last", tmp_path / "current")["checkpoint"]["step"]
    assert (tmp_path / "current").is_symlink()
    assert read(tmp_path / "current/signature.json")["checkpoint"]["step"] == step


def _no_run(run: Path) -> None:
    (run / "config.yaml").unlink()


def _no_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def _no_best(run: Path) -> None:
    shutil.rmtree(checkpoint.folder(run, read(run / "result.json")["best_step"]))


def _never_evaluated(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        written = read(folder / "manifest.json")
        written["position"]["best_step"] = None
        manifest.write_json(folder / "manifest.json", written)


def _damaged(run: Path) -> None:
    for file in run.glob("checkpoints/*/*.distcp"):
        file.write_bytes(file.read_bytes()[:-1] + b"\0\1")


def _no_data(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("/data", "/gone"))


def _other_model(run: Path) -> None:
    recipe = load_recipe(run / "config.yaml", ["tables.movie.dim=16"])
    (run / "config.yaml").write_text(dump_recipe(recipe))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_no_run, "name a run folder"),
        (_no_checkpoint, "no committed checkpoint"),
        (_no_best, "use --checkpoint last"),
        (_never_evaluated, "use --checkpoint last"),
        (_damaged, "is damaged: .*; use another checkpoint"),
        (_no_data, "there is no folder .*gone/test"),
        (_other_model, "written with tables.movie.dim=8, but the recipe says 16"),
    ],
)
def test_a_run_that_cannot_be_exported_says_why_and_exports_nothing(copied, spoil, sentence):
    run = copied()
    spoil(run)
    with pytest.raises(BadInput, match=sentence):
        export(run)
    assert not [path.name for path in run.iterdir() if "export" in path.name]
