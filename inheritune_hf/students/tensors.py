"""What a weights file holds, known from its header, and each tensor read by itself into memory of its own."""

from __future__ import annotations

import json
import logging
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

logger = logging.getLogger(__name__)

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
class Unread:
    """
    A tensor that is not read yet; `unread[...]` reads it into memory of its own, in `wanted_dtype` if that is set.

    `from_pretrained` takes these in place of tensors, and reads several at once.

    Args:
        shape (`tuple[int, ...]`): Its shape.
        dtype (`torch.dtype`): The type it is stored in.
        read (`Callable[[torch.dtype], Tensor]`): Reads it in a given type.
        wanted_dtype (`torch.dtype`, *optional*): The type it is read in; the stored one if not given.
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

    def in_dtype(self, dtype: torch.dtype) -> Unread:
        """Return the same tensor, to be read in `dtype`; whole numbers stay what they are."""
        return replace(self, wanted_dtype=dtype) if self.dtype.is_floating_point else self


def unread_tensor(tensor: Tensor) -> Unread:
    """Return a tensor that is in memory already as one to be copied."""
    return Unread(tuple(tensor.shape), tensor.dtype, lambda dtype: tensor.detach().to(dtype, copy=True))


def unread_once(tensors: Mapping[Any, Any], unread: Callable[[Tensor], Unread]) -> dict[str, Unread]:
    """Return the tensors among `tensors` as `unread` makes them; those that are one in memory are one object."""
    made: dict[Any, Unread] = {}
    found = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if place not in made:
                made[place] = unread(tensor)
            found[str(name)] = made[place]
    return found


def open_safetensors(path: Path) -> dict[str, Unread]:
    """
    Return the tensors of a safetensors file, unread; only its header is read.

    Raises:
        OSError: If the file is incomplete, or holds a type that is not known. Reading a tensor raises it too, if the
            file was changed since.
    """
    signature = _signature(os.stat(path))  # noqa: PTH116 (the same call as for an open file)
    try:
        with safe_open(str(path), framework="pt"):
            pass  # it checks that header and length belong together
    except SafetensorError as error:
        raise OSError(f"{path} is not a complete safetensors file ({error}). Download it again.") from error
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise OSError(
                f"{path} holds {name} in {entry['dtype']}; a student is made of plain weights in one of "
                f"{', '.join(_DTYPES)}."
            )
        begin = 8 + length + entry["data_offsets"][0]
        tensors[name] = _in_file(path, signature, begin, tuple(entry["shape"]), _DTYPES[entry["dtype"]])
    return tensors


def open_bin(path: Path, weights_only: bool) -> dict[str, Unread]:
    """
    Return the tensors of a PyTorch file, unread where it is a zip archive; older files are read whole, and it is said.

    Raises:
        OSError: If the file cannot be read, or holds no dictionary. Reading a tensor raises it too, if the file was
            changed since.
    """
    signature = _signature(os.stat(path))  # noqa: PTH116
    mapped = is_readable_in_part(path)
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
    return unread_once(tensors, partial(_in_map, path, signature))


def is_readable_in_part(path: Path) -> bool:
    """Return whether a PyTorch file is a zip archive: files from before PyTorch 1.6 are read whole or not at all."""
    return zipfile.is_zipfile(path)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _in_file(path: Path, signature: tuple[int, ...], begin: int, shape: tuple[int, ...], dtype: torch.dtype) -> Unread:
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

    return Unread(shape, dtype, read)


def _in_map(path: Path, signature: tuple[int, ...], tensor: Tensor) -> Unread:
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

    return Unread(tuple(tensor.shape), tensor.dtype, read)


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
