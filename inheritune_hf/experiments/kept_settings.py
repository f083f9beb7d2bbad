"""What a run was told, kept in its folder in the form that `--config` reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..configuration import DataConfig, InherituneConfig, RunConfig
from ..records import write_json
from ..training.identity import NUMERIC_ARGUMENTS

#: In a run's folder: reference, recipe, data and training arguments.
SETTINGS_FILE = "settings.json"

#: What says when a run evaluates and ends, beside the arguments that change its numbers.
COURSE = (
    "max_steps",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "logging_steps",
    "per_device_eval_batch_size",
    "tf32",
)


def run_settings(run: RunConfig, recipe: InherituneConfig, data: DataConfig, args: TrainingArguments) -> dict[str, Any]:
    """
    Return what a run was told, as a file for `--config` holds it.

    Args:
        run (`RunConfig`): Its reference.
        recipe (`InherituneConfig`): Its recipe.
        data (`DataConfig`): Its data.
        args (`TrainingArguments`): Its arguments; those that change its numbers, and its course.
    """
    names = [name for name in (*NUMERIC_ARGUMENTS, *COURSE) if name != "world_size"]
    told = {name: getattr(args, name) for name in names}
    values = {
        **dataclasses.asdict(run),
        **recipe.to_dict(),
        **data.to_dict(),
        **{name: getattr(value, "value", value) for name, value in told.items()},
    }
    return without_nothing(values)


def without_nothing(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those that say nothing; that means are compared is said by a confidence of none."""
    return {name: value for name, value in values.items() if value not in (None, [], {}) or name == "confidence"}


class SettingsCallback(TrainerCallback):
    """Keep a run's settings in its folder from the moment at which it begins to train."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the settings; by now it is known that the folder is this run's."""
        if state.is_world_process_zero:
            write_json(f"{args.output_dir or 'trainer_output'}/{SETTINGS_FILE}", self.settings)
