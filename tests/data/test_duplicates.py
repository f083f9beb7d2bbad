"""Documents that are in two sets, word for word or nearly."""

from __future__ import annotations

import random

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from test_splits import documents_of, load, write_texts

from inheritune_hf.data import duplicates
from inheritune_hf.data.duplicates import NgramIndex, filter_rows, isin, read_column

quick = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def text_of(seed, words=60):
    draw = random.Random(seed)
    return " ".join(f"word{draw.randrange(2000)}" for _ in range(words))


def nearly(text):
    words = text.split()
    words[len(words) // 2] = "other"
    return " ".join(words)


def jaccard(a, b):
    runs = [{tuple(item[i : i + 5]) for i in range(len(item) - 5)} for item in (a, b)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def dataset_of(documents):
    rows = [np.asarray(document).tolist() for document in documents]
    return Dataset.from_dict({"input_ids": rows}, features=Features({"input_ids": List(Value("int32"))}))


@quick
@given(seed=st.integers(0, 10**6), changes=st.integers(0, 12))
def test_similarity_is_that_of_the_ngrams(seed, changes):
    """The similarity is exactly the Jaccard similarity with the nearest document, if it reaches the threshold."""
    draw = np.random.default_rng(seed)
    documents = [draw.integers(1, 5000, size=120) for _ in range(5)]
    index = NgramIndex([dataset_of(documents[:2]), dataset_of(documents[2:])], 0.5)
    other = documents[3].copy()
    other[draw.integers(0, 119, size=changes)] = 6000
    expected = jaccard(documents[3], other)
    found = index.similarity(other)
    assert found == pytest.approx(expected) or (found == 0 and expected < 0.5)
    assert index.near(dataset_of([other])).tolist() == [expected >= 0.5]
    assert index.similarity(draw.integers(1, 5000, size=120)) == 0


@quick
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), seed=st.integers(0, 99), at_once=st.integers(1, 99)
)
def test_documents_are_compared_together_as_one_by_one(lengths, seed, at_once):
    """What is found in a set is what is found of each of its documents, whatever stands beside it."""
    draw = np.random.default_rng(seed)
    documents = [[*draw.integers(1, 4, size=length - 1).tolist(), 0] for length in lengths]
    index = NgramIndex([dataset_of(documents[::2])], 0.3)
    expected = [index.similarity(np.array(row)) >= 0.3 for row in documents]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_TOKENS_PER_GROUP", at_once)
        assert index.near(dataset_of(documents)).tolist() == expected
    # The look at the table loses nothing that is near enough.
    assert all(found for row, found in zip(documents[::2], expected[::2], strict=True) if len(row) > 1)


def test_a_foreign_document_is_not_compared():
    """However much is indexed, the table shows of foreign documents that they are not near."""
    draw = np.random.default_rng(0)
    documents = draw.integers(0, 50_000, (60, 200))
    index = NgramIndex([dataset_of(documents)], 0.8)
    assert index.table.mean() < 0.07
    foreign = draw.integers(0, 50_000, (60, 200))
    assert len(index.candidates(foreign.reshape(-1), np.full(60, 200))) < 6
    assert index.near(dataset_of(documents)).all()


def test_short_documents_are_compared_whole():
    """A document shorter than an n-gram is near to its like alone; an empty one to none."""
    index = NgramIndex([dataset_of([[1, 2, 0], [3, 0], [0]])], 0.8)
    assert index.near(dataset_of([[1, 2, 0], [2, 1, 0], [0]])).tolist() == [True, False, False]
    assert not NgramIndex([], 0.8).near(dataset_of([[1, 2, 0]])).any()


def given_sets(tmp_path):
    base = [text_of(seed) for seed in range(12)]
    train = [*base[:6], nearly(base[6]), base[7], nearly(base[10]), base[7]]
    selection, test = [base[6], base[7], nearly(base[11])], [base[10], base[11]]
    names = zip(("train", "selection", "test"), (train, selection, test), strict=True)
    return {f"{name}_files": [write_texts(tmp_path / name, texts)] for name, texts in names}, base


def test_documents_in_two_sets_are_reported(tmp_path, tokenizer, caplog):
    """The same and nearly the same are counted separately, and nothing is removed."""
    files, _ = given_sets(tmp_path)
    facts = load(tokenizer, **files).facts
    assert (facts.shared_documents, facts.near_duplicates, facts.removed_documents) == (1, 3, 0)
    assert facts.train.documents == 10
    assert (
        "3 documents are nearly the same as one of the selection or test set; near_duplicates 'remove'" in caplog.text
    )
    assert load(tokenizer, **files, near_duplicates="ignore").facts.near_duplicates is None


