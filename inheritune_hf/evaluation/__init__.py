"""Measure and compare: losses per document, the match rule, the metric, tasks, speed and drafting."""

from typing import TYPE_CHECKING

from ..exports import lazy_exports

if TYPE_CHECKING:
    from .facts import Efficiency, LazinessComparison, StudentEvaluation, TaskSettings
    from .matching import SeedDifference, compare_losses, compare_on, compare_over_seeds, difference_bounds
    from .metric import TokenPerplexity
    from .speed import measure_draft, measure_efficiency
    from .tasks import PAPER_TASKS, compare_tasks, evaluate_tasks
    from .validation import Corpus, ValidatedTrainer, document_ids, preserve_state, read_corpus, sequence_sums, validate
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "PAPER_TASKS",
    "Corpus",
    "Efficiency",
    "LazinessComparison",
    "SeedDifference",
    "StudentEvaluation",
    "TaskSettings",
    "TokenPerplexity",
    "ValidatedTrainer",
    "compare_losses",
    "compare_on",
    "compare_over_seeds",
    "compare_tasks",
    "difference_bounds",
    "document_ids",
    "evaluate_tasks",
    "measure_draft",
    "measure_efficiency",
    "preserve_state",
    "read_corpus",
    "sequence_sums",
    "validate",
]
