"""The three sets of a streamed source: evaluation sets in memory, the training set as a stream."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset, IterableDataset

from ..configuration import DataConfig
from .data_sets import reading
from .duplicates import Index, index_documents
from .encoding import Encoder, digests, marked
from .facts import DataFacts, DataSplits, SetFacts, SourceFacts
from .overlaps import find_overlaps
from .packing import cut_windows, tokenize_documents
from .sets import (
    EVALUATION,
    announce,
    encoder_of,
    given_sources,
    joined,
    missing_shares,
    require_tokens,
    set_facts,
    tokenize_source,
    where,
)
from .sources import Source, find_files, sources_fingerprint, stream_source
from .streaming import Exclusion, PackedStream, StreamSource, place_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def load_stream(
    config: DataConfig,
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    seed: int,
    vocab_size: int,
) -> DataSplits:
    """
    Open a training stream, and make the evaluation sets.

    A carved set is every document whose hash falls into the set's share. It is looked for among the first
    `carve_documents` documents of each source; the stream leaves such documents out wherever they are.

    Raises:
        ValueError: If no document was found for a carved set, or a source cannot be used.
    """
    given = given_sources(config)
    opened = [(stream_source(source), encoder_of(config, source, tokenizer, vocab_size)) for source in sources]
    sets = {name: tokenize_source(config, source, tokenizer, vocab_size) for name, source in given.items()}
    shares = missing_shares(config, given)
    sets |= _carve(opened, shares, config.carve_documents, seed)
    found = find_overlaps(sets, [], [], config)
    sets["selection"] = where(sets["selection"], ~found.drop_selection)
    require_tokens(sets)
    near: Index | None = None
    if config.near_duplicates != "ignore":
        near = index_documents([sets[name] for name in EVALUATION], config.near_duplicate_threshold)
    settings = {"shared": config.duplicates, "near": config.near_duplicates}
    exclusion = Exclusion(
        seed,
        sum(shares.values()),
        frozenset(digest for dataset in sets.values() for digest in dataset["digest"][:]),
        near,
        frozenset(name for name, value in settings.items() if value == "remove"),
    )
    # In another order it is another stream: a run cannot go on in it.
    order = f":{config.shuffle_documents}:{seed}" if config.shuffle_documents else ""
    fingerprint = hashlib.sha256(f"{sources_fingerprint(sources)}{order}".encode()).hexdigest()
    train = PackedStream(
        [
            StreamSource(rows, encoder, weight)
            for (rows, encoder), weight in zip(opened, _weights(sources), strict=True)
        ],
        block_size,
        exclusion,
        fingerprint,
        config.shuffle_documents,
        seed,
        together=sources[0].weight is None,
    )
    windows = {name: cut_windows(sets[name], block_size, config.max_sequences_per_document) for name in EVALUATION}
    facts = DataFacts(
        source=", ".join(source.label for source in sources),
        block_size=block_size,
        train=SetFacts(None, None, None, fingerprint),
        selection=set_facts(len(sets["selection"]), windows["selection"]),
        test=set_facts(len(sets["test"]), windows["test"]),
        shared_documents=found.shared,
        near_duplicates=found.near,
        removed_documents=found.removed,
        sources=tuple(SourceFacts(source.label, weight=source.weight) for source in sources),
    )
    announce(facts)
    return DataSplits(train, windows["selection"], windows["test"], facts)


def _weights(sources: Sequence[Source]) -> list[float]:
    """Return the given weights; without them the sizes of the files, or, if a source has none, the same for all."""
    if sources[0].weight is not None:
        return [source.weight or 0.0 for source in sources]
    if any(source.name is not None for source in sources):
        return [1.0] * len(sources)
    files = [find_files(source.files, source.setting, source.layout.skip) for source in sources]
    return [float(max(1, sum(path.stat().st_size for path in paths))) for paths in files]


def _carve(
    opened: Sequence[tuple[IterableDataset, Encoder]], shares: Mapping[str, float], most: int, seed: int
) -> dict[str, Dataset]:
    """Tokenize the documents among the first `most` of each source whose hash falls into the share of a set."""
    if not shares:
        return {}
    labelled = any(encoder.labelled for _, encoder in opened)
    chosen: dict[str, list[Dataset]] = {name: [] for name in shares}
    for rows, encoder in opened:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in shares}
        read = 0
        with reading(encoder.source):
            for row in itertools.islice(rows, most):
                read += 1
                batch = marked({name: [value] for name, value in row.items()}, encoder.layout)
                for _, digest in digests(batch, encoder.layout):
                    name = _set_of(place_of(digest, seed), shares)
                    if name is not None:
                        found[name].append(row)
        for name, items in found.items():
            if items:
                documents = Dataset.from_list(items, features=rows.features)
                chosen[name].append(tokenize_documents(documents, encoder, labelled=labelled))
    for name, parts in chosen.items():
        if not parts:
            raise ValueError(
                f"None of the first {read:,} documents falls into the {name} set ({shares[name]:.4g} of all); raise "
                f"carve_documents or {name}_fraction, or give {name}_files."
            )
    return {name: joined(parts) for name, parts in chosen.items()}


def _set_of(place: float, shares: Mapping[str, float]) -> str | None:
    for name, share in shares.items():
        if place < share:
            return name
        place -= share
    return None
