"""Arms × seeds under one budget: what each cell trains and for how long, what that would take, and the comparison."""

from __future__ import annotations

import contextlib
import importlib
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    ProgressCallback,
    TrainingArguments,
)
from transformers.integrations.integration_utils import SwanLabCallback, WandbCallback

from ..analysis import NEAR_RANK_ONE, measure_collapse, resolve_measured, sample_sequences, scores_folder
from ..arms import CONTROLS, LOOP, Variant, parse_arm
from ..config import CompareConfig, DataConfig, InherituneConfig, RunConfig
from ..data import CausalCollator
from ..evaluation import ValidatedTrainer
from ..growth import planned_rounds, rule_from_recipe
from ..records import Validation, encode, hold_folder, write_json, write_record
from ..run_folder import CELL_FILE, LOG_FILE, MODEL_FOLDER, RESULT_FILE, RUN_FOLDER, without_nothing
from ..students import (
    MemoryEstimate,
    OpenedReference,
    Reference,
    StepTime,
    TrainingSetup,
    inspect_architecture,
    measure_step,
    open_reference,
    sliced_config,
)
from ..students.estimates import (
    fitted,
    operations_per_token,
    planned_loss,
    refuse_two_throughputs,
    step_tokens,
    student_memory,
    training_loss,
    training_operations,
)
from ..training import InherituneTrainer, check_arguments, on_main_process
from ..training.checkpoints import check_identity, last_checkpoint
from ..training.distillation import compares_states
from .arms import ArmInputs, arm_baseline, check_arm, shape_of
from .controls import with_changes
from .embedded import EmbeddedShape, prepare_embedded
from .results import Cell, read_cell, write_results
from .runs import PreparedRun, measured_recipe, prepare_run, run_settings

logger = logging.getLogger(__name__)

# Settings of the recipe that say what the loop inherits and how it grows, and so nothing about other arms.
_OF_THE_LOOP = (
    "inherit",
    "attention_scale",
    "schedule",
    "growth",
    "new_blocks",
    "optimizer_state",
    "lr_schedule",
    "match_at",
)

#: What `/kd` trains with unless the recipe says otherwise (arXiv 2404.08634v4, F.2: 0.6 and 0.4 at temperature 1).
PAPER_DISTILLATION = "cross_entropy=0.6,forward_kl=0.4"


def variants_of(compare: CompareConfig) -> list[Variant]:
    """Return the arms in the order in which they run: the loop first, because the others' budgets follow it."""
    names = dict.fromkeys([*compare.arms, *(CONTROLS if compare.controls else ())])
    return sorted(map(parse_arm, names), key=lambda variant: variant.arm.name != LOOP)


# What each cell trains, and for how long


@dataclass(frozen=True)
class LoopCost:
    """
    What the loop came to with one seed, which the other arms' depths and budgets follow.

    Args:
        layers (`int`): Depth of its last student, in layers.
        steps (`int`): Optimizer steps of all its rounds.
        flops (`float`): Floating-point operations of all its rounds.
    """

    layers: int
    steps: int
    flops: float


