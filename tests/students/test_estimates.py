"""What a run would take, estimated before anything is read: rounds, memory, time."""

import math
import os
import subprocess
import sys

import pytest
import torch
from families import CASES
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from inheritune_hf import InherituneConfig
from inheritune_hf.evaluation.speed import flops_per_token
from inheritune_hf.students import (
    KNOWN_OPTIMIZERS,
    StepTime,
    TrainingSetup,
    estimate_run,
    estimates,
    measure_step,
    open_reference,
)
from inheritune_hf.students.architectures import inspect_architecture
from inheritune_hf.students.estimates import measuring_memory, operations_per_token, training_memory


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


def test_an_order_that_is_not_measured_yet_is_one_that_the_family_allows(build):
    """The first two layers of this Gemma 4 are no model; the rounds of a choice by loss are planned all the same."""
    reference = build(AutoConfig.for_model("gemma4_text", **CASES["gemma4_text"][0]))
    opened = open_reference(reference)
    assert opened.order_before("loss:2").layers == (0, 2, 1, 4, 3, 5)
    assert opened.order_before(2) is opened.order_before("half") is None
    rounds = estimate_run(reference, recipe(keep_layers="loss:2", grow_by=2), SETUP).rounds
    assert [item.layers for item in rounds] == [2, 4, 6]


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
    monkeypatch.setattr(estimates, "_step_seconds", lambda config, *_: 1.0 + 0.5 * config.num_hidden_layers)
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
    settings = {"max_layers": 4, "distillation": "jsd=1", "distillation_quantization": "8bit"}
    smaller = taught.rounds[0].memory.weights - estimate_run(published, recipe(**settings)).rounds[0].memory.weights
    blocks = AutoModelForCausalLM.from_pretrained(published).transformer.h
    assert smaller == 3 * sum(item.numel() for item in blocks.parameters())


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


@pytest.mark.parametrize(
    ("kind", "number", "field", "values"),
    [
        ("hunyuan_v1_moe", 0, "moe_topk", ([1] * 6, [1, 2, 3] * 2, [2] * 6)),
        ("gemma4_text", 1, "top_k_experts", (1, 2, 2)),
    ],
)
def test_experts_are_counted_by_what_a_family_calls_them(kind, number, field, values):
    """A number for each layer counts as its mean, and Gemma 4 has a name of its own."""
    one, mean, two = (
        operations_per_token(AutoConfig.for_model(kind, **{**CASES[kind][number], field: value}), 16)
        for value in values
    )
    assert one < mean == two


@pytest.mark.parametrize(
    ("kind", "values", "channels"),
    [
        ("llama", {"head_dim": 16}, 6 * 2 * 16),
        ("gemma4_text", {}, 6 * 16 * 1.5),
        ("deepseek_v3", {}, 6 * 12),
        ("lfm2", {}, 2 * 16),
        ("mamba", {}, 0),
    ],
)
def test_attention_is_counted_where_there_is_some(kind, values, channels):
    """Heads as wide as they are, in the layers that attend; a forward pass is a third of training."""
    config = AutoConfig.for_model(kind, **{**CASES[kind][0], **values})
    short, long = (operations_per_token(config, length) for length in (16, 32))
    assert (long - short) / 16 == pytest.approx(12 * channels)
    if kind in ("llama", "gemma4_text", "deepseek_v3"):
        model = AutoModelForCausalLM.from_config(config)
        passes = [flops_per_token(model, length) for length in (8, 16)]
        assert (passes[1] - passes[0]) / 8 == pytest.approx(4 * channels)


def test_experts_of_other_names_are_counted_as_far_as_they_are_used():
    """JetMoE's are no part that is named so, and only some of them are used for a token."""
    values = CASES["jetmoe"][0]
    few, more = (
        operations_per_token(AutoConfig.for_model("jetmoe", **{**values, "num_experts_per_tok": used}), 16)
        for used in (1, 2)
    )
    architecture = inspect_architecture(AutoConfig.for_model("jetmoe", **values))
    each = sum(math.prod(shape[1:]) for shape in architecture.parameters.values() if len(shape) == 3)
    assert more - few == pytest.approx(6 * each)


SMALL = GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=500, n_positions=64, bos_token_id=0, eos_token_id=0)


