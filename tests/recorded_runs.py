"""Records of runs that matched, missed or were interrupted, and an evaluation with everything in it."""

from dataclasses import replace

from inheritune_hf.evaluation.facts import (
    CorpusComparison,
    Draft,
    Efficiency,
    Laziness,
    LazinessComparison,
    Metrics,
    Sample,
    Size,
    Speed,
    Spread,
    StudentEvaluation,
    TaskComparison,
    TaskSettings,
)
from inheritune_hf.experiments.results import Cell, ComparisonRecord
from inheritune_hf.publishing import ResultRow
from inheritune_hf.records import Lineage, Match, Round, RunRecord, Validation, decode, encode, write_json

MISS = Match(False, False, 0.0267, 0.0140, 0.0404, 48)
HIT = Match(True, True, -0.0094, -0.0213, 0.0027, 48)
FEW = Match(True, True, -0.02, None, None, 4, "no interval: 4 documents, 30 are needed; means are compared")
ROUNDS = (
    Round(1, (0, 1, 2, 3), 0, 120, 245_760, 1.2e12, 60.0, 5.2219, 5.1951, MISS),
    Round(2, (0, 1, 2, 3, 4, 5), 120, 240, 245_760, 1.7e12, 70.0, 5.1857, 5.1951, HIT),
)
RECIPE = {"keep_layers": "half", "target": "reference", "tolerance": 0.01, "confidence": 0.95, "steps_per_round": 120}
TRAINING = {"learning_rate": 0.002, "per_device_train_batch_size": 16, "world_size": 2, "seed": 42}
LINEAGE = Lineage("some/reference", "0123abc", 8, (0, 1, 2, 3, 4, 5), {"torch": "2.13.0", "transformers": "5.23.0"})
SET = {"documents": 48, "tokens": 42_933, "sequences": 341, "fingerprint": "ea33e9b29185b614" * 4}
DATA = {
    "source": "stories.jsonl",
    "block_size": 128,
    "sources": [],
    **dict.fromkeys(("train", "selection", "test"), SET),
}
CURVES = {
    "student": [[60, 5.3476], [120, 5.2219], [180, 5.3129], [240, 5.1857]],
    "random weights": [[60, 6.9123], [120, 6.1], [180, 5.81], [240, 5.7338]],
    "reference, trained further": [[60, 5.3112], [120, 5.17], [180, 5.07], [240, 5.0022]],
}
RESULTS = [
    ResultRow("reference", 8, 2_127_104, 500, 1_024_000, 5.1484),
    ResultRow("student", 6, 1_730_560, 240, 491_520, 5.1425, HIT),
    ResultRow("random weights", 6, 1_730_560, 240, 491_520, 5.7287, replace(MISS, difference=0.5803)),
    ResultRow("reference, trained further", 8, 2_127_104, 240, 491_520, 4.9745, FEW),
]


def write_run(folder, **changes):
    """Write a finished run with a second round that matched, or what `changes` say."""
    record = RunRecord(RECIPE, LINEAGE, ROUNDS, "matched", 5.1951, TRAINING)
    values = {
        **encode(record),
        "results": encode(RESULTS),
        "curves": CURVES,
        "data": DATA,
        "seed": 42,
        **changes,
    }
    write_json(folder / "rounds.json", values)
    return folder


#: Loss of each arm: (arm, seed, test loss, layers, outcome).
CELLS = (
    ("inheritune", 1, 5.12, 4, "matched"),
    ("inheritune", 2, 5.14, 6, "matched"),
    ("random", 1, 5.71, 4, None),
    ("random", 2, 5.74, 6, None),
    ("last/moved-scale", 1, 5.43, 4, None),
    ("last/moved-scale", 2, 5.41, 6, None),
    ("continued", 1, 4.97, 8, None),
    ("continued", 2, 4.99, 8, None),
)


def validation(loss, documents=40):
    """A validation of that loss, whose documents differ a little."""
    losses = [100 * loss + (place % 5 - 2) for place in range(documents)]
    return Validation(tuple(range(documents)), tuple(losses), (100,) * documents, (20,) * documents)


def cell(arm, seed, loss, layers, outcome):
    points = [(tokens, 1e6 * tokens, loss + 0.3 - tokens / 1e6) for tokens in (100_000, 200_000, 300_000)]
    return Cell(
        arm=arm, seed=seed, learning_rate=0.002, layers=layers, parameters=220_000 * layers, steps=240, tokens=300_000,
        flops=3e11, epochs=0.9, seconds=125.0, outcome=outcome, curve=tuple(points), reference_loss=5.19,
        selection=validation(loss), folder=f"{arm.replace('/', '-')}-seed{seed}-lr0.002", identity={}, lazy_layers=1,
        test=validation(loss),
    )  # fmt: skip


