"""What a run would take, from configs alone: parameters, bytes, memory, tokens, operations, hours."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from ..configuration import InherituneConfig
from ..growth import planned_rounds, rule_from_recipe
from .architectures import has_experts, inspect_architecture, prefix_sizes
from .config_fields import sliced_config
from .inspection import InheritancePlan, plan_inheritance
from .memory import DTYPES, MemoryEstimate, TrainingSetup, measuring_memory, planned_loss, training_memory
from .reference import OpenedReference, Reference, load_reference_config
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
        loss (`str`): How the loss would be computed on this machine: `full`, `chunked`, `linear` or `liger`.
        step_time (`StepTime`, *optional*): What was measured to tell the time, if anything was.
    """

    plan: InheritancePlan
    setup: TrainingSetup
    rounds: tuple[RoundEstimate, ...]
    measuring: MemoryEstimate
    inheriting: MemoryEstimate
    loss: str
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
    reference: Reference | OpenedReference,
    recipe: InherituneConfig,
    setup: TrainingSetup | None = None,
    tokens_per_second: float | None = None,
    measure: bool = False,
    max_steps: int | None = None,
    **kwargs: Any,
) -> RunEstimate:
    """
    Estimate what a run of `recipe` would take, before any weight is downloaded or loaded.

    Memory is that of PyTorch's tensors: the model and the optimizer are run on tensors without content. What the
    libraries themselves take (about 0.5 GB) and what an allocator keeps that is not in use comes on top. The loss is
    computed as the run would on this machine; with `distillation` the reference counts as well.

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
        max_steps (`int`, *optional*):
            Optimizer steps that all rounds together may take.
        kwargs:
            As in `load_reference_config`.

    Returns:
        `RunEstimate`: Per round, and in all.

    Raises:
        ValueError: If `steps_per_round` is not set, `max_steps` or the throughput is not above 0, both a throughput and
            a measurement are asked for, or the reference cannot be cut so.
        OSError: If there is no model at `reference`.
    """
    if recipe.steps_per_round is None:
        raise ValueError("A plan needs steps_per_round, the optimizer steps of one round.")
    refuse_two_throughputs(tokens_per_second, measure)
    config = load_reference_config(reference, **kwargs)
    depth: int = config.get_text_config(decoder=True).num_hidden_layers
    rule = rule_from_recipe(recipe, depth, prefix_sizes(config))
    plan = plan_inheritance(reference, rule.first, recipe.inherit, recipe.attention_scale, **kwargs)
    setup = fitted(setup or TrainingSetup(), config)
    loss = training_loss(recipe)
    teacher = config if recipe.distillation_weights else None
    chosen = planned_rounds(rule, max_steps)
    step_time = measure_step(config, chosen[-1][0], setup, loss=loss) if measure else None
    rounds = []
    pace = 0.0
    for layers, steps in chosen:
        sliced = sliced_config(config, layers)
        tokens = steps * step_tokens(setup)
        operations = training_operations(sliced, setup.block_size, teacher)
        seconds = None
        if step_time is not None:
            taught = operations / operations_per_token(sliced, setup.block_size)
            seconds = steps * step_time.seconds(len(layers)) * taught
        elif tokens_per_second is not None:
            pace = pace or operations * tokens_per_second
            seconds = tokens * operations / pace
        rounds.append(
            RoundEstimate(
                layers=len(layers),
                parameters=inspect_architecture(sliced).parameter_count,
                steps=steps,
                tokens=tokens,
                flops=operations * tokens,
                seconds=seconds,
                memory=student_memory(sliced, setup, recipe, config),
            )
        )
    part = DTYPES[setup.dtype].itemsize * plan.parameters_after
    return RunEstimate(
        plan=plan,
        setup=setup,
        rounds=tuple(rounds),
        measuring=measuring_memory(config, setup),
        inheriting=MemoryEstimate("building a student", part, 0, 0, 0, 0, part),
        loss=planned_loss(config, setup, loss),
        step_time=step_time,
    )


def refuse_two_throughputs(tokens_per_second: float | None, measure: bool) -> None:
    """Raise a `ValueError` if a throughput is both given and to be measured, or is none."""
    if measure and tokens_per_second is not None:
        raise ValueError("Give tokens_per_second or measure, not both: one throughput is enough.")
    if tokens_per_second is not None and not tokens_per_second > 0:
        raise ValueError(f"tokens_per_second must be above 0, got {tokens_per_second!r}.")


def fitted(setup: TrainingSetup, config: PreTrainedConfig) -> TrainingSetup:
    """Return the setup with sequences no longer than a model of `config` reads."""
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return replace(setup, block_size=min(setup.block_size, limit or setup.block_size))


def step_tokens(setup: TrainingSetup) -> int:
    """Return the tokens of one optimizer step, over all processes."""
    return setup.batch_size * setup.accumulation * setup.processes * setup.block_size


def training_loss(recipe: InherituneConfig) -> str:
    """Return how students are trained as far as memory goes: with a teacher, always on the logits of a few tokens."""
    return "chunked" if recipe.distillation_weights and recipe.loss != "full" else recipe.loss


def student_memory(
    config: PreTrainedConfig, setup: TrainingSetup, recipe: InherituneConfig, reference: PreTrainedConfig
) -> MemoryEstimate:
    """
    Estimate the memory that each process takes to train a model of `config` by a recipe.

    Args:
        config (`PreTrainedConfig`): The model's config.
        setup (`TrainingSetup`): How it is trained.
        recipe (`InherituneConfig`): Says its loss, and whether the reference teaches: its weights count then too.
        reference (`PreTrainedConfig`): The reference's config.
    """
    memory = training_memory(config, setup, training_loss(recipe))
    if not recipe.distillation_weights:
        return memory
    teacher = DTYPES[recipe.distillation_dtype].itemsize * inspect_architecture(reference).parameter_count
    return replace(memory, weights=memory.weights + teacher, peak=memory.peak + teacher)


def training_operations(config: PreTrainedConfig, block_size: int, teacher: PreTrainedConfig | None = None) -> float:
    """
    Return the floating-point operations of training a model of `config` on one token, with a teacher if there is one.

    Args:
        config (`PreTrainedConfig`): The model's config.
        block_size (`int`): Tokens of one sequence.
        teacher (`PreTrainedConfig`, *optional*): The teacher's config.
    """
    own = operations_per_token(config, block_size)
    # A teacher runs forward only: a third of what training it would take.
    return own + (operations_per_token(teacher, block_size) / 3 if teacher is not None else 0.0)


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
