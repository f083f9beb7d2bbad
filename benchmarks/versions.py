"""
Processor seconds of this checkout and of another one, side by side: training, growing, loading, analysis, start-up.

`python -m benchmarks.versions OTHER` prints one row for each job. The two versions run in turns, each job in a process
of its own with one thread; medians count. Jobs use the public interface alone, so that it may be an old version.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]

COMMON = """
import sys, time, torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
from inheritune_hf import InherituneConfig, InherituneTrainer, InheritedGPT2
rows = [[(7 * row + 3 * place) % 256 for place in range(64)] for row in range(256)]
data = Dataset.from_dict({"input_ids": rows, "labels": rows}).with_format("torch")
def train(rounds, steps, **more):
    more = dict(more, keep_layers=2, grow_by=1, max_layers=1 + rounds, steps_per_round=steps, target=0.001)
    args = TrainingArguments("run", per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True, report_to="none")
    sets = {"train_dataset": data, "eval_dataset": data.select(range(32))}
    InherituneTrainer("reference", InherituneConfig(**more), args, reference_cache=False, **sets).train()
began = None
"""
JOBS = {
    "train 100 steps": "began = time.process_time(); train(1, 100)",
    "train 100 steps, distilled": (
        "began = time.process_time(); train(1, 100, distillation='cross_entropy=0.6,forward_kl=0.4')"
    ),
    "train 8 steps in 8 rounds": "began = time.process_time(); train(8, 1)",
    "grow 8 times, keep what was trained": (
        "began = time.process_time(); train(8, 1, growth='continue', optimizer_state='keep')"
    ),
    "load 12 of 24 layers": (
        "began = time.process_time(); InheritedGPT2.from_pretrained('large', keep_layers=12, cache_dir='cache')"
    ),
    "collapse of 12 layers": (
        "from inheritune_hf.analysis import measure_collapse\n"
        "model = GPT2LMHeadModel.from_pretrained('reference')\n"
        "began = time.process_time(); measure_collapse(model, rows[:32], cache_dir='cache')"
    ),
}
COMMAND = "import sys; from inheritune_hf.cli import main; sys.exit(main())"
VERBS = {
    "inheritune train --help": ["train", "--help"],
    "inheritune train, no such recipe": ["train", "--config", "missing.yaml"],
    "inheritune doctor": ["doctor", "reference"],
    "inheritune inherit": ["inherit", "reference", "--keep-layers", "2", "--output", "student-{turn}"],
    "inheritune report": ["report", "run"],
}


def run(version: Path, folder: Path, words: list[str]) -> tuple[str, float]:
    """Run Python with `words`, `version` first on its path; return what it printed and its processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(version), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process.stdout + process.stderr, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def job(version: Path, folder: Path, name: str) -> float:
    """Return the processor seconds of a job, without the imports before it."""
    for name_of_output in ("run", "cache"):
        shutil.rmtree(folder / name_of_output, ignore_errors=True)
    text, _ = run(version, folder, ["-c", COMMON + JOBS[name] + "\nprint('took', time.process_time() - began)"])
    if (took := re.search(r"^took ([\d.]+)$", text, re.MULTILINE)) is None:
        raise SystemExit(f"{name} with {version} ended with:\n{text[-2000:]}")
    return float(took[1])


def main() -> None:
    """Print the table."""
    from transformers import GPT2Config, GPT2LMHeadModel

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="a checkout of another version")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    versions = given.other.resolve(), HERE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for reference, width, depth in (("reference", 64, 12), ("large", 512, 24)):
            config = GPT2Config(vocab_size=256, n_positions=64, n_embd=width, n_layer=depth, n_head=width // 32)
            config.bos_token_id = config.eos_token_id = 0
            GPT2LMHeadModel(config).save_pretrained(folder / reference)
        print("| job | other, s | this, s | this / other |\n|---|---|---|---|")
        for what in [*JOBS, *VERBS]:
            seconds: list[list[float]] = [[], []]
            for turn in range(2 * given.repeats):
                version = versions[turn % 2]
                if what in JOBS:
                    took = job(version, folder, what)
                else:
                    if what == "inheritune report":
                        job(version, folder, "train 8 steps in 8 rounds")  # what is reported
                    words = [word.format(turn=turn) for word in VERBS[what]]
                    took = run(
                        version,
                        folder,
                        ["-c", COMMAND, *words],
                    )[1]
                seconds[turn % 2].append(took)
            other, this = (statistics.median(part) for part in seconds)
            print(f"| {what} | {other:.2f} | {this:.2f} | {this / other:.2f} |", flush=True)


if __name__ == "__main__":
    main()
