"""Put more blocks into a trained student: what it has learned stays, new blocks come from where the recipe says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed

from ..configuration import InherituneConfig
from ..students import Reference, from_pretrained_inherited, inspect_architecture
from ..students.inherit import scale_queries

NewBlocks = Literal["reference", "copy_last", "identity", "random"]


def expand_student(
    student: PreTrainedModel,
    layers: Sequence[int],
    reference: Reference,
    wanted: Sequence[int],
    recipe: InherituneConfig,
    seed: int,
    reference_kwargs: Mapping[str, Any],
) -> PreTrainedModel:
    """
    Return a deeper student: everything that `student` has learned, and new blocks where `wanted` has new layers.

    Args:
        student (`PreTrainedModel`): The trained student; left as it is.
        layers (sequence of `int`): Layers of the reference that its blocks stand for.
        reference (`str`, `os.PathLike` or `PreTrainedModel`): Where new blocks of `new_blocks="reference"` come from.
        wanted (sequence of `int`): Layers that the deeper student's blocks stand for; holds all of `layers`.
        recipe (`InherituneConfig`): Its `new_blocks` says how new blocks begin.
        seed (`int`): Seed of random blocks.
        reference_kwargs (`Mapping[str, Any]`): How the reference is loaded.

    Raises:
        ValueError: If `wanted` drops one of `layers`, or identity blocks cannot be made of this architecture.
    """
    lost = sorted(set(layers) - set(wanted))
    if lost:
        raise ValueError(f"A student that goes on keeps its layers, but {lost} are not in {list(wanted)}.")
    chosen = dataclasses.replace(recipe, keep_layers=list(wanted))
    deeper = from_pretrained_inherited(reference, chosen, seed=seed, **reference_kwargs)
    origin = {wanted.index(layer): place for place, layer in enumerate(layers)}
    new = [place for place in range(len(wanted)) if place not in origin]
    moved = [place for place, old in origin.items() if place != old]
    keeps_scale = recipe.attention_scale == "keep" and getattr(deeper.config, "scale_attn_by_inverse_layer_idx", False)
    if moved and keeps_scale:
        raise ValueError(
            f"A trained block would move to layer {moved[0]} of a GPT-2 with scale_attn_by_inverse_layer_idx=True, "
            "which divides attention by the layer's position; add layers above the trained ones only, use growth "
            "'reinherit', or let it take the scale of its new position by attention_scale 'position'."
        )
    _copy_learned(student, deeper, origin)
    old_blocks, new_blocks = _blocks(student), _blocks(deeper)
    if recipe.new_blocks == "random":
        # A whole model of this shape: many architectures initialise a block by how deep the model is.
        set_seed(seed)
        auto: Any = AutoModelForCausalLM
        fresh = auto.from_config(deeper.config)
    for place in new:
        block = new_blocks[place]
        if recipe.new_blocks == "copy_last":
            before = max((old for old in origin if old < place), default=min(origin))
            block.load_state_dict(old_blocks[origin[before]].state_dict())
            if keeps_scale:
                scales = [(place + 1) / (before + 1) if item == place else 1.0 for item in range(len(wanted))]
                scale_queries(deeper, scales)
        elif recipe.new_blocks == "identity":
            make_identity(deeper, place)
        elif recipe.new_blocks == "random":
            block.load_state_dict(_blocks(fresh)[place].state_dict())
    return deeper


def parameter_origins(
    model: PreTrainedModel, layers: Sequence[int], deeper: PreTrainedModel, wanted: Sequence[int]
) -> dict[str, str]:
    """Return, for each parameter name of the deeper student that was trained before, its name in the student."""
    prefix = f"{inspect_architecture(deeper.config).block_list}."
    origins = {}
    names = {name for name, _ in model.named_parameters()}
    for name, _ in deeper.named_parameters():
        old = name
        if name.startswith(prefix):
            place, _, rest = name.removeprefix(prefix).partition(".")
            layer = wanted[int(place)]
            if layer not in layers:
                continue
            old = f"{prefix}{list(layers).index(layer)}.{rest}"
        if old in names:
            origins[name] = old
    return origins


def make_identity(model: PreTrainedModel, place: int) -> None:
    """
    Let a block hand on what it gets: zero the projections with which its attention and MLP write to the residual.

    They are found by running the block, not by name: the last linear map of each of its branches. The block's gradient
    does not vanish, because what feeds those projections is left as it was.

    Raises:
        ValueError: If the block then still changes what it gets, as blocks that normalise after the residual do.
    """
    block = _blocks(model)[place]
    outputs: dict[str, nn.Module] = {}
    handles = []
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 2 and not list(module.children()):
            branch = name.split(".")[0] if "." in name else ""

            def note(used: nn.Module, _inputs: Any, _output: Any, branch: str = branch) -> None:
                outputs[branch] = used

            handles.append(module.register_forward_hook(note))
    seen: list[tuple[Tensor, Tensor]] = []

    def compare(_block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        seen.append((given.detach().clone(), (output[0] if isinstance(output, tuple) else output).detach()))

    probe = torch.arange(4, device=model.device)[None] % model.config.get_text_config(decoder=True).vocab_size
    was_training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            model(probe, use_cache=False)
            for module in outputs.values():
                for parameter in module.parameters(recurse=False):
                    parameter.zero_()
            handles.append(block.register_forward_hook(compare, with_kwargs=True))
            model(probe, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    given, returned = seen[-1]
    if not outputs or not torch.equal(given, returned):
        raise ValueError(
            f"new_blocks='identity' cannot be made of {model.config.model_type} blocks: one still changes what it gets "
            "with its output projections zeroed; use 'reference' or 'copy_last'."
        )


def _copy_learned(student: PreTrainedModel, deeper: PreTrainedModel, origin: Mapping[int, int]) -> None:
    """Copy every tensor of the student to where it belongs in the deeper one."""
    prefix = f"{inspect_architecture(deeper.config).block_list}."
    learned = student.state_dict()
    with torch.no_grad():
        for name, tensor in deeper.state_dict().items():
            old = name
            if name.startswith(prefix):
                place, _, rest = name.removeprefix(prefix).partition(".")
                if int(place) not in origin:
                    continue
                old = f"{prefix}{origin[int(place)]}.{rest}"
            tensor.copy_(learned[old])


def _blocks(model: PreTrainedModel) -> nn.ModuleList:
    blocks = model.get_submodule(inspect_architecture(model.config).block_list)
    if not isinstance(blocks, nn.ModuleList):
        raise TypeError(f"The blocks of {type(model).__name__} are a {type(blocks).__name__}, not a list.")
    return blocks
