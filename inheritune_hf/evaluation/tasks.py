"""Tasks through lm-evaluation-harness: local files or its own tasks, student and reference paired."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..foreign_text import parse_json
from ..records import Cache, digest_of, encode
from .facts import TaskComparison, TaskSettings
from .validation import preserve_state

FloatArray = NDArray[np.float64]

#: The tasks of arXiv 2404.08634, section 4, by the names that lm-evaluation-harness gives them.
PAPER_TASKS = ("arc_easy", "piqa", "sciq", "hellaswag", "lambada_openai", "winogrande", "boolq", "wikitext")

# On a CPU nothing runs out of memory early enough for the harness to find a batch size.
_CPU_BATCH = 8
_BOOTSTRAPS = 1000
# Columns of a file's rows by kind of task, what is asked first.
_COLUMNS = {
    "choice": ("query", "choices", "gold"),
    "continuation": ("context", "continuation"),
    "question": ("question", "answer"),
}
_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"
# Metrics of lm-evaluation-harness that are made of each row's log-likelihood and of its words or bytes.
_WEIGHTED = ("word_perplexity", "byte_perplexity", "bits_per_byte")
_ALL_SIGNS, _EXCHANGES = 12, 10_000


@dataclass(frozen=True)
class TaskScores:
    """One model's scores on one task; log-likelihoods are in nats."""

    task: str
    # Value and standard error by metric: `acc`, or, where a task extracts answers by several filters, `metric,filter`.
    metrics: Mapping[str, tuple[float, float | None]]
    rows: Mapping[str, tuple[float, ...]]  # each row's value of the metrics that are means over rows
    # Of the metrics that are perplexities or bits, each row's log-likelihood and its weight: 1, or its words or bytes.
    likelihoods: Mapping[str, tuple[tuple[float, float], ...]]
    log_likelihoods: tuple[tuple[float, ...], ...]  # of each row's answers
    settings: TaskSettings = field(default_factory=TaskSettings)  # how it was asked, with what the task itself sets
    cut: int = 0  # prompts whose beginning did not fit the context


def check_tasks(tasks: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: TaskSettings) -> None:
    """Raise before anything is measured if tasks cannot be asked: see `evaluate_tasks`, whose errors these are."""
    try:
        metadata.version("lm_eval")
    except metadata.PackageNotFoundError as error:
        raise ImportError("Tasks need lm-eval; install it with: pip install 'inheritune-hf[eval]'") from error
    if settings.apply_chat_template and not tokenizer.chat_template:
        raise ValueError(
            "apply_chat_template needs a tokenizer with a chat template, and this one has none: leave it out."
        )
    for task in tasks:
        if task.endswith(".jsonl"):
            task_of_file(task)


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    settings: TaskSettings | None = None,
    limit: int | None = None,
    batch_size: int | str = "auto",
    cache_dir: Path | None = None,
    weights: str = "",
) -> list[TaskScores]:
    """
    Evaluate a model on tasks.

    Random states and the model's mode are preserved. A task that was finished before, with the same weights, rows,
    settings and version of the harness, is read from `cache_dir`, so that an interrupted evaluation resumes.

    Args:
        tasks (sequence of `str`):
            Names of the harness's tasks (data from the Hub), or JSONL files as in `task_of_file`. A group of tasks
            gives several scores.
        settings (`TaskSettings`, *optional*): How to ask: examples, chat template, length of what is generated.
        limit (`int`, *optional*): Rows of each task, the first ones; all if not given.
        batch_size (`int` or `str`, *optional*, defaults to `"auto"`): Rows at a time.
        cache_dir (`Path`, *optional*): Folder of finished tasks; nothing is kept without it.
        weights (`str`, *optional*): Fingerprint of the model's weights; nothing is kept without it.

    Raises:
        ImportError: If lm-eval is not installed.
        FileNotFoundError: If the file of a task is missing.
        ValueError: If a file's rows are of no kind or too few for the examples, an answer does not fit the model's
            context, or there is no chat template.
    """
    settings = settings or TaskSettings()
    check_tasks(tasks, tokenizer, settings)
    asked = [encode(settings), tokenizer.chat_template if settings.apply_chat_template else None]
    cache = None if cache_dir is None or not weights else Cache(cache_dir, list[TaskScores])
    vocabulary, version = digest_of(tokenizer.get_vocab()), metadata.version("lm_eval")
    scores: list[TaskScores] = []
    for task in tasks:
        local = task_of_file(task) if task.endswith(".jsonl") else None
        content = hashlib.sha256(Path(task).read_bytes()).hexdigest() if local else ""
        facts = [weights, Path(task).name, limit, str(model.dtype), content, vocabulary, version, *asked]
        found = None if cache is None else cache.read(facts)
        if found is None:
            with preserve_state(model):
                found = _run(model, tokenizer, local or task, limit, batch_size, settings)
            if cache is not None:
                cache.write(facts, found)
        scores.extend(found)
    return scores


