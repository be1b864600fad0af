"""The public API as a Python file uses it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import livetrain
from livetrain.configs.errors import BadInput
from tests import outside

ROOT = Path(livetrain.__file__).parent


def test_everything_public_is_there_and_listed():
    assert set(livetrain.__all__) <= set(dir(livetrain))
    for name in livetrain.__all__:
        assert getattr(livetrain, name) is not None
        assert name == "__version__" or getattr(livetrain, name).__doc__
    with pytest.raises(AttributeError, match="module 'livetrain' has no attribute 'trian'"):
        _ = livetrain.trian


def test_type_checkers_see_what_is_imported():
    """The lazy table and the imports that only type checkers read name the same places."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == livetrain._PLACES
    assert sorted(livetrain.__all__) == sorted({*seen, "__version__"})


def test_a_recipe_may_be_a_file_its_content_or_a_recipe(home):
    file = livetrain.load_recipe("small.yaml", train={"epochs": 7})
    content = livetrain.load_recipe(file.model_dump(mode="json"))
    assert file == content == livetrain.load_recipe(file)
    assert (file.train.epochs, file.train.log_every) == (7, 1)  # the section's other keys stay
    assert livetrain.load_recipe(file, **{"train.epochs": 3}, name="x").model_dump() == (
        livetrain.load_recipe(file, train={"epochs": 3}, name="x").model_dump()
    )
    with pytest.raises(BadInput, match=r"override 'train=\{'epoch': 3\}': unknown key train.epoch \(did you mean"):
        livetrain.load_recipe(file, train={"epoch": 3})
    with pytest.raises(BadInput, match="recipe: model.kind is missing"):
        livetrain.load_recipe({**file.model_dump(mode="json"), "model": {}})
    with pytest.raises(BadInput, match="override 'tables.movies.dim=8': the recipe has no table 'movies'"):
        livetrain.load_recipe(file, **{"tables.movies.dim": 8})


def test_a_recipes_kind_can_be_changed_though_its_keys_were_given():
    recipe = livetrain.load_recipe(
        ROOT / "configs/recipes/mmoe_simulated.yaml", gradients={"kind": "pcgrad"}, train={"epochs": 1}
    )
    assert livetrain.load_recipe(recipe, gradients={"kind": "gradnorm"}).gradients.kind == "gradnorm"


def test_a_based_recipe_may_be_given_as_content(home):
    recipe = livetrain.load_recipe({"base": "small.yaml", "name": "other", "train": {"epochs": 1}})
    assert (recipe.name, recipe.train.epochs, recipe.train.log_every) == ("other", 1, 1)
    with pytest.raises(BadInput, match="recipe: base: there is no recipe file no.yaml"):
        livetrain.load_recipe({"base": "no.yaml"})


def test_a_run_is_what_its_folder_holds(home):
    run = livetrain.Run("runs/small")
    lines = [json.loads(line) for line in (home / "runs/small/metrics.jsonl").read_text().splitlines()]
    assert len(run.metrics()) == len(lines)
    train = run.metrics("train")
    assert train["step"].tolist() == [line["step"] for line in lines if line["kind"] == "train"]
    assert "click.auc" not in train
    assert run.result == json.loads((home / "runs/small/result.json").read_text())
    assert run.report.read_bytes()[:4] == b"\x89PNG"
    assert repr(run) == "Run('runs/small')"
    model = run.model()
    assert not model.training
    assert not any(part.requires_grad for part in model.parameters())
    assert {part.dtype for part in model.dense.parameters()} == {torch.float32}


def test_what_is_no_run_or_not_finished_is_told(home):
    with pytest.raises(BadInput, match=r"runs/smal: this folder holds no run .*did you mean 'runs/small'"):
        livetrain.Run("runs/smal")
    result = home / "runs/small/result.json"
    for left in ("", '{"name": "sma'):
        result.unlink(missing_ok=True)  # the file is shared with other tests
        if left:
            result.write_text(left)
        with pytest.raises(BadInput, match="runs/small: this run has not finished"):
            _ = livetrain.Run("runs/small").result


CELLS = """
from pathlib import Path

recipe = livetrain.load_recipe("small.yaml", name="cell", train={"epochs": 1}).model_dump(mode="json")
recipe = livetrain.load_recipe({**recipe, "model": {"kind": "of_a_cell"}})
assert recipe.plugins == []
for asked in ("train", "tune"):
    try:
        if asked == "train":
            livetrain.train(recipe, cluster={"workers": 2})
        else:
            livetrain.tune(recipe, {"train.epochs": {"choice": [1, 2]}}, "sweep")
    except ValueError as error:
        print(asked, error)
print(Path("runs/cell").exists(), Path("sweep").exists())
run = livetrain.train(recipe)
run.export()
print(run.evaluate()["test.click.auc"] == run.result["test.click.auc"])
"""


@pytest.mark.slow
def test_a_class_of_a_cell_trains_in_its_process_and_nowhere_else(home):
    """A script's `__main__`, as a notebook's: `workers: 0` trains, scores and exports it."""
    model = outside.MODEL.format(package="sizes", kind="of_a_cell", name="OfACell")
    (home / "sizes").mkdir()
    (home / "sizes/sizes.py").write_text("START = 0.0")
    (home / "cells.py").write_text(model + CELLS)
    done = subprocess.run([sys.executable, "cells.py"], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train, tune, left, *_, same = done.stdout.splitlines()
    assert train.startswith(
        "train model: OfACellConfig is defined in a notebook cell, a script or a function, where no"
    )
    assert tune.startswith("tune model: OfACellConfig is defined in a notebook cell")
    assert train.endswith("name that under plugins; only training with cluster.workers=0 does without")
    assert len(train) < 300
    assert (left, same) == ("False False", "True")
