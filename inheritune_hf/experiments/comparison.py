"""Compare arms × seeds under one budget: plan each cell, train and test it, or estimate what all of it would take."""

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
from typing import Any, cast

import torch
import transformers
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, ProgressCallback, TrainingArguments
from transformers.integrations.integration_utils import SwanLabCallback, WandbCallback

from ..analysis import NEAR_RANK_ONE, measure_collapse, resolve_measured, sample_sequences, scores_folder
from ..arms import CONTROLS, LOOP, Variant, parse_arm
from ..config import CompareConfig, DataConfig, InherituneConfig, RunConfig
from ..data import CausalCollator
from ..data.stream import PackedStream
from ..evaluation import ValidatedTrainer
from ..growth import planned_rounds, rule_from_recipe
from ..records import Validation, write_json, write_record
from ..run_folder import CELL_FILE, LOG_FILE, MODEL_FOLDER, RUN_FOLDER, without_nothing
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
from ..training import InherituneTrainer, check_arguments, hold_output_dir, on_main_process
from ..training.checkpoints import check_identity, last_checkpoint
from ..training.distillation import compares_states
from .arm_models import ArmInputs, arm_baseline, check_arm, shape_of
from .embedded import with_embedded
from .results import Cell, ComparisonRecord, ReferenceResult, read_cell, write_results
from .runs import PreparedRun, prepare_run, run_settings, with_changes

logger = logging.getLogger(__name__)

# Settings of the recipe that say what the loop inherits and how it grows: other arms take their defaults.
_OF_THE_LOOP = (
    "inherit",
    "attention_scale",
    "schedule",
    "growth",
    "new_blocks",
    "optimizer_state",
    "lr_schedule",
    "match_at",
    "abandon",
)

#: What `/kd` trains with unless the recipe sets its own losses (arXiv 2404.08634v4, F.2: temperature 1).
PAPER_DISTILLATION = "cross_entropy=0.6,forward_kl=0.4"


def variants_of(compare: CompareConfig) -> list[Variant]:
    """Return the arms in the order in which they run: the loop first, because the others' budgets follow it."""
    names = dict.fromkeys([*compare.arms, *(CONTROLS if compare.controls else ())])
    return sorted(map(parse_arm, names), key=lambda variant: variant.arm.name != LOOP)


def check_loop(compare: CompareConfig, recipe: InherituneConfig, opened: OpenedReference) -> None:
    """Raise a `ValueError` if the loop begins at full depth, where it may match untrained and leave arms no steps."""
    if LOOP not in {variant.arm.name for variant in variants_of(compare)} or compare.budget_steps:
        return
    first = rule_from_recipe(recipe, opened.depth, opened.architecture.prefix_sizes).first
    if len(first) == opened.depth:
        raise ValueError(
            f"keep_layers={recipe.keep_layers!r} begins at the reference's full depth of {opened.depth} layers, so the "
            "loop may match before it trains, and the other arms would get no steps: begin below it, or give "
            "budget_steps."
        )


def recipe_of_arms(compare: CompareConfig, recipe: InherituneConfig) -> InherituneConfig:
    """
    Return the recipe, whose rounds are the budget where the loop, which alone has rounds, is not run.

    Distillation losses that no arm would be trained with are a `ValueError`.
    """
    variants = variants_of(compare)
    if recipe.distillation and not any(variant.distilled for variant in variants):
        raise ValueError(
            f"distillation={recipe.distillation!r} is for arms with /kd alone, and there is none: write inheritune/kd, "
            "with layers and budget_steps, or set distillation to none."
        )
    if recipe.steps_per_round is not None or LOOP in {variant.arm.name for variant in variants}:
        return recipe
    return replace(recipe, steps_per_round=compare.budget_steps)


# What each cell trains, and for how long


@dataclass(frozen=True)
class LoopCost:
    """Depth of the loop's last student, and steps and operations of all its rounds: what other arms' budgets follow."""

    layers: int
    steps: int
    flops: float


