"""Prepare sequences ahead of time, once, in a folder that runs on many machines can read."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from datasets import DatasetDict

from ..annotations import Within
from ..config import DataConfig
from ..records import Count, DataFacts, encode, hold_folder, read_record, write_record
from .sources import TOKENS, evaluation_sources, load_saved, source_identity, training_sources
from .splits import DEFAULT_BLOCK_SIZE, DataSplits, load_data_splits
from .tokenization import definition

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FACTS = "prepared.json"
_SETS = "sets"
# Folder of unfinished work in a folder that is being prepared.
_WORK = ".work"

# Settings that a run may give with prepared data; all others were decided when they were prepared. The block size is
# compared on its own.
_MAY_BE_REPEATED = ("dataset_name", "block_size", "preprocessing_workers")


def is_prepared(name: str) -> bool:
    """Return whether `name` is a folder whose preparation was finished."""
    return (Path(name) / _FACTS).is_file()


def refuse_unfinished(name: str) -> None:
    """Raise a `ValueError` if `name` is a folder whose preparation was interrupted."""
    if (Path(name) / _WORK).is_dir() and not is_prepared(name):
        raise ValueError(
            f"The preparation of {name} was interrupted; run the command that prepares it again to resume."
        )


@dataclass(frozen=True)
class Request:
    """What was asked for when data were prepared, with the definition of the tokenizer and the sources' identities."""

    config: DataConfig
    block_size: Annotated[int, Within(2, 1 << 30)]
    seed: int
    tokenizer: str
    vocabulary: Count
    sources: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Prepared:
    """What was asked for when a folder was prepared, and what it holds."""

    request: Request
    facts: DataFacts


def read_prepared(name: str | Path) -> Prepared:
    """Return the record of a prepared folder; a `RecordError` names what is damaged."""
    return read_record(Prepared, Path(name) / _FACTS)


def separates_documents(config: DataConfig) -> bool:
    """Return whether documents of a sequence must not attend to each other: as set now, or when data were prepared."""
    name = config.dataset_name
    if name and is_prepared(name) and read_prepared(name).request.config.document_boundaries:
        return True
    return config.document_boundaries


def prepare_data(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    block_size: int | None = None,
    seed: int = 42,
    vocab_size: int | None = None,
    context_length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DataFacts:
    """
    Tokenize, split, pack and save what `config` describes; the folder is then a `dataset_name` of a run.

    It may be interrupted at any moment: the same call resumes at the first part that was not finished (`.work` in the
    folder holds the finished ones). A folder that is finished is left as it is. The arguments are those of
    `load_data_splits`.

    Raises:
        BlockingIOError: If another process prepares the same folder.
        ValueError: If a source cannot be used, the reference cannot read the sequences, or the folder holds other data.
    """
    folder = Path(output_dir)
    if config.streaming:
        raise ValueError("A stream is packed during training; leave out streaming to prepare data ahead of time.")
    sources = training_sources(config)
    if any(source.holds_token_files for source in sources):
        raise ValueError("Token files (.bin) are used as they are; give them to the run, there is nothing to prepare.")
    if config.dataset_name and is_prepared(config.dataset_name):
        raise ValueError(f"{config.dataset_name} is prepared already; give it to the run as dataset_name.")
    size = block_size or config.block_size or min(context_length or tokenizer.model_max_length, DEFAULT_BLOCK_SIZE)
    if context_length is not None and size > context_length:
        raise ValueError(f"block_size is {size}, but the reference reads at most {context_length}; lower it.")
    request = Request(
        dataclasses.replace(config, preprocessing_workers=None),
        size,
        seed,
        definition(tokenizer),
        len(tokenizer),
        tuple(source_identity(source) for source in [*sources, *evaluation_sources(config).values()]),
    )
    work = folder / _WORK
    if not is_prepared(str(folder)):
        with hold_folder(folder):
            if not is_prepared(str(folder)):  # another process may have finished it in between
                work.mkdir(exist_ok=True)
                splits = load_data_splits(
                    config,
                    tokenizer,
                    block_size=size,
                    seed=seed,
                    vocab_size=vocab_size,
                    cache_dir=work,
                    progress=progress,
                )
                _save(splits, folder, request)
    if encode(read_prepared(folder).request) != encode(request):
        raise ValueError(
            f"{folder} holds data that were prepared with other settings; choose another folder, or remove it."
        )
    shutil.rmtree(work, ignore_errors=True)
    return load_prepared(DataConfig(dataset_name=str(folder)), tokenizer).facts


def _save(splits: DataSplits, folder: Path, request: Request) -> None:
    temporary = folder / f".{_SETS}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    DatasetDict(train=splits.train, selection=splits.selection, test=splits.test).save_to_disk(temporary)
    shutil.rmtree(folder / _SETS, ignore_errors=True)
    temporary.rename(folder / _SETS)
    # Last: a folder without it is not used.
    write_record(folder / _FACTS, Prepared(request, splits.facts))


def load_prepared(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int | None = None,
    context_length: int | None = None,
) -> DataSplits:
    """Load a prepared folder; a `ValueError` if it is damaged, or `config` or the tokenizer asks for something else."""
    folder = Path(str(config.dataset_name))
    prepared = read_prepared(folder)
    request, facts = prepared.request, prepared.facts
    default, decided = vars(DataConfig()), vars(request.config)
    asked = [
        f"{name} {value!r} (prepared with {decided[name]!r})"
        for name, value in vars(config).items()
        if name not in _MAY_BE_REPEATED and value not in (default[name], decided[name])
    ]
    if asked:
        raise ValueError(
            f"{folder} is prepared: its sets are final. Leave out {', '.join(asked)}, or prepare it again."
        )
    if request.tokenizer != definition(tokenizer):
        raise ValueError(
            f"{folder} was prepared with another tokenizer ({request.vocabulary} tokens) than the reference's "
            f"({len(tokenizer)} tokens); prepare the data again with the reference's."
        )
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
    sets = {}
    for name in ("train", "selection", "test"):
        sets[name] = load_saved(folder / _SETS / name, "prepare the data again in another folder")
        expected = getattr(facts, name).sequences
        if len(sets[name]) != expected or TOKENS not in sets[name].column_names:
            raise ValueError(
                f"{folder / _SETS / name} does not hold the {expected} sequences that {_FACTS} names; prepare the data "
                "again in another folder."
            )
    return DataSplits(**sets, facts=facts)
