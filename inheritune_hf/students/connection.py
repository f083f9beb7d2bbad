"""Byte ranges of a file on the Hub: one signed location for many requests, retried, resumed and checked."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

logger = logging.getLogger(__name__)

#: Failures in a row, without a byte between them, after which a request is given up.
RETRIES = 6
# Seconds before the first new attempt, doubled with each up to the last, unless the server names its own.
_FIRST_WAIT, _LAST_WAIT, _LONGEST_WAIT = 1.0, 16.0, 300.0
_PIECE = 2**20

#: Errors of the connection are those of the HTTP library, and which one that is depends on huggingface_hub's version.
CONNECTION_ERRORS: Any = tuple(base for base in HfHubHTTPError.__bases__ if base is not OSError)
# Worth another attempt; what a signed location answers when it has run out; and others are final.
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_EXPIRED = {400, 401, 403, 404, 410}


class NoRanges(Exception):
    """The server does not give the parts of the file that it is asked for; the message says what it does."""


@dataclass(frozen=True)
class Address:
    """
    Where bytes are asked for.

    Args:
        url (`str`): Address, signed if it is not the Hub's own.
        headers (`dict[str, str]`): What is sent along; the token only to the Hub itself.
    """

    url: str
    headers: dict[str, str]


class Location:
    """
    A file of a repository at one commit: asked of the Hub once, and again when its signed address has run out.

    Args:
        repository (`str`): Id of the repository.
        name (`str`): Path of the file within it.
        revision (`str`, *optional*): Branch, tag or commit.
        token (`str` or `bool`, *optional*): Token for private repositories.
        sleep (`Callable`, *optional*): Waits so many seconds before a request is made again.

    Raises:
        FileNotFoundError: If the repository has no such file.
        OSError: If the Hub does not give it.
    """

    def __init__(
        self,
        repository: str,
        name: str,
        revision: str | None = None,
        token: str | bool | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self.repository, self.name, self.token, self.sleep = repository, name, token, sleep or time.sleep
        self._lock = threading.Lock()
        self.address, found = self._ask(revision)
        if found.commit_hash is None:
            raise OSError(f"The Hub did not say which commit {self} belongs to; check HF_ENDPOINT, proxy and firewall.")
        if re.fullmatch(r"[0-9a-f]{40}", revision or "") and found.commit_hash != revision:
            raise OSError(f"{self} was asked for at commit {revision}, and came from {found.commit_hash}.")
        self.commit: str = found.commit_hash
        self.etag: str | None = found.etag
        self.size: int = found.size or 0  # a file of unknown length has no part that could be checked
        self.served_as: str | None = None

    def __str__(self) -> str:
        return f"{self.name} of {self.repository!r}"

    def renew(self, used: Address) -> None:
        """Ask for a new address, unless another thread has done so since `used` was the one."""
        with self._lock:
            if self.address is used:
                address, found = self._ask(self.commit)
                if (found.commit_hash, found.etag, found.size) != (self.commit, self.etag, self.size):
                    raise OSError(f"{self} changed while it was fetched; run it again.")
                self.address = address

    def check_same(self, etag: str | None) -> None:
        """Raise `NoRanges` if the content is called otherwise than in the first answer."""
        with self._lock:
            self.served_as = self.served_as or etag
            if etag != self.served_as:
                raise NoRanges("changed while it was fetched")

    def _ask(self, revision: str | None) -> tuple[Address, Any]:
        url = hf_hub_url(self.repository, self.name, revision=revision)
        patience = Patience(str(self), self.sleep)
        while True:
            try:
                found = get_hf_file_metadata(url, token=self.token)
                break
            except EntryNotFoundError as error:
                raise FileNotFoundError(f"{self.repository!r} has no {self.name}.") from error
            except HfHubHTTPError as error:
                if error.response.status_code not in _TRANSIENT:
                    refuse(str(self), error)
                patience.wait(error, error.response)
            except CONNECTION_ERRORS as error:
                patience.wait(error)
        headers = build_hf_headers(token=self.token)
        headers["Accept-Encoding"] = "identity"
        if _origin(found.location) != _origin(url):
            # A signed address needs no token, and the host that it leads to must not see it.
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        return Address(found.location, headers), found


def file_size(repository: str, name: str, revision: str | None = None, token: str | bool | None = None) -> int | None:
    """
    Return the size in bytes of a file of a repository, or None if there is no such file.

    Raises:
        OSError: If the Hub does not answer, or refuses.
    """
    try:
        return Location(repository, name, revision, token).size
    except FileNotFoundError:
        return None


class Patience:
    """Waits longer with each failure in a row, and gives up after `RETRIES`."""

    def __init__(self, what: str, sleep: Callable[[float], None]) -> None:
        self.what, self.sleep, self.failures = what, sleep, 0

    def wait(self, error: BaseException, response: Any = None) -> None:
        """Wait before another attempt; as long as the server asks for, if it does."""
        self.failures += 1
        if self.failures > RETRIES:
            raise OSError(
                f"{self.what} could not be fetched: {RETRIES + 1} attempts in a row failed, the last one with: "
                f"{_first_line(error)} Run it again: it goes on with what is missing."
            ) from error
        seconds = min(_FIRST_WAIT * 2 ** (self.failures - 1), _LAST_WAIT)
        asked = "" if response is None else response.headers.get("Retry-After", "")
        if asked.isdigit():
            seconds = min(float(asked), _LONGEST_WAIT)
        logger.info("%s: %s Trying again in %g s.", self.what, _first_line(error), seconds)
        self.sleep(seconds)


def read_range(location: Location, begin: int, end: int, write: Callable[[int, bytes], None]) -> None:
    """
    Read the bytes from `begin` up to `end`, over as many connections as it takes.

    Args:
        location (`Location`): The file.
        begin (`int`): First byte.
        end (`int`): Byte after the last one.
        write (`Callable`): Called with a position in the file and the bytes from there on, in order, without gaps.

    Raises:
        NoRanges: If the server gives other bytes than it was asked for; then nothing that was written counts.
        OSError: If connections break again and again, or the Hub refuses the file.
    """
    patience = Patience(str(location), location.sleep)
    position = begin
    while position < end:
        address = location.address
        try:
            asked = {**address.headers, "Range": f"bytes={position}-{end - 1}"}
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with get_session().stream("GET", address.url, headers=asked, timeout=timeout) as response:
                hf_raise_for_status(response)
                _check(location, response, position, end)
                for piece in response.iter_raw(_PIECE):
                    if position + len(piece) > end:
                        raise NoRanges("sends more bytes than it is asked for")
                    write(position, piece)
                    position += len(piece)
                    patience.failures = 0
            if position < end:
                patience.wait(ConnectionError(f"The answer ended {end - position:,} bytes early."))
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status == 416:
                raise NoRanges(f"has no bytes {position} to {end - 1}") from error
            if status not in _TRANSIENT | _EXPIRED:
                refuse(str(location), error)
            patience.wait(error, error.response)
            if status in _EXPIRED:
                location.renew(address)
        except CONNECTION_ERRORS as error:
            patience.wait(error)


def _check(location: Location, response: Any, begin: int, end: int) -> None:
    """Raise `NoRanges` unless the answer is the range that was asked for, of a file of the right length."""
    if response.status_code != 206:
        raise NoRanges("answers with whole files")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise NoRanges("compresses parts of files")
    given = response.headers.get("Content-Range", "")
    if given.replace(" ", "") != f"bytes{begin}-{end - 1}/{location.size}":
        raise NoRanges(f"was asked for bytes {begin}-{end - 1}/{location.size} and gave {given or 'others'}")
    location.check_same(response.headers.get("ETag"))


def refuse(what: str, error: HfHubHTTPError) -> NoReturn:
    """Raise an `OSError` that says what to do about a refusal of the Hub."""
    raise OSError(
        f"The Hub did not give {what}: {_first_line(error)} A private or gated model needs `token` (or hf auth login)."
    ) from error


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith((".", "!")) else f"{text}."
