"""Losses that compare a student with its reference while it is trained; the reference is the teacher then."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..evaluation.losses import IGNORED, Head, chunk_tokens

#: Losses on the distribution over the next token, and losses on the states after each block.
OF_LOGITS = ("cross_entropy", "forward_kl", "reverse_kl", "jsd")
OF_STATES = ("hidden_mse", "hidden_cosine")


def weighted_sum(
    student: Tensor, teacher: Tensor, targets: Tensor, weights: Mapping[str, float], temperature: float = 1.0
) -> Tensor:
    """
    Sum the weighted losses of tokens, in nats.

    `forward_kl` is KL(teacher || student), `reverse_kl` KL(student || teacher), `jsd` the Jensen-Shannon divergence;
    with a temperature T each is of the softened distributions and times T², so that gradients keep their size (Hinton
    et al., arXiv 1503.02531). `cross_entropy` is of the student alone, at temperature 1.

    Args:
        student (`torch.Tensor` of shape `(tokens, vocab)`): Logits of the student.
        teacher (`torch.Tensor` of shape `(tokens, vocab)`): Logits of the teacher.
        targets (`torch.Tensor` of shape `(tokens,)`): The token that follows each; -100 where it does not count.
        weights (`Mapping[str, float]`): Weight of each loss; names of `OF_LOGITS`, others are ignored.
        temperature (`float`, *optional*, defaults to `1.0`): T.

    Returns:
        `torch.Tensor` of shape `()`.
    """
    total = student.new_zeros(())
    if weights.get("cross_entropy"):
        entropy = nn.functional.cross_entropy(student, targets, ignore_index=IGNORED, reduction="sum")
        total = total + weights["cross_entropy"] * entropy
    wanted = {name: weights[name] for name in OF_LOGITS[1:] if weights.get(name)}
    if not wanted:
        return total
    log_p = nn.functional.log_softmax(student / temperature, -1)
    log_q = nn.functional.log_softmax(teacher / temperature, -1)
    for name, weight in wanted.items():
        per_token = divergence(name, log_p, log_q)
        total = total + weight * temperature**2 * per_token.masked_fill(targets == IGNORED, 0.0).sum()
    return total


def divergence(name: str, log_p: Tensor, log_q: Tensor) -> Tensor:
    """
    Return a divergence of each token's distributions, in nats.

    Args:
        name (`str`): `forward_kl`, `reverse_kl` or `jsd`.
        log_p (`torch.Tensor` of shape `(tokens, classes)`): Log-probabilities of the student.
        log_q (`torch.Tensor` of shape `(tokens, classes)`): Log-probabilities of the teacher.

    Returns:
        `torch.Tensor` of shape `(tokens,)`.
    """
    if name == "forward_kl":
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    if name == "reverse_kl":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * ((log_p.exp() * (log_p - middle)).sum(-1) + (log_q.exp() * (log_q - middle)).sum(-1))


def chunked_sum(
    head: Head,
    hidden: Tensor,
    teacher_head: Head,
    teacher_hidden: Tensor,
    targets: Tensor,
    weights: Mapping[str, float],
    temperature: float = 1.0,
) -> Tensor:
    """
    Sum the weighted losses of tokens, holding the logits of a few tokens at once, in both passes.

    Args:
        head (`Head`): Makes the student's logits.
        hidden (`torch.Tensor` of shape `(tokens, width)`): Its last hidden states.
        teacher_head (`Head`): Makes the teacher's logits.
        teacher_hidden (`torch.Tensor` of shape `(tokens, teacher's width)`): Its last hidden states.
        targets (`torch.Tensor` of shape `(tokens,)`): The token that follows each; -100 where it does not count.
        weights (`Mapping[str, float]`): As for `weighted_sum`.
        temperature (`float`, *optional*, defaults to `1.0`): As for `weighted_sum`.

    Returns:
        `torch.Tensor` of shape `()`.
    """

    def part(states: Tensor, given: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = teacher_head.logits(given.to(teacher_head.weight.dtype)).float()
        return weighted_sum(head.logits(states).float(), teacher, wanted, weights, temperature)

    rows = chunk_tokens(head.weight.shape[0])
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(hidden), rows):
        chunk = (item[start : start + rows] for item in (hidden, teacher_hidden, targets))
        total = total + checkpoint(part, *chunk, use_reentrant=False)
    return total


def top_k_sum(
    scores: Tensor,
    tokens: Tensor,
    log_q: Tensor,
    targets: Tensor,
    weights: Mapping[str, float],
    temperature: float = 1.0,
) -> Tensor:
    """
    Sum the weighted losses of tokens where only the teacher's k likeliest tokens are known.

    What is left of both distributions is one class of its own, so that probabilities still add up to one.

    Args:
        scores (`torch.Tensor` of shape `(tokens, vocab)`): Logits of the student.
        tokens (`torch.Tensor` of shape `(tokens, k)`): The teacher's likeliest tokens.
        log_q (`torch.Tensor` of shape `(tokens, k)`): Their log-probabilities at this temperature.
        targets (`torch.Tensor` of shape `(tokens,)`): The token that follows each; -100 where it does not count.
        weights (`Mapping[str, float]`): As for `weighted_sum`.
        temperature (`float`, *optional*, defaults to `1.0`): As for `weighted_sum`.

    Returns:
        `torch.Tensor` of shape `()`.
    """
    total = scores.new_zeros(())
    if weights.get("cross_entropy"):
        entropy = nn.functional.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum")
        total = total + weights["cross_entropy"] * entropy
    log_p = nn.functional.log_softmax(scores / temperature, -1).gather(-1, tokens)
    known, given = with_rest(log_p), with_rest(log_q)
    for name in OF_LOGITS[1:]:
        if weights.get(name):
            per_token = divergence(name, known, given)
            total = total + weights[name] * temperature**2 * per_token.masked_fill(targets == IGNORED, 0.0).sum()
    return total


def with_rest(log_probabilities: Tensor) -> Tensor:
    """Return the log-probabilities and, as one more class, that of everything else."""
    rest = torch.log1p(-log_probabilities.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    return torch.cat([log_probabilities, rest], -1)


def states_sum(student: list[Tensor], teacher: list[Tensor], targets: Tensor, weights: Mapping[str, float]) -> Tensor:
    """
    Sum the weighted losses on hidden states over tokens: the mean over pairs of blocks, and over channels.

    Args:
        student (`list` of `torch.Tensor` of shape `(tokens, width)`): States after each of the student's blocks.
        teacher (`list` of `torch.Tensor` of shape `(tokens, width)`): States after the blocks that they stand for.
        targets (`torch.Tensor` of shape `(tokens,)`): -100 where a token does not count.
        weights (`Mapping[str, float]`): Weight of `hidden_mse` and `hidden_cosine`; others are ignored.

    Returns:
        `torch.Tensor` of shape `()`.
    """
    total = torch.zeros((), device=targets.device)
    counts = targets != IGNORED
    for own, given in zip(student, teacher, strict=True):
        left, right = own.float(), given.float()
        if weights.get("hidden_mse"):
            total = total + weights["hidden_mse"] * ((left - right).square().mean(-1) * counts).sum()
        if weights.get("hidden_cosine"):
            angle = 1 - nn.functional.cosine_similarity(left, right, dim=-1)
            total = total + weights["hidden_cosine"] * (angle * counts).sum()
    return total / max(1, len(student))


def block_map(kept: tuple[int, ...], blocks: int, depth: int) -> tuple[int, ...]:
    """
    Return for each of a student's blocks the teacher's layer that it stands for.

    That is the layer it was inherited from, or, if it was not, the one at the same share of the depth.
    """
    if len(kept) == blocks:
        return kept
    return tuple((place + 1) * depth // blocks - 1 for place in range(blocks))
