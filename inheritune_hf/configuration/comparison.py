"""What a comparison trains: which arms, with which seeds and learning rates, under which budget."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..arms import ARMS, LOOP, parse_arm


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
            "help": "Compare with the reference trained further, with random weights, and with random weights that get "
            "the reference's own training too, whether or not arms names them."
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
