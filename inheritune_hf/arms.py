"""The arms of a comparison: which layers each takes, how deep it is, and for how long it trains."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .layers import resolve_layers
from .measures import MEASURES

#: The arm that decides how deep the others are and how long they train, unless the comparison sets it.
LOOP = "inheritune"
#: Control arms, which are run whether or not they are asked for, unless `controls` is off.
CONTROLS = ("continued", "random", "random-long")

_PAPER = "arXiv 2404.08634v4"

#: Arms of the sub-module ablation, called after the parts of blocks that they inherit (PAPER: Table 3).
SUBMODULES = ("attention+norms", "mlp+norms", "attention+mlp")


@dataclass(frozen=True)
class Arm:
    """One way to get a small model, trained under the comparison's budget."""

    name: str  # as recipes write it
    summary: str
    source: str  # the paper, or where else it comes from
    # By the depths of the reference and of the model, the layer whose block goes to each position, None for a random
    # one; without it, layers that a measure chose, or weights of the arm's own.
    places: Callable[[int, int], Sequence[int | None]] | None = None
    budgets: float = 1.0  # that it is trained for
    stages: int = 1  # of equal length, each with a model twice as deep as before
    whole: bool = False  # as deep as the reference
    moves: bool = False  # moves blocks to other positions
    narrow: bool = False  # half as wide
    after_reference: bool = False  # its budget includes the reference's own training
    measure: str | None = None  # of importance, which chooses its layers
    lowest: bool = False  # the layers of the lowest importance


# Layers by position


def twice(layers: int) -> tuple[int, ...]:
    """Return the first half as many layers, twice over, or raise a `ValueError` if the number is odd."""
    return (*range(_half(layers)), *range(_half(layers)))


def each_twice(layers: int) -> tuple[int, ...]:
    """Return the first half as many layers, each followed by itself, or raise a `ValueError` if the number is odd."""
    return tuple(layer for layer in range(_half(layers)) for _ in range(2))


def alternate_layers(depth: int, layers: int) -> tuple[int, ...]:
    """
    Return the layers of a DistilBERT-style student: every other one, then those from three quarters of the depth on.

    For 16 of 24 layers these are 0, 2, ..., 22 and 18 to 21 (PAPER: Appendix D), in this order. A student deeper than
    three quarters of the reference is a `ValueError`.
    """
    alternate = tuple(range(0, depth, 2))[:layers]
    start = depth * 3 // 4
    chosen = (*alternate, *range(start, start + layers - len(alternate)))
    if chosen[-1] >= depth:
        raise ValueError(f"{layers} of {depth} layers are more than it takes: every other one and a quarter")
    return chosen


def lazy_in_place(depth: int) -> list[int | None]:
    """Return the last layers at their own positions, from the 16th of 24 on, after random ones (PAPER: G.3)."""
    return [None if place < depth * 5 // 8 else place for place in range(depth)]


def _half(layers: int) -> int:
    if layers % 2:
        raise ValueError(f"it doubles a number of layers, and {layers} is odd")
    return layers // 2


# The arms

_ARMS = (
    Arm(LOOP, "the loop: inherit, train, compare, grow", f"{_PAPER}, Algorithm 1"),
    Arm(
        "inherited",
        "first layers, the loop's final depth and its whole budget at once",
        f"{_PAPER}, section 4",
        lambda depth, layers: range(layers),
    ),
    Arm("random", "same depth from random weights", f"{_PAPER}, appendix D"),
    Arm("random-2x", "same depth from random weights, twice the budget", f"{_PAPER}, table 5", budgets=2.0),
    Arm(
        "random-long",
        "same depth from random weights, with the reference's own training as well",
        "control: the reference's own training counts too",
        after_reference=True,
    ),
    Arm("random-whole", "the reference's depth from random weights", f"{_PAPER}, appendix D", whole=True),
    Arm(
        "continued",
        "the reference, trained further",
        "control: a student may win by adapting to the data alone",
        lambda depth, layers: range(depth),
        whole=True,
    ),
    Arm(
        "half-width",
        "the reference's depth, its leading heads and neurons",
        f"{_PAPER}, appendix D",
        whole=True,
        narrow=True,
    ),
    Arm(
        "stacking",
        "half the depth from random weights, then its blocks twice over",
        f"{_PAPER}, appendix D",
        lambda depth, layers: twice(layers),
        stages=2,
        moves=True,
    ),
    Arm(
        "hybrid-stacking",
        "the reference's first half as many layers, twice over",
        f"{_PAPER}, appendix D",
        lambda depth, layers: twice(layers),
        moves=True,
    ),
    Arm("last", "last layers", f"{_PAPER}, figure 3", lambda depth, layers: range(depth - layers, depth), moves=True),
    Arm(
        "lazy-in-place",
        "the reference's depth: its last layers at their own positions, the first five eighths random",
        f"{_PAPER}, G.3",
        lambda depth, layers: lazy_in_place(depth),
        whole=True,
    ),
    Arm(
        "middle",
        "middle layers",
        f"{_PAPER}, table 4",
        lambda depth, layers: range((depth - layers) // 2, (depth + layers) // 2),
        moves=True,
    ),
    Arm(
        "spaced",
        "layers at equal distances",
        "common practice in pruning by depth",
        lambda depth, layers: resolve_layers(f"spaced:{layers}", depth),
        moves=True,
    ),
    Arm("lazy", "layers of the lowest MaxRank", f"{_PAPER}, table 4", moves=True, measure="rank", lowest=True),
    *(Arm(name, item.keeps, item.source, moves=True, measure=name) for name, item in MEASURES.items()),
    *(
        Arm(name, f"first layers, of which only {name.replace('+', ' and ')} are inherited", f"{_PAPER}, table 3")
        for name in SUBMODULES
    ),
    Arm(
        "released-code",
        "first layers and the head, as the released code copies",
        "github.com/sanyalsunny111/LLM-Inheritune",
    ),
    Arm(
        "expansion",
        "first half as many layers, each followed by a block that changes nothing at first",
        "arXiv 2401.02415",
        lambda depth, layers: each_twice(layers),
        moves=True,
    ),
    Arm(
        "distilbert",
        "every other layer, then those from three quarters of the depth on",
        f"{_PAPER}, appendix D",
        alternate_layers,
        moves=True,
    ),
)

#: Every arm by its name.
ARMS: dict[str, Arm] = {arm.name: arm for arm in _ARMS}


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
