"""A model's loss as sums per document, which depend on nothing but the model and the sequences."""

from __future__ import annotations

import random
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import DynamoBackend
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ..data import CausalCollator, set_fingerprint
from ..data.embedded import embedded_file
from ..data.packing import cut_windows, whole_number
from ..data.sources import Layout, Source, read_source
from ..data.tokenization import Encoder, check_tokenizer, tokenize_documents
from ..records import Validation
from ..students.losses import IGNORED, Head, computes_from_hidden, loss_of_hidden, sums_of_hidden, widest

EMBEDDED = "test passages of the embedded novels"


def sequence_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """
    Return the loss in nats, counted tokens and tokens ranked first of each sequence, shape `(batch, 3)`.

    `logits` have the shape `(batch, tokens, vocab)`, `labels`, not shifted and -100 where a token does not count,
    `(batch, tokens)`. Sums are in float64, or in float32 on devices without it.
    """
    # One sequence at a time: only one copy of (tokens, vocab) in float32 is in memory.
    rows = []
    wide = widest(logits)
    for row, row_labels in zip(logits, labels, strict=True):
        scores, wanted = row[:-1].float(), row_labels[1:]
        losses = nn.functional.cross_entropy(scores, wanted, ignore_index=IGNORED, reduction="none")
        correct = (scores.argmax(-1) == wanted).sum()
        rows.append(torch.stack([losses.to(wide).sum(), (wanted != IGNORED).sum().to(wide), correct.to(wide)]))
    return torch.stack(rows)


def sum_by_document(sums: np.ndarray[Any, Any], documents: Sequence[int]) -> Validation:
    """Add up per-sequence sums of shape `(sequences, 3)` by document; a range of documents groups nothing."""
    if len(sums) != len(documents):
        raise ValueError(f"Got sums of {len(sums)} sequences but documents of {len(documents)}.")
    if sums[:, 1].sum() == 0:
        raise ValueError(
            "The evaluation set has no token that counts: every label is -100 or every sequence one token."
        )
    names, place = np.unique(np.asarray(documents), return_inverse=True)
    loss, tokens, correct = (np.bincount(place, weights=sums[:, column], minlength=len(names)) for column in range(3))
    counted = tokens > 0
    return Validation(
        documents=tuple(int(name) for name in names[counted]),
        loss_sums=tuple(float(value) for value in loss[counted]),
        tokens=tuple(int(value) for value in tokens[counted]),
        correct=tuple(int(value) for value in correct[counted]),
        grouped=not isinstance(documents, range),
    )


class ValidatedTrainer(Trainer):
    """
    A `Trainer` whose evaluation is sum of losses / sum of tokens, whatever the batch size, padding or world size.

    `Trainer`'s own evaluation loss is a mean of batch means. Here each sequence's sums are gathered instead and added
    up by document (the column `document` of the evaluation set, or each sequence on its own). Evaluating leaves the
    random state as it was. The latest result for each metric prefix is in `validations`.
    """

    validations: dict[str, Validation]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.validations = {}
        self._documents: Sequence[int] = ()
        self._tried: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()

    @property
    def bare_model(self) -> PreTrainedModel:
        """The model that is trained or evaluated, unwrapped."""
        found: Any = self.model
        # Unwrapping takes milliseconds, since it looks for DeepSpeed each time, and every step asks.
        if not isinstance(found, PreTrainedModel) or "_orig_mod" in vars(found):
            found = self.accelerator.unwrap_model(found, keep_torch_compile=False)
        model: PreTrainedModel = found
        return model

    def why_full_logits(self) -> str | None:
        """Return why the model must compute all logits itself, or None if its last hidden states are enough."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return "the head is sharded"
        if self.args.n_gpu > 1:
            return "several GPUs share one process"
        if self.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
            return "the compiler has the whole model"
        model = self.bare_model
        if model not in self._tried:
            self._tried[model] = computes_from_hidden(model)
        return None if self._tried[model] else f"the head of {type(model).__name__} is not known"

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the loader of the whole evaluation set, in its order, and remember each sequence's document."""
        with self._whole_set(self.eval_dataset if eval_dataset is None else eval_dataset):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return the loader of the set that `predict` measures, as that of the evaluation set."""
        with self._whole_set(test_dataset):
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _whole_set(self, dataset: Any) -> Iterator[None]:
        self._documents = document_ids(dataset)
        # Transformers drops the last partial batch of evaluation sets too when it is to drop that of the training set.
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return no logits but the sums of each sequence, shape `(batch, 3)`: see `sequence_sums`."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        inputs["use_cache"] = False
        found: list[Tensor] = []

        def keep(head: Head, hidden: Tensor, targets: Tensor, _: Any) -> Tensor:
            found.append(sums_of_hidden(head, hidden, targets))
            return found[0][:, 0].sum()

        with torch.no_grad(), self.compute_loss_context_manager():
            if self.why_full_logits() is None:
                with loss_of_hidden(self.bare_model, keep):
                    model(**inputs, labels=labels)
            else:
                found.append(sequence_sums(model(**inputs).logits, labels))
        sums = found[0]
        return sums[:, 0].sum() / sums[:, 1].sum().clamp(min=1), sums, None

    def figures(self, validation: Validation, prefix: str) -> dict[str, float]:
        """Return what is logged of a validation."""
        values = {"loss": validation.loss, "perplexity": validation.perplexity, "accuracy": validation.accuracy}
        return {f"{prefix}_{name}": value for name, value in values.items()}

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run `Trainer`'s loop and replace its loss by sum of losses / sum of tokens; adds perplexity and accuracy."""
        # A loader draws a seed for its workers from torch's generator: without the fork, how often a run evaluates
        # would change its dropout.
        with torch.random.fork_rng(devices=[]):
            output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        validation = sum_by_document(np.asarray(output.predictions), self._documents)
        self.validations[metric_key_prefix] = validation
        metrics = {**(output.metrics or {}), **self.figures(validation, metric_key_prefix)}
        return EvalLoopOutput(np.asarray(output.predictions), None, metrics, output.num_samples)


