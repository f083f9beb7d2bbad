"""Compile a student block by block: as many graphs as there are kinds of blocks, however deep it is or grows."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from ..configuration import InherituneConfig
from ..students import inspect_architecture


def block_compiler(args: TrainingArguments, config: InherituneConfig) -> dict[str, Any] | None:
    """Return how `torch.compile` is called for each block, or None if blocks are not compiled one by one."""
    if not args.torch_compile or config.compile_scope != "blocks":
        return None
    # Shapes are static: a graph for any shape would be used or not depending on which batch came first, and a run that
    # goes on after an interruption would not be the same to the bit.
    return {"backend": args.torch_compile_backend, "mode": args.torch_compile_mode, "dynamic": False}


def compile_blocks(model: PreTrainedModel, compiler: dict[str, Any] | None) -> None:
    """
    Compile each block of `model` in place; blocks that differ in their weights alone share a graph.

    Names of parameters stay as they are. A block that was seen before, in another student too, is not compiled again.
    """
    if compiler is None:
        return
    blocks: Any = model.get_submodule(inspect_architecture(model.config).block_list)
    for block in blocks:
        block.compile(**compiler)


def as_written(compiler: dict[str, Any] | None) -> contextlib.AbstractContextManager[Any]:
    """
    Let compiled blocks run as they are written within this context: as models are evaluated.

    Batches of an evaluation have as many widths as there are documents shorter than a sequence, and each would be a
    graph. The compiler stops at a few graphs for each function, without an error, and a reference that is evaluated
    first would leave none for training.
    """
    return contextlib.nullcontext() if compiler is None else torch.compiler.set_stance("force_eager")
