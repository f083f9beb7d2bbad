"""
Simulate how often the match rule errs, and write docs/results/match-rule.md.

    python docs/results/simulate_match.py

Seeded, on one core, a few minutes. The rule that is tried is the package's own. Selection sets are drawn again and
again from populations of documents whose true difference is known, so that every bound and verdict can be marked.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inheritune_hf.evaluation import difference_bounds
from inheritune_hf.evaluation.matching import bootstrap_bounds, leave_one_out_bounds
from inheritune_hf.records import write_text

HERE = Path(__file__).parent
Floats = NDArray[np.float64]

DRAWS = 4_000
DOCUMENTS = (2, 5, 10, 30, 100, 300)
TOLERANCE, CONFIDENCE = 0.01, 0.95
DIFFERENCES = (-0.01, 0.0, 0.01, 0.02)
EVALUATIONS = 20
#: Share of the spread that one evaluation has in common with the next: what a document is like, not what a step did.
SHARED = (0.9, 0.5)

_MEDIAN_TOKENS = 400.0


@dataclass(frozen=True)
class Population:
    """
    Documents to draw selection sets from.

    Args:
        name (`str`): How the page calls it.
        spread (`float`): Standard deviation over documents of the difference in loss, in nats per token.
        lengths (`float`): Standard deviation of the logarithm of a document's tokens.
        freedom (`float`, *optional*): Degrees of freedom of the differences' t distribution; None: a normal one.
        slope (`float`): Nats per token that the difference rises when a document is e times as long.
    """

    name: str
    spread: float
    lengths: float
    freedom: float | None = None
    slope: float = 0.0

    def tokens(self, draw: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """Return lengths of documents, in tokens."""
        return np.clip(_MEDIAN_TOKENS * np.exp(draw.normal(0, self.lengths, shape)), 8, 100 * _MEDIAN_TOKENS)

    def noise(self, draw: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """Return a part of the differences that has mean 0 and standard deviation 1."""
        if self.freedom is None:
            return draw.normal(size=shape)
        return draw.standard_t(self.freedom, shape) / np.sqrt(self.freedom / (self.freedom - 2))

    def trend(self, tokens: Floats) -> Floats:
        """Return the part of the differences that goes with length; over all tokens of the population its mean is 0."""
        result: Floats = self.slope * (np.log(tokens) - _middle(self))
        return result


@cache
def _middle(population: Population) -> float:
    """Return the mean logarithm of the length of the document that a token of the population is in."""
    tokens = population.tokens(np.random.default_rng(0), (1_000_000,))
    return float((tokens * np.log(tokens)).sum() / tokens.sum())


POPULATIONS = (
    Population("even", spread=0.05, lengths=0.5),
    Population("heavy", spread=0.1, lengths=1.2, freedom=3),
    Population("heavy, long documents worse", spread=0.1, lengths=1.2, freedom=3, slope=0.02),
)


def bounds_of_draws(population: Population, documents: int, draws: int) -> tuple[Floats, Floats, Floats, Floats]:
    """
    Return what is found in each of `draws` selection sets; the true difference is 0.

    Returns:
        `tuple[numpy.ndarray, ...]` of shape `(draws,)`: Mean difference, lower and upper bound, upper bound of the
        bootstrap alone.
    """
    draw = np.random.default_rng([documents, POPULATIONS.index(population)])
    found = []
    for start in range(0, draws, 500):
        tokens = population.tokens(draw, (min(500, draws - start), documents))
        excess = tokens * (population.spread * population.noise(draw, tokens.shape) + population.trend(tokens))
        low, alone = bootstrap_bounds(excess, tokens, CONFIDENCE)
        other = leave_one_out_bounds(excess, tokens, CONFIDENCE)
        # As `difference_bounds` takes them; a test compares.
        bounds = np.minimum(low, other[0]), np.maximum(alone, other[1])
        found.append((excess.sum(-1) / tokens.sum(-1), *bounds, alone))
    mean, lower, upper, alone = (np.concatenate(part) for part in zip(*found, strict=True))
    return mean, lower, upper, alone


def verdicts_of_evaluations(population: Population, documents: int, shared: float, draws: int) -> tuple[Floats, Floats]:
    """
    Return what both rules say at each evaluation of a round, for a student that stays at the tolerance.

    Returns:
        `tuple[numpy.ndarray, numpy.ndarray]` of shape `(evaluations, draws)`: Matched by the rule, and by the paper's.
    """
    draw = np.random.default_rng([documents, POPULATIONS.index(population), int(100 * shared)])
    tokens = population.tokens(draw, (draws, documents))
    kept = population.noise(draw, tokens.shape)
    ours, papers = [], []
    for _ in range(EVALUATIONS):
        noise = np.sqrt(shared) * kept + np.sqrt(1 - shared) * population.noise(draw, tokens.shape)
        excess = tokens * (TOLERANCE + population.spread * noise + population.trend(tokens))
        ours.append(difference_bounds(excess, tokens, CONFIDENCE)[1] <= TOLERANCE)
        papers.append(excess.sum(-1) <= 0)
    return np.array(ours), np.array(papers)


def main(draws: int = DRAWS, target: Path = HERE / "match-rule.md") -> None:
    """Simulate, and write the page."""
    coverage, errors, repeated = [], [], []
    for population in POPULATIONS:
        for documents in DOCUMENTS:
            mean, lower, upper, alone = bounds_of_draws(population, documents, draws)
            reach = np.median(upper - mean)
            cells = [_percent(upper >= 0), _percent(lower <= 0), _percent(alone >= 0), f"{reach:.3f}"]
            coverage.append([population.name, str(documents), *cells])
            # A difference moves the mean and its bounds alike.
            ours = [_percent(upper + difference <= TOLERANCE) for difference in DIFFERENCES]
            papers = [_percent(mean + difference <= 0) for difference in DIFFERENCES]
            errors.append([population.name, str(documents), *ours, *papers])
        for documents in (5, 30, 300):
            for shared in SHARED:
                both = verdicts_of_evaluations(population, documents, shared, max(1, draws // 8))
                cells = [_percent(item) for seen in both for item in (seen[-1], seen.any(0), _confirmed(seen))]
                repeated.append([population.name, str(documents), f"{shared:.0%}", *cells])
    text = _PAGE.format(
        draws=draws,
        looks=max(1, draws // 8),
        evaluations=EVALUATIONS,
        tolerance=TOLERANCE,
        confidence=f"{CONFIDENCE:.0%}",
        noise=f"{196 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / draws):.1f}",
        populations=_table(
            ("population", "spread of differences", "spread of log lengths", "tails", "per e-fold of length"),
            [
                [
                    item.name,
                    f"{item.spread}",
                    f"{item.lengths}",
                    "normal" if item.freedom is None else f"t, {item.freedom:g} degrees of freedom",
                    f"{item.slope:+g}" if item.slope else "0",
                ]
                for item in POPULATIONS
            ],
        ),
        coverage=_table(
            (
                "population",
                "documents",
                "upper bound holds",
                "lower bound holds",
                "upper bound of the bootstrap alone",
                "from mean to upper bound",
            ),
            coverage,
        ),
        errors=_table(
            (
                "population",
                "documents",
                *(f"the rule at {difference:+g}" for difference in DIFFERENCES),
                *(f"the paper's at {difference:+g}" for difference in DIFFERENCES),
            ),
            errors,
        ),
        repeated=_table(
            (
                "population",
                "documents",
                "shared",
                *(f"{rule}, {when}" for rule in ("the rule", "the paper's") for when in ("last", "any", "confirmed")),
            ),
            repeated,
        ),
        worst=_worst(coverage),
        least=f"{min(float(row[2].rstrip(' %')) for row in coverage if row[0] == 'even'):.1f} %",
    )
    write_text(target, text)


def _confirmed(seen: Floats) -> Floats:
    """Whether two evaluations in a row matched, or the last one did: what `match_at: evaluation` asks for."""
    result: Floats = (seen[1:] & seen[:-1]).any(0) | seen[-1]
    return result


def _worst(coverage: list[list[str]]) -> str:
    lowest = min(coverage, key=lambda row: float(row[2].rstrip(" %")))
    return f"{lowest[2]} ({lowest[0]}, {lowest[1]} documents)"


def _percent(seen: Floats) -> str:
    return f"{100 * float(np.mean(seen)):.1f} %"


def _table(headers: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [list(headers), ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_PAGE = """# How often the match rule errs

