"""Where documents come from: files, folders of data sets, the Hub, mixtures; as a data set or as a stream."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import logging
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.exceptions import DatasetGenerationError

from ..configuration import DataConfig, reject_unknown_keys
from .data_sets import EMBEDDED, read_dataset, stream_dataset
from .files import read_rows
from .rows import DAMAGE, LABELS, MESSAGES, TOKENS, Damage, Layout

logger = logging.getLogger(__name__)

TOKEN_FILE = ".bin"

# Bytes of files that are read to tell a source from another: a fraction of a second.
_READ_WHOLE = 256_000_000

_SOURCE_KEYS = {"dataset_name", "dataset_config", "split", "files", "text_column", "rows", "weight"}


@dataclass(frozen=True)
class Source:
    """
    One place that documents come from.

    Args:
        setting (`str`): Name of the setting it was given by, for messages.
        layout (`Layout`): How its rows are read.
        files (`tuple[str, ...]`): Paths or globs; or
        name (`str`, *optional*): Hub id or folder of a data set,
        config (`str`, *optional*): its configuration and
        split (`str`): its split.
        weight (`float`, *optional*): Share of the tokens in a mixture, relative to the other sources.
    """

    setting: str
    layout: Layout
    files: tuple[str, ...] = ()
    name: str | None = None
    config: str | None = None
    split: str = "train"
    weight: float | None = None

    @property
    def label(self) -> str:
        """How it is called in facts and messages."""
        if self.name is None:
            return ", ".join(self.files)
        return self.name + (f"/{self.config}" if self.config else "")

    def token_files(self) -> bool:
        """
        Return whether it is made of token files (.bin).

        Raises:
            ValueError: If only some of its files are.
        """
        binary = [name for name in self.files if name.endswith(TOKEN_FILE)]
        if binary and len(binary) < len(self.files):
            raise ValueError(
                f"{self.setting}: {binary[0]} holds tokens and {next(n for n in self.files if n not in binary)} text; "
                "give them as two sources."
            )
        return bool(binary)


def training_sources(config: DataConfig) -> list[Source]:
    """
    Return the sources that `config` trains on.

    Raises:
        ValueError: If there is none, or the mixture has unknown keys, missing names or some weights only.
    """
    layout = _layout(config)
    if config.train_files:
        return [Source("train_files", layout, files=tuple(config.train_files))]
    if config.dataset_name:
        return [Source("dataset_name", layout, (), config.dataset_name, config.dataset_config, config.train_split)]
    if not config.sources:
        raise ValueError("There is nothing to train on; give dataset_name or train_files, or a mixture by sources.")
    found = [_mixed_source(item, number, layout) for number, item in enumerate(config.sources, start=1)]
    weights = [source.weight is not None for source in found]
    if any(weights) and not all(weights):
        raise ValueError(
            f"source {weights.index(False) + 1} has no weight, but another has; give all of them, or none."
        )
    return found


def evaluation_source(config: DataConfig, name: str) -> Source | None:
    """Return the source of the `selection` or `test` set, or None if it is to be carved."""
    files, split = getattr(config, f"{name}_files"), getattr(config, f"{name}_split")
    if files:
        return Source(f"{name}_files", _layout(config), files=tuple(files))
    if split is not None:
        return Source(f"{name}_split", _layout(config), (), config.dataset_name, config.dataset_config, split)
    return None


def _layout(config: DataConfig) -> Layout:
    return Layout(config.rows, config.text_column, config.max_document_bytes, config.damaged_rows == "skip")


def _mixed_source(item: Any, number: int, layout: Layout) -> Source:
    place = f"source {number}"
    if not isinstance(item, Mapping):
        raise ValueError(f"{place} must be a mapping of settings, got {item!r}.")
    reject_unknown_keys(item, _SOURCE_KEYS, place)
    files = item.get("files") or ()
    files = (files,) if isinstance(files, str) else files
    if not isinstance(files, Sequence) or not all(isinstance(name, str) for name in files):
        raise ValueError(f"{place}: files must be a path or a list of paths, got {files!r}.")
    if bool(files) == bool(item.get("dataset_name")):
        raise ValueError(f"{place} needs either dataset_name or files.")
    weight = item.get("weight")
    numeric = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
    if weight is not None and not (numeric and weight > 0):
        raise ValueError(f"{place}: weight must be a number above 0, got {weight!r}; leave the source out instead.")
    rows = item.get("rows", layout.rows)
    if rows not in ("text", "tokens", "messages"):
        raise ValueError(f"{place}: rows must be one of text, tokens, messages, got {rows!r}.")
    layout = dataclasses.replace(layout, rows=rows, column=item.get("text_column", layout.column))
    named = (item.get("dataset_name"), item.get("dataset_config"), item.get("split", "train"))
    return Source(place, layout, tuple(files), *named, None if weight is None else float(weight))


# As a data set


def read_source(source: Source, cache_dir: Path | None = None) -> Dataset:
    """
    Read a whole source into a data set that is cached on disk; a null is kept as a null.

    Returns:
        `datasets.Dataset`: One row per document: the wanted columns and, if some may be skipped, `damage`.

    Raises:
        FileNotFoundError: If a pattern matches no file, or there is no such folder.
        ValueError: If something cannot be read; the message names file and place.
    """
    if source.name is None:
        return read_files(source.files, source.layout, source.setting, cache_dir)
    return read_dataset(source.name, source.config, source.split, source.layout, cache_dir)


def read_files(patterns: Sequence[str], layout: Layout, setting: str, cache_dir: Path | None = None) -> Dataset:
    """
    Read the rows of files, in the order of the patterns, sorted within each.

    A file that is neither JSON, Parquet nor Arrow is one document of UTF-8 text. What was read is cached by
    `datasets`, under the paths, sizes and times of change of the files.

    Raises:
        FileNotFoundError: If a pattern matches no file.
        OSError: If what was read cannot be written.
        ValueError: If a file is empty, or damaged, or has no such column; the message names file and place.
    """
    stamps = _stamps(find_files(patterns, setting, layout.skip))
    try:
        dataset = Dataset.from_generator(
            _rows_of_files,
            features=_features(layout),
            # Tuples: datasets takes a list for work that can be divided among processes.
            gen_kwargs={"stamps": tuple(stamps), "layout": layout},
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
                f"{setting}: what was read cannot be written to {place}: {cause}; give it more room."
            ) from error
        raise
    logger.info("%s: %d documents from %d files", setting, len(dataset), len(stamps))
    return dataset


def find_files(patterns: Sequence[str], setting: str, skip: bool = False) -> list[Path]:
    """
    Return the files that `patterns` match, each once, and refuse empty ones, unless they are to be skipped later.

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
        if path.stat().st_size == 0 and not skip:
            raise ValueError(f"{setting}: {path} is empty; leave it out or give a file with text.")
    return list(found.values())


