"""Processor time of commands that have little to do: what is left is start-up, which is mostly imports."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 3

_MAKE_REFERENCE = """
import sys
from transformers import GPT2Config, GPT2LMHeadModel
config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0)
GPT2LMHeadModel(config).save_pretrained(sys.argv[1])
"""
_PROGRAM = "import sys; from inheritune_hf.cli import main; sys.exit(main())"


def seconds(code: str, *words: str, folder: Path) -> tuple[float, float, int]:
    """Return user processor seconds and wall seconds of the quickest of several processes, and their exit status."""
    best, status = (float("inf"), float("inf")), 0
    for index in range(REPEATS):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.monotonic()
        status = subprocess.run(
            [sys.executable, "-c", code, *(word.format(index) for word in words)],
            cwd=folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).returncode
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        best = min(best, (used, time.monotonic() - began))
    return *best, status


def main() -> None:
    """Print a table of commands."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run(
            [sys.executable, "-c", _MAKE_REFERENCE, "reference"], cwd=folder, check=True, capture_output=True
        )
        commands: dict[str, tuple[str, ...]] = {
            "--help": ("--help",),
            "train --help": ("train", "--help"),
            "train, missing recipe": ("train", "--config", "missing.yaml"),
            "compare, missing recipe": ("compare", "missing.yaml"),
            "plan, unknown setting": ("plan", "reference", "--step_per_round", "3"),
            "inherit": ("inherit", "reference", "--output", "student-{}"),
            "report": ("report", "student-0"),
            "doctor": ("doctor", "reference"),
            "plan": ("plan", "reference", "--steps-per-round", "5"),
            "verify": ("verify", "student-0"),
        }
        print("| command | user seconds | wall seconds | exit status |\n|---|---|---|---|")
        imports = "from transformers import GPT2LMHeadModel, GPT2Config"
        rows = {"`import torch`": ("import torch",), f"`{imports}`": (imports,)}
        rows |= {name: (_PROGRAM, *words) for name, words in commands.items()}
        for name, (code, *words) in rows.items():
            used, wall, status = seconds(code, *words, folder=folder)
            print(f"| {name} | {used:.2f} | {wall:.2f} | {status} |", flush=True)


if __name__ == "__main__":
    main()
