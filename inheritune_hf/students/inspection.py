"""Plan a student from its reference's config and the headers of its files: sizes, config fields, bytes to read."""

from __future__ import annotations

import zipfile
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch

from ..config import InherituneConfig
from ..layers import is_prefix
from .architectures import drop_tied, dropped_kinds, prediction_layers
from .checkpoints import LazyTensor, Weights, lazy_header, missing_file, open_file, size_on_hub
from .download import NoRanges, cached_header, fetched_names, read_header
from .inherit import Choice, Cut, moves_scaled_blocks, plan_cut
from .reference import Reference, open_reference, refuse_adapter


@dataclass(frozen=True)
class FilePlan:
    """
    What is needed of one file of weights, in bytes.

    `kept` is an estimate from the config unless it is `exact`, from the file's header. `cached` files lie on this
    machine; `to_fetch` is the whole file where it cannot be had in part.
    """

    name: str
    size: int | None
    kept: int
    cached: bool
    exact: bool
    to_fetch: int = 0


@dataclass(frozen=True)
class InheritancePlan:
    """
    What cutting a reference would give, known before any weight is read.

    Sizes are counts of parameters; shared ones count once. `random_parameters` are those that are not inherited;
    `changed_fields` are config fields that follow the layers, before and after; `query_scales` the factors of each
    moved block's queries, empty where none is scaled; `rescaled` says that moved blocks take the attention scale of
    their new position. `dropped_kinds` are kinds of layers, such as `full_attention`, of which the student has none,
    `prediction_layers` says how many layers of multi-token prediction lie beside the others and are left out, and
    `unknown_tensors` what the files hold of what is kept and the architecture does not know, `*` for the layer.
    `multimodal` is the type of the multimodal model that the reference is the text model of; `dequantized` says that it
    is read from a GGUF file.
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
    dropped_kinds: tuple[str, ...] = ()
    prediction_layers: int = 0
    unknown_tensors: tuple[str, ...] = ()
    multimodal: str | None = None
    dequantized: bool = False

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
        if self.multimodal is not None:
            found.append(f"The reference is the text model inside a multimodal model of type {self.multimodal}.")
        if self.dequantized:
            found.append(
                "The weights are dequantized from a GGUF file, which is read whole: they are not quite the original's."
            )
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
            found.append(f"{self.random_parameters:,} parameters are not inherited and begin random.")
        if not is_prefix(self.kept_layers):
            found.append("Not first layers only: without a measure or a schedule the student cannot grow.")
        if any(not file.exact for file in self.files):
            found.append("Bytes to read are estimated from the config: the files are not on this machine.")
        if self.dropped_kinds:
            found.append(f"No {' and no '.join(self.dropped_kinds)} layer is kept: the reference has some.")
        if self.prediction_layers:
            found.append(
                f"Layers of multi-token prediction (the config has {self.prediction_layers}) are left out: the student "
                "predicts the next token only."
            )
        if self.unknown_tensors:
            found.append(
                "The files hold tensors of what is kept that the architecture does not know, and a student has nothing "
                f"of them: {', '.join(self.unknown_tensors)}."
            )
        if not self.files:
            found.append("No files of weights were found.")
        return tuple(found)


def plan_inheritance(
    reference: Reference,
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
            The parts that are inherited, as in the recipe.
        attention_scale (`str`, *optional*, defaults to `"keep"`):
            Whether moved blocks keep their attention scale, as in the recipe.
        kwargs:
            As in `open_reference`.

    Returns:
        `InheritancePlan`: Layers, parameters, config fields and files.

    Raises:
        ValueError: If the reference is not a causal language model of a supported type, or has no such layers.
        OSError: If there is no model at `reference`, or a file is missing or incomplete.
        RuntimeError: If the headers say that the weights do not fill the student.
    """
    opened = open_reference(reference, **kwargs)
    recipe = InherituneConfig(inherit=inherit, attention_scale=cast(Any, attention_scale))
    cut = plan_cut(opened, recipe, choice)
    before, after = cut.before, cut.after
    files, unknown = _plan_files(cut)
    old, new = opened.config.to_dict(), cut.config.to_dict()
    return InheritancePlan(
        reference=opened.name,
        model_type=str(opened.config.model_type),
        depth=before.depth,
        kept_layers=cut.layers,
        dropped_layers=tuple(layer for layer in range(before.depth) if layer not in cut.layers),
        parameters_before=before.parameter_count,
        parameters_after=after.parameter_count,
        layer_parameters=before.block_sizes,
        random_parameters=sum(
            torch.Size(after.parameters[name]).numel() for name in cut.left_out if name not in after.tied
        ),
        changed_fields={
            name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)
        },
        query_scales=cut.scales,
        rescaled="attention" in cut.parts and not cut.scales and moves_scaled_blocks(opened.config, cut.layers),
        files=files,
        block_list=before.block_list,
        tied=bool(before.tied),
        dropped_kinds=dropped_kinds(opened.config, cut.layers),
        prediction_layers=prediction_layers(opened.config),
        unknown_tensors=unknown,
        multimodal=opened.multimodal,
        dequantized=opened.origin["gguf_file"] is not None,
    )


