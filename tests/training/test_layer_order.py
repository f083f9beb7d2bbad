"""Growth along the order of a measure: nested, measured once on training text, recorded, resumed to the same bits."""

import itertools
import signal
import sys
from pathlib import Path

import pytest
import tiny
import torch
from test_growth_modes import CONTINUE, RUNS, check_kill
from test_trainer import run_program
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune_hf.analysis import measure_order, sample_sequences
from inheritune_hf.measures import MEASURES
from inheritune_hf.publishing.card import render_card
from inheritune_hf.records import Lineage, decode
from inheritune_hf.reporting import read_run
from inheritune_hf.reporting.content import build_report
from inheritune_hf.run_folder import read_state
from inheritune_hf.students import verify_student
from inheritune_hf.training import trainer as loop

sys.path.insert(0, str(Path(__file__).parents[1] / "students"))
from families import CASES, NEEDY

BY_LOSS = {"keep_layers": "loss:2", "max_layers": 4, "steps_per_round": 4}


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return tiny.write_reference(tmp_path_factory.mktemp("reference") / "tiny", steps=60, layers=6)


def order_of(reference, choice, rows):
    return measure_order(reference, choice, sample_sequences(rows))


@pytest.mark.parametrize("growth", ["reinherit", "continue"])
def test_rounds_along_a_measure_are_those_of_a_schedule(reference, tmp_path, growth):
    """Each student has the first layers of the order, measured on the training set: as if they were written down."""
    trainer = tiny.make_trainer(tmp_path / "order", reference, {**BY_LOSS, "growth": growth})
    trainer.train()
    layers = order_of(reference, "loss:2", tiny.train_set()).layers
    students = [tuple(sorted(layers[:count])) for count in (2, 3, 4)]
    assert students[0] != (0, 1)
    assert [item.kept_layers for item in trainer.rounds] == students
    schedule = [",".join(f"{layer}:{layer + 1}" for layer in student) for student in students]
    recipe = {"keep_layers": "half", "schedule": schedule, "max_layers": None, "steps_per_round": 4, "growth": growth}
    written = tiny.make_trainer(tmp_path / "schedule", reference, recipe)
    written.train()
    assert tiny.weights_hash(trainer.student) == tiny.weights_hash(written.student)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), NEEDY)
def test_hybrids_grow_along_a_measure(kind, number, tmp_path):
    """From the first student to the whole, each is a model of its family, trains, and is verified in the end."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **CASES[kind][number]))
    model.save_pretrained(tmp_path / "reference")
    recipe = {"keep_layers": "loss:2", "grow_by": 2, "max_layers": 6, "steps_per_round": 1, "growth": "continue"}
    trainer = tiny.make_trainer(tmp_path / "run", str(tmp_path / "reference"), recipe)
    trainer.train()
    layers = order_of(str(tmp_path / "reference"), "loss:2", tiny.train_set()).layers
    assert [item.kept_layers for item in trainer.rounds] == [tuple(sorted(layers[:n])) for n in (2, 4, 6)]
    trainer.save_model()
    assert verify_student(tmp_path / "run", str(tmp_path / "reference")).passed


def test_the_order_is_in_every_record(reference, tmp_path):
    """State, lineage, card and report say which measure it was, on what, and in which order; the student verifies."""
    trainer = tiny.make_trainer(tmp_path, reference, BY_LOSS)
    assert trainer.rule().first == (0, 1)  # not measured before it trains
    trainer.train()
    trainer.save_model()
    order = order_of(reference, "loss:2", tiny.train_set())
    assert (order.measure, order.first, order.sequences, order.tokens) == ("loss", 2, 80, 16)
    assert read_state(tmp_path).order == order
    assert decode(Lineage, trainer.student.config.inheritune, "lineage").order == order
    added = ", ".join(map(str, order.layers[2:]))
    sentence = (
        f"Layers are chosen by loss ({MEASURES['loss'].keeps}; {MEASURES['loss'].source}), on 80 sequences of 16 "
        f"tokens: {','.join(map(str, order.layers[:2]))}, then {added}."
    )
    assert order.sentence == sentence
    assert sentence in render_card(trainer.run_record, "student")
    run = read_run(tmp_path)
    assert run.record.recipe["keep_layers"] == "loss:2"
    assert sentence in [
        block.text for part in build_report(run).sections for block in part.blocks if "text" in vars(block)
    ]
    assert verify_student(tmp_path, reference).passed


def test_a_resumed_run_follows_its_record(reference, tmp_path, monkeypatch):
    """The order that a run began with is that of its later rounds, whatever would be measured now."""
    measured = []

    def reversed_order(*given, **settings):
        measured.append(settings["cache_dir"])
        order = measure_order(*given, **settings)
        return loop.replace(order, layers=order.layers[::-1])

    monkeypatch.setattr(loop, "measure_order", reversed_order)
    stopped = tiny.make_trainer(tmp_path, reference, BY_LOSS, callbacks=[tiny.Kill(2, signal.SIGTERM)])
    stopped.train()
    assert stopped.outcome == "interrupted"
    assert read_run(tmp_path).record.lineage.order == stopped.run.order
    monkeypatch.setattr(loop, "measure_order", measure_order)
    trainer = tiny.make_trainer(tmp_path, reference, BY_LOSS)
    trainer.train()
    layers = order_of(reference, "loss:2", tiny.train_set()).layers[::-1]
    assert [item.kept_layers for item in trainer.rounds] == [tuple(sorted(layers[:count])) for count in (2, 3, 4)]
    assert measured == [None]  # reference_cache is off


def test_auto_begins_where_the_analysis_says(reference, tmp_path):
    """Without a lazy tail that is the first half, and layers are added one after another."""
    trainer = tiny.make_trainer(tmp_path, reference, {**BY_LOSS, "keep_layers": "auto"})
    trainer.train()
    assert [item.kept_layers for item in trainer.rounds] == [(0, 1, 2), (0, 1, 2, 3)]
    assert trainer.run.order.measure == "auto"


def test_another_measure_is_another_run(reference, tmp_path):
    """The choice as it is written is part of a run's identity."""
    tiny.make_trainer(tmp_path, reference, {**BY_LOSS, "max_layers": 2}).train()
    for choice in ("skip:2", [0, 5]):
        other = tiny.make_trainer(tmp_path, reference, {**BY_LOSS, "keep_layers": choice, "max_layers": 2})
        with pytest.raises(ValueError, match=r"recipe\.keep_layers: 'loss:2' there, .* now"):
            other.train()


