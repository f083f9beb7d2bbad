"""Build the models of a comparison's arms: the weights that each starts from, and its stages as rounds."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..analysis.measurement import VERSIONS
from ..arms import LOOP, SUBMODULES, Arm, Variant, each_twice, twice
from ..config import PARTS, InherituneConfig
from ..growth import rule_from_recipe
from ..layers import resolve_layers
from ..records import Lineage, encode
from ..students import (
    OpenedReference,
    Reference,
    find_blocks,
    from_pretrained_inherited,
    inspect_architecture,
    open_reference,
    sliced_config,
)
from ..students.architectures import seeded
from ..students.inherit import scale_queries
from ..training import Baseline
from ..training.expansion import make_identity

_PROBED_TOKENS = 8

_OUTSIDE_BLOCKS = ("embeddings", "positions", "final_norm", "lm_head")

# GPT-2 fuses query, key and value along the last dimension, in three equal parts: each is narrowed by itself.
_FUSED = "attn.c_attn"

#: Model types whose layout of heads and neurons `half_width` knows.
NARROWED_MODEL_TYPES = ("gpt2", "gpt_neox", "llama", "mistral", "olmo2", "opt", "qwen2", "qwen3")


@dataclass(frozen=True)
class ArmInputs:
    """What an arm's model is built from."""

    reference: OpenedReference
    layers: int  # of the model that this stage trains
    seed: int  # of random weights
    chosen: tuple[int, ...] = ()  # layers that a measure chose, for arms that go by one
    keep_scale: bool = True  # whether moved blocks keep their attention scale
    before: PreTrainedModel | None = None  # trained by the previous stage


# Models


def assemble(reference: Reference, blocks: Sequence[int | None], seed: int, keep_scale: bool = True) -> PreTrainedModel:
    """
    Return a model whose blocks are any of the reference's, in any order and repeated, or random (None).

    With `keep_scale` a moved block of a GPT-2 with `scale_attn_by_inverse_layer_idx` attends as at its old position. A
    layer that the reference does not have, or an order that its config does not allow, is a `ValueError`.
    """
    opened = open_reference(reference)
    kept = resolve_layers(sorted({layer for layer in blocks if layer is not None}), opened.depth)
    places = [min(place, opened.depth - 1) if layer is None else layer for place, layer in enumerate(blocks)]
    check_order(opened.config, places)
    # The donor's weights are the reference's unchanged: a block's scale follows from its final position.
    unscaled = InherituneConfig(keep_layers=list(kept), attention_scale="position")
    donor = from_pretrained_inherited(opened, unscaled, seed=seed)
    model = random_model(sliced_config(opened.config, places), seed, donor.dtype)
    prefix = f"{inspect_architecture(model.config).block_list}."
    given = donor.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not name.startswith(prefix):
                tensor.copy_(given[name])
    new, old = find_blocks(model), find_blocks(donor)
    for place, layer in enumerate(blocks):
        if layer is not None:
            new[place].load_state_dict(old[kept.index(layer)].state_dict())
    if keep_scale and getattr(opened.config, "scale_attn_by_inverse_layer_idx", False):
        scale_queries(model, [(place + 1) / (layer + 1) for place, layer in enumerate(places)])
    return _with_lineage(model, opened, places, seed)


def check_order(config: PreTrainedConfig, blocks: Sequence[int]) -> None:
    """Raise a `ValueError` if the reference's config does not allow blocks of these layers in this order."""
    for field in ("first_k_dense_replace", "num_dense_layers"):
        first = getattr(config, field, None) or 0
        dense = [layer < first for layer in blocks]
        if dense != sorted(dense, reverse=True):
            raise ValueError(
                f"Blocks {list(blocks)} cannot be put in this order: {field}={first} says by position which of them "
                "have experts."
            )
    sliced_config(config, blocks)


