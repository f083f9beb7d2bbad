"""Read from a reference's files, local or on the Hub, only the tensors that a student keeps."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from .connection import CONNECTION_ERRORS, Location, NoRanges, file_size
from .remote import RemoteFile, at_hand, fetch_tensors, fetched_names
from .tensors import Unread, first_line, open_bin, open_safetensors

logger = logging.getLogger(__name__)

#: Given names in files, returns for each kept one its name for the student.
Choose = Callable[[Iterable[str]], Mapping[str, str]]

#: Arguments of `from_pretrained` that say where files come from.
SOURCE_ARGUMENTS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "variant")
#: Those of them that say how to get it, not what it is.
TRANSPORT_ARGUMENTS = ("token", "cache_dir", "local_files_only", "force_download")

# In the order of `PreTrainedModel.from_pretrained`.
_WEIGHT_FILES: tuple[tuple[Literal["safetensors", "bin"], str], ...] = (
    ("safetensors", "model.safetensors"),
    ("safetensors", "model.safetensors.index.json"),
    ("bin", "pytorch_model.bin"),
    ("bin", "pytorch_model.bin.index.json"),
)

_COMMIT_IN_CACHE = re.compile(r"/snapshots/([0-9a-f]{40})/")


@dataclass(frozen=True)
class Source:
    """
    Where a reference's files come from: a folder, or a repository of the Hub.

    Args:
        reference (`str`): Path of a folder or id of a repository, as it was given.
        revision (`str`, *optional*): Branch, tag or commit of the repository.
        token (`str` or `bool`, *optional*): Token for private repositories.
        cache_dir (`str`, *optional*): Folder of the download cache, if not the usual one.
        subfolder (`str`): Folder of the files within the repository.
        local_files_only (`bool`): Whether only files in the cache are used.
        force_download (`bool`): Whether files in the cache are fetched again.
        variant (`str`, *optional*): Variant of the weights, such as `fp16` for `model.fp16.safetensors`.
    """

    reference: str
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    subfolder: str = ""
    local_files_only: bool = False
    force_download: bool = False
    variant: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the reference is a path on this machine rather than an id of the Hub."""
        return Path(self.reference).exists() or not _is_repo_id(self.reference)

    @property
    def is_offline(self) -> bool:
        """Whether nothing may be asked of the Hub."""
        return self.local_files_only or constants.HF_HUB_OFFLINE

    @property
    def arguments(self) -> dict[str, Any]:
        """What `from_pretrained` is given beside the reference to read the same files."""
        return {name: getattr(self, name) for name in SOURCE_ARGUMENTS if getattr(self, name)}

    def remote(self, name: str) -> RemoteFile:
        """Return the file `name` as one of the Hub."""
        path = f"{self.subfolder}/{name}" if self.subfolder else name
        return RemoteFile(self.reference, path, self.revision, self.token, self.cache_dir)

    def find(self, name: str) -> Path | None:
        """
        Return the path of the file `name` of the reference, downloaded if need be, or None if there is none.

        Raises:
            OSError: If the repository does not exist, or may not be read.
        """
        if self.is_local:
            path = Path(self.reference) / (self.subfolder or "") / name
            return path if path.is_file() else None
        try:
            found = hf_hub_download(
                self.reference,
                name,
                subfolder=self.subfolder or None,
                revision=self.revision,
                cache_dir=self.cache_dir,
                force_download=self.force_download,
                token=self.token,
                local_files_only=self.local_files_only,
            )
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, *CONNECTION_ERRORS) as error:
            raise OSError(
                f"The Hub did not give {name} of {self.reference!r}: {first_line(error)} "
                "Give a folder with config.json or a Hub id; a private or gated model needs `token`."
            ) from error
        return Path(str(found))

    def find_at_hand(self, name: str) -> Path | None:
        """Return the path of the file `name` if it is on this machine; nothing is fetched."""
        if self.is_local:
            return self.find(name)
        subfolder = f"{self.subfolder}/" if self.subfolder else ""
        found = try_to_load_from_cache(
            self.reference, f"{subfolder}{name}", cache_dir=self.cache_dir, revision=self.revision
        )
        return Path(found) if isinstance(found, str) else None


