"""The examples in docstrings are run as they stand, in a folder that holds a recipe, its data and a finished run."""

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest

from tests.wheels import OUTSIDE, ROOT, tracked

SLOW = ("livetrain.cluster.sweep.driver.tune",)  # starts Ray


def examples() -> Iterator[tuple[str, str]]:
    """Yield the module and the name in it of all whose docstring has an example."""
    parser = doctest.DocTestParser()
    for path in map(PurePosixPath, tracked()):
        if path.suffix != ".py" or path.parts[0] in OUTSIDE:
            continue
        module = ".".join(("livetrain", *path.with_suffix("").parts)).removesuffix(".__init__")
        for name, node in documented(ast.parse((ROOT / path).read_text(encoding="utf-8")), ""):
            if parser.get_examples(ast.get_docstring(node) or ""):
                yield module, name


def documented(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
    yield name, node
    for below in ast.iter_child_nodes(node):
        if isinstance(below, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from documented(below, f"{name}.{below.name}".lstrip("."))


@pytest.mark.parametrize(
    ("module", "name"),
    [pytest.param(*found, marks=pytest.mark.slow if ".".join(found) in SLOW else ()) for found in examples()],
    ids=lambda part: part.removeprefix("livetrain."),
)
@pytest.mark.usefixtures("home")
def test_the_examples_are_true(module, name):
    if module.startswith("livetrain.modules.layers.gpu"):
        pytest.importorskip("triton")
    found = importlib.import_module(module)
    for part in filter(None, name.split(".")):
        found = getattr(found, part)
    (test,) = doctest.DocTestFinder(recurse=False).find(found, module=importlib.import_module(module))
    assert all(doctest.SKIP not in example.options for example in test.examples)
    said = []
    doctest.DocTestRunner().run(test, out=said.append)
    assert not said, "".join(said)


def test_there_are_examples():
    assert {("livetrain.api", "train"), ("livetrain.modules.gradients.pcgrad", "PCGrad")} <= set(examples())
