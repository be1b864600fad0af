"""Which minutes of a stream are closed, in a folder and in a bucket."""

import json

import pyarrow.fs as fs
import pytest

from livetrain.configs.errors import BadInput, NotNow
from livetrain.trainers.data.read import minutes
from livetrain.trainers.data.read.files import open_filesystem
from livetrain.trainers.data.read.increment import damage
from livetrain.trainers.runtime import manifest, reach
from tests import store

BEGIN = 1_796_040_420  # 2026-11-30 12:07 UTC


@pytest.fixture(params=["folder", "bucket"])
def stream(request, tmp_path):
    """Return (where, write): the place of a stream of two lanes, and what writes a file into it."""
    with store.served() as uri:
        where = str(tmp_path) if request.param == "folder" else uri
        filesystem, root = open_filesystem(where)

        def write(name: str, content: dict) -> None:
            if isinstance(filesystem, fs.LocalFileSystem):
                filesystem.create_dir(f"{root}/{name}".rpartition("/")[0])
            with filesystem.open_output_stream(f"{root}/{name}") as file:
                file.write(json.dumps(content).encode())

        yield where, write


def close(write, start: int, lane: int, rows: int = 3) -> None:
    """Write what a lane leaves of a minute."""
    files = {"part-0.parquet": {"bytes": 1, "xxh64": "0"}} if rows else {}
    content = {"files": files, "rows": rows, "end": start + 60, "watermark": start + 90.5 + lane, "counts": {"late": 2}}
    write(f"{minutes.folder_of(start)}/lane={lane}/manifest.json", content)


def test_a_minute_is_closed_when_every_lane_has_come_as_far(stream):
    where, write = stream
    with pytest.raises(NotNow, match=r"stream.json is not there; start `livetrain stream`"):
        minutes.closed(where)
    write("stream.json", {"lanes": 2, "every_s": 60, "columns": {}})
    assert minutes.closed(where) == []
    close(write, BEGIN, 0)
    close(write, BEGIN + 60, 0)
    assert minutes.closed(where) == []  # lane 1 has closed nothing
    close(write, BEGIN + 60, 1, rows=0)  # where its samples begin
    first, second = minutes.closed(where)
    assert (first.name, first.start, first.end, first.rows) == ("2026-11-30T12:07:00Z", BEGIN, BEGIN + 60, 3)
    assert [path.rpartition("/date=")[2] for path in first.files] == ["2026-11-30/time=120700/lane=0/part-0.parquet"]
    assert second.rows == 3
    assert second.counts == {"late": 4}
    assert second.watermark == BEGIN + 150.5
    close(write, BEGIN + 120, 0)
    assert minutes.closed(where, second.name) == []
    close(write, BEGIN + 120, 1)
    (third,) = minutes.closed(where, second.name)
    assert third.rows == 6
    assert third.name == "2026-11-30T12:09:00Z"
    assert len(third.files) == 2
    close(write, BEGIN + 86_400, 0)
    close(write, BEGIN + 86_400, 1)
    assert [each.name for each in minutes.closed(where, third.name)] == ["2026-12-01T12:07:00Z"]
    assert minutes.about(where)["every_s"] == 60


def test_what_is_no_minute_is_told(tmp_path):
    (tmp_path / "stream.json").write_text('{"lanes": 1, "every_s": 60}')
    with pytest.raises(BadInput, match="'noon' names no minute"):
        minutes.closed(str(tmp_path), "noon")
    damaged = tmp_path / minutes.folder_of(BEGIN) / "lane=0"
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text("{}")
    with pytest.raises(BadInput, match=r"lane=0/manifest.json is no manifest; restore it"):
        minutes.closed(str(tmp_path))
    (tmp_path / "stream.json").write_text("{")
    with pytest.raises(BadInput, match=r"stream.json cannot be read"):
        minutes.about(str(tmp_path))


def test_short_answers_of_a_store_are_no_damage(monkeypatch):
    """Manifests, and the parts that are compared with them, are asked for again; damage is found all the same."""
    monkeypatch.setattr(reach, "_FIRST_S", 0.001)
    network = store.Network(faults=("short",))
    with store.served(network=network) as other:
        uri = other.replace("/in/it", "/in/short")
        filesystem, root = open_filesystem(uri)

        def write(name: str, content: bytes) -> None:
            with filesystem.open_output_stream(f"{root}/{name}") as file:
                file.write(content)

        write("stream.json", b'{"lanes": 1, "every_s": 60, "columns": {}}')
        part = bytes(range(256)) * 10
        for number in range(4):
            folder = f"{minutes.folder_of(BEGIN + 60 * number)}/lane=0"
            write(f"{folder}/part-0.parquet", part[: -1 if number == 3 else None])
            files = {"part-0.parquet": manifest.digest_of([part])}
            about = {"rows": 3, "end": BEGIN + 60 * number + 60, "watermark": 0.0, "counts": {}}
            write(f"{folder}/manifest.json", json.dumps({"files": files, **about}).encode())
        network.rate = 0.5
        found = minutes.closed(uri)
        assert [minute.start for minute in found] == [BEGIN + 60 * number for number in range(4)]
        wrong = [damage(uri, minute) for minute in found]
        assert wrong[:3] == [None] * 3
        assert "is damaged: 2,559 bytes" in (wrong[3] or "")
        assert network.counted["short"] > 3
