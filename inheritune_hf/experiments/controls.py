"""What a student is compared with: one model trained by the run's own settings, data and order."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel, TrainingArguments, set_seed

from ..config import InherituneConfig
from ..data import CausalCollator, DataSplits
from ..growth import GrowthRule, follow
from ..records import Validation
from ..students import open_reference
from ..training import Baseline, InherituneTrainer

#: A control has no loss to reach: it takes all its steps.
_UNREACHED = 1e-9


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
    model: str | PreTrainedModel,
    args: TrainingArguments,
    splits: DataSplits,
    steps: int,
    description: str,
    output_dir: Path,
    pad_token_id: int = 0,
) -> Control:
    """
    Train a model for `steps` steps by one schedule and measure it on the test set.

    If `output_dir` holds this very training it resumes from its last checkpoint; a finished one is only measured.

    Args:
        model (`str` or `PreTrainedModel`): What to begin with; it is not changed.
        args (`TrainingArguments`): Settings of the run that it is a control of; not changed.
        splits (`DataSplits`): The run's data.
        steps (`int`): Optimizer steps.
        description (`str`): Name on the progress bar.
        output_dir (`Path`): Where checkpoints are kept.
        pad_token_id (`int`, *optional*, defaults to `0`): Token to pad evaluation sequences with; it never counts.

    Raises:
        KeyboardInterrupt: If it was interrupted; what was trained is on disk.
        ValueError: If `output_dir` holds another training.
    """
    reference = open_reference(model)
    layers = tuple(range(reference.depth))
    own = with_changes(
        args,
        output_dir=str(output_dir),
        max_steps=-1,
        save_total_limit=1,
        eval_strategy="steps",
        report_to=[],  # trackers show the run, not what it is compared with; neither does the Hub get it
        push_to_hub=False,
    )
    trainer = InherituneTrainer(
        reference,
        InherituneConfig(keep_layers=reference.depth, steps_per_round=steps, target=_UNREACHED),
        own,
        train_dataset=splits.train,
        eval_dataset=splits.selection,
        data_collator=CausalCollator(pad_token_id),
        baseline=Baseline(growth_rule=GrowthRule(layers, follow([]), steps, match="never"), description=description),
    )
    trainer.train()
    if trainer.outcome == "interrupted":
        raise KeyboardInterrupt(f"{description} was interrupted")
    history: list[dict[str, Any]] = trainer.state.log_history
    trainer.evaluate(splits.test, metric_key_prefix="test")
    trained = trainer.student
    del trained.config.inheritune  # it is no student of what it began with
    return Control(
        model=trained,
        curve=[(int(item["step"]), item["eval_loss"]) for item in history if "eval_loss" in item],
        test=trainer.validations["test"],
        tokens=sum(item.tokens for item in trainer.rounds),
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
