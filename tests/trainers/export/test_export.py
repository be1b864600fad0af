import copy
import errno
import json
import math
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe, load_recipe
from livetrain.modules.layers.attention import ActivationUnit
from livetrain.modules.metrics import binary
from livetrain.modules.serving import quantized
from livetrain.modules.serving.loading import load
from livetrain.modules.tables.mapped import Files, opened
from livetrain.trainers.export import export as exporter
from livetrain.trainers.export import prediction
from livetrain.trainers.export import rows as row_source
from livetrain.trainers.export.export import export
from livetrain.trainers.export.publish import publish
from livetrain.trainers.export.rows import golden_inputs, synthetic_rows
from livetrain.trainers.runtime import manifest, ranks, run_folder, runlog
from livetrain.trainers.train import checkpoint, memory, writing
from livetrain.trainers.train.sharding import shard
from tests import samples
from tests.anonymous import Anonymous
from tests.cases import often

FILES = ["golden.json", "manifest.json", "model.pt", "signature.json"]
DNN = {"model": {"kind": "dnn", "units": [16]}}
SCORE = Path(__file__).parents[3] / "examples/score.cpp"
GATED = ("mmoe", "cgc", "ple")
LR = {"model": {"kind": "lr"}, "features": {"rate": {"type": "dense"}}, "tables": {}}

