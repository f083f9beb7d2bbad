"""Tokenize documents (rows of text, tokens or chats), and check that the tokenizer fits them and the reference."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import multiprocess  # type: ignore[import-untyped]  # with it datasets makes its processes
import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher

from .sources import BAD_ROW, IGNORED_LABEL, LABELS, TOKENS, Layout, too_long, wrong_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Tokens = np.ndarray[Any, np.dtype[np.int32]]

logger = logging.getLogger(__name__)

# Share of unknown tokens above which the tokenizer was made for other text.
MOST_UNKNOWN = 0.01

_CHARACTERS_PER_CALL = 2_000_000
# A batch has few documents if they are long (one may be a whole book), and many if they are short, since each batch
# becomes a part of the file that is written, which takes some kilobytes of memory while it is open.
_BYTES_PER_BATCH = 16_000_000
_FEWEST_PER_BATCH, MOST_PER_BATCH = 16, 1024
# What is lost at most by an interruption.
DOCUMENTS_PER_PART = 20_000

TOKEN_LIST = List(Value("int32"))

# Tokenizers that were shared with workers, by their definition.
_SHARED: weakref.WeakValueDictionary[str, PreTrainedTokenizerBase] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Encoded:
    """One document as tokens, the last one the end-of-text token."""

    tokens: Tokens
    labels: Tokens | None  # -100 where a token does not count; None if all do
    digest: int  # 64 bits of the sha256 of what was read
    size: int  # bytes of the text (0 for rows of tokens)


@dataclass(frozen=True)
class Encoder:
    """Turn rows into tokens."""

    tokenizer: PreTrainedTokenizerBase
    layout: Layout = field(default_factory=Layout)
    chat_loss: str = "all"
    vocab_size: int | None = None  # tokens that the reference knows; None: no check
    boundaries: bool = False  # whether end-of-text tokens will separate documents
    source: str = "the data"  # its name, for messages

    @property
    def labelled(self) -> bool:
        """Whether its documents may have tokens that do not count."""
        return self.layout.rows == "tokens" or (self.layout.rows == "messages" and self.chat_loss != "all")

    @property
    def identity(self) -> tuple[Any, ...]:
        """What its result depends on, beside the rows."""
        layout = (self.layout.rows, self.layout.column, self.chat_loss)
        return (definition(self.tokenizer), *layout, self.vocab_size, self.boundaries)

    def share(self) -> None:
        """Let workers that are forked from now on use this tokenizer: with a copy each, two were a fifth slower."""
        _SHARED[definition(self.tokenizer)] = self.tokenizer

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (definition(self.tokenizer), self.__dict__)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> list[Encoded]:
        """Return the documents of a batch without null, blank and bad rows; a `ValueError` shows one that is wrong."""
        rows = _rows(batch, self.layout)
        if not rows:
            return []
        end = end_of_text(self.tokenizer)
        if self.layout.rows == "tokens":
            found = [_from_tokens(row, end) for row in rows]
        elif self.layout.rows == "messages" and self.chat_loss != "all":
            found = [_from_chat(row, self.tokenizer, end) for row in rows]
        else:
            texts = [row if self.layout.rows == "text" else _render_chat(row, self.tokenizer) for row in rows]
            found = _from_texts(rows, texts, self.tokenizer, end)
        for row, item in zip(rows, found, strict=True):
            _require_range(item.tokens, self.vocab_size, row)
            if item.labels is not None and item.labels is not item.tokens:
                counted = np.where(item.labels == IGNORED_LABEL, np.int32(0), item.labels)
                _require_range(counted, self.vocab_size, row, "Label")
        return found


def _restore(shared: str, values: dict[str, Any]) -> Encoder:
    """Return an unpickled encoder, with the tokenizer that is shared in this process, if there is one."""
    return Encoder(**{**values, "tokenizer": _SHARED.get(shared, values["tokenizer"])})


def tokenize_documents(
    dataset: Dataset,
    encoder: Encoder,
    workers: int | None = None,
    labelled: bool | None = None,
    progress: Callable[[int], None] | None = None,
    cache_dir: Path | None = None,
) -> Dataset:
    """
    Tokenize each document and end it with the end-of-text token; null, blank and bad ones are left out.

    No other special token is added. The result is cached under the rows and the encoder's definition, part by part, so
    that a second call, also in another process, reads it from disk, and an interrupted one resumes. `cache_dir` is
    where, beside what they are made from if not given; `progress` is called with the number of finished documents.

    Returns `input_ids`, `length` (tokens), `digest` (of the text, 64 bits), `bytes` (of the text), and `labels` if they
    are asked for by `labelled`, or, if that is not given, there may be some.
    """
    labelled = encoder.labelled if labelled is None else labelled
    features = document_features(labelled)
    if len(dataset) == 0:
        return _empty(features)
    if workers:
        encoder.share()
    parts = []
    for start in range(0, len(dataset), DOCUMENTS_PER_PART):
        stop = min(start + DOCUMENTS_PER_PART, len(dataset))
        # By a fingerprint of our own: a tokenizer changes its pickle when used, and datasets would tokenize again.
        fingerprint = Hasher.hash(
            ("tokenize_documents", dataset._fingerprint, start, stop, labelled, *encoder.identity)
        )
        parts.append(
            map_documents(
                dataset if stop - start == len(dataset) else dataset.select(range(start, stop)),
                _tokenize_batch,
                features,
                fn_kwargs={"encoder": encoder, "labelled": labelled},
                with_indices=True,
                num_proc=workers,
                new_fingerprint=fingerprint,
                cache_file_name=None if cache_dir is None else str(cache_dir / f"cache-{fingerprint}.arrow"),
                desc=f"Tokenizing documents {start:,} to {stop:,} of {len(dataset):,}",
            )
        )
        if progress is not None:
            progress(stop)
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def document_features(labelled: bool) -> Features:
    """Return the columns of tokenized documents."""
    columns = {TOKENS: TOKEN_LIST, **({LABELS: TOKEN_LIST} if labelled else {})}
    return Features({**columns, "length": Value("int64"), "digest": Value("int64"), "bytes": Value("int64")})


def map_documents(documents: Dataset, function: Callable[..., Any], features: Features, **options: Any) -> Dataset:
    """Map batches of documents, as many together as their mean size allows; a dead worker is a `ChildProcessError`."""
    if len(documents) == 0:
        return _empty(features)
    try:
        return documents.map(
            function,
            batched=True,
            batch_size=documents_per_batch(documents),
            remove_columns=documents.column_names,
            features=features,
            **options,
        )
    except (RuntimeError, EOFError, multiprocess.TimeoutError) as error:
        if not options.get("num_proc"):
            raise
        raise ChildProcessError(
            f"A process that tokenized has died ({error}): it was killed, or ran out of memory. Give fewer "
            "preprocessing_workers, or a smaller max_document_bytes; what was finished is not done again."
        ) from error


def _empty(features: Features) -> Dataset:
    # The map of datasets returns a data set without columns here.
    return Dataset.from_dict({name: [] for name in features}, features=features)


def documents_per_batch(documents: Dataset) -> int:
    """Return how many documents are processed together, by their mean size."""
    wanted = _BYTES_PER_BATCH * documents.data.num_rows // max(1, documents.data.nbytes)
    return int(min(max(wanted, _FEWEST_PER_BATCH), MOST_PER_BATCH))


def _tokenize_batch(
    batch: Mapping[str, list[Any]], indices: list[int], encoder: Encoder, labelled: bool
) -> dict[str, list[Any]]:
    found = encoder(batch)
    if encoder.boundaries or indices[0] == 0:
        check_fit(batch, found, encoder)
    columns = {TOKENS: [item.tokens for item in found]}
    if labelled:
        columns[LABELS] = [item.tokens if item.labels is None else item.labels for item in found]
    return {
        **columns,
        "length": [len(item.tokens) for item in found],
        "digest": [item.digest for item in found],
        "bytes": [item.size for item in found],
    }


def mark_bad_rows(batch: Mapping[str, Sequence[Any]], layout: Layout) -> Mapping[str, Sequence[Any]]:
    """Return rows of a stream with bad ones marked, as files mark them; raise a too long text if not skipped."""
    if BAD_ROW in batch:
        return batch
    if layout.rows == "tokens" and layout.skip:
        rows = zip(batch[TOKENS], batch.get(LABELS) or [None] * len(batch[TOKENS]), strict=True)
        return {
            **batch,
            BAD_ROW: [f"The row {_excerpt(row)}: {why}" if (why := wrong_tokens(*row)) else None for row in rows],
        }
    if layout.rows != "text":
        return batch
    bad: list[str | None] = []
    for row in batch[layout.column]:
        # A character takes at most four bytes.
        long = row is not None and 4 * len(row) > layout.most_bytes and len(row.encode()) > layout.most_bytes
        found = too_long(f"The document {_excerpt(row)}", layout) if long else None
        if found is not None and not layout.skip:
            raise found
        bad.append(None if found is None else str(found))
    return {**batch, BAD_ROW: bad}


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, end: int | Sequence[int] | None = None
) -> None:
    """
    Refuse a tokenizer that does not fit a model with `vocab_size` embeddings.

    Warns if the tokenizer ends documents with another token than those of the reference (`end`, its `eos_token_id`).

    Raises:
        ValueError: If the tokenizer has more tokens than the reference, or no end-of-text token.
    """
    own = end_of_text(tokenizer)
    known = () if end is None else (end,) if isinstance(end, int) else tuple(end)
    if known and own not in known:
        _warn_of_end(_shown(tokenizer, own), ", ".join(_shown(tokenizer, token) for token in known))
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the reference only {vocab_size}; use the reference's own "
            "tokenizer, or give the reference rows for the added tokens with resize_token_embeddings."
        )


def _shown(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return f"{tokenizer.convert_ids_to_tokens(token) if 0 <= token < len(tokenizer) else None!r} ({token})"


@functools.cache  # once for each pair, however often a run, its trainer and its data look
def _warn_of_end(own: str, known: str) -> None:
    logger.warning(
        "The tokenizer ends documents with %s, the reference's config names %s (eos_token_id): the reference may not "
        "know the end of a document by it, and a student will. If that is not meant, set tokenizer.eos_token.",
        own,
        known,
    )


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that ends every document; a `ValueError` if the tokenizer has none."""
    token = tokenizer.eos_token_id
    if not isinstance(token, int):
        raise ValueError(
            "The tokenizer has no end-of-text token, which separates documents; set tokenizer.eos_token to one of "
            "its tokens."
        )
    return token


