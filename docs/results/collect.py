"""
Put the runs of several seeds into docs/results/: one table, one picture.

    make demo-seeds
    python docs/results/collect.py inheritune-demo-seed1 inheritune-demo-seed2 ... inheritune-demo-paper
"""

import sys
from pathlib import Path

from inheritune_hf.experiments.embedded import RANDOM, RANDOM_TWICE
from inheritune_hf.experiments.results import TRAINED_FURTHER
from inheritune_hf.figures import loss_panel, save_panels
from inheritune_hf.publishing import FinishedRun, markdown_table
from inheritune_hf.records import read_record, write_text

HERE = Path(__file__).parent

_HEAD = """# The embedded default, {runs} seeds

Every figure on this page was made by one command on a machine with two CPU cores:

```text
make demo-seeds
```

The reference is the one in the package: GPT-2 with {layers} layers of width 96, trained on 45 novels (37.8 million
tokens, 24 for each parameter). Its text here is {documents} passages of four novels that it has not seen; {selection}
passages of two others are the selection set, and {test} of two more the test set. Students keep the layers whose
removal, one at a time, raises the loss most (`{keep}`), are trained for {per_round} steps a round ({tokens:,} tokens)
with the reference as their teacher (`{distillation}`), and get one more layer after a miss. Losses are nats per token;
an interval lies between two one-sided 95 % bounds that cluster by passage. A student matches if the upper bound of its
difference is at most {tolerance}.

![Selection loss against steps for seed {seed}: rounds of the student, three controls, and the reference's
line](losses.png)

The picture shows seed {seed}.

## Rounds

| seed | round | layers | selection loss | reference | difference | upper bound | matched |
|---|---|---|---|---|---|---|---|
{rounds}

{paper}
## Test set

The test set was opened once for each run, after its last round.

{tests}

## What this shows, and what it does not

In {grown} of {runs} runs a student of fewer layers than the reference matches. On the test sets students are
{student} nats per token above the reference; random weights of their shape end {random} above them after as many
steps, and {twice} after twice as many, at the rate at which the reference was trained. The reference, trained further
for the students' steps at their rate, without a teacher, ends {continued} above where it started; at a rate of its own,
and on its own novels, it [gains a little](mechanism.md#is-the-reference-worth-matching). The reduction is small: a
model trained on 24 tokens per parameter can lose few of its {layers} layers in minutes of training.
One reference, one kind of text and one budget say nothing about the sizes in the paper.
"""

_PAPER = """
## The paper's setting

The same reference, text, steps a round, rate and tolerance, with what the paper does otherwise: the first layers,
from a half on, two more after a miss, a schedule and a data order that restart with each round, and no teacher. It
ends with {layers} of {depth} layers (`{outcome}`).

| seed | round | layers | selection loss | reference | difference | upper bound | matched |
|---|---|---|---|---|---|---|---|
{rounds}
"""


def main(folders: list[str]) -> None:
    """Write embedded.md and losses.png."""
    records = [read_record(FinishedRun, Path(folder) / "rounds.json") for folder in folders]
    first = records[0]
    runs = [run for run in records if run.recipe == first.recipe]
    paper = [run for run in records if run.recipe != first.recipe]
    tests = [f"### Seed {run.seed}\n\n{markdown_table(run.results)}" for run in runs]
    text = _HEAD.format(
        layers=first.lineage.reference_layers,
        documents=first.data.train.documents,
        selection=first.data.selection.documents,
        test=first.data.test.documents,
        keep=first.recipe["keep_layers"],
        distillation=first.recipe.get("distillation"),
        per_round=first.recipe["steps_per_round"],
        tokens=first.rounds[0].tokens,
        tolerance=first.recipe["tolerance"],
        seed=first.seed,
        rounds=_rounds(runs),
        paper="".join(
            _PAPER.format(
                layers=run.rounds[-1].layers,
                depth=run.lineage.reference_layers,
                outcome=run.outcome,
                rounds=_rounds([run]),
            )
            for run in paper
        ),
        tests="\n\n".join(tests),
        grown=sum(run.outcome == "matched" and run.rounds[-1].layers < run.lineage.reference_layers for run in runs),
        student=_differences(runs, "student", "reference"),
        random=_differences(runs, RANDOM, "student"),
        twice=_differences(runs, RANDOM_TWICE, "student"),
        continued=_differences(runs, TRAINED_FURTHER, "reference"),
        runs=len(runs),
    )
    write_text(HERE / "embedded.md", text)
    panel = loss_panel(first.rounds, first.curves, first.target, first.recipe["tolerance"])
    save_panels(HERE / "losses.png", [panel])


def _rounds(runs: list[FinishedRun]) -> str:
    """Return the rows of a table of rounds."""
    return "\n".join(
        f"| {run.seed} | {item.index} | {item.layers} | {item.loss:.4f} | {item.target:.4f} | "
        f"{item.match.difference:+.4f} | {item.match.upper:+.4f} | {'yes' if item.match.matched else 'no'} |"
        for run in runs
        for item in run.rounds
        if item.match.upper is not None
    )


def _differences(runs: list[FinishedRun], one: str, other: str) -> str:
    """Return the smallest and the largest difference of two models' test losses."""
    losses = [{row.model: row.loss for row in run.results} for run in runs]
    values = [found[one] - found[other] for found in losses]
    return f"{min(values):+.3f} to {max(values):+.3f}"


if __name__ == "__main__":
    main(sys.argv[1:])
