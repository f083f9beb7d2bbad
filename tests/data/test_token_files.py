"""Token files of nanoGPT and llm.c, read by memory map."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_duplicates import given_sets
from test_splits import TEXTS, documents_of, load, write_texts

from inheritune_hf.data import set_fingerprint
from inheritune_hf.data.token_files import TokenSequences, open_token_file, read_documents


def tokens_of(tokenizer, texts=TEXTS):
    return [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]


def write_nanogpt(path, tokens, dtype="uint16"):
    np.array(tokens, dtype=dtype).tofile(path)
    return str(path)


def write_llm_c(path, tokens, dtype="uint16", magic=20240520, version=1):
    header = np.zeros(256, dtype=np.int32)
    header[:3] = magic, version, len(tokens)
    path.write_bytes(header.tobytes() + np.array(tokens, dtype=dtype).tobytes())
    return str(path)


def test_every_layout_gives_the_sets_of_the_text(tmp_path, tokenizer):
    """nanoGPT's files (uint16, uint32) and llm.c's (both headers) give the tokens of the text they were made of."""
    tokens = tokens_of(tokenizer)
    files = [
        ({}, write_nanogpt(tmp_path / "a.bin", tokens)),
        ({"token_dtype": "uint32"}, write_nanogpt(tmp_path / "b.bin", tokens, "uint32")),
        ({}, write_llm_c(tmp_path / "c.bin", tokens)),
        ({}, write_llm_c(tmp_path / "d.bin", tokens, "uint32", 20240801, 7)),
    ]
    found = [load(tokenizer, train_files=[path], **options) for options, path in files]
    assert len({(s.facts.train, s.facts.selection, s.facts.test) for s in found}) == 1
    splits = found[0]
    held = [*documents_of(splits.selection, tokenizer), *documents_of(splits.test, tokenizer)]
    assert len(held) == 4
    rest = tokens_of(tokenizer, [text for text in TEXTS if text not in held])
    joined = [int(token) for row in (splits.train[i] for i in range(len(splits.train))) for token in row["input_ids"]]
    assert joined == rest[: len(joined)]
    assert len(rest) == splits.facts.train.tokens + splits.facts.dropped_tokens
    rows = [row.tolist() for row in (splits.train[i]["input_ids"] for i in range(len(splits.train)))]
    assert splits.facts.train.fingerprint == set_fingerprint(Dataset.from_dict({"input_ids": rows}))


def test_given_sets_are_used(tmp_path, tokenizer):
    """Token files for evaluation, or text, are used as they are; what they share with training is counted."""
    train = write_nanogpt(tmp_path / "train.bin", tokens_of(tokenizer, TEXTS[:30]))
    val = write_nanogpt(tmp_path / "val.bin", tokens_of(tokenizer, TEXTS[28:35]))
    test = write_texts(tmp_path / "test", [*TEXTS[35:], TEXTS[3]])
    splits = load(tokenizer, train_files=[train], selection_files=[val], test_files=[test])
    assert documents_of(splits.selection, tokenizer) == TEXTS[28:35]
    assert documents_of(splits.test, tokenizer) == [*TEXTS[35:], TEXTS[3]]
    assert (splits.facts.train.documents, splits.facts.shared_documents) == (30, 3)
    removed = load(tokenizer, train_files=[train], selection_files=[val], test_files=[test], duplicates="remove")
    assert (removed.facts.train.documents, removed.facts.removed_documents) == (27, 3)


@pytest.mark.parametrize("streaming", [True, False])
def test_text_is_not_evaluated_on_token_files(streaming, tmp_path, tokenizer):
    """Text to train on with token files for evaluation is refused with the reason, before anything is read."""
    val = write_nanogpt(tmp_path / "val.bin", tokens_of(tokenizer))
    train = write_texts(tmp_path / "train")
    with pytest.raises(
        ValueError, match=r"test_files: .*val\.bin holds tokens, the training source text .* or neither"
    ):
        load(tokenizer, train_files=[train], test_files=[val], streaming=streaming)


@pytest.mark.parametrize("foreign", [True, False])
def test_documents_in_two_sets_are_found(foreign, tmp_path, tokenizer):
    """Exact and near-duplicates are counted and removed as those of text are, whether the sets are text or tokens."""
    files, _ = given_sets(tmp_path)
    sets = {
        name: [path.read_text() for path in sorted((tmp_path / name).iterdir())]
        for name in ("train", "selection", "test")
    }
    bins = {
        f"{name}_files": [write_nanogpt(tmp_path / f"{name}.bin", tokens_of(tokenizer, texts))]
        for name, texts in sets.items()
    }
    if foreign:
        bins = {**files, "train_files": bins["train_files"]}
    for ways in ({}, {"duplicates": "remove"}, {"duplicates": "remove", "near_duplicates": "remove"}):
        expected, found = load(tokenizer, **files, **ways), load(tokenizer, **bins, **ways)
        for name in ("shared_documents", "near_duplicates", "removed_documents", "selection", "test"):
            assert getattr(found.facts, name) == getattr(expected.facts, name)
        assert found.facts.train == expected.facts.train
    assert found.facts.near_duplicates == 3
    assert load(tokenizer, **bins, near_duplicates="ignore").facts.near_duplicates is None


@settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    documents=st.lists(st.lists(st.integers(1, 9), max_size=7), min_size=1, max_size=12),
    block_size=st.integers(2, 9),
    data=st.data(),
)
def test_sequences_join_what_remains(documents, block_size, data, tmp_path, tokenizer):
    """Whatever is left out, sequences are the other documents end to end, in any process."""
    end = tokenizer.eos_token_id
    path = tmp_path / "any.bin"
    write_nanogpt(path, [token for row in documents for token in [*row, end]])
    file = open_token_file(path, "uint16")
    left_out = data.draw(st.sets(st.integers(0, len(documents) - 1)))
    kept = [number for number in range(len(documents)) if number not in left_out]
    rest = [t for number in kept for t in [*documents[number], end]]
    everything = read_documents(file, 300, tokenizer)
    assert everything["input_ids"][:] == [[*row, end] for row in documents]
    rows = TokenSequences([file, file], [everything.select([]), everything.select(kept)], block_size)
    rows = pickle.loads(pickle.dumps(rows))  # noqa: S301 (its own pickle)
    assert [t for row in rows.__getitems__(range(len(rows))) for t in row["input_ids"]] == rest[
        : len(rest) // block_size * block_size
    ]
    with pytest.raises(IndexError, match=f"There are {len(rows)} sequences, got {len(rows)}"):
        rows[len(rows)]


def test_what_does_not_fit_is_found_before_training(tmp_path, tokenizer):
    """Tokens out of range, a foreign tokenizer, half a file: each with its file and an example."""
    end, known = tokenizer.eos_token_id, len(tokenizer)
    cases = {
        "range.bin": ([1, 2, known, end], rf"range\.bin: token {known} at place 2 is out of the reference's range"),
        "foreign.bin": ([5, 6, 7, 8], r"foreign\.bin: the reference's end-of-text token '<\|endoftext\|>' \(0\) never"),
    }
    for name, (tokens, message) in cases.items():
        with pytest.raises(ValueError, match=message):
            load(tokenizer, train_files=[write_nanogpt(tmp_path / name, tokens)])
    (tmp_path / "odd.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"odd\.bin has 3 bytes, no whole number of uint16 tokens; set token_dtype"):
        load(tokenizer, train_files=["odd.bin"])
    path = tmp_path / "cut.bin"
    write_llm_c(path, tokens_of(tokenizer))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"cut\.bin is cut off: its header says \d+ tokens \(\d+ bytes\), it has \d+"):
        load(tokenizer, train_files=["cut.bin"])
    write_llm_c(tmp_path / "new.bin", [1], version=9)
    with pytest.raises(ValueError, match=r"new\.bin: llm\.c's header has version 9, 1 is known; write it again"):
        load(tokenizer, train_files=["new.bin"])
    write_llm_c(tmp_path / "none.bin", [])
    with pytest.raises(ValueError, match=r"none\.bin holds no token: llm\.c's header says 0; leave it out"):
        load(tokenizer, train_files=["none.bin"])
    write_nanogpt(tmp_path / "short.bin", [end, 1, end, 2, end, 3, end])
    with pytest.raises(ValueError, match=r"training set holds \d tokens, fewer than one sequence of block_size 16; gi"):
        load(tokenizer, train_files=["short.bin"])
    with pytest.raises(ValueError, match=r"Token files \(\.bin\) are read by memory map, which needs no streaming"):
        load(tokenizer, train_files=["short.bin"], streaming=True)


def test_the_two_types_are_distinguished(tmp_path, tokenizer):
    """uint32 read as uint16 would be twice as many tokens, every other one 0; uint16 read as uint32 is out of range."""
    tokens = tokens_of(tokenizer)
    tokens = tokens[: len(tokens) // 2 * 2]
    np.array(tokens, dtype=np.uint32).tofile(tmp_path / "wide.bin")
    with pytest.raises(ValueError, match=r"wide\.bin: read as uint16, every other token is .*; set token_dtype: u"):
        load(tokenizer, train_files=["wide.bin"])
    np.array(tokens, dtype=np.uint16).tofile(tmp_path / "narrow.bin")
    with pytest.raises(ValueError, match=r"out of the reference's range .* or set token_dtype \(read as uint32\)"):
        load(tokenizer, train_files=["narrow.bin"], token_dtype="uint32")


def test_documents_may_begin_with_the_token(tmp_path, tokenizer):
    """llm.c puts the token before each document: they are separated all the same."""
    end = tokenizer.eos_token_id
    documents = [[token + 1, token + 2, token + 3] for token in range(20)]
    path = write_llm_c(tmp_path / "first.bin", [token for row in documents for token in [end, *row]])
    facts = load(tokenizer, train_files=[path], block_size=4).facts
    assert facts.train.documents + facts.selection.documents + facts.test.documents == 21  # one of the token alone
