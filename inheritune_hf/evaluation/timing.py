"""Timings that can be trusted on a busy machine: warmed up, interleaved, reported as medians with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """
    A figure that was measured several times.

    Args:
        median (`float`): Median.
        low (`float`): Smallest.
        high (`float`): Largest.
        repeats (`int`): How often it was measured.
    """

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of `values`."""
        return cls(statistics.median(values), min(values), max(values), len(values))


def interleaved(
    jobs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warm_up: int = 1
) -> dict[str, list[float]]:
    """
    Time jobs in turn, so that whatever slows the machine down for a while slows all of them down.

    Args:
        jobs (`Mapping[str, Callable]`): What to time, by name; the order is reversed in every second repeat.
        repeats (`int`): Times each job is timed.
        device (`torch.device`): Device whose work is waited for.
        warm_up (`int`, *optional*, defaults to `1`): Times each job is run before.

    Returns:
        `dict[str, list[float]]`: Seconds of each job, one for each repeat.

    Raises:
        ValueError: If `repeats` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}.")
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(-warm_up, repeats):
        names = list(jobs) if repeat % 2 == 0 else list(jobs)[::-1]
        for name in names:
            _wait(device)
            began = time.perf_counter()
            jobs[name]()
            _wait(device)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Return the spread of the ratios of two jobs' times, repeat by repeat."""
    return Spread.of([one / other for one, other in zip(above, below, strict=True)])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
