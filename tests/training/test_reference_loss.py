"""The reference's loss is measured once, and never taken for that of other weights, data or precision."""

import logging
import os

import pytest
import tiny
import torch
from huggingface_hub import constants
from test_trainer import run_program
from transformers import TrainerCallback

from inheritune_hf import InherituneConfig, InherituneTrainer
from inheritune_hf.records import cache_folder

RECIPE = {"target": "reference", "max_layers": 1, "steps_per_round": 2}


@pytest.fixture
def reference(tmp_path):
    return tiny.write_reference(tmp_path / "reference")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))


@pytest.fixture
def measured(monkeypatch):
    """The prefixes under which something was measured."""
    prefixes = []
    whole = InherituneTrainer.evaluate

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        prefixes.append(metric_key_prefix)
        return whole(self, eval_dataset, ignore_keys, metric_key_prefix)

    monkeypatch.setattr(InherituneTrainer, "evaluate", evaluate)
    return prefixes


def run(folder, reference, callbacks=None, cache=True, **changes):
    trainer = tiny.make_trainer(folder, reference, RECIPE, callbacks, reference_cache=cache, **changes)
    trainer.train()
    return trainer


def measure(folder, reference, selection=None, collator=None, **changes):
    """Measure the reference and nothing else."""
    trainer = InherituneTrainer(
        reference,
        InherituneConfig(keep_layers=1, steps_per_round=2),
        tiny.arguments(folder, **changes),
        train_dataset=tiny.train_set(),
        eval_dataset=tiny.selection_set() if selection is None else selection,
        data_collator=collator,
    )
    return trainer.measure_reference()


class Heard(TrainerCallback):
    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(logs)


def test_a_second_run_does_not_measure_again(reference, tmp_path, measured, caplog):
    """Another folder, batch size and recipe: the same sums, said to be measured before, in trackers and in the log."""
    first = run(tmp_path / "one", reference)
    assert measured.count("reference") == 1
    heard = Heard()
    with caplog.at_level(logging.INFO, logger="inheritune_hf"):
        second = run(tmp_path / "two", reference, [heard], per_device_eval_batch_size=3)
    assert measured.count("reference") == 1
    assert second.reference_validation == first.reference_validation
    assert "measured before" in caplog.text
    assert "reference_cache=False measures it again" in caplog.text
    assert heard.logs[0]["reference_loss"] == second.state.log_history[0]["reference_loss"]
    assert tiny.weights_hash(second.student) == tiny.weights_hash(first.student)


def test_the_cache_may_be_left_alone(reference, tmp_path, measured):
    """Without it nothing is kept and nothing is found."""
    run(tmp_path / "one", reference, cache=False)
    assert not cache_folder("reference-losses").exists()
    run(tmp_path / "two", reference)
    run(tmp_path / "three", reference, cache=False)
    assert measured.count("reference") == 3


def test_changed_weights_are_measured_anew(reference, tmp_path, measured):
    """One flipped bit is another reference, even in a file of the same size and time."""
    measure(tmp_path / "one", reference)
    weights = tmp_path / "reference" / "model.safetensors"
    stat, content = weights.stat(), bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    measure(tmp_path / "two", reference)
    assert measured == ["reference", "reference"]


def test_the_same_weights_elsewhere_are_the_same_reference(reference, tmp_path, measured):
    """A copy of the folder is recognised."""
    measure(tmp_path / "one", reference)
    (tmp_path / "reference").rename(tmp_path / "moved")
    measure(tmp_path / "two", str(tmp_path / "moved"))
    assert measured == ["reference"]


def test_a_loaded_model_is_known_by_its_tensors(tmp_path, measured):
    """A model in memory is found again until a weight of it changes."""
    model = tiny.reference_model()
    before = measure(tmp_path / "one", model)
    assert measure(tmp_path / "two", tiny.reference_model()) == before
    assert measured == ["reference"]
    with torch.no_grad():
        model.transformer.wpe.weight[0, 0] += 1
    assert measure(tmp_path / "three", model) != before


@pytest.mark.parametrize(
    "change",
    [
        {"selection": tiny.selection_set(33)},
        {
            "selection": tiny.selection_set().add_column(
                "labels", [[-100, *row[1:]] for row in tiny.selection_set()["input_ids"]]
            )
        },
        {"selection": tiny.selection_set().remove_columns("document")},
        {"bf16": True},
    ],
    ids=["fewer", "labels", "documents", "precision"],
)
def test_other_data_or_precision_is_measured_anew(reference, tmp_path, measured, change):
    """Rows, labels, documents and precision are part of what is found again."""
    measure(tmp_path / "one", reference)
    measure(tmp_path / "two", reference, **change)
    assert measured == ["reference", "reference"]
    measure(tmp_path / "three", reference, **change)
    assert measured == ["reference", "reference"]


def test_what_cannot_be_told_apart_is_not_kept(reference, tmp_path, measured):
    """Rows of any other kind of data set, and another collator, may come to anything: they are measured each time."""
    rows = list(tiny.selection_set())

    def collate(batch):
        tokens = torch.tensor([row["input_ids"][:5] for row in batch])
        return {"input_ids": tokens, "labels": tokens}

    for _ in range(2):
        measure(tmp_path / "one", reference, selection=rows)
        measure(tmp_path / "two", reference, collator=collate)
    assert len(measured) == 4
    assert not cache_folder("reference-losses").exists()


def test_a_number_needs_no_reference_loss(reference, tmp_path, measured):
    """A number as the target is compared with as it stands; nothing is measured but students."""
    trainer = tiny.make_trainer(tmp_path, reference, {**RECIPE, "target": 2.81}, reference_cache=True)
    trainer.train()
    assert trainer.reference_validation is None
    assert trainer.rounds[0].target == 2.81
    assert trainer.rounds[0].match.difference == pytest.approx(trainer.rounds[0].loss - 2.81)
    assert set(measured) == {"start", "eval"}


@pytest.mark.slow
def test_two_processes_find_what_one_measured(reference, tmp_path, monkeypatch):
    """The main process finds the loss, and tells the others."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", constants.HF_HOME)
    settings = {"reference": reference, "result": str(tmp_path / "r.json"), "recipe": RECIPE, "reference_cache": True}
    one = tiny.make_trainer(tmp_path / "one", reference, RECIPE, reference_cache=True)
    one.train()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "home").rglob("reference-losses/*.json")}
    assert len(kept) == 1
    two = run_program({**settings, "output_dir": str(tmp_path / "two")}, processes=2)
    assert two["world_size"] == 2
    assert two["reference"] == one.reference_validation.loss
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
