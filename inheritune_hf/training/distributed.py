"""Check how processes are started and models are sharded, and refuse what cannot work with rounds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.integrations import deepspeed

from ..config import InherituneConfig
from ..records import hold_folder

#: Environment variables in which launchers give the number of processes.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

_GATHERS = "stage3_gather_16bit_weights_on_model_save"

#: What of FSDP and DeepSpeed is refused: (is it, given `sharding_of`, the state and the recipe?, why, and what to do).
REFUSED_SHARDING: dict[str, tuple[Callable[[str, Any, InherituneConfig], bool], str]] = {
    "fsdp without a device": (
        lambda kind, state, recipe: _asked("ACCELERATE_USE_FSDP") and kind != "fsdp",
        "Accelerate does not shard on processors and would train by DDP without saying so; leave FSDP out",
    ),
    "deepspeed without an engine": (
        lambda kind, state, recipe: _asked("ACCELERATE_USE_DEEPSPEED") and not kind.startswith("zero"),
        "Accelerate is set to use the CPU and would train without DeepSpeed; leave one of them out",
    ),
    "fsdp_version": (
        lambda kind, state, recipe: kind == "fsdp" and state.fsdp_plugin.fsdp_version == 1,
        "FSDP1 flattens parameters, and what has no name cannot be carried to the next round; use 2",
    ),
    "fsdp_state_dict_type": (
        lambda kind, state, recipe: kind == "fsdp" and "FULL" not in str(state.fsdp_plugin.state_dict_type),
        "a sharded checkpoint holds no whole student for the next round to begin with; use FULL_STATE_DICT",
    ),
    "fsdp_cpu_ram_efficient_loading": (
        lambda kind, state, recipe: kind == "fsdp" and bool(state.fsdp_plugin.cpu_ram_efficient_loading),
        "only the main process would load weights, but every process measures the reference; use false",
    ),
    "deepspeed with optimizer_state 'keep'": (
        lambda kind, state, recipe: kind.startswith("zero") and recipe.optimizer_state == "keep",
        "ZeRO partitions the optimizer's state by position, not by parameter; use 'reset', or DDP or FSDP2",
    ),
    "deepspeed with lr_schedule 'continue'": (
        lambda kind, state, recipe: kind.startswith("zero") and recipe.lr_schedule == "continue",
        "each round begins with an engine of its own, and its schedule; use 'restart', or DDP or FSDP2",
    ),
    "scheduler in the DeepSpeed configuration": (
        lambda kind, state, recipe: kind.startswith("zero") and "scheduler" in state.deepspeed_plugin.deepspeed_config,
        "it knows nothing of rounds; leave it out and set lr_scheduler_type and warmup_steps",
    ),
    _GATHERS: (
        lambda kind, state, recipe: kind == "zero3" and not _zero(state).get(_GATHERS),
        "without it ZeRO-3 saves no whole student for the next round to begin with; use true",
    ),
    "distributed_type": (
        lambda kind, state, recipe: state.distributed_type == DistributedType.MEGATRON_LM,
        "Megatron-LM builds its own models; use DDP, FSDP2 or DeepSpeed ZeRO",
    ),
}


def on_main_process(decision: Any) -> Any:
    """Return the main process's `decision` on every process, so that none of them takes another path."""
    return broadcast_object_list([decision])[0]


@contextlib.contextmanager
def hold_output_dir(args: TrainingArguments) -> Iterator[None]:
    """
    Hold `output_dir` for one run: its main process does so for all of them.

    Raises:
        BlockingIOError: On every process, if another run holds it; the message names process, machine and time.
        OSError: On every process, if the folder cannot be made or written to.
    """
    with contextlib.ExitStack() as held:
        error: OSError | None = None
        if args.should_save:
            try:
                held.enter_context(hold_folder(args.output_dir or "trainer_output"))
            except OSError as found:
                error = found
        error = on_main_process(error)
        if error is not None:
            raise error
        yield


def check_launch(environment: Mapping[str, str], processes: int) -> None:
    """
    Refuse a launch of several processes that has started one.

    `accelerate launch --num_processes 2 --cpu` does so and says nothing. It leaves the address at which the processes
    would have met, and no number of them.

    Raises:
        ValueError: If it has.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
    if processes == 1 and launched and not any(name in environment for name in _SIZES):
        raise ValueError(
            "accelerate launch was asked for several processes but started one: with --cpu, or use_cpu in its "
            "configuration, it always does. Use `torchrun --nproc_per_node N SCRIPT --use-cpu`, or give --multi_gpu to "
            "the launcher in place of --cpu and --use-cpu to the script; for one process run the script by python."
        )


def check_sharding(state: Any, recipe: InherituneConfig) -> None:
    """Raise a `ValueError` that names what of FSDP and DeepSpeed, in accelerate's state, cannot work with rounds."""
    kind = sharding_of(state)
    complaints = [f"{name}: {why}." for name, (is_it, why) in REFUSED_SHARDING.items() if is_it(kind, state, recipe)]
    if complaints:
        raise ValueError("This cannot work with growth on several devices:\n- " + "\n- ".join(complaints))


def build_whole_models() -> None:
    """Let models be built and loaded whole from now on: under ZeRO-3 all processes would have to take part in each."""
    deepspeed.unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def sharding_of(state: Any) -> str:
    """Return how a model is spread over devices while it trains: `none`, `fsdp` or `zero1` to `zero3`."""
    if state.distributed_type == DistributedType.DEEPSPEED:
        return f"zero{_zero(state).get('stage', 0)}"
    return "fsdp" if state.distributed_type == DistributedType.FSDP else "none"


def weights_are_finite(model: nn.Module, device: torch.device, reduce: Callable[..., torch.Tensor]) -> bool:
    """Return whether every weight on every process is finite; `reduce` is `Accelerator.reduce`."""
    finite = all(bool(torch.isfinite(_own_part(parameter)).all()) for parameter in model.parameters())
    missing = torch.tensor(0 if finite else 1, device=device)
    return int(reduce(missing, reduction="sum")) == 0


def _own_part(parameter: Any) -> torch.Tensor:
    """Return what this process holds of a parameter."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    held: torch.Tensor = getattr(parameter, "ds_tensor", parameter)
    return held


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def _zero(state: Any) -> Mapping[str, Any]:
    section: Mapping[str, Any] = state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
    return section
