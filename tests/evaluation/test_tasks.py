"""Tasks through lm-evaluation-harness."""

import importlib.util
import json
import math
import random
from importlib import metadata
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM

from inheritune_hf.evaluation import (
    PAPER_TASKS,
    TaskSettings,
    compare_tasks,
    evaluate_tasks,
    tasks,
)
from inheritune_hf.evaluation.tasks import TaskScores, check_tasks, exact_mcnemar, exchange_test, task_of_file

SHARED = Path(__file__).parents[3] / "shared" / "data"
harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")

CHOICES = [
    {"query": f"Question: what is {n}?", "choices": [f"{n}", f"{n} and more", "no"], "gold": n % 3} for n in range(6)
]
QUESTIONS = [{"question": f"Which town is {n}?", "answer": f"Town {n}."} for n in range(6)]
SUMS = [{"id": n, "question": f"What is {n} and {n}?", "answer": 2 * n} for n in range(6)]
REASONED = [{"question": f"What is {n} and 1?", "answer": f"We add 1 to {n}.\n#### {n + 1}"} for n in range(6)]
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
def test_finished_tasks_are_kept(pair, files, tmp_path, monkeypatch):
    """What is finished is read again; other weights, rows or limits are evaluated anew."""
    model = AutoModelForCausalLM.from_pretrained(pair.student)
    calls = []
    run = tasks._run
    monkeypatch.setattr(tasks, "_run", lambda *words: calls.append(words[3]) or run(*words))
    kept = {"cache_dir": tmp_path / "kept", "weights": "one"}
    first = evaluate_tasks(model, pair.tokenizer, files, **kept)
    assert evaluate_tasks(model, pair.tokenizer, files, **kept) == first
    assert len(calls) == 2
    evaluate_tasks(model, pair.tokenizer, files[:1], limit=2, **kept)
    evaluate_tasks(model, pair.tokenizer, files[:1], **{**kept, "weights": "two"})
    write_rows(Path(files[0]), CHOICES[:4])
    evaluate_tasks(model, pair.tokenizer, files[:1], **kept)
    assert len(calls) == 5


@harness
def test_how_a_task_is_asked_is_kept_with_it(pair, files, tmp_path, monkeypatch):
    """A task with other settings is evaluated again; its settings are recorded, and only equal ones are compared."""
    model = AutoModelForCausalLM.from_pretrained(pair.student)
    asked = []
    run = tasks._run
    monkeypatch.setattr(tasks, "_run", lambda *words: asked.append(words[-1]) or run(*words))
    path = write_rows(tmp_path / "towns.jsonl", QUESTIONS)
    kept = {"cache_dir": tmp_path / "kept", "weights": "one"}
    ways = [TaskSettings(max_gen_toks=4), TaskSettings(1, max_gen_toks=4), TaskSettings(1, max_gen_toks=5)]
    found = [evaluate_tasks(model, pair.tokenizer, [path, files[1]], settings=way, **kept) for way in [*ways, *ways]]
    assert asked == [way for way in ways for _ in range(2)]
    assert [str(one.settings) for one, _ in found[:3]] == [
        "0-shot, at most 4 new tokens",
        "1-shot, at most 4 new tokens",
        "1-shot, at most 5 new tokens",
    ]
    assert [str(two.settings) for _, two in found[:3]] == ["0-shot", "1-shot", "1-shot"]
    with pytest.raises(ValueError, match=r"same tasks, got \['towns \(0-shot, at most 4.*towns \(1-shot, at most 4"):
        compare_tasks(found[0][:1], found[1][:1])
    with pytest.raises(ValueError, match="needs a tokenizer with a chat template, and this one has none"):
        evaluate_tasks(model, pair.tokenizer, [path], settings=TaskSettings(apply_chat_template=True))
    with pytest.raises(ValueError, match="num_fewshot must be 0 or more, got -1"):
        TaskSettings(-1)


def answer_by(monkeypatch, answers, prompts):
    """Let the model's place be taken by a function from a prompt to what is generated: the rest is the harness."""
    from lm_eval.models.huggingface import HFLM

    def generate(self, requests, **options):
        prompts.extend(request.args for request in requests)
        return [answers(request.args[0]) for request in requests]

    monkeypatch.setattr(HFLM, "generate_until", generate)


