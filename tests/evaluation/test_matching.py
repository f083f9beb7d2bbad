"""The match rule, on sums whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest

from inheritune_hf import compare_losses
from inheritune_hf.evaluation import compare_over_seeds, difference_bounds, matching
from inheritune_hf.evaluation.matching import all_bounds
from inheritune_hf.records import Validation


def validation(losses, tokens=None):
    tokens = tokens or [100] * len(losses)
    sums = tuple(loss * count for loss, count in zip(losses, tokens, strict=True))
    return Validation(tuple(range(len(losses))), sums, tuple(tokens), (0,) * len(losses))


def spread(documents, seed=0):
    return list(3 + np.random.default_rng(seed).normal(size=documents))


def test_equal_losses_match_with_no_difference():
    """A model compared with itself differs by exactly nothing, and matches."""
    same = validation(spread(40))
    match = compare_losses(same, same, tolerance=0.0)
    assert (match.difference, match.lower, match.upper) == (0.0, 0.0, 0.0)
    assert match.matched
    assert match.matched_paper


def test_pairing_removes_what_documents_share():
    """A constant difference has an interval of no width, however much documents differ."""
    losses = spread(40)
    match = compare_losses(validation([loss + 0.02 for loss in losses]), validation(losses))
    assert match.difference == pytest.approx(0.02)
    assert match.lower == pytest.approx(0.02)
    assert match.upper == pytest.approx(0.02)
    assert not match.matched


def test_upper_bound_decides_with_confidence_and_the_mean_without():
    """A mean within the tolerance does not match while its upper bound is outside; without confidence it does."""
    losses = spread(40)
    noisy = [loss + step for loss, step in zip(losses, np.linspace(-0.3, 0.3, 40), strict=True)]
    reference = validation(losses)
    strict = compare_losses(validation(noisy), reference, tolerance=0.01, confidence=0.95)
    assert strict.difference == pytest.approx(0, abs=1e-9)
    assert strict.lower < -0.01
    assert strict.upper > 0.01
    assert not strict.matched
    assert compare_losses(validation(noisy), reference, tolerance=0.01, confidence=None).matched


def test_papers_rule_is_mean_not_above():
    """Tolerance 0 without confidence is the paper's rule, which is reported beside every verdict."""
    losses = spread(40)
    better, worse = validation([loss - 1e-6 for loss in losses]), validation([loss + 1e-6 for loss in losses])
    for student, verdict in ((better, True), (worse, False)):
        match = compare_losses(student, validation(losses), tolerance=0.0, confidence=None)
        assert match.matched is verdict
        assert match.matched_paper is verdict
    assert not compare_losses(worse, validation(losses), tolerance=0.1).matched_paper


def test_one_document_decides_nothing_at_a_confidence():
    """Of one document nothing is known but the mean: undecided, unless means are to be compared."""
    match = compare_losses(validation([3.0]), validation([3.0]))
    assert (match.lower, match.upper, match.confidence, match.power) == (None, None, None, None)
    assert match.note == "undecided: 1 document, 5 are needed"
    assert (match.matched, match.decided) == (False, False)
    means = compare_losses(validation([3.0]), validation([3.0]), confidence=None)
    assert means.note == "no interval: 1 document, 2 are needed"
    assert (means.matched, means.decided) == (True, True)


def test_documents_that_weigh_too_little_decide_nothing():
    """Below 5 documents of equal length a match is not decided, however good the student is, and it is said."""
    better = compare_losses(validation([2.0] * 4), validation([3.0] * 4))
    assert (better.matched, better.matched_paper, better.decided, better.power) == (False, True, False, None)
    assert better.upper == pytest.approx(-1.0)
    assert better.note == "undecided: the 4 documents weigh as much as 4.0 of equal length, 5 are needed"
    assert compare_losses(validation([2.0] * 5), validation([3.0] * 5)).matched
    assert compare_losses(validation([2.0] * 4), validation([3.0] * 4), confidence=None).matched
    uneven = [9_700] + [10] * 39
    match = compare_losses(validation([2.0] * 40, tokens=uneven), validation([3.0] * 40, tokens=uneven))
    assert match.note == "undecided: the 40 documents weigh as much as 1.1 of equal length, 5 are needed"


