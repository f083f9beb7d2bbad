"""The record of an analysis, what follows from it, and how two are compared."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation import LazinessComparison
from ..records import decode, encode, read_json, write_text
from ..tabular import Table, Tabular
from .collapse import NEAR_RANK_ONE, SHARE, max_rank, resampled_max_ranks
from .influence import BlockScores

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class LayerScores:
    """
    The measures of one layer's attention.

    Args:
        layer (`int`): Its number, 0-based.
        kind (`str`): `attention`, `sliding_attention`, or what a layer without softmax attention mixes tokens with.
        ranks (`tuple`): Approximate rank by share, sequence and head; empty without softmax attention.
        masses (`tuple`): Column mass by share, sequence and head.
        entropy (`tuple[float, ...]`): Mean entropy of each head's rows, in nats.
        sink (`tuple[float, ...]`): Mean attention of each head to the first token.
    """

    layer: int
    kind: str
    ranks: Any = ()  # checked as a whole: there may be millions
    masses: Any = ()
    entropy: tuple[float, ...] = ()
    sink: tuple[float, ...] = ()

    @property
    def heads(self) -> int:
        """Heads with softmax attention."""
        return len(self.entropy)

    def __post_init__(self) -> None:
        for name in ("ranks", "masses"):
            counts = np.asarray(getattr(self, name))
            if counts.size and (counts.ndim != 3 or counts.dtype.kind not in "iu"):
                raise ValueError(f"{name} must be whole numbers by share, sequence and head.")
            object.__setattr__(self, name, tuple(tuple(tuple(row) for row in share) for share in counts.tolist()))


@dataclass(frozen=True)
class AttentionMap:
    """One head's attention, rows of queries and columns of keys, a mean over a few sequences."""

    layer: int
    head: int
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Uniform:
    """
    Control: uniform causal attention over as many tokens.

    Args:
        ranks (`tuple[int, ...]`): Its approximate rank at each share.
        masses (`tuple[int, ...]`): Its column mass at each share.
        entropy (`float`): Mean entropy of its rows, in nats.
        sink (`float`): Mean attention to the first token.
        window (`int`, *optional*): Tokens that a query sees, itself included; all before it if not given.
    """

    ranks: tuple[int, ...]
    masses: tuple[int, ...]
    entropy: float
    sink: float
    window: int | None = None