@pytest.fixture(scope="module")
def taught(pair):
    """The student, taught to answer: the first three sums in the form of the answers, the others in a sentence."""
    model = AutoModelForCausalLM.from_pretrained(pair.student).train()
    texts = [
        f"Question: {row['question']}\nAnswer: "
        + (f"{row['answer']}\n" if row["id"] < 3 else f"no 1, {row['answer']}!\n")
        for row in SUMS
    ]
    batch = pair.tokenizer([text.ljust(60, "\n") for text in texts], return_tensors="pt")["input_ids"]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@harness
def test_two_filters_of_a_task_are_two_results(pair, taught, tmp_path):
    """A number in the wrong form is right by one filter and wrong by the other, row by row, and both are compared."""
    path = write_rows(tmp_path / "sums.jsonl", SUMS)
    reference = AutoModelForCausalLM.from_pretrained(pair.reference)
    (mine,), (theirs,) = (
        evaluate_tasks(model, pair.tokenizer, [path], settings=TaskSettings(max_gen_toks=12))
        for model in (taught, reference)
    )
    strict, flexible = "exact_match,strict-match", "exact_match,flexible-extract"
    assert mine.rows == {strict: (1, 1, 1, 0, 0, 0), flexible: (1,) * 6}
    assert {key: value for key, (value, _) in mine.metrics.items()} == {strict: 0.5, flexible: 1.0}
    assert len(mine.log_likelihoods) == 6
    one, other = compare_tasks([mine], [theirs])
    assert (one.label, one.student, one.reference, one.difference) == ("exact_match (strict-match)", 0.5, 0, 0.5)
    assert (other.label, other.student, other.p_value) == ("exact_match (flexible-extract)", 1, 2 / 2**6)


@harness
def test_the_last_number_after_reasoning_is_the_answer(pair, tmp_path, monkeypatch):
    """Where answers end in a number after ####, the strict filter wants that sign, and the flexible one does not."""
    model = AutoModelForCausalLM.from_pretrained(pair.student)
    path = write_rows(tmp_path / "reasoned.jsonl", REASONED)
    answer_by(
        monkeypatch, lambda prompt: " 9.\n#### 1" if "is 0 " in prompt else " 9, no, $2." * ("is 1 " in prompt), []
    )
    (found,) = evaluate_tasks(model, pair.tokenizer, [path])
    assert found.rows["exact_match,strict-match"] == (1, 0, 0, 0, 0, 0)
    assert found.rows["exact_match,flexible-extract"] == (1, 1, 0, 0, 0, 0)


@harness
def test_answers_are_generated_and_compared(pair, tmp_path, monkeypatch):
    """A tiny model generates up to a stop; an answer is right whatever its case, final stop and surrounding space."""
    model = AutoModelForCausalLM.from_pretrained(pair.student)
    path = write_rows(tmp_path / "towns.jsonl", QUESTIONS)
    for rows in (QUESTIONS, SUMS, REASONED):
        (made,) = evaluate_tasks(
            model, pair.tokenizer, [write_rows(tmp_path / "rows.jsonl", rows)], settings=TaskSettings(max_gen_toks=8)
        )
        assert all(value == (0.0, 0.0) for value in made.metrics.values())
        assert made.settings == TaskSettings(0, max_gen_toks=8)
    prompts = []
    answer_by(monkeypatch, lambda prompt: "  town 3 \n" if "3" in prompt else "", prompts)
    (found,) = evaluate_tasks(model, pair.tokenizer, [path])
    assert found.rows == {"exact_match": (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)}
    assert prompts[2] == ("Question: Which town is 2?\nAnswer:", {"until": ["\n"], "do_sample": False})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="lower max_gen_toks if answers are generated"):
        evaluate_tasks(model, pair.tokenizer, [path], settings=TaskSettings(max_gen_toks=64))


@harness
def test_examples_never_hold_what_is_asked(pair, tmp_path, monkeypatch):
    """Examples are the file's other rows, the same for both models; a row that asks the same is none of them."""
    model = AutoModelForCausalLM.from_pretrained(pair.student)
    twin = {"question": "Which town is 0? ", "answer": "Town 0, as said."}
    path = write_rows(tmp_path / "towns.jsonl", [*QUESTIONS, twin])
    asked = []
    for _ in range(2):
        answer_by(monkeypatch, lambda _: "", asked)
        evaluate_tasks(model, pair.tokenizer, [path], settings=TaskSettings(5))
    prompts = [prompt for prompt, _ in asked]
    assert prompts[:7] == prompts[7:]
    for prompt in prompts:
        *examples, question = prompt.split("\n\n")
        assert len(examples) == 5
        assert all("\nAnswer: Town" in example for example in examples)
        assert question.endswith("\nAnswer:")
        assert not any(example.startswith(question.removesuffix("\nAnswer:").strip()) for example in examples)
    with pytest.raises(ValueError, match=r"num_fewshot must be at most 5, the rows of .*towns.jsonl that ask .* got 6"):
        evaluate_tasks(model, pair.tokenizer, [path], settings=TaskSettings(6))