def test_sequences_without_documents_are_said_to_be_too_narrow():
    """Where it is not known which sequences are of one document, the record says what that does to the interval."""
    alone = replace(validation(spread(40)), grouped=False)
    assert compare_losses(alone, validation(spread(40))).note == (
        "sequences without a column 'document' count as documents: the interval is too narrow if they share any"
    )


def test_the_most_influential_document_is_named():
    """A catastrophe in one document is named, with the difference as it would be without it."""
    losses = [3.0] * 20
    match = compare_losses(validation([*losses[:7], 4.0, *losses[8:]]), validation(losses))
    assert (match.influential, match.without_influential) == (7, pytest.approx(0.0))
    assert match.difference == pytest.approx(0.05)


def test_power_is_how_often_an_equal_student_would_match():
    """Students that are exactly as good match as often as the record of one of them says."""
    draw, zero = np.random.default_rng(4), validation([3.0] * 100)
    matches = [compare_losses(validation(list(3 + draw.normal(0, 0.05, 100))), zero) for _ in range(400)]
    stated = np.mean([match.power for match in matches])
    assert np.mean([match.matched for match in matches]) == pytest.approx(stated, abs=0.05)
    assert compare_losses(zero, zero).power == 1.0
    assert compare_losses(zero, zero, confidence=None).power is None


def test_few_documents_are_said():
    """An interval from documents that weigh less than 30 of equal length says so, however many there are."""
    assert compare_losses(validation(spread(30)), validation(spread(30))).note == ""
    tokens = [1_000] * 5 + [10] * 35
    match = compare_losses(validation(spread(40), tokens=tokens), validation(spread(40), tokens=tokens))
    assert match.note == (
        "the 40 documents weigh as much as 5.7 of equal length; with fewer than 30 the interval may be too narrow"
    )
    assert match.upper is not None


def test_a_mean_of_few_documents_is_not_enough():
    """Five documents, better on average by luck: no match, where the means alone would have matched."""
    reference = validation([3.0] * 5)
    student = validation([3.0 + step for step in (-0.05, -0.02, 0.0, 0.01, 0.05)])
    match = compare_losses(student, reference)
    assert match.difference <= 0
    assert match.matched_paper
    assert not match.matched


def test_bounds_of_two_documents_by_hand():
    """Leaving out one of two equal documents gives the other: the bound is a t quantile of one degree of freedom."""
    excess, tokens = np.array([-1.0, 3.0]), np.array([100.0, 100.0])
    lower, upper = difference_bounds(excess, tokens, 0.95)
    reach = np.hypot(0.02, 0.02) * np.tan(np.pi * 0.45)
    assert upper == pytest.approx(0.01 + reach)
    assert lower == pytest.approx(0.01 - reach)


def test_many_comparisons_at_once_are_those_of_each():
    """Bounds of a stack of comparisons are the bounds of each."""
    draw = np.random.default_rng(0)
    excess, tokens = draw.normal(size=(3, 50)), draw.uniform(50, 500, size=(3, 50))
    lower, upper = difference_bounds(excess, tokens, 0.9)
    for row in range(3):
        assert difference_bounds(excess[row], tokens[row], 0.9) == (
            pytest.approx(lower[row], rel=1e-12),
            pytest.approx(upper[row], rel=1e-12),
        )


def test_very_many_documents_are_resampled_in_parts(monkeypatch):
    """Resampling weights are held a few draws at a time; bounds by other draws are nearly the same."""
    draw = np.random.default_rng(0)
    excess, tokens = draw.normal(size=300), draw.uniform(50, 500, size=300)
    whole = all_bounds(excess, tokens, 0.95)
    monkeypatch.setattr(matching, "_WEIGHTS", 7_000)
    matching._weights.cache_clear()
    parts = all_bounds(excess, tokens, 0.95)
    matching._weights.cache_clear()
    assert parts["jackknife"] == whole["jackknife"]
    for name in ("percentile", "studentised"):
        assert parts[name] == pytest.approx(whole[name], rel=0.1)
        assert parts[name] != whole[name]