def check_fit(batch: Mapping[str, Sequence[Any]], found: Sequence[Encoded], encoder: Encoder) -> None:
    """
    Refuse documents (a batch, and what `encoder` made of it) that the tokenizer was not made for: more than one token
    in a hundred is unknown, or an end-of-text token is within a document and separates documents.
    """
    rows, source = _rows(batch, encoder.layout), encoder.source
    tokenizer = encoder.tokenizer
    end, unknown = end_of_text(tokenizer), tokenizer.unk_token_id
    total = sum(len(item.tokens) for item in found)
    if isinstance(unknown, int) and unknown != end:
        counts = [int((item.tokens == unknown).sum()) for item in found]
        if sum(counts) > MOST_UNKNOWN * total:
            row = rows[int(np.argmax(counts))]
            raise ValueError(
                f"{source}: the tokenizer does not know {sum(counts)} of {total} tokens "
                f"({tokenizer.unk_token!r}), as in {_excerpt(row)}; use a tokenizer made for this text."
            )
    for row, item in zip(rows, found, strict=True):
        if not (item.tokens[:-1] == end).any():
            continue
        if encoder.boundaries:
            raise ValueError(
                f"{source}: the end-of-text token {tokenizer.eos_token!r} is within a document too, as in "
                f"{_excerpt(row)}, so it cannot separate documents; leave document_boundaries out, or remove it "
                "out of the text."
            )
        if encoder.layout.rows == "text":
            logger.warning(
                "%s: the end-of-text token %r is within a document, as in %s: a model will take it for its end.",
                source,
                tokenizer.eos_token,
                _excerpt(row, str(tokenizer.eos_token)),
            )
            return


