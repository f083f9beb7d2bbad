"""Student and reference on the same texts: loss, perplexity and next-token accuracy, paired."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainingArguments

from ..data import CausalCollator, set_fingerprint, split_standard_library, standard_library_documents
from ..data.encoding import Encoder, check_tokenizer
from ..data.packing import cut_windows, tokenize_documents
from ..data.rows import Layout
from ..data.sources import Source, read_source
from ..records import Match
from .isolation import undisturbed
from .matching import compare_losses, difference_bounds
from .metric import TokenPerplexity
from .validation import ValidatedTrainer, Validation

EMBEDDED = "Python standard library, test modules"


@dataclass(frozen=True)
class Corpus:
    """
    Sequences to evaluate on.

    Args:
        name (`str`): What they are called in results.
        sequences (`datasets.Dataset`): Rows with `input_ids` and `document`.
        fingerprint (`str`): sha256 of their content.
    """

    name: str
    sequences: Dataset
    fingerprint: str


@dataclass(frozen=True)
class Figures:
    """
    What one model came to on a corpus.

    Args:
        loss (`float`): Nats per token.
        perplexity (`float`): Exponential of the loss.
        accuracy (`float`): Share of tokens that the model ranked first.
    """

    loss: float
    perplexity: float
    accuracy: float


@dataclass(frozen=True)
class CorpusComparison:
    """
    Student and reference on one corpus.

    Args:
        corpus (`str`): Its name.
        fingerprint (`str`): sha256 of its content.
        documents (`int`): Documents with tokens that count.
        tokens (`int`): Tokens that count.
        student (`Figures`): The student's figures.
        reference (`Figures`): The reference's figures.
        match (`Match`): The paired difference in loss, its bounds and the verdict.
        accuracy_difference (`float`): Student's accuracy minus reference's.
        accuracy_lower (`float`, *optional*): One-sided lower bound; None with too few documents.
        accuracy_upper (`float`, *optional*): One-sided upper bound.
    """

    corpus: str
    fingerprint: str
    documents: int
    tokens: int
    student: Figures
    reference: Figures
    match: Match
    accuracy_difference: float
    accuracy_lower: float | None
    accuracy_upper: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CorpusComparison:
        """Rebuild a comparison from what `to_dict` returned."""
        parts = {name: Figures(**values[name]) for name in ("student", "reference")}
        return cls(**{**values, **parts, "match": Match(**values["match"])})


def read_corpus(
    files: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    block_size: int,
    max_sequences_per_document: int | None = None,
    text_column: str = "text",
) -> Corpus:
    """
    Read whole files as a corpus to evaluate on, or, without files, the test modules of the embedded text.

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
    layout = Layout(column=text_column)
    if files:
        name = ", ".join(files)
        rows = read_source(Source("corpus", layout, files=tuple(files)))
    else:
        name = EMBEDDED
        _, _, test = split_standard_library(standard_library_documents())
        rows = Dataset.from_dict(
            {"text": [item.text for item in test]}, features=Features({"text": Value("large_string")})
        )
    documents = tokenize_documents(rows, Encoder(tokenizer, layout, vocab_size=vocab_size))
    sequences = cut_windows(documents, block_size, max_sequences_per_document)
    if len(sequences) == 0:
        raise ValueError(f"{name} has no document of two tokens, so there is nothing to evaluate on; give more text.")
    return Corpus(name, sequences, set_fingerprint(sequences))


def validate(model: PreTrainedModel, corpus: Corpus, batch_size: int = 8, pad_token_id: int = 0) -> Validation:
    """
    Measure a model on a corpus by the loop that judges students in a run.

    Random states and the model's mode are left as they were.

    Args:
        model (`PreTrainedModel`): Moved to the device that training would take, if it is not spread over several.
        corpus (`Corpus`): What to measure on.
        batch_size (`int`, *optional*, defaults to `8`): Sequences at a time; it does not change the result.
        pad_token_id (`int`, *optional*, defaults to `0`): Token to pad with; it never counts.

    Returns:
        `Validation`: Sums per document.
    """
    with undisturbed(model), tempfile.TemporaryDirectory() as folder:
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


def compare_on(
    corpus: Corpus,
    student: Validation,
    reference: Validation,
    tolerance: float = 0.01,
    confidence: float | None = 0.95,
) -> CorpusComparison:
    """
    Pair what student and reference came to on one corpus.

    Args:
        corpus (`Corpus`): What both were measured on.
        student (`Validation`): The student's sums per document.
        reference (`Validation`): The reference's sums per document.
        tolerance (`float`, *optional*, defaults to `0.01`): Nats per token above the reference that still match.
        confidence (`float`, *optional*, defaults to `0.95`): One-sided confidence of the bounds; `None` compares means.

    Returns:
        `CorpusComparison`: Figures of both, differences and bounds that cluster by document.

    Raises:
        ValueError: If the two were not measured on the same sequences.
    """
    match = compare_losses(student, reference, tolerance, confidence)
    tokens = np.asarray(student.tokens, dtype=np.float64)
    gained = np.asarray(student.correct, dtype=np.float64) - np.asarray(reference.correct, dtype=np.float64)
    lower = upper = None
    if len(tokens) > 1:
        lower, upper = (float(bound) for bound in difference_bounds(gained, tokens, confidence or 0.95))
    return CorpusComparison(
        corpus=corpus.name,
        fingerprint=corpus.fingerprint,
        documents=len(student.documents),
        tokens=sum(student.tokens),
        student=_figures(student),
        reference=_figures(reference),
        match=match,
        accuracy_difference=float(gained.sum() / tokens.sum()),
        accuracy_lower=lower,
        accuracy_upper=upper,
    )


def _figures(validation: Validation) -> Figures:
    sums = {name: list(getattr(validation, name)) for name in ("loss_sums", "tokens", "correct")}
    return Figures(**TokenPerplexity().compute(**sums))
