"""What configs say in fields of their own: what follows single layers, what forbids a cut, what becomes of logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from ..layers import describe, is_prefix

#: Model types whose students are proven equal to their references by the tests of this package.
# fmt: off
SUPPORTED_MODEL_TYPES = (
    "apertus", "arcee", "biogpt", "bloom", "codegen", "cohere", "cohere2", "deepseek_v2", "deepseek_v3",
    "ernie4_5", "exaone4", "falcon", "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe",
    "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe",
    "granitemoeshared", "helium", "hunyuan_v1_dense", "hyperclovax", "jais2", "lfm2", "lfm2_moe", "llama",
    "ministral", "ministral3", "mistral", "mixtral", "mpt", "nemotron", "olmo", "olmo2", "olmo3", "olmoe",
    "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss",
    "smollm3", "stablelm", "starcoder2", "vaultgemma", "xglm",
)
# fmt: on

# Lists with one entry per layer. An allow-list, because a list can have the depth's length by accident (eos ids).
_PER_LAYER_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers", "attention_layers", "layer_rope_theta")

# Lists of layer positions.
_INDEX_LISTS = ("mlp_only_layers", "full_attn_idxs")

# Numbers of first layers that are of another kind than those after them.
_THRESHOLDS = ("first_k_dense_replace", "num_dense_layers")

# Every how many layers one is of another kind, with no list beside them: they are right for first layers only.
_PERIODS = ("moe_layer_interval", "interleave_moe_layer_step")

# Fields that, set to anything but none, zero or false, say that layers cannot be taken one by one.
_UNCUTTABLE: Mapping[str, str] = {
    "is_encoder_decoder": "its decoder reads an encoder's states",
    "add_cross_attention": "its blocks read an encoder's states",
    "num_kv_shared_layers": "its last layers reuse the keys and values of earlier ones",
    "num_nextn_predict_layers": "layers beyond its depth predict later tokens (multi-token prediction)",
    "mtp_num_hidden_layers": "layers beyond its depth predict later tokens (multi-token prediction)",
    "hidden_size_per_layer_input": "tensors outside its blocks hold a share for each layer",
    "attn_layer_period": "attention and state-space layers alternate, which is not proven here",
    "attn_layer_indices": "attention and state-space layers alternate, which is not proven here",
    "layers_block_type": "its layers are of several kinds, which is not proven here",
    "hybrid_override_pattern": "its layers are of several kinds, which is not proven here",
    "full_attention_interval": "attention and recurrent layers alternate, which is not proven here",
    "per_layer_config": "its layers are not of one kind",
}

# What logits are multiplied by, where it is not 1.
_LOGIT_FACTORS: Mapping[str, Callable[[Any], float]] = {
    **dict.fromkeys(("cohere", "cohere2"), lambda config: config.logit_scale),
    **dict.fromkeys(
        ("granite", "granite_swa", "granitemoe", "granitemoeshared"), lambda config: 1 / config.logits_scaling
    ),
    "hyperclovax": lambda config: config.logits_scaling,
}

# Kinds of layers, as `layer_types` names them, that are proven to stand for themselves.
_PROVEN_KINDS = {"full_attention", "sliding_attention", "chunked_attention", "attention", "conv"}


def require_causal_lm(config: Mapping[str, Any], reference: str) -> None:
    """
    Refuse a model that is not a causal language model, that cannot be cut, or whose architecture is not proven here.

    Args:
        config (`Mapping`): The reference's config as a dictionary.
        reference (`str`): How messages name the reference.

    Raises:
        ValueError: If the model cannot be inherited from; the message names the field and the reason.
    """
    model_type = config.get("model_type")
    causal = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.get("is_encoder_decoder")
    # Encoders such as BERT have a causal face too; they are causal language models only when told to be decoders.
    if not causal or (model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder")):
        why = " and is_encoder_decoder=True" if config.get("is_encoder_decoder") else ""
        raise ValueError(
            f"{reference} is not a causal language model: its config has model_type {model_type!r}{why}. "
            f"Give a model of one of these types: {', '.join(SUPPORTED_MODEL_TYPES)}."
        )
    for field, value, reason in _obstacles(config):
        raise ValueError(
            f"{reference} cannot be cut: its config has {field}={_short(value)}, and {reason}. "
            "Give a model whose layers stand for themselves."
        )
    unproven = sorted({str(kind) for kind in config.get("layer_types") or []} - _PROVEN_KINDS)
    if unproven:
        raise ValueError(
            f"{reference} cannot be cut: its config has layer_types with {unproven[0]!r}, and layers of this kind are "
            f"not proven here. Give a model whose layers are of these kinds: {', '.join(sorted(_PROVEN_KINDS))}."
        )
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise ValueError(
            f"{reference} has model_type {model_type!r}, whose layers this version does not know how to cut. "
            f"Supported are: {', '.join(SUPPORTED_MODEL_TYPES)}."
        )


def logit_shaping(config: PreTrainedConfig) -> tuple[float, float | None]:
    """Return by what a model of `config` multiplies its head's output, and at what it caps it, if it does."""
    factor = _LOGIT_FACTORS.get(str(config.model_type), lambda _: 1.0)(config)
    return float(factor), getattr(config, "final_logit_softcapping", None)


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
    for name in _PERIODS:
        if (getattr(config, name, None) or 1) > 1 and not is_prefix(layers):
            raise ValueError(
                f"keep_layers={describe(layers)!r} moves layers, and {name}={getattr(config, name)} says by position "
                f"which layers are of another kind: keep first layers only, such as 'first:{len(layers)}'."
            )
    kinds = getattr(config, "layer_types", None) or []
    if "conv" in kinds and not any("attention" in kinds[layer] for layer in layers):
        raise ValueError(
            f"keep_layers={describe(layers)!r} keeps convolutions only, and Transformers cannot generate without a "
            f"layer that attends: keep one of {[layer for layer, kind in enumerate(kinds) if 'attention' in kind]} too."
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
    for name in _THRESHOLDS:
        first = getattr(config, name, None)
        if isinstance(first, int):
            setattr(sliced, name, sum(layer < first for layer in layers))
    _SPECIAL_CARE.get(config.model_type, _no_care)(sliced, config, layers)
    sliced.validate()
    return sliced


def _slice_window_threshold(sliced: PreTrainedConfig, config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Keep `max_window_layers` between the same two blocks; `layer_types` decides, but the two should agree."""
    if config.max_window_layers < config.num_hidden_layers:
        sliced.max_window_layers = sum(layer < config.max_window_layers for layer in layers)


def _rewrite_attention_types(sliced: PreTrainedConfig, config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Rewrite the source that `attention_layers` is recomputed from whenever the config is loaded."""
    sliced.attention_types = [[[config.attention_layers[layer] for layer in layers], 1]]


def _list_dense_layers(sliced: PreTrainedConfig, config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Say which layers have no experts by a list where a period said it: it holds for any choice of layers."""
    step = config.decoder_sparse_step
    if step > 1 and not is_prefix(layers):
        dense = [layer in config.mlp_only_layers or (layer + 1) % step != 0 for layer in layers]
        sliced.decoder_sparse_step = 1
        sliced.mlp_only_layers = [position for position, is_dense in enumerate(dense) if is_dense]


def _moe_with_windows(sliced: PreTrainedConfig, config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Qwen2-MoE has both."""
    _list_dense_layers(sliced, config, layers)
    _slice_window_threshold(sliced, config, layers)


def _no_care(sliced: PreTrainedConfig, config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Leave the config as the allow-lists made it."""


_SPECIAL_CARE: Mapping[str, Callable[[Any, Any, Sequence[int]], None]] = {
    "gpt_neo": _rewrite_attention_types,
    "qwen2": _slice_window_threshold,
    "qwen2_moe": _moe_with_windows,
    "qwen3": _slice_window_threshold,
    "qwen3_moe": _list_dense_layers,
}


def _obstacles(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield the fields that stand in the way, also those of the text model within a model of several media."""
    for prefix, fields in (("", config), ("text_config.", config.get("text_config"))):
        for field, reason in _UNCUTTABLE.items():
            if isinstance(fields, Mapping) and fields.get(field):
                yield f"{prefix}{field}", fields[field], reason


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
