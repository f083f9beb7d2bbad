"""The recipe: what to inherit, how to grow, when a student is good enough, and which data to use."""

from .data import DataConfig
from .reading import Within, annotations_of, conform, read_mapping, reject_unknown_keys
from .recipe import DISTILLATION_LOSSES, INHERIT_PRESETS, PARTS, InherituneConfig
from .run import RunConfig

__all__ = [
    "DISTILLATION_LOSSES",
    "INHERIT_PRESETS",
    "PARTS",
    "DataConfig",
    "InherituneConfig",
    "RunConfig",
    "Within",
    "annotations_of",
    "conform",
    "read_mapping",
    "reject_unknown_keys",
]
