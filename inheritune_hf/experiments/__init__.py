"""Whole runs: a recipe, the embedded default, comparisons of arms, and the evaluation of a student."""

from typing import TYPE_CHECKING

from ..exports import lazy_exports

if TYPE_CHECKING:
    from .adaptation import Adaptation, adapt_reference
    from .arm_models import random_model
    from .assessment import evaluate_student
    from .comparison import ComparisonEstimate, estimate_comparison, run_comparison
    from .embedded import run_embedded
    from .runs import run_recipe, train_control
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Adaptation",
    "ComparisonEstimate",
    "adapt_reference",
    "estimate_comparison",
    "evaluate_student",
    "random_model",
    "run_comparison",
    "run_embedded",
    "run_recipe",
    "train_control",
]
