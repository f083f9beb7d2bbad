"""Say by what a record was made: records of docs/results/ hold it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from inheritune_hf import __version__


def provenance() -> dict[str, Any]:
    """Return the commit, the versions and the machine that a record was made by."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "commit": commit.stdout.strip(),
        "versions": {"inheritune_hf": __version__, "torch": torch.__version__},
        "machine": f"{model or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())),
    }
