"""Zero-shot tasks through lm-evaluation-harness: local files or its own tasks, student and reference paired."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..records import Cache, digest_of
from .facts import TaskComparison
from .validation import preserve_state

FloatArray = NDArray[np.float64]

#: The tasks of arXiv 2404.08634, section 4, by the names that lm-evaluation-harness gives them.
PAPER_TASKS = ("arc_easy", "piqa", "sciq", "hellaswag", "lambada_openai", "winogrande", "boolq", "wikitext")

# On a CPU nothing runs out of memory early enough for the harness to find a batch size.
_CPU_BATCH = 8
_BOOTSTRAPS = 1000
_CHOICE = {"query", "choices", "gold"}
# Metrics of lm-evaluation-harness that are made of each row's log-likelihood and of its words or bytes.
_WEIGHTED = ("word_perplexity", "byte_perplexity", "bits_per_byte")
_ALL_SIGNS, _EXCHANGES = 12, 10_000
_CONTINUATION = {"context", "continuation"}


@dataclass(frozen=True)
class TaskScores:
    """One model's scores on one task; log-likelihoods are in nats."""

    task: str
    metrics: Mapping[str, tuple[float, float | None]]  # value and standard error
    rows: Mapping[str, tuple[float, ...]]  # each row's value of the metrics that are means over rows
    # Of the metrics that are perplexities or bits, each row's log-likelihood and its weight: 1, or its words or bytes.
    likelihoods: Mapping[str, tuple[tuple[float, float], ...]]
    log_likelihoods: tuple[tuple[float, ...], ...]  # of each row's answers


def require_harness() -> None:
    """Raise an `ImportError` that says how to install lm-evaluation-harness if it is not installed."""
    try:
        metadata.version("lm_eval")
    except metadata.PackageNotFoundError as error:
        raise ImportError("Zero-shot tasks need lm-eval; install it with: pip install 'inheritune-hf[eval]'") from error


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int | str = "auto",
    cache_dir: Path | None = None,
    weights: str = "",
) -> list[TaskScores]:
    """
    Evaluate a model on zero-shot tasks.

    Random states and the model's mode are preserved. A task that was finished before, with the same weights, rows and
    version of the harness, is read from `cache_dir`, so that an interrupted evaluation resumes.

    Args:
        model (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        tasks (sequence of `str`):
            Names of the harness's tasks (data from the Hub), or JSONL files as in `task_of_file`. A group of tasks
            gives several scores.
        limit (`int`, *optional*): Rows of each task, the first ones; all if not given.
        batch_size (`int` or `str`, *optional*, defaults to `"auto"`): Rows at a time.
        cache_dir (`Path`, *optional*): Folder of finished tasks; nothing is kept without it.
        weights (`str`, *optional*): Fingerprint of the model's weights; nothing is kept without it.

    Raises:
        ImportError: If lm-eval is not installed.
        ValueError: If a file's rows are of neither kind, or an answer is longer than the model's context.
    """
    require_harness()
    cache = None if cache_dir is None or not weights else Cache(cache_dir, list[TaskScores])
    vocabulary = digest_of(tokenizer.get_vocab())
    scores: list[TaskScores] = []
    for task in tasks:
        local = task_of_file(task) if task.endswith(".jsonl") else None
        content = hashlib.sha256(Path(task).read_bytes()).hexdigest() if local else ""
        facts = [weights, Path(task).name, limit, str(model.dtype), content, vocabulary, metadata.version("lm_eval")]
        found = None if cache is None else cache.read(facts)
        if found is None:
            with preserve_state(model):
                found = _run(model, tokenizer, local or task, limit, batch_size)
            if cache is not None:
                cache.write(facts, found)
        scores.extend(found)
    return scores


def task_of_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Return a task of the harness for a JSONL file.

    Its rows have `query`, `choices` and `gold` (asked as ARC and PIQA are, by `query` and "Answer:"), or `context` and
    `continuation` (asked as LAMBADA is).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If rows are of neither kind, or not all of one kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; give a task's JSONL file, or a task's name without .jsonl.")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    kinds = {
        "choice" if row.keys() >= _CHOICE else "continuation" if row.keys() >= _CONTINUATION else None for row in rows
    }
    if len(kinds) != 1 or None in kinds:
        raise ValueError(
            f"Every row of {path} must have {', '.join(sorted(_CHOICE))}, or {' and '.join(sorted(_CONTINUATION))}."
        )
    task: dict[str, Any] = {
        "task": path.stem,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "num_fewshot": 0,
    }
    if kinds == {"choice"}:
        metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
        return task | {
            "output_type": "multiple_choice",
            "doc_to_text": "{{query}}\nAnswer:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "metric_list": metrics,
        }
    return task | {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{' ' + continuation}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    }


