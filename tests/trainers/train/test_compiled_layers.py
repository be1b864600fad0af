import logging
import threading

import pytest
import torch

from livetrain.modules.layers import compiled
from livetrain.modules.layers.mlp import MLP
from livetrain.trainers.data.read import records
from livetrain.trainers.runtime import compiler
from livetrain.trainers.train import compiled_layers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A cache of its own, and no library before or after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled_layers.library.cache_clear()
    yield
    compiled_layers.library.cache_clear()
    compiled.use()


def made(folder) -> list[str]:
    return sorted(path.name for path in (folder / "livetrain").glob("*") if path.name != "lock")


@pytest.mark.slow
def test_compiles_once_a_machine(tmp_path, monkeypatch):
    threads = [threading.Thread(target=compiled_layers.library.__wrapped__) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made(tmp_path)) == 1
    assert made(tmp_path)[0].endswith(".so")
    monkeypatch.setattr(compiler.os, "replace", None)  # nothing is compiled again
    compiled_layers.library()


def test_only_what_gains_is_compiled(tmp_path):
    compiled_layers.enable(MLP(3, [2], "relu"), CPU)
    assert not (tmp_path / "livetrain").exists()
    assert compiled.library_for(torch.zeros(1)) is None


@pytest.mark.parametrize("case", ["no compiler", "broken compiler", "no cache"])
def test_trains_without_where_it_must(case, tmp_path, monkeypatch, caplog):
    if case == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    elif case == "broken compiler":
        monkeypatch.setenv("CXX", "false")
    else:
        (tmp_path / "livetrain").write_text("a file")
    with caplog.at_level(logging.WARNING):
        compiled_layers.enable(MLP(3, [2], "dice"), CPU)
    assert len(caplog.messages) == 1
    assert "training without compiled layers" in caplog.messages[0]
    assert compiled.library_for(torch.zeros(1)) is None
    assert made(tmp_path) == [] if case != "no cache" else True


def test_one_source_has_one_name(tmp_path):
    command, sources = ["g++", "-O3"], compiled_layers.SOURCES
    name = compiler._fingerprint(sources, command)
    assert name == compiler._fingerprint(list(sources), list(command))
    assert name != compiler._fingerprint(sources, ["g++", "-O2"])
    assert name != compiler._fingerprint(sources[:1], command)
    assert name != compiler._fingerprint([records.SOURCE], command)
    copies = [tmp_path / source.name for source in sources]
    for source, copy in zip(sources, copies, strict=True):
        copy.write_text(source.read_text())
    header = tmp_path / "vectors.h"
    header.write_text((sources[0].parent / header.name).read_text())
    assert name == compiler._fingerprint(copies, command)
    header.write_text("// another one")
    assert name != compiler._fingerprint(copies, command)
