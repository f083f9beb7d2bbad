"""Callbacks: end rounds, stop on a signal, show one continuous run to trackers, measure collapse, stop at a loss."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.trainer_callback import CallbackHandler, ExportableState

from ..analysis import NEAR_RANK_ONE, CollapseReport, compare_laziness, measure_collapse
from ..analysis.sequences import as_tokens
from ..evaluation import LazinessComparison
from ..forecast import Forecast
from ..records import loss_text, write_json
from ..run_folder import RUN_FOLDER

logger = logging.getLogger(__name__)


class RoundCallback(TrainerCallback):
    """Log, evaluate, save and stop at the last step of a round; save and stop when an interruption was asked for."""

    def __init__(self) -> None:
        self.interrupted = False
        self._asked = False

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

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Set the flags of the step that ends a round, or of the step after which the run was asked to stop."""
        if state.global_step >= state.max_steps:
            control.should_log = control.should_evaluate = control.should_save = True
            control.should_training_stop = True
        elif self._any_process_asked(args):
            self.interrupted = True
            control.should_save = control.should_training_stop = True
        return control

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
        self._seen, self._others = False, set[str]()

    @property
    def matched(self) -> bool:
        """Whether enough evaluations in a row matched."""
        return self.in_a_row >= self.evaluations

    def on_evaluate(
        self, args: Any, state: Any, control: TrainerControl, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> TrainerControl:
        """Count evaluations that match and stop training when there are enough in a row; others are left alone."""
        if metrics is None or self.metric not in metrics:
            self._others.update(metrics or {})  # of another set, or of a call with another prefix
            return control
        self._seen = True
        self.in_a_row = self.in_a_row + 1 if metrics[self.metric] <= self.target + self.tolerance else 0
        if self.matched:
            control.should_training_stop = control.should_save = True
        return control

    def on_train_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Warn if no evaluation had the metric, so that nothing could stop the training."""
        if self._others and not self._seen:
            logger.warning("There was no %s among the metrics %s; name one of them.", self.metric, sorted(self._others))

    def state(self) -> dict[str, Any]:
        """Return what a resumed run restores."""
        given = ("target", "tolerance", "evaluations", "metric")
        return {"args": {name: getattr(self, name) for name in given}, "attributes": {"in_a_row": self.in_a_row}}


class RoundProgress(ProgressCallback):
    """One progress bar for each round, with its depth and the time left."""

    description = ""
    start_step = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Open the bar of the round that begins."""
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps - self.start_step,
                initial=state.global_step - self.start_step,
                desc=self.description,
                dynamic_ncols=True,
            )
        self.current_step = state.global_step

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Count an evaluation's batches on a bar with a name, which goes when the evaluation ends."""
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)  # type: ignore[no-untyped-call]
        bar: Any = self.prediction_bar
        if bar is not None and bar.n == 1:
            bar.leave = False
            bar.set_description_str("evaluating")

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Show the training loss on the bar, and each evaluation and forecast on a line of its own."""
        bar: Any = self.training_bar
        if bar is None or not logs:
            return
        if "loss" in logs:
            bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")
        if "eval_loss" in logs:
            bar.write(f"step {state.global_step} · selection loss {loss_text(logs['eval_loss'])}")
        forecast = Forecast.from_log(logs)
        if forecast is not None:
            bar.write(str(forecast))


#: Events after which Trainer looks whether to save, or to stop.
_STOPPING = ("on_step_end", "on_log", "on_evaluate", "on_epoch_end")
#: Events after which it logs, evaluates and saves.
_REPORTING = ("on_step_end", "on_epoch_end")


class RoundsCallbackHandler(CallbackHandler):
    """
    Show callbacks one beginning and one end of training, for any number of rounds.

    Trackers open a run when training begins and close it when it ends; each round is a training of its own to
    `Trainer`. Only progress bars are called in every round. All processes call `before_report` before a step is logged,
    evaluated or saved, and `after_save` when a checkpoint was written, before callbacks are called.
    """

    def __init__(self, before_report: Callable[[], None], after_save: Callable[[], None], *args: Any) -> None:
        super().__init__(*args)  # type: ignore[no-untyped-call]
        self._before_report, self._after_save = before_report, after_save
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
        """Call every callback; where one of them stops the run, it is saved there, once, and resumes from there."""
        if event == "on_save":
            self._after_save()
        changed: TrainerControl = super().call_event(event, args, state, control, **kwargs)  # type: ignore[no-untyped-call]
        if event == "on_save":
            self._saved_at = state.global_step
        elif event in _STOPPING and changed.should_training_stop and self._saved_at != state.global_step:
            changed.should_save = True
        elif event == "on_epoch_end" and changed.should_training_stop:
            # Trainer calls it after a stop within an epoch too: that step has been logged, evaluated and saved.
            changed.should_log = changed.should_evaluate = changed.should_save = False
        # The flags are the same in all processes, which log, evaluate and save together.
        if event in _REPORTING and (changed.should_log or changed.should_evaluate or changed.should_save):
            self._before_report()
        return changed

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Forward to every callback the first time, then to progress bars only."""
        first, self._running = not self._running, True
        control.should_training_stop = False
        return self._forward("on_train_begin", lambda is_bar: first or is_bar, args, state, control)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Forward to progress bars only: a round has ended, not the run."""
        return self._forward("on_train_end", lambda is_bar: is_bar, args, state, control)

    def on_run_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> TrainerControl:
        """Call every callback but progress bars, which were called for each round, when training has ended."""
        if not self._running:
            return control
        self._running = False
        return self._forward("on_train_end", lambda is_bar: not is_bar, args, state, control)

    def _forward(self, event: str, selects: Callable[[bool], bool], *arguments: Any) -> TrainerControl:
        """Call an event of the callbacks that `selects` accepts, given whether each is a progress bar."""
        everyone = self.callbacks
        self.callbacks = [item for item in everyone if selects(isinstance(item, ProgressCallback))]
        try:
            changed: TrainerControl = self.call_event(event, *arguments)
            return changed
        finally:
            self.callbacks = everyone


class CollapseCallback(TrainerCallback):
    """
    Measure how far attention has collapsed, every few evaluations and at the end, on the main process.

    Training is not changed: no random number is drawn, and the model is left as it was. A model whose parameters are
    sharded over processes (FSDP, ZeRO-3) cannot be measured in this way.

    Args:
        sequences (`torch.Tensor` of shape `(sequences, tokens)`, or rows with `input_ids`):
            Sequences of one length, not of the training set.
        every (`int`, *optional*, defaults to `1`):
            Measure at every so many evaluations.
        log (`Callable`, *optional*):
            Gets the figures: `trainer.log` hands them to the trackers.
        tolerance (`float`, *optional*, defaults to `0.5`):
            MaxRank above 1 that still counts as near rank-1.
        reference (`CollapseReport`, *optional*):
            The reference's report on the same sequences, by `measure_collapse`: with it `verdict` answers the paper's
            question.

    Attributes:
        history (`list[tuple[int, CollapseReport]]`): Optimizer steps and the student's reports.

    Raises:
        ValueError: If `every` is below 1, or the sequences cannot be measured on.
    """

    def __init__(
        self,
        sequences: Any,
        every: int = 1,
        log: Callable[[dict[str, float]], None] | None = None,
        tolerance: float = NEAR_RANK_ONE,
        reference: CollapseReport | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be 1 evaluation or more, got {every}.")
        self.sequences: Tensor = as_tokens(sequences)
        self.every = every
        self.log = log
        self.tolerance = tolerance
        self.reference = reference
        self.history: list[tuple[int, CollapseReport]] = []
        self._evaluations = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the reference's collapse, if it was measured."""
        if self.reference is not None and state.is_world_process_zero:
            self._log("reference_collapse", self.reference)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Measure the student every so many evaluations of the selection set."""
        model, metrics = kwargs.get("model"), kwargs.get("metrics") or {}
        if model is None or not state.is_world_process_zero or "eval_loss" not in metrics:
            return
        self._evaluations += 1
        if self._evaluations % self.every == 0:
            self._measure_student(model, state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Measure the student that training ends with, unless its last evaluation has just done so."""
        model, measured = kwargs.get("model"), bool(self.history) and self.history[-1][0] == state.global_step
        if model is not None and state.is_world_process_zero and not measured:
            self._measure_student(model, state.global_step)

    def verdict(self) -> LazinessComparison | None:
        """Say whether the student has fewer lazy layers than its reference; None while one is not measured."""
        if self.reference is None or not self.history:
            return None
        return compare_laziness(self.history[-1][1], self.reference, self.tolerance)

    def _measure_student(self, model: PreTrainedModel, step: int) -> None:
        report = measure_collapse(model, self.sequences, controls=False, blocks=False)
        self.history.append((step, report))
        self._log("collapse", report)

    def _log(self, prefix: str, report: CollapseReport) -> None:
        if self.log is not None:
            self.log({f"{prefix}/{name}": value for name, value in figures(report, self.tolerance).items()})


