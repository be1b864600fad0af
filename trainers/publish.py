"""Published models: what servers read. Each version is a folder that is whole or not there, and one pointer names one.

    <where>/current.json            {"version", "fence", "folder", ...}: the version to serve
    <where>/<version>.<fence>/      an export: model.pt, signature.json, golden.json, ..., manifest.json (last)

`fence` rises with every publication. A server keeps the largest that it has seen and turns down a smaller one, so that
a late writer, or a pointer read from a stale cache, never takes it back to an older model.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from configs.errors import BadInput, without_credentials
from trainers import manifest
from trainers.data.files import open_filesystem, short, shown

POINTER = "current.json"
_FOLDER = re.compile(r"(?P<version>.+)\.(?P<fence>\d{6,})")


def current(where: str) -> dict[str, Any] | None:
    """Return what the pointer says, or None where nothing was published.

    Raises:
        BadInput: the place cannot be read, or its pointer is none of this project's.
    """
    system, root = open_filesystem(where)
    path = f"{root}/{POINTER}"
    try:
        if system.get_file_info(path).type != fs.FileType.File:
            return None
        with system.open_input_stream(path) as file:
            content = json.loads(file.read())
        return {**content, "version": str(content["version"]), "fence": int(content["fence"])}
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"{shown(system, path)} cannot be read ({short(error)}); mend the place, or choose another"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{shown(system, path)} is no pointer to a published model; choose another place") from error


def replaced(where: str, version: str) -> dict[str, Any] | None:
    """Return the pointer that publishing a version would replace, or None where nothing was published.

    Raises:
        BadInput: see `current`; a later version is published already.
    """
    before = current(where)
    if before is not None and before["version"] > version:
        raise BadInput(
            f"{without_credentials(where)}: version {before['version']} is published, and {version} is older; a model "
            f"never goes back by accident: to go back, let {POINTER} name the folder with a larger fence"
        )
    return before


def publish(export: Path, where: str, version: str, keep: int, **about: Any) -> dict[str, Any]:
    """Copy an export to where servers read, and let the pointer name it. The pointer is written last.

    Args:
        export: a folder that `trainers.export.export` wrote.
        where: folder or URI.
        version: sorts after all published before it, as a date does; publishing the present one again replaces it.
        keep: versions that stay, this one included; older ones are deleted.
        about: further entries of the pointer.

    Returns:
        The pointer's content.

    Raises:
        BadInput: the export is damaged, the place cannot be written, or a later version is published already. The
            pointer is as before.
    """
    files = manifest.read(export)
    if files is None or (damaged := manifest.damage(export, files)):
        raise BadInput(f"{damaged if files else f'{export}: no export is here'}; export the run again")
    before = replaced(where, version)
    fence = 1 + (before["fence"] if before is not None else 0)
    content = {"version": version, "fence": fence, "folder": f"{version}.{fence:06d}", **about}
    system, root = open_filesystem(where)
    folder = f"{root}/{content['folder']}"
    try:
        system.create_dir(folder, recursive=True)
        for name in [*files["files"], manifest.MANIFEST]:
            fs.copy_files(str(export / name), f"{folder}/{name}", fs.LocalFileSystem(), system)
        _write(system, f"{root}/{POINTER}", content)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"{shown(system, folder)} cannot be written ({short(error)}); mend the place, or choose another"
        ) from error
    with contextlib.suppress(pa.ArrowException, OSError):  # the version is published, whatever else still lies there
        _prune(system, root, keep)
    return content


def _write(system: fs.FileSystem, path: str, content: dict[str, Any]) -> None:
    """Replace a small object as a whole, which an object store does by itself."""
    if isinstance(system, fs.LocalFileSystem):
        manifest.write_json(Path(path), content)
        return
    with system.open_output_stream(path) as file:
        file.write(json.dumps(content).encode())


def _prune(system: fs.FileSystem, root: str, keep: int) -> None:
    """Delete all but the newest `keep` versions; what a publication that failed has left goes too, by its fence."""
    found = [
        info.base_name for info in system.get_file_info(fs.FileSelector(root)) if _FOLDER.fullmatch(info.base_name)
    ]
    for name in sorted(found, key=lambda name: int(_FOLDER.fullmatch(name)["fence"]))[:-keep]:
        system.delete_dir(f"{root}/{name}")
