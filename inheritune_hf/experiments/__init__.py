"""Whole runs: the recipe on a user's data, the embedded default, controls, and the student beside its reference."""

from typing import TYPE_CHECKING

from ..exports import lazy_exports

if TYPE_CHECKING:
    from .assessment import evaluate_student
    from .comparison import (
        ArmEstimate,
        ComparisonEstimate,
        ComparisonResult,
        estimate_comparison,
        run_comparison,
    )
    from .controls import Control, random_model, train_control
    from .embedded import EmbeddedShape, run_embedded
    from .results import write_results
    from .runs import RunResult, finish_run, run_recipe
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ArmEstimate",
    "ComparisonEstimate",
    "ComparisonResult",
    "Control",
    "EmbeddedShape",
    "RunResult",
    "estimate_comparison",
    "evaluate_student",
    "finish_run",
    "random_model",
    "run_comparison",
    "run_embedded",
    "run_recipe",
    "train_control",
    "write_results",
]
