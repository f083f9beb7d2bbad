"""Whole runs: data, loop, controls, test, table, picture, checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..analysis import measure_collapse, sample_sequences, scores_folder
from ..config import DataConfig, InherituneConfig, RunConfig
from ..data import CausalCollator, DataSplits, check_tokenizer, end_of_text, load_data_splits
from ..data.prepared import separates_documents
from ..evaluation import LazinessComparison, compare_losses
from ..figures import loss_panel, save_panels
from ..growth import GrowthRule, follow, rule_from_recipe, students_of
from ..measures import is_measured
from ..outcomes import Conclusion
from ..publishing import FinishedRun, ResultRow, markdown_table, terminal_table
from ..records import Outcome, Validation, write_json, write_record, write_text
from ..run_folder import COURSE, NUMERIC_ARGUMENTS, SETTINGS_FILE, without_nothing
from ..students import OpenedReference, inspect_architecture, open_reference, sliced_config, student_skeleton
from ..training import (
    Baseline,
    CollapseCallback,
    InherituneTrainer,
    check_arguments,
    check_output_dir,
    hold_output_dir,
    on_main_process,
)


@dataclass(frozen=True)
class RunResult:
    """How a run ended, and its result table, which is empty if the run was interrupted."""

    outcome: Outcome
    output_dir: Path  # with the student, `rounds.json`, `results.md` and `losses.png`
    conclusion: Conclusion
    rows: list[ResultRow] = field(default_factory=list)


@dataclass(frozen=True)
class PreparedRun:
    """A reference and its data."""

    reference: OpenedReference
    tokenizer: PreTrainedTokenizerBase
    splits: DataSplits
    collator: CausalCollator | None  # that keeps documents of a sequence apart; None if the trainer's own serves

    def trainer(self, recipe: InherituneConfig, args: TrainingArguments, **options: Any) -> InherituneTrainer:
        """Return a trainer of students of this reference on these data; `options` are the trainer's own."""
        return InherituneTrainer(
            self.reference,
            recipe,
            args,
            train_dataset=self.splits.train,
            eval_dataset=self.splits.selection,
            processing_class=self.tokenizer,
            data_collator=self.collator,
            **options,
        )


def prepare_run(run: RunConfig, recipe: InherituneConfig, data: DataConfig, args: TrainingArguments) -> PreparedRun:
    """Read a run's reference and data, or raise a `ValueError` if they and the settings do not fit together."""
    if run.reference is None:
        raise ValueError("There is no reference: give its Hub id or path by --reference.")
    reference = open_reference(run.reference, **run.where)
    refuse_early(recipe, args, reference.config)
    tokenizer, text = reference.tokenizer, reference.text_config
    check_tokenizer(tokenizer, text.vocab_size, getattr(text, "eos_token_id", None))
    with args.main_process_first(desc="reading and packing the data"):
        splits = load_data_splits(
            data,
            tokenizer,
            seed=args.seed,
            data_seed=args.data_seed,
            context_length=reference.context_length,
            vocab_size=text.vocab_size,
        )
    end = end_of_text(tokenizer)
    return PreparedRun(reference, tokenizer, splits, CausalCollator(end, end) if separates_documents(data) else None)


def refuse_early(recipe: InherituneConfig, args: TrainingArguments, config: PreTrainedConfig) -> None:
    """Raise the `ValueError` that the trainer or a later round would raise, before hours of tokenizing or training."""
    check_arguments(args, recipe)
    check_output_dir(args, recipe)
    architecture = inspect_architecture(config)
    rule = rule_from_recipe(recipe, architecture.depth, architecture.prefix_sizes)
    for layers in () if is_measured(recipe.keep_layers) else students_of(rule):
        sliced_config(config, layers)


def run_recipe(
    run: RunConfig, recipe: InherituneConfig, data: DataConfig, args: TrainingArguments, console: Console
) -> RunResult:
    """
    Run a recipe from its reference to a saved student: `inheritune train` and the example script.

    Raises:
        ValueError: If settings, data and reference do not fit together; nothing has been trained then.
        BlockingIOError: If another process runs in `output_dir`.
    """
    with hold_output_dir(args):
        ready = prepare_run(run, recipe, data, args)
        trainer = train_student(ready, run, recipe, args, run_settings(run, recipe, data, args))
        return finish_run(trainer, ready.splits, console)


