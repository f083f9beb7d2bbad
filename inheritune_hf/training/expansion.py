"""Build a round's student: inherit it afresh, or add blocks to what was trained, with what its optimizer knows."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCALER_NAME, SCHEDULER_NAME

from ..config import InherituneConfig
from ..growth import GrowthRule
from ..students import OpenedReference, Reference, find_blocks, from_pretrained_inherited, inspect_architecture
from ..students.inherit import query_rows, scale_queries

# How states of optimizers follow a parameter that is multiplied by a factor, and its gradient divided: its powers.
_POWERS = {"exp_avg": -1, "momentum_buffer": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2}

#: Returns the student of so many layers that a round begins with, given the checkpoint that ended the round before.
Build = Callable[[tuple[int, ...], Path | None], PreTrainedModel]


@dataclass(frozen=True)
class Baseline:
    """
    What a trainer trains in place of the recipe's students, with the loop's steps, evaluations and checkpoints.

    Args:
        identity (`Mapping[str, Any]`): What distinguishes its runs, beside recipe, arguments and data.
        build (`Callable`, *optional*): Returns the model of a round's layers, given the last round's checkpoint if
            there is one; the recipe's students if not given.
        growth_rule (`GrowthRule`, *optional*): Its stages, and which of them may match; the recipe's if not given.
        description (`str`): What its progress bar says; the round and its depth if empty.
    """

    identity: Mapping[str, Any] = field(default_factory=dict)
    build: Build | None = None
    growth_rule: GrowthRule | None = None
    description: str = ""


@dataclass(frozen=True)
class Trained:
    """A student that was trained, whose round is over."""

    checkpoint: Path  # that ended its round
    layers: tuple[int, ...]  # of the reference, that its blocks stand for
    model_class: type[PreTrainedModel]

    def load(self) -> PreTrainedModel:
        """Return the student, in float32."""
        model: PreTrainedModel = self.model_class.from_pretrained(self.checkpoint, dtype=torch.float32)
        return model


def build_student(
    reference: OpenedReference, layers: Sequence[int], recipe: InherituneConfig, seed: int, before: Trained | None
) -> PreTrainedModel:
    """Return the student with which a round begins: inherited afresh, or the one `before` with blocks added."""
    if before is None or recipe.growth == "reinherit":
        return from_pretrained_inherited(reference, dataclasses.replace(recipe, keep_layers=list(layers)), seed=seed)
    return expand_student(before.load(), before.layers, reference, layers, recipe, seed)


def expand_student(
    student: PreTrainedModel,
    layers: Sequence[int],
    reference: Reference,
    wanted: Sequence[int],
    recipe: InherituneConfig,
    seed: int,
) -> PreTrainedModel:
    """
    Return a deeper student: everything that `student` has learned, and new blocks where `wanted` has new layers.

    `layers` are those of the reference that the trained student's blocks stand for, `wanted` those of the deeper one.
    The recipe's `new_blocks` says how new blocks begin. The trained student is left as it is.

    Raises:
        ValueError: If `wanted` drops one of `layers`, a copied block does not fit its new place, or identity blocks
            cannot be made of this architecture.
    """
    lost = sorted(set(layers) - set(wanted))
    if lost:
        raise ValueError(f"A student that is continued keeps its layers, but {lost} are not in {list(wanted)}.")
    chosen = dataclasses.replace(recipe, keep_layers=list(wanted))
    deeper = from_pretrained_inherited(reference, chosen, seed=seed)
    origin = {wanted.index(layer): place for place, layer in enumerate(layers)}
    new = [place for place in range(len(wanted)) if place not in origin]
    scales = moved_scales(deeper, origin, recipe.attention_scale)
    _copy_learned(student, deeper, origin)
    old_blocks, new_blocks = find_blocks(student), find_blocks(deeper)
    if recipe.new_blocks == "random":
        # A whole model of this shape: many architectures initialise a block by how deep the model is.
        set_seed(seed)
        auto: Any = AutoModelForCausalLM
        fresh = auto.from_config(deeper.config)
    for place in new:
        block = new_blocks[place]
        if recipe.new_blocks == "copy_last":
            before = max((old for old in origin if old < place), default=min(origin))
            try:
                block.load_state_dict(old_blocks[origin[before]].state_dict())
            except RuntimeError as error:
                raise ValueError(
                    f"new_blocks='copy_last' cannot put a copy of layer {wanted[before]} in the place of layer "
                    f"{wanted[place]}, a block of another kind; use 'reference' or 'identity'."
                ) from error
            scales |= moved_scales(deeper, {place: origin[before]}, recipe.attention_scale)
        elif recipe.new_blocks == "identity":
            make_identity(deeper, place)
        elif recipe.new_blocks == "random":
            block.load_state_dict(find_blocks(fresh)[place].state_dict())
    if scales:
        scale_queries(deeper, [scales.get(place, 1.0) for place in range(len(wanted))])
    return deeper


def moved_scales(model: PreTrainedModel, origin: Mapping[int, int], attention_scale: str) -> dict[int, float]:
    """
    Return by what the queries of moved blocks are multiplied so that they attend as before, by new place.

    `origin` gives the place that each block had; see `query_scales`.
    """
    if attention_scale == "position" or not getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        return {}
    return {place: (place + 1) / (old + 1) for place, old in origin.items() if place != old}


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
    block = find_blocks(model)[place]
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


# The optimizer's state, carried over growth by parameter name: positions mean nothing once a model has more blocks


def carry_states(
    before: Trained,
    student: PreTrainedModel,
    layers: Sequence[int],
    prepare: Callable[[PreTrainedModel], tuple[torch.optim.Optimizer, Any]],
    keep_state: bool,
    keep_rates: bool,
    by_names: bool,
    attention_scale: str,
) -> dict[str, Any]:
    """
    Return the optimizer and scheduler states with which a round begins, by file name.

    `prepare` returns a new optimizer and scheduler for a model. `keep_state` keeps the moments of trained parameters,
    `keep_rates` the schedule. `by_names` says that states are saved by parameter name, as FSDP does. `attention_scale`
    is the recipe's.

    Raises:
        ValueError: If states cannot be carried over; see `carry_optimizer` and `rescale_moments`.
    """
    trained = before.load()
    optimizer, _ = prepare(trained)
    names = group_names(optimizer, trained)
    fresh, scheduler = prepare(student)
    fresh_names = group_names(fresh, student)
    origins = parameter_origins(trained, before.layers, student, layers)
    file = OPTIMIZER_NAME_BIN if by_names else OPTIMIZER_NAME
    saved = torch.load(before.checkpoint / file, map_location="cpu", weights_only=True)
    if by_names:
        names, saved = [list(group["params"]) for group in saved["param_groups"]], by_place(saved)
    carried = carry_optimizer(saved, names, fresh.state_dict(), fresh_names, origins, keep_state, keep_rates)
    moved = {place: before.layers.index(layer) for place, layer in enumerate(layers) if layer in before.layers}
    rescale_moments(carried["state"], _flat(fresh_names), student, moved_scales(student, moved, attention_scale))
    if by_names:
        carried = by_name(carried, fresh_names, fresh)
    schedule = scheduler.state_dict()
    if keep_rates:
        schedule = torch.load(before.checkpoint / SCHEDULER_NAME, weights_only=True)
    return {file: carried, SCHEDULER_NAME: schedule}


def loss_scale(scaler: Any, before: Path | None) -> dict[str, Any]:
    """
    Return the state of the loss scaler with which a round begins, by file name; none without fp16.

    The scaler outlives a round, so what it begins with is always written: that of the checkpoint `before`, or afresh.
    """
    if scaler is None:
        return {}
    if before is not None:
        return {SCALER_NAME: torch.load(before / SCALER_NAME, weights_only=True)}
    return {SCALER_NAME: {**scaler.state_dict(), "scale": scaler._init_scale, "_growth_tracker": 0}}


def group_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    """Return the parameter names of each of an optimizer's groups, in the order of its state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def carry_optimizer(
    saved: Mapping[str, Any],
    saved_names: Sequence[Sequence[str]],
    fresh: Mapping[str, Any],
    fresh_names: Sequence[Sequence[str]],
    origins: Mapping[str, str],
    keep_state: bool,
    keep_rates: bool,
) -> dict[str, Any]:
    """
    Return the state dictionary with which a deeper student's optimizer begins.

    `saved` and `fresh` are state dictionaries of the shallower student's optimizer and of a new one for the deeper
    student, each with its parameter names by group. `origins` gives the name in the shallower student, by that in the
    deeper one, of what was trained.

    Raises:
        ValueError: If a trained parameter has no state, or the groups do not correspond.
    """
    result = copy.deepcopy(dict(fresh))
    result["state"] = {}
    if len(saved["param_groups"]) != len(result["param_groups"]):
        raise ValueError(
            f"The optimizer had {len(saved['param_groups'])} parameter groups and now has "
            f"{len(result['param_groups'])}; its state cannot be carried over: use optimizer_state 'reset'."
        )
    if keep_state:
        places = {name: place for place, name in enumerate(_flat(saved_names))}
        for place, name in enumerate(_flat(fresh_names)):
            if name not in origins:
                continue
            before = places.get(origins[name])
            if before is None or before not in saved["state"]:
                raise ValueError(
                    f"The optimizer has no state for {origins[name]}, which was trained; it cannot be kept: use "
                    "optimizer_state 'reset'."
                )
            result["state"][place] = saved["state"][before]
    if keep_rates:
        for group, before in zip(result["param_groups"], saved["param_groups"], strict=True):
            group.update({name: value for name, value in before.items() if name != "params"})
    return result


