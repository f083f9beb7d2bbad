"""The part of a report that says what was given: the sets, and the settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from ..configuration import DataConfig
from ..data import DataFacts
from ..experiments.runs import COURSE, without_nothing
from .document import Block, Paragraph, Table


def set_blocks(facts: DataFacts) -> Iterator[Block]:
    """Yield the three sets with their fingerprints, and what they share."""
    sets = (("train", facts.train), ("selection", facts.selection), ("test", facts.test))
    yield Table(
        f"Sets out of {facts.source}, sequences of at most {facts.block_size} tokens",
        ("set", "documents", "tokens", "sequences", "fingerprint"),
        tuple(
            (name, *(_count(value) for value in (item.documents, item.tokens, item.sequences)), item.fingerprint[:16])
            for name, item in sets
        ),
    )
    near = "near-duplicates were not looked for"
    if facts.near_duplicates is not None:
        near = f"{facts.near_duplicates:,} nearly"
    yield Paragraph(
        f"Documents that are in two sets: {facts.shared_documents:,} word for word, {near}; "
        f"{facts.removed_documents:,} removed."
    )


def setting_blocks(settings: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Block]:
    """
    Yield settings of data and training.

    Args:
        settings (`Mapping[str, Any]`): What a run or a comparison was told.
        training (`Mapping[str, Any]`): Training arguments that change its numbers.
    """
    names = [item.name for item in fields(DataConfig)]
    told = {name: settings[name] for name in names if name in settings}
    course = {name: settings.get(name) for name in COURSE}
    for caption, values in (
        ("Data settings", told),
        ("Training settings", without_nothing({**training, **course})),
    ):
        if values:
            rows = tuple((name, _shown(value)) for name, value in values.items())
            yield Table(caption, ("setting", "value"), rows, text_columns=2)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
