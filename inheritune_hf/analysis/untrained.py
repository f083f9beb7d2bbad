"""What students are before they are trained: their losses by depth, for first layers and for every measure."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from ..measures import MEASURES
from ..students import Reference, cuttable_order
from .influence import loss_without
from .measurement import batches_of, evaluating, load_model, measure_collapse, open_model
from .recommendation import layer_order
from .sequences import as_tokens, check_tokens


@dataclass(frozen=True)
class UntrainedLosses:
    """
    Losses of untrained students, in nats per token.

    Args:
        depth (`int`): Depth of the reference, in layers.
        loss (`float`): The reference's own loss.
        uniform (`float`): Loss of a uniform guess over the vocabulary.
        depths (`tuple[int, ...]`): Layers of the students.
        losses (`dict[str, tuple[float, ...]]`): Their losses, for `first` layers and for each measure.
        layers (`dict[str, tuple[tuple[int, ...], ...]]`): Their layers, ascending.
    """

    depth: int
    loss: float
    uniform: float
    depths: tuple[int, ...]
    losses: dict[str, tuple[float, ...]]
    layers: dict[str, tuple[tuple[int, ...], ...]]


def measure_untrained(
    reference: Reference,
    sequences: Any,
    depths: Sequence[int] = (),
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> UntrainedLosses:
    """
    Return the losses of students as they are inherited, for first layers and for the order of every measure.

    Layers are ordered on every other sequence and losses measured on the rest, so that no order is judged by what it
    was chosen on. A student is the reference without the other blocks: none is built.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`): The reference.
        sequences (`torch.Tensor` of shape `(sequences, tokens)`): Sequences to measure on, two or more.
        depths (sequence of `int`, *optional*): Layers of the students; a half, two thirds and five sixths of the
            reference's if not given.
        cache_dir (`str` or `os.PathLike`, *optional*): As for `measure_collapse`, for the orders.
        progress (`bool`, *optional*, defaults to `False`): Whether bars with the time left are shown.
        kwargs: As for `measure_collapse`.

    Raises:
        ValueError: If there are fewer than two sequences, or the reference has no student of these depths.
    """
    tokens, opened = as_tokens(sequences), open_model(reference, **kwargs)
    if len(tokens) < 2:
        raise ValueError(f"Two sequences or more are needed, to order layers and to measure losses; got {len(tokens)}.")
    depth = opened.depth
    wanted = tuple(sorted(set(depths or (-(-depth * part // 6) for part in (3, 4, 5)))))
    if not 1 <= wanted[0] <= wanted[-1] <= depth:
        raise ValueError(f"depths must be from 1 to {depth}, the layers of {opened.name}, got {list(wanted)}.")
    how: dict[str, Any] = {"cache_dir": cache_dir, "progress": progress}
    orders = {"first": tuple(range(depth))}
    report = measure_collapse(opened, tokens[::2], controls=False, **how)
    for name, measure in MEASURES.items():
        by_report = measure.remove is None
        orders[name] = measure.order(report) if by_report else layer_order(opened, name, tokens[::2], wanted[0], **how)
    # As a run would cut them: of a hybrid, each student has what its family needs.
    orders = {name: cuttable_order(opened.config, order, wanted[0]) for name, order in orders.items()}
    layers = {name: tuple(tuple(sorted(order[:count])) for count in wanted) for name, order in orders.items()}
    model = load_model(opened)
    check_tokens(model, tokens)
    batches = batches_of(tokens[1::2], model)
    chosen = dict.fromkeys([tuple(range(depth)), *(kept for students in layers.values() for kept in students)], 0.0)
    runs = len(chosen) * len(batches)
    with tqdm(total=runs, desc="untrained students", disable=not progress, leave=False) as bar, evaluating(model):
        for kept in chosen:
            chosen[kept] = loss_without(model, batches, sorted(set(range(depth)) - set(kept)), bar.update)
    return UntrainedLosses(
        depth=depth,
        loss=chosen[tuple(range(depth))],
        uniform=math.log(opened.text_config.vocab_size),
        depths=wanted,
        losses={name: tuple(chosen[kept] for kept in students) for name, students in layers.items()},
        layers=layers,
    )
