"""The loss of a run: that the choice is said, and that no choice changes what is trained."""

import logging

import pytest
import tiny
from torch import nn

import inheritune_hf.students.losses
import inheritune_hf.training.distillation
from inheritune_hf import InherituneConfig, InherituneTrainer
from inheritune_hf.students.losses import Head
from inheritune_hf.training.distillation import Teacher

LOGGER = "inheritune_hf.training.trainer"
HAS_LINEAR = hasattr(nn.functional, "linear_cross_entropy")


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return tiny.write_reference(tmp_path_factory.mktemp("reference") / "tiny", dropout=0.0)


def run(folder, reference, loss, steps=50, **changes):
    recipe = {"keep_layers": 2, "max_layers": 2, "steps_per_round": steps, "loss": loss}
    trainer = tiny.make_trainer(folder, reference, recipe, **{"logging_steps": 1, "save_strategy": "no", **changes})
    trainer.train()
    return trainer


def curve(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    "method",
    ["chunked", pytest.param("linear", marks=pytest.mark.skipif(not HAS_LINEAR, reason="this torch does not have it"))],
)
def test_losses_over_50_steps_are_the_plain_ones(method, reference, tmp_path):
    """With two batches of padded rows in a step, 50 steps of training have the losses of a plain run."""
    changes = {"gradient_accumulation_steps": 2, "train": tiny.selection_set(80)}
    plain = run(tmp_path / "plain", reference, "full", **changes)
    other = run(tmp_path / "other", reference, method, **changes)
    assert len(curve(plain)) == 50
    assert curve(other) == pytest.approx(curve(plain), abs=2e-4)
    assert other.rounds[0].loss == pytest.approx(plain.rounds[0].loss, abs=2e-4)


@pytest.mark.parametrize("teach", [{}, {"distillation": "cross_entropy=1.0"}], ids=["alone", "taught"])
def test_no_step_has_all_logits(teach, reference, tmp_path, monkeypatch):
    """In training and in evaluation, with a teacher too, heads make logits of a few tokens at once."""
    made, logits = [], Head.logits

    def counted(head, hidden):
        made.append(hidden.shape[:-1].numel())
        return logits(head, hidden)

    def watch(module, args, output):
        if isinstance(module, nn.Linear) and module.out_features == tiny.VOCABULARY:
            made.append(output.shape[:-1].numel())

    monkeypatch.setattr(Head, "logits", counted)
    for module in (inheritune_hf.students.losses, inheritune_hf.training.distillation):
        monkeypatch.setattr(module, "chunk_tokens", lambda vocabulary: 8)
    handle = nn.modules.module.register_module_forward_hook(watch)
    recipe = {"keep_layers": 1, "max_layers": 1, "steps_per_round": 2, "target": "reference"}
    try:
        tiny.make_trainer(tmp_path / "run", reference, {**recipe, "loss": "chunked", **teach}).train()
    finally:
        handle.remove()
    # A batch has 64 tokens or more; whether the head is a plain one is tried on 2 rows of 8.
    assert max(made) == 16
    assert made.count(8) > 50


def said(caplog):
    """What was logged of the loss."""
    return [item for record in caplog.records if (item := record.getMessage()).startswith(("loss", "slow"))]


def test_choice_is_logged_once(reference, tmp_path, caplog):
    """The log says which loss is computed and why, once for all rounds."""
    with caplog.at_level(logging.INFO, LOGGER):
        tiny.make_trainer(tmp_path / "auto", reference, {"steps_per_round": 3}).train()
        assert said(caplog) == ["loss: full (a vocabulary of 64 tokens is small)"]
        caplog.clear()
        run(tmp_path / "set", reference, "chunked", steps=2)
        assert said(caplog) == ["loss: chunked (as set), 524288 tokens at once"]


@pytest.mark.parametrize(
    ("loss", "line"),
    [
        ("auto", "loss: chunked (two models' logits are compared), 524288 tokens at once"),
        ("linear", "loss: chunked (not linear: two models' logits are compared), 524288 tokens at once"),
        ("full", "loss: full (as set)"),
    ],
)
def test_with_a_teacher_the_choice_is_said_and_followed(loss, line, reference, tmp_path, caplog):
    """A run with a teacher says how its loss is computed, and holds all logits where that was asked for."""
    recipe = {"keep_layers": 1, "max_layers": 1, "steps_per_round": 2, "distillation": "forward_kl=1.0", "loss": loss}
    with caplog.at_level(logging.INFO, LOGGER):
        trainer = tiny.make_trainer(
            tmp_path / "run", reference, recipe, reference_kwargs={"attn_implementation": "eager"}
        )
        seen = []
        whole = Teacher.teaching
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Teacher, "teaching", lambda *given: seen.append(given[-1]) or whole(*given))
            trainer.train()
    assert [message for message in said(caplog) if message.startswith("loss")] == [line]
    assert any(message.startswith("slow here: attention written out") for message in said(caplog))
    assert set(seen) == {loss == "full"}


def test_the_plain_loss_is_used_and_said(reference, tmp_path, caplog):
    """Where the loss needs all logits the plain one is computed, and a warning says what is not followed."""
    with caplog.at_level(logging.WARNING, LOGGER):
        trainer = run(tmp_path / "set", reference, "chunked", steps=2, label_smoothing_factor=0.1)
    assert trainer.loss_method() == "full"
    assert said(caplog) == ["loss: full (not chunked: labels are smoothed)"]


def test_a_loss_of_ones_own_is_left_alone(reference, tmp_path):
    """A subclass that computes its loss from logits gets them, and the reason is said."""
    seen = []

    class Own(InherituneTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            seen.append(outputs.logits.shape)
            return (loss, outputs) if return_outputs else loss

    recipe = InherituneConfig(keep_layers=1, max_layers=1, steps_per_round=1, target=0.01, loss="chunked")
    data = {"train_dataset": tiny.train_set(8), "eval_dataset": tiny.selection_set()}
    Own(reference, recipe, tiny.arguments(tmp_path), **data).train()
    assert seen == [(4, tiny.TOKENS, tiny.VOCABULARY)]


@pytest.mark.slow
def test_two_processes_train_as_with_the_plain_loss(reference, tmp_path):
    """Two processes that average over all tokens, with padded rows and accumulation, log the plain losses."""
    from test_trainer import run_program

    found = {}
    for loss in ("full", "chunked"):
        found[loss] = run_program(
            {
                "output_dir": str(tmp_path / loss),
                "reference": reference,
                "result": str(tmp_path / f"{loss}.json"),
                "recipe": {"loss": loss, "max_layers": 2},
                "args": {"gradient_accumulation_steps": 2, "logging_steps": 1},
            },
            processes=2,
        )
    plain, other = ([row["loss"] for row in found[loss]["history"] if "loss" in row] for loss in ("full", "chunked"))
    assert found["chunked"]["world_size"] == 2
    assert len(plain) == 20
    assert other == pytest.approx(plain, abs=2e-4)