def _plan_files(cut: Cut) -> tuple[tuple[FilePlan, ...], tuple[str, ...]]:
    """Return what is needed of each file, and the tensors that the architecture does not know, as far as is seen."""
    if cut.reference.model is not None:
        return (), cut.check(*cut.reference.open_tensors(cut.choose))
    refuse_adapter(cut.reference)
    try:
        weights = cut.reference.find_weights()
    except FileNotFoundError:
        return (), ()
    planned = [_plan_file(cut, weights, name) for name in weights.files_with(cut.choose)]
    files = tuple(file for file, _ in planned)
    seen = [tensors for _, tensors in planned if tensors is not None]
    if len(seen) < len(planned):
        return files, ()
    tensors = {name: tensor for held in seen for name, tensor in held.items()}
    kept = {given: tensors[name] for name, given in cut.choose(tensors).items()}
    return files, cut.check(drop_tied(cut.after, kept), [*weights.files, *tensors])


def _plan_file(cut: Cut, weights: Weights, name: str) -> tuple[FilePlan, dict[str, LazyTensor] | None]:
    """Return what is needed of a file, and its tensors, not read; None where it would have to be read or fetched."""
    source = weights.source
    path = source.find_cached(name)
    if path is None and source.is_local:
        raise missing_file(weights, name)
    if path is not None:
        size = path.stat().st_size
        # It is read whole or not at all.
        if weights.format == "gguf" or (weights.format == "bin" and not zipfile.is_zipfile(path)):
            return FilePlan(name, size, size, True, True), None
        tensors = open_file(weights, path)
        kept = drop_tied(cut.after, {given: tensors[item] for item, given in cut.choose(tensors).items()})
        return FilePlan(name, size, sum(item.nbytes for item in kept.values()), True, True), tensors
    header = None
    if weights.format == "safetensors":
        with suppress(NoRanges, FileNotFoundError):
            header = cached_header(source.remote(name)) if source.is_offline else read_header(source.remote(name))
    if header is not None:
        chosen = cut.choose(header.tensors)
        missing = set(chosen) - fetched_names(source.remote(name))
        file = FilePlan(name, header.size, header.bytes_of(chosen), not missing, True, header.bytes_of(missing))
        return file, lazy_header(header, f"{name} of {source.reference!r}")
    size_there = size_on_hub(source, name)
    config, shapes = cut.reference.config, cut.before.parameters
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    listed = weights.files or dict.fromkeys(shapes, name)
    estimate = sum(
        torch.Size(shapes[item]).numel() * stored.itemsize
        for item in cut.choose([item for item, file in listed.items() if file == name])
        if item in shapes and item not in cut.before.tied
    )
    return FilePlan(name, size_there, estimate, False, False, size_there or estimate), None
