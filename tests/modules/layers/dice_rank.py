"""One rank of test_dice's comparison: python dice_rank.py RANK WORLD FOLDER WAY. Apart, so that it imports little."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from livetrain.modules.layers import compiled
from livetrain.modules.layers.attention import ActivationUnit
from livetrain.modules.layers.distributed import all_reduce_sum
from livetrain.modules.layers.mlp import MLP
from livetrain.trainers.train import compiled_layers

# Rows of rank 0 in each step of 13 rows; rank 1 has the rest. In the last step rank 1 has none.
SPLITS = [9, 4, 13]


def network() -> MLP:
    torch.manual_seed(3)
    layers = MLP(6, [8, 8], "dice")
    for dice in layers.activations:
        torch.nn.init.uniform_(dice.alpha, -0.5, 0.5)
    return layers.double()  # so that rounding hides nothing


def steps(rank: int, world: int) -> dict:
    """Run three training steps on this rank's rows; gradients are summed over the steps."""
    layers = network()
    generator = torch.Generator().manual_seed(4)
    outputs, gradients = [], []
    for split in SPLITS:
        x = torch.randn(13, 6, generator=generator).double() + 2
        weights = (torch.rand(13, generator=generator) < 0.7).double()
        upstream = torch.randn(13, 8, generator=generator).double()
        mine = slice(0, 13) if world == 1 else slice(0, split) if rank == 0 else slice(split, 13)
        x = x[mine].requires_grad_()
        y = layers(x, weights[mine])
        (y * upstream[mine]).sum().backward()
        outputs.append(y.detach())
        gradients.append(x.grad)
    parameters = {name: parameter.grad for name, parameter in layers.named_parameters()}
    return {"y": outputs, "x": gradients, "parameters": parameters, "buffers": dict(layers.named_buffers())}


def histories(rank: int, world: int) -> dict:
    """Pool the histories of this rank's rows twice; gradients are summed over the passes."""
    torch.manual_seed(5)
    unit = ActivationUnit(4, 2, [6, 3]).double()
    for name, parameter in unit.named_parameters():
        if name.endswith("alpha"):
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    generator = torch.Generator().manual_seed(6)
    outputs, gradients = [], []
    for split in SPLITS:
        lengths = torch.randint(0, 5, (13,), generator=generator)
        weights = (torch.rand(13, generator=generator) < 0.7).double()
        query = torch.randn(13, 4, generator=generator).double()
        events, side = (torch.randn(int(lengths.sum()), size, generator=generator).double() for size in (4, 2))
        upstream = torch.randn(13, 6, generator=generator).double()
        mine = slice(0, 13) if world == 1 else slice(0, split) if rank == 0 else slice(split, 13)
        events, side = (torch.cat([x[:0], *x.split(lengths.tolist())[mine]]) for x in (events, side))
        inputs = [x.requires_grad_() for x in (query[mine], events, side)]
        pooled = unit(*inputs, lengths[mine], weights[mine])
        (pooled * upstream[mine]).sum().backward()
        outputs.append(pooled.detach())
        gradients.append([x.grad for x in inputs])
    parameters = {name: parameter.grad for name, parameter in unit.named_parameters()}
    return {"y": outputs, "inputs": gradients, "parameters": parameters, "buffers": dict(unit.named_buffers())}


def reduced(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the all-reduced sum of (rank + 1) * [1, 2] and its gradient under the weight rank + 1."""
    x = (torch.tensor([1.0, 2.0]) * (rank + 1)).requires_grad_()
    total = all_reduce_sum(x)
    (total * (rank + 1)).sum().backward()
    return total.detach(), x.grad


def main(rank: int, world: int, folder: Path, way: str) -> None:
    torch.set_num_threads(1)
    if way == "compiled":
        compiled.use(compiled_layers.library(torch.float64))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = {"steps": steps(rank, world), "histories": histories(rank, world), "reduced": reduced(rank)}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
