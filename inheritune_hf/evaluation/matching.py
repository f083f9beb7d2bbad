"""Whether a student's loss matches its target: pure functions of sums per document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from ..records import Match, Validation
from .facts import CorpusComparison, Metrics

if TYPE_CHECKING:
    from .validation import Corpus

#: Documents of equal length that an interval should rest on; with fewer it says so, and may be too narrow.
MIN_DOCUMENTS = 30
_RESAMPLES = 2_000
_SEED = 0
# Resampling weights in memory at once.
_WEIGHTS = 4_000_000


def compare_losses(
    student: Validation, target: Validation | float, tolerance: float = 0.01, confidence: float | None = 0.95
) -> Match:
    """
    Compare a student's loss with a reference's, or with a number, and say whether it matches.

    The difference is paired: both losses come from the same sequences. Its one-sided bounds cluster by document,
    because the tokens of one document are not independent: see `difference_bounds`. With `confidence` the upper bound
    must be within the tolerance, without it the mean must be.

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
    tokens = np.asarray(student.tokens, dtype=np.float64)
    if isinstance(target, Validation):
        excess = _excess(student, target)
    else:
        excess = np.asarray(student.loss_sums, dtype=np.float64) - target * tokens
    difference = float(excess.sum() / tokens.sum())

    lower = upper = None
    note = ""
    if len(tokens) == 1:
        note = "no interval: 1 document, 2 are needed; means are compared"
    else:
        lower, upper = (float(bound) for bound in difference_bounds(excess, tokens, confidence or 0.95))
        note = _too_few(tokens)
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


