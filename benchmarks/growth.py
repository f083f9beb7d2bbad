"""
What growth between two rounds costs: seconds, bytes and compiled graphs, against a step of training.

`python -m benchmarks.growth` prints a table, one row for each way to grow: medians of a few runs, taken in turns. It is
measured from the saved checkpoint at the end of a round to the first step of the next: comparing, building and staging
the student, loading it, its optimizer and the data. Bytes are those of the process's read and write calls, without
mapped files. Next to them are the bytes that must be read and written at least, and the time of plain reads and writes
of as many bytes on the same disk in the same run. Blocks are compiled, by a backend that generates no code.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES = {"small": (12, 768, 12), "medium": (24, 1024, 16), "tiny": (4, 64, 2)}


def counted() -> tuple[float, float, int, int]:
    """Return the time, by the clock and by the processor, and the bytes that this process read and wrote so far."""
    found = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return time.perf_counter(), time.process_time(), int(found["rchar"]), int(found["wchar"])


def disk_seconds(folder: Path, read: int, written: int) -> list[float]:
    """Return the time that writing and then reading so many bytes takes, by the clock and by the processor."""
    part, file = os.urandom(1 << 24), folder / "plain"
    began = counted()
    with file.open("wb") as stream:
        for _ in range(max(1, written >> 24)):
            stream.write(part)
    with file.open("rb", buffering=0) as stream:
        for _ in range(max(1, read >> 24)):
            if not stream.read(1 << 24):
                stream.seek(0)
    took = [after - before for after, before in zip(counted(), began, strict=True)][:2]
    file.unlink()
    return took


def grow(folder: Path, reference: str, recipe: dict[str, Any], options: Any) -> dict[str, Any]:
    """Run two rounds and measure the time between them."""
    import torch
    from datasets import Dataset
    from torch._dynamo.utils import counters
    from transformers import TrainerCallback, TrainingArguments

    from inheritune_hf import InherituneConfig, InherituneTrainer

    torch._dynamo.reset()
    counters.clear()
    layers = SHAPES[options.shape][0]
    found: dict[str, Any] = {"steps": []}

    class Watch(TrainerCallback):
        def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            self.saved = (state.global_step, counted(), counters["stats"]["unique_graphs"])

        def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()
            if state.global_step == options.steps:
                before, after = self.saved[1], counted()
                found["boundary"] = [later - earlier for later, earlier in zip(after, before, strict=True)]

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step < options.steps:
                found["steps"].append(time.perf_counter() - self.began)

        def on_train_end(self, *_: Any, **__: Any) -> None:
            found["graphs"] = counters["stats"]["unique_graphs"] - self.first_graphs

        def on_evaluate(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == options.steps:
                self.first_graphs = counters["stats"]["unique_graphs"]

    draw = torch.Generator().manual_seed(0)
    rows = Dataset.from_dict({"input_ids": torch.randint(0, 50257, (32, options.tokens), generator=draw).tolist()})
    trainer = InherituneTrainer(
        reference,
        InherituneConfig(
            keep_layers=layers // 2,
            grow_by=2,
            max_layers=layers // 2 + 2,
            steps_per_round=options.steps,
            target=0.01,
            **recipe,
        ),
        TrainingArguments(
            str(folder / "run"),
            per_device_train_batch_size=2,
            per_device_eval_batch_size=8,
            save_strategy="no",
            logging_steps=1,
            use_cpu=not torch.cuda.is_available(),
            torch_compile_backend="aot_eager",
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=rows,
        eval_dataset=rows.select(range(8)),
        callbacks=[Watch()],
    )
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    sizes = [sum(item.numel() for item in trainer.student.parameters()) * 4]
    block = sum(item.numel() for item in trainer.student.get_submodule("transformer.h.0").parameters()) * 4
    sizes.append(sizes[0] - 2 * block)
    found["sizes"] = (sizes[1], sizes[0], 2 * block)
    return found


def least(recipe: dict[str, Any], sizes: tuple[int, int, int]) -> tuple[int, int]:
    """Return the bytes that a boundary reads and writes at least: weights and, if they are kept, AdamW's moments."""
    before, after, added = sizes
    read, written = after, after  # the student is staged, and loaded from there as after an interruption
    read += after if recipe["growth"] == "reinherit" else before + added
    if recipe.get("optimizer_state") == "keep":
        read, written = read + 2 * before + 2 * before, written + 2 * before
    return read, written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="steps of a round")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way")
    options = parser.parse_args()
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    ways: list[dict[str, Any]] = [{"growth": "reinherit"}, {"growth": "continue"}]
    ways.append({"growth": "continue", "optimizer_state": "keep"})
    layers, width, heads = SHAPES[options.shape]
    columns = ["growth", "seconds", "of the processor", "GB read", "GB written", "GB at least", "plain seconds"]
    columns += ["of the processor", "of the plain rate", "steps of training", "new graphs"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    rows: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=heads)).save_pretrained(folder / "reference")
        for recipe in ways * options.repeats:
            work = folder / "work"
            work.mkdir()
            found = grow(work, str(folder / "reference"), recipe, options)
            clock, processor, read, written = found["boundary"]
            need = least(recipe, found["sizes"])
            plain = disk_seconds(work, *need)
            steps = clock / statistics.median(found["steps"])
            row = [clock, processor, read / 1e9, written / 1e9, sum(need) / 1e9, *plain, plain[0] / clock, steps]
            rows.setdefault(", ".join(recipe.values()), []).append([*row, found["graphs"]])
            shutil.rmtree(work)
    for way, found_rows in rows.items():
        cells = [f"{statistics.median(column):.2f}" for column in zip(*found_rows, strict=True)]
        cells[-1] = str(max(row[-1] for row in found_rows))
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
