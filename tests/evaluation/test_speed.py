"""Size and speed side by side, and the student as a draft for its own reference."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM

from inheritune_hf.evaluation import measure_draft, measure_efficiency, speed
from inheritune_hf.evaluation.facts import Draft, Efficiency, Spread
from inheritune_hf.evaluation.speed import bytes_on_disk, flops_per_token, interleaved, peak_memory, ratios
from inheritune_hf.records import decode, encode


@pytest.fixture(scope="module")
def found(pair):
    return measure_efficiency(
        pair.student, pair.reference, batch_sizes=(1, 2), prompt_tokens=8, new_tokens=4, repeats=2, device="cpu"
    )


def test_sizes_are_those_of_the_models(pair, found):
    """Depth, parameters and bytes are what model and files have."""
    for name, size, layers in (("student", found.student, 2), ("reference", found.reference, 4)):
        folder = Path(getattr(pair, name))
        assert size.layers == layers
        assert size.parameters == AutoModelForCausalLM.from_pretrained(folder).num_parameters()
        assert size.bytes_on_disk == (folder / "model.safetensors").stat().st_size
    assert decode(Efficiency, encode(found), "") == found


def test_every_figure_is_there_for_both(found):
    """Time to the first token, and tokens per second at each batch size, each with median and spread."""
    assert [(item.quantity, item.batch) for item in found.speeds] == [
        ("time to first token", 1),
        ("tokens per second", 1),
        ("tokens per second", 2),
    ]
    assert {item.setting for item in found.speeds} == {"sdpa"}
    for item in found.speeds:
        for spread in (item.student, item.reference, item.gain):
            assert 0 < spread.low <= spread.median <= spread.high
            assert spread.repeats == 2


def test_memory_is_that_of_the_model(tmp_path):
    """The peak of a model of 40 MB holds its weights, and not the libraries."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=20_000, n_positions=16, n_embd=512, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path)
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    peak = peak_memory(str(tmp_path), 4, 2, "cpu", dtype="float32")
    assert weights < peak < 3 * weights


def test_memory_is_measured_before_models_are_loaded(pair, monkeypatch):
    """The process that measures a model's memory has the device to itself."""
    order = []
    monkeypatch.setattr(speed, "peak_memory", lambda *_, **__: order.append("memory"))
    load = speed._load
    monkeypatch.setattr(speed, "_load", lambda *given: order.append("load") or load(*given))
    measure_efficiency(pair.student, pair.reference, batch_sizes=(1,), new_tokens=1, repeats=1, device="cpu")
    assert order == ["memory", "memory", "load", "load"]


def test_where_a_model_comes_from_is_on_no_command_line(pair, tmp_path, monkeypatch):
    """Others on the machine can list the arguments of processes: a token is not among them; folders may be paths."""
    listed = []
    run = speed.run_python
    monkeypatch.setattr(speed, "run_python", lambda *words, **how: listed.append(words) or run(*words, **how))
    assert peak_memory(pair.student, 4, 2, "cpu", token="hf_secret", cache_dir=tmp_path) > 0
    assert len(listed) == 1
    assert "hf_secret" not in str(listed)


def test_models_without_fused_attention_are_timed_too(tmp_path, monkeypatch):
    """Unless settings are given, attention is what both models have."""
    monkeypatch.setattr(speed, "peak_memory", lambda *_, **__: None)
    BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2)).save_pretrained(tmp_path)
    few = {"batch_sizes": (1,), "prompt_tokens": 4, "new_tokens": 2, "repeats": 1, "device": "cpu"}
    found = measure_efficiency(str(tmp_path), str(tmp_path), **few)
    assert {item.setting for item in found.speeds} == {"eager"}
    with pytest.raises(ValueError, match="does not support"):
        measure_efficiency(str(tmp_path), str(tmp_path), settings=("sdpa",), **few)


def test_memory_says_what_failed(tmp_path):
    """What goes wrong in the process that measures is told."""
    with pytest.raises(RuntimeError, match=r"Measuring the memory of .*nowhere failed"):
        peak_memory(str(tmp_path / "nowhere"), 4, 2, "cpu")


def test_operations_are_counted(pair):
    """Counted operations are those of the matrix products, attention included, and grow by the same for every block."""
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (pair.student, pair.reference)]
    tokens, width = 16, 32
    block = 2 * 12 * width**2 + 2 * 2 * tokens * width
    head = 2 * width * 257
    assert [flops_per_token(model, tokens) for model in models] == [2 * block + head, 4 * block + head]