def rescale_moments(
    states: dict[int, dict[str, Any]], names: Sequence[str], model: PreTrainedModel, scales: Mapping[int, float]
) -> None:
    """
    Rescale the moments of queries that were multiplied by `scales`, by block: their gradients are divided by it.

    Raises:
        ValueError: If the optimizer has a state of which it is not known how it follows.
    """
    architecture = inspect_architecture(model.config)
    for place, name in enumerate(names):
        found = query_rows(architecture, name) if scales else None
        if found is None or found[0] not in scales or place not in states:
            continue
        states[place] = dict(states[place])
        for key, value in states[place].items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                continue
            if key not in _POWERS:
                raise ValueError(
                    f"The optimizer's state {key} of {name} cannot be carried over: that block's queries are rescaled "
                    "as it moves. Use optimizer_state 'reset', an AdamW, or attention_scale 'position'."
                )
            states[place][key] = value.clone()
            states[place][key][..., : found[1]] *= scales[found[0]] ** _POWERS[key]


def by_place(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state dictionary that is keyed by name, as FSDP saves it, keyed by place."""
    places = {name: place for place, name in enumerate(_flat([group["params"] for group in saved["param_groups"]]))}
    return {
        "state": {places[name]: state for name, state in saved["state"].items()},
        "param_groups": [
            {**group, "params": [places[name] for name in group["params"]]} for group in saved["param_groups"]
        ],
    }


def by_name(
    carried: Mapping[str, Any], names: Sequence[Sequence[str]], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """
    Return an optimizer's state dictionary with names instead of places, and complete, as FSDP loads it.

    A parameter without state in `carried` begins with zeros of what `optimizer`, a new one, would hold.
    """
    unborn = _state_before_first_step(optimizer)
    groups = [{**group, "params": list(own)} for group, own in zip(carried["param_groups"], names, strict=True)]
    state = {name: carried["state"].get(place, unborn[place]) for place, name in enumerate(_flat(names))}
    return {"state": state, "param_groups": groups}


def _state_before_first_step(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    # What an optimizer holds it makes at its first step: one without gradients at a rate of nothing changes no weight.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return {
        place: {name: torch.zeros_like(torch.as_tensor(value)) for name, value in state.items()}
        for place, state in optimizer.state_dict()["state"].items()
    }


def _flat(names: Sequence[Sequence[str]]) -> list[str]:
    return [name for group in names for name in group]


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
