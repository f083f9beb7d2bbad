"""What several devices change: how processes are started, and models that are sharded while they train."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.integrations import deepspeed

from ..configuration import InherituneConfig
from .feeding import StreamedTrainer

#: Environment variables by which launchers tell a process how many there are.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

#: What of FSDP and DeepSpeed is refused: (is it, given accelerate's state and the recipe?, why, and what to do).
REFUSED_SHARDING: dict[str, tuple[Callable[[Any, InherituneConfig], bool], str]] = {
    "fsdp without a device": (
        lambda state, recipe: _asked("ACCELERATE_USE_FSDP") and not _is_fsdp(state),
        "Accelerate does not shard on processors and would train by DDP, without a word; leave FSDP out",
    ),
    "deepspeed without an engine": (
        lambda state, recipe: _asked("ACCELERATE_USE_DEEPSPEED") and not _is_deepspeed(state),
        "Accelerate was told to use the CPU and would train without DeepSpeed; leave one of them out",
    ),
    "fsdp_version": (
        lambda state, recipe: _is_fsdp(state) and state.fsdp_plugin.fsdp_version == 1,
        "FSDP1 flattens parameters, and what has no name cannot be carried to the next round; use 2",
    ),
    "fsdp_state_dict_type": (
        lambda state, recipe: _is_fsdp(state) and "FULL" not in str(state.fsdp_plugin.state_dict_type),
        "a sharded checkpoint holds no whole student for the next round to begin with; use FULL_STATE_DICT",
    ),
    "fsdp_cpu_ram_efficient_loading": (
        lambda state, recipe: _is_fsdp(state) and bool(state.fsdp_plugin.cpu_ram_efficient_loading),
        "only the main process would load weights, but every process measures the reference; use false",
    ),
    "deepspeed with optimizer_state 'keep'": (
        lambda state, recipe: _is_deepspeed(state) and recipe.optimizer_state == "keep",
        "ZeRO partitions the optimizer's state by position, not by parameter; use 'reset', or DDP or FSDP2",
    ),
    "deepspeed with lr_schedule 'continue'": (
        lambda state, recipe: _is_deepspeed(state) and recipe.lr_schedule == "continue",
        "each round begins with an engine of its own, and its schedule; use 'restart', or DDP or FSDP2",
    ),
    "deepspeed with freeze_steps": (
        lambda state, recipe: _is_deepspeed(state) and recipe.freeze_steps > 0,
        "gradients are the engine's and cannot be left out; use 0, or DDP or FSDP2",
    ),
    "scheduler in the DeepSpeed configuration": (
        lambda state, recipe: _is_deepspeed(state) and "scheduler" in state.deepspeed_plugin.deepspeed_config,
        "it knows nothing of rounds; leave it out and set lr_scheduler_type and warmup_steps",
    ),
    "stage3_gather_16bit_weights_on_model_save": (
        lambda state, recipe: _is_deepspeed(state) and _zero(state).get("stage") == 3 and not _gathers(state),
        "without it ZeRO-3 saves no whole student for the next round to begin with; use true",
    ),
    "distributed_type": (
        lambda state, recipe: state.distributed_type == DistributedType.MEGATRON_LM,
        "Megatron-LM builds its own models; use DDP, FSDP2 or DeepSpeed ZeRO",
    ),
}


def check_launch(environment: Mapping[str, str], processes: int) -> None:
    """
    See whether a launcher that was asked for several processes has started one.

    `accelerate launch --num_processes 2 --cpu` does so and says nothing. It leaves the address at which the processes
    would have met, and no number of them.

    Args:
        environment (`Mapping[str, str]`): Environment variables of this process.
        processes (`int`): How many processes there are.

    Raises:
        ValueError: If it has.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
    if processes == 1 and launched and not any(name in environment for name in _SIZES):
        raise ValueError(
            "accelerate launch was asked for several processes but started one: with --cpu, or use_cpu in its "
            "configuration, it always does. Use `torchrun --nproc_per_node N SCRIPT --use_cpu`, or give --multi_gpu to "
            "the launcher in place of --cpu and --use_cpu to the script; for one process run the script by python."
        )


def check_sharding(state: Any, recipe: InherituneConfig) -> None:
    """
    Raise a `ValueError` that names everything of FSDP and DeepSpeed that cannot work with rounds, and why.

    Args:
        state (`accelerate.state.AcceleratorState`): How processes share the work.
        recipe (`InherituneConfig`): The recipe.
    """
    complaints = [f"{name}: {why}." for name, (refused, why) in REFUSED_SHARDING.items() if refused(state, recipe)]
    if complaints:
        raise ValueError("This cannot work with growth on several devices:\n- " + "\n- ".join(complaints))


def build_whole_models() -> None:
    """Let models be built and loaded whole from now on: under ZeRO-3 all processes would have to take part in each."""
    deepspeed.unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


