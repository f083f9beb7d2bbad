"""Whole runs: the recipe on a user's data, the embedded default, controls, and the student beside its reference."""

from .assessment import EVALUATION_FILE, StudentEvaluation, evaluate_student
from .controls import Control, random_model, train_control
from .embedded import EMBEDDED_DEFAULTS, EmbeddedShape, run_embedded
from .runs import RunResult, finish_run, run_recipe

__all__ = [
    "EMBEDDED_DEFAULTS",
    "EVALUATION_FILE",
    "Control",
    "EmbeddedShape",
    "RunResult",
    "StudentEvaluation",
    "evaluate_student",
    "finish_run",
    "random_model",
    "run_embedded",
    "run_recipe",
    "train_control",
]
