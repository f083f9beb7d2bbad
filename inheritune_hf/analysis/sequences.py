"""Sequences to measure on: windows of one length out of documents, as many documents as possible."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data import split_standard_library, standard_library_documents
from ..data.rows import Layout
from ..data.sources import read_files
from ..students import Reference, load_reference_config

#: The paper measures on 100 sequences of 100 tokens.
SEQUENCES = 100
TOKENS = 100
# Characters of a document that are tokenized: a few windows of each are enough.
_CHARACTERS = 40_000


def paper_tokens(reference: Reference, **kwargs: Any) -> int:
    """
    Return how many tokens a sequence has unless told: 100, as in the paper, or the reference's context if it is less.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`): The reference; only its config is read.
        kwargs: Where it comes from, such as `revision`.
    """
    config = load_reference_config(reference, **kwargs).get_text_config(decoder=True)
    return min(TOKENS, getattr(config, "max_position_embeddings", None) or TOKENS)


def default_sequences(
    tokenizer: PreTrainedTokenizerBase,
    count: int = SEQUENCES,
    tokens: int = TOKENS,
    files: Sequence[str] = (),
    text_column: str = "text",
) -> Tensor:
    """
    Return sequences out of files, or out of the selection documents of the embedded corpus.

    Every document gives its first window before any gives its second, so that as many as possible have a say.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The reference's tokenizer.
        count (`int`, *optional*, defaults to `100`): Sequences.
        tokens (`int`, *optional*, defaults to `100`): Tokens of each.
        files (sequence of `str`, *optional*): Text, JSONL or Parquet files, or globs.
        text_column (`str`, *optional*, defaults to `"text"`): Column or field that holds a document.

    Returns:
        `torch.Tensor` of shape `(sequences, tokens)`: Token ids; fewer sequences if the text holds no more.

    Raises:
        FileNotFoundError: If a pattern matches no file.
        ValueError: If no document is long enough.
    """
    if files:
        rows = read_files(files, Layout(column=text_column), "files")
        texts: Iterable[str] = (text for text in rows[text_column] if text)
    else:
        # Nothing is trained on these: what a reference or a student has learned by heart says little about it.
        _, selection, _ = split_standard_library(standard_library_documents())
        texts = (document.text for document in selection)
    return cut_sequences(texts, tokenizer, count, tokens)


def cut_sequences(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, count: int, tokens: int) -> Tensor:
    """
    Cut texts into windows of exactly `tokens` tokens and return the first `count`, taken from the documents in turn.

    Args:
        texts (iterable of `str`): Documents.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer; no special token is added.
        count (`int`): Most windows to return.
        tokens (`int`): Tokens of each.

    Returns:
        `torch.Tensor` of shape `(sequences, tokens)`: Token ids.

    Raises:
        ValueError: If no document has `tokens` tokens.
    """

    def windows(text: str) -> Iterator[list[int]]:
        ids = tokenizer(text[:_CHARACTERS], add_special_tokens=False, verbose=False)["input_ids"]
        for start in range(0, len(ids) - tokens + 1, tokens):
            yield ids[start : start + tokens]

    by_document = [list(itertools.islice(windows(text), count)) for text in itertools.islice(texts, 10 * count)]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_document))
    chosen = list(itertools.islice((window for window in rounds if window is not None), count))
    if not chosen:
        raise ValueError(
            f"No document has {tokens} tokens, so there is no sequence to measure on; ask for fewer tokens, or give "
            "longer documents."
        )
    return torch.tensor(chosen, dtype=torch.long)


def leading_sequences(rows: Dataset) -> list[list[int]]:
    """
    Return 100 sequences of 100 tokens of packed rows, as the paper measures, or as many and as long as there are.

    Args:
        rows (`datasets.Dataset`): Rows with `input_ids`.

    Raises:
        ValueError: If no row has two tokens.
    """
    lists: list[list[int]] = rows["input_ids"][:]
    tokens = min(TOKENS, max((len(row) for row in lists), default=0))
    if tokens < 2:
        raise ValueError("The set has no sequence of 2 tokens, so no attention can be measured on it.")
    return [row[:tokens] for row in lists if len(row) >= tokens][:SEQUENCES]