def with_parts(inputs: ArmInputs, parts: str) -> PreTrainedModel:
    """Return a student of the first layers that inherits only `parts`: a name of `SUBMODULES`, or as for `inherit`."""
    inherit = ",".join((*_OUTSIDE_BLOCKS, *parts.split("+"))) if parts in SUBMODULES else parts
    recipe = InherituneConfig(keep_layers=inputs.layers, inherit=inherit)
    return from_pretrained_inherited(inputs.reference, recipe, seed=inputs.seed)


def random_weights(inputs: ArmInputs) -> PreTrainedModel:
    """Return a model with the shape of the reference's first layers and none of its weights."""
    model = random_model(sliced_config(inputs.reference.config, range(inputs.layers)), inputs.seed)
    return _with_lineage(model, inputs.reference, (), inputs.seed)


def stacked(inputs: ArmInputs) -> PreTrainedModel:
    """Return a random model, or from the second stage on the previous one's blocks, twice over (PAPER: Appendix D)."""
    before = inputs.before
    if before is None:
        return random_weights(inputs)
    places = twice(inputs.layers)
    model = assemble(before, places, inputs.seed, inputs.keep_scale)
    own = getattr(before.config, "inheritune", None)
    if isinstance(own, dict):
        kept = own["kept_layers"]
        model.config.inheritune = {**own, "kept_layers": [kept[place] for place in places] if kept else []}
    return model


def expanded(inputs: ArmInputs) -> PreTrainedModel:
    """Return the reference's first half as many layers, each followed by a copy that is an identity at first."""
    places = each_twice(inputs.layers)
    model = assemble(inputs.reference, places, inputs.seed, inputs.keep_scale)
    for place in range(1, inputs.layers, 2):
        make_identity(model, place)
    return model


def check_expansion(config: PreTrainedConfig, layers: int) -> None:
    """
    Raise a `ValueError` if `expanded` cannot make a model of so many layers from a reference of this config.

    A model of the outermost kinds of blocks and a small vocabulary is tried: some blocks change their input whatever
    their projections are.
    """
    places = each_twice(layers)
    probe = copy.deepcopy(sliced_config(config, sorted({places[0], places[-1]})))
    probe.vocab_size, probe.pad_token_id = _PROBED_TOKENS, 0
    model = random_model(probe, seed=0)
    try:
        for place in range(int(probe.num_hidden_layers)):
            make_identity(model, place)
    except ValueError as error:
        raise ValueError(
            f"blocks of this {config.model_type} still change their input with their output projections zeroed"
        ) from error


def half_width(inputs: ArmInputs) -> PreTrainedModel:
    """Return a model as deep as the reference and half as wide: its leading heads, channels and neurons."""
    opened, seed = inputs.reference, inputs.seed
    config = narrowed_config(opened.config)
    donor = from_pretrained_inherited(opened, InherituneConfig(keep_layers=opened.depth), seed=seed)
    model = random_model(config, seed, donor.dtype)
    given = donor.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            parts = 3 if config.model_type == "gpt2" and f".{_FUSED}." in name else 1
            tensor.copy_(_leading(given[name], tensor.shape, parts))
    return _with_lineage(model, opened, range(opened.depth), seed)


