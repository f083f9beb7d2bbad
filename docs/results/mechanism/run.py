"""
Compare arms on the embedded reference, half as deep, after a tenth of its tokens: one record for each arm.

    python docs/results/mechanism/run.py BOOKS... [--arms NAME,NAME]
    python docs/results/mechanism/run.py page

BOOKS are JSONL files of novels, one to a row, with `id` and `text`: those that the reference was made from
(examples/train_reference.py). Arms are trained on the same novels as the reference, as in the paper, and measured on
those that it was not trained on. Each arm is run by `inheritune compare` with recipe.yaml beside this script: first
with one seed at three learning rates, to which the next is added while the best is at an end, then with all seeds. Its
record is kept in this folder, and an arm that has one is skipped; the same command resumes what was interrupted, and
several processes share the arms. `page` writes docs/results/mechanism.md from the records that there are.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from inheritune_hf.records import read_json, write_text

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / "examples"), str(HERE.parent)]
from steps import provenance, verb  # noqa: E402
from train_reference import passages_of, split_books  # noqa: E402

WORK = Path("mechanism")
TEST_BOOKS, SELECTION_BOOKS, PASSAGES = 16, 8, 13
SEEDS = (1, 2, 3, 4, 5)
RATE = 1e-3  # of the recipe
RATES = (0.022, 0.067, 0.2, 0.6, 1.8, 5.4, 16.2, 48.6)  # multiples of it
#: Of each arm, the middle of the rates that it begins with, and what `compare` takes after `--arms`.
ARMS = {
    "continued": (0.2, "continued"),
    "inherited": (1.8, "inherited"),
    "skip": (1.8, "skip"),
    "random": (5.4, "random"),
    "loop-heal": (
        1.8,
        "inheritune --preset heal --keep_layers skip:9 --grow_by 1 --steps_per_round 513 --max_steps 1539 "
        "--eval_steps 57",
    ),
    "skip-kd": (1.8, "skip/kd --budget flops"),
    "random-kd": (5.4, "random/kd --budget flops"),
    "last": (1.8, "last"),
    "middle": (1.8, "middle"),
    "random-2x": (5.4, "random-2x"),
    "loop-paper": (1.8, "inheritune --preset paper --steps_per_round 385 --eval_steps 38"),
    "last-moved-scale": (1.8, "last/moved-scale"),
    "middle-moved-scale": (1.8, "middle/moved-scale"),
    "spaced": (1.8, "spaced"),
}


def main(words: list[str]) -> None:
    """Run the arms that have no record and that no other process runs."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("books", nargs="+", help="JSONL files of books, or the word page.")
    names = [*ARMS, "half"]
    parser.add_argument("--arms", default=",".join(names), help=f"Arms to run, of {','.join(names)}.")
    options = parser.parse_args(words)
    arms = options.arms.split(",")
    if not set(arms) <= set(names):
        parser.error(f"--arms are some of {', '.join(names)}.")
    if options.books == ["page"]:
        from page import write_page

        write_page()
        return
    WORK.mkdir(exist_ok=True)
    with FileLock(WORK / "prepared.lock"):
        if not (WORK / "prepared").is_file():
            prepare(options.books)
    for name in arms:
        try:
            with FileLock(WORK / f"{name}.lock", blocking=False):
                if not (HERE / f"{name}.json").is_file():
                    found = run_half(options.books) if name == "half" else run_arm(name)
                    write_text(HERE / f"{name}.json", json.dumps({**found, **provenance()}, ensure_ascii=False) + "\n")
        except Timeout:
            print(f"{name} is run by another process", flush=True)


def prepare(files: list[str]) -> None:
    """Write three sets: to train on, the books of the reference itself; held out, those that it was not trained on."""
    books = split_books(files)
    test, selection = books["evaluation"][:TEST_BOOKS], books["evaluation"][TEST_BOOKS:][:SELECTION_BOOKS]
    held_out = {"test": test, "selection": selection}
    rows = {"train": [{"id": book["id"], "text": book["text"]} for book in books["reference"]]}
    for name, part in held_out.items():
        rows[name] = []
        for book in part:
            passages = passages_of(book)
            rows[name] += [passages[len(passages) * (2 * place + 1) // (2 * PASSAGES)] for place in range(PASSAGES)]
    for name, found in rows.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (WORK / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (WORK / "prepared").touch()


def run_half(books: list[str]) -> dict:
    """Train random weights of half the depth on the reference's own tokens, and measure both on the test set."""
    folder, layers = WORK / "half", 6
    script = [sys.executable, str(ROOT / "examples" / "train_reference.py"), "--books", *books]
    subprocess.run([*script, "--output_dir", str(folder), "--layers", str(layers)], check=True)
    measured = ("--files", WORK / "test.jsonl", "--block-size", 256, "--max-sequences", 2, "--parts", "loss")
    verb("evaluate", folder / "model", "--reference", "inheritune_hf/embedded/reference", *measured)
    return {"layers": layers, "corpus": read_json(folder / "model" / "evaluation.json")["corpora"][0]}


def run_arm(name: str) -> dict:
    """Find an arm's learning rate with the first seed, run it with all seeds, and return its record."""
    middle = RATES.index(ARMS[name][0])
    low, high = middle - 1, middle + 1
    while True:
        chosen = compare(name, RATES[low : high + 1], SEEDS[:1])["cells"][0]["learning_rate"] / RATE
        if low > 0 and math.isclose(chosen, RATES[low]):
            low -= 1
        elif high < len(RATES) - 1 and math.isclose(chosen, RATES[high]):
            high += 1
        else:
            return {"comparison": compare(name, RATES[low : high + 1], SEEDS)}


def compare(name: str, rates: Sequence[float], seeds: Sequence[int]) -> dict:
    """Run `inheritune compare` for an arm, and return its record; finished cells are not run again."""
    grid = ("--seeds", *seeds, "--learning_rates", *rates)
    verb("compare", HERE / "recipe.yaml", "--arms", *ARMS[name][1].split(), "--output_dir", WORK / name, *grid)
    return read_json(WORK / name / "comparison.json")


if __name__ == "__main__":
    main(sys.argv[1:])
