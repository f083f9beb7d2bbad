"""How many singular values hold a share of a matrix: exact, by the cheapest method that is sure of its answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

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

    Three methods, each asked only what the one before could not answer for certain: a block of leading Ritz values in
    float32 with the exact total energy (the squared Frobenius norm) and two-sided bounds, all eigenvalues of the Gram
    matrix in float32 with a margin for rounding, and the same in float64.

    Args:
        matrices (`torch.Tensor` of shape `(batch, query, key)`): Real matrices.
        taus (sequence of `float`): Shares to retain, in `(0, 1]`.

    Returns:
        `torch.Tensor` of shape `(batch, taus)`: Integers from `1` to `min(query, key)`, on the same device.
    """
    found = torch.zeros(len(matrices), len(taus), dtype=torch.long, device=matrices.device)
    for part, place in groups(matrices):
        found[place] = _group_ranks(torch.where(part.abs() < _NOTHING, 0, part), taus)
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
        return _counted(_energies(matrices.double()), wanted)
    # What float32 sums may be off by, relative to the total: a hundred times what was measured at 1,024 tokens.
    margin = size * torch.finfo(torch.float32).eps / 2
    matrices = matrices.float()
    found = _leading_ranks(matrices, total, wanted, margin)
    for method, slack in ((_energies, margin), (lambda rest: _energies(rest.double()), 0.0)):
        unsure = (found == 0).any(-1)
        if bool(unsure.any()):
            energies = method(matrices[unsure])
            low = _counted(energies, wanted[unsure] - slack * total[unsure, None])
            high = _counted(energies, wanted[unsure] + slack * total[unsure, None])
            found[unsure] = torch.where(low == high, low, 0)
    return found


def _energies(matrices: Tensor) -> Tensor:
    """Return the squared singular values, of shape `(batch, min(query, key))` in float64, largest first."""
    wide = matrices.shape[-1] > matrices.shape[-2]
    gram = matrices @ matrices.mT if wide else matrices.mT @ matrices
    energies: Tensor = torch.linalg.eigvalsh(gram)
    return energies.double().flip(-1).clamp(min=0)


def _counted(energies: Tensor, wanted: Tensor) -> Tensor:
    """Return how many leading energies reach each threshold, of shape `(batch, taus)`."""
    sums = energies.cumsum(-1)
    missing = (sums[:, None, :] < wanted[:, :, None]).sum(-1)
    return (missing + 1).clamp(max=energies.shape[-1])


def _leading_ranks(matrices: Tensor, total: Tensor, wanted: Tensor, margin: float) -> Tensor:
    """
    Return the ranks that a block of leading Ritz values is sure of, and 0 where it is not.

    With Q the block, G the Gram matrix, E = (I - QQ')GQ and M = (I - Q)G(I - Q'), the Ritz values t of Q'GQ are lower
    bounds of G's eigenvalues. For every c > 0, G is at most diag(t + E'E/c, M + c), and no eigenvalue of M is above its
    trace, the total less the Ritz values: that bounds sums of leading eigenvalues from above (Ky Fan).
    """
    size = matrices.shape[-1]
    block = min(64, max(16, size // 8))
    # A start of its own generator: the same answer every time, and no random state of the caller is touched.
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(size, block, generator=generator).to(matrices.device).expand(len(matrices), size, block)
    for _ in range(2):
        basis = torch.linalg.qr(matrices.mT @ (matrices @ basis))[0]
    image = matrices @ basis
    back = matrices.mT @ image
    ritz, turn = torch.linalg.eigh((image.mT @ image).double())
    ritz = ritz.flip(-1)
    outside = ((back - basis @ (basis.mT @ back)) @ turn.float()).double().square().sum((-2, -1))
    lower = torch.cat([torch.zeros_like(ritz[:, :1]), ritz.cumsum(-1)], dim=-1)
    rest = (total - lower[:, -1]).clamp(min=0)
    # Any c is right; small against the rest keeps both terms small.
    shift = (0.05 * rest).clamp(min=torch.finfo(torch.float64).tiny)
    bump = outside / shift

    count = (lower[:, None, :] < wanted[:, :, None]).sum(-1)  # the rank, if the lower bounds were the sums
    reached = lower.gather(1, count.clamp(max=block))
    one, two = lower.gather(1, (count - 1).clamp(min=0)), lower.gather(1, (count - 2).clamp(min=0))
    above = torch.maximum(one, two + (rest + shift)[:, None]) + bump[:, None]
    above = torch.where(count > 1, above, 0.0)
    slack = margin * total[:, None]
    sure = (count <= block) & (reached >= wanted + slack) & (above < wanted - slack)
    return torch.where(sure, count, 0)
