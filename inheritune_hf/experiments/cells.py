"""One cell of a comparison: an arm, a seed and a learning rate, trained once and kept on disk."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    ProgressCallback,
    TrainingArguments,
)
from transformers.integrations.integration_utils import SwanLabCallback, WandbCallback

from ..analysis import NEAR_RANK_ONE, measure_collapse
from ..analysis.sequences import leading_sequences
from ..configuration import InherituneConfig
from ..data import CausalCollator
from ..evaluation import ValidatedTrainer, Validation
from ..records import write_json
from ..students import sliced_config
from ..students.estimation import training_operations
from ..training import on_main_process
from ..training.staging import check_identity, last_checkpoint
from .arms import ArmTrainer, Variant, arm_shape
from .controls import with_changes
from .runs import PreparedRun

CELL_FILE = "cell.json"
LOG_FILE = "log.json"
MODEL_FOLDER = "model"

# Settings of the recipe that say what the loop inherits and how it grows, and so nothing about other arms.
_OF_THE_LOOP = (
    "inherit",
    "attention_scale",
    "schedule",
    "growth",
    "new_blocks",
    "optimizer_state",
    "lr_schedule",
    "freeze_steps",
    "match_at",
)

#: What `/kd` trains with unless the recipe says otherwise (arXiv 2404.08634v4, F.2: 0.6 and 0.4 at temperature 1).
PAPER_DISTILLATION = "cross_entropy=0.6,forward_kl=0.4"


@dataclass(frozen=True)
class Cell:
    """
    What an arm came to with one seed and one learning rate.

    Args:
        arm (`str`): The arm, as the recipe names it.
        seed (`int`): Seed of weights, dropout and data order.
        learning_rate (`float`): Peak learning rate.
        layers (`int`): Depth of the final model.
        parameters (`int`): Its parameters, tied ones counted once.
        steps (`int`): Optimizer steps, all rounds and stages together, failed ones included.
        tokens (`int`): Tokens of those steps.
        flops (`float`): Floating-point operations of those steps, forward and backward.
        epochs (`float`): Passes over the training set, all rounds and stages together.
        seconds (`float`): Wall time of training and evaluating.
        outcome (`str`, *optional*): How the loop ended; None for other arms.
        curve (`tuple`): Points of (tokens, FLOPs, selection loss in nats per token).
        reference_loss (`float`): The reference's selection loss, in nats per token.
        selection (`Validation`): The final model's loss on the selection set, per document.
        folder (`str`): Name of the folder that holds the trained model, below the comparison's.
        identity (`Mapping`): What it was trained by: a finished cell stands for no other settings.
        lazy_layers (`int`, *optional*): Layers of the final model near rank 1; None where not measured.
        test (`Validation`, *optional*): Its loss on the test set; None unless this cell was chosen.
    """

    arm: str
    seed: int
    learning_rate: float
    layers: int
    parameters: int
    steps: int
    tokens: int
    flops: float
    epochs: float
    seconds: float
    outcome: str | None
    curve: tuple[tuple[int, float, float], ...]
    reference_loss: float
    selection: Validation
    folder: str
    identity: Mapping[str, Any]
    lazy_layers: int | None = None
    test: Validation | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the cell as a dictionary that JSON can hold."""
        return {
            **asdict(self),
            "selection": self.selection.to_dict(),
            "test": None if self.test is None else self.test.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cell:
        """Rebuild a cell from what `to_dict` returned."""
        return cls(
            **{
                **values,
                "curve": tuple((tokens, flops, loss) for tokens, flops, loss in values["curve"]),
                "selection": Validation.from_dict(values["selection"]),
                "test": None if values["test"] is None else Validation.from_dict(values["test"]),
            }
        )


@dataclass(frozen=True)
class CellPlan:
    """
    What a cell is to train.

    Args:
        variant (`Variant`): The arm.
        seed (`int`): Its seed.
        learning_rate (`float`): Peak learning rate.
        layers (`int`): Depth of the final model.
        steps (`int`): Optimizer steps that it may take; 0 leaves it to the loop.
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


@dataclass(frozen=True)
class Bench:
    """
    What all cells of a comparison share.

    Args:
        ready (`PreparedRun`): Reference, tokenizer and data.
        recipe (`InherituneConfig`): The loop's recipe.
        args (`TrainingArguments`): Settings of every cell but for seed, learning rate and steps.
        folder (`Path`): The comparison's folder.
    """

    ready: PreparedRun
    recipe: InherituneConfig
    args: TrainingArguments
    folder: Path


def run_cell(bench: Bench, plan: CellPlan) -> Cell | None:
    """
    Train a cell, or go on where it was interrupted; a finished one is read from disk.

    Returns:
        `Cell`, *optional*: What it came to; None if it was interrupted.

    Raises:
        ValueError: If the folder holds a cell of other settings.
    """
    folder = bench.folder / plan.folder
    cell: Cell | None = on_main_process(read_cell(folder) if bench.args.process_index == 0 else None)
    trainer = cell_trainer(bench, plan)
    if cell is not None:
        check_identity(folder, cell.identity, cell_identity(trainer))
        return cell
    with own_tracker_run(trainer):
        trainer.train()
        if trainer.outcome == "interrupted":
            return None
        cell = _finished(bench, plan, trainer)
    trainer.save_model(str(folder / MODEL_FOLDER))
    if trainer.args.should_save:
        write_json(folder / LOG_FILE, {"log": trainer.state.log_history})
        write_json(folder / CELL_FILE, cell.to_dict())
        for path in (folder / "_inheritune", *folder.glob("checkpoint-*")):
            shutil.rmtree(path)
    trainer.accelerator.wait_for_everyone()
    return cell


@contextlib.contextmanager
def own_tracker_run(trainer: ArmTrainer) -> Iterator[None]:
    """
    End what a cell has opened in Weights & Biases or SwanLab: their callbacks open a run only where none is open.

    One that was open before is the caller's own, and stays.
    """
    kinds = {"wandb": WandbCallback, "swanlab": SwanLabCallback}
    told = [
        name for name, kind in kinds.items() for item in trainer.callback_handler.callbacks if isinstance(item, kind)
    ]
    free = [name for name in told if _open_run(name) is None]
    try:
        yield
    finally:
        for name in free:
            if _open_run(name) is not None:
                importlib.import_module(name).finish()


def _open_run(name: str) -> Any:
    tracker = importlib.import_module(name)
    return tracker.run if name == "wandb" else tracker.get_run()


def test_cell(bench: Bench, plan: CellPlan, cell: Cell) -> Cell:
    """Measure a chosen cell on the test set and count its lazy layers, once: what was measured is kept with it."""
    if cell.test is not None:
        return cell
    folder = bench.folder / plan.folder
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(folder / MODEL_FOLDER, dtype=torch.float32)
    cell = replace(cell, test=measure(bench, model), lazy_layers=on_main_process(lazy_layers(bench, model)))
    if bench.args.should_save:
        write_json(folder / CELL_FILE, cell.to_dict())
    return cell


def measure(bench: Bench, model: PreTrainedModel) -> Validation:
    """Return a model's loss on the test set, by the loop that judges students."""
    trainer = ValidatedTrainer(
        model=model,
        # No tracker: it would open a run for this alone. The figures are in the records.
        args=with_changes(bench.args, output_dir=str(bench.folder), report_to=[]),
        eval_dataset=bench.ready.splits.test,
        data_collator=bench.ready.collator or CausalCollator(bench.ready.tokenizer.eos_token_id or 0),
    )
    trainer.pop_callback(ProgressCallback)
    trainer.evaluate(metric_key_prefix="test")
    return trainer.validations["test"]


def lazy_layers(bench: Bench, model: PreTrainedModel) -> int:
    """Return how many of a model's layers are near rank 1 on sequences of the selection set."""
    report = measure_collapse(model, leading_sequences(bench.ready.splits.selection), controls=False, blocks=False)
    return len(report.lazy_layers(NEAR_RANK_ONE))


def read_cell(folder: Path) -> Cell | None:
    """Read a finished cell; None if there is none."""
    path = folder / CELL_FILE
    return Cell.from_dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def cell_trainer(bench: Bench, plan: CellPlan) -> ArmTrainer:
    """Return the trainer of a cell: the run's own settings, and the arm's rounds."""
    args = with_changes(
        bench.args,
        output_dir=str(bench.folder / plan.folder),
        seed=plan.seed,
        data_seed=plan.seed,
        learning_rate=plan.learning_rate,
        max_steps=plan.steps or -1,
        save_total_limit=1,
        push_to_hub=False,
        run_name=f"{bench.args.run_name or bench.folder.name}/{plan.folder}",
    )
    return ArmTrainer(
        plan.variant,
        plan.chosen,
        bench.ready.reference,
        cell_recipe(bench.recipe, plan),
        args,
        train_dataset=bench.ready.splits.train,
        eval_dataset=bench.ready.splits.selection,
        processing_class=bench.ready.tokenizer,
        data_collator=bench.ready.collator,
        reference_kwargs=dict(bench.ready.kwargs),
    )


def cell_recipe(recipe: InherituneConfig, plan: CellPlan) -> InherituneConfig:
    """Return the rounds of a cell: the recipe's own for the loop, one for each stage for other arms."""
    recipe = replace(
        recipe, distillation=(recipe.distillation or PAPER_DISTILLATION) if plan.variant.distilled else None
    )
    if plan.variant.arm.build is None:
        return recipe
    stages = 2 if plan.variant.arm.doubles else 1
    # What the loop does between rounds is its own; how a model is trained and judged is every arm's.
    plain = InherituneConfig()
    return replace(
        recipe,
        keep_layers=plan.layers // stages,
        grow_by=max(1, plan.layers - plan.layers // stages),
        max_layers=plan.layers,
        steps_per_round=plan.steps // stages,
        data_order="continue",
        **{name: getattr(plain, name) for name in _OF_THE_LOOP},
    )


def cell_identity(trainer: ArmTrainer) -> dict[str, Any]:
    """Return what makes a cell this very cell: unlike a run, it is not gone on with when its budget is raised."""
    return {
        **trainer.identity(),
        "recipe.max_layers": trainer.inheritune_config.max_layers,
        "args.max_steps": trainer.budget,
    }


def operations(variant: Variant, reference: PreTrainedConfig, layers: int, block_size: int) -> float:
    """Return the floating-point operations of training an arm's model of so many layers on one token."""
    shape = sliced_config(arm_shape(variant.arm, reference), range(layers))
    return training_operations(shape, block_size, reference if variant.distilled else None)


def _finished(bench: Bench, plan: CellPlan, trainer: ArmTrainer) -> Cell:
    tokens, flops = 0, 0.0
    points: list[tuple[int, float, float]] = []
    losses = {int(row["step"]): row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
    for item in trainer.rounds:
        per_step = item.tokens / (item.end_step - item.start_step)
        per_token = operations(plan.variant, trainer.reference_config, item.layers, bench.ready.block_size)
        for step, loss in losses.items():
            if item.start_step < step <= item.end_step:
                done = (step - item.start_step) * per_step
                points.append((round(tokens + done), flops + done * per_token, loss))
        tokens += item.tokens
        flops += item.tokens * per_token
    last = trainer.rounds[-1]
    student: PreTrainedModel = trainer.student
    # Whatever the loss to reach is, others are held against the reference's.
    reference = trainer.reference_validation or trainer.measure_reference()
    return Cell(
        arm=plan.variant.name,
        seed=plan.seed,
        learning_rate=plan.learning_rate,
        layers=last.layers,
        parameters=student.num_parameters(),
        steps=last.end_step,
        tokens=tokens,
        flops=flops,
        # Where the data continue, a round's passes are those of the whole run.
        epochs=last.epochs if trainer.inheritune_config.continues_data else sum(item.epochs for item in trainer.rounds),
        seconds=sum(item.seconds for item in trainer.rounds),
        outcome=trainer.outcome if plan.variant.arm.build is None else None,
        curve=tuple(points),
        reference_loss=reference.loss,
        selection=_last_validation(trainer),
        folder=plan.folder,
        identity=cell_identity(trainer),
    )


def _last_validation(trainer: ArmTrainer) -> Validation:
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
