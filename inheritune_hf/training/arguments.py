"""Say how each training argument behaves over rounds, and refuse what cannot work with growth."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.trainer_utils import HubStrategy, SaveStrategy

from ..config import InherituneConfig
from ..forecast import MIN_EVALUATIONS
from .distillation import check_quantization
from .distributed import check_launch

#: Arguments of which some values are refused, with the reason and what to do instead.
REFUSED: dict[str, str] = {
    "num_train_epochs": (
        "a run's length is given in steps: set steps_per_round in the recipe, and max_steps to cap all rounds together"
    ),
    "load_best_model_at_end": (
        "the best checkpoint may have another depth than the last student; the last round's student is the result"
    ),
    "save_strategy": "'best' compares checkpoints of different depth; use 'steps', 'epoch' or 'no'",
    "save_only_model": "an interrupted run resumes from its last checkpoint, which needs the optimizer; leave it out",
    "auto_find_batch_size": "a batch size that changes between rounds shifts the data; set per_device_train_batch_size",
    "ignore_data_skip": "a resumed run must continue with the next batch; leave it out",
    "restore_callback_states_from_checkpoint": (
        "callbacks belong to the whole run, a checkpoint to one round; leave it out"
    ),
    "resume_from_checkpoint": "a run resumes by itself from the last checkpoint in output_dir; leave it out",
    "eval_on_start": (
        "every round begins like a resumed run, so it would evaluate again after each interruption; leave it out"
    ),
    "eval_do_concat_batches": "losses are gathered per sequence over all batches; leave it out",
    "batch_eval_metrics": "losses are gathered per sequence over all batches; leave it out",
    "train_sampling_strategy": (
        "rows are packed to one length, so there is nothing to group or to balance; use 'random' or 'sequential'"
    ),
    "lr_scheduler_type": (
        "a schedule that follows the evaluation loss would see the jump between rounds; use 'cosine', 'linear', ..."
    ),
    "hub_strategy": (
        "'checkpoint' and 'all_checkpoints' upload optimizer states, and all but 'end' pickled arguments; use 'end', "
        "and inheritune publish --rounds for every round's student"
    ),
    "metric_for_best_model": (
        "no checkpoint is picked by a metric: the target decides when a student is good enough; leave it out"
    ),
    "enable_jit_checkpoint": (
        "a run saves by itself on SIGTERM and Ctrl-C, at the end of a step, and resumes to the same bits; leave it out"
    ),
    "bf16_full_eval": "it rounds the reference's weights but not those of a student in training; use bf16",
    "fp16_full_eval": "it rounds the reference's weights but not those of a student in training; use fp16",
    "eval_use_gather_object": "the sums of each sequence are gathered as tensors; leave it out",
    "include_for_metrics": "metrics come from the sums of each sequence, inputs are not gathered; leave it out",
    "label_names": "a causal language model has one kind of label, 'labels'; leave it out",
    "use_liger_kernel": "students in training would be measured with other kernels than the reference; leave it out",
    "optim": (
        "galore, apollo and lomo hook into the parameters of one model, schedule_free keeps two sets of weights, and "
        "each round has another student; use 'adamw_torch_fused' or another optimizer"
    ),
    "optim_target_modules": (
        "it belongs to galore and apollo, which hook into the parameters of one model; leave it out"
    ),
    "save_on_each_node": "a run's state is one folder that every node sees; leave it out",
    "dataloader_in_order": (
        "batches in the order in which workers finish are not the same when a run is resumed; leave it out"
    ),
    "dataloader_persistent_workers": (
        "Transformers would keep the selection set's loader and measure the test set with it; leave it out"
    ),
    "accelerator_config": (
        "split_batches, dispatch_batches, even_batches=False, use_seedable_sampler=False and "
        "gradient_accumulation_kwargs change which rows a step sees when a run is resumed; leave them out"
    ),
    "parallelism_config": "a student cannot grow while its tensors are split; use DDP",
    "debug": (
        "its hooks cannot read the masks of padded selection sequences; leave it out: a loss or a weight that is not "
        "finite ends a run anyway"
    ),
}

#: Whether such an argument is refused; those that are not here are if they differ from their default.
_REFUSED_IF: dict[str, Callable[[TrainingArguments], bool]] = {
    "save_strategy": lambda args: args.save_strategy == SaveStrategy.BEST,
    "train_sampling_strategy": lambda args: args.train_sampling_strategy not in {"random", "sequential"},
    "lr_scheduler_type": lambda args: str(plain(args.lr_scheduler_type)) in {"reduce_lr_on_plateau", "greedy"},
    "hub_strategy": lambda args: args.push_to_hub and args.hub_strategy != HubStrategy.END,
    "metric_for_best_model": lambda args: args.metric_for_best_model is not None and not args.load_best_model_at_end,
    "label_names": lambda args: args.label_names not in (None, ["labels"]),
    "optim": lambda args: str(plain(args.optim)).startswith(("galore", "apollo", "lomo", "adalomo", "schedule_free")),
    "accelerator_config": lambda args: _changes_batches(args.accelerator_config),
}


def check_arguments(args: TrainingArguments, config: InherituneConfig) -> TrainingArguments:
    """
    Return a copy of `args` made ready for a run of rounds; what came in is not changed.

    Fractions in `logging_steps`, `eval_steps` and `save_steps` become steps of a round.

    Raises:
        TypeError: If `config` is no recipe.
        ValueError: If `steps_per_round` is missing, or arguments are set that cannot work with growth; each is named
            with the reason and what to do instead; or if several processes were asked for and one was started.
    """
    if not isinstance(config, InherituneConfig):
        raise TypeError(
            f"inheritune_config must be an InherituneConfig, got a {type(config).__name__}; InherituneConfig.from_dict "
            "makes one of a dictionary."
        )
    check_launch(os.environ, args.world_size)
    complaints = [f"{name}: {reason}." for name, reason in REFUSED.items() if _is_refused(name, args)]
    if complaints:
        raise ValueError("These training arguments cannot work with growth:\n- " + "\n- ".join(complaints))
    if config.steps_per_round is None:
        raise ValueError("steps_per_round is needed to train: set the optimizer steps of one round in the recipe.")
    if config.lr_schedule == "continue" and args.max_steps <= 0:
        raise ValueError(
            "lr_schedule 'continue' runs one schedule over all rounds, so it needs their length: set max_steps to the "
            "steps of all rounds together."
        )
    if config.distillation_weights and args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor} would take the place of the recipe's distillation: "
            "set it to 0, or leave distillation out."
        )
    check_quantization(config, args.device)
    if args.max_steps == 0:
        raise ValueError("max_steps must be above 0 to cap all rounds together, or -1 for no cap, got 0.")
    make_scheduler(args, args.max_steps if config.lr_schedule == "continue" else config.steps_per_round)
    ready = copy.copy(args)
    for name in ("logging_steps", "eval_steps", "save_steps"):
        value: Any = getattr(ready, name)
        if value is not None and 0 < value < 1:
            setattr(ready, name, max(1, math.ceil(value * config.steps_per_round)))
    _check_abandon(ready, config.abandon, config.steps_per_round)
    if ready.ddp_find_unused_parameters is None:
        ready.ddp_find_unused_parameters = False
    if ready.device.type == "cpu":
        ready.dataloader_pin_memory = False  # there is nothing to pin for, and torch warns
    if ready.torch_compile:
        ready.torch_compile_backend = "no"  # or Accelerate would compile the whole model
    return ready


def make_scheduler(args: TrainingArguments, steps: int) -> Any:
    """Return the schedule of a learning rate over `steps`; a `ValueError` if `lr_scheduler_kwargs` do not fit it."""
    given: Any = args.lr_scheduler_kwargs or {}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    try:
        return get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps, given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"lr_scheduler_kwargs={given} do not fit lr_scheduler_type {plain(args.lr_scheduler_type)!r} ({error}); "
            "give what it takes, or leave them out."
        ) from error


def _check_abandon(args: TrainingArguments, abandon: float | None, steps: int) -> None:
    between = {"no": math.inf, "steps": args.eval_steps or 0, "epoch": 0}[str(plain(args.eval_strategy))]
    needed = MIN_EVALUATIONS + 1  # two forecasts
    if abandon is not None and between * needed >= steps:
        raise ValueError(
            f"abandon={abandon} needs {needed} evaluations before a round of {steps} steps ends, to forecast it twice: "
            "set eval_strategy to 'steps' and lower eval_steps (0.1: ten evaluations in a round)."
        )


def _is_refused(name: str, args: TrainingArguments) -> bool:
    if name in _REFUSED_IF:
        return _REFUSED_IF[name](args)
    (default,) = (item.default for item in dataclasses.fields(args) if item.name == name)
    value = getattr(args, name)
    # Where the default is a new list, or a word that becomes one, both are empty.
    return bool(value) if default in ("", dataclasses.MISSING) else bool(value != default)


def plain(value: Any) -> Any:
    """Return what an argument is written as: of an enumeration its word."""
    return getattr(value, "value", value)


def _changes_batches(config: Any) -> bool:
    return (
        config.split_batches
        or bool(config.dispatch_batches)
        or not config.even_batches
        or not config.use_seedable_sampler
        or bool(config.gradient_accumulation_kwargs)
    )
