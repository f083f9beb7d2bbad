"""How many singular values hold a share of a matrix: exact, by the cheapest method that is sure of its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: Relative slack at a threshold: a share that is reached but for rounding (identity attention, ties) is reached.
TOLERANCE = 1e-9

# Entries below this change no share by more than 1e-12, and their squares would be denormal: slow for nothing.
_NOTHING = 1e-15
# Numbers in the matrices that are worked on at once: four of 1,024 tokens, all heads of a short sequence.
_GROUP = 1 << 22
# Up to this size the exact method costs less than asking a cheaper one first.
_SMALL = 48


def ranks(matrices: Tensor, taus: Sequence[float]) -> Tensor:
    """
    Count, for each matrix, the leading singular values that hold each share of the squared spectrum.

    Leading values suffice where the rank is small: the total energy is the squared Frobenius norm, known exactly, and
    two-sided bounds tell whether the answer is certain. Otherwise all eigenvalues of the Gram matrix are computed in
    float32, with a margin for rounding, and in float64 where that leaves a doubt.

    Args:
        matrices (`torch.Tensor` of shape `(batch, query, key)`): Real matrices.
        taus (sequence of `float`): Shares to retain, in `(0, 1]`.

    Returns:
        `torch.Tensor` of shape `(batch, taus)`: Integers from `1` to `min(query, key)`, on the same device.
    """
    found = torch.zeros(len(matrices), len(taus), dtype=torch.long, device=matrices.device)
    for part, place in groups(matrices):
        found[place] = _group_ranks(nn.functional.hardshrink(part, _NOTHING), taus)
    return found


def groups(matrices: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Yield parts of a batch of matrices that are small enough to make copies of, and where they are."""
    size = max(1, _GROUP // max(1, matrices[0].numel())) if len(matrices) else 1
    for start in range(0, len(matrices), size):
        yield matrices[start : start + size], slice(start, start + size)


def thresholds(total: Tensor, shares: Sequence[float]) -> Tensor:
    """
    Return the energy that must be reached for each share.

    Args:
        total (`torch.Tensor` of shape `(batch,)`): Energy of each matrix, float64.
        shares (sequence of `float`): Shares in `(0, 1]`.

    Returns:
        `torch.Tensor` of shape `(batch, shares)`: In float64.
    """
    wanted: Tensor = torch.tensor(list(shares), dtype=torch.float64, device=total.device) * (1 - TOLERANCE)
    return total[:, None] * wanted


def _group_ranks(matrices: Tensor, taus: Sequence[float]) -> Tensor:
    size = min(matrices.shape[-2:])
    total = torch.linalg.vector_norm(matrices, dim=(-2, -1), dtype=torch.float64).square()
    wanted = thresholds(total, taus)
    if size <= _SMALL or matrices.dtype == torch.float64:
        return _counted(_energies(_gram(matrices.double())), wanted)
    # What float32 sums may be off by, relative to the total: thirty times what was measured at 100 to 1,024 tokens.
    margin = max(2e-5, size * torch.finfo(torch.float32).eps / 6)
    matrices = matrices.float()
    found = torch.zeros_like(wanted, dtype=torch.long)
    # A few rows tell where one column is heavy; the method is chosen by them, never the answer.
    sample = matrices[:, size // 8 :: 8]
    sink = torch.linalg.vector_norm(sample, dim=-2).amax(-1).square() > 0.5 * sample.square().sum((-2, -1))
    _fill(found, sink, _collapsed_ranks, matrices, total, wanted, margin)
    _fill(found, (found == 0).any(-1), _gram_ranks, matrices, total, wanted, margin)
    _fill(found, (found == 0).any(-1), _exact_ranks, matrices, total, wanted, margin)
    return found


def _fill(found: Tensor, where: Tensor, method: Callable[..., Tensor], *given: Any) -> None:
    """Fill in what a method finds for some of the matrices; copies of the given tensors only if it is not for all."""
    if bool(where.all()):
        found.copy_(method(*given))
    elif bool(where.any()):
        found[where] = method(*(item[where] if isinstance(item, Tensor) else item for item in given))


def _exact_ranks(matrices: Tensor, total: Tensor, wanted: Tensor, margin: float) -> Tensor:
    """Return the ranks from all eigenvalues in float64."""
    return _counted(_energies(_gram(matrices.double())), wanted)


def _gram_ranks(matrices: Tensor, total: Tensor, wanted: Tensor, margin: float) -> Tensor:
    """Return the ranks that float32 is sure of, from leading values where few may do, from all of them elsewhere."""
    found = torch.zeros_like(wanted, dtype=torch.long)
    gram = _gram(matrices)
    squares = torch.linalg.vector_norm(gram, dim=(-2, -1), dtype=torch.float64).square()
    # k leading energies are at most root(k) times the root of the sum of their squares (Cauchy and Schwarz). Ranks are
    # some four times that bound, and a block is sure of ranks up to half of its size.
    least = wanted.amax(-1).square() / squares
    block = _block(gram.shape[-1])
    _fill(found, least <= block / 8, _leading_ranks, gram, total, squares, wanted, margin, block)
    _fill(found, (found == 0).any(-1), _float32_ranks, gram, total, wanted, margin)
    return found


def _float32_ranks(gram: Tensor, total: Tensor, wanted: Tensor, margin: float) -> Tensor:
    """Return the ranks from all eigenvalues in float32, and 0 where rounding leaves a doubt."""
    energies, slack = _energies(gram), margin * total[:, None]
    low, high = _counted(energies, wanted - slack), _counted(energies, wanted + slack)
    return torch.where(low == high, low, 0)


def _block(size: int) -> int:
    return min(128, max(16, size // 8))


def _gram(matrices: Tensor) -> Tensor:
    """Return the smaller of the two Gram matrices, whose eigenvalues are the squared singular values."""
    wide = matrices.shape[-1] > matrices.shape[-2]
    return matrices @ matrices.mT if wide else matrices.mT @ matrices


def _energies(gram: Tensor) -> Tensor:
    """Return the eigenvalues of Gram matrices in float64, largest first."""
    energies: Tensor = torch.linalg.eigvalsh(gram)
    return energies.double().flip(-1).clamp(min=0)


def _counted(energies: Tensor, wanted: Tensor) -> Tensor:
    """Return how many leading energies reach each threshold, of shape `(batch, taus)`."""
    sums = energies.cumsum(-1)
    missing = (sums[:, None, :] < wanted[:, :, None]).sum(-1)
    return (missing + 1).clamp(max=energies.shape[-1])


def _collapsed_ranks(matrices: Tensor, total: Tensor, wanted: Tensor, margin: float) -> Tensor:
    """Return the ranks of matrices with one heavy column, without their Gram matrix, and 0 where that is not sure."""
    basis = _start(matrices, 8)
    for _ in range(2):
        basis = torch.linalg.qr(matrices.mT @ (matrices @ basis))[0]
    image = matrices @ basis
    back = matrices.mT @ image
    return _certified(image.mT @ image, back - basis @ (basis.mT @ back), total, None, wanted, margin)


def _leading_ranks(gram: Tensor, total: Tensor, squares: Tensor, wanted: Tensor, margin: float, block: int) -> Tensor:
    """Return the ranks that a block of leading values of Gram matrices is sure of, and 0 where it is not."""
    basis = _start(gram, block)
    for _ in range(3):
        basis = torch.linalg.qr(gram @ basis)[0]
    back = gram @ basis
    inside = basis.mT @ back
    return _certified(inside, back - basis @ inside, total, squares, wanted, margin)


def _start(matrices: Tensor, block: int) -> Tensor:
    size = matrices.shape[-1]
    # A generator of its own: the same answer every time, and no random state of the caller is touched.
    normal = torch.randn(size, block, generator=torch.Generator().manual_seed(0))
    return normal.to(matrices.device).expand(len(matrices), size, block)


def _certified(
    inside: Tensor, outside: Tensor, total: Tensor, squares: Tensor | None, wanted: Tensor, margin: float
) -> Tensor:
    """
    Return the ranks that follow from a subspace for certain, and 0 elsewhere.

    With Q an orthonormal basis and G the Gram matrix, the eigenvalues t of Q'GQ bound those of G from below. With
    E = (I - QQ')GQ and M = (I - QQ')G(I - QQ'), G is at most diag(t + E'E/c, M + c) for every c > 0. The j largest
    eigenvalues of M sum to no more than its trace, the total less all t, and than root(j) times its Frobenius norm.
    That bounds every sum of leading eigenvalues from above (Ky Fan).

    Args:
        inside (`torch.Tensor` of shape `(batch, block, block)`): Q'GQ.
        outside (`torch.Tensor` of shape `(batch, key, block)`): E.
        total (`torch.Tensor` of shape `(batch,)`): Trace of G.
        squares (`torch.Tensor` of shape `(batch,)`, *optional*): Squared Frobenius norm of G, if it is known.
        wanted (`torch.Tensor` of shape `(batch, taus)`): Energies to reach.
        margin (`float`): What sums may be off by, relative to the total.
    """
    block = inside.shape[-1]
    ritz = torch.linalg.eigvalsh(inside.double()).flip(-1)
    leak = torch.linalg.vector_norm(outside, dim=(-2, -1), dtype=torch.float64).square()
    lower = torch.cat([torch.zeros_like(ritz[:, :1]), ritz.cumsum(-1)], dim=-1)
    rest = (total - lower[:, -1]).clamp(min=0) + margin * total
    norm = rest
    if squares is not None:
        left = squares - ritz.square().sum(-1) - 2 * leak
        norm = torch.minimum(rest, (left.clamp(min=0) + margin * squares).sqrt())
    # Any c is right; this one keeps both of its terms small.
    shift = (leak.sqrt() * 0.5 + 1e-3 * norm).clamp(min=torch.finfo(torch.float64).tiny)
    steps = torch.arange(block + 1, device=ritz.device)
    others = torch.minimum(rest[:, None], steps.sqrt() * norm[:, None]) + steps * shift[:, None]

    count = (lower[:, None, :] < wanted[:, :, None]).sum(-1)  # the rank, if the lower bounds were the sums
    reached = lower.gather(1, count.clamp(max=block))
    # The most that one eigenvalue less can sum to: the leading of the block, or j of them exchanged for others.
    inner = count[:, :, None] - 1 - steps
    sums = torch.where(inner >= 0, lower[:, None, :].expand(*count.shape, -1).gather(2, inner.clamp(min=0)), 0.0)
    above = torch.where(inner >= 0, sums + others[:, None, :], 0.0).amax(-1) + (leak / shift)[:, None]
    above = torch.where(count > 1, above, 0.0)
    slack = margin * total[:, None]
    sure = (count <= block) & (reached >= wanted + slack) & (above < wanted - slack)
    return torch.where(sure, count, 0)