def test_shards_are_added_up(pair, tmp_path):
    """The bytes of a sharded checkpoint are those of its shards."""
    AutoModelForCausalLM.from_pretrained(pair.student).save_pretrained(tmp_path, max_shard_size="50KB")
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert bytes_on_disk(str(tmp_path)) == sum(path.stat().st_size for path in shards)


def test_settings_are_checked(pair):
    """A setting that does not exist is refused with those that do."""
    with pytest.raises(ValueError, match="settings must be of sdpa, eager"):
        measure_efficiency(pair.student, pair.reference, settings=("flash",))


def test_jobs_take_turns():
    """Jobs are warmed up and run in turn, the order reversed in every second repeat."""
    order = []
    jobs = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = interleaved(jobs, 3, torch.device("cpu"), warm_up=1)
    assert "".join(order) == "ba" + "ab" + "ba" + "ab"
    assert [len(times) for times in seconds.values()] == [3, 3]
    assert ratios([2.0, 6.0, 4.0], [1.0, 1.0, 1.0]) == Spread(4.0, 2.0, 6.0, 3)
    with pytest.raises(ValueError, match="repeats must be 1 or more"):
        interleaved(jobs, 0, torch.device("cpu"))


@pytest.mark.slow
# PyTorch's own compiler imports torch.utils.mkldnn, which is written in the older one.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_models_are_timed(pair):
    """A compiled setting is timed like the others."""
    found = measure_efficiency(
        pair.student, pair.reference, settings=("eager", "sdpa+compile"), batch_sizes=(1,), new_tokens=4, repeats=1
    )
    assert {item.setting for item in found.speeds} == {"eager", "sdpa+compile"}


@pytest.fixture
def prompts():
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(1, 250, (1, length), generator=draw) for length in (5, 9)]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_greedy_tokens_are_the_same(pair, prompts):
    """With a draft the reference writes the very tokens that it writes alone, and the counts add up."""
    student, reference = load(pair.student), load(pair.reference)
    greedy, sampling = measure_draft(student, reference, prompts, new_tokens=24, draft_tokens=4, repeats=1)
    assert greedy.equal is True
    assert sampling.equal is None
    for item in (greedy, sampling):
        assert 0 <= item.accepted <= item.drafted
        assert 0 <= item.acceptance <= 1
        # Every look of the reference gives one token more than it accepts.
        assert item.accepted <= 2 * 24
        assert decode(Draft, encode(item), "") == item


def test_a_draft_that_is_the_reference_is_always_accepted(pair, prompts):
    """A student of full depth has every token accepted: of 24 tokens each fifth is the reference's own."""
    (greedy,) = measure_draft(
        load(pair.whole), load(pair.reference), prompts, new_tokens=24, draft_tokens=4, repeats=1, modes=("greedy",)
    )
    assert greedy.acceptance == 1
    # Four drafted and one of its own, four times; then three drafted and one of its own.
    assert (greedy.drafted, greedy.accepted) == (2 * 19, 2 * 19)
    assert greedy.equal


def test_acceptance_is_what_the_reference_would_have_written(pair, prompts):
    """The accepted tokens are those in which the draft, continued greedily, agrees with the reference."""
    student, reference = load(pair.student), load(pair.reference)
    (found,) = measure_draft(student, reference, prompts, new_tokens=12, draft_tokens=3, repeats=1, modes=("greedy",))
    accepted = drafted = 0
    for prompt in prompts:
        text, end = prompt, prompt.shape[1] + 12
        while text.shape[1] < end:
            count = min(3, end - text.shape[1] - 1)
            guess = text
            for _ in range(count):
                guess = torch.cat([guess, student(guess).logits[:, -1:].argmax(-1)], dim=1)
            drafted += count
            for place in range(text.shape[1], guess.shape[1] + 1):
                right = reference(text).logits[:, -1:].argmax(-1)
                text = torch.cat([text, right], dim=1)
                if place == guess.shape[1] or guess[0, place] != right[0, 0]:
                    break
                accepted += 1
    assert (found.drafted, found.accepted) == (drafted, accepted)


def test_drafting_leaves_no_trace(pair, prompts):
    """Generation settings, modes, hooks and the random state are as before."""
    student, reference = load(pair.student).train(), load(pair.reference)
    before = student.generation_config.to_dict()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measure_draft(student, reference, prompts, new_tokens=6, repeats=1)
    assert torch.rand(1) == expected
    assert student.generation_config.to_dict() == before
    assert student.training
    assert not student._forward_hooks
    with pytest.raises(ValueError, match="There is no prompt"):
        measure_draft(student, reference, [])
