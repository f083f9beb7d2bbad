"""How a student's layers grow from round to round: pure functions on layer numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..configuration import InherituneConfig
from ..records import Round
from ..students import is_prefix, resolve_layers
from .staging import RunState


def first_layers(config: InherituneConfig, depth: int, prefix_sizes: Sequence[int] | None = None) -> tuple[int, ...]:
    """
    Return the layers of the first round's student.

    Args:
        config (`InherituneConfig`): The recipe.
        depth (`int`): Depth of the reference, in layers.
        prefix_sizes (sequence of `int`, *optional*): Parameters of a student of the first layer, of the first two, and
            so on; needed for `"params:350M"`.

    Raises:
        ValueError: If the choice is not one of the reference's layers, cannot grow, or is deeper than `max_layers`.
    """
    if config.schedule:
        return _resolve_schedule(config, depth)[0]
    layers = resolve_layers(config.keep_layers, depth, prefix_sizes)
    _check_limit(config, len(layers), depth)
    if not is_prefix(layers) and (config.max_layers or depth) > len(layers):
        raise ValueError(
            f"keep_layers={config.keep_layers!r} does not start at the first layer, so there is no next layer to grow "
            f"by: keep 'first:{len(layers)}', give a schedule of each round's layers, or set max_layers to "
            f"{len(layers)} to train this choice for one round."
        )
    return layers


def next_layers(layers: tuple[int, ...], config: InherituneConfig, depth: int) -> tuple[int, ...] | None:
    """
    Return the layers of the next round's student, or None if there are no more.

    Follows `schedule`; without one it adds `grow_by` layers, the last step clamped at `max_layers`, or at the
    reference's depth.
    """
    limit = min(config.max_layers or depth, depth)
    if config.schedule:
        deeper = [item for item in _resolve_schedule(config, depth) if len(layers) < len(item) <= limit]
        return deeper[0] if deeper else None
    if len(layers) >= limit:
        return None
    return tuple(range(min(len(layers) + config.grow_by, limit)))


def _resolve_schedule(config: InherituneConfig, depth: int) -> list[tuple[int, ...]]:
    if config.keep_layers != "half":
        raise ValueError(
            f"Give keep_layers or schedule, not both: got keep_layers={config.keep_layers!r} and a schedule that "
            f"begins with {config.schedule[0]!r}."
        )
    rounds = [resolve_layers(item, depth) for item in config.schedule]
    for before, after, text in zip(rounds, rounds[1:], config.schedule[1:], strict=False):
        if not set(before) < set(after):
            raise ValueError(
                f"Each round of schedule must hold the layers of the one before and more, but {text!r} does not hold "
                f"{sorted(set(before) - set(after)) or 'more'}."
            )
    _check_limit(config, len(rounds[0]), depth)
    return rounds


def _check_limit(config: InherituneConfig, first: int, depth: int) -> None:
    if config.max_layers is not None and not first <= config.max_layers <= depth:
        raise ValueError(
            f"max_layers must be between {first} (the first student's depth) and {depth} (the reference's depth), got "
            f"{config.max_layers}."
        )


def conclude(state: RunState, finished: Round, config: InherituneConfig, depth: int, budget: int) -> RunState:
    """
    Record a finished round and decide what comes next.

    Args:
        state (`RunState`): The run, with the round in progress.
        finished (`Round`): What the round came to.
        config (`InherituneConfig`): The recipe.
        depth (`int`): Depth of the reference, in layers.
        budget (`int`): Steps that all rounds together may take; 0 or less: no limit.

    Returns:
        `RunState`: With the outcome if the run has ended, else with the next round's layers.
    """
    state = replace(state, rounds=(*state.rounds, finished))
    if finished.match.matched:
        return replace(state, outcome="matched")
    return _next(state, config, depth, budget)


def reopen(state: RunState, config: InherituneConfig, depth: int, budget: int) -> RunState:
    """
    Let an ended run go on if it was interrupted, or if the recipe now allows more layers or steps than when it ended.

    A last round that the budget had cut short goes on where it stopped.
    """
    if state.outcome == "matched":
        return state
    if state.outcome == "interrupted":
        return replace(state, outcome=None)
    last = state.rounds[-1]
    if _was_cut(last, config) and not 0 < budget <= last.end_step:
        return replace(state, rounds=state.rounds[:-1], outcome=None)
    return _next(replace(state, outcome=None), config, depth, budget)


def _next(state: RunState, config: InherituneConfig, depth: int, budget: int) -> RunState:
    last = state.rounds[-1]
    grown = next_layers(last.kept_layers, config, depth)
    if grown is None and not _was_cut(last, config):
        return replace(state, outcome="no_more_layers")
    if grown is None or _was_cut(last, config) or 0 < budget <= last.end_step:
        return replace(state, outcome="budget_exhausted")
    return replace(state, layers=grown, start_step=last.end_step, staged=False)


def _was_cut(last: Round, config: InherituneConfig) -> bool:
    return last.end_step - last.start_step < (config.steps_per_round or 0)
