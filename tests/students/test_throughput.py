"""How long a step takes, measured on shallow students."""

import pytest
import torch
from families import CASES
from transformers import AutoConfig

from inheritune_hf.students import StepTime, TrainingSetup, measure_step, throughput

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
    monkeypatch.setattr(throughput, "_now", lambda device: next(ticks) + 0.0)
    setup = TrainingSetup(batch_size=2, block_size=16, accumulation=5)
    assert throughput._step_seconds(reference.config, setup, 2, "cpu", "full") == 5 * 1.0 + 1.0


@pytest.mark.parametrize(("times", "expected"), [((4.0, 8.0), (2.0, 2.0)), ((5.0, 4.0), (4.0, 0.0)), ((1, 9), (0, 3))])
def test_depth_is_extrapolated(times, expected, reference, monkeypatch):
    """Two depths give a line; neither a layer nor what is outside of the layers takes less than no time."""
    left = iter(times)
    monkeypatch.setattr(throughput, "_step_seconds", lambda *_: next(left))
    found = measure_step(reference.config, range(12), SETUP)
    assert (found.outside, found.per_layer) == expected
    assert found.seconds(10) == expected[0] + 10 * expected[1]


def test_shapes_that_cannot_be_that_shallow_are_measured_deeper(monkeypatch):
    """Where first layers are convolutions, the first depth is the one with a layer that attends; one depth is one."""
    monkeypatch.setattr(throughput, "_step_seconds", lambda *_: 1.0)
    config = AutoConfig.for_model("lfm2", **CASES["lfm2"][0])
    assert measure_step(config, range(6), SETUP).depths == (2, 4)
    assert measure_step(config, (0, 1), SETUP) == StepTime(1.0, 0.0, (2,), 3, "cpu")