def train_student(
    ready: PreparedRun,
    run: RunConfig,
    recipe: InherituneConfig,
    args: TrainingArguments,
    settings: Mapping[str, Any],
    baseline: Baseline | None = None,
) -> InherituneTrainer:
    """Return the trainer after its rounds, or those before it was interrupted; `settings` are kept in its folder."""
    trainer = ready.trainer(recipe, args, reference_cache=run.reference_cache, baseline=baseline)
    watch_collapse(trainer, ready.splits, run.collapse_every)
    trainer.add_callback(SettingsCallback(settings))
    trainer.train()
    return trainer


def watch_collapse(trainer: InherituneTrainer, splits: DataSplits, every: int | None) -> None:
    """
    Let the trainer count lazy layers at every so many evaluations, on sequences of the selection set.

    The reference is measured here, before there is a student in memory, and its scores are cached. A student whose
    parameters will be sharded over processes, or be on a device without float64, is a `ValueError`.
    """
    if every is None:
        return
    if trainer.sharding in ("fsdp", "zero3"):
        raise ValueError(
            f"collapse_every={every} measures the student on the main process, which under {trainer.sharding} has a "
            "part of each weight; leave it out, and measure the trained student by `inheritune analyze`."
        )
    if trainer.args.device.type == "mps":
        raise ValueError(
            f"collapse_every={every} measures in float64, which MPS does not have; leave it out, and measure the "
            "trained student by `inheritune analyze`."
        )
    sequences = sample_sequences(splits.selection)
    report = None
    if trainer.args.process_index == 0:
        report = measure_collapse(
            trainer.reference,
            sequences,
            controls=False,
            blocks=False,
            cache_dir=scores_folder(),
            progress=not trainer.args.disable_tqdm,
            dtype=torch.float32,
            device_map={"": str(trainer.args.device)},
        )
    trainer.add_callback(CollapseCallback(sequences, every, log=trainer.log, reference=on_main_process(report)))


def finish_run(
    trainer: InherituneTrainer,
    splits: DataSplits,
    console: Console,
    train_controls: Callable[[], Mapping[str, TrainedModel]] | None = None,
    remarks: Callable[[list[ResultRow]], str] | None = None,
) -> RunResult:
    """
    Open the test set, save the student, write the table, the picture and the records, and push if that was asked for.

    After an interrupted training nothing is done. `train_controls` trains the models to compare with, by name;
    `remarks` turns the rows into a text below the table.
    """
    output_dir = trainer.output_dir
    if trainer.outcome == "interrupted":
        return RunResult("interrupted", output_dir, conclude_run(trainer))
    trainer.save_model()
    student = measure_test(trainer, splits)
    reference = trainer.measure_reference(splits.test, metric_key_prefix="reference_test")
    trained = {"student": student, **(train_controls() if train_controls else {})}
    rows = result_rows(trainer, reference, trained)
    if trainer.args.should_save:
        text = remarks(rows) if remarks else ""
        laziness = _laziness(trainer)
        if laziness is not None:
            text = "\n\n".join(part for part in (text, laziness.sentence) if part)
        curves = {name: item.curve for name, item in trained.items()}
        picture = loss_panel(trainer.rounds, curves, trainer.run_record.target, trainer.inheritune_config.tolerance)
        save_panels(output_dir / "losses.png", [picture])
        write_text(output_dir / "results.md", markdown_table(rows) + ("\n\n" + text if text else "") + "\n")
        record = FinishedRun(
            **vars(trainer.run_record),
            results=tuple(rows),
            curves={name: tuple(curve) for name, curve in curves.items()},
            data=splits.facts,
            seed=trainer.args.seed,
            lazy_layers=laziness,
        )
        write_record(output_dir / "rounds.json", record)
        console.print(terminal_table(rows))
        if text:
            console.print(text)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    return RunResult(trainer.outcome or "interrupted", output_dir, conclude_run(trainer, rows), rows)


def conclude_run(trainer: InherituneTrainer, rows: Iterable[ResultRow] = ()) -> Conclusion:
    """Return what a run came to, in words; `rows` are those of the test set, once it is opened."""
    return trainer.conclude(next((row.match for row in rows if row.model == "student"), None))


def _laziness(trainer: InherituneTrainer) -> LazinessComparison | None:
    """Return whether the student has fewer lazy layers than its reference, if the run measures it."""
    for item in trainer.callback_handler.callbacks:
        if isinstance(item, CollapseCallback):
            # Where the run had ended before, nothing has measured its student in this process.
            item.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.student)
            return item.verdict()
    return None


