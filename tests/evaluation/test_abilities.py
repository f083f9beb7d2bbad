"""What an evaluation says nothing about."""

import pytest
from recorded_runs import full_evaluation

from inheritune_hf.evaluation.abilities import ABILITIES, unmeasured_abilities
from inheritune_hf.evaluation.facts import TaskComparison


def task(name, metric, extracted=""):
    return TaskComparison(name, metric, 10, 0.5, 0.1, 0.5, 0.1, 0.0, 0.1, 1.0, extracted)


@pytest.mark.parametrize(
    ("measured", "ability"),
    [
        (task("piqa", "acc_norm"), "knowledge (multiple choice)"),
        (task("my-choices", "acc"), "knowledge (multiple choice)"),
        (task("wikitext", "bits_per_byte"), "reading and continuation"),
        (task("towns", "exact_match"), "generation and following instructions"),
        (task("ifeval", "inst_level_strict_acc"), "generation and following instructions"),
        (task("gsm8k", "exact_match", "strict-match"), "arithmetic and reasoning"),
        (task("sums", "exact_match", "flexible-extract"), "arithmetic and reasoning"),
        (task("niah_single_1", "4096"), "long context"),
        (task("humaneval", "pass@1"), "code"),
        (task("xnli_de", "acc"), "languages other than English"),
        (task("toxigen", "acc"), "safety"),
    ],
    ids=lambda item: item.task if isinstance(item, TaskComparison) else "",
)
def test_a_task_is_about_an_ability(measured, ability):
    """Tasks of each ability are known by name, and others by metric; what is left is said not to be measured."""
    others = [name for name in ABILITIES if name != ability]
    assert unmeasured_abilities(full_evaluation(tasks=(measured,))) == f"Not measured: {', '.join(others)}."


def test_next_words_are_no_choice():
    """The accuracy of a task that has a perplexity too is that of next words: it says nothing of multiple choice."""
    tasks = (task("lambada_openai", "perplexity"), task("lambada_openai", "acc"))
    assert unmeasured_abilities(full_evaluation(tasks=tasks)).startswith("Not measured: knowledge (multiple choice), ")


def test_without_tasks_nothing_was_measured():
    """Without an evaluation, or with losses alone, every ability is named; with all of them nothing is said."""
    everything = f"Not measured: {', '.join(ABILITIES)}."
    assert unmeasured_abilities(None) == unmeasured_abilities(full_evaluation(tasks=())) == everything
    names = ("piqa", "ifeval", "gsm8k", "ruler_vt", "mbpp", "xnli_de", "bbq")
    tasks = (*(task(name, "acc") for name in names), task("wikitext", "word_perplexity"))
    assert unmeasured_abilities(full_evaluation(tasks=tasks)) == ""
