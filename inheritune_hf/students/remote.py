"""Fetch from the Hub, by byte ranges, only the tensors that a student keeps; what was fetched stays in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, tqdm

from ..records import write_json
from .connection import Location, NoRanges, read_range

Choose = Callable[[Iterable[str]], Mapping[str, str]]

#: Bytes that one request asks for at most; so much is lost at most, for each connection, when a process is killed.
PIECE = 2**25
#: Connections at once.
CONNECTIONS = 8

# Unwanted bytes between wanted ones are read, to save a request, as long as they are together this share of all.
_WASTE = 0.01
# What a first request asks for: the headers of nearly all published files are shorter.
_HEADER = 100_000


@dataclass(frozen=True)
class RemoteFile:
    """
    One safetensors file of a repository of the Hub.

    Args:
        repository (`str`): Id of the repository.
        name (`str`): Path of the file within it.
        revision (`str`, *optional*): Branch, tag or commit; only a commit can be looked up in the cache.
        token (`str` or `bool`, *optional*): Token for private repositories.
        cache_dir (`str` or `Path`, *optional*): Folder of the download cache, if not the usual one.
    """

    repository: str
    name: str
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None

    def folder(self, commit: str | None = None) -> Path:
        """Return the folder of the cache that holds what was fetched of the file at a commit."""
        cache = Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser()
        repository = cache / repo_folder_name(repo_id=self.repository, repo_type="model")
        return repository / "inheritune" / (commit or self.revision or "main") / self.name

    def __str__(self) -> str:
        return f"{self.name} of {self.repository!r}"


@dataclass(frozen=True)
class Header:
    """
    What a safetensors file on the Hub holds.

    Args:
        commit (`str`): Commit that it belongs to.
        etag (`str`, *optional*): What the Hub calls its content.
        size (`int`): Its size in bytes.
        begin (`int`): Where its data begin, in bytes.
        tensors (`Mapping[str, dict]`): By name: `dtype`, `shape` and `data_offsets`, in bytes from `begin`.
    """

    commit: str
    etag: str | None
    size: int
    begin: int
    tensors: Mapping[str, Mapping[str, Any]]

    def bytes_of(self, names: Iterable[str]) -> int:
        """Return the bytes of some of the tensors."""
        offsets = (self.tensors[name]["data_offsets"] for name in names)
        return sum(end - begin for begin, end in offsets)


class Span(NamedTuple):
    """Neighbouring bytes that are wanted: where they are in the file on the Hub, and where they go in ours."""

    begin: int
    end: int
    target: int


def at_hand(file: RemoteFile) -> Header | None:
    """Return what is known of the file from the cache, or None if nothing of it was fetched."""
    try:
        values = json.loads((file.folder() / _SOURCE).read_text(encoding="utf-8"))
        return Header(**values)
    except (OSError, ValueError, TypeError):
        return None


def read_header(file: RemoteFile, sleep: Callable[[float], None] | None = None) -> Header:
    """
    Return what the file holds; its header is fetched unless it is in the cache.

    Args:
        file (`RemoteFile`): The file.
        sleep (`Callable`, *optional*): Waits so many seconds before a request is made again.

    Raises:
        NoRanges: If the server does not give parts of files.
        OSError: If the Hub does not give the file, or it is no safetensors file.
    """
    known = at_hand(file)
    return known or _fetch_header(file, Location(file.repository, file.name, file.revision, file.token, sleep))


def fetched_names(file: RemoteFile) -> frozenset[str]:
    """Return the names of the tensors that are in the cache."""
    return frozenset(name for names in _parts(file.folder()).values() for name in names)


def fetch_tensors(
    file: RemoteFile, choose: Choose, refresh: bool = False, sleep: Callable[[float], None] | None = None
) -> list[Path]:
    """
    Return safetensors files in the cache that together hold the file's kept tensors; what is missing is fetched.

    Nothing else is fetched than the kept tensors, headers, and small gaps that save a request. An interrupted fetch
    goes on where it was, in this process and in the next.

    Args:
        file (`RemoteFile`): The file.
        choose (`Callable`): Given names in files, returns for each kept one its name for the student.
        refresh (`bool`, *optional*, defaults to `False`): Fetch again what is in the cache.
        sleep (`Callable`, *optional*): Waits so many seconds before a request is made again.

    Raises:
        NoRanges: If the server does not give parts of files, so that the whole file must be fetched.
        OSError: If the Hub does not give the file, or connections break again and again; running it again goes on.
    """
    known = None if refresh else at_hand(file)
    if known is not None and not _missing(file.folder(), choose(known.tensors)):
        return _files_with(file.folder(), choose(known.tensors))
    location = Location(file.repository, file.name, file.revision, file.token, sleep)
    folder = file.folder(location.commit)
    folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder / ".lock"):
        if refresh:
            for part in (*folder.glob("*.safetensors"), *folder.glob("*.progress"), folder / _SOURCE):
                part.unlink(missing_ok=True)
        header = known or _fetch_header(file, location)
        wanted = choose(header.tensors)
        missing = _missing(folder, wanted)
        if missing:
            _fetch(file, location, header, missing, folder)
    return _files_with(folder, wanted)


# What the cache holds

_SOURCE = "source.json"


def _parts(folder: Path) -> dict[Path, list[str]]:
    """Return the names of the tensors in each file that was fetched."""
    return {path: list(_read_own_header(path)) for path in sorted(folder.glob("*.safetensors"))}


def _read_own_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return header


def _missing(folder: Path, wanted: Iterable[str]) -> list[str]:
    there = {name for names in _parts(folder).values() for name in names}
    return sorted(set(wanted) - there)


def _files_with(folder: Path, wanted: Iterable[str]) -> list[Path]:
    names = set(wanted)
    return [path for path, held in _parts(folder).items() if names & set(held)]


# What is fetched


def _fetch_header(file: RemoteFile, location: Location) -> Header:
    if location.size == 0:
        raise NoRanges("does not say how long the file is")
    first = _read(location, 0, min(_HEADER, location.size))
    length = int.from_bytes(first[:8], "little")
    if not 2 <= length <= location.size - 8:
        raise OSError(f"{file} is not a safetensors file: its header cannot be {length} bytes long.")
    text = first[8 : 8 + length] + _read(location, len(first), 8 + length)
    try:
        tensors = json.loads(text)
        tensors.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{file} is not a safetensors file: its header cannot be read ({error}).") from error
    if 8 + length + end != location.size:
        raise OSError(f"{file} is not whole: its tensors end at byte {8 + length + end}, not at {location.size}.")
    header = Header(location.commit, location.etag, location.size, 8 + length, tensors)
    write_json(file.folder(location.commit) / _SOURCE, vars(header))
    return header


def _read(location: Location, begin: int, end: int) -> bytes:
    found = bytearray()
    if begin < end:
        read_range(location, begin, end, lambda _, piece: found.extend(piece))
    return bytes(found)


def _fetch(file: RemoteFile, location: Location, header: Header, names: Sequence[str], folder: Path) -> None:
    """Fetch the named tensors into one new safetensors file."""
    if (header.etag, header.size) != (location.etag, location.size):
        raise OSError(f"{file} is another one than before; load it again with force_download=True.")
    key = hashlib.sha256(json.dumps([header.etag, header.size, list(names), PIECE]).encode()).hexdigest()[:16]
    unfinished, journal = folder / f"{key}.incomplete", folder / f"{key}.progress"
    head, spans = _layout(file, header, names)
    pieces = split(merge(spans))
    size = len(head) + header.bytes_of(names)
    done = _read_journal(journal) if unfinished.is_file() and unfinished.stat().st_size == size else set()
    if not done:
        journal.unlink(missing_ok=True)
        _check_room(file, folder, size)
        with unfinished.open("wb") as new:
            new.write(head)
            new.truncate(size)
    todo = [piece for piece in pieces if piece not in done]
    total = sum(end - begin for begin, end in pieces)
    left = sum(end - begin for begin, end in todo)
    description = f"{file.name} ({len(names)} of {len(header.tensors)} tensors)"
    with (
        tqdm(total=total, initial=total - left, unit="B", unit_scale=True, desc=description) as bar,
        journal.open("a", encoding="utf-8") as finished,
    ):
        _fetch_pieces(location, todo, spans, unfinished, finished, bar)
    unfinished.replace(folder / f"{key}.safetensors")
    journal.unlink()


def _layout(file: RemoteFile, header: Header, names: Iterable[str]) -> tuple[bytes, list[Span]]:
    """Return the beginning of a safetensors file of the named tensors, and which bytes go where in it."""
    ordered = sorted(names, key=lambda name: tuple(header.tensors[name]["data_offsets"]))
    origin = f"{file.repository}@{header.commit}/{file.name}"
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "source": origin}}
    spans: list[Span] = []
    position = 0
    for name in ordered:
        begin, end = header.tensors[name]["data_offsets"]
        entries[name] = {**header.tensors[name], "data_offsets": [position, position + end - begin]}
        spans.append(Span(header.begin + begin, header.begin + end, position))
        position += end - begin
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, [Span(begin, end, len(head) + target) for begin, end, target in spans if end > begin]


def merge(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """
    Return the ranges (begin, end) to read: neighbours joined, and the smallest gaps read over.

    Together the gaps are at most 1 % of what is wanted, whatever the order of the tensors in the file.
    """
    room = int(_WASTE * sum(end - begin for begin, end, _ in spans))
    joined = set()
    gaps = sorted((after.begin - before.end, index) for index, (before, after) in enumerate(pairwise(spans)))
    for gap, index in gaps:
        if gap > room:
            break
        room -= gap
        joined.add(index)
    ranges: list[tuple[int, int]] = []
    for index, (begin, end, _) in enumerate(spans):
        if index and index - 1 in joined:
            ranges[-1] = ranges[-1][0], end
        else:
            ranges.append((begin, end))
    return ranges


def split(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the same ranges in pieces of one request each."""
    return [(begin, min(begin + PIECE, last)) for first, last in ranges for begin in range(first, last, PIECE)]


