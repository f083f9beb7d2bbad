"""Stream sequences that are packed on the fly, in bounded memory, and resume exactly where they stopped."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import get_worker_info

from ..annotations import Within
from ..records import Count
from .duplicates import NgramIndex
from .sources import BAD_ROW, LABELS, TOKENS, naming_source
from .tokenization import Encoded, Encoder, check_fit, mark_bad_rows, seeded_hash

logger = logging.getLogger(__name__)

#: Name under which a sequence, and a batch, carries the state of its reader after it.
READER_STATE = "reader_state"

# Documents that are tokenized together, and their characters (or tokens): enough to be fast, few enough for memory.
_GROUP = (64, 250_000)
# Characters (or tokens) of the documents that are shuffled together.
_WINDOW_SIZE = 32_000_000

# What happened to the documents of a source; all but the first two change when a group is read.
_COUNTS = ("documents", "tokens", "passes", "damaged", "left_out", "shared", "near")


@dataclass(frozen=True)
class Exclusion:
    """Which documents of a stream are also in an evaluation set: those are left out, or counted."""

    seed: int = 0  # chooses what is held out
    share: float = 0.0  # of the documents that is held out, by the hash of their text, wherever they are
    digests: frozenset[int] = frozenset()  # of the documents of the evaluation sets
    near: NgramIndex | None = None  # the same documents, if others that are near to one are searched for
    remove: frozenset[str] = frozenset()  # what is left out: `shared` documents, `near` ones; held-out ones always are

    def __call__(self, documents: Sequence[Encoded]) -> list[str]:
        """Return for each document `held_out`, `shared`, `near`, or an empty string."""
        found = ["shared" if document.digest in self.digests else "" for document in documents]
        for number, document in enumerate(documents):
            if unit_hash(document.digest, self.seed) < self.share:
                found[number] = "held_out"
        if self.near is not None and documents:
            lengths = np.array([len(document.tokens) for document in documents])
            tokens = np.concatenate([document.tokens for document in documents])
            near = self.near.near_in(tokens, lengths)
            found = [kind or ("near" if nearly else "") for kind, nearly in zip(found, near, strict=True)]
        return found


def unit_hash(digest: int, seed: int) -> float:
    """Return a hash of a document between 0 and 1: the same whatever the order, the shards or the workers."""
    return int.from_bytes(seeded_hash(digest, seed)[:8], "big") / 2**64


@dataclass(frozen=True)
class StreamSource:
    """One source of a stream: its rows, how they become tokens, and its share of the tokens."""

    rows: IterableDataset
    encoder: Encoder
    weight: float = 1.0


@dataclass(eq=False, repr=False)
class PackedStream(TorchIterableDataset[dict[str, Any]]):
    """
    Join the documents of one or several sources into sequences of exactly `block_size` tokens, without end.

    A run has as many readers as processes, times their loader workers. Shards are distributed among them: a document
    belongs to one reader, and every reader starts over when it has read all of its documents, so that none waits for
    another. Of several sources, the next document comes from the one that is furthest behind its share of the tokens;
    with `equal_passes`, of those with the fewest passes. Each sequence carries the state of its reader after it; a
    reader that starts from a state yields the sequences that would have come next, token by token.
    """

    sources: Sequence[StreamSource]
    block_size: int  # tokens of one sequence
    exclusion: Exclusion = Exclusion()  # what is not trained on
    fingerprint: str = ""  # identity of the stream
    shuffle_documents: int = 0  # that are shuffled together; a reader's files are shuffled too; 0 keeps the order
    seed: int = 0  # determines the order, another one in each pass
    equal_passes: bool = False  # whether a source that was read waits for the others: a pass has every document once
    rank: int = field(default=0, init=False)
    world_size: int = field(default=1, init=False)
    state: StreamState | None = field(default=None, init=False)

    def begin(self, rank: int = 0, world_size: int = 1, state: StreamState | None = None) -> PackedStream:
        """Return this stream for one process of `world_size`, from the start or from the state of that process."""
        stream = copy.copy(self)
        stream.rank, stream.world_size = rank, world_size
        stream.state = copy.deepcopy(state)
        return stream

    def in_order_of(self, seed: int) -> PackedStream:
        """Return this stream in the order that another seed gives, if documents are shuffled at all."""
        if not self.shuffle_documents or seed == self.seed:
            return self
        fingerprint = hashlib.sha256(f"{self.fingerprint} {seed}".encode()).hexdigest()
        return dataclasses.replace(self, seed=seed, fingerprint=fingerprint)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield `input_ids` (and `labels`), arrays of `block_size` tokens, and `reader_state`."""
        info = get_worker_info()
        workers, worker = (1, 0) if info is None else (info.num_workers, info.id)
        state = self.state or StreamState()
        # A loader asks its worker 0 first: it takes the part of the worker that is next after the last batch.
        worker = (worker + state.next) % workers
        number, count = self.rank * workers + worker, self.world_size * workers
        for row in _read(self, number, count, state.workers.get(str(worker))):
            row[READER_STATE] = dataclasses.replace(row[READER_STATE], worker=worker, workers=workers)
            yield row


