"""Trackers that come with Transformers: one run for them too, before training, after it, and when it goes on."""

from __future__ import annotations

import copy
import json
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, TrackioCallback, WandbCallback

from ..records import write_json
from .staging import RUN_FOLDER

#: Folder of TensorBoard's events, in a run's folder.
EVENTS_FOLDER = "runs"


def one_run(callbacks: Sequence[TrainerCallback], output_dir: Path) -> list[TrainerCallback]:
    """
    Return callbacks of which each tracker shows a run as one, in `output_dir` or under one name.

    A tracker that its user has set up otherwise stays so.

    Args:
        callbacks (sequence of `TrainerCallback`): As `Trainer` made them.
        output_dir (`Path`): Folder of the run.
    """
    ready: list[TrainerCallback] = []
    for item in callbacks:
        if isinstance(item, TensorBoardCallback) and item.logging_dir is None:
            # Figures may come before training begins, when it would choose the working directory.
            item.logging_dir = str(output_dir / EVENTS_FOLDER)
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


class OneWandbRun(WandbCallback):
    """Open the same run of Weights & Biases again whenever there is something to tell, unless another one is open."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._opened = self._ended = False

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        """Open the run by its id, then let Transformers go on."""
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
        """Tell figures, also those that come when training has ended; the run is closed again then."""
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


class OneTrackioRun(TrackioCallback):
    """Go on with the Trackio run of the same name, which is the folder's unless `run_name` says another."""

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        """Name the run, then let Transformers go on."""
        named = copy.copy(args)
        if args.run_name is None and state.is_world_process_zero:
            named.run_name = run_key(Path(args.output_dir or "trainer_output"))
        super().setup(named, state, model, **kwargs)  # type: ignore[no-untyped-call]


_OWN: dict[type, type[TrainerCallback]] = {WandbCallback: OneWandbRun, TrackioCallback: OneTrackioRun}
