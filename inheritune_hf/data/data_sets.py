"""Data sets by name: of the Hub, of a local folder, saved by `datasets`, or the embedded one; copied or streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow  # type: ignore[import-untyped]
import pyarrow.compute  # type: ignore[import-untyped]
from datasets import Dataset, Features, IterableDataset, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

from .corpora import standard_library_documents
from .rows import DAMAGE, LABELS, MESSAGES, TOKENS, Layout, missing_column, names, too_long

#: Name of the data set that is on every machine: the source of the interpreter's own library.
EMBEDDED = "standard_library"


def read_dataset(
    name: str, config_name: str | None, split: str, layout: Layout, cache_dir: Path | None = None
) -> Dataset:
    """
    Read one split of a data set from the Hub, a local folder of files, a folder that `save_to_disk` wrote, or the
    embedded one.

    Its rows are the documents: for a folder of text files those would be their lines, so name the files instead.

    Returns:
        `datasets.Dataset`: The wanted columns and, if a document is too long and skipped, `damage`.

    Raises:
        FileNotFoundError: If `name` is a path and there is no such folder.
        ValueError: If there is no such split, no text in the column, or a document is too long.
    """
    cached = None if cache_dir is None else str(cache_dir)
    with _named(name, split):
        dataset = _local(name, split)
        if dataset is None:
            dataset = load_dataset(name, config_name, split=split, cache_dir=cached)
    place = f"{name} ({split})"
    return mark_long(dataset.select_columns(_columns(dataset.features, layout, place)), layout, place)


def mark_long(dataset: Dataset, layout: Layout, place: str) -> Dataset:
    """
    Return a data set whose texts that are too long are marked as damage, as files bring it; by their sizes alone.

    Raises:
        Damage: If there is one and it is not to be skipped.
    """
    if layout.rows != "text" or len(dataset) == 0:
        return dataset
    sizes = (pyarrow.compute.binary_length(part).fill_null(0) for part in dataset.data.column(layout.column).chunks)
    long = np.concatenate([np.asarray(part) > layout.most_bytes for part in sizes])
    if dataset._indices is not None:
        long = long[dataset._indices.column(0).to_numpy()]
    numbers = np.flatnonzero(long).tolist()
    if not numbers:
        return dataset
    reasons = {number: too_long(f"{place}, row {number + 1}", layout) for number in numbers}
    if not layout.skip:
        raise reasons[numbers[0]]
    damage = [str(reasons[number]) if number in reasons else None for number in range(len(dataset))]
    fingerprint = Hasher.hash((dataset._fingerprint, DAMAGE, layout.most_bytes, numbers))
    return dataset.add_column(DAMAGE, pyarrow.array(damage, pyarrow.string()), new_fingerprint=fingerprint)


def stream_dataset(name: str, config_name: str | None, split: str, layout: Layout) -> IterableDataset:
    """
    Open one split of a data set as a stream; nothing is copied to disk.

    Raises:
        FileNotFoundError: If `name` is a path and there is no such folder.
        ValueError: If there is no such split, or no text in the column.
    """
    with _named(name, split):
        dataset = _local(name, split)
        if dataset is None:
            stream = load_dataset(name, config_name, split=split, streaming=True)
        else:
            shards = 8 if name == EMBEDDED else 64
            stream = dataset.to_iterable_dataset(num_shards=max(1, min(shards, len(dataset))))
        if stream.features is None:
            stream = stream._resolve_features()
    if stream.features is None:
        raise ValueError(f"{name} ({split}) has no row; give another split, or leave it out.")
    return stream.select_columns(_columns(stream.features, layout, f"{name} ({split})"))


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Say of what cannot be read where it is."""
    try:
        yield
    except (DatasetGenerationError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{place} cannot be read: {error.__cause__ or error}; repair it, or give its files by train_files, which "
            "names the damaged one."
        ) from error


@contextmanager
def _named(name: str, split: str) -> Iterator[None]:
    place = f"{name} ({split})"
    try:
        with reading(place):
            yield
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise ValueError(
            f"{place} is made by a program, which datasets does not run. The Hub may have a copy in Parquet: "
            f"hf download {name} --repo-type dataset --revision refs/convert/parquet --local-dir copy; give its files "
            "by train_files."
        ) from error
    except ValueError as error:
        raise error if str(error).startswith(name) else ValueError(f"{place}: {error}") from error


def _local(name: str, split: str) -> Dataset | None:
    """Return the split if it is on this machine in the format of `datasets`, or embedded."""
    folder = Path(name)
    if folder.is_file():
        raise FileNotFoundError(f"dataset_name: {name} is a file; give it by train_files.")
    if name.startswith((".", "/")) and not folder.is_dir():
        raise FileNotFoundError(f"dataset_name: there is no folder {name}; give a folder of a data set, or a Hub id.")
    if name == EMBEDDED:
        return _embedded(split)
    if (folder / "dataset_dict.json").is_file():
        splits = _read_state(folder / "dataset_dict.json")["splits"]
        if split not in splits:
            raise ValueError(f"{name} has no split {split!r}; its splits are {names(splits)}.")
        return _saved(folder / split, name)
    if not (folder / "state.json").is_file():
        return None
    if split != "train":
        raise ValueError(f"{name} is one saved data set without splits, got the split {split!r}; leave it at 'train'.")
    return _saved(folder, name)


def _saved(folder: Path, name: str) -> Dataset:
    if (folder / "state.json").is_file() and not _read_state(folder / "state.json")["_data_files"]:
        # datasets writes a set without rows, but does not read it.
        raise ValueError(f"{name} has no row in {folder}; give another split, or leave it out.")
    try:
        return load_from_disk(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read: {error}; write it again with save_to_disk.") from error


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); write the data set again with save_to_disk.") from error
    return state


def _embedded(split: str) -> Dataset:
    if split != "train":
        raise ValueError(f"{EMBEDDED} has no split {split!r}; its evaluation sets are carved, or given as files.")
    texts = [document.text for document in standard_library_documents()]
    return Dataset.from_dict({"text": texts}, features=Features({"text": Value("large_string")}))


def _columns(features: Features, layout: Layout, place: str) -> list[str]:
    """Return the columns of a data set that are read, after checking that they hold what they should."""
    if layout.wanted not in features:
        raise ValueError(missing_column(place, layout, list(features)))
    feature = features[layout.wanted]
    if layout.rows == "text" and (not isinstance(feature, Value) or feature.dtype not in ("string", "large_string")):
        raise ValueError(
            f"Column {layout.column!r} of {place} holds {getattr(feature, 'dtype', feature)}, not text; "
            f"set text_column to a column of strings ({names(features)})."
        )
    items = getattr(feature, "feature", None)
    if layout.rows == "tokens" and not (isinstance(items, Value) and "int" in items.dtype):
        raise ValueError(f"Column {TOKENS!r} of {place} holds {feature}; rows of tokens are lists of whole numbers.")
    if layout.rows == "messages" and not isinstance(items, dict):
        raise ValueError(
            f"Column {MESSAGES!r} of {place} holds {feature}; rows of messages are lists of objects with 'role' and "
            "'content'."
        )
    return [layout.wanted, *([LABELS] if layout.rows == "tokens" and LABELS in features else [])]
