"""Models that a student is compared with are trained as the loop trains students, and as plain Trainer does."""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, Trainer

from inheritune_hf.data import CausalCollator, DataSplits
from inheritune_hf.experiments import train_control

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import tiny


def splits():
    return DataSplits(tiny.train_set(), tiny.selection_set(), tiny.selection_set(), facts=None)


def test_a_control_equals_a_plain_trainer_and_is_found_again(tmp_path):
    """The weights are plain Trainer's to the bit; a finished control is measured, not trained again."""
    reference = tiny.write_reference(tmp_path / "reference", dropout=0.0)
    args = tiny.arguments(tmp_path / "run", push_to_hub=True)  # of the run: what it is compared with stays here
    control = train_control(reference, args, splits(), 7, "control", tmp_path / "control")
    plain = Trainer(
        model=AutoModelForCausalLM.from_pretrained(reference),
        args=tiny.arguments(tmp_path / "plain", max_steps=7, dataloader_pin_memory=False),
        train_dataset=tiny.train_set(),
        eval_dataset=tiny.selection_set(),
        data_collator=CausalCollator(0),
    )
    plain.train()
    assert tiny.weights_hash(control.model) == tiny.weights_hash(plain.model)
    assert [step for step, _ in control.curve] == [5, 7]
    assert not hasattr(control.model.config, "inheritune")
    assert control.tokens == 7 * 4 * tiny.TOKENS

    again = train_control(reference, args, splits(), 7, "control", tmp_path / "control")
    assert tiny.weights_hash(again.model) == tiny.weights_hash(control.model)
    assert (again.curve, again.test, again.tokens) == (control.curve, control.test, control.tokens)
