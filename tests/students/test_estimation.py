"""What a run would take, estimated before anything is read."""

import pytest
from families import CASES
from transformers import AutoConfig, GPT2Config

from inheritune_hf import InherituneConfig
from inheritune_hf.students import TrainingSetup, estimate_run, throughput
from inheritune_hf.students.estimation import operations_per_token


@pytest.fixture
def large_vocabulary(tmp_path):
    """Folder of a config alone."""
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=20_000, n_positions=64)
    config.save_pretrained(tmp_path)
    return tmp_path


def recipe(**changes):
    return InherituneConfig(**{"keep_layers": 4, "grow_by": 3, "steps_per_round": 10, **changes})


def test_an_estimate_has_every_round(published):
    """Rounds grow as the recipe says; tokens, steps, operations and seconds add up."""
    run = estimate_run(
        published,
        recipe(max_layers=8),
        TrainingSetup(batch_size=2, block_size=16, accumulation=3),
        tokens_per_second=100.0,
    )
    assert [item.layers for item in run.rounds] == [4, 7, 8]
    assert all(item.tokens == 10 * 2 * 16 * 3 for item in run.rounds)
    assert run.tokens == 3 * 960
    assert run.steps == 30
    assert run.rounds[0].seconds == pytest.approx(9.6)
    assert run.rounds[2].seconds / 9.6 == pytest.approx(run.rounds[2].flops / run.rounds[0].flops)
    assert run.seconds == pytest.approx(sum(item.seconds for item in run.rounds))
    assert run.flops == sum(item.flops for item in run.rounds)
    assert run.measuring.weights == 4 * run.plan.parameters_before
    assert run.inheriting.peak == 4 * run.plan.parameters_after


def test_an_estimate_of_one_round(published):
    """With max_layers at its depth any choice is one round; without a throughput there are no hours."""
    assert [item.layers for item in estimate_run(published, recipe(keep_layers="last:2", max_layers=2)).rounds] == [2]
    run = estimate_run(published, recipe(max_layers=4), TrainingSetup(block_size=4096))
    assert run.seconds is None
    assert run.tokens == 10 * 8 * 32  # sequences are no longer than the reference reads


def test_a_schedule_says_the_rounds(published):
    """Rounds that a recipe lists are those that are estimated, up to max_layers."""
    scheduled = recipe(keep_layers="half", schedule=["0:2,11", "0:4,11", "0:8,11"])
    assert [item.layers for item in estimate_run(published, scheduled).rounds] == [3, 5, 9]
    scheduled = recipe(keep_layers="half", schedule=["0:2,11", "0:4,11", "0:8,11"], max_layers=5)
    assert [item.layers for item in estimate_run(published, scheduled).rounds] == [3, 5]


def test_a_plan_needs_steps_and_one_throughput(published):
    """A recipe without steps is refused, and so are two throughputs."""
    with pytest.raises(ValueError, match="A plan needs steps_per_round, the optimizer steps of one round"):
        estimate_run(published, InherituneConfig())
    with pytest.raises(ValueError, match=r"tokens_per_second must be above 0, got 0\.0\."):
        estimate_run(published, recipe(), tokens_per_second=0.0)
    with pytest.raises(ValueError, match=r"Give tokens_per_second or measure, not both: one throughput is enough\."):
        estimate_run(published, recipe(), tokens_per_second=1.0, measure=True)


def test_measured_steps_tell_the_hours(published, monkeypatch):
    """What is measured at two depths gives every round's time, and the plan says what was measured."""
    monkeypatch.setattr(throughput, "_step_seconds", lambda config, *_: 1.0 + 0.5 * config.num_hidden_layers)
    run = estimate_run(published, recipe(max_layers=8), measure=True)
    assert [item.seconds for item in run.rounds] == [10 * 3.0, 10 * 4.5, 10 * 5.0]
    assert run.seconds == 125.0
    assert run.step_time.depths == (1, 3)
    assert (run.step_time.outside, run.step_time.per_layer) == (1.0, 0.5)


def test_a_cap_on_steps_ends_the_rounds(published):
    """Rounds that a cap leaves no step for are left out, and the last one is cut short."""
    run = estimate_run(published, recipe(), max_steps=25)
    assert [(item.layers, item.steps) for item in run.rounds] == [(4, 10), (7, 10), (10, 5)]
    assert run.rounds[2].tokens == run.rounds[0].tokens / 2
    with pytest.raises(ValueError, match=r"max_steps must be above 0 to cap all rounds together, got 0\."):
        estimate_run(published, recipe(), max_steps=0)


def test_a_teacher_counts(published):
    """With distillation the reference's weights are in memory, and a third of its operations are added."""
    plain, taught = (estimate_run(published, recipe(max_layers=4, distillation=item)) for item in (None, "jsd=1"))
    whole = estimate_run(published, recipe(keep_layers=12)).rounds[0]
    assert taught.flops == pytest.approx(plain.flops + whole.flops / 3)
    added = taught.rounds[0].memory.weights - plain.rounds[0].memory.weights
    assert added == 4 * plain.plan.parameters_before


def test_evaluating_holds_the_logits_of_few_tokens(large_vocabulary):
    """Measuring a reference of a large vocabulary takes the logits of a few tokens, whatever the batch."""
    run = estimate_run(large_vocabulary, recipe(keep_layers=1, max_layers=1), TrainingSetup(64, 64))
    assert run.measuring.logits == 2 * 4 * 1024 * 20_000
    assert run.loss in ("linear", "chunked", "liger")
    assert estimate_run(large_vocabulary, recipe(keep_layers=1, max_layers=1, loss="full")).loss == "full"


def test_experts_count_as_far_as_they_are_used():
    """Of experts, those that a token is sent to count as operations, not all."""
    values = CASES["qwen3_moe"][0]
    few = operations_per_token(AutoConfig.for_model("qwen3_moe", **{**values, "num_experts_per_tok": 1}), 16)
    all_of_them = operations_per_token(AutoConfig.for_model("qwen3_moe", **{**values, "num_experts_per_tok": 4}), 16)
    sparse_layers, experts, numbers = 4, 4, 3 * 16 * 8
    assert all_of_them - few == pytest.approx(6 * sparse_layers * (experts - 1) * numbers)
