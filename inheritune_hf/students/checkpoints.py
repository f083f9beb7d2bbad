"""Read from a reference's files, local or on the Hub, only the tensors that a student keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from .tensors import Unread, first_line, open_bin, open_safetensors

#: Given names in files, returns for each kept one its name for the student.
Choose = Callable[[Iterable[str]], Mapping[str, str]]

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
        path = source.find(name)
        if path is not None:
            files = _read_index(path) if name.endswith(".json") else {}
            return Weights(source=source, format=kind, files=files, path=path, weights_only=weights_only)
        looked_for.append(name)
    raise FileNotFoundError(
        f"There are no weights at {source.reference!r}: looked for {', '.join(looked_for)}. "
        "Check `subfolder` and `variant`, or save the model again with save_pretrained."
    )


def find_weights_unfetched(source: Source) -> Weights | None:
    """Return where the reference's weights are, or None if there are none; at most an index of shards is fetched."""
    names = [_with_variant(plain, source.variant) for _, plain in _WEIGHT_FILES]
    listed = file_sizes(source, names)
    for (kind, _), name in zip(_WEIGHT_FILES, names, strict=True):
        if name not in listed:
            continue
        path = source.find(name) if name.endswith(".json") else Path(name)
        if path is not None:
            return Weights(source, kind, _read_index(path) if name.endswith(".json") else {}, path)
    return None


def file_sizes(source: Source, names: Iterable[str]) -> dict[str, int]:
    """
    Return the sizes in bytes of those of the named files that there are; for a repository of the Hub it is asked.

    Raises:
        OSError: If the Hub does not answer.
    """
    names = list(names)
    at_hand = {name: source.find_at_hand(name) for name in names}
    sizes = {name: path.stat().st_size for name, path in at_hand.items() if path is not None}
    if source.is_local or source.local_files_only or HF_HUB_OFFLINE or len(sizes) == len(names):
        return sizes
    subfolder = f"{source.subfolder}/" if source.subfolder else ""
    paths = {f"{subfolder}{name}": name for name in names if name not in sizes}
    try:
        listed = HfApi(token=source.token).get_paths_info(source.reference, list(paths), revision=source.revision)
    except HfHubHTTPError as error:
        raise OSError(
            f"The Hub did not list the files of {source.reference!r}: {first_line(error)} "
            "A private or gated model needs `token`."
        ) from error
    return {**sizes, **{paths[item.path]: item.size for item in listed if isinstance(item, RepoFile)}}


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
    Return the files that hold a kept tensor; from the Hub they are downloaded.

    Raises:
        FileNotFoundError: If one is missing.
    """
    if not weights.files:
        return [weights.path]
    found = []
    for shard in needed_shards(weights, choose):
        path = weights.source.find(shard)
        if path is None:
            raise FileNotFoundError(
                f"{shard} is missing at {weights.source.reference!r}: {weights.path.name} says that it holds "
                "tensors that the student keeps. Download it again."
            )
        found.append(path)
    return found


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
