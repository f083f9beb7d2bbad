"""The folder of a run: the names of its files, its state, and which settings make it the run that it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .records import RecordError, RunState, read_record, write_record

#: What the loop keeps in a run's folder for itself: its state, and the students of its rounds.
RUN_FOLDER = "_inheritune"
_STATE = "state.json"

#: Reference, recipe, data and training arguments of a run.
SETTINGS_FILE = "settings.json"
#: What `inheritune evaluate` leaves in a student's folder.
EVALUATION_FILE = "evaluation.json"
#: What a comparison leaves in its folder, and each of its cells in one of its own.
RESULT_FILE = "comparison.json"
CELL_FILE = "cell.json"
LOG_FILE = "log.json"
MODEL_FOLDER = "model"

#: Arguments that change the numbers of a run.
NUMERIC_ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "use_cache",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "average_tokens_across_devices",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "world_size",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
)

#: What says where a run computes, and when it evaluates and ends, beside the arguments that change its numbers.
COURSE = (
    "max_steps",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "logging_steps",
    "per_device_eval_batch_size",
    "tf32",
    "use_cpu",
)


def without_nothing(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without empty ones, but for those whose none says something: means are compared, no teacher."""
    said = ("confidence", "distillation")
    return {name: value for name, value in values.items() if value not in (None, [], {}) or name in said}


def read_state(output_dir: Path) -> RunState | None:
    """
    Read the state of the run in `output_dir`; None if there is none.

    Raises:
        ValueError: If the folder holds checkpoints of some other training, or the state file is damaged.
    """
    path = output_dir / RUN_FOLDER / _STATE
    if not path.is_file():
        strangers = sorted(item.name for item in output_dir.glob("checkpoint-*"))
        if strangers:
            raise ValueError(
                f"{output_dir} holds another run ({', '.join(strangers[:3])}), not one of this recipe; "
                "choose another output_dir."
            )
        return None
    try:
        return read_record(RunState, path)
    except RecordError as error:
        raise ValueError(f"{error} Choose another output_dir.") from error


def write_state(output_dir: Path, state: RunState) -> None:
    """Write the state of the run in `output_dir`, atomically."""
    write_record(output_dir / RUN_FOLDER / _STATE, state)