def memory(config=SMALL, **settings):
    return training_memory(config, TrainingSetup(**{"batch_size": 2, "block_size": 64, **settings}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"batch_size must be a whole number of 1 or more, got 0\."),
        ({"block_size": -1}, r"block_size must be a whole number of 1 or more, got -1\."),
        ({"accumulation": 1.5}, r"accumulation must be a whole number of 1 or more, got 1\.5\."),
        ({"processes": True}, r"processes must be a whole number of 1 or more, got True\."),
        ({"dtype": "int8"}, r"dtype must be one of 'float32', 'bfloat16', 'float16', got 'int8'\."),
        ({"mixed_precision": "fp8"}, r"mixed_precision must be one of 'bf16', 'fp16', got 'fp8'\."),
        ({"optim": "adam8"}, r"optim must be one of 'adamw_torch', .*, got 'adam8'\."),
    ],
)
def test_impossible_setups_are_refused(changes, message):
    """Sizes that no run has, and names that there are not, are refused with what is allowed."""
    with pytest.raises(ValueError, match=message):
        TrainingSetup(**changes)


def test_memory_grows_with_what_it_should():
    """Weights and optimizer do not depend on the batch, activations and logits do; accumulation keeps gradients."""
    one, two = memory(batch_size=1), memory(batch_size=2)
    assert (one.weights, one.optimizer) == (two.weights, two.optimizer)
    assert two.activations == pytest.approx(2 * one.activations, rel=0.1)
    assert two.logits == pytest.approx(2 * one.logits, rel=0.1)
    wide = {"batch_size": 8}
    assert memory(accumulation=2, **wide).peak == memory(**wide).peak + one.gradients


def test_measuring_holds_what_blocks_need_for_a_while():
    """Measuring a loss takes the weights and what one block after another holds, which grows with the batch."""
    one, eight = (measuring_memory(SMALL, TrainingSetup(batch_size=size, block_size=64)) for size in (1, 8))
    assert one.weights == eight.weights == memory().weights
    assert eight.activations == pytest.approx(8 * one.activations, rel=0.1)
    assert eight.weights + eight.activations <= eight.peak < memory(batch_size=8).peak / 2


def test_memory_depends_on_types():
    """Half-precision parameters halve weights, gradients and states; mixed precision halves activations alone."""
    full, half, mixed = memory(), memory(dtype="bfloat16"), memory(mixed_precision="bf16")
    for kind in ("weights", "gradients"):
        assert 2 * getattr(half, kind) == getattr(full, kind) == getattr(mixed, kind)
    assert half.optimizer == pytest.approx(full.optimizer / 2, rel=0.01)
    assert mixed.optimizer == full.optimizer
    assert mixed.activations < 0.8 * full.activations
    assert memory(mixed_precision="fp16") == mixed
    assert memory(dtype="float16") == half


def test_memory_depends_on_the_optimizer():
    """Adam keeps two numbers for each weight, Adagrad and RMSprop one, Adafactor rows and columns, SGD nothing."""
    weights = memory().weights
    states = {optim: memory(optim=optim).optimizer / weights for optim in KNOWN_OPTIMIZERS}
    assert states.pop("adafactor") < 0.1
    expected = {"adamw_torch": 2, "adamw_torch_fused": 2, "adagrad": 1, "rmsprop": 1, "sgd": 0}
    assert states == pytest.approx(expected, abs=0.01)


def test_the_update_can_be_the_worst_moment():
    """Where the batch is small and the vocabulary large, Adafactor's copies of the embedding make the peak."""
    config = GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=5000, n_positions=64, bos_token_id=0, eos_token_id=0)
    plain, adafactor = (memory(config, block_size=2, optim=optim) for optim in ("sgd", "adafactor"))
    assert adafactor.peak > plain.peak + adafactor.optimizer


def test_an_optimizer_that_is_not_known_is_left_out():
    """What needs packages of its own has no figure, and the peak is that of the rest."""
    found = memory(optim="adamw_bnb_8bit")
    assert found.optimizer is None
    assert found.peak == memory(optim="sgd").peak


def test_checkpointing_keeps_less():
    """Blocks that keep their inputs only hold a fraction of the activations, and the peak falls."""
    plain, checkpointed = memory(batch_size=8), memory(batch_size=8, gradient_checkpointing=True)
    assert checkpointed.activations < 0.3 * plain.activations
    assert checkpointed.logits == plain.logits
    assert checkpointed.peak < 0.7 * plain.peak


