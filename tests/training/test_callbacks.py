"""Callbacks: progress of a round, signals, trackers that see one run, and lazy layers measured while it trains."""

import importlib.machinery
import importlib.util
import os
import signal
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
import tiny
import torch
from tiny import VOCABULARY, make_trainer, saved_log, selection_set, weights_hash, write_reference
from torch._dynamo.utils import counters
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from inheritune_hf import ReferenceLossStopCallback
from inheritune_hf.analysis import measure_collapse
from inheritune_hf.data import CausalCollator
from inheritune_hf.forecast import Forecast
from inheritune_hf.training import CollapseCallback
from inheritune_hf.training.callbacks import RoundCallback, RoundProgress, figures
from inheritune_hf.training.speed import compile_blocks


class Arguments:
    world_size = 1


def test_the_bar_of_an_evaluation_has_a_name(capsys):
    """While a model is evaluated a bar says so, and nothing of it is left afterwards."""
    bar, state = RoundProgress(), TrainerState(is_world_process_zero=True)
    for _ in range(2):
        bar.on_prediction_step(None, state, TrainerControl(), eval_dataloader=[1, 2])
    assert "evaluating: 100%" in bar.prediction_bar.__str__()
    bar.on_evaluate(None, state, TrainerControl())
    assert capsys.readouterr().err.endswith("\r")


def test_progress_bar_covers_one_round(capsys):
    """The bar counts the round's steps, names it, and shows losses without breaking the line."""
    bar = RoundProgress()
    bar.description, bar.start_step = "round 2 · 6 layers", 10
    state = TrainerState(global_step=12, max_steps=20, is_world_process_zero=True)
    bar.on_train_begin(None, state, TrainerControl())
    assert (bar.training_bar.total, bar.training_bar.n) == (10, 2)
    state.global_step = 15
    bar.on_step_end(None, state, TrainerControl())
    assert bar.training_bar.n == 5
    bar.on_log(None, state, TrainerControl(), {"loss": 3.25})
    bar.on_log(None, state, TrainerControl(), {"eval_loss": 3.5})
    forecast = Forecast(15, 20, 3.25, 3.0, 3.75, 0.25)
    bar.on_log(None, state, TrainerControl(), forecast.logged())
    bar.on_train_end(None, state, TrainerControl())
    shown = capsys.readouterr()
    assert "round 2 · 6 layers" in shown.err
    assert "step 15 · selection loss 3.5000 nats/token (perplexity 33.12)" in shown.out + shown.err
    assert str(forecast) in shown.out + shown.err


class NotebookProgressCallback(TrainerCallback):
    """Transformers' own for notebooks, by its name: it can be imported in a notebook alone."""


def test_a_notebook_has_the_same_bars(tmp_path):
    """Transformers' table for notebooks, which knows one training, gives way to a bar for each round, with its name."""
    trainer = make_trainer(tmp_path / "run", write_reference(tmp_path / "r"), callbacks=[NotebookProgressCallback()])
    trainer.describe_round()
    bars = [item for item in trainer.callback_handler.callbacks if isinstance(item, RoundProgress)]
    assert {bar.description for bar in bars} == {"round 1 · 1 layers"}
    assert not any(isinstance(item, NotebookProgressCallback) for item in trainer.callback_handler.callbacks)


def test_last_step_of_a_round_sets_every_flag():
    """The step that ends a round is logged, evaluated and saved, and training stops."""
    control = RoundCallback().on_step_end(Arguments(), TrainerState(global_step=5, max_steps=5), TrainerControl())
    assert control.should_log
    assert control.should_evaluate
    assert control.should_save
    assert control.should_training_stop


def test_signal_is_asked_once_and_acts_at_once_the_second_time():
    """The first signal is noted; handlers are then those of before, so that a second one acts as it would have."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    callback = RoundCallback()
    with callback.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        control = callback.on_step_end(Arguments(), TrainerState(global_step=1, max_steps=5), TrainerControl())
    assert callback.interrupted
    assert control.should_save
    assert control.should_training_stop
    assert not control.should_evaluate


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_step_is_not_lost(number):
    """What the last step's evaluation took the signal for is handed on: nothing else begins."""
    callback = RoundCallback()

    def last_step():
        with callback.listening():
            callback.on_step_end(Arguments(), TrainerState(global_step=5, max_steps=5), TrainerControl())
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt, match="after the last step"):
        last_step()
    assert not callback.interrupted


