"""Read documents from files, data sets by name, and mixtures of them; whole or as a stream."""

from __future__ import annotations

import dataclasses
import glob
import gzip
import hashlib
import io
import json
import logging
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Dataset, Features, IterableDataset, List, Value, concatenate_datasets, load_dataset, load_from_disk
from datasets import config as datasets_config
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

from ..annotations import conform
from ..config import DataConfig, RowKind, reject_unknown_keys
from ..foreign_text import file_names

logger = logging.getLogger(__name__)

# Columns of rows of tokens and of messages; a row of text has the column that is asked for.
TOKENS, LABELS, MESSAGES = "input_ids", "labels", "messages"
#: Column that says why a row was skipped.
BAD_ROW = "bad_row"
# Labels with this value do not count (torch.nn.functional.cross_entropy, Transformers).
IGNORED_LABEL = -100

_INT32 = np.iinfo(np.int32)
# Bytes of files that are hashed to identify a source: a fraction of a second.
_MOST_HASHED = 256_000_000
_BYTES_PER_READ = 1 << 20
_ROWS_PER_READ = 256
_COMPRESSED = (".gz", ".xz", ".zst", ".zstd")
_JSON = (".jsonl", ".ndjson", ".json")
_TABLES = {".parquet": "Parquet", ".arrow": "Arrow", ".csv": "CSV", ".tsv": "TSV"}
_FILE_ERRORS = (EOFError, lzma.LZMAError, OSError, zlib.error)
_TABLE_ERRORS = (*_FILE_ERRORS, pa.ArrowException, ValueError)


@dataclass(frozen=True)
class Layout:
    """How a row is read."""

    rows: RowKind = "text"  # what it holds
    column: str = "text"  # of its text
    most_bytes: int = 16_000_000  # of the longest document
    skip: bool = False  # bad rows

    @property
    def content_column(self) -> str:
        """The column that every document must have."""
        return {"text": self.column, "tokens": TOKENS, "messages": MESSAGES}[self.rows]

    @property
    def features(self) -> Features:
        """The columns of what is read from files."""
        columns: dict[str, Any] = {
            "text": {self.column: Value("large_string")},
            "tokens": {TOKENS: List(Value("int32")), LABELS: List(Value("int32"))},
            "messages": {MESSAGES: Value("large_string")},
        }[self.rows]
        return Features({**columns, BAD_ROW: Value("string")})


@dataclass(frozen=True)
class Source:
    """One place that documents come from: files, or a data set by its name."""

    setting: str  # by which it was given, for messages
    layout: Layout
    files: tuple[str, ...] = ()  # paths or globs
    name: str | None = None
    config: str | None = None
    split: str = "train"
    weight: float | None = None  # share of the tokens in a mixture, relative to the other sources

    @property
    def label(self) -> str:
        """Its name in facts and messages."""
        if self.name is None:
            return file_names(self.files)
        return self.name + (f"/{self.config}" if self.config else "")

    @property
    def holds_token_files(self) -> bool:
        """Whether it is made of token files (.bin); a `ValueError` if only some of its files are."""
        binary = [name for name in self.files if name.endswith(".bin")]
        if binary and len(binary) < len(self.files):
            raise ValueError(
                f"{self.setting}: {binary[0]} holds tokens and {next(n for n in self.files if n not in binary)} text; "
                "give them as two sources."
            )
        return bool(binary)


@dataclass(frozen=True)
class _MixedSource:
    """A source of a mixture, as a recipe gives it."""

    dataset_name: str | None = None
    dataset_config: str | None = None
    split: str = "train"
    files: tuple[str, ...] = ()
    text_column: str | None = None
    rows: RowKind | None = None
    weight: float | None = None


def training_sources(config: DataConfig) -> list[Source]:
    """Return the sources that `config` trains on; a `ValueError` if there is none, or a mixture cannot be used."""
    layout = _layout_of(config)
    if config.train_files:
        return [Source("train_files", layout, files=tuple(config.train_files))]
    if config.dataset_name:
        return [Source("dataset_name", layout, (), config.dataset_name, config.dataset_config, config.train_split)]
    if not config.sources:
        raise ValueError("There is nothing to train on; give dataset_name or train_files, or a mixture by sources.")
    found = [_mixed_source(item, f"source {number}", layout) for number, item in enumerate(config.sources, start=1)]
    weights = [source.weight is not None for source in found]
    if any(weights) and not all(weights):
        raise ValueError(
            f"source {weights.index(False) + 1} has no weight, but another has; give all of them, or none."
        )
    return found


