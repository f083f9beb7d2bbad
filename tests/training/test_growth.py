"""Layers from round to round."""

import pytest

from inheritune_hf import InherituneConfig
from inheritune_hf.records import Match, Round
from inheritune_hf.training.growth import conclude, first_layers, next_layers, reopen
from inheritune_hf.training.staging import RunState


def recipe(**changes):
    return InherituneConfig(**{"steps_per_round": 10, **changes})


def finished(state, end, matched=False):
    verdict = Match(matched, matched, 0.0, None, None, 1)
    return Round(state.round_index, state.layers, state.start_step, end, 0, 0.0, 0.0, 3.0, 3.0, verdict)


def test_first_round_keeps_the_recipes_layers():
    """Half the depth is the paper's start."""
    assert first_layers(recipe(), 24) == tuple(range(12))
    assert first_layers(recipe(keep_layers=16), 24) == tuple(range(16))


def test_growth_is_clamped_at_the_last_step():
    """Two layers a round, the last step shorter; no more after the deepest."""
    assert next_layers((0, 1), recipe(), 5) == (0, 1, 2, 3)
    assert next_layers((0, 1, 2, 3), recipe(), 5) == (0, 1, 2, 3, 4)
    assert next_layers((0, 1, 2, 3, 4), recipe(), 5) is None
    assert next_layers((0, 1, 2), recipe(max_layers=4), 9) == (0, 1, 2, 3)
    assert next_layers((0, 1, 2, 3), recipe(max_layers=4), 9) is None


def test_papers_medium_run():
    """12, 14 and 16 of 24 layers, as the paper grew GPT-2 medium."""
    state = RunState(identity={}, layers=first_layers(recipe(), 24))
    depths = []
    for end in (10, 20, 30):
        depths.append(len(state.layers))
        state = conclude(state, finished(state, end, matched=end == 30), recipe(), 24, budget=-1)
    assert depths == [12, 14, 16]
    assert state.outcome == "matched"


def test_outcomes():
    """Matched, out of layers, out of budget; a cut round is out of budget even at the last layer."""
    state = RunState(identity={}, layers=(0, 1))
    assert conclude(state, finished(state, 10, matched=True), recipe(), 2, 10).outcome == "matched"
    assert conclude(state, finished(state, 10), recipe(), 2, -1).outcome == "no_more_layers"
    assert conclude(state, finished(state, 10), recipe(), 4, 10).outcome == "budget_exhausted"
    assert conclude(state, finished(state, 7), recipe(), 2, 7).outcome == "budget_exhausted"
    grown = conclude(state, finished(state, 10), recipe(), 4, -1)
    assert (grown.outcome, grown.layers, grown.start_step, grown.staged) == (None, (0, 1, 2, 3), 10, False)


def test_reopening():
    """A matched run stays; others go on where more is allowed, a cut round from where it was cut."""
    state = RunState(identity={}, layers=(0, 1), staged=True)
    matched = conclude(state, finished(state, 10, matched=True), recipe(), 4, -1)
    assert reopen(matched, recipe(), 4, -1) is matched
    cut = conclude(state, finished(state, 7), recipe(), 4, 7)
    again = reopen(cut, recipe(), 4, 12)
    assert (again.rounds, again.outcome, again.staged, again.start_step) == ((), None, True, 0)
    assert reopen(cut, recipe(), 4, 7).outcome == "budget_exhausted"
    full = conclude(state, finished(state, 10), recipe(), 2, -1)
    assert reopen(full, recipe(), 2, -1).outcome == "no_more_layers"
    assert reopen(full, recipe(), 4, -1).layers == (0, 1, 2, 3)


def test_layers_that_cannot_grow_are_refused():
    """Only first layers have a next layer."""
    with pytest.raises(ValueError, match="keep_layers='last:2' does not start at the first layer"):
        first_layers(recipe(keep_layers="last:2"), 4)
    assert first_layers(recipe(keep_layers="last:2", max_layers=2), 4) == (2, 3)
