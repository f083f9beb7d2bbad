"""Sequences to measure on: their default, their forms, and what a model can read."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.embedded import embedded_file
from ..data.packing import spread
from ..data.sources import Layout, Source, read_source
from ..data.stream import PackedStream
from ..measures import SEQUENCES, TOKENS
from ..students import Reference, open_reference

# A document is tokenized in pieces of so many characters for each token of a sequence.
_CHARACTERS = 40
# Rows of a set among which sequences are chosen.
_DRAWN = 1000


def paper_tokens(reference: Reference, **kwargs: Any) -> int:
    """Return the tokens of a sequence by default: 100, as in the paper, or the reference's context if it is less."""
    return min(TOKENS, open_reference(reference, **kwargs).context_length or TOKENS)


def default_sequences(
    tokenizer: PreTrainedTokenizerBase,
    count: int = SEQUENCES,
    tokens: int = TOKENS,
    files: Sequence[str] = (),
) -> Tensor:
    """
    Return sequences from files, or from the selection passages of the embedded novels.

    They come from as many documents as possible, and are spread evenly over each.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The reference's tokenizer.
        count (`int`, *optional*, defaults to `100`): Sequences.
        tokens (`int`, *optional*, defaults to `100`): Tokens of each.
        files (sequence of `str`, *optional*): Text, or JSONL or Parquet files with a column `text`, or globs.

    Returns:
        `torch.Tensor` of shape `(sequences, tokens)`: Token ids; fewer sequences if the text holds no more.

    Raises:
        FileNotFoundError: If a pattern matches no file.
        ValueError: If no document is long enough.
    """
    # Nothing is trained on these passages: attention to memorised text says little about a model.
    source = Source("files", Layout(), tuple(files) or (embedded_file("selection"),))
    return cut_sequences(read_source(source)["text"], tokenizer, count, tokens)


def cut_sequences(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, count: int, tokens: int) -> Tensor:
    """
    Return at most `count` windows of exactly `tokens` tokens, of shape `(sequences, tokens)`.

    Every document gives one window before any gives a second; those of a document are spread evenly over it. A
    `ValueError` if no document has `tokens` tokens.
    """
    documents = [text for text in spread(texts, 10 * count) if text]
    pieces, size = -(-4 * count // max(1, len(documents))), _CHARACTERS * tokens

    def windows(text: str) -> list[list[int]]:
        found = []
        for place in spread(range(0, len(text), size), pieces):
            ids = tokenizer(text[place : place + size], add_special_tokens=False, verbose=False)["input_ids"]
            found += [ids[start : start + tokens] for start in range(0, len(ids) - tokens + 1, tokens)]
        return found

    by_document = [found for text in documents if (found := windows(text))]
    if not by_document:
        raise ValueError(
            f"No document has {tokens} tokens, so there is no sequence to measure on; ask for fewer tokens, or give "
            "longer documents."
        )
    by_document = list(spread(by_document, count))
    lengths = [len(found) for found in by_document]
    most = 1
    while most < max(lengths) and sum(min(most, length) for length in lengths) < count:
        most += 1
    turns = itertools.zip_longest(*(spread(found, most) for found in by_document))
    chosen = [window for turn in turns for window in turn if window is not None]
    return torch.tensor(chosen[:count], dtype=torch.long)


def sample_sequences(rows: Any) -> list[list[int]]:
    """
    Return 100 sequences of 100 tokens out of packed rows, spread evenly, or as many and as long as there are.

    Of a stream they come from its first 1,000 rows.

    Args:
        rows (`datasets.Dataset`, `torch.utils.data.Dataset` or `PackedStream`): Rows with `input_ids`.

    Raises:
        ValueError: If no row has two tokens.
    """
    if isinstance(rows, PackedStream):
        drawn: Iterable[Any] = itertools.islice(rows.begin(), _DRAWN)
    else:
        drawn = (rows[place] for place in spread(range(len(rows)), _DRAWN))
    lists = [torch.as_tensor(row["input_ids"])[:TOKENS].tolist() for row in drawn]
    lengths = np.sort([len(row) for row in lists])[::-1]
    if len(lengths) == 0 or lengths[0] < 2:
        raise ValueError("The set has no sequence of 2 tokens, so no attention can be measured on it.")
    # Of one length, that with which most tokens are left: the longest alone may be a single row's.
    tokens = int(lengths[np.argmax(lengths * np.minimum(np.arange(1, len(lengths) + 1), SEQUENCES))])
    return list(spread([row[:tokens] for row in lists if len(row) >= tokens], SEQUENCES))


def as_tokens(sequences: Any) -> Tensor:
    """
    Return sequences as token ids of shape `(sequences, tokens)` on the CPU.

    A `ValueError` if there are none, they differ in length, or have fewer than two tokens.
    """
    if not isinstance(sequences, Tensor):
        columns = getattr(sequences, "column_names", None) or ()
        rows = sequences["input_ids"] if "input_ids" in columns else sequences
        lists = [list(row["input_ids"] if isinstance(row, dict) else row) for row in rows]
        lengths = sorted({len(row) for row in lists})
        if len(lengths) > 1:
            raise ValueError(
                f"Sequences must be of one length, since ranks grow with it; got lengths from {lengths[0]} to "
                f"{lengths[-1]} tokens. Cut them alike, or leave out the short ones."
            )
        sequences = torch.tensor(lists, dtype=torch.long)
    tokens: Tensor = sequences.detach().cpu().long()
    if tokens.ndim != 2 or len(tokens) == 0 or tokens.shape[1] < 2:
        raise ValueError(
            f"Sequences must be of shape (sequences, tokens) with at least one of 2 tokens, got {tuple(tokens.shape)}."
        )
    return tokens


def check_tokens(model: PreTrainedModel, tokens: Tensor) -> None:
    """Raise a `ValueError` if sequences are longer than the model's context, or have tokens that it does not know."""
    config = model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and tokens.shape[1] > limit:
        raise ValueError(f"Sequences of {tokens.shape[1]} tokens are longer than the model's context of {limit}.")
    if int(tokens.max()) >= config.vocab_size or int(tokens.min()) < 0:
        raise ValueError(
            f"Sequences have tokens from {int(tokens.min())} to {int(tokens.max())}, the model knows 0 to "
            f"{config.vocab_size - 1}; use the model's own tokenizer."
        )


def tokens_fingerprint(tokens: Tensor) -> str:
    """Return a sha256 of the sequences."""
    return hashlib.sha256(tokens.numpy().astype("<i8").tobytes() + str(tokens.shape).encode()).hexdigest()
