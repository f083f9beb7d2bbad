"""Lazy layers are measured during training, told to trackers, and compared with the reference's at the end."""

import pytest
import torch
from tiny import VOCABULARY, make_trainer, saved_log, weights_hash, write_reference
from torch._dynamo.utils import counters
from transformers import TrainerControl, TrainerState

from inheritune_hf.analysis import measure_collapse
from inheritune_hf.training import CollapseCallback
from inheritune_hf.training.callbacks import figures
from inheritune_hf.training.speed import compile_blocks

SEQUENCES = torch.randint(1, VOCABULARY, (30, 12), generator=torch.Generator().manual_seed(0))


def test_student_and_reference_are_measured(tmp_path):
    """Every second evaluation and the end are measured, the trackers are told, and the paper's question is answered."""
    reference = write_reference(tmp_path / "reference")
    trainer = make_trainer(tmp_path / "run", reference, {"target": "reference"})
    report = measure_collapse(reference, SEQUENCES, controls=False, blocks=False)
    callback = CollapseCallback(SEQUENCES, every=2, log=trainer.log, reference=report)
    trainer.add_callback(callback)
    assert callback.verdict() is None
    trainer.train()
    steps = [step for step, _ in callback.history]
    assert steps[0] == 10
    assert steps[-1] == trainer.rounds[-1].end_step
    assert callback.history[-1][1].depth == trainer.rounds[-1].layers
    told = [row for row in saved_log(trainer) if "reference_collapse/layers" in row]
    assert [row["reference_collapse/layers"] for row in told] == [4]
    logged = [row for row in trainer.state.log_history if "collapse/avg_rank" in row]
    assert logged[0]["collapse/layers"] == 1
    assert logged[0]["collapse/avg_rank"] == callback.history[0][1].avg_rank()
    verdict = callback.verdict()
    assert verdict.reference_layers == 4
    assert "lazy layers" in verdict.sentence


def test_training_is_not_changed(tmp_path):
    """A run that is measured ends with the same bits as one that is not."""
    hashes = []
    for name in ("plain", "measured"):
        trainer = make_trainer(tmp_path / name, write_reference(tmp_path / "reference"), {"max_layers": 1})
        if name == "measured":
            trainer.add_callback(CollapseCallback(SEQUENCES[:4]))
        trainer.train()
        hashes.append(weights_hash(trainer.student))
    assert hashes[0] == hashes[1]


def test_other_processes_and_other_evaluations_do_not_measure():
    """Only the main process measures, and only at evaluations of the selection set."""
    callback = CollapseCallback(SEQUENCES)
    control = TrainerControl()
    callback.on_evaluate(None, TrainerState(is_world_process_zero=False), control, "model", {"eval_loss": 1.0})
    callback.on_evaluate(None, TrainerState(is_world_process_zero=True), control, "model", {"test_loss": 1.0})
    callback.on_evaluate(None, TrainerState(is_world_process_zero=True), control, None, {"eval_loss": 1.0})
    callback.on_train_end(None, TrainerState(is_world_process_zero=False), control, "model")
    assert callback.history == []


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_are_measured_as_they_are_written(tmp_path, monkeypatch):
    """In a run that compiles its blocks, layers are measured as in a plain run, and no graph is added."""
    for name in ("BACKEND", "MODE"):
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "no" if name == "BACKEND" else "default")
    torch._dynamo.reset()
    counters.clear()
    reference = write_reference(tmp_path / "reference", dropout=0.0)
    found = []
    for backend in (None, "aot_eager"):
        trainer = make_trainer(tmp_path / f"{backend}", reference, {"max_layers": 1}, torch_compile_backend=backend)
        callback = CollapseCallback(SEQUENCES[:4])
        trainer.add_callback(callback)
        trainer.train()
        found.append([(step, report.max_ranks()) for step, report in callback.history])
    assert found[0] == found[1]
    assert [step for step, _ in found[0]] == [5, 10]
    assert counters["stats"]["unique_graphs"] == 1
    compile_blocks(trainer.student, {"backend": "aot_eager", "dynamic": False})
    measure_collapse(trainer.student, SEQUENCES[:4])
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def test_every_is_checked():
    """An interval below one evaluation is refused."""
    with pytest.raises(ValueError, match="every must be 1 evaluation or more, got 0"):
        CollapseCallback(SEQUENCES, every=0)


def test_figures_are_numbers(tmp_path):
    """What a tracker gets are the layers, the lazy and near rank-1 ones, and AvgRank."""
    trainer = make_trainer(tmp_path / "run", write_reference(tmp_path / "reference"), {"max_layers": 1})
    callback = CollapseCallback(SEQUENCES[:4], every=100)
    trainer.add_callback(callback)
    trainer.train()
    assert len(callback.history) == 1
    told = figures(callback.history[0][1])
    assert set(told) == {"layers", "lazy", "near_rank_one", "avg_rank"}
    assert all(isinstance(value, float) for value in told.values())
