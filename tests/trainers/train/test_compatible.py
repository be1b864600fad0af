"""What of a recipe may be otherwise when a checkpoint is loaded, or when a run goes on."""

import json
import re

import pytest

from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.trainers.runtime import manifest, run_folder
from livetrain.trainers.train import compatible


def test_a_checkpoint_from_before_a_key_existed_still_loads(small_run, tmp_path):
    """A later version adds keys with defaults; where rows lie is no part of the model."""
    path = run_folder.committed(small_run)[-1]
    content = manifest.read(path)
    for table in content["recipe"]["tables"].values():
        for key in ("memory", "cache", "dtype"):
            table.pop(key)
    del content["recipe"]["train"]["profile"]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    recipe = load_recipe(small_run / "config.yaml", ["tables.user.memory=host", "tables.movie.sharding=row_wise"])
    compatible.check_same(tmp_path, recipe, resume=True)


def test_a_checkpoint_of_other_days_is_no_place_to_go_on_from(small_run):
    days = {"train": "2025-05-25..2025-05-26", "valid": "2025-05-27..2025-05-27", "test": "2025-05-28..2025-05-28"}
    tree = ", ".join(f"{split}: {value}" for split, value in days.items())
    recipe = load_recipe(small_run / "config.yaml", [f"data.days={{{tree}}}"])
    path = run_folder.committed(small_run)[-1]
    compatible.check_same(path, recipe, resume=False)
    with pytest.raises(BadInput, match=r"written with data.days=None, but the recipe says"):
        compatible.check_same(path, recipe, resume=True)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.epochs=3", "train.epochs=2, but the recipe says 3"),
        ("train.seed=2", "train.seed=1"),
        ("train.evaluate_every=1", "train.evaluate_every=0.5"),
        ("train.select=click.log_loss", "train.select=click.auc, but the recipe says click.log_loss"),
        ("train.patience=3", "train.patience=None"),
        ("train.precision=bfloat16", "train.precision=float32"),
        ("train.warm_start=runs/other", "train.warm_start=None"),
        ("optimizers.dense.lr=0.02", "optimizers.dense.lr=0.01, but the recipe says 0.02"),
        ("optimizers.dense.weight_decay=0.1", "optimizers.dense.weight_decay"),
        ("optimizers.dense.clip_norm=1", "optimizers.dense.clip_norm"),
        ("optimizers.sparse.lr=0.02", "optimizers.sparse.lr=0.05"),
        ("optimizers.sparse.eps=0.1", "optimizers.sparse.eps"),
        ("optimizers.sparse.weight_decay=0.1", "optimizers.sparse.weight_decay"),
        ("optimizers.schedule.decay=linear", "optimizers.schedule.decay=constant, but the recipe says linear"),
        ("optimizers.schedule.warmup_steps=9", "optimizers.schedule.warmup_steps"),
        ("optimizers.schedule.final=0.5", "optimizers.schedule.final"),
        ("data.on_corrupt=skip", "data.on_corrupt=stop"),
        ("tables.movie.init_std=0.1", "tables.movie.init_std=0.01"),
        ("tasks.click.weight=2", "tasks.click.weight"),
        ("evaluate.group_by=null", "evaluate.group_by=user, but the recipe says None"),
        ("cluster.quantize_comms=fp16", "cluster.quantize_comms=none"),
    ],
)
def test_a_run_goes_on_under_the_values_it_began_with(small_run, override, key):
    path = run_folder.committed(small_run)[-1]
    recipe = load_recipe(small_run / "config.yaml", [override])
    with pytest.raises(BadInput, match=re.escape(key)) as error:
        compatible.check_same(path, recipe, resume=True)
    assert str(error.value).endswith("; use that recipe, or another run name")
    assert len(str(error.value).removeprefix(str(path))) < 250


def test_a_batch_that_was_said_per_worker_is_named_where_other_workers_go_on(small_run):
    """The run has one worker, and 96 rows in a step."""
    path = run_folder.committed(small_run)[-1]
    with pytest.raises(BadInput, match="data.batch_size=96, but the recipe says 192; give data.batch_size=96, which"):
        compatible.check_same(
            path,
            load_recipe(small_run / "config.yaml", ["data.batch_size_per_worker=96", "cluster.workers=2"]),
            resume=True,
        )
    changes = ["data.batch_size_per_worker=48", "cluster.workers=2"]
    compatible.check_same(path, load_recipe(small_run / "config.yaml", changes), resume=True)


@pytest.mark.parametrize(
    "override",
    [
        *("name=other", "data.threads=2", "data.prefetch=8", "train.keep=5", "train.log_every=7", "train.profile=3..4"),
        *("train.checkpoint_every=3", "train.select=click.auc", "gradients.measure_every=null", "export.quantize=int8"),
        *("cluster.workers=2", "cluster.max_failures=0", "cluster.timeout_s=9", "wandb={project: x}"),
        *("tables.user.sharding=table_wise", "tables.user.memory=host", "cluster.topology.hbm_gb=40"),
    ],
)
def test_a_run_goes_on_elsewhere_and_told_of_otherwise(small_run, override):
    recipe = load_recipe(small_run / "config.yaml", [override])
    compatible.check_same(run_folder.committed(small_run)[-1], recipe, resume=True)


def test_every_key_of_a_recipe_decides_what_is_learned_or_is_named_as_free(small_run):
    """A new key is compared until somebody says that it may change; a free one that is gone is noticed."""
    for key in compatible._FREE:
        section, _, name = key.partition(".")
        fields = Recipe.model_fields
        assert section in fields
        if name and section != "gradients":
            assert name in fields[section].annotation.model_fields


def test_a_long_value_is_cut(small_run):
    recipe = load_recipe(small_run / "config.yaml", [f"model.units={list(range(1000, 1060))}"])
    with pytest.raises(BadInput) as error:
        compatible.check_same(run_folder.committed(small_run)[-1], recipe, resume=True)
    assert "model.units=[16], but the recipe says [1000, 1001" in str(error.value)
    assert len(str(error.value).removeprefix(str(small_run))) < 250


@pytest.mark.parametrize("section", ["features", "tasks"])
@pytest.mark.parametrize("resume", [True, False])
def test_layers_lie_in_the_recipes_order(small_run, section, resume, tmp_path):
    """The same features or tasks in another order would be read into one another's layers."""
    content = manifest.read(run_folder.committed(small_run)[-1])
    again = {"label": "label", "kind": "binary"}
    content["recipe"]["tasks"] = {**content["recipe"]["tasks"], "again": again}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    recipe = Recipe.model_validate(content["recipe"])
    compatible.check_same(tmp_path, recipe, resume=resume)
    other = dict(reversed(getattr(recipe, section).items()))
    turned = recipe.model_copy(update={section: other})
    with pytest.raises(BadInput, match=f"layers lie in the order of its {section}, .* and the recipe has another; put"):
        compatible.check_same(tmp_path, turned, resume=resume)
