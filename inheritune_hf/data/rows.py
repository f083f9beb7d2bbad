"""What a row must hold: text, tokens or messages; and what is said of one that does not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

# Columns that rows of tokens and of messages have; a row of text has the column that is asked for.
TOKENS, LABELS, MESSAGES = "input_ids", "labels", "messages"

#: Column that says why a row was skipped.
DAMAGE = "damage"

# Labels with this value do not count (torch.nn.functional.cross_entropy, Transformers).
IGNORED_LABEL = -100

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Layout:
    """
    How a row is read.

    Args:
        rows (`str`): `text`, `tokens` or `messages`.
        column (`str`): Column of the text.
        most_bytes (`int`): Longest document, in bytes.
        skip (`bool`): Whether what is damaged is passed on as damage instead of raised.
    """

    rows: str = "text"
    column: str = "text"
    most_bytes: int = 16_000_000
    skip: bool = False

    @property
    def wanted(self) -> str:
        """The column without which a row is no document."""
        return {"text": self.column, "tokens": TOKENS, "messages": MESSAGES}[self.rows]

    @property
    def setting(self) -> str:
        """What to set if the column is not there."""
        if self.rows == "text":
            return "set text_column to one of"
        return f"rows of {self.rows} have it; set rows to what these hold. There are"


class Damage(ValueError):
    """What cannot be read: a message that names the file and the row, and says what to do."""


def checked_row(row: Any, place: str, layout: Layout) -> dict[str, Any] | Damage:
    """Return the wanted part of a row, or what is wrong with it."""
    if not isinstance(row, dict):
        return Damage(f"{place} holds a {type(row).__name__}, not an object with the field {layout.wanted!r}.")
    if layout.wanted not in row:
        return Damage(missing_column(place, layout, row))
    if layout.rows == "tokens":
        return _checked_tokens(row, place)
    if layout.rows == "messages":
        return _checked_messages(row, place, layout)
    return _checked_text(row, place, layout)


def _checked_text(row: dict[str, Any], place: str, layout: Layout) -> dict[str, Any] | Damage:
    text = row[layout.column]
    if text is None:
        return {layout.column: None}
    if not isinstance(text, str):
        return Damage(
            f"{place}: {layout.column!r} holds {type(text).__name__}, not text; set text_column to a field of strings "
            f"({names(row)})."
        )
    return _measured(text, layout.column, place, layout)


def _checked_tokens(row: dict[str, Any], place: str) -> dict[str, Any] | Damage:
    if row[TOKENS] is None:
        return {TOKENS: None, LABELS: None}
    for name in (TOKENS, LABELS):
        if row.get(name) is not None and (reason := wrong_tokens(name, row[name])):
            return Damage(f"{place}: {reason}; repair the row.")
    labels = row.get(LABELS)
    if labels is not None and len(labels) != len(row[TOKENS]):
        return Damage(
            f"{place} has {len(row[TOKENS])} tokens but {len(labels)} labels; give one label per token, -100 "
            "where it does not count."
        )
    return {TOKENS: row[TOKENS], LABELS: labels}


def wrong_tokens(name: str, values: Any) -> str:
    """Return what is wrong with tokens, or with labels (-100 where a token does not count); nothing if all is well."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of unequal lengths
        array = np.empty((0, 0))
    if array.ndim != 1 or not (len(array) == 0 or np.issubdtype(array.dtype, np.integer)):
        return f"{name!r} must be a list of whole numbers"
    counted = array[array != IGNORED_LABEL] if name == LABELS else array
    if len(counted) and (counted.max() > _INT32.max or counted.min() < 0):
        return f"{name!r} has {int(counted.max())} or {int(counted.min())}, which is no token id"
    return ""


def _checked_messages(row: dict[str, Any], place: str, layout: Layout) -> dict[str, Any] | Damage:
    messages = row[MESSAGES]
    if messages is None:
        return {MESSAGES: None}
    if not isinstance(messages, list) or not all(isinstance(item, dict) and "role" in item for item in messages):
        return Damage(f"{place}: 'messages' must be a list of objects with 'role' and 'content'; repair the row.")
    text = json.dumps(messages, ensure_ascii=False)
    return _measured(text, MESSAGES, place, layout)


def _measured(text: str, column: str, place: str, layout: Layout) -> dict[str, Any] | Damage:
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return Damage(f"{place}: {column!r} holds half a surrogate pair, which no encoding allows; repair it.")
    return {column: text} if size <= layout.most_bytes else too_long(place, layout)


def too_long(place: str, layout: Layout) -> Damage:
    """Say that a document is longer than is allowed."""
    return Damage(
        f"{place} is longer than max_document_bytes ({layout.most_bytes:,}); split the document, or raise "
        "max_document_bytes (tokenizing takes about 100 times as much memory)."
    )


def not_json(place: str, reason: str) -> Damage:
    """Say that something is no JSON."""
    return Damage(f"{place} is damaged ({reason}); a JSON file holds one object per line, or one list of objects.")


def not_utf8(name: str, error: UnicodeDecodeError, start: int = 0) -> Damage:
    """Say which byte is no UTF-8; `start` is the place of what was decoded."""
    return Damage(
        f"{name} is not UTF-8 text: byte {error.object[error.start]:#04x} at byte offset {start + error.start}; "
        "convert it to UTF-8, or give .txt, .jsonl, .json, .parquet or .arrow files only."
    )


def missing_column(place: str, layout: Layout, columns: Any) -> str:
    """Say that there is no such column, and what to set."""
    return f"{place} has no column {layout.wanted!r}; {layout.setting} {names(columns)}."


def names(columns: Any) -> str:
    """Return column names as they are shown in messages."""
    return ", ".join(repr(str(column)) for column in columns) or "none at all"
