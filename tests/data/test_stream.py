"""A stream of sequences: nothing is lost or read twice, and it resumes where it stopped."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_splits import documents_of
from torch.utils.data import DataLoader

from inheritune_hf.config import DataConfig
from inheritune_hf.data import CausalCollator, load_data_splits
from inheritune_hf.data.sources import sources_fingerprint, training_sources
from inheritune_hf.data.stream import PackedStream, StreamCollator, StreamSource, StreamState
from inheritune_hf.data.tokenization import Encoder
from inheritune_hf.records import RecordError, decode, encode

ROOT = Path(__file__).parents[2]
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


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}


def rows_of(shards):
    for shard in shards:
        for text in json.loads(shard):
            yield {"text": text, "bad_row": None}


def stream_of(tokenizer, *sources, block_size=8, weights=None, shuffle=0, seed=0, equal_passes=False):
    """A stream of sources, each a list of shards, each a list of texts."""
    made = []
    for number, shards in enumerate(sources):
        rows = IterableDataset.from_generator(rows_of, gen_kwargs={"shards": [json.dumps(shard) for shard in shards]})
        weight = weights[number] if weights else 1.0
        made.append(StreamSource(rows, Encoder(tokenizer, source=f"source {number}"), weight))
    return PackedStream(made, block_size, shuffle_documents=shuffle, seed=seed, equal_passes=equal_passes)


def documents(count, seed=0, words=12):
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(99)}" for _ in range(draw.randint(0, words))) + f" d{i}" for i in range(count)]


def take(stream, count, batch_size=2, workers=0, state=None, rank=0, world=1):
    """The first batches of one process, and where it is after each."""
    loader = DataLoader(
        stream.begin(rank, world, decode(StreamState, state or {}, "state")),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=StreamCollator(CausalCollator(0)),
    )
    noted, batches, after = decode(StreamState, state or {}, "state"), [], []
    for batch in loader:
        noted.update(batch.pop("reader_state"))
        batches.append(batch["input_ids"].tolist())
        after.append(json.loads(json.dumps(encode(noted))))
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
    shuffle=st.integers(0, 50),
    equal_passes=st.booleans(),
)
def test_an_interrupted_stream_resumes_token_by_token(
    count, shards, block_size, stop, sources, shuffle, equal_passes, tokenizer
):
    """Wherever it stopped, shuffled or not, the sequences that follow are those that would have followed."""
    parts = [[documents(count, seed=10 * number + part) for part in range(shards)] for number in range(sources)]
    weights = [number + 1.0 for number in range(sources)]
    stream = stream_of(
        tokenizer, *parts, block_size=block_size, weights=weights, shuffle=shuffle, equal_passes=equal_passes
    )
    whole, after = take(stream, stop + 8, batch_size=1)
    resumed, _ = take(stream, 7, batch_size=1, state=after[stop])
    assert resumed == whole[stop + 1 :]


@settings(quick, max_examples=8)
@given(
    shards=st.integers(1, 4),
    count=st.integers(4, 12),
    block_size=st.integers(2, 12),
    workers=st.integers(0, 3),
    stop=st.integers(0, 6),
)
def test_workers_lose_no_token(shards, count, block_size, workers, stop, tokenizer):
    """However many workers, stopped anywhere: together they read every document, each its own, and no token is lost."""
    parts = [[f"{part} {number}" for number in range(count)] for part in range(shards)]
    stream = stream_of(tokenizer, parts, block_size=block_size)
    size = sum(len(tokenizer(text)["input_ids"]) + 1 for part in parts for text in part)
    readers = max(1, workers)
    batches = readers * (size // block_size + 2)  # so that each reader has read all of its documents
    whole, after = take(stream, batches, batch_size=1, workers=workers)
    resumed, _ = take(stream, batches - stop - 1, batch_size=1, workers=workers, state=after[stop])
    assert resumed == whole[stop + 1 :]
    found = []
    for reader in range(readers):
        texts = tokenizer.decode(flat(whole[reader::readers])).split(tokenizer.eos_token)[:-1]
        own = texts[: texts.index(texts[0], 1) if texts[0] in texts[1:] else None]
        assert texts == (own * (len(texts) // len(own) + 1))[: len(texts)]
        found += own
    assert sorted(found) == sorted(text for part in parts for text in part)


def texts_by_pass(stream, tokenizer, passes=1, rank=0, world=1):
    """The documents of the first passes of a reader, in order."""
    tokens, found = [], []
    for row in stream.begin(rank, world):
        tokens += row["input_ids"].tolist()
        if row["reader_state"].sources[0].counts["passes"] > passes:
            break
    found = tokenizer.decode(tokens).split(tokenizer.eos_token)[:-1]
    count = len(found) // (passes + 1)
    return [found[number * count : (number + 1) * count] for number in range(passes)]


def test_shuffling_is_by_files_passes_and_seeds(tokenizer):
    """Files come in a drawn order, documents within a window; another pass, seed or reader has another order."""
    parts = [[f"{part} {number}" for number in range(40)] for part in range(8)]
    orders = {}
    for seed, shuffle in ((0, 1), (0, 10), (1, 10)):
        stream = stream_of(tokenizer, parts, block_size=2, shuffle=shuffle, seed=seed)
        for number, one in enumerate(texts_by_pass(stream, tokenizer, 2)):
            orders[seed, shuffle, number] = one
    assert len({tuple(order) for order in orders.values()}) == 6
    for order in (orders[0, 1, 0], orders[0, 1, 1]):  # windows of one document: only the files have another order
        files = list(dict.fromkeys(text.split()[0] for text in order))
        assert files != sorted(files)
        assert order == [f"{part} {number}" for part in files for number in range(40)]
    for start in range(0, 320, 10):  # windows of ten: within them, everything is as far as it can be
        window = orders[0, 10, 0][start : start + 10]
        numbers = [int(text.split()[1]) for text in window]
        assert len({text.split()[0] for text in window}) == 1
        assert sorted(numbers) == list(range(min(numbers), min(numbers) + 10))


@pytest.mark.parametrize("shards", [1, 4])
def test_readers_keep_their_documents_when_shuffled(shards, tokenizer):
    """In no pass does a reader read a document of another."""
    parts = [[f"{part} {number}" for number in range(12 // shards)] for part in range(shards)]
    stream = stream_of(tokenizer, parts, block_size=2, shuffle=5)
    readers = [texts_by_pass(stream, tokenizer, 3, rank, 2) for rank in range(2)]
    own = [{text for one in reader for text in one} for reader in readers]
    assert not own[0] & own[1]
    assert own[0] | own[1] == {text for part in parts for text in part}
    assert all(sorted(one) == sorted(reader[0]) for reader in readers for one in reader)


# --- readers ----------------------------------------------------------------------------------------------------------


def test_a_reader_without_documents_is_named(tokenizer):
    """More readers than documents: the reader that has none names the numbers."""
    stream = stream_of(tokenizer, [["only one"]])
    assert next(iter(stream.begin(0, 2)))
    with pytest.raises(ValueError, match=r"Reader 2 of 2 found no document in source 0: there are fewer documents tha"):
        next(iter(stream.begin(1, 2)))


def test_sources_of_a_stream_have_their_shares(tokenizer):
    """The tokens of each source follow its weight from the first sequences on, to within a document."""
    sources = [[["a a a a"] * 5], [["b b b b b b b b"] * 3]]
    stream = stream_of(tokenizer, *sources, weights=[3.0, 1.0])
    rows = iter(stream)
    for _ in range(200):
        place = next(rows)["reader_state"]
    tokens = [source.counts["tokens"] for source in place.sources]
    assert tokens[0] / sum(tokens) == pytest.approx(0.75, abs=0.02)


@settings(quick, max_examples=12)
@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=3), shuffle=st.integers(0, 9), stop=st.integers(0, 30))
def test_a_pass_has_every_document_of_every_source_once(sizes, shuffle, stop, tokenizer):
    """Whatever their sizes, and wherever it resumes, each pass has every document of every source once."""
    parts = [[[f"{number} {n}" for n in range(size)]] for number, size in enumerate(sizes)]
    stream = stream_of(tokenizer, *parts, block_size=2, shuffle=shuffle, equal_passes=True)
    once = sum(len(tokenizer(text)["input_ids"]) + 1 for (texts,) in parts for text in texts)
    whole, after = take(stream, once + stop + 1, batch_size=1)
    resumed, _ = take(stream, once, batch_size=1, state=after[stop])
    assert resumed == whole[stop + 1 : stop + 1 + once]
    found = tokenizer.decode(flat(whole)).split(tokenizer.eos_token)
    count = sum(sizes)
    for texts in (found[:count], found[count : 2 * count]):
        assert sorted(texts) == sorted(text for (part,) in parts for text in part)


def test_places_count_what_was_read(tokenizer):
    """Passes, documents and tokens are counted, over sources and workers."""
    stream = stream_of(tokenizer, [documents(6)])
    _, after = take(stream, 40)
    state = decode(StreamState, after[-1], "state")
    assert state.passes >= 1
    assert state.total("documents") >= 6 * state.passes
    assert state.total("tokens") == 40 * 2 * 8
    assert state.total("left_out") == state.total("damaged") == 0
    assert StreamState().passes == 0


def test_a_damaged_state_is_named(tokenizer):
    """Each field of a saved state is checked: where it is, and of which type."""
    _, after = take(stream_of(tokenizer, [documents(6)]), 3)
    for change, message in (
        (lambda reader: reader.update(offset=-1), r"state: workers\.0\.offset must be "),
        (lambda reader: reader["sources"][0].update(shard="a"), r"state: workers\.0\.sources\[0\]\.shard must be"),
        (lambda reader: reader["sources"][0]["counts"].pop("near"), r"workers\.0\.sources\[0\]\.counts must be docum"),
        (lambda reader: reader.update(workers=0), r"state: workers\.0\.workers must be .* of 1 or more"),
    ):
        state = copy.deepcopy(after[-1])
        change(state["workers"]["0"])
        with pytest.raises(RecordError, match=message):
            decode(StreamState, state, "state")


# --- by settings -----------------------------------------------------------------------------------------------------


def write_shards(folder, texts, shards):
    folder.mkdir()
    for number in range(shards):
        part = texts[number::shards]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    return [f"{folder}/*.jsonl"]


def load(tokenizer, block_size=8, data_seed=None, **settings):
    defaults = {"streaming": True, "selection_fraction": 0.2, "test_fraction": 0.2, "shuffle_documents": 0}
    config = DataConfig(**{**defaults, **settings})
    return load_data_splits(config, tokenizer, block_size=block_size, data_seed=data_seed)


def test_held_out_documents_of_a_stream_do_not_depend_on_order_or_shards(tmp_path, tokenizer):
    """The same documents are held out whatever the order and the shards, and no reader trains on them."""
    texts = [f"document {number} of the stream" for number in range(50)]
    held = []
    for name, shards, order in (("a", 1, 1), ("b", 3, -1), ("c", 7, 1)):
        splits = load(tokenizer, train_files=write_shards(tmp_path / name, texts[::order], shards))
        held.append((set(documents_of(splits.selection, tokenizer)), set(documents_of(splits.test, tokenizer))))
        tokens = []
        for row in splits.train:
            tokens += row["input_ids"].tolist()
            if row["reader_state"].sources[0].counts["passes"] > 1:
                break
        trained = {text for text in tokenizer.decode(tokens).split(tokenizer.eos_token)[:-1] if text}
        assert trained == set(texts) - held[-1][0] - held[-1][1]
    assert held[0] == held[1] == held[2]
    assert not held[0][0] & held[0][1]
    assert splits.facts.train.documents is None
    assert splits.facts.selection.documents == len(held[0][0])


def test_the_data_seed_is_of_the_order_alone(tmp_path, tokenizer):
    """Another data seed is another stream, in another order; the same documents are held out."""
    texts = [f"document {number} of the stream" for number in range(50)]
    settings = {"train_files": write_shards(tmp_path / "a", texts, 1), "shuffle_documents": 9}
    same, one, other = (load(tokenizer, data_seed=seed, **settings) for seed in (42, None, 43))
    assert take(same.train, 9)[0] == take(one.train, 9)[0] != take(other.train, 9)[0]
    assert same.facts == one.facts
    assert one.facts.train.fingerprint != other.facts.train.fingerprint
    assert (one.facts.selection, one.facts.test) == (other.facts.selection, other.facts.test)


@pytest.mark.parametrize("kind", ["parquet", "folder", "saved"])
def test_tables_and_data_sets_are_streamed(kind, tmp_path, tokenizer):
    """Parquet files, a folder of a data set and a saved one are streamed, and resume, like text."""
    texts = [f"row {number} of a table" for number in range(40)]
    table = Dataset.from_dict({"text": texts})
    (tmp_path / "folder").mkdir()
    if kind == "saved":
        table.save_to_disk("folder")
    else:
        for number in range(2):
            table.shard(2, number, contiguous=True).to_parquet(tmp_path / "folder" / f"train-{number}.parquet")
    source = {"train_files": ["folder/*.parquet"]} if kind == "parquet" else {"dataset_name": "./folder"}
    stream = load(tokenizer, **source, shuffle_documents=7).train
    whole, after = take(stream, 30)
    for stop in (0, 5, 17):
        resumed, _ = take(stream, 29 - stop, state=after[stop])
        assert resumed == whole[stop + 1 :]


def test_a_streamed_mixture_without_weights_has_every_document_once(tmp_path, tokenizer):
    """A small file beside a large one is read once in a pass, spread over it; with equal weights, often."""
    small, large = ([f"{name} {number:03}" for number in range(count)] for name, count in (("s", 4), ("l", 80)))
    sources = [
        {"files": write_shards(tmp_path / "small", small, 1)},
        {"files": write_shards(tmp_path / "large", large, 1)},
    ]
    given = {f"{name}_files": write_shards(tmp_path / name, [f"for {name}"], 1) for name in ("selection", "test")}

    def texts(sources):
        rows = iter(load(tokenizer, sources=sources, **given).train)
        tokens = [token for _, row in zip(range(150), rows, strict=False) for token in row["input_ids"].tolist()]
        return tokenizer.decode(tokens).split(tokenizer.eos_token)[: len(small) + len(large)]

    found = texts(sources)
    assert sorted(found) == sorted(small + large)
    assert [text for text in found[:42] if text in small] == small[:2]
    weighted = texts([{**source, "weight": 1} for source in sources])
    assert weighted.count(small[0]) > 5


def test_a_stream_without_held_out_documents_is_named(tmp_path, tokenizer):
    """A share so small that nothing falls into it is said with what to raise."""
    files = write_shards(tmp_path / "a", ["one", "two", "three"], 1)
    with pytest.raises(ValueError, match=r"None of the first 3 documents falls into the selection set \(0\.001 of all"):
        load(tokenizer, train_files=files, selection_fraction=0.001)


def test_a_fingerprint_identifies_a_stream(tmp_path, tokenizer):
    """Another file, or the same with more in it, is another stream."""
    one = write_shards(tmp_path / "a", ["one", "two"], 1)
    sources = training_sources(DataConfig(train_files=one))
    before = sources_fingerprint(sources)
    assert before == sources_fingerprint(sources)
    settings = {"train_files": one, "selection_files": one, "test_files": one}
    orders = [load(tokenizer, **settings, shuffle_documents=number).train.fingerprint for number in (0, 1, 9, 9)]
    assert len(set(orders)) == 3
    (tmp_path / "a" / "0.jsonl").write_text('{"text": "something else"}\n')
    assert sources_fingerprint(sources) != before


MEMORY = """
import json, resource, sys, threading, time
from inheritune_hf.config import DataConfig
from inheritune_hf.data import load_data_splits
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast.from_pretrained("tokenizer")
config = DataConfig(train_files=["big.jsonl"], streaming=True, selection_files=["s.txt"], test_files=["s.txt"],
                    near_duplicates="ignore")
stream = load_data_splits(config, tokenizer, block_size=1024).train
rows = iter(stream)
next(rows)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before, most = resident(), 0
while True:
    row = next(rows)
    most = max(most, resident())
    if row["reader_state"].sources[0].counts["passes"]:
        break
print(json.dumps({"grown": most - before, "tokens": row["reader_state"].sources[0].counts["tokens"]}))
"""


@pytest.mark.slow
def test_memory_is_bounded(tmp_path, tokenizer):
    """A file ten times larger than the bound is streamed within it, after the first sequence."""
    bound = 4_000_000
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "s.txt").write_text("the selection")
    line = json.dumps({"text": "layer kept " * 200}) + "\n"
    with (tmp_path / "big.jsonl").open("w") as file:
        for _ in range(10 * bound // len(line) + 1):
            file.write(line)
    assert (tmp_path / "big.jsonl").stat().st_size > 10 * bound
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, cwd=tmp_path, timeout=550, env=environment()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["grown"] < bound, result
