"""Callbacks that end rounds, stop on a signal, and show one continuous run to everything that listens."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm
from transformers import (
    EarlyStoppingCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import CallbackHandler, ExportableState


class RoundCallback(TrainerCallback):
    """Log, evaluate, save and stop at the last step of a round; save and stop when an interruption was asked for."""

    def __init__(self) -> None:
        self.interrupted = False
        self._asked = False
        #: Parameters that are left alone before `frozen_until`, a step counted over all rounds.
        self.frozen: frozenset[str] = frozenset()
        self.frozen_until = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """
        Turn SIGTERM and Ctrl-C into a request to finish the step, save and stop; a second one acts at once.

        Raises:
            KeyboardInterrupt: If the request came after the last step: what follows the training is not to begin.
        """
        self.interrupted = self._asked = False
        if threading.current_thread() is not threading.main_thread():
            yield  # Python takes signals in the main thread only
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = True
            for each, handler in before.items():
                signal.signal(each, handler)

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._asked and not self.interrupted:
            raise KeyboardInterrupt("asked to stop after the last step")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Set the flags of the step that ends a round, or of the step after which the run was asked to stop."""
        if state.global_step >= state.max_steps:
            control.should_log = control.should_evaluate = control.should_save = True
            control.should_training_stop = True
        elif self._any_process_asked(args):
            self.interrupted = True
            control.should_save = control.should_training_stop = True
        return control

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Take the gradients of frozen parameters away: the optimizer then passes over them, decay included."""
        if state.global_step < self.frozen_until:
            # FSDP hands on a compiled model as it is, and that one's names are others.
            for name, parameter in getattr(model, "_orig_mod", model).named_parameters():
                if name in self.frozen:
                    parameter.grad = None

    def _any_process_asked(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            return self._asked
        # Processes get the signal at different steps: they must agree on the one to stop after.
        asked: list[bool] = gather_object([self._asked])
        return any(asked)


class ReferenceLossStopCallback(TrainerCallback, ExportableState):
    """
    Stop any trainer once its evaluation loss matches a reference's: the stop rule of the loop for other trainers.

    Args:
        target (`float`): Loss to reach, in nats per token.
        tolerance (`float`, *optional*, defaults to `0.01`): Nats per token above the target that still match.
        evaluations (`int`, *optional*, defaults to `2`):
            Evaluations in a row that must match, so that looking often does not buy a match.
        metric (`str`, *optional*, defaults to `"eval_loss"`): Logged figure that is compared.

    Raises:
        ValueError: If a value cannot be used.
    """

    def __init__(self, target: float, tolerance: float = 0.01, evaluations: int = 2, metric: str = "eval_loss") -> None:
        if not target > 0:
            raise ValueError(f"target must be above 0 nats per token, got {target!r}.")
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be 0 nats per token or more, got {tolerance!r}.")
        if evaluations < 1:
            raise ValueError(f"evaluations must be 1 or more, got {evaluations!r}.")
        self.target, self.tolerance, self.evaluations, self.metric = target, tolerance, evaluations, metric
        self.in_a_row = 0

    @property
    def matched(self) -> bool:
        """Whether enough evaluations in a row matched."""
        return self.in_a_row >= self.evaluations

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> TrainerControl:
        """
        Count evaluations that match and stop training when there are enough in a row.

        Raises:
            ValueError: If the metric was not evaluated.
        """
        if metrics is None or self.metric not in metrics:
            raise ValueError(f"There is no {self.metric} among the metrics {sorted(metrics or {})}; name one of them.")
        self.in_a_row = self.in_a_row + 1 if metrics[self.metric] <= self.target + self.tolerance else 0
        if self.matched:
            control.should_training_stop = control.should_save = True
        return control

    def state(self) -> dict[str, Any]:
        """Return what a resumed run restores."""
        return {
            "args": {
                "target": self.target,
                "tolerance": self.tolerance,
                "evaluations": self.evaluations,
                "metric": self.metric,
            },
            "attributes": {"in_a_row": self.in_a_row},
        }


class RoundProgress(ProgressCallback):
    """One progress bar for each round, with its depth and the time left."""

    description = ""
    start_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar of the round that begins."""
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps - self.start_step,
                initial=state.global_step - self.start_step,
                desc=self.description,
                dynamic_ncols=True,
            )
        self.current_step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the training loss on the bar and each evaluation on a line of its own."""
        bar: Any = self.training_bar
        if bar is None or not logs:
            return
        if "loss" in logs:
            bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")
        if "eval_loss" in logs:
            bar.write(f"step {state.global_step} · selection loss {logs['eval_loss']:.4f} nats/token")


#: Events after which Trainer looks whether to save, or to stop.
_STOPPING = ("on_step_end", "on_log", "on_evaluate", "on_epoch_end")


class RoundsCallbackHandler(CallbackHandler):
    """
    Show callbacks one beginning and one end of training, however many rounds there are.

    Trackers open a run when training begins and close it when it ends; each round is a training of its own to
    `Trainer`. Progress bars alone hear of every round.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._running = False
        self._saved_at: int | None = None

    def add_callback(self, callback: Any) -> None:
        """
        Add a callback.

        Raises:
            ValueError: If it would end a round before its steps are done, or the target is matched.
        """
        if isinstance(callback, EarlyStoppingCallback) or callback is EarlyStoppingCallback:
            raise ValueError(
                "EarlyStoppingCallback would compare evaluations of students of different depth, and a round has "
                "steps_per_round steps: leave it out, and set match_at 'evaluation' to end a round once it has matched."
            )
        super().add_callback(callback)  # type: ignore[no-untyped-call]

    def call_event(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Call every callback; where one of them stops the run, it is saved there, once: it goes on from there."""
        changed: TrainerControl = super().call_event(event, args, state, control, **kwargs)  # type: ignore[no-untyped-call]
        if event == "on_save":
            self._saved_at = state.global_step
        elif event in _STOPPING and changed.should_training_stop and self._saved_at != state.global_step:
            changed.should_save = True
        return changed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Forward to every callback the first time, then to progress bars only."""
        listeners = self._progress_bars() if self._running else self.callbacks
        self._running = True
        control.should_training_stop = False
        return self._forward("on_train_begin", listeners, args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Forward to progress bars only: a round has ended, not the run."""
        return self._forward("on_train_end", self._progress_bars(), args, state, control)

    def on_run_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> TrainerControl:
        """Tell every callback but progress bars, which have heard of it, that training has ended."""
        if not self._running:
            return control
        self._running = False
        bars = self._progress_bars()
        return self._forward(
            "on_train_end", [item for item in self.callbacks if item not in bars], args, state, control
        )

    def _progress_bars(self) -> list[TrainerCallback]:
        return [item for item in self.callbacks if isinstance(item, ProgressCallback)]

    def _forward(
        self,
        event: str,
        listeners: list[TrainerCallback],
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
    ) -> TrainerControl:
        everyone, self.callbacks = self.callbacks, listeners
        try:
            changed = self.call_event(event, args, state, control)
        finally:
            self.callbacks = everyone
        return changed


def on_main_process(decision: Any) -> Any:
    """Return the main process's `decision` on every process, so that none of them takes another path."""
    return broadcast_object_list([decision])[0]
