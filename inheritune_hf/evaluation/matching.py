"""Decide whether a student's loss matches its target: a pure rule on per-document sums."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..records import Match
from .validation import Validation

#: Fewer documents than this give no interval: a bootstrap over so few clusters is too narrow.
MIN_DOCUMENTS = 30
_RESAMPLES = 2_000
_SEED = 0


def compare_losses(
    student: Validation, target: Validation | float, tolerance: float = 0.01, confidence: float | None = 0.95
) -> Match:
    """
    Compare a student's loss with a reference's, or with a number, and say whether it matches.

    The difference is paired: both losses come from the same sequences. Its one-sided bounds come from a bootstrap that
    resamples whole documents, because the tokens of one document are not independent. With `confidence` the upper
    bound must be within the tolerance, without it the mean must be.

    Args:
        student (`Validation`): The student's sums per document.
        target (`Validation` or `float`): The reference's sums on the same documents, or a loss in nats per token.
        tolerance (`float`, *optional*, defaults to `0.01`): Nats per token above the target that still match.
        confidence (`float`, *optional*, defaults to `0.95`): One-sided confidence of the bounds; `None` compares means.

    Returns:
        `Match`: The verdict, the difference in nats per token, its bounds, and the paper's verdict (mean <= target).

    Raises:
        ValueError: If student and reference were not measured on the same documents and tokens.
    """
    excess = np.asarray(student.loss_sums, dtype=np.float64)
    tokens = np.asarray(student.tokens, dtype=np.float64)
    if isinstance(target, Validation):
        if student.documents != target.documents or student.tokens != target.tokens:
            raise ValueError(
                f"Student and reference must be measured on the same sequences, got {len(student.documents)} documents "
                f"with {sum(student.tokens)} tokens against {len(target.documents)} with {sum(target.tokens)}; "
                "evaluate both on one data set."
            )
        excess = excess - np.asarray(target.loss_sums, dtype=np.float64)
    else:
        excess = excess - target * tokens
    difference = float(excess.sum() / tokens.sum())

    lower = upper = None
    note = ""
    if len(tokens) < MIN_DOCUMENTS:
        note = f"no interval: {len(tokens)} documents, {MIN_DOCUMENTS} are needed; means are compared"
    else:
        lower, upper = bootstrap_bounds(excess, tokens, confidence or 0.95)
    bound = difference if confidence is None or upper is None else upper
    return Match(
        matched=bound <= tolerance,
        matched_paper=difference <= 0,
        difference=difference,
        lower=lower,
        upper=upper,
        documents=len(tokens),
        note=note,
    )


def bootstrap_bounds(
    excess: NDArray[np.float64], tokens: NDArray[np.float64], confidence: float
) -> tuple[float, float]:
    """
    Return one-sided bounds of sum(excess) / sum(tokens), by a percentile bootstrap that resamples documents.

    Args:
        excess (`np.ndarray` of shape `(documents,)`): What is compared, summed over each document's tokens.
        tokens (`np.ndarray` of shape `(documents,)`): Tokens of each document.
        confidence (`float`): One-sided confidence.

    Returns:
        `tuple[float, float]`: Lower and upper bound.
    """
    documents = len(tokens)
    weights = np.random.default_rng(_SEED).multinomial(documents, np.full(documents, 1 / documents), size=_RESAMPLES)
    ratios = (weights @ excess) / (weights @ tokens)
    lower, upper = np.quantile(ratios, [1 - confidence, confidence])
    return float(lower), float(upper)
