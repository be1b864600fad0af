"""What a run asks of a network before it trains."""

import pytest
import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import ModelConfig
from livetrain.modules.layers import jagged
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import Network
from livetrain.modules.serving.proof import prove
from livetrain.modules.tasks.heads import Heads
from livetrain.trainers.train import preflight
from tests import samples


class BareConfig(ModelConfig):
    """No keys of its own."""


class Bare(Network):
    """A linear model of the user, the mean of a history and the numbers; subclasses read them in other ways."""

    shares = True

    def __init__(self, config, inputs, tasks) -> None:
        super().__init__()
        width = inputs.ids["user"] + inputs.sequences["history"] + len(inputs.dense)
        self.last = torch.nn.Linear(width, len(tasks))
        self.heads = Heads(tasks)

    def parts(self, values: dict[str, torch.Tensor], lengths: dict[str, torch.Tensor], size: int):
        return self.row(values, lengths, "user", size), self.pool(values, lengths, "history", size)

    def forward(self, values, lengths, dense, weights=None):
        return self.heads(self.last(torch.cat([*self.parts(values, lengths, dense.size(0)), dense], 1)).unbind(1))


@register_model("test_right", BareConfig)
class Right(Bare):
    def forward(
        self,
        values: dict[str, torch.Tensor],
        lengths: dict[str, torch.Tensor],
        dense: torch.Tensor,
        weights: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        size = dense.size(0)
        parts = [self.row(values, lengths, "user", size), self.pool(values, lengths, "history", size), dense]
        return self.heads(self.last(torch.cat(parts, 1)).unbind(1))


@register_model("test_naive", BareConfig)
class Naive(Bare):
    def parts(self, values, lengths, size):
        return values["user"], self.pool(values, lengths, "history", size)


@register_model("test_folded", BareConfig)
class Folded(Bare):
    """Takes the embeddings that there are as the first rows'."""

    def parts(self, values, lengths, size):
        user = torch.nn.functional.pad(values["user"], (0, 0, 0, size - len(values["user"])))
        return user, self.pool(values, lengths, "history", size)


@register_model("test_mixing", BareConfig)
class Mixing(Bare):
    def parts(self, values, lengths, size):
        user, history = super().parts(values, lengths, size)
        return user - user.mean(0), history


@register_model("test_unshared", BareConfig)
class Unshared(Right):
    """Says that it takes features which rows share, and does not."""

    def row(self, values: dict[str, torch.Tensor], lengths: dict[str, torch.Tensor], feature: str, size: int):
        found = super().row(values, lengths, feature, size)
        return found if lengths["history"].size(0) == size else found * 2


@register_model("test_served", BareConfig)
class Served(Right):
    """Takes features that all rows share, and none that those of a request share."""

    def pool(self, values: dict[str, torch.Tensor], lengths: dict[str, torch.Tensor], feature: str, size: int):
        return jagged.pool(values[feature], lengths[feature], True).expand(size, -1)


@register_model("test_unscripted", BareConfig)
class Unscripted(Bare):
    def forward(self, values, lengths, dense, weights=None):
        size = dense.size(0)
        rest = {"user": self.row(values, lengths, "user", size), "history": self.pool(values, lengths, "history", size)}
        x = torch.cat([rest[name] for name in sorted(rest, key=lambda name: -len(name))][::-1] + [dense], 1)
        return self.heads(self.last(x).unbind(1))


@register_model("test_one_task", BareConfig)
class OneTask(Bare):
    def forward(self, values, lengths, dense, weights=None):
        return {"other": super().forward(values, lengths, dense, weights)["click"]}


def made(kind: str, **changes):
    return samples.recipe("unused", model={"kind": kind}, **changes)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("naive", r"'test_naive' fails on rows of which some lack a feature \(.*at test_proof.py:\d+\); .*by self.row"),
        ("folded", "'test_folded' scores a row otherwise beside other rows than alone .*; read ids by self.row"),
        ("mixing", "'test_mixing' scores a row otherwise beside other rows than alone"),
        ("unshared", "'test_unshared' scores otherwise where rows share features .*leave `shares` out"),
        ("unscripted", r"'test_unscripted' cannot be exported: TorchScript refuses it \(.*at test_proof.py:\d+\)"),
        (
            "one_task",
            "'test_one_task' answers no logit of task 'click'; end its forward with modules.tasks",
        ),
    ],
)
def test_a_network_that_cannot_serve_is_refused_in_one_sentence(kind, said):
    with pytest.raises(BadInput, match=said) as error:
        prove(made(f"test_{kind}"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_the_views_of_the_base_class_are_right():
    prove(made("test_right"))
    prove(made("test_right", data__layout="request", data__candidates=4))


def test_a_network_that_knows_no_requests_is_refused_where_the_data_are_such():
    prove(made("test_served"))
    with pytest.raises(BadInput, match="'test_served' fails on rows of one request .*or leave `shares` out"):
        prove(made("test_served", data__layout="request", data__candidates=4))


def test_a_run_proves_it_before_it_looks_at_data():
    with pytest.raises(BadInput, match="'test_naive' fails on rows of which some lack a feature"):
        preflight.check(made("test_naive"), print)


def test_only_networks_can_be_registered():
    with pytest.raises(TypeError, match="must be a subclass of livetrain.Network"):
        register_model("test_no_network", BareConfig)(torch.nn.Linear)
