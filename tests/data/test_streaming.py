"""A stream of sequences: nothing lost, nothing twice, and on from where it stopped."""

from __future__ import annotations

import json
import random

import pytest
from datasets import IterableDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from inheritune_hf.data import CausalCollator
from inheritune_hf.data.encoding import Encoder
from inheritune_hf.data.streaming import PackedStream, Places, StreamCollator, StreamSource

quick = settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# A fork of a process with threads: https://github.com/python/cpython/issues/100228
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def rows_of(shards):
    for shard in shards:
        for text in json.loads(shard):
            yield {"text": text, "damage": None}


def stream_of(tokenizer, *sources, block_size=8, weights=None):
    """A stream of sources, each a list of shards, each a list of texts."""
    made = []
    for number, shards in enumerate(sources):
        rows = IterableDataset.from_generator(rows_of, gen_kwargs={"shards": [json.dumps(shard) for shard in shards]})
        weight = weights[number] if weights else 1.0
        made.append(StreamSource(rows, Encoder(tokenizer, source=f"source {number}"), weight))
    return PackedStream(made, block_size)


def documents(count, seed=0, words=12):
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(99)}" for _ in range(draw.randint(0, words))) + f" d{i}" for i in range(count)]


def take(stream, count, batch_size=2, workers=0, places=None, rank=0, world=1):
    """The first batches of one process, and where it is after each."""
    loader = DataLoader(
        stream.begin(rank, world, places),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=StreamCollator(CausalCollator(0)),
    )
    noted, batches, after = Places(places), [], []
    for batch in loader:
        noted.note(batch.pop("place"))
        batches.append(batch["input_ids"].tolist())
        after.append(json.loads(json.dumps(noted.to_dict())))
        if len(batches) == count:
            break
    return batches, after


def flat(batches):
    return [token for batch in batches for row in batch for token in row]


@quick
@given(
    shards=st.lists(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), max_size=6), min_size=1),
    block_size=st.integers(2, 20),
)
def test_a_stream_is_its_documents_end_to_end(shards, block_size, tokenizer):
    """The sequences, laid end to end, are the documents of the source in order, pass after pass."""
    texts = [text for shard in shards for text in shard if not text.isspace()]
    if not texts:
        return
    once = [t for text in texts for t in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = iter(stream_of(tokenizer, shards, block_size=block_size))
    count = 2 * len(once) // block_size + 1
    streamed = [token for _ in range(count) for token in next(rows)["input_ids"].tolist()]
    assert streamed == (once * (len(streamed) // len(once) + 1))[: len(streamed)]


@quick
@given(
    count=st.integers(1, 40),
    shards=st.integers(1, 5),
    block_size=st.integers(2, 20),
    stop=st.integers(0, 12),
    sources=st.integers(1, 3),
)
def test_an_interrupted_stream_goes_on_token_by_token(count, shards, block_size, stop, sources, tokenizer):
    """Wherever it stopped, the sequences that follow are those that would have followed."""
    parts = [[documents(count, seed=10 * number + part) for part in range(shards)] for number in range(sources)]
    stream = stream_of(tokenizer, *parts, block_size=block_size, weights=[number + 1.0 for number in range(sources)])
    whole, after = take(stream, stop + 8, batch_size=1)
    resumed, _ = take(stream, 7, batch_size=1, places=after[stop])
    assert resumed == whole[stop + 1 :]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("shards", [1, 4, 7])
def test_it_goes_on_with_workers(workers, shards, tokenizer):
    """However many workers a loader has, it goes on with the batch that is next."""
    stream = stream_of(tokenizer, [documents(9, seed=part) for part in range(shards)])
    whole, after = take(stream, 12, workers=workers)
    for stop in (0, 2, 7):
        resumed, again = take(stream, 11 - stop, workers=workers, places=after[stop])
        assert resumed == whole[stop + 1 :]
        assert again == after[stop + 1 :]