def evaluation_sources(config: DataConfig) -> dict[str, Source]:
    """Return the sources of the selection and test sets that are given; others are held out of the training source."""
    found = {}
    for name in ("selection", "test"):
        files, split = getattr(config, f"{name}_files"), getattr(config, f"{name}_split")
        if split is not None and not config.dataset_name:
            raise ValueError(f"{name}_split names a split of dataset_name, which is not given; give {name}_files.")
        if split is not None and files:
            raise ValueError(f"Give {name}_files or {name}_split, not both.")
        if files:
            found[name] = Source(f"{name}_files", _layout_of(config), files=tuple(files))
        elif split is not None:
            named = (config.dataset_name, config.dataset_config, split)
            found[name] = Source(f"{name}_split", _layout_of(config), (), *named)
    return found


def _layout_of(config: DataConfig) -> Layout:
    return Layout(config.rows, config.text_column, config.max_document_bytes, config.damaged_rows == "skip")


def _mixed_source(item: Mapping[str, Any], place: str, layout: Layout) -> Source:
    reject_unknown_keys(item, {field.name for field in dataclasses.fields(_MixedSource)}, place)
    files = item.get("files") or ()
    given = conform(_MixedSource, {**item, "files": [files] if isinstance(files, str) else files}, place)
    if bool(given.files) == bool(given.dataset_name):
        raise ValueError(f"{place} needs either dataset_name or files.")
    if given.weight is not None and given.weight <= 0:
        raise ValueError(f"{place}: weight must be above 0, got {given.weight:g}; leave the source out instead.")
    layout = dataclasses.replace(layout, rows=given.rows or layout.rows, column=given.text_column or layout.column)
    return Source(place, layout, given.files, given.dataset_name, given.dataset_config, given.split, given.weight)


def read_source(source: Source, cache_dir: Path | None = None, streaming: bool = False) -> Dataset:
    """
    Read a whole source into a data set that is cached on disk, one row per document, nulls included.

    It has the columns that are used and, if some rows may be skipped, `bad_row`. In a folder of text files that is
    given as a data set, each line is a document. With `streaming` the split of a data set is read into memory: its
    other splits, which `datasets` would fetch and copy, may be too large.
    """
    if source.name is None:
        return _read_files(source, cache_dir)
    cached, place = None if cache_dir is None else str(cache_dir), f"{source.name} ({source.split})"
    if streaming:
        stream = stream_source(source)
        with naming_source(place):
            parts = [Dataset.from_dict(rows, features=stream.features) for rows in stream.iter(_ROWS_PER_READ)]
        if not parts:
            raise ValueError(f"{place} has no row; give another split, or leave it out.")
        return mark_damage(concatenate_datasets(parts), source.layout, place)
    with _naming_data_set(source):
        dataset = _load_local(source.name, source.split)
        if dataset is None:
            dataset = load_dataset(source.name, source.config, split=source.split, cache_dir=cached)
    columns = _content_columns(dataset.features.arrow_schema, place, source.layout)
    return mark_damage(dataset.select_columns(columns), source.layout, place)


def cache_of(source: Source, cache_dir: Path | None) -> Path | None:
    """Return where to cache what is made of a source, or None if that is beside what was read: not of a saved set."""
    folder = Path(source.name or "")
    if source.name is None or not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return None
    return cache_dir or Path(datasets_config.HF_DATASETS_CACHE)


def stream_source(source: Source) -> IterableDataset:
    """Open a source as a stream; nothing is copied to disk. Each file is a shard."""
    if source.name is None:
        options = {"stamps": _stamps(source), "layout": source.layout}
        return IterableDataset.from_generator(_rows_of_files, features=source.layout.features, gen_kwargs=options)
    with _naming_data_set(source):
        dataset = _load_local(source.name, source.split)
        if dataset is None:
            stream = load_dataset(source.name, source.config, split=source.split, streaming=True)
        else:
            stream = dataset.to_iterable_dataset(num_shards=max(1, min(64, len(dataset))))
        stream = stream._resolve_features()
    place = f"{source.name} ({source.split})"
    if stream.features is None:
        raise ValueError(f"{place} has no row; give another split, or leave it out.")
    return stream.select_columns(_content_columns(stream.features.arrow_schema, place, source.layout))


