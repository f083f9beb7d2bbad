"""Sequences come from as many documents as possible, spread evenly over each, and only what a model can read."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from inheritune_hf.analysis import default_sequences, measure_collapse, paper_tokens, sample_sequences
from inheritune_hf.analysis.sequences import as_tokens, cut_sequences


@pytest.fixture(scope="module")
def tokenizer():
    """Characters are tokens."""
    core = Tokenizer(
        models.BPE(vocab={c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=8)


def cut(tokenizer, texts, count, tokens=4):
    found = cut_sequences(texts, tokenizer, count, tokens)
    return ["".join(tokenizer.convert_ids_to_tokens(row)) for row in found.tolist()]


def test_documents_take_turns(tokenizer):
    """Each document gives one window before any gives a second; empty and short ones give none."""
    texts = ["abcdefgh", "x", "", None, "ABCD", "mnopqrst"]
    assert cut(tokenizer, texts, 4) == ["abcd", "ABCD", "mnop", "efgh"]
    assert cut(tokenizer, texts, 9) == ["abcd", "ABCD", "mnop", "efgh", "qrst"]
    with pytest.raises(ValueError, match="No document has 9 tokens"):
        cut_sequences(["abcdefgh"], tokenizer, count=4, tokens=9)


def test_windows_are_spread_over_long_documents(tokenizer):
    """Few windows of a long document are not its first ones, and few of many documents not the first of them."""
    pages = "".join(letter * 4 for letter in "abcdefghi")
    assert cut(tokenizer, [pages], 3) == ["bbbb", "eeee", "hhhh"]
    assert cut(tokenizer, [pages, "ABCD"], 3) == ["cccc", "ABCD", "gggg"]
    assert cut(tokenizer, [letter * 4 for letter in "abcdefghi"], 3) == ["bbbb", "eeee", "hhhh"]
    novel = "".join(letter * 160 for letter in "abcdefghijklmnopqrstuvwxyz")  # tokenized in pieces of 160 characters
    assert cut(tokenizer, [novel], 2) == ["iiii", "vvvv"]


def test_rows_are_spread_over_a_packed_set():
    """Of more than 100 rows every second or third is taken, cut to 100 tokens; short ones are left out."""
    rows = [[number] * 120 for number in range(300)]
    found = sample_sequences(Dataset.from_dict({"input_ids": [*rows, [1, 2]]}))
    assert {len(row) for row in found} == {100}
    assert [row[0] for row in found] == list(range(1, 300, 3))
    assert sample_sequences(Dataset.from_dict({"input_ids": [[1, 2, 3], [4]]})) == [[1, 2, 3]]
    with pytest.raises(ValueError, match="The set has no sequence of 2 tokens"):
        sample_sequences(Dataset.from_dict({"input_ids": [[1]]}))


def test_one_long_row_does_not_stand_for_all():
    """Rows differ in length where documents are cut: those are taken that leave most tokens, cut to one length."""
    rows = [[1] * (20 + number % 60) for number in range(500)]
    found = sample_sequences(Dataset.from_dict({"input_ids": [*rows, [1] * 95]}))
    assert (len(found), {len(row) for row in found}) == (100, {67})
    few = sample_sequences(Dataset.from_dict({"input_ids": [[1] * 100] * 60 + [[2] * 9] * 60}))
    assert (len(few), {len(row) for row in few}) == (60, {100})


def test_sequences_of_a_large_set():
    """Of a large set 1,000 rows are read, evenly spread, whatever they are stored as."""
    read = []

    class Rows:
        def __len__(self):
            return 5000

        def __getitem__(self, place):
            read.append(place)
            return {"input_ids": torch.full((120,), place)}

    assert [row[0] for row in sample_sequences(Rows())] == read[5::10]
    assert read == list(range(2, 5000, 5))


def test_default_sequences(tokenizer, tmp_path, model):
    """They come from the embedded text, or from files; 100 tokens, or the model's context if that is shorter."""
    assert default_sequences(tokenizer).shape == (100, 100)
    (tmp_path / "a.txt").write_text("abcdefgh")
    assert default_sequences(tokenizer, tokens=4, files=[str(tmp_path / "*.txt")]).shape == (2, 4)
    with pytest.raises(FileNotFoundError, match="files: there is no file"):
        default_sequences(tokenizer, files=[str(tmp_path / "b.txt")])
    assert paper_tokens(model) == 64


def test_sequences_come_in_many_forms(sequences):
    """A tensor, rows, lists and a data set are the same sequences."""
    rows = sequences[:3].tolist()
    for form in (sequences[:3], rows, [{"input_ids": row} for row in rows], Dataset.from_dict({"input_ids": rows})):
        assert torch.equal(as_tokens(form), sequences[:3])


def test_sequences_that_cannot_be_measured_are_refused(model):
    """Unequal lengths, none, one token, too many tokens and unknown ones are refused before anything is loaded."""
    with pytest.raises(ValueError, match=r"Sequences must be of one length, .* got lengths from 2 to 3 tokens"):
        measure_collapse("nowhere", [[1, 2], [1, 2, 3]])
    for bad in ([], [[1]], torch.ones(3)):
        with pytest.raises(ValueError, match=r"Sequences must be of shape \(sequences, tokens\)"):
            measure_collapse("nowhere", bad)
    with pytest.raises(ValueError, match="Sequences of 65 tokens are longer than the model's context of 64"):
        measure_collapse(model, [[1] * 65])
    for token in (64, -1):
        with pytest.raises(ValueError, match=r"Sequences have tokens from .* the model knows 0 to 63"):
            measure_collapse(model, [[1, token]])
    with pytest.raises(OSError, match="nowhere"):
        measure_collapse("/nowhere", [[1, 2]])
