"""Say in words how a run ended, by what rule, and how much its verdict weighs."""

from __future__ import annotations

from dataclasses import dataclass

from .records import Match, Outcome, RunRecord


@dataclass(frozen=True)
class Conclusion:
    """What a run came to, in words."""

    word: str  # or two
    good: bool | None  # whether that is a success; None if nothing is decided, or nothing was made smaller
    sentence: str  # without a full stop


def conclude_record(record: RunRecord, test: Match | None = None) -> Conclusion:
    """Return what the run of a record came to; `test` is its student's comparison on the test set, once it is known."""
    lineage, goal = record.lineage, goal_of(record.recipe.get("target", "reference"))
    decided = not record.rounds or record.rounds[-1].match.decided
    return conclusion(record.outcome, student_depth(record), lineage.reference_layers, goal, decided, test)


def student_depth(record: RunRecord) -> int:
    """Return the layers of a record's student: one of random weights has inherited none."""
    unfinished = record.outcome in {"interrupted", None}
    return len(record.lineage.kept_layers) if unfinished or not record.rounds else record.rounds[-1].layers


def conclusion(
    outcome: Outcome | None, layers: int, depth: int, goal: str, decided: bool = True, test: Match | None = None
) -> Conclusion:
    """
    Return what a run came to whose last student has `layers` of its reference's `depth` layers.

    `goal` is what it had to match, see `goal_of`; `decided` is false if its documents were too few to decide; `test` is
    its comparison on the test set, which confirms a match on the selection set or does not.
    """
    student = f"{layers} of {depth} layers"
    if outcome == "matched" and layers == depth:
        return Conclusion("no reduction", None, f"Only the full depth of {depth} layers matched {goal}: no reduction")
    if outcome == "matched" and test is not None and not test.matched:
        found = f"A student of {student} matched {goal} on the selection set"
        return Conclusion("not confirmed", None, f"{found}, but the test set does not confirm it")
    if outcome == "matched":
        return Conclusion("matched", True, f"A student of {student} matched {goal}")
    if outcome in {"no_more_layers", "budget_exhausted"}:
        why = "there were no more layers to add" if outcome == "no_more_layers" else "the step budget was used up"
        if decided:
            return Conclusion("missed", False, f"No student matched {goal}, up to {student}: {why}")
        few = "the selection set has too few documents"
        return Conclusion("undecided", None, f"Whether a student matches {goal}, up to {student}, is undecided: {few}")
    if outcome == "adapted":
        return Conclusion("trained further", None, "The reference was trained further as a whole")
    word, state = ("interrupted", "was interrupted") if outcome == "interrupted" else ("not finished", "has not ended")
    return Conclusion(word, None, f"The run {state}: whether its student of {student} matches {goal} is not decided")


def goal_of(target: object) -> str:
    """Return what a student has to match, by the recipe's target."""
    return "its starting reference" if target == "reference" else "the target loss"


def matched_word(match: Match, layers: int, depth: int) -> str:
    """Return the verdict on a model of `layers` layers beside a reference of `depth`, as tables show it."""
    if match.matched:
        return "yes, no reduction" if layers == depth else "yes"
    return "no" if match.decided else "undecided"


def describe_rule(record: RunRecord) -> str:
    """Return the rule by which the rounds of a run were judged, as sentences."""
    tolerance, confidence = record.recipe.get("tolerance"), record.recipe.get("confidence")
    if confidence is None:
        return f"A round matches if its loss is at most {tolerance} nats per token above the loss to reach."
    each = {item.match.confidence or confidence for item in record.rounds} or {confidence}
    spread = "" if each == {confidence} else f" ({100 * confidence:.3g}% over all looks at the selection set together)"
    return (
        f"A round matches if the one-sided {100 * max(each):.3g}% upper bound of its difference{spread} is at most "
        f"{tolerance} nats per token. Intervals lie between two one-sided bounds and cluster by document."
    )


def describe_evidence(match: Match) -> str:
    """Return which document weighs most in a comparison, and its power, as sentences; empty if neither is known."""
    parts = []
    if match.without_influential is not None:
        parts.append(
            f"Document {match.influential} of the selection set moves the difference most: without it, it would be "
            f"{match.without_influential:+.4f}."
        )
    if match.power is not None:
        parts.append(f"A student exactly as good as its target would match in {match.power:.0%} of such comparisons.")
    return " ".join(parts)
