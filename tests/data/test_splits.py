"""Three document-disjoint sets from every kind of source, and the errors of sources that cannot be used."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import tracemalloc

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from inheritune_hf.config import DataConfig
from inheritune_hf.data import load_data_splits, set_fingerprint, sources
from inheritune_hf.data.duplicates import isin
from inheritune_hf.data.splits import choose_held_out
from inheritune_hf.records import encode

TEXTS = [f"def layer_{index}(x):\n    return x + {index}\n" for index in range(40)]


def write_texts(folder, texts=TEXTS):
    folder.mkdir(exist_ok=True)
    for index, text in enumerate(texts):
        (folder / f"{index:03}.txt").write_text(text)
    return f"{folder}/*.txt"


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def documents_of(dataset, tokenizer):
    """The texts of an evaluation set, joined from its windows."""
    found = {}
    for row in dataset:
        found.setdefault(row["document"], []).extend(row["input_ids"])
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in found.values()]


def load(tokenizer, *, block_size=16, seed=42, **settings):
    return load_data_splits(DataConfig(**settings), tokenizer, block_size=block_size, seed=seed)


# --- held-out sets ----------------------------------------------------------------------------------------------------


def test_held_out_sets_divide_the_documents(tmp_path, tokenizer):
    """Every document is in one set; the shares are those asked for; the facts count what is there."""
    splits = load(tokenizer, train_files=[write_texts(tmp_path / "texts")], selection_fraction=0.1, test_fraction=0.2)
    selection, test = documents_of(splits.selection, tokenizer), documents_of(splits.test, tokenizer)
    assert len(selection) == 4
    assert len(test) == 8
    assert not set(selection) & set(test)
    train = tokenizer.decode([token for row in splits.train["input_ids"] for token in row])
    rest = [text for text in TEXTS if text not in {*selection, *test}]
    packed = "".join(text + tokenizer.eos_token for text in rest)
    assert packed.startswith(train)
    facts = splits.facts
    assert (facts.train.documents, facts.selection.documents, facts.test.documents) == (28, 4, 8)
    assert facts.train.tokens == 16 * facts.train.sequences == 16 * len(splits.train)
    assert len(tokenizer(packed)["input_ids"]) == facts.train.tokens + facts.dropped_tokens
    assert facts.dropped_tokens < 16
    assert facts.selection.tokens == sum(map(len, splits.selection["input_ids"]))
    assert facts.test.fingerprint == set_fingerprint(splits.test)
    assert facts.shared_documents == facts.skipped_documents == 0
    assert json.loads(json.dumps(encode(facts)))["train"]["documents"] == 28


def test_held_out_sets_do_not_depend_on_the_order(tmp_path, tokenizer):
    """Of shuffled documents the same are held out; within a set, the order is that of the source."""
    shuffled = random.Random(1).sample(TEXTS, len(TEXTS))
    sets = []
    for name, texts in (("one", TEXTS), ("two", shuffled)):
        path = write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts])
        found = documents_of(load(tokenizer, train_files=[path]).selection, tokenizer)
        assert found == [text for text in texts if text in found]
        sets.append(set(found))
    assert sets[0] == sets[1]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_held_out_sets_do_not_depend_on_workers_or_files(tmp_path, tokenizer):
    """One file or five, one process or two: the same sets, token for token."""
    whole = write_jsonl(tmp_path / "whole.jsonl", [{"text": text} for text in TEXTS])
    for number in range(5):
        write_jsonl(tmp_path / f"part{number}.jsonl", [{"text": t} for t in TEXTS[8 * number : 8 * number + 8]])
    plain = load(tokenizer, train_files=[whole]).facts
    for files, workers in (([whole], 2), (["part*.jsonl"], None), (["part*.jsonl"], 2)):
        facts = load(tokenizer, train_files=files, preprocessing_workers=workers).facts
        assert (facts.train, facts.selection, facts.test) == (plain.train, plain.selection, plain.test)


def test_equal_documents_stay_on_one_side(tmp_path, tokenizer):
    """A text that is there twice is never both trained and evaluated on."""
    path = write_jsonl(tmp_path / "twice.jsonl", [{"text": text} for text in TEXTS * 2])
    splits = load(tokenizer, train_files=[path], selection_fraction=0.3, test_fraction=0.3)
    assert splits.facts.shared_documents == 0
    selection = documents_of(splits.selection, tokenizer)
    assert len(selection) == len(set(selection)) == 12
    assert all(text == 2 * text[: len(text) // 2] for text in selection)  # one document, whose windows are there twice


def test_the_seed_chooses_what_is_held_out(tmp_path, tokenizer):
    """The same seed holds out the same documents, another seed others."""
    files = [write_texts(tmp_path / "texts")]
    sets = [documents_of(load(tokenizer, train_files=files, seed=seed).selection, tokenizer) for seed in (1, 1, 2)]
    assert sets[0] == sets[1] != sets[2]


def test_three_documents_are_enough_and_two_are_not(tmp_path, tokenizer):
    """Each set gets a document as soon as there are three distinct ones."""
    splits = load(tokenizer, train_files=[write_texts(tmp_path / "three", TEXTS[:3])], block_size=4)
    facts = splits.facts
    assert [facts.train.documents, facts.selection.documents, facts.test.documents] == [1, 1, 1]
    two = write_texts(tmp_path / "two", [TEXTS[0], TEXTS[1], TEXTS[1]])
    with pytest.raises(
        ValueError, match=r"selection and test out of .* at least 3 distinct documents, got 2 .*give more documents, or"
    ):
        load(tokenizer, train_files=[two])


# --- given sets ------------------------------------------------------------------------------------------------------


def test_given_sets_are_used_and_the_missing_one_is_held_out(tmp_path, tokenizer):
    """A given selection set is used whole; only the test set is held out."""
    splits = load(
        tokenizer,
        train_files=[write_texts(tmp_path / "train", TEXTS[:20])],
        selection_files=[write_texts(tmp_path / "selection", TEXTS[20:23])],
    )
    assert documents_of(splits.selection, tokenizer) == TEXTS[20:23]
    assert splits.facts.test.documents == 1
    assert splits.facts.train.documents == 19


def test_shared_documents_are_counted_and_said(tmp_path, tokenizer, caplog):
    """Given sets that repeat training documents are used, and the facts and a warning say how many."""
    splits = load(
        tokenizer,
        train_files=[write_texts(tmp_path / "train", TEXTS[:20])],
        selection_files=[write_texts(tmp_path / "selection", TEXTS[18:23])],
        test_files=[write_texts(tmp_path / "test", TEXTS[22:25])],
    )
    assert splits.facts.shared_documents == 3
    assert "3 selection or test documents are, word for word, in another set too: losses on them are" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        removed = load(
            tokenizer,
            train_files=[str(tmp_path / "train" / "*")],
            selection_files=[str(tmp_path / "selection" / "*")],
            test_files=[str(tmp_path / "test" / "*")],
            duplicates="remove",
        )
    assert removed.facts.removed_documents == 3
    assert "in another set too: the others were removed" in caplog.text
    assert "too low" not in caplog.text


def test_null_and_blank_documents_are_skipped_and_counted(tmp_path, tokenizer):
    """Rows without text are no documents."""
    rows = [{"text": None}, *({"text": text} for text in TEXTS), {"text": ""}, {"text": " \n"}]
    facts = load(tokenizer, train_files=[write_jsonl(tmp_path / "rows.jsonl", rows)]).facts
    assert facts.skipped_documents == 3
    assert facts.train.documents + facts.selection.documents + facts.test.documents == 40


def test_the_cap_on_sequences_is_for_evaluation_only(tmp_path, tokenizer):
    """max_sequences_per_document shortens selection and test documents, not training."""
    files = [write_texts(tmp_path / "texts")]
    whole, capped = (load(tokenizer, train_files=files, max_sequences_per_document=most) for most in (None, 1))
    assert len(capped.selection) == capped.facts.selection.documents < len(whole.selection)
    assert capped.facts.train == whole.facts.train


# --- sources ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_sets(tmp_path, tokenizer):
    """Text, JSONL, a JSON list, Parquet, and saved data sets of the same documents are packed alike."""
    rows = [{"id": index, "body": text} for index, text in enumerate(TEXTS)]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n\n".join(map(json.dumps, rows)).encode())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    DatasetDict(train=Dataset.from_list(rows)).save_to_disk(tmp_path / "splits")
    (tmp_path / "folder").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "folder" / "train.parquet")
    sources = [
        {"train_files": [write_texts(tmp_path / "texts")]},
        {"train_files": [write_jsonl(tmp_path / "rows.jsonl", rows)]},
        {"train_files": str(tmp_path / "list.json")},
        {"train_files": ["bom.jsonl"]},
        {"train_files": [str(tmp_path / "**" / "rows.parquet")]},
        {"dataset_name": str(tmp_path / "saved")},
        {"dataset_name": str(tmp_path / "splits")},
        {"dataset_name": str(tmp_path / "folder")},
    ]
    facts = [load(tokenizer, text_column="body", **source).facts for source in sources]
    assert {fact.train for fact in facts} == {facts[0].train}
    assert {fact.selection for fact in facts} == {facts[0].selection}
    assert {fact.test for fact in facts} == {facts[0].test}
    assert [fact.source for fact in facts] == [
        source["dataset_name"] if "dataset_name" in source else facts[index].source
        for index, source in enumerate(sources)
    ]


def test_splits_of_a_saved_data_set_are_used(tmp_path, tokenizer):
    """Named splits are taken as they are."""
    parts = {"train": TEXTS[:20], "validation": TEXTS[20:25], "held_out": TEXTS[25:28]}
    DatasetDict({name: Dataset.from_dict({"text": texts}) for name, texts in parts.items()}).save_to_disk("saved")
    splits = load(tokenizer, dataset_name="./saved", selection_split="validation", test_split="held_out")
    assert documents_of(splits.selection, tokenizer) == TEXTS[20:25]
    assert documents_of(splits.test, tokenizer) == TEXTS[25:28]
    assert splits.facts.train.documents == 20


def test_a_saved_data_set_stays_as_it_is(tmp_path, tokenizer):
    """Nothing is written beside what somebody saved, which may be read-only."""
    Dataset.from_dict({"text": TEXTS}).save_to_disk("saved")
    before = sorted(path.name for path in (tmp_path / "saved").iterdir())
    first = load(tokenizer, dataset_name="./saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == before
    assert load(tokenizer, dataset_name="./saved").facts == first.facts


def test_a_split_beside_a_stream_is_read_alone(tmp_path, tokenizer, monkeypatch):
    """A data set that is streamed is not copied because one of its splits is the selection set."""
    monkeypatch.setattr(sources.datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, texts in {"train": TEXTS[:20], "validation": TEXTS[20:25], "test": TEXTS[25:28]}.items():
        Dataset.from_dict({"text": texts}).to_parquet(folder / f"{name}-0.parquet")
    given = {"dataset_name": str(folder), "selection_split": "validation", "test_split": "test"}
    splits = load(tokenizer, streaming=True, **given)
    assert documents_of(splits.selection, tokenizer) == TEXTS[20:25]
    assert documents_of(splits.test, tokenizer) == TEXTS[25:28]
    assert not list((tmp_path / "cache").rglob("*train*.arrow"))


def test_files_are_read_in_order_and_once(tmp_path, tokenizer):
    """Patterns that overlap give a file once, in the order of the patterns."""
    write_texts(tmp_path / "texts", TEXTS[:6])
    splits = load(
        tokenizer,
        train_files=["texts/003.txt", "texts/*.txt", str(tmp_path / "texts" / "001.txt")],
        selection_files=[write_texts(tmp_path / "selection", TEXTS[10:11])],
        test_files=[write_texts(tmp_path / "test", TEXTS[11:12])],
        block_size=2,
    )
    assert splits.facts.train.documents == 6
    train = tokenizer.decode([token for row in splits.train["input_ids"] for token in row])
    assert [part for part in train.split(tokenizer.eos_token) if part][:3] == [TEXTS[3], TEXTS[0], TEXTS[1]]


def test_brackets_in_a_name_are_no_glob(tmp_path, tokenizer):
    """A file that is there is read under its own name, whatever letters it has."""
    path = write_jsonl(tmp_path / "we[1]rd*.jsonl", [{"text": text} for text in TEXTS])
    assert load(tokenizer, train_files=[path]).facts.train.documents == 36


def test_a_second_call_tokenizes_nothing(tmp_path, build_tokenizer, monkeypatch):
    """A tokenizer that was used, or loaded again, finds what it made; another tokenizer does not."""
    files = [write_texts(tmp_path / "texts")]
    first = load(build_tokenizer(), train_files=files)
    again = build_tokenizer()
    again("text", truncation=True, max_length=3)
    calls = []
    whole = type(again).__call__
    monkeypatch.setattr(type(again), "__call__", lambda *args, **kwargs: calls.append(1) or whole(*args, **kwargs))
    assert load(again, train_files=files).facts == first.facts
    assert not calls
    other = load(build_tokenizer(vocab_size=260), train_files=files)
    assert calls
    assert other.facts.train.tokens > first.facts.train.tokens


def test_a_tokenizer_without_a_rust_backend_works(tmp_path):
    """Tokenizers written in Python are used, and recognised, as well."""
    files = [write_texts(tmp_path / "texts")]
    first, second = (load(ByT5Tokenizer(), train_files=files) for _ in range(2))
    assert first.facts == second.facts
    assert set(documents_of(first.test, ByT5Tokenizer())) <= set(TEXTS)


def test_a_changed_file_is_read_again(tmp_path, tokenizer):
    """The cache knows a file by its size and time of change, not by its name alone."""
    files = [write_texts(tmp_path / "texts")]
    before = load(tokenizer, train_files=files).facts
    (tmp_path / "texts" / "000.txt").write_text("something else, and longer than before: " + TEXTS[0])
    assert load(tokenizer, train_files=files).facts != before


def test_the_block_size_has_three_origins(tmp_path, build_tokenizer):
    """The argument comes before the setting, and the setting before the tokenizer's limit."""
    files = [write_texts(tmp_path / "texts")]
    limited = build_tokenizer()
    limited.model_max_length = 32
    for block_size, setting, expected in ((8, 12, 8), (None, 12, 12), (None, None, 32)):
        config = DataConfig(train_files=files, block_size=setting)
        splits = load_data_splits(config, limited, block_size=block_size)
        assert splits.facts.block_size == len(splits.train[0]["input_ids"]) == expected