def result_rows(
    trainer: InherituneTrainer, reference: Validation, trained: Mapping[str, TrainedModel]
) -> list[ResultRow]:
    """Return the rows of the test set: the reference's, by its loss there, and those of trained models, by name."""
    recipe = trainer.inheritune_config
    whole = student_skeleton(trainer.reference.config, range(trainer.reference.depth))
    rows = [ResultRow("reference", trainer.reference.depth, whole.num_parameters(), 0, 0, reference.loss)]
    target = reference if recipe.target == "reference" else float(recipe.target)
    for name, item in trained.items():
        depth, size = item.model.config.get_text_config(decoder=True).num_hidden_layers, item.model.num_parameters()
        # One look, at the whole confidence: the test set is opened once.
        match = compare_losses(item.test, target, recipe.tolerance, recipe.confidence)
        rows.append(ResultRow(name, depth, size, item.steps, item.tokens, item.test.loss, match))
    return rows


# The student, and controls to compare it with


@dataclass(frozen=True)
class TrainedModel:
    """A model that was trained by a run's own settings, data and order, and measured on the test set."""

    model: PreTrainedModel
    curve: list[tuple[int, float]]  # steps and selection loss in nats per token
    test: Validation
    steps: int
    tokens: int


def measure_test(trainer: InherituneTrainer, splits: DataSplits) -> TrainedModel:
    """Return what a trainer has trained, after measuring it on the test set."""
    trainer.evaluate(splits.test, metric_key_prefix="test")
    test, rounds = trainer.validations["test"], trainer.rounds
    tokens = sum(item.tokens for item in rounds)
    return TrainedModel(trainer.student, loss_curve(trainer.state), test, rounds[-1].end_step, tokens)


def train_control(
    model: str | PreTrainedModel,
    args: TrainingArguments,
    splits: DataSplits,
    steps: int,
    description: str,
    output_dir: Path,
) -> TrainedModel:
    """
    Train a model for `steps` steps by one schedule and measure it on the test set; model and `args` are not changed.

    If `output_dir` holds this very training it resumes from its last checkpoint; a finished one is only measured.
    `description` is its name on the progress bar.

    Raises:
        KeyboardInterrupt: If it was interrupted; its last checkpoint is on disk.
        ValueError: If `output_dir` holds another training.
    """
    reference = open_reference(model)
    own = with_changes(
        args,
        output_dir=str(output_dir),
        max_steps=-1,
        save_total_limit=1,
        eval_strategy="steps",
        report_to=[],  # neither trackers nor the Hub get a control
        push_to_hub=False,
    )
    rule = GrowthRule(tuple(range(reference.depth)), follow([]), steps, match="never")
    trainer = InherituneTrainer(
        reference,
        # A number to reach, so that the reference, which is the control itself, is not measured; no loss reaches it.
        InherituneConfig(keep_layers=reference.depth, steps_per_round=steps, target=1e-9),
        own,
        train_dataset=splits.train,
        eval_dataset=splits.selection,
        data_collator=CausalCollator(0),
        baseline=Baseline(growth_rule=rule, description=description),
    )
    trainer.train()
    if trainer.outcome == "interrupted":
        raise KeyboardInterrupt(f"{description} was interrupted")
    trained = measure_test(trainer, splits)
    del trained.model.config.inheritune  # it is no student of the model that it started from
    return trained


def loss_curve(state: TrainerState) -> list[tuple[int, float]]:
    """Return steps and selection losses, in nats per token, of a training log."""
    return [(int(item["step"]), item["eval_loss"]) for item in state.log_history if "eval_loss" in item]


def with_changes(args: TrainingArguments, **changes: Any) -> TrainingArguments:
    """Return a copy of `args` with `changes`, without setting up devices again as `dataclasses.replace` would."""
    changed = copy.copy(args)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


# Settings


def run_settings(run: RunConfig, recipe: InherituneConfig, data: DataConfig, args: TrainingArguments) -> dict[str, Any]:
    """Return a run's settings as a file for `--config` holds them, with the arguments that change its results."""
    arguments = {name: getattr(args, name) for name in (*NUMERIC_ARGUMENTS, *COURSE) if name != "world_size"}
    training = {name: getattr(value, "value", value) for name, value in arguments.items()}  # of an enumeration its word
    values = {**asdict(run), **recipe.to_dict(), **data.to_dict(), **training}
    del values["preset"]  # whose settings are all written out
    return without_nothing(values)


class SettingsCallback(TrainerCallback):
    """Write a run's settings into its folder when it begins to train."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the settings: the trainer has checked by now that the folder is this run's."""
        if state.is_world_process_zero:
            write_json(f"{args.output_dir or 'trainer_output'}/{SETTINGS_FILE}", self.settings)
