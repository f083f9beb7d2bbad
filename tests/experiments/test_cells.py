"""One cell: what it keeps, what it survives, and what it is held against."""

import csv
import json
import os
import signal
import sys
import types

import pytest
import torch
from test_comparison import compare, records, weights, write_material
from transformers import AutoModelForCausalLM
from transformers.integrations import integration_utils

from inheritune_hf import InherituneConfig
from inheritune_hf.experiments.arms import ArmTrainer, parse_arm
from inheritune_hf.experiments.comparison import PAPER_DISTILLATION, CellPlan, Comparison
from inheritune_hf.experiments.results import read_cell

FIXED = {"layers": 2, "budget_steps": 4, "controls": False}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    write_material(folder)
    return folder


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory):
    """A cell that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    compare(material, folder, ["random"], [1], **FIXED)
    return folder


def only_cell(folder):
    (path,) = folder.glob("*/cell.json")
    return read_cell(path.parent)


def assert_same_cell(folder, whole):
    found, wanted = only_cell(folder), only_cell(whole)
    assert found.selection.to_dict() == wanted.selection.to_dict()
    assert found.test.to_dict() == wanted.test.to_dict()
    assert (found.curve, found.steps, found.tokens, found.flops) == (
        wanted.curve,
        wanted.steps,
        wanted.tokens,
        wanted.flops,
    )
    assert weights(folder) == weights(whole)
    assert not list(folder.glob("*/checkpoint-*"))


def test_a_trained_cell_whose_model_could_not_be_saved_is_finished_later(material, whole, tmp_path, monkeypatch):
    """If the disk is full after training, the same call saves the trained model: nothing is trained again."""
    save = ArmTrainer.save_model

    def full(trainer, output_dir=None, _internal_call=False):
        if not _internal_call:
            raise OSError("No space left on device")
        save(trainer, output_dir, _internal_call)

    with monkeypatch.context() as patched:
        patched.setattr(ArmTrainer, "save_model", full)
        with pytest.raises(OSError, match="No space left"):
            compare(material, tmp_path, ["random"], [1], **FIXED)
    monkeypatch.setattr(ArmTrainer, "training_step", None)
    assert compare(material, tmp_path, ["random"], [1], **FIXED).complete
    assert_same_cell(tmp_path, whole)


def test_a_cell_killed_after_its_last_checkpoint_is_finished_later(material, whole, tmp_path, monkeypatch):
    """Killed between the last checkpoint and its judgement, a cell is judged by what the checkpoint says."""

    def killed(trainer, seal):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ArmTrainer, "_conclude", killed)
        with pytest.raises(KeyboardInterrupt):
            compare(material, tmp_path, ["random"], [1], **FIXED)
    monkeypatch.setattr(ArmTrainer, "training_step", None)
    assert compare(material, tmp_path, ["random"], [1], **FIXED).complete
    assert_same_cell(tmp_path, whole)


def test_a_trained_cell_without_its_checkpoint_says_what_to_do(material, tmp_path, monkeypatch):
    """What was trained and is lost is said, with the folder to remove."""

    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Comparison, "_finished", full)
        with pytest.raises(OSError, match="No space left"):
            compare(material, tmp_path, ["random"], [1], **FIXED)
    (seal,) = tmp_path.glob("*/checkpoint-4/inheritune_state.json")
    seal.unlink()
    with pytest.raises(ValueError, match="its last checkpoint is gone or damaged; remove this folder"):
        compare(material, tmp_path, ["random"], [1], **FIXED)


def test_a_cell_keeps_its_log(whole):
    """Every logged figure stays in the cell's folder when its checkpoints go."""
    (path,) = whole.glob("*/log.json")
    log = json.loads(path.read_text())["log"]
    losses = [(row["step"], row["eval_loss"]) for row in log if "eval_loss" in row]
    assert [step for step, _ in losses] == [2, 4]
    assert [loss for _, loss in losses] == [loss for _, _, loss in only_cell(whole).curve]
    assert [row["step"] for row in log if "loss" in row] == [2, 4]


def test_a_numeric_target_is_not_taken_for_the_reference(material, tmp_path):
    """With a target of one's own the reference's line, and what it takes to match it, are the reference's still."""
    for name, target in (("own", 2.0), ("measured", "reference")):
        compare(material, tmp_path / name, ["random"], [1], recipe={"target": target}, **FIXED)
    own, measured = records(tmp_path / "own"), records(tmp_path / "measured")
    assert own["reference"]["selection_loss"] == measured["reference"]["selection_loss"] != 2.0
    assert own["cells"][0]["reference_loss"] == measured["cells"][0]["reference_loss"]
    tables = [(tmp_path / name / "comparison.csv").read_text().splitlines() for name in ("own", "measured")]
    rows = [list(csv.DictReader(table))[-1] for table in tables]
    assert rows[0]["arm"] == "random"
    assert rows[0]["tokens_to_match"] == rows[1]["tokens_to_match"]
    assert weights(tmp_path / "own") == weights(tmp_path / "measured")


