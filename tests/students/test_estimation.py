"""What a run would take, estimated before anything is read."""

import os
import subprocess
import sys

import pytest
from families import CASES
from transformers import AutoConfig, GPT2Config

from inheritune_hf import InherituneConfig
from inheritune_hf.students import estimate_run, training_memory
from inheritune_hf.students.estimation import operations_per_token


def recipe(**changes):
    return InherituneConfig(**{"keep_layers": 4, "grow_by": 3, "steps_per_round": 10, **changes})


def test_an_estimate_has_every_round(published):
    """Rounds grow as the recipe says; tokens, steps, operations and seconds add up."""
    run = estimate_run(
        published, recipe(max_layers=8), batch_size=2, block_size=16, accumulation=3, tokens_per_second=100.0
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
    """A choice that cannot grow, or max_layers at its depth, is one round; without a throughput there are no hours."""
    assert [item.layers for item in estimate_run(published, recipe(keep_layers="last:2")).rounds] == [2]
    run = estimate_run(published, recipe(max_layers=4), block_size=4096)
    assert run.seconds is None
    assert run.tokens == 10 * 8 * 32  # sequences are no longer than the reference reads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more, got 0."),
        ({"block_size": -1}, "block_size must be a whole number of 1 or more, got -1."),
        ({"accumulation": 0}, "accumulation must be a whole number of 1 or more, got 0."),
        ({"processes": 0}, "processes must be a whole number of 1 or more, got 0."),
    ],
)
def test_impossible_sizes_are_refused(changes, message, published):
    """Sizes that no run has are refused with what is allowed, and so is a recipe without steps."""
    with pytest.raises(ValueError, match=message):
        estimate_run(published, recipe(), **changes)
    with pytest.raises(ValueError, match="A plan needs steps_per_round, the optimizer steps of one round"):
        estimate_run(published, InherituneConfig())


def test_memory_grows_with_what_it_should():
    """Weights and optimizer do not depend on the batch, activations and logits do; accumulation keeps gradients."""
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=500, n_positions=64, bos_token_id=0, eos_token_id=0)
    one, two = training_memory(config, 1, 64), training_memory(config, 2, 64)
    assert (one.weights, one.optimizer) == (two.weights, two.optimizer)
    assert two.activations == pytest.approx(2 * one.activations, rel=0.1)
    assert two.logits == pytest.approx(2 * one.logits, rel=0.1)
    assert training_memory(config, 1, 64, accumulation=2).peak > one.peak
    assert training_memory(config, 1, 64, bf16=True).activations < one.activations


@pytest.mark.parametrize("kind", ["falcon", "lfm2", "mpt", "qwen3_moe"])
def test_memory_is_estimated_for_every_kind(kind):
    """Attention, convolutions and experts alike: the estimate needs no formula for an architecture."""
    memory = training_memory(AutoConfig.for_model(kind, **CASES[kind][0]), 2, 16)
    assert memory.activations > 0
    assert memory.peak >= memory.weights + memory.optimizer + memory.activations


def test_experts_count_as_far_as_they_are_used():
    """Of experts, those that a token is sent to count as operations, not all."""
    values = CASES["qwen3_moe"][0]
    few = operations_per_token(AutoConfig.for_model("qwen3_moe", **{**values, "num_experts_per_tok": 1}), 16)
    all_of_them = operations_per_token(AutoConfig.for_model("qwen3_moe", **{**values, "num_experts_per_tok": 4}), 16)
    sparse_layers, experts, numbers = 4, 4, 3 * 16 * 8
    assert all_of_them - few == pytest.approx(6 * sparse_layers * (experts - 1) * numbers)


MEASURED = """
import os, resource, sys, torch
torch.set_num_threads(1)
from transformers import AutoConfig, AutoModelForCausalLM
batch, tokens = 4, 256
config = AutoConfig.for_model(sys.argv[1], **eval(sys.argv[2]))
def resident():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
warm = torch.nn.Linear(64, 64)
warm(torch.zeros(2, 64)).sum().backward()
before = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
model = AutoModelForCausalLM.from_config(config).train()
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
ids = torch.randint(0, config.vocab_size, (batch, tokens))
for _ in range(3):
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(resident() - before)
"""
SHAPES = {
    "gpt2": {"n_layer": 12, "n_embd": 512, "n_head": 8, "vocab_size": 8192, "n_positions": 256},
    "llama": {
        "num_hidden_layers": 6,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "opt": {
        "num_hidden_layers": 16,
        "hidden_size": 768,
        "ffn_dim": 3072,
        "num_attention_heads": 12,
        "vocab_size": 1000,
        "word_embed_proj_dim": 768,
        "max_position_embeddings": 256,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_estimated_memory_is_what_a_process_takes(kind):
    """The estimate is within 15 % of the peak that a process has above its start, for three shapes."""
    # glibc keeps freed memory to itself unless told otherwise, and then the peak is not what was in use.
    honest = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, kind, repr(SHAPES[kind])]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **honest})
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.split()[-1])
    estimated = training_memory(AutoConfig.for_model(kind, **SHAPES[kind]), 4, 256).peak
    assert 0.85 < estimated / measured < 1.15, (estimated, measured)
