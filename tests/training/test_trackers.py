"""What trackers get of a run."""

import importlib.util

import pytest
from tiny import make_trainer, write_reference

tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")


@tensorboard
def test_tensorboard_gets_one_continuous_run(tmp_path, monkeypatch):
    """One event file holds all rounds at steps that only grow, with the figures of the records and the reference."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = make_trainer(tmp_path / "run", write_reference(tmp_path / "reference"), report_to="tensorboard")
    trainer.train()
    assert len(trainer.rounds) == 3
    (file,) = (tmp_path / "events").rglob("events.*")
    events = EventAccumulator(str(file))
    events.Reload()
    scalars = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    losses = scalars["eval/loss"]
    assert [item.step for item in losses] == [5, 10, 15, 20, 25, 30]
    for name, values in (
        ("train/round/layers", [item.layers for item in trainer.rounds]),
        ("train/round/loss", [item.loss for item in trainer.rounds]),
        ("train/round/difference", [item.match.difference for item in trainer.rounds]),
        ("train/round/matched", [0, 0, 0]),
    ):
        found = scalars[name]
        assert [item.step for item in found] == [item.end_step for item in trainer.rounds]
        assert [item.value for item in found] == pytest.approx(values, rel=1e-6)
    ends = {item.step: item.value for item in losses}
    assert [ends[item.end_step] for item in trainer.rounds] == pytest.approx([item.loss for item in trainer.rounds])
    steps = [item.step for item in scalars["train/loss"]]
    assert steps == sorted(set(steps))


def test_round_figures_are_told_once(tmp_path):
    """Every round's figures are logged at its last step, and not again when a finished run is opened."""
    from transformers import TrainerCallback

    heard = []

    class Listener(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "round/loss" in logs:
                heard.append((state.global_step, logs["round/layers"]))

    reference = write_reference(tmp_path / "reference")
    make_trainer(tmp_path / "run", reference, callbacks=[Listener()]).train()
    make_trainer(tmp_path / "run", reference, callbacks=[Listener()]).train()
    assert heard == [(10, 1), (20, 2), (30, 3)]