def compare_tasks(student: Sequence[TaskScores], reference: Sequence[TaskScores]) -> tuple[TaskComparison, ...]:
    """
    Pair two models' scores, row by row.

    Raises:
        ValueError: If the two were not evaluated on the same rows of the same tasks.
    """
    names = [[item.task for item in scores] for scores in (student, reference)]
    if names[0] != names[1]:
        raise ValueError(f"Student and reference must be evaluated on the same tasks, got {names[0]} and {names[1]}.")
    return tuple(
        _compare(one, other, metric) for one, other in zip(student, reference, strict=True) for metric in one.metrics
    )


def _compare(student: TaskScores, reference: TaskScores, metric: str) -> TaskComparison:
    rows = len(student.log_likelihoods)
    if rows != len(reference.log_likelihoods):
        raise ValueError(
            f"{student.task}: student and reference must be evaluated on the same rows, got {rows} and "
            f"{len(reference.log_likelihoods)}."
        )
    difference = error = p_value = None
    if metric in student.rows and metric in reference.rows:
        gains = [one - other for one, other in zip(student.rows[metric], reference.rows[metric], strict=True)]
        difference = statistics.fmean(gains)
        error = statistics.stdev(gains) / math.sqrt(rows) if rows > 1 else None
        p_value = exact_mcnemar(sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains))
    elif metric in student.likelihoods and metric in reference.likelihoods:
        pairs = np.asarray([student.likelihoods[metric], reference.likelihoods[metric]])
        difference, error, p_value = _pair_likelihoods(metric, pairs)
    mine, theirs = student.metrics[metric], reference.metrics[metric]
    return TaskComparison(student.task, metric, rows, *mine, *theirs, difference, error, p_value)


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
) -> list[TaskScores]:
    evaluator: Any = import_module("lm_eval.evaluator")
    wrapped: Any = import_module("lm_eval.models.huggingface").HFLM
    if batch_size == "auto" and model.device.type == "cpu":
        batch_size = _CPU_BATCH
    model.train(False)
    try:
        found = evaluator.simple_evaluate(
            model=wrapped(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=[task],
            limit=limit,
            bootstrap_iters=_BOOTSTRAPS,
            task_manager=_task_manager(isinstance(task, str)),
        )
    except AssertionError as error:
        name = task if isinstance(task, str) else task["task"]
        raise ValueError(
            f"lm-eval cannot ask this model {name}: an answer is longer than the model's context, or the task does not "
            f"fit it; leave the task out{f' ({error})' if str(error) else ''}."
        ) from error
    return [_scores(name, found["results"][name], rows) for name, rows in found["samples"].items()]


@functools.cache
def _task_manager(named: bool) -> Any:
    """Return the harness's task manager; listing the thousands of tasks that it ships takes seconds."""
    return import_module("lm_eval.tasks").TaskManager(include_defaults=named)


def _scores(name: str, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> TaskScores:
    samples = sorted(samples, key=lambda row: row["doc_id"])
    metrics: dict[str, tuple[float, float | None]] = {}
    for key, value in results.items():
        metric, _, kind = key.partition(",")
        if kind and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = results.get(f"{metric}_stderr,{kind}")
            known = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
            metrics[metric] = (float(value), known)
    rows: dict[str, tuple[float, ...]] = {}
    likelihoods: dict[str, tuple[tuple[float, float], ...]] = {}
    for metric, (value, _) in metrics.items():
        found = [row[metric] for row in samples if metric in row]
        if len(found) < len(samples):
            continue
        if metric in (*_WEIGHTED, "perplexity"):
            pairs = (item if isinstance(item, tuple | list) else (item, 1.0) for item in found)
            likelihoods[metric] = tuple((float(one), float(weight)) for one, weight in pairs)
        elif all(isinstance(item, int | float) for item in found):
            numbers = tuple(float(item) for item in found)
            if math.isclose(statistics.fmean(numbers), value, rel_tol=1e-6, abs_tol=1e-9):
                rows[metric] = numbers
    return TaskScores(
        task=name,
        metrics=metrics,
        rows=rows,
        likelihoods=likelihoods,
        log_likelihoods=tuple(
            tuple(float(answer[0][0]) for answer in row["resps"] if isinstance(answer[0], tuple | list))
            for row in samples
        ),
    )
