"""From documents to sequences: tokenize, pack for training, cut for evaluation, and put sequences into batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# Labels with this value do not count (torch.nn.functional.cross_entropy, Transformers).
IGNORED_LABEL = -100

# Few documents at a time, since one may be a whole book.
DOCUMENTS_PER_BATCH = 128

_TOKENS = List(Value("int32"))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """
    Refuse a tokenizer that does not fit a model with `vocab_size` embeddings.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer that makes the sequences.
        vocab_size (`int`): Tokens that the reference knows (`config.vocab_size`).

    Raises:
        ValueError: If the tokenizer has more tokens than the reference, or no end-of-text token.
    """
    end_of_text(tokenizer)
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the reference only {vocab_size}; use the reference's own "
            "tokenizer, or give the reference rows for the added tokens with resize_token_embeddings."
        )


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """
    Return the id of the token that ends every document.

    Raises:
        ValueError: If the tokenizer has none.
    """
    token = tokenizer.eos_token_id
    if not isinstance(token, int):
        raise ValueError(
            "The tokenizer has no end-of-text token, which separates documents; set tokenizer.eos_token to one of "
            "its tokens."
        )
    return token


def tokenize_documents(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, text_column: str, workers: int | None = None
) -> Dataset:
    """
    Tokenize each document and end it with the end-of-text token; null and blank documents are left out.

    No other special token is added. The result is cached under the text and the tokenizer's definition, so that a
    second call, also in another process, reads it from disk.

    Args:
        dataset (`datasets.Dataset`): One row per document.
        tokenizer (`PreTrainedTokenizerBase`): A tokenizer with an end-of-text token.
        text_column (`str`): Column that holds the text.
        workers (`int`, *optional*): Processes that tokenize; this process alone if not given.

    Returns:
        `datasets.Dataset`: In the same order, `input_ids`, `length` (tokens) and `digest` (of the text, 64 bits).
    """
    definition = (dataset._fingerprint, _definition(tokenizer), text_column)
    return _map_documents(
        dataset,
        _tokenize_batch,
        Features({"input_ids": _TOKENS, "length": Value("int64"), "digest": Value("int64")}),
        fn_kwargs={"tokenizer": tokenizer, "text_column": text_column, "end": end_of_text(tokenizer)},
        num_proc=workers,
        # A tokenizer changes its own pickle when it is used, which would make datasets tokenize again.
        new_fingerprint=Hasher.hash(("tokenize_documents", *definition)),
        desc="Tokenizing",
    )


def pack_sequences(documents: Dataset, block_size: int) -> Dataset:
    """
    Join tokenized documents and cut them into sequences of exactly `block_size` tokens.

    Only the last partial sequence is dropped.

    Args:
        documents (`datasets.Dataset`): What `tokenize_documents` returned.
        block_size (`int`): Tokens of one sequence.

    Returns:
        `datasets.Dataset`: Rows with `input_ids`, in the order of the documents.
    """
    packed = _map_documents(
        documents.with_format("arrow"), _Packer(block_size), Features({"input_ids": _TOKENS}), desc="Packing"
    )
    return packed.with_format(None)


def cut_windows(documents: Dataset, block_size: int, max_per_document: int | None = None) -> Dataset:
    """
    Cut each tokenized document into windows of at most `block_size` tokens; no window crosses documents.

    A document's last window may be shorter; one of a single token is left out, since it predicts nothing.

    Args:
        documents (`datasets.Dataset`): What `tokenize_documents` returned.
        block_size (`int`): Most tokens of one window.
        max_per_document (`int`, *optional*): Windows to keep of each document, the first ones; all if not given.

    Returns:
        `datasets.Dataset`: Rows with `input_ids` and `document` (0-based), in the order of the documents.
    """
    windows = _map_documents(
        documents.with_format("arrow"),
        _cut_batch,
        Features({"input_ids": _TOKENS, "document": Value("int64")}),
        fn_kwargs={"block_size": block_size, "max_per_document": max_per_document},
        with_indices=True,
        desc="Cutting",
    )
    return windows.with_format(None)


def set_fingerprint(dataset: Dataset) -> str:
    """
    Return the sha256 of what a packed set holds: its tokens, where its rows end, and its documents.

    It does not depend on how the set was made, stored or named, so it recognises the data of an earlier run.

    Args:
        dataset (`datasets.Dataset`): Rows with `input_ids` and, in an evaluation set, `document`.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    tokens, lengths, documents = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for batch in dataset.with_format("arrow").iter(batch_size=1024):
        rows = batch["input_ids"].combine_chunks()
        tokens.update(_flat(rows).astype("<i4").tobytes())
        lengths.update(np.asarray(rows.value_lengths()).astype("<i8").tobytes())
        if "document" in batch.column_names:
            documents.update(batch["document"].to_numpy().astype("<i8").tobytes())
    return hashlib.sha256(tokens.digest() + lengths.digest() + documents.digest()).hexdigest()


