"""A stream of sequences that is packed on the fly, in bounded memory, and goes on exactly where it stopped."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import get_worker_info

from .data_sets import reading
from .duplicates import Index, near_duplicates
from .encoding import Encoded, Encoder, check_fit, marked
from .rows import DAMAGE, LABELS, TOKENS

logger = logging.getLogger(__name__)

#: Name under which a sequence, and a batch, carries the place of the stream after it.
PLACE = "place"

# Documents that are tokenized at once, and characters (or tokens) of them: enough to be fast, few enough to be held.
_GROUP = (64, 250_000)
# Characters (or tokens) of the documents whose order is drawn at once.
_WINDOW_SIZE = 32_000_000

# Counts that grow when a group is read, not when its documents are taken.
_READ = ("passes", "damaged", "left_out", "shared", "near")

# Where a pass begins: the shard, the row at which a window begins, the window's number, and its rows that were passed.
_BEGINNING: dict[str, Any] = {"shard": 0, "rows": None, "window": 0, "passed": 0}


@dataclass(frozen=True)
class Exclusion:
    """
    Which documents of a stream are also judged by: those are left out, or counted.

    Args:
        seed (`int`): Chooses what is carved.
        share (`float`): Share of the documents that is carved, by the hash of their text, wherever they are.
        digests (`frozenset[int]`): Documents of the evaluation sets.
        near (`Index`, *optional*): The same documents, if others that are near to one are looked for.
        remove (`frozenset[str]`): What is left out: `shared` documents, `near` ones; carved ones always are.
    """

    seed: int = 0
    share: float = 0.0
    digests: frozenset[int] = frozenset()
    near: Index | None = None
    remove: frozenset[str] = frozenset()

    def __call__(self, documents: Sequence[Encoded]) -> list[str]:
        """Return of each document what it is: `carved`, `shared`, `near`, or an empty string."""
        found = [
            "carved"
            if place_of(document.digest, self.seed) < self.share
            else "shared"
            if document.digest in self.digests
            else ""
            for document in documents
        ]
        if self.near is not None and documents:
            lengths = np.array([len(document.tokens) for document in documents])
            tokens = np.concatenate([document.tokens for document in documents])
            for item in near_duplicates([(tokens, lengths)], self.near):
                found[item.document] = found[item.document] or "near"
        return found


def place_of(digest: int, seed: int) -> float:
    """Return where a document lies between 0 and 1: the same whatever the order, the shards or the workers."""
    value = hashlib.sha256(f"{seed}:{digest}".encode()).digest()[:8]
    return int.from_bytes(value, "big") / 2**64


@dataclass(frozen=True)
class StreamSource:
    """One source of a stream: its rows, how they become tokens, and its share of the tokens."""

    rows: IterableDataset
    encoder: Encoder
    weight: float = 1.0


@dataclass
class _Counts:
    """What happened to the documents of one source in one lane, kept in the place of the stream."""

    passes: int = 0
    documents: int = 0
    tokens: int = 0
    damaged: int = 0
    left_out: int = 0
    shared: int = 0
    near: int = 0


class PackedStream(TorchIterableDataset[dict[str, Any]]):
    """
    Join the documents of one or several sources into sequences of exactly `block_size` tokens, without end.

    The readers of a run (its processes, times their loader workers) are lanes. Shards are dealt among them: a document
    belongs to one lane, and every lane begins its documents again when it has read them all, so that a lane with fewer
    of them holds up none of the others. Of several sources, the next document comes from the one that is furthest
    behind its share of the tokens; if they are read together, of those that were passed over least. Each sequence
    carries the place of its lane after it, some numbers; begun there, a lane gives the sequences that would have come
    next, token by token.

    Args:
        sources (`Sequence[StreamSource]`): Where documents come from.
        block_size (`int`): Tokens of one sequence.
        exclusion (`Exclusion`, *optional*): What is not trained on.
        fingerprint (`str`, *optional*): What tells this stream from another.
        shuffle_documents (`int`, *optional*, defaults to `0`):
            Documents whose order is drawn at once; a reader's files come in a drawn order too. 0 keeps the order.
        seed (`int`, *optional*, defaults to `0`): Draws the order, another one in each pass.
        together (`bool`, *optional*, defaults to `False`):
            Whether a source that was read to its end waits for the others, so that every document comes once in a pass.
    """

    def __init__(
        self,
        sources: Sequence[StreamSource],
        block_size: int,
        exclusion: Exclusion | None = None,
        fingerprint: str = "",
        shuffle_documents: int = 0,
        seed: int = 0,
        together: bool = False,
    ) -> None:
        self.sources = tuple(sources)
        self.block_size = block_size
        self.exclusion = exclusion or Exclusion()
        self.fingerprint = fingerprint
        self.shuffle_documents = shuffle_documents
        self.seed = seed
        self.together = together
        self.rank, self.world_size = 0, 1
        self.places: dict[int, Any] = {}
        self.next_worker = 0

    def begin(self, rank: int = 0, world_size: int = 1, places: Mapping[str, Any] | None = None) -> PackedStream:
        """
        Return this stream for one process, begun at the start or at places that `Places` kept.

        Args:
            rank (`int`, *optional*, defaults to `0`): The process.
            world_size (`int`, *optional*, defaults to `1`): Processes of the run.
            places (`dict`, *optional*): What `Places.to_dict` returned in the same process.
        """
        begun = copy.copy(self)
        begun.rank, begun.world_size = rank, world_size
        if places is not None:
            begun.places = {int(worker): place for worker, place in places["workers"].items()}
            begun.next_worker = places["next"]
        return begun

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield `input_ids` (and `labels`), arrays of `block_size` tokens, and `place`."""
        info = get_worker_info()
        workers, worker = (1, 0) if info is None else (info.num_workers, info.id)
        # A loader asks its worker 0 first; whoever is next after the last batch takes that part.
        worker = (worker + self.next_worker) % workers
        lane = _Lane(self, self.rank * workers + worker, self.world_size * workers, self.places.get(worker))
        for row in lane.sequences():
            row[PLACE] = {"worker": worker, "workers": workers, **row[PLACE]}
            yield row


