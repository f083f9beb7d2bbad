"""Rows out of files: text, JSON lines, JSON, Parquet and Arrow, compressed or not; what is damaged has a place."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

COMPRESSED = (".gz", ".xz", ".zst")
JSON_SUFFIXES = (".jsonl", ".json")
TABLE_SUFFIXES = (".parquet", ".arrow")

# Columns that rows of tokens and of messages have; a row of text has the column that is asked for.
TOKENS, LABELS, MESSAGES = "input_ids", "labels", "messages"

_BYTES_AT_ONCE = 1 << 20
_ROWS_AT_ONCE = 256
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


def kind_of(path: Path) -> tuple[str, str]:
    """Return the ending of `path` that says what it holds, and that of its compression (or an empty string)."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        return (suffixes[-2] if len(suffixes) > 1 else ""), suffixes[-1]
    return (suffixes[-1] if suffixes else ""), ""


def read_rows(path: Path, layout: Layout) -> Iterator[dict[str, Any] | Damage]:
    """
    Read the rows of one file, in order, holding no more than one of them (or one batch of a table) in memory.

    Yields:
        `dict` or `Damage`: A row with the wanted columns; with `layout.skip`, what could not be read.

    Raises:
        Damage: If something cannot be read and is not to be skipped.
    """
    kind, compression = kind_of(path)
    if kind in TABLE_SUFFIXES:
        rows = _read_table(path, kind, compression, layout)
    elif kind in JSON_SUFFIXES:
        rows = _read_json(path, layout)
    elif layout.rows != "text":
        raise ValueError(f"{path} is a text file, but rows is {layout.rows!r}; give JSON, Parquet or Arrow files.")
    else:
        rows = _read_text(path, layout)
    for row in rows:
        if isinstance(row, Damage) and not layout.skip:
            raise row
        yield row


def _open(path: Path) -> BinaryIO:
    compression = kind_of(path)[1]
    if compression == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if compression == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if compression == ".zst":
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), _BYTES_AT_ONCE)
    return path.open("rb", buffering=_BYTES_AT_ONCE)


def _too_long(place: str, layout: Layout) -> Damage:
    return Damage(
        f"{place} is longer than max_document_bytes ({layout.most_bytes:,}); split the document, or raise "
        "max_document_bytes (tokenizing takes about 100 times as much memory)."
    )


def _unreadable(place: str, error: Exception) -> Damage:
    return Damage(f"{place}: the compressed file is damaged or cut off ({error}); fetch or compress it again.")


def _read_text(path: Path, layout: Layout) -> Iterator[dict[str, Any] | Damage]:
    try:
        with _open(path) as file:
            data = file.read(layout.most_bytes + 1)
        # Decoded as a whole, so that the position in the message is the position in the file.
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if len(data) > layout.most_bytes:
            yield _too_long(str(path), layout)
            return
        yield Damage(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} at byte offset {error.start}; "
            "convert it to UTF-8, or give .txt, .jsonl, .json, .parquet or .arrow files only."
        )
    except (EOFError, lzma.LZMAError, OSError, zlib.error) as error:
        yield _unreadable(str(path), error)
    else:
        yield _too_long(str(path), layout) if len(data) > layout.most_bytes else {layout.column: text}


def _read_json(path: Path, layout: Layout) -> Iterator[dict[str, Any] | Damage]:
    number = 0
    try:
        with _open(path) as file:
            start = file.read(256)
            if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
                yield from _read_json_list(path, start + file.read(), layout)
                return
        with _open(path) as file:
            for number, line in enumerate(_lines(file, layout.most_bytes), start=1):
                place = f"{path}, line {number}"
                if line is None:
                    yield _too_long(place, layout)
                elif line.strip():
                    yield _json_line(line, place, layout)
    except (EOFError, lzma.LZMAError, OSError, zlib.error) as error:
        yield _unreadable(f"{path}, after line {number}", error)


def _lines(file: BinaryIO, most_bytes: int) -> Iterator[bytes | None]:
    """Yield lines; None for one that is too long, of which no more than `most_bytes` are ever in memory."""
    # A line holds a document and its other fields, escaped: \\u0041 is one letter.
    limit = 3 * most_bytes + _BYTES_AT_ONCE
    while line := file.readline(limit):
        if len(line) < limit or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(_BYTES_AT_ONCE)) and not rest.endswith(b"\n"):
            pass
        yield None


def _json_line(line: bytes, place: str, layout: Layout) -> dict[str, Any] | Damage:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Damage(f"{place} is not UTF-8 text ({error.reason}); convert the file.")
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        return _not_json(place, error)
    return _checked(row, place, layout)


