"""Callbacks: progress of a round, signals, one run for everything that listens."""

import os
import signal
import threading

import pytest
import tiny
from transformers import Trainer, TrainerControl, TrainerState

from inheritune_hf import ReferenceLossStopCallback
from inheritune_hf.data import CausalCollator
from inheritune_hf.training.callbacks import RoundCallback, RoundProgress


class Arguments:
    world_size = 1


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
    bar.on_train_end(None, state, TrainerControl())
    shown = capsys.readouterr()
    assert "round 2 · 6 layers" in shown.err
    assert "step 15 · selection loss 3.5000 nats/token" in shown.out + shown.err


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


def test_reference_loss_callback_names_the_metrics_there_are():
    """A metric that is not evaluated is an error with those that are."""
    with pytest.raises(ValueError, match=r"There is no eval_loss among the metrics \['eval_other'\]"):
        ReferenceLossStopCallback(1.0).on_evaluate(None, TrainerState(), TrainerControl(), {"eval_other": 1.0})


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