class _Lane:
    """One reader's part of a stream."""

    def __init__(self, stream: PackedStream, number: int, lanes: int, place: Mapping[str, Any] | None) -> None:
        self.stream = stream
        states = place["sources"] if place else [None] * len(stream.sources)
        self.readers = [
            _Reader(source, stream, number, lanes, state) for source, state in zip(stream.sources, states, strict=True)
        ]
        self.current = (place["current"], place["offset"]) if place else None
        self.labelled = any(source.encoder.labelled for source in stream.sources)

    def sequences(self) -> Iterator[dict[str, Any]]:
        size = self.stream.block_size
        parts: list[Any] = []
        labels: list[Any] = []
        held = 0
        while True:
            number, skip = self.current or (self._furthest_behind(), 0)
            self.current = None
            reader = self.readers[number]
            before = reader.state()
            document = reader.take()
            others = [item.state() if item is not reader else before for item in self.readers]
            tokens = document.tokens[skip:]
            wanted = (tokens if document.labels is None else document.labels[skip:]) if self.labelled else None
            at = 0
            while held + len(tokens) - at >= size:
                until = at + size - held
                row: dict[str, Any] = {TOKENS: np.concatenate([*parts, tokens[at:until]])}
                if wanted is not None:
                    row[LABELS] = np.concatenate([*labels, wanted[at:until]])
                at, held, parts, labels = until, 0, [], []
                row[PLACE] = {"sources": others, "current": number, "offset": skip + until}
                yield row
            if at < len(tokens):
                parts.append(tokens[at:])
                held += len(tokens) - at
                if wanted is not None:
                    labels.append(wanted[at:])

    def _furthest_behind(self) -> int:
        shares = [
            (reader.begun_passes() if self.stream.together else 0, reader.counts.tokens / source.weight)
            for reader, source in zip(self.readers, self.stream.sources, strict=True)
        ]
        return shares.index(min(shares))


