"""
What the embedded default costs, against 300 steps of its own reference.

    python -m benchmarks.demo

Both are measured in the same run on the same machine, each as a process of its own; the demonstration starts with an
empty cache.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

_STEPS = """
import time, torch
from inheritune_hf.data.embedded import embedded_reference
from transformers import GPT2LMHeadModel
model = GPT2LMHeadModel.from_pretrained(embedded_reference(), dtype=torch.float32)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)
batch = torch.randint(0, model.config.vocab_size, (8, model.config.n_positions))
began = time.perf_counter()
for _ in range(300):
    model(input_ids=batch, labels=batch).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
print(time.perf_counter() - began)
"""


def main() -> None:
    """Print seconds of both and their ratio; the reference steps are timed before and after."""
    before = _reference_steps()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, str(ROOT / "examples" / "run_inheritune.py"), "--output_dir", f"{folder}/run"],
            check=True,
            env={**os.environ, "HF_HOME": f"{folder}/home", "HF_HUB_OFFLINE": "1"},
        )
        demo = time.perf_counter() - began
    after = _reference_steps()
    steps = (before + after) / 2
    print(
        f"300 reference steps {before:.0f} s before, {after:.0f} s after; demo {demo:.0f} s; ratio {demo / steps:.2f}"
    )


def _reference_steps() -> float:
    done = subprocess.run([sys.executable, "-c", _STEPS], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