def test_documents_in_two_sets_are_removed(tmp_path, tokenizer):
    """What evaluates stays: training documents are removed, and selection documents that are in the test set."""
    files, base = given_sets(tmp_path)
    splits = load(tokenizer, **files, duplicates="remove", near_duplicates="remove")
    assert splits.facts.removed_documents == 5
    assert splits.facts.train.documents == 6
    assert documents_of(splits.selection, tokenizer) == [base[6], base[7]]
    assert documents_of(splits.test, tokenizer) == [base[10], base[11]]
    exact = load(tokenizer, **files, duplicates="remove")
    assert (exact.facts.removed_documents, exact.facts.near_duplicates) == (2, 3)


def counts_after_two_passes(splits):
    for row in splits.train:
        counts = row["reader_state"].sources[0].counts
        if counts["passes"] == 2:
            return {name: count // 2 for name, count in counts.items()}
    return None


def test_a_stream_counts_them_as_it_is_read(tmp_path, tokenizer):
    """A stream counts what is in an evaluation set, the same and nearly, in each pass; nothing is left out."""
    files, _ = given_sets(tmp_path)
    splits = load(tokenizer, **files, streaming=True)
    counts = counts_after_two_passes(splits)
    assert (counts["shared"], counts["near"], counts["left_out"]) == (2, 2, 0)
    assert (splits.facts.shared_documents, splits.facts.near_duplicates) == (0, 1)  # between selection and test
    ignored = load(tokenizer, **files, streaming=True, near_duplicates="ignore")
    assert counts_after_two_passes(ignored)["near"] == 0
    assert ignored.facts.near_duplicates is None


def test_a_stream_leaves_them_out(tmp_path, tokenizer):
    """A stream passes over what is in an evaluation set, and counts it; selection documents in the test set go too."""
    files, base = given_sets(tmp_path)
    splits = load(tokenizer, **files, duplicates="remove", near_duplicates="remove", streaming=True)
    assert counts_after_two_passes(splits)["left_out"] == 4
    assert splits.facts.removed_documents == 1
    assert documents_of(splits.selection, tokenizer) == [base[6], base[7]]
    exact = counts_after_two_passes(load(tokenizer, **files, duplicates="remove", streaming=True))
    assert (exact["left_out"], exact["near"]) == (2, 2)


def test_a_stream_of_other_documents_is_another(tmp_path, tokenizer):
    """What leaves documents out, and how text becomes sequences, is in a stream's fingerprint, which a run keeps."""
    files, _ = given_sets(tmp_path)
    changes = ({}, {"near_duplicates": "remove"}, {"duplicates": "remove"}, {"document_boundaries": True})
    found = [load(tokenizer, **files, streaming=True, **change).train.fingerprint for change in (*changes, {})]
    assert found[0] == found[-1]
    assert len(set(found)) == len(changes)


DIGESTS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), min_size=3, max_size=60)
small = settings(deadline=None, database=None, derandomize=True)


@small
@given(digests=DIGESTS, few=DIGESTS | st.just([]))
def test_documents_among_a_few(digests, few):
    """A document is recognised by its digest."""
    assert isin(np.array(digests), np.array(few, dtype=np.int64)).tolist() == [digest in few for digest in digests]


def test_a_column_is_that_of_the_chosen_rows():
    """Chosen, joined and chosen again, a column has the numbers of its rows."""
    parts = [Dataset.from_dict({"digest": list(range(start, start + 50)), "x": ["a"] * 50}) for start in (0, 50, 100)]
    assert read_column(parts[0].select([]), "digest").tolist() == []
    odd = filter_rows(concatenate_datasets(parts), np.arange(150) % 2 == 1)
    assert read_column(odd, "digest").tolist() == list(range(1, 150, 2))
    mixed = concatenate_datasets([odd, parts[0]])
    assert read_column(mixed.select([80, 0, 3]), "digest").tolist() == [5, 1, 7]


@small
@given(keep=st.lists(st.booleans(), min_size=1, max_size=30), again=st.booleans())
def test_rows_that_are_kept(keep, again):
    """They are what select gives, whatever was chosen before, and are known again by what was kept."""
    rows = Dataset.from_dict({"digest": list(range(len(keep))), "text": ["a"] * len(keep)})
    rows = rows.select(range(len(keep) - 1, -1, -1)) if again else rows
    mask = np.array(keep)
    kept = filter_rows(rows, mask)
    assert kept[:] == rows.select(np.flatnonzero(mask))[:]
    assert kept._fingerprint == filter_rows(rows, mask)._fingerprint
    assert (kept._fingerprint == rows._fingerprint) == mask.all()
