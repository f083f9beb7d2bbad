"""Whether a student's loss matches its target: pure functions of sums per document."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from ..records import Match, Validation
from .facts import CorpusComparison, Metrics

if TYPE_CHECKING:
    from .validation import Corpus

Floats = NDArray[np.float64]

#: Documents of equal length that an interval should rest on; with fewer it says so, and may be too narrow.
MIN_DOCUMENTS = 30
#: Documents of equal length without which nothing is decided at a confidence.
MIN_DECIDED = 5
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
    must be within the tolerance, and documents that weigh less than 5 of equal length decide nothing; without it the
    mean must be.

    Args:
        student (`Validation`): The student's sums per document.
        target (`Validation` or `float`): The reference's sums on the same documents, or a loss in nats per token.
        tolerance (`float`, *optional*, defaults to `0.01`): Nats per token above the target that still match.
        confidence (`float`, *optional*, defaults to `0.95`): One-sided confidence of the bounds; `None` compares means.

    Returns:
        `Match`: The verdict, the difference in nats per token, its bounds, the paper's verdict (mean <= target), the
        most influential document, and the power to see an equal student.

    Raises:
        ValueError: If student and reference were not measured on the same documents and tokens.
    """
    tokens = np.asarray(student.tokens, dtype=np.float64)
    if isinstance(target, Validation):
        excess = _excess(student, target)
    else:
        excess = np.asarray(student.loss_sums, dtype=np.float64) - target * tokens
    difference = float(excess.sum() / tokens.sum())
    decided = confidence is None or float(_effective_documents(tokens)) >= MIN_DECIDED
    match = Match(
        matched=decided and difference <= tolerance,
        matched_paper=difference <= 0,
        difference=difference,
        lower=None,
        upper=None,
        documents=len(tokens),
        note=_weakness(student, decided),
        decided=decided,
    )
    if len(tokens) == 1:
        return match
    lower, upper = (float(bound) for bound in difference_bounds(excess, tokens, confidence or 0.95))
    changes = _changes(excess, tokens)
    most = int(np.abs(changes).argmax())
    match = replace(
        match,
        lower=lower,
        upper=upper,
        confidence=confidence or 0.95,
        influential=student.documents[most],
        without_influential=difference + float(changes[most]),
    )
    if confidence is None or not decided:
        return match
    room, error = tolerance - (upper - difference), float(np.sqrt((changes**2).sum()))
    power = float(ndtr(room / error)) if error else float(room >= 0)
    return replace(match, matched=upper <= tolerance, power=power)


def difference_bounds(excess: Floats, tokens: Floats, confidence: float) -> tuple[Floats, Floats]:
    """
    Return one-sided bounds of a difference in loss, in nats per token, each the widest of `all_bounds`.

    `excess` and `tokens` have the shape `(..., documents)`, with two documents or more: losses above the target summed
    over each document, in nats, and its counted tokens. Both bounds have the shape `(...)`.
    """
    lower, upper = zip(*all_bounds(excess, tokens, confidence).values(), strict=True)
    return np.minimum.reduce(lower), np.maximum.reduce(upper)


def all_bounds(excess: Floats, tokens: Floats, confidence: float) -> dict[str, tuple[Floats, Floats]]:
    """
    Return one-sided bounds of a difference by name, each of which clusters by document; arguments as above.

    - `percentile`: of a bootstrap that resamples documents. Too narrow if few documents hold most of the tokens.
    - `jackknife`: over documents, with the quantile of a t distribution, whose degrees of freedom are the number of
      documents of equal length that would weigh as much, less one. Too narrow if differences are skewed.
    - `studentised`: the same bootstrap, of the difference divided by its standard error (bootstrap-t, which follows the
      skew), at a quantile that is expanded for few documents (arXiv 1411.5279, section 4.4).
    """
    all_tokens = tokens.sum(-1, keepdims=True)
    difference = excess.sum(-1, keepdims=True) / all_tokens
    residuals = excess - difference * tokens
    shifts, ratios = _resample(residuals, tokens)
    low, high = np.quantile(shifts, [1 - confidence, confidence], axis=-1)
    expanded = ndtr(stdtrit(tokens.shape[-1] - 1, confidence))
    spread = _standard_error(residuals, all_tokens)[..., 0]
    least, most = spread * np.quantile(ratios, [1 - expanded, expanded], axis=-1)
    error = np.sqrt((_changes(excess, tokens) ** 2).sum(-1))
    reach = stdtrit(np.maximum(_effective_documents(tokens) - 1, 1), confidence) * error
    mean = difference[..., 0]
    return {
        "percentile": (mean + low, mean + high),
        "jackknife": (mean - reach, mean + reach),
        "studentised": (mean - most, mean - least),
    }


