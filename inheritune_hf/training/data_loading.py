"""Check the data of a run, and resume a stream of sequences at the very place where training stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..data import CausalCollator
from ..data.splits import DEFAULT_BLOCK_SIZE, row_kind, sequences_of_rows
from ..data.stream import READER_STATE, PackedStream, StreamCollator, StreamState
from ..evaluation import document_ids
from ..records import RecordError, read_record, write_record
from ..students import OpenedReference

# What is counted of a stream.
_COUNTS = ("damaged", "left_out", "shared", "near")


def pad_token(tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return a token to pad with; padding is masked and not counted, so any will do."""
    tokens = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
    return next((int(token) for token in tokens if token is not None), 0)


def check_data(train: Any, selection: Any, config: Any) -> None:
    """Raise a `ValueError` if there is nothing to train on or to decide by, or sequences the reference cannot read."""
    if train is None:
        raise ValueError("There is no train_dataset; pass sequences to train the student on.")
    if selection is None:
        raise ValueError(
            "There is no selection data: pass eval_dataset, sequences of documents that are not trained on; growing "
            "and stopping are decided by the loss on them."
        )
    if len(document_ids(selection)) == 0:
        raise ValueError("eval_dataset is empty; growing and stopping are decided by the loss on it.")
    if hasattr(train, "__len__") and len(train) == 0:
        raise ValueError("train_dataset is empty: the training text is shorter than one sequence of block_size tokens.")
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    for name, dataset in (("train_dataset", train), ("eval_dataset", selection)):
        length = row_length(dataset)
        if limit and length > limit:
            raise ValueError(
                f"{name} has sequences of {length} tokens, but the reference reads at most {limit}; set block_size to "
                f"{limit} or less."
            )


def as_sequences(name: str, dataset: Any, tokenizer: Any, reference: OpenedReference, args: TrainingArguments) -> Any:
    """
    Return a data set of sequences; rows of text or messages are tokenized and packed as `load_data_splits` does it.

    Raises:
        ValueError: If they need a tokenizer and there is none, or hold something else.
    """
    kind = row_kind(dataset, name)
    if kind in (None, "tokens"):
        return dataset
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"{name} has rows of {kind}, not of tokens: give the reference's tokenizer as processing_class, which "
            "tokenizes and packs them, or make sequences of them first (load_data_splits)."
        )
    size = min(reference.context_length or tokenizer.model_max_length, DEFAULT_BLOCK_SIZE)
    with args.main_process_first(desc=f"tokenizing {name}"):
        return sequences_of_rows(dataset, kind, name, tokenizer, size, int(reference.text_config.vocab_size))


def row_length(dataset: Any) -> int:
    """Return the tokens of a data set's first row, which all rows of packed sequences have; 0 if it is not known."""
    if isinstance(dataset, PackedStream):
        return dataset.block_size
    return len(dataset[0]["input_ids"]) if hasattr(dataset, "__len__") else 0


def with_tensor_format(dataset: Any, collator: Any = None) -> Any:
    """
    Return a data set whose rows come as tensors: as Python lists they take four times as long.

    A collator that is not of this package may want lists, and gets what it would get.
    """
    ours = collator is None or isinstance(collator, CausalCollator)
    if ours and isinstance(dataset, datasets.Dataset) and dataset.format["type"] is None:
        return dataset.with_format("torch")
    return dataset


class ResumableStream:
    """
    A `PackedStream` that training reads and resumes exactly where a checkpoint stopped.

    Each batch of a stream carries the state of its reader. What is saved is the state after the last batch that was
    trained on, not the last that was read ahead.
    """

    def __init__(self, stream: PackedStream, accelerator: Accelerator) -> None:
        self.stream, self.accelerator, self.process = stream, accelerator, accelerator.process_index
        self.state = StreamState()
        #: Passes, and what was counted in the stream, of all processes together when they last synchronised.
        self.counts: dict[str, int] = {}

    def begin(self, checkpoint: Path | None) -> None:
        """
        Continue where `checkpoint` stopped, or at the start of the stream.

        Raises:
            ValueError: If the checkpoint does not say where this process was.
        """
        self.state = StreamState()
        if checkpoint is not None:
            try:
                self.state = read_record(StreamState, self._file(checkpoint))
            except (FileNotFoundError, RecordError) as error:
                raise ValueError(
                    f"{checkpoint} does not say where process {self.process} was in the stream ({error}); "
                    "remove the checkpoint."
                ) from error
        self.sync_counts()

    def save(self, checkpoint: Path) -> None:
        """Write where this process is into a checkpoint that is not sealed yet."""
        write_record(self._file(checkpoint), self.state)

    def loader(self, args: TrainingArguments, batch_size: int, collator: Any) -> DataLoader[Any]:
        """Return a loader that begins where this process is."""
        return DataLoader(
            self.stream.begin(self.process, self.accelerator.num_processes, self.state),
            batch_size=batch_size,
            collate_fn=StreamCollator(collator),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor if args.dataloader_num_workers else None,
            multiprocessing_context=args.dataloader_multiprocessing_context if args.dataloader_num_workers else None,
            # Its own: a loader draws a seed for its workers, and how often it begins must not change dropout.
            generator=torch.Generator(),
        )

    def note(self, batch: dict[str, Any]) -> None:
        """Take the reader's state out of a batch that is trained on, and keep it."""
        state: Any = batch.pop(READER_STATE, None)
        if state is not None:
            self.state.update(state)

    def sync_counts(self) -> float:
        """Share how far each process is; returns the whole passes over the stream by all of them."""
        own = [self.state.passes, *(self.state.total(name) for name in _COUNTS)]
        found = self.accelerator.gather(torch.tensor([own], device=self.accelerator.device))
        totals = dict(zip(_COUNTS, found[:, 1:].sum(0).tolist(), strict=True))
        self.counts = {"passes": int(found[:, 0].min()), **totals}
        return self.passes

    @property
    def passes(self) -> float:
        """Whole passes over the stream by all processes: the epoch that is logged."""
        return float(self.counts["passes"])

    def figures(self) -> dict[str, float]:
        """Return what was found in the stream that should not have been there, as it is logged."""
        return {f"stream_{name}": self.counts[name] for name in _COUNTS if self.counts[name]}

    def _file(self, checkpoint: Path) -> Path:
        return checkpoint / f"stream_{self.process}.json"


def check_boundaries(model: PreTrainedModel) -> None:
    """
    See whether a model keeps documents of one sequence apart if positions restart.

    Raises:
        ValueError: If it does not: a document's logits would depend on the one before.
    """
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    tokens = torch.arange(8, device=model.device).remainder(vocabulary)[None].repeat(2, 1)
    tokens[1, :4] = tokens[1, :4].flip(0)  # another first document, the same second one
    positions = torch.arange(4, device=model.device).repeat(2)[None].expand(2, -1)
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            logits = model(input_ids=tokens, position_ids=positions).logits.float()
    finally:
        model.train(training)
    difference = float((logits[0, 4:] - logits[1, 4:]).abs().max())
    if not difference <= 1e-3 * float(logits.abs().max().clamp(min=1.0)):
        raise ValueError(
            f"document_boundaries: {type(model).__name__} with attn_implementation "
            f"{model.config._attn_implementation!r} lets a document see the one before it (logits differ by "
            f"{difference:.3g}), whatever the positions; use 'sdpa' or 'eager' without use_cache, or leave it out."
        )
