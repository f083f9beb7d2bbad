"""What differs between architectures: where the blocks are, what their tensors are called, and what part they are."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ..configuration import PARTS
from .config_fields import sliced_config


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
        return found
    return _INSPECTED[key]


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of the model's blocks."""
    blocks = model.get_submodule(inspect_architecture(model.config).block_list)
    if not isinstance(blocks, nn.ModuleList):
        raise RuntimeError(f"The blocks of {type(model).__name__} are no list but a {type(blocks).__name__}.")
    return blocks


def _inspect(config: PreTrainedConfig) -> Architecture:
    model = _empty_model(config)
    depth = int(config.get_text_config(decoder=True).num_hidden_layers)
    block_list = _find_block_list(model, depth)
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


def join_sources(config: PreTrainedConfig, student: Architecture, sources: Mapping[str, Any]) -> torch.Tensor:
    """
    Return the one tensor of a model that `sources` fill, as Transformers joins them on load.

    Args:
        config (`PreTrainedConfig`): The model's config.
        student (`Architecture`): Its architecture.
        sources (`Mapping[str, Any]`): What fills it, by name in files, as `sources_of` says; each is read by `[...]`.
    """
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


def with_tied_names(student: Architecture, names: Iterable[str]) -> set[str]:
    """Return `names` and those of the student's tensors that share their storage."""
    filled = set(names)
    for target, origin in student.tied.items():
        if target in filled or origin in filled:
            filled |= {target, origin}
    return filled


def without_twins(architecture: Architecture, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return `tensors`, by name in the model, without those that are tied to another one and are the same object."""
    tied = architecture.tied
    return {name: item for name, item in tensors.items() if name not in tied or tensors.get(tied[name]) is not item}


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


def has_experts(architecture: Architecture) -> bool:
    """Return whether some of the model's tokens pass through some of its weights only."""
    return any("experts" in name and len(shape) == 3 for name, shape in architecture.parameters.items())


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


def _empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    model_class = cast(type[PreTrainedModel], MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    # As `from_pretrained` does: drawing numbers for tensors that have no room for them takes a second all the same.
    with torch.device("meta"), no_init_weights():
        model = model_class(copy.deepcopy(config))
        model.tie_weights()
    return model


def _find_block_list(model: PreTrainedModel, depth: int) -> str:
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
    renamed, pattern = _converted_name(architecture, name)
    return (renamed, pattern is not None) if renamed in architecture.parameters else (None, False)


def _converted_name(architecture: Architecture, name: str) -> tuple[str, str | None]:
    """Return what Transformers renames a tensor of a file to, and the pattern by which it is joined with others."""
    renamings: list[Any] = [item for item in architecture.conversions if isinstance(item, WeightRenaming)]
    converters: list[Any] = [item for item in architecture.conversions if isinstance(item, WeightConverter)]
    known: Any = architecture.parameters
    prefix = architecture.model_class.base_model_prefix
    renamed, pattern = rename_source_key(name, renamings, converters, prefix, known)
    # As Transformers does: a rule that leads nowhere is not followed.
    return (name, None) if renamed not in known and name in known else (renamed, pattern)


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
