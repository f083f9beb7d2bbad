"""Measure and compare: losses per document, the match rule, and the metric for `evaluate`."""

from .matching import MIN_DOCUMENTS, SeedDifference, compare_losses, compare_over_seeds
from .metric import TokenPerplexity
from .validation import ValidatedTrainer, Validation, document_ids, sequence_sums, sum_by_document

__all__ = [
    "MIN_DOCUMENTS",
    "SeedDifference",
    "TokenPerplexity",
    "ValidatedTrainer",
    "Validation",
    "compare_losses",
    "compare_over_seeds",
    "document_ids",
    "sequence_sums",
    "sum_by_document",
]
