"""Find documents that are in two sets: the same word for word, or nearly (by the 5-grams of tokens they share)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from ..config import DataConfig
from .sources import TOKENS

logger = logging.getLogger(__name__)

_NGRAM = 5
# Slots of the table for each n-gram: a fuller one would find a tenth of a foreign document's n-grams by chance.
_SLOTS_PER_NGRAM, _MIN_SLOTS, _MAX_SLOTS = 16, 1 << 24, 1 << 28
# Compared together, short documents cost a tenth of what they cost one by one.
_TOKENS_PER_GROUP = 500_000
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Array = np.ndarray[Any, Any]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def count_shared(sets: Mapping[str, Dataset], train: Sequence[Dataset]) -> int:
    """Return how many selection and test documents are, word for word, in another set too."""
    selection, test = (read_column(sets[name], "digest") for name in ("selection", "test"))
    trained = np.concatenate([np.unique(read_column(documents, "digest")) for documents in train] or [selection[:0]])
    return int(isin(selection, trained).sum() + isin(test, np.concatenate([trained, selection])).sum())


def remove_overlaps(
    sets: Mapping[str, Dataset], train: Sequence[Dataset], config: DataConfig
) -> tuple[dict[str, Dataset], list[Dataset], dict[str, int | None]]:
    """
    Count the documents that are in two sets, and remove them if `config` says so: training documents first, then
    selection documents, so that what evaluates stays.

    Takes and returns the tokenized selection and test sets and training documents (none for a stream); returns the
    counts by their names in `DataFacts`, too.
    """
    test = read_column(sets["test"], "digest")
    evaluated = np.concatenate([read_column(sets["selection"], "digest"), test])
    everything, others = [sets["selection"], *train], [test, *[evaluated] * len(train)]
    same = [isin(read_column(item, "digest"), other) for item, other in zip(everything, others, strict=True)]
    near, count = [np.zeros(len(item), dtype=bool) for item in everything], None
    if config.near_duplicates != "ignore":
        threshold = config.near_duplicate_threshold
        indices = [NgramIndex([sets["test"]], threshold)]
        if train:
            indices += [NgramIndex([sets["selection"], sets["test"]], threshold)] * len(train)
        near = [index.near(item) & ~own for index, item, own in zip(indices, everything, same, strict=True)]
        count = sum(int(item.sum()) for item in near)
    if count:
        removal = "they are removed" if config.near_duplicates == "remove" else "near_duplicates 'remove' removes them"
        logger.warning("%d documents are nearly the same as one of the selection or test set; %s.", count, removal)
    drop = [
        (one & (config.duplicates == "remove")) | (other & (config.near_duplicates == "remove"))
        for one, other in zip(same, near, strict=True)
    ]
    kept = [filter_rows(item, ~mask) for item, mask in zip(everything, drop, strict=True)]
    counts = {
        "shared_documents": count_shared(sets, train),
        "near_duplicates": count,
        "removed_documents": sum(int(mask.sum()) for mask in drop),
    }
    return {**sets, "selection": kept[0]}, kept[1:], counts


class NgramIndex:
    """
    The 5-grams of evaluation documents, with which other documents are compared exactly.

    A document can only be near one of them if it shares enough n-grams with all of them together, which a table shows
    in a few nanoseconds per token; only such documents are compared one by one. Documents are near-duplicates from a
    Jaccard similarity of `threshold` on.
    """

    def __init__(self, sets: Iterable[Dataset], threshold: float) -> None:
        self.threshold = threshold
        ngrams = [
            np.unique(_ngram_hashes(document))
            for dataset in sets
            for tokens, lengths in document_groups(dataset)
            for document in np.split(tokens, np.cumsum(lengths)[:-1])
        ]
        #: Distinct n-grams of each document.
        self.sizes = np.array([len(item) for item in ngrams], dtype=np.int64)
        hashes = np.concatenate([np.empty(0, dtype=np.uint64), *ngrams])
        order = np.argsort(hashes)
        #: All n-grams, sorted, and the number of the document that each is from.
        self.hashes: Hashes = hashes[order]
        self.owners = np.repeat(np.arange(len(ngrams), dtype=np.int32), self.sizes)[order]
        slots = max(1 << int(_SLOTS_PER_NGRAM * len(hashes)).bit_length(), _MIN_SLOTS)
        #: Which n-grams, by the last bits of their hash, occur.
        self.table = np.zeros(min(slots, _MAX_SLOTS), dtype=bool)
        self.table[self._slots(self.hashes)] = True

    def _slots(self, hashes: Hashes) -> Integers:
        return (hashes & np.uint64(len(self.table) - 1)).astype(np.int64)

    def near(self, documents: Dataset) -> Mask:
        """Return which documents of a set are near one of the index."""
        found = [self.near_in(tokens, lengths) for tokens, lengths in document_groups(documents)]
        return np.concatenate([np.zeros(0, dtype=bool), *found])

    def near_in(self, tokens: Array, lengths: Array) -> Mask:
        """Return which of some documents, their tokens end to end, are near one of the index."""
        ends, found = np.cumsum(lengths), np.zeros(len(lengths), dtype=bool)
        for number in self.candidates(tokens, lengths).tolist():
            document = tokens[ends[number] - lengths[number] : ends[number]]
            found[number] = self.similarity(document) >= self.threshold
        return found

    def candidates(self, tokens: Array, lengths: Array) -> Integers:
        """Return the numbers of the documents that share enough n-grams to be compared, or are shorter than one."""
        ends = np.cumsum(lengths)
        whole = lengths > _NGRAM  # with an n-gram before the end-of-text token
        shared = np.zeros(len(tokens) + 1, dtype=np.int64)
        if len(tokens) >= _NGRAM:
            hits = self.table[self._slots(_hash(tokens.astype(np.uint64) + np.uint64(1), _NGRAM))]
            np.cumsum(hits, out=shared[1 : len(hits) + 1])
        counts = shared[np.where(whole, ends - _NGRAM, 0)] - shared[np.where(whole, ends - lengths, 0)]
        # Too few even if every n-gram that is shared came eight times less often than the others.
        return np.flatnonzero(~whole | (counts >= self.threshold / 8 * (lengths - _NGRAM)))

    def similarity(self, tokens: Array) -> float:
        """
        Return the share of n-grams (Jaccard) that a document has in common with the most similar of the index.

        0 for one that, as the table shows, is less similar than the threshold.
        """
        own = np.unique(_ngram_hashes(tokens))
        if len(own) == 0 or self.table[self._slots(own)].mean() < self.threshold:
            return 0.0
        first, last = (np.searchsorted(self.hashes, own, side) for side in ("left", "right"))
        shared = [self.owners[start:stop] for start, stop in zip(first, last, strict=True)]
        common = np.bincount(np.concatenate(shared), minlength=len(self.sizes))
        return float((common / (len(own) + self.sizes - common)).max(initial=0.0))


def _ngram_hashes(tokens: Array) -> Hashes:
    """Return a hash of each n-gram of tokens; a document shorter than one is one n-gram."""
    values = tokens[:-1].astype(np.uint64) + np.uint64(1)  # without the end-of-text token, which all have
    return _hash(values, min(_NGRAM, len(values))) if len(values) else np.empty(0, dtype=np.uint64)


def _hash(values: Hashes, width: int) -> Hashes:
    count = len(values) - width + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(width):
        hashes = (hashes ^ values[place : place + count]) * _FACTOR
        hashes ^= hashes >> np.uint64(29)
    return hashes


# Columns and rows of millions of documents, in few bytes for each


def document_groups(documents: Dataset) -> Iterator[tuple[Array, Integers]]:
    """Yield the tokens of some documents end to end, and how many each has, in groups that are not too long."""
    for batch in documents.with_format("arrow").iter(batch_size=64):
        rows = batch[TOKENS].combine_chunks()
        lengths = np.asarray(rows.value_lengths()).astype(np.int64)
        group = np.cumsum(lengths) // _TOKENS_PER_GROUP
        for places in np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(group)) + 1):
            yield rows.slice(places[0], len(places)).flatten().to_numpy(), lengths[places]


def concat(parts: Sequence[Dataset]) -> Dataset:
    """Return the rows of several data sets as one."""
    full = [part for part in parts if len(part)]
    return concatenate_datasets(full) if len(full) > 1 else (full or list(parts))[0]


def read_column(documents: Dataset, name: str) -> Integers:
    """Return a column of whole numbers."""
    # By its table: of chosen rows datasets would make a table of one row each, a hundred times the memory and the time.
    values: Integers = np.asarray(documents.data.column(name).to_numpy(), dtype=np.int64)
    return values if documents._indices is None else values[documents._indices.column(0).to_numpy()]


def isin(values: Integers, few: Integers) -> Mask:
    """Return which values are among a few others, in 17 bytes for each (`numpy.isin` takes 49)."""
    if len(few) == 0:
        return np.zeros(len(values), dtype=bool)
    few = np.sort(few)
    places = np.searchsorted(few, values)
    places[places == len(few)] = 0
    found: Mask = few[places] == values
    return found


def filter_rows(dataset: Dataset, keep: Mask) -> Dataset:
    """Return the rows that are to be kept."""
    return dataset if keep.all() else dataset.select(np.flatnonzero(keep))
