"""Tables in files: what is written there is mapped elsewhere, and what is mapped cannot change a file."""

import errno
import math
import os
from pathlib import Path

import pytest
import torch

from livetrain.configs.errors import BadInput
from livetrain.modules.tables import mapped

TYPES = (torch.float32, torch.float16, torch.uint8)


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_written_is_mapped_elsewhere_and_cannot_be_changed_there(tmp_path, dtype):
    files = mapped.Files(tmp_path)
    room = files.room("movie", (3, 4), dtype)
    room.copy_(torch.arange(12).view(3, 4))
    assert files.index == {"movie": {"file": "movie.table", "dtype": str(dtype)[6:], "shape": [3, 4]}}
    assert (tmp_path / "movie.table").read_bytes() == room.numpy().tobytes()
    (tmp_path / "movie.table").chmod(0o444)  # as a server may have it
    found = mapped.opened(tmp_path, files.index)["movie"]
    assert torch.equal(found, room)
    found.zero_()
    assert mapped.opened(tmp_path, files.index)["movie"].sum() == 66


@pytest.mark.parametrize(("spoil", "said"), [(os.unlink, "is not there"), (lambda p: os.truncate(p, 7), "has 7 bytes")])
def test_a_file_that_is_gone_or_cut_short_is_told(tmp_path, spoil, said):
    files = mapped.Files(tmp_path)
    files.room("movie", (3, 4), torch.float16)
    spoil(tmp_path / "movie.table")
    with pytest.raises(BadInput, match=f"movie.table: this table {said}"):
        mapped.opened(tmp_path, files.index)


def test_a_disk_without_space_is_told_before_anything_is_written(tmp_path, monkeypatch):
    def full(handle: int, start: int, size: int) -> None:
        assert size == math.prod((3, 4)) * 2
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BadInput, match=r"movie.table: there is no space for this table \(No space left on device\)"):
        mapped.Files(tmp_path).room("movie", (3, 4), torch.float16)


def test_files_without_names_last_as_long_as_they_are_mapped(tmp_path: Path):
    with mapped.nameless(tmp_path) as files:
        room = files.room("movie", (3, 4), torch.float32).fill_(2)
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    assert room.sum() == 24
