"""Reading the files of a checkpoint without running what may stand in them.

torch.distributed.checkpoint keeps a checkpoint's layout as a pickle, `.metadata`, and so whatever is no tensor. Reading
a pickle may call any function. Here it may name the classes that such a layout consists of, and no others.
"""

import dataclasses
import io
import pathlib
import pickle
from collections.abc import Callable, Iterator
from typing import IO, Any

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, filesystem, metadata
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from livetrain.configs.errors import BadInput
from livetrain.modules.model import stored_name
from livetrain.modules.optimizers import FUSED_NAMES

_REPLICATED = "optimizer_replicated."  # what the state of the optimizers of replicated tables was once named
_LAYOUT = "torch.distributed.checkpoint.metadata"
_CLASSES: dict[tuple[str, str], Any] = {
    **{
        (_LAYOUT, name): getattr(metadata, name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    },
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): filesystem._StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    # The path at which the checkpoint was written; the module's name is that of Python 3.13.
    **{(module, "PosixPath"): pathlib.PurePosixPath for module in ("pathlib", "pathlib._local")},
}


class _Unpickler(pickle.Unpickler):
    """Knows the classes of a checkpoint's layout and torch's dtypes."""

    def find_class(self, module: str, name: str) -> Any:
        found = _CLASSES.get((module, name))
        if found is None and module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            found = getattr(torch, name)
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")
        return found


class Reader(FileSystemReader):
    """DCP's reader of a folder, whose layout is read as it is made.

    Args:
        path: a checkpoint.
        checked: the files of it that are known to be whole.

    Raises:
        BadInput: the layout is none.
        OSError: it is not there any more.
    """

    def __init__(self, path: pathlib.Path, checked: set[str]) -> None:
        super().__init__(path)
        file = path / ".metadata"
        try:
            with file.open("rb") as opened:
                self._found = _Unpickler(opened).load()
            if not isinstance(self._found, Metadata):
                raise pickle.UnpicklingError("it holds no checkpoint's layout")
            self._found = _of_today(self._found)
            if not {part.relative_path for part in self._found.storage_data.values()} <= checked:
                raise pickle.UnpicklingError("it names files that its manifest does not")
        except OSError:  # a training beside may just have deleted it
            raise
        except Exception as error:  # a pickle that was tampered with raises whatever it likes
            reason = " ".join(str(error).split())[:120]
            raise BadInput(
                f"{file}: this file is not read ({reason}); take the checkpoint from where it is whole"
            ) from None

    def read_metadata(self) -> Metadata:
        """Return the layout; DCP asks for it on every rank."""
        return self._found

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what a rank asked for, one item in memory at a time; DCP's own holds two."""
        files: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            files.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        for path, items in files.items():
            with self.fs.create_stream(self.fs.concat_path(self.path, path), "rb") as stream:
                for item in items:
                    self._read_one(planner, item, self._slice_file(stream, self.storage_data[item.storage_index]))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_one(self, planner: LoadPlanner, item: ReadItem, part: IO[bytes]) -> None:
        if item.type == LoadItemType.BYTE_IO:
            planner.load_bytes(item, io.BytesIO(part.read()))
            return
        found = narrow_tensor_by_index(_tensor(part), item.storage_offsets, item.lengths).reshape(item.lengths)
        target = planner.resolve_tensor(item).detach()
        if target.size() != found.size():
            raise AssertionError(f"{item.storage_index}: {target.size()} is asked of {found.size()}")
        target.copy_(found)
        planner.commit_tensor(item, target)

    def blocks(self, name: str, wanted: Callable[[range], bool]) -> Iterator[tuple[torch.Size, torch.Tensor]]:
        """Yield the blocks of a tensor, one in memory at a time: where each begins, and its values.

        Args:
            name: as the layout names it.
            wanted: whether a block of some rows is read.
        """
        for chunk in self._found.state_dict_metadata[name].chunks:
            if not wanted(range(chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0])):
                continue
            about = self._found.storage_data[MetadataIndex(name, chunk.offsets)]
            with self.fs.create_stream(self.fs.concat_path(self.path, about.relative_path), "rb") as stream:
                yield chunk.offsets, _tensor(self._slice_file(stream, about)).reshape(chunk.sizes)


def _of_today(found: Metadata) -> Metadata:
    """Return a layout with today's names of tables that every rank held whole, which once had names of their own."""
    if all(_todays(name) == name for name in found.state_dict_metadata):
        return found
    entries = {}
    for name, about in found.state_dict_metadata.items():
        cut = slice(1 if _per_row(name, about) else None)
        if isinstance(about, metadata.TensorStorageMetadata):
            chunks = [
                dataclasses.replace(each, offsets=each.offsets[cut], sizes=each.sizes[cut]) for each in about.chunks
            ]
            about = dataclasses.replace(about, size=about.size[cut], chunks=chunks)
        entries[_todays(name)] = about
    places = {}
    for index, place in found.storage_data.items():
        cut = slice(1 if _per_row(index.fqn, found.state_dict_metadata[index.fqn]) else None)
        offset = None if index.offset is None else index.offset[cut]
        places[dataclasses.replace(index, fqn=_todays(index.fqn), offset=offset)] = place
    return dataclasses.replace(found, state_dict_metadata=entries, storage_data=places)


def _todays(name: str) -> str:
    """Return the name of an entry as `checkpoint.state` gives it."""
    name = stored_name(name)
    if not name.startswith(_REPLICATED):
        return name
    key, _, state = name.removeprefix(_REPLICATED).rpartition(".")
    return f"optimizer_tables.{key}.{key.split('.')[-2]}.{FUSED_NAMES.get(state, state)}"


def _per_row(name: str, about: metadata.STORAGE_TYPES) -> bool:
    """Return whether an entry is an accumulator per row, which once was a column."""
    column = isinstance(about, metadata.TensorStorageMetadata) and about.size[1:] == torch.Size([1])
    return column and name.startswith(_REPLICATED) and name.endswith(".sum")


def _tensor(part: IO[bytes]) -> torch.Tensor:
    return torch.load(part, "cpu", weights_only=True)


class Planner(DefaultLoadPlanner):
    """DCP's planner, with torch's own restricted unpickler for what is no tensor."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Keep one value that is no tensor. DCP's own would run what is pickled in it."""
        checked = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), checked)
        checked.seek(0)
        super().load_bytes(read_item, checked)
