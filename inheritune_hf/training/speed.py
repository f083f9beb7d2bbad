"""Make training fast where numbers stay the same: compiled blocks, fewer collections, settings known to be slow."""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from ..students import find_blocks


def block_compiler(args: TrainingArguments) -> dict[str, Any] | None:
    """Return how `torch.compile` is called for each block, or None if nothing is compiled."""
    if not args.torch_compile:
        return None
    # Shapes are static: a graph for any shape would be used or not depending on which batch came first, and a run that
    # resumes after an interruption would not be the same to the bit.
    return {"backend": args.torch_compile_backend, "mode": args.torch_compile_mode, "dynamic": False}


def compile_blocks(model: PreTrainedModel, compiler: dict[str, Any] | None) -> None:
    """
    Compile each block of `model` in place; blocks that differ in their weights alone share a graph.

    So neither depth nor growth adds graphs, and the names of parameters stay as they are. Attention that is scaled by
    depth takes a graph for each layer, and PyTorch is told so where it can be: it gives up after eight.
    """
    if compiler is None:
        return
    blocks = find_blocks(model)
    scaled = getattr(model.config, "scale_attn_by_inverse_layer_idx", False)
    if scaled and "recompile_limit" in inspect.signature(torch.compile).parameters:
        compiler = {**compiler, "recompile_limit": 2 * len(blocks)}  # packed rows have one or two shapes
    for block in blocks:
        block.compile(**compiler)


def eager_mode(compiler: dict[str, Any] | None) -> contextlib.AbstractContextManager[Any]:
    """
    Run compiled blocks without their graphs within this context, as models are evaluated.

    Batches of an evaluation have as many widths as there are documents shorter than a sequence, and each would be a
    graph. The compiler stops at a few graphs for each function, without an error, and a reference that is evaluated
    first would leave none for training.
    """
    return contextlib.nullcontext() if compiler is None else torch.compiler.set_stance("force_eager")


@contextlib.contextmanager
def frozen_gc() -> Iterator[None]:
    """
    Let garbage collections within this context look only at objects that were made within it.

    Replacing a model takes collections, here and in Trainer, and each would search the hundred thousands of objects
    that the imported packages are made of. If somebody else has frozen objects, nothing is done: they are not ours to
    release.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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
    written_out = getattr(model.config, "_attn_implementation", None) == "eager"
    quick = device.type == "cpu" and precision == "bf16"  # where, with narrow heads, the fused one is slower
    if written_out and not quick and getattr(model, "_supports_sdpa", False):
        found.append("attention written out ('eager'); use attn_implementation 'sdpa'")
    return found


def _uses_tf32() -> bool:
    # From torch 2.9 on there are two ways to set it, and the older getter raises where the newer one was used.
    if hasattr(torch.backends, "fp32_precision"):
        return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def _cpu_multiplies(precision: str) -> bool:
    # Only private functions of PyTorch know these; where they are missing, nothing is known to be slow.
    names = {"bf16": ("_is_avx512_bf16_supported", "_is_amx_tile_supported"), "fp16": ("_is_amx_fp16_supported",)}
    asked = [getattr(torch.cpu, name) for name in names[precision] if hasattr(torch.cpu, name)]
    return not asked or torch.backends.cpu.get_cpu_capability() == "DEFAULT" or any(ask() for ask in asked)
