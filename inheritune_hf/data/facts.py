"""Statistics of the train, selection and test sets, which travel into the results of a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SetFacts:
    """
    What one set holds.

    Args:
        documents (`int`, *optional*): Documents with text; None for a stream, as are tokens and sequences.
        tokens (`int`, *optional*): Tokens in the sequences, end-of-text tokens included.
        sequences (`int`, *optional*): Rows of the set.
        fingerprint (`str`): sha256 of the content, see `set_fingerprint`; of `sources_fingerprint`, for a stream.
    """

    documents: int | None
    tokens: int | None
    sequences: int | None
    fingerprint: str


@dataclass(frozen=True)
class SourceFacts:
    """
    What one training source gave.

    Args:
        name (`str`): Its name or files.
        documents (`int`, *optional*): Documents trained on; None for a stream, as are tokens and passes.
        tokens (`int`, *optional*): Their tokens.
        bytes (`int`, *optional*): Bytes of their text.
        weight (`float`, *optional*): Its weight in a mixture.
        passes (`float`, *optional*): How often it comes in one pass over the training set.
    """

    name: str
    documents: int | None = None
    tokens: int | None = None
    bytes: int | None = None
    weight: float | None = None
    passes: float | None = None


@dataclass(frozen=True)
class DataFacts:
    """
    What a run was trained, selected and tested on.

    Args:
        source (`str`): Where the documents come from.
        block_size (`int`): Tokens of one sequence.
        train (`SetFacts`): The training set.
        selection (`SetFacts`): The selection set.
        test (`SetFacts`): The test set.
        dropped_tokens (`int`): Tokens of the last partial training sequence of each source, which is dropped.
        skipped_documents (`int`): Documents left out because they are null or blank.
        shared_documents (`int`): Documents of the selection or test set whose very text is in another set as well.
        near_duplicates (`int`, *optional*):
            Training documents nearly the same as one of the selection or test set, and selection documents nearly the
            same as one of the test set; None if they were not looked for. Those of a stream are counted as they come.
        removed_documents (`int`): Documents removed because they are in another set too.
        damaged_rows (`int`): Rows that could not be read and were skipped.
        longest_document (`int`): Tokens of the longest training document.
        sources (`tuple[SourceFacts, ...]`): The training sources.
    """

    source: str
    block_size: int
    train: SetFacts
    selection: SetFacts
    test: SetFacts
    dropped_tokens: int = 0
    skipped_documents: int = 0
    shared_documents: int = 0
    near_duplicates: int | None = None
    removed_documents: int = 0
    damaged_rows: int = 0
    longest_document: int = 0
    sources: tuple[SourceFacts, ...] = ()

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of training text for each of its tokens; None if there is no text."""
        size, tokens = (sum(getattr(source, name) or 0 for source in self.sources) for name in ("bytes", "tokens"))
        return size / tokens if size and tokens else None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataFacts:
        """Rebuild facts from what `to_dict` returned."""
        sets = {name: SetFacts(**values[name]) for name in ("train", "selection", "test")}
        return cls(**{**values, **sets, "sources": tuple(SourceFacts(**item) for item in values["sources"])})
