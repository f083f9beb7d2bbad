"""What a run is fed: checked sequences, the loader of a stream, and the state at which streams resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import CausalCollator
from ..data.stream import READER_STATE, PackedStream, StreamCollator, StreamState
from ..evaluation import document_ids
from ..records import write_json
from .losses import LossTrainer

# What is counted of a stream.
_COUNTED = ("damaged", "left_out", "shared", "near")


def pad_token(tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return a token to pad with; padding is masked and not counted, so any will do."""
    if tokenizer is None:
        return 0
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


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


def row_length(dataset: Any) -> int:
    """Return the tokens of a data set's first row, which all rows of packed sequences have; 0 if it cannot be told."""
    if isinstance(dataset, PackedStream):
        return dataset.block_size
    return len(dataset[0]["input_ids"]) if hasattr(dataset, "__len__") else 0


def quick_rows(dataset: Any, collator: Any = None) -> Any:
    """
    Return a data set whose rows come as tensors: as Python lists they take four times as long.

    A collator that is not of this package may want lists, and gets what it would get.
    """
    ours = collator is None or isinstance(collator, CausalCollator)
    if ours and isinstance(dataset, datasets.Dataset) and dataset.format["type"] is None:
        return dataset.with_format("torch")
    return dataset


class StreamedTrainer(LossTrainer):
    """
    A `Trainer` that goes on in a `PackedStream` exactly where a checkpoint stopped; other data sets are left to it.

    Each batch of a stream carries the state of its reader. What is saved is the state after the last batch that was
    trained on, not the last that was read ahead. The epoch that is logged is the number of whole passes over the
    stream, by all.
    """

    stream_state: StreamState | None = None
    #: Passes, and the counts of the stream, of all processes together, when they last looked; set with `stream_state`.
    counts: Mapping[str, int]

    @property
    def stream(self) -> PackedStream | None:
        """The training set, if it is a stream."""
        return self.train_dataset if isinstance(self.train_dataset, PackedStream) else None

    def begin_stream(self, checkpoint: Path | None) -> None:
        """Let the next training begin where `checkpoint` stopped, or at the start; without a stream, do nothing."""
        if self.stream is None:
            return
        if not checkpoint:
            self.stream_state = StreamState()
            self._sync_counts(self.stream_state)
            return
        path = _state_file(checkpoint, self.args.process_index)
        try:
            self.stream_state = StreamState(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{checkpoint} does not say where process {self.args.process_index} was in the stream ({error}); "
                "remove the checkpoint."
            ) from error
        self._sync_counts(self.stream_state)

    def save_stream(self, checkpoint: Path) -> None:
        """Write where this process is in the stream into a checkpoint that is not sealed yet."""
        if self.stream_state is not None:
            write_json(_state_file(checkpoint, self.args.process_index), vars(self.stream_state))

    def stream_facts(self) -> dict[str, Any]:
        """Return what a run with a stream cannot change when it goes on: its readers."""
        return {} if self.stream is None else {"args.dataloader_num_workers": self.args.dataloader_num_workers}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the training set; that of a stream begins where it should."""
        if self.stream is None:
            return super().get_train_dataloader()
        args = self.args
        return DataLoader(
            self.stream.begin(args.process_index, args.world_size, self.stream_state),
            batch_size=self._train_batch_size,
            collate_fn=StreamCollator(self.data_collator),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor if args.dataloader_num_workers else None,
            multiprocessing_context=args.dataloader_multiprocessing_context if args.dataloader_num_workers else None,
            # Its own: a loader draws a seed for its workers, and how often it begins must not change dropout.
            generator=torch.Generator(),
        )

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Train on one batch, and note where its reader is."""
        reader: Any = inputs.pop(READER_STATE, None)
        if reader is not None and self.stream_state is not None:
            self.stream_state.update(reader)
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the passes over a stream for an epoch, and what was counted in it."""
        if self.stream_state is not None:
            self.state.epoch = float(self.counts["passes"])
            logs = {
                **logs,
                **{f"stream_{name}": count for name, count in self.counts.items() if count and name in _COUNTED},
            }
        super().log(logs, start_time)

    def _sync_counts(self, state: StreamState) -> None:
        own = [state.passes, *(state.total(name) for name in _COUNTED)]
        found = self.accelerator.gather(torch.tensor([own], device=self.args.device))
        self.counts = {
            "passes": int(found[:, 0].min()),
            **dict(zip(_COUNTED, found[:, 1:].sum(0).tolist(), strict=True)),
        }

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Before anything is logged or saved, let all processes say how far they are in the stream."""
        control = self.control  # the same in all processes, which log, evaluate and save together
        if self.stream_state is not None and (control.should_log or control.should_evaluate or control.should_save):
            self._sync_counts(self.stream_state)
            self.state.epoch = float(self.counts["passes"])
        super()._maybe_log_save_evaluate(*args, **kwargs)


def _state_file(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"stream_{process}.json"


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
