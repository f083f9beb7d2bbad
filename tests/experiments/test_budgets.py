"""How deep each arm is and how long it trains, and which arms cannot be run."""

import pytest
from transformers import GPT2Config

from inheritune_hf.experiments import CompareConfig
from inheritune_hf.experiments.arms import CONTROLS, parse_arm
from inheritune_hf.experiments.comparison import Budget, LoopCost

GPT2 = GPT2Config(n_layer=8, n_embd=16, n_head=4, vocab_size=32, n_positions=16)
#: Two rounds of 50 steps, of 2 and of 4 layers.
ROUNDS = ((2, 50), (4, 50))


def budget_of(budget="tokens", states=False, **settings):
    compare = CompareConfig(arms=["inheritune"], budget=budget, reference_steps=30, **settings)
    return Budget(compare, GPT2, 8, 32, reference_steps=30, states=states)


def cost(given):
    flops = sum(steps * 32 * given.operations(parse_arm("inheritune"), layers) for layers, steps in ROUNDS)
    return LoopCost(4, 100, flops)


def steps(name, given):
    return given.plan(parse_arm(name), 1, 0.1, cost(given)).steps


@pytest.mark.parametrize("budget", ["tokens", "flops"])
def test_controls_take_the_loops_steps_under_either_budget(budget):
    """A control sees as much text as the student over all its rounds, and random-long the reference's besides."""
    given = budget_of(budget)
    assert {name: steps(name, given) for name in CONTROLS} == {"continued": 100, "random": 100, "random-long": 130}


def test_other_arms_get_the_budgets_operations():
    """Under a budget of operations arms that are no controls spend what the loop spent, whatever steps that makes."""
    given = budget_of("flops")
    spent = cost(given).flops
    for name, budgets in (("inherited", 1), ("random-2x", 2), ("random-whole", 1), ("random/kd", 1)):
        plan = given.plan(parse_arm(name), 1, 0.1, cost(given))
        step = 32 * given.operations(plan.variant, plan.layers)
        assert abs(plan.steps * step - budgets * spent) <= budgets * step / 2, name
        assert plan.steps != 100 * budgets
    assert steps("random-whole", given) < steps("inherited", given) < 100


def test_taught_states_need_a_model_as_wide_as_the_teacher():
    """Half as many channels cannot be compared with the teacher's; distributions can."""
    variant = parse_arm("half-width/kd")
    assert "narrower than its teacher's" in budget_of(states=True).reason_against(variant, [None])
    fixed = budget_of(layers=4, budget_steps=2)
    assert fixed.reason_against(variant, [None]) == ""
    assert budget_of(states=True, layers=4, budget_steps=2).reason_against(parse_arm("half-width"), [None]) == ""