def test_other_threads_do_not_listen():
    """Outside the main thread, where Python takes no signals, training works without listening."""
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with RoundCallback().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def evaluate(callback, loss):
    return callback.on_evaluate(None, TrainerState(), TrainerControl(), {"eval_loss": loss}).should_training_stop


def test_reference_loss_stops_any_trainer_after_two_matches_in_a_row():
    """One match is not enough, and a miss between two starts the count again."""
    callback = ReferenceLossStopCallback(target=3.0, tolerance=0.1)
    assert [evaluate(callback, loss) for loss in (3.2, 3.05, 3.2, 3.1, 2.9)] == [False, False, False, False, True]
    assert callback.matched


def test_reference_loss_callback_survives_a_resume():
    """What it exports rebuilds it in the state it was in."""
    callback = ReferenceLossStopCallback(target=3.0, evaluations=3)
    evaluate(callback, 2.0)
    exported = callback.state()
    again = ReferenceLossStopCallback(**exported["args"])
    for name, value in exported["attributes"].items():
        setattr(again, name, value)
    assert [evaluate(again, 2.0), evaluate(again, 2.0)] == [False, True]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": 0}, "target must be above 0 nats per token, got 0"),
        ({"target": 1.0, "tolerance": -1}, "tolerance must be 0 nats per token or more, got -1"),
        ({"target": 1.0, "evaluations": 0}, "evaluations must be 1 or more, got 0"),
    ],
)
def test_reference_loss_callback_refuses_values(values, message):
    """A value that cannot be used says what came."""
    with pytest.raises(ValueError, match=message):
        ReferenceLossStopCallback(**values)


def test_reference_loss_callback_names_the_metrics_there_are(caplog):
    """Evaluations of other sets are left alone; a metric that no evaluation had is named when training ends."""
    callback = ReferenceLossStopCallback(1.0)
    given = (None, TrainerState(), TrainerControl())
    assert not callback.on_evaluate(*given, {"eval_other": 1.0}).should_training_stop
    callback.on_train_end(*given)
    assert "There was no eval_loss among the metrics ['eval_other']; name one of them." in caplog.text
    caplog.clear()
    evaluate(callback, 5.0)
    callback.on_train_end(*given)
    assert not caplog.text


def test_reference_loss_stops_a_plain_trainer(tmp_path):
    """It works in Transformers' own trainer."""
    trainer = Trainer(
        model=tiny.reference_model(),
        args=tiny.arguments(tmp_path, max_steps=40, save_strategy="no"),
        train_dataset=tiny.train_set(),
        eval_dataset=tiny.selection_set(lengths=(16,)),
        data_collator=CausalCollator(0),
        callbacks=[ReferenceLossStopCallback(target=10.0)],
    )
    trainer.train()
    assert trainer.state.global_step == 10


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
    heard = []

    class Listener(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "round/loss" in logs:
                heard.append((state.global_step, logs["round/layers"]))

    reference = write_reference(tmp_path / "reference")
    make_trainer(tmp_path / "run", reference, callbacks=[Listener()]).train()
    make_trainer(tmp_path / "run", reference, callbacks=[Listener()]).train()
    assert heard == [(10, 1), (20, 2), (30, 3)]


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
    callback.on_evaluate(
        None, TrainerState(is_world_process_zero=False), control, model="model", metrics={"eval_loss": 1.0}
    )
    callback.on_evaluate(
        None, TrainerState(is_world_process_zero=True), control, model="model", metrics={"test_loss": 1.0}
    )
    callback.on_evaluate(
        None, TrainerState(is_world_process_zero=True), control, model=None, metrics={"eval_loss": 1.0}
    )
    callback.on_train_end(None, TrainerState(is_world_process_zero=False), control, model="model")
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
