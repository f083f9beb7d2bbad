"""From documents to sequences: tokenize, pack for training, cut for evaluation, and put sequences into batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import multiprocess  # type: ignore[import-untyped]  # with it datasets makes its processes
import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher

from .encoding import Encoder, check_fit
from .rows import IGNORED_LABEL, LABELS, TOKENS

if TYPE_CHECKING:
    from torch import Tensor

# What is looked at together: few documents, since one may be a whole book; or many, since each batch becomes a part of
# what is written, which takes some kilobytes of memory as long as it is open.
BYTES_PER_BATCH = 16_000_000
FEWEST_PER_BATCH, MOST_PER_BATCH = 16, 1024
# What an interruption costs at most.
DOCUMENTS_PER_PART = 20_000

_TOKENS = List(Value("int32"))


def tokenize_documents(
    dataset: Dataset,
    encoder: Encoder,
    workers: int | None = None,
    labelled: bool | None = None,
    progress: Callable[[int], None] | None = None,
) -> Dataset:
    """
    Tokenize each document and end it with the end-of-text token; null, blank and damaged ones are left out.

    No other special token is added. The result is cached under the rows and the encoder's definition, part by part, so
    that a second call, also in another process, reads it from disk, and an interrupted one goes on.

    Args:
        dataset (`datasets.Dataset`): One row per document.
        encoder (`Encoder`): How rows become tokens.
        workers (`int`, *optional*): Processes that tokenize; this process alone if not given.
        labelled (`bool`, *optional*): Whether there is a column of labels; if there may be some, if not given.
        progress (`Callable`, *optional*): Told how many documents are done, after each part.

    Raises:
        ChildProcessError: If a worker dies.

    Returns:
        `datasets.Dataset`: In the same order, `input_ids`, `length` (tokens), `digest` (of the text, 64 bits), `bytes`
        (of the text), and `labels` if asked for.
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
        # The fingerprint is told: a tokenizer changes its own pickle when used, and datasets would tokenize again.
        definition = (dataset._fingerprint, start, stop, labelled, *encoder.identity)
        parts.append(
            _map_documents(
                dataset if stop - start == len(dataset) else dataset.select(range(start, stop)),
                _tokenize_batch,
                features,
                fn_kwargs={"encoder": encoder, "labelled": labelled},
                with_indices=True,
                num_proc=workers,
                new_fingerprint=Hasher.hash(("tokenize_documents", *definition)),
                desc=f"Tokenizing documents {start:,} to {stop:,} of {len(dataset):,}",
            )
        )
        if progress is not None:
            progress(stop)
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def document_features(labelled: bool) -> Features:
    """Return the columns of tokenized documents."""
    columns = {TOKENS: _TOKENS, **({LABELS: _TOKENS} if labelled else {})}
    return Features({**columns, "length": Value("int64"), "digest": Value("int64"), "bytes": Value("int64")})


