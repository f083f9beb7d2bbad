"""Zero-shot tasks through lm-evaluation-harness."""

import importlib.util
import json
import math
import random
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from inheritune_hf.evaluation import TaskScores, compare_tasks, downstream, evaluate_tasks, require_harness
from inheritune_hf.evaluation.downstream import exact_mcnemar, task_of_file

SHARED = Path(__file__).parents[3] / "shared" / "data"
harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")

CHOICES = [
    {"query": f"Question: what is {n}?", "choices": [f"{n}", f"{n} and more", "no"], "gold": n % 3} for n in range(6)
]
WORDS = [{"context": f"The number after {n} is", "continuation": f"{n + 1}"} for n in range(6)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return [write_rows(tmp_path / "choices.jsonl", CHOICES), write_rows(tmp_path / "words.jsonl", WORDS)]


def log_likelihood(model, tokenizer, context, continuation):
    """The log-likelihood of a continuation by a plain forward pass."""
    whole = tokenizer(context + continuation)["input_ids"]
    begins = len(tokenizer(context)["input_ids"])
    most = model.config.n_positions
    tokens = whole[-(most + 1) :]
    with torch.no_grad():
        scores = model(torch.tensor([tokens[:-1]])).logits[0].float().log_softmax(-1)
    count = len(whole) - begins
    return sum(scores[-count + place, tokens[-count + place]].item() for place in range(count))


@harness
def test_files_are_evaluated_without_a_trace(pair, files):
    """Local files give accuracies with errors; random states and the model's mode are as before."""
    model = AutoModelForCausalLM.from_pretrained(pair.student).train()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = (random.random(), np.random.rand(), torch.rand(1))
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    choices, words = evaluate_tasks(model, pair.tokenizer, files)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert model.training
    assert (choices.task, words.task) == ("choices", "words")
    assert set(choices.metrics) == {"acc", "acc_norm"}
    assert set(words.metrics) == {"perplexity", "acc"}
    assert choices.metrics["acc"][0] == sum(choices.rows["acc"]) / 6
    assert choices.metrics["acc"][1] > 0
    best = [max(range(3), key=row.__getitem__) for row in choices.log_likelihoods]
    assert [int(place == row["gold"]) for place, row in zip(best, CHOICES, strict=True)] == list(choices.rows["acc"])
    mean = sum(row[0] for row in words.log_likelihoods) / 6
    assert words.metrics["perplexity"][0] == pytest.approx(math.exp(-mean))


@harness
def test_log_likelihoods_are_those_of_a_plain_forward_pass(pair, files):
    """The harness's log-likelihoods are an independent computation's."""
    model = AutoModelForCausalLM.from_pretrained(pair.student).eval()
    choices, words = evaluate_tasks(model, pair.tokenizer, files)
    for row, found in zip(CHOICES, choices.log_likelihoods, strict=True):
        expected = [
            log_likelihood(model, pair.tokenizer, f"{row['query']}\nAnswer:", f" {one}") for one in row["choices"]
        ]
        assert found == pytest.approx(expected, abs=1e-3)
    for row, found in zip(WORDS, words.log_likelihoods, strict=True):
        expected = log_likelihood(model, pair.tokenizer, row["context"], f" {row['continuation']}")
        assert found == pytest.approx([expected], abs=1e-3)


@harness
@shared
def test_hundred_rows_of_the_real_tasks(tmp_path):
    """On the first 100 rows of ARC-easy, PIQA and LAMBADA the harness agrees with an independent computation."""
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "gpt2_tokenizer")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_positions=256, n_embd=8, n_layer=2, n_head=2)).eval()
    for name in ("arc_easy", "piqa", "lambada_openai"):
        path = SHARED / "zero_shot" / f"{name}.jsonl"
        (scores,) = evaluate_tasks(model, tokenizer, [str(path)], limit=100)
        rows = [json.loads(line) for line in path.read_text().splitlines()[:100]]
        assert len(scores.log_likelihoods) == 100
        for row, found in zip(rows, scores.log_likelihoods, strict=True):
            if "query" in row:
                context, answers = f"{row['query']}\nAnswer:", [f" {choice}" for choice in row["choices"]]
            else:
                context, answers = row["context"], [f" {row['continuation']}"]
            expected = [log_likelihood(model, tokenizer, context, answer) for answer in answers]
            assert found == pytest.approx(expected, abs=2e-3)