@dataclass(frozen=True)
class Weights:
    """
    The weights of a reference, found but not read.

    Args:
        source (`Source`): Where files come from.
        format (`str`): `safetensors` or `bin`.
        files (`Mapping[str, str]`): For every tensor of a sharded checkpoint, the name of the shard that holds it;
            empty for a single file.
        path (`Path`): The single file, or the index of the shards.
        weights_only (`bool`): Whether `bin` files are read without running pickled code.
    """

    source: Source
    format: Literal["safetensors", "bin"]
    files: Mapping[str, str]
    path: Path
    weights_only: bool = True


def commit_of(path: Path) -> str | None:
    """Return the commit that a file in the Hub's cache belongs to, or None for a file elsewhere."""
    found = _COMMIT_IN_CACHE.search(path.absolute().as_posix())
    return found[1] if found else None


def find_weights(source: Source, use_safetensors: bool | None = None, weights_only: bool = True) -> Weights:
    """
    Return where the reference's weights are; of a sharded checkpoint only the index is read.

    Args:
        source (`Source`): Where files come from.
        use_safetensors (`bool`, *optional*): Read only safetensors (`True`) or only `pytorch_model.bin` (`False`).
        weights_only (`bool`, *optional*, defaults to `True`): Refuse to run code that is pickled in `bin` files.

    Returns:
        `Weights`: The files.

    Raises:
        FileNotFoundError: If there are no weights.
        ValueError: If the index of a sharded checkpoint cannot be read.
    """
    looked_for = []
    for kind, plain_name in _WEIGHT_FILES:
        if use_safetensors is not None and use_safetensors != (kind == "safetensors"):
            continue
        name = _with_variant(plain_name, source.variant)
        path = _locate(source, kind, name)
        if path is not None:
            files = _read_index(path) if name.endswith(".json") else {}
            return Weights(source=source, format=kind, files=files, path=path, weights_only=weights_only)
        looked_for.append(name)
    offline = " in the cache (nothing is fetched offline)" if source.is_offline and not source.is_local else ""
    raise FileNotFoundError(
        f"There are no weights at {source.reference!r}{offline}: looked for {', '.join(looked_for)}. "
        "Check `subfolder` and `variant`, or save the model again with save_pretrained."
    )


def find_weights_unfetched(source: Source) -> Weights | None:
    """Return where the reference's weights are, or None if there are none; at most an index of shards is fetched."""
    for kind, plain_name in _WEIGHT_FILES:
        name = _with_variant(plain_name, source.variant)
        path = source.find_at_hand(name)
        if path is None and name.endswith(".json"):
            path = source.find(name)
        elif path is None and size_on_hub(source, name) is not None:
            path = Path(name)
        if path is not None:
            return Weights(source, kind, _read_index(path) if name.endswith(".json") else {}, path)
    return None


def size_on_hub(source: Source, name: str) -> int | None:
    """
    Return the bytes of the file `name` of a repository, or None if it has none, or the Hub may not be asked.

    Raises:
        OSError: If the Hub does not answer.
    """
    if source.is_local:
        return None
    known = at_hand(source.remote(name))
    if known is not None:
        return known.size
    remote = source.remote(name)
    return None if source.is_offline else file_size(remote.repository, remote.name, remote.revision, remote.token)


def _locate(source: Source, kind: str, name: str) -> Path | None:
    """Return where the file `name` of weights is, fetched only if it cannot be fetched in part."""
    path = None if source.force_download else source.find_at_hand(name)
    if path is not None or source.is_local or name.endswith(".json"):
        return path or source.find(name)
    size = size_on_hub(source, name)
    if size is None:
        return None
    if kind == "safetensors":
        return Path(name)
    _tell_bin(source, name, size)
    return source.find(name)


def _tell_bin(source: Source, name: str, size: int) -> None:
    logger.warning(
        "%r has its weights as %s, which cannot be fetched in part: all its %s bytes are fetched. A repository with "
        "safetensors spares that.",
        source.reference,
        name,
        f"{size:,}",
    )


def open_tensors(weights: Weights, choose: Choose) -> dict[str, Unread]:
    """
    Return the kept tensors, each under its name for the student, without reading any of them.

    Only the headers of files that hold a kept tensor are read (and, from the Hub, only those files are downloaded).

    Args:
        weights (`Weights`): The files, from `find_weights`.
        choose (`Callable`): Given names in files, returns for each kept one its name for the student.

    Returns:
        `dict[str, Unread]`: Every kept tensor that the files have.

    Raises:
        OSError: If a file is missing or incomplete.
    """
    tensors: dict[str, Unread] = {}
    for path in needed_files(weights, choose):
        opened = open_safetensors(path) if weights.format == "safetensors" else open_bin(path, weights.weights_only)
        tensors.update({given: opened[name] for name, given in choose(opened).items()})
    return tensors


def needed_files(weights: Weights, choose: Choose) -> list[Path]:
    """
    Return files on this machine that hold the kept tensors; from the Hub these tensors are fetched, and little else.

    What is in the Hub's cache is used as it is. Otherwise byte ranges are read; where a server does not give them, it
    is said, and the whole file is downloaded: of a sharded checkpoint only those that hold a kept tensor.

    Raises:
        FileNotFoundError: If one is missing.
        OSError: If one cannot be fetched.
    """
    names = needed_shards(weights, choose) if weights.files else [weights.path.name]
    return [path for name in names for path in _needed_parts(weights, name, choose)]


def _needed_parts(weights: Weights, name: str, choose: Choose) -> list[Path]:
    source = weights.source
    path = None if source.force_download else source.find_at_hand(name)
    if path is not None:
        return [path]
    if weights.format == "safetensors" and not source.is_local:
        try:
            found = _fetched(source, name, choose)
        except NoRanges as refusal:
            return [_download_whole(source, name, refusal)]
    else:
        path = source.find(name)
        found = [] if path is None else [path]
    if not found:
        what = f"{weights.path.name} says that it holds tensors that the student keeps" if weights.files else "gone"
        raise FileNotFoundError(f"{name} is missing at {source.reference!r}: {what}. Download it again.")
    return found


def _fetched(source: Source, name: str, choose: Choose) -> list[Path]:
    """Return the parts of a file of the Hub that hold the kept tensors; none if there is no such file."""
    remote = source.remote(name)
    if source.is_offline:
        known = at_hand(remote)
        if known is None:
            return []
        lacking = set(choose(known.tensors)) - fetched_names(remote)
        if lacking:
            raise FileNotFoundError(
                f"{len(lacking)} kept tensors of {remote} are not in the cache ({min(lacking)} is not), and nothing is "
                "fetched offline. Load it once with a connection."
            )
    try:
        return fetch_tensors(remote, choose, refresh=source.force_download)
    except FileNotFoundError:
        return []


def _download_whole(source: Source, name: str, refusal: NoRanges) -> Path:
    """Download a file whole from a server that does not give parts of it, and check what it gave."""
    logger.warning("The server %s, so all of %s of %r is fetched.", refusal, name, source.reference)
    path = source.find(name)
    if path is None:
        raise FileNotFoundError(f"{name} is missing at {source.reference!r}. Download it again.")
    remote = source.remote(name)
    etag = Location(remote.repository, remote.name, remote.revision, remote.token).etag or ""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != etag:
            path.resolve().unlink()
            raise OSError(
                f"{name} of {source.reference!r} came with other content than the Hub names (sha256 {found}, not "
                f"{etag}): it was removed from the cache. Run it again."
            )
    return path


def needed_shards(weights: Weights, choose: Choose) -> list[str]:
    """Return the names of the shards that hold a kept tensor, as the index says; none for a single file."""
    return sorted({weights.files[name] for name in choose(weights.files)})


def _read_index(path: Path) -> dict[str, str]:
    try:
        return {
            str(name): str(shard) for name, shard in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items()
        }
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not an index of shards (a JSON file with a 'weight_map'). Download it again."
        ) from error


def _with_variant(name: str, variant: str | None) -> str:
    if not variant:
        return name
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{variant}.{ending}"


def _is_repo_id(text: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", text, flags=re.ASCII) is not None
