"""The three sets of token files (.bin): evaluation sets are copied out, the training set stays where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from ..configuration import DataConfig
from .facts import DataFacts, DataSplits, SetFacts, SourceFacts
from .overlaps import find_overlaps
from .packing import cut_windows, set_fingerprint
from .sets import (
    EVALUATION,
    among,
    announce,
    choose_carved,
    given_sources,
    missing_shares,
    require_tokens,
    set_facts,
    tokenize_source,
    where,
)
from .sources import Source, find_files
from .token_files import (
    TokenSequences,
    check_tokens,
    document_digests,
    find_tokens,
    runs_without,
    token_digests,
    token_documents,
    token_groups,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_token_files(
    config: DataConfig,
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    seed: int,
    vocab_size: int,
) -> DataSplits:
    """
    Map token files into memory, and make the evaluation sets.

    Raises:
        ValueError: If a file cannot be used, or something is asked for that token files do not allow.
    """
    if len(sources) > 1:
        raise ValueError(
            "Token files (.bin) cannot be mixed with other sources, since they are read where they lie; give them by "
            "train_files alone."
        )
    if config.streaming:
        raise ValueError("Token files (.bin) are read by memory map, which needs no streaming; leave it out.")
    given = given_sources(config)

    def opened(source: Source) -> list[Any]:
        files = [find_tokens(path, config.token_dtype) for path in find_files(source.files, source.setting)]
        return [(file, check_tokens(file, vocab_size, tokenizer)) for file in files]

    files = opened(sources[0])
    digests = [document_digests(file, ends) for file, ends in files]
    sets: dict[str, Dataset] = {}
    for name, source in given.items():
        if source.token_files():
            own = opened(source)
            sets[name] = token_documents(own, [np.arange(len(ends)) for _, ends in own])
        else:
            documents = tokenize_source(config, source, tokenizer, vocab_size)
            # Text that was tokenized here is compared by its tokens too.
            sets[name] = documents.remove_columns("digest").add_column("digest", token_digests(documents))
    chosen = choose_carved(np.concatenate(digests), missing_shares(config, given), seed)
    for name, wanted in chosen.items():
        sets[name] = token_documents(files, [np.flatnonzero(among(own, wanted)) for own in digests])
    carved = [among(own, np.concatenate([*chosen.values(), np.empty(0, dtype=np.int64)])) for own in digests]
    rest = [np.flatnonzero(~own) for own in carved]
    found = find_overlaps(
        sets,
        [own[numbers] for own, numbers in zip(digests, rest, strict=True)],
        [token_groups(file, ends, numbers) for (file, ends), numbers in zip(files, rest, strict=True)],
        config,
    )
    sets["selection"] = where(sets["selection"], ~found.drop_selection)
    dropped = [numbers[drop] for numbers, drop in zip(rest, found.drop_train, strict=True)]
    left_out = [np.concatenate([np.flatnonzero(own), drop]) for own, drop in zip(carved, dropped, strict=True)]
    train = TokenSequences(runs_without(files, left_out), block_size)
    if len(train) == 0:
        raise ValueError(
            f"The training set holds {train.tokens} tokens, fewer than one sequence of block_size {block_size}; give "
            "more tokens or a smaller block_size."
        )
    require_tokens(sets)
    windows = {name: cut_windows(sets[name], block_size, config.max_sequences_per_document) for name in EVALUATION}
    count = sum(len(own) for own in digests) - sum(map(len, left_out))
    facts = DataFacts(
        source=sources[0].label,
        block_size=block_size,
        train=SetFacts(count, len(train) * block_size, len(train), set_fingerprint(train)),
        selection=set_facts(len(sets["selection"]), windows["selection"]),
        test=set_facts(len(sets["test"]), windows["test"]),
        dropped_tokens=train.tokens % block_size,
        shared_documents=found.shared,
        near_duplicates=found.near,
        removed_documents=found.removed,
        longest_document=max(int(np.diff(ends, prepend=0).max()) for _, ends in files),
        sources=(SourceFacts(sources[0].label, count, train.tokens, passes=1.0),),
    )
    announce(facts)
    return DataSplits(train, windows["selection"], windows["test"], facts)
