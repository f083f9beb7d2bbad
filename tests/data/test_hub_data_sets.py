"""Data sets of the Hub: name, configuration and split, copied and streamed, by the real client from a local Hub."""

from __future__ import annotations

import copy
import json

import pytest
from datasets import Dataset

from inheritune_hf.config import DataConfig
from inheritune_hf.data import load_data_splits
from inheritune_hf.data.stream import StreamState
from inheritune_hf.records import decode, encode

TEXTS = [f"page {number} is about layer {number % 7}" for number in range(60)]
CARD = """---
configs:
- config_name: pages
  default: true
  data_files:
  - split: train
    path: pages/train-*.parquet
  - split: validation
    path: pages/validation-*.parquet
- config_name: notes
  data_files: notes/*.parquet
---
# Pages and notes
"""
PAGES = {"dataset_name": "me/texts", "dataset_config": "pages", "near_duplicates": "ignore"}


@pytest.fixture
def repository(hub, tmp_path):
    """A data set of two configurations on the local Hub, one of them in shards."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    pages = Dataset.from_dict({"text": TEXTS[:50], "id": list(range(50))})
    for number in range(4):
        pages.shard(4, number, contiguous=True).to_parquet(folder / "pages" / f"train-{number}.parquet")
    Dataset.from_dict({"text": TEXTS[50:]}).to_parquet(folder / "pages" / "validation-0.parquet")
    Dataset.from_dict({"body": [f"note {number}" for number in range(30)]}).to_parquet(folder / "notes" / "all.parquet")
    hub.add("datasets/me/texts", folder)
    hub.clear()
    return folder


def facts_of(config, tokenizer):
    return load_data_splits(config, tokenizer, block_size=8).facts


def message_of(config, tokenizer):
    try:
        load_data_splits(config, tokenizer, block_size=8)
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def streamed(config, tokenizer, count, state=None):
    """The sequences of a stream, and where it is after each."""
    rows, noted, after = [], decode(StreamState, state or {}, "state"), []
    for row in load_data_splits(config, tokenizer, block_size=8).train.begin(state=copy.deepcopy(noted)):
        rows.append(row["input_ids"].tolist())
        noted.update(row["reader_state"])
        after.append(json.loads(json.dumps(encode(noted))))
        if len(rows) == count:
            return rows, after
    return None


def asked_for(hub):
    return {entry["path"].split("?")[0].rsplit("/", 1)[-1] for entry in hub.log if "/resolve/" in entry["path"]}


def test_configurations_and_splits_are_those_of_the_hub(hub, on_hub, repository, tokenizer):
    """Name, configuration and split give what their files give, and no other configuration is fetched."""
    files = {"train_files": [f"{repository}/pages/train-*.parquet"], "near_duplicates": "ignore"}
    local = facts_of(DataConfig(**files, selection_files=[f"{repository}/pages/validation-0.parquet"]), tokenizer)
    found = on_hub(facts_of, DataConfig(**PAGES, selection_split="validation"), tokenizer)
    assert (found.train, found.selection, found.test) == (local.train, local.selection, local.test)
    assert found.source == "me/texts/pages"
    assert {"train-0.parquet", "train-3.parquet", "validation-0.parquet"} <= asked_for(hub)
    assert "all.parquet" not in asked_for(hub)
    notes = DataConfig(dataset_name="me/texts", dataset_config="notes", text_column="body", near_duplicates="ignore")
    assert on_hub(facts_of, notes, tokenizer).train.documents == 28
    mixed = DataConfig(
        sources=[
            {"dataset_name": "me/texts", "dataset_config": "pages", "split": "validation", "weight": 1},
            {"dataset_name": "me/texts", "dataset_config": "notes", "text_column": "body", "weight": 1},
        ],
        near_duplicates="ignore",
    )
    facts = on_hub(facts_of, mixed, tokenizer)
    assert facts.train.documents + facts.selection.documents + facts.test.documents == 40


def test_what_the_hub_does_not_have_is_named(on_hub, repository, tokenizer):
    """A configuration, a split, a column or a data set that is not there is said with its name."""
    cases = [
        ({**PAGES, "dataset_config": "papers"}, ["ValueError", "papers", "pages", "notes"]),
        ({**PAGES, "selection_split": "dev"}, ["ValueError", "dev", "train", "validation"]),
        ({**PAGES, "text_column": "body"}, ["me/texts (train) has no column 'body'", "'text', 'id'"]),
        ({"dataset_name": "me/nothing"}, ["me/nothing"]),
    ]
    for settings, parts in cases:
        for streaming in (False, True):
            message = on_hub(message_of, DataConfig(**settings, streaming=streaming), tokenizer)
            assert all(part in message for part in parts), message


@pytest.mark.parametrize("shuffle", [0, 7])
def test_the_hub_is_streamed_and_resumed(shuffle, hub, on_hub, repository, tokenizer):
    """A stream from the Hub is that of its files, and resumes token by token."""
    order = {"streaming": True, "shuffle_documents": shuffle, "test_fraction": 0.2}
    config = DataConfig(**PAGES, **order, selection_split="validation")
    whole, after = on_hub(streamed, config, tokenizer, 120)
    local = DataConfig(
        **order, train_files=[f"{repository}/pages/train-*.parquet"], selection_files=[f"{repository}/pages/v*.parquet"]
    )
    assert whole == streamed(local, tokenizer, 120)[0]
    assert after[-1]["workers"]["0"]["sources"][0]["counts"]["passes"] >= 1
    for stop in (0, 17, 70):
        assert on_hub(streamed, config, tokenizer, 20, after[stop])[0] == whole[stop + 1 : stop + 21]
    assert "all.parquet" not in asked_for(hub)
