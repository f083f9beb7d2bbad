"""Describe architectures: which can be cut, their config fields, where their blocks are, their parts."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, __version__
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from ..config import PARTS
from ..layers import describe, is_prefix

#: Model types whose students are proven equal to their references by the tests of this package.
# fmt: off
SUPPORTED_MODEL_TYPES = (
    "afmoe", "apertus", "arcee", "axk1", "axk2", "bailing_hybrid", "bamba", "biogpt", "bloom", "codegen", "cohere",
    "cohere2", "cohere2_moe", "cwm", "deepseek_v2", "deepseek_v3", "deepseek_v32", "doge", "dots1", "ernie4_5",
    "ernie4_5_moe", "exaone4", "exaone_moe", "falcon", "falcon_h1", "falcon_mamba", "flex_olmo", "flint", "gemma",
    "gemma2", "gemma3_text", "gemma4_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite",
    "glm_moe_dsa", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "granite_swa",
    "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "helium", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2", "jamba", "jetmoe", "kimi_linear",
    "kolibri1", "laguna", "lfm2", "lfm2_moe", "lfm3", "llama", "llama4_text", "mamba", "mamba2", "mellum",
    "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2", "ministral", "ministral3", "mistral", "mixtral",
    "modernbert-decoder", "mpt", "nanochat", "nemotron", "nemotron_h", "olmo", "olmo2", "olmo3", "olmo_hybrid",
    "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text",
    "qwen3_5_text", "qwen3_moe", "qwen3_next", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2",
    "vaultgemma", "xglm", "youtu",
)
# fmt: on

#: Multimodal models whose text model is proven equal to a model of its own, on text, by the tests of this package.
# fmt: off
MULTIMODAL_TYPES = (
    "deepseek_vl", "exaone4_5", "fuyu", "gemma3", "gemma4", "gemma4_unified", "got_ocr2", "hyperclovax_vision_v2",
    "idefics2", "idefics3", "internvl", "janus", "lfm2_vl", "lighton_ocr", "llama4", "llava", "llava_next",
    "llava_next_video", "llava_onevision", "mistral3", "ovis2", "qwen2_5_vl", "qwen2_audio", "qwen2_vl", "qwen3_5",
    "qwen3_5_moe", "qwen3_vl", "smolvlm", "video_llava", "vipllava", "voxtral",
)
# fmt: on

# Text models without a causal class of their own, and the type that computes the same on text.
_SAME_TEXT_MODEL = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}

# What the files of multimodal models put before the names of the text model's tensors, and its head's.
_TEXT_MODEL_NAMES = (
    (re.compile(r"^(model\.)?(language_model|text_model)\.lm_head\."), "lm_head."),
    (re.compile(r"^(model\.)?(language_model|text_model)\.(model\.)?"), "model."),
)

# Lists with one entry per layer. An allow-list, because a list can have the depth's length by accident (eos ids).
_PER_LAYER_LISTS = (
    "layer_types",
    "mlp_layer_types",
    "no_rope_layers",
    "attention_layers",
    "layer_rope_theta",
    "indexer_types",
    "moe_topk",
    "moe_intermediate_size",
    "num_attention_heads_per_layer",
    "num_shared_expert",
)

# Lists of layer positions.
_INDEX_LISTS = ("mlp_only_layers", "full_attn_idxs", "moe_layers", "attn_layer_indices")

# Numbers of first layers that are of another kind than those after them.
_THRESHOLDS = ("first_k_dense_replace", "num_dense_layers")

# Fields that may say by a period or a pattern what one of the lists says for each layer; other tools read them.
_PERIODIC = re.compile(r"pattern|interval|period|every|switch|(?<!time_)step|freq|layer_group_size")

# Fields that count layers beside the decoder's, which predict later tokens: a student has none, as in Transformers.
_AUXILIARY = re.compile(r"(^|_)(mtp|nextn|medusa|eagle)(_|$)")

# Fields that, set to anything but none, zero or false, say that layers depend on one another.
_UNCUTTABLE: Mapping[str, str] = {
    "is_encoder_decoder": "its decoder reads an encoder's states",
    "add_cross_attention": "its blocks read an encoder's states",
    "num_kv_shared_layers": "its last layers reuse the keys and values of earlier ones",
    "hidden_size_per_layer_input": "tensors outside its blocks hold a share for each layer",
}

# Models whose head is not one for language, by the name of their class.
_OTHER_HEADS = re.compile(r"For\w*(Classification|Answering|Choice|Regression|Score|Embedding)|Reward|Classifier")

# Where a multimodal model keeps the config of its text model.
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder_config", "decoder")

# What configs call the number of layers, and what no model has more of: a config is refused before one is built.
_DEPTH_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_DEEPEST = 10_000

#: What Transformers raises on a config whose fields are of other types than they should be, or fit no model.
UNUSABLE_CONFIG = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)

# What logits are multiplied by, where it is not 1.
_LOGIT_FACTORS: Mapping[str, Callable[[Any], float]] = {
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), lambda config: config.logit_scale),
    **dict.fromkeys(
        ("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared"),
        lambda config: 1 / config.logits_scaling,
    ),
    "falcon_h1": lambda config: config.lm_head_multiplier,
    "hyperclovax": lambda config: config.logits_scaling,
}

# Kinds of layers, as `layer_types` names them, that are proven not to depend on one another; first those without
# softmax attention.
_WITHOUT_ATTENTION = {"conv", "linear_attention", "mamba", "mlp", "moe"}
_PROVEN_KINDS = _WITHOUT_ATTENTION | {
    *("attention", "chunked_attention", "full_attention", "hybrid", "indexed_attention", "sliding_attention"),
}


def require_causal_lm(config: Mapping[str, Any], reference: str) -> None:
    """
    Refuse a model that is not a causal language model, cannot be cut, or whose architecture is not proven here.

    The `ValueError` names the model by `reference`, the field of its config, and the reason.
    """
    obstacles = _require_language_model(config, reference)
    for field in _DEPTH_FIELDS:
        depth = config.get(field)
        if depth is not None and (type(depth) is not int or not 1 <= depth <= _DEEPEST):
            raise ValueError(
                f"{reference} cannot be used: its config has {field}={_short(depth)}; a number from 1 to {_DEEPEST:,} "
                "is needed."
            )
    for field, value, reason in obstacles:
        raise ValueError(
            f"{reference} cannot be cut: its config has {field}={_short(value)}, and {reason}. "
            "Give a model whose layers do not depend on one another."
        )
    kinds = config.get("layer_types") or []
    if not isinstance(kinds, list):
        raise ValueError(f"{reference} cannot be used: its config has layer_types={_short(kinds)}; a list is needed.")
    unproven = sorted({str(kind) for kind in kinds} - _PROVEN_KINDS)
    if unproven:
        raise ValueError(
            f"{reference} cannot be cut: its config has layer_types with {unproven[0]!r}, and layers of this kind are "
            f"not proven here. Give a model whose layers are of these kinds: {', '.join(sorted(_PROVEN_KINDS))}."
        )
    if config.get("model_type") not in SUPPORTED_MODEL_TYPES:
        raise ValueError(
            f"{reference} has model_type {config.get('model_type')!r}, whose layers this version does not know how to "
            f"cut. Supported are: {', '.join(SUPPORTED_MODEL_TYPES)}."
        )


def _require_language_model(config: Mapping[str, Any], reference: str) -> list[tuple[str, Any, str]]:
    """Refuse what is no causal language model that Transformers knows; return the fields that forbid cutting it."""
    model_type = config.get("model_type")
    supported = ", ".join(SUPPORTED_MODEL_TYPES)
    if not isinstance(model_type, str | None):
        raise ValueError(f"{reference} cannot be used: its config has model_type={_short(model_type)}, not a name.")
    if model_type not in CONFIG_MAPPING and config.get("auto_map"):
        raise ValueError(
            f"{reference} needs remote code (model_type {model_type!r}, with an auto_map), which is not run here. "
            f"Give a model of one of the types that Transformers has itself: {supported}."
        )
    field, text = _text_model(config)
    obstacles = [*_obstacles(config), *_obstacles(text, f"{field}.")]
    if model_type in MULTIMODAL_TYPES and not obstacles:
        raise ValueError(
            f"{reference} is a multimodal model (model_type {model_type!r}): to cut the text model inside it, say "
            "text_model=True (--text-model; text_model: true in a file of settings)."
        )
    text_type = text.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES and text_type in SUPPORTED_MODEL_TYPES and not obstacles:
        raise ValueError(
            f"{reference} is a multimodal model (model_type {model_type!r}); the text model inside it, of type "
            f"{text_type!r} ({field}), can be cut: load the whole with Transformers and give its language_model, or "
            "save that with its head as a model of its own (AutoModelForCausalLM.from_config(config.text_config))."
        )
    if isinstance(model_type, str) and model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{reference} has model_type {model_type!r}, which this version of Transformers ({__version__}) does not "
            f"know: upgrade it if the model is newer, or give a model of one of these types: {supported}."
        )
    causal = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.get("is_encoder_decoder")
    # Encoders such as BERT have a causal face too; they are causal language models only if `is_decoder` is set.
    if not causal or (model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder")):
        why = " and is_encoder_decoder=True" if config.get("is_encoder_decoder") else ""
        raise ValueError(
            f"{reference} is not a causal language model: its config has model_type {model_type!r}{why}. "
            f"Give a model of one of these types: {supported}."
        )
    classes = config.get("architectures")
    for name in [classes] if isinstance(classes, str) else _as_list(classes):
        if _OTHER_HEADS.search(str(name)):
            raise ValueError(
                f"{reference} is not a causal language model but a {name}: its head does not predict tokens. Give the "
                "language model that it was made from."
            )
    return obstacles


def require_multimodal(model_type: Any, reference: str) -> None:
    """Raise a `ValueError` if a model is not a multimodal one whose text model is proven here."""
    if model_type not in MULTIMODAL_TYPES:
        raise ValueError(
            f"text_model is for multimodal models of the types {', '.join(MULTIMODAL_TYPES)}, and {reference} has "
            f"model_type {model_type!r}: leave it out, or give a model of one of them."
        )


def text_model_config(
    config: PreTrainedConfig, reference: str, is_tied: Callable[[PreTrainedConfig], bool]
) -> PreTrainedConfig:
    """
    Return the config of the text model inside a multimodal model, of the text model's own causal class.

    Where the two configs do not agree whether the head is tied, `is_tied` is asked.

    Raises:
        ValueError: If the model is not a multimodal one that is proven here; `reference` is how the message names it.
    """
    require_multimodal(config.model_type, reference)
    text: Any = copy.deepcopy(config.get_text_config(decoder=True))
    ties = {bool(item.tie_word_embeddings) for item in (config, text) if hasattr(item, "tie_word_embeddings")}
    if text.model_type in _SAME_TEXT_MODEL:
        values = {name: value for name, value in text.to_dict().items() if name != "model_type"}
        # Positions in time, height and width are the same number on text.
        rotary = values.get("rope_parameters") or {}
        values["rope_parameters"] = {name: value for name, value in rotary.items() if not name.startswith("mrope")}
        text = CONFIG_MAPPING[_SAME_TEXT_MODEL[text.model_type]](**values)
    text.dtype = text.dtype or config.dtype
    text.tie_word_embeddings = ties.pop() if len(ties) == 1 else is_tied(text)
    return cast(PreTrainedConfig, text)


def _text_model(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the config of the text model within a multimodal model, and where it is; empty if there is none."""
    for field in _TEXT_CONFIGS:
        inner = config.get(field)
        if isinstance(inner, Mapping):
            deeper, text = _text_model(inner)
            return (f"{field}.{deeper}", text) if text else (field, inner)
    return "", {}


