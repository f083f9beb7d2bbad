"""What a student is before its round trains: measured, shown, and judged if it is as deep as the reference."""

import logging
import math
from dataclasses import replace

import pytest
import tiny
import torch

from inheritune_hf import InheritedGPT2, InherituneConfig
from inheritune_hf.growth import GrowthRule, follow
from inheritune_hf.publishing.card import render_card
from inheritune_hf.records import loss_text
from inheritune_hf.reporting import read_run
from inheritune_hf.reporting.content import build_report
from inheritune_hf.run_folder import read_state, write_state
from inheritune_hf.training import Baseline
from inheritune_hf.training.checkpoints import round_students
from inheritune_hf.training.trainer import advise_start

SHORT = {"steps_per_round": 4, "max_layers": 2}
#: Grows from two layers to all four, and matches its reference only if nothing was made worse.
TO_THE_END = {"keep_layers": 2, "grow_by": 2, "max_layers": None, "steps_per_round": 4, "target": "reference"}


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return tiny.write_reference(tmp_path_factory.mktemp("reference") / "tiny", steps=60)


def untrained_loss(reference, layers):
    """The loss of the student as it is inherited, row by row."""
    model, sums = InheritedGPT2.from_pretrained(reference, keep_layers=layers), [0.0, 0]
    for row in tiny.selection_set():
        tokens = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            sums[0] += float(model(input_ids=tokens, labels=tokens).loss) * (tokens.numel() - 1)
        sums[1] += tokens.numel() - 1
    return sums[0] / sums[1]


def test_the_start_is_measured_logged_and_recorded(reference, tmp_path, caplog):
    """Each round begins with its student's loss, beside the reference's and a uniform guess, in every record."""
    caplog.set_level(logging.INFO)
    trainer = tiny.make_trainer(tmp_path, reference, {**SHORT, "target": "reference", "tolerance": 0.0})
    trainer.train()
    trainer.save_model()
    uniform, beside = math.log(64), trainer.reference_validation.loss
    for layers, item in enumerate(trainer.rounds, start=1):
        assert item.start_loss == pytest.approx(untrained_loss(reference, layers), abs=1e-4)
        line = f"round {layers} · {layers} layers · begins at {loss_text(item.start_loss)} · reference {beside:.4f}"
        assert f"{line} · uniform guess {uniform:.4f}" in caplog.messages
        logged = [
            row["start_loss"]
            for row in tiny.saved_log(trainer)
            if row["step"] == item.start_step and "start_loss" in row
        ]
        assert logged == [item.start_loss]
        assert f"| {layers} | {layers} | {item.start_loss:.4f} | 4 |" in render_card(trainer.run_record, "student")
    assert not [row for row in caplog.records if "uniform guess (" in row.message]
    assert trainer.run_record.uniform_loss == uniform
    assert f"A uniform guess over the vocabulary has a loss of {uniform:.4f}" in render_card(
        trainer.run_record, "student"
    )
    (losses,) = [part for part in build_report(read_run(tmp_path)).sections if part.anchor == "losses"]
    (table,) = [block for block in losses.blocks if block.kind == "table"]
    assert [row[table.headers.index("untrained")] for row in table.rows] == [
        f"{item.start_loss:.4f}" for item in trainer.rounds
    ]


def test_a_start_below_a_uniform_guess_is_a_warning(reference, tmp_path, caplog):
    """What is worse than knowing nothing is said, with the better choice."""
    model = InheritedGPT2.from_pretrained(reference)
    with torch.no_grad():  # without the last layer the stream has the wrong scale for the head
        model.transformer.h[2].mlp.c_proj.bias += 30 * torch.arange(16)
        model.transformer.h[3].mlp.c_proj.bias -= 30 * torch.arange(16)
    recipe = {**SHORT, "keep_layers": 3, "max_layers": 3, "target": "reference"}
    tiny.make_trainer(tmp_path, model, recipe).train()
    (warning,) = [row.getMessage() for row in caplog.records if "uniform guess (" in row.getMessage()]
    assert warning.startswith("The student of layers 0:3 begins worse than a uniform guess (")
    assert "against 4.1589 nats/token): keep_layers='loss:3' chooses as many by the loss without the others" in warning
    assert advise_start(InherituneConfig(keep_layers="loss:3"), 3) == "more layers begin lower"
    assert advise_start(InherituneConfig(inherit="paper"), 3).startswith("parts of it are random; inherit='all'")


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["float32", "bfloat16"])
def test_measuring_changes_no_bit(reference, tmp_path, precision):
    """A round whose start was measured ends with the weights of one whose start was not, in reduced precision too."""
    ends = []
    for name in ("measured", "unmeasured"):
        trainer = tiny.make_trainer(tmp_path / name, reference, {**SHORT, "growth": "continue"}, **precision)
        if name == "unmeasured":
            trainer.measure_start = lambda folder: None
        trainer.train()
        ends.append((tiny.weights_hash(trainer.student), tiny.optimizer_hash(trainer)))
    assert ends[0] == ends[1]


def test_a_student_of_full_depth_is_judged_untrained(reference, tmp_path):
    """It matches at once, with no step that could make it worse, and is saved, published and read again like others."""
    trainer = tiny.make_trainer(tmp_path, reference, {**TO_THE_END, "tolerance": 0.0})
    result = trainer.train()
    first, last = trainer.rounds
    assert (first.end_step, last.start_step, last.end_step, last.tokens) == (4, 4, 4, 0)
    assert trainer.outcome == "matched"
    assert last.match.difference == 0.0
    assert last.loss == last.start_loss == trainer.reference_validation.loss
    assert result.global_step == 4
    whole = tiny.weights_hash(InheritedGPT2.from_pretrained(reference))
    assert tiny.weights_hash(trainer.student) == whole
    again = tiny.make_trainer(tmp_path, reference, {**TO_THE_END, "tolerance": 0.0})
    assert again.train().global_step == 4
    assert tiny.weights_hash(again.student) == whole
    again.save_model()
    assert [index for index, _ in round_students(tmp_path)] == [1, 2]
    assert read_run(tmp_path).record.outcome == "matched"


def test_a_killed_judgement_is_made_again(reference, tmp_path):
    """A run that was killed after its student was measured, and before it was judged, judges by that measurement."""
    trainer = tiny.make_trainer(tmp_path, reference, {**TO_THE_END, "keep_layers": 4, "tolerance": 0.0})
    trainer.train()
    (only,) = trainer.rounds
    assert (only.end_step, trainer.outcome) == (0, "matched")
    write_state(tmp_path, replace(read_state(tmp_path), rounds=(), outcome=None))
    again = tiny.make_trainer(tmp_path, reference, {**TO_THE_END, "keep_layers": 4, "tolerance": 0.0})
    again.measure_start = lambda folder: None
    again.train()
    assert again.rounds == (only,)


def test_shallower_students_and_controls_are_trained_whatever_they_are(reference, tmp_path):
    """A student below full depth takes its steps even if it matches before; a control's start is not measured."""
    trainer = tiny.make_trainer(tmp_path / "loop", reference, {**SHORT, "target": 50.0})
    trainer.train()
    assert [(item.end_step, item.match.matched) for item in trainer.rounds] == [(4, True)]
    control = tiny.make_trainer(
        tmp_path / "control",
        reference,
        {**SHORT, "keep_layers": 4, "max_layers": 4},
        baseline=Baseline(growth_rule=GrowthRule((0, 1, 2, 3), follow([]), 4, match="last")),
    )
    control.train()
    assert [(item.end_step, item.start_loss) for item in control.rounds] == [(4, None)]
