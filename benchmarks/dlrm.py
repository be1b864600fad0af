"""DLRM and DLRM-DCNv2 as recipes, to compare forecasts with what others have published of them."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from livetrain.configs.schema import ModelConfig, Recipe, Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.cross import Cross
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import Network
from livetrain.modules.tasks.heads import Heads

DIM, NUMBERS = 128, 13
# Rows of Criteo's 26 tables: capped at 40 million as MLPerf's DLRM-DCNv2 has them, and as TorchRec's DLRM has them.
MLPERF = [
    40_000_000,
    39060,
    17295,
    7424,
    20265,
    3,
    7122,
    1543,
    63,
    40_000_000,
    3067956,
    405282,
    10,
    2209,
    11938,
    155,
    4,
]
MLPERF += [976, 14, 40_000_000, 40_000_000, 40_000_000, 590152, 12973, 108, 36]
TORCHREC = [45833188, 36746, 17245, 7413, 20243, 3, 7114, 1441, 62, 29275261, 1572176, 345138, 10, 2209, 11267, 128, 4]
TORCHREC += [974, 14, 48937457, 11316796, 40094537, 452104, 12606, 104, 35]
HOT = [3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1]  # ids per row, DLRM-DCNv2


class DLRMConfig(ModelConfig):
    """See `DLRM`."""

    kind: Literal["dlrm"] = "dlrm"
    interaction: Literal["dot", "cross"] = "dot"


@register_model("dlrm", DLRMConfig)
class DLRM(Network):
    """Numbers through 512-256-128; all 27 vectors interact; 1024-1024-512-256-1 on top.

    Source: Naumov et al., 1906.00091; MLPerf's DLRM-DCNv2: three cross layers of rank 512 in the place of dot products.
    """

    def __init__(self, config: DLRMConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        self.ids, fields = list(inputs.ids), len(inputs.ids) + 1
        self.bottom = layers([NUMBERS, 512, 256, DIM])
        self.dot = config.interaction == "dot"
        self.cross = Cross(fields * DIM, 3, 512)
        self.top = layers([DIM + fields * (fields - 1) // 2 if self.dot else fields * DIM, 1024, 1024, 512, 256])
        self.last, self.heads = nn.Linear(256, 1), Heads(tasks)
        self.register_buffer("pairs", torch.tril_indices(fields, fields, -1), persistent=False)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        number = self.bottom(dense)
        parts = [number] + [self.row(values, lengths, name, dense.size(0)) for name in self.ids]
        if self.dot:
            x = torch.stack(parts, 1)  # (B, 27, 128)
            x = torch.cat([number, torch.bmm(x, x.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]], 1)
        else:
            x = self.cross(torch.cat(parts, 1))
        return self.heads(self.last(self.top(x)).unbind(1))


def layers(sizes: list[int]) -> nn.Sequential:
    """Return linear layers with a ReLU after each."""
    return nn.Sequential(
        *(part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU()))
    )


def recipe(workers: int, batch: int, rows: list[int], hot: list[int] | None, **train: Any) -> Recipe:
    """Return a recipe of DLRM; with `hot` of DLRM-DCNv2, with so many ids per row of each feature."""
    features: dict[str, Any] = {f"n{n}": {"type": "dense"} for n in range(NUMBERS)}
    for n in range(len(rows)):
        more = {"type": "bag", "pooling": "sum", "max_length": hot[n]} if hot else {"type": "id"}
        features[f"c{n}"] = {"table": f"t{n}", **more}
    return Recipe.model_validate(
        {
            "data": {"path": "nowhere", "batch_size": batch, "shards": workers, "threads": 12},
            "features": features,
            "tables": {f"t{n}": {"rows": count, "dim": DIM, "hash": "modulo"} for n, count in enumerate(rows)},
            "model": {"kind": "dlrm", "interaction": "cross" if hot else "dot"},
            "tasks": {"click": {"label": "click"}},
            "optimizers": {"sparse": {"kind": "rowwise_adagrad" if hot else "sgd", "lr": 0.01}},
            "train": train,
            "cluster": {"workers": workers, "device": "cuda", "quantize_comms": "fp16" if hot else "none"},
        }
    )
