"""Sequences made ahead of time: the same as made by a run, interruptible, and recognised."""

from __future__ import annotations

import json

import pytest
from test_splits import TEXTS, load, write_jsonl, write_texts

from inheritune_hf.configuration import DataConfig
from inheritune_hf.data import load_data_splits, packing, prepare_data


def prepare(tokenizer, folder="prepared", block_size=16, **settings):
    return prepare_data(DataConfig(**settings), tokenizer, folder, block_size=block_size)


def test_a_prepared_folder_is_what_a_run_would_make(tmp_path, tokenizer):
    """The folder gives the sets and facts that the run itself would make, and leaves no unfinished work behind."""
    files = [write_texts(tmp_path / "texts")]
    plain = load(tokenizer, train_files=files)
    facts = prepare(tokenizer, train_files=files)
    assert facts == plain.facts
    loaded = load_data_splits(DataConfig(dataset_name="prepared"), tokenizer, block_size=16)
    assert loaded.facts == plain.facts
    for name in ("train", "selection", "test"):
        assert getattr(loaded, name)[:] == getattr(plain, name)[:]
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == ["prepared.json", "sets"]


def test_a_run_takes_the_block_size_of_its_prepared_data(tmp_path, tokenizer):
    """Whatever the reference could read, sequences are as long as they were prepared."""
    prepare(tokenizer, train_files=[write_texts(tmp_path / "texts")])
    for options in ({}, {"context_length": 1024}, {"context_length": 16}, {"block_size": 16}):
        splits = load_data_splits(DataConfig(dataset_name="prepared"), tokenizer, **options)
        assert splits.facts.block_size == len(splits.train[0]["input_ids"]) == 16


def test_an_interrupted_preparation_goes_on(tmp_path, build_tokenizer, monkeypatch):
    """What was tokenized before an interruption is not tokenized again, and the result is the same."""
    monkeypatch.setattr(packing, "DOCUMENTS_PER_PART", 10)
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    done = []

    def interrupt(count, total):
        done.append((count, total))
        if count == 20:
            raise KeyboardInterrupt

    config = DataConfig(train_files=[path])
    with pytest.raises(KeyboardInterrupt):
        prepare_data(config, build_tokenizer(), "cut", block_size=16, progress=interrupt)
    assert done == [(10, 40), (20, 40)]
    with pytest.raises(FileNotFoundError, match=r"dataset_name: there is no folder \./none"):
        load(build_tokenizer(), dataset_name="./none")
    tokenizer, calls = build_tokenizer(), []
    whole = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda self, texts, **o: calls.append(1) or whole(self, texts, **o)
    )
    facts = prepare_data(config, tokenizer, "cut", block_size=16)
    assert len(calls) == 2  # two of the four parts
    assert facts == prepare_data(config, build_tokenizer(), "whole", block_size=16)
    calls.clear()
    assert prepare_data(config, tokenizer, "cut", block_size=16) == facts  # finished: nothing is done
    assert not calls


def test_a_folder_is_not_written_over(tmp_path, tokenizer, build_tokenizer):
    """Other data, another tokenizer or block size are refused, with what to do."""
    files = [write_texts(tmp_path / "texts")]
    prepare(tokenizer, train_files=files)
    with pytest.raises(ValueError, match=r"prepared holds data that were prepared otherwise; choose another folder"):
        prepare(tokenizer, train_files=files, block_size=8)
    with pytest.raises(ValueError, match=r"prepared was prepared with sequences of 16 tokens, got block_size 8; leave"):
        load(tokenizer, dataset_name="prepared", block_size=8)
    with pytest.raises(
        ValueError, match=r"of 16 tokens, but the reference reads at most 12; prepare the data again wi"
    ):
        load_data_splits(DataConfig(dataset_name="prepared"), tokenizer, context_length=12)
    with pytest.raises(ValueError, match=r"prepared with another tokenizer \(292 tokens\) than the reference's \(260"):
        load(build_tokenizer(vocab_size=260), dataset_name="prepared")
    with pytest.raises(ValueError, match=r"prepared is prepared: its sets are made. Leave out selection_files, or pre"):
        load(tokenizer, dataset_name="prepared", selection_files=files)
    with pytest.raises(ValueError, match=r"prepared is prepared already; give it to the run as dataset_name"):
        prepare(tokenizer, "again", dataset_name="prepared")


def test_what_needs_no_preparation(tmp_path, tokenizer):
    """Streams and token files are not prepared."""
    with pytest.raises(ValueError, match=r"A stream is packed while training; leave out streaming"):
        prepare(tokenizer, train_files=["a.jsonl"], streaming=True)
    with pytest.raises(ValueError, match=r"Token files \(\.bin\) are read where they lie; .*nothing to prepare"):
        prepare(tokenizer, train_files=["a.bin"])


def test_facts_travel_as_json(tmp_path, tokenizer):
    """What is known of a prepared folder is in one file that JSON reads."""
    facts = prepare(tokenizer, train_files=[write_texts(tmp_path / "texts")])
    values = json.loads((tmp_path / "prepared" / "prepared.json").read_text())["facts"]
    assert values["train"]["fingerprint"] == facts.train.fingerprint
    assert values["sources"][0]["documents"] == 36
    assert facts.bytes_per_token == pytest.approx(values["sources"][0]["bytes"] / values["sources"][0]["tokens"])
    assert 1 < facts.bytes_per_token < 4
