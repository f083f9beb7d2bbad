"""Data sets on this machine that cannot be read: each is named, as a copy and as a stream."""

from __future__ import annotations

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Features, Value

from inheritune_hf.configuration import DataConfig
from inheritune_hf.data import load_data_splits
from inheritune_hf.data.sources import Layout, mark_long

ROWS = [{"text": f"document {number} of a set"} for number in range(40)]
NONE = Dataset.from_dict({"text": []}, features=Features({"text": Value("string")}))


def load(tokenizer, **settings):
    defaults = {"near_duplicates": "ignore", "selection_fraction": 0.2, "test_fraction": 0.2}
    return load_data_splits(DataConfig(**{**defaults, **settings}), tokenizer, block_size=8)


def saved(folder):
    DatasetDict({"train": Dataset.from_list(ROWS), "empty": NONE}).save_to_disk(folder)
    return next((folder / "train").glob("*.arrow"))


def without_rows(folder):
    NONE.save_to_disk(folder)


def cut_off(folder):
    path = saved(folder)
    path.write_bytes(path.read_bytes()[:1000])


def without_a_file(folder):
    saved(folder).unlink()


def with_a_damaged_state(folder):
    saved(folder)
    (folder / "dataset_dict.json").write_text("{")


def an_empty_parquet_file(folder):
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), folder / "train.parquet")


def a_broken_json_file(folder):
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": \n')


def a_program(folder):
    folder.mkdir()
    (folder / "folder.py").write_text("raise SystemExit(9)")


def no_file(folder):
    folder.mkdir()


