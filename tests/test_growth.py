"""The growth rule: which layers each round's student has, and when a run ends."""

import re

import pytest
from transformers import AutoModelForCausalLM, GPT2Config, TrainingArguments

from inheritune_hf import InherituneConfig, InherituneTrainer
from inheritune_hf.growth import (
    GrowthRule,
    add_along,
    conclude,
    confidence_of_look,
    follow,
    judge,
    looks,
    planned_rounds,
    reopen,
    round_end,
    rule_from_recipe,
    students_of,
)
from inheritune_hf.records import LayerOrder, Match, Round, RunState
from inheritune_hf.students import estimate_run

MATCHED = Match(True, True, 0.0, None, None, 1)


def recipe(**changes):
    return InherituneConfig(**{"steps_per_round": 10, **changes})


def rule(depth, **changes):
    """The rule of a recipe that begins with two layers."""
    return rule_from_recipe(recipe(keep_layers=2, **changes), depth)


def finished(state, end, matched=False, **facts):
    verdict = Match(matched, matched, 0.0, None, None, 1)
    return Round(state.round_index, state.layers, state.start_step, end, 0, 0.0, 0.0, 3.0, 3.0, verdict, **facts)


def test_the_first_student_has_the_recipes_layers():
    """Half the depth is the paper's start."""
    assert rule_from_recipe(recipe(), 24).first == tuple(range(12))
    assert rule_from_recipe(recipe(keep_layers=16), 24).first == tuple(range(16))
    assert rule_from_recipe(recipe(keep_layers="last:2", max_layers=2), 4).first == (2, 3)


def test_growth_is_clamped_at_the_last_step():
    """Two layers a round, the last step shorter; no more after the deepest. What was clamped may grow later."""
    assert [len(item) for item in students_of(rule(5))] == [2, 4, 5]
    assert [len(item) for item in students_of(rule(9, max_layers=3))] == [2, 3]
    assert rule(9, max_layers=8).grow((0, 1, 2)) == (0, 1, 2, 3, 4)


def test_growth_along_an_order():
    """Layers are added in a given order; a student's are ascending, and each holds those of the one before."""
    grow = add_along([3, 0, 5, 1, 4, 2], 2, 5)
    assert list(students_of(GrowthRule((0, 3), grow, 1))) == [(0, 3), (0, 1, 3, 5), (0, 1, 3, 4, 5)]


def test_a_measure_grows_along_its_order():
    """A student of n layers has the first n of the order; before it is measured first layers stand for them."""
    order = LayerOrder("loss", (0, 5, 3, 1, 2, 4), 2)
    by_loss = recipe(keep_layers="loss:2", max_layers=5)
    students = [(0, 5), (0, 1, 3, 5), (0, 1, 2, 3, 5)]
    assert list(students_of(rule_from_recipe(by_loss, 6, order=order))) == students
    assert list(students_of(rule_from_recipe(by_loss, 6))) == [tuple(range(len(item))) for item in students]
    assert rule_from_recipe(recipe(keep_layers="loss:half"), 6, order=order).first == (0, 3, 5)
    advised = LayerOrder("auto", tuple(range(6)), 4)
    assert rule_from_recipe(recipe(keep_layers="auto"), 6, order=advised).first == (0, 1, 2, 3)
    assert rule_from_recipe(recipe(keep_layers="auto", max_layers=3), 6, order=advised).first == (0, 1, 2)
    assert rule_from_recipe(recipe(keep_layers="auto"), 6).first == (0, 1, 2)
    for settings, message in (
        ({"keep_layers": "loss:7"}, r"keep_layers must be between 1 and 6 .* got 7"),
        ({"keep_layers": "loss:4", "max_layers": 3}, "max_layers must be between 4"),
        (
            {"keep_layers": "loss:all"},
            "keep_layers='loss:all' is not complete: write 'auto', or a measure with 'half' or",
        ),
        ({"keep_layers": "loss"}, "keep_layers='loss' is not complete"),
    ):
        with pytest.raises(ValueError, match=message):
            rule_from_recipe(recipe(**settings), 6)


def test_a_schedule_lists_the_students():
    """The rounds that a recipe lists are those that are run, up to max_layers."""
    listed = recipe(schedule=["0:2,11", "0:4,11", "0:8,11"])
    by_size = rule_from_recipe(recipe(schedule=["params:20", "params:40"]), 12, [10 * depth for depth in range(1, 13)])
    assert list(students_of(by_size)) == [(0, 1), (0, 1, 2, 3)]
    assert [len(item) for item in students_of(rule_from_recipe(listed, 12))] == [3, 5, 9]
    listed.max_layers = 5
    assert [len(item) for item in students_of(rule_from_recipe(listed, 12))] == [3, 5]


def test_a_cap_on_steps_ends_the_rounds():
    """Rounds that a cap leaves no step for are left out, and the last one is cut short."""
    assert planned_rounds(rule(6), 25) == [((0, 1), 10), ((0, 1, 2, 3), 10), ((0, 1, 2, 3, 4, 5), 5)]
    assert [steps for _, steps in planned_rounds(rule(6), 20)] == [10, 10]
    assert round_end(RunState({}, (0, 1), start_step=10), rule(6), 25) == 20
    assert round_end(RunState({}, (0, 1), start_step=20), rule(6), 25) == 25


