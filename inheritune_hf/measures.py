"""Importance measures: choose the layers of a student by their importance instead of by their position."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

#: Sequences that layers are ordered on, and tokens of each, as many as the paper measures ranks on.
SEQUENCES = 100
TOKENS = 100

#: Returns the loss of the reference without one more layer, in nats per token.
LossWithout = Callable[[int], float]


@dataclass(frozen=True)
class Measure:
    """A measure of how important each layer of a reference is: it orders all, and a student has the first of them."""

    keeps: str  # which layers, in a phrase
    source: str  # where it comes from
    axis: str  # what its scores are, with their unit, for the axis of a figure
    # Returns a score for each layer from a `CollapseReport` at a share tau; a higher one is more important.
    score: Callable[[Any, float], Sequence[float]]
    blocks: bool = True  # whether its scores need the report's scores of blocks
    # Returns all layers from a report, the most important first; by their scores if not given.
    nested: Callable[[Any], Sequence[int]] | None = None
    # Returns which of the remaining layers is removed next: layers are removed one by one, and losses are measured
    # again after each. By a report alone if not given.
    remove: Callable[[Sequence[int], LossWithout], int] | None = None

    def order(self, report: Any, tau: float = 0.9) -> tuple[int, ...]:
        """Return all layers by a report alone, the most important first; of equals the earlier one comes first."""
        if self.nested is not None:
            return tuple(self.nested(report))
        scores = self.score(report, tau)
        return tuple(sorted(range(len(scores)), key=lambda layer: (-scores[layer], layer)))


def _max_ranks(report: Any, tau: float) -> list[float]:
    # A layer without softmax attention has no rank to be low: it stays.
    return [float("inf") if value is None else value for value in report.max_ranks(tau)]


def _cost_of_skipping(report: Any, _: float) -> list[float]:
    return [loss - report.blocks.loss for loss in report.blocks.skipped]


def _by_smallest_turn(report: Any) -> list[int]:
    """Order layers by removing a run: the one that turns states least, then neighbours, so that it turns least."""
    turns, depth = report.blocks.angular, report.depth
    start = max(range(depth), key=lambda layer: (-turns[layer][0], layer))
    stop = start + 1
    removed = [start]
    while stop - start < depth:
        before = turns[start - 1][stop - start] if start > 0 else float("inf")
        after = turns[start][stop - start] if stop < depth else float("inf")
        if after <= before:
            removed.append(stop)
            stop += 1
        else:
            start -= 1
            removed.append(start)
    return removed[::-1]


def _least_missed(left: Sequence[int], loss_without: LossWithout) -> int:
    """Return the layer without which the loss is lowest; of equals the later one."""
    losses = {layer: loss_without(layer) for layer in left}
    return min(left, key=lambda layer: (losses[layer], -layer))


#: Every importance measure by its name in `keep_layers`; help texts, arms of comparisons, figures and advice follow.
MEASURES: dict[str, Measure] = {
    "rank": Measure(
        keeps="layers of the highest MaxRank",
        source="arXiv 2404.08634v4, Algorithm 1",
        axis="MaxRank",
        score=_max_ranks,
        blocks=False,
    ),
    "influence": Measure(
        keeps="layers that change the states most",
        source="arXiv 2403.03853",
        axis="block influence\n(1 − cosine)",
        score=lambda report, _: report.blocks.influence,
    ),
    "angular": Measure(
        keeps="all but the run of layers that turns states least",
        source="arXiv 2403.17887",
        axis="angular distance\n(share of pi)",
        score=lambda report, _: [distances[0] for distances in report.blocks.angular],
        nested=_by_smallest_turn,
    ),
    "skip": Measure(
        keeps="layers without which alone the loss is highest",
        source="arXiv 2402.02834",
        axis="loss without the block\n(nats per token more)",
        score=_cost_of_skipping,
    ),
    "loss": Measure(
        keeps="layers left when the least missed go one by one",
        source="arXiv 2402.09025",
        axis="loss without the block\n(nats per token more)",
        score=_cost_of_skipping,
        remove=_least_missed,
    ),
}


def examples() -> str:
    """Return a choice by each measure as it is written in a recipe: `'rank:12', 'influence:12'` and so on."""
    return ", ".join(f"'{name}:12'" for name in MEASURES)


def order_passes(choice: Any, depth: int) -> int:
    """Return at most how many forward passes over the sequences a choice of `keep_layers` takes to order the layers."""
    if not is_measured(choice):
        return 0
    measure, count = parse_measured(choice, depth)
    if count is not None and MEASURES[measure].remove is not None:
        return sum(range(count + 1, depth + 1))
    # By blocks: the attention, the states, and twice a loss for each layer, from half of the model on average.
    return 2 + depth if count is None or MEASURES[measure].blocks else 1


def is_measured(choice: Any) -> bool:
    """Tell whether a choice of `keep_layers` needs an analysis: `auto`, or a measure such as `rank:12`."""
    return isinstance(choice, str) and choice.strip().partition(":")[0] in ("auto", *MEASURES)


def parse_measured(choice: str, depth: int) -> tuple[str, int | None]:
    """
    Return the measure and the number of layers of a choice such as `rank:12` or `rank:half`; `auto` has no number.

    Raises:
        ValueError: If the choice is not complete.
    """
    word, _, argument = choice.strip().partition(":")
    if word == "auto" and not argument:
        return word, None
    if word in MEASURES and argument == "half":
        return word, max(1, depth // 2)
    if word not in MEASURES or re.fullmatch(r"\d+", argument) is None:
        raise ValueError(
            f"keep_layers={choice!r} is not complete: write 'auto', or a measure with 'half' or a number of layers, "
            f"such as 'loss:half', {examples()}."
        )
    return word, int(argument)
