"""The result of an analysis as one frozen record: to and from JSON, to pandas, and the paper's figures out of it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..records import write_text
from .collapse import (
    SHARE,
    avg_mass,
    avg_rank,
    is_lazy_group,
    is_lazy_layer,
    max_rank,
    max_rank_interval,
)
from .influence import BlockScores

if TYPE_CHECKING:
    import pandas

#: Counts of shape (shares, sequences, heads).
Counts = tuple[tuple[tuple[int, ...], ...], ...]


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
    ranks: Counts = ()
    masses: Counts = ()
    entropy: tuple[float, ...] = ()
    sink: tuple[float, ...] = ()

    @property
    def heads(self) -> int:
        """Heads with softmax attention."""
        return len(self.entropy)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerScores:
        """Rebuild the scores from the dictionary that they were turned into."""
        return cls(
            layer=values["layer"],
            kind=values["kind"],
            ranks=frozen_counts(values["ranks"]),
            masses=frozen_counts(values["masses"]),
            entropy=tuple(values["entropy"]),
            sink=tuple(values["sink"]),
        )


@dataclass(frozen=True)
class AttentionMap:
    """
    One head's attention, a mean over a few sequences, for a picture.

    Args:
        layer (`int`): Layer.
        head (`int`): Head.
        weights (`tuple[tuple[float, ...], ...]`): Rows of queries, columns of keys.
    """

    layer: int
    head: int
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Uniform:
    """
    The control that has learned nothing: uniform causal attention over as many tokens.

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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Uniform:
        """Rebuild the control from the dictionary that it was turned into."""
        return cls(**{**values, "ranks": tuple(values["ranks"]), "masses": tuple(values["masses"])})


