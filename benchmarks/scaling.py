"""
How the time of a step grows with depth, with the length of sequences, and with processes; with a fit.

`python -m benchmarks.scaling` prints a table for depth and one for length, from one process that trains as
`InherituneTrainer` does, and beside them the same step in two processes. Shown is the median of a few steps, by the
clock and by the processor, and its ratio to the fit through all points (least squares of relative errors): a line over
depth, a square over length, since attention is quadratic.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DEPTHS = (4, 8, 12, 24, 48)
LENGTHS = (64, 128, 256, 512, 1024)


def train(options: Any) -> list[float]:
    """Train a few steps; return the median seconds of one, by the clock and by the processor."""
    import torch
    from datasets import Dataset
    from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments

    from benchmarks.training import whole_model_trainer

    moments: list[tuple[float, float]] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            moments.append((time.perf_counter(), time.process_time()))

    torch.manual_seed(0)
    width = options.width
    config = GPT2Config(
        vocab_size=options.vocabulary,
        n_positions=1024,
        n_embd=width,
        n_layer=options.layers,
        n_head=max(1, width // 64),
        use_cache=False,
    )
    rows = torch.randint(0, options.vocabulary, (options.batch * 8, options.tokens)).tolist()
    whole_model_trainer(
        GPT2LMHeadModel(config),
        TrainingArguments(
            tempfile.mkdtemp(),
            per_device_train_batch_size=options.batch,
            max_steps=options.steps + 2,
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            ddp_find_unused_parameters=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to="none",
        ),
        Dataset.from_dict({"input_ids": rows}),
        [Watch()],
    ).train()
    steps = [[b - a for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(moments[1:])]
    return [statistics.median(column) for column in zip(*steps, strict=True)]


def measure(options: Any, processes: int = 1, **changes: int) -> list[float]:
    """Measure a step in processes of their own."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        settings = {**vars(options), **changes, "one": str(result)}
        words = [f"--{name}={value}" for name, value in settings.items()]
        subprocess.run([*launcher, "-m", "benchmarks.scaling", *words], check=True, capture_output=True)
        found: list[float] = json.loads(result.read_text())
    return found


def show(name: str, values: tuple[int, ...], found: list[list[float]], degree: int) -> None:
    """Print a table over one varied quantity, with its fit, and where the square starts to dominate."""
    import numpy as np

    times = np.array([item[1] for item in found])
    fit = np.polynomial.Polynomial.fit(values, times, degree, w=1 / times).convert()
    print(f"\n| {name} | seconds | processor seconds | of the fit |\n|---|---|---|---|")
    for value, (clock, processor) in zip(values, found, strict=True):
        print(f"| {value} | {clock:.3f} | {processor:.3f} | {processor / fit(value):.2f} |")
    terms = [f"{weight:.3g} s" + f" × {name}" * power for power, weight in enumerate(fit.coef)]
    print(f"\nThe fit: {' + '.join(terms)}.", flush=True)
    if degree == 2:
        print(f"From {fit.coef[1] / fit.coef[2]:.0f} {name} on the square costs most.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = {"vocabulary": 8192, "width": 128, "layers": 8, "tokens": 128, "batch": 4, "steps": 10}
    for name, value in shape.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--one", default="", help="measure one shape, and write the result to this file")
    options = parser.parse_args()
    if options.one:
        found = train(options)
        Path(options.one).write_text(json.dumps(found))
        return
    show("layers", DEPTHS, [measure(options, layers=value) for value in DEPTHS], 1)
    show("tokens", LENGTHS, [measure(options, tokens=value) for value in LENGTHS], 2)
    one, two = measure(options), measure(options, processes=2)
    print(f"\nTwo processes with as many sequences each: {two[0] / one[0]:.2f} of the time of one.")


if __name__ == "__main__":
    main()
