"""Zero-shot tasks through lm-evaluation-harness: local files or its own tasks, student and reference paired."""

from __future__ import annotations

import dataclasses
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

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..records import write_json
from .isolation import undisturbed

#: The tasks of arXiv 2404.08634, section 4, by the names that lm-evaluation-harness gives them.
PAPER_TASKS = ("arc_easy", "piqa", "sciq", "hellaswag", "lambada_openai", "winogrande", "boolq", "wikitext")

# On a CPU nothing runs out of memory early enough for the harness to find a batch size by itself.
_CPU_BATCH = 8
_BOOTSTRAPS = 1000
_CHOICE = {"query", "choices", "gold"}
_CONTINUATION = {"context", "continuation"}


@dataclass(frozen=True)
class TaskScores:
    """
    One model on one task.

    Args:
        task (`str`): Name.
        metrics (`dict[str, tuple[float, float | None]]`): Value and standard error of each metric.
        rows (`dict[str, tuple[float, ...]]`): Each row's value of the metrics that are means over rows.
        log_likelihoods (`tuple[tuple[float, ...], ...]`): Of each row's answers, in nats.
    """

    task: str
    metrics: Mapping[str, tuple[float, float | None]]
    rows: Mapping[str, tuple[float, ...]]
    log_likelihoods: tuple[tuple[float, ...], ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskScores:
        """Rebuild scores from the dictionary that they were turned into."""
        return cls(
            task=values["task"],
            metrics={name: (value[0], value[1]) for name, value in values["metrics"].items()},
            rows={name: tuple(value) for name, value in values["rows"].items()},
            log_likelihoods=tuple(tuple(row) for row in values["log_likelihoods"]),
        )


@dataclass(frozen=True)
class TaskComparison:
    """
    Student and reference by one metric of one task.

    Args:
        task (`str`): Name.
        metric (`str`): Name of the metric.
        rows (`int`): Rows of the task.
        student (`float`): The student's value.
        student_error (`float`, *optional*): Its standard error.
        reference (`float`): The reference's value.
        reference_error (`float`, *optional*): Its standard error.
        difference (`float`, *optional*): Mean of the rows' differences; None where the metric is no mean over rows.
        difference_error (`float`, *optional*): Standard error of that mean.
        p_value (`float`, *optional*): Two-sided, of the exact McNemar test on the rows that differ.
    """

    task: str
    metric: str
    rows: int
    student: float
    student_error: float | None
    reference: float
    reference_error: float | None
    difference: float | None
    difference_error: float | None
    p_value: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)


def require_harness() -> None:
    """
    Check that lm-evaluation-harness is there.

    Raises:
        ImportError: If it is not; the message says how to install it.
    """
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

    Random states and the model's mode are left as they were. A task that was finished before, with the same weights,
    rows and version of the harness, is read from `cache_dir`: an interrupted evaluation goes on.

    Args:
        model (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        tasks (sequence of `str`):
            Names of the harness's tasks (data from the Hub), or JSONL files of rows with `query`, `choices` and `gold`,
            or with `context` and `continuation`.
        limit (`int`, *optional*): Rows of each task, the first ones; all if not given.
        batch_size (`int` or `str`, *optional*, defaults to `"auto"`): Rows at a time.
        cache_dir (`Path`, *optional*): Folder of finished tasks; nothing is kept if not given.
        weights (`str`, *optional*): Fingerprint of the model's weights; needed to keep anything.

    Returns:
        `list[TaskScores]`: In the order of the tasks; a group of tasks gives several.

    Raises:
        ImportError: If lm-eval is not installed.
        ValueError: If a file's rows are of neither kind, or an answer is longer than the model's context.
    """
    require_harness()
    scores: list[TaskScores] = []
    for task in tasks:
        local = task_of_file(task) if task.endswith(".jsonl") else None
        path = None
        if cache_dir is not None and weights:
            content = Path(task).read_bytes() if local else b""
            vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
            texts = [hashlib.sha256(text).hexdigest() for text in (content, vocabulary.encode())]
            key = [weights, Path(task).name, limit, str(model.dtype), metadata.version("lm_eval"), *texts]
            path = cache_dir / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.json"
        if path is not None and path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))["scores"]
            scores.extend(TaskScores.from_dict(item) for item in kept)
            continue
        with undisturbed(model):
            found = _run(model, tokenizer, local or task, limit, batch_size)
        if path is not None:
            write_json(path, {"scores": [dataclasses.asdict(item) for item in found]})
        scores.extend(found)
    return scores


def task_of_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Return a task of the harness for a JSONL file.

    Args:
        path (`str` or `os.PathLike`): File; each row has `query`, `choices` and `gold` (asked as ARC and PIQA are, by
            `query` and "Answer:"), or `context` and `continuation` (asked as LAMBADA is).

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
    mine, theirs = student.metrics[metric], reference.metrics[metric]
    return TaskComparison(student.task, metric, rows, *mine, *theirs, difference, error, p_value)


def exact_mcnemar(better: int, worse: int) -> float:
    """Return how probable a split of the differing rows at least this uneven is if both models were equally good."""
    rows = better + worse
    tail = sum(math.comb(rows, count) for count in range(min(better, worse) + 1))
    return min(1.0, float(2 * tail / 2**rows))


def _run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str | dict[str, Any],
    limit: int | None,
    batch_size: int | str,
) -> list[TaskScores]:
    evaluator: Any = import_module("lm_eval.evaluator")
    manager: Any = import_module("lm_eval.tasks").TaskManager
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
            # Looking through the thousands of tasks that come with the harness takes seconds.
            task_manager=manager(include_defaults=isinstance(task, str)),
        )
    except AssertionError as error:
        name = task if isinstance(task, str) else task["task"]
        raise ValueError(
            f"lm-eval cannot ask this model {name}: an answer is longer than the model's context, or the task does not "
            f"fit it; leave the task out{f' ({error})' if str(error) else ''}."
        ) from error
    return [_scores(name, found["results"][name], rows) for name, rows in found["samples"].items()]


def _scores(name: str, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> TaskScores:
    samples = sorted(samples, key=lambda row: row["doc_id"])
    metrics: dict[str, tuple[float, float | None]] = {}
    for key, value in results.items():
        metric, _, kind = key.partition(",")
        if kind and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = results.get(f"{metric}_stderr,{kind}")
            metrics[metric] = (float(value), float(error) if isinstance(error, int | float) else None)
    means = [metric for metric in metrics if metric.startswith("acc")]
    return TaskScores(
        task=name,
        metrics=metrics,
        rows={metric: tuple(float(row[metric]) for row in samples) for metric in means},
        log_likelihoods=tuple(
            tuple(float(answer[0][0]) for answer in row["resps"] if isinstance(answer[0], tuple | list))
            for row in samples
        ),
    )
