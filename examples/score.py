"""Score rows with an exported file: python examples/score.py runs/<name>/export"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

folder = Path(sys.argv[1])
model = torch.jit.load(folder / "model.pt").eval()
signature, rows = (json.loads((folder / f"{name}.json").read_text()) for name in ("signature", "golden"))
if "stored" in signature:  # tables that lie in files of their own are mapped: rows are read as they are looked up
    model.attach(
        {
            name: torch.from_file(
                str(folder / table["file"]), size=math.prod(table["shape"]), dtype=getattr(torch, table["dtype"])
            ).view(table["shape"])
            for name, table in signature["stored"].items()
        }
    )
ids = {name: torch.tensor(values, dtype=torch.int64) for name, values in rows["ids"].items()}
lengths = {name: torch.tensor(counts) for name, counts in rows["lengths"].items()}
dense = {name: torch.tensor(np.array(column, np.float32)) for name, column in rows["dense"].items()}  # None is NaN
with torch.no_grad():
    for task, scores in model(ids, lengths, dense).items():
        print(task, scores[:3].tolist(), "recorded:", rows["scores"][task][:3])
