"""Size and speed, side by side."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from inheritune_hf.evaluation import Efficiency, Spread, measure_efficiency
from inheritune_hf.evaluation.efficiency import bytes_on_disk, flops_per_token
from inheritune_hf.evaluation.memory import peak_memory
from inheritune_hf.evaluation.timing import interleaved, ratios


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
    assert Efficiency.from_dict(found.to_dict()) == found


def test_every_figure_is_there_for_both(found):
    """Time to the first token, and tokens per second at each batch size, each with median and spread."""
    assert [(item.quantity, item.batch) for item in found.speeds] == [
        ("time to first token", 1),
        ("tokens per second", 1),
        ("tokens per second", 2),
    ]
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
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_models_are_timed(pair):
    """A compiled setting is timed like the others."""
    found = measure_efficiency(
        pair.student, pair.reference, settings=("eager", "sdpa+compile"), batch_sizes=(1,), new_tokens=4, repeats=1
    )
    assert {item.setting for item in found.speeds} == {"eager", "sdpa+compile"}