# --- messages --------------------------------------------------------------------------------------------------------


def test_files_that_are_not_there(tmp_path, tokenizer):
    """A glob without a match, a missing file, a folder and an empty file are distinguished."""
    (tmp_path / "empty.txt").touch()
    with pytest.raises(
        FileNotFoundError, match=r"train_files: no file matches 'texts/\*\.md' in .*correct the pattern"
    ):
        load(tokenizer, train_files=["texts/*.md"])
    with pytest.raises(FileNotFoundError, match=r"test_files: there is no file absent\.txt; give the path"):
        load(tokenizer, train_files=[write_texts(tmp_path / "texts")], test_files=["absent.txt"])
    with pytest.raises(FileNotFoundError, match=r"train_files: texts is a folder; name its files, such as texts/\*\*/"):
        load(tokenizer, train_files=["texts"])
    with pytest.raises(ValueError, match=r"train_files: empty\.txt is empty; leave it out"):
        load(tokenizer, train_files=["empty.txt"])
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"blank\.jsonl holds no document; leave it out"):
        load(tokenizer, train_files=["blank.jsonl"])
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "here.txt").write_text("here")
    (tmp_path / "links" / "there.txt").symlink_to("absent")
    with pytest.raises(FileNotFoundError, match=r"links/there\.txt links to absent, which is not there; repair it"):
        load(tokenizer, train_files=["links/*"])
    with pytest.raises(FileNotFoundError, match=r"dataset_name: there is no folder \./absent; give a folder"):
        load(tokenizer, dataset_name="./absent")


