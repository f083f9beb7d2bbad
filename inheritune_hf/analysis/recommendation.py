"""How many layers are worth keeping, and which: with the evidence and its uncertainty (experimental)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from ..layers import describe, is_prefix
from ..measures import MEASURES, parse_measured
from ..records import Cache, LayerOrder
from ..students import OpenedReference, Reference, cuttable_order, is_cuttable
from .collapse import NEAR_RANK_ONE, SHARE, SHARES, resampled_max_ranks
from .influence import loss_without
from .measurement import VERSIONS, batches_of, evaluating, load_model, measure_collapse, open_model
from .report import CollapseReport
from .sequences import as_tokens, check_tokens, tokens_fingerprint


@dataclass(frozen=True)
class Recommendation:
    """
    Which layers to inherit, and why.

    Args:
        layers (`tuple[int, ...]`): The layers to keep: always the first ones, as in the paper.
        depth (`int`): Depth of the reference.
        basis (`str`): `lazy tail` if the last layers are lazy as a group, else `half`, the paper's practice.
        interval (`tuple[int, int]`, *optional*): 95 % interval of the number of layers over sequences; None without
            a lazy tail or for fewer than 30 sequences.
        tail_share (`float`, *optional*): Share of the resamples of the sequences in which there is a lazy tail.
        by_measure (`dict[str, tuple[int, ...]]`): The layers that each measure would keep, as many; without `loss`,
            which measures again after each removal.
        by_depth (`dict[str, int]`): Other counts: `mass` by AvgMass instead of rank, `near_best_loss` the depth at
            which the loss through the head is within 0.1 nats per token of the model's own.
        evidence (`tuple[str, ...]`): Sentences with the figures.
        disagreements (`tuple[str, ...]`): Where measures contradict the choice, or each other.
    """

    layers: tuple[int, ...]
    depth: int
    basis: str
    interval: tuple[int, int] | None
    tail_share: float | None
    by_measure: dict[str, tuple[int, ...]]
    by_depth: dict[str, int]
    evidence: tuple[str, ...]
    disagreements: tuple[str, ...]


def recommend_layers(
    reference: Reference | CollapseReport, sequences: Any = None, tau: float = SHARE, **kwargs: Any
) -> Recommendation:
    """
    Recommend how many first layers a student should inherit (experimental).

    The paper's Algorithm 1 asks for first layers "with high AvgRank" and names no rule; its practice is half. Here, if
    the last layers are lazy as a group (definition G.1: floor(AvgRank) is 1, and the first of them is below 2 itself),
    the layers before the longest such tail are kept. If there is no such tail, ranks say nothing about a depth, and
    half of the layers are recommended, for want of better evidence. The loop decides in the end: a student that does
    not match grows.

    Args:
        reference (`str`, `os.PathLike`, `PreTrainedModel` or `CollapseReport`):
            The reference, or a report that was measured of it.
        sequences (`torch.Tensor` of shape `(sequences, tokens)`, *optional*):
            Sequences to measure on, needed unless a report is given.
        tau (`float`, *optional*, defaults to `0.9`): Share of the squared spectrum.
        kwargs: As for `measure_collapse`.

    Returns:
        `Recommendation`: Layers, interval, evidence and disagreements.

    Raises:
        ValueError: If there is neither a report nor sequences, or the reference has no softmax attention.
    """
    if isinstance(reference, CollapseReport):
        report = reference
    elif sequences is None:
        raise ValueError("recommend_layers needs sequences to measure the reference on, or a CollapseReport of it.")
    else:
        report = measure_collapse(reference, sequences, **{"controls": False, "shares": (*SHARES, tau), **kwargs})
    values = report.max_ranks(tau)
    if all(value is None for value in values):
        raise ValueError(f"{report.model} has no layer with softmax attention, so ranks say nothing about its depth.")
    tail = lazy_tail_start(values)
    keep = max(1, report.depth // 2 if tail is None else tail)
    starts = _resampled_tails(report, tau)
    found = [max(1, start) for start in starts if start is not None]
    interval = None
    if tail is not None and found:
        lower, upper = np.quantile(found, [0.025, 0.975], method="nearest")
        interval = (int(lower), int(upper))
    tail_share = len(found) / len(starts) if starts else None
    by_measure = {
        name: tuple(sorted(measure.order(report, tau)[:keep]))
        for name, measure in MEASURES.items()
        if measure.remove is None and (report.blocks is not None or not measure.blocks)
    }
    by_depth = _other_counts(report, tau)
    return Recommendation(
        layers=tuple(range(keep)),
        depth=report.depth,
        basis="half" if tail is None else "lazy tail",
        interval=interval,
        tail_share=tail_share,
        by_measure=by_measure,
        by_depth=by_depth,
        evidence=tuple(_evidence(report, tail, interval, tail_share, tau)),
        disagreements=tuple(_disagreements(values, keep, by_measure, by_depth)),
    )


def lazy_tail_start(max_ranks: Sequence[float | None]) -> int | None:
    """
    Return the first layer of the longest tail of layers that is lazy as a group, or None if there is none.

    The tail's AvgRank is below 2, and so is the MaxRank of its first layer. Layers without softmax attention count in
    no average.
    """
    start, total, count = None, 0.0, 0
    for layer, value in reversed([*enumerate(max_ranks)]):
        if value is None:
            continue
        total, count = total + value, count + 1
        if value < 2 and total / count < 2:
            start = layer
    return start


def resolve_measured(
    reference: Reference, choice: str, sequences: Any, progress: bool = False, **kwargs: Any
) -> tuple[int, ...]:
    """
    Return the layers that `auto`, or a measure such as `rank:12`, chooses out of a reference.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`): The reference.
        choice (`str`): `auto`, or one of `MEASURES` with a number of layers, such as `rank:12`.
        sequences (`torch.Tensor` of shape `(sequences, tokens)`): Sequences to measure on.
        progress (`bool`, *optional*, defaults to `False`): Whether a bar with the time left is shown.
        kwargs: As for `measure_collapse`.

    Returns:
        `tuple[int, ...]`: An explicit list of layers, for `keep_layers`.

    Raises:
        ValueError: If the choice is not complete, or asks for more layers than there are.
    """
    order = measure_order(reference, choice, sequences, progress, **kwargs)
    return tuple(sorted(order.layers[: order.first]))


def measure_order(
    reference: Reference,
    choice: str,
    sequences: Any,
    progress: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> LayerOrder:
    """
    Return the order of all layers in which a run grows its students, and how many the first one has.

    Arguments and errors are those of `resolve_measured`; the order of `auto` is that of the layers themselves, as far
    as each student along it is a model of the family.
    """
    opened = open_model(reference, **kwargs)
    name, count = parse_measured(choice, opened.depth)
    tokens, settings = as_tokens(sequences), {"progress": progress, "cache_dir": cache_dir, **kwargs}
    if count is None:
        advice = recommend_layers(reference, tokens, **settings)
        count = len(advice.layers)
        layers = cuttable_order(opened.config, range(opened.depth), count)
    else:
        layers = layer_order(reference, name, tokens, count, **settings)
    return LayerOrder(name, layers, count, len(tokens), tokens.shape[1], tokens_fingerprint(tokens))


def layer_order(
    reference: Reference,
    measure: str,
    sequences: Any,
    count: int = 1,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> tuple[int, ...]:
    """
    Return all layers in the order of a measure: a student of `n` layers, `count` or more, has the first `n` of them.

    So the students that grow from `count` layers along it are nested, and each has what its family needs: of a hybrid a
    layer with softmax attention.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`): The reference.
        measure (`str`): One of `MEASURES`.
        sequences (`torch.Tensor` of shape `(sequences, tokens)`): Sequences to measure on.
        count (`int`, *optional*, defaults to `1`): Layers of the smallest student. A measure that removes layers one by
            one stops there, and does not order these.
        cache_dir (`str` or `os.PathLike`, *optional*): As for `measure_collapse`.
        progress (`bool`, *optional*, defaults to `False`): Whether a bar with the time left is shown.
        kwargs: As for `measure_collapse`.

    Raises:
        ValueError: If the reference has fewer layers than `count`.
    """
    chosen, opened = MEASURES[measure], open_model(reference, **kwargs)
    if not 1 <= count <= opened.depth:
        raise ValueError(f"keep_layers must be between 1 and {opened.depth} (the reference's depth), got {count}.")
    if chosen.remove is None:
        settings: dict[str, Any] = {"controls": False, "blocks": chosen.blocks, "cache_dir": cache_dir, **kwargs}
        order = chosen.order(measure_collapse(reference, sequences, progress=progress, **settings))
        return cuttable_order(opened.config, order, count)
    removed = _remove_layers(opened, measure, as_tokens(sequences), opened.depth - count, cache_dir, progress)
    return (*(layer for layer in range(opened.depth) if layer not in removed), *reversed(removed))


def _remove_layers(
    opened: OpenedReference,
    measure: str,
    tokens: Tensor,
    most: int,
    cache_dir: str | os.PathLike[str] | None,
    progress: bool,
) -> list[int]:
    """Remove layers one by one, and return the removed ones in order; the cache is written after each removal."""
    cache = None if cache_dir is None else Cache(cache_dir, list[int])
    key = [] if cache is None else ["removed", measure, opened.fingerprint(), tokens_fingerprint(tokens), VERSIONS]
    removed = (None if cache is None else cache.read(key)) or []
    if len(removed) >= most:
        return removed[:most]
    remove, model = MEASURES[measure].remove, load_model(opened)
    check_tokens(model, tokens)
    batches, left = batches_of(tokens, model), [layer for layer in range(opened.depth) if layer not in removed]
    runs = sum(range(opened.depth - most + 1, len(left) + 1)) * len(batches)
    with tqdm(total=runs, desc=f"ordering by {measure}", disable=not progress, leave=False) as bar, evaluating(model):
        while remove is not None and len(removed) < most:
            free = [layer for layer in left if is_cuttable(opened.config, [item for item in left if item != layer])]
            removed.append(
                remove(free or left, lambda layer: loss_without(model, batches, [*removed, layer], bar.update))
            )
            left.remove(removed[-1])
            if cache is not None:
                cache.write(key, removed)
    return removed


def _resampled_tails(report: CollapseReport, tau: float) -> list[int | None]:
    """Return where the lazy tail starts in each resample of the sequences; an empty list for too few sequences."""
    resampled = [resampled_max_ranks(report.ranks(item.layer, tau)) if item.heads else None for item in report.layers]
    count = next((len(values) for values in resampled if values is not None), 0)
    return [
        lazy_tail_start([None if values is None else float(values[draw]) for values in resampled])
        for draw in range(count)
    ]


def _other_counts(report: CollapseReport, tau: float) -> dict[str, int]:
    counts = {}
    mass = lazy_tail_start(report.avg_masses(tau))
    if mass is not None:
        counts["mass"] = max(1, mass)
    if report.blocks is not None:
        losses = report.blocks.by_depth
        counts["near_best_loss"] = next(n for n, loss in enumerate(losses) if loss <= losses[-1] + 0.1)
    return counts


def _evidence(
    report: CollapseReport, tail: int | None, interval: tuple[int, int] | None, tail_share: float | None, tau: float
) -> Iterator[str]:
    place = report.shares.index(tau)
    yield (
        f"{report.sequences} sequences of {report.tokens} tokens, tau {tau:g}; uniform causal attention would have "
        f"rank {report.uniform.ranks[place]}."
    )
    if report.sliding is not None:
        yield (
            f"Sliding layers see {report.sliding.window} tokens; uniform attention would have rank "
            f"{report.sliding.ranks[place]} there."
        )
    lazy, near = report.lazy_layers(tau=tau), report.lazy_layers(NEAR_RANK_ONE, tau)
    yield (
        f"Lazy layers (MaxRank 1): {describe(lazy) if lazy else 'none'}; near rank-1 (MaxRank at most "
        f"{1 + NEAR_RANK_ONE:g}): {describe(near) if near else 'none'}."
    )
    if tail is None:
        yield (
            "The last layers are not lazy as a group, so ranks give no depth to cut at: half is the paper's practice, "
            "not a finding."
        )
    else:
        before = ""
        if any(item.heads for item in report.layers[:tail]):
            before = f", AvgRank of those before is {report.avg_rank(range(tail), tau):.2f}"
        of_tail = report.avg_rank(range(tail, report.depth), tau)
        yield f"AvgRank of layers {describe(range(tail, report.depth))} is {of_tail:.2f}{before}."
    if tail_share is None:
        yield "No interval: 30 sequences are needed."
    elif interval is not None:
        yield (
            f"Over resampled sequences the number is {interval[0]} to {interval[1]} (95 %); {tail_share:.0%} of the "
            "resamples have a lazy tail."
        )
    else:
        yield f"{tail_share:.0%} of the resamples of the sequences have a lazy tail."
    yield "That a student of this depth will match is not implied: train it, and let it grow."


def _disagreements(
    values: Sequence[float | None], keep: int, by_measure: dict[str, tuple[int, ...]], by_depth: dict[str, int]
) -> Iterator[str]:
    inside = [layer for layer in range(keep) if (rank := values[layer]) is not None and rank < 2]
    if inside:
        yield f"Layers {describe(inside)} are kept although their MaxRank is below 2: rank is not monotone in depth."
    kept = [value for value in values[:keep] if value is not None]
    typical = max(2.0, float(np.median(kept)) if kept else 0.0)
    outside = [layer for layer in range(keep, len(values)) if (rank := values[layer]) is not None and rank > typical]
    if outside:
        yield (
            f"Layers {describe(outside)} are dropped although their MaxRank is above the median of the kept ones; in "
            "the paper's own ablation the middle layers transferred best (table 4)."
        )
    for name, layers in by_measure.items():
        if not is_prefix(layers):
            other = len(set(layers) - set(range(keep)))
            yield f"By {name}, {other} of {keep} layers would be others: {describe(layers)}."
    if by_depth.get("mass", keep) != keep:
        yield f"By AvgMass the lazy tail would begin after {by_depth['mass']} layers."
    near = by_depth.get("near_best_loss", keep)
    if near > keep:
        yield f"The loss through the head comes within 0.1 nats per token of the model's own only after {near} layers."
