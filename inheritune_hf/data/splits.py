"""Split documents into the train, selection (every decision) and test sets (opened once per reported result)."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets

from ..config import DataConfig, RowKind
from ..records import DataFacts, SetFacts, SourceFacts
from .duplicates import Integers, NgramIndex, concat, filter_rows, isin, read_column, remove_overlaps
from .packing import cut_windows, pack_sequences, set_fingerprint
from .sources import (
    BAD_ROW,
    TOKENS,
    Layout,
    Source,
    cache_of,
    evaluation_sources,
    find_files,
    mark_damage,
    naming_source,
    read_source,
    sources_fingerprint,
    stream_source,
    training_sources,
)
from .token_files import TokenFile, TokenSequences, copy_documents, open_token_file, read_documents, token_digests
from .tokenization import Encoder, check_tokenizer, definition, row_digest, seeded_hash, tokenize_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EVALUATION = ("selection", "test")
# Longest sequence that is chosen without being asked for; the paper's block size.
DEFAULT_BLOCK_SIZE = 1024
# How often the sequences of a source may be repeated for its share of a mixture: more than this is a typo.
_MOST_PASSES = 1000


@dataclass(frozen=True)
class DataSplits:
    """
    The three sets, ready for a trainer, and what is known about them.

    Args:
        train (`datasets.Dataset`, `TokenSequences` or `PackedStream`):
            Rows of exactly `block_size` tokens (`input_ids`, and `labels` if some tokens do not count).
        selection (`datasets.Dataset`): Rows of at most `block_size` tokens of one document (`input_ids`, `document`).
        test (`datasets.Dataset`): The same for the reported result.
        facts (`DataFacts`): Documents, tokens, sequences and fingerprints.
    """

    train: Any
    selection: Dataset
    test: Dataset
    facts: DataFacts


@dataclass(frozen=True)
class _Request:
    """What the three sets are made from: settings, sources, and how text becomes tokens."""

    config: DataConfig
    sources: list[Source]
    given: dict[str, Source]
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    block_size: int
    seed: int
    data_seed: int  # of a stream's order

    def encoder(self, source: Source) -> Encoder:
        """Return how the rows of a source become tokens."""
        settings = (self.config.chat_loss, self.vocab_size, self.config.document_boundaries)
        return Encoder(self.tokenizer, source.layout, *settings, source.label)

    def tokenize(self, source: Source) -> Dataset:
        """Read and tokenize a whole source."""
        documents = read_source(source, streaming=self.config.streaming)
        workers, cache_dir = self.config.preprocessing_workers, cache_of(source, None)
        return tokenize_documents(documents, self.encoder(source), workers, cache_dir=cache_dir)

    @property
    def shares(self) -> dict[str, float]:
        """The share of the documents to hold out for each evaluation set that is not given."""
        return {name: getattr(self.config, f"{name}_fraction") for name in EVALUATION if name not in self.given}


def load_data_splits(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    block_size: int | None = None,
    seed: int = 42,
    data_seed: int | None = None,
    vocab_size: int | None = None,
    context_length: int | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DataSplits:
    """
    Read, tokenize and cut the train, selection and test sets that `config` describes.

    Sets that are not given are held out of the training source by whole documents, chosen by a hash of their text: the
    choice does not depend on the order of the documents, and equal documents stay in one set. Reading,
    tokenizing, packing and cutting are cached by `datasets`; in several processes let the main one call this first.

    Args:
        config (`DataConfig`): Sources and shares.
        tokenizer (`PreTrainedTokenizerBase`): The reference's tokenizer.
        block_size (`int`, *optional*):
            Tokens of one sequence; if not given, `config.block_size`, else that of a prepared folder, else
            `context_length` (at most 1024).
        seed (`int`, *optional*, defaults to `42`): Chooses which documents are held out.
        data_seed (`int`, *optional*): Determines the order of a stream, as in `TrainingArguments`; `seed` if not given.
        vocab_size (`int`, *optional*): Tokens that the reference knows; the tokenizer's own if not given.
        context_length (`int`, *optional*): Most tokens that the reference reads; the tokenizer's limit if not given.
        cache_dir (`Path`, *optional*): Where `datasets` caches what was read and made; its own folder if not given.
        progress (`Callable`, *optional*): Called with the documents tokenized and their total, after each part.

    Returns:
        `DataSplits`: The three sets and their facts.

    Raises:
        FileNotFoundError: If a file or data set is not there.
        ValueError: If a source cannot be used; the message names it and says what to do.
    """
    sources, given = training_sources(config), evaluation_sources(config)
    known = len(tokenizer) if vocab_size is None else vocab_size
    check_tokenizer(tokenizer, known)
    asked = config.block_size if block_size is None else block_size
    if asked is not None and asked < 2:
        raise ValueError(f"block_size must be 2 tokens or more, got {asked}.")
    if config.dataset_name:
        from .prepared import is_prepared, load_prepared, refuse_unfinished

        refuse_unfinished(config.dataset_name)
        if is_prepared(config.dataset_name):
            return load_prepared(config, tokenizer, asked, context_length)
    size = asked or min(context_length or tokenizer.model_max_length, DEFAULT_BLOCK_SIZE)
    request = _Request(config, sources, given, tokenizer, known, size, seed, seed if data_seed is None else data_seed)
    if any(source.holds_token_files for source in sources):
        found = _read_token_files(request)
    else:
        for name, source in given.items():
            if source.holds_token_files:
                raise ValueError(
                    f"{name}_files: {source.label} holds tokens, the training source text or rows, and documents in "
                    "both could not be found; give both as token files (.bin), or neither."
                )
        if config.streaming:
            return _load_stream(request)
        found = _tokenize_sources(request, cache_dir, progress)
    train, held_out = _hold_out(found.train, request.shares, seed)
    sets, train, overlaps = remove_overlaps({**found.sets, **held_out}, train, config)
    return _pack(request, dataclasses.replace(found, train=train, sets=sets), overlaps)


def row_kind(dataset: Any, name: str) -> RowKind | None:
    """Return what the rows of a data set hold, by their columns, or None; a `ValueError` if nothing that is known."""
    columns = getattr(dataset, "column_names", None)
    if isinstance(dataset, Mapping):  # several data sets, which is said elsewhere
        return None
    if not columns:
        row = dataset[0] if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and len(dataset) else None
        columns = list(row) if isinstance(row, Mapping) else None
    if columns is None:
        return None
    kinds: dict[str, RowKind] = {"input_ids": "tokens", "messages": "messages", "text": "text"}
    for column, kind in kinds.items():
        if column in columns:
            return kind
    raise ValueError(f"The rows of {name} have {', '.join(columns)}; they need input_ids, text or messages.")


def sequences_of_rows(
    rows: Any, kind: RowKind, name: str, tokenizer: PreTrainedTokenizerBase, block_size: int, vocab_size: int
) -> Dataset:
    """
    Tokenize rows of text or messages that are in memory, and pack them, or cut an evaluation set into windows.

    A `ValueError` if they are a stream, or a row cannot be used.
    """
    if not hasattr(rows, "__len__"):
        raise ValueError(
            f"{name} streams rows of {kind}: give a data set with a length, or let load_data_splits read the stream "
            "(streaming=True)."
        )
    layout = Layout(rows=kind)
    found = rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows))
    found = mark_damage(found.select_columns([layout.content_column]), layout, name)
    documents = tokenize_documents(found, Encoder(tokenizer, layout, vocab_size=vocab_size, source=name))
    return pack_sequences(documents, block_size) if name == "train_dataset" else cut_windows(documents, block_size)


@dataclass(frozen=True)
class _Documents:
    """Tokenized documents: of each training source (or token file), and of the given sets; and what was left out."""

    train: list[Dataset]
    sets: dict[str, Dataset]
    skipped: int = 0
    damaged: int = 0
    files: tuple[TokenFile, ...] = ()


def _tokenize_sources(
    request: _Request, cache_dir: Path | None, progress: Callable[[int, int], None] | None
) -> _Documents:
    """Read and tokenize every source."""
    everything = [*request.sources, *request.given.values()]
    # Everything is read before anything is tokenized: a wrong path must not cost an hour.
    raw = [read_source(source, cache_dir) for source in everything]
    encoders = [request.encoder(source) for source in everything]
    labelled = any(encoder.labelled for encoder in encoders)
    total, tokenized = sum(map(len, raw)), []
    for number, (dataset, encoder) in enumerate(zip(raw, encoders, strict=True)):
        before = sum(map(len, raw[:number]))

        def report(done: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        workers = request.config.preprocessing_workers
        where = cache_of(everything[number], cache_dir)
        tokenized.append(tokenize_documents(dataset, encoder, workers, labelled, report, where))
    damaged = sum(map(_count_bad, raw))
    skipped = total - damaged - sum(map(len, tokenized))
    sets = dict(zip(request.given, tokenized[len(request.sources) :], strict=True))
    return _Documents(tokenized[: len(request.sources)], sets, skipped, damaged)


def _read_token_files(request: _Request) -> _Documents:
    """Map token files into memory; the documents of evaluation sets are copied out."""
    config = request.config
    if len(request.sources) > 1:
        raise ValueError(
            "Token files (.bin) cannot be mixed with other sources, since they are used as they are; give them by "
            "train_files alone."
        )
    if config.streaming:
        raise ValueError("Token files (.bin) are read by memory map, which needs no streaming; leave it out.")

    def read(source: Source) -> dict[TokenFile, Dataset]:
        files = [open_token_file(path, config.token_dtype) for path in find_files(source)]
        return {file: read_documents(file, request.vocab_size, request.tokenizer) for file in files}

    train, sets = read(request.sources[0]), {}
    for name, source in request.given.items():
        if source.holds_token_files:
            sets[name] = concat([copy_documents(documents) for documents in read(source).values()])
        else:
            documents = request.tokenize(source)
            # Documents of token files are compared by their tokens, so this text is too.
            sets[name] = documents.remove_columns("digest").add_column("digest", token_digests(documents))
    return _Documents(list(train.values()), sets, files=tuple(train))


def _count_bad(dataset: Dataset) -> int:
    if BAD_ROW not in dataset.column_names:
        return 0
    rows = dataset.select_columns([BAD_ROW]).with_format("arrow")
    reasons = [reason for batch in rows.iter(batch_size=4096) for reason in batch[BAD_ROW].drop_null().to_pylist()]
    for reason in reasons[:3]:
        logger.warning("skipped: %s", reason)
    return len(reasons)


def _pack(request: _Request, found: _Documents, overlaps: Mapping[str, int | None]) -> DataSplits:
    """Make sequences of the training documents, and finish."""
    size, sources = request.block_size, request.sources
    lengths = [read_column(documents, "length") for documents in found.train]
    _require_tokens(found.sets, sum(int(item.sum()) for item in lengths), size)
    train: Any
    texts: list[int | None] = [None]
    if found.files:
        train, passes = TokenSequences(found.files, found.train, size), [1.0]
        lengths = [np.concatenate(lengths)]
    else:
        packed = [pack_sequences(documents, size) for documents in found.train]
        train, passes = mix_sequences(packed, [source.weight for source in sources])
        texts = [int(read_column(documents, "bytes").sum()) for documents in found.train]
    return _finish(
        request,
        train,
        SetFacts(sum(map(len, lengths)), len(train) * size, len(train), set_fingerprint(train)),
        [
            SourceFacts(source.label, len(own), int(own.sum()), text, source.weight, round(share, 4))
            for source, own, text, share in zip(sources, lengths, texts, passes, strict=True)
        ],
        found.sets,
        **overlaps,
        dropped_tokens=sum(int(own.sum()) % size for own in lengths),
        longest_document=max(int(own.max()) for own in lengths if len(own)),
        skipped_documents=found.skipped,
        damaged_rows=found.damaged,
    )


def _require_tokens(sets: Mapping[str, Dataset], tokens: int, block_size: int) -> None:
    if tokens < block_size:
        raise ValueError(
            f"The training set holds {tokens} tokens, fewer than one sequence of block_size {block_size}; give more "
            "text or a smaller block_size."
        )
    for name in EVALUATION:
        if not (read_column(sets[name], "length") > 1).any():
            raise ValueError(
                f"The {name} set has no token to predict: none of its documents has text; give other documents."
            )


def _finish(
    request: _Request,
    train: Any,
    train_facts: SetFacts,
    sources: Sequence[SourceFacts],
    sets: Mapping[str, Dataset],
    **counts: Any,
) -> DataSplits:
    """Cut the evaluation sets, log what the three sets hold, and warn if documents are in two of them."""
    windows, set_facts = {}, {}
    for name in EVALUATION:
        windows[name] = cut_windows(sets[name], request.block_size, request.config.max_sequences_per_document)
        rows = windows[name].with_format("arrow").iter(batch_size=1024)
        tokens = sum(len(batch[TOKENS].combine_chunks().flatten()) for batch in rows)
        set_facts[name] = SetFacts(len(sets[name]), tokens, len(windows[name]), set_fingerprint(windows[name]))
    facts = DataFacts(
        source=", ".join(source.name for source in sources),
        block_size=request.block_size,
        train=train_facts,
        selection=set_facts["selection"],
        test=set_facts["test"],
        sources=tuple(sources),
        **counts,
    )
    logger.info("data: %s", facts)
    if facts.shared_documents:
        found = f"{facts.shared_documents:,} selection or test documents are, word for word, in another set too"
        if request.config.duplicates == "remove":
            logger.info("%s: the others were removed", found)
        else:
            logger.warning("%s: losses on them are too low (duplicates 'remove' removes the others).", found)
    return DataSplits(train, windows["selection"], windows["test"], facts)


# Held-out documents and mixtures


def _hold_out(train: list[Dataset], shares: Mapping[str, float], seed: int) -> tuple[list[Dataset], dict[str, Dataset]]:
    """Return the training documents without those that are held out for the evaluation sets, and those sets."""
    if not shares:
        return train, {}
    digests = [read_column(documents, "digest") for documents in train]
    chosen = choose_held_out(np.concatenate(digests), shares, seed)
    taken = {**chosen, "train": np.concatenate(list(chosen.values()))}
    found = {name: [isin(own, wanted) for own in digests] for name, wanted in taken.items()}
    rest = [filter_rows(documents, ~mask) for documents, mask in zip(train, found.pop("train"), strict=True)]
    sets = {
        name: concat([copy_documents(filter_rows(item, mask)) for item, mask in zip(train, masks, strict=True)])
        for name, masks in found.items()
    }
    return rest, sets


def choose_held_out(digests: Integers, shares: Mapping[str, float], seed: int) -> dict[str, Integers]:
    """Choose the distinct documents that are held out for each set: those whose hash comes first, at least one each."""
    distinct = np.unique(digests)
    if len(distinct) <= len(shares):
        raise ValueError(
            f"Holding {' and '.join(shares)} out of the training source needs at least {len(shares) + 1} distinct "
            f"documents, got {len(distinct)} (a text file is one document); give more documents, or "
            f"{' and '.join(f'{name}_files' for name in shares)}."
        )
    # Shares are below a half and rounded down, so that training documents always remain.
    counts = [max(1, int(share * len(distinct))) for share in shares.values()]
    # Iterated over as an array: a list of its numbers would take 32 bytes for each.
    first = heapq.nsmallest(sum(counts), distinct, key=lambda digest: seeded_hash(digest, seed))
    parts = np.split(np.array(first, dtype=np.int64), np.cumsum(counts)[:-1])
    return dict(zip(shares, parts, strict=True))


def mix_sequences(packed: Sequence[Dataset], weights: Sequence[float | None]) -> tuple[Dataset, list[float]]:
    """
    Join the sequences of several sources so that each has its share, evenly spread.

    Without weights every sequence is used once. With weights, every sequence is used at least once, and those of
    sources that would have too small a share are repeated. Returns how often each source's are used, too.
    """
    if len(packed) == 1:
        return packed[0], [1.0]
    counts = [len(dataset) for dataset in packed]
    if 0 in counts:
        raise ValueError(
            f"source {counts.index(0) + 1} has fewer tokens than one sequence; leave it out, or lower block_size."
        )
    wanted = list(counts)
    if weights[0] is not None:
        given = [float(weight or 0) for weight in weights]
        scale = max(count / weight for count, weight in zip(counts, given, strict=True))
        wanted = [max(count, round(weight * scale)) for count, weight in zip(counts, given, strict=True)]
    passes = [want / count for want, count in zip(wanted, counts, strict=True)]
    if max(passes) > _MOST_PASSES:
        most, least = passes.index(max(passes)), passes.index(min(passes))
        raise ValueError(
            f"source {most + 1} would be repeated {max(passes):,.0f} times (at most {_MOST_PASSES:,}), so that every "
            f"sequence of source {least + 1} is used once; give weights nearer to their sizes ({counts[most]:,} and "
            f"{counts[least]:,} sequences), or set streaming."
        )
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows = [np.arange(want) % count + start for want, count, start in zip(wanted, counts, starts, strict=False)]
    places = np.concatenate([(np.arange(want) + 0.5) / want for want in wanted])
    order = np.concatenate(rows)[np.argsort(places, kind="stable")]
    return concatenate_datasets(list(packed)).select(order), passes


# Streams


def _load_stream(request: _Request) -> DataSplits:
    """
    Open a training stream, and make the evaluation sets.

    A set that is held out is every document whose hash falls into the set's share. It is searched for among the first
    `holdout_documents` documents of each source; the stream leaves such documents out wherever they are.
    """
    from .stream import Exclusion, PackedStream, StreamSource  # imports torch

    config, sources, seed = request.config, request.sources, request.seed
    opened = [(stream_source(source), request.encoder(source)) for source in sources]
    sets = {name: request.tokenize(source) for name, source in request.given.items()}
    sets |= _hold_out_of_stream(opened, request.shares, config.holdout_documents, seed)
    sets, _, overlaps = remove_overlaps(sets, [], config)
    _require_tokens(sets, request.block_size, request.block_size)
    settings, index = {"shared": config.duplicates, "near": config.near_duplicates}, None
    if config.near_duplicates != "ignore":
        index = NgramIndex([sets[name] for name in EVALUATION], config.near_duplicate_threshold)
    exclusion = Exclusion(
        seed,
        sum(request.shares.values()),
        frozenset(digest for dataset in sets.values() for digest in read_column(dataset, "digest").tolist()),
        index,
        frozenset(name for name, value in settings.items() if value == "remove"),
    )
    # In another order, or of other documents, it is another stream: a run cannot resume in it.
    order = (config.shuffle_documents, request.data_seed) if config.shuffle_documents else None
    near = (config.near_duplicates, config.near_duplicate_threshold)
    left_out = (config.duplicates, *near, seed, *request.shares.items())
    made = (request.block_size, config.chat_loss, config.document_boundaries, definition(request.tokenizer))
    what = (sources_fingerprint(sources), order, left_out, made)
    fingerprint = hashlib.sha256(repr(what).encode()).hexdigest()
    train = PackedStream(
        [
            StreamSource(rows, encoder, weight)
            for (rows, encoder), weight in zip(opened, _stream_weights(sources), strict=True)
        ],
        request.block_size,
        exclusion,
        fingerprint,
        config.shuffle_documents,
        request.data_seed,
        equal_passes=sources[0].weight is None,
    )
    facts = [SourceFacts(source.label, weight=source.weight) for source in sources]
    return _finish(request, train, SetFacts(None, None, None, fingerprint), facts, sets, **overlaps)


def _stream_weights(sources: Sequence[Source]) -> list[float]:
    """Return the given weights; without them the sizes of the files, or, if a source has none, the same for all."""
    if sources[0].weight is not None:
        return [source.weight or 0.0 for source in sources]
    if any(source.name is not None for source in sources):
        return [1.0] * len(sources)
    return [float(max(1, sum(path.stat().st_size for path in find_files(source)))) for source in sources]


def _hold_out_of_stream(
    opened: Sequence[tuple[IterableDataset, Encoder]], shares: Mapping[str, float], most: int, seed: int
) -> dict[str, Dataset]:
    """Tokenize the documents among the first `most` of each source whose hash falls into the share of a set."""
    from .stream import unit_hash

    if not shares:
        return {}
    labelled = any(encoder.labelled for _, encoder in opened)
    chosen: dict[str, list[Dataset]] = {name: [] for name in shares}
    bounds = np.cumsum(list(shares.values()))
    read = 0
    for rows, encoder in opened:
        found: list[list[dict[str, Any]]] = [[] for _ in shares]
        with naming_source(encoder.source):
            for row in itertools.islice(rows, most):
                read += 1
                digest = row_digest(row, encoder.layout)
                if digest is not None and (hashed := unit_hash(digest, seed)) < bounds[-1]:
                    found[int(np.searchsorted(bounds, hashed, side="right"))].append(row)
        for parts, items in zip(chosen.values(), found, strict=True):
            if items:
                documents = Dataset.from_list(items, features=rows.features)
                parts.append(tokenize_documents(documents, encoder, labelled=labelled))
    for name, parts in chosen.items():
        if not parts:
            raise ValueError(
                f"None of the first {read:,} documents falls into the {name} set ({shares[name]:.4g} of all); raise "
                f"holdout_documents or {name}_fraction, or give {name}_files."
            )
    return {name: concat(parts) for name, parts in chosen.items()}
