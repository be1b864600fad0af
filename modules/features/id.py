"""Ids as they are: their table's hash makes rows of them (see modules.tables.hashing)."""

from livetrain.configs.features.id import IdFeature
from livetrain.modules.features.registry import register_feature
from livetrain.modules.features.transform import Transform


@register_feature("id", IdFeature)
class Id(Transform):
    """id -> id"""
