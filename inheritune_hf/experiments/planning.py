"""What a comparison would take, from configs alone: every arm as the comparison itself would train it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from ..configuration import InherituneConfig
from ..students import (
    MemoryEstimate,
    Reference,
    StepTime,
    TrainingSetup,
    inspect_architecture,
    load_reference_config,
    measure_step,
    prefix_sizes,
    resolve_layers,
    sliced_config,
)
from ..students.estimation import (
    fitted,
    operations_per_token,
    planned_rounds,
    refuse_two_throughputs,
    step_tokens,
    student_memory,
    training_loss,
)
from ..students.memory import planned_loss
from ..training.distillation import compares_states
from .arms import Variant, arm_shape, parse_arm
from .budgets import LOOP, CompareConfig, Terms, Took, plan_cell, reason_against
from .cells import cell_recipe, operations


@dataclass(frozen=True)
class ArmEstimate:
    """
    What one cell of an arm would take, and how many of them there are.

    Args:
        arm (`str`): The arm, as the recipe names it.
        layers (`int`): Depth of its final model, in layers.
        parameters (`int`): Parameters of that model.
        steps (`int`): Optimizer steps of one cell, over all its rounds or stages.
        tokens (`int`): Tokens of those steps.
        flops (`float`): Floating-point operations of those steps, a teacher's included.
        seconds (`float`, *optional*): Time of one cell, if a throughput is known.
        memory (`MemoryEstimate`): Memory while the final model is trained.
        cells (`int`): Cells: one for each learning rate with the first seed, and one for each further seed.
    """

    arm: str
    layers: int
    parameters: int
    steps: int
    tokens: int
    flops: float
    seconds: float | None
    memory: MemoryEstimate
    cells: int


@dataclass(frozen=True)
class ComparisonEstimate:
    """
    What a comparison would take, with every round of the loop if the loop is one of its arms.

    Args:
        reference (`str`): Id or path of the reference.
        model_type (`str`): Its architecture, such as `gpt2`.
        depth (`int`): Its depth, in layers.
        setup (`TrainingSetup`): How models are trained.
        loss (`str`): How the loss would be computed on this machine.
        arms (`tuple[ArmEstimate, ...]`): The arms in the order in which they run.
        left_out (`dict[str, str]`): Arms that would not be run, with the reason.
        step_time (`StepTime`, *optional*): What was measured of models as wide as the reference, if anything was.
    """

    reference: str
    model_type: str
    depth: int
    setup: TrainingSetup
    loss: str
    arms: tuple[ArmEstimate, ...]
    left_out: dict[str, str]
    step_time: StepTime | None = None

    @property
    def cells(self) -> int:
        """Cells of the whole grid."""
        return sum(arm.cells for arm in self.arms)

    @property
    def steps(self) -> int:
        """Optimizer steps of all cells."""
        return sum(arm.cells * arm.steps for arm in self.arms)

    @property
    def tokens(self) -> int:
        """Tokens of all cells."""
        return sum(arm.cells * arm.tokens for arm in self.arms)

    @property
    def flops(self) -> float:
        """Floating-point operations of all cells."""
        return sum(arm.cells * arm.flops for arm in self.arms)

    @property
    def seconds(self) -> float | None:
        """Seconds of all cells, if a throughput is known."""
        known = [arm.cells * arm.seconds for arm in self.arms if arm.seconds is not None]
        return sum(known) if known else None


def estimate_comparison(
    reference: Reference,
    compare: CompareConfig,
    recipe: InherituneConfig,
    setup: TrainingSetup | None = None,
    tokens_per_second: float | None = None,
    measure: bool = False,
    **kwargs: Any,
) -> ComparisonEstimate:
    """
    Estimate what `run_comparison` would take, before any weight is downloaded or loaded.

    Depths, budgets and rounds are those that the comparison itself would plan. The loop is taken to need every round.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`):
            Hub id, folder with config.json, or a loaded causal language model.
        compare (`CompareConfig`):
            Arms, seeds and budget.
        recipe (`InherituneConfig`):
            The loop's recipe; `steps_per_round` is needed.
        setup (`TrainingSetup`, *optional*):
            How models are trained; the defaults of `TrainingSetup` if not given.
        tokens_per_second (`float`, *optional*):
            Throughput of a student as deep as most arms are (`layers`, or the loop's last), over all processes; other
            models are slower or faster by their operations.
        measure (`bool`, *optional*, defaults to `False`):
            Train shallow models of the planned widths for a few steps on this machine to tell the time.
        kwargs:
            As in `load_reference_config`.

    Returns:
        `ComparisonEstimate`: Per arm, and in all.

    Raises:
        ValueError: If `steps_per_round` is not set, the throughput is not above 0, both a throughput and a measurement
            are asked for, or the reference cannot be cut so.
        OSError: If there is no model at `reference`.
    """
    if recipe.steps_per_round is None:
        raise ValueError("A plan needs steps_per_round, the optimizer steps of one round.")
    refuse_two_throughputs(tokens_per_second, measure)
    config = load_reference_config(reference, **kwargs)
    setup = fitted(setup or TrainingSetup(), config)
    terms = Terms(
        compare, config, setup.block_size, step_tokens(setup), compare.reference_steps, compares_states(recipe)
    )
    took: Took | None = None
    planned: list[_Planned] = []
    left_out: dict[str, str] = {}
    for variant in compare.variants():
        reason = reason_against(terms, variant, [took])
        if reason:
            left_out[variant.name] = reason
            continue
        planned.append(_plan_arm(terms, recipe, variant, took))
        if variant.name == LOOP:
            took = Took(planned[-1].layers, planned[-1].steps, planned[-1].flops)
    step_times = _measure_widths(planned, setup, training_loss(recipe)) if measure else {}
    pace = None
    if tokens_per_second is not None:
        depth = compare.layers or (took.layers if took else 0)
        pace = tokens_per_second * operations(parse_arm("random"), config, depth, setup.block_size)
    # Arms of one shape take the same memory: it is worked out once.
    shapes = {item.shape_key: item for item in planned}
    memory = {key: student_memory(item.shape, setup, item.recipe, config) for key, item in shapes.items()}
    arms = [
        ArmEstimate(
            arm=item.variant.name,
            layers=item.layers,
            parameters=inspect_architecture(item.shape).parameter_count,
            steps=item.steps,
            tokens=item.steps * terms.step_tokens,
            flops=item.flops,
            seconds=item.flops / pace if pace else _measured_seconds(terms, item, step_times),
            memory=memory[item.shape_key],
            cells=compare.cells,
        )
        for item in planned
    ]
    return ComparisonEstimate(
        reference=str(reference if isinstance(reference, str) else config.name_or_path),
        model_type=str(config.model_type),
        depth=int(config.num_hidden_layers),
        setup=setup,
        loss=planned_loss(config, setup, training_loss(recipe)),
        arms=tuple(arms),
        left_out=left_out,
        step_time=step_times.get(False),
    )


@dataclass(frozen=True)
class _Planned:
    """An arm with the recipe of its cells, the depth and steps of each of its rounds, and the shape of its models."""

    variant: Variant
    recipe: InherituneConfig
    rounds: tuple[tuple[int, int], ...]
    wide: PreTrainedConfig
    flops: float

    @property
    def layers(self) -> int:
        """Depth of the final model."""
        return self.rounds[-1][0]

    @property
    def steps(self) -> int:
        """Steps of all rounds."""
        return sum(steps for _, steps in self.rounds)

    @property
    def shape(self) -> PreTrainedConfig:
        """Config of the final model."""
        return sliced_config(self.wide, range(self.layers))

    @property
    def shape_key(self) -> tuple[bool, int, bool]:
        """What tells the memory of one arm from that of another."""
        return self.variant.arm.narrow, self.layers, self.variant.distilled


def _plan_arm(terms: Terms, recipe: InherituneConfig, variant: Variant, took: Took | None) -> _Planned:
    """Plan the rounds of an arm's cells as their trainer would run them if it needed them all."""
    plan = plan_cell(terms, variant, terms.compare.seeds[0], 1.0, took)
    own = cell_recipe(recipe, plan)
    depth = int(terms.config.num_hidden_layers)
    first = resolve_layers(own.schedule[0] if own.schedule else own.keep_layers, depth, prefix_sizes(terms.config))
    rounds = tuple((len(layers), steps) for layers, steps in planned_rounds(own, first, depth, plan.steps or None))
    flops = sum(
        steps * terms.step_tokens * operations(variant, terms.config, layers, terms.block_size)
        for layers, steps in rounds
    )
    return _Planned(variant, own, rounds, arm_shape(variant.arm, terms.config), flops)


def _measure_widths(planned: Sequence[_Planned], setup: TrainingSetup, loss: str) -> dict[bool, StepTime]:
    """Measure steps of models as wide as the reference and, if there are any, of narrow ones."""
    widths = {item.variant.arm.narrow: item.wide for item in planned}
    return {
        narrow: measure_step(wide, range(int(wide.num_hidden_layers)), setup, loss=loss)
        for narrow, wide in widths.items()
    }


def _measured_seconds(terms: Terms, item: _Planned, step_times: Mapping[bool, StepTime]) -> float | None:
    measured = step_times.get(item.variant.arm.narrow)
    if measured is None:
        return None
    seconds = 0.0
    for layers, steps in item.rounds:
        own = operations_per_token(sliced_config(item.wide, range(layers)), terms.block_size)
        taught = operations(item.variant, terms.config, layers, terms.block_size) / own
        seconds += steps * measured.seconds(layers) * taught
    return seconds
