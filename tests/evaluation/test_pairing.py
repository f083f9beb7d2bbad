"""Student and reference on the same texts."""

import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from inheritune_hf.evaluation import compare_on, read_corpus, validate
from inheritune_hf.evaluation.facts import CorpusComparison
from inheritune_hf.records import Validation, decode, encode


@pytest.fixture(scope="module")
def corpus(pair):
    return read_corpus([pair.texts], pair.tokenizer, len(pair.tokenizer), block_size=64)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def test_corpus_is_whole_documents(pair, corpus):
    """Every file is a document, and every token of it but a lone last one is in a sequence, in order."""
    documents = {}
    for row in corpus.sequences:
        documents.setdefault(row["document"], []).extend(row["input_ids"])
    assert len(documents) == 40
    text = pair.tokenizer.decode(documents[0], skip_special_tokens=True)
    assert text == "The a of number 0 is 0 and 0. " * 6


def test_the_embedded_corpus_is_the_test_passages(pair):
    """Without files, the test passages of the embedded novels are evaluated on, as the embedded run does."""
    corpus = read_corpus([], pair.tokenizer, len(pair.tokenizer), 64, max_sequences_per_document=1)
    assert len(set(corpus.sequences["document"])) == len(corpus.sequences) == 48


def test_nothing_to_evaluate_on_is_refused(pair, tmp_path):
    """A corpus without two tokens is refused by name."""
    (tmp_path / "blank.txt").write_text(" ")
    with pytest.raises(ValueError, match=r"blank\.txt has no document of two tokens"):
        read_corpus([str(tmp_path / "blank.txt")], pair.tokenizer, len(pair.tokenizer), 64)


def test_figures_are_those_of_each_sequence_alone(pair, corpus):
    """Loss, perplexity and accuracy are those of a plain forward pass over each sequence."""
    model = load(pair.student).eval()
    loss = tokens = correct = 0
    for row in corpus.sequences:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            output = model(input_ids=ids, labels=ids)
        count = ids.shape[1] - 1
        loss += output.loss.item() * count
        tokens += count
        correct += int((output.logits[0, :-1].argmax(-1) == ids[0, 1:]).sum())
    mine = compare_on(corpus, validate(model, corpus), validate(load(pair.reference), corpus)).student
    assert mine.loss == pytest.approx(loss / tokens, abs=1e-6)
    assert mine.perplexity == pytest.approx(np.exp(loss / tokens), rel=1e-6)
    assert mine.accuracy == correct / tokens


def test_same_model_twice_and_full_depth_are_equal(pair, corpus):
    """The same model has the same figures each time, and a student of full depth exactly its reference's."""
    first, again = validate(load(pair.whole), corpus), validate(load(pair.whole), corpus)
    reference = validate(load(pair.reference), corpus)
    assert first == again == reference
    found = compare_on(corpus, first, reference)
    assert found.student == found.reference
    assert (found.match.difference, found.match.upper, found.accuracy_difference) == (0, 0, 0)
    assert found.match.matched
    assert (found.accuracy_lower, found.accuracy_upper) == (0, 0)


def test_accuracy_is_paired_by_document(pair, corpus):
    """The difference in accuracy lies within its bounds; with few documents it is said that they may be too narrow."""
    documents = tuple(range(40))
    tokens = tuple(10 + document % 3 for document in documents)
    sums = tuple(2.0 * count for count in tokens)
    student = Validation(documents, sums, tokens, tuple(4 + document % 5 for document in documents))
    reference = Validation(documents, sums, tokens, tuple(5 for _ in documents))
    found = compare_on(corpus, student, reference)
    assert found.accuracy_difference == pytest.approx(40 / sum(tokens))
    assert found.accuracy_difference == pytest.approx(student.accuracy - reference.accuracy)
    assert 0 < found.accuracy_lower < found.accuracy_difference < found.accuracy_upper
    few = read_corpus([pair.texts.replace("*", "0*")], pair.tokenizer, len(pair.tokenizer), 64)
    found = compare_on(few, validate(load(pair.student), few), validate(load(pair.reference), few))
    assert found.accuracy_lower <= found.accuracy_difference <= found.accuracy_upper
    assert "10 documents" in found.match.note
    assert decode(CorpusComparison, encode(found), "") == found


def test_evaluating_leaves_no_trace(pair, corpus):
    """Random states and the model's mode are as before."""
    model = load(pair.student).train()
    model.transformer.h[0].eval()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(1))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    validate(model, corpus)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert model.training
    assert not model.transformer.h[0].training
