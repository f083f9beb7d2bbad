"""What a run would take, from configs alone: parameters, bytes, memory, tokens, operations, hours."""

from __future__ import annotations

import copy
import math
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ..configuration import InherituneConfig
from .architectures import has_experts, inspect_architecture
from .config_fields import sliced_config
from .inspection import InheritancePlan, plan_inheritance
from .references import Reference, load_reference_config


@dataclass(frozen=True)
class MemoryEstimate:
    """
    Bytes that one phase of a run holds at its peak, on each process.

    Args:
        phase (`str`): What happens then.
        weights (`int`): Bytes of the model's parameters.
        gradients (`int`): Bytes of their gradients.
        optimizer (`int`): Bytes of AdamW's two moments.
        activations (`int`): Bytes kept for the backward pass, the logits left out.
        logits (`int`): Bytes of everything as large as the logits.
        peak (`int`): Bytes at the worst moment. Gradients come while activations go, so it is not always their sum.
    """

    phase: str
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    peak: int


@dataclass(frozen=True)
class RoundEstimate:
    """
    What one round would take.

    Args:
        layers (`int`): Depth of its student, in layers.
        parameters (`int`): Parameters of its student.
        steps (`int`): Optimizer steps.
        tokens (`int`): Tokens trained on.
        flops (`float`): Floating-point operations, forward and backward.
        seconds (`float`, *optional*): Time, if a throughput is known.
        memory (`MemoryEstimate`): Memory while training.
    """

    layers: int
    parameters: int
    steps: int
    tokens: int
    flops: float
    seconds: float | None
    memory: MemoryEstimate


@dataclass(frozen=True)
class RunEstimate:
    """
    What a run would take if it needed every round.

    Args:
        plan (`InheritancePlan`): What the first student is cut from, and what is read for it.
        rounds (`tuple[RoundEstimate, ...]`): The rounds up to the recipe's deepest student.
        measuring (`MemoryEstimate`): Memory while the reference's loss is measured.
        inheriting (`MemoryEstimate`): Memory while a student is built.
    """

    plan: InheritancePlan
    rounds: tuple[RoundEstimate, ...]
    measuring: MemoryEstimate
    inheriting: MemoryEstimate

    @property
    def tokens(self) -> int:
        """Tokens of all rounds."""
        return sum(item.tokens for item in self.rounds)

    @property
    def steps(self) -> int:
        """Optimizer steps of all rounds."""
        return sum(item.steps for item in self.rounds)

    @property
    def flops(self) -> float:
        """Floating-point operations of all rounds."""
        return sum(item.flops for item in self.rounds)

    @property
    def seconds(self) -> float | None:
        """Seconds of all rounds, if a throughput is known."""
        known = [item.seconds for item in self.rounds if item.seconds is not None]
        return sum(known) if known else None


def estimate_run(
    reference: Reference,
    recipe: InherituneConfig,
    batch_size: int = 8,
    block_size: int = 1024,
    accumulation: int = 1,
    processes: int = 1,
    bf16: bool = False,
    tokens_per_second: float | None = None,
    **kwargs: Any,
) -> RunEstimate:
    """
    Estimate what a run of `recipe` would take, before any weight is downloaded or loaded.

    Memory is that of PyTorch's tensors: the model is run on tensors without content. It is for float32 weights and
    AdamW, without activation checkpointing, without what the libraries themselves take (about 0.5 GB) and without what
    an allocator keeps that is not in use.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`):
            Hub id, folder with config.json, or a loaded causal language model.
        recipe (`InherituneConfig`):
            The recipe; `steps_per_round` is needed.
        batch_size (`int`, *optional*, defaults to `8`):
            Sequences of one forward pass on one process.
        block_size (`int`, *optional*, defaults to `1024`):
            Tokens of one sequence; at most what the reference reads.
        accumulation (`int`, *optional*, defaults to `1`):
            Forward passes of one optimizer step.
        processes (`int`, *optional*, defaults to `1`):
            Processes that train together.
        bf16 (`bool`, *optional*, defaults to `False`):
            Whether the forward pass is in bfloat16 (autocast).
        tokens_per_second (`float`, *optional*):
            Throughput of the first round's student, over all processes; deeper students are slower by their operations.
        kwargs:
            As in `load_reference_config`.

    Returns:
        `RunEstimate`: Per round, and in all.

    Raises:
        ValueError: If `steps_per_round` is not set, a number is not positive, or the reference cannot be cut so.
        OSError: If there is no model at `reference`.
    """
    if recipe.steps_per_round is None:
        raise ValueError("A plan needs steps_per_round, the optimizer steps of one round.")
    sizes = {"batch_size": batch_size, "block_size": block_size, "accumulation": accumulation, "processes": processes}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}.")
    plan = plan_inheritance(reference, recipe.keep_layers, recipe.inherit, recipe.attention_scale, **kwargs)
    config = load_reference_config(reference, **kwargs)
    limit = getattr(config, "max_position_embeddings", None)
    block_size = min(block_size, limit or block_size)
    rounds = []
    tokens = recipe.steps_per_round * batch_size * block_size * accumulation * processes
    first_operations = 0.0
    for layers in _rounds(plan, recipe):
        sliced = sliced_config(config, layers)
        operations = operations_per_token(sliced, block_size)
        first_operations = first_operations or operations
        speed = None if tokens_per_second is None else tokens_per_second * first_operations / operations
        rounds.append(
            RoundEstimate(
                layers=len(layers),
                parameters=inspect_architecture(sliced).parameter_count,
                steps=recipe.steps_per_round,
                tokens=tokens,
                flops=operations * tokens,
                seconds=None if speed is None else tokens / speed,
                memory=training_memory(sliced, batch_size, block_size, accumulation, bf16),
            )
        )
    logits = 2 * 4 * batch_size * block_size * int(config.vocab_size)
    whole, part = 4 * plan.parameters_before, 4 * plan.parameters_after
    return RunEstimate(
        plan=plan,
        rounds=tuple(rounds),
        measuring=MemoryEstimate("measuring the reference", whole, 0, 0, 0, logits, whole + logits),
        inheriting=MemoryEstimate("building a student", part, 0, 0, 0, 0, part),
    )


