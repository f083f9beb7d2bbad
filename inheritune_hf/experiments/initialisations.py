"""Where a student's weights begin: the paper's baselines and ablations, and others' ways to make a model shallower."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .. import __version__
from ..configuration import InherituneConfig
from ..records import Lineage
from ..students import (
    Reference,
    from_pretrained_inherited,
    inspect_architecture,
    load_reference_config,
    resolve_layers,
    sliced_config,
)
from ..students.attention_scale import scale_queries
from ..training.expansion import make_identity

_PROBED_TOKENS = 8

#: Parts of blocks that come along in the sub-module ablation, by its name (PAPER: Table 3).
SUBMODULES = {
    "attention+norms": ("attention", "norms"),
    "mlp+norms": ("mlp", "norms"),
    "attention+mlp": ("attention", "mlp"),
}
_OUTSIDE_BLOCKS = ("embeddings", "positions", "final_norm", "lm_head")

# How the tensors of a narrower model lie in a wider one, where it is not the first rows and columns: equal parts of
# the last (GPT-2) or the first dimension, each cut by itself.
_FUSED = {("gpt2", "attn.c_attn"): (-1, 3), ("phi3", "gate_up_proj"): (0, 2)}

#: Model types of which `half_width` knows how heads and neurons lie.
NARROWED_MODEL_TYPES = ("gpt2", "gpt_neox", "llama", "mistral", "olmo2", "opt", "qwen2", "qwen3")


def inherited(reference: Reference, layers: int | str | Sequence[int], seed: int, **kwargs: Any) -> PreTrainedModel:
    """Return a student of these layers and everything outside the blocks (PAPER: Algorithm 1)."""
    chosen = InherituneConfig(keep_layers=layers if isinstance(layers, int | str) else list(layers))
    return from_pretrained_inherited(reference, chosen, seed=seed, **kwargs)


def with_parts(reference: Reference, layers: int, parts: str, seed: int, **kwargs: Any) -> PreTrainedModel:
    """
    Return a student of the first layers of which only some parts come along; the others begin random.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`): Hub id, folder or loaded model.
        layers (`int`): Depth of the student.
        parts (`str`): A name of `SUBMODULES`, or what `InherituneConfig.inherit` takes, such as `"released-code"`.
        seed (`int`): Seed of the parts that begin random.
        kwargs: As for `from_pretrained_inherited`.
    """
    named = SUBMODULES.get(parts)
    inherit = parts if named is None else ",".join((*_OUTSIDE_BLOCKS, *named))
    return from_pretrained_inherited(
        reference, InherituneConfig(keep_layers=layers, inherit=inherit), seed=seed, **kwargs
    )


def random_weights(reference: Reference, layers: int, seed: int, **kwargs: Any) -> PreTrainedModel:
    """Return a model with the shape of the reference's first layers and none of its weights."""
    config = load_reference_config(reference, **_of_source(kwargs))
    return fresh_model(sliced_config(config, range(layers)), reference, seed)


def assembled(
    reference: Reference,
    blocks: Sequence[int | None],
    seed: int,
    keep_scale: bool = True,
    **kwargs: Any,
) -> PreTrainedModel:
    """
    Return a model whose blocks are any of the reference's, in any order and repeated, or random.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`): Hub id, folder or loaded model.
        blocks (sequence of `int` or `None`): For each position the layer whose block stands there; None: random.
        seed (`int`): Seed of random blocks.
        keep_scale (`bool`, *optional*, defaults to `True`): Whether a moved block of a GPT-2 with
            `scale_attn_by_inverse_layer_idx` attends as it did at its old position.
        kwargs: As for `from_pretrained_inherited`.

    Raises:
        ValueError: If a layer is not one of the reference's, or the config says by position what a block is.
    """
    config = load_reference_config(reference, **_of_source(kwargs))
    depth = int(config.get_text_config(decoder=True).num_hidden_layers)
    kept = resolve_layers(sorted({layer for layer in blocks if layer is not None}), depth)
    places = [min(place, depth - 1) if layer is None else layer for place, layer in enumerate(blocks)]
    check_order(config, places)
    # The donor's weights are the reference's as they are: a block's scale follows from where it stands in the end.
    unscaled = InherituneConfig(keep_layers=list(kept), attention_scale="position")
    donor = from_pretrained_inherited(reference, unscaled, seed=seed, **kwargs)
    model = fresh_model(sliced_config(config, places), reference, seed, donor.dtype)
    prefix = f"{inspect_architecture(model.config).block_list}."
    state, given = model.state_dict(), donor.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if not name.startswith(prefix):
                tensor.copy_(given[name])
    new, old = _blocks(model), _blocks(donor)
    for place, layer in enumerate(blocks):
        if layer is not None:
            new[place].load_state_dict(old[kept.index(layer)].state_dict())
    if keep_scale and getattr(config, "scale_attn_by_inverse_layer_idx", False):
        scale_queries(model, [(place + 1) / (layer + 1) for place, layer in enumerate(places)])
    model.config.inheritune = _lineage(reference, depth, tuple(places), seed).to_dict()
    model.train(False)
    return model


def check_order(config: PreTrainedConfig, blocks: Sequence[int]) -> None:
    """
    Raise a `ValueError` if blocks of these layers cannot stand in this order, because position says what a block is.

    Args:
        config (`PreTrainedConfig`): The reference's config.
        blocks (sequence of `int`): For each position the layer whose block stands there.
    """
    for field in ("first_k_dense_replace", "num_dense_layers"):
        first = getattr(config, field, None) or 0
        dense = [layer < first for layer in blocks]
        if dense != sorted(dense, reverse=True):
            raise ValueError(
                f"Blocks {list(blocks)} cannot be put in this order: {field}={first} says by position which of them "
                "have experts."
            )
    sliced_config(config, blocks)


def hybrid_stacked(
    reference: Reference, layers: int, seed: int, keep_scale: bool = True, **kwargs: Any
) -> PreTrainedModel:
    """
    Return a model of the reference's first half as many layers, twice over (PAPER: Appendix D).

    Raises:
        ValueError: If the number of layers is odd.
    """
    return assembled(reference, doubled(layers, "hybrid stacking"), seed, keep_scale, **kwargs)


def doubled(layers: int, what: str = "stacking") -> tuple[int, ...]:
    """
    Return the first half as many layers, twice over.

    Raises:
        ValueError: If the number of layers is odd.
    """
    half = _half(layers, what)
    return (*range(half), *range(half))


def stacked(student: PreTrainedModel, layers: int, seed: int, keep_scale: bool = True) -> PreTrainedModel:
    """
    Return a model of a trained student's blocks, twice over: the second stage of stacking (PAPER: Appendix D).

    Its lineage is the student's: which of the reference's layers its blocks come from, if from any.

    Raises:
        ValueError: If the student is not half as deep.
    """
    places = doubled(layers)
    depth = int(student.config.get_text_config(decoder=True).num_hidden_layers)
    if 2 * depth != layers:
        raise ValueError(f"Stacking to {layers} layers doubles a student of {layers // 2}, got one of {depth}.")
    model = assembled(student, places, seed, keep_scale)
    own = getattr(student.config, "inheritune", None)
    if isinstance(own, dict):
        kept = own["kept_layers"]
        model.config.inheritune = {**own, "kept_layers": [kept[place] for place in places] if kept else []}
    return model


def alternate_layers(depth: int, layers: int) -> tuple[int, ...]:
    """
    Return the layers of a DistilBERT-style student: every other one, then on from three quarters of the depth.

    For 16 of 24 layers these are 0, 2, ..., 22 and 18 to 21 (PAPER: Appendix D), in this order.
    """
    alternate = tuple(range(0, depth, 2))[:layers]
    start = depth * 3 // 4
    return (*alternate, *range(start, start + layers - len(alternate)))


def distilbert(reference: Reference, layers: int, seed: int, keep_scale: bool = True, **kwargs: Any) -> PreTrainedModel:
    """
    Return a model of every other layer, and of more where it is deeper than half the reference: `alternate_layers`.

    Raises:
        ValueError: If it would be deeper than three quarters of the reference.
    """
    depth = int(load_reference_config(reference, **_of_source(kwargs)).get_text_config(decoder=True).num_hidden_layers)
    return assembled(reference, alternate_layers(depth, layers), seed, keep_scale, **kwargs)


def expanded(reference: Reference, layers: int, seed: int, keep_scale: bool = True, **kwargs: Any) -> PreTrainedModel:
    """
    Return the reference's first half as many layers, each followed by a copy of itself that changes nothing at first.

    Block expansion: the output projections of the copies are zero, so the model computes what the half does.

    Raises:
        ValueError: If the number of layers is odd, or identity blocks cannot be made of this architecture.
    """
    model = assembled(reference, each_twice(layers), seed, keep_scale, **kwargs)
    for place in range(1, layers, 2):
        make_identity(model, place)
    return model


def check_expansion(config: PreTrainedConfig, layers: int) -> None:
    """
    Raise a `ValueError` if `expanded` cannot be made of a reference of `config` with so many layers.

    A model of the outermost kinds of blocks and a small vocabulary is tried: some blocks change what they get however
    their projections are.
    """
    places = each_twice(layers)
    probe = copy.deepcopy(sliced_config(config, sorted({places[0], places[-1]})))
    probe.vocab_size, probe.pad_token_id = _PROBED_TOKENS, 0
    model = fresh_model(probe, "", 0)
    try:
        for place in range(int(probe.num_hidden_layers)):
            make_identity(model, place)
    except ValueError as error:
        raise ValueError(
            f"blocks of this {config.model_type} still change what they get with their output projections zeroed"
        ) from error


def each_twice(layers: int) -> tuple[int, ...]:
    """
    Return the first half as many layers, each followed by itself.

    Raises:
        ValueError: If the number of layers is odd.
    """
    return tuple(layer for layer in range(_half(layers, "block expansion")) for _ in range(2))


def lazy_in_place(
    reference: Reference, first: int, layers: int, seed: int, keep_scale: bool = True, **kwargs: Any
) -> PreTrainedModel:
    """Return a model whose blocks before `first` are random and whose others stay where they are (PAPER: G.3)."""
    blocks = [None if place < first else place for place in range(layers)]
    return assembled(reference, blocks, seed, keep_scale, **kwargs)


def half_width(reference: Reference, seed: int, **kwargs: Any) -> PreTrainedModel:
    """
    Return a model as deep as the reference and half as wide: its leading heads, channels and neurons.

    Heads keep their size; of an odd number the smaller half is kept (`narrowed_config` says how many).

    Raises:
        ValueError: If it is not known how heads and neurons lie in models of this type.
    """
    config = narrowed_config(load_reference_config(reference, **_of_source(kwargs)))
    depth = int(config.num_hidden_layers)
    donor = from_pretrained_inherited(reference, InherituneConfig(keep_layers=depth), seed=seed, **kwargs)
    model = fresh_model(config, reference, seed, donor.dtype)
    given = donor.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            fused = next(
                (cut for (kind, part), cut in _FUSED.items() if kind == config.model_type and f".{part}." in name), None
            )
            tensor.copy_(_leading(given[name], tensor.shape, fused))
    model.config.inheritune = _lineage(reference, depth, tuple(range(depth)), seed).to_dict()
    model.train(False)
    return model


def narrowed_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """
    Return the config of a model half as wide, with heads of the same size.

    Raises:
        ValueError: If it is not known how heads and neurons lie in models of this type, or there is one head only.
    """
    if config.model_type not in NARROWED_MODEL_TYPES:
        raise ValueError(
            f"A {config.model_type} cannot be halved in width: how its heads and neurons lie is not known here. It is "
            f"known of {', '.join(NARROWED_MODEL_TYPES)}."
        )
    heads = int(config.num_attention_heads)
    if heads < 2:
        raise ValueError("A model of one attention head cannot be halved in width.")
    narrow = copy.deepcopy(config)
    head_size = getattr(config, "head_dim", None) or int(config.hidden_size) // heads
    shared = getattr(config, "num_key_value_heads", None)
    kept = heads // 2
    if shared and shared > 1:
        # Queries share keys in groups: whole groups are kept, so that each query keeps its key.
        group = heads // shared
        narrow.num_key_value_heads = shared // 2
        kept = narrow.num_key_value_heads * group
    narrow.num_attention_heads = kept
    narrow.hidden_size = int(config.hidden_size) * kept // heads
    if getattr(config, "head_dim", None):
        narrow.head_dim = head_size
    for field in ("intermediate_size", "ffn_dim", "n_inner"):
        neurons = getattr(config, field, None)
        if isinstance(neurons, int):
            setattr(narrow, field, neurons * kept // heads)
    if getattr(config, "word_embed_proj_dim", None):
        narrow.word_embed_proj_dim = narrow.hidden_size
    narrow.validate()
    return narrow


def fresh_model(
    config: PreTrainedConfig, reference: Reference, seed: int, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Return a model of random weights, by its architecture's own initialisation; the caller's random state stays."""
    auto: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(copy.deepcopy(config), dtype=dtype)
    model.config.inheritune = _lineage(reference, int(config.num_hidden_layers), (), seed).to_dict()
    model.train(False)
    return model


def _leading(tensor: Tensor, shape: Sequence[int], fused: tuple[int, int] | None) -> Tensor:
    if fused is None:
        return tensor[tuple(slice(0, size) for size in shape)]
    dimension, parts = fused
    dimension %= tensor.ndim
    narrow = [size // parts if place == dimension else size for place, size in enumerate(shape)]
    return torch.cat([_leading(part, narrow, None) for part in tensor.chunk(parts, dimension)], dimension)


def _half(layers: int, what: str) -> int:
    if layers % 2:
        raise ValueError(f"{what.capitalize()} doubles a number of layers, and {layers} is odd.")
    return layers // 2


def _of_source(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name in ("revision", "token", "cache_dir", "subfolder")}


def _blocks(model: PreTrainedModel) -> list[nn.Module]:
    blocks: Any = model.get_submodule(inspect_architecture(model.config).block_list)
    return list(itertools.chain(blocks))


def _lineage(reference: Reference, depth: int, layers: tuple[int, ...], seed: int) -> Lineage:
    name = str(reference.name_or_path) if isinstance(reference, PreTrainedModel) else str(reference)
    versions = {
        "inheritune_hf": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    return Lineage(name, None, depth, layers, versions, (), seed)
