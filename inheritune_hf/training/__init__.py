"""Train and grow: the loop inside Transformers' own Trainer."""

from .arguments import check_arguments
from .callbacks import ReferenceLossStopCallback, RoundProgress, on_main_process
from .collapse import CollapseCallback
from .identity import check_output_dir, numeric_arguments
from .trainer import InherituneTrainer

__all__ = [
    "CollapseCallback",
    "InherituneTrainer",
    "ReferenceLossStopCallback",
    "RoundProgress",
    "check_arguments",
    "check_output_dir",
    "numeric_arguments",
    "on_main_process",
]
