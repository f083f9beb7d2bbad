"""Folders of sequences made ahead of time: three sets in the format of `datasets`, and what is known about them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import DatasetDict, load_from_disk

from ..configuration import DataConfig
from ..records import write_json
from .encoding import definition
from .facts import DataFacts, DataSplits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FACTS = "prepared.json"
_SETS = "sets"
#: Folder of unfinished work in a folder that is being prepared.
WORK = ".work"

# What a run may say of prepared data; everything else was decided when they were prepared. The block size is compared
# on its own.
_OPEN = ("dataset_name", "block_size", "preprocessing_workers")


def is_prepared(name: str) -> bool:
    """Return whether `name` is a folder that `save_prepared` finished."""
    return (Path(name) / _FACTS).is_file()


def refuse_unfinished(name: str) -> None:
    """Raise a `ValueError` if `name` is a folder whose preparation was interrupted."""
    if (Path(name) / WORK).is_dir() and not is_prepared(name):
        raise ValueError(f"{name} is not prepared to its end; give the command that prepares it again, and it goes on.")


def read_request(folder: Path) -> dict[str, Any]:
    """Return what was asked for when the folder was prepared."""
    request: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))["request"]
    return request


def keeps_documents_apart(config: DataConfig) -> bool:
    """Return whether documents of a sequence must not see each other: as set, or as decided when data were prepared."""
    name = config.dataset_name
    prepared = bool(name) and is_prepared(str(name)) and read_request(Path(str(name)))["config"]["document_boundaries"]
    return config.document_boundaries or bool(prepared)


def save_prepared(splits: DataSplits, folder: Path, request: Mapping[str, Any]) -> None:
    """Save the sets; the facts are written last, so that a folder without them is not used."""
    temporary = folder / f".{_SETS}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    sets = DatasetDict({name: getattr(splits, name) for name in ("train", "selection", "test")})
    sets.save_to_disk(temporary)
    shutil.rmtree(folder / _SETS, ignore_errors=True)
    temporary.rename(folder / _SETS)
    write_json(folder / _FACTS, {"request": dict(request), "facts": splits.facts.to_dict()})


def load_prepared(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int | None = None,
    context_length: int | None = None,
) -> DataSplits:
    """
    Load a prepared folder; its block size is the run's.

    Args:
        config (`DataConfig`): Names the folder.
        tokenizer (`PreTrainedTokenizerBase`): The reference's tokenizer.
        block_size (`int`, *optional*): What was asked for, if anything was.
        context_length (`int`, *optional*): Most tokens that the reference reads.

    Raises:
        ValueError: If it was made with another tokenizer or block size, or if `config` asks for something else than was
            decided then.
    """
    folder = Path(str(config.dataset_name))
    request = read_request(folder)
    default, decided = DataConfig().to_dict(), request["config"]
    asked = [
        f"{name} {value!r} (prepared with {decided[name]!r})"
        for name, value in config.to_dict().items()
        if name not in _OPEN and value not in (default[name], decided[name])
    ]
    if asked:
        raise ValueError(
            f"{folder} is prepared: its sets are made. Leave out {', '.join(asked)}, or prepare the data again with it."
        )
    if request["tokenizer"] != definition(tokenizer):
        raise ValueError(
            f"{folder} was prepared with another tokenizer ({request['vocabulary']} tokens) than the reference's "
            f"({len(tokenizer)} tokens); prepare the data again with the reference's."
        )
    facts = DataFacts.from_dict(json.loads((folder / _FACTS).read_text(encoding="utf-8"))["facts"])
    if block_size is not None and block_size != facts.block_size:
        raise ValueError(
            f"{folder} was prepared with sequences of {facts.block_size} tokens, got block_size {block_size}; leave "
            "block_size out, or prepare the data again."
        )
    if context_length is not None and context_length < facts.block_size:
        raise ValueError(
            f"{folder} was prepared with sequences of {facts.block_size} tokens, but the reference reads at most "
            f"{context_length}; prepare the data again with block_size {context_length} or less."
        )
    sets = load_from_disk(folder / _SETS)
    return DataSplits(sets["train"], sets["selection"], sets["test"], facts)
