"""How a step is computed: accumulation, reduced precision, recomputed activations and compilation, across rounds."""

import pytest
import tiny
import torch
from transformers import TrainerCallback

GROWING = {"growth": "continue", "optimizer_state": "keep", "max_layers": 2}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A reference without dropout: how a batch is divided then changes nothing but rounding."""
    return tiny.write_reference(tmp_path_factory.mktemp("reference") / "tiny", dropout=0.0)


@pytest.fixture(scope="module")
def plain(reference, tmp_path_factory):
    """Two rounds, each step in one piece, in float32, as it stands."""
    return train(reference, tmp_path_factory.mktemp("plain"))


def train(reference, folder, recipe=None, callbacks=None, **changes):
    trainer = tiny.make_trainer(folder, reference, recipe or GROWING, callbacks=callbacks, **changes)
    trainer.train()
    assert [item.layers for item in trainer.rounds] == [1, 2]
    return trainer


def losses(trainer):
    return [item.loss for item in trainer.rounds]


def test_accumulated_steps_equal_whole_ones(reference, plain, tmp_path):
    """Two pieces of a batch make the step of the whole, in a grown round too, and count as many tokens."""
    pieces = train(reference, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert losses(pieces) == pytest.approx(losses(plain), abs=1e-4)
    assert [item.tokens for item in pieces.rounds] == [item.tokens for item in plain.rounds]


class Precision(TrainerCallback):
    """The types of weights and of moments, and of what blocks hand on, at each step."""

    def __init__(self):
        self.weights, self.moments, self.activations = set(), set(), set()

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.weights |= {item.dtype for item in model.parameters()}
        state = optimizer.optimizer.state_dict()["state"]
        self.moments |= {item.dtype for each in state.values() for item in each.values()}
        for block in model.transformer.h:
            block.mlp.c_fc.register_forward_hook(lambda *call: self.activations.add(call[-1].dtype))


def test_autocast_keeps_weights_and_moments_in_full_precision(reference, plain, tmp_path):
    """Under bf16 every block of every round computes in bfloat16; what is learned and carried stays float32."""
    seen = Precision()
    reduced = train(reference, tmp_path, callbacks=[seen], bf16=True)
    assert (seen.weights, seen.moments, seen.activations) == ({torch.float32}, {torch.float32}, {torch.bfloat16})
    assert losses(reduced) == pytest.approx(losses(plain), abs=0.05)


def test_recomputed_activations_change_nothing(reference, plain, tmp_path):
    """Activations that are thrown away and computed again give the same bits, in a grown round too."""
    calls = []

    class Count(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 15:
                model.transformer.h[1].ln_1.register_forward_hook(lambda *call: calls.append(model.training))

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 16:
                assert calls == [True, True]  # once forward, once again for the gradient

    recomputed = train(reference, tmp_path, callbacks=[Count()], activation_checkpointing=True, eval_steps=10)
    assert len(calls) >= 2
    assert tiny.weights_hash(recomputed.student) == tiny.weights_hash(plain.student)


@pytest.mark.slow
# Dynamo looks at .grad of what it traces (torch/_dynamo/variables/builder.py) and warns of itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_rounds_carry_everything_by_name(reference, tmp_path, monkeypatch):
    """Compiling changes no name: moments are kept as without it, to the same bits."""
    for name, value in (("BACKEND", "no"), ("MODE", "default")):  # what TrainingArguments leaves there is undone
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", value)
    plain = train(reference, tmp_path / "plain", GROWING)
    compiled = train(reference, tmp_path / "compiled", GROWING, torch_compile=True, torch_compile_backend="eager")
    assert tiny.weights_hash(compiled.student) == tiny.weights_hash(plain.student)
    assert losses(compiled) == losses(plain)
