"""What `inheritune plan` is told, and how a run that is told so would be set up."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..configuration import DataConfig, InherituneConfig
    from ..students import TrainingSetup
    from .settings import PlannedSettings

# Settings of a run that a plan depends on: those that its help shows. The others are taken too, as a run takes them.
_READ = (
    "config",
    "reference",
    "revision",
    "keep_layers",
    "inherit",
    "attention_scale",
    "schedule",
    "grow_by",
    "max_layers",
    "steps_per_round",
    "loss",
    "distillation",
    "distillation_dtype",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "block_size",
    "max_steps",
    "bf16",
    "fp16",
    "optim",
    "activation_checkpointing",
    "gradient_checkpointing",
    "arms",
    "controls",
    "seeds",
    "learning_rates",
    "budget",
    "budget_steps",
    "layers",
    "reference_steps",
)


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add what only a plan has to the options of a run, and show in its help only what a plan depends on."""
    parser.description = (
        "Estimate what a run or a comparison would take, before any weight is downloaded or loaded. Every setting of "
        "inheritune train is taken, and of a comparison if the file is one; those that matter are shown."
    )
    for action in parser._actions:
        if action.dest not in ("help", *_READ):
            action.help = argparse.SUPPRESS
        elif action.dest == "reference":
            action.help = "Hub id or path of the reference, where a file of settings comes first; it wins."
        elif action.dest == "optim":
            action.metavar = "OPTIM"  # a list of forty names else
    parser.add_argument(
        "source", nargs="?", metavar="REFERENCE or FILE", help="Hub id or path of the reference, or file of settings."
    )
    for name, setting in (
        ("--batch-size", "per_device_train_batch_size"),
        ("--accumulation", "gradient_accumulation_steps"),
    ):
        parser.add_argument(name, dest=setting, type=int, default=argparse.SUPPRESS, help=f"Short name of --{setting}.")
    parser.add_argument("--processes", type=int, default=1, help="Processes that train together (default: 1).")
    parser.add_argument("--dtype", default="float32", help="Type of the weights (default: float32).")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--tokens-per-second",
        type=float,
        help="Throughput of the first round's student; of a comparison, of a student as deep as most arms are.",
    )
    speed.add_argument("--measure", action="store_true", help="Measure a few training steps on this machine.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def planned_setup(settings: PlannedSettings) -> TrainingSetup:
    """
    Return how a run trains its students, as far as a plan depends on it.

    Raises:
        ValueError: If a value cannot be used; the message says what came and what is allowed.
    """
    from ..students import TrainingSetup

    args = settings.args
    if args.bf16 and args.fp16:
        raise ValueError("bf16 and fp16 are both set: set the one that is not meant to false.")
    # The older name counts where the newer is not given, or does not exist.
    newer = getattr(args, "activation_checkpointing", None)
    block_size = _block_size(settings.data)
    return TrainingSetup(
        batch_size=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        processes=args.processes,
        dtype=args.dtype,
        mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else None,
        optim=str(args.optim),
        gradient_checkpointing=bool(args.gradient_checkpointing if newer is None else newer),
        **({} if block_size is None else {"block_size": block_size}),
    )


def planned_recipe(settings: PlannedSettings) -> InherituneConfig:
    """Return the recipe, with the loss that the run's other settings leave it."""
    args, recipe = settings.args, settings.recipe
    whole = args.torch_compile and recipe.compile_scope == "model"
    if whole or args.label_smoothing_factor or args.fsdp or args.deepspeed:
        return dataclasses.replace(recipe, loss="full")
    return recipe


def _block_size(data: DataConfig) -> int | None:
    """Return the tokens of a sequence if the settings say them, or a prepared folder that they name."""
    from ..data.prepared import is_prepared, read_request

    if data.block_size is None and data.dataset_name and is_prepared(data.dataset_name):
        prepared: dict[str, Any] = read_request(Path(data.dataset_name))
        return int(prepared["block_size"])
    return data.block_size
