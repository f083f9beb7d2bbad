"""Whole runs: the recipe on a user's data, the embedded default, and the controls they are compared with."""

from .arms import ARMS
from .comparison import CompareConfig, ComparisonResult, run_comparison
from .controls import Control, random_model, train_control
from .embedded import EMBEDDED_DEFAULTS, EmbeddedShape, run_embedded
from .results import write_results
from .runs import RunResult, finish_run, run_recipe

__all__ = [
    "ARMS",
    "EMBEDDED_DEFAULTS",
    "CompareConfig",
    "ComparisonResult",
    "Control",
    "EmbeddedShape",
    "RunResult",
    "finish_run",
    "random_model",
    "run_comparison",
    "run_embedded",
    "run_recipe",
    "train_control",
    "write_results",
]