def comparison_facts(**changes):
    """The records of a comparison of four arms with two seeds, or what `changes` say."""
    reference = {
        "name": "some/reference", "layers": 8, "parameters": 2_127_104, "steps": 500, "tokens": 1_024_000,
        "flops": 1.2e12, "selection_loss": 5.19, "lazy_layers": 2, "test": encode(validation(5.15)),
    }  # fmt: skip
    arms = list(dict.fromkeys(arm for arm, *_ in CELLS))
    compare = {"arms": arms[:3], "controls": True, "seeds": [1, 2], "learning_rates": [1.0, 2.0], "budget": "tokens"}
    facts = {
        "compare": compare,
        "recipe": RECIPE,
        "settings": {"reference": "some/reference", "train_files": ["a.txt"], **RECIPE, **TRAINING, **compare},
        "versions": {"torch": "2.13.0"},
        "reference": reference,
        "data": DATA,
        "sweep": {arm: {"0.002": 5.3, "0.004": 5.4} for arm in arms},
        "left_out": {"stacking": "it doubles a number of layers, and 5 is odd"},
        "cells": [encode(cell(*values)) for values in CELLS],
    }
    return {**facts, **changes}


def comparison_record(**changes):
    return decode(ComparisonRecord, comparison_facts(**changes), "comparison.json")


def write_comparison(folder, **changes):
    write_json(folder / "comparison.json", comparison_facts(**changes))
    return folder


def spread(value):
    return Spread(value, 0.9 * value, 1.25 * value, 5)


def full_evaluation(**changes):
    corpora = (
        CorpusComparison(
            "test.jsonl", "f" * 64, 48, 42_933, Metrics(5.1425, 171.14, 0.2113), Metrics(5.1484, 172.15, 0.2098), HIT,
            0.0015, -0.0007, 0.0036,
        ),
        CorpusComparison(
            "other.txt", "e" * 64, 33, 9_120, Metrics(7.3021, 1483.4, 0.0711), Metrics(7.2544, 1414.3, 0.0735), MISS,
            -0.0024, -0.0051, 0.0002,
        ),
    )  # fmt: skip
    sizes = (
        Size(6, 1_730_560, 6_930_120, 21_300_000, 3_555_328.0),
        Size(8, 2_127_104, 8_517_320, 25_900_000, 4_390_912.0),
    )
    speeds = tuple(
        Speed("sdpa", quantity, batch, spread(mine), spread(theirs), spread(gain))
        for quantity, batch, mine, theirs, gain in (
            ("time to first token", 1, 0.0081, 0.0104, 1.284),
            ("tokens per second", 1, 151.3, 118.9, 1.272),
            ("tokens per second", 8, 902.4, 688.1, 1.311),
        )
    )
    lazy = LazinessComparison(
        2, 8, 0, 6, 0.5, "The student has fewer lazy layers than its reference: 0 of 6 against 2 of 8."
    )
    values = {
        "student": "run",
        "reference": "some/reference",
        "fingerprints": {"student": "a", "reference": "b"},
        "layers": {"student": 6, "reference": 8},
        "tolerance": 0.01,
        "confidence": 0.95,
        "corpora": corpora,
        "own_test_set": True,
        "efficiency": Efficiency("CPU, 2 threads", "float32", 64, 32, *sizes, speeds),
        "drafts": (
            Draft("greedy", 4, 4, 48, 190, 118, spread(115.2), spread(131.7), spread(1.143), True),
            Draft("sampling", 4, 4, 48, 310, 61, spread(113.4), spread(88.2), spread(0.778), None),
        ),
        "tasks": (
            TaskComparison(
                "arc_easy", "acc", 100, 0.27, 0.0446, 0.25, 0.0435, 0.02, 0.0345, 0.774, settings=TaskSettings(5)
            ),
            TaskComparison("lambada_openai", "perplexity", 100, 48211.1, 2210.5, 51033.9, None, None, None, None),
        ),
        "laziness": Laziness(0.9, (9.1, 12.3, 7.7, 5.2, 3.1, 2.2, 1.3, 1.1), (9.3, 13.1, 8.0, 6.1, 4.4, None), lazy),
        "samples": (Sample("def begin(", "self):\n    return self", "name):\n    pass"),),
        "versions": {"torch": "2.13.0"},
        "commands": ("inheritune evaluate run --files test.jsonl --second-files other.txt",),
    }
    return StudentEvaluation(**{**values, **changes})


def beside_adapted(found):
    """The evaluation with the reference, trained further, as a third model, which is better than both."""
    better = [
        replace(item, reference=Metrics(4.9, 134.29, 0.24), match=replace(MISS, difference=0.2425))
        for item in found.corpora
    ]
    tasks = [replace(item, reference=0.31, reference_error=0.0465, p_value=0.289) for item in found.tasks]
    return replace(found, adapted="adapted", adapted_corpora=tuple(better), adapted_tasks=tuple(tasks))
