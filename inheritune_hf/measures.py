"""Importance measures: choose the layers of a student by what they are worth instead of by their position."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

#: Returns the loss of the reference without one more layer, in nats per token.
LossWithout = Callable[[int], float]


@dataclass(frozen=True)
class Measure:
    """
    A measure of how important each layer of a reference is.

    Args:
        keeps (`str`): Which layers it keeps, in a phrase.
        source (`str`): Where it comes from.
        axis (`str`): What its scores are, with their unit, for the axis of a figure.
        score (`Callable[[CollapseReport, float], Sequence[float]]`):
            Returns a score for each layer out of a report at a share tau; a layer of a higher score is worth more.
        blocks (`bool`, *optional*, defaults to `True`): Whether its scores need the report's figures of blocks.
        keep (`Callable[[CollapseReport, int], Sequence[int]]`, *optional*):
            Returns the layers of a student of so many layers, for a measure of groups of layers; the layers of the
            highest scores if not given.
        remove (`Callable[[Sequence[int], LossWithout], int]`, *optional*):
            Returns which of the layers that are left is removed next: layers are removed one by one, and losses are
            measured anew after each. By scores alone if not given.
    """

    keeps: str
    source: str
    axis: str
    score: Callable[[Any, float], Sequence[float]]
    blocks: bool = True
    keep: Callable[[Any, int], Sequence[int]] | None = None
    remove: Callable[[Sequence[int], LossWithout], int] | None = None

    def order(self, report: Any, tau: float = 0.9) -> tuple[int, ...]:
        """Return all layers by their scores, the most important first, of equals the earlier one."""
        scores = self.score(report, tau)
        return tuple(sorted(range(len(scores)), key=lambda layer: (-scores[layer], layer)))

    def choose(self, report: Any, count: int, tau: float = 0.9) -> tuple[int, ...]:
        """Return the `count` layers that it keeps by a report alone, ascending; none if they were not measured."""
        if self.blocks and report.blocks is None:
            return ()
        return tuple(sorted(self.order(report, tau)[:count] if self.keep is None else self.keep(report, count)))


def _max_ranks(report: Any, tau: float) -> list[float]:
    # A layer without softmax attention has no rank to be low: it stays.
    return [float("inf") if value is None else value for value in report.max_ranks(tau)]


def _without_smallest_turn(report: Any, count: int) -> tuple[int, ...]:
    """Return all layers but the run whose removal turns the last token's states least; of equals the later run goes."""
    gone = report.depth - count
    if gone == 0:
        return tuple(range(report.depth))
    turns = [report.blocks.angular[layer][gone - 1] for layer in range(count + 1)]
    start = max(layer for layer, turn in enumerate(turns) if turn == min(turns))
    return (*range(start), *range(start + gone, report.depth))


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
        keep=_without_smallest_turn,
    ),
    "loss": Measure(
        keeps="layers left when the least missed go one by one",
        source="arXiv 2402.02834",
        axis="loss without the block\n(nats per token more)",
        score=lambda report, _: [loss - report.blocks.loss for loss in report.blocks.skipped],
        remove=_least_missed,
    ),
}


def examples(count: int = 12) -> str:
    """Return a choice by each measure as it is written in a recipe: `'rank:12', 'influence:12'` and so on."""
    return ", ".join(f"'{name}:{count}'" for name in MEASURES)


def is_measured(choice: Any) -> bool:
    """Tell whether a choice of `keep_layers` needs an analysis: `auto`, or a measure such as `rank:12`."""
    return isinstance(choice, str) and choice.strip().partition(":")[0] in ("auto", *MEASURES)


def parse_measured(choice: str) -> tuple[str, int | None]:
    """
    Return the measure and the number of layers of a choice such as `rank:12`; `auto` has no number.

    Raises:
        ValueError: If the choice is not complete.
    """
    word, _, argument = choice.strip().partition(":")
    if word == "auto" and not argument:
        return word, None
    if word not in MEASURES or re.fullmatch(r"\d+", argument) is None:
        raise ValueError(
            f"keep_layers={choice!r} is not complete: write 'auto', or a measure with a number of layers, such as "
            f"{examples()}."
        )
    return word, int(argument)
