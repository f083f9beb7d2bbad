"""Arms × seeds under one budget: plan the cells, train them one after another, choose rates, open the test set once."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import AutoModelForCausalLM, TrainingArguments

from ..analysis.measurement import scores_folder
from ..analysis.recommendation import layers_by_measure
from ..analysis.sequences import leading_sequences
from ..configuration import DataConfig, InherituneConfig, RunConfig
from ..records import write_json
from ..students.estimation import operations_per_token
from ..training import check_arguments, on_main_process
from ..training.distillation import compares_states
from .arms import MEASURED, Variant
from .budgets import LOOP, CompareConfig, Terms, Took, plan_cell, reason_against
from .cells import Bench, Cell, CellPlan, lazy_layers, measure, read_cell, run_cell, test_cell
from .embedded import EmbeddedShape, prepare_embedded
from .kept_settings import run_settings, without_nothing
from .results import write_results
from .runs import measured_recipe, prepare_run

logger = logging.getLogger(__name__)

RESULT_FILE = "comparison.json"


@dataclass(frozen=True)
class ComparisonResult:
    """
    What a comparison left.

    Args:
        complete (`bool`): Whether all cells were run; if not, the same call goes on.
        folder (`Path`): Folder with `comparison.json`, the table, the curves and the cells.
    """

    complete: bool
    folder: Path


def run_comparison(
    compare: CompareConfig,
    run: RunConfig,
    recipe: InherituneConfig,
    data: DataConfig,
    args: TrainingArguments,
    console: Console,
    shape: EmbeddedShape | None = None,
) -> ComparisonResult:
    """
    Train every arm with every seed under one budget, and write table, curves and records: `inheritune compare`.

    Each arm's learning rate is chosen on the selection set with the first seed: the lowest loss; of the loop, the
    shallowest match, since a rate that missed has grown deeper. The test set is opened when all cells
    are trained, for the chosen ones only. What is finished is not run again; an interrupted cell goes on.

    Args:
        compare (`CompareConfig`): Arms, seeds and budget.
        run (`RunConfig`): The reference; without one, the embedded default's.
        recipe (`InherituneConfig`): The loop's recipe.
        data (`DataConfig`): The data of every arm.
        args (`TrainingArguments`): Their settings; `output_dir` is the comparison's folder.
        console (`rich.console.Console`): Where progress and the table are shown; of the main process.
        shape (`EmbeddedShape`, *optional*): Sizes of the embedded reference.

    Raises:
        ValueError: If settings, data and reference do not fit together; nothing has been trained then.
    """
    check_arguments(args, recipe)
    bench, reference_steps = _bench(compare, run, recipe, data, args, console, shape)
    grid = _Grid(bench, compare, reference_steps, console)
    chosen: list[Cell] = []
    for variant in compare.variants():
        cells = grid.run_arm(variant)
        if cells is None:
            return ComparisonResult(False, bench.folder)
        chosen += cells
    console.rule("test")
    tested = [test_cell(bench, grid.plans[cell.folder], cell) for cell in chosen]
    auto: Any = AutoModelForCausalLM
    reference = auto.from_pretrained(bench.ready.reference, dtype=torch.float32, **bench.ready.kwargs)
    facts = {
        "compare": asdict(compare),
        "recipe": recipe.to_dict(),
        "settings": {**run_settings(run, bench.recipe, data, args), **without_nothing(asdict(compare))},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "reference": {
            "name": bench.ready.reference,
            "layers": int(grid.config.num_hidden_layers),
            "parameters": reference.num_parameters(),
            "steps": reference_steps,
            "tokens": None if reference_steps is None else reference_steps * grid.step_tokens,
            "flops": None
            if reference_steps is None
            else reference_steps * grid.step_tokens * grid.reference_operations,
            "selection_loss": grid.reference_loss,
            "lazy_layers": on_main_process(lazy_layers(bench, reference)),
            "test": measure(bench, reference).to_dict(),
        },
        "data": bench.ready.splits.facts.to_dict(),
        "sweep": {name: {f"{rate:g}": loss for rate, loss in losses.items()} for name, losses in grid.sweep.items()},
        "left_out": grid.left_out,
        "cells": [cell.to_dict() for cell in tested],
    }
    if args.should_save:
        write_json(bench.folder / RESULT_FILE, facts)
        console.print(write_results(bench.folder))
    return ComparisonResult(True, bench.folder)


def _bench(
    compare: CompareConfig,
    run: RunConfig,
    recipe: InherituneConfig,
    data: DataConfig,
    args: TrainingArguments,
    console: Console,
    shape: EmbeddedShape | None,
) -> tuple[Bench, int | None]:
    steps = compare.reference_steps
    if run.reference is None:
        shape = shape or EmbeddedShape()
        ready = prepare_embedded(recipe, data, args, console, shape)
        steps = steps or shape.steps
    else:
        ready = prepare_run(run, recipe, data, args)
    recipe = measured_recipe(recipe, ready.reference, ready.splits, args, **ready.kwargs)
    return Bench(ready, recipe, args, Path(args.output_dir or "trainer_output")), steps


class _Grid:
    """The cells of a comparison as they are planned and trained: depths and budgets follow the loop's cells."""

    def __init__(self, bench: Bench, compare: CompareConfig, reference_steps: int | None, console: Console) -> None:
        self.bench, self.compare, self.console = bench, compare, console
        self.config = bench.ready.config
        self.reference_operations = operations_per_token(self.config, bench.ready.block_size)
        args = bench.args
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.step_tokens = batch * bench.ready.block_size
        self.terms = Terms(
            compare,
            self.config,
            bench.ready.block_size,
            self.step_tokens,
            reference_steps,
            compares_states(bench.recipe),
        )
        self.reference_loss: float | None = None
        self.plans: dict[str, CellPlan] = {}
        self.sweep: dict[str, dict[float, float]] = {}
        self.left_out: dict[str, str] = {}
        self._took: dict[int, Took] = {}
        self._done = 0
        self._total = len(compare.variants()) * compare.cells
        self._seconds: list[float] = []

    def run_arm(self, variant: Variant) -> list[Cell] | None:
        """Sweep the learning rate with the first seed, then run the others; None if interrupted."""
        reason = reason_against(self.terms, variant, [self._took.get(seed) for seed in self.compare.seeds])
        if reason:
            self.left_out[variant.name] = reason
            self.console.print(f"{variant.name} is left out: {reason}")
            self._total -= self.compare.cells
            return []
        first, *others = self.compare.seeds
        rates = [multiple * self.bench.args.learning_rate for multiple in self.compare.learning_rates]
        swept = []
        for rate in rates:
            cell = self._run(variant, first, rate)
            if cell is None:
                return None
            swept.append(cell)
        best = best_cell(swept)
        self.sweep[variant.name] = {cell.learning_rate: cell.selection.loss for cell in swept}
        cells = [best]
        if variant.name == LOOP:
            self._took[first] = Took(best.layers, best.steps, best.flops)
        for seed in others:
            cell = self._run(variant, seed, best.learning_rate)
            if cell is None:
                return None
            if variant.name == LOOP:
                self._took[seed] = Took(cell.layers, cell.steps, cell.flops)
            cells.append(cell)
        return cells

    def _run(self, variant: Variant, seed: int, rate: float) -> Cell | None:
        plan = self._plan(variant, seed, rate)
        self.plans[plan.folder] = plan
        self._done += 1
        found = read_cell(self.bench.folder / plan.folder)
        if found is None:
            self.console.rule(f"{self._done} of {self._total} · {variant.name} · seed {seed} · {rate:g}{self._left()}")
        began = time.monotonic()
        cell = run_cell(self.bench, plan)
        if cell is not None:
            self.reference_loss = cell.reference_loss
            if found is None:
                self._seconds.append(time.monotonic() - began)
        return cell

    def _left(self) -> str:
        """Return the time left as the cells that were trained here suggest, if any were."""
        if not self._seconds:
            return ""
        mean = sum(self._seconds) / len(self._seconds)
        return f" · about {duration(mean * (self._total - self._done + 1))} left"

    def _plan(self, variant: Variant, seed: int, rate: float) -> CellPlan:
        """Return what a cell is to train, with the layers that a measure chooses for it."""
        plan = plan_cell(self.terms, variant, seed, rate, self._took.get(seed))
        return replace(plan, chosen=self._chosen(variant, plan.layers))

    def _chosen(self, variant: Variant, layers: int) -> tuple[int, ...]:
        """Return the layers that a measure calls for, measured on the selection set."""
        if variant.arm.name not in MEASURED:
            return ()
        measure_name, opposite = MEASURED[variant.arm.name]
        depth = int(self.config.num_hidden_layers)
        if opposite and layers == depth:
            return tuple(range(depth))
        found = None
        if self.bench.args.process_index == 0:
            found = layers_by_measure(
                self.bench.ready.reference,
                measure_name,
                depth - layers if opposite else layers,
                leading_sequences(self.bench.ready.splits.selection),
                cache_dir=scores_folder(),
                **self.bench.ready.kwargs,
            )
        kept: tuple[int, ...] = on_main_process(found)
        return tuple(layer for layer in range(depth) if layer not in kept) if opposite else kept


def best_cell(swept: list[Cell]) -> Cell:
    """Return the cell whose learning rate its arm goes on with: the shallowest match of a loop, or the lowest loss."""
    return min(swept, key=lambda cell: (cell.layers if cell.outcome == "matched" else sys.maxsize, cell.selection.loss))


def duration(seconds: float) -> str:
    """Return a time as people say it: `1 h 05 min`, `12 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
