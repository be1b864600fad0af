"""What fails behind a network and may pass is tried again, and nothing else is."""

import io
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from pyarrow import fs

from livetrain.configs.errors import BadInput, lasts, may_pass
from livetrain.trainers.data.read.files import list_files, open_filesystem
from livetrain.trainers.runtime import reach


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The waits between tries, which take no time."""
    now, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: 1000 + now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    return waits


def failing(times: float, error: Exception) -> Callable[[], str]:
    left = [times]

    def work() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return "done"

    return work


def test_what_may_pass_is_tried_until_it_does(waits):
    assert reach.patiently(failing(6, OSError("AWS Error SLOW_DOWN during GetObject")), "x") == "done"
    assert len(waits) == 6
    assert all(0 <= wait <= min(10, 0.1 * 2 ** (n + 1)) for n, wait in enumerate(waits))
    assert len(set(waits)) == 6


def test_the_waits_end_at_the_deadline_and_the_last_failure_is_raised(waits, caplog):
    with pytest.raises(OSError, match="no route"):
        reach.patiently(failing(float("inf"), OSError("no route")), "s3:bucket/x")
    assert sum(waits) == pytest.approx(reach.DEADLINE_S)
    assert max(waits) <= 10
    assert [record.getMessage() for record in caplog.records] == [
        "s3:bucket/x: no answer (no route); trying again for up to 120 s"
    ]


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("gone"),
        PermissionError("no"),
        OSError("When reading key 'x': AWS Error ACCESS_DENIED during GetObject operation: Access Denied"),
        OSError("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation: The specified bucket does not exist"),
        OSError("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body."),
        ValueError("nonsense"),
    ],
)
def test_what_lasts_is_raised_at_once(waits, error):
    with pytest.raises(type(error)):
        reach.patiently(failing(1, error), "x")
    assert waits == []


@pytest.mark.parametrize(
    "text",
    [
        "AWS Error UNKNOWN (HTTP status 503) during HeadObject operation",
        "AWS Error UNKNOWN (HTTP status 429) during HeadObject operation",
        "AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 56, Failure when receiving data",
        "AWS Error INTERNAL_FAILURE during PutObject operation: try again",
    ],
)
def test_what_a_store_says_in_passing(text):
    assert not lasts(OSError(text))
    error = BadInput("sentence")
    error.__cause__ = OSError(text)
    assert may_pass(error)


class Faulty(fs.FSSpecHandler):
    """Any other filesystem, of which every second call fails."""

    def __init__(self, inner) -> None:
        super().__init__(inner)
        self.calls = 0

    def _call(self, name: str, *arguments):
        self.calls += 1
        if self.calls % 2:
            raise OSError("connection reset")
        return getattr(super(), name)(*arguments)

    def get_file_info(self, paths):
        return self._call("get_file_info", paths)

    def get_file_info_selector(self, selector):
        return self._call("get_file_info_selector", selector)

    def open_input_file(self, path):
        return pa.PythonFile(Short(self._call("open_input_file", path)), mode="r")


class Short(io.RawIOBase):
    """A file of which every second read ends too soon."""

    def __init__(self, inner) -> None:
        self._inner, self._reads = inner, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset, whence=0):
        return self._inner.seek(offset, whence)

    def tell(self):
        return self._inner.tell()

    def read(self, size=-1):
        self._reads += 1
        found = self._inner.read(size)
        return found[: len(found) // 2] if self._reads % 2 else found


@pytest.fixture
def faulty(monkeypatch) -> fs.FileSystem:
    import fsspec

    monkeypatch.setattr(reach, "_FIRST_S", 0.0)
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/reach/part-{number}.parquet", bytes([number]) * 1000)
    return reach.patient(fs.PyFileSystem(Faulty(memory)))


def test_a_patient_filesystem_lists_and_reads_all(faulty):
    paths = [info.path for info in list_files(faulty, "/reach")]
    assert [path.rpartition("/")[2] for path in paths] == [f"part-{number}.parquet" for number in range(3)]
    with faulty.open_input_file(paths[1]) as file:
        assert file.size() == 1000
        assert file.read_at(10, 5) == b"\1" * 10
        file.seek(0)
        assert file.read(400) + file.read() == b"\1" * 1000
        assert file.read() == b""
    with faulty.open_input_stream(paths[2]) as file:
        assert file.read() == b"\2" * 1000
    with pytest.raises(FileNotFoundError):
        faulty.open_input_file("/reach/none")


def test_a_patient_filesystem_writes_and_travels(tmp_path):
    filesystem, root = open_filesystem("fsspec+memory:///travels")
    filesystem.create_dir(root)
    with filesystem.open_output_stream(f"{root}/x") as file:
        file.write(b"content")
    copy = pickle.loads(pickle.dumps(filesystem))
    assert copy.open_input_stream(f"{root}/x").read() == b"content"
    copy.move(f"{root}/x", f"{root}/y")
    copy.copy_file(f"{root}/y", f"{root}/z")
    copy.delete_file(f"{root}/y")
    names = [info.base_name for info in copy.get_file_info(fs.FileSelector(root))]
    assert names == ["z"]
    copy.delete_dir(root)
    assert copy == filesystem
    assert isinstance(open_filesystem(str(tmp_path))[0], fs.LocalFileSystem)


@pytest.mark.parametrize(
    "text",
    [
        "key 'shows/not-found-model/part-0' in bucket 'unauthorized-logs': AWS Error SLOW_DOWN during GetObject",
        "When reading 'a/status 403/b': AWS Error NETWORK_CONNECTION",
    ],
)
def test_names_are_no_verdict(text):
    assert not lasts(OSError(text))


def test_a_broken_connection_is_opened_again(waits, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"0123456789")

    class Handle:
        def __init__(self, broken: bool) -> None:
            self.broken = broken

        def size(self) -> int:
            return 10

        def seek(self, start: int) -> None:
            self.place = start

        def readinto(self, found: bytearray) -> int:
            if self.broken:
                raise ConnectionError("lost")
            found[:] = (tmp_path / "file").read_bytes()[self.place : self.place + len(found)]
            return len(found)

    class System:
        opened = 0

        def open_input_file(self, path: str) -> Handle:
            self.opened += 1
            return Handle(self.opened == 1)

    system = System()
    assert reach.File(system, "file").at(2, 3) == b"234"
    assert system.opened == 2


def test_a_short_answer_is_asked_for_again(bucket, network, monkeypatch):
    monkeypatch.setattr(reach, "_FIRST_S", 0.001)
    filesystem, root = fs.FileSystem.from_uri(bucket)
    content = bytes(range(256)) * 40
    with filesystem.open_output_stream(f"{root}/x") as out:
        out.write(content)
    patient = reach.patient(filesystem)
    network.rate, network.faults = 0.5, ("short",)
    with patient.open_input_file(f"{root}/x") as file, ThreadPoolExecutor(4) as threads:
        assert file.read() == content
        inner = reach.opened(patient, f"{root}/x")
        places = [(start, count) for start in range(0, 10_000, 999) for count in (1, 3, 8, 200)]
        found = list(threads.map(lambda place: inner.at(*place), places))
        assert found == [content[start : start + count] for start, count in places]
    with patient.open_input_stream(f"{root}/x") as file:
        assert file.read() == content
    assert network.counted["short"] > 5
    network.rate = 1.0
    monkeypatch.setattr(reach, "DEADLINE_S", 0.05)
    with patient.open_input_file(f"{root}/x") as file, pytest.raises(OSError, match="not all of 100 bytes came"):
        file.read_at(100, 5)
