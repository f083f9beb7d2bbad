"""Settings that are known to be slow on this hardware: named once, never changed."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def slow_settings(model: PreTrainedModel, device: torch.device, precision: str) -> list[str]:
    """
    Name what was set and is known to be slow on `device`, each with what would be faster.

    Args:
        model (`PreTrainedModel`): What is trained; its attention is looked at.
        device (`torch.device`): Where.
        precision (`str`): Of the training arguments: `bf16`, `fp16` or `no`.
    """
    found = []
    if device.type == "cpu" and precision != "no" and not _cpu_multiplies(precision):
        found.append(
            f"{precision} on a CPU without instructions for it, which takes several times as long; use float32"
        )
    if device.type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
        if precision == "bf16" and major < 8:
            found.append("bf16 on a GPU that only imitates it; use fp16")
        if precision == "no" and major >= 8 and not _uses_tf32():
            found.append("float32 on a GPU with faster units for bf16 and TF32; use bf16, or tf32")
    if getattr(model.config, "_attn_implementation", None) == "eager" and getattr(model, "_supports_sdpa", False):
        found.append("attention written out ('eager'); use attn_implementation 'sdpa'")
    return found


def _uses_tf32() -> bool:
    # From torch 2.9 on there are two ways to set it, and the older getter raises where the newer one was used.
    if hasattr(torch.backends, "fp32_precision"):
        return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def _cpu_multiplies(precision: str) -> bool:
    # PyTorch tells these by names of its own alone; where it does not, nothing is known to be slow.
    names = {"bf16": ("_is_avx512_bf16_supported", "_is_amx_tile_supported"), "fp16": ("_is_amx_fp16_supported",)}
    asked = [getattr(torch.cpu, name) for name in names[precision] if hasattr(torch.cpu, name)]
    return not asked or torch.backends.cpu.get_cpu_capability() == "DEFAULT" or any(ask() for ask in asked)
