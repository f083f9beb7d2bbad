"""Run the embedded default: the whole loop on a reference and text of the package, in minutes on two cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..config import DataConfig, InherituneConfig, RunConfig
from ..data.embedded import embedded_data, embedded_reference
from ..publishing import ResultRow
from ..students import student_skeleton
from ..training import InherituneTrainer, hold_output_dir
from .arm_models import random_model
from .assessment import continue_text
from .results import TRAINED_FURTHER
from .runs import (
    PreparedRun,
    RunResult,
    TrainedModel,
    conclude_run,
    finish_run,
    prepare_run,
    run_settings,
    train_control,
    train_student,
    with_changes,
)

RANDOM, RANDOM_TWICE = "random weights", "random weights, twice the steps"
_PROMPT = "She looked up at him, and"
# The rate at which the reference was trained from random weights; students take a lower one.
_RANDOM_LEARNING_RATE = 3e-3


def run_embedded(
    run: RunConfig, recipe: InherituneConfig, data: DataConfig, args: TrainingArguments, console: Console
) -> RunResult:
    """
    Run the recipe on the embedded reference and its novels, and train three controls on the same text.

    The controls are models of the student's shape from random weights, for the student's total steps and for twice as
    many, and the reference, trained further. All have checkpoints, and what is finished is not trained again.

    Raises:
        KeyboardInterrupt: If a control was interrupted; the same call resumes it.
        ValueError: If settings do not fit together, or name a reference's revision or data.
        BlockingIOError: If another process runs in `output_dir`.
    """
    chosen, text = with_embedded(run, data)
    with hold_output_dir(args):
        ready = prepare_run(chosen, recipe, text, args)
        facts, reference = ready.splits.facts, ready.reference
        console.print(
            f"The embedded reference: GPT-2 with {reference.depth} layers, trained on 45 novels. Passages of others: "
            f"{facts.train.documents} of four to train on ({facts.train.tokens:,} tokens), {facts.selection.documents} "
            f"of two for selection (validation), {facts.test.documents} of two more for the test."
        )
        console.rule("inherit, train, compare, grow")
        trainer = train_student(ready, chosen, recipe, args, run_settings(run, recipe, data, args))
        if trainer.outcome != "interrupted":
            console.rule("controls and test")
        return finish_run(
            trainer,
            ready.splits,
            console,
            train_controls=lambda: _controls(trainer, ready),
            remarks=lambda rows: _remarks(trainer, rows, ready),
        )


def with_embedded(run: RunConfig, data: DataConfig) -> tuple[RunConfig, DataConfig]:
    """
    Return the embedded reference and its data for a run that names none; any other run as it is.

    Data, or where a reference is, without a reference are a `ValueError`.
    """
    if run.reference is not None:
        return run, data
    plain = DataConfig()
    given = [item.name for item in fields(data) if getattr(data, item.name) != getattr(plain, item.name)]
    given = [name for name in run.where if name != "attn_implementation"] + given
    if given:
        raise ValueError(
            f"{' and '.join(given)} came without a reference: give the reference's Hub id or path by "
            "--reference, or leave this out to run the embedded default."
        )
    return replace(run, reference=embedded_reference()), embedded_data()


def _controls(trainer: InherituneTrainer, ready: PreparedRun) -> Mapping[str, TrainedModel]:
    """Train random weights of the student's shape, at one and at two budgets, and the reference further."""
    last, args = trainer.rounds[-1], trainer.args
    steps = max(1, last.end_step)  # none if the whole reference was inherited, which matches untrained
    shape = student_skeleton(ready.reference.config, range(last.layers)).config
    fresh = with_changes(args, learning_rate=max(args.learning_rate, _RANDOM_LEARNING_RATE))
    plans: dict[str, tuple[str | PreTrainedModel, int, TrainingArguments]] = {
        RANDOM: (random_model(shape, args.seed), steps, fresh),
        RANDOM_TWICE: (random_model(shape, args.seed), 2 * steps, fresh),
        TRAINED_FURTHER: (ready.reference.name, steps, args),
    }
    return {
        name: train_control(
            model,
            with_changes(settings, eval_steps=max(1, count // 10)),
            ready.splits,
            count,
            name,
            trainer.output_dir / "controls" / f"{number}-{count}-steps",
        )
        for number, (name, (model, count, settings)) in enumerate(plans.items(), 1)
    }


def _remarks(trainer: InherituneTrainer, rows: list[ResultRow], ready: PreparedRun) -> str:
    """Return samples of generated text, and a paragraph on what the run shows and what it does not."""
    by_name = {row.model: row for row in rows}
    student, twice, further = by_name["student"], by_name[RANDOM_TWICE], by_name[TRAINED_FURTHER]
    samples = {
        "student": _sample(trainer.student, ready.tokenizer),
        "reference": _sample(ready.reference.load(dtype=torch.float32), ready.tokenizer),
    }
    shown = "\n\n".join(f"Sample, {name}:\n{text}" for name, text in samples.items())
    return (
        f"{shown}\n\nWhat this shows: {conclude_run(trainer, rows).sentence}. On the test set the student's loss is "
        f"{_apart(student, twice)} that of random weights of its shape that had twice its steps, and "
        f"{_apart(student, further)} that of the reference, trained further for its steps, which is itself "
        f"{_apart(further, rows[0])} where it started. What it does not show: this is one reference of "
        f"{rows[0].parameters:,} parameters, one seed and a few novels; it says nothing about the sizes in the paper."
    )


def _apart(one: ResultRow, other: ResultRow) -> str:
    """Return how far one model's loss is from another's, in words."""
    return f"{abs(one.loss - other.loss):.3f} nats per token {'below' if one.loss < other.loss else 'above'}"


def _sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    text = _PROMPT + continue_text(model, tokenizer(_PROMPT)["input_ids"], tokenizer)
    return "    " + text.replace("\n", "\n    ")
