"""Where documents come from: files, folders of data sets, the Hub; each becomes a data set with one text column."""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

logger = logging.getLogger(__name__)

JSON_SUFFIXES = (".jsonl", ".json")


def read_files(patterns: Sequence[str], text_column: str, setting: str) -> Dataset:
    """
    Read the documents of text, JSONL, JSON and Parquet files, in the order of the patterns, sorted within each.

    A file of any other ending is one document of UTF-8 text. What was read is cached by `datasets`, under the paths,
    sizes and times of change of the files.

    Args:
        patterns (`Sequence[str]`): Paths or globs (`**` descends into folders).
        text_column (`str`): Field or column that holds a document in JSONL, JSON and Parquet files.
        setting (`str`): Name of the setting that the patterns come from, for the messages.

    Returns:
        `datasets.Dataset`: One row per document, with the column `text_column`; a null is kept as a null.

    Raises:
        FileNotFoundError: If a pattern matches no file.
        ValueError: If a file is empty, damaged, not UTF-8 or has no such column; the message names file and place.
    """
    paths = find_files(patterns, setting)
    stamps = tuple((str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
    try:
        dataset = Dataset.from_generator(
            _read_rows,
            features=Features({text_column: Value("large_string")}),
            # Tuples: datasets takes a list for work that can be divided among processes.
            gen_kwargs={"stamps": stamps, "text_column": text_column},
            writer_batch_size=64,
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    logger.info("%s: %d documents from %d files", setting, len(dataset), len(paths))
    return dataset


def find_files(patterns: Sequence[str], setting: str) -> list[Path]:
    """
    Return the files that `patterns` match, each once, and refuse empty ones.

    Raises:
        FileNotFoundError: If a pattern matches no file.
        ValueError: If a file is empty.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        named = Path(pattern).expanduser()
        matches = sorted(Path(match) for match in glob.glob(str(named), recursive=True))  # noqa: PTH207 (absolute globs)
        files = [named] if named.is_file() else [match for match in matches if match.is_file()]
        if named.is_dir():
            raise FileNotFoundError(f"{setting}: {pattern} is a folder; name its files, such as {pattern}/**/*.txt.")
        if not files and glob.has_magic(pattern):
            raise FileNotFoundError(f"{setting}: no file matches {pattern!r} in {Path.cwd()}; correct the pattern.")
        if not files:
            raise FileNotFoundError(f"{setting}: there is no file {pattern}; give the path of an existing file.")
        for path in files:
            found.setdefault(path.resolve(), path)
    for path in found.values():
        if path.stat().st_size == 0:
            raise ValueError(f"{setting}: {path} is empty; leave it out or give a file with text.")
    return list(found.values())


def read_dataset(name: str, config_name: str | None, split: str, text_column: str) -> Dataset:
    """
    Read one split of a data set from the Hub, a local folder of files, or a folder that `save_to_disk` wrote.

    Its rows are the documents: for a folder of text files those would be their lines, so name the files instead.

    Raises:
        FileNotFoundError: If `name` is a path and there is no such folder.
        ValueError: If there is no such split, or no text in `text_column`.
    """
    folder = Path(name)
    if name.startswith((".", "/")) and not folder.is_dir():
        raise FileNotFoundError(f"dataset_name: there is no folder {name}; give a folder of a data set, or a Hub id.")
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        dataset = _saved_split(load_from_disk(name), name, split)
    else:
        dataset = load_dataset(name, config_name, split=split)
    require_text_column(dataset, text_column, f"{name} ({split})")
    return dataset.select_columns([text_column])


def require_text_column(dataset: Dataset, text_column: str, source: str) -> None:
    """Raise a `ValueError` that names the columns of `dataset` if `text_column` is not one of them, or not text."""
    if text_column not in dataset.features:
        raise ValueError(_missing_column(source, text_column, dataset.column_names))
    feature = dataset.features[text_column]
    if not isinstance(feature, Value) or feature.dtype not in ("string", "large_string"):
        raise ValueError(
            f"Column {text_column!r} of {source} holds {getattr(feature, 'dtype', feature)}, not text; "
            f"set text_column to a column of strings ({_names(dataset.column_names)})."
        )


def _saved_split(saved: Dataset | DatasetDict, name: str, split: str) -> Dataset:
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise ValueError(f"{name} has no split {split!r}; its splits are {_names(saved)}.")
        return saved[split]
    if split != "train":
        raise ValueError(f"{name} is one saved data set without splits, got the split {split!r}; leave it at 'train'.")
    return saved


def _read_rows(stamps: Sequence[tuple[str, int, int]], text_column: str) -> Iterator[dict[str, str | None]]:
    for name, _, _ in stamps:
        path = Path(name)
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            texts = _read_parquet(path, text_column)
        elif suffix in JSON_SUFFIXES:
            texts = _read_json(path, text_column)
        else:
            texts = iter([_read_text(path)])
        count = 0
        for count, text in enumerate(texts, start=1):  # noqa: B007 (the last one is the number of documents)
            yield {text_column: text}
        if count == 0:
            raise ValueError(f"{path} holds no document; leave it out or give a file with text.")


def _read_text(path: Path) -> str:
    try:
        # Decoded as a whole, so that the position in the message is the position in the file.
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} at byte offset {error.start}; "
            "convert it to UTF-8, or give .txt, .jsonl, .json or .parquet files only."
        ) from error


def _read_json(path: Path, text_column: str) -> Iterator[str | None]:
    with path.open("rb") as lines:
        is_list = lines.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    if is_list:
        rows = _parse_json(_read_text(path), str(path))
        for number, row in enumerate(rows, start=1):
            yield _json_document(row, text_column, f"{path}, item {number}")
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path}, line {number}"
            if line.strip():
                try:
                    text = line.decode("utf-8-sig")
                except UnicodeDecodeError as error:
                    raise ValueError(f"{place} is not UTF-8 text ({error.reason}); convert the file.") from error
                yield _json_document(_parse_json(text, place), text_column, place)


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{place} is damaged ({error}); a JSON file holds one object per line, or one list of objects."
        ) from error


def _json_document(row: Any, text_column: str, place: str) -> str | None:
    if not isinstance(row, dict):
        raise ValueError(f"{place} holds a {type(row).__name__}, not an object with the field {text_column!r}.")
    if text_column not in row:
        raise ValueError(_missing_column(place, text_column, row))
    text = row[text_column]
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"{place}: {text_column!r} holds {type(text).__name__}, not text; set text_column to a field of strings "
            f"({_names(row)})."
        )
    if text is not None and any(
        "\ud800" <= character <= "\udfff" for character in (text if not text.isascii() else "")
    ):
        raise ValueError(f"{place}: {text_column!r} holds half a surrogate pair, which no encoding allows; repair it.")
    return text


def _read_parquet(path: Path, text_column: str) -> Iterator[str | None]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if text_column not in schema.names:
                raise ValueError(_missing_column(str(path), text_column, schema.names))
            kind = schema.field(text_column).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise ValueError(
                    f"Column {text_column!r} of {path} holds {kind}, not text; set text_column to a column of "
                    f"strings ({_names(schema.names)})."
                )
            for batch in file.iter_batches(batch_size=1024, columns=[text_column]):
                yield from batch.column(0).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error


def _missing_column(source: str, text_column: str, columns: Any) -> str:
    return f"{source} has no column {text_column!r}; set text_column to one of {_names(columns)}."


def _names(columns: Any) -> str:
    return ", ".join(repr(str(column)) for column in columns) or "none at all"
