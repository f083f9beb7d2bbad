"""What a run refuses before it measures for hours, the settings that run it again, and the controls beside it."""

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from test_comparison import write_material
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from inheritune_hf import InherituneConfig
from inheritune_hf.cli.settings import parse_settings
from inheritune_hf.data import CausalCollator, DataSplits
from inheritune_hf.experiments import run_recipe, train_control
from inheritune_hf.experiments.runs import refuse_early, watch_collapse
from inheritune_hf.reporting import read_run, write_report
from inheritune_hf.reporting.content import recipe_of
from inheritune_hf.run_folder import NUMERIC_ARGUMENTS, SETTINGS_FILE
from inheritune_hf.training import InherituneTrainer

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).parents[1] / "students"))

import tiny
from families import CASES


@pytest.mark.parametrize("sharding", ["fsdp", "zero3"])
def test_sharded_students_are_not_watched(sharding):
    """A process that has parts of the weights cannot measure the student, and the reference is not measured either."""
    trainer = SimpleNamespace(sharding=sharding)
    assert watch_collapse(trainer, None, None) is None
    with pytest.raises(ValueError, match=f"collapse_every=2 measures .* under {sharding} has a part of each weight"):
        watch_collapse(trainer, None, 2)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("lfm2", {"keep_layers": 1}, r"'0:1' keeps no layer with softmax attention, .*: keep one of \[1, 4\] too\."),
        (
            "gemma4_text",
            {"keep_layers": 3, "grow_by": 1},
            r"'0:4' ends with a layer of sliding_attention, .*\[2, 4, 5\]",
        ),
        ("gemma4_text", {"schedule": ["0:3", "0:3,5"]}, ""),
        ("gemma4_text", {"keep_layers": "rank:2"}, ""),
    ],
)
def test_every_round_must_be_a_model_of_the_family(kind, changes, message, tmp_path):
    """A later round that no config allows is refused before the first; an order of a measure gives none."""
    config = AutoConfig.for_model(kind, **CASES[kind][0])
    args = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    recipe = InherituneConfig(steps_per_round=4, **changes)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        refuse_early(recipe, args, config)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A recipe whose every part differs from the defaults somewhere, and its file."""
    monkeypatch.chdir(tmp_path)
    write_material(tmp_path)
    values = {
        "reference": str(tmp_path / "reference"),
        "attn_implementation": "eager",
        "train_files": ["*.txt"],
        "selection_fraction": 0.3,
        "test_fraction": 0.3,
        "block_size": 8,
        "near_duplicates": "ignore",
        "keep_layers": 1,
        "grow_by": 1,
        "max_layers": 2,
        "steps_per_round": 4,
        "target": 0.01,
        "confidence": "none",
        "learning_rate": 0.01,
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "seed": 3,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "output_dir": "run",
    }
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    return parse_settings(["--config", "recipe.json"])


def check_again(settings, folder):
    """The recipe that the report prints is read as the one that was run."""
    (folder / "again.json").write_text(json.dumps(recipe_of(read_run(folder / "run"))))
    again = parse_settings(["--config", str(folder / "again.json")])
    assert (again.run, again.recipe, again.data) == (settings.run, settings.recipe, settings.data)
    for name in (*NUMERIC_ARGUMENTS, "eval_steps", "max_steps", "eval_strategy", "output_dir", "use_cpu"):
        assert getattr(again.args, name) == getattr(settings.args, name), name


def test_a_run_can_be_run_again(settings, tmp_path, monkeypatch):
    """
    Reference, recipe, data and arguments are kept in the folder, and the report's recipe is the run's.

    Reference and students attend as the recipe says.
    """
    attended = set()
    step, measure = InherituneTrainer.training_step, InherituneTrainer.evaluate

    def watched_step(self, model, *words):
        attended.add(("trained", model.config._attn_implementation))
        return step(self, model, *words)

    def watched_measure(self, *words, **named):
        attended.add(("measured", self.model.config._attn_implementation))
        return measure(self, *words, **named)

    monkeypatch.setattr(InherituneTrainer, "training_step", watched_step)
    monkeypatch.setattr(InherituneTrainer, "evaluate", watched_measure)
    run_recipe(*settings, console=Console(quiet=True))
    kept = json.loads((tmp_path / "run" / SETTINGS_FILE).read_text())
    assert (kept["train_files"], kept["learning_rate"], kept["confidence"]) == (["*.txt"], 0.01, None)
    assert attended == {("trained", "eager"), ("measured", "eager")}
    check_again(settings, tmp_path)


def test_an_interrupted_run_has_a_report_and_can_be_run_again(settings, tmp_path, monkeypatch):
    """A run that was stopped on the way says so, shows its losses, and keeps what it was settings."""
    step = InherituneTrainer.training_step

    def stopped(self, *words):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *words)

    monkeypatch.setattr(InherituneTrainer, "training_step", stopped)
    assert run_recipe(*settings, console=Console(quiet=True)).outcome == "interrupted"
    report, _ = write_report(tmp_path / "run")
    assert report.outcome == "interrupted"
    assert "was last saved at step 3" in report.verdict
    assert [section.anchor for section in report.sections] == ["losses", "layers", "data", "reproduce"]
    check_again(settings, tmp_path)


def tiny_splits():
    return DataSplits(tiny.train_set(), tiny.selection_set(), tiny.selection_set(), facts=None)


def test_a_control_equals_a_plain_trainer_and_is_found_again(tmp_path):
    """The weights are plain Trainer's to the bit; a finished control is measured, not trained again."""
    reference = tiny.write_reference(tmp_path / "reference", dropout=0.0)
    args = tiny.arguments(tmp_path / "run", push_to_hub=True)  # of the run: what it is compared with stays here
    control = train_control(reference, args, tiny_splits(), 7, "control", tmp_path / "control")
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

    again = train_control(reference, args, tiny_splits(), 7, "control", tmp_path / "control")
    assert tiny.weights_hash(again.model) == tiny.weights_hash(control.model)
    assert (again.curve, again.test, again.tokens) == (control.curve, control.test, control.tokens)


def test_lazy_layers_are_not_measured_on_mps():
    """A device without float64 is refused before anything is trained, with what to do instead."""
    trainer = SimpleNamespace(sharding="none", args=SimpleNamespace(device=torch.device("mps")))
    with pytest.raises(
        ValueError, match=r"collapse_every=2 measures in float64, which MPS does not have; leave it out"
    ):
        watch_collapse(trainer, None, 2)
