"""Loading an exported file with the tables that lie beside it."""

import json
from pathlib import Path

import torch

from livetrain.modules.tables import mapped


def load(folder: Path, file: str = "model.pt") -> torch.jit.ScriptModule:
    """Return an export's file, ready to score.

    Args:
        folder: the export. Its signature.json says as ``stored`` which tables lie in files of their own; those are
            mapped: processes of one machine share them, and only rows that are looked up are read.
        file: ``model.pt``, or ``user.pt`` or ``item.pt`` of a model with two towers.
    """
    scored = torch.jit.load(str(folder / file)).eval()
    signature = json.loads((folder / "signature.json").read_text(encoding="utf-8"))
    if "stored" in signature:
        scored.attach(mapped.opened(folder, signature["stored"]))
    return scored
