"""Documents that are in two sets: the same word for word, or nearly so (MinHash, by datasketch)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from datasketch import MinHash, MinHashLSH

from .rows import TOKENS

#: Tokens of one run; documents are compared by the runs they have in common.
RUN = 5

_PERMUTATIONS = 64
# Boilerplate can be near to every document of a set: one is enough to tell.
_MOST_COMPARED = 32
# A table is grown while it has fewer places for each run than this, and may: a fuller one would tell nothing, since a
# tenth of the runs of a foreign document would be found in it by chance.
_PLACES_FOR_EACH_RUN = 16
_FEWEST_PLACES, _MOST_PLACES = 1 << 24, 1 << 28
# Looked at together, short documents cost a tenth of what they cost one by one.
_TOKENS_AT_ONCE = 500_000
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
#: Some documents: their tokens end to end, and how many each has.
Group = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class NearDuplicate:
    """
    Two documents of different sets that nearly are the same.

    Args:
        document (`int`): Number of the document in its set, 0-based.
        like (`int`): Number of the document it is like, in the indexed set.
        similarity (`float`): Share of common runs of five tokens (Jaccard).
    """

    document: int
    like: int
    similarity: float


@dataclass
class Index:
    """
    Documents that others are compared with: the evaluation sets, which are small.

    A document can only be near one of them if it shares enough runs with all of them together, which a table tells
    for a few nanoseconds per token; only the others are signed.

    Args:
        threshold (`float`): Jaccard similarity from which documents are near-duplicates.
        runs (`list[np.ndarray]`): Distinct runs of each document.
        table (`np.ndarray`): Which runs (by the last bits of their hash) occur.
        lsh (`datasketch.MinHashLSH`, *optional*): Their signatures, once there is one.
        held (`int`): Runs of all documents.
    """

    threshold: float
    runs: list[Hashes] = field(default_factory=list)
    table: np.ndarray[Any, np.dtype[np.bool_]] = field(default_factory=lambda: np.zeros(_FEWEST_PLACES, dtype=bool))
    lsh: Any = None
    held: int = 0

    def add(self, tokens: np.ndarray[Any, Any]) -> None:
        """Put a document into the index."""
        if self.lsh is None:
            # Weighed towards finding: what is found is compared exactly.
            self.lsh = MinHashLSH(threshold=self.threshold, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))
        runs = np.unique(_run_hashes(tokens))
        number = len(self.runs)
        self.runs.append(runs)
        if len(runs):
            self.held += len(runs)
            self._mark(runs)
            self.lsh.insert(number, _sign(runs))

    def _mark(self, runs: Hashes) -> None:
        wanted = _PLACES_FOR_EACH_RUN * self.held
        if len(self.table) < min(wanted, _MOST_PLACES):
            self.table = np.zeros(2 * len(self.table), dtype=bool)
            for item in self.runs:
                self.table[self._slots(item)] = True
        self.table[self._slots(runs)] = True

    def _slots(self, hashes: Hashes) -> np.ndarray[Any, np.dtype[np.int64]]:
        return (hashes & np.uint64(len(self.table) - 1)).astype(np.int64)

    def likely(self, tokens: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """
        Return which documents share enough runs for a closer look.

        Args:
            tokens (`np.ndarray` of shape `(tokens,)`): The documents, end to end.
            lengths (`np.ndarray` of shape `(documents,)`): Tokens of each.

        Returns:
            `np.ndarray`: Numbers of documents, ascending; all that are shorter than a run are among them.
        """
        ends = np.cumsum(lengths)
        whole = lengths > RUN  # with a run before the end-of-text token
        shared = np.zeros(len(tokens) + 1, dtype=np.int64)
        if len(tokens) >= RUN:
            hits = self.table[self._slots(_hash(tokens.astype(np.uint64) + np.uint64(1), RUN))]
            np.cumsum(hits, out=shared[1 : len(hits) + 1])
        counts = shared[np.where(whole, ends - RUN, 0)] - shared[np.where(whole, ends - lengths, 0)]
        # Too few even if every run that is shared came eight times less often than the others.
        return np.flatnonzero(~whole | (counts >= self.threshold / 8 * (lengths - RUN)))

    def find(self, tokens: np.ndarray[Any, Any]) -> tuple[int, float] | None:
        """Return the most similar document that is near enough (of the first few), with its exact similarity."""
        if self.lsh is None or len(self.likely(tokens, np.array([len(tokens)]))) == 0:
            return None
        runs = np.unique(_run_hashes(tokens))
        if len(runs) == 0 or self.table[self._slots(runs)].mean() < self.threshold:
            return None
        best: tuple[int, float] | None = None
        for number in sorted(self.lsh.query(_sign(runs)))[:_MOST_COMPARED]:
            common = len(np.intersect1d(runs, self.runs[number], assume_unique=True))
            similarity = common / (len(runs) + len(self.runs[number]) - common)
            if similarity >= self.threshold and (best is None or similarity > best[1]):
                best = (number, similarity)
        return best


def index_documents(sets: Sequence[Dataset], threshold: float) -> Index:
    """Index the documents of sets, numbered through."""
    index = Index(threshold)
    for dataset in sets:
        for tokens, lengths in document_groups(dataset):
            for document in np.split(tokens, np.cumsum(lengths)[:-1]):
                index.add(document)
    return index


def near_duplicates(groups: Iterable[Group], index: Index) -> list[NearDuplicate]:
    """
    Find the documents that are near one of the index.

    Args:
        groups (`Iterable[tuple[np.ndarray, np.ndarray]]`): The documents, some at a time, as `document_groups` does.
        index (`Index`): The documents to compare with.

    Returns:
        `list[NearDuplicate]`: In the order of the documents.
    """
    found, first = [], 0
    for tokens, lengths in groups:
        ends = np.cumsum(lengths)
        for number in index.likely(tokens, lengths).tolist():
            like = index.find(tokens[ends[number] - lengths[number] : ends[number]])
            if like is not None:
                found.append(NearDuplicate(first + number, *like))
        first += len(lengths)
    return found


def document_groups(documents: Dataset) -> Iterator[Group]:
    """Yield the documents of a set, what `tokenize_documents` returned, in groups that are not too long."""
    for batch in documents.with_format("arrow").iter(batch_size=64):
        rows = batch[TOKENS].combine_chunks()
        lengths = np.asarray(rows.value_lengths()).astype(np.int64)
        for places in grouped(lengths):
            yield rows.slice(places[0], len(places)).flatten().to_numpy(), lengths[places]


def grouped(lengths: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the places of documents that are looked at together, given how many tokens each has."""
    if len(lengths):
        number = np.cumsum(lengths) // _TOKENS_AT_ONCE
        yield from np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(number)) + 1)


def _run_hashes(tokens: np.ndarray[Any, Any]) -> Hashes:
    """Return a hash of each run of tokens; a document shorter than a run is one run."""
    values = tokens[:-1].astype(np.uint64) + np.uint64(1)  # without the end-of-text token, which all have
    if len(values) == 0:
        return np.empty(0, dtype=np.uint64)
    return _hash(values, min(RUN, len(values)))


def _hash(values: Hashes, width: int) -> Hashes:
    count = len(values) - width + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(width):
        hashes = (hashes ^ values[place : place + count]) * _FACTOR
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _sign(runs: Hashes) -> Any:
    # The runs are hashed already; datasketch wants 32 bits.
    signature = MinHash(num_perm=_PERMUTATIONS, hashfunc=int)
    signature.update_batch((runs >> np.uint64(32)).tolist())
    return signature
