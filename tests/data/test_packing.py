"""Documents into sequences, and sequences into batches."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from test_tokenization import expected_tokens, make_documents, quick, texts

from inheritune_hf.data import CausalCollator, set_fingerprint
from inheritune_hf.data.packing import cut_windows, pack_sequences, spread
from inheritune_hf.data.tokenization import MOST_PER_BATCH

ROOT = Path(__file__).parents[2]


@quick
@given(items=texts, block_size=st.integers(2, 30))
def test_packing_loses_only_the_last_partial_sequence(items, block_size, tokenizer):
    """The packed sequences, laid end to end, are the documents up to a rest shorter than one sequence."""
    source = [token for row in expected_tokens(items, tokenizer) for token in row]
    rows = pack_sequences(make_documents(items, tokenizer), block_size)["input_ids"][:]
    packed = [token for row in rows for token in row]
    assert all(len(row) == block_size for row in rows)
    assert packed == source[: len(source) // block_size * block_size]


def test_packing_carries_tokens_from_batch_to_batch(tokenizer):
    """Nothing is lost where one batch of documents ends and the next begins."""
    items = [f"layer {index}" for index in range(2 * MOST_PER_BATCH + 3)]
    source = [token for row in expected_tokens(items, tokenizer) for token in row]
    rows = pack_sequences(make_documents(items, tokenizer), 7)["input_ids"][:]
    assert [token for row in rows for token in row] == source[: len(source) // 7 * 7]


@quick
@given(items=texts, block_size=st.integers(2, 30))
def test_windows_cover_each_document_and_cross_none(items, block_size, tokenizer):
    """Windows are a document's tokens in order, each time it is there, but for a last single one: it predicts none."""
    documents = make_documents(items, tokenizer)
    windows, digests = cut_windows(documents, block_size)[:], documents["digest"][:]
    found: dict[int, list[int]] = {}
    for row, document in zip(windows["input_ids"], windows["document"], strict=True):
        assert 2 <= len(row) <= block_size
        found.setdefault(document, []).extend(row)
    rows = expected_tokens(items, tokenizer)
    firsts = [digests.index(text) for text in dict.fromkeys(digests)]
    assert list(found) == [index for index in firsts if len(rows[index]) > 1]
    for document, tokens in found.items():
        row = rows[document]
        assert tokens == digests.count(digests[document]) * (row[:-1] if len(row) % block_size == 1 else row)