def _resample(residuals: Floats, tokens: Floats) -> tuple[Floats, Floats]:
    """
    Return by how much the difference shifts in 2,000 seeded resamples of documents, and these shifts studentised.

    Both have the shape `(..., resamples)`. A resample of one document over and over has no standard error: 0.
    """
    least = 1e-6 * _standard_error(residuals, tokens.sum(-1, keepdims=True))
    parts = []
    for start in range(0, _RESAMPLES, _at_once(tokens.shape[-1])):
        weights = _weights(tokens.shape[-1], start)
        total = tokens @ weights
        shift = (residuals @ weights) / total
        squares = residuals**2 @ weights - 2 * shift * ((residuals * tokens) @ weights)
        squares += shift**2 * (tokens**2 @ weights)
        error = np.sqrt(np.maximum(squares, 0)) / total
        parts.append((shift, np.divide(shift, error, out=np.zeros_like(shift), where=error > least)))
    shifts, ratios = zip(*parts, strict=True)
    return np.concatenate(shifts, axis=-1), np.concatenate(ratios, axis=-1)


def _at_once(documents: int) -> int:
    return max(1, _WEIGHTS // documents)


@functools.lru_cache(maxsize=1)  # every evaluation of a run asks for the same
def _weights(documents: int, start: int) -> Floats:
    """Return how often each document is in each resample from the `start`th on, shape `(documents, resamples)`."""
    draw, size = np.random.default_rng((_SEED, start)), min(_at_once(documents), _RESAMPLES - start)
    return draw.multinomial(documents, np.full(documents, 1 / documents), size=size).T.astype(np.float64)


def _standard_error(residuals: Floats, all_tokens: Floats) -> Floats:
    """Return the linearised standard error of a ratio of sums, shape `(..., 1)`."""
    error: Floats = np.sqrt((residuals**2).sum(-1, keepdims=True)) / all_tokens
    return error


def _changes(excess: Floats, tokens: Floats) -> Floats:
    """Return by how much the difference changes when each document is left out, shape `(..., documents)`."""
    all_tokens = tokens.sum(-1, keepdims=True)
    changes: Floats = (excess.sum(-1, keepdims=True) / all_tokens * tokens - excess) / (all_tokens - tokens)
    return changes


def _effective_documents(tokens: Floats) -> Floats:
    """Return how many documents of equal length weigh as much as those of `tokens`, shape `(..., documents)`."""
    effective: Floats = tokens.sum(-1) ** 2 / (tokens**2).sum(-1)
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


def _too_few(tokens: Floats) -> str:
    """Return the note on an interval that rests on few documents, or an empty string."""
    effective = float(_effective_documents(tokens))
    if effective >= MIN_DOCUMENTS:
        return ""
    return f"{_weight(tokens)}; with fewer than {MIN_DOCUMENTS} the interval may be too narrow"


def _weight(tokens: Floats) -> str:
    return f"the {len(tokens)} documents weigh as much as {float(_effective_documents(tokens)):.1f} of equal length"


def _weakness(validation: Validation, decided: bool) -> str:
    """Return what weakens a verdict on these documents, or why there is none."""
    tokens = np.asarray(validation.tokens, dtype=np.float64)
    few = "no interval: 1 document, 2 are needed" if len(tokens) == 1 else _too_few(tokens)
    if not decided:
        few = f"undecided: {'1 document' if len(tokens) == 1 else _weight(tokens)}, {MIN_DECIDED} are needed"
    alone = "sequences without a column 'document' count as documents: the interval is too narrow if they share any"
    return "; ".join(item for item in (few, "" if validation.grouped else alone) if item)


def _excess(student: Validation, target: Validation) -> Floats:
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
