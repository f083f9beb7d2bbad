"""
Time and memory of training steps: this package, plain `Trainer` with its defaults, and a bare loop of the same math.

`python -m benchmarks.training` prints a table. Each side is a process of its own; they take steps in turns, so that
other work on the machine affects all of them. This package is there twice, once with glibc told to keep the memory that
is freed. A step is measured from its start to the start of the next. The table
shows the median, its tokens per second, its ratio to the bare loop (the median of the ratios of pairs), in elapsed and
in processor time, and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

SIDES = ("bare loop", "this package", "this package, freed memory kept", "plain Trainer")
KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": str(8 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
WARM_UP = 3


def now() -> list[float]:
    return [time.perf_counter(), time.process_time()]


class Turns:
    """Waits for the parent before each step, and prints the time of the one before."""

    def __init__(self) -> None:
        self.began: list[float] | None = None

    def step(self) -> None:
        if self.began is not None:
            took = [after - before for after, before in zip(now(), self.began, strict=True)]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps([*took, peak]), flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        self.began = now()


def make_model(options: Any) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=options.vocabulary,
        n_positions=options.tokens,
        n_embd=options.width,
        n_layer=options.layers,
        n_head=max(1, options.width // 64),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def make_rows(options: Any, count: int) -> Any:
    import torch

    return torch.randint(0, options.vocabulary, (count, options.tokens), generator=torch.Generator().manual_seed(1))


def run_bare(options: Any) -> None:
    """Run the minimal loop: forward, backward, clip, AdamW."""
    import torch

    model, turns = make_model(options).train(), Turns()
    rows = make_rows(options, options.batch * 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    run = torch.compile(model) if options.compile else model
    for number in range(1 << 30):
        turns.step()
        start = number % 8 * options.batch
        batch = rows[start : start + options.batch]
        run(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def whole_model_trainer(model: Any, args: Any, rows: Any, callbacks: list[Any]) -> Any:
    """Return this package's trainer for one round of a whole model, which is its own reference."""
    from inheritune_hf import InherituneConfig, InherituneTrainer

    depth = model.config.num_hidden_layers
    recipe = InherituneConfig(keep_layers=depth, max_layers=depth, steps_per_round=args.max_steps, target=1e-9)
    return InherituneTrainer(
        model, recipe, args, train_dataset=rows, eval_dataset=rows.select(range(1)), callbacks=callbacks
    )


def run_trainer(options: Any, ours: bool) -> None:
    """Train with `Trainer`, or with this package's."""
    import torch
    from datasets import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Wait(TrainerCallback):
        turns = Turns()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.turns.step()

    model = make_model(options)
    args = TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=options.batch,
        max_steps=1 << 20,
        logging_steps=10,
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        torch_compile=options.compile,
    )
    tokens = make_rows(options, options.batch * 8).tolist()
    rows = Dataset.from_dict({"input_ids": tokens, **({} if ours else {"labels": tokens})})
    sys.stdout = sys.stderr  # Trainer prints its log, and the parent reads numbers
    print_here = sys.__stdout__

    def step_printing(turns: Turns) -> None:
        sys.stdout = print_here
        Turns.step(turns)
        sys.stdout = sys.stderr

    Wait.turns.step = lambda: step_printing(Wait.turns)  # type: ignore[method-assign]
    if ours:
        whole_model_trainer(model, args, rows, [Wait()]).train()
    else:
        Trainer(model=model, args=args, train_dataset=rows, callbacks=[Wait()]).train()


def measure(options: Any) -> dict[str, list[list[float]]]:
    """Let the sides take steps in turns; return for each the seconds, processor seconds and peak bytes of its steps."""
    words = [f"--{name}={getattr(options, name)}" for name in ("vocabulary", "width", "layers", "tokens", "batch")]
    words += ["--compile"] if options.compile else []
    children = {
        side: subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training", f"--side={side}", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | (KEEP_FREED if "kept" in side else {}),
        )
        for side in SIDES
    }
    found: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for number in range(options.pairs + WARM_UP):
        order = SIDES if number % 2 else SIDES[::-1]
        for side in order:
            say(children[side])
            line = hear(children[side])
            if number >= WARM_UP:
                found[side].append(line)
    for child in children.values():
        child.kill()
        child.wait()
    return found


def say(child: Any) -> None:
    child.stdin.write("go\n")
    child.stdin.flush()


def hear(child: Any) -> list[float]:
    line = child.stdout.readline()
    if not line:
        raise SystemExit("a side of the comparison ended; run it with --side to see why")
    values: list[float] = json.loads(line)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("vocabulary", 50257), ("width", 256), ("layers", 8), ("tokens", 256), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--side", choices=SIDES, help="one side alone, a step for each line of its input")
    options = parser.parse_args()
    if options.side == "bare loop":
        run_bare(options)
    elif options.side:
        run_trainer(options, options.side.startswith("this package"))
    else:
        found = measure(options)
        headers = (
            "seconds",
            "tokens/s",
            "of the bare loop's speed",
            "by the processor",
            "peak GB",
            "of plain Trainer's",
        )
        print(f"| side | {' | '.join(headers)} |")
        print("|---|" + "---|" * len(headers))
        bare, plain = found["bare loop"], found["plain Trainer"]
        for side, steps in found.items():
            speeds = [
                statistics.median(one[place] / other[place] for one, other in zip(bare, steps, strict=True))
                for place in (0, 1)
            ]
            peak, most = (max(step[2] for step in item) / 1e9 for item in (steps, plain))
            seconds = statistics.median(step[0] for step in steps)
            figures = (
                f"{seconds:.3f}",
                f"{options.batch * options.tokens / seconds:,.0f}",
                *(f"{speed:.3f}" for speed in speeds),
            )
            print(f"| {side} | {' | '.join(figures)} | {peak:.2f} | {peak / most:.2f} |", flush=True)


if __name__ == "__main__":
    main()
