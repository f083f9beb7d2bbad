"""How long a training step takes on this machine, measured on a few shallow students and extrapolated in depth."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from .config_fields import sliced_config
from .memory import (
    DTYPES,
    MIXED_PRECISIONS,
    TrainingSetup,
    around_loss,
    checkpoint_blocks,
    make_optimizer,
    planned_loss,
    vocabulary,
)

# Layers between the two depths that are measured.
_STRIDE = 2


@dataclass(frozen=True)
class StepTime:
    """
    How long one optimizer step takes on one process.

    Args:
        outside (`float`): Seconds for what does not grow with depth: embeddings, head, loss, their update.
        per_layer (`float`): Seconds that each layer adds.
        depths (`tuple[int, ...]`): Depths that were measured, in layers.
        steps (`int`): Steps measured at each depth; the median counts.
        device (`str`): Where they ran, such as `cpu` or `cuda`.
    """

    outside: float
    per_layer: float
    depths: tuple[int, ...]
    steps: int
    device: str

    def seconds(self, layers: int) -> float:
        """Return the seconds of one step of a student of `layers` layers: measured or extrapolated."""
        return self.outside + self.per_layer * layers


def measure_step(
    config: PreTrainedConfig, layers: Sequence[int], setup: TrainingSetup, steps: int = 3, loss: str = "auto"
) -> StepTime:
    """
    Train students of the planned shape for a few steps on this machine, on random tokens and from random weights.

    Only shallow students are trained, of the first of the planned layers and of two more, so that it is quick and takes
    little memory; a deeper student is taken to add as much time for each layer. Nothing is read or downloaded.

    Args:
        config (`PreTrainedConfig`): The reference's config.
        layers (sequence of `int`): Layers of the deepest planned student, 0-based, ascending.
        setup (`TrainingSetup`): How students are trained; one process is measured.
        steps (`int`, *optional*, defaults to `3`): Steps to measure at each depth, after one that is not counted.
        loss (`str`, *optional*, defaults to `"auto"`): How the loss is computed, as in the recipe.

    Returns:
        `StepTime`: Seconds of one optimizer step.

    Raises:
        ImportError: If the optimizer's package is not installed.
    """
    shallow = next(count for count in range(1, len(layers) + 1) if _is_cuttable(config, layers[:count]))
    depths = sorted({shallow, min(shallow + _STRIDE, len(layers))})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    method = planned_loss(config, setup, loss)
    seconds = [_step_seconds(sliced_config(config, layers[:depth]), setup, steps, device, method) for depth in depths]
    # Neither a layer nor what is around it saves time, though on a busy machine it may seem so.
    per_layer = (seconds[-1] - seconds[0]) / max(1, depths[-1] - depths[0])
    per_layer = min(max(0.0, per_layer), seconds[-1] / depths[-1])
    return StepTime(seconds[-1] - per_layer * depths[-1], per_layer, tuple(depths), steps, device)


def _is_cuttable(config: PreTrainedConfig, layers: Sequence[int]) -> bool:
    try:
        sliced_config(config, layers)
    except ValueError:  # such as convolutions without a layer that attends
        return False
    return True


def _step_seconds(config: PreTrainedConfig, setup: TrainingSetup, steps: int, device: str, method: str) -> float:
    """Return the median seconds of an optimizer step with all its forward and backward passes."""
    factory: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        model = factory.from_config(copy.deepcopy(config), dtype=DTYPES[setup.dtype]).to(device).train()
        if setup.gradient_checkpointing:
            checkpoint_blocks(model)
        optimizer = make_optimizer(model, setup.optim)
        dtype = MIXED_PRECISIONS.get(setup.mixed_precision or "")
        amp = nullcontext if dtype is None else partial(torch.autocast, device, dtype)
        ids = torch.randint(vocabulary(config), (setup.batch_size, setup.block_size), device=device)
        passes, updates = [], []
        for _ in range(1 + steps):
            began = _now(device)
            with amp(), around_loss(model, method):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            done = _now(device)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.zero_grad()
            passes.append(done - began)
            updates.append(_now(device) - done)
    return setup.accumulation * statistics.median(passes[1:]) + statistics.median(updates[1:])


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
