"""The recipe: what to inherit, how to grow, how to train, and when a student is good enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..distillation_losses import DISTILLATION_LOSSES, losses_of_kind
from ..measures import examples
from .reading import from_mapping, number, one_sided, positive, read_mapping

#: Parts of a model, by the role of its modules: what `inherit` names.
PARTS = ("embeddings", "positions", "attention", "mlp", "norms", "final_norm", "lm_head")

#: Named choices of parts: everything; what the paper's text names; what its released code copies (PAPER: Algorithm 1).
INHERIT_PRESETS = {
    "all": PARTS,
    "paper": ("embeddings", "attention", "mlp", "norms", "lm_head"),
    "released-code": ("attention", "mlp", "norms", "lm_head"),
}

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "attention_scale": ("keep", "position"),
    "distillation_dtype": ("float32", "bfloat16", "float16"),
    "growth": ("reinherit", "continue"),
    "new_blocks": ("reference", "copy_last", "identity", "random"),
    "optimizer_state": ("reset", "keep"),
    "lr_schedule": ("restart", "continue"),
    "data_order": ("restart", "continue", None),
    "match_at": ("round_end", "evaluation"),
    "loss": ("auto", "full", "chunked", "linear", "liger"),
}


@dataclass
class InherituneConfig:
    """
    Say how a student is inherited, grown and judged.

    The same class is read from Python, from the command line and from YAML or JSON files. Settings that
    `transformers.TrainingArguments` already has (learning rate, precision, trackers, seed) are said there only.

    Raises:
        ValueError: If a value cannot be used; the message says what came and what is allowed.
    """

    keep_layers: int | str | list[int] = field(
        default="half",
        metadata={
            "help": "Layers of the reference that the first student inherits: a number ('12'), 'half' (the paper), "
            "'first:12', 'last:8', 'ends:4+4', 'every:2', 'spaced:12', half-open ranges ('0:8,10'), a size "
            f"('params:350M') or a list; experimental: 'auto' and measures ({examples()})."
        },
    )
    inherit: str = field(
        default="all",
        metadata={
            "help": "What comes along from the reference: 'all', 'paper' (blocks, token embeddings and head), "
            "'released-code' (blocks and head), or parts separated by commas, out of embeddings, positions, attention, "
            "mlp, norms, final_norm and lm_head. Parts left out begin as the architecture initialises them, under the "
            "run's seed."
        },
    )
    attention_scale: Literal["keep", "position"] = field(
        default="keep",
        metadata={
            "help": "Where attention is scaled by a block's position (GPT-2 with scale_attn_by_inverse_layer_idx), "
            "whether a block that moves is to 'keep' the scale it had, or takes that of its new 'position'."
        },
    )
    grow_by: int = field(
        default=2, metadata={"help": "Layers added for each further round (the paper: 2), up to the reference's depth."}
    )
    schedule: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Layers of each round's student instead of grow_by, written as keep_layers is; each holds those of "
            "the one before. Needed to grow anything but first layers."
        },
    )
    growth: Literal["reinherit", "continue"] = field(
        default="reinherit",
        metadata={
            "help": "After a miss: 'reinherit' a deeper student from the reference (the paper), or 'continue' with "
            "what was trained and add blocks to it."
        },
    )
    new_blocks: Literal["reference", "copy_last", "identity", "random"] = field(
        default="reference",
        metadata={
            "help": "With growth 'continue', where added blocks come from: the 'reference', a copy of the block before "
            "('copy_last'), blocks that change nothing at first ('identity'), or 'random' weights."
        },
    )
    optimizer_state: Literal["reset", "keep"] = field(
        default="reset",
        metadata={"help": "With growth 'continue', whether the optimizer's moments of trained blocks are kept."},
    )
    lr_schedule: Literal["restart", "continue"] = field(
        default="restart",
        metadata={
            "help": "Whether warm-up and schedule count from each round's first step, or once over max_steps "
            "('continue', which needs max_steps)."
        },
    )
    data_order: Literal["restart", "continue"] | None = field(
        default=None,
        metadata={
            "help": "Whether each round sees the data from the start, or goes on where the last one stopped; restart "
            "with growth 'reinherit', else continue, if not given."
        },
    )
    match_at: Literal["round_end", "evaluation"] = field(
        default="round_end",
        metadata={
            "help": "When a student may be matched: at the end of a round (the paper), or at two evaluations in a row "
            "within one, so that looking often does not buy a match."
        },
    )
    max_layers: int | None = field(
        default=None, metadata={"help": "Deepest student to try, in layers; the reference's depth if not given."}
    )
    steps_per_round: int | None = field(
        default=None, metadata={"help": "Optimizer steps of one round. Needed to train, not to build a student."}
    )
    target: str | float = field(
        default="reference",
        metadata={"help": "What a student must reach: 'reference' (its measured loss) or a number in nats per token."},
    )
    tolerance: float = field(
        default=0.01, metadata={"help": "Loss above the target that still counts as matched, in nats per token."}
    )
    confidence: float | None = field(
        default=0.95,
        metadata={
            "help": "One-sided confidence with which the loss must be within the tolerance, from intervals that "
            "cluster by document. 'none' compares the plain means (with tolerance 0: the paper's rule)."
        },
    )
    loss: Literal["auto", "full", "chunked", "linear", "liger"] = field(
        default="auto",
        metadata={
            "help": "How the loss is computed: from all logits at once ('full'), or from those of a few tokens at a "
            "time, by this package ('chunked'), by PyTorch's linear_cross_entropy ('linear') or by Liger's kernel on "
            "CUDA ('liger'). 'auto' chooses by device and vocabulary and says so in the log. The value is the same."
        },
    )
    distillation: str | None = field(
        default=None,
        metadata={
            "help": "Losses that compare the student with the reference while it is trained, with their weights: "
            "'cross_entropy=0.6,forward_kl=0.4' (the paper's baseline), out of "
            f"{', '.join(DISTILLATION_LOSSES)}. The reference stays in memory then. A student is judged by its plain "
            "cross-entropy always."
        },
    )
    distillation_temperature: float = field(
        default=1.0, metadata={"help": f"Temperature of {', '.join(losses_of_kind('logits'))}."}
    )
    distillation_top_k: int | None = field(
        default=None,
        metadata={
            "help": "Keep only so many of the reference's likeliest tokens after each token, on disk, so that it runs "
            "once over each sequence; all tokens count if not given. Without losses on states only."
        },
    )
    distillation_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Precision that the reference is held in while it teaches."}
    )

    def __post_init__(self) -> None:
        self._check_growth()
        _ = self.distillation_weights
        temperature = number(self.distillation_temperature)
        if temperature is None or not temperature > 0:
            raise ValueError(f"distillation_temperature must be above 0, got {self.distillation_temperature!r}.")
        self.distillation_temperature = temperature
        given: Any = self.inherit
        if isinstance(given, list | tuple) and all(isinstance(part, str) for part in given):
            self.inherit = ",".join(given)
        _ = self.inherited_parts
        positive("grow_by", self.grow_by)
        for name in ("max_layers", "steps_per_round", "distillation_top_k"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        # Files and the command line may bring numbers as text: YAML reads 1e-2 as a word.
        if self.target != "reference":
            target = number(self.target)
            if target is None or not target > 0:
                raise ValueError(
                    f"target must be 'reference' or a number above 0 in nats per token, got {self.target!r}."
                )
            self.target = target
        tolerance = number(self.tolerance)
        if tolerance is None or not tolerance >= 0:
            raise ValueError(f"tolerance must be 0 nats per token or more, got {self.tolerance!r}.")
        self.tolerance = tolerance
        self.confidence = one_sided(self.confidence)

    def _check_growth(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                names = ", ".join(repr(item) for item in allowed if item is not None)
                raise ValueError(f"{name} must be one of {names}, got {getattr(self, name)!r}.")
        if self.growth == "reinherit":
            for name, paper in (("new_blocks", "reference"), ("optimizer_state", "reset")):
                if getattr(self, name) != paper:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} needs growth 'continue': a student that is inherited afresh "
                        "has nothing that was trained before."
                    )

    @property
    def inherited_parts(self) -> tuple[str, ...]:
        """The parts that `inherit` names, in the order of `PARTS`."""
        given: Any = self.inherit
        if isinstance(given, str) and given in INHERIT_PRESETS:
            return INHERIT_PRESETS[given]
        named = {part.strip() for part in given.split(",")} if isinstance(given, str) else set()
        if not named or not named <= set(PARTS):
            raise ValueError(
                f"inherit must be one of {', '.join(INHERIT_PRESETS)}, or parts out of {', '.join(PARTS)}, "
                f"got {self.inherit!r}."
            )
        return tuple(part for part in PARTS if part in named)

    @property
    def distillation_weights(self) -> dict[str, float]:
        """The losses that `distillation` names, with their weights; none without it."""
        weights: dict[str, float] = {}
        for item in (self.distillation or "").split(",") if self.distillation is not None else ():
            name, _, text = (part.strip() for part in item.partition("="))
            weight = number(text)
            if name not in DISTILLATION_LOSSES or name in weights or weight is None or not weight > 0:
                raise ValueError(
                    f"distillation must be losses out of {', '.join(DISTILLATION_LOSSES)}, each once and with a weight "
                    f"above 0, such as 'cross_entropy=0.6,forward_kl=0.4', got {self.distillation!r}."
                )
            weights[name] = weight
        return weights

    @property
    def continues_data(self) -> bool:
        """Whether a round goes on in the data where the one before stopped."""
        return self.data_order == "continue" or (self.data_order is None and self.growth == "continue")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as a plain dictionary that JSON and YAML can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InherituneConfig:
        """Build a recipe from `values`; an unknown key is a `ValueError` that names the nearest one."""
        return from_mapping(cls, values)

    @classmethod
    def from_file(cls, path: str | Path) -> InherituneConfig:
        """Read a recipe from a YAML or JSON file; an unknown key is a `ValueError` that names the nearest one."""
        return from_mapping(cls, read_mapping(path))