# As a stream


def stream_source(source: Source) -> IterableDataset:
    """
    Open a source as a stream; nothing is copied to disk. Each file is a shard.

    Raises:
        FileNotFoundError: If a pattern matches no file, or there is no such folder.
        ValueError: If a file is empty, there is no such split, or no text in the column.
    """
    if source.name is None:
        stamps = _stamps(find_files(source.files, source.setting, source.layout.skip))
        return IterableDataset.from_generator(
            _rows_of_files, features=_features(source.layout), gen_kwargs={"stamps": stamps, "layout": source.layout}
        )
    return stream_dataset(source.name, source.config, source.split, source.layout)


def source_identity(source: Source) -> dict[str, Any]:
    """
    Return what tells a source from another: its files, or the name of its data set on the Hub.

    Files are known by name, size and content, wherever they are copied to; if they are large, by the time of their last
    change instead of the content, which would take minutes to read.
    """
    values = dataclasses.asdict(source)
    values.pop("setting")
    if source.name == EMBEDDED:
        values["version"] = platform.python_version()
    elif source.name is None:
        values["files"] = _identities(find_files(source.files, source.setting, source.layout.skip))
    elif Path(source.name).is_dir():
        values["files"] = _identities(_files_of_folder(Path(source.name)))
    return values


def _files_of_folder(folder: Path) -> list[Path]:
    """Return the files of a data set, without what is hidden, and what `datasets` caches or has not finished there."""
    return [
        path
        for path in sorted(folder.rglob("*.*"))
        if path.is_file()
        and not path.name.startswith("cache-")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _identities(paths: Sequence[Path]) -> list[tuple[str, int, str | int]]:
    sizes = [path.stat().st_size for path in paths]
    if sum(sizes) > _READ_WHOLE:
        # In seconds: not every way of copying keeps more.
        return [(path.name, size, int(path.stat().st_mtime)) for path, size in zip(paths, sizes, strict=True)]
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return list(zip([path.name for path in paths], sizes, contents, strict=True))


def sources_fingerprint(sources: Sequence[Source]) -> str:
    """Return the sha256 of what tells these sources from others; large ones are not read for it."""
    text = json.dumps([source_identity(source) for source in sources], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _stamps(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    return [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _rows_of_files(stamps: Sequence[tuple[str, int, int]], layout: Layout) -> Iterator[dict[str, Any]]:
    empty = dict.fromkeys(_features(layout))
    for name, size, _ in stamps:
        count = 0
        if size:
            for count, row in enumerate(read_rows(Path(name), layout), start=1):  # noqa: B007 (the number of rows)
                yield {**empty, DAMAGE: str(row)} if isinstance(row, Damage) else {**empty, **row}
        if count == 0:
            reason = f"{name} holds no document; leave it out or give a file with text."
            if not layout.skip:
                raise ValueError(reason)
            yield {**empty, DAMAGE: reason}


def _features(layout: Layout) -> Features:
    columns: dict[str, Any] = {
        "text": {layout.column: Value("large_string")},
        "tokens": {TOKENS: List(Value("int32")), LABELS: List(Value("int32"))},
        "messages": {MESSAGES: Value("large_string")},
    }[layout.rows]
    return Features({**columns, DAMAGE: Value("string")})
