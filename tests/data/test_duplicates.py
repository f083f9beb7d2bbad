"""Documents that are in two sets, word for word or nearly."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from test_splits import documents_of, load, write_texts

from inheritune_hf.data import duplicates
from inheritune_hf.data.duplicates import Index, document_groups, filter_rows, isin, near_duplicates, read_column

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


@quick
@given(seed=st.integers(0, 10**6), changes=st.integers(0, 12))
def test_similarity_is_that_of_the_runs(seed, changes):
    """What is found is found with its exact Jaccard similarity, and it is the nearest there is."""
    draw = np.random.default_rng(seed)
    documents = [draw.integers(1, 5000, size=120) for _ in range(5)]
    index = Index(0.5)
    for document in documents:
        index.add(document)
    other = documents[3].copy()
    other[draw.integers(0, 119, size=changes)] = 6000
    expected = jaccard(documents[3], other)
    found = index.find(other)
    if found is None:
        assert expected < 0.65  # MinHash may pass over one at the border, not one well above it
    else:
        assert found == (3, pytest.approx(expected))
    assert index.find(draw.integers(1, 5000, size=120)) is None


@quick
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), seed=st.integers(0, 99), at_once=st.integers(1, 99)
)
def test_documents_are_looked_at_together_as_one_by_one(lengths, seed, at_once):
    """What is found in a set is what is found of each of its documents, whatever stands beside it."""
    draw = np.random.default_rng(seed)
    documents = [[*draw.integers(1, 4, size=length - 1).tolist(), 0] for length in lengths]
    index = Index(0.3)
    for document in documents[::2]:
        index.add(np.array(document))
    expected = [(n, *like) for n, row in enumerate(documents) if (like := index.find(np.array(row))) is not None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_TOKENS_AT_ONCE", at_once)
        dataset = Dataset.from_dict({"input_ids": documents}, features=Features({"input_ids": List(Value("int32"))}))
        found = near_duplicates(document_groups(dataset), index)
    assert found == expected
    # One by one and without the first look: nothing that is near enough is lost by it.
    for number, document in enumerate(documents[::2]):
        if len(document) > 1:
            assert any(item[0] == 2 * number and item[2] == 1 for item in found)


def test_a_table_grows_with_what_it_holds(monkeypatch):
    """However much is indexed, a foreign document needs no closer look, and what is there is found."""
    monkeypatch.setattr(duplicates, "_FEWEST_PLACES", 1 << 10)
    draw = np.random.default_rng(0)
    documents = draw.integers(0, 50_000, (60, 200))
    index = Index(0.8)
    for document in documents:
        index.add(document)
    assert len(index.table) >= 16 * 60 * 190
    assert index.table.mean() < 0.07
    foreign = draw.integers(0, 50_000, (60, 200))
    assert len(index.likely(foreign.reshape(-1), np.full(60, 200))) < 6
    assert [index.find(document) for document in documents] == [(number, 1.0) for number in range(60)]


def test_short_documents_are_compared_whole():
    """A document shorter than a run is near to its like alone; an empty one to none."""
    index = Index(0.8)
    for document in ([1, 2, 0], [3, 0], [0]):
        index.add(np.array(document))
    assert index.find(np.array([1, 2, 0])) == (0, 1.0)
    assert index.find(np.array([2, 1, 0])) is None
    assert index.find(np.array([0])) is None


def given_sets(tmp_path):
    base = [text_of(seed) for seed in range(12)]
    train = [*base[:6], nearly(base[6]), base[7], nearly(base[10]), base[7]]
    selection, test = [base[6], base[7], nearly(base[11])], [base[10], base[11]]
    names = zip(("train", "selection", "test"), (train, selection, test), strict=True)
    return {f"{name}_files": [write_texts(tmp_path / name, texts)] for name, texts in names}, base


def test_documents_in_two_sets_are_reported(tmp_path, tokenizer, caplog):
    """The same and nearly the same are counted apart, and nothing is taken away."""
    files, _ = given_sets(tmp_path)
    facts = load(tokenizer, **files).facts
    assert (facts.shared_documents, facts.near_duplicates, facts.removed_documents) == (1, 3, 0)
    assert facts.train.documents == 10
    assert (
        "3 documents are nearly the same as one of the selection or test set; near_duplicates 'remove'" in caplog.text
    )
    assert load(tokenizer, **files, near_duplicates="ignore").facts.near_duplicates is None


def test_documents_in_two_sets_are_removed(tmp_path, tokenizer):
    """What judges stays: training documents go, and selection documents that are in the test set."""
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


def test_a_stream_counts_them_as_they_come(tmp_path, tokenizer):
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


def test_the_search_for_near_duplicates_is_an_extra(tmp_path, tokenizer, caplog, monkeypatch):
    """Without datasketch a run reports the same documents alone, and says how to install it; removal is an error."""
    monkeypatch.setitem(sys.modules, "datasketch", None)
    duplicates._warn_once.cache_clear()
    files, _ = given_sets(tmp_path)
    facts = load(tokenizer, **files).facts
    assert (facts.shared_documents, facts.near_duplicates) == (1, None)
    assert caplog.text.count("needs datasketch; install it with: pip install 'inheritune-hf[dedup]'") == 1
    assert load(tokenizer, **files, duplicates="remove", near_duplicates="ignore").facts.removed_documents == 2
    with pytest.raises(ImportError, match=r"needs datasketch; .*, or set near_duplicates to 'ignore'"):
        load(tokenizer, **files, near_duplicates="remove")


DIGESTS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), min_size=3, max_size=60)
small = settings(deadline=None, database=None, derandomize=True)


@small
@given(digests=DIGESTS, few=DIGESTS | st.just([]), at_once=st.integers(1, 70))
def test_documents_among_a_few(digests, few, at_once):
    """A document is told by its digest, in whatever parts they are looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_DIGESTS_AT_ONCE", at_once)
        found = isin(np.array(digests, dtype=np.int64), np.array(few, dtype=np.int64))
    assert found.tolist() == [digest in few for digest in digests]


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
