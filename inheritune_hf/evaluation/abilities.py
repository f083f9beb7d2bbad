"""Abilities of a language model, and which of them an evaluation says nothing about: loss hides what pruning breaks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from .facts import StudentEvaluation, TaskComparison

#: Abilities that a student may have lost, and the tasks of each by name; of the first three most are told by metric.
ABILITIES = {
    "knowledge (multiple choice)": "",
    "reading and continuation": "",
    "generation and following instructions": r"ifeval|alpaca|mt_bench",
    "arithmetic and reasoning": r"gsm|math|arithmetic|asdiv|svamp|bbh|aqua|logiqa",
    "long context": r"longbench|ruler|niah|babilong|scrolls|passkey",
    "code": r"humaneval|mbpp|code",
    "languages other than English": r"xnli|xcopa|xstory|xwino|belebele|mgsm|multilingual|global_mmlu|flores|wmt",
    "safety": r"safety|toxi|truthfulqa|bbq|crows_pairs|harm|wmdp",
}
_CHOICE, _READING, _GENERATION, _ARITHMETIC = list(ABILITIES)[:4]


def unmeasured_abilities(found: StudentEvaluation | None) -> str:
    """Return the abilities that no task of an evaluation is about, as a sentence; empty if there are none."""
    tasks: dict[str, list[TaskComparison]] = {}
    for item in found.tasks if found else ():
        tasks.setdefault(item.task, []).append(item)
    measured = {ability for name, items in tasks.items() for ability in _abilities_of(name, items)}
    missing = [ability for ability in ABILITIES if ability not in measured]
    return f"Not measured: {', '.join(missing)}." if missing else ""


def _abilities_of(task: str, items: Sequence[TaskComparison]) -> Iterator[str]:
    named = [ability for ability, names in ABILITIES.items() if names and re.search(names, task.lower())]
    metrics = [item.metric for item in items]
    if named:
        yield from named
    elif any("perplexity" in metric or metric.startswith("bits_per") for metric in metrics):
        yield _READING  # its accuracy is that of the next words, none of a choice
    elif any(metric.startswith(("acc", "mcc")) for metric in metrics):
        yield _CHOICE
    else:
        answers = any(item.filter in {"strict-match", "flexible-extract"} for item in items)
        yield _ARITHMETIC if answers else _GENERATION
