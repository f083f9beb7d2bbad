"""The arms of a comparison: which model each trains, in how many stages, and for how many budgets."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..evaluation import Validation
from ..records import Match
from ..students import Reference, resolve_layers, student_skeleton
from ..training import InherituneTrainer
from ..training.staging import RunState
from . import initialisations

#: Layers of a reference that a measure calls for, by the arm's name: (measure, from the other end).
MEASURED = {
    "lazy": ("rank", True),
    "rank": ("rank", False),
    "influence": ("influence", False),
    "angular": ("angular", False),
    "loss": ("loss", False),
}


@dataclass(frozen=True)
class Start:
    """
    What an arm's model is built from.

    Args:
        reference (`str`): Id or path of the reference.
        kwargs (`Mapping[str, Any]`): How it is loaded.
        depth (`int`): Its depth, in layers.
        layers (`int`): Depth of the model that this stage trains.
        seed (`int`): Seed of what begins random.
        chosen (`tuple[int, ...]`): Layers that a measure chose, for arms that go by one.
        keep_scale (`bool`): Whether moved blocks keep their attention scale.
        before (`PreTrainedModel`, *optional*): The model that the stage before has trained.
    """

    reference: Reference
    kwargs: Mapping[str, Any]
    depth: int
    layers: int
    seed: int
    chosen: tuple[int, ...] = ()
    keep_scale: bool = True
    before: PreTrainedModel | None = None


Build = Callable[[Start], PreTrainedModel]
Places = Callable[[Start], Sequence[int]]


@dataclass(frozen=True)
class Arm:
    """
    One way to get a small model, trained under the comparison's budget.

    Args:
        name (`str`): As it is written in a recipe.
        summary (`str`): What it is, in a sentence.
        source (`str`): Where it comes from.
        build (`Callable`, *optional*): Makes the model; None for the loop itself.
        places (`Callable`, *optional*): Says for each position which layer's block stands there, where one does.
        budgets (`float`): Budgets that it is trained for.
        whole (`bool`): Whether it is as deep as the reference.
        doubles (`bool`): Whether it trains half the depth for half the budget first.
        moves (`bool`): Whether it moves blocks to other positions.
        narrow (`bool`): Whether it is half as wide.
        after_reference (`bool`): Whether its budget includes the reference's own training.
        even (`bool`): Whether it takes an even number of layers.
    """

    name: str
    summary: str
    source: str
    build: Build | None
    places: Places | None = None
    budgets: float = 1.0
    whole: bool = False
    doubles: bool = False
    moves: bool = False
    narrow: bool = False
    after_reference: bool = False
    even: bool = False


def _of_layers(name: str, summary: str, source: str, places: Places, **marks: Any) -> Arm:
    def build(start: Start) -> PreTrainedModel:
        return initialisations.assembled(start.reference, places(start), start.seed, start.keep_scale, **start.kwargs)

    return Arm(name, summary, source, build, places, **marks)


def _parts(parts: str) -> Build:
    return lambda start: initialisations.with_parts(start.reference, start.layers, parts, start.seed, **start.kwargs)


def _random(start: Start) -> PreTrainedModel:
    return initialisations.random_weights(start.reference, start.layers, start.seed, **start.kwargs)


def _stacking(start: Start) -> PreTrainedModel:
    if start.before is None:
        return _random(start)
    return initialisations.stacked(start.before, start.layers, start.seed, start.keep_scale)


def _built_by(function: Callable[..., PreTrainedModel]) -> Build:
    return lambda start: function(start.reference, start.layers, start.seed, start.keep_scale, **start.kwargs)


def lazy_from(depth: int) -> int:
    """Return the first layer that `lazy-in-place` keeps: the 16th of 24, as in the paper (PAPER: G.3)."""
    return depth * 5 // 8


def _doubled(start: Start) -> Sequence[int]:
    return initialisations.doubled(start.layers)


def _middle(start: Start) -> range:
    first = (start.depth - start.layers) // 2
    return range(first, first + start.layers)


_PAPER = "arXiv 2404.08634v4"

#: Every arm by its name.
ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("inheritune", "the loop: inherit, train, compare, grow", f"{_PAPER}, Algorithm 1", None),
        _of_layers(
            "inherited",
            "first layers, the loop's final depth and its whole budget at once",
            f"{_PAPER}, section 4",
            lambda start: range(start.layers),
        ),
        Arm("random", "same depth from random weights", f"{_PAPER}, appendix D", _random),
        Arm(
            "random-2x", "same depth from random weights, twice the budget", f"{_PAPER}, table 5", _random, budgets=2.0
        ),
        Arm(
            "random-long",
            "same depth from random weights, with the reference's own training as well",
            "control: what the reference had seen counts too",
            _random,
            after_reference=True,
        ),
        Arm("random-whole", "the reference's depth from random weights", f"{_PAPER}, appendix D", _random, whole=True),
        _of_layers(
            "continued",
            "the reference trained on",
            "control: a student may win by adapting to the data alone",
            lambda start: range(start.depth),
            whole=True,
        ),
        Arm(
            "half-width",
            "the reference's depth, its leading heads and neurons",
            f"{_PAPER}, appendix D",
            lambda start: initialisations.half_width(start.reference, start.seed, **start.kwargs),
            whole=True,
            narrow=True,
        ),
        Arm(
            "stacking",
            "half the depth from random weights, then its blocks twice over",
            f"{_PAPER}, appendix D",
            _stacking,
            _doubled,
            doubles=True,
            moves=True,
            even=True,
        ),
        Arm(
            "hybrid-stacking",
            "the reference's first half as many layers, twice over",
            f"{_PAPER}, appendix D",
            _built_by(initialisations.hybrid_stacked),
            _doubled,
            moves=True,
            even=True,
        ),
        _of_layers(
            "last",
            "last layers",
            f"{_PAPER}, figure 3",
            lambda start: range(start.depth - start.layers, start.depth),
            moves=True,
        ),
        Arm(
            "lazy-in-place",
            "the reference's depth: its last layers where they stand, the first five eighths random",
            f"{_PAPER}, G.3",
            lambda start: initialisations.lazy_in_place(
                start.reference, lazy_from(start.depth), start.depth, start.seed, start.keep_scale, **start.kwargs
            ),
            whole=True,
        ),
        _of_layers("middle", "middle layers", f"{_PAPER}, table 4", _middle, moves=True),
        _of_layers(
            "spaced",
            "layers at equal distances",
            "common practice in pruning by depth",
            lambda start: resolve_layers(f"spaced:{start.layers}", start.depth),
            moves=True,
        ),
        *(
            _of_layers(name, summary, source, lambda start: start.chosen, moves=True)
            for name, summary, source in (
                ("lazy", "layers of the lowest MaxRank", f"{_PAPER}, table 4"),
                ("rank", "layers of the highest MaxRank", f"{_PAPER}, Algorithm 1"),
                ("influence", "layers that change the states most", "arXiv 2403.03853"),
                ("angular", "all but the run of layers that turns states least", "arXiv 2403.17887"),
                ("loss", "layers left when the least missed go one by one", "arXiv 2402.02834"),
            )
        ),
        *(
            Arm(
                name,
                f"first layers, of which only {name.replace('+', ' and ')} come along",
                f"{_PAPER}, table 3",
                _parts(name),
            )
            for name in initialisations.SUBMODULES
        ),
        Arm(
            "released-code",
            "first layers and the head, as the released code copies",
            "github.com/sanyalsunny111/LLM-Inheritune",
            _parts("released-code"),
        ),
        Arm(
            "expansion",
            "first half as many layers, each followed by a block that changes nothing at first",
            "arXiv 2401.02415",
            _built_by(initialisations.expanded),
            lambda start: initialisations.each_twice(start.layers),
            moves=True,
            even=True,
        ),
        Arm(
            "distilbert",
            "every other layer, then on from three quarters of the depth",
            f"{_PAPER}, appendix D",
            _built_by(initialisations.distilbert),
            lambda start: initialisations.alternate_layers(start.depth, start.layers),
            moves=True,
        ),
    )
}


@dataclass(frozen=True)
class Variant:
    """An arm as a recipe names it: with moved attention scales, or with distillation."""

    name: str
    arm: Arm
    moved_scale: bool = False
    distilled: bool = False


def parse_arm(name: str) -> Variant:
    """
    Return the arm that a recipe names: a name of `ARMS`, and after it `/moved-scale` or `/kd` if wanted.

    `/moved-scale` lets a block that moves attend by the scale of its new position, as the published baselines did;
    `/kd` trains with the recipe's distillation losses.

    Raises:
        ValueError: If there is no such arm, or it moves no block.
    """
    word, *marks = name.split("/")
    if word not in ARMS or set(marks) - {"moved-scale", "kd"} or len(set(marks)) < len(marks):
        nearest = difflib.get_close_matches(word, ARMS, n=1)
        raise ValueError(
            f"There is no arm {name!r}"
            + (f" (did you mean {nearest[0]!r}?)" if nearest and nearest[0] != word else "")
            + f": write one of {', '.join(ARMS)}, and after it /moved-scale or /kd if wanted."
        )
    arm = ARMS[word]
    if "moved-scale" in marks and not arm.moves:
        raise ValueError(f"{name!r}: {word} moves no block, so no attention scale moves with one.")
    return Variant(name, arm, "moved-scale" in marks, "kd" in marks)


def check_arm(arm: Arm, reference: PreTrainedConfig, layers: int) -> None:
    """
    Raise a `ValueError` if an arm cannot be built of this reference with so many layers.

    Args:
        arm (`Arm`): The arm.
        reference (`PreTrainedConfig`): The reference's config.
        layers (`int`): Depth of the arm's model.
    """
    depth = int(reference.num_hidden_layers)
    if not 1 <= layers <= depth:
        raise ValueError(f"it would have {layers} layers, and the reference has {depth}")
    if arm.even and layers % 2:
        raise ValueError(f"it doubles a number of layers, and {layers} is odd")
    if arm.name == "distilbert" and initialisations.alternate_layers(depth, layers)[-1] >= depth:
        raise ValueError(f"{layers} of {depth} layers are more than it takes: every other one and a quarter")
    # What a measure chooses is not known before it is measured.
    if arm.places is not None and arm.name not in MEASURED:
        initialisations.check_order(reference, arm.places(Start("", {}, depth, layers, seed=0)))
    if arm.name == "expansion":
        initialisations.check_expansion(reference, layers)
    if arm.narrow:
        initialisations.narrowed_config(reference)


def arm_shape(arm: Arm, reference: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config that an arm's models are as wide as; they may have fewer layers."""
    return initialisations.narrowed_config(reference) if arm.narrow else reference


