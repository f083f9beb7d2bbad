"""What trackers get of a run."""

import importlib.machinery
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
from tiny import make_trainer, selection_set, write_reference

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


@tensorboard
def test_tensorboard_gets_everything_in_the_runs_folder(tmp_path, monkeypatch):
    """What is told before training, in it, after it and when it goes on lies in one folder of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    reference = write_reference(tmp_path / "reference", steps=40)
    for steps in (15, 20):
        trainer = make_trainer(
            tmp_path / "run", reference, {"target": "reference"}, report_to="tensorboard", max_steps=steps
        )
        trainer.train()
        trainer.evaluate(selection_set(), metric_key_prefix="test")
    assert list((tmp_path / "work").iterdir()) == []
    (folder,) = {path.parent for path in tmp_path.rglob("events.*")}
    assert folder == tmp_path / "run" / "runs"
    events = EventAccumulator(str(folder))
    events.Reload()
    steps = {name: [item.step for item in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert steps["train/reference_loss"] == [0]
    assert steps["eval/loss"] == [5, 10, 15, 20]
    assert steps["test/loss"] == [15, 20]
    assert steps["train/loss"] == sorted(set(steps["train/loss"]))


class Told:
    """A stand-in for a tracker: what was opened, told and closed."""

    def __init__(self):
        self.run, self.runs, self.told, self.config = None, [], [], {}

    def init(self, **options):
        self.run = SimpleNamespace(summary={}, _label=lambda **words: None, id=options.get("id"))
        self.runs.append(options)

    def log(self, figures):
        assert self.run is not None
        self.told.append(figures)

    def finish(self):
        self.run = None

    def module(self, name):
        made = ModuleType(name)
        made.__spec__ = importlib.machinery.ModuleSpec(name, None)
        made.__getattr__ = lambda item: getattr(self, item)
        made.__version__ = "0"
        return made


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_trackers_go_on_with_the_same_run(tmp_path, monkeypatch, tracker):
    """However often a tracker is opened, in this process or the next, a run has one name; another has another."""
    stand_in = Told()
    stand_in.context_vars = SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None))
    monkeypatch.setitem(sys.modules, tracker, stand_in.module(tracker))
    for name in ("wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.config_util"):
        part = ModuleType(name)
        part.ConfigError = RuntimeError
        monkeypatch.setitem(sys.modules, name, part)
    stand_in.config = type("Config", (dict,), {"update": lambda self, *words, **options: None})()
    reference = write_reference(tmp_path / "reference", steps=40)
    for steps in (15, 20):
        trainer = make_trainer(tmp_path / "run", reference, {"target": "reference"}, report_to=tracker, max_steps=steps)
        trainer.train()
        trainer.evaluate(selection_set(), metric_key_prefix="test")
        if tracker == "wandb":
            assert stand_in.run is None  # what comes next in this process is another run
        stand_in.run = None  # as a process ends
    assert len(stand_in.runs) > 2
    (name,) = {options["name"] for options in stand_in.runs}
    assert name.startswith("run-")
    assert {options["resume"] for options in stand_in.runs} == {"allow"}
    if tracker == "wandb":
        assert {options["id"] for options in stand_in.runs} == {name}
    losses = [item["train/global_step"] for item in stand_in.told if "eval/loss" in item]
    assert losses == [5, 10, 15, 20]
    assert [item["train/global_step"] for item in stand_in.told if "train/reference_loss" in item] == [0]
    assert [item["train/global_step"] for item in stand_in.told if "test/loss" in item] == [15, 20]
    make_trainer(tmp_path / "other" / "run", reference, report_to=tracker, max_steps=2).train()
    assert stand_in.runs[-1]["name"] != name


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
