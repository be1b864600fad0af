"""What every model's section is; the models' own are in modules/models."""

from livetrain.configs.schema.section import Section
from livetrain.configs.values import Text


class ModelConfig(Section):
    """Base of every model's own config; `kind` is the name under which the model is registered."""

    kind: Text
