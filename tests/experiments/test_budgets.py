"""How deep each arm is and how long it trains, and which arms cannot be run."""

import pytest
from transformers import GPT2Config

from inheritune_hf.experiments import CompareConfig
from inheritune_hf.experiments.arms import parse_arm
from inheritune_hf.experiments.budgets import CONTROLS, Terms, Took, plan_cell, reason_against
from inheritune_hf.experiments.cells import operations

GPT2 = GPT2Config(n_layer=8, n_embd=16, n_head=4, vocab_size=32, n_positions=16)
#: Two rounds of 50 steps, of 2 and of 4 layers.
ROUNDS = ((2, 50), (4, 50))


def terms(budget="tokens", states=False, **settings):
    compare = CompareConfig(arms=["inheritune"], budget=budget, reference_steps=30, **settings)
    return Terms(compare, GPT2, 8, 32, reference_steps=30, states=states)


def took(given):
    flops = sum(steps * 32 * operations(parse_arm("inheritune"), GPT2, layers, 8) for layers, steps in ROUNDS)
    return Took(4, 100, flops)


def steps(name, given):
    return plan_cell(given, parse_arm(name), 1, 0.1, took(given)).steps


@pytest.mark.parametrize("budget", ["tokens", "flops"])
def test_controls_take_the_loops_steps_under_either_budget(budget):
    """A control sees as much text as the student over all its rounds, and random-long the reference's besides."""
    given = terms(budget)
    assert {name: steps(name, given) for name in CONTROLS} == {"continued": 100, "random": 100, "random-long": 130}


def test_other_arms_get_the_budgets_operations():
    """Under a budget of operations arms that are no controls spend what the loop spent, whatever steps that makes."""
    given = terms("flops")
    spent = took(given).flops
    for name, budgets in (("inherited", 1), ("random-2x", 2), ("random-whole", 1), ("random/kd", 1)):
        plan = plan_cell(given, parse_arm(name), 1, 0.1, took(given))
        step = 32 * operations(plan.variant, GPT2, plan.layers, 8)
        assert abs(plan.steps * step - budgets * spent) <= budgets * step / 2, name
        assert plan.steps != 100 * budgets
    assert steps("random-whole", given) < steps("inherited", given) < 100


def test_taught_states_need_a_model_as_wide_as_the_teacher():
    """Half as many channels cannot be compared with the teacher's; distributions can."""
    variant = parse_arm("half-width/kd")
    assert "narrower than its teacher's" in reason_against(terms(states=True), variant, [None])
    fixed = terms(layers=4, budget_steps=2)
    assert reason_against(fixed, variant, [None]) == ""
    assert reason_against(terms(states=True, layers=4, budget_steps=2), parse_arm("half-width"), [None]) == ""
