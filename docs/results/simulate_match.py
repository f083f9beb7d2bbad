"""
Simulate how often the match rule errs, and write docs/results/match-rule.md.

    python docs/results/simulate_match.py

Seeded, on one core, about eight minutes. The rule that is tried is the package's own. Selection sets are drawn again
and again from populations of documents whose true difference is known, so that every bound and verdict can be marked.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inheritune_hf.evaluation import difference_bounds
from inheritune_hf.evaluation.matching import MIN_DECIDED, all_bounds
from inheritune_hf.growth import confidence_of_look
from inheritune_hf.records import write_text

HERE = Path(__file__).parent
Floats = NDArray[np.float64]

DRAWS = 4_000
DOCUMENTS = (2, 5, 10, 30, 100, 300)
TOLERANCE, CONFIDENCE = 0.01, 0.95
DIFFERENCES = (-0.01, 0.0, 0.01, 0.02)
EVALUATIONS = 20
ROUNDS = (3, 7)
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
        shape (`str`, *optional*, defaults to `"normal"`): How differences are distributed: `normal`, `t` (3 degrees of
            freedom), `exponential` (skewed to the student's disadvantage), or `contaminated` (3 % of documents are
            worse by ten times the normal spread of the others).
        slope (`float`): Nats per token that the difference rises when a document is e times as long.
    """

    name: str
    spread: float
    lengths: float
    shape: str = "normal"
    slope: float = 0.0

    def tokens(self, draw: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """Return lengths of documents, in tokens."""
        return np.clip(_MEDIAN_TOKENS * np.exp(draw.normal(0, self.lengths, shape)), 8, 100 * _MEDIAN_TOKENS)

    def noise(self, draw: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """Return a part of the differences that has mean 0 and standard deviation 1."""
        if self.shape == "t":
            return draw.standard_t(3, shape) / np.sqrt(3)
        if self.shape == "exponential":
            return draw.exponential(size=shape) - 1
        if self.shape == "contaminated":
            bad = draw.random(shape) < 0.03
            return (draw.normal(size=shape) + 10 * (bad - 0.03)) / np.sqrt(1 + 100 * 0.03 * 0.97)
        return draw.normal(size=shape)

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
    Population("skewed", spread=0.05, lengths=0.5, shape="exponential"),
    Population("contaminated", spread=0.1, lengths=0.5, shape="contaminated"),
    Population("heavy", spread=0.1, lengths=1.2, shape="t"),
    Population("heavy, long documents worse", spread=0.1, lengths=1.2, shape="t", slope=0.02),
)


def bounds_of_draws(
    population: Population, documents: int, draws: int
) -> tuple[Floats, Floats, dict[str, tuple[Floats, Floats]]]:
    """
    Return what is found in each of `draws` selection sets; the true difference is 0.

    Returns:
        `tuple[numpy.ndarray, numpy.ndarray, dict]`: Mean differences of shape `(draws,)`, as how many documents of
        equal length the documents weigh, and lower and upper bounds of that shape by name, `widest` among them.
    """
    draw = np.random.default_rng([documents, POPULATIONS.index(population)])
    means: list[Floats] = []
    weights: list[Floats] = []
    found: dict[str, list[tuple[Floats, Floats]]] = {}
    for start in range(0, draws, 500):
        tokens = population.tokens(draw, (min(500, draws - start), documents))
        excess = tokens * (population.spread * population.noise(draw, tokens.shape) + population.trend(tokens))
        bounds = all_bounds(excess, tokens, CONFIDENCE)
        lower, upper = zip(*bounds.values(), strict=True)
        # As `difference_bounds` takes them; a test compares.
        bounds["widest"] = np.minimum.reduce(lower), np.maximum.reduce(upper)
        means.append(excess.sum(-1) / tokens.sum(-1))
        weights.append(tokens.sum(-1) ** 2 / (tokens**2).sum(-1))
        for name, both in bounds.items():
            found.setdefault(name, []).append(both)
    joined = {name: tuple(map(np.concatenate, zip(*parts, strict=True))) for name, parts in found.items()}
    return np.concatenate(means), np.concatenate(weights), joined  # type: ignore[return-value]


def looks(
    population: Population, documents: int, shared: float, draws: int, seed: int
) -> Iterator[tuple[Floats, Floats]]:
    """Yield losses above the target and tokens at one look after another at the same documents; the true ones are 0."""
    draw = np.random.default_rng([documents, POPULATIONS.index(population), int(100 * shared), seed])
    tokens = population.tokens(draw, (draws, documents))
    kept = population.noise(draw, tokens.shape)
    while True:
        noise = np.sqrt(shared) * kept + np.sqrt(1 - shared) * population.noise(draw, tokens.shape)
        yield tokens * (population.spread * noise + population.trend(tokens)), tokens


def verdicts_of_evaluations(population: Population, documents: int, shared: float, draws: int) -> tuple[Floats, ...]:
    """
    Return what the rules say at each evaluation of a round, for a student that stays at the tolerance.

    Returns:
        `tuple[numpy.ndarray, ...]` of shape `(evaluations, draws)`: Matched at the plain confidence, at that of two
        looks, and by the paper's rule.
    """
    verdicts = []
    for excess, tokens in itertools.islice(looks(population, documents, shared, draws, 0), EVALUATIONS):
        upper = [difference_bounds(excess, tokens, confidence)[1] for confidence in (CONFIDENCE, _spread(2))]
        mean = excess.sum(-1) / tokens.sum(-1)
        verdicts.append((upper[0] <= 0, upper[1] <= 0, mean + TOLERANCE <= 0))
    return tuple(np.array(seen) for seen in zip(*verdicts, strict=True))


def run_of_rounds(population: Population, documents: int, rounds: int, shared: float, draws: int) -> list[str]:
    """
    Return how often whole runs match by three rules, as cells of the table.

    The rules: every round at the plain confidence, every round at its share of it, and every round at the plain
    confidence with a verdict on a test set of as many documents, which is opened once. The students: all at the
    tolerance (a match is false); one as good as the reference (in one round); and students that get better round by
    round from +0.03 to -0.005 (a match of one below the tolerance is right).
    """
    every, share = [], []
    test = []
    for seed, found in ((1, every), (2, test)):
        for excess, tokens in itertools.islice(looks(population, documents, shared, draws, seed), rounds):
            found.append(difference_bounds(excess, tokens, CONFIDENCE)[1])
            if seed == 1:
                share.append(difference_bounds(excess, tokens, _spread(rounds))[1])
    uppers = [np.array(item) for item in (every, share, test)]
    growing = np.linspace(0.03, -0.005, rounds)[:, None]
    right = growing[:, 0] < TOLERANCE
    cells = []
    for truth in (np.full((rounds, 1), TOLERANCE), np.array([[1.0]] * (rounds - 1) + [[0.0]]), growing):
        plain, spread, tested = (upper + truth <= TOLERANCE for upper in uppers)
        first = plain.argmax(0)
        held = plain.any(0) & tested[first, np.arange(draws)]
        if truth is growing:
            cells += [
                _percent(plain.any(0) & right[first]),
                _percent(spread.any(0) & right[spread.argmax(0)]),
                _percent(held & right[first]),
            ]
        else:
            cells += [_percent(plain.any(0)), _percent(spread.any(0)), _percent(held)]
    return cells


def _spread(chances: int) -> float:
    return confidence_of_look(CONFIDENCE, chances) or CONFIDENCE


def main(draws: int = DRAWS, target: Path = HERE / "match-rule.md") -> None:
    """Simulate, and write the page."""
    coverage, errors, repeated, runs = [], [], [], []
    few = max(1, draws // 8)
    for population in POPULATIONS:
        for documents in DOCUMENTS:
            mean, weight, bounds = bounds_of_draws(population, documents, draws)
            lower, upper = bounds["widest"]
            alone = [_percent(bounds[name][1] >= 0) for name in ("percentile", "jackknife", "studentised")]
            reach = f"{np.median(upper - mean):.3f}"
            coverage.append(
                [population.name, str(documents), _percent(upper >= 0), _percent(lower <= 0), *alone, reach]
            )
            # A difference moves the mean and its bounds alike.
            ours = [_percent((upper + difference <= TOLERANCE) & (weight >= MIN_DECIDED)) for difference in DIFFERENCES]
            papers = [_percent(mean + difference <= 0) for difference in DIFFERENCES]
            errors.append([population.name, str(documents), *ours, *papers])
        for documents in (30, 100, 300):
            for shared in SHARED:
                name = [population.name, str(documents)]
                for rounds in ROUNDS:
                    cells = run_of_rounds(population, documents, rounds, shared, 2 * few)
                    runs.append([*name, str(rounds), f"{shared:.0%}", *cells])
                if documents != 100:
                    plain, two, papers = verdicts_of_evaluations(population, documents, shared, few)
                    cells = [_percent(item) for item in (plain[-1], plain.any(0), _confirmed(plain), _confirmed(two))]
                    cells += [_percent(item) for item in (papers[-1], papers.any(0), _confirmed(papers))]
                    repeated.append([*name, f"{shared:.0%}", *cells])
    text = _PAGE.format(
        draws=draws,
        looks=few,
        whole_runs=2 * few,
        evaluations=EVALUATIONS,
        tolerance=TOLERANCE,
        confidence=f"{CONFIDENCE:.0%}",
        minimum=MIN_DECIDED,
        noise=f"{196 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / draws):.1f}",
        noise_of_runs=f"{196 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / (2 * few)):.1f}",
        populations=_table(
            ("population", "spread of differences", "spread of log lengths", "shape", "per e-fold of length"),
            [
                [
                    item.name,
                    f"{item.spread}",
                    f"{item.lengths}",
                    "t, 3 degrees of freedom" if item.shape == "t" else item.shape,
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
                "upper, percentile alone",
                "upper, jackknife alone",
                "upper, studentised alone",
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
        runs=_table(
            (
                "population",
                "documents",
                "rounds",
                "shared",
                *(
                    f"{students}: {rule}"
                    for students in ("at the tolerance", "equal", "growing")
                    for rule in ("plain", "spread", "test set")
                ),
            ),
            runs,
        ),
        repeated=_table(
            (
                "population",
                "documents",
                "shared",
                *("last", "any", "confirmed", "confirmed, spread"),
                *(f"the paper's, {when}" for when in ("last", "any", "confirmed")),
            ),
            repeated,
        ),
        worst=_worst(coverage),
        least=f"{min(_share(row[2]) for row in coverage if row[0] == 'even'):.1f} %",
        skewed=next(row[2] for row in coverage if row[:2] == ["skewed", "30"]),
        skewed_before=next(row[5] for row in coverage if row[:2] == ["skewed", "30"]),
        **_of_runs(runs),
    )
    write_text(target, text)


def _of_runs(runs: list[list[str]]) -> dict[str, str]:
    """Return the figures in the sentences about whole runs."""
    found = {}
    for place, name in enumerate(("plain", "spread", "test")):
        found[f"most_{name}"] = f"{max(_share(row[4 + place]) for row in runs):.1f} %"
        found[f"equal_{name}"] = _span(row[7 + place] for row in runs if row[:2] == ["even", "300"])
        found[f"growing_{name}"] = _span(row[10 + place] for row in runs if row[:3] == ["even", "300", "7"])
    by_population: dict[str, list[str]] = {}
    for row in runs:
        by_population.setdefault(row[0], []).append(row[5])
    found["by_population"] = "; ".join(f"{name} {_span(cells)}" for name, cells in by_population.items())
    return found


def _span(cells: Iterable[str]) -> str:
    shares = sorted(map(_share, cells))
    low, high = f"{shares[0]:.0f}", f"{shares[-1]:.0f}"
    return f"{high} %" if low == high else f"{low} to {high} %"


def _share(cell: str) -> float:
    return float(cell.rstrip(" %"))


def _confirmed(seen: Floats) -> Floats:
    """Whether two evaluations in a row matched, or the last one did: what `match_at: evaluation` asks for."""
    result: Floats = (seen[1:] & seen[:-1]).any(0) | seen[-1]
    return result


def _worst(coverage: list[list[str]]) -> str:
    lowest = min(coverage, key=lambda row: _share(row[2]))
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

In *even* documents differ little and are alike in length. In *skewed* most documents are a little better than the
mean and a few much worse. In *contaminated* three in a hundred are catastrophes. In *heavy* a few long documents hold
most of the tokens, and now and then a document differs by far more than the others. In the last, long documents are
also worse for the student, so a set that happens to hold no very long one looks better than the student is.

## Do the bounds hold?

How often the true difference is not above the upper bound, and not below the lower one. Both should be
{confidence}. The bound is the widest of three, whose upper ones follow, each alone. The last column is the median
distance between mean and upper bound, in nats per token: what a student must be better than the tolerance by.

{coverage}

In *even* the upper bound holds in {least} or more, down to two documents. In *skewed* at 30 documents it holds in
{skewed}; the jackknife alone, in {skewed_before}. The worst is {worst}. Catastrophes that are not among the
documents cannot be seen in them, so below about 100 documents nothing cures the contaminated population: that is why
a verdict names the document without which the difference would change most. Nor is there a cure where few long
documents hold most of the tokens and go another way than the short ones. What helps is more documents, and a limit on
the sequences of each (`max_sequences_per_document`), which are spread evenly over it: the first pages of a book are
its title and its preface, and a limit that kept those would judge by them.

## False and missed matches

How often a student matches whose true difference is the one in the heading. At {tolerance:+g} and above a match
is an error. Below it a match is right, and the rest of the 100 % are misses. Under the paper's rule (the mean is
not above the reference's) a match above +0 is false. Documents that weigh less than {minimum} of equal length decide
nothing, and never match.

{errors}

Two models of equal loss match by the paper's rule in about half of all draws, whatever the number of documents:
it has no tolerance. The rule here rarely errs in the student's favour, and pays with documents: with few of them
even an equal student is missed.

## Rounds are looks

A run looks at its selection set once a round, and stops at the first match, so a student that is not good enough has
as many chances as there are rounds. Two cures were tried beside the *plain* rule ({confidence} in each round):

- *spread*: the confidence is spread over the planned rounds. Of three, each is judged at 98.3 %, of seven at 99.3 %.
- *test set*: rounds are judged at {confidence}, and the run's verdict is that of a test set of as many documents,
  opened once, at {confidence}.

Three kinds of runs, {whole_runs:,} draws for each row: all students are *at the tolerance* ({tolerance:+g}), so that
every match is false; the student of one round is exactly *equal* to the reference, and no other comes near; students
are *growing* better from +0.03 to -0.005 round by round, and a match counts if the student is better than the
tolerance. *Shared* is how much of the variance between documents one round's student has in common with the next's.
A share that is truly 5 % comes out within {noise_of_runs} points of it in 19 of 20 cases.

{runs}

False matches in a whole run reach {most_plain} by the plain rule and {most_test} by the test set. When the confidence
is spread they are, by population: {by_population}.
So they stay within 5 %, but for few skewed documents of students that have little in common, and but for the
populations in which no bound holds.

What that costs: of equal students in *even* with 300 documents {equal_plain} match by the plain rule, {equal_spread}
when it is spread over three and seven rounds, {equal_test} by the test set. But a run that stops at a student which the
test set then refuses has ended: of growing students in seven rounds, 300 documents, {growing_plain} of the runs end in
a right match by the plain rule, {growing_spread} when it is spread, and only {growing_test} by the test set. So the
package spreads the confidence, which also needs no second set. The test set is still opened once, and its verdict
stands in the table beside the outcome: a student that matches on both is the stronger claim.

With few documents, or much between them, an equal student rarely matches by any rule that errs seldom. `power` in the
record says how often it would; plan fewer rounds (`max_layers`, `grow_by`) or take more documents.

## Looking often

A round that is judged at each of {evaluations} evaluations (`match_at: evaluation`) has many chances. The
student here stays at a difference of {tolerance:+g} throughout, so that every match is false under both rules
({looks:,} draws for each row). *Last* looks once, at the end of the round; *any* takes the first match; *confirmed*
asks for two matches in a row, or one at the end of the round; *confirmed, spread* is what `match_at: evaluation` does:
the same at the confidence of two looks.

{repeated}

The more evaluations have in common, the less is bought by looking often. A second match in a row takes back
most of what is bought when they have little in common; it cannot take back what they share, and counting the round as
two looks makes up for that.
"""


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