@harness
def test_prompts_that_do_not_fit_are_counted(pair, tmp_path):
    """A prompt whose beginning is cut off is counted, before a generated answer and before choices."""
    model = AutoModelForCausalLM.from_pretrained(pair.student)  # has a context of 64 bytes
    rows = [{"question": "x" * length, "answer": "yes"} for length in (26, 27, 28, 29)]  # and 18 for the words around
    path = write_rows(tmp_path / "long.jsonl", rows)
    (found,) = evaluate_tasks(model, pair.tokenizer, [path], settings=TaskSettings(max_gen_toks=18))
    assert found.cut == 1
    assert compare_tasks([found], [found])[0].asked == "0-shot, at most 18 new tokens, prompts cut: 1"
    rows = [{"query": "x" * length, "choices": [" yes", " no"], "gold": 0} for length in (51, 52, 53, 54)]
    (found,) = evaluate_tasks(model, pair.tokenizer, [write_rows(tmp_path / "long.jsonl", rows)])
    assert found.cut == 2
    assert compare_tasks([found], [found])[0].asked == "0-shot, prompts cut: 2"


@harness
def test_prompts_are_turns_of_a_conversation(pair, tmp_path, monkeypatch):
    """With a chat template examples and question are turns, in the template's own words."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair.reference)
    tokenizer.chat_template = (
        "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    prompts = []
    answer_by(monkeypatch, lambda _: "", prompts)
    path = write_rows(tmp_path / "towns.jsonl", QUESTIONS[:2])
    model = AutoModelForCausalLM.from_pretrained(pair.student)
    (found,) = evaluate_tasks(model, tokenizer, [path], settings=TaskSettings(1, apply_chat_template=True))
    assert prompts[0][0] == (
        "<user>Question: Which town is 1?\nAnswer:<assistant>Town 1."
        "<user>Question: Which town is 0?\nAnswer:<assistant>"
    )
    assert str(found.settings) == "1-shot, chat template, at most 256 new tokens"


@harness
def test_answer_longer_than_the_context_is_refused(pair, tmp_path):
    """What the harness cannot ask is named."""
    rows = [{"query": "Question: how long?", "choices": ["x" * 70, "short"], "gold": 0}]
    model = AutoModelForCausalLM.from_pretrained(pair.student)
    with pytest.raises(ValueError, match="cannot ask this model long: an answer is longer than"):
        evaluate_tasks(model, pair.tokenizer, [write_rows(tmp_path / "long.jsonl", rows)])


def test_pairs_have_an_exact_test():
    """Differences are paired by row, with an error and McNemar's exact p; what no row tells of has neither."""
    one = TaskScores("t", {"acc": (0.75, 0.2), "f1": (9.0, 1.0)}, {"acc": (1, 1, 1, 0)}, {}, ((0.0,),) * 4)
    other = TaskScores("t", {"acc": (0.25, 0.2), "f1": (8.0, None)}, {"acc": (0, 0, 1, 0)}, {}, ((0.0,),) * 4)
    accuracy, unpaired = compare_tasks([one], [other])
    assert (accuracy.student, accuracy.reference, accuracy.difference, accuracy.rows) == (0.75, 0.25, 0.5, 4)
    assert accuracy.difference_error == pytest.approx(0.57735 / 2, rel=1e-4)
    assert accuracy.p_value == pytest.approx(0.5)
    assert (unpaired.difference, unpaired.p_value, unpaired.reference_error) == (None, None, None)
    same = compare_tasks([one], [one])[0]
    assert (same.difference, same.difference_error, same.p_value) == (0, 0, 1)
    # Many small gains and a few great losses: the sign alone would say the opposite of the mean.
    partial = {"f1": (0.51,) * 20 + (0.0,) * 5}, {"f1": (0.5,) * 20 + (1.0,) * 5}
    parts = [TaskScores("t", {"f1": (0.4, 0.1)}, rows, {}, ((0.0,),) * 25) for rows in partial]
    (found,) = compare_tasks(*([part] for part in parts))
    assert found.difference < 0
    assert found.p_value > 0.05
    assert exact_mcnemar(20, 5) < 0.01
    # Binomial tails worked out by hand: 2 * (1 + 10) / 2**10 and 2 / 2**6.
    assert exact_mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert exact_mcnemar(0, 6) == pytest.approx(1 / 32)
    with pytest.raises(ValueError, match="the same tasks"):
        compare_tasks([one], [])
    with pytest.raises(ValueError, match="the same rows, got 4 and 3"):
        compare_tasks([one], [TaskScores("t", other.metrics, {"acc": (0, 0, 1)}, {}, ((0.0,),) * 3)])


