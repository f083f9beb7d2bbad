"""Decide which layers each round's student has, and when a run ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .config import InherituneConfig
from .layers import is_prefix, resolve_layers
from .measures import is_measured, parse_measured
from .records import LayerOrder, Match, Round, RunState

Layers = tuple[int, ...]


@dataclass(frozen=True)
class GrowthRule:
    """
    How the students of a run grow, and which of them may end it by matching the target.

    Args:
        first (`tuple[int, ...]`): Layers of the first round's student.
        grow (`Callable`): Returns the layers that follow those of a round, or None if there are no more; `add_along`
            and `follow` make such functions.
        steps_per_round (`int`): Optimizer steps of one round.
        match (`str`, *optional*, defaults to `"any"`): Rounds in which a match counts and ends the run: `any` (the
            paper), `last` (every stage is trained whatever its loss), or `never` (a control has nothing to reach).
    """

    first: Layers
    grow: Callable[[Layers], Layers | None]
    steps_per_round: int
    match: Literal["any", "last", "never"] = "any"


def rule_from_recipe(
    recipe: InherituneConfig, depth: int, prefix_sizes: Sequence[int] | None = None, order: LayerOrder | None = None
) -> GrowthRule:
    """
    Return the growth rule of a recipe: its `schedule`, or `grow_by` layers added in order after its `keep_layers`.

    If `keep_layers` is a measure, layers are added along its order. Before that is measured first layers stand for it:
    depths and rounds are the same (those of `auto` are then taken to begin at half).

    Args:
        recipe (`InherituneConfig`): The recipe.
        depth (`int`): Depth of the reference, in layers.
        prefix_sizes (sequence of `int`, *optional*): Parameters of a student of the first layer, of the first two, and
            so on; needed for `"params:350M"`.
        order (`LayerOrder`, *optional*): What the measure of `keep_layers` has found.

    Raises:
        ValueError: If the first student does not hold layers of the reference, cannot grow, or is deeper than
            `max_layers`; or if the rounds of `schedule` are not nested.
    """
    limit, steps = recipe.max_layers or depth, recipe.steps_per_round or 0
    if recipe.schedule:
        students = _scheduled_students(recipe, depth, prefix_sizes)
        _check_limit(recipe, len(students[0]), depth)
        return GrowthRule(students[0], follow([item for item in students if len(item) <= limit]), steps)
    if is_measured(recipe.keep_layers):
        count = parse_measured(str(recipe.keep_layers), depth)[1]
        if count is None:
            count = min(order.first if order else max(1, depth // 2), limit)
        _check_limit(recipe, len(resolve_layers(count, depth)), depth)
        along = order.layers if order else tuple(range(depth))
        return GrowthRule(tuple(sorted(along[:count])), add_along(along, recipe.grow_by, limit), steps)
    first = resolve_layers(recipe.keep_layers, depth, prefix_sizes)
    _check_limit(recipe, len(first), depth)
    if not is_prefix(first) and limit > len(first):
        raise ValueError(
            f"keep_layers={recipe.keep_layers!r} does not start at the first layer, so there is no next layer to grow "
            f"by: keep 'first:{len(first)}' or 'loss:{len(first)}', give a schedule of each round's layers, or set "
            f"max_layers to {len(first)} to train this choice for one round."
        )
    return GrowthRule(first, add_along(range(depth), recipe.grow_by, limit), steps)


def add_along(order: Sequence[int], grow_by: int, limit: int) -> Callable[[Layers], Layers | None]:
    """
    Return a function that adds the next `grow_by` layers of `order`, the last step clamped at `limit` layers.

    Args:
        order (sequence of `int`): Layers in the order in which they are added; the paper's is 0, 1, 2, and so on.
        grow_by (`int`): Layers added for each further round.
        limit (`int`): Depth of the deepest student, in layers.
    """

    def grow(layers: Layers) -> Layers | None:
        return tuple(sorted(order[: min(len(layers) + grow_by, limit)])) if len(layers) < limit else None

    return grow


def follow(students: Sequence[Layers]) -> Callable[[Layers], Layers | None]:
    """Return a function that gives the next deeper one of a list of students, shallowest first."""

    def grow(layers: Layers) -> Layers | None:
        return next((student for student in students if len(student) > len(layers)), None)

    return grow


def students_of(rule: GrowthRule) -> Iterator[Layers]:
    """Yield the layers of every student that the rule leads to, the first one first."""
    layers: Layers | None = rule.first
    while layers is not None:
        yield layers
        layers = rule.grow(layers)


def planned_rounds(rule: GrowthRule, max_steps: int | None = None) -> list[tuple[Layers, int]]:
    """
    Return the layers and the optimizer steps of every round of a run, if it needs them all.

    Args:
        rule (`GrowthRule`): How students grow.
        max_steps (`int`, *optional*): Steps that all rounds together may take; the last one may be cut short.

    Raises:
        ValueError: If `max_steps` is not above 0.
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be above 0 to cap all rounds together, got {max_steps}.")
    left = math.inf if max_steps is None else max_steps
    planned = []
    for layers in students_of(rule):
        steps = int(min(rule.steps_per_round, left))
        if steps < 1:
            break
        planned.append((layers, steps))
        left -= steps
    return planned


