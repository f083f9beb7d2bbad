"""Train and grow: the loop inside Transformers' own Trainer."""

from typing import TYPE_CHECKING

from ..exports import lazy_exports

if TYPE_CHECKING:
    from .arguments import check_arguments
    from .callbacks import CollapseCallback, ReferenceLossStopCallback, RoundProgress
    from .distributed import hold_output_dir, on_main_process
    from .expansion import Baseline
    from .identity import check_output_dir, numeric_arguments
    from .trainer import InherituneTrainer
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Baseline",
    "CollapseCallback",
    "InherituneTrainer",
    "ReferenceLossStopCallback",
    "RoundProgress",
    "check_arguments",
    "check_output_dir",
    "hold_output_dir",
    "numeric_arguments",
    "on_main_process",
]