class ArmTrainer(InherituneTrainer):
    """
    Train an arm's model as the loop trains students: the same steps, evaluations, checkpoints and counts.

    Its recipe has one round for each of the arm's stages; all of them are run, whether or not a loss is matched.

    Args:
        variant (`Variant`): The arm.
        chosen (`tuple[int, ...]`): Layers that a measure chose, for arms that go by one.
        settings: As for `InherituneTrainer`.
    """

    def __init__(self, variant: Variant, chosen: tuple[int, ...], *settings: Any, **named: Any) -> None:
        self.variant, self.chosen = variant, chosen
        super().__init__(*settings, **named)

    def skeleton(self, layers: Sequence[int]) -> PreTrainedModel:
        """Return the arm's model of so many layers without weights."""
        return student_skeleton(arm_shape(self.variant.arm, self.reference_config), layers)

    def next_student(self, state: RunState, before: Path | None) -> PreTrainedModel:
        """Return the arm's model at the beginning of a stage."""
        arm = self.variant.arm
        if arm.build is None:
            return super().next_student(state, before)
        auto: Any = AutoModelForCausalLM
        return arm.build(
            Start(
                reference=self.reference,
                kwargs=self.reference_kwargs,
                depth=self.reference_depth,
                layers=len(state.layers),
                seed=self.args.seed,
                chosen=self.chosen,
                keep_scale=not self.variant.moved_scale,
                before=auto.from_pretrained(before) if before is not None else None,
            )
        )

    def _compare(self, validation: Validation) -> Match:
        match = super()._compare(validation)
        # A stage that is not the last goes on whatever its loss is.
        last = len(self._state.layers) == (self.inheritune_config.max_layers or self.reference_depth)
        return match if last or self.variant.arm.build is None else dataclasses.replace(match, matched=False)

    def identity(self) -> dict[str, Any]:
        """Return what makes a run of an arm this very run."""
        return {**super().identity(), "arm": self.variant.name, "arm.chosen": list(self.chosen)}
