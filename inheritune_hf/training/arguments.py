"""What a run of several rounds is given: arguments honoured or refused with the reason, data checked, identity told."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import datasets
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy

from ..configuration import InherituneConfig
from ..data import set_fingerprint
from ..data.streaming import PackedStream

#: Name of a refused argument: (is it refused as it stands?, why, and what to do).
REFUSED: dict[str, tuple[Callable[[TrainingArguments], bool], str]] = {
    "num_train_epochs": (
        lambda args: args.num_train_epochs != 3.0,
        "a run's length is said in steps: set steps_per_round in the recipe, and max_steps to cap all rounds together",
    ),
    "load_best_model_at_end": (
        lambda args: args.load_best_model_at_end,
        "the best checkpoint may have another depth than the last student; the last round's student is the result",
    ),
    "save_strategy": (
        lambda args: args.save_strategy == SaveStrategy.BEST,
        "'best' compares checkpoints of different depth; use 'steps', 'epoch' or 'no'",
    ),
    "save_only_model": (
        lambda args: args.save_only_model,
        "an interrupted run goes on from its last checkpoint, which needs the optimizer; leave it out",
    ),
    "auto_find_batch_size": (
        lambda args: args.auto_find_batch_size,
        "a batch size that changes between rounds shifts the data; set per_device_train_batch_size",
    ),
    "ignore_data_skip": (
        lambda args: args.ignore_data_skip,
        "a resumed run must go on with the next batch; leave it out",
    ),
    "restore_callback_states_from_checkpoint": (
        lambda args: args.restore_callback_states_from_checkpoint,
        "callbacks belong to the whole run, a checkpoint to one round; leave it out",
    ),
    "resume_from_checkpoint": (
        lambda args: args.resume_from_checkpoint is not None,
        "a run goes on by itself from the last checkpoint in output_dir; leave it out",
    ),
    "eval_on_start": (
        lambda args: args.eval_on_start,
        "every round begins like a resumed run, so it would evaluate again after each interruption; leave it out",
    ),
    "eval_do_concat_batches": (
        lambda args: not args.eval_do_concat_batches,
        "losses are gathered per sequence over all batches; leave it out",
    ),
    "batch_eval_metrics": (
        lambda args: args.batch_eval_metrics,
        "losses are gathered per sequence over all batches; leave it out",
    ),
    "train_sampling_strategy": (
        lambda args: args.train_sampling_strategy == "group_by_length",
        "it reorders the selection set too, and packed sequences have one length; use 'random' or 'sequential'",
    ),
    "lr_scheduler_type": (
        lambda args: (
            str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) in {"reduce_lr_on_plateau", "greedy"}
        ),
        "a schedule that follows the evaluation loss would see the jump between rounds; use 'cosine', 'linear', ...",
    ),
    "hub_strategy": (
        lambda args: args.push_to_hub and args.hub_strategy != HubStrategy.END,
        "'checkpoint' and 'all_checkpoints' upload optimizer states, and all but 'end' pickled arguments; use 'end', "
        "and inheritune publish --rounds for every round's student",
    ),
    "deepspeed": (lambda args: args.deepspeed is not None, "a student cannot grow inside its engine yet; use DDP"),
    "fsdp": (lambda args: bool(args.fsdp), "a student cannot grow while it is sharded yet; use DDP"),
}


def check_arguments(args: TrainingArguments, config: InherituneConfig) -> TrainingArguments:
    """
    Return a copy of `args` made ready for a run of rounds; what came in is not changed.

    Fractions in `logging_steps`, `eval_steps` and `save_steps` become steps of a round.

    Raises:
        TypeError: If `config` is no recipe.
        ValueError: If `steps_per_round` is missing, or arguments are set that cannot work with growth; each is named
            with the reason and what to do instead.
    """
    if not isinstance(config, InherituneConfig):
        raise TypeError(
            f"inheritune_config must be an InherituneConfig, got a {type(config).__name__}; InherituneConfig.from_dict "
            "makes one of a dictionary."
        )
    complaints = [f"{name}: {reason}." for name, (refused, reason) in REFUSED.items() if refused(args)]
    if complaints:
        raise ValueError("These training arguments cannot work with growth:\n- " + "\n- ".join(complaints))
    if config.steps_per_round is None:
        raise ValueError("steps_per_round is needed to train: set the optimizer steps of one round in the recipe.")
    if config.lr_schedule == "continue" and args.max_steps <= 0:
        raise ValueError(
            "lr_schedule 'continue' runs one schedule over all rounds, so it needs their length: set max_steps to the "
            "steps of all rounds together."
        )
    if args.max_steps == 0:
        raise ValueError("max_steps must be above 0 to cap all rounds together, or -1 for no cap, got 0.")
    ready = copy.copy(args)
    for name in ("logging_steps", "eval_steps", "save_steps"):
        value: Any = getattr(ready, name)
        if value is not None and 0 < value < 1:
            setattr(ready, name, max(1, math.ceil(value * config.steps_per_round)))
    if ready.ddp_find_unused_parameters is None:
        ready.ddp_find_unused_parameters = False
    if ready.device.type == "cpu":
        ready.dataloader_pin_memory = False  # there is nothing to pin for, and torch warns
    return ready


def run_identity(args: TrainingArguments, config: InherituneConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """
    Return what makes a run this very run: an output folder that holds another one is refused.

    What may change when a run goes on (`max_layers`, `max_steps`, how often it logs, evaluates and saves, where it
    runs) is not part of it.
    """
    recipe = {f"recipe.{name}": value for name, value in config.to_dict().items() if name != "max_layers"}
    return {**recipe, **{f"args.{name}": _plain(getattr(args, name)) for name in _NUMERIC_ARGUMENTS}, **facts}


def dataset_fingerprint(dataset: Any) -> str | None:
    """
    Return what tells one data set from another: its content, or some of its rows if it is no `datasets.Dataset`.

    A data set without a length has no fingerprint, unless it says one.
    """
    if isinstance(dataset, PackedStream):
        return dataset.fingerprint
    if isinstance(dataset, datasets.Dataset):
        return set_fingerprint(dataset)
    if not hasattr(dataset, "__len__"):
        return None
    count = len(dataset)
    digest = hashlib.sha256(str(count).encode())
    for index in range(0, count, max(1, count // 64)):
        row = dataset[index]
        digest.update(json.dumps([int(item) for item in row["input_ids"]]).encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


#: Arguments that change the numbers of a run.
_NUMERIC_ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "world_size",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
)
