"""What a comparison trains, and for how long: arms, seeds and rates, and each cell's depth and steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedConfig

from .arms import ARMS, Variant, check_arm, parse_arm
from .cells import CellPlan, operations

#: Arms that keep a comparison honest: run whether or not they are asked for, unless `controls` is off.
CONTROLS = ("continued", "random", "random-long")
#: The arm that says how deep the others are and how long they train, unless the comparison does.
LOOP = "inheritune"


@dataclass
class CompareConfig:
    """
    Say which arms are compared, with which seeds, under which budget.

    Raises:
        ValueError: If a value cannot be used; the message says what came and what is allowed.
    """

    arms: list[str] = field(
        default_factory=lambda: [
            "inheritune",
            "inherited",
            "random",
            "stacking",
            "hybrid-stacking",
            "half-width",
            "last",
        ],
        metadata={
            "help": f"Arms to compare, out of {', '.join(ARMS)}; with /moved-scale or /kd after the name if wanted."
        },
    )
    controls: bool = field(
        default=True,
        metadata={
            "help": "Compare with the reference trained on, with random weights, and with random weights that get the "
            "reference's own training too, whether or not arms names them."
        },
    )
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "Seeds; every arm is run with each."})
    learning_rates: list[float] = field(
        default_factory=lambda: [0.5, 1.0, 2.0],
        metadata={
            "help": "Learning rates to try with the first seed, as multiples of learning_rate; each arm goes on with "
            "the one of the lowest selection loss, the loop with that of its shallowest match."
        },
    )
    budget: str = field(
        default="tokens",
        metadata={
            "help": "What every arm gets as much of: 'tokens' or 'flops'; under either the controls take the loop's "
            "steps."
        },
    )
    budget_steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps that make the budget; if not given, what the loop took over all its rounds, seed "
            "by seed."
        },
    )
    layers: int | None = field(
        default=None,
        metadata={
            "help": "Depth of the other arms' models; if not given, that of the loop's last student, seed by seed."
        },
    )
    reference_steps: int | None = field(
        default=None,
        metadata={"help": "Steps of this batch size that the reference itself was trained for; random-long needs it."},
    )

    def __post_init__(self) -> None:
        for name in ("arms", "seeds", "learning_rates"):
            values = getattr(self, name)
            if not isinstance(values, list) or not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be a list of different values, got {values!r}.")
        for arm in self.arms:
            parse_arm(arm)
        self.learning_rates = [float(rate) for rate in self.learning_rates]
        if not all(rate > 0 for rate in self.learning_rates):
            raise ValueError(f"learning_rates must be multiples above 0, got {self.learning_rates!r}.")
        if self.budget not in ("tokens", "flops"):
            raise ValueError(f"budget must be tokens or flops, got {self.budget!r}.")
        for name in ("budget_steps", "layers", "reference_steps"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}.")
        if LOOP not in self.arms and not (self.budget_steps and self.layers):
            raise ValueError(
                "Without the arm 'inheritune' nothing says how deep the others are and how long they train: give "
                "layers and budget_steps."
            )

    @property
    def cells(self) -> int:
        """Cells of each arm: one for each learning rate with the first seed, and one for each further seed."""
        return len(self.learning_rates) + len(self.seeds) - 1

    def variants(self) -> list[Variant]:
        """Return the arms in the order in which they run: the loop first, because the others' budgets follow it."""
        names = [*self.arms]
        if self.controls:
            names += [name for name in CONTROLS if name not in names]
        variants = [parse_arm(name) for name in names]
        return sorted(variants, key=lambda variant: variant.arm.name != LOOP)


@dataclass(frozen=True)
class Terms:
    """
    What depths and budgets of a comparison rest on.

    Args:
        compare (`CompareConfig`): Arms, seeds and budget.
        config (`PreTrainedConfig`): The reference's config.
        block_size (`int`): Tokens of one sequence.
        step_tokens (`int`): Tokens of one optimizer step, over all processes.
        reference_steps (`int`, *optional*): Steps that the reference was trained for, if that is known.
        states (`bool`): Whether `/kd` compares hidden states, which takes models as wide as the reference.
    """

    compare: CompareConfig
    config: PreTrainedConfig
    block_size: int
    step_tokens: int
    reference_steps: int | None = None
    states: bool = False


@dataclass(frozen=True)
class Took:
    """
    What the loop came to with one seed, which the other arms' depths and budgets follow.

    Args:
        layers (`int`): Depth of its last student, in layers.
        steps (`int`): Optimizer steps of all its rounds.
        flops (`float`): Floating-point operations of all its rounds.
    """

    layers: int
    steps: int
    flops: float


def plan_cell(terms: Terms, variant: Variant, seed: int, rate: float, took: Took | None) -> CellPlan:
    """
    Return what a cell is to train: as deep as the loop's last student, for what the loop took.

    Under a budget of operations the controls still take the loop's steps: one that saw less text than the student would
    be easier to beat.

    Args:
        terms (`Terms`): What budgets rest on.
        variant (`Variant`): The cell's arm.
        seed (`int`): Its seed.
        rate (`float`): Its learning rate.
        took (`Took`, *optional*): What the loop came to with this seed, if it was run.
    """
    compare, arm = terms.compare, variant.arm
    if arm.name == LOOP:
        return CellPlan(variant, seed, rate, 0, compare.budget_steps or 0)
    layers, student_layers = _depths(terms, variant, took)
    steps = compare.budget_steps or (took.steps if took else 0)
    if compare.budget == "flops" and variant.name not in CONTROLS:
        plain = operations(parse_arm("random"), terms.config, student_layers, terms.block_size)
        whole = took.flops if took and not compare.budget_steps else None
        spend = whole or steps * terms.step_tokens * plain
        steps = max(2, round(spend / (terms.step_tokens * _mean_operations(terms, variant, layers))))
    steps = round(steps * arm.budgets)
    if arm.after_reference:
        steps += terms.reference_steps or 0
    return CellPlan(variant, seed, rate, layers, steps)


def reason_against(terms: Terms, variant: Variant, took: Sequence[Took | None]) -> str:
    """Return why an arm cannot be run, or an empty string; `took` is what the loop came to, seed by seed."""
    arm = variant.arm
    if arm.after_reference and not terms.reference_steps:
        return "how long the reference was trained is not known; give reference_steps"
    if variant.moved_scale and not getattr(terms.config, "scale_attn_by_inverse_layer_idx", False):
        return "the reference does not scale attention by depth (scale_attn_by_inverse_layer_idx)"
    if arm.narrow and variant.distilled and terms.states:
        return "its hidden states are narrower than its teacher's, so hidden_mse and hidden_cosine cannot compare them"
    if arm.build is None:
        return ""
    try:
        for layers in sorted({_depths(terms, variant, item)[0] for item in took}):
            check_arm(arm, terms.config, layers)
    except ValueError as error:
        return str(error)
    return ""


def _depths(terms: Terms, variant: Variant, took: Took | None) -> tuple[int, int]:
    """Return the depth of an arm's model, and that of the student which it is compared with."""
    student = terms.compare.layers or (took.layers if took else 0)
    return int(terms.config.num_hidden_layers) if variant.arm.whole else student, student


def _mean_operations(terms: Terms, variant: Variant, layers: int) -> float:
    """Return the operations per token of an arm's model, on average over its stages."""
    depths = [layers // 2, layers] if variant.arm.doubles else [layers]
    return sum(operations(variant, terms.config, depth, terms.block_size) for depth in depths) / len(depths)