def test_a_stream_is_measured_on_its_first_rows(reference, tmp_path):
    """Of a stream 1,000 rows are read, from its start, and training begins at its start all the same."""
    shards = [(0, 40), (40, 7000)]
    rows = [row["input_ids"].tolist() for row in itertools.islice(tiny.stream(shards).begin(), 1000)]
    assert sample_sequences(tiny.stream(shards)) == rows[5::10]
    measured = tiny.make_trainer(tmp_path / "measured", reference, BY_LOSS, train=tiny.stream(shards))
    measured.train()
    students = [list(item.kept_layers) for item in measured.rounds]
    order = measure_order(reference, "loss:2", torch.tensor(rows[5::10]))
    assert students[0] == sorted(order.layers[:2])
    recipe = {"keep_layers": students[0], "max_layers": 2, "steps_per_round": 4}
    plain = tiny.make_trainer(tmp_path / "plain", reference, recipe, train=tiny.stream(shards))
    plain.train()
    assert [item.loss for item in plain.rounds] == [measured.rounds[0].loss]


@pytest.mark.parametrize("name", ["continue-keep"])
def test_killed_runs_resume_to_the_same_bits(reference, tmp_path, name):
    """SIGKILL in round 2 along a measured order: the weights and the log of an uninterrupted run."""
    check_kill(reference, tmp_path, {"recipe": {**RUNS[name], "keep_layers": "loss:1"}}, 14)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["rank:1", "influence:1", "angular:1", "skip:1", "loss:1"])
def test_killed_runs_along_every_measure(reference, tmp_path, choice):
    """The same for every measure, with students that are inherited afresh."""
    check_kill(reference, tmp_path, {"recipe": {"keep_layers": choice}}, 11)


@pytest.mark.slow
def test_processes_agree_about_the_order(reference, tmp_path):
    """The main process measures, and all of them train the students that it has chosen."""
    settings = {
        "reference": reference,
        "recipe": {**BY_LOSS, **CONTINUE},
        "args": {"per_device_train_batch_size": 2},
        "output_dir": str(tmp_path / "run"),
        "result": str(tmp_path / "result.json"),
    }
    assert run_program(settings, 2)["layers"] == [2, 3, 4]
    layers = order_of(reference, "loss:2", tiny.train_set()).layers
    assert read_state(tmp_path / "run").order.layers == layers
