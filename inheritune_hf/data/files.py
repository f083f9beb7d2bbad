"""Rows out of files: text, JSON lines, JSON, Parquet and Arrow, compressed or not; what is damaged has a place."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from .json_lists import list_items
from .rows import LABELS, Damage, Layout, checked_row, missing_column, names, not_json, not_utf8, too_long

COMPRESSED = (".gz", ".xz", ".zst", ".zstd")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".parquet", ".arrow")
#: Endings of files that would be taken for one document of text, though they hold something else.
NO_TEXT = {
    ".bin": "holds tokens; name token files by their ending, such as {folder}/*.bin, without other files",
    ".csv": "is a table; give it as JSONL or Parquet, or its folder as dataset_name",
    ".tsv": "is a table; give it as JSONL or Parquet, or its folder as dataset_name",
}

_BYTES_AT_ONCE = 1 << 20
_ROWS_AT_ONCE = 256
_COMPRESSION_ERRORS = (EOFError, lzma.LZMAError, OSError, zlib.error)
# UnicodeDecodeError: of names in the head of a table.
_TABLE_ERRORS = (pyarrow.ArrowException, OSError, UnicodeDecodeError)


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
        ValueError: If the file holds no rows of this kind.
    """
    kind, compression = kind_of(path)
    if kind in TABLE_SUFFIXES:
        rows = _read_table(path, kind, compression, layout)
    elif kind in JSON_SUFFIXES:
        rows = _read_json(path, layout)
    elif kind in NO_TEXT:
        raise ValueError(f"{path} {NO_TEXT[kind].format(folder=path.parent)}.")
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
    if compression:
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), _BYTES_AT_ONCE)
    return path.open("rb", buffering=_BYTES_AT_ONCE)


def _unreadable(path: Path, place: str, error: Exception) -> Damage:
    # What the system refuses has a number; what is wrong within the file has none.
    if not kind_of(path)[1] or getattr(error, "errno", None) is not None:
        return Damage(f"{place}: the file cannot be read ({error}); make it readable, or leave it out.")
    return Damage(f"{place}: the compressed file is damaged or cut off ({error}); fetch or compress it again.")


def _read_text(path: Path, layout: Layout) -> Iterator[dict[str, Any] | Damage]:
    try:
        with _open(path) as file:
            data = file.read(layout.most_bytes + 1)
        # Decoded as a whole, so that the position in the message is the position in the file.
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        long = len(data) > layout.most_bytes
        yield too_long(str(path), layout) if long else not_utf8(str(path), error)
    except _COMPRESSION_ERRORS as error:
        yield _unreadable(path, str(path), error)
    else:
        yield too_long(str(path), layout) if len(data) > layout.most_bytes else {layout.column: text}


def _read_json(path: Path, layout: Layout) -> Iterator[dict[str, Any] | Damage]:
    number = 0
    try:
        with _open(path) as file:
            start = file.read(256)
        with _open(path) as file:
            if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
                for row in list_items(file, str(path), _most_json_bytes(layout), layout):
                    number += 1
                    yield row
                return
            for number, line in enumerate(_lines(file, _most_json_bytes(layout)), start=1):
                place = f"{path}, line {number}"
                if line is None:
                    yield too_long(place, layout)
                elif not line.isspace():
                    yield _json_line(line, place, layout)
    except _COMPRESSION_ERRORS as error:
        yield _unreadable(path, f"{path}, after line {number}", error)


def _most_json_bytes(layout: Layout) -> int:
    # A row holds a document and its other fields, escaped: \\u0041 is one letter.
    return 3 * layout.most_bytes + _BYTES_AT_ONCE


def _lines(file: BinaryIO, limit: int) -> Iterator[bytes | None]:
    """Yield lines; None for one that is longer than `limit` bytes, of which no more than those are ever in memory."""
    while line := file.readline(limit):
        if len(line) < limit or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(_BYTES_AT_ONCE)) and not rest.endswith(b"\n"):
            pass
        yield None


def _json_line(line: bytes, place: str, layout: Layout) -> dict[str, Any] | Damage:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Damage(f"{place} is not UTF-8 text ({error.reason}); convert the file.")
    except (ValueError, RecursionError) as error:
        return not_json(place, str(error))
    return checked_row(row, place, layout)


def _read_table(path: Path, kind: str, compression: str, layout: Layout) -> Iterator[dict[str, Any] | Damage]:
    if compression:
        yield Damage(f"{path}: a {kind} file is compressed within; give it without {compression}.")
        return
    name = "a readable Parquet file" if kind == ".parquet" else "a readable Arrow file"
    number = 0
    try:
        for batch in _parquet_batches(path, layout) if kind == ".parquet" else _arrow_batches(path, layout):
            if isinstance(batch, Damage):
                yield batch
                continue
            number, rows = batch
            for row in rows.to_pylist():
                number += 1
                yield checked_row(row, f"{path}, row {number}", layout)
    except Damage as damage:
        yield damage
    except _TABLE_ERRORS as error:
        lost = f" (what follows row {number} is lost)" if number else ""
        yield Damage(f"{path} is not {name}: {error}{lost}; fetch or write it again.")


def _parquet_batches(path: Path, layout: Layout) -> Iterator[tuple[int, Any] | Damage]:
    """Yield batches with the number of rows before each, or what is wrong with a row group."""
    # Mapped: otherwise the wanted columns of a whole row group, which may be the file, are read at once.
    with pyarrow.parquet.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
        columns = _wanted_columns(file.schema_arrow, path, layout)
        after = 0
        for group in range(file.metadata.num_row_groups):
            number, after = after, after + file.metadata.row_group(group).num_rows
            reason: object = "fewer rows than the file says"
            try:
                for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns, row_groups=[group]):
                    batch.validate(full=True)
                    yield number, batch
                    number += len(batch)
            except _TABLE_ERRORS as error:
                reason = error
            if number < after:
                yield Damage(f"{path}, rows {number + 1} to {after}: damaged ({reason}); fetch or write it again.")


def _arrow_batches(path: Path, layout: Layout) -> Iterator[tuple[int, Any]]:
    with pyarrow.memory_map(str(path)) as source:
        try:
            stream: Any = pyarrow.ipc.open_stream(source)
            batches = iter(stream)
        except pyarrow.ArrowInvalid:
            stream = pyarrow.ipc.open_file(source)
            batches = (stream.get_batch(index) for index in range(stream.num_record_batches))
        columns = _wanted_columns(stream.schema, path, layout)
        number = 0
        for batch in batches:
            for start in range(0, len(batch), _ROWS_AT_ONCE):
                rows = batch.select(columns).slice(start, _ROWS_AT_ONCE)
                # Arrow looks at neither offsets nor letters by itself: wrong ones would end the process.
                rows.validate(full=True)
                yield number + start, rows
            number += len(batch)


def _wanted_columns(schema: Any, path: Path, layout: Layout) -> list[str]:
    if layout.wanted not in schema.names:
        raise Damage(missing_column(str(path), layout, schema.names))
    kind = schema.field(layout.wanted).type
    if layout.rows == "text" and not _is_text(kind):
        raise Damage(
            f"Column {layout.column!r} of {path} holds {kind}, not text; set text_column to a column of strings "
            f"({names(schema.names)})."
        )
    return [layout.wanted, *([LABELS] if layout.rows == "tokens" and LABELS in schema.names else [])]


def _is_text(kind: Any) -> bool:
    types = pyarrow.types
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))
