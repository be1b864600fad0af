"""The examples of extending, from a package outside the tree: each trains, is evaluated, exported, and scores alike."""

import csv
import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from livetrain.cluster import doctor, launch
from livetrain.configs.errors import BadInput
from livetrain.configs.json_schema import json_schema
from livetrain.configs.load import dump_recipe, load_recipe
from livetrain.modules.model import Model
from livetrain.trainers.export.export import export, plain_model
from livetrain.trainers.export.rows import golden_inputs
from livetrain.trainers.observe.report.contents import contents
from livetrain.trainers.runtime import ranks, run_folder
from livetrain.trainers.train import sharding
from livetrain.trainers.train.gradients.combination import Combination
from tests import samples, twins
from tests.trainers.train.test_sharding import compare, train_sharded

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = {"model": 40, "fitted": 40, "feature": 40, "task": 25, "optimizer": 15, "source": 60}


def _register() -> None:
    """Import the package; in a worker of a pool too."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    for name in LINES:
        importlib.import_module(f"my_package.{name}")


_register()

CHANGES = {
    "features__rate": {"type": "steps", "table": "rate", "edges": [0, 2, 3, 4, 6]},
    "tables__rate": {"rows": 7, "dim": 4, "hash": "modulo", "sharding": "row_wise"},
    "features__worth": {"type": "dense"},
    "model": {"kind": "gated", "width": 8},
    "tasks": {"click": {"label": "label", "kind": "poly", "epsilon": 1.5}},
    "optimizers__sparse__kind": "clipped_adagrad",
}


@pytest.mark.parametrize(("name", "most"), LINES.items())
def test_an_example_is_short(name, most):
    assert len((EXAMPLES / f"my_package/{name}.py").read_text(encoding="utf-8").splitlines()) <= most


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("extended")
    launch.train(samples.recipe(samples.write(folder / "data", rows=800), **CHANGES), folder / "runs")
    return folder / "runs/small"


def test_all_kinds_train_and_are_evaluated(run):
    result = json.loads((run / "result.json").read_text())
    assert set(result["plan"]) == {"user", "movie", "rating", "rate"}
    assert result["tables"]["rate"]["occupied"] > 3
    assert result["tables"]["rate"]["ids"] != 0
    figures = {key for key in result if key.startswith("test.click.")}
    assert figures >= {f"test.click.{m}" for m in ("auc", "gauc", "uauc", "log_loss", "ne", "pcoc", "list_ndcg_10")}
    assert result["test.click.auc"] > 0.55
    recipe = load_recipe(run / "config.yaml")
    assert recipe.select() == "click.auc"
    assert recipe.tasks["click"].epsilon == 1.5
    assert contents(run).bands[0].panels[1].title == "AUC"


def test_the_exported_file_scores_like_the_model(run):
    signature = export(run)
    assert signature["parity"]["rows"] == 200
    assert signature["features"]["rate"] == {
        "dtype": "float32",
        "missing": "NaN",
        "columns": ["rate"],
        "type": "steps",
        "table": "rate",
        "edges": [0.0, 2.0, 3.0, 4.0, 6.0],
    }
    assert list(signature["features"]["worth"])[-3:] == ["mean", "std", "columns"]
    golden = json.loads((run / "export/golden.json").read_text())
    inputs = golden_inputs(golden)
    assert any(math.isnan(x) for x in inputs[2]["rate"].tolist())
    scored = torch.jit.load(str(run / "export/model.pt"))
    np.testing.assert_allclose(scored(*inputs)["click"].tolist(), golden["scores"]["click"], atol=1e-6)
    other = dict(inputs[2], rate=inputs[2]["rate"] + 2.5)
    assert not torch.allclose(scored(inputs[0], inputs[1], other)["click"], scored(*inputs)["click"])


def test_the_feature_looks_its_step_up(run):
    """A number's score is the score of any other number on its step; a missing one has a step of its own."""
    recipe = load_recipe(run / "config.yaml")
    model = plain_model(recipe, run_folder.find_checkpoint(run, "best"))
    scores = []
    for rate in (2.0, 2.9, 3.0, math.nan):
        batch = twins.batches(recipe, 1)[0]
        batch.dense[:, 0] = rate
        scores.append(model(batch.ids, batch.dense, None)["click"])
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[1], scores[2])
    assert not torch.equal(scores[2], scores[3])


def test_what_a_transform_holds_lies_where_the_batch_does():
    model = Model(twins.recipe(**CHANGES), device="meta", tables_device="meta")
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
    assert not any("edges" in name for name in model.state_dict())


@pytest.mark.slow
def test_sharded_they_learn_what_plain_pytorch_learns(two_ranks):
    changes = CHANGES | {"tasks": {"click": {"label": "label"}}, "optimizers__sparse__kind": "rowwise_adagrad"}
    made_for = twins.recipe(**changes)
    found, other = two_ranks.run(train_sharded_there, made_for)
    compare(found, made_for, 2e-6)
    assert all(torch.equal(found["dense"][name], other["dense"][name]) for name in found["dense"])


def train_sharded_there(made_for):
    return train_sharded(made_for)  # of this module, so that a rank knows the package too