def task_of_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Return a task of the harness for a JSONL file.

    Its rows have `query`, `choices` and `gold` (asked as ARC and PIQA are, by `query` and "Answer:"), `context` and
    `continuation` (asked as LAMBADA is), or `question` and `answer`: the model generates to the end of the line, or of
    the paragraph where answers have several lines. Where every answer is a number, or ends in one after `####`, it is
    extracted from what is generated as in GSM8K: `strict-match` wants it in the form of the answers,
    `flexible-extract` takes the last one.

    Examples for few-shot are other rows of the file, never one that asks the same.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If rows are of no kind, or not all of one kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; give a task's JSONL file, or a task's name without .jsonl.")
    lines = path.read_text(encoding="utf-8").split("\n")  # strings in JSON may hold what else ends a line
    rows = [parse_json(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    kinds = {
        next((kind for kind, names in _COLUMNS.items() if isinstance(row, dict) and {*names} <= {*row}), None)
        for row in rows
    }
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        each = " or ".join(", ".join(names) for names in _COLUMNS.values())
        raise ValueError(f"Every row of {path} must have {each}, and all the same.")
    columns = _COLUMNS[kind]
    rows = [{name: str(row[name]) if name == "answer" else row[name] for name in columns} for row in rows]
    task: dict[str, Any] = {
        "task": path.stem,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "fewshot_split": "test",
        "fewshot_config": {"sampler": _sampler_of_others(path, columns[0])},
    }
    if kind == "question":
        return task | _question_task([row["answer"] for row in rows])
    if kind == "choice":
        return task | {
            "output_type": "multiple_choice",
            "doc_to_text": "{{query}}\nAnswer:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "metric_list": [_mean("acc"), _mean("acc_norm")],
        }
    return task | {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{' ' + continuation}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            _mean("acc"),
        ],
    }


def _mean(metric: str, **options: Any) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True, **options}


def _question_task(answers: Sequence[str]) -> dict[str, Any]:
    """Return how questions are asked whose answers are generated: words, or numbers, which are extracted twice."""
    numbers = all(re.fullmatch(rf"(?s)(.*####)?\s*{_NUMBER}\.?\s*", answer) for answer in answers)
    reasoned = any("####" in answer for answer in answers)
    # The place of the answer: name of the filter, pattern, and which of the matches.
    places = [("none", r"(?s)\A\s*(.*\S)", 0)]
    until = ["\n\n", "Question:"] if any("\n" in answer.strip() for answer in answers) else ["\n"]
    if numbers:
        strict = rf"####\s*({_NUMBER})" if reasoned else rf"\A\s*({_NUMBER})\.?\s*(?:\n|\Z)"
        places, until = [("strict-match", strict, 0), ("flexible-extract", rf"({_NUMBER})", -1)], ["Question:"]
    ignored = [",", r"\$", r"(?s).*####\s*", r"\.$"] if numbers else [r"\.$"]
    return {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": until, "do_sample": False},
        "filter_list": [
            {
                "name": name,
                "filter": [
                    {"function": "regex", "regex_pattern": pattern, "group_select": which},
                    {"function": "take_first"},
                ],
            }
            for name, pattern, which in places
        ],
        "metric_list": [_mean("exact_match", ignore_case=True, regexes_to_ignore=ignored)],
    }


def _sampler_of_others(path: Path, column: str) -> Any:
    """Return a sampler of the harness that draws examples from the rows that ask something else."""

    def sample(self: Any, n: int, eval_doc: Mapping[str, Any], **_: Any) -> list[Any]:
        others = [row for row in self.df if row[column].strip() != eval_doc[column].strip()]
        if n > len(others):
            raise ValueError(
                f"num_fewshot must be at most {len(others)}, the rows of {path} that ask something else; got {n}."
            )
        drawn: list[Any] = self.rnd.sample(others, n)
        return drawn

    return type("OtherRows", (import_module("lm_eval.api.samplers").ContextSampler,), {"sample": sample})


