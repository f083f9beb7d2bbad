"""Leave no trace: random states and modes as they were before something was measured."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """
    Put back the random states of Python, NumPy and PyTorch, and the models' training modes, whatever happens inside.

    Args:
        models (`torch.nn.Module`): Models whose modules' modes, evaluation or training, are kept.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, training in modes:
            module.training = training
