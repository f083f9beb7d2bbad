"""
Compare arms on one reference, half as deep, after a tenth of its tokens: one record for each arm.

    python docs/results/mechanism/run.py BOOKS... [--arms NAME,NAME]
    python docs/results/mechanism/run.py BOOKS... --wide TOKENIZER
    python docs/results/mechanism/run.py page

BOOKS are JSONL files of novels, one to a row, with `id` and `text`: those that the embedded reference was made from
(examples/train_reference.py). Arms are trained on the same novels as the reference, as in the paper, and measured on
those that it was not trained on. Each arm is run by `inheritune compare` with recipe.yaml beside this script: first
with one seed at three learning rates, to which the next is added while the best is at an end, then with all seeds, but
for those of ONE_RATE and ONE_SEED. Its record is kept in this folder, and an arm that has one is skipped; the same
command resumes what was interrupted, and several processes share the arms. `--wide` trains a reference as wide as GPT-2
small on a GPU first, with the tokenizer in a folder, and compares arms on it with wide/recipe.yaml. `page` writes
docs/results/mechanism.md from the records that there are.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from inheritune_hf.analysis import NEAR_RANK_ONE, CollapseReport
from inheritune_hf.records import read_json, write_text

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / "examples"), str(HERE.parent)]
from steps import provenance, verb  # noqa: E402
from train_reference import passages_of, split_books  # noqa: E402

TEST_BOOKS, SELECTION_BOOKS, PASSAGES = 16, 8, 13
RATES = (0.022, 0.067, 0.2, 0.6, 1.8, 5.4, 16.2, 48.6)  # multiples of the recipe's
LOOP = " --grow_by 1 --max_steps {budget} --keep_layers "
CONTINUED = "inheritune --growth continue --optimizer_state keep --lr_schedule continue" + LOOP
FROM_9 = "9 --steps_per_round {third} --eval_steps {third_look}"
FROM_10 = "10 --steps_per_round {half} --eval_steps {half_look}"
ONCE = " --keep_layers skip:9 --max_layers 9 --steps_per_round {long} --max_steps {long} --budget_steps {long}"
#: Arms on which no claim rests: they keep to the first seed.
ONE_SEED = ("spaced", "loop-paper", "loop-untaught", "continued-new", "loop-long")
#: The arm whose rate is not tuned: it takes the one that was best for the loop of a third of its length.
ONE_RATE = ("loop-long",)
#: Of each arm, the middle of the rates that it begins with, and what `compare` takes after `--arms`.
ARMS = {
    "continued": (0.2, "continued"),
    "inherited": (1.8, "inherited"),
    "skip": (1.8, "skip"),
    "random": (5.4, "random"),
    "loop-heal": (0.6, "inheritune/kd --preset heal" + LOOP + "skip:" + FROM_10),
    "loop-untaught": (0.6, "inheritune --preset heal --distillation none" + LOOP + "skip:" + FROM_10),
    "loop-skip": (0.6, CONTINUED + "skip:" + FROM_9),
    "loop-first": (0.6, CONTINUED + FROM_9),
    "skip-kd": (1.8, "skip/kd --budget flops"),
    "random-kd": (5.4, "random/kd --budget flops"),
    "last": (1.8, "last"),
    "middle": (5.4, "middle"),
    "random-2x": (5.4, "random-2x"),
    "loop-paper": (1.8, "inheritune --preset paper --steps_per_round {quarter} --eval_steps {quarter_look}"),
    "last-moved-scale": (1.8, "last/moved-scale"),
    "middle-moved-scale": (1.8, "middle/moved-scale"),
    "spaced": (1.8, "spaced"),
    "loop-long": (1.8, "inheritune/kd --preset heal --grow_by 1 --eval_steps {long_look}" + ONCE),
    "continued-new": (0.067, "continued --train_files {work}/new.jsonl"),
}


@dataclass(frozen=True)
class Study:
    """A reference and what is asked of it: where its recipe and records are, where it is run, its arms and seeds."""

    records: Path
    work: Path
    arms: tuple[str, ...]
    seeds: tuple[int, ...]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What all arms have in common."""
        return dict(yaml.safe_load((self.records / "recipe.yaml").read_text(encoding="utf-8")))

    def words(self, name: str) -> list[str]:
        """Return what `compare` takes for an arm; a loop's rounds are a part of the budget, or three times as long."""
        budget = self.recipe["budget_steps"]
        rounds = {"half": budget // 2, "third": budget // 3, "quarter": budget // 4, "long": 3 * budget}
        looks = {"half_look": 12, "third_look": 8, "quarter_look": 11, "long_look": 24}
        parts = {**rounds, **{look: rounds[look[:-5]] // count for look, count in looks.items()}}
        return ARMS[name][1].format(work=self.work, budget=budget, **parts).split()


EMBEDDED = Study(HERE, Path("mechanism"), (*ARMS, "half", "unscaled"), (1, 2, 3, 4, 5))
WIDE = Study(
    HERE / "wide",
    Path("mechanism-wide"),
    ("inherited", "random", "skip", "continued", "loop-heal", "loop-skip", "loop-first", "random-2x"),
    (1, 2, 3),
)
#: What makes the wide reference, beside books, tokenizer and folder: 4 passes over the novels.
WIDE_REFERENCE = (
    "--gpu --bf16 --width 768 --heads 12 --batch_size 32 --steps 3500 --warmup_steps 200 --decay_steps 1200 "
    "--learning_rate 6e-4 --further_steps 500 --further_rate 6e-5"
)


def main(words: list[str]) -> None:
    """Run the arms that have no record and that no other process runs."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("books", nargs="+", help="JSONL files of books, or the word page.")
    parser.add_argument("--arms", help=f"Arms to run, of {','.join(EMBEDDED.arms)}; by default all.")
    parser.add_argument("--wide", metavar="TOKENIZER", help="Train a reference as wide as GPT-2 small on a GPU.")
    options = parser.parse_args(words)
    study = WIDE if options.wide else EMBEDDED
    arms = options.arms.split(",") if options.arms else study.arms
    if not set(arms) <= set(study.arms):
        parser.error(f"--arms are some of {', '.join(study.arms)}.")
    if options.books == ["page"]:
        from page import write_page

        write_page()
        return
    absent = [name for name in options.books if not Path(name).is_file()]
    if absent:
        parser.error(f"{', '.join(absent)} is not there; BOOKS are JSONL files of novels, rows of `id` and `text`.")
    study.work.mkdir(exist_ok=True)
    with FileLock(study.work / "prepared.lock"):
        if not (study.work / "prepared").is_file():
            if options.wide:
                train(options.books, study.work / "reference", *WIDE_REFERENCE.split(), "--tokenizer", options.wide)
            prepare(options.books, study.work)
    for name in arms:
        try:
            with FileLock(study.work / f"{name}.lock", blocking=False):
                record = study.records / f"{name}.json"
                if not record.is_file():
                    of_reference = {"half": run_half, "unscaled": run_unscaled}.get(name)
                    found = of_reference(options.books) if of_reference else run_arm(study, name)
                    write_text(record, json.dumps({**found, **provenance()}, ensure_ascii=False) + "\n")
        except Timeout:
            print(f"{name} is run by another process", flush=True)


def prepare(files: list[str], folder: Path) -> None:
    """Write four sets: the books of the reference to train on, and new ones; two held out, of books in neither."""
    books = split_books(files)
    test, selection = books["evaluation"][:TEST_BOOKS], books["evaluation"][TEST_BOOKS:][:SELECTION_BOOKS]
    held_out = {"test": test, "selection": selection}
    whole = {"train": books["reference"], "new": books["demo"]}
    rows = {name: [{"id": book["id"], "text": book["text"]} for book in part] for name, part in whole.items()}
    for name, part in held_out.items():
        rows[name] = []
        for book in part:
            passages = passages_of(book)
            rows[name] += [passages[len(passages) * (2 * place + 1) // (2 * PASSAGES)] for place in range(PASSAGES)]
    for name, found in rows.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "prepared").touch()


def train(books: list[str], folder: Path, *words: str) -> None:
    """Train a model as the embedded reference was, or as `words` say otherwise."""
    script = [sys.executable, str(ROOT / "examples" / "train_reference.py"), "--books", *books]
    subprocess.run([*script, "--output_dir", str(folder), *words], check=True)


def run_half(books: list[str]) -> dict[str, Any]:
    """Train random weights of half the depth on the reference's own tokens, and measure both on the test set."""
    folder, layers = EMBEDDED.work / "half", 6
    train(books, folder, "--layers", str(layers))
    measured = ("--files", EMBEDDED.work / "test.jsonl", "--block-size", 256, "--max-sequences", 2, "--parts", "loss")
    verb("evaluate", folder / "model", "--reference", EMBEDDED.recipe["reference"], *measured)
    return {"layers": layers, "corpus": read_json(folder / "model" / "evaluation.json")["corpora"][0]}


def run_unscaled(books: list[str]) -> dict[str, Any]:
    """Train the reference again with attention that is not scaled by depth, and measure the attention of both."""
    folder, reference = EMBEDDED.work / "unscaled", EMBEDDED.recipe["reference"]
    train(books, folder, "--unscaled", "--bf16", "--tokenizer", str(ROOT / reference))
    found = {}
    for name, model in {"scaled": reference, "unscaled": folder / "model"}.items():
        verb("analyze", model, "--files", EMBEDDED.work / "test.jsonl", "--output", folder / name)
        report = CollapseReport.from_json(folder / name / "collapse.json")
        found[name] = {
            "max_ranks": report.max_ranks(),
            "random": report.max_ranks(random=True),
            "lazy": report.lazy_layers(NEAR_RANK_ONE),
            "loss": None if report.blocks is None else report.blocks.loss,
            "sequences": report.sequences,
            "tokens": report.tokens,
        }
    return found


def run_arm(study: Study, name: str) -> dict[str, Any]:
    """Find an arm's learning rate with the first seed, run it with all seeds, and return its record."""
    middle = RATES.index(ARMS[name][0])
    low, high = (middle, middle) if name in ONE_RATE else (middle - 1, middle + 1)
    while True:
        found = compare(study, name, RATES[low : high + 1], study.seeds[:1])
        chosen = found["cells"][0]["learning_rate"] / study.recipe["learning_rate"]
        if 0 < low < high and math.isclose(chosen, RATES[low]):
            low -= 1
        elif low < high < len(RATES) - 1 and math.isclose(chosen, RATES[high]):
            high += 1
        else:
            seeds = study.seeds[:1] if name in ONE_SEED else study.seeds
            return {"comparison": compare(study, name, RATES[low : high + 1], seeds)}


def compare(study: Study, name: str, rates: Sequence[float], seeds: Sequence[int]) -> dict[str, Any]:
    """Run `inheritune compare` for an arm, and return its record; finished cells are not run again."""
    folder, grid = study.work / name, ("--seeds", *seeds, "--learning_rates", *rates)
    recipe = study.records / "recipe.yaml"
    verb("compare", recipe, "--arms", *study.words(name), "--output_dir", folder, *grid)
    return dict(read_json(folder / "comparison.json"))


if __name__ == "__main__":
    main(sys.argv[1:])