def operations_per_token(config: PreTrainedConfig, block_size: int) -> float:
    """
    Return the floating-point operations of training on one token, forward and backward.

    Six for every weight that a token is multiplied with (the head too, tied or not; of experts those that it is sent
    to), and twelve for every pair of positions and channel of attention.

    Args:
        config (`PreTrainedConfig`): The model's config.
        block_size (`int`): Tokens of one sequence.

    Returns:
        `float`: Operations per token.
    """
    architecture = inspect_architecture(config)
    share = 1.0
    if has_experts(architecture):
        experts = next(
            shape[0] for name, shape in architecture.parameters.items() if "experts" in name and len(shape) == 3
        )
        share = getattr(config, "num_experts_per_tok", 1) / experts
    weights = 0.0
    for name, shape in architecture.parameters.items():
        if len(shape) >= 2 and architecture.parts[name] in ("attention", "mlp", "lm_head"):
            weights += math.prod(shape) * (share if "experts" in name and len(shape) == 3 else 1.0)
    return 6 * weights + 12 * architecture.depth * int(config.hidden_size) * block_size


def training_memory(
    config: PreTrainedConfig, batch_size: int, block_size: int, accumulation: int = 1, bf16: bool = False
) -> MemoryEstimate:
    """
    Estimate the memory of training a model of `config` in float32 with AdamW, with the batch on one process.

    Args:
        config (`PreTrainedConfig`): The model's config.
        batch_size (`int`): Sequences of one forward pass.
        block_size (`int`): Tokens of one sequence.
        accumulation (`int`, *optional*, defaults to `1`): Forward passes of one optimizer step.
        bf16 (`bool`, *optional*, defaults to `False`): Whether the forward pass is in bfloat16 (autocast).

    Returns:
        `MemoryEstimate`: Bytes by kind.
    """
    architecture = inspect_architecture(config)
    weights = 4 * architecture.parameter_count
    logit_count = batch_size * block_size * int(config.vocab_size)
    kept, peak = _run_empty(config, batch_size, block_size, accumulation, bf16, has_experts(architecture))
    logits = activations = 0
    for count, size in kept:
        if count in (logit_count, logit_count - batch_size * int(config.vocab_size)):  # or without the last token
            logits += size
        else:
            activations += size
    return MemoryEstimate("training", weights, weights, 2 * weights, activations, logits, peak=peak + 2 * weights)


def _rounds(plan: InheritancePlan, recipe: InherituneConfig) -> list[tuple[int, ...]]:
    layers = plan.kept_layers
    deepest = min(recipe.max_layers or plan.depth, plan.depth)
    found = [layers]
    while layers == tuple(range(len(layers))) and len(layers) < deepest:
        layers = tuple(range(min(len(layers) + recipe.grow_by, deepest)))
        found.append(layers)
    return found


def _run_empty(
    config: PreTrainedConfig, batch_size: int, block_size: int, accumulation: int, bf16: bool, experts: bool
) -> tuple[list[tuple[int, int]], int]:
    """
    Train a model on tensors that have no content.

    Returns (numbers, bytes) of every storage that a forward pass keeps, and the bytes alive at the worst moment of
    forward and backward passes: weights, gradients and all that comes between.
    """
    kept: dict[int, tuple[int, int, Any]] = {}
    # Matrix products over experts exist for bfloat16 only where nothing is computed: there each number counts four.
    dtype, scale = (torch.bfloat16, 2) if experts and not bf16 else (torch.float32, 1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        factory: Any = AutoModelForCausalLM
        model = factory.from_config(copy.deepcopy(config), dtype=dtype).train()
        live = _LiveBytes()
        for parameter in model.parameters():
            live.add(parameter.untyped_storage())
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                count = storage.nbytes() // tensor.element_size()
                kept[storage._cdata] = (count, storage.nbytes() * (scale if tensor.is_floating_point() else 1), storage)
            return tensor

        ids = torch.zeros(batch_size, block_size, dtype=torch.long)
        amp = partial(torch.autocast, "cpu", torch.bfloat16) if bf16 else nullcontext
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), amp():
            model(input_ids=ids, labels=ids, use_cache=False)
        found = [(count, size) for count, size, _ in kept.values()]
        kept.clear()
        with live:
            for _ in range(min(accumulation, 2)):  # the second begins with gradients there, and so do all after it
                with amp():
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                del loss
    return found, scale * live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.add(value.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is gone; one that is counted already stays counted once."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def forget(_: Any) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)
