"""RankMixer: a row's features as tokens that exchange their parts (Zhu et al., CIKM 2025, arXiv 2507.15551)."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Section, Task
from livetrain.configs.values import Few, Size
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.bottom import Bottom, BottomConfig, Reading
from livetrain.modules.layers.rankmixer import MixerBlock, Tokens
from livetrain.modules.models.multitask import MultiTask, MultiTaskConfig, Towers
from livetrain.modules.models.registry import register_model
from livetrain.modules.tasks.heads import Heads


class RankMixerKeys(Section):
    """What stands between the features and the tasks."""

    kind: Literal["rankmixer"]
    tokens: Few = Field(8, description="slices of a row's vector; they divide width")
    width: Size = Field(64, description="size of a token")
    blocks: Few = 2
    expansion: Few = Field(2, description="hidden units of a token's perceptron for each of its numbers")

    has_unit: ClassVar[bool] = True  # an activation unit, with the keys of `BottomConfig`

    @model_validator(mode="after")
    def _divides(self) -> "RankMixerKeys":
        if self.width % self.tokens:
            raise BadInput(
                f"model: {self.tokens} tokens exchange parts of width {self.width}, which they must divide; "
                f"set width: {self.tokens * max(1, round(self.width / self.tokens))}, or other tokens"
            )
        return self

    def bottom(self, config: BottomConfig, inputs: Inputs) -> Reading:
        """Return what reads a row's features."""
        return RankMixerBottom(self, config, inputs)


class RankMixerConfig(RankMixerKeys, MultiTaskConfig):
    """Tokens of features and of attention over histories, mixed; then a tower per task."""

    kind: Literal["rankmixer"] = "rankmixer"


class RankMixerBottom(Reading):
    """x = mean over tokens of blocks(tokens of e), e = [ids, pooled, dense, each attention's sums] of `Bottom`

    e is cut into slices of one length in the order of the recipe's features: which features share a token, and which
    part of one token another one gets, follows from that order.

    Args:
        keys: tokens and blocks.
        config: of `Bottom`.
        inputs: the recipe's features.

    Attributes:
        width: of x.
    """

    def __init__(self, keys: RankMixerKeys, config: BottomConfig, inputs: Inputs) -> None:
        super().__init__()
        self.bottom = Bottom(config, inputs)
        self.width = keys.width
        if self.bottom.width < keys.tokens:
            raise BadInput(
                f"model: the features have {self.bottom.width} numbers in all, too few for {keys.tokens} tokens; "
                "lower tokens"
            )
        self.tokens = Tokens(self.bottom.width, keys.tokens, keys.width)
        self.blocks = nn.ModuleList(MixerBlock(keys.tokens, keys.width, keys.expansion) for _ in range(keys.blocks))

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """See `Reading`."""
        tokens = self.tokens(self.bottom(values, lengths, dense, weights))
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.mean(1)


@register_model("rankmixer", RankMixerConfig)
class RankMixer(MultiTask):
    """y_k = tower_k(x), x from `RankMixerBottom`.

    Decided here, as the paper leaves it open: features are cut in the recipe's order, and the activations of the
    tokens' perceptrons are GELU. The paper's sparse experts are left out.

    Args:
        config: see `RankMixerConfig`.
        inputs: the recipe's features.
        tasks: one tower each.

    Raises:
        BadInput: the config does not fit the features, see `Bottom`; or there are fewer numbers than tokens.
    """

    def __init__(self, config: RankMixerConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        bottom = RankMixerBottom(config, config, inputs)
        super().__init__(bottom, Towers(config, tasks, bottom.width), Heads(tasks))