def definition(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of what a tokenizer does, whatever its last call was."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return str(Hasher.hash(tokenizer))
    # Before the added tokens are truncation and padding, set by whatever call came last; the calls here override them.
    text = backend.to_str()
    text = text[text.index('"added_tokens"') :] + json.dumps([tokenizer.eos_token_id, tokenizer.chat_template])
    return hashlib.sha256(text.encode()).hexdigest()


def row_digest(row: Mapping[str, Any], layout: Layout) -> int | None:
    """Return the digest of one row without tokenizing it; None if it is null, blank or bad."""
    rows = _rows(mark_bad_rows({name: [value] for name, value in row.items()}, layout), layout)
    return _digest(rows[0]) if rows else None


def seeded_hash(digest: int, seed: int) -> bytes:
    """Return a hash of a document by which held-out sets are chosen, whatever its place in the source."""
    return hashlib.sha256(f"{seed}:{digest}".encode()).digest()


def _rows(batch: Mapping[str, Sequence[Any]], layout: Layout) -> list[Any]:
    """Return the content of rows that have some: texts, lists of messages, or pairs of tokens and labels."""
    column, bad, labels = batch[layout.content_column], batch.get(BAD_ROW), batch.get(LABELS)
    present = [
        index
        for index, row in enumerate(column)
        if row is not None
        and len(row) > 0
        and (bad is None or bad[index] is None)
        and not (layout.rows == "text" and row.isspace())
    ]
    if layout.rows == "tokens":
        return [(column[index], None if labels is None else labels[index]) for index in present]
    if layout.rows == "messages":
        chats = [json.loads(row) if isinstance(row := column[index], str) else row for index in present]
        return [chat for chat in chats if chat]
    return [column[index] for index in present]


def _from_texts(rows: Sequence[Any], texts: list[str], tokenizer: PreTrainedTokenizerBase, end: int) -> list[Encoded]:
    ids = _token_ids(texts, tokenizer)
    found = []
    for row, text, document in zip(rows, texts, ids, strict=True):
        ended = len(document) > 0 and document[-1] == end  # as chat templates do
        tokens = np.full(len(document) + (not ended), end, dtype=np.int32)
        tokens[: len(document)] = document
        found.append(Encoded(tokens, None, _digest(row), len(text.encode())))
    return found


def _token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Sequence[Any]:
    """Tokenize texts without special tokens; by the backend, which keeps no offsets, if the result is the same."""

    def whole(items: list[str]) -> Any:
        # verbose: documents longer than the model's context are expected, they are cut later.
        return tokenizer(items, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]

    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return cast(Sequence[Any], whole(texts))
    start = [texts[0][:500]]
    expected = whole(start)  # also takes back what the last call made of the backend (truncation, padding)
    if [item.ids for item in backend.encode_batch_fast(start, add_special_tokens=False)] != expected:
        return cast(Sequence[Any], whole(texts))
    # Some at a time: a tokenizer notes something of each character. As arrays: Python integers take nine times as much.
    sizes = np.cumsum([len(text) for text in texts]) // _CHARACTERS_PER_CALL
    return [
        np.array(item.ids, dtype=np.int32)
        for places in np.split(np.arange(len(texts)), np.flatnonzero(np.diff(sizes)) + 1)
        for item in backend.encode_batch_fast([texts[place] for place in places], add_special_tokens=False)
    ]


def _from_tokens(row: tuple[Sequence[int], Sequence[int] | None], end: int) -> Encoded:
    if reason := wrong_tokens(*row):
        raise ValueError(f"The row {_excerpt(row)}: {reason}; repair it.")
    tokens = np.asarray(row[0], dtype=np.int32)
    labels = tokens if row[1] is None else np.asarray(row[1], dtype=np.int32)
    if tokens[-1] != end:
        tokens, labels = np.append(tokens, np.int32(end)), np.append(labels, np.int32(end))
    return Encoded(tokens, labels, _digest(row), 0)


def _render_chat(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> Any:
    if not tokenizer.chat_template:
        raise ValueError(
            f"The tokenizer has no chat template, so the chat {_excerpt(messages)} cannot be written; set "
            "tokenizer.chat_template, or give rows of text."
        )
    try:
        return tokenizer.apply_chat_template(messages, **({"tokenize": False} | options))
    except Exception as error:
        raise ValueError(
            f"The tokenizer's chat template refuses the chat {_excerpt(messages)}: {error}; repair the row."
        ) from error


def _from_chat(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, end: int) -> Encoded:
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    written = _render_chat(messages, tokenizer, **options)
    tokens = np.asarray(written["input_ids"], dtype=np.int32)
    counted = np.asarray(written["assistant_masks"], dtype=bool)
    if any(message["role"] == "assistant" for message in messages) and not counted.any():
        raise ValueError(
            "The tokenizer's chat template does not mark the assistant's tokens ({% generation %}), so chat_loss "
            "'assistant' would count nothing; set chat_loss to 'all', or use a template that marks it."
        )
    labels = np.where(counted, tokens, np.int32(IGNORED_LABEL))
    if len(tokens) == 0 or tokens[-1] != end:
        tokens, labels = np.append(tokens, np.int32(end)), np.append(labels, np.int32(IGNORED_LABEL))
    return Encoded(tokens, labels, _digest(messages), 0)


def _require_range(tokens: Tokens, vocab_size: int | None, row: Any, what: str = "Token") -> None:
    if vocab_size is not None and len(tokens) and not (tokens.min() >= 0 and tokens.max() < vocab_size):
        token = int(tokens.max()) if tokens.max() >= vocab_size else int(tokens.min())
        raise ValueError(
            f"{what} {token} at place {int(np.flatnonzero(tokens == token)[0])} of the document {_excerpt(row)} is out "
            f"of the reference's range (0 to {vocab_size - 1}); tokenize with the reference's own tokenizer."
        )


def _digest(row: Any) -> int:
    text = row if isinstance(row, str) else json.dumps([list(row[0]), row[1]] if isinstance(row, tuple) else row)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _excerpt(row: Any, around: str = "") -> str:
    text = row if isinstance(row, str) else str(row[0] if isinstance(row, tuple) else row)
    start = max(0, text.find(around) - 20) if around else 0
    return repr(text[start : start + 60] + ("..." if len(text) > start + 60 else ""))