def test_few_logits_are_there_at_once():
    """With a large vocabulary logits do not grow with the batch, unless the run would compute them all."""
    config = GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=20_000, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    one, two = (memory(config, batch_size=size) for size in (32, 64))
    assert two.logits == pytest.approx(one.logits, rel=0.01)
    assert two.peak - one.peak < 0.1 * two.peak
    setup = TrainingSetup(batch_size=64, block_size=64)
    full = training_memory(config, setup, "full")
    assert full.logits >= 4 * 64 * 63 * 20_000
    assert full.peak > 2 * two.peak
    assert training_memory(config, setup, "chunked").peak < 0.6 * full.peak
    # In float16 no loss is computed on the way, so that all logits are kept.
    assert memory(config, batch_size=64, mixed_precision="fp16").peak > 2 * two.peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "kind", ["falcon", "gemma4_text", "lfm2", "modernbert-decoder", "mpt", "qwen3_moe", "qwen3_next"]
)
def test_memory_is_estimated_for_every_kind(kind, checkpointing):
    """Attention, convolutions and experts alike: the estimate needs no formula for an architecture."""
    config = AutoConfig.for_model(kind, **CASES[kind][0])
    found = memory(config, block_size=16, gradient_checkpointing=checkpointing)
    assert found.activations > 0
    assert found.optimizer >= 2 * found.weights
    assert found.peak >= found.weights + found.optimizer + found.activations


MEASURED = """
import os, sys, torch
torch.set_num_threads(1)
from contextlib import nullcontext
from transformers import AutoConfig, AutoModelForCausalLM
from inheritune_hf import InherituneConfig, from_pretrained_inherited
from inheritune_hf.students import TrainingSetup
from inheritune_hf.students.losses import loss_of_hidden, sums_of_hidden
from inheritune_hf.students.estimates import around_loss, checkpoint_blocks, make_optimizer, planned_loss
batch, tokens = 4, 256
config = AutoConfig.for_model(sys.argv[1], **eval(sys.argv[2]))
settings = eval(sys.argv[3])
phase = sys.argv[4]
def resident():
    # Of this process alone: what getrusage says begins with what the process had that started it.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(status["VmHWM"].split()[0])
warm = torch.nn.Linear(64, 64)
warm(torch.zeros(2, 64)).sum().backward()
make_optimizer(warm, "adamw_torch_fused")  # what it imports is not the model's
before = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
if phase == "building":
    from_pretrained_inherited(sys.argv[5], InherituneConfig(keep_layers="half"))
    print(resident() - before)
    sys.exit()
model = AutoModelForCausalLM.from_config(config).train(phase != "measuring")
if phase == "measuring":
    ids = torch.randint(0, config.vocab_size, (batch, tokens))
    amp = torch.autocast("cpu", torch.bfloat16) if settings.get("mixed_precision") else nullcontext()
    compute = lambda head, hidden, targets, items: sums_of_hidden(head, hidden, targets)
    with torch.no_grad(), amp, loss_of_hidden(model, compute):
        model(input_ids=ids, labels=ids, use_cache=False)
    print(resident() - before)
    sys.exit()
method = planned_loss(config, TrainingSetup(**settings), phase)
if settings.get("gradient_checkpointing"):
    checkpoint_blocks(model)
optimizer = make_optimizer(model, settings.get("optim", "adamw_torch_fused"))
ids = torch.randint(0, config.vocab_size, (batch, tokens))
for _ in range(3):
    amp = torch.autocast("cpu", torch.bfloat16) if settings.get("mixed_precision") else nullcontext()
    with amp, around_loss(model, method):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    del loss
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
#: A vocabulary of which all logits are most of what training takes.
LARGE_VOCABULARY = {"n_layer": 2, "n_embd": 128, "n_head": 4, "vocab_size": 50257, "n_positions": 256}
SETTINGS = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "adafactor": {"optim": "adafactor"},
    "unfused": {"optim": "adamw_torch"},
    "mixed": {"mixed_precision": "bf16"},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", SHAPES)
def test_estimated_memory_is_what_a_process_takes(kind, settings):
    """The estimate is within 15 % of the peak that a process has above its start, for three shapes, each way."""
    estimated, measured = estimated_and_measured(kind, SHAPES[kind], SETTINGS[settings])
    assert 0.85 < estimated / measured < 1.15, (estimated, measured)


@pytest.mark.slow
def test_memory_follows_the_loss():
    """With GPT-2's vocabulary the estimate is within 10 % for every way to the loss; all logits take twice as much."""
    peaks = {}
    for loss, settings in (("full", {}), ("auto", {}), ("chunked", {}), ("auto", {"mixed_precision": "bf16"})):
        estimated, peak = estimated_and_measured("gpt2", LARGE_VOCABULARY, settings, loss)
        assert 0.9 < estimated / peak < 1.1, (loss, settings, estimated, peak)
        peaks[loss, *settings] = peak
    assert peaks["auto",] < 0.5 * peaks["full",]


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["plain", "mixed"])
@pytest.mark.parametrize("kind", [*SHAPES, "large vocabulary"])
def test_estimated_memory_of_measuring_is_what_a_process_takes(kind, settings):
    """The estimate for the reference's loss is within 15 % of the peak that a process has above its start."""
    family, shape = ("gpt2", LARGE_VOCABULARY) if kind == "large vocabulary" else (kind, SHAPES[kind])
    config = AutoConfig.for_model(family, **shape)
    estimated = measuring_memory(config, TrainingSetup(batch_size=4, block_size=256, **SETTINGS[settings])).peak
    measured = measured_bytes(family, shape, SETTINGS[settings], "measuring")
    assert 0.85 < estimated / measured < 1.15, (estimated, measured)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_estimated_memory_of_building_is_what_a_process_takes(kind, tmp_path):
    """The estimate for a student of half the layers is within 15 % of the peak that a process has above its start."""
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPES[kind])).save_pretrained(tmp_path)
    run = estimate_run(tmp_path, InherituneConfig(keep_layers="half", steps_per_round=1))
    measured = measured_bytes(kind, SHAPES[kind], {}, "building", str(tmp_path))
    assert 0.85 < run.inheriting.peak / measured < 1.15, (run.inheriting.peak, measured)


