"""Arms × seeds under one budget: plan the cells, train them one after another, choose rates, open the test set once."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, TrainingArguments

from ..analysis.recommendation import layers_by_measure
from ..analysis.sequences import leading_sequences
from ..configuration import DataConfig, InherituneConfig, RunConfig
from ..records import write_json
from ..students.estimation import operations_per_token
from ..training import check_arguments, on_main_process
from .arms import ARMS, MEASURED, Variant, check_arm, parse_arm
from .cells import Bench, Cell, CellPlan, lazy_layers, measure, operations, read_cell, run_cell, test_cell
from .embedded import EmbeddedShape, prepare_embedded
from .results import write_results
from .runs import measured_recipe, prepare_run

logger = logging.getLogger(__name__)

#: Arms that keep a comparison honest: run whether or not they are asked for, unless `controls` is off.
CONTROLS = ("continued", "random", "random-long")
RESULT_FILE = "comparison.json"
_LOOP = "inheritune"


@dataclass
class CompareConfig:
    """
    Say which arms are compared, with which seeds, under which budget.

    Raises:
        ValueError: If a value cannot be used; the message says what came and what is allowed.
    """

    arms: list[str] = field(
        default_factory=lambda: [
            "inheritune",
            "inherited",
            "random",
            "stacking",
            "hybrid-stacking",
            "half-width",
            "last",
        ],
        metadata={
            "help": f"Arms to compare, out of {', '.join(ARMS)}; with /moved-scale or /kd after the name if wanted."
        },
    )
    controls: bool = field(
        default=True,
        metadata={
            "help": "Compare with the reference trained on, with random weights, and with random weights that get the "
            "reference's own training too, whether or not arms names them."
        },
    )
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "Seeds; every arm is run with each."})
    learning_rates: list[float] = field(
        default_factory=lambda: [0.5, 1.0, 2.0],
        metadata={
            "help": "Learning rates to try with the first seed, as multiples of learning_rate; each arm goes on with "
            "the one of the lowest selection loss."
        },
    )
    budget: str = field(default="tokens", metadata={"help": "What every arm gets as much of: 'tokens' or 'flops'."})
    budget_steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps that make the budget; if not given, what the loop took over all its rounds, seed "
            "by seed."
        },
    )
    layers: int | None = field(
        default=None,
        metadata={
            "help": "Depth of the other arms' models; if not given, that of the loop's last student, seed by seed."
        },
    )
    reference_steps: int | None = field(
        default=None,
        metadata={"help": "Steps of this batch size that the reference itself was trained for; random-long needs it."},
    )

    def __post_init__(self) -> None:
        for name in ("arms", "seeds", "learning_rates"):
            values = getattr(self, name)
            if not isinstance(values, list) or not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be a list of different values, got {values!r}.")
        for arm in self.arms:
            parse_arm(arm)
        self.learning_rates = [float(rate) for rate in self.learning_rates]
        if not all(rate > 0 for rate in self.learning_rates):
            raise ValueError(f"learning_rates must be multiples above 0, got {self.learning_rates!r}.")
        if self.budget not in ("tokens", "flops"):
            raise ValueError(f"budget must be tokens or flops, got {self.budget!r}.")
        for name in ("budget_steps", "layers", "reference_steps"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}.")
        if _LOOP not in self.arms and not (self.budget_steps and self.layers):
            raise ValueError(
                "Without the arm 'inheritune' nothing says how deep the others are and how long they train: give "
                "layers and budget_steps."
            )

    def variants(self) -> list[Variant]:
        """Return the arms in the order in which they run: the loop first, because the others' budgets follow it."""
        names = [*self.arms]
        if self.controls:
            names += [name for name in CONTROLS if name not in names]
        variants = [parse_arm(name) for name in names]
        return sorted(variants, key=lambda variant: variant.arm.name != _LOOP)


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

    Each arm's learning rate is chosen on the selection set with the first seed. The test set is opened when all cells
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
        ready, steps = prepare_embedded(data, args, console, shape), steps or shape.steps
    else:
        ready = prepare_run(run, recipe, data, args)
    recipe = measured_recipe(recipe, ready.reference, ready.splits, args, **ready.kwargs)
    return Bench(ready, recipe, args, Path(args.output_dir or "trainer_output")), steps


