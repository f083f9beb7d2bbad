"""The peak memory of loading a model and generating with it, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def peak_memory(model: str, prompt_tokens: int, new_tokens: int, device: str, **options: Any) -> int | None:
    """
    Measure the peak memory that a model takes to be loaded and to generate one sequence.

    Args:
        model (`str`): Hub id or path.
        prompt_tokens (`int`): Tokens of the prompt.
        new_tokens (`int`): Tokens to generate.
        device (`str`): `cuda` for the device's memory; the process's otherwise, where the system tells it (Linux).
        options: Passed on to `from_pretrained`: `dtype`, `revision`, `attn_implementation`.

    Returns:
        `int`, *optional*: Bytes above what the libraries take; None where the system does not tell.

    Raises:
        RuntimeError: If the process failed.
    """
    if device != "cuda" and not _STATUS.is_file():
        return None
    request = json.dumps([model, prompt_tokens, new_tokens, device, options])
    command = [sys.executable, "-c", "from inheritune_hf.evaluation import memory; memory.main()", request]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"Measuring the memory of {model} failed: {done.stderr.strip()[-500:]}")
    return int(done.stdout.split()[-1])


def fixed_generation(new_tokens: int) -> dict[str, Any]:
    """Return the arguments with which `generate` makes exactly `new_tokens` tokens, greedily, with its cache."""
    return {
        "max_new_tokens": new_tokens,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "use_cache": True,
    }


def _measure(model: str, prompt_tokens: int, new_tokens: int, device: str, options: dict[str, Any]) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    source = {"revision": options["revision"]} if options.get("revision") else {}
    # The modelling code is imported before, so that only the model itself counts.
    config = AutoConfig.from_pretrained(model, **source)
    with torch.device("meta"):
        auto.from_config(config)
    before = 0 if device == "cuda" else _status("VmRSS")
    if device != "cuda":
        _RESET.write_text("5")  # forget the peak so far
    loaded = auto.from_pretrained(model, **options).to(device).eval()
    prompt = torch.arange(prompt_tokens, device=device)[None] % config.get_text_config(decoder=True).vocab_size
    with torch.no_grad():
        loaded.generate(prompt, attention_mask=torch.ones_like(prompt), **fixed_generation(new_tokens))
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Print the peak memory of what the command line asks for, in bytes: the other side of `peak_memory`."""
    sys.stdout.write(f"{_measure(*json.loads(sys.argv[1]))}\n")
