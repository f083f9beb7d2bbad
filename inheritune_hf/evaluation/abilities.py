"""Abilities of a language model, and which of them an evaluation says nothing about: loss hides what pruning breaks."""

from __future__ import annotations

import re
from collections.abc import Iterator

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
    measured = {ability for item in (found.tasks if found else ()) for ability in _abilities_of(item)}
    missing = [ability for ability in ABILITIES if ability not in measured]
    return f"Not measured: {', '.join(missing)}." if missing else ""


def _abilities_of(item: TaskComparison) -> Iterator[str]:
    named = [ability for ability, names in ABILITIES.items() if names and re.search(names, item.task.lower())]
    yield from named
    if named:
        return
    if "perplexity" in item.metric or item.metric.startswith("bits_per"):
        yield _READING
    elif item.metric.startswith(("acc", "mcc")):
        yield _CHOICE
    else:
        yield _ARITHMETIC if item.filter in {"strict-match", "flexible-extract"} else _GENERATION