class _Reader:
    """The documents of one source in one lane, again and again."""

    def __init__(self, source: StreamSource, stream: PackedStream, lane: int, lanes: int, start: Any) -> None:
        self.source, self.stream, self.lane, self.lanes = source, stream, lane, lanes
        self.counts = _Counts(**start["counts"]) if start else _Counts()
        self.group: list[Encoded] = []
        self.taken = 0
        self.group_start = {**(start or _BEGINNING), "counts": self._read_counts()}
        self.groups = self._groups({name: self.group_start[name] for name in _BEGINNING})
        if start and start["taken"]:
            self.group, self.taken = next(self.groups), start["taken"]

    def state(self) -> dict[str, Any]:
        """Return where this is, before the next document; begun there, the rows of its window are read again."""
        counts = {**self.counts.__dict__, **self.group_start["counts"]}
        return {**self.group_start, "taken": self.taken, "counts": counts}

    def begun_passes(self) -> int:
        """Return which pass the next document belongs to."""
        if self.taken == len(self.group):
            self.group, self.taken = next(self.groups), 0
        return self.counts.passes

    def take(self) -> Encoded:
        """Return the next document."""
        self.begun_passes()
        document = self.group[self.taken]
        self.taken += 1
        self.counts.tokens += len(document.tokens)
        self.counts.documents += 1
        return document

    def _read_counts(self) -> dict[str, int]:
        return {name: getattr(self.counts, name) for name in _READ}

    def _groups(self, place: dict[str, Any]) -> Iterator[list[Encoded]]:
        """Yield some documents at a time, pass after pass, and note where each group began."""
        most = (self.stream.shuffle_documents, _WINDOW_SIZE) if self.stream.shuffle_documents else _GROUP
        while True:
            whole, found_any = place == _BEGINNING, False
            rows = _Pass(self._deal(), place["shard"], place["rows"], self.source.encoder.source)
            unread = iter(rows)
            while window := list(_some(unread, *most, self.source.encoder.layout.wanted)):
                after = rows.state()
                if self.stream.shuffle_documents:
                    window = [window[number] for number in self._order(len(window), place["window"])]
                ordered = iter(window[place["passed"] :])
                while group := list(_some(ordered, *_GROUP, self.source.encoder.layout.wanted)):
                    start = {**place, "counts": self._read_counts()}
                    found = self._encode(group, first=whole and not found_any)
                    if found:
                        self.group_start, found_any = start, True
                        yield found
                    place = {**place, "passed": place["passed"] + len(group)}
                place = {**after, "window": place["window"] + 1, "passed": 0}
            if whole and not found_any:
                raise ValueError(
                    f"Reader {self.lane + 1} of {self.lanes} found no document in {self.source.encoder.source}: there "
                    "are fewer documents than readers (processes times dataloader_num_workers), or all are left out; "
                    "use fewer, or give more documents."
                )
            self.counts.passes += 1
            place = _BEGINNING

    def _deal(self) -> list[IterableDataset]:
        """Return this lane's shards; with fewer shards than lanes, every so many rows of all of them."""
        rows = self.source.rows
        if rows.num_shards < self.lanes:
            # In their order: which rows are a lane's is told by their number.
            return [split_dataset_by_node(rows, self.lane, self.lanes)]
        own = rows.shard(self.lanes, self.lane, contiguous=False)
        if not self.stream.shuffle_documents:
            return [own]
        return [own.shard(own.num_shards, number, contiguous=False) for number in self._order(own.num_shards)]

    def _order(self, count: int, window: int = -1) -> list[int]:
        """Return the order of a window's documents, or that of the shards: another one in each pass."""
        draw = np.random.default_rng([self.stream.seed, self.lane, self.counts.passes, window + 1])
        order: list[int] = draw.permutation(count).tolist()
        return order

    def _encode(self, rows: Sequence[Mapping[str, Any]], first: bool) -> list[Encoded]:
        encoder = self.source.encoder
        batch = marked({name: [row[name] for row in rows] for name in rows[0]}, encoder.layout)
        for reason in batch.get(DAMAGE, ()):
            if reason is not None:
                self.counts.damaged += 1
                if self.counts.damaged <= 3:
                    logger.warning("skipped: %s", reason)
        found = encoder(batch)
        if first or encoder.boundaries:
            check_fit(batch, found, encoder)
        exclusion = self.stream.exclusion
        kept = []
        for document, kind in zip(found, exclusion(found), strict=True):
            if kind == "shared":
                self.counts.shared += 1
            elif kind == "near":
                self.counts.near += 1
            if kind == "carved" or kind in exclusion.remove:
                self.counts.left_out += 1
            else:
                kept.append(document)
        return kept


class _Pass:
    """The rows of some shards, one shard after the other, begun anywhere."""

    def __init__(self, shards: Sequence[IterableDataset], shard: int, state: Any, name: str) -> None:
        self.shards, self.shard = shards, shard
        self.begun, self.name = state, name

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self.shard, len(self.shards)):
            rows, self.shard = self.shards[number], number
            if self.begun is not None:
                rows.load_state_dict(self.begun)
                self.begun = None
            with reading(self.name):
                for batch in rows.iter(batch_size=1):
                    yield {name: values[0] for name, values in batch.items()}

    def state(self) -> dict[str, Any]:
        """Return where this is, after the last row that was read."""
        return {"shard": self.shard, "rows": self.shards[self.shard].state_dict()}


def _some(rows: Iterator[dict[str, Any]], documents: int, size: int, wanted: str) -> Iterator[dict[str, Any]]:
    """Yield the next rows, until they are many or long enough."""
    read = 0
    for number, row in enumerate(rows, start=1):
        yield row
        read += len(row[wanted] or ())
        if number >= documents or read >= size:
            return


class Places:
    """Where a process is in a stream: the place after the last batch of each of its loader's workers."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self.workers: dict[str, Any] = dict(values["workers"]) if values else {}
        self.next: int = values["next"] if values else 0

    def note(self, place: Mapping[str, Any]) -> None:
        """Remember the place that a batch carries, once it has been trained on."""
        self.workers[str(place["worker"])] = place
        self.next = (place["worker"] + 1) % place["workers"]

    def to_dict(self) -> dict[str, Any]:
        """Return the places as a dictionary that JSON can hold."""
        return {"workers": self.workers, "next": self.next}

    def total(self, name: str) -> int:
        """Return the sum of a count (`documents`, `tokens`, `damaged`, `left_out`, `shared`, `near`)."""
        whole: int = sum(source["counts"][name] for place in self.workers.values() for source in place["sources"])
        # The document that a place is in has been read, and its first tokens.
        begun = {"tokens": [place["offset"] for place in self.workers.values()], "documents": [1] * len(self.workers)}
        return whole + sum(begun.get(name, ()))

    @property
    def passes(self) -> int:
        """Whole passes over the source that was passed over least."""
        return min(
            (source["counts"]["passes"] for place in self.workers.values() for source in place["sources"]), default=0
        )


@dataclass(frozen=True)
class StreamCollator:
    """Put rows of a stream into a batch by `collator`, and let the batch carry the place after its last row."""

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the collator's batch, and the place."""
        place = rows[-1][PLACE]
        batch = self.collator([{name: value for name, value in row.items() if name != PLACE} for row in rows])
        return {**batch, PLACE: place}