@dataclass(frozen=True)
class SourceState:
    """Where a reader is in one source: before a document."""

    shard: Count = 0
    rows: Any = None  # state of `datasets` at the row at which a window begins; None at the start
    window: Count = 0  # its number in the pass
    passed: Count = 0  # rows of the window before the current group of documents
    taken: Count = 0  # documents of that group that were taken
    # What happened to the documents.
    counts: dict[str, Count] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))


@dataclass(frozen=True)
class ReaderState:
    """Where a reader is after a sequence: in each source, and `offset` tokens into a document of source `current`."""

    sources: tuple[SourceState, ...]
    current: Count
    offset: Count
    worker: Count = 0
    workers: Annotated[int, Within(1)] = 1


@dataclass
class StreamState:
    """Where a process is in a stream: the reader of each loader worker after its last batch, and the next worker."""

    workers: dict[str, ReaderState] = field(default_factory=dict)
    next: Count = 0

    def __post_init__(self) -> None:
        for worker, reader in self.workers.items():
            for number, source in enumerate(reader.sources):
                if set(source.counts) != set(_COUNTS):
                    raise ValueError(f"workers.{worker}.sources[{number}].counts must be {', '.join(_COUNTS)}.")

    def update(self, reader: ReaderState) -> None:
        """Remember the state that a batch carries, once it has been trained on."""
        self.workers[str(reader.worker)] = reader
        self.next = (reader.worker + 1) % reader.workers

    def total(self, name: str) -> int:
        """Return the sum of a count (`documents`, `tokens`, `damaged`, `left_out`, `shared`, `near`)."""
        whole: int = sum(source.counts[name] for reader in self.workers.values() for source in reader.sources)
        # A reader is within a document: it counts, as do its first tokens.
        partial = {"tokens": [reader.offset for reader in self.workers.values()], "documents": [1] * len(self.workers)}
        return whole + sum(partial.get(name, ()))

    @property
    def passes(self) -> int:
        """Whole passes over the source that was passed over least."""
        passes = (source.counts["passes"] for reader in self.workers.values() for source in reader.sources)
        return min(passes, default=0)


@dataclass(frozen=True)
class StreamCollator:
    """Put rows of a stream into a batch by `collator`, which carries the reader's state after its last row."""

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the collator's batch, and the reader's state."""
        batch = self.collator([{name: value for name, value in row.items() if name != READER_STATE} for row in rows])
        return {**batch, READER_STATE: rows[-1][READER_STATE]}


def _read(stream: PackedStream, number: int, count: int, start: ReaderState | None) -> Iterator[dict[str, Any]]:
    """Yield the sequences of one reader of `count`, each with the reader's state after it."""
    states = start.sources if start else [SourceState()] * len(stream.sources)
    readers = [
        _SourceReader(source, stream, number, count, state)
        for source, state in zip(stream.sources, states, strict=True)
    ]
    names = [TOKENS, *([LABELS] if any(source.encoder.labelled for source in stream.sources) else [])]
    size = stream.block_size
    current = (start.current, start.offset) if start else None
    parts: dict[str, list[Any]] = {name: [] for name in names}
    pending = 0
    while True:
        chosen, skip = current or (_furthest_behind(readers, stream), 0)
        current = None
        before = tuple(reader.state() for reader in readers)
        document = readers[chosen].take()
        labels = document.tokens if document.labels is None else document.labels
        values = {name: (labels if name == LABELS else document.tokens)[skip:] for name in names}
        length, at = len(document.tokens) - skip, 0
        while pending + length - at >= size:
            until = at + size - pending
            row: dict[str, Any] = {name: np.concatenate([*parts[name], values[name][at:until]]) for name in names}
            at, pending, parts = until, 0, {name: [] for name in names}
            row[READER_STATE] = ReaderState(before, chosen, skip + until)
            yield row
        for name in names:
            parts[name].append(values[name][at:])
        pending += length - at


def _furthest_behind(readers: Sequence[_SourceReader], stream: PackedStream) -> int:
    shares = [
        (reader.next_pass() if stream.equal_passes else 0, reader.counts["tokens"] / reader.source.weight)
        for reader in readers
    ]
    return shares.index(min(shares))


