"""A model that was compiled for this kind of processor, called as the scripted one is, whose tensors it uses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from livetrain.modules.serving.flat import Columns, Way


def flags_here() -> set[str]:
    """Return what this processor can do, by the names in /proc/cpuinfo; none on another system than Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}


def unfit(about: Mapping[str, Any]) -> str | None:
    """Return why .pt2 files cannot be loaded here, in words; None where they can.

    Args:
        about: `compiled` of signature.json.
    """
    here = torch.__version__.partition("+")[0]
    if about["torch"] != here:
        return f"it was compiled for torch {about['torch']}, and this is {here}"
    missing = sorted({*about["flags"]} - flags_here())
    return f"it was compiled for a processor with {', '.join(missing)}" if missing else None


class Compiled(nn.Module):
    """A .pt2 file. It holds code alone: what a delta changes in the scripted model it scores by at once.

    Args:
        path: of the file.
        about: `flat` of signature.json, of this file.
        scripted: the loaded model.pt, or the tower's file, with its tables attached.

    Raises:
        RuntimeError: it cannot be loaded, or is another model's.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], scripted: nn.Module) -> None:
        super().__init__()
        self._columns, self._about = Columns(about), about
        named = [*scripted.named_parameters(remove_duplicate=False), *scripted.named_buffers(remove_duplicate=False)]
        self._tensors = {f"module.{name}": value.detach() for name, value in named}  # kept, for the code has them not
        self._code = {way: _loaded(path, way, self._tensors) for way in about["ways"]}

    def forward(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> Any:
        """As `Scorer.forward`, or of a tower as `Encoder.forward`."""
        found = self._call("forward", self._columns.forward(ids, lengths, dense))
        return found["vectors"] if self._about["outputs"] == ["vectors"] else found

    def rank(self, ids: dict[str, Tensor], lengths: dict[str, Tensor], dense: dict[str, Tensor]) -> dict[str, Tensor]:
        """As `Scorer.rank`."""
        return self._call(*self._columns.rank(ids, lengths, dense))

    def _call(self, way: Way, columns: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._about["outputs"], self._code[way].run(columns), strict=True))


def _loaded(path: Path, way: str, tensors: Mapping[str, Tensor]) -> Any:
    found = torch._C._aoti.AOTIModelPackageLoader(str(path), way, True, 1, -1)
    wanted = found.get_constant_fqns()
    if missing := [name for name in wanted if name not in tensors]:
        raise RuntimeError(f"{path}: the scripted model beside it has no '{missing[0]}'")
    found.load_constants({name: tensors[name] for name in wanted}, False, True, True)
    return found
