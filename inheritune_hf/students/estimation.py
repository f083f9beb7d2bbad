"""What a run would take, from configs alone: parameters, bytes, memory, tokens, operations, hours."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from ..configuration import InherituneConfig
from .architectures import has_experts, inspect_architecture
from .config_fields import sliced_config
from .inspection import InheritancePlan, plan_inheritance
from .memory import DTYPES, MemoryEstimate, TrainingSetup, training_memory
from .references import Reference, load_reference_config
from .selection import is_prefix, resolve_layers
from .throughput import StepTime, measure_step


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
        setup (`TrainingSetup`): How students are trained.
        rounds (`tuple[RoundEstimate, ...]`): The rounds up to the recipe's deepest student.
        measuring (`MemoryEstimate`): Memory while the reference's loss is measured.
        inheriting (`MemoryEstimate`): Memory while a student is built.
        step_time (`StepTime`, *optional*): What was measured to tell the time, if anything was.
    """

    plan: InheritancePlan
    setup: TrainingSetup
    rounds: tuple[RoundEstimate, ...]
    measuring: MemoryEstimate
    inheriting: MemoryEstimate
    step_time: StepTime | None = None

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
    setup: TrainingSetup | None = None,
    tokens_per_second: float | None = None,
    measure: bool = False,
    **kwargs: Any,
) -> RunEstimate:
    """
    Estimate what a run of `recipe` would take, before any weight is downloaded or loaded.

    Memory is that of PyTorch's tensors: the model and the optimizer are run on tensors without content. What the
    libraries themselves take (about 0.5 GB) and what an allocator keeps that is not in use comes on top.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`):
            Hub id, folder with config.json, or a loaded causal language model.
        recipe (`InherituneConfig`):
            The recipe; `steps_per_round` is needed.
        setup (`TrainingSetup`, *optional*):
            How students are trained; the defaults of `TrainingSetup` if not given. Sequences are no longer than the
            reference reads.
        tokens_per_second (`float`, *optional*):
            Throughput of the first round's student, over all processes; deeper students are slower by their operations.
        measure (`bool`, *optional*, defaults to `False`):
            Train shallow students of the planned shape for a few steps on this machine to tell the time, as in
            `measure_step`. Processes are taken not to slow each other down.
        kwargs:
            As in `load_reference_config`.

    Returns:
        `RunEstimate`: Per round, and in all.

    Raises:
        ValueError: If `steps_per_round` is not set, both a throughput and a measurement are asked for, or the reference
            cannot be cut so.
        OSError: If there is no model at `reference`.
    """
    if recipe.steps_per_round is None:
        raise ValueError("A plan needs steps_per_round, the optimizer steps of one round.")
    if measure and tokens_per_second is not None:
        raise ValueError("Give tokens_per_second or measure, not both: one throughput is enough.")
    first = recipe.schedule[0] if recipe.schedule else recipe.keep_layers
    plan = plan_inheritance(reference, first, recipe.inherit, recipe.attention_scale, **kwargs)
    config = load_reference_config(reference, **kwargs)
    setup = setup or TrainingSetup()
    limit = getattr(config, "max_position_embeddings", None)
    setup = replace(setup, block_size=min(setup.block_size, limit or setup.block_size))
    chosen = _rounds(plan, recipe)
    step_time = measure_step(config, chosen[-1], setup) if measure else None
    sequences = recipe.steps_per_round * setup.batch_size * setup.accumulation * setup.processes
    tokens = sequences * setup.block_size
    rounds = []
    first_operations = 0.0
    for layers in chosen:
        sliced = sliced_config(config, layers)
        operations = operations_per_token(sliced, setup.block_size)
        first_operations = first_operations or operations
        seconds = None
        if step_time is not None:
            seconds = recipe.steps_per_round * step_time.seconds(len(layers))
        elif tokens_per_second is not None:
            seconds = tokens / tokens_per_second * operations / first_operations
        rounds.append(
            RoundEstimate(
                layers=len(layers),
                parameters=inspect_architecture(sliced).parameter_count,
                steps=recipe.steps_per_round,
                tokens=tokens,
                flops=operations * tokens,
                seconds=seconds,
                memory=training_memory(sliced, setup),
            )
        )
    logits = 2 * 4 * setup.batch_size * setup.block_size * int(config.vocab_size)
    itemsize = DTYPES[setup.dtype].itemsize
    whole, part = itemsize * plan.parameters_before, itemsize * plan.parameters_after
    return RunEstimate(
        plan=plan,
        setup=setup,
        rounds=tuple(rounds),
        measuring=MemoryEstimate("measuring the reference", whole, 0, 0, 0, logits, whole + logits),
        inheriting=MemoryEstimate("building a student", part, 0, 0, 0, 0, part),
        step_time=step_time,
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


def _rounds(plan: InheritancePlan, recipe: InherituneConfig) -> list[tuple[int, ...]]:
    layers = plan.kept_layers
    deepest = min(recipe.max_layers or plan.depth, plan.depth)
    if recipe.schedule:
        scheduled = [resolve_layers(item, plan.depth) for item in recipe.schedule]
        return [item for item in scheduled if len(item) <= deepest]
    found = [layers]
    while is_prefix(layers) and len(layers) < deepest:
        layers = tuple(range(min(len(layers) + recipe.grow_by, deepest)))
        found.append(layers)
    return found
