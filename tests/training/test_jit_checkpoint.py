"""Why Transformers' own checkpoint on SIGTERM is not used: what it does, so that a change is noticed."""

import inspect
import signal

import pytest
import tiny
import torch
from transformers import Trainer
from transformers.trainer_jit_checkpoint import CheckpointManager, JITCheckpointCallback

from inheritune_hf.data import CausalCollator


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def plain(folder, kind=Trainer, **changes):
    torch.manual_seed(0)
    settings = {"eval_strategy": "no", "save_strategy": "no", "max_steps": 10, "enable_jit_checkpoint": True}
    settings |= changes
    return kind(
        model=tiny.reference_model(layers=2),
        args=tiny.arguments(folder, dataloader_pin_memory=False, **settings),
        train_dataset=tiny.train_set(),
        data_collator=CausalCollator(0),
    )


class Asked(Trainer):
    """SIGTERM came so that its waiting time is over within the fifth step."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step == 4:
            callbacks = self.callback_handler.callbacks
            manager = next(item for item in callbacks if isinstance(item, JITCheckpointCallback)).jit_manager
            manager.is_checkpoint_requested = True
        return loss


def test_a_resumed_run_ends_with_other_bits(tmp_path):
    """It saves between a step's dropout and its end, under the number of the step before: later masks are others."""
    whole, cut = plain(tmp_path / "whole", save_strategy="steps", save_steps=4), plain(tmp_path / "cut", Asked)
    whole.train()
    cut.train()
    assert [item.name for item in (tmp_path / "cut").iterdir()] == ["checkpoint-4"]
    same = {}
    for name in ("whole", "cut"):
        resumed = plain(tmp_path / "resumed")
        resumed.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-4"))
        assert resumed.state.global_step == 10
        same[name] = tiny.weights_hash(resumed.model) == tiny.weights_hash(whole.model)
    assert same == {"whole": True, "cut": False}


def test_it_waits_and_hears_sigterm_alone(tmp_path, handlers):
    """It listens from when a trainer is built, not to Ctrl-C, and waits for seconds before it asks for anything."""
    plain(tmp_path)
    assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is handlers[signal.SIGINT]
    assert inspect.signature(CheckpointManager).parameters["kill_wait"].default == 3
