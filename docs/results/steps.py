"""What the scripts of docs/results/ share: run a verb, and say by what a record was made."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
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


def verb(*words: object) -> str:
    """Run a verb of `inheritune`, show and return what it prints; an interruption or an error ends this script too."""
    command = [str(Path(sys.executable).with_name("inheritune")), *map(str, words)]
    print(f"{time.strftime('%F %T')} inheritune {' '.join(command[1:])}", flush=True)
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout or ():
            print(line, end="", flush=True)
            said.append(line)
    if running.returncode not in (0, 3, 4):  # a student that does not match is a result
        sys.exit(running.returncode)
    return "".join(said)
