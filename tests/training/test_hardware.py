"""What is known to be slow is named with what is faster, once, and used all the same."""

import logging

import pytest
import tiny
import torch
from transformers.utils.import_utils import enable_tf32

from inheritune_hf.training.speed import slow_settings


@pytest.fixture
def processor(monkeypatch):
    """A CPU that multiplies the given types."""

    def able(*types):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        for name, kind in (("avx512_bf16", "bf16"), ("amx_tile", "amx"), ("amx_fp16", "fp16")):
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda kind=kind: kind in types, raising=False)

    return able


@pytest.mark.parametrize(
    ("precision", "types", "slow"),
    [
        ("no", (), False),
        ("bf16", (), True),
        ("bf16", ("bf16",), False),
        ("bf16", ("amx",), False),
        ("fp16", ("bf16", "amx"), True),
        ("fp16", ("fp16",), False),
    ],
)
def test_precision_on_a_cpu(precision, types, slow, processor):
    """A precision that the processor has no instructions for is named."""
    processor(*types)
    found = slow_settings(tiny.reference_model(1), torch.device("cpu"), precision)
    assert [line.partition(" on ")[0] for line in found] == ([precision] if slow else [])


@pytest.mark.parametrize(
    ("precision", "major", "expected"),
    [
        ("bf16", 7, "bf16 on a GPU that only imitates it; use fp16"),
        ("bf16", 8, None),
        ("no", 8, "float32 on a GPU with faster units for bf16 and TF32; use bf16, or tf32"),
        ("no", 7, None),
    ],
)
def test_precision_on_a_gpu(precision, major, expected, monkeypatch):
    """On a GPU, bfloat16 before there were units for it and plain float32 after are named."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    found = slow_settings(tiny.reference_model(1), torch.device("cuda"), precision)
    assert found == ([expected] if expected else [])


@pytest.mark.parametrize("setting", ["Transformers", "torch"])
def test_tf32_is_not_slow(setting, monkeypatch):
    """TF32 is known for what it is, set as Transformers sets it or by torch's older function."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    before = torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    try:
        if setting == "Transformers":
            enable_tf32.__wrapped__(True)  # not the cached function: that would do nothing the next time
        else:
            torch.set_float32_matmul_precision("high")
        assert slow_settings(tiny.reference_model(1), torch.device("cuda"), "no") == []
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def test_attention_written_out_is_named_once_and_used(tmp_path, caplog):
    """Eager attention trains as asked; one warning for all rounds names what is faster."""
    reference = tiny.write_reference(tmp_path / "reference")
    trainer = tiny.make_trainer(
        tmp_path / "run", reference, {"steps_per_round": 2}, reference_kwargs={"attn_implementation": "eager"}
    )
    with caplog.at_level(logging.WARNING, "inheritune_hf"):
        trainer.train()
    said = [message for message in caplog.messages if message.startswith("slow here")]
    assert said == ["slow here: attention written out ('eager'); use attn_implementation 'sdpa'"]
    assert trainer.student.config._attn_implementation == "eager"
    assert len(trainer.rounds) == 3