def estimated_and_measured(kind, shape, settings, loss="auto"):
    setup = TrainingSetup(batch_size=4, block_size=256, **settings)
    measured = measured_bytes(kind, shape, settings, loss)
    return training_memory(AutoConfig.for_model(kind, **shape), setup, loss).peak, measured


def measured_bytes(kind, shape, settings, *phase):
    # glibc keeps freed memory to itself unless told otherwise, and then the peak is not what was in use.
    honest = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, kind, repr(shape), repr(settings), *phase]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **honest})
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


SETUP = TrainingSetup(batch_size=2, block_size=16)


def test_steps_are_measured_for_real(reference):
    """A few steps are trained, with every setting; the caller's random state stays as it was."""
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for settings in ({}, {"dtype": "bfloat16", "optim": "adafactor"}, {"mixed_precision": "bf16"}):
        setup = TrainingSetup(batch_size=2, block_size=16, gradient_checkpointing=bool(settings), **settings)
        found = measure_step(reference.config, range(12), setup, steps=1)
        assert found.depths == (1, 3)
        assert found.steps == 1
        assert found.seconds(12) >= found.seconds(1) > 0
    assert torch.equal(torch.rand(1), expected)


def test_accumulation_repeats_the_passes(reference, monkeypatch):
    """A step has as many passes as it accumulates, and one update: two seconds by this clock, and one."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(estimates, "_now", lambda device: next(ticks) + 0.0)
    setup = TrainingSetup(batch_size=2, block_size=16, accumulation=5)
    assert estimates._step_seconds(reference.config, setup, 2, "cpu", "full") == 5 * 1.0 + 1.0


@pytest.mark.parametrize(("times", "expected"), [((4.0, 8.0), (2.0, 2.0)), ((5.0, 4.0), (4.0, 0.0)), ((1, 9), (0, 3))])
def test_depth_is_extrapolated(times, expected, reference, monkeypatch):
    """Two depths give a line; neither a layer nor what is outside of the layers takes less than no time."""
    left = iter(times)
    monkeypatch.setattr(estimates, "_step_seconds", lambda *_: next(left))
    found = measure_step(reference.config, range(12), SETUP)
    assert (found.outside, found.per_layer) == expected
    assert found.seconds(10) == expected[0] + 10 * expected[1]


def test_shapes_that_cannot_be_that_shallow_are_measured_deeper(monkeypatch):
    """Where first layers are convolutions, the first depth is the one with an attention layer; one depth is one."""
    monkeypatch.setattr(estimates, "_step_seconds", lambda *_: 1.0)
    config = AutoConfig.for_model("lfm2", **CASES["lfm2"][0])
    assert measure_step(config, range(6), SETUP).depths == (2, 4)
    assert measure_step(config, (0, 1), SETUP) == StepTime(1.0, 0.0, (2,), 3, "cpu")
    # The last layer of a Gemma 4 attends to all tokens, and layers 2, 4 and 5 of this one do.
    config = AutoConfig.for_model("gemma4_text", **CASES["gemma4_text"][0])
    assert measure_step(config, range(6), SETUP).depths == (3, 5)