class DistributedTrainer(StreamedTrainer):
    """
    A `Trainer` whose model can be exchanged between trainings, whole or sharded over several devices.

    A model is sharded while it trains. Before and afterwards each process holds the whole of it.
    """

    #: The staged folder that the next training begins with, where there is nothing for an engine to resume from.
    staged: str | None = None
    _spare = False

    def __init__(self, recipe: InherituneConfig, args: TrainingArguments, **kwargs: Any) -> None:
        super().__init__(args=args, **kwargs)
        build_whole_models()
        check_sharding(self.accelerator.state, recipe)

    @property
    def sharded(self) -> bool:
        """Whether the model is sharded while it trains."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    @property
    def sharding(self) -> str:
        """How a model is spread over devices while it trains: `none`, `fsdp` or `zero1` to `zero3`."""
        if self.is_deepspeed_enabled:
            return f"zero{_zero(self.accelerator.state).get('stage', 0)}"
        return "fsdp" if self.is_fsdp_enabled else "none"

    def hold(self, model: Any, spare: bool = False) -> None:
        """
        Make `model` the one that is trained or evaluated, and forget every trace of the one before.

        A `spare` one is not needed after it was evaluated, so that no copy of it is made.
        """
        self._spare = spare
        before: Any = self.model
        was_empty = before.device.type == "meta"
        del before
        self.model = self.model_wrapped = model
        self.optimizer = self.lr_scheduler = self.deepspeed = None
        self.callback_handler.model = model
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        if not was_empty:  # an empty skeleton was never prepared: there is nothing to collect
            self.accelerator.free_memory()
        if self.place_model_on_device:
            self._move_model_to_device(model, self.args.device)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate the model; outside training a copy of it is sharded, so that the model itself stays whole."""
        if self.is_in_train or not self.sharded:
            metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            return metrics
        whole: Any = self.model
        if not self._spare:
            self.hold(copy.deepcopy(whole))
        try:
            return self._evaluate_sharded(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self.hold(whole)

    def _evaluate_sharded(self, *settings: Any) -> dict[str, float]:
        # In the way in which it would be while it trains; only that an engine of DeepSpeed exists then alone, and each
        # process has the whole model, in the engine's precision.
        model: Any = self.model
        if self.is_fsdp_enabled:
            # FSDP2 shards a model together with an optimizer only.
            model, _ = self.accelerator.prepare(model, torch.optim.SGD(model.parameters()))
            self.model = self.model_wrapped = model
        engine, self.is_deepspeed_enabled = self.is_deepspeed_enabled, False
        try:
            if engine:
                model.to(device=self.args.device, dtype=self.accelerator.state.deepspeed_plugin.hf_ds_config.dtype())
            metrics: dict[str, float] = super().evaluate(*settings)
        finally:
            self.is_deepspeed_enabled = engine
        return metrics

    def weights_are_finite(self) -> bool:
        """Return whether every weight on every process is a number."""
        model: Any = self.model
        finite = all(bool(torch.isfinite(_own_part(parameter)).all()) for parameter in model.parameters())
        missing = torch.tensor(0 if finite else 1, device=self.args.device)
        return int(self.accelerator.reduce(missing, reduction="sum")) == 0

    def resume_from(self, folder: Path, begun: bool) -> str | None:
        """Return what `train` is to resume from; a DeepSpeed engine has nothing of its own in a staged folder."""
        self.staged = str(folder) if self.is_deepspeed_enabled and not begun else None
        return None if self.staged else str(folder)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Leave the skeleton where it is: it has no weights to move."""
        if not any(parameter.is_meta for parameter in model.parameters()):
            super()._move_model_to_device(model, device)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Do nothing: the model was built from this very folder, with every weight accounted for."""

    def _run_epoch(self, *args: Any, **settings: Any) -> None:
        """Go on at the place in the data and with the random state of the staged folder too."""
        settings["resume_from_checkpoint"] = settings["resume_from_checkpoint"] or self.staged
        super()._run_epoch(*args, **settings)  # type: ignore[no-untyped-call]

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Go on with the step count and log of the staged folder too."""
        begun = checkpoint or self.staged
        place: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, epochs, begun, trial
        )
        return place


def _own_part(parameter: Any) -> torch.Tensor:
    """Return what this process holds of a parameter."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    held: torch.Tensor = getattr(parameter, "ds_tensor", parameter)
    return held


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def _is_fsdp(state: Any) -> bool:
    return bool(state.distributed_type == DistributedType.FSDP)


def _is_deepspeed(state: Any) -> bool:
    return bool(state.distributed_type == DistributedType.DEEPSPEED)


def _zero(state: Any) -> Mapping[str, Any]:
    section: Mapping[str, Any] = state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
    return section


def _gathers(state: Any) -> bool:
    return bool(_zero(state).get("stage3_gather_16bit_weights_on_model_save"))