Every figure on this page is written by one command, and no figure is typed:

```text
python docs/results/simulate_match.py
```

It draws {draws:,} selection sets for each row from a population of documents whose true difference in loss is
known, and marks the bounds and verdicts of the package's own [match rule](../explanation/matching.md), at its
defaults: tolerance {tolerance} nats per token, one-sided confidence {confidence}. A share of {draws:,} draws
that is truly 5 % comes out within {noise} points of it in 19 of 20 cases.

## The documents

A document's difference is the student's mean loss on it minus the reference's, in nats per token. Lengths are
log-normal about a median of 400 tokens. All spreads are standard deviations over documents.

{populations}

In *even* documents differ little and are alike in length. In *heavy* a few long documents hold most of the
tokens, and now and then a document differs by far more than the others. In the third, long documents are also
worse for the student, so a set that happens to hold no very long one looks better than the student is.

## Do the bounds hold?

How often the true difference is not above the upper bound, and not below the lower one. Both should be
{confidence}. The bootstrap alone is the percentile of resampled documents, without the second bound that leaves
out one document at a time. The last column is the median distance between mean and upper bound, in nats per
token: what a student must be better than the tolerance by.

{coverage}

In *even* the upper bound holds in {least} or more, down to two documents. The worst is {worst}. Where few long
documents hold most of the tokens and go another way than the short ones, no bound from so few can be relied on:
the selection sets that would warn of it have not been drawn, and hundreds of documents are not
quite enough. What helps is more documents, and a limit on the
sequences of each (`max_sequences_per_document`), which are spread evenly over it.

## False and missed matches

How often a student matches whose true difference is the one in the heading. At {tolerance:+g} and above a match
is an error. Below it a match is right, and the rest of the 100 % are misses. Under the paper's rule (the mean is
not above the reference's) a match above +0 is false.

{errors}

Two models of equal loss match by the paper's rule in about half of all draws, whatever the number of documents:
it has no tolerance. The rule here rarely errs in the student's favour, and pays with documents: with few of them
even an equal student is missed.

## Looking often

A round that is judged at each of {evaluations} evaluations (`match_at: evaluation`) has many chances. The
student here stays at a difference of {tolerance:+g} throughout, so that every match is false under both rules
({looks:,} draws for each row). *Shared* is how much of the variance between documents one evaluation has in
common with another; the rest is new each time, as when a student changes between evaluations. *Last* looks
once, at the end of the round; *any* takes the first match; *confirmed* is what `match_at: evaluation` asks for:
two matches in a row, or one at the end of the round.

{repeated}

The more evaluations have in common, the less is bought by looking often. A second match in a row takes back
most of what is bought when they have little in common; it cannot take back what they share, so the rate stays
above that of one look.
"""


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
