"""Measure and compare: losses per document, the match rule, and the metric for `evaluate`."""

from .matching import MIN_DOCUMENTS, compare_losses, difference_bounds
from .metric import TokenPerplexity
from .validation import ValidatedTrainer, Validation, document_ids, sequence_sums, sum_by_document

__all__ = [
    "MIN_DOCUMENTS",
    "TokenPerplexity",
    "ValidatedTrainer",
    "Validation",
    "compare_losses",
    "difference_bounds",
    "document_ids",
    "sequence_sums",
    "sum_by_document",
]
