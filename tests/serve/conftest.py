"""What the tests of the server share: the program, and small models that are published."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from livetrain.cluster import launch
from livetrain.modules.serving.cut import Cut
from livetrain.modules.serving.rerank import DPP
from livetrain.trainers.export import publish
from livetrain.trainers.export.export import export
from tests import samples
from tests.serve import live

CHANGES = {
    "din": {},
    "light": {"model": {"kind": "lr"}},
    "towers": {
        "model": {"kind": "dssm", "key": "movie", "units": [16], "width": 8},
        "tasks": {"click": {"label": "label", "kind": "retrieval"}},
    },
}


class Published(NamedTuple):
    """Published models.

    Attributes:
        folder: with models/NAME, runs/NAME, indexes/towers, cut.pt and rerank.pt.
    """

    folder: Path

    def where(self, name: str) -> str:
        return str(self.folder / "models" / name)

    def again(self, name: str, version: str) -> dict:
        """Publish the export once more."""
        return publish.publish(self.folder / "runs" / name / "export", self.where(name), version, 5)


@pytest.fixture(scope="session")
def program() -> Path:
    return live.binary()


@pytest.fixture(scope="session")
def _published(tmp_path_factory) -> Published:
    from livetrain.trainers.recall.build import Asked, build
    from livetrain.trainers.recall.origin import origin

    pytest.importorskip("faiss")
    made = Published(tmp_path_factory.mktemp("served"))
    data = samples.write(made.folder / "data", 600)
    for name, changes in CHANGES.items():
        launch.train(samples.recipe(data, name=name, train__epochs=1, **changes), made.folder / "runs")
        export(made.folder / "runs" / name)
        made.again(name, "2026-11-30")
    asked = Asked(kind="exact", least=0.1)
    build(origin(made.where("towers"), made.folder / "runs"), str(made.folder / "indexes/towers"), asked, print)
    torch.jit.script(Cut(places=8, regulars=2, most=3)).save(str(made.folder / "cut.pt"))
    torch.jit.script(DPP(places=5, theta=0.7)).save(str(made.folder / "rerank.pt"))
    return made


@pytest.fixture
def published(_published, tmp_path) -> Published:
    """The models, a copy for one test."""
    shutil.copytree(_published.folder, tmp_path / "served", symlinks=True)
    return Published(tmp_path / "served")