# Identity


def sources_fingerprint(sources: Sequence[Source]) -> str:
    """Return the sha256 of what identifies these sources."""
    text = json.dumps([source_identity(source) for source in sources], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def source_identity(source: Source) -> dict[str, Any]:
    """
    Return what identifies a source: its files, or the name of its data set on the Hub.

    Files are identified by name, size and content, wherever they are copied to; if they are large, by the time of
    their last change, because reading their content would take minutes.
    """
    values = dataclasses.asdict(source)
    values.pop("setting")
    if source.name is None:
        values["files"] = _identify(find_files(source))
    elif Path(source.name).is_dir():
        # Without what is hidden, and what `datasets` caches or has not finished there.
        folder = Path(source.name)
        values["files"] = _identify(
            path
            for path in sorted(folder.rglob("*.*"))
            if path.is_file()
            and not path.name.startswith("cache-")
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
    return values


def _identify(files: Any) -> list[tuple[str, int, str | int]]:
    found = [(path, path.stat()) for path in files]
    if sum(stat.st_size for _, stat in found) > _MOST_HASHED:
        # In seconds: not every way of copying keeps more.
        return [(path.name, stat.st_size, int(stat.st_mtime)) for path, stat in found]
    return [(path.name, stat.st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for path, stat in found]


# Files. The builders of `datasets` were tried in place of these readers (version 5.2): JSON lines take 0.30 s for 18 MB
# with them and 0.36 s here, beside 6 s of tokenizing. But a row without the column becomes a null, a column with one
# number turns every text into quoted JSON, other columns must have one type in all files, "\r\n" becomes "\n", and an
# error has neither file nor line, nor can the row be skipped.


class BadRow(ValueError):
    """A row that cannot be read: the message names the file and the row, and says what to do."""


def _read_files(source: Source, cache_dir: Path | None) -> Dataset:
    """
    Read the rows of files, in the order of the patterns, sorted within each.

    A file that is neither JSON nor a table is one document of UTF-8 text. The rows are cached by `datasets` under the
    paths, sizes and times of change of the files.
    """
    stamps = _stamps(source)
    try:
        dataset = Dataset.from_generator(
            _rows_of_files,
            features=source.layout.features,
            # Tuples: datasets takes a list for work that can be divided among processes.
            gen_kwargs={"stamps": tuple(stamps), "layout": source.layout},
            writer_batch_size=64,
            cache_dir=None if cache_dir is None else str(cache_dir),
        )
    except DatasetGenerationError as error:
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        if isinstance(cause, OSError):
            place = cache_dir or "the cache of datasets (HF_DATASETS_CACHE)"
            raise OSError(
                f"{source.setting}: what was read cannot be written to {place}: {cause}; give it more room."
            ) from error
        raise
    logger.debug("%s: %d documents from %d files", source.setting, len(dataset), len(stamps))
    return dataset


def find_files(source: Source) -> list[Path]:
    """Return the files of a source, each once, and refuse empty ones, unless they are to be skipped later."""
    found: dict[Path, Path] = {}
    setting = source.setting
    for pattern in source.files:
        named = Path(pattern).expanduser()
        matches = sorted(Path(match) for match in glob.glob(str(named), recursive=True))  # noqa: PTH207 (absolute globs)
        files = [named] if named.is_file() else [match for match in matches if match.is_file()]
        if named.is_dir():
            raise FileNotFoundError(f"{setting}: {pattern} is a folder; name its files, such as {named}/**/*.txt.")
        for path in matches:
            if not path.exists():
                raise FileNotFoundError(f"{setting}: {path} links to {path.readlink()}, which is not there; repair it.")
        if not files and glob.has_magic(pattern):
            raise FileNotFoundError(f"{setting}: no file matches {pattern!r} in {Path.cwd()}; correct the pattern.")
        if not files:
            raise FileNotFoundError(f"{setting}: there is no file {pattern}; give the path of an existing file.")
        for path in files:
            found.setdefault(path.resolve(), path)
    for path in found.values():
        if path.stat().st_size == 0 and (source.holds_token_files or not source.layout.skip):
            raise ValueError(f"{setting}: {path} is empty; leave it out or give a file with text.")
    return list(found.values())


def _stamps(source: Source) -> list[tuple[str, int, int]]:
    paths = find_files(source)
    return [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _rows_of_files(stamps: Sequence[tuple[str, int, int]], layout: Layout) -> Iterator[dict[str, Any]]:
    empty = dict.fromkeys(layout.features)
    for name, size, _ in stamps:
        count = 0
        if size:
            for count, row in enumerate(read_rows(Path(name), layout), start=1):  # noqa: B007 (the number of rows)
                yield {**empty, BAD_ROW: str(row)} if isinstance(row, BadRow) else {**empty, **row}
        if count == 0:
            reason = f"{name} holds no document; leave it out or give a file with text."
            if not layout.skip:
                raise ValueError(reason)
            yield {**empty, BAD_ROW: reason}


def read_rows(path: Path, layout: Layout) -> Iterator[dict[str, Any] | BadRow]:
    """
    Yield the rows of one file, in order, with the columns that are used; a bad one is raised, or yielded if skipped.

    One row (one batch of a table, a whole JSON list) is held in memory.
    """
    kind, _ = _kind_of(path)
    if kind == ".bin":
        raise ValueError(
            f"{path} holds tokens; name token files by their ending, such as {path.parent}/*.bin, without other files."
        )
    if kind not in (".parquet", ".arrow", *_JSON) and layout.rows != "text":
        raise ValueError(f"{path} is a text file, but rows is {layout.rows!r}; give JSON, Parquet or Arrow files.")
    read = _read_table if kind in _TABLES else _read_json if kind in _JSON else _read_text
    try:
        for place, value in read(path, layout):
            try:
                row: dict[str, Any] | BadRow = _checked_row(value, place, layout)
            except BadRow as bad:
                if not layout.skip:
                    raise
                row = bad
            yield row
    except BadRow as bad:  # what follows in the file is lost
        if not layout.skip:
            raise
        yield bad


# Where a row is, and the row, its line of JSON, or what is wrong with it.
_Item = tuple[str, Any]


def _kind_of(path: Path) -> tuple[str, str]:
    """Return the ending of `path` that says what it holds, and that of its compression (or an empty string)."""
    suffixes = ["", *(suffix.lower() for suffix in path.suffixes)]
    return (suffixes[-2], suffixes[-1]) if suffixes[-1] in _COMPRESSED else (suffixes[-1], "")


def _open(path: Path) -> BinaryIO:
    compression = _kind_of(path)[1]
    if compression == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if compression == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if compression:
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), _BYTES_PER_READ)
    return path.open("rb", buffering=_BYTES_PER_READ)


def _unreadable(path: Path, place: str, error: Exception) -> BadRow:
    # An error of the system has a number; damage within the file has none.
    if not _kind_of(path)[1] or getattr(error, "errno", None) is not None:
        return BadRow(f"{place}: the file cannot be read ({error}); make it readable, or leave it out.")
    return BadRow(f"{place}: the compressed file is damaged or cut off ({error}); fetch or compress it again.")


def _read_text(path: Path, layout: Layout) -> Iterator[_Item]:
    try:
        with _open(path) as file:
            data = file.read(layout.most_bytes + 1)
    except _FILE_ERRORS as error:
        raise _unreadable(path, str(path), error) from error
    if len(data) > layout.most_bytes:
        raise too_long(str(path), layout)
    yield str(path), {layout.column: _decode(data, str(path))}


def _read_json(path: Path, layout: Layout) -> Iterator[_Item]:
    """Read JSON lines, or one JSON list, which is held whole."""
    # A row holds a document and its other fields, escaped: \\u0041 is one letter.
    longest, number = 3 * layout.most_bytes + _BYTES_PER_READ, 0
    try:
        with _open(path) as file:
            start = file.read(256)
        with _open(path) as file:
            if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
                for number, item in enumerate(_parse_json(file.read(), str(path)), start=1):
                    yield f"{path}, item {number}", item
                return
            for number, line in enumerate(_lines(file, longest), start=1):
                place = f"{path}, line {number}"
                if line is None:
                    yield place, too_long(place, layout)
                elif not line.isspace():
                    yield place, line
    except _FILE_ERRORS as error:
        raise _unreadable(path, f"{path}, after line {number}", error) from error


def _decode(data: bytes, place: str) -> str:
    try:
        # Not by utf-8-sig: the position in the message is the position in the data.
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BadRow(
            f"{place} is not UTF-8 text: byte {data[error.start]:#04x} at byte offset {error.start}; convert it to "
            "UTF-8, or give .txt, .jsonl, .json, .csv, .parquet or .arrow files only."
        ) from error


def _parse_json(data: bytes, place: str) -> Any:
    text = _decode(data, place)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(
            f"{place} is damaged ({error}); a JSON file holds one object per line, or one list of objects."
        ) from error


def _lines(file: BinaryIO, limit: int) -> Iterator[bytes | None]:
    """Yield lines; None for one that is longer than `limit` bytes, of which no more than those are ever in memory."""
    while line := file.readline(limit):
        if len(line) < limit or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(_BYTES_PER_READ)) and not rest.endswith(b"\n"):
            pass
        yield None


def _read_table(path: Path, layout: Layout) -> Iterator[_Item]:
    kind, compression = _kind_of(path)
    if compression and kind in (".parquet", ".arrow"):
        raise BadRow(f"{path}: a {kind} file is compressed within; give it without {compression}.")
    number = 0
    rows = {".parquet": _parquet_rows, ".arrow": _arrow_rows}.get(kind, _csv_rows)
    try:
        for number, row in rows(path, layout):
            yield f"{path}, row {number}", row
    except BadRow:
        raise
    except _TABLE_ERRORS as error:
        lost = f" (what follows row {number} is lost)" if number else ""
        raise BadRow(
            f"{path} is not a readable {_TABLES[kind]} file: {str(error).strip()}{lost}; fetch or write it again."
        ) from error


def _parquet_rows(path: Path, layout: Layout) -> Iterator[tuple[int, Any]]:
    """Yield numbered rows, or what is wrong with a row group: the builder of `datasets` gives up the rest of a file."""
    # Mapped: otherwise the columns that are used of a whole row group, which may be the file, are read at once.
    with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
        columns = _content_columns(file.schema_arrow, str(path), layout)
        after = 1
        for group in range(file.metadata.num_row_groups):
            number, after = after, after + file.metadata.row_group(group).num_rows
            reason: object = "fewer rows than the file says"
            try:
                for batch in file.iter_batches(batch_size=_ROWS_PER_READ, columns=columns, row_groups=[group]):
                    batch.validate(full=True)
                    yield from enumerate(batch.to_pylist(), start=number)
                    number += len(batch)
            except _TABLE_ERRORS as error:
                reason = error
            if number < after:
                bad = f"{path}, rows {number} to {after - 1}: damaged ({reason}); fetch or write it again."
                yield number, BadRow(bad)


def _arrow_rows(path: Path, layout: Layout) -> Iterator[tuple[int, Any]]:
    with pa.memory_map(str(path)) as source:
        try:
            stream: Any = pa.ipc.open_stream(source)
            batches = iter(stream)
        except pa.ArrowInvalid:
            stream = pa.ipc.open_file(source)
            batches = (stream.get_batch(index) for index in range(stream.num_record_batches))
        columns = _content_columns(stream.schema, str(path), layout)
        number = 1
        for batch in batches:
            for start in range(0, len(batch), _ROWS_PER_READ):
                rows = batch.select(columns).slice(start, _ROWS_PER_READ)
                # Arrow does not check offsets and characters by itself: wrong ones would crash the process.
                rows.validate(full=True)
                yield from enumerate(rows.to_pylist(), start=number + start)
            number += len(batch)


def _csv_rows(path: Path, layout: Layout) -> Iterator[tuple[int, Any]]:
    separator = "\t" if _kind_of(path)[0] == ".tsv" else ","
    with _open(path) as file:
        # As written: a text may be "NA" or "007".
        frames = pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, chunksize=_ROWS_PER_READ)
        for frame in frames:
            if layout.column not in frame:
                raise _missing_column(str(path), layout, frame.columns)
            if not isinstance(frame.index, pd.RangeIndex):  # pandas would take the first fields for names of rows
                raise BadRow(f"{path}: rows have more fields than the header has columns; name every column.")
            for index, text in frame[layout.column].items():
                yield index + 1, {layout.column: text if isinstance(text, str) else None}


