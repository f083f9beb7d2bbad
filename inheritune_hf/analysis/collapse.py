"""The paper's measures of attention collapse: pure functions on attention matrices and on ranks (PAPER: section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from . import spectrum

#: Shares that are measured unless others are asked for: those of the paper's ablation (arXiv 2404.08634v4, figure 10).
SHARES = (0.80, 0.85, 0.90, 0.95)
#: The paper's tau and eta.
SHARE = 0.90
#: A layer is called near rank-1 if its MaxRank is at most 1 plus this: every head has rank 1 on at least half of the
#: sequences. The paper draws near rank-1 heads without saying where the line is.
NEAR_RANK_ONE = 0.5
#: Fewer sequences than this give no interval: a bootstrap over so few is too narrow.
MIN_SEQUENCES = 30
_RESAMPLES = 1_000


def approximate_rank(attention: Tensor, tau: float = SHARE) -> Tensor:
    """
    Count the singular values that hold a share `tau` of the squared spectrum (arXiv 2404.08634v4, section 2).

    Args:
        attention (`torch.Tensor` of shape `(..., query, key)`):
            Attention weights; each row sums to one.
        tau (`float`, *optional*, defaults to `0.9`):
            Share to retain, in `(0, 1]`, reached within a relative 1e-9.

    Returns:
        `torch.Tensor` of shape `(...)`: Integers from `1` to `min(query, key)`.

    Raises:
        ValueError: If `tau` is outside `(0, 1]`, or `attention` holds no matrices of finite numbers.
    """
    matrices = _matrices(attention, tau, "tau")
    return spectrum.ranks(matrices, (tau,))[:, 0].reshape(attention.shape[:-2])


def column_mass(attention: Tensor, eta: float = SHARE) -> Tensor:
    """
    Count the columns, heaviest first, that hold a share `eta` of the squared entries (arXiv 2404.08634v4, appendix C).

    Args:
        attention (`torch.Tensor` of shape `(..., query, key)`):
            Attention weights; each row sums to one.
        eta (`float`, *optional*, defaults to `0.9`):
            Share to retain, in `(0, 1]`, reached within a relative 1e-9.

    Returns:
        `torch.Tensor` of shape `(...)`: Integers from `1` to `key`.

    Raises:
        ValueError: If `eta` is outside `(0, 1]`, or `attention` holds no matrices of finite numbers.
    """
    matrices = _matrices(attention, eta, "eta")
    return torch.cat(spectrum.by_groups(lambda part: _masses(part, (eta,)), matrices)).reshape(attention.shape[:-2])


def rank_of_batch_mean(attention: Tensor, tau: float = SHARE) -> Tensor:
    """
    Return the rank of each head's mean attention over a batch: what the authors' notebook calls the rank of a head.

    It is another thing than Rank(h, l), the mean over sequences of each one's rank: averaging first mixes patterns.

    Args:
        attention (`torch.Tensor` of shape `(batch, heads, query, key)`): Attention weights.
        tau (`float`, *optional*, defaults to `0.9`): Share to retain, in `(0, 1]`.

    Returns:
        `torch.Tensor` of shape `(heads,)`: Integers.
    """
    return approximate_rank(attention.mean(0), tau)


def attention_entropy(attention: Tensor) -> Tensor:
    """
    Return the mean entropy of the rows, in nats: 0 if every query attends to one key.

    Args:
        attention (`torch.Tensor` of shape `(..., query, key)`): Attention weights; each row sums to one.

    Returns:
        `torch.Tensor` of shape `(...)`: Nats.
    """
    # Several times faster than torch.special.entr; a weight of zero adds nothing.
    logarithms = attention.clamp(min=torch.finfo(attention.dtype).tiny).log_()
    return -logarithms.mul_(attention).sum(-1).mean(-1)


def sink_share(attention: Tensor) -> Tensor:
    """
    Return the mean attention that goes to the first key; the first query, which can see no other, does not count.

    Args:
        attention (`torch.Tensor` of shape `(..., query, key)`): Causal attention weights of 2 or more queries.

    Returns:
        `torch.Tensor` of shape `(...)`: Shares from `0` to `1`.
    """
    return attention[..., 1:, 0].mean(-1)


def uniform_attention(tokens: int, window: int | None = None) -> Tensor:
    """
    Return causal attention that looks at every token it can see alike: the control that has learned nothing.

    Args:
        tokens (`int`): Length of the sequence.
        window (`int`, *optional*): Tokens that a query can see, itself included; all before it if not given.

    Returns:
        `torch.Tensor` of shape `(query, key)`: In float64; each row sums to one.
    """
    seen = torch.ones(tokens, tokens, dtype=torch.float64).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    return seen / seen.sum(-1, keepdim=True)


@dataclass(frozen=True)
class AttentionScores:
    """
    The measures of one layer's attention on a batch of sequences.

    Args:
        ranks (`torch.Tensor` of shape `(shares, batch, heads)`): `approximate_rank` at each share.
        masses (`torch.Tensor` of shape `(shares, batch, heads)`): `column_mass` at each share.
        entropy (`torch.Tensor` of shape `(batch, heads)`): `attention_entropy`, in nats.
        sink (`torch.Tensor` of shape `(batch, heads)`): `sink_share`.
    """

    ranks: Tensor
    masses: Tensor
    entropy: Tensor
    sink: Tensor


def score_attention(attention: Tensor, shares: Sequence[float] = SHARES) -> AttentionScores:
    """
    Return all measures of one layer's attention; besides it, never more than a few matrices are in memory.

    Args:
        attention (`torch.Tensor` of shape `(batch, heads, query, key)`): Attention weights in float32.
        shares (sequence of `float`, *optional*, defaults to the paper's four): Taus and etas.

    Returns:
        `AttentionScores`: On the CPU.

    Raises:
        ValueError: If a share is outside `(0, 1]`, or `attention` is not finite.
    """
    for share in shares:
        _check_share(share, "tau")
    matrices = _matrices(attention, shares[0], "tau")
    batch, heads = attention.shape[:2]
    by_head = (len(shares), batch, heads)

    def measure(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = spectrum.without_denormals(part)
        return spectrum.group_ranks(kept, shares), _masses(kept, shares), attention_entropy(part)

    parts = zip(*spectrum.by_groups(measure, matrices), strict=True)
    ranks, masses, entropy = (torch.cat(part) for part in parts)
    return AttentionScores(
        ranks=ranks.mT.reshape(by_head).cpu(),
        masses=masses.mT.reshape(by_head).cpu(),
        entropy=entropy.reshape(batch, heads).cpu(),
        sink=sink_share(attention).cpu(),
    )


def max_rank(ranks: ArrayLike) -> float:
    """
    Return MaxRank(l), the largest of the heads' Rank(h, l), each a mean over sequences (PAPER: eq. 3).

    Args:
        ranks (array of shape `(sequences, heads)`): Ranks of one layer.
    """
    return float(np.asarray(ranks, dtype=np.float64).mean(0).max())


def avg_rank(max_ranks: Sequence[float]) -> float:
    """
    Return AvgRank of a group of layers, the mean of their MaxRanks (PAPER: eq. 4).

    Raises:
        ValueError: If the group is empty.
    """
    if len(max_ranks) == 0:
        raise ValueError("AvgRank needs at least one layer with softmax attention, got an empty group.")
    return float(np.mean(max_ranks))


def avg_mass(masses: ArrayLike) -> float:
    """
    Return AvgMass(l), the mean over heads of the heads' column mass, each a mean over sequences (PAPER: appendix C).

    Args:
        masses (array of shape `(sequences, heads)`): Column masses of one layer.
    """
    return float(np.asarray(masses, dtype=np.float64).mean(0).mean())


def is_lazy_layer(max_rank: float, tolerance: float = 0.0) -> bool:
    """
    Tell whether a layer is lazy: its MaxRank is 1 (PAPER: definition G.1), or at most `1 + tolerance`.

    Exactly 1 needs rank 1 of every head on every sequence. For "near rank-1" give `NEAR_RANK_ONE`.
    """
    return max_rank <= 1 + tolerance


def is_lazy_group(max_ranks: Sequence[float]) -> bool:
    """Tell whether a contiguous group of layers is lazy: floor(AvgRank) is 1 (PAPER: definition G.1)."""
    return math.floor(avg_rank(max_ranks)) == 1


def max_rank_interval(ranks: ArrayLike, confidence: float = 0.95) -> tuple[float, float] | None:
    """
    Return a two-sided interval of MaxRank over sequences, by a bootstrap that resamples them.

    Args:
        ranks (array of shape `(sequences, heads)`): Ranks of one layer.
        confidence (`float`, *optional*, defaults to `0.95`): Share of the resamples within the interval.

    Returns:
        `tuple[float, float]`, *optional*: Lower and upper end; None for fewer than 30 sequences.
    """
    resampled = resampled_max_ranks(ranks)
    if resampled is None:
        return None
    lower, upper = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(lower), float(upper)


def resampled_max_ranks(ranks: ArrayLike) -> NDArray[np.float64] | None:
    """
    Return MaxRank for each of 1,000 resamples of the sequences, or None for fewer than 30 sequences.

    All layers of a model are resampled alike, so that groups of them can be judged together.

    Args:
        ranks (array of shape `(sequences, heads)`): Ranks of one layer.

    Returns:
        array of shape `(resamples,)`, *optional*.
    """
    values = np.asarray(ranks, dtype=np.float64)
    sequences = len(values)
    if sequences < MIN_SEQUENCES:
        return None
    draws = np.random.default_rng(0).multinomial(sequences, np.full(sequences, 1 / sequences), size=_RESAMPLES)
    highest: NDArray[np.float64] = (draws @ values / sequences).max(1)
    return highest


def _masses(matrices: Tensor, etas: Sequence[float]) -> Tensor:
    """Return the column mass of a few matrices at each share, of shape `(batch, etas)`."""
    if matrices.dtype == torch.float32:
        # Sums of squares are off by no more than a rounding for each term. Where that matters, float64 decides.
        energies = matrices.square().sum(-2).double()
        slack = 2 * (matrices.shape[-2] + 1) * torch.finfo(torch.float32).eps * energies.sum(-1)
        low, high = (_counted(energies, etas, off) for off in (-slack, slack))
        doubtful = (low != high).any(-1)
        if bool(doubtful.any()):
            low[doubtful] = _masses(matrices[doubtful].double(), etas)
        return low
    energies = matrices.double().square().sum(-2)
    return _counted(energies, etas, torch.zeros_like(energies[:, 0]))


def _counted(energies: Tensor, shares: Sequence[float], off: Tensor) -> Tensor:
    """Return how many columns, heaviest first, hold each share of the energies, or by how much it is `off`."""
    wanted = spectrum.thresholds(energies.sum(-1), shares) + off[:, None]
    return spectrum.count_leading(energies.sort(-1, descending=True)[0], wanted)


def _matrices(attention: Tensor, share: float, name: str) -> Tensor:
    _check_share(share, name)
    if attention.ndim < 2 or 0 in attention.shape[-2:]:
        raise ValueError(f"Attention must be of shape (..., query, key), got {tuple(attention.shape)}.")
    matrices = attention.detach().reshape(-1, *attention.shape[-2:])
    if not matrices.is_floating_point():
        matrices = matrices.double()
    # A sum is finite only if every entry is: no copy of the layer is made to find out.
    if not bool(torch.isfinite(matrices.sum())):
        raise ValueError("Attention holds numbers that are not finite; check the model's weights and its precision.")
    return matrices


def _check_share(share: float, name: str) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {share!r}.")