@dataclass(frozen=True)
class CollapseReport:
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
        maps (`tuple[AttentionMap, ...]`): Attention of some heads, for pictures.
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

    def uniform_of(self, layer: int) -> Uniform:
        """Return the uniform attention that a layer is held against: within its window, if it slides."""
        return self.sliding if self.sliding is not None and "sliding" in self.layers[layer].kind else self.uniform

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def ranks(self, layer: int, tau: float = SHARE, random: bool = False) -> NDArray[np.int64]:
        """Return the ranks of a layer, or of the random twin's, of shape `(sequences, heads)`."""
        scores = (self.random if random else self.layers)[layer]
        return np.asarray(scores.ranks[self._place(tau)] if scores.heads else np.zeros((self.sequences, 0)), np.int64)

    def masses(self, layer: int, eta: float = SHARE, random: bool = False) -> NDArray[np.int64]:
        """Return the column masses of a layer, or of the random twin's, of shape `(sequences, heads)`."""
        scores = (self.random if random else self.layers)[layer]
        return np.asarray(scores.masses[self._place(eta)] if scores.heads else np.zeros((self.sequences, 0)), np.int64)

    def max_ranks(self, tau: float = SHARE, random: bool = False) -> list[float | None]:
        """Return MaxRank of each layer (PAPER: eq. 3), None where there is no softmax attention."""
        scores = self.random if random else self.layers
        return [max_rank(self.ranks(item.layer, tau, random)) if item.heads else None for item in scores]

    def max_rank_intervals(self, tau: float = SHARE) -> list[tuple[float, float] | None]:
        """Return a 95 % interval of each MaxRank over sequences; None for fewer than 30 of them."""
        return [max_rank_interval(self.ranks(item.layer, tau)) if item.heads else None for item in self.layers]

    def avg_rank(self, layers: Sequence[int] | None = None, tau: float = SHARE) -> float:
        """Return AvgRank of a group of layers, or of all (PAPER: eq. 4)."""
        return avg_rank(self._of_group(layers, tau))

    def avg_masses(self, eta: float = SHARE, random: bool = False) -> list[float | None]:
        """Return AvgMass of each layer (PAPER: appendix C), None where there is no softmax attention."""
        scores = self.random if random else self.layers
        return [avg_mass(self.masses(item.layer, eta, random)) if item.heads else None for item in scores]

    def lazy_layers(self, tolerance: float = 0.0, tau: float = SHARE) -> list[int]:
        """Return the layers whose MaxRank is at most `1 + tolerance` (PAPER: definition G.1)."""
        return [
            layer
            for layer, value in enumerate(self.max_ranks(tau))
            if value is not None and is_lazy_layer(value, tolerance)
        ]

    def is_lazy_group(self, layers: Sequence[int], tau: float = SHARE) -> bool:
        """Tell whether a contiguous group of layers is lazy: floor(AvgRank) is 1 (PAPER: definition G.1)."""
        return is_lazy_group(self._of_group(layers, tau))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CollapseReport:
        """Rebuild a report from what `to_dict` returned, or from what JSON made of it."""
        return cls(
            **{
                **values,
                "shares": tuple(values["shares"]),
                "layers": tuple(LayerScores.from_dict(item) for item in values["layers"]),
                "random": tuple(LayerScores.from_dict(item) for item in values["random"]),
                "uniform": Uniform.from_dict(values["uniform"]),
                "sliding": None if values["sliding"] is None else Uniform.from_dict(values["sliding"]),
                "blocks": None if values["blocks"] is None else BlockScores.from_dict(values["blocks"]),
                "maps": tuple(
                    AttentionMap(item["layer"], item["head"], tuple(tuple(row) for row in item["weights"]))
                    for item in values["maps"]
                ),
            }
        )

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report to a file, so that a reader finds it whole or not at all."""
        write_text(path, json.dumps(self.to_dict(), ensure_ascii=False) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> CollapseReport:
        """Read a report that `to_json` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with a row for each layer, head and share: rank and mass (means over sequences), and more."""
        import pandas

        rows: list[dict[str, Any]] = []
        for item in self.layers:
            for place, share in enumerate(self.shares if item.heads else ()):
                ranks, masses = np.asarray(item.ranks[place]).mean(0), np.asarray(item.masses[place]).mean(0)
                rows.extend(
                    {
                        "layer": item.layer,
                        "kind": item.kind,
                        "head": head,
                        "share": share,
                        "rank": float(ranks[head]),
                        "mass": float(masses[head]),
                        "entropy": item.entropy[head],
                        "sink": item.sink[head],
                    }
                    for head in range(item.heads)
                )
        columns = ["layer", "kind", "head", "share", "rank", "mass", "entropy", "sink"]
        return pandas.DataFrame(rows, columns=columns)

    def _place(self, share: float) -> int:
        if share not in self.shares:
            measured = ", ".join(map(str, self.shares))
            raise ValueError(f"The share {share} was not measured (measured: {measured}); measure again with it.")
        return self.shares.index(share)

    def _of_group(self, layers: Sequence[int] | None, tau: float) -> list[float]:
        values = self.max_ranks(tau)
        chosen = range(self.depth) if layers is None else layers
        return [value for layer in chosen if (value := values[layer]) is not None]


@dataclass(frozen=True)
class LazinessComparison:
    """
    The paper's question: has the student fewer lazy layers than its reference?

    Args:
        reference (`int`): Lazy layers of the reference.
        reference_layers (`int`): Its layers with softmax attention.
        student (`int`): Lazy layers of the student.
        student_layers (`int`): Its layers with softmax attention.
        tolerance (`float`): MaxRank above 1 that still counted as lazy.
        sentence (`str`): The answer.
    """

    reference: int
    reference_layers: int
    student: int
    student_layers: int
    tolerance: float
    sentence: str


def compare_laziness(
    student: CollapseReport, reference: CollapseReport, tolerance: float = 0.5, tau: float = SHARE
) -> LazinessComparison:
    """
    Compare the lazy layers of a student and its reference, measured on the same sequences.

    Args:
        student (`CollapseReport`): The student's report.
        reference (`CollapseReport`): The reference's report.
        tolerance (`float`, *optional*, defaults to `0.5`): MaxRank above 1 that still counts as lazy; 0 is the
            paper's definition.
        tau (`float`, *optional*, defaults to `0.9`): Share of the squared spectrum.

    Returns:
        `LazinessComparison`: Counts and one sentence.

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
    bound = (
        f"MaxRank at most {1 + tolerance:g} at tau {tau:g}, {student.sequences} sequences of {student.tokens} tokens"
    )
    answer = {
        -1: "The student has fewer lazy layers than its reference",
        0: "The student has as many lazy layers as its reference",
        1: "The student has more lazy layers than its reference",
    }[(lazy[0] > lazy[1]) - (lazy[0] < lazy[1])]
    if lazy[1] == 0:
        answer += ", which has none at this size"
    sentence = f"{answer}: {lazy[0]} of {layers[0]} against {lazy[1]} of {layers[1]} ({bound})."
    return LazinessComparison(lazy[1], layers[1], lazy[0], layers[0], tolerance, sentence)


def frozen_counts(values: Any) -> Counts:
    """Return counts of shape `(shares, sequences, heads)` as tuples."""
    return tuple(tuple(tuple(int(count) for count in row) for row in share) for share in values)
