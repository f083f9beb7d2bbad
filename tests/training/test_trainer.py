"""The loop: rounds, outcomes, going on after a kill, and what must stay as it was."""

import copy
import gc
import json
import logging
import shutil
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import forking
import pytest
import tiny
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, TrainerCallback

from inheritune_hf import InheritedGPT2, InherituneConfig, InherituneTrainer, from_pretrained_inherited
from inheritune_hf.data import CausalCollator
from inheritune_hf.evaluation import ValidatedTrainer
from inheritune_hf.records import read_json
from inheritune_hf.training import ReferenceLossStopCallback
from inheritune_hf.training.checkpoints import rotate_checkpoints


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return tiny.write_reference(tmp_path_factory.mktemp("reference") / "tiny")


def run_program(settings, processes=1, check=True):
    """Run the tiny run in one process or, by torchrun, in several; return what it reports, or how it ended."""
    result = Path(settings["result"])
    result.unlink(missing_ok=True)
    if processes == 1:
        done = forking.run(tiny.main, settings)
    else:
        words = ["--nproc_per_node", str(processes), "--rdzv_endpoint", "localhost:0", "--rdzv_backend", "c10d"]
        command = [sys.executable, "-m", "torch.distributed.run", *words, tiny.__file__, json.dumps(settings)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(result.read_text()) if result.is_file() else done


def test_unreachable_target_ends_with_no_more_layers(reference, tmp_path):
    """A target that cannot be reached takes every round there is and is said to be missed."""
    trainer = tiny.make_trainer(tmp_path, reference)
    output = trainer.train()
    assert trainer.outcome == "no_more_layers"
    assert [item.layers for item in trainer.rounds] == [1, 2, 3]
    assert [(item.start_step, item.end_step) for item in trainer.rounds] == [(0, 10), (10, 20), (20, 30)]
    assert output.global_step == 30
    assert output.metrics["matched"] == 0
    assert output.metrics["layers"] == 3
    state = json.loads((tmp_path / "_inheritune" / "state.json").read_text())
    assert state["outcome"] == "no_more_layers"


def test_reached_target_stops_after_the_round(reference, tmp_path):
    """A student whose loss is within the tolerance of the reference's is matched and nothing is grown."""
    trainer = tiny.make_trainer(tmp_path, reference, {"target": "reference", "confidence": None, "steps_per_round": 20})
    output = trainer.train()
    assert trainer.outcome == "matched"
    assert len(trainer.rounds) == 1
    assert output.metrics["matched"] == 1
    assert output.metrics["reference_loss"] == trainer.reference_validation.loss


def test_the_confidence_is_spread_over_the_planned_rounds(reference, tmp_path):
    """Each of three rounds is judged at a third of the run's chance of error, and the record says so."""
    trainer = tiny.make_trainer(tmp_path, reference, {"target": "reference", "tolerance": 0.0, "confidence": 0.94})
    trainer.train()
    assert [item.match.confidence for item in trainer.rounds] == [pytest.approx(0.98)] * len(trainer.rounds)
    single = tiny.make_trainer(tmp_path / "one", reference, {"max_layers": 1, "confidence": 0.94})
    single.train()
    assert single.rounds[0].match.confidence == 0.94


def test_a_selection_set_that_decides_nothing_is_said_before_training(reference, tmp_path, caplog):
    """With fewer than five documents no student can match at a confidence: a warning comes first, and a miss after."""
    trainer = InherituneTrainer(
        reference,
        InherituneConfig(keep_layers=1, max_layers=1, steps_per_round=2, tolerance=9.0),
        tiny.arguments(tmp_path),
        train_dataset=tiny.train_set(),
        eval_dataset=tiny.selection_set(12),
        reference_cache=False,
    )
    trainer.train()
    note = "the 4 documents weigh as much as 4.0 of equal length, 5 are needed"
    assert f"no student can match, because the selection set is too small: undecided: {note}" in caplog.text
    assert (trainer.outcome, trainer.rounds[0].match.decided) == ("no_more_layers", False)


def test_each_round_inherits_afresh(reference, tmp_path):
    """Every round starts from the reference's own blocks and embeddings, with a fresh optimizer and schedule."""
    rates = {}

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            if state.global_step in (0, 10, 20):
                whole = GPT2LMHeadModel.from_pretrained(reference).state_dict()
                kept = {name: tensor for name, tensor in model.state_dict().items() if name in whole}
                assert all(torch.equal(tensor, whole[name]) for name, tensor in kept.items())
                assert not optimizer.optimizer.state_dict()["state"]
            rates[state.global_step] = optimizer.param_groups[0]["lr"]

    tiny.make_trainer(tmp_path, reference, callbacks=[Watch()]).train()
    assert [rates[step] for step in range(10)] == [rates[step] for step in range(10, 20)]
    assert [rates[step] for step in range(10)] == [rates[step] for step in range(20, 30)]
    assert rates[0] == 0.0
    assert rates[2] == 1e-2


def test_each_round_sees_the_same_batches(reference, tmp_path):
    """The data order starts again with each round, across the boundary of an epoch too."""
    seen = []

    class Listening(InherituneTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            seen.append(inputs["input_ids"].tolist())
            return super().training_step(model, inputs, num_items_in_batch)

    trainer = Listening(
        reference,
        InherituneConfig(keep_layers=1, grow_by=1, steps_per_round=25, target=0.01, max_layers=2),
        tiny.arguments(tmp_path),
        train_dataset=tiny.train_set(),
        eval_dataset=tiny.selection_set(),
    )
    trainer.train()
    assert len(seen) == 50
    assert seen[:25] == seen[25:]
    rows = [tuple(row) for batch in seen[:20] for row in batch]
    assert sorted(rows) == sorted(tuple(row) for row in tiny.sequences(80, seed=1))


def test_rounds_without_growth_of_data_equal_a_plain_trainer(reference, tmp_path):
    """One round trains exactly as `Trainer` does with the same settings."""
    trainer = tiny.make_trainer(tmp_path / "ours", reference, {"keep_layers": 2, "max_layers": 2})
    trainer.train()
    student = InheritedGPT2.from_pretrained(reference, keep_layers=2)
    plain = ValidatedTrainer(
        model=student,
        args=tiny.arguments(tmp_path / "plain", max_steps=10),
        train_dataset=tiny.train_set(),
        eval_dataset=tiny.selection_set(),
        data_collator=trainer.data_collator,
    )
    plain.train()
    assert tiny.weights_hash(plain.model) == tiny.weights_hash(trainer.student)


def test_reference_is_measured_by_the_same_loop_and_released(reference, tmp_path):
    """The reference's loss is what the loop gives for a full-depth student, and no reference is left when training."""
    held = []

    class Watch(TrainerCallback):
        def on_prediction_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 0 and not held:
                held.append(weakref.ref(model))

        def on_step_begin(self, args, state, control, **kwargs):
            gc.collect()
            assert held[0]() is None

    trainer = tiny.make_trainer(tmp_path, reference, {"target": "reference", "tolerance": 0.0}, callbacks=[Watch()])
    trainer.train()
    plain = ValidatedTrainer(
        model=InheritedGPT2.from_pretrained(reference, keep_layers=4),
        args=tiny.arguments(tmp_path / "plain"),
        eval_dataset=tiny.selection_set(),
        data_collator=trainer.data_collator,
    )
    plain.evaluate()
    assert plain.validations["eval"] == trainer.reference_validation


@pytest.mark.parametrize("recipe", [{}, {"growth": "continue", "optimizer_state": "keep"}], ids=["reinherit", "keep"])
def test_a_trained_student_is_gone_before_the_next_is_built(recipe, reference, tmp_path, monkeypatch):
    """What a round has trained is released when it is on disk: a boundary holds no two students and no optimizer."""
    held, gone = [], []
    build = InherituneTrainer.build_student

    def watched(trainer, before):
        gone.extend(item() is None for item in held)
        assert trainer.optimizer is None
        return build(trainer, before)

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            held[:] = [weakref.ref(model), weakref.ref(optimizer.optimizer)]

    monkeypatch.setattr(InherituneTrainer, "build_student", watched)
    tiny.make_trainer(tmp_path, reference, {**recipe, "max_layers": 4}, callbacks=[Watch()]).train()
    assert gone
    assert all(gone)


def test_loaded_reference_is_never_changed(tmp_path):
    """A loaded model as reference keeps its weights, config, mode and forward."""
    model = tiny.reference_model().train()
    config, weights = copy.deepcopy(model.config.to_dict()), tiny.weights_hash(model)
    trainer = tiny.make_trainer(tmp_path, model, {"target": "reference", "max_layers": 2})
    trainer.train()
    assert model.config.to_dict() == config
    assert tiny.weights_hash(model) == weights
    assert model.training
    assert "forward" not in vars(model)


def test_arguments_are_never_changed(reference, tmp_path):
    """The training arguments that came in are what they were."""
    args = tiny.arguments(tmp_path)
    before = args.to_dict()
    trainer = InherituneTrainer(
        reference,
        InherituneConfig(keep_layers=1, steps_per_round=3, target=0.01, max_layers=1),
        args,
        train_dataset=tiny.train_set(),
        eval_dataset=tiny.selection_set(),
    )
    trainer.train()
    assert args.to_dict() == before


def test_budget_ends_the_run_and_raising_it_goes_on(reference, tmp_path):
    """`max_steps` caps all rounds together; with more of it the run ends as if it had been given at once."""
    short = tiny.make_trainer(tmp_path / "a", reference, max_steps=14)
    short.train()
    assert short.outcome == "budget_exhausted"
    assert [(item.start_step, item.end_step) for item in short.rounds] == [(0, 10), (10, 14)]
    longer = tiny.make_trainer(tmp_path / "a", reference, max_steps=-1)
    longer.train()
    assert longer.outcome == "no_more_layers"
    whole = tiny.make_trainer(tmp_path / "b", reference)
    whole.train()
    assert tiny.weights_hash(longer.student) == tiny.weights_hash(whole.student)
    assert [item.loss for item in longer.rounds] == [item.loss for item in whole.rounds]


def test_raising_max_layers_goes_on(reference, tmp_path):
    """A run that ran out of layers goes on when more are allowed."""
    tiny.make_trainer(tmp_path, reference, {"max_layers": 1}).train()
    trainer = tiny.make_trainer(tmp_path, reference, {"max_layers": 2})
    trainer.train()
    assert [item.layers for item in trainer.rounds] == [1, 2]


def test_finished_run_is_not_trained_again(reference, tmp_path):
    """The same command on a finished run returns its result and its student at once."""
    first = tiny.make_trainer(tmp_path, reference)
    first.train()
    again = tiny.make_trainer(tmp_path, reference)
    output = again.train()
    assert again.rounds == first.rounds
    assert output.global_step == 30
    assert tiny.weights_hash(again.student) == tiny.weights_hash(first.student)


@pytest.mark.parametrize("left", [0, 1])
def test_a_saved_student_is_not_replaced_by_another(reference, tmp_path, left):
    """If the checkpoint that ended a run is gone, the same command again leaves the student as it was saved."""
    recipe = {"max_layers": 1, "steps_per_round": 4}
    trainer = tiny.make_trainer(tmp_path, reference, recipe, save_steps=2)
    trainer.train()
    trainer.save_model()
    saved = (tmp_path / "model.safetensors").read_bytes()
    for checkpoint in sorted(tmp_path.glob("checkpoint-*"))[left:]:
        shutil.rmtree(checkpoint)
    assert len(list(tmp_path.glob("checkpoint-*"))) == left
    with pytest.raises(ValueError, match=r"checkpoint-4, the checkpoint that ended round 1, is gone or damaged"):
        tiny.make_trainer(tmp_path, reference, recipe, save_steps=2).train()
    assert (tmp_path / "model.safetensors").read_bytes() == saved


def test_lowering_the_budget_below_the_round_in_progress_ends_the_run(reference, tmp_path):
    """A round that has no checkpoint yet is not begun when no step is left for it."""
    recipe = {"steps_per_round": 4}

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    trainer = tiny.make_trainer(tmp_path, reference, recipe, callbacks=[Stop()], save_strategy="no")
    trainer.train()
    assert trainer.outcome == "interrupted"
    shutil.rmtree(tmp_path / "checkpoint-5")
    again = tiny.make_trainer(tmp_path, reference, recipe, max_steps=4, save_strategy="no")
    again.train()
    assert (again.outcome, len(again.rounds), again.state.global_step) == ("budget_exhausted", 1, 4)
    assert again.student.config.n_layer == 1
    more = tiny.make_trainer(tmp_path, reference, recipe, max_steps=8, save_strategy="no")
    more.train()
    assert [item.end_step for item in more.rounds] == [4, 8]


def test_a_callback_with_a_state_may_be_added_later(reference, tmp_path):
    """One that is added after the trainer was made is saved with the checkpoints, as by Transformers."""
    trainer = tiny.make_trainer(tmp_path, reference, {"max_layers": 1, "steps_per_round": 4})
    trainer.add_callback(ReferenceLossStopCallback(target=0.1))
    trainer.train()
    saved = read_json(tmp_path / "checkpoint-4" / "trainer_state.json")
    assert "ReferenceLossStopCallback" in saved["stateful_callbacks"]
    again = tiny.make_trainer(tmp_path, reference, {"max_layers": 2, "steps_per_round": 4})
    again.add_callback(ReferenceLossStopCallback(target=0.1))
    again.train()
    assert len(again.rounds) == 2


def test_a_step_of_which_no_token_counts(reference, tmp_path):
    """A batch within a long user message has no loss: it is logged as 0, and training continues."""
    row = [1, 2, 3, 4] * 4
    rows = [{"input_ids": row, "labels": [-100] * 16 if number == 3 else row} for number in range(16)]
    settings = {"per_device_train_batch_size": 1, "logging_steps": 1}
    for loss in ("full", "chunked"):
        recipe = {"max_layers": 1, "steps_per_round": 16, "loss": loss, "confidence": None}
        trainer = tiny.make_trainer(tmp_path / loss, reference, recipe, train=Dataset.from_list(rows), **settings)
        trainer.train()
        losses = [item["loss"] for item in trainer.state.log_history if "loss" in item]
        assert len(losses) == 16
        assert losses.count(0.0) == 1


@pytest.mark.parametrize("schedule", ["cosine_with_min_lr", "warmup_stable_decay", "inverse_sqrt", "constant"])
def test_the_rates_of_a_round_are_those_it_is_trained_at(reference, tmp_path, schedule):
    """They are computed, not stepped through, and equal what the scheduler gives."""
    kwargs = {"cosine_with_min_lr": {"min_lr_rate": 0.1}, "warmup_stable_decay": {"num_decay_steps": 3}}.get(schedule)
    recipe = {"max_layers": 1, "steps_per_round": 8}
    settings = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": kwargs, "logging_steps": 1}
    trainer = tiny.make_trainer(tmp_path, reference, recipe, **settings)
    trainer.train()
    logged = [item["learning_rate"] for item in trainer.state.log_history if "learning_rate" in item]
    trainer.run = replace(trainer.run, rounds=(), start_step=0)
    assert logged == trainer.learning_rates()


def test_another_run_in_the_folder_is_refused(reference, tmp_path):
    """A folder that holds another run is refused with what differs; a stranger's checkpoints are too."""
    tiny.make_trainer(tmp_path / "a", reference, {"max_layers": 1}).train()
    with pytest.raises(ValueError, match=r"holds another run:\n- args.learning_rate: 0.01 there, 0.02 now"):
        tiny.make_trainer(tmp_path / "a", reference, {"max_layers": 1}, learning_rate=2e-2).train()
    (tmp_path / "b" / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds another run \(checkpoint-5\)"):
        tiny.make_trainer(tmp_path / "b", reference).train()


@pytest.mark.parametrize("kind", ["loaded", "folder"])
def test_a_reference_of_other_weights_is_another_run(tmp_path, kind):
    """A second loaded model, or new weights in the same folder, do not get the first one's result."""
    references = [tiny.reference_model(seed=seed) for seed in (0, 1)]
    for model in references:
        if kind == "folder":
            model.save_pretrained(tmp_path / "reference")
        given = model if kind == "loaded" else str(tmp_path / "reference")
        trainer = tiny.make_trainer(tmp_path / "run", given, {"max_layers": 1})
        if model is references[0]:
            trainer.train()
        else:
            with pytest.raises(ValueError, match=r"holds another run:\n- reference\.weights: .* there, .* now"):
                trainer.train()


def test_other_masks_are_another_run(reference, tmp_path):
    """Whether documents of a sequence see each other is part of what a run is."""
    tiny.make_trainer(tmp_path, reference, {"max_layers": 1}).train()
    other = tiny.make_trainer(tmp_path, reference, {"max_layers": 1})
    other.data_collator = CausalCollator(0, 0)
    with pytest.raises(ValueError, match="document_boundaries: False there, True now"):
        other.train()


def test_a_budget_lowered_to_an_unevaluated_step_ends_the_run(reference, tmp_path):
    """An interrupted run whose max_steps is lowered to where it stands is judged there, and says that it is out."""

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 11:
                signal.raise_signal(signal.SIGTERM)

    first = tiny.make_trainer(tmp_path, reference, callbacks=[Interrupt()])
    first.train()
    assert first.outcome == "interrupted"
    assert first.state.global_step == 12
    lowered = tiny.make_trainer(tmp_path, reference, max_steps=12)
    lowered.train()
    assert lowered.outcome == "budget_exhausted"
    assert lowered.rounds[-1].end_step == 12
    assert lowered.rounds[-1].loss == lowered.validations["eval"].loss
    assert lowered.state.log_history[-1]["step"] == 12


@pytest.mark.parametrize("event", ["on_step_end", "on_evaluate", "on_log"])
def test_a_callback_that_stops_a_run_loses_no_step(reference, tmp_path, event):
    """A user's callback may stop a run at any step: it is saved there and goes on from there."""

    class Stop(TrainerCallback):
        pass

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 5:
            control.should_training_stop = True
        return control

    setattr(Stop, event, stop)
    trainer = tiny.make_trainer(tmp_path, reference, save_steps=100, logging_steps=5)
    trainer.add_callback(Stop())
    trainer.train()
    assert trainer.outcome == "interrupted"
    assert (tmp_path / "checkpoint-5").is_dir()


def test_losses_of_every_round_are_kept(reference, tmp_path):
    """Per document, also of rounds whose checkpoints are gone."""
    trainer = tiny.make_trainer(tmp_path, reference, save_total_limit=1)
    trainer.train()
    for item in trainer.rounds:
        kept = json.loads((tmp_path / "_inheritune" / f"losses-{item.index:02d}.json").read_text())
        assert sum(kept["loss_sums"]) / sum(kept["tokens"]) == item.loss
        assert len(kept["documents"]) == 12


def test_interrupted_run_is_saved_and_goes_on(reference, tmp_path):
    """SIGTERM finishes the step and saves; the same command goes on to the same bits."""
    whole = tiny.make_trainer(tmp_path / "whole", reference)
    whole.train()
    cut = tiny.make_trainer(tmp_path / "cut", reference, callbacks=[tiny.Kill(14, signal.SIGTERM)])
    before = signal.getsignal(signal.SIGTERM)
    output = cut.train()
    assert cut.outcome == "interrupted"
    assert output.global_step == cut.state.global_step == 14
    assert len(cut.rounds) == 1
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "cut" / "checkpoint-14").is_dir()
    resumed = tiny.make_trainer(tmp_path / "cut", reference)
    resumed.train()
    assert tiny.weights_hash(resumed.student) == tiny.weights_hash(whole.student)
    assert resumed.outcome == "no_more_layers"


def test_two_processes_give_the_same_loss_as_one(reference, tmp_path):
    """Two processes, with accumulation, measure the same loss as one, and take the main one's decisions."""
    recipe = {"target": "reference", "tolerance": 0.0, "max_layers": 2}
    one = tiny.make_trainer(tmp_path / "one", reference, recipe)
    one.train()
    args = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 5}
    settings = {"reference": reference, "recipe": recipe, "args": args, "disagree": True}
    two = run_program({**settings, "output_dir": str(tmp_path / "two"), "result": str(tmp_path / "2.json")}, 2)
    assert two["world_size"] == 2
    assert two["reference"] == pytest.approx(one.reference_validation.loss, abs=1e-6)
    assert two["tokens"] == [item.tokens for item in one.rounds]
    assert two["layers"] == [item.layers for item in one.rounds]


@pytest.mark.slow
def test_two_processes_killed_go_on_to_the_same_bits(reference, tmp_path):
    """A run of two processes, killed in round 2, ends with the bits of an uninterrupted one."""
    settings = {"reference": reference, "result": str(tmp_path / "r.json"), "args": {"per_device_train_batch_size": 2}}
    whole = run_program({**settings, "output_dir": str(tmp_path / "whole")}, processes=2)
    killed = run_program({**settings, "output_dir": str(tmp_path / "cut"), "kill_at": 14}, processes=2, check=False)
    assert not isinstance(killed, dict)
    resumed = run_program({**settings, "output_dir": str(tmp_path / "cut")}, processes=2)
    assert resumed["world_size"] == 2
    assert resumed == whole


def test_save_total_limit_keeps_what_is_needed(reference, tmp_path):
    """With one checkpoint kept the run is the same, and one checkpoint is left."""
    trainer = tiny.make_trainer(tmp_path, reference, save_total_limit=1)
    trainer.train()
    assert [item.name for item in tmp_path.glob("checkpoint-*")] == ["checkpoint-30"]
    assert tiny.make_trainer(tmp_path, reference, save_total_limit=1).train().global_step == 30


@pytest.mark.parametrize("strategy", ["epoch", "no"])
def test_save_and_eval_strategies_end_rounds_alike(reference, tmp_path, strategy):
    """Whatever saves and evaluates within rounds, a round ends evaluated and saved."""
    trainer = tiny.make_trainer(
        tmp_path, reference, {"max_layers": 2}, save_strategy=strategy, eval_strategy=strategy, save_steps=500
    )
    trainer.train()
    assert [item.layers for item in trainer.rounds] == [1, 2]


def test_the_end_of_a_round_is_evaluated_and_saved_once(reference, tmp_path):
    """Trainer ends an epoch where a round or a signal stops it: with epochs as strategies nothing comes twice."""
    saved = []

    class Hear(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            saved.append(state.global_step)

    epochs = {"save_strategy": "epoch", "eval_strategy": "epoch", "train": tiny.train_set(160)}
    recipe = {"steps_per_round": 4, "max_layers": 2}
    whole = tiny.make_trainer(tmp_path / "whole", reference, recipe, callbacks=[Hear()], **epochs)
    whole.train()
    assert saved == [row["step"] for row in whole.state.log_history if "eval_loss" in row] == [4, 8]
    saved.clear()
    cut = tiny.make_trainer(tmp_path / "cut", reference, recipe, [Hear(), tiny.Kill(2, signal.SIGTERM)], **epochs)
    cut.train()
    assert (cut.outcome, saved) == ("interrupted", [2])
    assert not [row for row in cut.state.log_history if "eval_loss" in row]


def test_what_a_killed_save_left_costs_no_checkpoint(reference, tmp_path):
    """A folder without a seal, of a higher step, is let go before the checkpoint that was just sealed."""
    once = {"save_total_limit": 1, "save_steps": 4}
    tiny.make_trainer(tmp_path, reference, callbacks=[tiny.Kill(4, signal.SIGTERM)], **once).train()
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / "model.safetensors").write_bytes(b"half")
    cut = tiny.make_trainer(tmp_path, reference, callbacks=[tiny.Kill(6, signal.SIGTERM)], **once)
    cut.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    for unlimited in (None, 0, -1):  # as Transformers reads them
        rotate_checkpoints(tmp_path, 6, unlimited)
    assert (tmp_path / "checkpoint-6").is_dir()


def test_how_often_a_run_saves_may_change(reference, tmp_path):
    """A run that resumes evaluates and saves as often as it is told now, in the round in progress too."""
    rare = {"eval_steps": 100, "save_steps": 100}
    tiny.make_trainer(tmp_path, reference, callbacks=[tiny.Kill(2, signal.SIGTERM)], **rare).train()
    often = tiny.make_trainer(tmp_path, reference, {"max_layers": 1}, eval_steps=3, save_steps=3)
    often.train()
    assert [row["step"] for row in often.state.log_history if "eval_loss" in row] == [3, 6, 9, 10]
    assert (tmp_path / "checkpoint-3").is_dir()


def test_a_round_without_the_checkpoint_before_it_is_counted_right(reference, tmp_path):
    """A round that inherits afresh needs only the place of the last one; one that continues says what is gone."""
    one, two = {"max_layers": 1}, {"max_layers": 2}
    for name in ("afresh", "whole", "continued"):
        recipe = {"growth": "continue"} if name == "continued" else {}
        tiny.make_trainer(tmp_path / name, reference, {**one, **recipe}).train()
        for path in (tmp_path / name).glob("checkpoint-*") if name != "whole" else ():
            shutil.rmtree(path)
    afresh, whole = (tiny.make_trainer(tmp_path / name, reference, two) for name in ("afresh", "whole"))
    for trainer in (afresh, whole):
        trainer.train()
    assert tiny.weights_hash(afresh.student) == tiny.weights_hash(whole.student)
    assert [replace(item, seconds=0.0) for item in afresh.rounds] == [
        replace(item, seconds=0.0) for item in whole.rounds
    ]
    with pytest.raises(ValueError, match="that ended round 1, of step 10, is gone or damaged, and round 2 continues"):
        tiny.make_trainer(tmp_path / "continued", reference, {**two, "growth": "continue"}).train()


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(reference, tmp_path):
    """A loss that is not finite ends the run with the step, and the checkpoint before it can be used."""

    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 7:
                with torch.no_grad():
                    model.transformer.wpe.weight.fill_(float("nan"))

    trainer = tiny.make_trainer(tmp_path, reference, callbacks=[Poison()])
    with pytest.raises(FloatingPointError, match=r"loss was nan at step 8; the last good checkpoint in .* is kept"):
        trainer.train()
    assert [item.name for item in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-3", "checkpoint-6"]
    resumed = tiny.make_trainer(tmp_path, reference)
    resumed.train()
    assert resumed.outcome == "no_more_layers"


def test_weights_that_are_not_finite_are_not_saved(reference, tmp_path):
    """Weights spoiled by the last step are not saved over a good checkpoint."""

    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 6:
                with torch.no_grad():
                    model.transformer.wpe.weight.fill_(float("inf"))

    trainer = tiny.make_trainer(tmp_path, reference, callbacks=[Poison()], eval_strategy="no")
    with pytest.raises(FloatingPointError, match="weights are not finite at step 6; the last good checkpoint"):
        trainer.train()
    assert [item.name for item in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_callbacks_hear_one_run_with_one_step_count(reference, tmp_path):
    """Training begins and ends once, and steps and logs count through all rounds."""
    heard = []

    class Listen(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            heard.append("begin")

        def on_train_end(self, args, state, control, **kwargs):
            heard.append("end")

        def on_step_end(self, args, state, control, **kwargs):
            heard.append(state.global_step)

    trainer = tiny.make_trainer(tmp_path, reference, callbacks=[Listen()])
    trainer.train()
    assert heard == ["begin", *range(1, 31), "end"]
    steps = [row["step"] for row in trainer.state.log_history if "loss" in row]
    assert steps == sorted(set(steps))


def test_log_begins_with_the_reference(reference, tmp_path):
    """The reference's loss is the first entry of the one log that trackers and checkpoints carry."""
    trainer = tiny.make_trainer(tmp_path, reference, {"target": "reference", "max_layers": 1})
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["step"] == 0
    assert first["reference_loss"] == trainer.reference_validation.loss


def test_one_line_is_logged_for_each_end_of_a_round(reference, tmp_path, caplog):
    """Each round says what it begins with, and its loss, target and verdict, in one line each."""
    with caplog.at_level(logging.INFO, logger="inheritune_hf"):
        tiny.make_trainer(tmp_path, reference).train()
    lines = [record.message for record in caplog.records if record.message.startswith("round ")]
    assert len(lines) == 6
    assert lines[2].startswith("round 2 · 2 layers · begins at ")
    assert lines[3].startswith("round 2 · 2 layers · ")
    assert "missed by +" in lines[3]


def test_saved_student_is_standard(reference, tmp_path):
    """The result loads by AutoModelForCausalLM with the reference's cache setting, and nothing else lies beside it."""
    trainer = tiny.make_trainer(tmp_path / "run", reference)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    names = {item.name for item in (tmp_path / "student").iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "inheritune_config.json",
        "model.safetensors",
    }
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert type(student) is GPT2LMHeadModel
    assert student.config.use_cache
    assert student.config.inheritune["kept_layers"] == [0, 1, 2]
    assert tiny.weights_hash(student) == tiny.weights_hash(trainer.student)
    record = json.loads((tmp_path / "student" / "inheritune_config.json").read_text())
    assert record["outcome"] == "no_more_layers"
    assert len(record["rounds"]) == 3


def test_interrupted_trainer_can_go_on_itself(reference, tmp_path):
    """After an interruption the same trainer goes on when it is asked to train again."""
    trainer = tiny.make_trainer(tmp_path, reference, callbacks=[tiny.Kill(14, signal.SIGTERM)])
    trainer.train()
    trainer.train()
    assert trainer.outcome == "no_more_layers"


def test_students_take_over_how_the_reference_is_loaded(reference, tmp_path):
    """The attention implementation that was asked for is the one that students train with."""
    trainer = InherituneTrainer(
        reference,
        InherituneConfig(keep_layers=1, steps_per_round=3, target=0.01, max_layers=1),
        tiny.arguments(tmp_path),
        train_dataset=tiny.train_set(),
        eval_dataset=tiny.selection_set(),
        reference_kwargs={"attn_implementation": "eager"},
    )
    trainer.train()
    assert trainer.student.config._attn_implementation == "eager"


def test_student_trains_without_a_cache(reference, tmp_path):
    """Keys and values are not cached during training."""

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            assert model.config.use_cache is False

    tiny.make_trainer(tmp_path, reference, {"max_layers": 1}, callbacks=[Watch()]).train()


def build(reference, tmp_path, recipe=None, **changes):
    settings = {"train_dataset": tiny.train_set(), "eval_dataset": tiny.selection_set()}
    return InherituneTrainer(
        reference,
        InherituneConfig(**{"keep_layers": 1, "steps_per_round": 3, **(recipe or {})}),
        tiny.arguments(tmp_path),
        **{**settings, **changes},
    )


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ({}, {"eval_dataset": None}, "There is no selection data: pass eval_dataset"),
        ({}, {"train_dataset": None}, "There is no train_dataset"),
        ({}, {"train_dataset": Dataset.from_dict({"input_ids": []})}, "train_dataset is empty"),
        ({}, {"eval_dataset": Dataset.from_dict({"input_ids": []})}, "eval_dataset is empty"),
        ({}, {"eval_dataset": {"a": 1, "b": 2}}, r"There is one evaluation set, got a dictionary of 2: \['a', 'b'\]"),
        (
            {},
            {"train_dataset": Dataset.from_dict({"input_ids": [[1] * 17]})},
            "train_dataset has sequences of 17 tokens, but the reference reads at most 16",
        ),
        ({"keep_layers": 5}, {}, r"keep_layers must be between 1 and 4 \(the reference's depth\), got 5"),
        ({"keep_layers": 0}, {}, "keep_layers must be between 1 and 4"),
        ({"keep_layers": 2, "max_layers": 1}, {}, "max_layers must be between 2"),
        ({"keep_layers": 2, "max_layers": 9}, {}, "max_layers must be between 2 .* and 4 .* got 9"),
        ({"keep_layers": "last:2"}, {}, "does not start at the first layer, so there is no next layer"),
        ({"steps_per_round": None}, {}, "steps_per_round is needed to train"),
    ],
)
def test_bad_input_is_refused_before_training(reference, tmp_path, recipe, changes, message):
    """What cannot work is said when the trainer is built."""
    with pytest.raises(ValueError, match=message):
        build(reference, tmp_path, recipe, **changes)


def test_a_model_is_given_as_the_reference(reference, tmp_path, monkeypatch):
    """The name that other trainers use, or no reference at all, says what to do; a trainer shows itself as a table."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"to be made smaller, or its Hub id or path, as reference\.$"):
        InherituneTrainer()
    with pytest.raises(ValueError, match=r"as reference, not as model: students are made of its layers\.$"):
        InherituneTrainer(model=reference)
    with pytest.raises(ValueError, match="steps_per_round is needed to train"):
        InherituneTrainer(reference)
    title, headers = repr(build(reference, tmp_path)).splitlines()
    assert title.startswith("InherituneTrainer: The run has not ended: whether its student of 1 of 4 layers matches")
    assert headers.startswith("round  layers  steps")


def test_scattered_layers_train_for_one_round(reference, tmp_path):
    """Layers that do not start at the first can be trained, but not grown."""
    trainer = build(reference, tmp_path, {"keep_layers": "last:2", "max_layers": 2, "target": 0.01})
    trainer.train()
    assert trainer.student.config.inheritune["kept_layers"] == [2, 3]
    assert trainer.outcome == "no_more_layers"


def test_nothing_to_save_or_measure_before_training(reference, tmp_path):
    """Before `train()` there is a skeleton: saving, recording and evaluating say so."""
    trainer = build(reference, tmp_path)
    for act in (trainer.evaluate, trainer.save_model, lambda: trainer.run_record, trainer.push_to_hub):
        with pytest.raises(RuntimeError, match="no student yet, only its empty skeleton: call train"):
            act()


def test_recipe_of_another_type_is_refused(reference, tmp_path):
    """A dictionary is no recipe; the error says how to make one of it."""
    with pytest.raises(TypeError, match="must be an InherituneConfig, got a dict; InherituneConfig"):
        InherituneTrainer(reference, {"keep_layers": 1}, tiny.arguments(tmp_path))


def test_resume_argument_is_refused(reference, tmp_path):
    """A run finds its own checkpoint: pointing at one is refused."""
    with pytest.raises(ValueError, match="train\\(\\) takes neither resume_from_checkpoint"):
        build(reference, tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damaged_checkpoint_leads_to_the_same_bits(reference, tmp_path, caplog, damage):
    """A run whose last checkpoint was damaged goes on from the one before to the same weights, and says so."""
    whole = tiny.make_trainer(tmp_path / "whole", reference)
    whole.train()
    tiny.make_trainer(tmp_path / "cut", reference, callbacks=[tiny.Kill(14, signal.SIGTERM)]).train()
    weights = tmp_path / "cut" / "checkpoint-14" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content if damage == "flip" else content[:-9])
    resumed = tiny.make_trainer(tmp_path / "cut", reference)
    resumed.train()
    assert tiny.weights_hash(resumed.student) == tiny.weights_hash(whole.student)
    assert "checkpoint-14 is damaged (model.safetensors has" in caplog.text


def test_full_disk_fails_the_save_and_leaves_older_checkpoints_whole(reference, tmp_path):
    """A file that cannot be written ends the run with what to do; with room again it goes on to the same bits."""
    whole = tiny.make_trainer(tmp_path / "whole", reference)
    whole.train()
    settings = {"output_dir": str(tmp_path / "cut"), "reference": reference, "result": str(tmp_path / "r.json")}
    full = run_program({**settings, "full_disk_at": 5}, check=False)
    assert full.returncode == 1
    assert "checkpoint-6 could not be saved" in full.stderr
    assert "Make room on the disk and run the same command again" in full.stderr
    assert (tmp_path / "cut" / "checkpoint-3" / "inheritune_state.json").is_file()
    assert run_program(settings)["weights"] == tiny.weights_hash(whole.student)


def test_parts_left_out_begin_under_the_run_seed(reference, tmp_path):
    """Each round's student takes along what the recipe names; the rest is random under `args.seed`, and recorded."""
    started = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step in (0, 10):
                started.append(copy.deepcopy(model.state_dict()))

    trainer = tiny.make_trainer(
        tmp_path, reference, {"inherit": "released-code", "max_layers": 2}, callbacks=[Watch()], seed=7
    )
    trainer.train()
    lineage = trainer.run_record.lineage
    assert (lineage.inherited, lineage.seed) == (("attention", "mlp", "norms", "lm_head"), 7)
    teacher = AutoModelForCausalLM.from_pretrained(reference).state_dict()
    name, random = "transformer.h.0.mlp.c_fc.weight", "transformer.wpe.weight"
    assert len(started) == 2
    for state in started:
        assert torch.equal(state[name], teacher[name])
        assert not torch.equal(state[random], teacher[random])
    recipe = InherituneConfig(keep_layers=2, inherit="released-code")
    assert torch.equal(from_pretrained_inherited(reference, recipe, seed=7).state_dict()[random], started[1][random])
