"""Train and grow: the loop inside Transformers' own Trainer."""

from .arguments import check_arguments
from .callbacks import ReferenceLossStopCallback, RoundProgress
from .growth import first_layers
from .trainer import InherituneTrainer

__all__ = ["InherituneTrainer", "ReferenceLossStopCallback", "RoundProgress", "check_arguments", "first_layers"]
