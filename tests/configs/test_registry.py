"""The kinds that a recipe names: which class a name stands for, and which modules a recipe's kinds come from."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.configs.registry import MODELS, OPTIMIZERS, TASKS, check_shared
from livetrain.modules.optimizers import RowwiseAdagrad, register_optimizer
from livetrain.modules.tasks.binary import Binary
from livetrain.modules.tasks.registry import register_task
from tests import outside

OWNERS = """
from livetrain.modules.optimizers import RowwiseAdagrad, register_optimizer
from livetrain.modules.tasks.binary import Binary
from livetrain.modules.tasks.registry import register_task


@register_optimizer("of_mine_adagrad")
class Adagrad(RowwiseAdagrad):
    pass


@register_task("of_mine_binary")
class Task(Binary):
    pass
"""


@pytest.fixture
def package(tmp_path, monkeypatch) -> Iterator[Path]:
    """A package `of_mine`, where Python finds it; its `owners` are of sections that are livetrain's own."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    package = outside.write(tmp_path, "of_mine")
    (package / "owners.py").write_text(OWNERS)
    yield package
    outside.forget("of_mine")


def recipe(**more: Any) -> dict[str, Any]:
    return {
        "data": {"path": "data"},
        "features": {"user": {"type": "id", "table": "user"}},
        "tables": {"user": {"rows": 8, "dim": 4}},
        "model": {"kind": "lr"},
        "tasks": {"click": {"label": "label"}},
    } | more


def test_a_class_that_is_defined_again_takes_the_place_of_its_former_self(package):
    load_recipe(recipe(model={"kind": "of_mine"}, plugins=["of_mine.models"]))
    del sys.modules["of_mine.models"]
    __import__("of_mine.models")
    assert MODELS.configs()["of_mine"] is sys.modules["of_mine.models"].OfMineConfig


def test_two_models_of_one_name_are_refused(package):
    outside.write(package.parent, "of_theirs", kind="of_mine")
    load_recipe(recipe(model={"kind": "of_mine"}, plugins=["of_mine.models"]))
    with pytest.raises(BadInput, match="ValueError: two models call themselves 'of_mine'"):
        load_recipe(recipe(model={"kind": "of_mine"}, plugins=["of_mine.models", "of_theirs.models"]))
    outside.forget("of_theirs")


@pytest.mark.parametrize(
    "part",
    [
        {"optimizers": {"sparse": {"kind": "of_mine_adagrad"}}},
        {"tasks": {"click": {"label": "label", "kind": "of_mine_binary"}}},
    ],
    ids=lambda part: next(iter(part)),
)
def test_a_kind_whose_section_is_ours_is_named_for_later_too(package, part):
    with pytest.raises(BadInput, match="of_mine_"):
        load_recipe(recipe(**part))
    __import__("of_mine.owners")
    settled = load_recipe(recipe(**part))
    assert settled.plugins == ["of_mine.owners"]
    check_shared(settled)
    assert load_recipe(recipe()).plugins == []


def test_a_kind_of_a_function_is_not_shared_though_its_section_is_ours(monkeypatch):
    for kinds, kind in ((OPTIMIZERS, "of_here_adagrad"), (TASKS, "of_here_binary")):
        monkeypatch.setitem(kinds._configs, kind, None)  # so that it goes again
        monkeypatch.setitem(kinds._owners, kind, None)
        del kinds._configs[kind], kinds._owners[kind]

    @register_optimizer("of_here_adagrad")
    class HereAdagrad(RowwiseAdagrad):
        pass

    @register_task("of_here_binary")
    class HereBinary(Binary):
        pass

    optimizer = load_recipe(recipe(optimizers={"sparse": {"kind": "of_here_adagrad"}}))
    task = load_recipe(recipe(tasks={"click": {"label": "label", "kind": "of_here_binary"}}))
    assert optimizer.plugins == task.plugins == []
    with pytest.raises(BadInput, match=r"^optimizers\.sparse: HereAdagrad is defined in a notebook cell, a script or"):
        check_shared(optimizer)
    with pytest.raises(BadInput, match=r"^tasks\.click: HereBinary is defined in a notebook cell, a script or"):
        check_shared(task)