@pytest.fixture
def tracker(monkeypatch):
    """A stand-in for Weights & Biases, as far as Transformers' callback calls it."""
    stand_in = types.ModuleType("wandb")
    errors = types.ModuleType("wandb.sdk.lib.config_util")
    errors.ConfigError = type("ConfigError", (Exception,), {})
    stand_in.run, stand_in.runs = None, []

    class Run(dict):
        def __init__(self, name, id):
            super().__init__(steps=[])
            self.id, self.name, self.summary, self.ended = id, name, {}, False

        def _label(self, **_):
            pass

    def init(project=None, name=None, id=None, resume=None):
        known = [run for run in stand_in.runs if id is not None and run.id == id]
        if not known:
            stand_in.runs.append(Run(name, id))
        stand_in.run = known[0] if known else stand_in.runs[-1]
        stand_in.run.ended = False

    def finish():
        stand_in.run.ended = True
        stand_in.run = None

    class Config(dict):
        def update(self, values, allow_val_change=False):
            super().update(values)

    stand_in.init, stand_in.finish, stand_in.config = init, finish, Config()
    stand_in.log = lambda figures: stand_in.run["steps"].append(figures["train/global_step"])
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    for name in ("wandb.sdk", "wandb.sdk.lib"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib.config_util", errors)
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: True)
    return stand_in


def test_each_cell_is_a_tracked_run_of_its_own(material, tmp_path, tracker):
    """Weights & Biases gets one run for each cell, named by comparison, arm, seed and rate, and nothing else."""
    folder = tmp_path / "mine"
    compare(material, folder, ["random"], [1, 2], args={"report_to": ["wandb"]}, recipe={"target": 2.0}, **FIXED)
    assert [run.name for run in tracker.runs] == ["mine/random-seed1-lr0.01", "mine/random-seed2-lr0.01"]
    assert all(run.ended and run["steps"] and sorted(run["steps"]) == run["steps"] for run in tracker.runs)
    compare(material, tmp_path / "named", ["random"], [1], args={"report_to": ["wandb"], "run_name": "sweep"}, **FIXED)
    assert tracker.runs[-1].name == "sweep/random-seed1-lr0.01"


def test_a_run_that_was_open_before_stays_open(material, tmp_path, tracker):
    """A caller's own run is not ended: the cells write into it."""
    tracker.init(name="the caller's")
    compare(material, tmp_path, ["random"], [1], args={"report_to": ["wandb"]}, **FIXED)
    (run,) = tracker.runs
    assert run["steps"]
    assert not run.ended


def test_distillation_is_the_papers_unless_the_recipe_says_otherwise():
    """`/kd` alone trains with 0.6 of cross-entropy and 0.4 of KL at temperature 1; other arms are not taught."""
    taught = CellPlan(parse_arm("random/kd"), 1, 0.1, 4, 10).recipe(InherituneConfig())
    assert taught.distillation == PAPER_DISTILLATION
    assert taught.distillation_weights == {"cross_entropy": 0.6, "forward_kl": 0.4}
    assert taught.distillation_temperature == 1.0
    assert CellPlan(parse_arm("random"), 1, 0.1, 4, 10).recipe(InherituneConfig()).distillation is None


def test_the_second_stage_of_stacking_is_taught_by_depth(material, tmp_path, monkeypatch):
    """Blocks that grew from random ones stand for layers at their share of the teacher's depth, in both stages."""
    seen = []
    whole = torch.nn.Module.register_forward_hook

    def heard(block, *_, **__):
        if type(block).__name__ == "GPT2Block":
            seen.append(block.attn.layer_idx)
        return whole(block, *_, **__)

    monkeypatch.setattr(torch.nn.Module, "register_forward_hook", heard)
    recipe = {"distillation": "cross_entropy=1,hidden_mse=1"}
    compare(material, tmp_path, ["stacking/kd"], [1], recipe=recipe, layers=4, budget_steps=2, controls=False)
    # Each step hooks the teacher's blocks, then the student's.
    assert seen[:12] == [1, 3, 0, 1, 0, 1, 2, 3, 0, 1, 2, 3]
    (folder,) = tmp_path.glob("*/model")
    kept = AutoModelForCausalLM.from_pretrained(folder).config.inheritune
    assert kept["kept_layers"] == []
    assert kept["reference"].endswith("reference")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "stop", "recipe"),
    [
        ("stacking", 4, {}),
        ("stacking", 2, {}),
        ("inheritune", 3, {"keep_layers": 1, "grow_by": 1, "steps_per_round": 2}),
        ("inheritune", 3, {"keep_layers": 1, "grow_by": 1, "steps_per_round": 2, "growth": "continue"}),
        ("random/kd", 3, {}),
        ("stacking/kd", 4, {"distillation": "cross_entropy=1,hidden_mse=1"}),
    ],
)
def test_interrupted_cells_of_several_stages_go_on_to_the_same_bits(material, tmp_path, monkeypatch, arm, stop, recipe):
    """Stacking, the loop and distillation, stopped within a stage, end with the weights of an undisturbed cell."""
    fixed = {"layers": 2, "budget_steps": 6 if arm != "inheritune" else 4, "controls": False}
    compare(material, tmp_path / "whole", [arm], [1], recipe=recipe, **fixed)
    taken, step = [], ArmTrainer.training_step

    def stopped(trainer, *batch):
        taken.append(1)
        if len(taken) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *batch)

    monkeypatch.setattr(ArmTrainer, "training_step", stopped)
    assert not compare(material, tmp_path / "cut", [arm], [1], recipe=recipe, **fixed).complete
    assert compare(material, tmp_path / "cut", [arm], [1], recipe=recipe, **fixed).complete
    assert len(taken) == fixed["budget_steps"]
    assert_same_cell(tmp_path / "cut", tmp_path / "whole")