class _Grid:
    """The cells of a comparison as they are planned and trained: depths and budgets follow the loop's cells."""

    def __init__(self, bench: Bench, compare: CompareConfig, reference_steps: int | None, console: Console) -> None:
        self.bench, self.compare, self.console = bench, compare, console
        self.reference_steps = reference_steps
        self.config = bench.ready.config
        self.reference_operations = operations_per_token(self.config, bench.ready.block_size)
        args = bench.args
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.step_tokens = batch * bench.ready.block_size
        self.reference_loss: float | None = None
        self.plans: dict[str, CellPlan] = {}
        self.sweep: dict[str, dict[float, float]] = {}
        self.left_out: dict[str, str] = {}
        self._loop: dict[int, Cell] = {}
        self._done = 0
        self._total = len(compare.variants()) * (len(compare.learning_rates) + len(compare.seeds) - 1)
        self._seconds: list[float] = []

    def run_arm(self, variant: Variant) -> list[Cell] | None:
        """Sweep the learning rate with the first seed, then run the others; None if interrupted."""
        reason = self._reason_against(variant)
        if reason:
            self.left_out[variant.name] = reason
            self.console.print(f"{variant.name} is left out: {reason}")
            self._total -= len(self.compare.learning_rates) + len(self.compare.seeds) - 1
            return []
        first, *others = self.compare.seeds
        rates = [multiple * self.bench.args.learning_rate for multiple in self.compare.learning_rates]
        swept = []
        for rate in rates:
            cell = self._run(variant, first, rate)
            if cell is None:
                return None
            swept.append(cell)
        best = min(swept, key=lambda cell: cell.selection.loss)
        self.sweep[variant.name] = {cell.learning_rate: cell.selection.loss for cell in swept}
        cells = [best]
        if variant.name == _LOOP:
            self._loop[first] = best
        for seed in others:
            cell = self._run(variant, seed, best.learning_rate)
            if cell is None:
                return None
            if variant.name == _LOOP:
                self._loop[seed] = cell
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
        """Return what a cell is to train: as deep as the loop's last student, for what the loop took."""
        compare, arm = self.compare, variant.arm
        if arm.name == _LOOP:
            return CellPlan(variant, seed, rate, 0, compare.budget_steps or 0)
        loop = self._loop.get(seed)
        student_layers = compare.layers or (loop.layers if loop else 0)
        layers = int(self.config.num_hidden_layers) if arm.whole else student_layers
        draft = CellPlan(variant, seed, rate, layers, 0)
        steps = compare.budget_steps or (loop.steps if loop else 0)
        if compare.budget == "flops":
            plain = CellPlan(parse_arm("random"), seed, rate, student_layers, 0)
            whole = loop.flops if loop and not compare.budget_steps else None
            spend = whole or steps * self.step_tokens * operations(self.bench, plain, self.config, student_layers)
            steps = max(2, round(spend / (self.step_tokens * self._mean_operations(draft))))
        steps = round(steps * arm.budgets)
        if arm.after_reference:
            steps += self.reference_steps or 0
        return replace(draft, steps=steps, chosen=self._chosen(variant, layers))

    def _mean_operations(self, plan: CellPlan) -> float:
        """Return the operations per token of an arm's model, on average over its stages."""
        depths = [plan.layers // 2, plan.layers] if plan.variant.arm.doubles else [plan.layers]
        return sum(operations(self.bench, plan, self.config, depth) for depth in depths) / len(depths)

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
                **self.bench.ready.kwargs,
            )
        kept: tuple[int, ...] = on_main_process(found)
        return tuple(layer for layer in range(depth) if layer not in kept) if opposite else kept

    def _reason_against(self, variant: Variant) -> str:
        """Return why an arm cannot be run here, or an empty string."""
        arm = variant.arm
        if arm.after_reference and not self.reference_steps:
            return "how long the reference was trained is not known; give reference_steps"
        if variant.moved_scale and not getattr(self.config, "scale_attn_by_inverse_layer_idx", False):
            return "the reference does not scale attention by depth (scale_attn_by_inverse_layer_idx)"
        if arm.build is None:
            return ""
        depths = sorted({self._plan(variant, seed, 1.0).layers for seed in self.compare.seeds})
        try:
            for layers in depths:
                check_arm(arm, self.config, layers)
        except ValueError as error:
            return str(error)
        return ""


def duration(seconds: float) -> str:
    """Return a time as people say it: `1 h 05 min`, `12 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
