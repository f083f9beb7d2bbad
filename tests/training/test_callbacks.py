"""Callbacks: progress of a round, signals, one run for everything that listens."""

import signal
import threading

from transformers import TrainerControl, TrainerState

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
        signal.raise_signal(signal.SIGINT)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        control = callback.on_step_end(Arguments(), TrainerState(global_step=1, max_steps=5), TrainerControl())
    assert callback.interrupted
    assert control.should_save
    assert control.should_training_stop
    assert not control.should_evaluate


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
