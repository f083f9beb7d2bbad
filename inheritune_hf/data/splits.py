"""The three document-disjoint sets: train, selection (every decision) and test (opened once per reported result)."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, Value

from ..configuration import DataConfig
from .corpora import Document
from .packing import cut_windows, end_of_text, pack_sequences, set_fingerprint, tokenize_documents
from .sources import read_dataset, read_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Longest sequence that is chosen without being asked for; the paper's block size.
DEFAULT_BLOCK_SIZE = 1024


@dataclass(frozen=True)
class SetFacts:
    """
    What one set holds.

    Args:
        documents (`int`): Documents with text.
        tokens (`int`): Tokens in the sequences, end-of-text tokens included.
        sequences (`int`): Rows of the set.
        fingerprint (`str`): sha256 of the content, see `set_fingerprint`.
    """

    documents: int
    tokens: int
    sequences: int
    fingerprint: str


@dataclass(frozen=True)
class DataFacts:
    """
    What a run was trained, selected and tested on.

    Args:
        source (`str`): Where the documents come from.
        block_size (`int`): Tokens of one sequence.
        train (`SetFacts`): The training set.
        selection (`SetFacts`): The selection set.
        test (`SetFacts`): The test set.
        dropped_tokens (`int`): Tokens of the last partial training sequence, which is dropped.
        skipped_documents (`int`): Documents left out because they are null or blank.
        shared_documents (`int`): Documents of the selection or test set whose very text is in another set as well.
    """

    source: str
    block_size: int
    train: SetFacts
    selection: SetFacts
    test: SetFacts
    dropped_tokens: int
    skipped_documents: int
    shared_documents: int

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class DataSplits:
    """
    The three sets, ready for a trainer, and what is known about them.

    Args:
        train (`datasets.Dataset`): Rows of exactly `block_size` tokens (`input_ids`).
        selection (`datasets.Dataset`): Rows of at most `block_size` tokens of one document (`input_ids`, `document`).
        test (`datasets.Dataset`): The same for the reported result.
        facts (`DataFacts`): Documents, tokens, sequences and fingerprints.
    """

    train: Dataset
    selection: Dataset
    test: Dataset
    facts: DataFacts


def load_data_splits(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, block_size: int | None = None, seed: int = 42
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
            Tokens of one sequence; `config.block_size`, else the tokenizer's limit (at most 1024), if not given.
        seed (`int`, *optional*, defaults to `42`): Chooses which documents are carved.

    Returns:
        `DataSplits`: The three sets and their facts.

    Raises:
        FileNotFoundError: If a file or data set is not there.
        ValueError: If a source cannot be used; the message names it and says what to do.
    """
    _refuse_conflicts(config)
    end_of_text(tokenizer)
    size = config.block_size if block_size is None else block_size
    if size is None:
        size = min(tokenizer.model_max_length, DEFAULT_BLOCK_SIZE)
    if size < 2:
        raise ValueError(f"block_size must be 2 tokens or more, got {size}.")
    # Everything is read before anything is tokenized: a wrong path must not cost an hour.
    raw = {name: dataset for name in ("train", "selection", "test") if (dataset := _read(config, name)) is not None}
    documents = {
        name: tokenize_documents(dataset, tokenizer, config.text_column, config.preprocessing_workers)
        for name, dataset in raw.items()
    }
    skipped = sum(len(dataset) - len(documents[name]) for name, dataset in raw.items())
    shares = {"selection": config.selection_fraction, "test": config.test_fraction}
    documents |= _carve(documents["train"], {name: share for name, share in shares.items() if name not in raw}, seed)
    source = config.dataset_name or ", ".join(config.train_files)
    return _assemble(documents, source, size, config.max_sequences_per_document, skipped)


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
    documents = {
        name: tokenize_documents(
            Dataset.from_dict(
                {"text": [document.text for document in items]}, features=Features({"text": Value("large_string")})
            ),
            tokenizer,
            "text",
        )
        for name, items in given.items()
    }
    skipped = sum(len(items) - len(documents[name]) for name, items in given.items())
    return _assemble(documents, source, block_size, max_sequences_per_document, skipped)


