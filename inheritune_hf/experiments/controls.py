"""What a student is compared with: one model trained by the run's own settings, data and order."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel, ProgressCallback, TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data import CausalCollator, DataSplits
from ..evaluation import ValidatedTrainer, Validation
from ..training import RoundProgress


@dataclass(frozen=True)
class Control:
    """
    A trained control.

    Args:
        model (`PreTrainedModel`): The model after training.
        curve (`list[tuple[int, float]]`): Selection loss against steps, in nats per token.
        test (`Validation`): Its loss on the test set, per document.
        tokens (`int`): Tokens trained on.
    """

    model: PreTrainedModel
    curve: list[tuple[int, float]]
    test: Validation
    tokens: int


def train_control(
    model: PreTrainedModel,
    args: TrainingArguments,
    splits: DataSplits,
    steps: int,
    description: str,
    output_dir: Path,
    pad_token_id: int = 0,
) -> Control:
    """
    Train `model` for `steps` steps by one schedule and measure it on the test set.

    Args:
        model (`PreTrainedModel`): Trained in place.
        args (`TrainingArguments`): Settings of the run that it is a control of; not changed.
        splits (`DataSplits`): The run's data.
        steps (`int`): Optimizer steps.
        description (`str`): Name on the progress bar.
        output_dir (`Path`): Where the trainer may write.
        pad_token_id (`int`, *optional*, defaults to `0`): Token to pad evaluation sequences with; it never counts.
    """
    own = with_changes(
        args,
        output_dir=str(output_dir),
        max_steps=steps,
        save_strategy=SaveStrategy.NO,
        report_to=[],  # trackers show the run, not what it is compared with
        eval_strategy=IntervalStrategy.STEPS,
        dataloader_pin_memory=args.dataloader_pin_memory and args.device.type != "cpu",
    )
    trainer = ValidatedTrainer(
        model=model,
        args=own,
        train_dataset=splits.train,
        eval_dataset=splits.selection,
        data_collator=CausalCollator(pad_token_id),
    )
    if trainer.pop_callback(ProgressCallback) is not None:
        bar = RoundProgress()
        bar.description = description
        trainer.add_callback(bar)
    trainer.train()
    history: list[dict[str, Any]] = trainer.state.log_history
    trainer.evaluate(splits.test, metric_key_prefix="test")
    tokens = steps * len(splits.train[0]["input_ids"]) * trainer.get_total_train_batch_size(own)
    return Control(
        model=trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False),
        curve=[(item["step"], item["eval_loss"]) for item in history if "eval_loss" in item],
        test=trainer.validations["test"],
        tokens=tokens,
    )


def random_model(config: Any, seed: int) -> PreTrainedModel:
    """Return a model of random weights with the shape of `config`, by the architecture's own initialisation."""
    set_seed(seed)
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config)
    return model


def with_changes(args: TrainingArguments, **changes: Any) -> TrainingArguments:
    """Return a copy of `args` with `changes`, without setting up devices again as `dataclasses.replace` would."""
    changed = copy.copy(args)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed
