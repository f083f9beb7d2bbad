"""Find a reference's files, in a folder or on the Hub, and read single tensors of them."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from ..annotations import conform
from ..foreign_text import first_line
from ..records import read_json
from .download import (
    CONNECTION_ERRORS,
    Choose,
    Header,
    NoRanges,
    RemoteFile,
    cached_header,
    etag_of,
    fetch_tensors,
    fetched_names,
    file_size,
    local_header,
    read_header,
)

logger = logging.getLogger(__name__)

# In the order of `PreTrainedModel.from_pretrained`.
_WEIGHT_FILES: tuple[tuple[Literal["safetensors", "bin"], str], ...] = (
    ("safetensors", "model.safetensors"),
    ("safetensors", "model.safetensors.index.json"),
    ("bin", "pytorch_model.bin"),
    ("bin", "pytorch_model.bin.index.json"),
)

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# Bytes read at once where the type changes on the way: so few that they are still in the cache when they are converted.
# Of a file that is mapped, bytes read between two looks at whether it is still whole.
_PIECE = 2**20


@dataclass(frozen=True)
class Source:
    """Where a reference's files come from, a folder or a repository of the Hub; fields are as in `from_pretrained`."""

    reference: str
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    subfolder: str = ""
    local_files_only: bool = False
    force_download: bool = False
    variant: str | None = None
    gguf_file: str | None = None

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
        return RemoteFile(self.reference, self._path(name), self.revision, self.token, self.cache_dir)

    def _path(self, name: str) -> str:
        return f"{self.subfolder}/{name}" if self.subfolder else name

    def find(self, name: str) -> Path | None:
        """
        Return the path of the file `name` of the reference, downloaded if need be, or None if there is none.

        Raises:
            OSError: If the repository does not exist, or may not be read.
        """
        if self.is_local:
            path = Path(self.reference) / self._path(name)
            return path if path.is_file() else None
        try:
            found = hf_hub_download(
                self.reference,
                self._path(name),
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
            ) from None  # its address may be a signed one
        return Path(str(found))

    def find_cached(self, name: str) -> Path | None:
        """Return the path of the file `name` if it is on this machine; nothing is fetched."""
        if self.is_local:
            return self.find(name)
        found = try_to_load_from_cache(
            self.reference, self._path(name), cache_dir=self.cache_dir, revision=self.revision
        )
        return Path(found) if isinstance(found, str) else None


#: Arguments of `from_pretrained` that say where files come from.
SOURCE_ARGUMENTS = tuple(field.name for field in fields(Source) if field.name != "reference")


@dataclass(frozen=True)
class Weights:
    """
    The weights of a reference, found but not read.

    `files` says for every tensor of a sharded checkpoint which shard holds it, and `path` is the index then; else
    `files` is empty, and `path` the single file (its name alone if it was not fetched).
    """

    source: Source
    format: Literal["safetensors", "bin", "gguf"]
    files: Mapping[str, str]
    path: Path
    weights_only: bool = True

    def files_with(self, choose: Choose) -> list[str]:
        """Return the names of the files that hold a kept tensor: of shards as the index says, else the single file."""
        return sorted({self.files[name] for name in choose(self.files)}) if self.files else [self.path.name]


def commit_of(path: Path) -> str | None:
    """Return the commit that a file in the Hub's cache belongs to, or None for a file elsewhere."""
    found = re.search(r"/snapshots/([0-9a-f]{40})/", path.absolute().as_posix())
    return found[1] if found else None


def find_weights(source: Source, use_safetensors: bool | None = None, weights_only: bool = True) -> Weights:
    """
    Return where the reference's weights are; of a sharded checkpoint the index is read, and nothing else is fetched.

    Raises:
        FileNotFoundError: If there are no weights.
        ValueError: If the index of a sharded checkpoint cannot be read.
    """
    looked_for = []
    if source.gguf_file is not None:
        path = source.find_cached(source.gguf_file)
        if path is None and size_on_hub(source, source.gguf_file) is not None:
            path = Path(source.gguf_file)
        if path is not None:
            return Weights(source, "gguf", {}, path, weights_only)
        looked_for.append(source.gguf_file)
    for kind, plain_name in _WEIGHT_FILES if source.gguf_file is None else ():
        if use_safetensors is not None and use_safetensors != (kind == "safetensors"):
            continue
        name, is_index = _with_variant(plain_name, source.variant), plain_name.endswith(".json")
        path = None if source.force_download and not source.is_local else source.find_cached(name)
        if path is None and is_index:
            path = source.find(name)
        elif path is None and size_on_hub(source, name) is not None:
            path = Path(name)
        if path is not None:
            return Weights(source, kind, _read_index(path) if is_index else {}, path, weights_only)
        looked_for.append(name)
    offline = " in the cache (nothing is fetched offline)" if source.is_offline and not source.is_local else ""
    raise FileNotFoundError(
        f"There are no weights at {source.reference!r}{offline}: looked for {', '.join(looked_for)}. "
        "Check `subfolder` and `variant`, or save the model again with save_pretrained."
    )


def size_on_hub(source: Source, name: str) -> int | None:
    """Return the bytes of the file `name` of a repository, or None if it has none, or the Hub may not be asked."""
    if source.is_local:
        return None
    known = cached_header(source.remote(name))
    if known is not None:
        return known.size
    return None if source.is_offline else file_size(source.remote(name))


def everything(names: Iterable[str]) -> dict[str, str]:
    """Keep every tensor, under its own name."""
    return {name: name for name in names}


def open_tensors(weights: Weights, choose: Choose = everything) -> dict[str, LazyTensor]:
    """
    Return the kept tensors that the files have, each under its name for the student, without reading any of them.

    Of a folder, and of the Hub's cache, only the headers of files that hold a kept tensor are read. From the Hub these
    tensors are fetched by byte ranges, and little else; a file that the server gives as a whole only is downloaded, and
    it is said.

    Raises:
        FileNotFoundError: If a file is missing.
        OSError: If one is incomplete, or cannot be fetched.
    """
    tensors: dict[str, LazyTensor] = {}
    for name in weights.files_with(choose):
        for path in _needed_parts(weights, name, choose):
            opened = open_file(weights, path)
            tensors.update({given: opened[name] for name, given in choose(opened).items()})
    return tensors