def looks(rule: GrowthRule, max_steps: int, match_at: str) -> int:
    """
    Return how many chances to match a run has, over which its confidence is spread.

    One for each planned round in which a match counts; two if rounds end at two evaluations in a row that match, which
    errs about twice as often as one look does (docs/results/match-rule.md). `max_steps` of 0 or less is no limit.
    """
    rounds = len(planned_rounds(rule, max_steps if max_steps > 0 else None)) if rule.match == "any" else 1
    return 2 * rounds if match_at == "evaluation" else rounds


def confidence_of_look(confidence: float | None, looks: int) -> float | None:
    """Return the confidence of each of so many looks at one set that keeps `confidence` over all (Bonferroni)."""
    return None if confidence is None else 1 - (1 - confidence) / looks


def match_counts(rule: GrowthRule, layers: Layers) -> bool:
    """Return whether a match of a student of `layers` counts: in the rounds that the rule names."""
    return rule.match == "any" or (rule.match == "last" and rule.grow(layers) is None)


def judge(rule: GrowthRule, layers: Layers, match: Match) -> Match:
    """Return the verdict on a student of `layers`, whose match may not count."""
    return match if match_counts(rule, layers) else replace(match, matched=False)


def round_end(state: RunState, rule: GrowthRule, budget: int) -> int:
    """Return the step at which the round in progress ends; `budget` caps the steps of all rounds if it is above 0."""
    end = state.start_step + rule.steps_per_round
    return min(end, budget) if budget > 0 else end


def conclude(state: RunState, finished: Round, rule: GrowthRule, budget: int) -> RunState:
    """
    Record a finished round and decide what comes next.

    Args:
        state (`RunState`): The run, with the round in progress.
        finished (`Round`): Its result.
        rule (`GrowthRule`): How students grow.
        budget (`int`): Steps that all rounds together may take; 0 or less: no limit.

    Returns:
        `RunState`: With the outcome if the run has ended, else with the next round's layers.
    """
    state = replace(state, rounds=(*state.rounds, finished))
    if finished.match.matched:
        return replace(state, outcome="matched")
    return _next_round(state, rule, budget)


def reopen(state: RunState, rule: GrowthRule, budget: int) -> RunState:
    """
    Continue an ended run that was interrupted, or that may now take more layers or steps than when it ended.

    A last round that the budget had cut short continues where it stopped.
    """
    if state.outcome == "matched":
        return state
    if state.outcome == "interrupted":
        return replace(state, outcome=None)
    last = state.rounds[-1]
    if _was_cut(last, rule) and not 0 < budget <= last.end_step:
        return replace(state, rounds=state.rounds[:-1], outcome=None)
    return _next_round(replace(state, outcome=None), rule, budget)


def _next_round(state: RunState, rule: GrowthRule, budget: int) -> RunState:
    last = state.rounds[-1]
    grown = rule.grow(last.kept_layers)
    if grown is None and not _was_cut(last, rule):
        return replace(state, outcome="no_more_layers")
    if grown is None or _was_cut(last, rule) or 0 < budget <= last.end_step:
        return replace(state, outcome="budget_exhausted")
    return replace(state, layers=grown, start_step=last.end_step, staged=False, start=None)


def _was_cut(last: Round, rule: GrowthRule) -> bool:
    return not last.abandoned and last.end_step - last.start_step < rule.steps_per_round


def _scheduled_students(recipe: InherituneConfig, depth: int, sizes: Sequence[int] | None) -> list[Layers]:
    if recipe.keep_layers != "half":
        raise ValueError(
            f"Give keep_layers or schedule, not both: got keep_layers={recipe.keep_layers!r} and a schedule that "
            f"begins with {recipe.schedule[0]!r}."
        )
    students = [resolve_layers(item, depth, sizes) for item in recipe.schedule]
    for before, after, text in zip(students, students[1:], recipe.schedule[1:], strict=False):
        if not set(before) < set(after):
            raise ValueError(
                f"Each round of schedule must hold the layers of the one before and more, but {text!r} does not hold "
                f"{sorted(set(before) - set(after)) or 'more'}."
            )
    return students


def _check_limit(recipe: InherituneConfig, first: int, depth: int) -> None:
    if recipe.max_layers is not None and not first <= recipe.max_layers <= depth:
        raise ValueError(
            f"max_layers must be between {first} (the first student's depth) and {depth} (the reference's depth), got "
            f"{recipe.max_layers}."
        )
