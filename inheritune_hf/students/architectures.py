"""What differs between architectures: where the blocks are and which config fields depend on depth."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from ..configuration import PARTS
from .selection import describe, is_prefix

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
        block_sizes (`tuple[int, ...]`): Numbers in the parameters of each block.
        parts (`Mapping[str, str]`): For every tensor the part of the model that it belongs to, as in `PARTS`.
        conversions (`tuple`): How Transformers renames and joins what files hold, such as one tensor per expert.
    """

    model_type: str
    model_class: type[PreTrainedModel]
    block_list: str
    depth: int
    tied: Mapping[str, str]
    parameters: Mapping[str, tuple[int, ...]]
    parameter_count: int
    block_sizes: tuple[int, ...]
    parts: Mapping[str, str]
    conversions: tuple[Any, ...] = ()

    @property
    def prefix_sizes(self) -> tuple[int, ...]:
        """Parameters of a student of the first layer, of the first two, and so on to the whole."""
        outside = self.parameter_count - sum(self.block_sizes)
        return tuple(outside + size for size in itertools.accumulate(self.block_sizes))


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
    for field, reason in _UNCUTTABLE.items():
        if config.get(field):
            raise ValueError(
                f"{reference} cannot be cut: its config has {field}={_short(config[field])}, and {reason}. "
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


def inspect_architecture(config: PreTrainedConfig) -> Architecture:
    """
    Return what building a student needs to know about models of `config`, without allocating any weight.

    Raises:
        RuntimeError: If the model has no list of as many blocks as its config says.
    """
    model = _empty_model(config)
    depth = int(config.get_text_config(decoder=True).num_hidden_layers)
    block_list = _find_blocks(model, depth)
    conversions: Any = get_model_conversion_mapping(model)
    return Architecture(
        model_type=str(config.model_type),
        model_class=type(model),
        block_list=block_list,
        depth=depth,
        tied=dict(model.all_tied_weights_keys),
        parameters={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        parameter_count=sum(parameter.numel() for parameter in model.parameters()),
        block_sizes=tuple(
            sum(parameter.numel() for parameter in block.parameters()) for block in _blocks(model, block_list)
        ),
        parts=_parts(model, block_list),
        conversions=tuple(conversions),
    )


def prefix_sizes(config: PreTrainedConfig) -> tuple[int, ...]:
    """Return the parameters of a student of the first layer of a reference of `config`, of the first two, and so on."""
    return inspect_architecture(config).prefix_sizes


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


def kept_names(
    architecture: Architecture, layers: Sequence[int], names: Iterable[str], parts: Sequence[str] = PARTS
) -> dict[str, str]:
    """
    Return, for every tensor of `names` that a student keeps, the name under which the student is given it.

    Names are those of a file, as the family publishes them: with or without the base model's prefix
    (`transformer.h.3.…` or, as GPT-2 is published, `h.3.…`), one tensor per expert or all in one. What a file holds
    besides (masks, other heads, dropped layers) is not kept and never read.

    Args:
        architecture (`Architecture`): The reference's architecture.
        layers (sequence of `int`): The kept layers, 0-based, ascending.
        names (iterable of `str`): Names in the reference's files, or of its `state_dict`.
        parts (sequence of `str`): Parts of the model that come along.

    Returns:
        `dict[str, str]`: Names for the student, by name in the files. Where Transformers joins several tensors into
        one, the published name with the layer's new number; else the name in the student.
    """
    blocks = f"{architecture.block_list}."
    positions = {layer: position for position, layer in enumerate(layers)}
    kept = {}
    for name in names:
        renamed, joined = _name_in_model(architecture, name)
        if renamed is None or not _comes_along(architecture, renamed, parts):
            continue
        if renamed.startswith(blocks):
            layer = int(renamed.removeprefix(blocks).partition(".")[0])
            if layer not in positions:
                continue
            name_or_renamed = name if joined else renamed
            last = architecture.block_list.rpartition(".")[2]
            kept[name] = re.sub(
                rf"(^|\.){re.escape(last)}\.{layer}\.", rf"\g<1>{last}.{positions[layer]}.", name_or_renamed, count=1
            )
        else:
            kept[name] = name if joined else renamed
    return kept


def sources_of(student: Architecture, names: Iterable[str]) -> dict[str, list[str]]:
    """Return for each of the student's tensors those of `names` that fill it: several where they are joined on load."""
    sources: dict[str, list[str]] = {}
    for name in names:
        renamed, _ = _name_in_model(student, name)
        if renamed is not None:
            sources.setdefault(renamed, []).append(name)
    return sources


def with_tied_names(student: Architecture, names: Iterable[str]) -> set[str]:
    """Return `names` and those of the student's tensors that share their storage."""
    filled = set(names)
    for target, origin in student.tied.items():
        if target in filled or origin in filled:
            filled |= {target, origin}
    return filled


def left_out_names(student: Architecture, parts: Sequence[str]) -> list[str]:
    """Return which of the student's tensors do not come along with `parts`; tied ones come with either part."""
    return [name for name in student.parameters if not _comes_along(student, name, parts)]


def keeps_some_in_float32(model_class: type[PreTrainedModel]) -> bool:
    """Return whether some of the model's parameters stay in float32 whatever type it is loaded in."""
    strict = getattr(model_class, "_keep_in_fp32_modules_strict", None)
    return bool(getattr(model_class, "_keep_in_fp32_modules", None) or strict)


def name_in_reference(architecture: Architecture, layers: Sequence[int], name: str) -> str:
    """Return how the reference calls the tensor that its student calls `name`."""
    blocks = f"{architecture.block_list}."
    if not name.startswith(blocks):
        return name
    position, _, rest = name.removeprefix(blocks).partition(".")
    return f"{blocks}{layers[int(position)]}.{rest}"


def query_scales(config: PreTrainedConfig, layers: Sequence[int]) -> tuple[float, ...]:
    """
    Return by what each kept block's queries are multiplied so that it computes what it computed at its old position.

    GPT-2 with `scale_attn_by_inverse_layer_idx` divides the attention logits of the block at position `i` by `i + 1`
    (PAPER: Appendix A). A moved block would be rescaled, so the difference goes into its weights.

    Args:
        config (`PreTrainedConfig`): The reference's config.
        layers (sequence of `int`): The kept layers, 0-based, ascending.

    Returns:
        `tuple[float, ...]`: One factor for each kept block, or nothing where no block needs one.
    """
    if not getattr(config, "scale_attn_by_inverse_layer_idx", False) or is_prefix(layers):
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


def has_experts(architecture: Architecture) -> bool:
    """Return whether some of the model's tokens pass through some of its weights only."""
    return any("experts" in name and len(shape) == 3 for name, shape in architecture.parameters.items())


def operations_per_token(config: PreTrainedConfig, block_size: int) -> float:
    """
    Return the floating-point operations of training on one token, forward and backward.

    Six for every weight that a token is multiplied with (the head too, tied or not; of experts those that it is sent
    to), and twelve for every pair of positions and channel of attention.

    Args:
        config (`PreTrainedConfig`): The model's config.
        block_size (`int`): Tokens of one sequence.

    Returns:
        `float`: Operations per token.
    """
    architecture = inspect_architecture(config)
    share = 1.0
    if has_experts(architecture):
        experts = next(
            shape[0] for name, shape in architecture.parameters.items() if "experts" in name and len(shape) == 3
        )
        share = getattr(config, "num_experts_per_tok", 1) / experts
    weights = 0.0
    for name, shape in architecture.parameters.items():
        if len(shape) >= 2 and architecture.parts[name] in ("attention", "mlp", "lm_head"):
            weights += math.prod(shape) * (share if "experts" in name and len(shape) == 3 else 1.0)
    return 6 * weights + 12 * architecture.depth * int(config.hidden_size) * block_size


def logit_shaping(config: PreTrainedConfig) -> tuple[float, float | None]:
    """Return by what a model of `config` multiplies its head's output, and at what it caps it, if it does."""
    factor = _LOGIT_FACTORS.get(str(config.model_type), lambda _: 1.0)(config)
    return float(factor), getattr(config, "final_logit_softcapping", None)


def random_tensors(config: PreTrainedConfig, names: Iterable[str], seed: int) -> dict[str, torch.Tensor]:
    """
    Return tensors of a fresh model of `config`, as its architecture initialises them under `seed`.

    The values of a tensor depend on config and seed only, not on which others are asked for; the caller's random state
    is left as it was.
    """
    wanted = list(names)
    if not wanted:
        return {}
    model_class = cast(Any, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = model_class(copy.deepcopy(config)).state_dict()
    return {name: state[name] for name in wanted}


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


def _blocks(model: PreTrainedModel, block_list: str) -> Iterable[nn.Module]:
    return cast(Iterable[nn.Module], model.get_submodule(block_list))


def _name_in_model(architecture: Architecture, name: str) -> tuple[str | None, bool]:
    """Return how the model calls a tensor of a file, if at all, and whether it is joined with others on load."""
    renamings: list[Any] = [item for item in architecture.conversions if isinstance(item, WeightRenaming)]
    converters: list[Any] = [item for item in architecture.conversions if isinstance(item, WeightConverter)]
    known: Any = architecture.parameters
    prefix = architecture.model_class.base_model_prefix
    renamed, pattern = rename_source_key(name, renamings, converters, prefix, known)
    if renamed not in known and name in known:
        # As Transformers does: a rule that leads nowhere is not followed.
        renamed, pattern = name, None
    return (renamed, pattern is not None) if renamed in known else (None, False)


def _comes_along(architecture: Architecture, name: str, parts: Sequence[str]) -> bool:
    shared = {name, architecture.tied.get(name, name)} | {
        target for target, origin in architecture.tied.items() if origin == name
    }
    return any(architecture.parts[item] in parts for item in shared)


def _parts(model: PreTrainedModel, block_list: str) -> dict[str, str]:
    """Return the part of the model that each tensor belongs to, told by the role of the module that holds it."""
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
            parts[name] = "final_norm" if is_last_norm else "embeddings"
    return parts


def _part_in_block(name: str, module: nn.Module | None) -> str:
    if module is None or "Norm" in type(module).__name__:
        return "norms"
    # What mixes tokens is attention, a short convolution included; what is left works on each token by itself.
    return "attention" if re.search("attn|attention|conv", name) else "mlp"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
