"""Which text a student is trained, selected and tested on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .reading import from_mapping, positive

_DATA_CHOICES = {
    "rows": ("text", "tokens", "messages"),
    "chat_loss": ("all", "assistant"),
    "damaged_rows": ("error", "skip"),
    "token_dtype": ("uint16", "uint32"),
    "duplicates": ("report", "remove"),
    "near_duplicates": ("ignore", "report", "remove"),
}


@dataclass
class DataConfig:
    """
    Say which text a student is trained, selected and tested on.

    Give one of `dataset_name` (a Hub data set, or a folder of one), `train_files` and `sources` (a mixture). The
    selection and test sets are given, or carved out of the training source by whole documents.

    Raises:
        ValueError: If a value cannot be used; the message says what came and what is allowed.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, or local folder, of a data set with a text column; or standard_library, the source of "
            "this Python's own library, which needs no download."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of the Hub data set."})
    train_split: str = field(default="train", metadata={"help": "Split of the Hub data set to train on."})
    selection_split: str | None = field(
        default=None, metadata={"help": "Split that decides about growing and stopping; carved if not given."}
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Split for the reported result; carved if not given."}
    )
    train_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Text (one document each), JSONL, JSON, Parquet, Arrow, CSV, TSV or token (.bin) files to train "
            "on; globs, and .gz, .xz and .zst of all but Parquet and Arrow, are allowed."
        },
    )
    selection_files: list[str] = field(
        default_factory=list, metadata={"help": "Files that decide about growing and stopping; carved if not given."}
    )
    test_files: list[str] = field(
        default_factory=list, metadata={"help": "Files for the reported result; carved if not given."}
    )
    sources: list[dict[str, Any]] = field(
        default_factory=list,
        metadata={
            "help": "A mixture: for each source dataset_name (with dataset_config and split) or files, and if wanted "
            "text_column, rows and weight (its share of the tokens; without weights every document comes once in a "
            "pass over all of them)."
        },
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds a document's text."})
    rows: str = field(
        default="text",
        metadata={
            "help": "What a row holds: 'text', 'tokens' (input_ids and, if wanted, labels with -100 where a token does "
            "not count) or 'messages' (a chat, written by the tokenizer's template)."
        },
    )
    chat_loss: str = field(
        default="all",
        metadata={"help": "Tokens of a chat that count: 'all', or 'assistant' if the template marks those."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read and pack the training source while training, without a copy on disk."},
    )
    document_boundaries: bool = field(
        default=False,
        metadata={"help": "Let no token attend to another document of its sequence; positions restart with each."},
    )
    damaged_rows: str = field(
        default="error",
        metadata={
            "help": "What a row that cannot be read is: an 'error' that names file and row, or 'skip' and count."
        },
    )
    max_document_bytes: int = field(
        default=16_000_000,
        metadata={"help": "Longest document, in bytes; a longer one counts as damaged. It bounds the memory needed."},
    )
    token_dtype: str = field(
        default="uint16",
        metadata={"help": "Type of the tokens in .bin files without a header: 'uint16' or 'uint32'."},
    )
    duplicates: str = field(
        default="report",
        metadata={
            "help": "Documents that are, word for word, in another set too: 'report', or 'remove' from the other."
        },
    )
    near_duplicates: str = field(
        default="report",
        metadata={
            "help": "Documents that nearly are in another set too: 'ignore', 'report' or 'remove' (needs datasketch)."
        },
    )
    near_duplicate_threshold: float = field(
        default=0.8,
        metadata={"help": "Share of common runs of five tokens (Jaccard) from which documents are near-duplicates."},
    )
    carve_documents: int = field(
        default=20_000,
        metadata={"help": "Documents at the start of each streamed source among which carved sets are looked for."},
    )
    shuffle_documents: int = field(
        default=1_000,
        metadata={
            "help": "Documents of a stream whose order is drawn at once, by the seed (at most 32 million characters of "
            "them); 0 keeps the order of the source."
        },
    )
    selection_fraction: float = field(
        default=0.05, metadata={"help": "Share of the training documents carved for selection if none is given."}
    )
    test_fraction: float = field(
        default=0.05, metadata={"help": "Share of the training documents carved for the test if none is given."}
    )
    block_size: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of one sequence; if not given, that of prepared data, else the reference's context length "
            "(at most 1024)."
        },
    )
    max_sequences_per_document: int | None = field(
        default=None,
        metadata={"help": "Sequences kept of each selection or test document (the first ones); all if not given."},
    )
    preprocessing_workers: int | None = field(
        default=None, metadata={"help": "Processes that tokenize; this process alone if not given."}
    )

    def __post_init__(self) -> None:
        for name in ("selection_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 0.5:
                raise ValueError(f"{name} must be above 0 and below 0.5, got {getattr(self, name)!r}.")
        for name, allowed in _DATA_CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if not 0 < self.near_duplicate_threshold <= 1:
            raise ValueError(
                f"near_duplicate_threshold must be above 0 and at most 1, got {self.near_duplicate_threshold!r}."
            )
        for name in ("block_size", "max_sequences_per_document", "preprocessing_workers"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        for name in ("max_document_bytes", "carve_documents"):
            positive(name, getattr(self, name))
        positive("shuffle_documents", self.shuffle_documents, least=0)
        if self.block_size is not None and self.block_size < 2:
            raise ValueError(f"block_size must be 2 tokens or more, got {self.block_size}.")
        for name in ("train_files", "selection_files", "test_files"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        self._refuse_conflicts()

    def _refuse_conflicts(self) -> None:
        if self.dataset_name and self.train_files:
            raise ValueError("Give dataset_name or train_files, not both.")
        if self.sources and (self.dataset_name or self.train_files):
            raise ValueError("Give sources, or dataset_name or train_files, not both: name all sources in sources.")
        if self.chat_loss != "all" and self.rows != "messages" and not self.sources:
            raise ValueError("chat_loss is about rows of messages; set rows to 'messages', or leave chat_loss out.")

    def to_dict(self) -> dict[str, Any]:
        """Return the data settings as a plain dictionary that JSON and YAML can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataConfig:
        """Build data settings from `values`; an unknown key is a `ValueError` that names the nearest one."""
        return from_mapping(cls, values)
