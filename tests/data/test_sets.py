"""What is chosen among millions of documents, in few bytes for each."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune_hf.data import duplicates, splits
from inheritune_hf.data.duplicates import filter_rows, isin, read_column
from inheritune_hf.data.splits import choose_carved

DIGESTS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), min_size=3, max_size=60)
small = settings(deadline=None, database=None, derandomize=True)


@small
@given(digests=DIGESTS, seed=st.integers(0, 9), at_once=st.integers(1, 70))
def test_those_are_carved_whose_hash_comes_first(digests, seed, at_once):
    """The carved documents are the first in the order of their sha256 with the seed, however they are looked at."""
    ordered = sorted(set(digests), key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest())
    if len(ordered) < 3:
        return
    count = max(1, int(0.3 * len(ordered)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "_AT_ONCE", at_once)
        chosen = choose_carved(np.array(digests), {"selection": 0.3, "test": 0.3}, seed)
    assert chosen["selection"].tolist() == ordered[:count]
    assert chosen["test"].tolist() == ordered[count : 2 * count]


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


def test_carving_takes_few_bytes_of_each_document():
    """What is held to choose among many documents is less than 50 bytes for each."""
    count = 400_000
    digests = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, count)
    tracemalloc.start()
    try:
        chosen = choose_carved(digests, {"selection": 0.001, "test": 0.001}, 0)
        isin(digests, np.concatenate(list(chosen.values())))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 * count
