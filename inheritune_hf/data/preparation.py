"""Make a run's sequences ahead of time, once, into a folder that runs on many machines can read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration import DataConfig
from .encoding import definition
from .facts import DataFacts
from .prepared import WORK, is_prepared, load_prepared, read_request, save_prepared
from .sets import given_sources
from .sources import source_identity, training_sources
from .splits import DEFAULT_BLOCK_SIZE, load_data_splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    Tokenize, carve, pack and save what `config` describes; the folder is then a `dataset_name` of a run.

    It may be interrupted at any moment: the same call goes on with the first part that was not finished. A folder that
    is finished is left as it is.

    Args:
        config (`DataConfig`): Sources and shares.
        tokenizer (`PreTrainedTokenizerBase`): The reference's tokenizer.
        output_dir (`str` or `Path`): Folder to save in; `.work` in it holds unfinished work and goes at the end.
        block_size (`int`, *optional*): Tokens of one sequence, as for `load_data_splits`.
        seed (`int`, *optional*, defaults to `42`): Chooses which documents are carved.
        vocab_size (`int`, *optional*): Tokens that the reference knows; the tokenizer's own if not given.
        context_length (`int`, *optional*): Most tokens that the reference reads; the tokenizer's limit if not given.
        progress (`Callable`, *optional*): Told documents done and documents in all, after each part.

    Returns:
        `DataFacts`: What the sets hold.

    Raises:
        FileNotFoundError: If a file or data set is not there.
        ValueError: If a source cannot be used, the reference cannot read the sequences, or the folder holds other data.
    """
    folder = Path(output_dir)
    if config.streaming:
        raise ValueError("A stream is packed while training; leave out streaming to prepare data ahead of time.")
    sources = training_sources(config)
    if any(source.token_files() for source in sources):
        raise ValueError(
            "Token files (.bin) are read where they lie; give them to the run, there is nothing to prepare."
        )
    if config.dataset_name and is_prepared(config.dataset_name):
        raise ValueError(f"{config.dataset_name} is prepared already; give it to the run as dataset_name.")
    size = block_size or config.block_size or min(context_length or tokenizer.model_max_length, DEFAULT_BLOCK_SIZE)
    if context_length is not None and size > context_length:
        raise ValueError(f"block_size is {size}, but the reference reads at most {context_length}; lower it.")
    request: dict[str, Any] = {
        "config": {**config.to_dict(), "preprocessing_workers": None},
        "block_size": size,
        "seed": seed,
        "tokenizer": definition(tokenizer),
        "vocabulary": len(tokenizer),
        "sources": [_plain(source_identity(source)) for source in [*sources, *given_sources(config).values()]],
    }
    work = folder / WORK
    if is_prepared(str(folder)):
        if _plain(read_request(folder)) != _plain(request):
            raise ValueError(f"{folder} holds data that were prepared otherwise; choose another folder, or remove it.")
        shutil.rmtree(work, ignore_errors=True)
        return load_prepared(DataConfig(dataset_name=str(folder)), tokenizer).facts
    work.mkdir(parents=True, exist_ok=True)
    splits = load_data_splits(
        config, tokenizer, block_size=size, seed=seed, vocab_size=vocab_size, cache_dir=work, progress=progress
    )
    save_prepared(splits, folder, _plain(request))
    shutil.rmtree(work, ignore_errors=True)
    return splits.facts


def _plain(value: Any) -> Any:
    """Return `value` as JSON would bring it back."""
    return json.loads(json.dumps(value))
