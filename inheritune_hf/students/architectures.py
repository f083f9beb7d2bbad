"""What differs between architectures: where the blocks are and which config fields depend on depth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from .selection import describe, is_prefix

#: Model types whose students are proven equal to their references by the tests of this package.
SUPPORTED_MODEL_TYPES = (
    "bloom",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm",
    "starcoder2",
)

# Lists with one entry per layer. An allow-list, because a list can have the depth's length by accident (eos ids).
_PER_LAYER_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers", "attention_layers")

# Lists of layer positions.
_INDEX_LISTS = ("mlp_only_layers",)

# Where files name a tensor otherwise than the model does, by model type: the name in files, the name in the model.
_PUBLISHED_NAMES: Mapping[str, tuple[str, str]] = {"gpt_neox": ("embed_out.", "lm_head.")}


@dataclass(frozen=True)
class Architecture:
    """
    What building a student needs to know about the reference's architecture.

    Args:
        model_type (`str`): The config's name of the architecture, such as `gpt2`.
        model_class (`type[PreTrainedModel]`): The causal language model class, such as `GPT2LMHeadModel`.
        block_list (`str`): Dotted name of the list of blocks in the model, such as `transformer.h`.
        depth (`int`): Blocks in the list.
        tied (`Mapping[str, str]`): Parameters that share another's storage, and which, such as a tied head.
        parameters (`Mapping[str, tuple[int, ...]]`): Shape of every tensor of the model's `state_dict`.
        parameter_count (`int`): Numbers in the model's parameters; shared ones count once.
    """

    model_type: str
    model_class: type[PreTrainedModel]
    block_list: str
    depth: int
    tied: Mapping[str, str]
    parameters: Mapping[str, tuple[int, ...]]
    parameter_count: int

    @property
    def base_prefix(self) -> str:
        """First part of the names that a checkpoint of the bare model leaves out, such as `transformer.`."""
        return f"{self.model_class.base_model_prefix}."


def require_causal_lm(model_type: str | None, is_decoder: bool, is_encoder_decoder: bool, reference: str) -> None:
    """
    Refuse a model that is not a causal language model, or whose architecture is not proven here.

    Args:
        model_type (`str`, *optional*): The `model_type` of the reference's config.
        is_decoder (`bool`): Whether the config turns an encoder into a decoder.
        is_encoder_decoder (`bool`): Whether the config describes an encoder-decoder.
        reference (`str`): How messages name the reference.

    Raises:
        ValueError: If the model cannot be inherited from.
    """
    causal = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_encoder_decoder
    # Encoders such as BERT have a causal face too; they are causal language models only when told to be decoders.
    if not causal or (model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not is_decoder):
        raise ValueError(
            f"{reference} is not a causal language model: its config has model_type {model_type!r}. "
            f"Give a model of one of these types: {', '.join(SUPPORTED_MODEL_TYPES)}."
        )
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise ValueError(
            f"{reference} has model_type {model_type!r}, whose layers this version does not know how to cut. "
            f"Supported are: {', '.join(SUPPORTED_MODEL_TYPES)}."
        )


def inspect_architecture(config: PreTrainedConfig) -> Architecture:
    """
    Return what building a student needs to know about models of `config`, without allocating any weight.

    Raises:
        RuntimeError: If the model has no list of as many blocks as its config says.
    """
    model = _empty_model(config)
    depth = int(config.get_text_config(decoder=True).num_hidden_layers)
    return Architecture(
        model_type=str(config.model_type),
        model_class=type(model),
        block_list=_find_blocks(model, depth),
        depth=depth,
        tied=dict(model.all_tied_weights_keys),
        parameters={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        parameter_count=sum(parameter.numel() for parameter in model.parameters()),
    )


def student_skeleton(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedModel:
    """
    Return the student that keeps `layers` of a reference of `config`, without weights: it lies on the meta device.

    Args:
        config (`PreTrainedConfig`): The reference's config, which is left as it is.
        layers (sequence of `int`): The kept layers, 0-based, ascending.

    Returns:
        `PreTrainedModel`: The empty student.

    Raises:
        ValueError: If the selection would change what a block computes.
    """
    return _empty_model(sliced_config(config, layers))


def sliced_config(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """
    Return the config of a student that keeps `layers` of a reference of `config`, which is left as it is.

    Args:
        config (`PreTrainedConfig`): The reference's config.
        layers (sequence of `int`): The kept layers, 0-based, ascending.

    Returns:
        `PreTrainedConfig`: A checked copy with fewer layers; fields that speak of single layers follow them.

    Raises:
        ValueError: If the selection would change what a block computes.
    """
    if getattr(config, "is_heterogeneous", False):
        raise ValueError("keep_layers cannot cut a config with per_layer_config: its layers are not of one kind.")
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) and not is_prefix(layers):
        raise ValueError(
            f"keep_layers={describe(layers)!r} moves blocks of a GPT-2 with scale_attn_by_inverse_layer_idx=True, "
            "which divides attention by the layer's position: a moved block would be rescaled. Keep first layers only, "
            f"such as 'first:{len(layers)}'."
        )
    sliced = copy.deepcopy(config)
    depth = int(config.num_hidden_layers)
    sliced.num_hidden_layers = len(layers)
    for name in _PER_LAYER_LISTS:
        entries = getattr(config, name, None)
        if isinstance(entries, list | tuple) and len(entries) >= depth:
            setattr(sliced, name, [entries[layer] for layer in layers])
    for name in _INDEX_LISTS:
        entries = getattr(config, name, None)
        if isinstance(entries, list | tuple):
            setattr(sliced, name, [position for position, layer in enumerate(layers) if layer in entries])
    _SPECIAL_CARE.get(config.model_type, _no_care)(sliced, config, layers)
    sliced.validate()
    return sliced


def kept_names(architecture: Architecture, layers: Sequence[int]) -> dict[str, str]:
    """
    Return, for every name that a kept tensor of the reference may have in a file, its name in the student.

    Files name tensors with or without the base model's prefix (`transformer.h.3.…` or, as GPT-2 is published,
    `h.3.…`). What a file holds besides (masks, other heads, dropped layers) has no name here and is never read.

    Args:
        architecture (`Architecture`): The reference's architecture.
        layers (sequence of `int`): The kept layers, 0-based, ascending.

    Returns:
        `dict[str, str]`: Names in the student, by name in the files.
    """
    blocks = f"{architecture.block_list}."
    positions = {str(layer): str(position) for position, layer in enumerate(layers)}
    published, current = _PUBLISHED_NAMES.get(architecture.model_type, ("", ""))
    names = {}
    for name in architecture.parameters:
        renamed = name
        if name.startswith(blocks):
            layer, _, rest = name.removeprefix(blocks).partition(".")
            if layer not in positions:
                continue
            renamed = f"{blocks}{positions[layer]}.{rest}"
        names[name] = renamed
        names.setdefault(name.removeprefix(architecture.base_prefix), renamed)
        if published and name.startswith(current):
            names[published + name.removeprefix(current)] = renamed
    return names


def _slice_window_threshold(sliced: PreTrainedConfig, config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Keep `max_window_layers` between the same two blocks; `layer_types` decides, but the two should agree."""
    if config.max_window_layers < config.num_hidden_layers:
        sliced.max_window_layers = sum(layer < config.max_window_layers for layer in layers)


def _rewrite_attention_types(sliced: PreTrainedConfig, config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Rewrite the source that `attention_layers` is recomputed from whenever the config is loaded."""
    sliced.attention_types = [[[config.attention_layers[layer] for layer in layers], 1]]


def _no_care(sliced: PreTrainedConfig, config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Leave the config as the allow-lists made it."""


_SPECIAL_CARE: Mapping[str, Callable[[Any, Any, Sequence[int]], None]] = {
    "gpt_neo": _rewrite_attention_types,
    "qwen2": _slice_window_threshold,
    "qwen3": _slice_window_threshold,
}


def _empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    model_class = cast(type[PreTrainedModel], MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    with torch.device("meta"):
        return model_class(copy.deepcopy(config))


def _find_blocks(model: PreTrainedModel, depth: int) -> str:
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    decoder_name = next((name for name, module in model.named_modules() if module is decoder), "")
    candidates = [
        name for name, module in decoder.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not candidates:
        raise RuntimeError(f"{type(model).__name__} has no list of {depth} blocks, the depth that its config says.")
    shallowest = min(candidates, key=lambda name: name.count("."))
    return f"{decoder_name}.{shallowest}".lstrip(".")
