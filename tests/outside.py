"""A package of somebody else's, outside the tree, with a model of its own."""

import sys
from pathlib import Path

MODEL = '''
"""A bias, a weight per number, and the sum of the first column of every id's row."""

from typing import Literal

import torch
from torch import Tensor, nn

import livetrain
from livetrain.configs.schema import ModelConfig
from livetrain.modules.layers import jagged
from livetrain.modules.tasks.heads import Heads
from {package}.sizes import START


class {name}Config(ModelConfig):
    kind: Literal["{kind}"] = "{kind}"
    scale: float = 1.0


@livetrain.register_model("{kind}", {name}Config)
class {name}(livetrain.Network):
    def __init__(self, config, inputs, tasks) -> None:
        super().__init__()
        self.features: list[str] = [*inputs.ids, *inputs.sequences]
        self.scale = config.scale
        self.linear = nn.Linear(len(inputs.dense), len(tasks))
        nn.init.constant_(self.linear.weight, START)
        self.heads = Heads(tasks)

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        logit = self.linear(dense)  # (B, T)
        for name in self.features:
            logit = logit + self.scale * jagged.pool(values[name][:, :1], lengths[name], False)
        return self.heads(logit.unbind(1))
'''


def write(folder: Path, package: str, kind: str = "") -> Path:
    """Write `package` below a folder, with a module `models` that registers the model `kind` (by default its name)."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    (folder / package / "sizes.py").write_text("START = 0.0\n")
    kind = kind or package
    name = "".join(part.title() for part in kind.split("_"))
    (folder / package / "models.py").write_text(MODEL.format(package=package, kind=kind, name=name).lstrip())
    return folder / package


def forget(package: str) -> None:
    """Have this process know no more of a package than one that has just started."""
    from livetrain.configs.registry import FEATURES, MODELS, OPTIMIZERS, TASKS

    for kinds in (MODELS, FEATURES, TASKS, OPTIMIZERS):
        for kind in [kind for kind, owner in kinds._owners.items() if owner.__module__.split(".")[0] == package]:
            del kinds._configs[kind], kinds._owners[kind]
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