def _content_columns(schema: Any, place: str, layout: Layout) -> list[str]:
    """Return the columns of a table that are read, after checking that they hold what they should."""
    if layout.content_column not in schema.names:
        raise _missing_column(place, layout, schema.names)
    kind = schema.field(layout.content_column).type
    value = getattr(kind, "value_type", None)  # of a list, or of a dictionary
    content = value if pa.types.is_dictionary(kind) else kind
    if layout.rows == "text" and content not in {pa.string(), pa.large_string(), pa.string_view()}:
        raise BadRow(
            f"Column {layout.column!r} of {place} holds {kind}, not text; set text_column to a column of strings "
            f"({_names(schema.names)})."
        )
    if layout.rows == "tokens" and not (value and (pa.types.is_integer(value) or pa.types.is_null(value))):
        raise BadRow(f"Column {TOKENS!r} of {place} holds {kind}; rows of tokens are lists of whole numbers.")
    if layout.rows == "messages" and not (value and pa.types.is_struct(value)):
        raise BadRow(
            f"Column {MESSAGES!r} of {place} holds {kind}; rows of messages are lists of objects with 'role' and "
            "'content'."
        )
    return [layout.content_column, *([LABELS] if layout.rows == "tokens" and LABELS in schema.names else [])]


# Rows