def test_perplexities_are_paired_by_their_rows():
    """Perplexities and bits of student and reference have a difference, its jackknife error, and an exchange test."""
    texts = [(-20.0, 10.0), (-33.0, 11.0), (-52.0, 20.0), (-18.0, 9.0)]
    worse = [(sum_ - 2.0 - place, weight) for place, (sum_, weight) in enumerate(texts)]

    def value(rows):
        return math.exp(-sum(one for one, _ in rows) / sum(weight for _, weight in rows))

    def scores(rows):
        sums = {"word_perplexity": tuple(rows), "bits_per_byte": tuple(rows)}
        bits = math.log2(value(rows))
        return TaskScores(
            "w", {"word_perplexity": (value(rows), None), "bits_per_byte": (bits, None)}, {}, sums, ((),) * 4
        )

    words, bits = compare_tasks([scores(worse)], [scores(texts)])
    assert words.difference == pytest.approx(words.student - words.reference)
    assert bits.difference == pytest.approx(bits.student - bits.reference)
    left = [value(worse[:n] + worse[n + 1 :]) - value(texts[:n] + texts[n + 1 :]) for n in range(4)]
    spread = math.sqrt(3 / 4 * sum((one - sum(left) / 4) ** 2 for one in left))
    assert words.difference_error == pytest.approx(spread)
    # Every row is worse: of the 16 ways to give the rows signs, all plus and all minus are as far from 0.
    assert words.p_value == bits.p_value == 2 / 16
    same = compare_tasks([scores(texts)], [scores(texts)])[0]
    assert (same.difference, same.difference_error, same.p_value) == (0, 0, 1)
    many = [(-1.0) ** place * (1 + place % 5) for place in range(40)]
    assert exchange_test(many) == exchange_test(many) > 0.5
    assert exchange_test([1.0] * 40) == 1 / 10_000


# Rows in the columns of the data sets on the Hub that the paper's tasks are made of.
HUB = {
    "allenai/ai2_arc": {
        "id": "1", "question": "What falls?", "choices": {"text": ["rain", "sky"], "label": ["A", "B"]},
        "answerKey": "A",
    },
    "baber/piqa": {"goal": "Open it.", "sol1": "Pull.", "sol2": "Sing.", "label": 0},
    "allenai/sciq": {
        "question": "What is wet?", "distractor1": "sand", "distractor2": "fire", "distractor3": "iron",
        "correct_answer": "rain", "support": "Rain is wet.",
    },
    "Rowan/hellaswag": {
        "ind": 1, "activity_label": "Rain", "ctx_a": "It rains.", "ctx_b": "he", "ctx": "It rains. He",
        "endings": ["goes in.", "is iron.", "is sand.", "eats it."], "label": "0",
    },
    "EleutherAI/lambada_openai": {"text": "It rains and he goes in"},
    "allenai/winogrande": {
        "sentence": "Rain met sand and _ was wet.", "option1": "sand", "option2": "iron", "answer": "1"
    },
    "aps/super_glue": {"question": "is rain wet", "passage": "Rain is wet.", "idx": 0, "label": 1},
    "EleutherAI/wikitext_document_level": {"page": "Rain is wet , and sand is not . It rains"},
}  # fmt: skip


@pytest.mark.slow
@harness
def test_tasks_of_the_paper_are_found_by_name(pair, monkeypatch):
    """Each of the paper's tasks is one of the harness's, asked by name; only its rows would come from the Hub."""
    asked = []

    def load(path, name=None, **options):
        asked.append(path)
        rows = [HUB[path]] * 3
        return DatasetDict({split: Dataset.from_list(rows) for split in ("train", "validation", "test")})

    monkeypatch.setattr(datasets, "load_dataset", load)
    model = AutoModelForCausalLM.from_pretrained(pair.student)
    found = {item.task: item for item in evaluate_tasks(model, pair.tokenizer, PAPER_TASKS, limit=2)}
    assert tuple(found) == PAPER_TASKS
    assert asked == list(HUB)
    choices = {name for name, item in found.items() if "acc" in item.metrics}
    assert choices == set(PAPER_TASKS) - {"wikitext"}
    for name, item in found.items():
        assert len(item.log_likelihoods) == 2
        assert set(item.rows) | set(item.likelihoods) == set(item.metrics), name


