"""List the losses that compare a student with its teacher: an entry adds one to the recipe, its help and the docs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DistillationLoss:
    """
    A loss of each token.

    Args:
        kind (`str`): What it compares: `labels` (the student's logits with the next token; it has no `function`),
            `logits` (both models' log-probabilities) or `states` (both models' hidden states after each block).
        summary (`str`): What it is, in a few words.
        function (`Callable`, *optional*): Returns the loss of each token, of shape `(tokens,)`, of the student's and
            the teacher's tensors, each of shape `(tokens, vocab)` or `(tokens, width)`.
    """

    kind: Literal["labels", "logits", "states"]
    summary: str
    function: Callable[[Tensor, Tensor], Tensor] | None = None


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(teacher || student) of each token, in nats."""
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(student || teacher) of each token, in nats."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of each token, in nats."""
    middle = log_p.logaddexp(log_q) - math.log(2)
    return 0.5 * ((log_p.exp() * (log_p - middle)).sum(-1) + (log_q.exp() * (log_q - middle)).sum(-1))


def mean_squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of each token's channels."""
    return (student - teacher).square().mean(-1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 minus the cosine of each token's states."""
    from torch.nn.functional import cosine_similarity

    return 1 - cosine_similarity(student, teacher, dim=-1)


#: Every loss by its name in the recipe's `distillation`.
DISTILLATION_LOSSES: dict[str, DistillationLoss] = {
    "cross_entropy": DistillationLoss("labels", "of the student alone"),
    "forward_kl": DistillationLoss("logits", "KL(teacher || student)", forward_kl),
    "reverse_kl": DistillationLoss("logits", "KL(student || teacher)", reverse_kl),
    "jsd": DistillationLoss("logits", "Jensen-Shannon divergence", jensen_shannon),
    "hidden_mse": DistillationLoss("states", "mean squared error of the states", mean_squared_error),
    "hidden_cosine": DistillationLoss("states", "cosine distance of the states", cosine_distance),
}


def losses_of_kind(kind: str) -> tuple[str, ...]:
    """Return the names of all losses that compare labels, logits or states."""
    return tuple(name for name, loss in DISTILLATION_LOSSES.items() if loss.kind == kind)
