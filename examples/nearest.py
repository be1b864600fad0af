"""Find the items nearest to each user with an exported dssm: python examples/nearest.py runs/<name>/export"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from livetrain.modules.serving.loading import load

folder = Path(sys.argv[1])
if not (folder / "item.pt").exists():
    sys.exit(f"{folder}/item.pt is missing; give the export of a run whose model.kind is dssm")
user, item = (load(folder, f"{side}.pt") for side in ("user", "item"))
# Rows of a user and an item each. Of its own side's features, which signature.json names, a tower takes what it needs.
rows = json.loads((folder / "golden.json").read_text())
ids = {name: torch.tensor(values, dtype=torch.int64) for name, values in rows["ids"].items()}
lengths = {name: torch.tensor(counts) for name, counts in rows["lengths"].items()}
dense = {name: torch.tensor(np.array(column, np.float32)) for name, column in rows["dense"].items()}  # None is NaN
with torch.no_grad():
    scores = user(ids, lengths, dense) @ item(ids, lengths, dense).T  # (users, items), or (users, interests, items)
scores = scores.amax(1) if scores.dim() == 3 else scores
for row, found in enumerate(scores.topk(3).indices[:3].tolist()):
    print(f"nearest to the user of row {row}: the items of rows {found}")