def _checked_row(row: Any, place: str, layout: Layout) -> dict[str, Any]:
    """Return the part of a row that is used, or raise what is wrong with it."""
    if isinstance(row, BadRow):
        raise row
    if isinstance(row, bytes):
        row = _parse_json(row, place)
    if not isinstance(row, dict):
        raise BadRow(f"{place} holds a {type(row).__name__}, not an object with the field {layout.content_column!r}.")
    if layout.content_column not in row:
        raise _missing_column(place, layout, row)
    value = row[layout.content_column]
    if layout.rows == "tokens":
        labels = None if value is None else row.get(LABELS)
        if reason := wrong_tokens(value, labels):
            raise BadRow(f"{place}: {reason}; repair the row.")
        return {TOKENS: value, LABELS: labels}
    return {layout.content_column: None if value is None else _checked_text(value, place, layout)}


def _checked_text(value: Any, place: str, layout: Layout) -> str:
    if layout.rows == "messages":
        if not isinstance(value, list) or not all(isinstance(item, dict) and "role" in item for item in value):
            raise BadRow(f"{place}: 'messages' must be a list of objects with 'role' and 'content'; repair the row.")
        value = json.dumps(value, ensure_ascii=False)
    elif not isinstance(value, str):
        raise BadRow(
            f"{place}: {layout.column!r} holds {type(value).__name__}, not text; set text_column to a field of strings."
        )
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError as error:
        raise BadRow(
            f"{place}: {layout.content_column!r} holds half a surrogate pair, which no encoding allows; repair it."
        ) from error
    if size > layout.most_bytes:
        raise too_long(place, layout)
    return str(value)