def figures(report: CollapseReport, tolerance: float = NEAR_RANK_ONE) -> dict[str, float]:
    """Return what is logged of a report; `lazy` layers have a MaxRank of 1, near rank-1 ones one within `tolerance`."""
    return {
        "layers": float(report.depth),
        "lazy": float(len(report.lazy_layers())),
        "near_rank_one": float(len(report.lazy_layers(tolerance))),
        "avg_rank": report.avg_rank(),
    }


def merge_tracker_runs(callbacks: Sequence[TrainerCallback], output_dir: Path) -> list[TrainerCallback]:
    """Return callbacks of which each tracker shows a run as one, unless its user has set it up otherwise."""
    ready: list[TrainerCallback] = []
    for item in callbacks:
        if isinstance(item, TensorBoardCallback) and item.logging_dir is None:
            # Figures may come before training begins, when it would choose the working directory.
            item.logging_dir = str(output_dir / "runs")
        ready.append(_OWN[type(item)]() if type(item) in _OWN else item)
    return ready


def run_key(output_dir: Path) -> str:
    """Return what trackers know a run by: its folder's name with a few random digits, kept in the folder."""
    path = output_dir / RUN_FOLDER / "tracked.json"
    if path.is_file():
        return str(json.loads(path.read_text(encoding="utf-8"))["name"])
    name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', output_dir.resolve().name)[:64]}-{secrets.token_hex(4)}"
    write_json(path, {"name": name})
    return name