def test_stages_are_all_run():
    """With match 'last' every stage but the last goes on whatever its loss; a control matches nothing."""
    stages = GrowthRule((0,), follow([(0,), (0, 1)]), 10, match="last")
    assert not judge(stages, (0,), MATCHED).matched
    assert judge(stages, (0, 1), MATCHED) is MATCHED
    control = GrowthRule((0, 1), follow([]), 10, match="never")
    state = RunState({}, (0, 1))
    assert judge(control, (0, 1), MATCHED) == Match(False, True, 0.0, None, None, 1)
    assert conclude(state, finished(state, 10), control, -1).outcome == "no_more_layers"


def test_looks_are_the_rounds_in_which_a_match_counts():
    """The confidence of a run is spread over its planned rounds, twice where two evaluations in a row may end one."""
    assert looks(rule(6), -1, "round_end") == 3
    assert looks(rule(6), 20, "round_end") == 2
    assert looks(rule(6), -1, "evaluation") == 6
    stages = GrowthRule((0,), follow([(0,), (0, 1)]), 10, match="last")
    assert looks(stages, -1, "round_end") == 1


def test_confidence_is_spread_over_looks():
    """So many looks err together no more often than one at the whole confidence, and means have none."""
    assert confidence_of_look(0.95, 1) == 0.95
    assert confidence_of_look(0.95, 5) == pytest.approx(0.99)
    assert confidence_of_look(None, 5) is None


def test_papers_medium_run():
    """12, 14 and 16 of 24 layers, as the paper grew GPT-2 medium."""
    paper = rule_from_recipe(recipe(), 24)
    state = RunState(identity={}, layers=paper.first)
    depths = []
    for end in (10, 20, 30):
        depths.append(len(state.layers))
        state = conclude(state, finished(state, end, matched=end == 30), paper, budget=-1)
    assert depths == [12, 14, 16]
    assert state.outcome == "matched"


def test_outcomes():
    """Matched, out of layers, out of budget; a cut round is out of budget even at the last layer."""
    state = RunState(identity={}, layers=(0, 1))
    assert conclude(state, finished(state, 10, matched=True), rule(2), 10).outcome == "matched"
    assert conclude(state, finished(state, 10), rule(2), -1).outcome == "no_more_layers"
    assert conclude(state, finished(state, 10), rule(4), 10).outcome == "budget_exhausted"
    assert conclude(state, finished(state, 7), rule(2), 7).outcome == "budget_exhausted"
    grown = conclude(state, finished(state, 10), rule(4), -1)
    assert (grown.outcome, grown.layers, grown.start_step, grown.staged) == (None, (0, 1, 2, 3), 10, False)


def test_an_abandoned_round_is_followed_by_the_next():
    """It has fewer steps than a round, but no budget cut it."""
    state = RunState(identity={}, layers=(0, 1), staged=True)
    grown = conclude(state, finished(state, 7, abandoned=True), rule(4), 10)
    assert (grown.outcome, grown.layers, grown.start_step) == (None, (0, 1, 2, 3), 7)
    assert conclude(state, finished(state, 7, abandoned=True), rule(4), 7).outcome == "budget_exhausted"


def test_reopening():
    """A matched run stays; others continue where more is allowed, a cut round from where it was cut."""
    state = RunState(identity={}, layers=(0, 1), staged=True)
    matched = conclude(state, finished(state, 10, matched=True), rule(4), -1)
    assert reopen(matched, rule(4), -1) is matched
    cut = conclude(state, finished(state, 7), rule(4), 7)
    again = reopen(cut, rule(4), 12)
    assert (again.rounds, again.outcome, again.staged, again.start_step) == ((), None, True, 0)
    assert reopen(cut, rule(4), 7).outcome == "budget_exhausted"
    full = conclude(state, finished(state, 10), rule(2), -1)
    assert reopen(full, rule(2), -1).outcome == "no_more_layers"
    assert reopen(full, rule(4), -1).layers == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"keep_layers": "last:2"},
            "keep_layers='last:2' does not start at the first layer, so there is no next layer",
        ),
        ({"schedule": ["0:2", "1:4"]}, "Each round of schedule must hold the layers of the one before and more"),
        ({"keep_layers": 3, "schedule": ["0:2", "0:4"]}, "Give keep_layers or schedule, not both: got keep_layers=3"),
        ({"keep_layers": 3, "max_layers": 2}, "max_layers must be between 3 (the first student's depth) and 4"),
    ],
)
def test_plan_and_train_refuse_the_same_recipes(changes, message, tmp_path):
    """What cannot be trained cannot be planned, and both say so in the same words."""
    config = GPT2Config(n_layer=4, n_embd=16, n_head=2, vocab_size=64, n_positions=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "reference")
    with pytest.raises(ValueError, match=re.escape(message)) as planned:
        estimate_run(tmp_path / "reference", recipe(**changes))
    args = TrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to=[])
    with pytest.raises(ValueError, match=re.escape(message)) as trained:
        InherituneTrainer(tmp_path / "reference", recipe(**changes), args)
    assert str(planned.value) == str(trained.value)