def wrong_tokens(tokens: Any, labels: Any) -> str:
    """Return what is wrong with tokens and their labels (-100 where a token does not count), if there are any."""
    for name, values in ((TOKENS, tokens), (LABELS, labels)):
        try:
            array = np.asarray([] if values is None else values)
        except ValueError:  # lists of unequal lengths
            array = np.empty((0, 0))
        if array.ndim != 1 or not (len(array) == 0 or np.issubdtype(array.dtype, np.integer)):
            return f"{name!r} must be a list of whole numbers"
        counted = array[array != IGNORED_LABEL] if name == LABELS else array
        if len(counted) and (counted.max() > _INT32.max or counted.min() < 0):
            return f"{name!r} has {int(counted.max())} or {int(counted.min())}, which is no token id"
    if tokens is not None and labels is not None and len(labels) != len(tokens):
        return f"{len(tokens)} tokens but {len(labels)} labels; give one label per token, -100 where it does not count"
    return ""


def too_long(place: str, layout: Layout) -> BadRow:
    """Return the error of a document that is longer than is allowed."""
    return BadRow(
        f"{place} is longer than max_document_bytes ({layout.most_bytes:,}); split the document, or raise "
        "max_document_bytes (tokenizing takes about 100 times as much memory)."
    )


def _missing_column(place: str, layout: Layout, columns: Any) -> BadRow:
    setting = "set text_column to one of"
    if layout.rows != "text":
        setting = f"rows of {layout.rows} have it; set rows to what these hold. There are"
    return BadRow(f"{place} has no column {layout.content_column!r}; {setting} {_names(columns)}.")