def open_file(weights: Weights, path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of one file of the weights, unread as far as its format allows."""
    if weights.format == "gguf":
        return open_gguf(path)
    return open_safetensors(path) if weights.format == "safetensors" else open_bin(path, weights.weights_only)


def tensor_names(weights: Weights) -> frozenset[str]:
    """Return the names of all tensors; of a file on the Hub its header is fetched, where that can be had alone."""
    source = weights.source
    if not weights.files and weights.format == "safetensors" and source.find_cached(weights.path.name) is None:
        with suppress(NoRanges):
            return frozenset(read_header(source.remote(weights.path.name)).tensors)
    return frozenset(weights.files or open_tensors(weights))


def _needed_parts(weights: Weights, name: str, choose: Choose) -> list[Path]:
    """Return files on this machine that hold the kept tensors of the file `name`; what is missing is fetched."""
    source = weights.source
    path = None if source.force_download else source.find_cached(name)
    if path is not None:
        return [path]
    found: list[Path] = []
    if source.is_local or weights.format != "safetensors":
        if not source.is_local and not source.is_offline:
            logger.warning(
                "%r has its weights as %s, which cannot be fetched in part: all its %s bytes are fetched. A repository "
                "with safetensors avoids that.",
                source.reference,
                name,
                f"{size_on_hub(source, name) or 0:,}",
            )
        path = source.find(name)
        found = [] if path is None else [path]
    else:
        try:
            found = _fetch(source, name, choose)
        except NoRanges as refusal:
            logger.warning("The server %s, so all of %s of %r is fetched.", refusal, name, source.reference)
            found = _download_whole(source, name)
    if not found:
        raise missing_file(weights, name)
    return found


def missing_file(weights: Weights, name: str) -> FileNotFoundError:
    """Return the error that says that a file of weights is not there."""
    what = f"{weights.path.name} says that it holds tensors that the student keeps" if weights.files else "gone"
    return FileNotFoundError(f"{name} is missing at {weights.source.reference!r}: {what}. Download it again.")


def _fetch(source: Source, name: str, choose: Choose) -> list[Path]:
    """Return the parts of a file of the Hub that hold the kept tensors; none if there is no such file."""
    remote = source.remote(name)
    if source.is_offline:
        known = cached_header(remote)
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


def _download_whole(source: Source, name: str) -> list[Path]:
    """Download a file whole from a server that does not give parts of it, and check what it gave."""
    path = source.find(name)
    if path is None:
        return []
    etag = etag_of(source.remote(name)) or ""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != etag:
            path.resolve().unlink()
            raise OSError(
                f"{name} of {source.reference!r} came with other content than the Hub names (sha256 {found}, not "
                f"{etag}): it was removed from the cache. Run it again."
            )
    return [path]


def _read_index(path: Path) -> dict[str, str]:
    try:
        files: dict[str, str] = conform(dict[str, str], read_json(path)["weight_map"], "weight_map")
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is not an index of shards (a JSON file with a 'weight_map'). Download it again."
        ) from error
    for shard in set(files.values()):
        # Shards lie beside their index, or in a folder there: a name that leads elsewhere is no name of a shard.
        if not re.fullmatch(r"[^/\\\x00-\x1f\x7f]+(/[^/\\\x00-\x1f\x7f]+)*", shard) or ".." in shard.split("/"):
            raise ValueError(f"{path} names {shard!r} as a shard, which is no name of a file beside it.")
    return files


def _with_variant(name: str, variant: str | None) -> str:
    if not variant:
        return name
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{variant}.{ending}"


def _is_repo_id(text: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", text, flags=re.ASCII) is not None


@dataclass(frozen=True)
class LazyTensor:
    """
    A tensor that is not read yet; `lazy[...]` reads it into memory of its own, in `wanted_dtype` if that is set.

    `from_pretrained` takes these in place of tensors, and reads several at once.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[torch.dtype], Tensor]
    wanted_dtype: torch.dtype | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes as it is stored."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def __getitem__(self, index: Any) -> Tensor:
        """Read the tensor, or the part of it that `index` says."""
        tensor = self.read(self.wanted_dtype or self.dtype)
        return tensor if index is Ellipsis else tensor[index]

    def get_shape(self) -> list[int]:
        """Return the shape, as a safetensors slice does."""
        return list(self.shape)

    def in_dtype(self, dtype: torch.dtype) -> LazyTensor:
        """Return the same tensor, to be read in `dtype`; whole numbers stay what they are."""
        return replace(self, wanted_dtype=dtype) if self.dtype.is_floating_point else self