def narrowed_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """
    Return the config of a model half as wide, with heads of the same size; of an odd number the smaller half is kept.

    A model type whose layout is not known, or with one head only, is a `ValueError`.
    """
    if config.model_type not in NARROWED_MODEL_TYPES:
        raise ValueError(
            f"A {config.model_type} cannot be halved in width: the layout of its heads and neurons is not known here. "
            f"It is known of {', '.join(NARROWED_MODEL_TYPES)}."
        )
    heads = int(config.num_attention_heads)
    if heads < 2:
        raise ValueError("A model of one attention head cannot be halved in width.")
    narrow = copy.deepcopy(config)
    shared = getattr(config, "num_key_value_heads", None)
    kept = heads // 2
    if shared and shared > 1:
        # Queries share keys in groups: whole groups are kept, so that each query keeps its key.
        narrow.num_key_value_heads = shared // 2
        kept = narrow.num_key_value_heads * (heads // shared)
    narrow.num_attention_heads = kept
    narrow.hidden_size = int(config.hidden_size) * kept // heads
    for field in ("intermediate_size", "ffn_dim", "n_inner"):
        neurons = getattr(config, field, None)
        if isinstance(neurons, int):
            setattr(narrow, field, neurons * kept // heads)
    if getattr(config, "word_embed_proj_dim", None):
        narrow.word_embed_proj_dim = narrow.hidden_size
    narrow.validate()
    return narrow


def random_model(config: PreTrainedConfig, seed: int, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a model of random weights, by its architecture's own initialisation; the caller's random state stays."""
    auto: Any = AutoModelForCausalLM
    with seeded(seed):
        model: PreTrainedModel = auto.from_config(copy.deepcopy(config), dtype=dtype)
    model.train(False)
    return model


def _leading(tensor: Tensor, shape: Sequence[int], parts: int) -> Tensor:
    """Return the first rows and columns of each of the equal parts of the last dimension."""
    leading = (*(slice(0, size) for size in shape[:-1]), slice(0, shape[-1] // parts))
    return torch.cat([part[leading] for part in tensor.chunk(parts, -1)], -1)


def _with_lineage(
    model: PreTrainedModel, reference: OpenedReference, layers: Sequence[int], seed: int
) -> PreTrainedModel:
    own: dict[str, Any] = {"kept_layers": tuple(layers), "inherited": PARTS if layers else (), "seed": seed}
    lineage = Lineage(**reference.origin, reference_layers=reference.depth, **own, versions=VERSIONS)
    model.config.inheritune = encode(lineage)
    return model


#: Arms that start from weights of their own; the others start from blocks of the reference.
INITIALISERS: dict[str, Callable[[ArmInputs], PreTrainedModel]] = {
    **dict.fromkeys(("random", "random-2x", "random-long", "random-whole"), random_weights),
    **{name: partial(with_parts, parts=name) for name in (*SUBMODULES, "released-code")},
    "half-width": half_width,
    "stacking": stacked,
    "expansion": expanded,
}


def build_arm(arm: Arm, inputs: ArmInputs) -> PreTrainedModel:
    """Return an arm's model at the beginning of a stage."""
    if arm.name in INITIALISERS:
        return INITIALISERS[arm.name](inputs)
    places = inputs.chosen if arm.places is None else arm.places(inputs.reference.depth, inputs.layers)
    return assemble(inputs.reference, places, inputs.seed, inputs.keep_scale)


def shape_of(variant: Variant, reference: PreTrainedConfig) -> PreTrainedConfig:
    """Return a config of the width of an arm's models, which may have fewer layers."""
    return narrowed_config(reference) if variant.arm.narrow else reference


def check_arm(arm: Arm, reference: PreTrainedConfig, layers: int) -> None:
    """Raise a `ValueError` if an arm's model of so many layers cannot be built from this reference."""
    depth = int(reference.num_hidden_layers)
    if not 1 <= layers <= depth:
        raise ValueError(f"it would have {layers} layers, and the reference has {depth}")
    # Layers that a measure chooses are not known before it is measured.
    if arm.places is not None:
        places = enumerate(arm.places(depth, layers))
        check_order(reference, [place if layer is None else layer for place, layer in places])
    if INITIALISERS.get(arm.name) is expanded:
        check_expansion(reference, layers)
    if arm.narrow:
        narrowed_config(reference)


def arm_baseline(variant: Variant, inputs: ArmInputs, recipe: InherituneConfig) -> Baseline:
    """
    Return an arm as a trainer takes it: its models, and one round for each of its stages.

    All stages are trained whatever their loss; only the last one may match.
    """
    identity = {"arm": variant.name, "arm.chosen": list(inputs.chosen)}
    if variant.arm.name == LOOP:
        return Baseline(identity)

    def build(layers: tuple[int, ...], before: Path | None) -> PreTrainedModel:
        trained: Any = AutoModelForCausalLM.from_pretrained(before) if before is not None else None
        return build_arm(variant.arm, dataclasses.replace(inputs, layers=len(layers), before=trained))

    return Baseline(
        identity, build, dataclasses.replace(rule_from_recipe(recipe, inputs.reference.depth), match="last")
    )