@harness
def test_finished_tasks_are_kept(pair, files, tmp_path, monkeypatch):
    """What is finished is read again; other weights, rows or limits are evaluated anew."""
    model = AutoModelForCausalLM.from_pretrained(pair.student)
    calls = []
    run = downstream._run
    monkeypatch.setattr(downstream, "_run", lambda *words: calls.append(words[3]) or run(*words))
    kept = {"cache_dir": tmp_path / "kept", "weights": "one"}
    first = evaluate_tasks(model, pair.tokenizer, files, **kept)
    assert evaluate_tasks(model, pair.tokenizer, files, **kept) == first
    assert len(calls) == 2
    evaluate_tasks(model, pair.tokenizer, files[:1], limit=2, **kept)
    evaluate_tasks(model, pair.tokenizer, files[:1], **{**kept, "weights": "two"})
    write_rows(Path(files[0]), CHOICES[:4])
    evaluate_tasks(model, pair.tokenizer, files[:1], **kept)
    assert len(calls) == 5


def test_pairs_have_an_exact_test():
    """Differences are paired by row, with an error and McNemar's exact p; a perplexity has neither."""
    one = TaskScores("t", {"acc": (0.75, 0.2), "perplexity": (9.0, 1.0)}, {"acc": (1, 1, 1, 0)}, ((0.0,),) * 4)
    other = TaskScores("t", {"acc": (0.25, 0.2), "perplexity": (8.0, None)}, {"acc": (0, 0, 1, 0)}, ((0.0,),) * 4)
    accuracy, perplexity = compare_tasks([one], [other])
    assert (accuracy.student, accuracy.reference, accuracy.difference, accuracy.rows) == (0.75, 0.25, 0.5, 4)
    assert accuracy.difference_error == pytest.approx(0.57735 / 2, rel=1e-4)
    assert accuracy.p_value == 0.5
    assert (perplexity.difference, perplexity.p_value, perplexity.reference_error) == (None, None, None)
    same = compare_tasks([one], [one])[0]
    assert (same.difference, same.difference_error, same.p_value) == (0, 0, 1)
    # Binomial tails worked out by hand: 2 * (1 + 10) / 2**10 and 2 / 2**6.
    assert exact_mcnemar(9, 1) == 22 / 1024
    assert exact_mcnemar(0, 6) == 1 / 32
    with pytest.raises(ValueError, match="the same tasks"):
        compare_tasks([one], [])
    with pytest.raises(ValueError, match="the same rows, got 4 and 3"):
        compare_tasks([one], [TaskScores("t", other.metrics, {"acc": (0, 0, 1)}, ((0.0,),) * 3)])


def test_rows_of_neither_kind_are_refused(tmp_path):
    """A file that is not there, rows of neither kind, and rows of both kinds are refused."""
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.jsonl"):
        task_of_file(tmp_path / "none.jsonl")
    for rows in ([{"text": "x"}], [CHOICES[0], WORDS[0]]):
        with pytest.raises(ValueError, match=r"Every row of .* must have choices, gold, query, or"):
            task_of_file(write_rows(tmp_path / "rows.jsonl", rows))


def test_missing_harness_is_named(monkeypatch):
    """Without lm-eval the message says how to install it."""

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(downstream.metadata, "version", missing)
    with pytest.raises(ImportError, match=r"need lm-eval; install it with: pip install 'inheritune-hf\[eval\]'"):
        require_harness()