def test_without_a_training_source(tokenizer):
    """Nothing to train on is said before anything else is done."""
    with pytest.raises(ValueError, match=r"nothing to train on; give dataset_name or train_files"):
        load(tokenizer)


def test_splits_and_files_exclude_each_other(tmp_path, tokenizer):
    """A setting that would be ignored is refused."""
    files = [write_texts(tmp_path / "texts")]
    with pytest.raises(
        ValueError, match=r"test_split names a split of dataset_name, which is not given; give test_files"
    ):
        load(tokenizer, train_files=files, test_split="test")
    with pytest.raises(ValueError, match=r"Give selection_files or selection_split, not both"):
        load(tokenizer, dataset_name="./saved", train_files=[], selection_files=files, selection_split="test")


def test_saved_data_sets_name_their_splits_and_columns(tokenizer):
    """A split or column that a saved data set does not have is answered with those it has."""
    saved = Dataset.from_dict({"body": TEXTS, "number": list(range(40))})
    saved.save_to_disk("one")
    DatasetDict(train=saved).save_to_disk("many")
    with pytest.raises(ValueError, match=r"\./many has no split 'dev'; its splits are 'train'"):
        load(tokenizer, dataset_name="./many", selection_split="dev", text_column="body")
    with pytest.raises(ValueError, match=r"\./one is one saved data set without splits, got the split 'dev'"):
        load(tokenizer, dataset_name="./one", selection_split="dev", text_column="body")
    with pytest.raises(ValueError, match=r"\./one \(train\) has no column 'text'; .* one of 'body', 'number'"):
        load(tokenizer, dataset_name="./one")
    with pytest.raises(ValueError, match=r"Column 'number' of \./one \(train\) holds int64, not text; set text_column"):
        load(tokenizer, dataset_name="./one", text_column="number")
    assert load_from_disk("one")["body"][:] == TEXTS