def compare_tasks(student: Sequence[TaskScores], reference: Sequence[TaskScores]) -> tuple[TaskComparison, ...]:
    """
    Pair two models' scores, row by row.

    Raises:
        ValueError: If the two were not evaluated on the same rows of the same tasks.
    """
    names = [[f"{item.task} ({item.settings})" for item in scores] for scores in (student, reference)]
    if names[0] != names[1]:
        raise ValueError(f"Student and reference must be evaluated on the same tasks, got {names[0]} and {names[1]}.")
    return tuple(
        _compare(one, other, key) for one, other in zip(student, reference, strict=True) for key in one.metrics
    )


def _compare(student: TaskScores, reference: TaskScores, key: str) -> TaskComparison:
    metric, _, extracted = key.partition(",")
    rows = len(student.log_likelihoods)
    if rows != len(reference.log_likelihoods):
        raise ValueError(
            f"{student.task}: student and reference must be evaluated on the same rows, got {rows} and "
            f"{len(reference.log_likelihoods)}."
        )
    difference = error = p_value = None
    if key in student.rows and key in reference.rows:
        gains = [one - other for one, other in zip(student.rows[key], reference.rows[key], strict=True)]
        difference = statistics.fmean(gains)
        error = statistics.stdev(gains) / math.sqrt(rows) if rows > 1 else None
        if {*gains} <= {-1.0, 0.0, 1.0}:
            p_value = exact_mcnemar(gains.count(1.0), gains.count(-1.0))
        else:
            p_value = exchange_test(gains)
    elif key in student.likelihoods and key in reference.likelihoods:
        pairs = np.asarray([student.likelihoods[key], reference.likelihoods[key]])
        difference, error, p_value = _pair_likelihoods(metric, pairs)
    mine, theirs = student.metrics[key], reference.metrics[key]
    paired = (difference, error, p_value)
    return TaskComparison(student.task, metric, rows, *mine, *theirs, *paired, extracted, student.settings, student.cut)


def _of_likelihoods(metric: str, sums: FloatArray, weights: FloatArray) -> FloatArray:
    """Return perplexities, or bits, of summed log-likelihoods and weights."""
    mean = -sums / weights
    found: FloatArray = mean / math.log(2) if metric == "bits_per_byte" else np.exp(mean)
    return found


def _pair_likelihoods(metric: str, pairs: FloatArray) -> tuple[float, float | None, float]:
    """Return difference, jackknife error and p of both models' rows, of shape `(2, rows, 2)`: likelihood and weight."""
    sums, weights = pairs[..., 0], pairs[..., 1]
    rows = sums.shape[1]
    whole = _of_likelihoods(metric, sums.sum(1), weights.sum(1))
    error = None
    if rows > 1:
        left = (total - each for total, each in ((sums.sum(1)[:, None], sums), (weights.sum(1)[:, None], weights)))
        without = _of_likelihoods(metric, *left)
        gains = without[0] - without[1]
        error = math.sqrt((rows - 1) / rows * float(((gains - gains.mean()) ** 2).sum()))
    return float(whole[0] - whole[1]), error, exchange_test((sums[0] - sums[1]).tolist())


def exchange_test(differences: Sequence[float]) -> float:
    """
    Return the two-sided p of the sum of `differences` under random signs.

    All signs are tried for up to 12 rows; with more, 10,000 seeded draws. On the 5,153 rows of LAMBADA that takes 2 s,
    where `scipy.stats.permutation_test` takes 57 (one busy core).
    """
    values, rows = np.asarray(differences, dtype=np.float64), len(differences)
    if rows <= _ALL_SIGNS:
        sums = (1.0 - 2.0 * ((np.arange(2**rows)[:, None] >> np.arange(rows)) & 1)) @ values
    else:
        generator = np.random.default_rng(0)
        # The signs as they are come first, so that p is never 0.
        drawn = [float((1.0 - 2.0 * generator.integers(0, 2, rows)) @ values) for _ in range(_EXCHANGES - 1)]
        sums = np.asarray([values.sum(), *drawn])
    return float(np.mean(np.abs(sums) >= abs(values.sum()) * (1 - 1e-12)))


