"""Carry an optimizer's state over growth, by parameter name: indices mean nothing once a model has more blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


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

    Args:
        saved (`Mapping`): State dictionary of the shallower student's optimizer.
        saved_names (sequence of sequences of `str`): Its parameter names, by group.
        fresh (`Mapping`): State dictionary of a new optimizer for the deeper student.
        fresh_names (sequence of sequences of `str`): Its parameter names, by group.
        origins (`Mapping[str, str]`): Name in the shallower student, by name in the deeper one, of what was trained.
        keep_state (`bool`): Whether moments of trained parameters are kept; added ones begin without.
        keep_rates (`bool`): Whether learning rates and other settings of the groups are kept.

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


def by_place(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state dictionary that tells parameters by name, as FSDP saves it, with places instead."""
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

    Args:
        carried (`Mapping`): State dictionary with places.
        names (sequence of sequences of `str`): Parameter names, by group.
        optimizer (`torch.optim.Optimizer`): A new one for these parameters. A parameter without state in `carried`
            begins with zeros of what this one would hold.
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