def _refuse_conflicts(config: DataConfig) -> None:
    """Raise a `ValueError` for a setting that would be ignored, or if there is no training source."""
    if not config.train_files and not config.dataset_name:
        raise ValueError("There is nothing to train on; give dataset_name or train_files.")
    for name in ("selection", "test"):
        files, split = getattr(config, f"{name}_files"), getattr(config, f"{name}_split")
        if split is not None and not config.dataset_name:
            raise ValueError(f"{name}_split names a split of dataset_name, which is not given; give {name}_files.")
        if split is not None and files:
            raise ValueError(f"Give {name}_files or {name}_split, not both.")


def _read(config: DataConfig, name: str) -> Dataset | None:
    files, split = getattr(config, f"{name}_files"), getattr(config, f"{name}_split")
    if files:
        return read_files(files, config.text_column, f"{name}_files")
    if config.dataset_name and split is not None:
        return read_dataset(config.dataset_name, config.dataset_config, split, config.text_column)
    return None


def _carve(documents: Dataset, shares: dict[str, float], seed: int) -> dict[str, Dataset]:
    """Divide `documents` into the sets that `shares` names, at least one distinct document each, and `train`."""
    if not shares:
        return {}
    digests = _column(documents, "digest")
    distinct = sorted(set(digests.tolist()), key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest())
    if len(distinct) <= len(shares):
        raise ValueError(
            f"Carving {' and '.join(shares)} out of the training source needs at least {len(shares) + 1} distinct "
            f"documents, got {len(distinct)} (a text file is one document); give more documents, or "
            f"{' and '.join(f'{name}_files' for name in shares)}."
        )
    parts: dict[str, Dataset] = {}
    taken = 0
    for name, share in shares.items():
        # Shares are below a half and rounded down, so that training documents always remain.
        count = max(1, int(share * len(distinct)))
        parts[name] = documents.select(np.flatnonzero(np.isin(digests, distinct[taken : taken + count])))
        taken += count
    parts["train"] = documents.select(np.flatnonzero(np.isin(digests, distinct[taken:])))
    return parts


def _assemble(
    documents: dict[str, Dataset], source: str, block_size: int, max_per_document: int | None, skipped: int
) -> DataSplits:
    tokens = int(_column(documents["train"], "length").sum())
    if tokens < block_size:
        raise ValueError(
            f"The training set holds {tokens} tokens, fewer than one sequence of block_size {block_size}; give more "
            "text or a smaller block_size."
        )
    for name in ("selection", "test"):
        if not (_column(documents[name], "length") > 1).any():
            raise ValueError(
                f"The {name} set has no token to predict: none of its documents has text; give other documents."
            )
    sets = {"train": pack_sequences(documents["train"], block_size)}
    for name in ("selection", "test"):
        sets[name] = cut_windows(documents[name], block_size, max_per_document)
    facts = DataFacts(
        source=source,
        block_size=block_size,
        **{name: _set_facts(documents[name], dataset) for name, dataset in sets.items()},
        dropped_tokens=tokens % block_size,
        skipped_documents=skipped,
        shared_documents=_count_shared(documents),
    )
    logger.info("data: %s", facts.to_dict())
    if facts.shared_documents:
        logger.warning(
            "%d selection or test documents are, word for word, in another set too: losses on them flatter a student.",
            facts.shared_documents,
        )
    return DataSplits(sets["train"], sets["selection"], sets["test"], facts)


def _set_facts(documents: Dataset, sequences: Dataset) -> SetFacts:
    rows = sequences.with_format("arrow").iter(batch_size=1024)
    tokens = sum(len(batch["input_ids"].combine_chunks().flatten()) for batch in rows)
    return SetFacts(len(documents), tokens, len(sequences), set_fingerprint(sequences))


def _count_shared(documents: dict[str, Dataset]) -> int:
    digests = {name: _column(dataset, "digest") for name, dataset in documents.items()}
    selection = np.isin(digests["selection"], digests["train"])
    test = np.isin(digests["test"], np.concatenate([digests["train"], digests["selection"]]))
    return int(selection.sum() + test.sum())


def _column(documents: Dataset, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    values: np.ndarray[Any, np.dtype[np.int64]] = np.asarray(documents.with_format("numpy")[name][:], dtype=np.int64)
    return values
