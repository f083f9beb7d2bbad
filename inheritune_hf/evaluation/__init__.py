"""Measure and compare: losses per document, the match rule, the metric, efficiency, drafting, zero-shot tasks."""

from .downstream import (
    PAPER_TASKS,
    TaskComparison,
    TaskScores,
    compare_tasks,
    evaluate_tasks,
    require_harness,
)
from .drafting import Draft, measure_draft
from .efficiency import Efficiency, Size, Speed, measure_efficiency
from .isolation import undisturbed
from .matching import MIN_DOCUMENTS, SeedDifference, compare_losses, compare_over_seeds, difference_bounds
from .metric import TokenPerplexity
from .pairing import Corpus, CorpusComparison, Figures, compare_on, read_corpus, validate
from .timing import Spread
from .validation import ValidatedTrainer, Validation, document_ids, sequence_sums, sum_by_document

__all__ = [
    "MIN_DOCUMENTS",
    "PAPER_TASKS",
    "Corpus",
    "CorpusComparison",
    "Draft",
    "Efficiency",
    "Figures",
    "SeedDifference",
    "Size",
    "Speed",
    "Spread",
    "TaskComparison",
    "TaskScores",
    "TokenPerplexity",
    "ValidatedTrainer",
    "Validation",
    "compare_losses",
    "compare_on",
    "compare_over_seeds",
    "compare_tasks",
    "difference_bounds",
    "document_ids",
    "evaluate_tasks",
    "measure_draft",
    "measure_efficiency",
    "read_corpus",
    "require_harness",
    "sequence_sums",
    "sum_by_document",
    "undisturbed",
    "validate",
]
