"""
Read token files (.bin) of nanoGPT and llm.c by memory map.

No copy is made: 47 million tokens are read per second of processor time, against 27 million by `datasets` from its own
format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint

from .duplicates import Integers, document_groups, read_column
from .sources import TOKENS
from .tokenization import document_features, end_of_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# llm.c, dev/data/data_common.py: 256 int32 numbers, the first three of them magic number, version, tokens.
HEADER_BYTES = 1024
LLM_C = {20240520: (1, "uint16"), 20240801: (7, "uint32")}

_TOKENS_PER_READ = 1 << 24
# Fewer tokens may look like uint32 by chance.
_MIN_TOKENS_TO_DECIDE = 64


@dataclass(frozen=True)
class TokenFile:
    """A token file: its path, type of number (`uint16` or `uint32`), bytes before the first token, and tokens."""

    path: str
    dtype: str
    offset: int
    count: int

    def open(self) -> np.ndarray[Any, Any]:
        """Return the tokens, mapped into memory."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=(self.count,))


def open_token_file(path: Path, dtype: str) -> TokenFile:
    """Recognise a token file, llm.c's by its header, nanoGPT's by having none; a `ValueError` if its size is wrong."""
    size = path.stat().st_size
    if size >= HEADER_BYTES:
        magic, version, count = (int(item) for item in np.fromfile(path, dtype="<i4", count=3))
        if magic in LLM_C:
            expected, dtype = LLM_C[magic]
            width = np.dtype(dtype).itemsize
            if version != expected:
                raise ValueError(f"{path}: llm.c's header has version {version}, {expected} is known; write it again.")
            if size != HEADER_BYTES + count * width:
                raise ValueError(
                    f"{path} is cut off: its header says {count} tokens ({HEADER_BYTES + count * width} bytes), it has "
                    f"{size} bytes; fetch or write it again."
                )
            if count == 0:
                raise ValueError(f"{path} holds no token: llm.c's header says 0; leave it out.")
            return TokenFile(str(path.absolute()), dtype, HEADER_BYTES, count)
    width = np.dtype(dtype).itemsize
    if size % width:
        raise ValueError(f"{path} has {size} bytes, no whole number of {dtype} tokens; set token_dtype, or repair it.")
    return TokenFile(str(path.absolute()), dtype, 0, size // width)


def read_documents(file: TokenFile, vocab_size: int, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return the documents of a token file as if tokenized, without a copy, and where in the file each starts."""
    ends = check_tokens(file, vocab_size, tokenizer)
    places = np.concatenate([[0], ends])
    columns = {
        TOKENS: pa.LargeListArray.from_arrays(pa.array(places), pa.array(file.open())),
        "length": np.diff(places),
        "bytes": np.zeros(len(ends), dtype=np.int64),
        "start": places[:-1],
    }
    documents = Dataset(pa.table(columns), fingerprint=generate_random_fingerprint())
    return documents.add_column("digest", token_digests(documents))


def copy_documents(documents: Dataset) -> Dataset:
    """Return documents as `tokenize_documents` does: those of a token file are copied out of it."""
    if "start" not in documents.column_names:
        return documents
    return documents.remove_columns("start").cast(document_features(labelled=False))


def token_digests(documents: Dataset) -> Integers:
    """Return 64 bits of the sha256 of each document's tokens (as int32, so that the file's type does not matter)."""
    found = [
        int.from_bytes(hashlib.sha256(document.astype("<i4").tobytes()).digest()[:8], "big", signed=True)
        for tokens, lengths in document_groups(documents)
        for document in np.split(tokens, np.cumsum(lengths)[:-1])
    ]
    return np.array(found, dtype=np.int64)


def check_tokens(file: TokenFile, vocab_size: int, tokenizer: PreTrainedTokenizerBase) -> Integers:
    """
    Return where each document ends, after reading every token once.

    A `ValueError` shows tokens that are out of range or halves of tokens, and a file without end-of-text tokens.
    """
    tokens, end, ends = file.open(), end_of_text(tokenizer), []
    for start in range(0, file.count, _TOKENS_PER_READ):
        part = np.asarray(tokens[start : start + _TOKENS_PER_READ])
        if start == 0 and _is_uint32(part, vocab_size):
            raise ValueError(
                f"{file.path}: read as uint16, every other token is a part of the one before, as in "
                f"{part[:8].tolist()}: the file holds uint32; set token_dtype: uint32."
            )
        if part.max() >= vocab_size:
            place = int(np.argmax(part >= vocab_size))
            raise ValueError(
                f"{file.path}: token {int(part[place])} at place {start + place} is out of the reference's range (0 to "
                f"{vocab_size - 1}); tokenize with the reference's own tokenizer, or set token_dtype "
                f"(read as {file.dtype})."
            )
        ends.append(np.flatnonzero(part == end) + start + 1)
    places: Integers = np.concatenate([*ends, np.array([], dtype=np.int64)])
    if len(places) == 0:
        raise ValueError(
            f"{file.path}: the reference's end-of-text token {tokenizer.eos_token!r} ({end}) never occurs; the file "
            f"begins {tokenizer.decode(tokens[:16].tolist())!r}. Tokenize with the reference's own tokenizer."
        )
    return places if places[-1] == file.count else np.append(places, file.count)


def _is_uint32(tokens: np.ndarray[Any, Any], vocab_size: int) -> bool:
    """Return whether tokens read as uint16 are uint32: then every other one is the high half of a token."""
    if tokens.dtype != np.uint16 or len(tokens) % 2 or len(tokens) < _MIN_TOKENS_TO_DECIDE:
        return False
    most = (vocab_size - 1) >> 16
    return bool(tokens[1::2].max() <= most < tokens[::2].max())


class TokenSequences:
    """Sequences of exactly `block_size` tokens, as a map-style data set: the documents of token files, joined."""

    def __init__(self, files: Sequence[TokenFile], documents: Sequence[Dataset], block_size: int) -> None:
        self.block_size, self.files = block_size, list(files)
        run_files, run_starts, run_lengths = [], [], []
        for number, own in enumerate(documents):
            starts = read_column(own, "start")
            ends = starts + read_column(own, "length")
            # Documents that follow one another in the file are one run.
            breaks = starts[1:] != ends[:-1]
            first = np.concatenate([[True], breaks])[: len(starts)]
            last = np.concatenate([breaks, [True]])[: len(starts)]
            run_files.append(np.full(int(first.sum()), number))
            run_starts.append(starts[first])
            run_lengths.append(ends[last] - starts[first])
        self.run_files, self.run_starts = np.concatenate(run_files), np.concatenate(run_starts)
        self.run_ends = np.concatenate([[0], np.cumsum(np.concatenate(run_lengths))])
        self._open: list[np.ndarray[Any, Any]] | None = None

    def __len__(self) -> int:
        return int(self.run_ends[-1]) // self.block_size

    def __getstate__(self) -> dict[str, Any]:
        # Workers map the files themselves.
        return {**self.__dict__, "_open": None}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the `input_ids` of one sequence."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} sequences, got {index}.")
        if self._open is None:
            self._open = [file.open() for file in self.files]
        place = index % len(self) * self.block_size
        run = int(np.searchsorted(self.run_ends, place, side="right")) - 1
        parts, missing = [], self.block_size
        while missing:
            start = int(self.run_starts[run] + place - self.run_ends[run])
            length = min(missing, int(self.run_ends[run + 1]) - place)
            parts.append(self._open[self.run_files[run]][start : start + length])
            place, missing, run = place + length, missing - length, run + 1
        return {TOKENS: np.concatenate(parts).astype(np.int64)}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several sequences."""
        return [self[int(index)] for index in indices]
