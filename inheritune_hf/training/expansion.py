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
from ..students import Reference, find_blocks, from_pretrained_inherited, inspect_architecture
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
    # In the student's precision: the reference may be loaded in another one, which would round what was trained.
    deeper = from_pretrained_inherited(reference, chosen, seed=seed, dtype=student.dtype)
    origin = {wanted.index(layer): place for place, layer in enumerate(layers)}
    new = [place for place in range(len(wanted)) if place not in origin]
    scales = moved_scales(deeper, origin, recipe.attention_scale)
    learned, tensors = student.state_dict(), deeper.state_dict()
    with torch.no_grad():
        for name, old in learned_names(deeper, origin).items():
            tensors[name].copy_(learned[old])
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


def learned_names(deeper: PreTrainedModel, origin: Mapping[int, int]) -> dict[str, str]:
    """
    Return, for each tensor of the deeper student that was trained before, the name that it had, by its name.

    `origin` gives the place that each trained block had, by its new one.
    """
    prefix = f"{inspect_architecture(deeper.config).block_list}."
    names = {}
    for name in deeper.state_dict():
        if not name.startswith(prefix):
            names[name] = name
            continue
        place, _, rest = name.removeprefix(prefix).partition(".")
        if int(place) in origin:
            names[name] = f"{prefix}{origin[int(place)]}.{rest}"
    return names


def try_identity(model: PreTrainedModel) -> None:
    """Raise what `make_identity` would raise of a model's blocks; the model is left as it was."""
    place = len(find_blocks(model)) - 1
    before = copy.deepcopy(find_blocks(model)[place].state_dict())
    make_identity(model, place)
    find_blocks(model)[place].load_state_dict(before)


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
    recipe: InherituneConfig,
    prepare: Callable[[PreTrainedModel], tuple[torch.optim.Optimizer, Any]],
    by_names: bool,
) -> dict[str, Any]:
    """
    Return the optimizer and scheduler states that the recipe keeps for a round of `layers`, by file name.

    `prepare` returns a new optimizer and scheduler for a model. `by_names` says that states are saved by parameter
    name, as FSDP does.

    Raises:
        ValueError: If states cannot be carried over; see `carry_optimizer` and `rescale_moments`.
    """
    keep_state, keep_rates = recipe.optimizer_state == "keep", recipe.lr_schedule == "continue"
    file = OPTIMIZER_NAME_BIN if by_names else OPTIMIZER_NAME
    saved = torch.load(before.checkpoint / file, map_location="cpu", weights_only=True)
    if not by_names:
        trained = before.load()
        saved = rekeyed(saved, dict(enumerate(parameter_names(prepare(trained)[0], trained))))
    optimizer, scheduler = prepare(student)
    names = parameter_names(optimizer, student)
    fresh = rekeyed(optimizer.state_dict(), dict(enumerate(names)))
    origin = {place: before.layers.index(layer) for place, layer in enumerate(layers) if layer in before.layers}
    carried = carry_optimizer(saved, fresh, learned_names(student, origin), keep_state, keep_rates)
    rescale_moments(carried["state"], student, moved_scales(student, origin, recipe.attention_scale))
    if by_names:
        carried["state"] = complete_state(carried["state"], names, optimizer)
    else:
        carried = rekeyed(carried, {name: place for place, name in enumerate(names)})
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


def parameter_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Return the names of an optimizer's parameters, in the order of its state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def rekeyed(saved: Mapping[str, Any], keys: Mapping[Any, Any]) -> dict[str, Any]:
    """Return an optimizer's state dictionary by names, as FSDP saves it, in place of places, or the other way round."""
    groups = [{**group, "params": [keys[key] for key in group["params"]]} for group in saved["param_groups"]]
    return {**saved, "state": {keys[key]: state for key, state in saved["state"].items()}, "param_groups": groups}


def carry_optimizer(
    saved: Mapping[str, Any], fresh: Mapping[str, Any], origins: Mapping[str, str], keep_state: bool, keep_rates: bool
) -> dict[str, Any]:
    """
    Return the state dictionary with which a deeper student's optimizer begins.

    `saved` and `fresh` are state dictionaries of the shallower student's optimizer and of a new one for the deeper
    student, by parameter name. `origins` gives the name in the shallower student, by that in the deeper one, of what
    was trained.

    Raises:
        ValueError: If a trained parameter has no state and others have, or the groups do not correspond.
    """
    before, groups = saved["param_groups"], fresh["param_groups"]
    if len(before) != len(groups):
        raise ValueError(
            f"The optimizer had {len(before)} parameter groups and now has {len(groups)}; its state cannot be carried "
            "over: use optimizer_state 'reset'."
        )
    state = {}
    kept = [name for group in groups for name in group["params"] if name in origins] if keep_state else []
    for name in kept:
        if not saved["state"]:
            break  # of an optimizer that keeps none, such as SGD without momentum
        if origins[name] not in saved["state"]:
            raise ValueError(
                f"The optimizer has no state for {origins[name]}, which was trained; it cannot be kept: use "
                "optimizer_state 'reset'."
            )
        state[name] = saved["state"][origins[name]]
    if keep_rates:
        groups = [{**new, **old, "params": new["params"]} for new, old in zip(groups, before, strict=True)]
    return {**fresh, "state": state, "param_groups": groups}


def rescale_moments(states: Mapping[str, dict[str, Any]], model: PreTrainedModel, scales: Mapping[int, float]) -> None:
    """
    Rescale, in place, the moments of queries that were multiplied by `scales`, by block: gradients are divided by it.

    Raises:
        ValueError: If the optimizer has a state of which it is not known how it follows.
    """
    architecture = inspect_architecture(model.config)
    for name, state in states.items():
        found = query_rows(architecture, name) if scales else None
        if found is None or found[0] not in scales:
            continue
        for key, value in state.items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                continue
            if key not in _POWERS:
                raise ValueError(
                    f"The optimizer's state {key} of {name} cannot be carried over: that block's queries are rescaled "
                    "as it moves. Use optimizer_state 'reset', an AdamW, or attention_scale 'position'."
                )
            value[..., : found[1]] *= scales[found[0]] ** _POWERS[key]


def complete_state(
    state: Mapping[str, Any], names: Sequence[str], optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Any]]:
    """Return the state of all parameters, as FSDP loads it: what has none begins with zeros of what a new one holds."""
    # What an optimizer holds it makes at its first step: one without gradients at a rate of nothing changes no weight.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    new = optimizer.state_dict()["state"]

    def zeros(of: Mapping[str, Any]) -> dict[str, Tensor]:
        return {key: torch.zeros_like(torch.as_tensor(value)) for key, value in of.items()}

    return {name: state.get(name) or zeros(new[place]) for place, name in enumerate(names)}
