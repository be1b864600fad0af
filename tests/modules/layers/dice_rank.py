"""One rank of test_dice's comparison: python dice_rank.py RANK WORLD FOLDER. Kept apart so that it imports little."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from modules.layers.dice import Dice
from modules.layers.distributed import all_reduce_sum

# Rows of rank 0 in each step of 13 rows; rank 1 has the rest. In the last step rank 1 has none.
SPLITS = [9, 4, 13]


def network() -> torch.nn.ModuleList:
    torch.manual_seed(3)
    layers = torch.nn.ModuleList([torch.nn.Linear(6, 8), Dice(8), torch.nn.Linear(8, 8), Dice(8)])
    for dice in (layers[1], layers[3]):
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
        hidden = layers[1](layers[0](x), weights[mine])
        y = layers[3](layers[2](hidden), weights[mine])
        (y * upstream[mine]).sum().backward()
        outputs.append(y.detach())
        gradients.append(x.grad)
    parameters = {name: parameter.grad for name, parameter in layers.named_parameters()}
    return {"y": outputs, "x": gradients, "parameters": parameters, "buffers": dict(layers.named_buffers())}


def reduced(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the all-reduced sum of (rank + 1) * [1, 2] and its gradient under the weight rank + 1."""
    x = (torch.tensor([1.0, 2.0]) * (rank + 1)).requires_grad_()
    total = all_reduce_sum(x)
    (total * (rank + 1)).sum().backward()
    return total.detach(), x.grad


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save({"steps": steps(rank, world), "reduced": reduced(rank)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