def pack_sequences(documents: Dataset, block_size: int) -> Dataset:
    """
    Join tokenized documents and cut them into sequences of exactly `block_size` tokens.

    Only the last partial sequence is dropped.

    Args:
        documents (`datasets.Dataset`): What `tokenize_documents` returned.
        block_size (`int`): Tokens of one sequence.

    Returns:
        `datasets.Dataset`: Rows with `input_ids` (and `labels` if the documents have them), in their order.
    """
    packed = _map_documents(
        documents.with_format("arrow"), _Packer(block_size), _row_features(documents), desc="Packing"
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
        Features({**_row_features(documents), "document": Value("int64")}),
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
    tokens, lengths, documents, labels = (hashlib.sha256() for _ in range(4))
    for batch in _batches(dataset):
        tokens.update(batch[TOKENS].tobytes())
        lengths.update(batch["lengths"].tobytes())
        documents.update(batch["document"].tobytes())
        labels.update(batch[LABELS].tobytes())
    # Without labels that differ from the tokens, the fingerprint is that of the tokens alone.
    given = labels.digest() if labels.digest() != hashlib.sha256().digest() else b""
    return hashlib.sha256(tokens.digest() + lengths.digest() + documents.digest() + given).hexdigest()


def _batches(dataset: Any) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Yield tokens, lengths, documents and labels of some rows at a time, flat; empty where there are none."""
    nothing = np.empty(0, dtype="<i8")
    if not isinstance(dataset, Dataset):  # sequences in token files, all of one length
        for start in range(0, len(dataset), 1024):
            rows = dataset.__getitems__(range(start, min(start + 1024, len(dataset))))
            tokens = np.stack([row[TOKENS] for row in rows]).astype("<i4")
            lengths = np.full(len(rows), tokens.shape[1], dtype="<i8")
            yield {TOKENS: tokens, "lengths": lengths, "document": nothing, LABELS: nothing}
        return
    for batch in dataset.with_format("arrow").iter(batch_size=1024):
        rows = batch[TOKENS].combine_chunks()
        columns = batch.column_names
        yield {
            TOKENS: _flat(rows).astype("<i4"),
            "lengths": np.asarray(rows.value_lengths()).astype("<i8"),
            "document": batch["document"].to_numpy().astype("<i8") if "document" in columns else nothing,
            LABELS: _flat(batch[LABELS].combine_chunks()).astype("<i4") if LABELS in columns else nothing,
        }


@dataclass(frozen=True)
class CausalCollator:
    """
    Put sequences into a batch for a causal language model.

    Rows are padded on the right to the longest one. Labels are the tokens themselves, `-100` on padding, unless the
    rows bring `labels`. There is an `attention_mask` only if something is padded: without one, fast attention kernels
    stay available. Other columns are ignored.

    Args:
        pad_token_id (`int`): Token to pad with; any token will do, since it is neither attended to nor counted.
        end_token_id (`int`, *optional*):
            Token that ends a document. If given, positions restart after it, from which Transformers makes a
            block-diagonal attention, and a document's first token is not to be predicted from the one before. Padding
            comes as a document of its own, without an `attention_mask`.
    """

    pad_token_id: int
    end_token_id: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """
        Return `input_ids` and `labels`, and if needed `attention_mask` or `position_ids`, of shape `(batch, tokens)`.

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
        if self.end_token_id is not None:
            batch["position_ids"] = pad([_positions(row, self.end_token_id) for row in tokens], 0)
            batch["labels"] = batch["labels"].masked_fill(batch["position_ids"] == 0, IGNORED_LABEL)
        elif len({len(row) for row in tokens}) > 1:
            batch["attention_mask"] = pad([torch.ones_like(row) for row in tokens], 0)
        return batch


def _positions(tokens: Tensor, end: int) -> Tensor:
    """Return each token's place in its document, which begins after the end of the one before."""
    import torch

    places = torch.arange(len(tokens))
    starts = torch.zeros_like(places)
    starts[1:] = torch.where(tokens[:-1] == end, places[1:], 0)
    return places - starts.cummax(0).values


def _empty(features: Features) -> Dataset:
    # The map of datasets returns a data set without columns here.
    return Dataset.from_dict({name: [] for name in features}, features=features)


def _row_features(documents: Dataset) -> Features:
    return Features({name: _TOKENS for name in (TOKENS, LABELS) if name in documents.column_names})


def _map_documents(documents: Dataset, function: Callable[..., Any], features: Features, **options: Any) -> Dataset:
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


def documents_per_batch(documents: Dataset) -> int:
    """Return how many documents are looked at together, by their mean size."""
    wanted = BYTES_PER_BATCH * documents.data.num_rows // max(1, documents.data.nbytes)
    return int(min(max(wanted, FEWEST_PER_BATCH), MOST_PER_BATCH))


class _Packer:
    """Carry the rest of one batch of documents over to the next, so that no token is lost between them."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.rest: dict[str, Any] = {}

    def __call__(self, batch: Any) -> dict[str, Any]:
        packed = {}
        for name in (TOKENS, LABELS):
            if name in batch.column_names:
                rest = self.rest.get(name, np.empty(0, dtype=np.int32))
                values = np.concatenate([rest, _flat(batch[name].combine_chunks())])
                whole = len(values) // self.block_size * self.block_size
                self.rest[name] = values[whole:].copy()
                packed[name] = values[:whole].reshape(-1, self.block_size)
        return packed


def _cut_batch(batch: Any, indices: list[int], block_size: int, max_per_document: int | None) -> dict[str, list[Any]]:
    columns = [name for name in (TOKENS, LABELS) if name in batch.column_names]
    cut: dict[str, list[Any]] = {name: [] for name in (*columns, "document")}
    lengths = batch[TOKENS].combine_chunks().value_lengths().to_pylist()
    for name in columns:
        for row in batch[name].combine_chunks():
            values = row.values.to_numpy()
            starts = range(0, len(values) - 1, block_size)[:max_per_document]
            cut[name].extend(values[start : start + block_size] for start in starts)
    for document, length in zip(indices, lengths, strict=True):
        cut["document"].extend([document] * len(range(0, length - 1, block_size)[:max_per_document]))
    return cut


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


def _flat(rows: Any) -> np.ndarray[Any, np.dtype[np.int32]]:
    values: np.ndarray[Any, np.dtype[np.int32]] = rows.flatten().to_numpy()
    return values