def test_too_little_text_is_said_with_numbers(tmp_path, tokenizer):
    """Training text shorter than one sequence, and sets without text, are refused."""
    few = [write_texts(tmp_path / "few", ["a", "b", "c"])]
    with pytest.raises(
        ValueError, match=r"training set holds 2 tokens, fewer than one sequence of block_size 16; give"
    ):
        load(tokenizer, train_files=few)
    with pytest.raises(ValueError, match=r"The test set has no token to predict: none of its documents has text"):
        load(tokenizer, train_files=[write_texts(tmp_path / "t")], test_files=[write_texts(tmp_path / "b", [" \n"])])


def test_sequences_have_two_tokens_or_more(tmp_path, tokenizer):
    """A sequence of one token predicts nothing."""
    with pytest.raises(ValueError, match=r"block_size must be 2 tokens or more, got 1"):
        load(tokenizer, train_files=[write_texts(tmp_path / "texts")], block_size=1)


def test_the_tokenizer_is_checked_first(build_tokenizer):
    """A tokenizer that cannot end documents is refused before files are read."""
    with pytest.raises(ValueError, match=r"no end-of-text token"):
        load(build_tokenizer(end=None), train_files=["absent.txt"])


DIGESTS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), min_size=3, max_size=60)
small = settings(deadline=None, database=None, derandomize=True)