class _SourceReader:
    """The documents of one source for one reader, pass after pass."""

    def __init__(self, source: StreamSource, stream: PackedStream, number: int, count: int, start: SourceState) -> None:
        self.source, self.stream, self.number, self.count = source, stream, number, count
        self.counts = dict(start.counts)
        self.group: list[Encoded] = []
        self.taken = 0
        self.group_start = start
        self.groups = self._groups(start)
        if start.taken:
            self.group, self.taken = next(self.groups), start.taken

    def state(self) -> SourceState:
        """Return the state before the next document; from it, the rows of its window are read again."""
        counts = {name: (self.counts if name in _COUNTS[:2] else self.group_start.counts)[name] for name in _COUNTS}
        return dataclasses.replace(self.group_start, taken=self.taken, counts=counts)

    def next_pass(self) -> int:
        """Return the number of the pass that the next document belongs to."""
        if self.taken == len(self.group):
            self.group, self.taken = next(self.groups), 0
        return self.counts["passes"]

    def take(self) -> Encoded:
        """Return the next document."""
        self.next_pass()
        document = self.group[self.taken]
        self.taken += 1
        self.counts["tokens"] += len(document.tokens)
        self.counts["documents"] += 1
        return document

    def _groups(self, state: SourceState) -> Iterator[list[Encoded]]:
        """Yield some documents at a time, pass after pass, and note where each group began."""
        shuffled, wanted = self.stream.shuffle_documents, self.source.encoder.layout.content_column
        most = (shuffled, _WINDOW_SIZE) if shuffled else _GROUP
        while True:
            # Whether the pass is read from its first row on.
            whole, found_any = (state.shard, state.rows, state.window, state.passed) == (0, None, 0, 0), False
            self.shards = self._assign_shards()
            unread = self._rows(state.shard, state.rows)
            while window := list(_take_group(unread, *most, wanted)):
                if shuffled:
                    window = [window[number] for number in self._order(len(window), state.window)]
                ordered = iter(window[state.passed :])
                while group := list(_take_group(ordered, *_GROUP, wanted)):
                    start = dataclasses.replace(state, counts=dict(self.counts))
                    found = self._encode(group, first=whole and not found_any)
                    if found:
                        self.group_start, found_any = start, True
                        yield found
                    state = dataclasses.replace(state, passed=state.passed + len(group))
                state = SourceState(self.shard, self.shards[self.shard].state_dict(), window=state.window + 1)
            if whole and not found_any:
                raise ValueError(
                    f"Reader {self.number + 1} of {self.count} found no document in {self.source.encoder.source}: "
                    "there are fewer documents than readers (processes times dataloader_num_workers), or all are left "
                    "out; use fewer, or give more documents."
                )
            self.counts["passes"] += 1
            state = SourceState()

    def _rows(self, first: int, state: Any) -> Iterator[dict[str, Any]]:
        """Yield the rows of this reader's shards, one shard after the other, the first of them from a state, if any."""
        for number in range(first, len(self.shards)):
            self.shard, rows = number, self.shards[number]
            if number == first and state is not None:
                rows.load_state_dict(state)
            with naming_source(self.source.encoder.source):
                for batch in rows.iter(batch_size=1):
                    yield {name: values[0] for name, values in batch.items()}

    def _assign_shards(self) -> list[IterableDataset]:
        """Return this reader's shards; with fewer shards than readers, every n-th row of all of them."""
        rows = self.source.rows
        if rows.num_shards < self.count:
            # In their order: the number of a row decides whose it is.
            return [split_dataset_by_node(rows, self.number, self.count)]
        own = rows.shard(self.count, self.number, contiguous=False)
        if not self.stream.shuffle_documents:
            return [own]
        return [own.shard(own.num_shards, number, contiguous=False) for number in self._order(own.num_shards)]

    def _order(self, count: int, window: int = -1) -> list[int]:
        """Return the order of a window's documents, or that of the shards: another one in each pass."""
        draw = np.random.default_rng([self.stream.seed, self.number, self.counts["passes"], window + 1])
        order: list[int] = draw.permutation(count).tolist()
        return order

    def _encode(self, rows: Sequence[Mapping[str, Any]], first: bool) -> list[Encoded]:
        encoder, counts, exclusion = self.source.encoder, self.counts, self.stream.exclusion
        batch = mark_bad_rows({name: [row[name] for row in rows] for name in rows[0]}, encoder.layout)
        for reason in batch.get(BAD_ROW, ()):
            if reason is not None:
                counts["damaged"] += 1
                if counts["damaged"] <= 3:
                    logger.warning("skipped: %s", reason)
        found = encoder(batch)
        if first or encoder.boundaries:
            check_fit(batch, found, encoder)
        kept = []
        for document, kind in zip(found, exclusion(found), strict=True):
            if kind in ("shared", "near"):
                counts[kind] += 1
            if kind == "held_out" or kind in exclusion.remove:
                counts["left_out"] += 1
            else:
                kept.append(document)
        return kept


def _take_group(rows: Iterator[dict[str, Any]], documents: int, size: int, wanted: str) -> Iterator[dict[str, Any]]:
    """Yield the next rows, until there are `documents` of them or they are `size` long."""
    read = 0
    for number, row in enumerate(rows, start=1):
        yield row
        read += len(row[wanted] or ())
        if number >= documents or read >= size:
            return
