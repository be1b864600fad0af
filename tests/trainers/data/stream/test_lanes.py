"""Several lanes from one command, which begins again what dies, and minutes that are copied to a folder or a bucket."""

import contextlib
import random
import sys
from pathlib import Path

import pytest
from pyarrow import fs
from typer.testing import CliRunner

from livetrain.cli.main import app
from livetrain.configs.errors import BadInput
from livetrain.trainers.data.read import minutes
from livetrain.trainers.data.read.files import open_filesystem
from livetrain.trainers.data.stream import copies
from livetrain.trainers.data.stream.copies import Copies
from livetrain.trainers.data.stream.lanes import run_lanes
from livetrain.trainers.runtime import place
from tests import store
from tests.trainers.data.stream import logs


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A stream's spec, and its folder with the minutes of two lanes."""
    folder = tmp_path_factory.mktemp("made")
    raw, told, _ = logs.drawn_and_prepared(folder, 4, 60, seed=9)
    for table, rows in told.items():
        logs.land(folder / "land", table, rows, every=logs.HOUR, disorder=0)
    source = {"kind": "folder", "path": "land"}
    spec = logs.spec(folder / "stream.yaml", raw / "events.yaml", source, every_s=3600, wait_s=3600, lanes=2)
    for lane in (0, 1):
        logs.drain(spec, folder / "out", lane)
    return spec, folder / "out"


def there(where: str) -> dict[str, bytes]:
    """Return the files of a stream, wherever it is."""
    filesystem, root = open_filesystem(where)
    infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    kept = [info.path for info in infos if info.is_file and ("date=" in info.path or info.base_name == minutes.STREAM)]
    return {path.removeprefix(f"{root}/"): filesystem.open_input_stream(path).read() for path in kept}


@pytest.mark.parametrize("kind", ["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def test_copies_are_whole_whenever_they_were_killed(made, tmp_path, monkeypatch, kind):
    _, out = made
    calls, at, draw = [], [0], random.Random(4)
    for owner in (place.Folder, place.Bucket):
        for name in ("swap", "put", "make", "remove", "sync"):
            real = getattr(owner, name)

            def call(*arguments, real=real, name=name):
                calls.append(name)
                if len(calls) == at[0]:
                    raise logs.Killed
                return real(*arguments)

            monkeypatch.setattr(owner, name, call)
    network = store.Network(rate=0.1, faults=("slow", "error", "reset", "lost", "cut"))
    with store.served(network=network) if kind == "bucket" else contextlib.nullcontext(str(tmp_path / "copy")) as where:
        root = open_filesystem(where)[1]
        kills = 0
        while True:
            calls.clear()
            at[0] = draw.randrange(2, 20)
            with contextlib.suppress(logs.Killed):
                Copies(out, (0, 1), where, print).copy()
                break
            kills += 1
            known = minutes.closed(where) if minutes.STREAM in there(where) else []
            assert all(each.files or not each.rows for each in known)
            assert {name for each in known for name in each.files} <= {f"{root}/{name}" for name in there(where)}
        assert kills >= 3
        at[0] = 0
        with Copies(out, (0, 1), where, print):
            pass
        assert there(where) == there(str(out))
        assert [each.name for each in minutes.closed(where)] == [each.name for each in minutes.closed(str(out))]
        calls.clear()
        Copies(out, (0, 1), where, print).copy()
        assert calls == ["swap"]  # of stream.json: nothing is copied twice
    assert kind == "folder" or {"reset", "lost"} <= network.counted.keys()


def test_copies_of_two_streams_do_not_mix_and_failures_are_told(made, tmp_path, monkeypatch):
    _, out = made
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/stream.json").write_text("{}")
    with pytest.raises(BadInput, match=r"copy/stream.json is of another stream; name a new folder with --copy"):
        Copies(out, (0,), str(tmp_path / "copy"), print).copy()
    with pytest.raises(BadInput, match="--copy: .* is where the minutes are made; name another folder"):
        Copies(out, (0,), str(out), print)
    monkeypatch.setattr(copies, "_LOOK_S", 0.01)
    monkeypatch.setattr(copies, "_AGAIN_S", 0.01)
    whole, said, calls = Copies.copy, [], []

    def copy(each: Copies) -> None:
        calls.append(1)
        if len(calls) < 4:
            raise OSError("the network is away")
        whole(each)

    monkeypatch.setattr(Copies, "copy", copy)
    with Copies(out, (0, 1), str(tmp_path / "other"), said.append):
        while len(calls) < 6:
            pass
    assert said == ["ALARM: not copied (the network is away); it is tried again, and minutes are closed meanwhile"]
    assert there(str(tmp_path / "other")) == there(str(out))


def test_a_lane_that_is_killed_begins_again_and_one_that_fails_ends_all(tmp_path):
    kills_itself = "import os, pathlib, signal, sys; p = pathlib.Path(sys.argv[1]); n = p.exists(); p.touch(); "
    kills_itself += "n or os.kill(os.getpid(), signal.SIGKILL)"
    said: list[str] = []
    commands = {0: [sys.executable, "-c", kills_itself, str(tmp_path / "0")], 1: [sys.executable, "-c", ""]}
    assert run_lanes(commands, lambda code: code < 0, said.append) == 0
    assert said == ["lane 0 ended with -9, and begins again in 2 s"]
    commands = {0: [sys.executable, "-c", "import time; time.sleep(600)"], 1: [sys.executable, "-c", "exit(2)"]}
    assert run_lanes(commands, lambda code: code < 0, said.append) == 2


def test_one_command_makes_lanes_and_copies_them(made, tmp_path):
    """Also anew, as where a disk was lost: what another folder's lane has made is copied already."""
    spec, out = made
    Copies(out, (0,), str(tmp_path / "copy"), print).copy()
    words = ["stream", str(spec), "--out", str(tmp_path / "out"), "--copy", str(tmp_path / "copy"), "--drain"]
    found = CliRunner().invoke(app, [*words, "--lane", "0", "--lane", "1"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert there(str(tmp_path / "copy")) == there(str(tmp_path / "out")) == there(str(out))
    with pytest.raises(BadInput, match="--lane 2: .* has lanes 0 to 1; name one of them"):
        CliRunner().invoke(app, [*words, "--lane", "2"], catch_exceptions=False)