def _fetch_pieces(
    location: Location,
    pieces: Sequence[tuple[int, int]],
    spans: Sequence[Span],
    path: Path,
    journal: Any,
    bar: Any,
) -> None:
    """Read pieces over several connections, each to its place; a finished one is written down once it is on disk."""
    stopping, writing = threading.Event(), threading.Lock()

    def fetch(piece: tuple[int, int]) -> None:
        with path.open("r+b", buffering=0) as target:

            def write(position: int, content: bytes) -> None:
                if stopping.is_set():
                    raise InterruptedError("another connection failed")
                for offset, part in _placed(spans, position, content):
                    target.seek(offset)
                    _write_all(target, part)
                with writing:
                    bar.update(len(content))

            read_range(location, *piece, write)
            os.fsync(target.fileno())
        with writing:
            journal.write(f"{piece[0]}-{piece[1]}\n")
            journal.flush()

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(CONNECTIONS))
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        stack.callback(stopping.set)
        for future in as_completed([pool.submit(fetch, piece) for piece in pieces]):
            future.result()


def _placed(spans: Sequence[Span], position: int, content: bytes) -> Iterator[tuple[int, memoryview]]:
    """Yield the wanted parts of `content`, which begins at `position` of the file on the Hub, with their places."""
    view, end = memoryview(content), position + len(content)
    index = max(0, bisect_right(spans, position, key=lambda span: span.begin) - 1)
    while index < len(spans) and spans[index].begin < end:
        span = spans[index]
        first, last = max(span.begin, position), min(span.end, end)
        if first < last:
            yield span.target + first - span.begin, view[first - position : last - position]
        index += 1


def _write_all(target: Any, part: memoryview) -> None:
    while part:
        part = part[target.write(part) :]


def _read_journal(journal: Path) -> set[tuple[int, int]]:
    if not journal.is_file():
        return set()
    lines = re.findall(r"^(\d+)-(\d+)\n", journal.read_text(encoding="utf-8"), re.MULTILINE)
    return {(int(begin), int(end)) for begin, end in lines}


def _check_room(file: RemoteFile, folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            f"{folder} has room for {free:,} bytes, and the kept tensors of {file} take {size:,}: make room, or give "
            "another cache_dir."
        )
