"""Score rows with an exported file: python examples/score.py runs/<name>/export"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

folder = sys.argv[1]
model, rows = torch.jit.load(f"{folder}/model.pt").eval(), json.loads(Path(folder, "golden.json").read_text())
ids = {name: torch.tensor(values, dtype=torch.int64) for name, values in rows["ids"].items()}
lengths = {name: torch.tensor(counts) for name, counts in rows["lengths"].items()}
dense = {name: torch.tensor(np.array(column, np.float32)) for name, column in rows["dense"].items()}  # None is NaN
with torch.no_grad():
    for task, scores in model(ids, lengths, dense).items():
        print(task, scores[:3].tolist(), "recorded:", rows["scores"][task][:3])
