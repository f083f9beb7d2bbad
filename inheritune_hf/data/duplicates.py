"""Find documents that are in two sets: the same word for word, or nearly so (MinHash)."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable

from ..config import DataConfig
from .sources import TOKENS

logger = logging.getLogger(__name__)

# Tokens of one run; documents are compared by the runs they have in common.
_RUN = 5
_PERMUTATIONS = 64
# Boilerplate can be near to every document of a set: one is enough to tell.
_MOST_COMPARED = 32
# The table grows while it has fewer places for each run than this, and may: a fuller one would tell nothing, since a
# tenth of the runs of a foreign document would be found in it by chance.
_PLACES_FOR_EACH_RUN = 16
_FEWEST_PLACES, _MOST_PLACES = 1 << 24, 1 << 28
# Looked at together, short documents cost a tenth of what they cost one by one.
_TOKENS_AT_ONCE = 500_000
# Digests that are looked at together: millions of documents are to take few bytes each.
_DIGESTS_AT_ONCE = 1 << 16
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
#: Some documents: their tokens end to end, and how many each has.
Group = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Overlaps:
    """
    Which documents are in two sets.

    Args:
        shared (`int`): Selection and test documents that are, word for word, in another set too.
        near (`int`, *optional*): Training and selection documents nearly the same as one that judges; None if they
            were not looked for.
        drop_train (`list[np.ndarray]`): For each training source, which of its documents are to be removed.
        drop_selection (`np.ndarray`): Which selection documents are to be removed, because they are in the test set.
    """

    shared: int
    near: int | None
    drop_train: list[Mask]
    drop_selection: Mask

    @property
    def removed(self) -> int:
        """Documents to be removed."""
        return int(sum(mask.sum() for mask in [*self.drop_train, self.drop_selection]))


def find_overlaps(
    sets: Mapping[str, Dataset],
    digests: Sequence[Integers],
    groups: Sequence[Iterable[Group]],
    config: DataConfig,
) -> Overlaps:
    """
    Look for documents that are in two sets; what judges stays.

    Args:
        sets (`dict[str, datasets.Dataset]`): The tokenized selection and test sets.
        digests (`Sequence[np.ndarray]`): For each training source, the digests of its documents; none for a stream.
        groups (`Sequence[Iterable]`): For each training source, the tokens of its documents.
        config (`DataConfig`): What to look for, and whether to remove it.
    """
    selection, test = (read_column(sets[name], "digest") for name in ("selection", "test"))
    same = [isin(own, np.concatenate([selection, test])) for own in digests]
    same_selection = np.isin(selection, test)
    near = [np.zeros(len(own), dtype=bool) for own in digests]
    near_selection = np.zeros(len(selection), dtype=bool)
    count, index = None, index_documents([sets["test"]], config)
    if index is not None:
        near_selection[[item[0] for item in near_duplicates(document_groups(sets["selection"]), index)]] = True
        near_selection &= ~same_selection
        if digests:
            for tokens, lengths in document_groups(sets["selection"]):
                index.add_all(tokens, lengths)
        for own, documents, found in zip(same, groups, near, strict=True):
            found[[item[0] for item in near_duplicates(documents, index)]] = True
            found &= ~own
        count = int(near_selection.sum()) + sum(int(item.sum()) for item in near)
        if count:
            logger.warning(
                "%d documents are nearly the same as one of the selection or test set%s.",
                count,
                ": they are left out"
                if config.near_duplicates == "remove"
                else "; near_duplicates 'remove' leaves them out",
            )
    drop_near, drop_same = config.near_duplicates == "remove", config.duplicates == "remove"
    return Overlaps(
        count_shared(selection, test, digests),
        count,
        [(one & drop_near) | (other & drop_same) for one, other in zip(near, same, strict=True)],
        (near_selection & drop_near) | (same_selection & drop_same),
    )


def count_shared(selection: Integers, test: Integers, train: Sequence[Integers]) -> int:
    """Return how many selection and test documents, told by their digests, are in another set too."""
    trained = [np.unique(own[isin(own, np.concatenate([selection, test]))]) for own in train]
    known = np.concatenate([*trained, np.empty(0, dtype=np.int64)])
    return int(np.isin(selection, known).sum() + np.isin(test, np.concatenate([known, selection])).sum())


# Near-duplicates


class Index:
    """
    Documents that others are compared with: the evaluation sets, which are small.

    A document can only be near one of them if it shares enough runs with all of them together, which a table tells
    for a few nanoseconds per token; only the others are signed.

    Args:
        threshold (`float`): Jaccard similarity from which documents are near-duplicates.

    Raises:
        ImportError: If datasketch is not installed.
    """

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHashLSH
        except ImportError as error:
            raise ImportError(
                "The search for near-duplicates needs datasketch; install it with: pip install 'inheritune-hf[dedup]', "
                "or set near_duplicates to 'ignore'."
            ) from error
        self.threshold = threshold
        #: Distinct runs of each document, and of all of them together.
        self.runs: list[Hashes] = []
        self.held = 0
        #: Which runs (by the last bits of their hash) occur.
        self.table = np.zeros(_FEWEST_PLACES, dtype=bool)
        # Weighed towards finding: what is found is compared exactly.
        self.lsh: Any = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))

    def add_all(self, tokens: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> None:
        """Put some documents into the index, as `document_groups` yields them."""
        for document in np.split(tokens, np.cumsum(lengths)[:-1]):
            self.add(document)

    def add(self, tokens: np.ndarray[Any, Any]) -> None:
        """Put a document into the index."""
        runs = np.unique(_run_hashes(tokens))
        number = len(self.runs)
        self.runs.append(runs)
        if len(runs) == 0:
            return
        self.held += len(runs)
        if len(self.table) < min(_PLACES_FOR_EACH_RUN * self.held, _MOST_PLACES):
            self.table = np.zeros(2 * len(self.table), dtype=bool)
            for item in self.runs:
                self.table[self._slots(item)] = True
        self.table[self._slots(runs)] = True
        self.lsh.insert(number, _sign(runs))

    def _slots(self, hashes: Hashes) -> Integers:
        return (hashes & np.uint64(len(self.table) - 1)).astype(np.int64)

    def likely(self, tokens: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the numbers of the documents that share enough runs for a closer look, or are shorter than a run."""
        ends = np.cumsum(lengths)
        whole = lengths > _RUN  # with a run before the end-of-text token
        shared = np.zeros(len(tokens) + 1, dtype=np.int64)
        if len(tokens) >= _RUN:
            hits = self.table[self._slots(_hash(tokens.astype(np.uint64) + np.uint64(1), _RUN))]
            np.cumsum(hits, out=shared[1 : len(hits) + 1])
        counts = shared[np.where(whole, ends - _RUN, 0)] - shared[np.where(whole, ends - lengths, 0)]
        # Too few even if every run that is shared came eight times less often than the others.
        return np.flatnonzero(~whole | (counts >= self.threshold / 8 * (lengths - _RUN)))

    def find(self, tokens: np.ndarray[Any, Any]) -> tuple[int, float] | None:
        """Return the most similar document that is near enough (of the first few), with its exact similarity."""
        if not self.runs or len(self.likely(tokens, np.array([len(tokens)]))) == 0:
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