def _names(columns: Any) -> str:
    return ", ".join(repr(str(column)) for column in columns) or "none at all"


# Data sets by name


def mark_damage(dataset: Dataset, layout: Layout, place: str) -> Dataset:
    """Return a data set with too long texts, and wrong tokens, marked as bad rows; raise a text if not skipped."""
    if len(dataset) == 0:
        return dataset
    reasons: dict[int, BadRow] = {}
    if layout.rows == "text":
        sizes = pc.binary_length(dataset.data.column(layout.column)).fill_null(0).to_numpy()
        if dataset._indices is not None:
            sizes = sizes[dataset._indices.column(0).to_numpy()]
        long = np.flatnonzero(sizes > layout.most_bytes).tolist()
        reasons = {number: too_long(f"{place}, row {number + 1}", layout) for number in long}
    elif layout.rows == "tokens" and layout.skip:
        found = enumerate(wrong_tokens(row[TOKENS], row.get(LABELS)) for row in dataset)
        reasons = {number: BadRow(f"{place}, row {number + 1}: {reason}") for number, reason in found if reason}
    if not reasons:
        return dataset
    if not layout.skip:
        raise next(iter(reasons.values()))
    bad = [str(reasons[number]) if number in reasons else None for number in range(len(dataset))]
    fingerprint = Hasher.hash((dataset._fingerprint, BAD_ROW, layout.most_bytes, list(reasons)))
    return dataset.add_column(BAD_ROW, pa.array(bad, pa.string()), new_fingerprint=fingerprint)


@contextmanager
def naming_source(place: str) -> Iterator[None]:
    """Name the source of what `datasets` cannot read."""
    try:
        yield
    except (DatasetGenerationError, pa.ArrowException) as error:
        raise ValueError(
            f"{place} cannot be read: {error.__cause__ or error}; repair it, or give its files by train_files, which "
            "names the damaged one."
        ) from error


@contextmanager
def _naming_data_set(source: Source) -> Iterator[None]:
    place = f"{source.name} ({source.split})"
    try:
        with naming_source(place):
            yield
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise ValueError(
            f"{place} is made by a loading script, which datasets does not run. The Hub may have a copy in Parquet: "
            f"hf download {source.name} --repo-type dataset --revision refs/convert/parquet --local-dir copy; give its "
            "files by train_files."
        ) from error
    except ValueError as error:
        raise error if str(error).startswith(str(source.name)) else ValueError(f"{place}: {error}") from error


def _load_local(name: str, split: str) -> Dataset | None:
    """Return the split if it is on this machine in the format of `datasets`."""
    folder = Path(name)
    if folder.is_file():
        raise FileNotFoundError(f"dataset_name: {name} is a file; give it by train_files.")
    if name.startswith((".", "/")) and not folder.is_dir():
        raise FileNotFoundError(f"dataset_name: there is no folder {name}; give a folder of a data set, or a Hub id.")
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        if split not in splits:
            raise ValueError(f"{name} has no split {split!r}; its splits are {_names(splits)}.")
        return _stamped(load_saved(folder / split, "write it again with save_to_disk"))
    if not (folder / "state.json").is_file():
        return None
    if split != "train":
        raise ValueError(f"{name} is one saved data set without splits, got the split {split!r}; leave it at 'train'.")
    return _stamped(load_saved(folder, "write it again with save_to_disk"))


def _stamped(dataset: Dataset) -> Dataset:
    """Return a saved set whose fingerprint, by which caches know it, tells that its files were written again."""
    # The one that it was saved with stays the same where a function that was mapped over it has changed.
    stats = [Path(item["filename"]).stat() for item in dataset.cache_files]
    dataset._fingerprint = Hasher.hash((dataset._fingerprint, [(stat.st_size, stat.st_mtime_ns) for stat in stats]))
    return dataset


def load_saved(folder: Path, advice: str) -> Dataset:
    """Load a data set that `save_to_disk` wrote; a `ValueError` names a folder that is damaged, with `advice`."""
    try:
        return load_from_disk(folder)
    except IndexError as error:  # datasets writes a set without rows, but does not read it
        raise ValueError(f"{folder} has no row; give another split, or leave it out.") from error
    except (AttributeError, KeyError, OSError, TypeError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{folder} cannot be read ({type(error).__name__}: {error}); {advice}.") from error
