"""GPT-2's attention scale that depends on a block's position, and how a moved block keeps it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration import InherituneConfig
from ..layers import is_prefix
from .architectures import Architecture


def moves_scaled_blocks(config: PreTrainedConfig, layers: Sequence[int]) -> bool:
    """Return whether `layers` move blocks whose attention is scaled by position."""
    return bool(getattr(config, "scale_attn_by_inverse_layer_idx", False)) and not is_prefix(layers)


def query_scales(config: PreTrainedConfig, layers: Sequence[int], recipe: InherituneConfig) -> tuple[float, ...]:
    """
    Return by what each kept block's queries are multiplied so that it computes what it computed at its old position.

    GPT-2 with `scale_attn_by_inverse_layer_idx` divides the attention logits of the block at position `i` by `i + 1`
    (PAPER: Appendix A). A moved block would be rescaled, so the difference goes into its weights, unless the recipe
    says `attention_scale="position"`.

    Args:
        config (`PreTrainedConfig`): The reference's config.
        layers (sequence of `int`): The kept layers, 0-based, ascending.
        recipe (`InherituneConfig`): Its `attention_scale` and `inherit` count.

    Returns:
        `tuple[float, ...]`: One factor for each kept block, or nothing where none is multiplied.
    """
    keeps = recipe.attention_scale == "keep" and "attention" in recipe.inherited_parts
    if not keeps or not moves_scaled_blocks(config, layers):
        return ()
    return tuple((position + 1) / (layer + 1) for position, layer in enumerate(layers))


def scale_queries(student: PreTrainedModel, scales: Sequence[float]) -> None:
    """Multiply the queries of every block of a GPT-2 by its factor, in the weights and biases that make them."""
    with torch.no_grad():
        for block, scale in zip(cast(Any, student).transformer.h, scales, strict=True):
            width = block.attn.embed_dim
            block.attn.c_attn.weight[:, :width] *= scale
            block.attn.c_attn.bias[:width] *= scale


def query_rows(architecture: Architecture, name: str) -> tuple[int, int] | None:
    """Return which block of a GPT-2 makes its queries by the tensor `name`, and with how many columns, if any does."""
    found = re.fullmatch(rf"{re.escape(architecture.block_list)}\.(\d+)\.attn\.c_attn\.(weight|bias)", name)
    return (int(found[1]), architecture.parameters[name][-1] // 3) if found else None
