"""
The paper's measures of attention collapse: functions of attention matrices and of ranks (PAPER: section 2).

Ranks are exact, by the cheapest method that is certain of its answer: on heads of 1,024 tokens 3.8 times as fast as
`torch.linalg.svdvals` (benchmarks/README.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

#: Shares that are measured by default: those of the paper's ablation (arXiv 2404.08634v4, figure 10).
SHARES = (0.80, 0.85, 0.90, 0.95)
#: The paper's tau and eta.
SHARE = 0.90
#: A layer is called near rank-1 if its MaxRank is at most 1 plus this: every head has rank 1 on at least half of the
#: sequences. The paper draws near rank-1 heads and gives no threshold.
NEAR_RANK_ONE = 0.5
# A bootstrap over fewer sequences gives intervals that are too narrow.
_MIN_SEQUENCES = 30
_RESAMPLES = 1_000
# Relative tolerance at a threshold: a share that is reached but for rounding (identity attention, ties) is reached.
_TOLERANCE = 1e-9

# Entries below this change no share by more than 1e-12, and computing with their denormal squares is slow.
_NEGLIGIBLE = 1e-15
# Numbers in the matrices that one thread works on at once: at most one of 1,024 tokens, and no fewer than 13 of 100.
_GROUP, _THREAD_GROUP = 1 << 20, 1 << 17
# Up to these sizes all eigenvalues in float64, or in float32, cost less than trying a cheaper method first.
_SMALL, _MEDIUM = 48, 192
# Leading values that are computed where few may suffice.
_BLOCK = 32
# Safety factor on the rounding of float32 that was seen on random and adversarial matrices: see `_slack`.
_MARGIN = 4.0

Result = TypeVar("Result")


def approximate_rank(attention: Tensor, tau: float = SHARE) -> Tensor:
    """
    Count the singular values that hold a share `tau` of the squared spectrum (arXiv 2404.08634v4, section 2).

    `attention` is of shape `(..., query, key)`, the result of shape `(...)`: integers from `1` to `min(query, key)`.

    Raises:
        ValueError: If `tau` is outside `(0, 1]`, or `attention` holds no matrices of finite numbers.
    """
    matrices = _matrices(attention, (tau,), "tau")
    return ranks(matrices, (tau,))[:, 0].reshape(attention.shape[:-2])


def column_mass(attention: Tensor, eta: float = SHARE) -> Tensor:
    """
    Count the columns, heaviest first, that hold a share `eta` of the squared entries (arXiv 2404.08634v4, appendix C).

    `attention` is of shape `(..., query, key)`, the result of shape `(...)`: integers from `1` to `key`.

    Raises:
        ValueError: If `eta` is outside `(0, 1]`, or `attention` holds no matrices of finite numbers.
    """
    matrices = _matrices(attention, (eta,), "eta")
    return torch.cat(by_groups(lambda part: _masses(part, (eta,)), matrices)).reshape(attention.shape[:-2])


def attention_entropy(attention: Tensor) -> Tensor:
    """Return the mean entropy of the rows of `(..., query, key)`, in nats: 0 if every query attends to one key."""
    # Several times faster than torch.special.entr; a weight of zero adds nothing.
    logarithms = attention.clamp(min=torch.finfo(attention.dtype).tiny).log_()
    return -logarithms.mul_(attention).sum(-1).mean(-1)


def sink_share(attention: Tensor) -> Tensor:
    """Return the mean attention to the first key; the first query, which sees no other key, does not count."""
    return attention[..., 1:, 0].mean(-1)


def uniform_attention(tokens: int, window: int | None = None) -> Tensor:
    """Return causal attention in float64 with equal weights on all visible tokens, or on the last `window` of them."""
    visible = torch.ones(tokens, tokens, dtype=torch.float64).tril()
    if window is not None:
        visible = visible.triu(1 - window)
    return visible / visible.sum(-1, keepdim=True)


def score_attention(attention: Tensor, shares: Sequence[float] = SHARES) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Return all measures of one layer's attention of shape `(batch, heads, query, key)`, on the CPU.

    Ranks and column masses are of shape `(shares, batch, heads)`, entropy, in nats, and sink share of shape
    `(batch, heads)`. Besides the attention, never more than a few matrices are in memory.
    """
    matrices = _matrices(attention, shares, "tau")
    batch, heads = attention.shape[:2]
    by_head = (len(shares), batch, heads)

    def measure(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = without_denormals(part)
        return group_ranks(kept, shares), _masses(kept, shares), attention_entropy(part)

    parts = zip(*by_groups(measure, matrices), strict=True)
    ranks, masses, entropy = (torch.cat(part) for part in parts)
    return (
        ranks.mT.reshape(by_head).cpu(),
        masses.mT.reshape(by_head).cpu(),
        entropy.reshape(batch, heads).cpu(),
        sink_share(attention).cpu(),
    )


def max_rank(ranks: ArrayLike) -> float:
    """Return MaxRank(l) of `(sequences, heads)`, the largest of the heads' means over sequences (PAPER: eq. 3)."""
    return float(np.asarray(ranks, dtype=np.float64).mean(0).max())


def resampled_max_ranks(ranks: ArrayLike) -> NDArray[np.float64] | None:
    """
    Return MaxRank in each of 1,000 bootstrap resamples of the sequences, or None for fewer than 30 sequences.

    All layers of a model are resampled alike, so that statistics of several layers can be resampled too.
    """
    values = np.asarray(ranks, dtype=np.float64)
    sequences = len(values)
    if sequences < _MIN_SEQUENCES:
        return None
    draws = np.random.default_rng(0).multinomial(sequences, np.full(sequences, 1 / sequences), size=_RESAMPLES)
    highest: NDArray[np.float64] = (draws @ values / sequences).max(1)
    return highest


def _masses(matrices: Tensor, etas: Sequence[float]) -> Tensor:
    """Return the column mass of a few matrices at each share, of shape `(batch, etas)`."""
    if matrices.dtype == torch.float32:
        # The error of a sum of squares is at most one rounding for each term. Where that matters, float64 decides.
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
    wanted = thresholds(energies.sum(-1), shares) + off[:, None]
    return count_leading(energies.sort(-1, descending=True)[0], wanted)


def _matrices(attention: Tensor, shares: Sequence[float], name: str) -> Tensor:
    for share in shares:
        if not 0 < share <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, got {share!r}.")
    if attention.ndim < 2 or 0 in attention.shape[-2:]:
        raise ValueError(f"Attention must be of shape (..., query, key), got {tuple(attention.shape)}.")
    matrices = attention.detach().reshape(-1, *attention.shape[-2:])
    if not matrices.is_floating_point():
        matrices = matrices.double()
    # A sum is finite only if every entry is: this check needs no copy of the layer.
    if not bool(torch.isfinite(matrices.sum(dtype=torch.promote_types(matrices.dtype, torch.float32)))):
        raise ValueError("Attention holds numbers that are not finite; check the model's weights and its precision.")
    return matrices


def ranks(matrices: Tensor, taus: Sequence[float]) -> Tensor:
    """
    Count the leading singular values of `(batch, query, key)` that hold each share, of shape `(batch, taus)`.

    Leading values suffice where the rank is small: the total energy is the squared Frobenius norm, known exactly, and
    two-sided bounds show whether the answer is certain. Otherwise all eigenvalues of the Gram matrix are computed in
    float32, with a margin for rounding, and in float64 where that margin leaves the answer open.
    """
    return torch.cat(by_groups(lambda part: group_ranks(without_denormals(part), taus), matrices))


def without_denormals(matrices: Tensor) -> Tensor:
    """Return matrices with negligible numbers set to zero: computing with their denormal squares is slow."""
    return nn.functional.hardshrink(matrices, _NEGLIGIBLE)


def by_groups(measure: Callable[[Tensor], Result], matrices: Tensor) -> list[Result]:
    """
    Measure a batch of matrices in parts that are small enough to be copied, on as many threads as torch may use.

    LAPACK works on one matrix at a time, and attention matrices are too small to be split among threads: on a CPU each
    thread works on matrices of its own.
    """
    threads = torch.get_num_threads() if matrices.device.type == "cpu" else 1
    count = max(1, len(matrices))
    numbers = max(1, matrices[:1].numel())
    size = max(1, _GROUP // numbers)
    if threads > 1:
        size = min(size, max(-(-count // (4 * threads)), _THREAD_GROUP // numbers))
    parts = [matrices[start : start + size] for start in range(0, count, size)]
    if threads == 1 or len(parts) == 1:
        return [measure(part) for part in parts]
    try:
        with ThreadPoolExecutor(min(threads, len(parts)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(measure, parts))
    finally:
        # Threads that start later inherit this number too.
        torch.set_num_threads(threads)


def thresholds(total: Tensor, shares: Sequence[float]) -> Tensor:
    """Return the energy to reach for each share, of shape `(batch, shares)`, from float64 totals."""
    wanted: Tensor = torch.tensor(list(shares), dtype=torch.float64, device=total.device) * (1 - _TOLERANCE)
    return total[:, None] * wanted


def group_ranks(matrices: Tensor, taus: Sequence[float]) -> Tensor:
    """Return the `ranks` of a few matrices `without_denormals`, in this thread."""
    size = min(matrices.shape[-2:])
    total = torch.linalg.vector_norm(matrices, dim=(-2, -1), dtype=torch.float64).square()
    wanted = thresholds(total, taus)
    found = torch.zeros_like(wanted, dtype=torch.long)
    if size <= _SMALL or matrices.dtype == torch.float64 or not _multiplies_float32(matrices.device):
        return _exact_ranks(matrices, total, wanted)
    matrices = matrices.float()
    # A few rows show whether one column is heavy; they choose the method, never the answer.
    sample = matrices[:, size // 8 :: 8]
    sink = torch.linalg.vector_norm(sample, dim=-2).amax(-1).square() > 0.5 * sample.square().sum((-2, -1))
    _fill(found, sink, _collapsed_ranks, matrices, total, wanted)
    _fill(found, (found == 0).any(-1), _gram_ranks, matrices, total, wanted)
    _fill(found, (found == 0).any(-1), _exact_ranks, matrices, total, wanted)
    return found


def _multiplies_float32(device: torch.device) -> bool:
    """Tell whether float32 matrix products have float32 precision: users may allow less (TF32, bfloat16) for speed."""
    number = 1 + 2.0**-22
    product = torch.full((1, 64, 256), number, device=device) @ torch.eye(256, device=device)[None, :, :64]
    return bool((product == number).all())


def _fill(found: Tensor, mask: Tensor, method: Callable[..., Tensor], *arguments: Any) -> None:
    """Write the results of a method for the masked matrices into `found`."""
    if bool(mask.all()):  # without copies
        found.copy_(method(*arguments))
    elif bool(mask.any()):
        found[mask] = method(*(item[mask] if isinstance(item, Tensor) else item for item in arguments))


def _exact_ranks(matrices: Tensor, total: Tensor, wanted: Tensor) -> Tensor:
    """Return the ranks from all eigenvalues in float64."""
    return count_leading(_energies(_gram(matrices.double())), wanted)


def _gram_ranks(matrices: Tensor, total: Tensor, wanted: Tensor) -> Tensor:
    """Return the ranks that are certain in float32, from leading values where few may suffice, else from all."""
    found = torch.zeros_like(wanted, dtype=torch.long)
    gram = _gram(matrices)
    if gram.shape[-1] > _MEDIUM:
        squares = torch.linalg.vector_norm(gram, dim=(-2, -1), dtype=torch.float64).square()
        # k leading energies are at most root(k) times the root of the sum of their squares (Cauchy and Schwarz). Ranks
        # are several times that bound, and a block certifies ranks up to half of its size.
        least = wanted.amax(-1).square() / squares
        _fill(found, least <= _BLOCK / 8, _leading_ranks, gram, total, squares, wanted)
    _fill(found, (found == 0).any(-1), _float32_ranks, gram, total, wanted)
    return found


def _float32_ranks(gram: Tensor, total: Tensor, wanted: Tensor) -> Tensor:
    """Return the ranks from all eigenvalues in float32, and 0 where rounding leaves them open."""
    energies = _energies(gram)
    slack = _slack(total, torch.linalg.vector_norm(energies, dim=-1), gram.shape[-1])[:, None]
    low, high = count_leading(energies, wanted - slack), count_leading(energies, wanted + slack)
    return torch.where(low == high, low, 0)


def _slack(total: Tensor, norm: Tensor, size: int) -> Tensor:
    """
    Bound the error of sums of leading energies in float32, from the trace and Frobenius norm of the Gram matrices.

    Each of the steps that turn a Gram matrix into its eigenvalues has an error of one rounding of its norm, in any
    direction: together root(size) times that. The error of the Gram matrix itself is a few roundings of its trace.
    """
    rounding = torch.finfo(torch.float32).eps / 2
    return _MARGIN * rounding * (1.7 * math.sqrt(size) * norm + 6 * total)


def _gram(matrices: Tensor) -> Tensor:
    """
    Return the smaller Gram matrices, whose eigenvalues are the squared singular values.

    They are built in strips, so that what is above the diagonal is not computed twice. Causal strips are zero in the
    rows before their own, which leaves a third of the products.
    """
    if matrices.shape[-1] > matrices.shape[-2]:
        matrices = matrices.mT
    rows, size = matrices.shape[-2:]
    strip = max(32, size // 16)
    starts = range(0, size, strip)
    causal = rows == size and not any(bool(matrices[:, :start, start : start + strip].any()) for start in starts[1:])
    gram = matrices.new_zeros(len(matrices), size, size)
    for start in starts:
        end = min(size, start + strip)
        below = matrices[:, start if causal else 0 :]
        gram[:, start:end, :end] = below[:, :, start:end].mT @ below[:, :, :end]
        gram[:, :start, start:end] = gram[:, start:end, :start].mT
    return gram


def _energies(gram: Tensor) -> Tensor:
    """Return the eigenvalues of Gram matrices in float64, largest first."""
    energies: Tensor = torch.linalg.eigvalsh(gram)
    return energies.double().flip(-1).clamp(min=0)


def count_leading(energies: Tensor, wanted: Tensor) -> Tensor:
    """Return how many leading energies reach each threshold, of shape `(batch, taus)`."""
    sums = energies.cumsum(-1)
    missing = (sums[:, None, :] < wanted[:, :, None]).sum(-1)
    return (missing + 1).clamp(max=energies.shape[-1])


def _collapsed_ranks(matrices: Tensor, total: Tensor, wanted: Tensor) -> Tensor:
    """Return the ranks of matrices with one heavy column, without their Gram matrix, and 0 where not certain."""
    basis = _random_block(matrices, 8)
    for _ in range(2):
        basis = torch.linalg.qr(matrices.mT @ (matrices @ basis))[0]
    image = matrices @ basis
    back = matrices.mT @ image
    return _certified(image.mT @ image, back - basis @ (basis.mT @ back), total, None, wanted)


def _leading_ranks(gram: Tensor, total: Tensor, squares: Tensor, wanted: Tensor) -> Tensor:
    """Return the ranks that a block of leading values of Gram matrices certifies, and 0 elsewhere."""
    basis = _random_block(gram, _BLOCK)
    for _ in range(3):
        basis = torch.linalg.qr(gram @ basis)[0]
    back = gram @ basis
    inside = basis.mT @ back
    return _certified(inside, back - basis @ inside, total, squares, wanted)


def _random_block(matrices: Tensor, block: int) -> Tensor:
    size = matrices.shape[-1]
    # A generator of its own: the same result each time, and the caller's random state is untouched.
    normal = torch.randn(size, block, generator=torch.Generator().manual_seed(0))
    return normal.to(matrices.device).expand(len(matrices), size, block)


def _certified(inside: Tensor, outside: Tensor, total: Tensor, squares: Tensor | None, wanted: Tensor) -> Tensor:
    """
    Return the ranks that a subspace certifies, and 0 elsewhere.

    With Q an orthonormal basis and G the Gram matrix, the eigenvalues t of Q'GQ bound those of G from below. With
    E = (I - QQ')GQ and M = (I - QQ')G(I - QQ'), G is at most diag(t + E'E/c, M + c) for every c > 0. The j largest
    eigenvalues of M sum to no more than its trace, the total less all t, and than root(j) times its Frobenius norm.
    That bounds every sum of leading eigenvalues from above (Ky Fan).

    `inside` is Q'GQ, `outside` E, `total` the trace of G, and `squares` its squared Frobenius norm, if it is known.
    """
    block = inside.shape[-1]
    slack = _slack(total, total, outside.shape[-2])
    ritz = torch.linalg.eigvalsh(inside.double()).flip(-1)
    leak = torch.linalg.vector_norm(outside, dim=(-2, -1), dtype=torch.float64).square()
    lower = torch.cat([torch.zeros_like(ritz[:, :1]), ritz.cumsum(-1)], dim=-1)
    rest = (total - lower[:, -1]).clamp(min=0) + slack
    norm = rest
    if squares is not None:
        left = squares - ritz.square().sum(-1) - 2 * leak
        norm = torch.minimum(rest, (left.clamp(min=0) + squares * slack / total).sqrt())
    # Every c is valid; this one keeps both of its terms small.
    shift = (leak.sqrt() * 0.5 + 1e-3 * norm).clamp(min=torch.finfo(torch.float64).tiny)
    steps = torch.arange(block + 1, device=ritz.device)
    others = torch.minimum(rest[:, None], steps.sqrt() * norm[:, None]) + steps * shift[:, None]

    count = (lower[:, None, :] < wanted[:, :, None]).sum(-1)  # the rank, if the lower bounds were the sums
    reached = lower.gather(1, count.clamp(max=block))
    # The largest sum of one eigenvalue less: the leading ones of the block, or j of them replaced by others.
    inner = count[:, :, None] - 1 - steps
    sums = torch.where(inner >= 0, lower[:, None, :].expand(*count.shape, -1).gather(2, inner.clamp(min=0)), 0.0)
    above = torch.where(inner >= 0, sums + others[:, None, :], 0.0).amax(-1) + (leak / shift)[:, None]
    above = torch.where(count > 1, above, 0.0)
    certain = (count <= block) & (reached >= wanted + slack[:, None]) & (above < wanted - slack[:, None])
    return torch.where(certain, count, 0)
