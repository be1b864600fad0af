"""Lists of ids as they are, cut to their newest entries by whoever reads them."""

from livetrain.configs.features.sequence import SequenceFeature
from livetrain.modules.features.registry import register_feature
from livetrain.modules.features.transform import Transform


@register_feature("sequence", SequenceFeature)
class Sequence(Transform):
    """ids -> ids"""
