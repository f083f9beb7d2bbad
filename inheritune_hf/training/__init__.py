"""Train and grow: the loop inside Transformers' own Trainer."""

from .callbacks import RoundProgress
from .trainer import InherituneTrainer

__all__ = ["InherituneTrainer", "RoundProgress"]