@quick
@given(count=st.integers(1, 60), most=st.integers(1, 60))
def test_what_is_kept_is_spread_evenly(count, most):
    """Each item that is kept is the middle of its share of all, in their order; few are kept whole."""
    kept = list(spread(range(count), most))
    assert len(kept) == min(count, most)
    assert kept == sorted(set(kept))
    if count > most:
        assert all(abs((item + 0.5) - (number + 0.5) * count / most) <= 0.5 for number, item in enumerate(kept))
        assert list(spread(range(count), 1)) == [count // 2]
    assert list(spread(range(count), None)) == list(range(count))


def test_the_windows_of_a_document_are_spread_evenly(tokenizer):
    """With a cap, a long document keeps windows from its beginning to its end, unchanged; a short one keeps all."""
    documents = make_documents(["layer kept " * 40, "layer"], tokenizer)
    everything, capped = cut_windows(documents, 5), cut_windows(documents, 5, 2)
    first = [row["input_ids"] for row in everything if row["document"] == 0]
    assert len(first) > 8
    expected = [first[len(first) // 4], first[3 * len(first) // 4], everything[-1]["input_ids"]]
    assert capped["input_ids"][:] == expected
    assert capped["document"][:] == [0, 0, 1]


def test_windows_number_documents_across_batches(tokenizer):
    """The number of a document is its place in the set, not in a batch."""
    items = ["layer " * (1 + number % 3) + str(number) for number in range(MOST_PER_BATCH + 2)]
    assert sorted(set(cut_windows(make_documents(items, tokenizer), 8)["document"][:])) == list(range(len(items)))


def test_a_text_that_is_repeated_is_one_document(tokenizer):
    """Copies are no further evidence: their windows are kept, under the number of the first."""
    windows = cut_windows(make_documents(["layer kept", "other", "layer kept", "last", "other"], tokenizer), 99)
    assert windows["document"][:] == [0, 1, 0, 3, 1]


def test_a_fingerprint_is_that_of_the_content(tokenizer):
    """Equal sets have equal fingerprints however they were made; any other token, row end or document changes it."""
    rows = {"input_ids": [[1, 2, 3], [4, 5]], "document": [0, 1]}
    reference = set_fingerprint(Dataset.from_dict(rows))
    assert len(reference) == 64
    by_rows = [{"document": 0, "input_ids": [1, 2, 3]}, {"document": 1, "input_ids": [4, 5]}]
    assert set_fingerprint(Dataset.from_list(by_rows)) == reference
    longer = Dataset.from_dict({"input_ids": [[9], [1, 2, 3], [4, 5]], "document": [7, 0, 1]})
    assert set_fingerprint(longer.select([1, 2])) == reference
    changed = [
        {**rows, "input_ids": [[1, 2, 3], [4, 6]]},
        {**rows, "input_ids": [[1, 2], [3, 4, 5]]},
        {**rows, "document": [0, 2]},
        {"input_ids": rows["input_ids"]},
    ]
    assert len({reference, *(set_fingerprint(Dataset.from_dict(other)) for other in changed)}) == 5


def test_a_fingerprint_is_stable():
    """The fingerprint of a known set is a known number, so runs are recognised by a later version."""
    dataset = Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5]], "document": [0, 1]})
    assert set_fingerprint(dataset) == "1f8f907be91e0f0c3cd06a944d74dcfadc9c2d684054c3faa078e37fd030f61b"


def test_equal_rows_need_no_attention_mask():
    """A batch without padding is the rows themselves, labelled by themselves, without a mask."""
    batch = CausalCollator(pad_token_id=0)([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6], "document": 1}])
    assert set(batch) == {"input_ids", "labels"}
    for name in ("input_ids", "labels"):
        assert torch.equal(batch[name], torch.tensor([[1, 2, 3], [4, 5, 6]]))
    batch["labels"][0, 0] = 9
    assert batch["input_ids"][0, 0] == 1


def test_shorter_rows_are_padded_on_the_right():
    """Padding is masked and not counted, even where its token occurs in the text."""
    batch = CausalCollator(pad_token_id=7)([{"input_ids": [1, 7, 3]}, {"input_ids": torch.tensor([4])}])
    assert torch.equal(batch["input_ids"], torch.tensor([[1, 7, 3], [4, 7, 7]]))
    assert torch.equal(batch["labels"], torch.tensor([[1, 7, 3], [4, -100, -100]]))
    assert torch.equal(batch["attention_mask"], torch.tensor([[1, 1, 1], [1, 0, 0]]))
    assert all(tensor.dtype == torch.long for tensor in batch.values())


def test_given_labels_are_kept():
    """Labels that a row brings are used as they are."""
    batch = CausalCollator(pad_token_id=0)([{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3]}])
    assert torch.equal(batch["labels"], torch.tensor([[-100, 2], [3, -100]]))


def test_labels_must_fit_the_tokens():
    """A row with another number of labels than tokens is named."""
    with pytest.raises(ValueError, match=r"Row 1 has 2 tokens but 1 labels; give one label per token"):
        CausalCollator(pad_token_id=0)([{"input_ids": [1, 2]}, {"input_ids": [1, 2], "labels": [1]}])


def test_the_collator_travels_to_workers_and_cannot_change():
    """It can be pickled for data loader workers, and is frozen."""
    collator = CausalCollator(pad_token_id=3)
    assert pickle.loads(pickle.dumps(collator)) == collator  # noqa: S301 (its own pickle)
    with pytest.raises(dataclasses.FrozenInstanceError):
        collator.pad_token_id = 4


def test_importing_the_package_does_not_import_torch():
    """Reading and packing text needs no torch."""
    code = "import sys, inheritune_hf.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
