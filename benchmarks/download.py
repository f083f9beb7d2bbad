"""
What downloading a student costs: half of a GPT-2-XL-shaped repository, against `from_pretrained`, from a local Hub.

    python -m benchmarks.download [--folder FOLDER] [--layers 48]

A checkpoint of 6.4 GB is made in FOLDER, as one file and in shards, served by `tests/hub_server.py` in a process of its
own, and removed afterwards. Every client is a process of its own with an empty cache; bytes are counted by the server,
for both hosts, without headers. Every tensor is compared with that of a student of the local folder.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from inheritune_hf.students import plan_inheritance

from .loading import make_checkpoint

TESTS = Path(__file__).resolve().parent.parent / "tests"

_CLIENT = """
import hashlib, json, sys, time
import torch
from huggingface_hub.utils import disable_progress_bars
from transformers import AutoModelForCausalLM
from inheritune_hf import InheritedGPT2
disable_progress_bars()
way, source, keep = sys.argv[1], sys.argv[2], int(sys.argv[3])
began = time.perf_counter()
if way == "from_pretrained":
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, num_hidden_layers=keep)
else:
    model = InheritedGPT2.from_pretrained(source, keep_layers=keep)
seconds = time.perf_counter() - began
digest = hashlib.sha256()
for name, tensor in sorted(model.state_dict().items()):
    digest.update(name.encode())
    digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
print(json.dumps({"seconds": seconds, "sha256": digest.hexdigest()}))
"""


def client(way: str, source: str, keep: int, environment: dict[str, str]) -> dict[str, object]:
    """Build a student in a fresh process and return its seconds and the hash of its tensors."""
    command = [sys.executable, "-c", _CLIENT, way, source, str(keep)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Make the checkpoints, serve them, download, and print a table for the benchmarks' README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="Where the checkpoints are made (default: a temporary folder).")
    parser.add_argument("--layers", type=int, default=48, help="Depth of the reference (default: 48).")
    options = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from hub_process import LocalHub

    work = Path(tempfile.mkdtemp(dir=options.folder))
    keep = options.layers // 2
    hub = LocalHub()
    print("| layout | way | MB sent | of the kept tensors | requests | seconds | same as a local cut |")
    print("|---|---|---|---|---|---|---|")
    try:
        for layout in ("one file", "shards"):
            folder = work / "reference"
            make_checkpoint(folder, options.layers, layout == "shards")
            kept = plan_inheritance(folder, keep).bytes_to_read
            expected = client("local", str(folder), keep, dict(os.environ))["sha256"]
            repository = f"me/{layout.replace(' ', '-')}"
            hub.add(repository, folder)
            steps = [("this package", keep), ("from_pretrained", keep)]
            steps.insert(1, ("two more layers", keep + 2))
            for way, layers in steps:
                home = work / ("whole" if way == "from_pretrained" else "parts")
                hub.clear()
                found = client(way, repository, layers, hub.environment(home))
                log = hub.log
                sent = sum(entry["bytes"] for entry in log)
                base = plan_inheritance(folder, layers).bytes_to_read - (kept if layers > keep else 0)
                local = expected if layers == keep else client("local", str(folder), layers, dict(os.environ))["sha256"]
                same = "yes" if found["sha256"] == local else "NO"
                print(
                    f"| {layout} | {way} | {sent / 1e6:,.1f} | {sent / base:.4f} | {len(log)} | "
                    f"{found['seconds']:.1f} | {same} |",
                    flush=True,
                )
            shutil.rmtree(folder)
            for name in ("whole", "parts"):
                shutil.rmtree(work / name)
    finally:
        hub.stop()
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
