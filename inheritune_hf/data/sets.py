"""What every way of making the three sets has in common: who is judged by, what is carved, what is said of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow  # type: ignore[import-untyped]
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable

from ..configuration import DataConfig
from .encoding import Encoder
from .facts import DataFacts, SetFacts
from .packing import set_fingerprint, tokenize_documents
from .sources import Source, evaluation_source, read_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EVALUATION = ("selection", "test")

# Documents of which something is looked at together: millions of them are to take few bytes each.
_AT_ONCE = 1 << 16

Integers = np.ndarray[Any, np.dtype[np.int64]]


def given_sources(config: DataConfig) -> dict[str, Source]:
    """Return the sources of the evaluation sets that are given; the others are carved."""
    return {name: source for name in EVALUATION if (source := evaluation_source(config, name)) is not None}


def tokenize_source(config: DataConfig, source: Source, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Dataset:
    """Read and tokenize a whole source."""
    encoder = encoder_of(config, source, tokenizer, vocab_size)
    return tokenize_documents(read_source(source), encoder, config.preprocessing_workers)


def encoder_of(config: DataConfig, source: Source, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Encoder:
    """Return how the rows of a source become tokens."""
    boundaries = config.document_boundaries
    return Encoder(tokenizer, source.layout, config.chat_loss, vocab_size, boundaries, source.label)


def missing_shares(config: DataConfig, given: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of the documents to carve for each evaluation set that is not given."""
    return {name: getattr(config, f"{name}_fraction") for name in EVALUATION if name not in given}


def choose_carved(digests: Integers, shares: Mapping[str, float], seed: int) -> dict[str, Integers]:
    """
    Choose the distinct documents of each carved set by a hash, at least one each.

    Raises:
        ValueError: If there are too few distinct documents.
    """
    ordered = np.sort(digests)  # np.unique takes several times as much memory
    distinct = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]]
    if shares and len(distinct) <= len(shares):
        raise ValueError(
            f"Carving {' and '.join(shares)} out of the training source needs at least {len(shares) + 1} distinct "
            f"documents, got {len(distinct)} (a text file is one document); give more documents, or "
            f"{' and '.join(f'{name}_files' for name in shares)}."
        )
    # Shares are below a half and rounded down, so that training documents always remain.
    counts = {name: max(1, int(share * len(distinct))) for name, share in shares.items()}
    first = _first_by_hash(distinct, sum(counts.values()), seed)
    chosen, taken = {}, 0
    for name, count in counts.items():
        chosen[name] = first[taken : taken + count]
        taken += count
    return chosen


def _first_by_hash(digests: Integers, count: int, seed: int) -> Integers:
    """Return the `count` digests whose sha256, with the seed, comes first, in that order."""
    if count == 0:
        return digests[:0]

    def full(digest: int) -> bytes:
        return hashlib.sha256(f"{seed}:{digest}".encode()).digest()

    # 8 bytes of each hash tell most of them apart, and take a tenth of the memory of the whole as Python has it.
    parts = np.split(digests, range(_AT_ONCE, len(digests), _AT_ONCE))
    starts = np.concatenate(
        [np.frombuffer(b"".join(full(digest)[:8] for digest in part.tolist()), dtype=">u8") for part in parts]
    )
    last = np.partition(starts, count - 1)[count - 1]
    likely = digests[starts <= last].tolist()
    first: Integers = np.array(sorted(likely, key=full)[:count], dtype=np.int64)
    return first


def require_tokens(sets: Mapping[str, Dataset]) -> None:
    """Raise a `ValueError` if an evaluation set has no token to predict."""
    for name in EVALUATION:
        if not (column(sets[name], "length") > 1).any():
            raise ValueError(
                f"The {name} set has no token to predict: none of its documents has text; give other documents."
            )


def announce(facts: DataFacts) -> None:
    """Log what the sets hold, and warn if documents are in two of them."""
    logger.info("data: %s", facts.to_dict())
    if facts.shared_documents:
        logger.warning(
            "%d selection or test documents are, word for word, in another set too: losses on them flatter a student%s",
            facts.shared_documents,
            "; the others were left out."
            if facts.removed_documents
            else " (duplicates 'remove' leaves the others out).",
        )


def set_facts(documents: int, sequences: Dataset) -> SetFacts:
    """Return what a set of sequences holds."""
    rows = sequences.with_format("arrow").iter(batch_size=1024)
    tokens = sum(len(batch["input_ids"].combine_chunks().flatten()) for batch in rows)
    return SetFacts(documents, tokens, len(sequences), set_fingerprint(sequences))


def joined(parts: Sequence[Dataset]) -> Dataset:
    """Return the rows of several data sets as one."""
    full = [part for part in parts if len(part)]
    return concatenate_datasets(full) if len(full) > 1 else (full or list(parts))[0]


def column(documents: Dataset, name: str) -> Integers:
    """Return a column of whole numbers."""
    # By its table: of chosen rows datasets would make a table of one row each, a hundred times the memory and the time.
    values: Integers = np.asarray(documents.data.column(name).to_numpy(), dtype=np.int64)
    return values if documents._indices is None else values[documents._indices.column(0).to_numpy()]


def among(digests: Integers, few: Integers) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which digests are among a few others, in a byte for each."""
    found = np.zeros(len(digests), dtype=bool)
    if len(few):
        few = np.sort(few)
        for start in range(0, len(digests), _AT_ONCE):
            part = digests[start : start + _AT_ONCE]
            places = np.minimum(np.searchsorted(few, part), len(few) - 1)
            found[start : start + _AT_ONCE] = few[places] == part
    return found


def where(dataset: Dataset, keep: np.ndarray[Any, np.dtype[np.bool_]]) -> Dataset:
    """Return the rows that are to be kept."""
    if keep.all():
        return dataset
    if dataset._indices is not None or not keep.any():
        return dataset.select(np.flatnonzero(keep))
    # As select does it, which makes a Python integer of each row.
    rows = pyarrow.array(np.flatnonzero(keep).view(np.uint64))
    fingerprint = Hasher.hash((dataset._fingerprint, hashlib.sha256(keep.tobytes()).hexdigest()))
    return Dataset(
        dataset.data,
        info=dataset.info.copy(),
        split=dataset.split,
        indices_table=InMemoryTable(pyarrow.table({"indices": rows})),
        fingerprint=fingerprint,
    )
