"""
Put the runs of several seeds into docs/results/: one table, one picture.

    make demo-seeds
    python docs/results/collect.py inheritune-demo-seed1 inheritune-demo-seed2 inheritune-demo-seed3
"""

import sys
from pathlib import Path

from inheritune_hf.figures import loss_panel, save_panels
from inheritune_hf.publishing import FinishedRun, markdown_table
from inheritune_hf.records import read_record, write_text

HERE = Path(__file__).parent

_HEAD = """# The embedded default, three seeds

Every figure on this page was made by one command on a machine with two CPU cores:

```text
make demo-seeds
```

A GPT-2-shaped reference of {layers} layers is pre-trained for {steps} steps on {documents} files of the Python standard
library ({tokens:,} tokens, a byte-level BPE of 4,096 entries). Students inherit its first layers and are trained for
{per_round} steps a round; a round that misses is followed by one with two more layers. Selection and test documents are
of modules that are not trained on. Losses are nats per token; an interval lies between two one-sided 95 % bounds that
cluster by document. A student matches if the upper bound of its difference is at most {tolerance}.

![Selection loss against steps for seed {seed}: rounds of the student, the two controls, and the reference's
line](losses.png)

The picture shows seed {seed}.

## Rounds

| seed | round | layers | selection loss | reference | difference | upper bound | matched |
|---|---|---|---|---|---|---|---|
{rounds}

## Test set

The test set was opened once for each run, after its last round.

{tests}

## What this shows, and what it does not

In {grown} of {runs} runs the first round misses and a later one matches. On the test sets a student is {random} nats
per token below a model of its shape from random weights that was given the same steps, and {continued} nats per token
above the reference, trained further for those steps. So a student that matches the *starting* reference has also had
more training than it; given the same, the reference is ahead where that figure is positive. The models are tiny and far
from converged, and the text is program source: nothing here is evidence about the sizes in the paper.
"""


def main(folders: list[str]) -> None:
    """Write embedded.md and losses.png."""
    runs = [read_record(FinishedRun, Path(folder) / "rounds.json") for folder in folders]
    first = runs[0]
    rounds = [
        f"| {run.seed} | {item.index} | {item.layers} | {item.loss:.4f} | {item.target:.4f} | "
        f"{item.match.difference:+.4f} | {item.match.upper:+.4f} | {'yes' if item.match.matched else 'no'} |"
        for run in runs
        for item in run.rounds
        if item.match.upper is not None
    ]
    tests = [f"### Seed {run.seed}\n\n{markdown_table(run.results)}" for run in runs]
    text = _HEAD.format(
        layers=first.lineage.reference_layers,
        steps=first.results[0].steps,
        documents=first.data.train.documents,
        tokens=first.data.train.tokens,
        per_round=first.recipe["steps_per_round"],
        tolerance=first.recipe["tolerance"],
        seed=first.seed,
        rounds="\n".join(rounds),
        tests="\n\n".join(tests),
        grown=sum(run.outcome == "matched" and len(run.rounds) > 1 for run in runs),
        random=_range([run.results[2].loss - run.results[1].loss for run in runs]),
        continued=_range([run.results[1].loss - run.results[3].loss for run in runs]),
        runs=len(runs),
    )
    write_text(HERE / "embedded.md", text)
    panel = loss_panel(first.rounds, first.curves, first.target, first.recipe["tolerance"])
    save_panels(HERE / "losses.png", [panel])


def _range(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


if __name__ == "__main__":
    main(sys.argv[1:])
