"""Read from a reference's files, local or on the Hub, only the tensors that a student keeps."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from safetensors import SafetensorError, safe_open

#: Arguments of `from_pretrained` that say where files come from.
SOURCE_ARGUMENTS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "variant")

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
        except HfHubHTTPError as error:
            raise OSError(
                f"The Hub did not give {name} of {self.reference!r}: {_first_line(error)} "
                "Give a folder with config.json or a Hub id; a private or gated model needs `token`."
            ) from error
        return Path(str(found))


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
        path = source.find(name)
        if path is not None:
            files = _read_index(path) if name.endswith(".json") else {}
            return Weights(source=source, format=kind, files=files, path=path, weights_only=weights_only)
        looked_for.append(name)
    raise FileNotFoundError(
        f"There are no weights at {source.reference!r}: looked for {', '.join(looked_for)}. "
        "Check `subfolder` and `variant`, or save the model again with save_pretrained."
    )


@contextmanager
def open_tensors(weights: Weights, wanted: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """
    Open the kept tensors, each under its name in the student, without reading any of them.

    Only the shards that hold a kept tensor are opened (and, from the Hub, downloaded). The values are safetensors
    slices, or tensors mapped from a `bin` file: `value[...]` reads. They are valid within the context only.

    Args:
        weights (`Weights`): The files, from `find_weights`.
        wanted (`Mapping[str, str]`): For every name that a kept tensor may have in the files, its name in the student.

    Yields:
        `dict[str, Any]`: The slice or tensor of every kept tensor that the files have.

    Raises:
        OSError: If a file is missing or incomplete.
    """
    with ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for path in _needed_files(weights, wanted):
            opened = (
                _open_safetensors(path, stack)
                if weights.format == "safetensors"
                else _open_bin(path, weights.weights_only)
            )
            tensors.update({wanted[name]: tensor for name, tensor in opened.items() if name in wanted})
        yield tensors


def _needed_files(weights: Weights, wanted: Mapping[str, str]) -> list[Path]:
    if not weights.files:
        return [weights.path]
    found = []
    for shard in sorted({shard for name, shard in weights.files.items() if name in wanted}):
        path = weights.source.find(shard)
        if path is None:
            raise FileNotFoundError(
                f"{shard} is missing at {weights.source.reference!r}: {weights.path.name} says that it holds "
                "tensors that the student keeps. Download it again."
            )
        found.append(path)
    return found


def _open_safetensors(path: Path, stack: ExitStack) -> dict[str, Any]:
    try:
        file = stack.enter_context(safe_open(str(path), framework="pt"))
    except SafetensorError as error:
        raise OSError(f"{path} is not a complete safetensors file ({error}). Download it again.") from error
    return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (the file is not iterable)


def _open_bin(path: Path, weights_only: bool) -> dict[str, Any]:
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped: they are read whole.
        tensors = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise OSError(f"{path} cannot be read as PyTorch weights ({_first_line(error)}). Download it again.") from error
    if not isinstance(tensors, dict):
        raise OSError(f"{path} must hold a dictionary of tensors, got a {type(tensors).__name__}.")
    return tensors


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


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
