"""An export as a model of Triton Inference Server, of its Python backend.

    DIR/NAME/config.pbtxt    the tensors, by the names of the wire (docs/guide/clients.md)
    DIR/NAME/1/              a version: model.py (trainers.export.triton_model) and the export's files
    DIR/NAME/2/              the next one; Triton serves the newest by default

The layout and the configuration are Triton's own: docs/user_guide/model_repository.md and model_configuration.md of
triton-inference-server/server. A version appears by one rename, so that a server that polls never sees half of it.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from livetrain.configs.errors import BadInput
from livetrain.trainers.export import triton_model

CONFIG = "config.pbtxt"
_NEEDED = ("model.pt", "signature.json", "golden.json")


class Declared(NamedTuple):
    """A tensor of a request or an answer.

    Attributes:
        name: as on the wire.
        datatype: INT64 or FP32.
        dims: sizes, -1 where any goes.
        optional: whether it may be left out.
    """

    name: str
    datatype: str
    dims: list[int]
    optional: bool = False


def tensors(signature: Mapping[str, Any]) -> tuple[list[Declared], list[Declared]]:
    """Return what a model takes and what it answers.

    Example:
        >>> movie = {"dtype": "int64", "table": "movie"}
        >>> taken, given = tensors({"features": {"movie": movie}, "tasks": {"click": {}}})
        >>> [each.name for each in taken + given]
        ['ids.movie', 'lengths.movie', 'click']
    """
    taken: list[Declared] = []
    for name, about in signature["features"].items():
        match about.get("dtype"):
            case "int64":
                taken.append(Declared(f"ids.{name}", "INT64", [-1]))
                taken.append(Declared(f"lengths.{name}", "INT64", [-1], optional="max_length" not in about))
                if beside := about.get("beside"):
                    taken.append(Declared(f"dense.{name}", "FP32", [-1, beside] if beside > 1 else [-1]))
            case "float32":
                width = about.get("width", 1)
                taken.append(Declared(f"dense.{name}", "FP32", [-1, width] if width > 1 else [-1]))
    scores = [*signature["tasks"], *([signature["fusion"]["name"]] if "fusion" in signature else [])]
    return taken, [Declared(name, "FP32", [-1]) for name in scores]


def write(export: Path, repository: Path, name: str) -> Path:
    """Add an export to a model repository, as the next version of a model.

    Args:
        export: its folder.
        repository: Triton's; it is made where there is none.
        name: of the model in it.

    Returns:
        The version's folder.

    Raises:
        BadInput: the export finds items instead of scoring them, or the repository cannot be written, or holds another
            model of this name.
    """
    signature = json.loads((export / "signature.json").read_text(encoding="utf-8"))
    if "top" in signature:
        raise BadInput("--triton: the run finds items and scores no rows; put a run that ranks into the repository")
    config = _config(name, signature)
    place = repository / name
    found = (place / CONFIG).read_text(encoding="utf-8") if (place / CONFIG).exists() else config
    if found != config:
        raise BadInput(
            f"--triton: {place} is another model, with other tensors; name another folder, or rename the run"
        )
    draft = place / f".draft-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        draft.mkdir(parents=True)
        for path in _files(export):
            _linked(path, draft / path.name)
        shutil.copyfile(triton_model.__file__, draft / "model.py")
        (place / CONFIG).write_text(config, encoding="utf-8")
        numbers = [int(p.name) for p in place.iterdir() if p.name.isdecimal() and not p.name.startswith("0")]
        return draft.rename(place / str(max(numbers, default=0) + 1))
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise BadInput(f"--triton: {place} cannot be written ({error.strerror}); choose another place") from error


def _files(export: Path) -> Iterator[Path]:
    stored = json.loads((export / "signature.json").read_text(encoding="utf-8")).get("stored", {})
    for file in (*_NEEDED, *sorted({about["file"] for about in stored.values()})):
        yield export / file


def _linked(path: Path, target: Path) -> None:
    """Link a file, or copy it where that cannot be; an export's files are never written to again."""
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)


def _config(name: str, signature: Mapping[str, Any]) -> str:
    taken, given = tensors(signature)
    parts = [f"name: {json.dumps(name)}", 'backend: "python"', "max_batch_size: 0"]
    for kind, declared in (("input", taken), ("output", given)):
        parts += [f"{kind} {{\n{_fields(each)}\n}}" for each in declared]
    return "\n".join([*parts, "instance_group { kind: KIND_CPU }"]) + "\n"


def _fields(tensor: Declared) -> str:
    lines = [f"name: {json.dumps(tensor.name)}", f"data_type: TYPE_{tensor.datatype}", f"dims: {tensor.dims}"]
    return "\n".join(f"  {line}" for line in [*lines, *(["optional: true"] if tensor.optional else [])])
