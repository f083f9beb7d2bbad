"""Whole runs: the recipe on a user's data, the embedded default, and the controls they are compared with."""

from .controls import Control, random_model, train_control
from .embedded import EMBEDDED_DEFAULTS, EmbeddedShape, run_embedded
from .runs import RunResult, finish_run, run_recipe

__all__ = [
    "EMBEDDED_DEFAULTS",
    "Control",
    "EmbeddedShape",
    "RunResult",
    "finish_run",
    "random_model",
    "run_embedded",
    "run_recipe",
    "train_control",
]