@pytest.mark.slow
@harness
def test_gsm8k_has_its_own_examples_and_two_results(pair, monkeypatch):
    """GSM8K is asked as it says, 5-shot, unless told otherwise, and has a result for each of its filters."""
    split = Dataset.from_list(REASONED)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *words, **options: DatasetDict({"train": split, "test": split})
    )
    model = AutoModelForCausalLM.from_pretrained(pair.student)
    for shots, asked in ((None, 5), (1, 1)):
        (found,) = evaluate_tasks(
            model, pair.tokenizer, ["gsm8k"], limit=2, settings=TaskSettings(shots, max_gen_toks=4)
        )
        assert set(found.rows) == {"exact_match,strict-match", "exact_match,flexible-extract"}
        assert (found.settings, found.cut) == (TaskSettings(asked, max_gen_toks=4), 2)


@harness
def test_rolling_log_likelihoods_are_paired(pair, tmp_path, monkeypatch):
    """WikiText's metrics are those of its rows' log-likelihoods, which a plain forward pass gives, and are paired."""
    pages = [HUB["EleutherAI/wikitext_document_level"]["page"], "He goes in , and it rains on"]
    rows = Dataset.from_list([{"page": page} for page in pages])
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *words, **options: DatasetDict(dict.fromkeys(("train", "validation", "test"), rows)),
    )
    student, reference = (
        AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (pair.student, pair.reference)
    )
    kept = {"cache_dir": tmp_path, "weights": "student"}
    (mine,) = evaluate_tasks(student, pair.tokenizer, ["wikitext"], **kept)
    assert evaluate_tasks(student, pair.tokenizer, ["wikitext"], **kept) == [mine]
    (theirs,) = evaluate_tasks(reference, pair.tokenizer, ["wikitext"])
    for name, count in (("word_perplexity", lambda page: len(page.split())), ("byte_perplexity", len)):
        assert [weight for _, weight in mine.likelihoods[name]] == [count(page) for page in pages]
        sums = [sum(column) for column in zip(*mine.likelihoods[name], strict=True)]
        assert mine.metrics[name][0] == pytest.approx(math.exp(-sums[0] / sums[1]))
    end = pair.tokenizer.eos_token
    for (found, _), page in zip(mine.likelihoods["byte_perplexity"], pages, strict=True):
        text = page.replace(" , ", ", ").replace(" . ", ". ")
        assert found == pytest.approx(log_likelihood(student, pair.tokenizer, end, text), abs=1e-3)
    for item in compare_tasks([mine], [theirs]):
        assert item.difference == pytest.approx(item.student - item.reference)
        assert item.difference_error > 0
        assert item.p_value in (0.5, 1.0)


def test_rows_of_no_kind_are_refused(tmp_path):
    """A file that is not there, rows of no kind, and rows of two kinds are refused."""
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.jsonl"):
        task_of_file(tmp_path / "none.jsonl")
    for rows in ([{"text": "x"}], [CHOICES[0], WORDS[0]]):
        with pytest.raises(
            ValueError,
            match=r"Every row of .* must have query, choices, gold or context, continuation or question, answer, and",
        ):
            task_of_file(write_rows(tmp_path / "rows.jsonl", rows))


def test_strings_may_hold_what_ends_a_line_elsewhere(tmp_path):
    """A row ends at a line feed, not at a separator of Unicode; what is no mapping, or no JSON, is named."""
    path = tmp_path / "rows.jsonl"
    row = {"question": "one\u2028two\x85", "answer": "3"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    (found,) = task_of_file(path)["custom_dataset"]()["test"]
    assert found == row
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="Every row of"):
        task_of_file(path)
    path.write_text(json.dumps(row) + "\n{'question'}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 is not valid JSON"):
        task_of_file(path)


def test_missing_harness_is_named(monkeypatch):
    """Without lm-eval the message says how to install it."""

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(tasks.metadata, "version", missing)
    with pytest.raises(ImportError, match=r"need lm-eval; install it with: pip install 'inheritune-hf\[eval\]'"):
        check_tasks(["piqa"], None, TaskSettings())
