"""The three document-disjoint sets: train, selection (every decision) and test (opened once per reported result)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset, Features, Value, concatenate_datasets

from ..configuration import DataConfig
from .corpora import Document
from .data_sets import mark_long
from .duplicates import document_groups
from .encoding import Encoder, check_tokenizer
from .facts import DataFacts, DataSplits, SourceFacts
from .overlaps import count_shared, find_overlaps
from .packing import cut_windows, pack_sequences, tokenize_documents
from .prepared import is_prepared, load_prepared, refuse_unfinished
from .rows import DAMAGE, Layout
from .sets import (
    EVALUATION,
    among,
    announce,
    choose_carved,
    column,
    encoder_of,
    given_sources,
    joined,
    missing_shares,
    require_tokens,
    set_facts,
    where,
)
from .sources import Source, read_source, training_sources
from .token_sets import load_token_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Longest sequence that is chosen without being asked for; the paper's block size.
DEFAULT_BLOCK_SIZE = 1024
# How often the sequences of a source may come so that a mixture has its shares: more than this is a slip of the pen.
MOST_PASSES = 1000


@dataclass
class _Documents:
    """Tokenized documents on their way into sets: training documents by source, and those of the evaluation sets."""

    train: list[Dataset]
    labels: list[SourceFacts]
    sets: dict[str, Dataset]
    skipped: int = 0
    damaged: int = 0
    shared: int = 0
    near: int | None = None
    removed: int = 0


def load_data_splits(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    block_size: int | None = None,
    seed: int = 42,
    vocab_size: int | None = None,
    context_length: int | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DataSplits:
    """
    Read, tokenize and cut the train, selection and test sets that `config` describes.

    Sets that are not given are carved out of the training source by whole documents, chosen by a hash of their text:
    the choice does not depend on the order of the documents, and equal documents stay on one side. Reading,
    tokenizing, packing and cutting are cached by `datasets`; in several processes let the main one call this first.

    Args:
        config (`DataConfig`): Sources and shares.
        tokenizer (`PreTrainedTokenizerBase`): The reference's tokenizer.
        block_size (`int`, *optional*):
            Tokens of one sequence; if not given, `config.block_size`, else that of a prepared folder, else
            `context_length` (at most 1024).
        seed (`int`, *optional*, defaults to `42`): Chooses which documents are carved.
        vocab_size (`int`, *optional*): Tokens that the reference knows; the tokenizer's own if not given.
        context_length (`int`, *optional*): Most tokens that the reference reads; the tokenizer's limit if not given.
        cache_dir (`Path`, *optional*): Where `datasets` caches what was read and made; its own folder if not given.
        progress (`Callable`, *optional*): Told documents tokenized and documents in all, after each part.

    Returns:
        `DataSplits`: The three sets and their facts.

    Raises:
        FileNotFoundError: If a file or data set is not there.
        ValueError: If a source cannot be used; the message names it and says what to do.
    """
    _refuse_conflicts(config)
    known = len(tokenizer) if vocab_size is None else vocab_size
    check_tokenizer(tokenizer, known)
    asked = config.block_size if block_size is None else block_size
    if asked is not None and asked < 2:
        raise ValueError(f"block_size must be 2 tokens or more, got {asked}.")
    if config.dataset_name:
        refuse_unfinished(config.dataset_name)
    if config.dataset_name and is_prepared(config.dataset_name):
        return load_prepared(config, tokenizer, asked, context_length)
    size = asked or min(context_length or tokenizer.model_max_length, DEFAULT_BLOCK_SIZE)
    sources = training_sources(config)
    if any(source.token_files() for source in sources):
        return load_token_files(config, sources, tokenizer, size, seed, known)
    for name, given in given_sources(config).items():
        if given.token_files():
            raise ValueError(
                f"{name}_files: {given.label} holds tokens, the training source text or rows, and documents in both "
                "could not be found; give both as token files (.bin), or neither."
            )
    if config.streaming:
        from .streams import load_stream

        return load_stream(config, sources, tokenizer, size, seed, known)
    documents = read_documents(config, sources, tokenizer, known, seed, cache_dir, progress)
    source = ", ".join(item.label for item in sources)
    return _assemble(documents, source, size, config.max_sequences_per_document)


def splits_from_documents(
    train: Sequence[Document],
    selection: Sequence[Document],
    test: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    max_sequences_per_document: int | None = None,
    *,
    source: str = "documents in memory",
) -> DataSplits:
    """
    Tokenize and cut documents that are already in memory and already split.

    Args:
        train (`Sequence[Document]`): Documents to train on.
        selection (`Sequence[Document]`): Documents that decide about growing and stopping.
        test (`Sequence[Document]`): Documents for the reported result.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        block_size (`int`): Tokens of one sequence.
        max_sequences_per_document (`int`, *optional*):
            Windows to keep of each selection and test document; all if not given.
        source (`str`, *optional*, defaults to `"documents in memory"`): Where they come from, for the facts.

    Returns:
        `DataSplits`: The three sets and their facts.

    Raises:
        ValueError: If a set has too little text.
    """
    if block_size < 2:
        raise ValueError(f"block_size must be 2 tokens or more, got {block_size}.")
    given = {"train": train, "selection": selection, "test": test}
    sets = {
        name: tokenize_documents(
            mark_long(
                Dataset.from_dict(
                    {"text": [document.text for document in items]}, features=Features({"text": Value("large_string")})
                ),
                Layout(),
                f"the {name} documents",
            ),
            Encoder(tokenizer),
        )
        for name, items in given.items()
    }
    skipped = sum(len(items) - len(sets[name]) for name, items in given.items())
    documents = _Documents([sets.pop("train")], [SourceFacts(source)], sets, skipped)
    judging = [column(sets[name], "digest") for name in EVALUATION]
    documents.shared = count_shared(judging[0], judging[1], [column(dataset, "digest") for dataset in documents.train])
    return _assemble(documents, source, block_size, max_sequences_per_document)


def read_documents(
    config: DataConfig,
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    seed: int,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> _Documents:
    """Read and tokenize every source, carve what is not given, and see to documents that are in two sets."""
    given = given_sources(config)
    documents = _tokenized(config, sources, given, tokenizer, vocab_size, cache_dir, progress)
    _carve_documents(documents, missing_shares(config, given), seed)
    found = find_overlaps(
        documents.sets,
        [column(dataset, "digest") for dataset in documents.train],
        [document_groups(dataset) for dataset in documents.train],
        config,
    )
    documents.shared, documents.near, documents.removed = found.shared, found.near, found.removed
    documents.train = [where(dataset, ~drop) for dataset, drop in zip(documents.train, found.drop_train, strict=True)]
    documents.sets["selection"] = where(documents.sets["selection"], ~found.drop_selection)
    return documents


def _tokenized(
    config: DataConfig,
    sources: Sequence[Source],
    given: Mapping[str, Source],
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    cache_dir: Path | None,
    progress: Callable[[int, int], None] | None,
) -> _Documents:
    """Read and tokenize every source; what was read does not stay: it holds tens of bytes for each row."""
    everything = [*sources, *given.values()]
    # Everything is read before anything is tokenized: a wrong path must not cost an hour.
    raw = [read_source(source, cache_dir) for source in everything]
    encoders = [encoder_of(config, source, tokenizer, vocab_size) for source in everything]
    labelled = any(encoder.labelled for encoder in encoders)
    done, total = 0, sum(map(len, raw))
    tokenized = []
    for dataset, encoder in zip(raw, encoders, strict=True):
        report = None if progress is None else partial(_report, progress, done, total)
        tokenized.append(tokenize_documents(dataset, encoder, config.preprocessing_workers, labelled, report))
        done += len(dataset)
    damaged = sum(_count_damaged(dataset) for dataset in raw)
    return _Documents(
        tokenized[: len(sources)],
        [SourceFacts(source.label, weight=source.weight) for source in sources],
        dict(zip(given, tokenized[len(sources) :], strict=True)),
        total - sum(map(len, tokenized)) - damaged,
        damaged,
    )


def _report(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _refuse_conflicts(config: DataConfig) -> None:
    """Raise a `ValueError` for a setting that would be ignored, or if there is no training source."""
    if not config.train_files and not config.dataset_name and not config.sources:
        raise ValueError("There is nothing to train on; give dataset_name or train_files, or a mixture by sources.")
    for name in EVALUATION:
        files, split = getattr(config, f"{name}_files"), getattr(config, f"{name}_split")
        if split is not None and not config.dataset_name:
            raise ValueError(f"{name}_split names a split of dataset_name, which is not given; give {name}_files.")
        if split is not None and files:
            raise ValueError(f"Give {name}_files or {name}_split, not both.")


def _carve_documents(documents: _Documents, shares: Mapping[str, float], seed: int) -> None:
    """Move the documents of the sets that `shares` names from the training documents into sets of their own."""
    digests = [column(dataset, "digest") for dataset in documents.train]
    chosen = choose_carved(np.concatenate(digests), shares, seed)
    for name, wanted in chosen.items():
        documents.sets[name] = joined(
            [where(dataset, among(own, wanted)) for dataset, own in zip(documents.train, digests, strict=True)]
        )
    if chosen:
        taken = np.concatenate(list(chosen.values()))
        documents.train = [
            where(dataset, ~among(own, taken)) for dataset, own in zip(documents.train, digests, strict=True)
        ]


def _assemble(documents: _Documents, source: str, block_size: int, max_per_document: int | None) -> DataSplits:
    lengths = [column(dataset, "length") for dataset in documents.train]
    tokens = sum(int(item.sum()) for item in lengths)
    if tokens < block_size:
        raise ValueError(
            f"The training set holds {tokens} tokens, fewer than one sequence of block_size {block_size}; give more "
            "text or a smaller block_size."
        )
    require_tokens(documents.sets)
    packed = [pack_sequences(dataset, block_size) for dataset in documents.train]
    train, passes = mix_sequences(packed, [item.weight for item in documents.labels])
    sets = {name: cut_windows(documents.sets[name], block_size, max_per_document) for name in EVALUATION}
    facts = DataFacts(
        source=source,
        block_size=block_size,
        train=set_facts(sum(map(len, documents.train)), train),
        **{name: set_facts(len(documents.sets[name]), dataset) for name, dataset in sets.items()},
        dropped_tokens=sum(int(item.sum()) % block_size for item in lengths),
        skipped_documents=documents.skipped,
        shared_documents=documents.shared,
        near_duplicates=documents.near,
        removed_documents=documents.removed,
        damaged_rows=documents.damaged,
        longest_document=max(int(item.max()) for item in lengths if len(item)),
        sources=tuple(
            dataclasses.replace(
                label,
                documents=len(dataset),
                tokens=int(length.sum()),
                bytes=int(column(dataset, "bytes").sum()),
                passes=round(share, 4),
            )
            for label, dataset, length, share in zip(documents.labels, documents.train, lengths, passes, strict=True)
        ),
    )
    announce(facts)
    return DataSplits(train, sets["selection"], sets["test"], facts)


def mix_sequences(packed: Sequence[Dataset], weights: Sequence[float | None]) -> tuple[Dataset, list[float]]:
    """
    Join the sequences of several sources so that each has its share, evenly spread.

    Without weights every sequence comes once. With weights, every sequence comes at least once, and those of sources
    that would have too small a share again and again.

    Returns:
        `tuple[datasets.Dataset, list[float]]`: The sequences, and how often each source's come.
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
        if max(passes) > MOST_PASSES:
            most, least = passes.index(max(passes)), passes.index(min(passes))
            raise ValueError(
                f"source {most + 1} would come {max(passes):,.0f} times (at most {MOST_PASSES:,}), so that every "
                f"sequence of source {least + 1} comes once; give weights nearer to their sizes ({counts[most]:,} and "
                f"{counts[least]:,} sequences), or set streaming."
            )
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows = [np.arange(want) % count + start for want, count, start in zip(wanted, counts, starts, strict=False)]
    places = np.concatenate([(np.arange(want) + 0.5) / want for want in wanted])
    order = np.concatenate(rows)[np.argsort(places, kind="stable")]
    mixed = concatenate_datasets(list(packed)).select(order)
    return mixed, [want / count for want, count in zip(wanted, counts, strict=True)]


def _count_damaged(dataset: Dataset) -> int:
    if DAMAGE not in dataset.column_names:
        return 0
    rows = dataset.select_columns([DAMAGE]).with_format("arrow")
    reasons = [reason for batch in rows.iter(batch_size=4096) for reason in batch[DAMAGE].drop_null().to_pylist()]
    for reason in reasons[:3]:
        logger.warning("skipped: %s", reason)
    return len(reasons)