@dataclass(frozen=True)
class CellPlan:
    """
    What a cell is to train.

    Args:
        variant (`Variant`): The arm.
        seed (`int`): Its seed.
        learning_rate (`float`): Peak learning rate.
        layers (`int`): Depth of the final model; 0 leaves it to the loop.
        steps (`int`): Optimizer steps that it may take; 0 leaves them to the loop.
        chosen (`tuple[int, ...]`): Layers that a measure chose, for arms that go by one.
    """

    variant: Variant
    seed: int
    learning_rate: float
    layers: int
    steps: int
    chosen: tuple[int, ...] = ()

    @property
    def folder(self) -> str:
        """Name of the cell's folder, told by arm, seed and learning rate."""
        return f"{self.variant.name.replace('/', '-')}-seed{self.seed}-lr{self.learning_rate:g}"

    def recipe(self, recipe: InherituneConfig) -> InherituneConfig:
        """
        Return the rounds of the cell: the recipe's own for the loop, one for each stage for other arms.

        Unless the recipe says otherwise the loop's data continue from round to round, as those of other arms do from
        stage to stage: all of them see equally many distinct batches.
        """
        distillation = (recipe.distillation or PAPER_DISTILLATION) if self.variant.distilled else None
        recipe = replace(recipe, distillation=distillation)
        if self.variant.arm.is_loop:
            return replace(recipe, data_order=recipe.data_order or "continue")
        stages = self.variant.arm.stages
        # What the loop does between rounds is its own; how a model is trained and judged is every arm's.
        plain = InherituneConfig()
        return replace(
            recipe,
            keep_layers=self.layers // stages,
            grow_by=max(1, self.layers - self.layers // stages),
            max_layers=self.layers,
            steps_per_round=self.steps // stages,
            data_order="continue",
            **{name: getattr(plain, name) for name in _OF_THE_LOOP},
        )


@dataclass(frozen=True)
class Budget:
    """
    What the depths and steps of a comparison's cells follow from.

    Args:
        compare (`CompareConfig`): Arms, seeds and budget.
        config (`PreTrainedConfig`): The reference's config.
        block_size (`int`): Tokens of one sequence.
        step_tokens (`int`): Tokens of one optimizer step, over all processes.
        reference_steps (`int`, *optional*): Steps that the reference was trained for, if that is known.
        states (`bool`): Whether `/kd` compares hidden states, which takes models as wide as the reference.
    """

    compare: CompareConfig
    config: PreTrainedConfig
    block_size: int
    step_tokens: int
    reference_steps: int | None = None
    states: bool = False

    def plan(self, variant: Variant, seed: int, rate: float, cost: LoopCost | None) -> CellPlan:
        """
        Return what a cell is to train: as deep as the loop's last student, for what the loop took.

        Under a budget of operations the controls still take the loop's steps: one that saw less text than the student
        would be easier to beat.

        Args:
            variant (`Variant`): The cell's arm.
            seed (`int`): Its seed.
            rate (`float`): Its learning rate.
            cost (`LoopCost`, *optional*): What the loop came to with this seed, if it was run.
        """
        compare, arm = self.compare, variant.arm
        if arm.name == LOOP:
            return CellPlan(variant, seed, rate, 0, compare.budget_steps or 0)
        layers, student_layers = self._depths(variant, cost)
        steps = compare.budget_steps or (cost.steps if cost else 0)
        if compare.budget == "flops" and variant.name not in CONTROLS:
            plain = self.operations(parse_arm("random"), student_layers)
            whole = cost.flops if cost and not compare.budget_steps else None
            spend = whole or steps * self.step_tokens * plain
            depths = [layers * stage // arm.stages for stage in range(1, arm.stages + 1)]
            mean = sum(self.operations(variant, depth) for depth in depths) / len(depths)
            steps = max(2, round(spend / (self.step_tokens * mean)))
        steps = round(steps * arm.budgets)
        if arm.after_reference:
            steps += self.reference_steps or 0
        return CellPlan(variant, seed, rate, layers, steps)

    def reason_against(self, variant: Variant, costs: Sequence[LoopCost | None]) -> str:
        """Return why an arm cannot be run, or an empty string; `costs` is what the loop came to, seed by seed."""
        arm = variant.arm
        if arm.after_reference and not self.reference_steps:
            return "how long the reference was trained is not known; give reference_steps"
        if variant.moved_scale and not getattr(self.config, "scale_attn_by_inverse_layer_idx", False):
            return "the reference does not scale attention by depth (scale_attn_by_inverse_layer_idx)"
        if arm.narrow and variant.distilled and self.states:
            return "its hidden states are narrower than its teacher's, so losses on states cannot compare them"
        if arm.is_loop:
            return ""
        try:
            for layers in sorted({self._depths(variant, cost)[0] for cost in costs}):
                check_arm(arm, self.config, layers)
        except ValueError as error:
            return str(error)
        return ""

    def operations(self, variant: Variant, layers: int) -> float:
        """Return the floating-point operations of training an arm's model of so many layers on one token."""
        shape = sliced_config(shape_of(variant, self.config), range(layers))
        return training_operations(shape, self.block_size, self.config if variant.distilled else None)

    def _depths(self, variant: Variant, cost: LoopCost | None) -> tuple[int, int]:
        """Return the depth of an arm's model, and that of the student which it is compared with."""
        student = self.compare.layers or (cost.layers if cost else 0)
        return int(self.config.num_hidden_layers) if variant.arm.whole else student, student


# The comparison


@dataclass(frozen=True)
class ComparisonResult:
    """
    What a comparison left.

    Args:
        complete (`bool`): Whether all cells were run; if not, the same call resumes it.
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
    are trained, for the chosen ones only. What is finished is not run again; an interrupted cell is resumed.

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
        BlockingIOError: If another process runs a comparison in the same folder.
    """
    check_arguments(args, recipe)
    folder = Path(args.output_dir or "trainer_output")
    folder.mkdir(parents=True, exist_ok=True)
    with hold_folder(folder) if args.should_save else contextlib.nullcontext():
        return _compare(compare, run, recipe, data, args, console, shape)


def _compare(
    compare: CompareConfig,
    run: RunConfig,
    recipe: InherituneConfig,
    data: DataConfig,
    args: TrainingArguments,
    console: Console,
    shape: EmbeddedShape | None,
) -> ComparisonResult:
    reference_steps = compare.reference_steps
    if run.reference is None:
        shape = shape or EmbeddedShape()
        ready = prepare_embedded(recipe, data, args, console, shape)
        reference_steps = reference_steps or shape.steps
    else:
        ready = prepare_run(run, recipe, data, args)
    recipe = measured_recipe(recipe, ready, args)
    comparison = Comparison(compare, ready, recipe, args, reference_steps, console)
    chosen: list[Cell] = []
    for variant in variants_of(compare):
        cells = comparison.run_arm(variant)
        if cells is None:
            return ComparisonResult(False, comparison.folder)
        chosen += cells
    console.rule("test")
    facts = {
        "compare": asdict(compare),
        "recipe": recipe.to_dict(),
        "settings": {**run_settings(run, recipe, data, args), **without_nothing(asdict(compare))},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        **comparison.facts(chosen),
    }
    if args.should_save:
        write_json(comparison.folder / RESULT_FILE, facts)
        console.print(write_results(comparison.folder))
    return ComparisonResult(True, comparison.folder)


class Comparison:
    """
    The cells of a comparison as they are planned, trained and tested: depths and budgets follow the loop's cells.

    Args:
        compare (`CompareConfig`): Arms, seeds and budget.
        ready (`PreparedRun`): Reference, tokenizer and data.
        recipe (`InherituneConfig`): The loop's recipe.
        args (`TrainingArguments`): Settings of every cell but for seed, learning rate and steps.
        reference_steps (`int`, *optional*): Steps that the reference was trained for, if that is known.
        console (`rich.console.Console`): Where progress is shown.
    """

    def __init__(
        self,
        compare: CompareConfig,
        ready: PreparedRun,
        recipe: InherituneConfig,
        args: TrainingArguments,
        reference_steps: int | None,
        console: Console,
    ) -> None:
        self.compare, self.ready, self.recipe, self.args, self.console = compare, ready, recipe, args, console
        self.folder = Path(args.output_dir or "trainer_output")
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        states = compares_states(recipe)
        size = ready.block_size
        self.budget = Budget(compare, ready.reference.config, size, batch * size, reference_steps, states)
        self.reference_loss: float | None = None
        self.sweep: dict[str, dict[float, float]] = {}
        self.left_out: dict[str, str] = {}
        self._costs: dict[int, LoopCost] = {}
        self._done = 0
        self._total = len(variants_of(compare)) * compare.cells
        self._seconds: list[float] = []

    def run_arm(self, variant: Variant) -> list[Cell] | None:
        """Sweep the learning rate with the first seed, then run the others; None if interrupted."""
        reason = self.budget.reason_against(variant, [self._costs.get(seed) for seed in self.compare.seeds])
        if reason:
            self.left_out[variant.name] = reason
            self.console.print(f"{variant.name} is left out: {reason}")
            self._total -= self.compare.cells
            return []
        first, *others = self.compare.seeds
        swept = []
        for multiple in self.compare.learning_rates:
            cell = self._run(variant, first, multiple * self.args.learning_rate)
            if cell is None:
                return None
            swept.append(cell)
        best = best_cell(swept)
        self.sweep[variant.name] = {cell.learning_rate: cell.selection.loss for cell in swept}
        cells = [best]
        for seed in others:
            cell = self._run(variant, seed, best.learning_rate)
            if cell is None:
                return None
            cells.append(cell)
        if variant.name == LOOP:
            self._costs = {cell.seed: LoopCost(cell.layers, cell.steps, cell.flops) for cell in cells}
        return cells

    def facts(self, chosen: Sequence[Cell]) -> dict[str, Any]:
        """Open the test set for the reference and the chosen cells, and return what the comparison came to."""
        tested = [self.test_cell(cell) for cell in chosen]
        opened, budget = self.ready.reference, self.budget
        reference = opened.load(dtype=torch.float32)
        tokens = None if budget.reference_steps is None else budget.reference_steps * budget.step_tokens
        per_token = operations_per_token(opened.config, budget.block_size)
        return {
            "reference": {
                "name": opened.name,
                "layers": opened.depth,
                "parameters": reference.num_parameters(),
                "steps": budget.reference_steps,
                "tokens": tokens,
                "flops": None if tokens is None else tokens * per_token,
                "selection_loss": self.reference_loss,
                "lazy_layers": on_main_process(self._lazy_layers(reference)),
                "test": encode(self._test_loss(reference)),
            },
            "data": encode(self.ready.splits.facts),
            "sweep": {
                name: {f"{rate:g}": loss for rate, loss in losses.items()} for name, losses in self.sweep.items()
            },
            "left_out": self.left_out,
            "cells": encode(tested),
        }

    def _run(self, variant: Variant, seed: int, rate: float) -> Cell | None:
        plan = self.budget.plan(variant, seed, rate, self._costs.get(seed))
        plan = replace(plan, chosen=self.chosen_layers(variant, plan.layers))
        self._done += 1
        found = read_cell(self.folder / plan.folder)
        if found is None:
            self.console.rule(f"{self._done} of {self._total} · {variant.name} · seed {seed} · {rate:g}{self._left()}")
        began = time.monotonic()
        cell = self.run_cell(plan)
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

    def chosen_layers(self, variant: Variant, layers: int) -> tuple[int, ...]:
        """Return the layers that the arm's measure chooses, measured on the selection set; none if it has none."""
        arm = variant.arm
        if arm.measure is None:
            return ()
        depth = self.ready.reference.depth
        if arm.lowest and layers == depth:
            return tuple(range(depth))
        found = None
        if self.args.process_index == 0:
            found = resolve_measured(
                self.ready.reference.name,
                f"{arm.measure}:{depth - layers if arm.lowest else layers}",
                sample_sequences(self.ready.splits.selection),
                cache_dir=scores_folder(),
                **self.ready.kwargs,
            )
        kept: tuple[int, ...] = on_main_process(found)
        return tuple(layer for layer in range(depth) if layer not in kept) if arm.lowest else kept

    def run_cell(self, plan: CellPlan) -> Cell | None:
        """
        Train a cell, or resume it where it was interrupted; a finished one is read from disk.

        Returns:
            `Cell`, *optional*: What it came to; None if it was interrupted.

        Raises:
            ValueError: If the folder holds a cell of other settings.
        """
        folder = self.folder / plan.folder
        cell: Cell | None = on_main_process(read_cell(folder) if self.args.process_index == 0 else None)
        trainer = self._trainer(plan)
        if cell is not None:
            check_identity(folder, cell.identity, cell_identity(trainer))
        else:
            with own_tracker_run(trainer):
                trainer.train()
                if trainer.outcome == "interrupted":
                    return None
                cell = self._finished(plan, trainer)
            trainer.save_model(str(folder / MODEL_FOLDER))
            if trainer.args.should_save:
                write_json(folder / LOG_FILE, {"log": trainer.state.log_history})
                write_record(folder / CELL_FILE, cell)
        if trainer.args.should_save:
            # Of a finished cell too: it may have been killed before this.
            for path in folder.glob("checkpoint-*"):
                shutil.rmtree(path)
            shutil.rmtree(folder / RUN_FOLDER, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        return cell

    def test_cell(self, cell: Cell) -> Cell:
        """Measure a chosen cell on the test set and count its lazy layers, once: what was measured is kept with it."""
        if cell.test is not None:
            return cell
        folder = self.folder / cell.folder
        auto: Any = AutoModelForCausalLM
        model = auto.from_pretrained(folder / MODEL_FOLDER, dtype=torch.float32)
        cell = replace(cell, test=self._test_loss(model), lazy_layers=on_main_process(self._lazy_layers(model)))
        if self.args.should_save:
            write_record(folder / CELL_FILE, cell)
        return cell

    def _trainer(self, plan: CellPlan) -> InherituneTrainer:
        """Return the trainer of a cell: the run's own settings, and the arm's rounds."""
        args = with_changes(
            self.args,
            output_dir=str(self.folder / plan.folder),
            seed=plan.seed,
            data_seed=plan.seed,
            learning_rate=plan.learning_rate,
            max_steps=plan.steps or -1,
            save_total_limit=1,
            push_to_hub=False,
            run_name=f"{self.args.run_name or self.folder.name}/{plan.folder}",
        )
        recipe = plan.recipe(self.recipe)
        inputs = ArmInputs(
            reference=self.ready.reference,
            layers=plan.layers,
            seed=plan.seed,
            chosen=plan.chosen,
            keep_scale=not plan.variant.moved_scale,
        )
        return InherituneTrainer(
            self.ready.reference,
            recipe,
            args,
            train_dataset=self.ready.splits.train,
            eval_dataset=self.ready.splits.selection,
            processing_class=self.ready.tokenizer,
            data_collator=self.ready.collator,
            baseline=arm_baseline(plan.variant, inputs, recipe),
        )

    def _finished(self, plan: CellPlan, trainer: InherituneTrainer) -> Cell:
        tokens, flops = 0, 0.0
        points: list[tuple[int, float, float]] = []
        losses = {int(row["step"]): row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
        for item in trainer.rounds:
            per_step = item.tokens / (item.end_step - item.start_step)
            per_token = self.budget.operations(plan.variant, item.layers)
            for step, loss in losses.items():
                if item.start_step < step <= item.end_step:
                    done = (step - item.start_step) * per_step
                    points.append((round(tokens + done), flops + done * per_token, loss))
            tokens += item.tokens
            flops += item.tokens * per_token
        last, goes_on = trainer.rounds[-1], trainer.inheritune_config.continues_data
        # Whatever the loss to reach is, others are held against the reference's.
        reference = trainer.reference_validation or trainer.measure_reference()
        return Cell(
            arm=plan.variant.name,
            seed=plan.seed,
            learning_rate=plan.learning_rate,
            layers=last.layers,
            parameters=trainer.student.num_parameters(),
            steps=last.end_step,
            tokens=tokens,
            flops=flops,
            # Where the data continue, a round's passes are those of the whole run.
            epochs=last.epochs if goes_on else sum(item.epochs for item in trainer.rounds),
            seconds=sum(item.seconds for item in trainer.rounds),
            outcome=trainer.outcome if plan.variant.arm.is_loop else None,
            curve=tuple(points),
            reference_loss=reference.loss,
            selection=_last_validation(trainer),
            folder=plan.folder,
            identity=cell_identity(trainer),
        )

    def _test_loss(self, model: PreTrainedModel) -> Validation:
        """Return a model's loss on the test set, by the loop that judges students."""
        trainer = ValidatedTrainer(
            model=model,
            # No tracker: it would open a run for this alone. The figures are in the records.
            args=with_changes(self.args, output_dir=str(self.folder), report_to=[]),
            eval_dataset=self.ready.splits.test,
            data_collator=self.ready.collator or CausalCollator(self.ready.tokenizer.eos_token_id or 0),
        )
        trainer.pop_callback(ProgressCallback)
        trainer.evaluate(metric_key_prefix="test")
        return trainer.validations["test"]

    def _lazy_layers(self, model: PreTrainedModel) -> int:
        """Return how many of a model's layers are near rank 1 on sequences of the selection set."""
        sequences = sample_sequences(self.ready.splits.selection)
        return len(measure_collapse(model, sequences, controls=False, blocks=False).lazy_layers(NEAR_RANK_ONE))


def best_cell(swept: list[Cell]) -> Cell:
    """Return the cell whose learning rate its arm goes on with: the shallowest match of a loop, or the lowest loss."""
    return min(swept, key=lambda cell: (cell.layers if cell.outcome == "matched" else sys.maxsize, cell.selection.loss))


def cell_identity(trainer: InherituneTrainer) -> dict[str, Any]:
    """Return what makes a cell this very cell: unlike a run, it is not resumed when its budget is raised."""
    return {
        **trainer.identity(),
        "recipe.max_layers": trainer.inheritune_config.max_layers,
        "args.max_steps": trainer.budget,
    }


def duration(seconds: float) -> str:
    """Return a time as people say it: `1 h 05 min`, `12 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


@contextlib.contextmanager
def own_tracker_run(trainer: InherituneTrainer) -> Iterator[None]:
    """
    End what a cell has opened in Weights & Biases or SwanLab: their callbacks open a run only where none is open.

    One that was open before is the caller's own, and stays.
    """
    kinds = {"wandb": WandbCallback, "swanlab": SwanLabCallback}
    used = [
        name for name, kind in kinds.items() for item in trainer.callback_handler.callbacks if isinstance(item, kind)
    ]
    free = [name for name in used if _open_run(name) is None]
    try:
        yield
    finally:
        for name in free:
            if _open_run(name) is not None:
                importlib.import_module(name).finish()


def _open_run(name: str) -> Any:
    tracker = importlib.import_module(name)
    return tracker.run if name == "wandb" else tracker.get_run()


def _last_validation(trainer: InherituneTrainer) -> Validation:
    """Return the final model's selection loss from its checkpoint: it may have been trained by an earlier process."""
    found = None
    if trainer.args.should_save:
        checkpoint = last_checkpoint(trainer.output_dir, len(trainer.rounds))
        found = checkpoint[1].validation if checkpoint else None
    validation: Validation | None = on_main_process(found)
    if validation is None:
        raise ValueError(
            f"{trainer.output_dir} says that its training has ended, but its last checkpoint is gone or damaged; "
            "remove this folder to train the cell anew."
        )
    return validation


# What a comparison would take


@dataclass(frozen=True)
class ArmEstimate:
    """
    What one cell of an arm would take, and how many of them there are.

    Args:
        arm (`str`): The arm, as the recipe names it.
        layers (`int`): Depth of its final model, in layers.
        parameters (`int`): Parameters of that model.
        steps (`int`): Optimizer steps of one cell, over all its rounds or stages.
        tokens (`int`): Tokens of those steps.
        flops (`float`): Floating-point operations of those steps, a teacher's included.
        seconds (`float`, *optional*): Time of one cell, if a throughput is known.
        memory (`MemoryEstimate`): Memory while the final model is trained.
        cells (`int`): Cells: one for each learning rate with the first seed, and one for each further seed.
    """

    arm: str
    layers: int
    parameters: int
    steps: int
    tokens: int
    flops: float
    seconds: float | None
    memory: MemoryEstimate
    cells: int


@dataclass(frozen=True)
class ComparisonEstimate:
    """
    What a comparison would take, with every round of the loop if the loop is one of its arms.

    Args:
        reference (`str`): Id or path of the reference.
        model_type (`str`): Its architecture, such as `gpt2`.
        depth (`int`): Its depth, in layers.
        setup (`TrainingSetup`): How models are trained.
        loss (`str`): How the loss would be computed on this machine.
        arms (`tuple[ArmEstimate, ...]`): The arms in the order in which they run.
        left_out (`dict[str, str]`): Arms that would not be run, with the reason.
        step_time (`StepTime`, *optional*): What was measured of models as wide as the reference, if anything was.
    """

    reference: str
    model_type: str
    depth: int
    setup: TrainingSetup
    loss: str
    arms: tuple[ArmEstimate, ...]
    left_out: dict[str, str]
    step_time: StepTime | None = None

    @property
    def cells(self) -> int:
        """Cells of the whole grid."""
        return sum(arm.cells for arm in self.arms)

    @property
    def steps(self) -> int:
        """Optimizer steps of all cells."""
        return sum(arm.cells * arm.steps for arm in self.arms)

    @property
    def tokens(self) -> int:
        """Tokens of all cells."""
        return sum(arm.cells * arm.tokens for arm in self.arms)

    @property
    def flops(self) -> float:
        """Floating-point operations of all cells."""
        return sum(arm.cells * arm.flops for arm in self.arms)

    @property
    def seconds(self) -> float | None:
        """Seconds of all cells, if a throughput is known."""
        known = [arm.cells * arm.seconds for arm in self.arms if arm.seconds is not None]
        return sum(known) if known else None


def estimate_comparison(
    reference: Reference,
    compare: CompareConfig,
    recipe: InherituneConfig,
    setup: TrainingSetup | None = None,
    tokens_per_second: float | None = None,
    measure: bool = False,
    **kwargs: Any,
) -> ComparisonEstimate:
    """
    Estimate what `run_comparison` would take, before any weight is downloaded or loaded.

    Depths, budgets and rounds are those that the comparison itself would plan. The loop is taken to need every round.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`):
            Hub id, folder with config.json, or a loaded causal language model.
        compare (`CompareConfig`):
            Arms, seeds and budget.
        recipe (`InherituneConfig`):
            The loop's recipe; `steps_per_round` is needed.
        setup (`TrainingSetup`, *optional*):
            How models are trained; the defaults of `TrainingSetup` if not given.
        tokens_per_second (`float`, *optional*):
            Throughput of a student as deep as most arms are (`layers`, or the loop's last), over all processes; other
            models are slower or faster by their operations.
        measure (`bool`, *optional*, defaults to `False`):
            Train shallow models of the planned widths for a few steps on this machine to tell the time.
        kwargs:
            As in `open_reference`.

    Returns:
        `ComparisonEstimate`: Per arm, and in all.

    Raises:
        ValueError: If `steps_per_round` is not set, the throughput is not above 0, both a throughput and a measurement
            are asked for, or the reference cannot be cut so.
        OSError: If there is no model at `reference`.
    """
    if recipe.steps_per_round is None:
        raise ValueError("A plan needs steps_per_round, the optimizer steps of one round.")
    refuse_two_throughputs(tokens_per_second, measure)
    opened = open_reference(reference, **kwargs)
    config = opened.config
    setup = fitted(setup or TrainingSetup(), config)
    tokens = step_tokens(setup)
    budget = Budget(compare, config, setup.block_size, tokens, compare.reference_steps, compares_states(recipe))
    cost: LoopCost | None = None
    planned: list[_PlannedArm] = []
    left_out: dict[str, str] = {}
    for variant in variants_of(compare):
        reason = budget.reason_against(variant, [cost])
        if reason:
            left_out[variant.name] = reason
            continue
        planned.append(_plan_arm(budget, recipe, variant, cost, opened))
        if variant.name == LOOP:
            cost = LoopCost(planned[-1].layers, planned[-1].steps, planned[-1].flops)
    loss = training_loss(recipe)
    step_times: dict[bool, StepTime] = {}
    if measure:
        widths = {item.variant.arm.narrow: shape_of(item.variant, config) for item in planned}
        for narrow, wide in widths.items():
            step_times[narrow] = measure_step(wide, range(opened.depth), setup, loss=loss)
    pace = None
    if tokens_per_second is not None:
        depth = compare.layers or (cost.layers if cost else 0)
        pace = tokens_per_second * budget.operations(parse_arm("random"), depth)
    # Arms of one shape take the same memory: it is worked out once.
    shapes = {item.shape_key: item for item in planned}
    memory = {key: student_memory(item.shape, setup, item.recipe, config) for key, item in shapes.items()}
    arms = [
        ArmEstimate(
            arm=item.variant.name,
            layers=item.layers,
            parameters=inspect_architecture(item.shape).parameter_count,
            steps=item.steps,
            tokens=item.steps * tokens,
            flops=item.flops,
            seconds=item.flops / pace if pace else item.seconds(budget, step_times.get(item.variant.arm.narrow)),
            memory=memory[item.shape_key],
            cells=compare.cells,
        )
        for item in planned
    ]
    return ComparisonEstimate(
        reference=opened.name,
        model_type=str(config.model_type),
        depth=opened.depth,
        setup=setup,
        loss=planned_loss(config, setup, loss),
        arms=tuple(arms),
        left_out=left_out,
        step_time=step_times.get(False),
    )


@dataclass(frozen=True)
class _PlannedArm:
    """An arm with the recipe of its cells, the depth and steps of each of its rounds, and its final model's config."""

    variant: Variant
    recipe: InherituneConfig
    rounds: tuple[tuple[int, int], ...]
    flops: float
    shape: PreTrainedConfig

    @property
    def layers(self) -> int:
        return self.rounds[-1][0]

    @property
    def steps(self) -> int:
        return sum(steps for _, steps in self.rounds)

    @property
    def shape_key(self) -> tuple[bool, int, bool]:
        return self.variant.arm.narrow, self.layers, self.variant.distilled

    def seconds(self, budget: Budget, measured: StepTime | None) -> float | None:
        if measured is None:
            return None
        # What was measured had no teacher.
        plain = replace(self.variant, distilled=False)
        return sum(
            steps
            * measured.seconds(layers)
            * budget.operations(self.variant, layers)
            / budget.operations(plain, layers)
            for layers, steps in self.rounds
        )


def _plan_arm(
    budget: Budget, recipe: InherituneConfig, variant: Variant, cost: LoopCost | None, reference: OpenedReference
) -> _PlannedArm:
    """Plan the rounds of an arm's cells as their trainer would run them if it needed them all."""
    plan = budget.plan(variant, budget.compare.seeds[0], 1.0, cost)
    own = plan.recipe(recipe)
    rule = rule_from_recipe(own, reference.depth, reference.architecture.prefix_sizes)
    rounds = tuple((len(layers), steps) for layers, steps in planned_rounds(rule, plan.steps or None))
    flops = sum(steps * budget.step_tokens * budget.operations(variant, layers) for layers, steps in rounds)
    return _PlannedArm(
        variant, own, rounds, flops, sliced_config(shape_of(variant, budget.config), range(rounds[-1][0]))
    )