@dataclass(frozen=True)
class CausalCollator:
    """
    Put sequences into a batch for a causal language model.

    Rows are padded on the right to the longest one. Labels are the tokens themselves, `-100` on padding, unless the
    rows bring `labels`. There is an `attention_mask` only if something is padded: without one, fast attention kernels
    stay available. Other columns are ignored.

    Args:
        pad_token_id (`int`): Token to pad with; any token will do, since it is neither attended to nor counted.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """
        Return `input_ids`, `labels` and, if something is padded, `attention_mask`, of shape `(batch, tokens)`.

        Raises:
            ValueError: If a row has more or fewer labels than tokens.
        """
        import torch

        tokens = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        labels = [torch.as_tensor(row.get("labels", row["input_ids"]), dtype=torch.long) for row in rows]
        for index, (row, given) in enumerate(zip(tokens, labels, strict=True)):
            if len(row) != len(given):
                raise ValueError(
                    f"Row {index} has {len(row)} tokens but {len(given)} labels; give one label per token."
                )

        def pad(sequences: list[Tensor], value: int) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)

        batch = {"input_ids": pad(tokens, self.pad_token_id), "labels": pad(labels, IGNORED_LABEL)}
        if len({len(row) for row in tokens}) > 1:
            batch["attention_mask"] = pad([torch.ones_like(row) for row in tokens], 0)
        return batch


def _map_documents(documents: Dataset, function: Callable[..., Any], features: Features, **options: Any) -> Dataset:
    if len(documents) == 0:
        # The map of datasets returns a data set without columns here.
        return Dataset.from_dict({name: [] for name in features}, features=features)
    return documents.map(
        function,
        batched=True,
        batch_size=DOCUMENTS_PER_BATCH,
        remove_columns=documents.column_names,
        features=features,
        **options,
    )


class _Packer:
    """Carry the rest of one batch of documents over to the next, so that no token is lost between them."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.rest = np.empty(0, dtype=np.int32)

    def __call__(self, batch: Any) -> dict[str, Any]:
        tokens = np.concatenate([self.rest, _flat(batch["input_ids"].combine_chunks())])
        whole = len(tokens) // self.block_size * self.block_size
        self.rest = tokens[whole:].copy()
        return {"input_ids": tokens[:whole].reshape(-1, self.block_size)}


def _cut_batch(batch: Any, indices: list[int], block_size: int, max_per_document: int | None) -> dict[str, list[Any]]:
    windows: list[Any] = []
    documents: list[int] = []
    column = batch["input_ids"].combine_chunks()
    for document, row in zip(indices, column, strict=True):
        tokens = row.values.to_numpy()
        starts = range(0, len(tokens) - 1, block_size)[:max_per_document]
        windows.extend(tokens[start : start + block_size] for start in starts)
        documents.extend([document] * len(starts))
    return {"input_ids": windows, "document": documents}


def _tokenize_batch(
    batch: Mapping[str, list[str | None]], tokenizer: PreTrainedTokenizerBase, text_column: str, end: int
) -> dict[str, list[Any]]:
    texts = [text for text in batch[text_column] if text and not text.isspace()]
    if not texts:
        return {"input_ids": [], "length": [], "digest": []}
    # verbose: documents longer than the model's context are expected, they are cut later.
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    tokens = [np.array([*ids, end], dtype=np.int32) for ids in encoded["input_ids"]]
    return {"input_ids": tokens, "length": [len(ids) for ids in tokens], "digest": [_digest(text) for text in texts]}


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _definition(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return str(Hasher.hash(tokenizer))
    definition = json.loads(backend.to_str())
    # Set by whatever call came last; the calls here override them.
    definition.pop("truncation", None)
    definition.pop("padding", None)
    text = json.dumps([definition, tokenizer.eos_token_id], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _flat(rows: Any) -> np.ndarray[Any, np.dtype[np.int32]]:
    values: np.ndarray[Any, np.dtype[np.int32]] = rows.flatten().to_numpy()
    return values
