"""Writing the files of a checkpoint: in blocks, hashed as they go to the disk. What `restore` reads.

A large tensor is written as blocks of rows, each an entry of its own in the layout. So whoever writes one, or reads it
on another number of ranks or on none, holds a block of it at a time, however large the table is.
"""

import dataclasses
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import IO, Any

import torch
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem, _write_item
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from livetrain.trainers.runtime import manifest

BLOCK = 1 << 27  # bytes of a tensor that are written, and later read, at once; a row that is longer is one block


def rows_of(row: int) -> int:
    """Return how many rows of `row` bytes a block has."""
    return max(1, BLOCK // max(row, 1))


class Planner(DefaultSavePlanner):
    """DCP's planner, which plans a large tensor as blocks of rows."""

    def create_local_plan(self) -> SavePlan:
        """Return what this rank has to write, in blocks."""
        self._cut: dict[MetadataIndex, tuple[WriteItem, int, int]] = {}
        plan = super().create_local_plan()
        self.plan = dataclasses.replace(plan, items=[part for item in plan.items for part in self._blocks(item)])
        return self.plan

    def _blocks(self, item: WriteItem) -> Iterator[WriteItem]:
        """Yield an item in blocks, and note of each where it lies in the item."""
        data = item.tensor_data
        if data is None or not len(data.chunk.sizes) or not data.chunk.sizes.numel():
            yield item
            return
        (size, *columns), (row, *column) = data.chunk.sizes, data.chunk.offsets
        many = rows_of(torch.Size(columns).numel() * data.properties.dtype.itemsize)
        if size <= many:
            yield item
            return
        for first in range(0, size, many):
            count = min(many, size - first)
            chunk = ChunkStorageMetadata(torch.Size([row + first, *column]), torch.Size([count, *columns]))
            index = MetadataIndex(item.index.fqn, chunk.offsets)
            self._cut[index] = item, first, count
            yield WriteItem(index, WriteItemType.SHARD, tensor_data=dataclasses.replace(data, chunk=chunk))

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """Return what is written of an item: a view of the tensor that it is a block of."""
        if write_item.index not in self._cut:
            return super().resolve_data(write_item)
        item, first, count = self._cut[write_item.index]
        whole = super().resolve_data(item)
        assert isinstance(whole, torch.Tensor)
        return whole.narrow(0, first, count)


class Writer(FileSystemWriter):
    """DCP's writer of a folder, which hashes each file while it is written: nobody has to read it again for that.

    Args:
        path: the folder.

    Attributes:
        digests: of the files that this rank has written, by name, as a manifest keeps them.
    """

    def __init__(self, path: Path) -> None:
        # Copying ahead is for tensors on a GPU, and would open the first one from this thread.
        super().__init__(path, sync_files=True, per_thread_copy_ahead=0)
        self.fs = self._hashing = _Hashing()

    def _write_data(self, planner: SavePlanner, file_queue: Queue) -> Future[list[WriteResult]]:
        """Write files item by item. DCP's own holds on to the last item of every tensor until the end."""
        results = []
        while not file_queue.empty():
            path, name, items = file_queue.get_nowait()
            with self.fs.create_stream(path, "wb") as stream:
                results += [self._write_one(planner, item, stream, name) for item in items]
                os.fsync(stream.fileno())
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def _write_one(self, planner: SavePlanner, item: WriteItem, stream: Any, name: str) -> WriteResult:
        data = planner.resolve_data(item)
        if isinstance(data, torch.Tensor):
            data = data.detach().cpu()
            if data.untyped_storage().size() != data.nbytes:  # a view, of which torch.save would write the whole
                data = data.clone()
        return _write_item(self.transforms, stream, data, item, name, self.serialization_format)

    @property
    def digests(self) -> dict[str, dict[str, Any]]:
        return {name: digest.found() for name, digest in self._hashing.digests.items()}


class _Hashing(FileSystem):
    """Knows the digests of the files that were written through it, by name."""

    def __init__(self) -> None:
        self.digests: dict[str, manifest.Digest] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        assert mode == "wb"  # whoever writes asks for no other
        with Path(path).open("wb") as stream:
            digest = self.digests[Path(path).name] = manifest.Digest()
            yield _Hashed(stream, digest)

    def rename(self, path: Any, new_path: Any) -> None:
        super().rename(path, new_path)
        self.digests[Path(new_path).name] = self.digests.pop(Path(path).name)


class _Hashed:
    """A stream to a file, as far as DCP writes to one: from its beginning to its end."""

    def __init__(self, stream: IO[bytes], digest: manifest.Digest) -> None:
        self._stream, self._digest = stream, digest
        self.tell, self.flush, self.close = stream.tell, stream.flush, stream.close

    def write(self, part: Any) -> int:
        self._digest.update(part)
        return self._stream.write(part)

    def fileno(self) -> int:
        """Return the file's number, for syncing: DCP forgets that bytes may wait in front of it."""
        self._stream.flush()
        return self._stream.fileno()
