"""Fetch from the Hub, by byte ranges, only the tensors that a student keeps; what was fetched stays in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status, tqdm

from ..foreign_text import first_line
from ..records import decode, read_json, write_json

logger = logging.getLogger(__name__)

#: Given names in files, returns for each kept one its name for the student.
Choose = Callable[[Iterable[str]], Mapping[str, str]]

#: Bytes that one request asks for at most; so much is lost at most, for each connection, when a process is killed.
PIECE = 2**25
#: Connections at once.
CONNECTIONS = 8
#: Failures in a row, with less than `_SLOWEST` bytes between them, after which a request is given up.
RETRIES = 6

# Unwanted bytes between wanted ones are read, to save a request, as long as they are together this share of all.
_WASTE = 0.01
# What a first request asks for: the headers of nearly all published files are shorter.
_HEADER = 100_000
# What no header is longer than: the limit of safetensors itself.
_LONGEST_HEADER = 100_000_000
# Seconds before the first new attempt, doubled with each up to the last, unless the server names its own.
_FIRST_WAIT, _LAST_WAIT, _LONGEST_WAIT = 1.0, 16.0, 300.0
# Bytes that a connection brings at least within `HF_HUB_DOWNLOAD_TIMEOUT`: fewer are a failure, as no answer is.
_SLOWEST = 1_000
# After so many times `HF_HUB_DOWNLOAD_TIMEOUT` without such progress a request is given up.
_GIVE_UP = 6

#: Errors of the connection are those of the HTTP library, and which one that is depends on huggingface_hub's version.
CONNECTION_ERRORS: Any = tuple(base for base in HfHubHTTPError.__bases__ if base is not OSError)
# Worth another attempt; what a signed location answers when it has run out; and others are final.
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_EXPIRED = {400, 401, 403, 404, 410}

_SOURCE = "source.json"


class NoRanges(Exception):
    """The server does not give the parts of the file that it is asked for; the message says what it does."""


@dataclass(frozen=True)
class RemoteFile:
    """One safetensors file of a repository of the Hub; only at a commit as revision it is looked up in the cache."""

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
    """What a safetensors file on the Hub holds: its data begin at byte `begin`, and offsets count from there."""

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


def cached_header(file: RemoteFile) -> Header | None:
    """Return what is known of the file from the cache, or None if nothing of it was fetched, or its note is damaged."""
    path = file.folder() / _SOURCE
    try:
        header = decode(Header, read_json(path), str(path))
        for name, entry in header.tensors.items():
            _checked_end(name, entry)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return header


def read_header(file: RemoteFile) -> Header:
    """Return what the file holds; its header is fetched unless it is in the cache."""
    return cached_header(file) or _fetch_header(file, _Location(file))


def file_size(file: RemoteFile) -> int | None:
    """Return the size of the file in bytes, or None if there is no such file."""
    try:
        return _Location(file).size
    except FileNotFoundError:
        return None


def etag_of(file: RemoteFile) -> str | None:
    """Return what the Hub calls the file's content: its sha256, if it is a large one."""
    return _Location(file).etag


def fetched_names(file: RemoteFile) -> frozenset[str]:
    """Return the names of the tensors that are in the cache."""
    return frozenset(_held(file.folder()))


def fetch_tensors(file: RemoteFile, choose: Choose, refresh: bool = False) -> list[Path]:
    """
    Return safetensors files in the cache that together hold the file's kept tensors; what is missing is fetched.

    Nothing else is fetched than the kept tensors, headers, and small gaps that save a request. An interrupted fetch
    resumes where it was, in this process and in the next; `refresh` fetches again what is in the cache.

    Raises:
        NoRanges: If the server does not give parts of files, so that the whole file must be fetched.
        OSError: If the Hub does not give the file, or connections break again and again; running it again resumes.
    """
    known = None if refresh else cached_header(file)
    if known is not None:
        wanted, held = choose(known.tensors), _held(file.folder())
        if set(wanted) <= set(held):
            return sorted({held[name] for name in wanted})
    location = _Location(file)
    folder = file.folder(location.commit)
    folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder / ".lock"):
        if refresh:
            for part in (*folder.glob("*.safetensors"), *folder.glob("*.progress"), folder / _SOURCE):
                part.unlink(missing_ok=True)
        header = known or _fetch_header(file, location)
        wanted = choose(header.tensors)
        missing = sorted(set(wanted) - set(_held(folder)))
        if missing:
            _fetch(file, location, header, missing, folder)
        held = _held(folder)
    return sorted({held[name] for name in wanted})