class ContinuedWandb(WandbCallback):
    """Reopen the same run of Weights & Biases whenever there is something to log, unless another one is open."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._opened = self._ended = False

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        """Open the run by its id, then set up as Transformers does."""
        if state.is_world_process_zero and self._wandb.run is None:
            key = run_key(Path(args.output_dir or "trainer_output"))
            self._wandb.init(
                project=os.getenv("WANDB_PROJECT", "huggingface"),
                name=args.run_name or key,
                id=os.getenv("WANDB_RUN_ID") or key,
                resume="allow",
            )
            self._opened = True
        super().setup(args, state, model, **kwargs)  # type: ignore[no-untyped-call]

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, *words: Any, **named: Any) -> None:
        """Open the run, for as long as it trains."""
        self._ended = False
        super().on_train_begin(args, state, control, *words, **named)  # type: ignore[no-untyped-call]

    def on_log(self, args: TrainingArguments, state: Any, control: Any, *words: Any, **named: Any) -> None:
        """Log figures, also after training has ended; the run is closed again then."""
        super().on_log(args, state, control, *words, **named)  # type: ignore[no-untyped-call]
        if self._ended:
            self._close()

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, *words: Any, **named: Any) -> None:
        """Close what was opened here: another run of the same process is another run."""
        super().on_train_end(args, state, control, *words, **named)
        self._ended = True
        self._close()

    def _close(self) -> None:
        if self._opened:
            self._wandb.finish()
            self._opened = self._initialized = False


class ContinuedTrackio(TrackioCallback):
    """Continue the Trackio run of the same name: `run_name`, or the folder's."""

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        """Name the run, then set up as Transformers does."""
        named = copy.copy(args)
        if args.run_name is None and state.is_world_process_zero:
            named.run_name = run_key(Path(args.output_dir or "trainer_output"))
        super().setup(named, state, model, **kwargs)  # type: ignore[no-untyped-call]


_OWN: dict[type, type[TrainerCallback]] = {WandbCallback: ContinuedWandb, TrackioCallback: ContinuedTrackio}