def index_documents(sets: Sequence[Dataset], config: DataConfig) -> Index | None:
    """Index the documents of sets, numbered through; None if near-duplicates are not looked for, or cannot be."""
    if config.near_duplicates == "ignore":
        return None
    try:
        index = Index(config.near_duplicate_threshold)
    except ImportError as error:
        if config.near_duplicates == "remove":
            raise
        _warn_once(f"{error} They are not reported.")
        return None
    for dataset in sets:
        for tokens, lengths in document_groups(dataset):
            index.add_all(tokens, lengths)
    return index


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def near_duplicates(groups: Iterable[Group], index: Index) -> list[tuple[int, int, float]]:
    """
    Find the documents that are near one of the index.

    Args:
        groups (`Iterable[tuple[np.ndarray, np.ndarray]]`): The documents, some at a time, as `document_groups` does.
        index (`Index`): The documents to compare with.

    Returns:
        `list[tuple[int, int, float]]`: In the order of the documents: the number of each (0-based), that of the one it
        is like in the index, and their share of common runs of five tokens (Jaccard).
    """
    found, first = [], 0
    for tokens, lengths in groups:
        ends = np.cumsum(lengths)
        for number in index.likely(tokens, lengths).tolist():
            like = index.find(tokens[ends[number] - lengths[number] : ends[number]])
            if like is not None:
                found.append((first + number, *like))
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
    return _hash(values, min(_RUN, len(values)))


def _hash(values: Hashes, width: int) -> Hashes:
    count = len(values) - width + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(width):
        hashes = (hashes ^ values[place : place + count]) * _FACTOR
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _sign(runs: Hashes) -> Any:
    from datasketch import MinHash

    # The runs are hashed already; datasketch wants 32 bits.
    signature = MinHash(num_perm=_PERMUTATIONS, hashfunc=int)
    signature.update_batch((runs >> np.uint64(32)).tolist())
    return signature


# Columns and rows of millions of documents, in few bytes for each


def concat(parts: Sequence[Dataset]) -> Dataset:
    """Return the rows of several data sets as one."""
    full = [part for part in parts if len(part)]
    return concatenate_datasets(full) if len(full) > 1 else (full or list(parts))[0]


def read_column(documents: Dataset, name: str) -> Integers:
    """Return a column of whole numbers."""
    # By its table: of chosen rows datasets would make a table of one row each, a hundred times the memory and the time.
    values: Integers = np.asarray(documents.data.column(name).to_numpy(), dtype=np.int64)
    return values if documents._indices is None else values[documents._indices.column(0).to_numpy()]


def isin(digests: Integers, few: Integers) -> Mask:
    """Return which digests are among a few others, in a byte for each (`numpy.isin` takes 49)."""
    found = np.zeros(len(digests), dtype=bool)
    if len(few):
        few = np.sort(few)
        for start in range(0, len(digests), _DIGESTS_AT_ONCE):
            part = digests[start : start + _DIGESTS_AT_ONCE]
            places = np.minimum(np.searchsorted(few, part), len(few) - 1)
            found[start : start + _DIGESTS_AT_ONCE] = few[places] == part
    return found


def filter_rows(dataset: Dataset, keep: Mask) -> Dataset:
    """Return the rows that are to be kept."""
    if keep.all():
        return dataset
    if dataset._indices is not None or not keep.any():
        return dataset.select(np.flatnonzero(keep))
    # As select does it, which makes a Python integer of each row.
    rows = pa.array(np.flatnonzero(keep).view(np.uint64))
    fingerprint = Hasher.hash((dataset._fingerprint, hashlib.sha256(keep.tobytes()).hexdigest()))
    return Dataset(
        dataset.data,
        info=dataset.info.copy(),
        split=dataset.split,
        indices_table=InMemoryTable(pa.table({"indices": rows})),
        fingerprint=fingerprint,
    )
