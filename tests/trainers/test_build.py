import logging
import threading

import pytest
import torch

from modules.layers import compiled
from modules.layers.mlp import MLP
from trainers import build, compiler
from trainers.data import records

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A cache of its own, and no library before or after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    yield
    build.library.cache_clear()
    compiled.use()


def made(folder) -> list[str]:
    return sorted(path.name for path in (folder / "livetrain").glob("*") if path.name != "lock")


def test_compiles_once_a_machine(tmp_path, monkeypatch):
    threads = [threading.Thread(target=build.library.__wrapped__) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made(tmp_path)) == 1
    assert made(tmp_path)[0].endswith(".so")
    monkeypatch.setattr(compiler.os, "replace", None)  # nothing is compiled again
    build.library()


def test_only_what_gains_is_compiled(tmp_path):
    build.enable(MLP(3, [2], "relu"), CPU)
    build.enable(MLP(3, [2], "dice"), torch.device("cuda"))
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
        build.enable(MLP(3, [2], "dice"), CPU)
    assert len(caplog.messages) == 1
    assert "training DIN without compiled layers" in caplog.messages[0]
    assert compiled.library_for(torch.zeros(1)) is None
    assert made(tmp_path) == [] if case != "no cache" else True


def test_one_source_has_one_name():
    command = ["g++", "-O3"]
    assert compiler._fingerprint(build.SOURCE, command) == compiler._fingerprint(build.SOURCE, list(command))
    assert compiler._fingerprint(build.SOURCE, command) != compiler._fingerprint(build.SOURCE, ["g++", "-O2"])
    assert compiler._fingerprint(build.SOURCE, command) != compiler._fingerprint(records.SOURCE, command)