SERVER = """
import json, math, sys
import torch

golden = json.load(open("golden.json"))
ids = {name: torch.tensor(values, dtype=torch.int64) for name, values in golden["ids"].items()}
lengths = {name: torch.tensor(values) for name, values in golden["lengths"].items()}
dense = {n: torch.tensor([math.nan if x is None else x for x in values]) for n, values in golden["dense"].items()}
model = torch.jit.load("model.pt")
scores = model(ids, lengths, dense)
first = {name: values[: lengths[name][0]] for name, values in ids.items() if name != "movie"}
one = {name: torch.tensor([values.numel()]) for name, values in first.items()}
movies = {"movie": torch.arange(500)}
assert model.rank({**first, **movies}, one, {n: x[:1] for n, x in dense.items()})["click"].shape == (500,)
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


def test_golden_rows_are_drawn_from_what_the_signature_declares(served, small_run, monkeypatch):
    golden, signature = read(served / "golden.json"), read(served / "signature.json")
    monkeypatch.setattr(row_source, "_held_out", None)  # no row of the data is read for them
    assert golden["source"] == "synthetic"
    assert golden | synthetic_rows(run_folder.recipe_of(small_run), signature, 32) == golden
    known = pq.read_table(small_run.parents[1] / "data/test").to_pydict()
    assert not {x for x in golden["dense"]["rate"] if x is not None} & {np.float32(x) for x in known["rate"] if x}
    assert not {x for part in ("movie", "history") for x in golden["ids"][part]} & {
        *known["movie"],
        *sum(known["history"], []),
    }
    for name, feature in signature["features"].items():
        if feature["type"] == "dense":
            assert golden["dense"][name][0] is not None
            assert golden["dense"][name][1] is None
            continue
        most = feature.get("max_length", 0) + 1
        assert golden["lengths"][name][:2] == [most, 0]
        assert {0, 1} <= set(golden["lengths"][name]) <= set(range(most + 1))
        assert 0 <= min(golden["ids"][name]) <= max(golden["ids"][name]) < signature["tables"][feature["table"]]["rows"]
    assert golden["lengths"]["history"] == golden["lengths"]["rating"]  # of one history
    assert len(set(golden["scores"]["click"])) > 20


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_few_golden_rows_are_enough(served, small_run, rows):
    signature = read(served / "signature.json")
    scores = torch.jit.load(served / "model.pt")(
        *golden_inputs(synthetic_rows(run_folder.recipe_of(small_run), signature, rows))
    )
    assert scores["click"].shape == (rows,)
    assert scores["click"].isfinite().all()


def test_sequences_of_several_lengths_are_cut_together_or_not_at_all():
    lengths = {"features__history__max_length": 4, "features__rating__max_length": 9}
    drawn = synthetic_rows(samples.recipe("unused", **lengths), {"features": {"rate": {"mean": 0.0, "std": 1.0}}}, 50)
    assert drawn["lengths"]["history"] == drawn["lengths"]["rating"]
    assert max(drawn["lengths"]["history"]) == 4


def test_golden_rows_are_held_out_rows_with_their_gaps_where_the_recipe_asks_for_them(copied, small_run):
    run = copied("export.golden=rows")
    export(run)
    golden = read(run / "export/golden.json")
    assert golden["source"] == "rows"
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
    found = binary.auc(table["label"].to_numpy(), scores)
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
    assert signature["quantize"] == "none"
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


def test_a_run_that_was_moved_exports_beside_itself(copied, served, small_run, tmp_path):
    """Also where the training split is gone: what the signature says of it is in the checkpoint."""
    shutil.copytree(small_run.parents[1] / "data/test", tmp_path / "held out/test")
    run = copied(f"data.path={tmp_path / 'held out'}")
    assert export(run)["training"] == read(served / "signature.json")["training"]
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
@pytest.mark.some(2)
def test_every_kind_of_model_exports(small_run, tmp_path, kind, changes):
    recipe = samples.recipe(small_run.parents[1] / "data", name=kind, train__epochs=1, **changes)
    launch.train(recipe, tmp_path)
    signature = export(tmp_path / kind)
    assert signature["parity"]["largest_difference"] == 0
    assert signature["parity"]["rows"] == 500
    golden = read(tmp_path / kind / "export/golden.json")
    scored = torch.jit.load(tmp_path / kind / "export/model.pt")
    assert scored(*golden_inputs(golden))["click"].tolist() == golden["scores"]["click"]
    parts = {name: value.dtype for name, value in scored.state_dict().items() if value.is_floating_point()}
    half = {name for name, dtype in parts.items() if dtype != torch.float32}
    assert all(name.startswith("lookups") for name in half)
    assert bool(half) == (kind == "bfloat16")


@pytest.mark.parametrize(
    "model",
    [
        pytest.param({"kind": "shared_bottom"}, marks=pytest.mark.slow),
        pytest.param({"kind": "esmm", "chains": [["click", "like"]]}, marks=pytest.mark.slow),
        {"kind": "mmoe"},
        pytest.param({"kind": "cgc"}, marks=pytest.mark.slow),
        pytest.param({"kind": "ple", "own": 2}, marks=pytest.mark.slow),
    ],
    ids=lambda model: model["kind"],
)
@pytest.mark.slow
def test_multi_task_models_export_all_tasks_in_one_call(small_run, tmp_path, model):
    tasks, kind = samples.MULTI_TASK["tasks"], model["kind"]
    model = {**samples.MULTI_TASK["model"], **model}
    recipe = samples.recipe(
        small_run.parents[1] / "data", name=kind, model=model, tasks=tasks, train__epochs=1, train__evaluate_every=1
    )
    result = launch.train(recipe, tmp_path)
    exact = export(tmp_path / kind)
    assert exact["parity"]["largest_difference"] < 1e-6
    assert exact["parity"]["largest_difference_of_rank"] < 1e-5
    assert {name: task["output"].split(",")[0] for name, task in exact["tasks"].items()} == {
        "click": "probability",
        "like": "probability",
        "watch": "expected value",
        "gift": "typical value",
    }
    golden = read(tmp_path / kind / "export/golden.json")
    scored = torch.jit.load(tmp_path / kind / "export/model.pt")
    scores = scored(*golden_inputs(golden))
    assert {task: score.tolist() for task, score in scores.items()} == golden["scores"]
    assert list(scores) == list(tasks)
    if kind == "esmm":
        assert bool((scores["like"] < scores["click"]).all())
    trained = [line for line in runlog.read(tmp_path / kind) if line["kind"] == "train"]
    assert all(all(f"{task}.loss" in line for task in tasks) for line in trained)
    assert all((f"gate.{'level1.' * (kind == 'ple')}gift.entropy" in line) == (kind in GATED) for line in trained)
    for task, metric in {"click": "auc", "like": "auc", "watch": "xauc", "gift": "xauc"}.items():
        both = exact["parity"][f"{task}.{metric}"]
        assert both["model"] == both["file"] == pytest.approx(result[f"test.{task}.{metric}"], abs=1e-9)
        assert 0 < both["file"] < 1
    assert result["test.watch.rmse"] > result["test.watch.mae"] > 0
    for quantize in ("float16", "int8"):
        stored = export(tmp_path / kind, out=tmp_path / quantize, quantize=quantize)
        assert 0 < stored["parity"]["largest_difference"] < 1e-2


def broken(by: float) -> Callable:
    """`parts` whose file has slightly other weights than the model, as a mistake in scripting would give it."""
    parts = exporter.parts

    def breaks(model, recipe, tables, fused):
        off = copy.deepcopy(model)
        for weight in off.dense.network.parameters():
            weight.add_(by)
        return parts(off, recipe, tables, fused)

    return breaks


@pytest.mark.parametrize("by", [1e-3, math.nan])
def test_a_file_that_scores_otherwise_never_appears(small_run, served, tmp_path, monkeypatch, by):
    earlier, new = tmp_path / "earlier", tmp_path / "new"
    shutil.copytree(served, earlier)
    before = content(earlier)
    monkeypatch.setattr(exporter, "parts", broken(by))
    for out in (earlier, new):
        mend = "another checkpoint" if math.isnan(by) else "raise export.tolerance in the run's config.yaml$"
        with pytest.raises(BadInput, match=f"on 500 held-out rows .* nothing was exported: .*{mend}"):
            export(small_run, out=out)
    assert content(earlier) == before
    assert [path.name for path in tmp_path.iterdir()] == ["earlier"]


@pytest.mark.slow
def test_two_exports_at_once_do_not_meet(small_run, served, tmp_path, monkeypatch):
    """The second begins and ends while the first is at work."""
    out, proved, inside = tmp_path / "out", exporter.prove, []

    def both(*arguments: Any) -> Any:
        if not inside:
            inside.append(True)
            export(small_run, out=out)
            assert content(out)["model.pt"] == content(served)["model.pt"]
        return proved(*arguments)

    monkeypatch.setattr(exporter, "prove", both)
    export(small_run, out=out)
    assert manifest.damage(out, manifest.read(out)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_export_left_goes(small_run, tmp_path):
    draft = tmp_path / f".out.{platform.node()}-{2**22 + 1}-0123abcd.scratch"
    (draft / "out").mkdir(parents=True)
    (draft / "out/model.pt").write_text("half")
    export(small_run, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("quantize", [pytest.param("float16", marks=pytest.mark.slow), "int8"])
@pytest.mark.slow
def test_quantised_tables_are_proved_within_their_own_tolerance(copied, served, quantize):
    run = copied("export.tolerance=1e-6", f"export.quantize={quantize}")
    signature = export(run)
    assert signature["quantize"] == quantize
    assert 1e-6 < signature["parity"]["largest_difference"] < {"float16": 1e-3, "int8": 1e-2}[quantize]
    assert signature["parity"]["largest_difference_of_rank"] < 1e-6
    auc = signature["parity"]["click.auc"]
    assert auc["model"] == read(served / "signature.json")["parity"]["click.auc"]["model"]
    assert auc["file"] == pytest.approx(auc["model"], abs=5e-3)
    size = signature["sizes"]
    assert size["tables"] == {"float16": 2 * (612 * 8 + 6 * 4), "int8": 612 * 16 + 6 * 12}[quantize]
    assert size["float32"]["tables"] == 4 * (612 * 8 + 6 * 4)
    assert size["float32"]["file"] == pytest.approx((served / "model.pt").stat().st_size, rel=0.02)
    assert size["file"] == (run / "export/model.pt").stat().st_size
    golden = read(run / "export/golden.json")
    assert golden["ids"] == read(served / "golden.json")["ids"]
    assert golden["scores"] != read(served / "golden.json")["scores"]
    done = subprocess.run([sys.executable, "-c", SERVER], cwd=run / "export", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("quantize", often({name: name for name in ("none", "float16", "int8")}, ("none",)))
@pytest.mark.slow
def test_tables_in_files_of_their_own_give_the_scores_of_those_inside(copied, small_run, tmp_path, quantize):
    run = copied("export.tables=mapped")
    signature = export(run, quantize=quantize)
    export(small_run, out=tmp_path / "inside", quantize=quantize)
    mapped = run / "export"
    endings = {"int8": (".affine", ".steps")}.get(quantize, ("",))
    files = sorted(f"{table}{ending}.table" for table in ("movie", "rating", "user") for ending in endings)
    assert sorted(about["file"] for about in signature["stored"].values()) == files
    assert sorted(content(mapped)) == sorted([*FILES, *files])
    assert manifest.damage(mapped, manifest.read(mapped)) is None
    assert not list(mapped.parent.glob(".*.scratch"))
    inside = read(tmp_path / "inside/golden.json")
    assert read(mapped / "golden.json") == inside  # to the last bit
    assert (
        torch.jit.load(mapped / "model.pt")
        .state_dict()["lookups.0.table.weight" if quantize != "int8" else "lookups.0.table.steps"]
        .numel()
        == 0
    )
    assert signature["sizes"]["tables"] == sum((mapped / name).stat().st_size for name in files)
    assert signature["sizes"]["tables"] == read(tmp_path / "inside/signature.json")["sizes"]["tables"]
    assert signature["parity"] == read(tmp_path / "inside/signature.json")["parity"]
    ours, theirs = (
        {task: score.tolist() for task, score in load(folder)(*golden_inputs(inside)).items()}
        for folder in (mapped, tmp_path / "inside")
    )
    assert ours == theirs == inside["scores"]


def test_a_plain_program_maps_the_tables(copied, capsys, monkeypatch):
    run = copied("export.tables=mapped")
    export(run)
    monkeypatch.setattr(sys, "argv", ["score.py", str(run / "export")])
    runpy.run_path(str(SCORE.with_suffix(".py")))
    found, recorded = re.fullmatch(r"click (\[.*\]) recorded: (\[.*\])\n", capsys.readouterr().out).groups()
    assert found == recorded
    scored = torch.jit.load(run / "export/model.pt")
    inputs = golden_inputs(read(run / "export/golden.json"))
    with pytest.raises(Exception, match="lies in a file of its own; map it and attach it before scoring"):
        scored(*inputs)
    tables = opened(run / "export", read(run / "export/signature.json")["stored"])
    with pytest.raises(Exception, match="tables: 'movie' is missing"):
        scored.attach({name: table for name, table in tables.items() if name != "movie"})
    with pytest.raises(Exception, match=r"tables: 'user' is another table: \[3, 8\]"):
        scored.attach(tables | {"user": tables["user"][:3]})


def test_mapped_tables_are_published_and_predict(copied, tmp_path):
    run = copied("export.tables=mapped")
    export(run)
    served = publish(run / "export", str(tmp_path / "served"), "1", keep=1)
    golden = read(run / "export/golden.json")
    scores = load(tmp_path / "served" / served["folder"])(*golden_inputs(golden))
    assert {task: score.tolist() for task, score in scores.items()} == golden["scores"]
    rows = pq.read_table(next((Path(run_folder.recipe_of(run).data.path) / "test").glob("*.parquet"))).slice(0, 50)
    by_file, by_checkpoint = (
        prediction.Predictor(prediction.weights_of(run, source)).predict(rows) for source in (run / "export", "best")
    )
    np.testing.assert_allclose(by_file["click_score"], by_checkpoint["click_score"], rtol=1e-6)


def test_a_checkpoints_tables_lie_in_files_without_names_where_they_are_large(small_run, tmp_path, monkeypatch):
    recipe, path = run_folder.recipe_of(small_run), run_folder.find_checkpoint(small_run, "best")
    wanted = exporter.plain_model(recipe, path).state_dict()
    monkeypatch.setattr(exporter, "MAPPED", 0)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    asked, room = [], Files.room
    monkeypatch.setattr(Files, "room", lambda *given: asked.append(given[1]) or room(*given))
    found = exporter.plain_model(recipe, path).state_dict()
    assert sorted(asked) == sorted(recipe.tables)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not list(tmp_path.iterdir())


def test_tables_are_mapped_above_a_size(small_run):
    recipe = run_folder.recipe_of(small_run)
    large = recipe.model_copy(update={"tables": {"user": recipe.tables["user"].model_copy(update={"rows": 2**28})}})
    assert [exporter._mapped(large, quantize) for quantize in ("none", "float16", "int8")] == [True, False, False]
    inside = large.model_copy(update={"export": recipe.export.model_copy(update={"tables": "inside"})})
    assert not exporter._mapped(recipe, "none")
    assert not exporter._mapped(inside, "none")


def test_a_file_too_large_to_be_proved_here_is_refused(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    with pytest.raises(
        BadInput, match=r"takes at least \S+ MiB of memory, .* set export.tables: mapped, or export it on"
    ):
        export(small_run, out=tmp_path / "out")


@pytest.fixture
def wide(copied) -> Path:
    """A run whose table of users takes 96 MiB."""
    run = copied("tables.user.rows=3145728", "export.tables=mapped")
    recipe = run_folder.recipe_of(run)
    before = manifest.read(run_folder.find_checkpoint(run, "best"))
    with ranks.alone(cuda=False):
        sharded = shard(recipe, torch.device("cpu"))
        about = {key: value for key, value in before.items() if key != "files"}
        with mock.patch.object(writing, "BLOCK", 1 << 22):
            checkpoint.write(checkpoint.state(sharded), run, about | {"recipe": recipe.model_dump(mode="json")}, None)
    return run


@pytest.mark.parametrize("quantize", ["int8", pytest.param("none", marks=pytest.mark.slow)])
def test_an_export_takes_a_block_of_memory_not_a_table(wide, served, quantize, monkeypatch):
    """96 MiB of rows within 32 MiB: two blocks of 4 MiB, the dense part, and what PyTorch takes to script and score."""
    monkeypatch.setattr(quantized, "_BLOCK", 1 << 22)
    with Anonymous() as taken:
        export(wide, quantize=quantize)
    assert taken.most < 32 << 20
    with Anonymous() as taken:
        held = torch.ones(24 << 20)  # the measure sees what is there
    assert taken.most > held.nbytes * 0.9


def test_quantisation_on_the_command_line_beats_the_recipes(copied, served):
    run = copied("export.quantize=int8")
    assert export(run, quantize="none")["quantize"] == "none"
    assert read(run / "export/golden.json") == read(served / "golden.json")


def test_tables_that_lose_too_much_are_not_exported(copied):
    run = copied("export.tolerance_int8=1e-6")
    mend = "raise export.tolerance_int8 in the run's config.yaml, or leave the tables as they are: --quantize none"
    with pytest.raises(BadInput, match=rf"more than export.tolerance_int8=1e-06; nothing was exported: {mend}$"):
        export(run, quantize="int8")
    assert not (run / "export").exists()
    assert export(run, quantize="float16")["quantize"] == "float16"
    (run / "config.yaml").write_text(dump_recipe(load_recipe(run / "config.yaml", ["export.tolerance_int8=0.1"])))
    assert export(run, quantize="int8")["quantize"] == "int8"


def test_a_disk_without_space_is_told_before_torch_writes(copied, monkeypatch):
    """Which would end the process."""
    run, reserve = copied(), os.posix_fallocate

    def full(handle: int, start: int, size: int) -> None:
        if size > 1 << 20:  # the file itself; tables beside it are smaller here
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(handle, start, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BadInput, match=r"there is no space for model.pt of .* \(No space left on device\); make some"):
        export(run)
    assert not [path for path in run.iterdir() if "export" in path.name or "tables" in path.name]


def test_a_file_that_ranks_otherwise_than_it_scores_never_appears(small_run, tmp_path, monkeypatch):
    shared = ActivationUnit.shared
    monkeypatch.setattr(ActivationUnit, "shared", lambda self, *inputs: shared(self, *inputs) + 0.1)

    def unscripted(scorer):
        scorer.save = lambda path: Path(path).write_bytes(b"")
        monkeypatch.setattr(torch.jit, "load", lambda _: scorer)
        return scorer

    monkeypatch.setattr(torch.jit, "script", unscripted)
    with pytest.raises(BadInput, match="the file's rank differs from its forward by .*; nothing was exported"):
        export(small_run, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_lines_say_how_close_and_how_large(served):
    first, auc, tables, file = exporter.lines(read(served / "signature.json"))
    assert first == "on 500 held-out rows the file's scores are exactly the model's"
    assert auc.startswith("click AUC on them: file 0.")
    assert tables == "tables: 0.02 MB, with float32 tables 0.02 MB"
    assert file.startswith("file: 0.")
    off = read(served / "signature.json") | {"parity": {"rows": 4096, "largest_difference": 2.4e-3}}
    assert exporter.lines(off)[0] == "on 4,096 held-out rows the file's scores differ from the model's by up to 2.4e-03"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """examples/score.cpp, compiled as docs/guide/scoring.md says."""
    if not shutil.which("g++"):
        pytest.skip("there is no g++")
    torch_folder, out = Path(torch.__file__).parent, tmp_path_factory.mktemp("cpp") / "score"
    includes = [f"-I{torch_folder / 'include' / part}" for part in (".", "torch/csrc/api/include")]
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch_folder / 'lib'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = ["g++", "-std=c++20", "-O0", abi, *includes, str(SCORE), "-o", str(out), *libraries]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("tables", ["inside", "mapped"])
@pytest.mark.parametrize("quantize", ["none", "float16", "int8"])
def test_a_cpp_program_reproduces_the_golden_rows(program, copied, tmp_path, quantize, tables):
    export(copied(f"export.tables={tables}"), out=tmp_path / "out", quantize=quantize)
    golden = read(tmp_path / "out/golden.json")
    assert None in golden["dense"]["rate"]

    def scored(folder: Path) -> subprocess.CompletedProcess:
        return subprocess.run([str(program), str(folder)], capture_output=True, text=True)

    def with_golden(content: str) -> subprocess.CompletedProcess:
        (tmp_path / "out/golden.json").write_text(content)
        return scored(tmp_path / "out")

    done = scored(tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, "click: 32 rows, 0 scores differ\n"), done.stderr
    golden["scores"]["click"][3] += 1e-6
    done = with_golden(json.dumps(golden, indent=1))
    assert (done.returncode, done.stdout) == (1, "click: 32 rows, 1 scores differ\n"), done.stderr
    without_ids = {part: column for part, column in golden.items() if part != "ids"}
    without_user = golden | {"ids": {name: ids for name, ids in golden["ids"].items() if name != "user"}}
    for content, complaint in [
        (json.dumps(without_ids), "golden.json has no 'ids'; export the run again\n"),
        (json.dumps(golden)[:200], "golden.json is no JSON at byte 200; export the run again\n"),
        (json.dumps(without_user), "user"),
    ]:
        done = with_golden(content)
        assert done.returncode == 2
        assert complaint in done.stderr
    missing = tmp_path / "out/model.pt"
    missing.unlink()
    done = scored(tmp_path / "out")
    assert (done.returncode, done.stderr.startswith(f"{missing} is missing; give the folder that")) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("tables", ["inside", "mapped"])
def test_a_cpp_program_looks_ids_up(program, small_run, tmp_path, tables):
    """Where tables are mapped, so are the keys of their ids, int64."""
    own = [f"tables.{name}={{rows: {rows}, dim: 8, hash: table}}" for name, rows in (("user", 60), ("movie", 400))]
    made_for = load_recipe(small_run / "config.yaml", [*own, "name=ids", f"export.tables={tables}"])
    launch.train(made_for, tmp_path)
    told = export(tmp_path / "ids", out=tmp_path / "out")
    if tables == "mapped":
        assert told["stored"]["user.keys"]["dtype"] == "int64"
    done = subprocess.run([str(program), str(tmp_path / "out")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "click: 32 rows, 0 scores differ\n"), done.stderr
    if tables == "mapped":  # other keys are other scores
        file = tmp_path / "out" / told["stored"]["user.keys"]["file"]
        file.write_bytes(bytes(file.stat().st_size))
        done = subprocess.run([str(program), str(tmp_path / "out")], capture_output=True, text=True)
        assert done.returncode == 1


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
    newest = run_folder.committed(small_run)[-1]
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
    shutil.rmtree(run_folder.checkpoint(run, read(run / "result.json")["best_step"]))


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
        (_no_run, "this folder holds no run"),
        (_no_checkpoint, "no committed checkpoint"),
        (_no_best, "use --checkpoint last"),
        (_never_evaluated, "use --checkpoint last"),
        (_damaged, "is damaged: .*; put it back from a copy, or use another"),
        (_no_data, "config.yaml: data.path: there is no folder .*gone/test"),
        (_other_model, "written with tables.movie.dim=8, but the recipe says 16"),
    ],
)
def test_a_run_that_cannot_be_exported_says_why_and_exports_nothing(copied, spoil, sentence):
    run = copied()
    spoil(run)
    with pytest.raises(BadInput, match=sentence):
        export(run)
    assert not [path.name for path in run.iterdir() if "export" in path.name]