@small
@given(digests=DIGESTS, seed=st.integers(0, 9))
def test_those_are_held_out_whose_hash_comes_first(digests, seed):
    """The held-out documents are the first in the order of their sha256 with the seed."""
    ordered = sorted(set(digests), key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest())
    if len(ordered) < 3:
        return
    count = max(1, int(0.3 * len(ordered)))
    chosen = choose_held_out(np.array(digests), {"selection": 0.3, "test": 0.3}, seed)
    assert chosen["selection"].tolist() == ordered[:count]
    assert chosen["test"].tolist() == ordered[count : 2 * count]


def test_holding_out_takes_few_bytes_for_each_document():
    """What is held to choose among many documents is less than 50 bytes for each."""
    count = 100_000
    digests = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, count)
    tracemalloc.start()
    try:
        chosen = choose_held_out(digests, {"selection": 0.001, "test": 0.001}, 0)
        isin(digests, np.concatenate(list(chosen.values())))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 * count


# --- mixtures --------------------------------------------------------------------------------------------------------


def mixture(tmp_path, *weights):
    sources = []
    for number, weight in enumerate(weights):
        rows = [{"text": f"source {number} says {n} " * 3} for n in range(20 * (number + 1))]
        source = {"files": write_jsonl(tmp_path / f"{number}.jsonl", rows)}
        sources.append(source if weight is None else {**source, "weight": weight})
    return sources


def test_a_mixture_has_the_shares_it_was_given(tmp_path, tokenizer):
    """Each source has its share of the sequences, spread evenly; each document is used at least once."""
    splits = load(tokenizer, sources=mixture(tmp_path, 3, 1), near_duplicates="ignore")
    texts = [tokenizer.decode(row) for row in splits.train["input_ids"]]
    first = [("source 0" in text or "e 0 says" in text) for text in texts]
    assert 0.7 < sum(first) / len(first) < 0.8
    assert 0.6 < sum(first[: len(first) // 4]) / (len(first) // 4) < 0.9
    passes = [source.passes for source in splits.facts.sources]
    assert passes[0] > 1
    assert min(passes) == 1
    plain = load(tokenizer, sources=mixture(tmp_path, None, None), near_duplicates="ignore")
    assert [source.passes for source in plain.facts.sources] == [1, 1]
    assert plain.facts.train.documents == splits.facts.train.documents == 54


def test_a_weight_that_is_a_typo_is_refused(tmp_path, tokenizer):
    """A weight by which one source would be repeated a thousand times is refused with both sizes."""
    with pytest.raises(
        ValueError,
        match=r"source 1 would be repeated [\d,]+ times \(at most 1,000\), so that .* source 2 is used once; give",
    ):
        load(tokenizer, sources=mixture(tmp_path, 1, 1e-9), near_duplicates="ignore")


def test_a_source_needs_one_sequence(tmp_path, tokenizer):
    """A source of a mixture that is shorter than a sequence would have no share."""
    small = write_jsonl(tmp_path / "small.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match=r"source 2 has fewer tokens than one sequence; leave it out, or lower block"):
        load(
            tokenizer,
            sources=[*mixture(tmp_path, 1), {"files": small, "weight": 1}],
            selection_files=[write_texts(tmp_path / "s", TEXTS[:1])],
            test_files=[write_texts(tmp_path / "t", TEXTS[1:2])],
        )