def test_the_task_begins_with_its_own_first_guess():
    made_for = twins.recipe(tasks={"a": CHANGES["tasks"]["click"], "b": {"label": "b"}}, gradients={"kind": "gradnorm"})
    model = Model(made_for)
    combination = Combination(made_for, model, list(model.dense.parameters()), [], torch.device("cpu"))
    assert combination.combiner.initial.tolist() == pytest.approx([math.log(2) + 0.75, math.log(2)])


def test_two_tasks_of_one_kind_keep_their_own_keys():
    tasks = {name: {"label": name, "kind": "poly", "epsilon": epsilon} for name, epsilon in (("a", 0.0), ("b", 3.0))}
    step = sharding.Step(Model(twins.recipe(tasks=tasks)), twins.recipe(tasks=tasks))
    logits = {"a": torch.zeros(48), "b": torch.zeros(48)}
    losses, _ = step.loss(logits, twins.batches(twins.recipe(tasks=tasks), 1)[0])
    assert losses.tolist() == pytest.approx([math.log(2), math.log(2) + 1.5])


def test_the_optimizer_clips_and_the_doctor_counts_its_state(tmp_path):
    made = samples.recipe(tmp_path, optimizers__sparse__kind="clipped_adagrad")
    plain = samples.recipe(tmp_path)
    plan = sharding.dry_plan(made, 2, "cpu")
    assert doctor.need(made, plan) == doctor.need(plain, plan)
    moved = {}
    for kind in ("clipped_adagrad", "rowwise_adagrad"):
        sparse = {"kind": kind, "eps": 1.0, "lr": 1.0}
        recipe = twins.recipe(optimizers__sparse=sparse, tasks={"click": {"label": "label", "weight": 100.0}})
        begun = Model(recipe).tables["dim8"].embeddings["user"].weight.detach()
        with ranks.alone(cuda=False):
            moved[kind] = float((train_sharded(recipe)["tables"]["user"] - begun).abs().max())
    assert 0 < moved["clipped_adagrad"] < moved["rowwise_adagrad"] / 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features__rate__edges": [3, 1]}, r"features.rate.edges: \[3.0, 1.0\] do not rise"),
        ({"features__rate__edge": 1}, r"unknown key features.rate.edge \(did you mean 'edges'\?\)"),
        ({"features__rate__type": "stepps"}, r"features.rate.type got 'stepps', wanted one of .*did you mean 'steps'"),
        ({"tasks__click__epsilo": 1}, r"unknown key tasks.click.epsilo \(did you mean 'epsilon'\?\)"),
        ({"tasks__click__kind": "polly"}, "tasks.click.kind got 'polly', wanted one of .*did you mean 'poly'"),
        ({"tasks__click__negatives_kept": 0.5}, "negatives_kept: a task of kind poly has no negatives"),
        ({"optimizers__sparse__kind": "clipped"}, "optimizers.sparse.kind got 'clipped', wanted one of"),
        ({"tables__user__sharding": "data_parallel"}, "as data_parallel, 'clipped_adagrad' would learn something else"),
        ({"tables__user__sharding": "column_wise"}, "'clipped_adagrad' would learn something else"),
        ({"model__user": "usr"}, r"model.user: there is no id feature 'usr' \(did you mean 'user'\?\)"),
    ],
)
def test_bad_recipes_are_told_as_ours_are(tmp_path, changes, said):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(samples.recipe("unused", **CHANGES)), encoding="utf-8")
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
    with pytest.raises(BadInput, match=said) as error:
        Model(load_recipe(recipe, overrides), device="meta", tables_device="meta")
    assert len(str(error.value).replace(str(tmp_path), "")) < 300


def test_the_json_schema_knows_them():
    definitions = json_schema()["$defs"]
    assert definitions["StepsFeature"]["properties"]["type"]["enum"] == ["steps"]
    assert definitions["PolyTask"]["properties"]["kind"]["enum"] == ["poly"]
    assert "clipped_adagrad" in definitions["SparseOptimizer"]["properties"]["kind"]["enum"]


def test_the_source_is_prepared_by_the_command(tmp_path):
    from livetrain.cli.data import app

    hour, rng = 3_600_000, np.random.default_rng(0)
    (tmp_path / "raw").mkdir()
    with (tmp_path / "raw/impressions.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["user", "product", "seller", "time", "price", "bought"])
        for n in range(60):
            product = int(rng.integers(1, 6))
            out.writerow([n % 4, product, product % 2, 1_748_131_200_000 + n * hour, 10 * product, int(n % 3 == 0)])
    arguments = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    ended = CliRunner().invoke(app, ["events", "shop", "--plugin", "my_package.source", *arguments])
    assert ended.exit_code == 0, ended.output
    found = pa.concat_tables(
        pq.read_table(p, partitioning=None) for p in sorted((tmp_path / "out").glob("date=*/*.parquet"))
    )
    assert len(found) == 60
    assert sum(found["bought"].to_pylist()) == 20
    assert max(map(len, found["seen_product"].to_pylist())) == 14
    wrong = CliRunner().invoke(app, ["events", "shp", "--plugin", "my_package.source", *arguments])
    assert isinstance(wrong.exception, BadInput)
    assert "no source is called 'shp' (did you mean 'shop'?)" in str(wrong.exception)