def _obstacles(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield the fields that stand in the way of cutting, with their values and reasons."""
    for field, reason in _UNCUTTABLE.items():
        if config.get(field):
            yield f"{prefix}{field}", config[field], reason


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def dropped_kinds(config: PreTrainedConfig, layers: Sequence[int]) -> tuple[str, ...]:
    """Return the kinds of layers, as the config's lists name them, of which a student of `layers` has none."""
    dropped: set[str] = set()
    for name in ("layer_types", "attention_layers"):
        kinds = _as_list(getattr(config, name, None))
        if len(kinds) >= int(config.num_hidden_layers):
            dropped |= set(kinds) - {kinds[layer] for layer in layers}
    rotary = _as_list(getattr(config, "no_rope_layers", None))  # one for each layer; zero where there is no rotation
    if 0 in rotary and all(rotary[layer] for layer in layers):
        dropped.add("no_rope")
    sparse = inspect_architecture(config).sparse_blocks
    if 0 < len(sparse) < int(config.num_hidden_layers) and len({layer in sparse for layer in layers}) == 1:
        dropped.add("dense" if layers[0] in sparse else "sparse")
    return tuple(sorted(dropped))


def logit_shaping(config: PreTrainedConfig) -> tuple[float, float | None]:
    """Return by what a model of `config` multiplies its head's output, and at what it caps it, if it does."""
    factor = _LOGIT_FACTORS.get(str(config.model_type), lambda _: 1.0)(config)
    return float(factor), getattr(config, "final_logit_softcapping", None)


def sliced_config(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """
    Return a checked config of a student that keeps `layers` (0-based, ascending) of a reference of `config`.

    Raises:
        ValueError: If the selection would change what a block computes, or leaves no model that Transformers can run.
    """
    _require_needed_kinds(config, layers)
    config = copy.deepcopy(config)
    overrides = config.to_dict()["per_layer_config"] if getattr(config, "is_heterogeneous", False) else None
    if overrides is not None:  # fields that differ between layers cannot be read while they do
        config.per_layer_config = None
    sliced = copy.deepcopy(config)
    depth = int(config.num_hidden_layers)
    # Code of the reference's repository that a student has no use for: Transformers knows its architecture.
    vars(sliced).pop("auto_map", None)
    sliced.num_hidden_layers = len(layers)
    for name in (*_PER_LAYER_LISTS, *filter(_PERIODIC.search, vars(config))):
        entries = _as_list(getattr(config, name, None))
        if len(entries) >= depth and not _is_computed(config, name):
            kept = [entries[layer] for layer in layers]
            setattr(sliced, name, kept)
            _follow(sliced, list(entries[:depth]), kept)
    for name in _INDEX_LISTS:
        chosen = getattr(config, name, None)
        if isinstance(chosen, list | tuple):
            setattr(sliced, name, [position for position, layer in enumerate(layers) if layer in chosen])
    for name in _THRESHOLDS:
        first = getattr(config, name, None)
        if isinstance(first, int):
            setattr(sliced, name, sum(layer < first for layer in layers))
    for name in _auxiliary_fields(config):
        setattr(sliced, name, type(getattr(config, name))(0))
    for care in _SPECIAL_CARE.get(config.model_type, ()):
        care(sliced, config, layers)
    if overrides is not None:
        given = {int(layer): fields for layer, fields in overrides.items()}
        sliced.per_layer_config = {place: given[layer] for place, layer in enumerate(layers) if layer in given}
    try:
        sliced.validate()
    except StrictDataclassError as error:
        why = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"keep_layers={describe(layers)!r} leaves a model that Transformers refuses: {why}") from error
    return sliced


def is_cuttable(config: PreTrainedConfig, layers: Sequence[int]) -> bool:
    """Return whether `layers` alone are a model of the family: a hybrid, say, needs one that attends."""
    try:
        sliced_config(config, layers)
    except ValueError:
        return False
    return True


def cuttable_order(config: PreTrainedConfig, order: Sequence[int], count: int) -> tuple[int, ...]:
    """
    Return `order` with as little changed as lets its first `count` layers, and any more of them, be a student.

    From the end on, a layer that the others cannot do without changes places with the next one that they can.
    """
    left, removed = list(order), list[int]()
    while len(left) > count:
        others = ((layer, sorted({*left} - {layer})) for layer in reversed(left))
        removed.append(next((layer for layer, rest in others if is_cuttable(config, rest)), left[-1]))
        left.remove(removed[-1])
    return (*left, *reversed(removed))


def prediction_layers(config: PreTrainedConfig) -> int:
    """Return how many layers, by the config, predict tokens after the next one; a student has none of them."""
    return max((int(getattr(config, name)) for name in _auxiliary_fields(config)), default=0)


def _auxiliary_fields(config: PreTrainedConfig) -> list[str]:
    return [name for name, value in vars(config).items() if _AUXILIARY.search(name) and isinstance(value, int)]


def _is_computed(config: PreTrainedConfig, name: str) -> bool:
    """Return whether a field of the config is computed from others."""
    return isinstance(getattr(type(config), config.attribute_map.get(name, name), None), property)


def attending_layers(config: PreTrainedConfig) -> list[int]:
    """Return the layers with softmax attention."""
    kinds = _as_list(getattr(config, "layer_types", None)) or [""] * int(config.num_hidden_layers)
    return [layer for layer, kind in enumerate(kinds) if kind not in _WITHOUT_ATTENTION]


def _require_needed_kinds(config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Refuse layers without one that every model of the family must have, or has at its end."""
    kinds = _as_list(getattr(config, "layer_types", None))
    attending = attending_layers(config)
    if attending and not set(attending) & set(layers):
        raise ValueError(
            f"keep_layers={describe(layers)!r} keeps no layer with softmax attention, and Transformers cannot generate "
            f"without one: keep one of {attending} too."
        )
    indexers = _as_list(getattr(config, "indexer_types", None))
    for layer in (item for item in layers if indexers and indexers[item] == "shared"):
        source = max((item for item in range(layer) if indexers[item] != "shared"), default=layer)
        if source not in layers:
            raise ValueError(
                f"keep_layers={describe(layers)!r} keeps layer {layer}, which attends to what layer {source} "
                f"selects (indexer_types[{layer}]='shared'): keep layer {source} too, or neither."
            )
    if config.model_type == "modernbert-decoder" and layers[0] != 0:
        raise ValueError(
            f"keep_layers={describe(layers)!r} begins with layer {layers[0]}, and the first one of a "
            "modernbert-decoder has no norm before its attention: keep layer 0 too."
        )
    if str(config.model_type).startswith("gemma4") and kinds[layers[-1]] != "full_attention":
        full = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
        raise ValueError(
            f"keep_layers={describe(layers)!r} ends with a layer of {kinds[layers[-1]]}, and the last one of a "
            f"{config.model_type} must have full attention: end with one of {full}."
        )


def _follow(sliced: PreTrainedConfig, before: list[Any], after: list[Any]) -> None:
    """Let fields that say what a list of layers said follow it; where nothing of the kind can, they are left out."""
    for name, value in list(vars(sliced).items()):
        if _PERIODIC.search(name) and isinstance(value, int | str):
            moved = _moved_pattern(value, before, after)
            if moved is None:
                vars(sliced).pop(name)
            elif moved != value:
                setattr(sliced, name, moved)


def _moved_pattern(value: int | str, before: list[Any], after: list[Any]) -> int | str | None:
    """
    Return what says of the layers `after` what the period or pattern `value` says of those `before`.

    That is `value` itself if it says nothing of them or still holds, and None if no period says it.
    """
    if isinstance(value, str):
        said = [value[layer % len(value)] for layer in range(len(before))] if value else []
        letters = dict(zip(before, said, strict=False))
        if len(set(letters.values())) < 2 or [letters[kind] for kind in before] != said:
            return value
        wanted = [letters[kind] for kind in after]
        holds = wanted == [value[layer % len(value)] for layer in range(len(after))]
        return value if holds else "".join(wanted)
    # The marked layers are those with (layer + 1) % period == 0, or those with layer % period == 0.
    for first in (1, 0) if value > 1 else ():

        def marked(period: int, count: int, first: int = first) -> list[bool]:
            return [(layer + first) % period == 0 for layer in range(count)]

        special = {kind for kind, mark in zip(before, marked(value, len(before)), strict=True) if mark}
        if len(special) == 1 and [kind in special for kind in before] == marked(value, len(before)):
            wanted_marks = [kind in special for kind in after]
            periods = (value, *range(1, len(after) + 2))
            return next((period for period in periods if marked(period, len(after)) == wanted_marks), None)
    return value


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


def _move_expert_range(sliced: PreTrainedConfig, config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Say by first, last and step which of the kept layers have experts (ERNIE 4.5)."""
    first, last, step = config.moe_layer_start_index, config.moe_layer_end_index, config.moe_layer_interval
    sparse = [first <= layer <= last and (layer + 1) % step == 0 for layer in layers]
    count = len(sparse)
    sliced.moe_layer_start_index = sparse.index(True) if any(sparse) else count
    sliced.moe_layer_end_index = max((place for place, has_them in enumerate(sparse) if has_them), default=count - 1)
    for period in (step, *range(1, count + 1)):
        said = range(sliced.moe_layer_start_index, sliced.moe_layer_end_index + 1)
        if sparse == [place in said and (place + 1) % period == 0 for place in range(count)]:
            sliced.moe_layer_interval = period
            return
    raise _no_period(layers, "moe_layer_interval", step)


def _move_periods(sliced: PreTrainedConfig, config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Say by period and offset which of the kept layers attend, and which have experts (Jamba)."""
    for kind in ("attn", "expert"):
        fields = f"{kind}_layer_period", f"{kind}_layer_offset"
        period, offset = (getattr(config, field) for field in fields)
        marks = [layer % period == offset for layer in layers]
        tried = [(period, offset), *((size, place) for size in range(1, len(layers) + 2) for place in range(size))]
        found = next((pair for pair in tried if marks == [n % pair[0] == pair[1] for n in range(len(layers))]), None)
        if found is None:
            raise _no_period(layers, fields[0], period)
        vars(sliced).update(zip(fields, found, strict=True))


def _no_period(layers: Sequence[int], field: str, value: int) -> ValueError:
    return ValueError(
        f"keep_layers={describe(layers)!r} cannot be cut: the config has {field}={value}, which says by a period what "
        "each layer is, and no period says it of these layers. Keep first layers, or layers at equal distances."
    )


def _move_linear_layers(sliced: PreTrainedConfig, config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Let the lists of Kimi Linear's published config, which count from 1, agree with `layer_types`."""
    published = getattr(config, "linear_attn_config", None) or {}
    moved = {
        name: [place + 1 for place, layer in enumerate(layers) if layer + 1 in published[name]]
        for name in ("full_attn_layers", "kda_layers")
        if name in published
    }
    if moved:
        sliced.linear_attn_config = {**published, **moved}


def _keep_residual_scale(sliced: PreTrainedConfig, config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Keep what MiniCPM3 multiplies residual branches by, `scale_depth` divided by the root of the depth."""
    scale, root = config.scale_depth / math.sqrt(config.num_hidden_layers), math.sqrt(len(layers))
    near = scale * root
    tried = (near, math.nextafter(near, math.inf), math.nextafter(near, 0))
    sliced.scale_depth = next((value for value in tried if value / root == scale), near)


_SPECIAL_CARE: Mapping[str, tuple[Callable[[Any, Any, Sequence[int]], None], ...]] = {
    "ernie4_5_moe": (_move_expert_range,),
    "flint": (_list_dense_layers,),
    "gpt_neo": (_rewrite_attention_types,),
    "jamba": (_move_periods,),
    "kimi_linear": (_move_linear_layers,),
    "minicpm3": (_keep_residual_scale,),
    "qwen2": (_slice_window_threshold,),
    "qwen2_moe": (_list_dense_layers, _slice_window_threshold),
    "qwen3": (_slice_window_threshold,),
    "qwen3_moe": (_list_dense_layers,),
    "qwen3_next": (_list_dense_layers,),
}


@dataclass(frozen=True)
class Architecture:
    """
    What building a student needs to know about the reference's architecture.

    Sizes are counts of numbers, and shared parameters count once. `tied` names, for each parameter that shares
    another's storage, that other one; `parts` the part of the model (as in `PARTS`) that each tensor belongs to;
    `conversions` how Transformers renames and joins what files hold, and `ignored` patterns of what files hold and no
    model needs. `in_multimodal` says that files call the tensors as those of a text model inside a multimodal one.
    """

    model_class: type[PreTrainedModel]
    block_list: str
    depth: int
    tied: Mapping[str, str]
    parameters: Mapping[str, tuple[int, ...]]
    parameter_count: int
    block_sizes: tuple[int, ...]
    parts: Mapping[str, str]
    conversions: tuple[Any, ...] = ()
    ignored: tuple[str, ...] = ()
    in_multimodal: bool = False

    @property
    def sparse_blocks(self) -> frozenset[int]:
        """Blocks of which a token passes through some experts only."""
        inside = f"{self.block_list}."
        experts = (name for name, shape in self.parameters.items() if "experts" in name and len(shape) == 3)
        return frozenset(int(name.removeprefix(inside).partition(".")[0]) for name in experts)

    @property
    def prefix_sizes(self) -> tuple[int, ...]:
        """Parameters of a student of the first layer, of the first two, and so on to the whole."""
        outside = self.parameter_count - sum(self.block_sizes)
        return tuple(outside + size for size in itertools.accumulate(self.block_sizes))

    def sharing(self, name: str) -> list[str]:
        """Return the tensor `name` itself, and those that share its storage."""
        origin = self.tied.get(name, name)
        return [name, *(item for item in (origin, *self.tied) if item != name and self.tied.get(item, item) == origin)]

    def is_inherited(self, name: str, parts: Sequence[str]) -> bool:
        """Return whether a tensor is inherited with `parts`; tied ones are with either part."""
        return any(self.parts[item] in parts for item in self.sharing(name))


# By class and content of a config: building even an empty model takes 50 ms and more, and each step asks for it.
_INSPECTED: dict[tuple[type, str], Architecture] = {}
_MOST_INSPECTED = 64


def inspect_architecture(config: PreTrainedConfig) -> Architecture:
    """
    Return what building a student needs to know about models of `config`, without allocating any weight.

    It is found once for each content of a config.

    Raises:
        RuntimeError: If the model has no list of as many blocks as its config says.
    """
    values = {name: value for name, value in config.to_dict().items() if name != "inheritune"}
    key = type(config), json.dumps(values, sort_keys=True, default=str)
    if key not in _INSPECTED:
        found = _inspect(config)
        if len(_INSPECTED) >= _MOST_INSPECTED:
            _INSPECTED.pop(next(iter(_INSPECTED)), None)
        _INSPECTED[key] = found
    return _INSPECTED[key]


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of the model's blocks."""
    return cast(nn.ModuleList, model.get_submodule(inspect_architecture(model.config).block_list))


def _inspect(config: PreTrainedConfig) -> Architecture:
    try:
        model = _empty_model(config)
    except UNUSABLE_CONFIG as error:
        raise ValueError(
            f"No model can be made of this config of type {config.model_type!r}: {type(error).__name__}, "
            f"{' '.join(str(error).split())}."
        ) from error
    untyped: Any = model
    depth = int(config.get_text_config(decoder=True).num_hidden_layers)
    block_list = _find_block_list(model, depth)
    conversions: Any = get_model_conversion_mapping(model)
    return Architecture(
        model_class=type(model),
        block_list=block_list,
        depth=depth,
        tied=dict(model.all_tied_weights_keys),
        parameters={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        parameter_count=sum(parameter.numel() for parameter in model.parameters()),
        block_sizes=tuple(
            sum(parameter.numel() for parameter in block.parameters())
            for block in cast(nn.ModuleList, model.get_submodule(block_list))
        ),
        parts=_parts(model, block_list),
        conversions=tuple(conversions),
        # As Transformers does: inverse frequencies of rotary positions were saved by all models once.
        ignored=("rotary_emb\\.inv_freq", *sorted(untyped._keys_to_ignore_on_load_unexpected or ())),
    )


def student_skeleton(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedModel:
    """Return the empty student (on the meta device) that keeps `layers` of a reference of `config`."""
    return _empty_model(sliced_config(config, layers))


def kept_names(
    architecture: Architecture, layers: Sequence[int], names: Iterable[str], parts: Sequence[str] = PARTS
) -> dict[str, str]:
    """
    Return, for every tensor of `names` that a student of `layers` keeps, the name under which the student is given it.

    `names` are those of a file as the family publishes them: with or without the base model's prefix
    (`transformer.h.3.…` or, as GPT-2 is published, `h.3.…`), one tensor per expert or all in one. Where Transformers
    joins several tensors into one, the student is given the published name with the layer's new number; else the name
    in the student. What a file holds besides (masks, other heads, dropped layers) is not kept and never read.
    """
    blocks = f"{architecture.block_list}."
    last = architecture.block_list.rpartition(".")[2]
    positions = {layer: position for position, layer in enumerate(layers)}
    kept = {}
    for name in names:
        renamed, joined = _name_in_model(architecture, name)
        if renamed is None or not architecture.is_inherited(renamed, parts):
            continue
        given = _own_name(architecture, name) if joined else renamed
        if renamed.startswith(blocks):
            layer = int(renamed.removeprefix(blocks).partition(".")[0])
            if layer not in positions:
                continue
            old, new = rf"(^|\.){re.escape(last)}\.{layer}\.", rf"\g<1>{last}.{positions[layer]}."
            given = re.sub(old, new, given, count=1)
        kept[name] = given
    return kept


def unknown_names(architecture: Architecture, layers: Sequence[int], names: Iterable[str]) -> tuple[str, ...]:
    """
    Return what files hold for kept layers, or beside them, that the architecture does not know, `*` for the layer.

    Beside the layers these are tensors of its modules, such as a bias of its head. What the model class itself names as
    of no use, such as the masks of an old GPT-2, is left out, and so are layers that lie elsewhere than the decoder's,
    such as those of multi-token prediction, and other heads.
    """
    last = architecture.block_list.rpartition(".")[2]
    in_block = re.compile(rf"^(?P<before>(?:.*\.)?){re.escape(last)}\.(?P<layer>\d+)\.")
    modules: set[str] = set()
    decoders: set[str] = set()
    unknown: list[tuple[str | None, str]] = []
    for name in names:
        place = in_block.search(name)
        if _name_in_model(architecture, name)[0] is not None:
            modules.add(name.rpartition(".")[0])
            if place is not None:
                decoders.add(place["before"])
        elif any(re.search(item, name) for item in architecture.ignored):
            continue
        elif place is None:
            unknown.append((None, name))
        elif int(place["layer"]) in layers:
            unknown.append((place["before"], f"{place['before']}{last}.*.{name[place.end() :]}"))
    known = ((name.rpartition(".")[0] in modules if before is None else before in decoders) for before, name in unknown)
    return tuple(sorted({name for (_, name), is_known in zip(unknown, known, strict=True) if is_known}))


# What wrappers around a model or its modules put into the names of tensors.
_WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module|base_layer)\.")


def wrapper_names(architecture: Architecture, names: Sequence[str]) -> str | None:
    """Return what a wrapper put into the names of files that the architecture knows without it, such as `module.`."""
    looked_at = names[:1000]
    strange = [name for name in looked_at if _name_in_model(architecture, name)[0] is None]
    for name in strange:
        plain = _WRAPPERS.sub("", name)
        if plain != name and _name_in_model(architecture, plain)[0] is not None:
            return "".join(f"{found[2]}." for found in _WRAPPERS.finditer(name))
        for dot in re.finditer(r"\.", name) if len(strange) == len(looked_at) else ():
            if _name_in_model(architecture, name[dot.end() :])[0] is not None:
                return name[: dot.end()]
    return None


def sources_of(student: Architecture, names: Iterable[str]) -> dict[str, list[str]]:
    """Return for each of the student's tensors those of `names` that fill it: several where they are joined on load."""
    sources: dict[str, list[str]] = {}
    for name in names:
        renamed, _ = _name_in_model(student, name)
        if renamed is not None:
            sources.setdefault(renamed, []).append(name)
    return sources


def join_sources(config: PreTrainedConfig, student: Architecture, sources: Mapping[str, Any]) -> torch.Tensor:
    """Return the one tensor of a model that `sources` (by name in files; read by `[...]`) fill, joined as on load."""
    converter: Any = None
    for name in sorted(sources, key=dot_natural_key):
        renamed, pattern = _converted_name(student, name)
        if pattern is None:
            tensor: torch.Tensor = sources[name][...]
            return tensor
        if converter is None:
            found = (item for item in student.conversions if isinstance(item, WeightConverter))
            converter = copy.deepcopy(next(item for item in found if pattern in item.source_patterns))
        converter.add_tensor(renamed, name, pattern, sources[name][...])
    joined: torch.Tensor = converter.convert(renamed, config=config)[renamed]
    return joined


def drop_tied(architecture: Architecture, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return `tensors`, by name in the model, without those that are tied to another one and are the same object."""
    tied = architecture.tied
    return {name: item for name, item in tensors.items() if name not in tied or tensors.get(tied[name]) is not item}


def name_in_reference(architecture: Architecture, layers: Sequence[int], name: str) -> str:
    """Return how the reference calls the tensor that its student calls `name`."""
    blocks = f"{architecture.block_list}."
    if not name.startswith(blocks):
        return name
    position, _, rest = name.removeprefix(blocks).partition(".")
    return f"{blocks}{layers[int(position)]}.{rest}"


def random_tensors(config: PreTrainedConfig, names: Sequence[str], seed: int) -> dict[str, torch.Tensor]:
    """
    Return tensors of a fresh model of `config`, as its architecture initialises them under `seed`.

    The values of a tensor depend on config and seed only, not on which others are asked for; the caller's random state
    is left as it was.
    """
    if not names:
        return {}
    model_class = cast(Any, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    with seeded(seed):
        state = model_class(copy.deepcopy(config)).state_dict()
    return {name: state[name] for name in names}


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw the CPU's random numbers by `seed` within this context; the random states of all devices stay."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        yield


def _empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    model_class = cast(type[PreTrainedModel], MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    # As `from_pretrained` does: drawing numbers for tensors that have no room for them takes a second all the same.
    with torch.device("meta"), no_init_weights():
        model = model_class(copy.deepcopy(config))
        model.tie_weights()
    return model


def _find_block_list(model: PreTrainedModel, depth: int) -> str:
    # What is called a decoder may be the head, as in ModernBERT's.
    for decoder in (model.get_decoder(), model.base_model):  # type: ignore[no-untyped-call]
        start = next((name for name, module in model.named_modules() if module is decoder), "")
        lists = {name: module for name, module in decoder.named_modules() if isinstance(module, nn.ModuleList)}
        candidates = [name for name, module in lists.items() if len(module) == depth]
        if candidates:
            return f"{start}.{min(candidates, key=lambda name: name.count('.'))}".lstrip(".")
    raise RuntimeError(f"{type(model).__name__} has no list of {depth} blocks, the depth that its config says.")


def _name_in_model(architecture: Architecture, name: str) -> tuple[str | None, bool]:
    """Return how the model calls a tensor of a file, if at all, and whether it is joined with others on load."""
    renamed, pattern = _converted_name(architecture, name)
    return (renamed, pattern is not None) if renamed in architecture.parameters else (None, False)


def _own_name(architecture: Architecture, name: str) -> str:
    """Return a tensor's name without what a multimodal model around the model puts before it."""
    for pattern, own in _TEXT_MODEL_NAMES if architecture.in_multimodal else ():
        name = pattern.sub(own, name)
    return name


def _converted_name(architecture: Architecture, name: str) -> tuple[str, str | None]:
    """Return what Transformers renames a tensor of a file to, and the pattern by which it is joined with others."""
    name = _own_name(architecture, name)
    renamings: list[Any] = [item for item in architecture.conversions if isinstance(item, WeightRenaming)]
    converters: list[Any] = [item for item in architecture.conversions if isinstance(item, WeightConverter)]
    known: Any = architecture.parameters
    prefix = architecture.model_class.base_model_prefix
    renamed, pattern = rename_source_key(name, renamings, converters, prefix, known)
    # As Transformers does: a rule that leads nowhere is not followed.
    return (name, None) if renamed not in known and name in known else (renamed, pattern)


def _parts(model: PreTrainedModel, block_list: str) -> dict[str, str]:
    """Return the part of the model that each tensor belongs to, by the role of the module that holds it."""
    modules = dict(model.named_modules())
    order = {name: place for place, name in enumerate(modules)}
    untyped: Any = model
    roles = {untyped.get_input_embeddings(): "embeddings", untyped.get_output_embeddings(): "lm_head"}
    parts = {}
    for name in model.state_dict():
        if name.startswith(f"{block_list}."):
            block, _, rest = name.removeprefix(f"{block_list}.").partition(".")
            child = rest.partition(".")[0]
            parts[name] = _part_in_block(child, modules.get(f"{block_list}.{block}.{child}"))
            continue
        owner = name.rpartition(".")[0]
        module = modules[owner]
        if module in roles:
            parts[name] = roles[module]
        elif isinstance(module, nn.Embedding):
            parts[name] = "positions"
        else:
            # LFM2 calls its last norm embedding_norm; Bloom's norm of embeddings comes before the blocks.
            of_embeddings = "embed" in owner and order[owner] < order[block_list]
            is_last_norm = "Norm" in type(module).__name__ and not of_embeddings
            other = "embeddings" if order[owner] < order[block_list] else "lm_head"
            parts[name] = "final_norm" if is_last_norm else other
    return parts


def _part_in_block(name: str, module: nn.Module | None) -> str:
    if module is None or "Norm" in type(module).__name__:
        return "norms"
    # What mixes tokens is attention, convolutions and state spaces included; the rest works on each token by itself.
    mixes = re.search("attn|attention|conv|mamba", f"{name} {type(module).__name__}", re.IGNORECASE)
    return "attention" if mixes else "mlp"