def _read_json_list(path: Path, data: bytes, layout: Layout) -> Iterator[dict[str, Any] | Damage]:
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        yield Damage(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} at byte offset {error.start}; convert it."
        )
        return
    except json.JSONDecodeError as error:
        yield _not_json(str(path), error)
        return
    for number, row in enumerate(rows, start=1):
        yield _checked(row, f"{path}, item {number}", layout)


def _not_json(place: str, error: json.JSONDecodeError) -> Damage:
    return Damage(f"{place} is damaged ({error}); a JSON file holds one object per line, or one list of objects.")


def _read_table(path: Path, kind: str, compression: str, layout: Layout) -> Iterator[dict[str, Any] | Damage]:
    if compression:
        yield Damage(f"{path}: a {kind} file is compressed within; give it without {compression}.")
        return
    name = "a readable Parquet file" if kind == ".parquet" else "a readable Arrow file"
    number = 0
    try:
        for batch in _parquet_batches(path, layout) if kind == ".parquet" else _arrow_batches(path, layout):
            for row in batch.to_pylist():
                number += 1
                yield _checked(row, f"{path}, row {number}", layout)
    except Damage as damage:
        yield damage
    except (pyarrow.ArrowInvalid, OSError) as error:
        yield Damage(f"{path} is not {name}: {error}" + (f" (after row {number})" if number else ""))


def _parquet_batches(path: Path, layout: Layout) -> Iterator[Any]:
    with pyarrow.parquet.ParquetFile(path) as file:
        columns = _wanted_columns(file.schema_arrow, path, layout)
        yield from file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)


def _arrow_batches(path: Path, layout: Layout) -> Iterator[Any]:
    with pyarrow.memory_map(str(path)) as source:
        try:
            stream: Any = pyarrow.ipc.open_stream(source)
            batches = iter(stream)
        except pyarrow.ArrowInvalid:
            stream = pyarrow.ipc.open_file(source)
            batches = (stream.get_batch(index) for index in range(stream.num_record_batches))
        columns = _wanted_columns(stream.schema, path, layout)
        for batch in batches:
            for start in range(0, len(batch), _ROWS_AT_ONCE):
                yield batch.select(columns).slice(start, _ROWS_AT_ONCE)


def _wanted_columns(schema: Any, path: Path, layout: Layout) -> list[str]:
    if layout.wanted not in schema.names:
        raise Damage(missing_column(str(path), layout, schema.names))
    kind = schema.field(layout.wanted).type
    if layout.rows == "text" and not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise Damage(
            f"Column {layout.column!r} of {path} holds {kind}, not text; set text_column to a column of strings "
            f"({names(schema.names)})."
        )
    return [layout.wanted, *([LABELS] if layout.rows == "tokens" and LABELS in schema.names else [])]


def _checked(row: Any, place: str, layout: Layout) -> dict[str, Any] | Damage:
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
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return Damage(f"{place}: {layout.column!r} holds half a surrogate pair, which no encoding allows; repair it.")
    return {layout.column: text} if size <= layout.most_bytes else _too_long(place, layout)


def _checked_tokens(row: dict[str, Any], place: str) -> dict[str, Any] | Damage:
    found: dict[str, Any] = {}
    for name in (TOKENS, LABELS):
        values = row.get(name)
        if values is None and name == LABELS:
            found[name] = None
            continue
        array = np.asarray(values)
        if array.ndim != 1 or not (len(array) == 0 or np.issubdtype(array.dtype, np.integer)):
            return Damage(f"{place}: {name!r} must be a list of whole numbers; repair the row.")
        if len(array) and (array.max() > _INT32.max or array.min() < (0 if name == TOKENS else -100)):
            return Damage(f"{place}: {name!r} has {int(array.max())} or {int(array.min())}, which is no token id.")
        found[name] = values
    if found[LABELS] is not None and len(found[LABELS]) != len(found[TOKENS]):
        return Damage(
            f"{place} has {len(found[TOKENS])} tokens but {len(found[LABELS])} labels; give one label per token, -100 "
            "where it does not count."
        )
    return found


def _checked_messages(row: dict[str, Any], place: str, layout: Layout) -> dict[str, Any] | Damage:
    messages = row[MESSAGES]
    if not isinstance(messages, list) or not all(isinstance(item, dict) and "role" in item for item in messages):
        return Damage(f"{place}: 'messages' must be a list of objects with 'role' and 'content'; repair the row.")
    text = json.dumps(messages, ensure_ascii=False)
    return {MESSAGES: text} if len(text) <= layout.most_bytes else _too_long(place, layout)


def missing_column(place: str, layout: Layout, columns: Any) -> str:
    """Say that there is no such column, and what to set."""
    return f"{place} has no column {layout.wanted!r}; {layout.setting} {names(columns)}."


def names(columns: Any) -> str:
    """Return column names as they are shown in messages."""
    return ", ".join(repr(str(column)) for column in columns) or "none at all"
