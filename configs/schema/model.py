"""What every model's section is; the models' own are in modules/models."""

from livetrain.configs.schema.section import Section
from livetrain.configs.values import Text


class ModelConfig(Section):
    """Base of every model's own config; `kind` is the name under which the model is registered."""

    kind: Text

    def also_reads(self) -> list[tuple[str, str, str]]:
        """Return (column, kind, recipe key) of what the model is fitted on besides features and labels.

        The kinds are those of trainers.data.read.columns: "group" of ids of any type, "number", "sequence".
        """
        return []