@dataclass(frozen=True)
class CellPlan:
    """What a cell trains; layers and steps are 0 where the loop decides them."""

    variant: Variant
    seed: int
    learning_rate: float  # peak
    layers: int  # of the final model
    steps: int
    chosen: tuple[int, ...] = ()  # layers that a measure chose, for arms that go by one

    @property
    def folder(self) -> str:
        """Name of the cell's folder."""
        return f"{self.variant.name.replace('/', '-')}-seed{self.seed}-lr{self.learning_rate:g}"

    def recipe(self, recipe: InherituneConfig) -> InherituneConfig:
        """
        Return the rounds of the cell: the recipe's own for the loop, one for each stage for other arms.

        Unless the recipe sets `data_order`, the loop's data continue from round to round, as those of other arms do
        from stage to stage: all of them see equally many distinct batches.
        """
        distillation = (recipe.distillation or PAPER_DISTILLATION) if self.variant.distilled else None
        recipe = replace(recipe, distillation=distillation)
        if self.variant.arm.name == LOOP:
            return replace(recipe, data_order=recipe.data_order or "continue")
        stages, defaults = self.variant.arm.stages, InherituneConfig()
        return replace(
            recipe,
            keep_layers=self.layers // stages,
            grow_by=max(1, self.layers - self.layers // stages),
            max_layers=self.layers,
            steps_per_round=self.steps // stages,
            data_order="continue",
            **{name: getattr(defaults, name) for name in _OF_THE_LOOP},
        )


@dataclass(frozen=True)
class Budget:
    """What the depths and steps of a comparison's cells follow from."""

    compare: CompareConfig
    config: PreTrainedConfig  # the reference's
    block_size: int  # tokens of one sequence
    step_tokens: int  # of one optimizer step, over all processes
    states: bool = False  # whether `/kd` compares hidden states, for which models must be as wide as the reference
    max_steps: int = 0  # of the loop over all its rounds; 0 if it has no limit

    def plan(self, variant: Variant, seed: int, rate: float, cost: LoopCost | None) -> CellPlan:
        """
        Return a cell's plan: as deep as the loop's last student, for the cost of the loop's rounds with that seed.

        Under a budget of operations the controls still take the loop's steps: one that saw less text than the student
        would be easier to beat.
        """
        compare, arm = self.compare, variant.arm
        if arm.name == LOOP:
            return CellPlan(variant, seed, rate, 0, compare.budget_steps or self.max_steps)
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
            steps += compare.reference_steps or 0
        return CellPlan(variant, seed, rate, layers, steps)

    def reason_against(self, variant: Variant, costs: Sequence[LoopCost | None]) -> str:
        """Return why an arm cannot be run, or an empty string; `costs` are the loop's, seed by seed."""
        arm = variant.arm
        if arm.after_reference and not self.compare.reference_steps:
            return "how long the reference was trained is not known; give reference_steps"
        if variant.moved_scale and not getattr(self.config, "scale_attn_by_inverse_layer_idx", False):
            return "the reference does not scale attention by depth (scale_attn_by_inverse_layer_idx)"
        if arm.narrow and variant.distilled and self.states:
            return "its hidden states are narrower than its teacher's, so losses on states cannot compare them"
        if arm.name == LOOP:
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


def run_comparison(
    compare: CompareConfig,
    run: RunConfig,
    recipe: InherituneConfig,
    data: DataConfig,
    args: TrainingArguments,
    console: Console,
) -> ComparisonRecord:
    """
    Train every arm with every seed under one budget, and write table, curves and records: `inheritune compare`.

    Each arm's learning rate is chosen on the selection set with the first seed: the lowest loss; of the loop, the
    shallowest match, since a rate that missed has grown deeper. The test set is opened when all cells
    are trained, for the chosen ones only. Finished cells are not run again; an interrupted one is resumed.

    Args:
        compare (`CompareConfig`): Arms, seeds and budget.
        run (`RunConfig`): The reference; without one, the embedded default's.
        recipe (`InherituneConfig`): The loop's recipe.
        data (`DataConfig`): The data of every arm.
        args (`TrainingArguments`): Their settings; `output_dir` is the comparison's folder.
        console (`rich.console.Console`): Where progress and the table are shown; of the main process.

    Raises:
        ValueError: If settings, data and reference do not fit together, or the recipe names distillation losses that no
            arm uses; nothing has been trained then.
        BlockingIOError: If another process runs a comparison in the same folder.
        KeyboardInterrupt: If a cell was interrupted; the same call resumes it.
    """
    recipe = recipe_of_arms(compare, recipe)
    check_arguments(args, recipe)
    chosen_run, text = with_embedded(run, data)
    with hold_output_dir(args):
        ready = prepare_run(chosen_run, recipe, text, args)
        check_loop(compare, recipe, ready.reference)
        comparison = Comparison(compare, ready, recipe, args, console)
        chosen = [cell for variant in variants_of(compare) for cell in comparison.run_arm(variant)]
        console.rule("test")
        settings = {**run_settings(run, recipe, data, args), **without_nothing(asdict(compare))}
        record = comparison.record(chosen, settings)
        if args.should_save:
            console.print(write_results(comparison.folder, record))
    return record


class Comparison:
    """Plan, train and test the cells of a comparison; depths and budgets follow the loop's cells."""

    def __init__(
        self,
        compare: CompareConfig,
        ready: PreparedRun,
        recipe: InherituneConfig,
        args: TrainingArguments,
        console: Console,
    ) -> None:
        self.compare, self.ready, self.recipe, self.args, self.console = compare, ready, recipe, args, console
        self.folder = Path(args.output_dir or "trainer_output")
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        size = ready.splits.facts.block_size
        states, limit = compares_states(recipe), max(0, args.max_steps)
        self.budget = Budget(compare, ready.reference.config, size, batch * size, states, limit)
        self.reference_loss = 0.0  # every cell measures it, or finds it measured
        self.sweep: dict[str, dict[str, float]] = {}
        self.left_out: dict[str, str] = {}
        self._costs: dict[int, LoopCost] = {}
        self._begun = 0
        self._total = len(variants_of(compare)) * compare.cells
        self._seconds: list[float] = []

    def run_arm(self, variant: Variant) -> list[Cell]:
        """Sweep the learning rate with the first seed, run the other seeds with the best, and return those cells."""
        reason = self.budget.reason_against(variant, [self._costs.get(seed) for seed in self.compare.seeds])
        if reason:
            self.left_out[variant.name] = reason
            self.console.print(f"{variant.name} is left out: {reason}")
            self._total -= self.compare.cells
            return []
        first, *others = self.compare.seeds
        rates = [multiple * self.args.learning_rate for multiple in self.compare.learning_rates]
        swept: list[Cell] = []
        diverged: list[FloatingPointError] = []
        for rate in rates:
            try:
                swept.append(self._run(variant, first, rate))
            except FloatingPointError as error:  # the worst of the sweep: the others are of use
                diverged.append(error)
                self.left_out[f"{variant.name} at {rate:g}"] = str(error).rstrip(".")
                self.console.print(f"{variant.name} at {rate:g} is left out: {error}")
        if not swept:
            raise diverged[0]
        best = best_cell(swept)
        self.sweep[variant.name] = {f"{cell.learning_rate:g}": cell.selection.loss for cell in swept}
        cells = [best, *(self._run(variant, seed, best.learning_rate) for seed in others)]
        if variant.name == LOOP:
            self._costs = {cell.seed: LoopCost(cell.layers, cell.steps, cell.flops) for cell in cells}
        return cells

    def record(self, chosen: Sequence[Cell], settings: dict[str, Any]) -> ComparisonRecord:
        """Open the test set for the reference and the chosen cells, and return the whole comparison."""
        cells = tuple(self.test_cell(cell) for cell in chosen)
        opened, budget, steps = self.ready.reference, self.budget, self.compare.reference_steps
        model = opened.load(dtype=torch.float32)
        tokens = None if steps is None else steps * budget.step_tokens
        reference = ReferenceResult(
            name=opened.name,
            layers=opened.depth,
            parameters=model.num_parameters(),
            steps=steps,
            tokens=tokens,
            flops=None if tokens is None else tokens * operations_per_token(opened.config, budget.block_size),
            selection_loss=self.reference_loss,
            lazy_layers=on_main_process(self._lazy_layers(model)),
            test=self._test_loss(model),
        )
        return ComparisonRecord(
            compare=self.compare,
            recipe=self.recipe.to_dict(),
            settings=settings,
            versions={"torch": torch.__version__, "transformers": transformers.__version__},
            reference=reference,
            data=self.ready.splits.facts,
            sweep=self.sweep,
            left_out=self.left_out,
            cells=cells,
        )

    def _run(self, variant: Variant, seed: int, rate: float) -> Cell:
        """Run a cell and show how far the comparison is."""
        plan = self.budget.plan(variant, seed, rate, self._costs.get(seed))
        plan = replace(plan, chosen=self.chosen_layers(variant, plan.layers))
        self._begun += 1
        found = read_cell(self.folder / plan.folder)
        if found is None:
            left = ""
            if self._seconds:
                mean = sum(self._seconds) / len(self._seconds)
                left = f" · about {duration(mean * (self._total - self._begun + 1))} left"
            self.console.rule(f"{self._begun} of {self._total} · {variant.name} · seed {seed} · {rate:g}{left}")
        began = time.monotonic()
        cell = self.run_cell(plan)
        self.reference_loss = cell.reference_loss
        if found is None:
            self._seconds.append(time.monotonic() - began)
        return cell

    def chosen_layers(self, variant: Variant, layers: int) -> tuple[int, ...]:
        """Return the layers that the arm's measure chooses, measured on training text; none if it has none."""
        arm, depth = variant.arm, self.ready.reference.depth
        if arm.measure is None:
            return ()
        if arm.lowest and layers == depth:
            return tuple(range(depth))
        found = None
        if self.args.process_index == 0:
            found = resolve_measured(
                self.ready.reference,
                f"{arm.measure}:{depth - layers if arm.lowest else layers}",
                sample_sequences(self.ready.splits.train),
                progress=not self.args.disable_tqdm,
                cache_dir=scores_folder(),
                device_map={"": str(self.args.device)},
            )
        kept: tuple[int, ...] = on_main_process(found)
        return tuple(layer for layer in range(depth) if layer not in kept) if arm.lowest else kept

    def run_cell(self, plan: CellPlan) -> Cell:
        """Train a cell, resume an interrupted one, or read a finished one; one of other settings is a `ValueError`."""
        folder = self.folder / plan.folder
        cell: Cell | None = on_main_process(read_cell(folder) if self.args.process_index == 0 else None)
        trainer = self._trainer(plan)
        if cell is not None:
            check_identity(folder, cell.identity, cell_identity(trainer))
        else:
            with own_tracker_run(trainer):
                trainer.train()
                if trainer.outcome == "interrupted":
                    raise KeyboardInterrupt(f"{plan.folder} was interrupted")
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
        """Measure a chosen cell on the test set and count its lazy layers, unless it has been done."""
        test_set = self.ready.splits.facts.test.fingerprint
        if cell.test is not None and cell.test_set == test_set:
            return cell
        folder = self.folder / cell.folder
        settings = {"dtype": torch.float32, **self.ready.reference.student_options}
        model: Any = AutoModelForCausalLM.from_pretrained(folder / MODEL_FOLDER, **settings)
        lazy = on_main_process(self._lazy_layers(model))
        cell = replace(cell, test=self._test_loss(model), test_set=test_set, lazy_layers=lazy)
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
        recipe, ready = plan.recipe(self.recipe), self.ready
        if isinstance(ready.splits.train, PackedStream):  # whose order is its own, not that of a sampler
            train = ready.splits.train.in_order_of(plan.seed)
            ready = replace(ready, splits=replace(ready.splits, train=train))
        inputs = ArmInputs(ready.reference, plan.layers, plan.seed, plan.chosen, not plan.variant.moved_scale)
        return ready.trainer(recipe, args, baseline=arm_baseline(plan.variant, inputs, recipe))

    def _finished(self, plan: CellPlan, trainer: InherituneTrainer) -> Cell:
        tokens, flops = 0, 0.0
        points: list[tuple[int, float, float]] = []
        evaluations = {int(row["step"]): row for row in trainer.state.log_history if "eval_loss" in row}
        first_match: tuple[int, float] | None = None
        for item in trainer.rounds:
            per_step = item.tokens / max(1, item.end_step - item.start_step)
            per_token = self.budget.operations(plan.variant, item.layers)
            for step, row in evaluations.items():
                if item.start_step < step <= item.end_step:
                    done = (step - item.start_step) * per_step
                    points.append((round(tokens + done), flops + done * per_token, row["eval_loss"]))
                    if first_match is None and row.get("eval_matched"):
                        first_match = points[-1][:2]
            tokens += item.tokens
            flops += item.tokens * per_token
        last, continued = trainer.rounds[-1], trainer.inheritune_config.continues_data
        # Whatever the loss to reach is, arms are compared with the reference's.
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
            epochs=last.epochs if continued else sum(item.epochs for item in trainer.rounds),
            seconds=sum(item.seconds for item in trainer.rounds),
            outcome=trainer.outcome if plan.variant.arm.name == LOOP else None,
            curve=tuple(points),
            first_match=first_match,
            reference_loss=reference.loss,
            selection=_last_validation(trainer),
            folder=plan.folder,
            identity=cell_identity(trainer),
        )

    def _test_loss(self, model: PreTrainedModel) -> Validation:
        """Return a model's loss on the test set, by the same loop as students' losses."""
        trainer = ValidatedTrainer(
            model=model,
            # No tracker: it would open a run for this alone. The losses are in the records.
            args=with_changes(self.args, output_dir=str(self.folder), report_to=[], push_to_hub=False),
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


def best_cell(swept: Sequence[Cell]) -> Cell:
    """
    Return the cell of the best learning rate: the shallowest match of a loop, or the lowest loss.

    Loops that all end as the whole reference, untrained, are told apart by the last loss that they were trained to.
    """

    def rank(cell: Cell) -> tuple[float, ...]:
        trained = cell.curve[-1][2] if cell.curve else 0.0
        return (cell.layers if cell.outcome == "matched" else sys.maxsize, cell.selection.loss, trained)

    return min(swept, key=rank)


def cell_identity(trainer: InherituneTrainer) -> dict[str, Any]:
    """Return the settings of a cell; unlike a run, a finished one is not resumed when its budget is raised."""
    return {
        **trainer.identity(),
        "recipe.max_layers": trainer.inheritune_config.max_layers,
        "args.max_steps": trainer.budget,
    }


def duration(seconds: float) -> str:
    """Return a time for readers: `1 h 05 min`, `12 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


@contextlib.contextmanager
def own_tracker_run(trainer: InherituneTrainer) -> Iterator[None]:
    """
    End the run that a cell opens in Weights & Biases or SwanLab: their callbacks open one only where none is open.

    A run that was open before is the caller's own, and stays open.
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
    """Return the final model's selection loss from its checkpoint: an earlier process may have trained it."""
    last = trainer.rounds[-1]
    found = trainer.run.start if last.end_step == last.start_step else None
    if found is None and trainer.args.should_save:
        checkpoint = last_checkpoint(trainer.output_dir, len(trainer.rounds), trainer.run_digest)
        found = checkpoint[1].validation if checkpoint else None
    return cast(Validation, on_main_process(found))  # without its checkpoint the trainer has refused to go on


# What a comparison would take


@dataclass(frozen=True)
class ArmEstimate:
    """What one cell of an arm would take."""

    arm: str  # as the recipe names it
    layers: int  # of the final model
    parameters: int  # of the final model
    steps: int  # over all rounds or stages, like tokens and operations
    tokens: int
    flops: float  # a teacher's included
    seconds: float | None  # None without a throughput
    memory: MemoryEstimate  # while the final model is trained
    cells: int  # one for each learning rate with the first seed, and one for each further seed


@dataclass(frozen=True)
class ComparisonEstimate:
    """What a comparison would take if the loop needed all its rounds; totals are over all cells."""

    reference: str
    model_type: str
    depth: int
    setup: TrainingSetup
    loss: str  # how the loss would be computed on this machine
    arms: tuple[ArmEstimate, ...]  # in the order in which they run
    left_out: dict[str, str]  # reason for each arm that would not be run
    step_time: StepTime | None = None  # measured on models as wide as the reference

    @property
    def cells(self) -> int:
        """Number of cells."""
        return sum(arm.cells for arm in self.arms)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return sum(arm.cells * arm.steps for arm in self.arms)

    @property
    def tokens(self) -> int:
        """Training tokens."""
        return sum(arm.cells * arm.tokens for arm in self.arms)

    @property
    def flops(self) -> float:
        """Floating-point operations."""
        return sum(arm.cells * arm.flops for arm in self.arms)

    @property
    def seconds(self) -> float | None:
        """Seconds, if a throughput is known."""
        known = [arm.cells * arm.seconds for arm in self.arms if arm.seconds is not None]
        return sum(known) if known else None


def estimate_comparison(
    reference: Reference,
    compare: CompareConfig,
    recipe: InherituneConfig,
    setup: TrainingSetup | None = None,
    tokens_per_second: float | None = None,
    measure: bool = False,
    max_steps: int | None = None,
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
            Train shallow models of the planned widths for a few steps on this machine to measure the time.
        max_steps (`int`, *optional*):
            Most steps of the loop over all its rounds.
        kwargs:
            As in `open_reference`.

    Returns:
        `ComparisonEstimate`: Per arm, and in all.

    Raises:
        ValueError: If `steps_per_round` is not set, the recipe names distillation losses that no arm uses, the
            throughput is not above 0, both a throughput and a measurement are asked for, or the reference cannot be
            cut so.
        OSError: If there is no model at `reference`.
    """
    recipe = recipe_of_arms(compare, recipe)
    if recipe.steps_per_round is None:
        raise ValueError("A plan needs steps_per_round, the optimizer steps of one round.")
    refuse_two_throughputs(tokens_per_second, measure)
    opened = open_reference(reference, **kwargs)
    check_loop(compare, recipe, opened)
    config, loss = opened.config, training_loss(recipe)
    setup = fitted(setup or TrainingSetup(), config)
    budget = Budget(compare, config, setup.block_size, step_tokens(setup), compares_states(recipe), max_steps or 0)
    step_times: dict[bool, StepTime] = {}  # by whether models are narrower
    memory: dict[tuple[bool, int, bool], MemoryEstimate] = {}  # arms of one shape and teacher take the same
    cost: LoopCost | None = None
    arms: list[ArmEstimate] = []
    left_out: dict[str, str] = {}
    for variant in variants_of(compare):
        reason = budget.reason_against(variant, [cost])
        if reason:
            left_out[variant.name] = reason
            continue
        plan = budget.plan(variant, compare.seeds[0], 1.0, cost)
        own, narrow = plan.recipe(recipe), variant.arm.narrow
        rule = rule_from_recipe(own, opened.depth, opened.architecture.prefix_sizes)
        rounds = [(len(layers), steps) for layers, steps in planned_rounds(rule, plan.steps or None)]
        layers, steps = rounds[-1][0], sum(steps for _, steps in rounds)
        flops = sum(steps * budget.step_tokens * budget.operations(variant, depth) for depth, steps in rounds)
        if variant.name == LOOP:
            cost = LoopCost(layers, steps, flops)
        seconds = None
        if tokens_per_second is not None:
            student = compare.layers or (cost.layers if cost else 0)
            seconds = flops / (tokens_per_second * budget.operations(parse_arm("random"), student))
        elif measure:
            if narrow not in step_times:
                width = shape_of(variant, config)
                step_times[narrow] = measure_step(width, range(opened.depth), setup, loss=loss)
            seconds = _measured_seconds(budget, variant, rounds, step_times[narrow])
        shape = sliced_config(shape_of(variant, config), range(layers))
        key = (narrow, layers, variant.distilled)
        if key not in memory:
            memory[key] = student_memory(shape, setup, own, config)
        arms.append(
            ArmEstimate(
                arm=variant.name,
                layers=layers,
                parameters=inspect_architecture(shape).parameter_count,
                steps=steps,
                tokens=steps * budget.step_tokens,
                flops=flops,
                seconds=seconds,
                memory=memory[key],
                cells=compare.cells,
            )
        )
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


def _measured_seconds(budget: Budget, variant: Variant, rounds: Sequence[tuple[int, int]], measured: StepTime) -> float:
    """Return the seconds of rounds, each of so many layers and steps, from what was measured without a teacher."""
    plain = replace(variant, distilled=False)
    return sum(
        steps * measured.seconds(layers) * budget.operations(variant, layers) / budget.operations(plain, layers)
        for layers, steps in rounds
    )
