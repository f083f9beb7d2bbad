"""The recipe: what to inherit, how to grow, when a student is good enough, and which data to use."""

from .comparison import CompareConfig
from .data import DataConfig
from .reading import Within, annotations_of, conform, read_mapping, reject_unknown_keys
from .recipe import INHERIT_PRESETS, PARTS, InherituneConfig
from .run import EMBEDDED_DEFAULTS, RunConfig

__all__ = [
    "EMBEDDED_DEFAULTS",
    "INHERIT_PRESETS",
    "PARTS",
    "CompareConfig",
    "DataConfig",
    "InherituneConfig",
    "RunConfig",
    "Within",
    "annotations_of",
    "conform",
    "read_mapping",
    "reject_unknown_keys",
]