def document_ids(dataset: Any) -> Sequence[int]:
    """
    Return the document of each sequence: the column `document`, or the sequence's own number if there is none.

    Raises:
        ValueError: If the data set has no length or is a dictionary of several, or documents are no whole numbers.
    """
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"There is one evaluation set, got a dictionary of {len(dataset)}: {sorted(dataset)}; pass one."
        )
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"An evaluation set must have a length, got a {type(dataset).__name__}; "
            "load it as a map-style data set so that every evaluation sees the same sequences."
        )
    if "document" in (getattr(dataset, "column_names", None) or ()):
        return [whole_number(item) for item in dataset["document"]]
    return range(len(dataset))


@dataclass(frozen=True)
class Corpus:
    """Sequences to evaluate on."""

    name: str  # in results
    sequences: Dataset  # rows with `input_ids` and `document`
    fingerprint: str  # sha256 of the content


def read_corpus(
    files: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    block_size: int,
    max_sequences_per_document: int | None = None,
    text_column: str = "text",
) -> Corpus:
    """
    Read whole files as a corpus to evaluate on, or, without files, the test passages of the embedded novels.

    Args:
        files (sequence of `str`): Text (one document each), JSONL or Parquet files, or globs; may be empty.
        tokenizer (`PreTrainedTokenizerBase`): The reference's tokenizer.
        vocab_size (`int`): Tokens that the reference knows.
        block_size (`int`): Most tokens of one sequence; no sequence crosses documents.
        max_sequences_per_document (`int`, *optional*): Sequences kept of each document; all if not given.
        text_column (`str`, *optional*, defaults to `"text"`): Column or field that holds a document.

    Raises:
        FileNotFoundError: If a pattern matches no file.
        ValueError: If the tokenizer does not fit, or no document has two tokens.
    """
    check_tokenizer(tokenizer, vocab_size)
    layout = Layout(column=text_column) if files else Layout()
    name = ", ".join(files) or EMBEDDED
    rows = read_source(Source("corpus", layout, files=tuple(files) or (embedded_file("test"),)))
    documents = tokenize_documents(rows, Encoder(tokenizer, layout, vocab_size=vocab_size))
    sequences = cut_windows(documents, block_size, max_sequences_per_document)
    if len(sequences) == 0:
        raise ValueError(f"{name} has no document of two tokens, so there is nothing to evaluate on; give more text.")
    return Corpus(name, sequences, set_fingerprint(sequences))


def validate(model: PreTrainedModel, corpus: Corpus, batch_size: int = 8, pad_token_id: int = 0) -> Validation:
    """
    Measure a model's loss on a corpus by the same loop as a run's evaluations.

    Random states and the model's mode are preserved. The model is moved to the device of training if it is not spread
    over several; neither batch size nor padding changes the result.
    """
    with preserve_state(model), tempfile.TemporaryDirectory() as folder:
        trainer = ValidatedTrainer(
            model=model,
            args=TrainingArguments(
                folder,
                per_device_eval_batch_size=batch_size,
                dataloader_pin_memory=model.device.type == "cuda",
                report_to="none",
                disable_tqdm=True,
            ),
            data_collator=CausalCollator(pad_token_id),
        )
        trainer.pop_callback(PrinterCallback)
        trainer.evaluate(corpus.sequences)
    return trainer.validations["eval"]


@contextmanager
def preserve_state(*models: nn.Module) -> Iterator[None]:
    """Restore the random states of Python, NumPy and PyTorch and the models' training modes on leaving."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, training in modes:
            module.training = training
