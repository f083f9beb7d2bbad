"""What cutting a reference would give and read, from its config and the headers of its files alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch

from ..configuration import PARTS, InherituneConfig
from ..layers import is_prefix, resolve_layers
from .architectures import Architecture, inspect_architecture, kept_names, left_out_names, without_twins
from .attention_scale import moves_scaled_blocks, query_scales
from .checkpoints import Weights, find_weights_unfetched, needed_shards, size_on_hub
from .config_fields import sliced_config
from .connection import NoRanges
from .reference import OpenedReference, Reference, open_reference, refuse_adapter
from .remote import at_hand, fetched_names, read_header
from .tensors import Unread, is_readable_in_part, open_bin, open_safetensors

Choice = int | str | Sequence[int]


@dataclass(frozen=True)
class FilePlan:
    """
    What is needed of one file of weights.

    Args:
        name (`str`): Its name.
        size (`int`, *optional*): Its size in bytes, if that is known.
        kept (`int`): Bytes of the tensors that the student keeps; an estimate from the config if `exact` is false.
        at_hand (`bool`): Whether it lies on this machine, so that nothing is fetched.
        exact (`bool`): Whether `kept` comes from the file's header.
        to_fetch (`int`): Bytes that would be fetched: those of the kept tensors that are not on this machine, or the
            whole file where it cannot be had in part.
    """

    name: str
    size: int | None
    kept: int
    at_hand: bool
    exact: bool
    to_fetch: int = 0


@dataclass(frozen=True)
class InheritancePlan:
    """
    What cutting a reference would give, known before any weight is read.

    Args:
        reference (`str`): Id or path of the reference, as it was given.
        model_type (`str`): Its architecture, such as `gpt2`.
        depth (`int`): Its depth, in layers.
        kept_layers (`tuple[int, ...]`): Layers that the student would hold, 0-based, in order.
        dropped_layers (`tuple[int, ...]`): Layers that it would not hold.
        parameters_before (`int`): Parameters of the reference; shared ones count once.
        parameters_after (`int`): Parameters of the student.
        layer_parameters (`tuple[int, ...]`): Parameters of each of the reference's layers.
        random_parameters (`int`): Parameters of the student that would not come along and begin random.
        changed_fields (`dict[str, tuple[Any, Any]]`): Config fields that follow the layers: before and after.
        query_scales (`tuple[float, ...]`): What each moved block's queries would be multiplied by; empty where none is.
        rescaled (`bool`): Whether moved blocks would take the attention scale of their new position.
        files (`tuple[FilePlan, ...]`): Files that would be read; none for a loaded model, or without weights.
        block_list (`str`): Dotted name of the list of blocks.
        tied (`bool`): Whether the head shares the embedding's weights.
    """

    reference: str
    model_type: str
    depth: int
    kept_layers: tuple[int, ...]
    dropped_layers: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    layer_parameters: tuple[int, ...]
    random_parameters: int
    changed_fields: dict[str, tuple[Any, Any]]
    query_scales: tuple[float, ...]
    rescaled: bool
    files: tuple[FilePlan, ...]
    block_list: str
    tied: bool

    @property
    def bytes_to_read(self) -> int:
        """Bytes of the kept tensors, as they are stored."""
        return sum(file.kept for file in self.files)

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes that would be fetched, headers aside."""
        return sum(file.to_fetch for file in self.files)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing before: sentences."""
        found = []
        if self.query_scales:
            found.append(
                "Attention is scaled by position (scale_attn_by_inverse_layer_idx): moved blocks keep their own scale, "
                "multiplied into their queries."
            )
        if self.rescaled:
            found.append(
                "Attention is scaled by position (scale_attn_by_inverse_layer_idx): moved blocks take the scale of "
                "their new position, and compute something else than in the reference."
            )
        if self.random_parameters:
            found.append(f"{self.random_parameters:,} parameters do not come along and begin random.")
        if not is_prefix(self.kept_layers):
            found.append("Not first layers only: the student cannot grow by next layers.")
        if any(not file.exact for file in self.files):
            found.append("Bytes to read are estimated from the config: the files are not on this machine.")
        if not self.files:
            found.append("No files of weights were found.")
        return tuple(found)


def plan_inheritance(
    reference: Reference | OpenedReference,
    choice: Choice,
    inherit: str = "all",
    attention_scale: str = "keep",
    **kwargs: Any,
) -> InheritancePlan:
    """
    Return what a student of `reference` that keeps `choice` would be; no weights are read, and none fetched.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`):
            Hub id, folder with config.json, or a loaded causal language model.
        choice (`int`, `str` or sequence of `int`):
            The layers to keep, as in `keep_layers`.
        inherit (`str`, *optional*, defaults to `"all"`):
            The parts that come along, as in the recipe.
        attention_scale (`str`, *optional*, defaults to `"keep"`):
            Whether moved blocks keep their attention scale, as in the recipe.
        kwargs:
            As in `load_reference_config`.

    Returns:
        `InheritancePlan`: Layers, parameters, config fields and files.

    Raises:
        ValueError: If the reference is not a causal language model of a supported type, or has no such layers.
        OSError: If there is no model at `reference`, or a file is incomplete.
    """
    opened = open_reference(reference, **kwargs)
    recipe = InherituneConfig(inherit=inherit, attention_scale=cast(Any, attention_scale))
    parts = recipe.inherited_parts
    before = inspect_architecture(opened.config)
    kept = resolve_layers(choice, before.depth, before.prefix_sizes)
    sliced = sliced_config(opened.config, kept)
    after = inspect_architecture(sliced)
    old, new = opened.config.to_dict(), sliced.to_dict()
    scales = query_scales(opened.config, kept, recipe)
    return InheritancePlan(
        reference=opened.name,
        model_type=str(opened.config.model_type),
        depth=before.depth,
        kept_layers=kept,
        dropped_layers=tuple(layer for layer in range(before.depth) if layer not in kept),
        parameters_before=before.parameter_count,
        parameters_after=after.parameter_count,
        layer_parameters=before.block_sizes,
        random_parameters=sum(
            torch.Size(after.parameters[name]).numel()
            for name in left_out_names(after, parts)
            if name not in after.tied
        ),
        changed_fields={name: (old.get(name), value) for name, value in new.items() if old.get(name) != value},
        query_scales=scales,
        rescaled="attention" in parts and not scales and moves_scaled_blocks(opened.config, kept),
        files=_plan_files(opened, before, kept, parts),
        block_list=before.block_list,
        tied=bool(before.tied),
    )


def _plan_files(
    opened: OpenedReference, architecture: Architecture, layers: tuple[int, ...], parts: tuple[str, ...] = PARTS
) -> tuple[FilePlan, ...]:
    if opened.source is None:
        return ()
    refuse_adapter(opened)
    weights = find_weights_unfetched(opened.source)
    if weights is None:
        return ()
    choose = partial(kept_names, architecture, layers, parts=parts)
    names = needed_shards(weights, choose) if weights.files else [weights.path.name]
    return tuple(_plan_file(opened, architecture, weights, name, choose) for name in names)


def _plan_file(
    opened: OpenedReference, architecture: Architecture, weights: Weights, name: str, choose: Any
) -> FilePlan:
    source = weights.source
    path = source.find_at_hand(name)
    if path is not None and (weights.format == "safetensors" or is_readable_in_part(path)):
        tensors: dict[str, Unread] = open_safetensors(path) if weights.format == "safetensors" else open_bin(path, True)
        named = without_twins(architecture, {given: tensors[item] for item, given in choose(tensors).items()})
        return FilePlan(name, path.stat().st_size, sum(item.nbytes for item in named.values()), True, True)
    if path is not None:  # a file that is read whole or not at all
        return FilePlan(name, path.stat().st_size, path.stat().st_size, True, True)
    header = None
    if weights.format == "safetensors":
        with suppress(NoRanges, FileNotFoundError):
            header = at_hand(source.remote(name)) if source.is_offline else read_header(source.remote(name))
    if header is not None:
        kept = choose(header.tensors)
        missing = set(kept) - fetched_names(source.remote(name))
        whole = header.bytes_of(kept)
        return FilePlan(name, header.size, whole, not missing, True, header.bytes_of(missing))
    size = size_on_hub(source, name)
    stored = opened.config.dtype if isinstance(opened.config.dtype, torch.dtype) else torch.float32
    listed = weights.files or dict.fromkeys(architecture.parameters, name)
    estimate = sum(
        torch.Size(architecture.parameters.get(item, ())).numel() * stored.itemsize
        for item in choose([item for item, file in listed.items() if file == name])
        if item in architecture.parameters and item not in architecture.tied
    )
    return FilePlan(name, size, estimate, False, False, size or estimate)