# What the cache holds


def _held(folder: Path) -> dict[str, Path]:
    """Return the tensors that were fetched, each with the file that holds it."""
    return {name: path for path in sorted(folder.glob("*.safetensors")) for name in local_header(path)[1]}


def local_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return where the data begin in a safetensors file on this machine, and what its header says of each tensor."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return 8 + length, header


# What is fetched


def _fetch_header(file: RemoteFile, location: _Location) -> Header:
    if location.size == 0:
        raise NoRanges("does not say how long the file is")
    first = _read(location, 0, min(_HEADER, location.size))
    length = int.from_bytes(first[:8], "little")
    if not 2 <= length <= min(location.size - 8, _LONGEST_HEADER):
        raise OSError(f"{file} is not a safetensors file: its header cannot be {length:,} bytes long.")
    text = first[8 : 8 + length] + _read(location, len(first), 8 + length)
    try:
        tensors = json.loads(text)
        tensors.pop("__metadata__", None)
        spans = sorted((entry["data_offsets"][0], _checked_end(name, entry)) for name, entry in tensors.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OSError(f"{file} is not a safetensors file: its header cannot be read ({error}).") from error
    end = max((end for _, end in spans), default=0)
    if any(begin != before for (_, before), (begin, _) in pairwise([(0, 0), *spans])):
        raise OSError(f"{file} is not a safetensors file: by its header tensors overlap, or leave bytes between them.")
    if 8 + length + end != location.size:
        raise OSError(f"{file} is not whole: its tensors end at byte {8 + length + end}, not at {location.size}.")
    header = Header(location.commit, location.etag, location.size, 8 + length, tensors)
    write_json(file.folder(location.commit) / _SOURCE, vars(header), shared=True)
    return header


def _checked_end(name: str, entry: Any) -> int:
    """Return where a tensor's bytes end; raises a `ValueError` if its entry in a header is not of the right types."""
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    numbers = [begin, end, *shape]
    if any(type(number) is not int or number < 0 for number in numbers) or begin > end:
        raise ValueError(f"{name} has data_offsets {entry['data_offsets']} and shape {shape}")
    if not isinstance(entry["dtype"], str) or (begin == end) != (math.prod(shape) == 0):
        raise ValueError(f"{name} has {end - begin} bytes for dtype {entry['dtype']!r} and shape {shape}")
    return int(end)


def _read(location: _Location, begin: int, end: int) -> bytes:
    found = bytearray()
    _read_range(location, begin, end, lambda _, piece: found.extend(piece))
    return bytes(found)


def _fetch(file: RemoteFile, location: _Location, header: Header, names: Sequence[str], folder: Path) -> None:
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
    progress: Any = tqdm
    with (
        progress(total=total, initial=total - left, unit="B", unit_scale=True, desc=description) as bar,
        journal.open("a", encoding="utf-8") as finished,
    ):
        try:
            _fetch_pieces(location, todo, spans, unfinished, finished, bar)
        except NoRanges:
            unfinished.unlink()  # what such a server gave before is not to be trusted either
            journal.unlink()
            raise
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
    gaps = sorted((after.begin - before.end, after.begin) for before, after in pairwise(spans))
    sizes = accumulate(gap for gap, _ in gaps)
    read_over = {begin for (_, begin), size in zip(gaps, sizes, strict=True) if size <= room}
    ranges: list[tuple[int, int]] = []
    for begin, end, _ in spans:
        if begin in read_over:
            ranges[-1] = ranges[-1][0], end
        else:
            ranges.append((begin, end))
    return ranges


def split(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the same ranges in pieces of one request each."""
    return [(begin, min(begin + PIECE, last)) for first, last in ranges for begin in range(first, last, PIECE)]


def _fetch_pieces(
    location: _Location,
    pieces: Sequence[tuple[int, int]],
    spans: Sequence[Span],
    path: Path,
    journal: Any,
    bar: Any,
) -> None:
    """Read pieces over several connections, each to its place; a finished one is written down once it is on disk."""
    stopping, writing = threading.Event(), threading.Lock()

    def fetch(piece: tuple[int, int]) -> None:
        with path.open("r+b") as target:

            def write(position: int, content: bytes) -> None:
                if stopping.is_set():
                    raise InterruptedError("another connection failed")
                for offset, part in _placed(spans, position, content):
                    target.seek(offset)
                    target.write(part)
                with writing:
                    bar.update(len(content))

            _read_range(location, *piece, write)
            target.flush()
            os.fsync(target.fileno())
        with writing:
            journal.write(f"{piece[0]}-{piece[1]}\n")
            journal.flush()

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        try:
            for future in as_completed([pool.submit(fetch, piece) for piece in pieces]):
                future.result()
        finally:
            stopping.set()
            pool.shutdown(cancel_futures=True)


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


# How it is fetched: one signed address for many requests, retried, resumed and checked


class _Address(NamedTuple):
    """Where bytes are asked for, and what is sent along: the token only to the Hub itself."""

    url: str
    headers: dict[str, str]


class _Location:
    """A file at one commit: asked of the Hub once, and again when its signed address has run out."""

    def __init__(self, file: RemoteFile) -> None:
        self.file = file
        self._lock = threading.Lock()
        self.address, found = self._ask(file.revision)
        if not re.fullmatch(r"\w[\w.-]*", found.commit_hash or ""):  # it is going to name a folder
            raise OSError(f"The Hub did not say which commit {file} belongs to; check HF_ENDPOINT, proxy and firewall.")
        if re.fullmatch(r"[0-9a-f]{40}", file.revision or "") and found.commit_hash != file.revision:
            raise OSError(f"{file} was asked for at commit {file.revision}, and came from {found.commit_hash}.")
        self.commit: str = found.commit_hash
        self.etag: str | None = found.etag
        self.size: int = found.size or 0  # a file of unknown length has no part that could be checked
        self.served_as: str | None = None

    def renew(self, used: _Address) -> None:
        """Ask for a new address, unless another thread has done so since `used` was the one."""
        with self._lock:
            if self.address is used:
                address, found = self._ask(self.commit)
                if (found.commit_hash, found.etag, found.size) != (self.commit, self.etag, self.size):
                    raise OSError(f"{self.file} changed while it was fetched; run it again.")
                self.address = address

    def check_same(self, etag: str | None) -> None:
        """Raise `NoRanges` if the content is called otherwise than in the first answer."""
        with self._lock:
            self.served_as = self.served_as or etag
            if etag != self.served_as:
                raise NoRanges("changed while it was fetched")

    def _ask(self, revision: str | None) -> tuple[_Address, Any]:
        file = self.file
        url = hf_hub_url(file.repository, file.name, revision=revision)
        attempts = _Attempts(str(file))
        while True:
            try:
                found = get_hf_file_metadata(url, token=file.token)
                break
            except EntryNotFoundError as error:
                raise FileNotFoundError(f"{file.repository!r} has no {file.name}.") from error
            except HfHubHTTPError as error:
                if error.response.status_code not in _TRANSIENT:
                    _refuse(file, error)
                attempts.wait(error, error.response)
            except CONNECTION_ERRORS as error:
                attempts.wait(error)
        headers = build_hf_headers(token=file.token)
        headers["Accept-Encoding"] = "identity"
        if _origin(found.location) != _origin(url):
            # A signed address needs no token, and the host that it leads to must not see it.
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        return _Address(found.location, headers), found


class _Attempts:
    """Waits longer with each failure in a row, and gives up after `RETRIES`, or after too long without progress."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.progress(0)

    def progress(self, size: int) -> None:
        """Restart the count once enough bytes have come."""
        if size >= _SLOWEST or not size:
            self.failures, self.deadline = 0, time.monotonic() + _GIVE_UP * constants.HF_HUB_DOWNLOAD_TIMEOUT

    def wait(self, error: BaseException, response: Any = None) -> None:
        """Wait before another attempt; as long as the server asks for, if it does."""
        self.failures += 1
        if self.failures > RETRIES or time.monotonic() > self.deadline:
            raise OSError(
                f"{self.what} could not be fetched: {self.failures} attempts in a row failed, the last one with: "
                f"{first_line(error)} Run it again: it resumes with what is missing."
            ) from None  # its address may be a signed one
        seconds = min(_FIRST_WAIT * 2 ** (self.failures - 1), _LAST_WAIT)
        asked = "" if response is None else response.headers.get("Retry-After", "")
        if re.fullmatch("[0-9]+", asked):
            seconds = float(asked)
            self.deadline += seconds
        if seconds > _LONGEST_WAIT:
            raise OSError(
                f"{self.what} could not be fetched: the server asks to wait for {asked[:20]} seconds. Run it again "
                "then: it resumes with what is missing."
            ) from None
        logger.info("%s: %s Trying again in %g s.", self.what, first_line(error), seconds)
        time.sleep(seconds)


def _read_range(location: _Location, begin: int, end: int, write: Callable[[int, bytes], None]) -> None:
    """
    Read the bytes from `begin` up to `end`, over as many connections as it takes.

    `write` is called with a position in the file and the bytes from there on, in order, without gaps; if `NoRanges` is
    raised, nothing that was written counts.
    """
    attempts = _Attempts(str(location.file))
    position = begin
    while position < end:
        address = location.address
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        try:
            asked = {**address.headers, "Range": f"bytes={position}-{end - 1}"}
            with get_session().stream("GET", address.url, headers=asked, timeout=timeout) as response:
                hf_raise_for_status(response)
                _check_answer(location, response, position, end)
                since, got = time.monotonic(), 0
                for piece in response.iter_raw():
                    if position + len(piece) > end:
                        raise NoRanges("sends more bytes than it is asked for")
                    write(position, piece)
                    position += len(piece)
                    got += len(piece)
                    attempts.progress(got)
                    if time.monotonic() - since > timeout:
                        if got < _SLOWEST:
                            break
                        since, got = time.monotonic(), 0
            if position < end:
                attempts.wait(ConnectionError(f"The answer ended, or came too slowly, {end - position:,} bytes early."))
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status == 416:
                raise NoRanges(f"has no bytes {position} to {end - 1}") from error
            if status not in _TRANSIENT | _EXPIRED:
                _refuse(location.file, error)
            attempts.wait(error, error.response)
            if status in _EXPIRED:
                location.renew(address)
        except CONNECTION_ERRORS as error:
            attempts.wait(error)


def _check_answer(location: _Location, response: Any, begin: int, end: int) -> None:
    """Raise `NoRanges` unless the answer is the range that was asked for, of a file of the right length."""
    if response.status_code != 206:
        raise NoRanges("answers with whole files")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise NoRanges("compresses parts of files")
    given = response.headers.get("Content-Range", "")
    if given.replace(" ", "") != f"bytes{begin}-{end - 1}/{location.size}":
        raise NoRanges(f"was asked for bytes {begin}-{end - 1}/{location.size} and gave {given or 'others'}")
    location.check_same(response.headers.get("ETag"))


def _refuse(file: RemoteFile, error: HfHubHTTPError) -> NoReturn:
    raise OSError(
        f"The Hub did not give {file}: {first_line(error)} A private or gated model needs `token` (or hf auth login)."
    ) from None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port