def difference_bounds(
    excess: NDArray[np.float64], tokens: NDArray[np.float64], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Return one-sided bounds of a difference in loss, in nats per token, each the wider of two that cluster by document.

    One is the percentile of a bootstrap that resamples documents. It is too narrow if few documents hold most of the
    tokens. The other is a jackknife over documents with the quantile of a t distribution, whose degrees of freedom are
    the number of documents of equal length that would weigh as much, less one.

    `excess` and `tokens` have the shape `(..., documents)`, with two documents or more: losses above the target summed
    over each document, in nats, and its counted tokens. Both bounds have the shape `(...)`.
    """
    pairs = bootstrap_bounds(excess, tokens, confidence), leave_one_out_bounds(excess, tokens, confidence)
    return np.minimum(pairs[0][0], pairs[1][0]), np.maximum(pairs[0][1], pairs[1][1])


def bootstrap_bounds(
    excess: NDArray[np.float64], tokens: NDArray[np.float64], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return one-sided bounds from 2,000 seeded resamples of documents; arguments as in `difference_bounds`."""
    documents = excess.shape[-1]
    draw, even = np.random.default_rng(_SEED), np.full(documents, 1 / documents)
    size = max(1, _WEIGHTS // documents)
    ratios: list[NDArray[np.float64]] = []
    for start in range(0, _RESAMPLES, size):
        weights = draw.multinomial(documents, even, size=min(size, _RESAMPLES - start)).T.astype(np.float64)
        ratios.append((excess @ weights) / (tokens @ weights))
    lower, upper = np.quantile(np.concatenate(ratios, axis=-1), [1 - confidence, confidence], axis=-1)
    return lower, upper


def leave_one_out_bounds(
    excess: NDArray[np.float64], tokens: NDArray[np.float64], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return one-sided bounds by the jackknife over documents; arguments as in `difference_bounds`."""
    all_excess, all_tokens = excess.sum(-1, keepdims=True), tokens.sum(-1, keepdims=True)
    difference = all_excess / all_tokens
    without = (all_excess - excess) / (all_tokens - tokens)
    error = np.sqrt(((without - difference) ** 2).sum(-1))
    reach = stdtrit(np.maximum(_effective_documents(tokens) - 1, 1), confidence) * error
    return difference[..., 0] - reach, difference[..., 0] + reach


def _effective_documents(tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how many documents of equal length weigh as much as those of `tokens`, shape `(..., documents)`."""
    effective: NDArray[np.float64] = tokens.sum(-1) ** 2 / (tokens**2).sum(-1)
    return effective


def compare_on(
    corpus: Corpus,
    student: Validation,
    reference: Validation,
    tolerance: float = 0.01,
    confidence: float | None = 0.95,
) -> CorpusComparison:
    """Compare student and reference on a corpus, in loss as `compare_losses` does and in accuracy."""
    match = compare_losses(student, reference, tolerance, confidence)
    tokens = np.asarray(student.tokens, dtype=np.float64)
    gained = np.asarray(student.correct, dtype=np.float64) - np.asarray(reference.correct, dtype=np.float64)
    lower = upper = None
    if len(tokens) > 1:
        lower, upper = (float(bound) for bound in difference_bounds(gained, tokens, confidence or 0.95))
    return CorpusComparison(
        corpus=corpus.name,
        fingerprint=corpus.fingerprint,
        documents=len(student.documents),
        tokens=sum(student.tokens),
        student=_metrics(student),
        reference=_metrics(reference),
        match=match,
        accuracy_difference=float(gained.sum() / tokens.sum()),
        accuracy_lower=lower,
        accuracy_upper=upper,
    )


@dataclass(frozen=True)
class SeedDifference:
    """The paired difference in loss of models trained with several seeds, with a two-sided interval."""

    difference: float  # mean over seeds, in nats per token
    lower: float | None
    upper: float | None
    documents: int
    seeds: int
    note: str = ""  # what the interval does not cover, or why there is none


def compare_over_seeds(
    models: Sequence[Validation], targets: Sequence[Validation], confidence: float = 0.95
) -> SeedDifference:
    """
    Return the difference of models and targets, paired by seed, with an interval that covers documents and seeds.

    Two uncertainties are added as independent: that of the documents (`difference_bounds` on the mean over seeds) and
    that of the seeds (the standard error of their mean, by the t distribution).

    Raises:
        ValueError: If there are not as many targets as models, or they were measured on other documents.
    """
    if not models or len(models) != len(targets):
        raise ValueError(f"Models and targets are paired by seed, got {len(models)} and {len(targets)}.")
    excess = np.stack([_excess(model, target) for model, target in zip(models, targets, strict=True)])
    tokens = np.asarray(models[0].tokens, dtype=np.float64)
    seeds, documents = excess.shape
    by_seed = excess.sum(1) / tokens.sum()
    difference = float(by_seed.mean())
    if documents == 1:
        return SeedDifference(difference, None, None, 1, seeds, "no interval: 1 document, 2 are needed")
    tail = (1 + confidence) / 2
    bounds = difference_bounds(excess.mean(0), tokens, tail)
    reach = float(stdtrit(seeds - 1, tail) * by_seed.std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else 0.0
    lower, upper = (math.hypot(float(bound) - difference, reach) for bound in bounds)
    notes = [_too_few(tokens)] if seeds > 1 else [_too_few(tokens), "1 seed: what another seed changes is not covered"]
    note = "; ".join(item for item in notes if item)
    return SeedDifference(difference, difference - lower, difference + upper, documents, seeds, note)


def _too_few(tokens: NDArray[np.float64]) -> str:
    """Return the note on an interval that rests on few documents, or an empty string."""
    effective = float(_effective_documents(tokens))
    if effective >= MIN_DOCUMENTS:
        return ""
    return (
        f"the {len(tokens)} documents weigh as much as {effective:.1f} of equal length; with fewer than "
        f"{MIN_DOCUMENTS} the interval may be too narrow"
    )


def _excess(student: Validation, target: Validation) -> NDArray[np.float64]:
    """Return the student's summed loss above the target's, per document."""
    if student.documents != target.documents or student.tokens != target.tokens:
        raise ValueError(
            f"Student and reference must be measured on the same sequences, got {len(student.documents)} documents "
            f"with {sum(student.tokens)} tokens against {len(target.documents)} with {sum(target.tokens)}; "
            "evaluate both on one data set."
        )
    return np.asarray(student.loss_sums, dtype=np.float64) - np.asarray(target.loss_sums, dtype=np.float64)


def _metrics(validation: Validation) -> Metrics:
    from .metric import TokenPerplexity  # imports evaluate and datasets, which a decision does not need

    sums = {name: list(getattr(validation, name)) for name in ("loss_sums", "tokens", "correct")}
    return Metrics(**TokenPerplexity().compute(**sums))