@pytest.mark.parametrize("documents", [5, 30, 300])
def test_bounds_hold_for_few_documents_and_many(documents):
    """The one-sided 95 % bound of documents of uneven length holds in about 95 of 100 draws, from 5 documents on."""
    draw = np.random.default_rng(documents)
    tokens = np.exp(draw.normal(6, 0.5, size=(400, documents)))
    excess = tokens * draw.normal(0, 0.05, size=tokens.shape)
    _, upper = difference_bounds(excess, tokens, 0.95)
    assert 0.92 <= np.mean(upper >= 0) <= (0.985 if documents > 5 else 0.998)
    alone = all_bounds(excess, tokens, 0.95)["percentile"][1]
    assert np.mean(alone >= 0) <= np.mean(upper >= 0)
    assert documents > 5 or np.mean(alone >= 0) < 0.92


def test_bounds_hold_for_skewed_differences():
    """With exponential skew the upper bound of 30 documents holds in 93 of 100 draws, which the others do not reach."""
    draw = np.random.default_rng(30)
    tokens = np.exp(draw.normal(6, 0.5, size=(2_000, 30)))
    excess = tokens * (draw.exponential(size=tokens.shape) - 1)
    bounds = all_bounds(excess, tokens, 0.95)
    held = {name: np.mean(upper >= 0) for name, (_, upper) in bounds.items()}
    assert np.mean(difference_bounds(excess, tokens, 0.95)[1] >= 0) >= 0.93
    assert held["studentised"] > 0.92
    assert max(held["percentile"], held["jackknife"]) < 0.91


def test_number_as_target():
    """A number in nats per token is a target like a reference's loss."""
    student = validation([3.0] * 40)
    assert compare_losses(student, 3.0).difference == 0.0
    assert compare_losses(student, 2.5).difference == pytest.approx(0.5)
    assert not compare_losses(student, 2.5).matched


def test_documents_count_by_their_tokens():
    """The difference is a sum over a sum, not a mean of document means."""
    reference = validation([3.0, 3.0], tokens=[900, 100])
    match = compare_losses(validation([3.0, 4.0], tokens=[900, 100]), reference)
    assert match.difference == pytest.approx(0.1)


def test_other_documents_are_refused():
    """Losses on different sequences cannot be paired."""
    with pytest.raises(ValueError, match="must be measured on the same sequences, got 3 documents with 300 tokens"):
        compare_losses(validation([3.0] * 3), validation([3.0] * 4))


@pytest.mark.parametrize(("seeds", "documents"), [(2, 40), (3, 20), (5, 100)])
def test_interval_over_seeds_covers_documents_and_seeds(seeds, documents):
    """The two-sided 95 % interval covers the true difference in 95 of 100 draws of documents and seeds, or more."""
    covered = []
    for number in range(300):
        draw = np.random.default_rng((number, seeds))
        of_document, of_seed = draw.normal(0, 0.05, documents), draw.normal(0, 0.02, seeds)
        noise = draw.normal(0, 0.01, (seeds, documents))
        models = [validation(list(3.1 + of_document + shift + row)) for shift, row in zip(of_seed, noise, strict=True)]
        found = compare_over_seeds(models, [validation([3.0] * documents)] * seeds)
        covered.append(found.lower <= 0.1 <= found.upper)
    assert 0.94 <= np.mean(covered) <= 0.999


def test_interval_over_one_seed_is_that_of_its_documents():
    """With one seed the interval is that of the documents alone, and it is said; so is that they are few."""
    student, target = validation(spread(12, 1)), validation(spread(12, 2))
    found, match = compare_over_seeds([student], [target], 0.9), compare_losses(student, target, confidence=0.95)
    assert (found.lower, found.upper) == (pytest.approx(match.lower), pytest.approx(match.upper))
    assert found.note.endswith("may be too narrow; 1 seed: what another seed changes is not covered")
    alone = compare_over_seeds([validation([3.0])] * 2, [validation([2.5])] * 2)
    assert (alone.difference, alone.lower, alone.note) == (0.5, None, "no interval: 1 document, 2 are needed")


def test_seeds_are_paired():
    """Each model has a target of its seed."""
    with pytest.raises(ValueError, match="paired by seed, got 2 and 1"):
        compare_over_seeds([validation([3.0] * 3)] * 2, [validation([3.0] * 3)])