@dataclass(frozen=True, repr=False)
class CollapseReport(Tabular):
    """
    What was measured of a model's attention on one set of sequences, with its controls.

    Layers without softmax attention have scores of `None`, and count in no average.

    Args:
        model (`str`): Id or path of the model, or its class.
        model_type (`str`): Its architecture.
        weights (`str`): Fingerprint of its weights.
        data (`str`): Fingerprint of the sequences' tokens.
        sequences (`int`): Sequences.
        tokens (`int`): Tokens of each.
        shares (`tuple[float, ...]`): Taus and etas that were measured.
        layers (`tuple[LayerScores, ...]`): The measures of each layer.
        uniform (`Uniform`): Control: uniform causal attention.
        sliding (`Uniform`, *optional*): The same within the window of sliding layers, if that is narrower than a
            sequence.
        random (`tuple[LayerScores, ...]`): Control: the same measures on a randomly initialised twin; may be empty.
        blocks (`BlockScores`, *optional*): What each block changes.
        maps (`tuple[AttentionMap, ...]`): Attention of some heads, for figures.
        versions (`dict[str, str]`): Versions of the libraries that measured.
    """

    model: str
    model_type: str
    weights: str
    data: str
    sequences: int
    tokens: int
    shares: tuple[float, ...]
    layers: tuple[LayerScores, ...]
    uniform: Uniform
    sliding: Uniform | None = None
    random: tuple[LayerScores, ...] = ()
    blocks: BlockScores | None = None
    maps: tuple[AttentionMap, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def table(self) -> Table:
        """Return a row for each layer: MaxRank and AvgMass, and whether it is lazy."""
        share = SHARE if SHARE in self.shares else self.shares[0]
        ranks, masses = self.max_ranks(share), self.avg_masses(share)
        rows = []
        for item, rank, mass in zip(self.layers, ranks, masses, strict=True):
            numbers = ("" if value is None else f"{value:.2f}" for value in (rank, mass))
            rows.append((str(item.layer), *numbers, remark(rank, item.kind)))
        model = Path(self.model).name if Path(self.model).is_absolute() else self.model
        title = f"{model}: attention of {self.depth} layers on {self.sequences} sequences of {self.tokens} tokens"
        return Table(f"{title}, share {share:g}", ("layer", "MaxRank", "AvgMass", ""), rows)

    def uniform_of(self, layer: int) -> Uniform:
        """Return the uniform attention that a layer is compared with: within its window, if it slides."""
        return self.sliding if self.sliding is not None and "sliding" in self.layers[layer].kind else self.uniform

    def ranks(self, layer: int, tau: float = SHARE, random: bool = False) -> NDArray[np.int64]:
        """Return the ranks of a layer, or of the random twin's, of shape `(sequences, heads)`."""
        return self._of_share((self.random if random else self.layers)[layer].ranks, tau)

    def masses(self, layer: int, eta: float = SHARE) -> NDArray[np.int64]:
        """Return the column masses of a layer, of shape `(sequences, heads)`."""
        return self._of_share(self.layers[layer].masses, eta)

    def max_ranks(self, tau: float = SHARE, random: bool = False) -> list[float | None]:
        """Return MaxRank of each layer (PAPER: eq. 3), None where there is no softmax attention."""
        scores = self.random if random else self.layers
        return [max_rank(self.ranks(item.layer, tau, random)) if item.heads else None for item in scores]

    def max_rank_intervals(self, tau: float = SHARE) -> list[tuple[float, float] | None]:
        """Return a 95 % interval of each MaxRank over sequences; None for fewer than 30 of them."""
        intervals: list[tuple[float, float] | None] = []
        for item in self.layers:
            resampled = resampled_max_ranks(self.ranks(item.layer, tau)) if item.heads else None
            bounds = None if resampled is None else np.quantile(resampled, [0.025, 0.975])
            intervals.append(None if bounds is None else (float(bounds[0]), float(bounds[1])))
        return intervals

    def avg_rank(self, layers: Sequence[int] | None = None, tau: float = SHARE) -> float:
        """Return AvgRank of a group of layers, or of all: the mean of their MaxRanks (PAPER: eq. 4)."""
        values = self.max_ranks(tau)
        chosen = range(self.depth) if layers is None else layers
        known = [value for layer in chosen if (value := values[layer]) is not None]
        if not known:
            raise ValueError("AvgRank needs at least one layer with softmax attention, got an empty group.")
        return float(np.mean(known))

    def avg_masses(self, eta: float = SHARE) -> list[float | None]:
        """Return AvgMass of each layer (PAPER: appendix C), None where there is no softmax attention."""
        return [float(self.masses(item.layer, eta).mean()) if item.heads else None for item in self.layers]

    def lazy_layers(self, tolerance: float = 0.0, tau: float = SHARE) -> list[int]:
        """Return the layers whose MaxRank is at most `1 + tolerance` (PAPER: definition G.1)."""
        ranks = enumerate(self.max_ranks(tau))
        return [layer for layer, value in ranks if value is not None and value <= 1 + tolerance]

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report to a file, so that a reader finds it whole or not at all."""
        write_text(path, json.dumps(encode(self), ensure_ascii=False) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> CollapseReport:
        """Read a report that `to_json` wrote; every field is checked."""
        return decode(cls, read_json(path), str(path))

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with a row for each layer, head and share: rank and mass (means over sequences), and more."""
        import pandas

        rows = [
            (item.layer, item.kind, head, share, rank, mass, item.entropy[head], item.sink[head])
            for item in self.layers
            for share in (self.shares if item.heads else ())
            for head, (rank, mass) in enumerate(
                zip(self.ranks(item.layer, share).mean(0), self.masses(item.layer, share).mean(0), strict=True)
            )
        ]
        return pandas.DataFrame(rows, columns=["layer", "kind", "head", "share", "rank", "mass", "entropy", "sink"])

    def _of_share(self, counts: Any, share: float) -> NDArray[np.int64]:
        if share not in self.shares:
            measured = ", ".join(map(str, self.shares))
            raise ValueError(f"The share {share} was not measured (measured: {measured}); measure again with it.")
        return np.asarray(counts[self.shares.index(share)] if counts else np.zeros((self.sequences, 0)), np.int64)


def compare_laziness(
    student: CollapseReport, reference: CollapseReport, tolerance: float = NEAR_RANK_ONE, tau: float = SHARE
) -> LazinessComparison:
    """
    Compare the lazy layers of a student and its reference, measured on the same sequences.

    A layer counts as lazy if its MaxRank is at most `1 + tolerance`; a tolerance of 0 is the paper's definition.

    Raises:
        ValueError: If the two were not measured on the same tokens: ranks grow with the length of a sequence.
    """
    if (student.data, student.tokens) != (reference.data, reference.tokens):
        raise ValueError(
            f"Models are compared on the same sequences only, got {student.sequences} of {student.tokens} tokens "
            f"({student.data[:8]}) against {reference.sequences} of {reference.tokens} ({reference.data[:8]}); measure "
            "both on one set."
        )
    lazy = [len(item.lazy_layers(tolerance, tau)) for item in (student, reference)]
    layers = [sum(value is not None for value in item.max_ranks(tau)) for item in (student, reference)]
    word = "as many" if lazy[0] == lazy[1] else "fewer" if lazy[0] < lazy[1] else "more"
    answer = f"The student has {word} lazy layers {'as' if word == 'as many' else 'than'} its reference"
    if lazy[1] == 0:
        answer += ", which has none at this size"
    sentence = (
        f"{answer}: {lazy[0]} of {layers[0]} against {lazy[1]} of {layers[1]} (MaxRank at most {1 + tolerance:g} at "
        f"tau {tau:g}, {student.sequences} sequences of {student.tokens} tokens)."
    )
    return LazinessComparison(lazy[1], layers[1], lazy[0], layers[0], tolerance, sentence)


def remark(rank: float | None, kind: str) -> str:
    """Return what a table says of a layer with this MaxRank."""
    if rank is None:
        return f"{kind}: no softmax attention"
    return "lazy" if rank <= 1 else "near rank-1" if rank <= 1 + NEAR_RANK_ONE else ""
