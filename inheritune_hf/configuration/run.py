"""Which reference a run starts from, and what is done beside its rounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .reading import positive

#: What the embedded run sets unless the user says otherwise: names of recipe and training arguments.
EMBEDDED_DEFAULTS: dict[str, Any] = {
    "keep_layers": "half",
    "steps_per_round": 120,
    "output_dir": "inheritune-demo",
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "learning_rate": 2e-3,
    "warmup_steps": 0.1,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "eval_strategy": "steps",
    "eval_steps": 60,
    "save_steps": 60,
    "logging_steps": 10,
    "save_total_limit": 1,
}


@dataclass
class RunConfig:
    """
    Say which reference a run starts from, and what a launcher is told at its end.

    Raises:
        ValueError: If a value cannot be used; the message says what came and what is allowed.
    """

    reference: str | None = field(
        default=None,
        metadata={"help": "Hub id or path of the reference; the embedded default runs offline if none is given."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the reference on the Hub."})
    collapse_every: int | None = field(
        default=None,
        metadata={"help": "Measure the student's lazy layers at every so many evaluations; never if not given."},
    )
    reference_cache: bool = field(
        default=True,
        metadata={
            "help": "Take the reference's loss from the user's cache if it was measured before on the same data, and "
            "keep it there."
        },
    )
    require_match: bool = field(
        default=False, metadata={"help": "Let the example script end with the outcome's status, not 0, on a miss."}
    )

    def __post_init__(self) -> None:
        if self.collapse_every is not None:
            positive("collapse_every", self.collapse_every)
