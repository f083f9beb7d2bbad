"""Lazy layers during training: a callback that measures the student, and compares it with its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..analysis import NEAR_RANK_ONE, CollapseReport, LazinessComparison, compare_laziness, measure_collapse
from ..analysis.measurement import as_tokens


class CollapseCallback(TrainerCallback):
    """
    Measure how far attention has collapsed, every few evaluations and at the end, on the main process.

    Training is not changed: no random number is drawn, and the model is left as it was. A model whose parameters are
    sharded over processes (FSDP, ZeRO-3) cannot be measured in this way.

    Args:
        sequences (`torch.Tensor` of shape `(sequences, tokens)`, or rows with `input_ids`):
            Sequences of one length, not of the training set.
        every (`int`, *optional*, defaults to `1`):
            Measure at every so many evaluations.
        log (`Callable`, *optional*):
            Gets the figures: `trainer.log` hands them to the trackers.
        tolerance (`float`, *optional*, defaults to `0.5`):
            MaxRank above 1 that still counts as near rank-1.
        reference (`CollapseReport`, *optional*):
            The reference's report on the same sequences, by `measure_collapse`: with it `verdict` answers the paper's
            question.

    Attributes:
        history (`list[tuple[int, CollapseReport]]`): Optimizer steps and the student's reports.

    Raises:
        ValueError: If `every` is below 1, or the sequences cannot be measured on.
    """

    def __init__(
        self,
        sequences: Any,
        every: int = 1,
        log: Callable[[dict[str, float]], None] | None = None,
        tolerance: float = NEAR_RANK_ONE,
        reference: CollapseReport | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be 1 evaluation or more, got {every}.")
        self.sequences: Tensor = as_tokens(sequences)
        self.every = every
        self.log = log
        self.tolerance = tolerance
        self.reference = reference
        self.history: list[tuple[int, CollapseReport]] = []
        self._evaluations = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the trackers of the reference, if it was measured."""
        if self.reference is not None and state.is_world_process_zero:
            self._tell("reference_collapse", self.reference)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Measure the student every so many evaluations of the selection set."""
        if model is None or not state.is_world_process_zero or "eval_loss" not in (metrics or {}):
            return
        self._evaluations += 1
        if self._evaluations % self.every == 0:
            self._measure_student(model, state.global_step)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Measure the student that training ends with, unless its last evaluation has just done so."""
        measured = bool(self.history) and self.history[-1][0] == state.global_step
        if model is not None and state.is_world_process_zero and not measured:
            self._measure_student(model, state.global_step)

    def verdict(self) -> LazinessComparison | None:
        """Say whether the student has fewer lazy layers than its reference; None while one is not measured."""
        if self.reference is None or not self.history:
            return None
        return compare_laziness(self.history[-1][1], self.reference, self.tolerance)

    def _measure_student(self, model: PreTrainedModel, step: int) -> None:
        report = measure_collapse(model, self.sequences, controls=False, blocks=False)
        self.history.append((step, report))
        self._tell("collapse", report)

    def _tell(self, prefix: str, report: CollapseReport) -> None:
        if self.log is not None:
            self.log({f"{prefix}/{name}": value for name, value in figures(report, self.tolerance).items()})


def figures(report: CollapseReport, tolerance: float = NEAR_RANK_ONE) -> dict[str, float]:
    """
    Return what a tracker is told of a report.

    Args:
        report (`CollapseReport`): What was measured.
        tolerance (`float`, *optional*, defaults to `0.5`): MaxRank above 1 that still counts as near rank-1.

    Returns:
        `dict[str, float]`: `layers`, `lazy` (MaxRank 1), `near_rank_one` and `avg_rank`.
    """
    return {
        "layers": float(report.depth),
        "lazy": float(len(report.lazy_layers())),
        "near_rank_one": float(len(report.lazy_layers(tolerance))),
        "avg_rank": report.avg_rank(),
    }