CASES = {
    "no row": (without_rows, {}, r"\./folder has no row in folder; give another split"),
    "an empty split": (saved, {"train_split": "empty"}, r"\./folder has no row in folder/empty; give another split"),
    "no such split": (saved, {"train_split": "dev"}, r"\./folder has no split 'dev'; its splits are 'train', 'empty'"),
    "cut off": (cut_off, {}, r"\./folder cannot be read: .*; write it again with save_to_disk"),
    "a file missing": (without_a_file, {}, r"\./folder cannot be read: .*; write it again with save_to_disk"),
    "state": (with_a_damaged_state, {}, r"dataset_dict\.json is damaged .*; write the data set again with save_to_di"),
    "Parquet": (an_empty_parquet_file, {}, r"\./folder.* cannot be read: .*; repair it, or give its files by"),
    "JSON": (a_broken_json_file, {}, r"\./folder.* cannot be read: .*; repair it, or give its files by train_"),
    "split of a folder": (a_broken_json_file, {"train_split": "dev"}, r"\./folder \(dev\).*train"),
    "a program": (a_program, {}, r"\./folder \(train\) is made by a program, .*refs/convert/parquet --local-dir copy"),
    "no files": (no_file, {}, r"folder doesn't contain any data files"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_data_set_that_cannot_be_read_is_named(case, streaming, tmp_path, tokenizer):
    """What `datasets` says in its own words is said with the name of the data set, and what to do."""
    make, settings, message = CASES[case]
    make(tmp_path / "folder")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(tokenizer, dataset_name="./folder", streaming=streaming, **settings)


@pytest.mark.parametrize("name", ["rows.jsonl", "./rows.jsonl"])
def test_a_file_is_no_data_set(name, tmp_path, tokenizer):
    """A file that is given as a data set is sent to where it belongs."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(FileNotFoundError, match=r"rows\.jsonl is a file; give it by train_files"):
        load(tokenizer, dataset_name=name)


@pytest.mark.parametrize(
    ("rows", "row", "message"),
    [
        ("tokens", {"input_ids": "abc"}, r"Column 'input_ids' of \./folder \(train\) holds .*lists of whole numbers"),
        ("tokens", {"input_ids": [1, 2**40]}, r"The row .*: 'input_ids' has 1099511627776 or 1, which is no token id"),
        ("tokens", {"input_ids": [1, None]}, r"The row .*: 'input_ids' must be a list of whole numbers; repair it"),
        ("tokens", {"input_ids": [1, 2], "labels": [1, 999]}, r"Label 999 at place 1 of the document .* is out of the"),
        ("messages", {"messages": "hello"}, r"Column 'messages' of \./folder \(train\) holds .*objects with 'role'"),
    ],
)
def test_rows_of_a_data_set_hold_what_they_should(rows, row, message, tmp_path, tokenizer):
    """Tokens and messages of a data set are looked at as those of files are."""
    Dataset.from_list([row] * 9).save_to_disk(tmp_path / "folder")
    with pytest.raises(ValueError, match=message):
        load(tokenizer, dataset_name="./folder", rows=rows)


def test_a_later_shard_that_cannot_be_read_is_named(tmp_path, tokenizer):
    """A stream that comes upon a damaged file says of which source."""
    (tmp_path / "folder").mkdir()
    Dataset.from_list(ROWS).to_parquet(tmp_path / "folder" / "train-0.parquet")
    Dataset.from_list(ROWS).to_parquet(tmp_path / "folder" / "train-1.parquet")
    settings = {"dataset_name": "./folder", "streaming": True, "carve_documents": 40, "shuffle_documents": 0}
    stream = load(tokenizer, **settings).train
    path = tmp_path / "folder" / "train-1.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"\./folder cannot be read: .*; repair it, or give its files by train_files"):
        for _ in zip(range(500), stream, strict=False):
            pass


@pytest.mark.parametrize("streaming", [False, True])
def test_long_documents_of_a_data_set_are_damage_too(streaming, tmp_path, tokenizer):
    """max_document_bytes holds for data sets as well: an error, or left out if asked."""
    rows = [*ROWS, {"text": "é" * 1001}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "folder")
    settings = {"dataset_name": "./folder", "max_document_bytes": 2001, "streaming": streaming}
    place = r"The document 'é.*'" if streaming else r"\./folder \(train\), row 41"
    with pytest.raises(ValueError, match=rf"{place} is longer than max_document_bytes \(2,001\); split the document"):
        for _ in zip(range(500), load(tokenizer, **settings).train, strict=False):
            pass
    splits = load(tokenizer, **settings, damaged_rows="skip")
    rows = [row for _, row in zip(range(400), splits.train, strict=False)]
    assert "é" not in tokenizer.decode([token for row in rows for token in row["input_ids"]])
    if streaming:
        counts = rows[-1]["reader_state"]["sources"][0]["counts"]
        assert counts["damaged"] == counts["passes"] > 0
    else:
        assert (splits.facts.damaged_rows, splits.facts.skipped_documents) == (1, 0)


def test_what_was_skipped_comes_back_when_it_is_allowed(tmp_path, tokenizer):
    """A document that was too long for one run is read by the next, which allows it; nothing stale is used."""
    Dataset.from_list([*ROWS, {"text": "long " * 300}]).select(range(1, 41)).save_to_disk(tmp_path / "folder")

    def counts(**settings):
        facts = load(tokenizer, dataset_name="./folder", **settings).facts
        documents = facts.train.documents + facts.selection.documents + facts.test.documents
        return documents, facts.damaged_rows

    assert counts(max_document_bytes=1000, damaged_rows="skip") == (39, 1)
    assert counts() == (40, 0)
    with pytest.raises(ValueError, match=r"\./folder \(train\), row 40 is longer than max_document_bytes \(1,000\)"):
        counts(max_document_bytes=1000)
    assert counts(max_document_bytes=1000, damaged_rows="skip") == (39, 1)


def test_chosen_rows_are_marked_by_their_own_sizes():
    """Of a data set that is a choice of rows, those are marked that are chosen; a null is not."""
    rows = Dataset.from_dict({"text": ["a" * 9, "b", None, "c" * 8]}).select([3, 2, 1])
    layout = Layout(most_bytes=7, skip=True)
    marked = mark_long(rows, layout, "here")
    assert [row and row[:34] for row in marked["bad_row"]] == ["here, row 1 is longer than max_doc", None, None]
    assert marked["text"][:] == ["c" * 8, None, "b"]
    assert mark_long(rows.select([1, 2]), layout, "here").column_names == ["text"]
