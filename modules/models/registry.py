"""The dense networks by `model.kind`."""

from collections.abc import Callable

from torch import nn

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.registry import register_config

_NETWORKS: dict[str, type[nn.Module]] = {}
REGULARISER = "(regulariser)"  # no task can have this name


def register(kind: str, config: type) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Make the decorated class the network of `kind`, and `config` the class that checks its recipe section.

    The network is built as `network(config, inputs, tasks)`, tasks being the recipe's, and called as
    `forward(values, lengths, dense, weights) -> {task: logits (B,)}`, which modules.tasks.heads.Heads makes of the
    network's last layer; torch.jit.script must accept it.
    In training the answer may have a further entry, REGULARISER -> (): a loss of the network's own, which no combiner
    of the tasks' gradients weighs. It is weighted already, R times this rank's part of the global batch's, as trainers'
    losses are, and reaches nothing beyond the network's `trunk`.
    A network with the class attribute `shares = True` also takes, when serving, features of one row that all rows of
    `dense` share; for the others modules.serving.scorer repeats them.
    A network with an attribute `key`, the name of an id feature, is given that feature's raw ids wherever it is given
    weights, as a further argument (sum of lengths,).
    A network with a module `towers`, as modules.models.dssm.Towers, finds items by the product of the two vectors that
    it answers: it learns tasks of kind retrieval, and no other network does.
    """

    def enter(network: type[nn.Module]) -> type[nn.Module]:
        register_config(kind, config)
        _NETWORKS[kind] = network
        return network

    return enter


def network(kind: str) -> type[nn.Module]:
    """Return the network class of `kind`.

    Raises:
        BadInput: no model has this name.
    """
    if kind not in _NETWORKS:
        raise BadInput(f"model.kind: there is no model '{kind}'{nearest(kind, _NETWORKS)}")
    return _NETWORKS[kind]


register_model = register  # the name of the public API