def exact_mcnemar(better: int, worse: int) -> float:
    """Return the two-sided p of McNemar's exact test on the rows that differ."""
    from scipy.stats import binomtest  # takes a second or more to import

    return float(binomtest(better, better + worse).pvalue) if better != worse else 1.0


def _run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str | dict[str, Any],
    limit: int | None,
    batch_size: int | str,
    settings: TaskSettings,
) -> list[TaskScores]:
    evaluator: Any = import_module("lm_eval.evaluator")
    wrapped: Any = import_module("lm_eval.models.huggingface").HFLM
    if batch_size == "auto" and model.device.type == "cpu":
        batch_size = _CPU_BATCH
    model.train(False)
    length = {} if settings.max_gen_toks is None else {"max_gen_toks": settings.max_gen_toks}
    lm = wrapped(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    try:
        found = evaluator.simple_evaluate(
            model=lm,
            tasks=[task],
            num_fewshot=settings.num_fewshot,
            apply_chat_template=settings.apply_chat_template,
            gen_kwargs=length or None,
            limit=limit,
            bootstrap_iters=_BOOTSTRAPS,
            task_manager=_task_manager(isinstance(task, str)),
        )
    except AssertionError as error:
        name, why = task if isinstance(task, str) else task["task"], f" ({error})" if error.args else ""
        raise ValueError(
            f"lm-eval cannot ask this model {name}: an answer is longer than the model's context, or the task does not "
            f"fit it; lower max_gen_toks if answers are generated, or leave it out{why}."
        ) from error
    return [_scores(name, found, settings, lm) for name in found["samples"]]


@functools.cache
def _task_manager(named: bool) -> Any:
    """Return the harness's task manager; listing the thousands of tasks that it ships takes seconds."""
    return import_module("lm_eval.tasks").TaskManager(include_defaults=named)


def _scores(name: str, found: Mapping[str, Any], settings: TaskSettings, lm: Any) -> TaskScores:
    samples: dict[str, list[Mapping[str, Any]]] = {}  # one row for each filter and document
    for row in sorted(found["samples"][name], key=lambda row: row["doc_id"]):
        samples.setdefault(row["filter"], []).append(row)
    results, config = found["results"][name], found["configs"][name]
    metrics: dict[str, tuple[float, float | None]] = {}
    rows: dict[str, tuple[float, ...]] = {}
    likelihoods: dict[str, tuple[tuple[float, float], ...]] = {}
    for label, value in results.items():
        metric, _, kind = label.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        key = metric if kind == "none" else label
        error = results.get(f"{metric}_stderr,{kind}")
        known = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
        metrics[key] = (float(value), known)
        values = [row[metric] for row in samples.get(kind, ()) if metric in row]
        if not values or len(values) < len(samples[kind]):
            continue
        if metric in (*_WEIGHTED, "perplexity"):
            pairs = (item if isinstance(item, tuple | list) else (item, 1.0) for item in values)
            likelihoods[key] = tuple((float(one), float(weight)) for one, weight in pairs)
        elif all(isinstance(item, int | float) for item in values):
            numbers = tuple(float(item) for item in values)
            if math.isclose(statistics.fmean(numbers), value, rel_tol=1e-6, abs_tol=1e-9):
                rows[key] = numbers
    generated = config["output_type"] == "generate_until"
    rolling = config["output_type"] == "loglikelihood_rolling"  # has no prompt that examples could be in
    length = int((config.get("generation_kwargs") or {}).get("max_gen_toks", lm.max_gen_toks)) if generated else None
    first = next(iter(samples.values()), [])
    return TaskScores(
        task=name,
        metrics=metrics,
        rows=rows,
        likelihoods=likelihoods,
        log_likelihoods=tuple(
            tuple(float(answer[0][0]) for answer in row["resps"] if isinstance(answer[0], tuple | list))
            for row in first
        ),
        settings=replace(settings, num_fewshot=0 if rolling else found["n-shot"][name], max_gen_toks=length),
        cut=0 if rolling else sum(any(_is_cut(lm, length, *asked) for asked in row["arguments"]) for row in first),
    )


def _is_cut(lm: Any, length: int | None, prompt: str, answer: Any) -> bool:
    """Return whether the harness cuts off the beginning of a prompt: it and its answer have to fit the context."""
    if length is not None:
        return len(lm.tok_encode(prompt)) > int(lm.max_length) - length
    # The answer's last token is predicted and not read.
    return len(lm.tok_encode(prompt + answer)) > int(lm.max_length) + 1