def lazy_copy(tensor: Tensor) -> LazyTensor:
    """Return a tensor that is in memory already as one to be copied."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda dtype: tensor.detach().to(dtype, copy=True))


def open_state(tensors: Mapping[Any, Any], make: Callable[[Tensor], LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors among `tensors` as `make` makes them; those that are one in memory are one object."""
    made: dict[Any, LazyTensor] = {}
    found = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if place not in made:
                made[place] = make(tensor)
            found[str(name)] = made[place]
    return found


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a safetensors file, unread; reading one raises an `OSError` if the file has changed."""
    signature = _signature(os.stat(path))  # noqa: PTH116 (the same call as for an open file)
    try:
        with safe_open(str(path), framework="pt"):
            pass  # it checks that header and length belong together
    except SafetensorError as error:
        raise OSError(f"{path} is not a complete safetensors file ({error}). Download it again.") from error
    begin, header = local_header(path)
    return _lazy_tensors(
        header, str(path), lambda entry: _in_file(path, signature, begin + entry["data_offsets"][0], entry)
    )


def lazy_header(header: Header, origin: str) -> dict[str, LazyTensor]:
    """Return the tensors of a file on the Hub of which the header was fetched: their shapes and types alone."""

    def read(_dtype: torch.dtype) -> Tensor:
        raise OSError(f"{origin} was not fetched.")

    return _lazy_tensors(header.tensors, origin, lambda _: read)


def _lazy_tensors(
    header: Mapping[str, Any], origin: str, reader: Callable[[Mapping[str, Any]], Callable[[torch.dtype], Tensor]]
) -> dict[str, LazyTensor]:
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise OSError(
                f"{origin} holds {name} in {entry['dtype']}; a student is made of plain weights (F64, F32, F16 or "
                "BF16). Of a quantized model, give the original, or dequantize it first (model.dequantize())."
            )
        tensors[name] = LazyTensor(tuple(entry["shape"]), _DTYPES[entry["dtype"]], reader(entry))
    return tensors


def open_bin(path: Path, weights_only: bool) -> dict[str, LazyTensor]:
    """
    Return the tensors of a PyTorch file, unread where it is a zip archive; older files are read whole, and it is said.

    Reading a tensor raises an `OSError` if the file has changed.
    """
    signature = _signature(os.stat(path))  # noqa: PTH116
    mapped = zipfile.is_zipfile(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=mapped)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise OSError(f"{path} cannot be read as PyTorch weights ({first_line(error)}). Download it again.") from error
    if not isinstance(tensors, dict):
        raise OSError(f"{path} must hold a dictionary of tensors, got a {type(tensors).__name__}.")
    if not mapped:
        logger.warning(
            "%s is in the format from before PyTorch 1.6, which cannot be read in part: all its %d bytes were read. "
            "Save the reference again with save_pretrained to read only what is kept.",
            path,
            path.stat().st_size,
        )
    return open_state(tensors, partial(_in_map, path, signature))


def open_gguf(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a GGUF file, by their names in the model, as Transformers dequantizes them: in float32."""
    logger.warning("%s is GGUF: all its %s bytes are read, and dequantized.", path, f"{path.stat().st_size:,}")
    auto: Any = AutoModelForCausalLM
    # Versions that leave weights in their blocks where they have kernels for them are told not to.
    whole = getattr(transformers, "GgufConfig", None)
    options = {} if whole is None else {"quantization_config": whole(dequantize=True)}
    try:
        model = auto.from_pretrained(path.parent, gguf_file=str(path.absolute()), dtype=torch.float32, **options)
    except (ImportError, RuntimeError, ValueError, LookupError, struct.error) as error:
        raise OSError(f"{path} cannot be read as GGUF: {first_line(error)}") from error
    return open_state(model.state_dict(), lazy_copy)


def _in_file(
    path: Path, signature: tuple[int, ...], begin: int, entry: Mapping[str, Any]
) -> Callable[[torch.dtype], Tensor]:
    shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]

    def read(wanted: torch.dtype) -> Tensor:
        tensor = torch.empty(shape, dtype=wanted)
        flat = tensor.view(-1)
        # Unbuffered: the bytes go from the file to where they stay, and none are read but these.
        with path.open("rb", buffering=0) as file:
            _check_unchanged(path, signature, os.fstat(file.fileno()))
            file.seek(begin)
            if wanted == dtype:
                _fill(file, flat, path)
            else:
                buffer = torch.empty(min(len(flat), _PIECE // dtype.itemsize), dtype=dtype)
                for start in range(0, len(flat), max(1, len(buffer))):
                    piece = buffer[: len(flat) - start]
                    _fill(file, piece, path)
                    flat[start : start + len(piece)].copy_(piece)
            _check_unchanged(path, signature, os.fstat(file.fileno()))
        return tensor

    return read


def _in_map(path: Path, signature: tuple[int, ...], tensor: Tensor) -> LazyTensor:
    def read(wanted: torch.dtype) -> Tensor:
        copied = torch.empty(tensor.shape, dtype=wanted)
        rows = tensor.detach() if tensor.dim() else tensor.detach()[None]
        count = max(1, _PIECE * len(rows) // max(1, tensor.nbytes))
        # Piece by piece: whoever reads a page that a shortened file no longer has is killed by the system.
        for piece, stored in zip(torch.split(copied.view_as(rows), count), torch.split(rows, count), strict=True):
            _check_unchanged(path, signature, os.stat(path))  # noqa: PTH116
            piece.copy_(stored)
        _check_unchanged(path, signature, os.stat(path))  # noqa: PTH116
        return copied

    return LazyTensor(tuple(tensor.shape), tensor.dtype, read)


def _fill(file: Any, flat: Tensor, path: Path) -> None:
    raw: Any = flat.view(torch.uint8).numpy()
    view = memoryview(raw)
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise OSError(f"{path} ends before one of its tensors does. Download it again.")
        done += count


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_unchanged(path: Path, signature: tuple[int, ...], status: os.stat_result) -> None:
    if _signature(status) != signature:
        raise OSError(f"{path} was changed while it was read; run it again when it is whole.")
