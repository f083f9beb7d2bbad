"""What blocks do to the hidden states and to the loss: influence, angular distance, loss by depth, loss without one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..evaluation import sequence_sums
from ..students import find_blocks

#: Called after every run through the model, for a progress bar.
Advance = Callable[[], Any]


@dataclass(frozen=True)
class BlockScores:
    """
    What each block changes.

    Args:
        influence (`tuple[float, ...]`): 1 − cosine of a block's input and output, mean over tokens (arXiv 2403.03853).
        angular (`tuple[tuple[float, ...], ...]`): `angular[l][n - 1]` is the angle between the last token's states
            before layer `l` and before layer `l + n`, as a share of pi (arXiv 2403.17887, eq. 4).
        loss (`float`): The model's own loss, in nats per token.
        by_depth (`tuple[float, ...]`): Loss after 0, 1, ... all blocks, through the final norm and the head.
        skipped (`tuple[float, ...]`): Loss of the model without each one of its blocks.
    """

    influence: tuple[float, ...]
    angular: tuple[tuple[float, ...], ...]
    loss: float
    by_depth: tuple[float, ...]
    skipped: tuple[float, ...]


def score_blocks(model: PreTrainedModel, batches: Sequence[Tensor], advance: Advance = lambda: None) -> BlockScores:
    """
    Return what each block changes, means over all sequences; the model, in evaluation mode, is left as it was.

    Each batch of token ids, of shape `(batch, tokens)`, takes one run through the whole model, one through its head for
    each depth, and one for each block without it. The hidden states of one batch at every depth are in memory, and no
    attention. `advance` is called `2 * layers + 1` times for each batch.
    """
    blocks = find_blocks(model)
    depth = len(blocks)
    influence = torch.zeros(depth, dtype=torch.float64)
    angles = torch.zeros(depth + 1, depth + 1, dtype=torch.float64)
    by_depth = torch.zeros(depth + 1, 2, dtype=torch.float64)
    skipped = torch.zeros(depth, 2, dtype=torch.float64)
    for tokens in batches:
        states, beside, sums = _states(model, blocks, tokens)
        by_depth[depth] += sums
        for layer, (before, after) in enumerate(itertools.pairwise(states)):
            influence[layer] += block_influence(before, after.to(before.device)) * tokens.numel()
        angles += angular_distances(torch.stack([state[:, -1].float().cpu() for state in states])) * len(tokens)
        advance()
        for layer in range(depth):
            stand_ins = [_StandIn(block, states[layer], rest) for block, rest in zip(blocks, beside, strict=True)]
            with _replaced(blocks, dict(enumerate(stand_ins))):
                by_depth[layer] += _loss_sums(model, tokens)
            advance()
            # States before the skipped block are known: only the blocks after it run.
            with _replaced(blocks, dict(enumerate(stand_ins[: layer + 1]))):
                skipped[layer] += _loss_sums(model, tokens)
            advance()
    count = sum(tokens.numel() for tokens in batches)
    angles /= sum(len(tokens) for tokens in batches)
    losses = (by_depth[:, 0] / by_depth[:, 1]).tolist()
    return BlockScores(
        influence=tuple((influence / count).tolist()),
        angular=tuple(tuple(angles[layer, layer + 1 :].tolist()) for layer in range(depth)),
        loss=losses[-1],
        by_depth=tuple(losses),
        skipped=tuple((skipped[:, 0] / skipped[:, 1]).tolist()),
    )


def block_influence(before: Tensor, after: Tensor) -> float:
    """Return 1 − the cosine between hidden states before and after a block, a mean over tokens."""
    cosine = nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
    return float(1 - cosine.double().mean())


def angular_distances(states: Tensor) -> Tensor:
    """
    Return the angle between hidden states at each two depths, as a share of pi, a mean over sequences.

    `states` are one token's, of shape `(depths, batch, channels)`; the result is of shape `(depths, depths)`.
    """
    directions = nn.functional.normalize(states.double(), dim=-1)
    cosines = torch.einsum("ibc,jbc->bij", directions, directions).clamp(-1, 1)
    return (cosines.arccos() / math.pi).mean(0)


def loss_without(
    model: PreTrainedModel, batches: Sequence[Tensor], removed: Sequence[int], advance: Advance = lambda: None
) -> float:
    """Return the model's loss without some of its blocks, in nats per token; the model is left as it was."""
    blocks = find_blocks(model)
    sums = torch.zeros(2, dtype=torch.float64)
    _, beside, _ = _states(model, blocks, batches[0][:1, :2])
    with _replaced(blocks, {layer: _StandIn(blocks[layer], None, beside[layer]) for layer in removed}):
        for tokens in batches:
            sums += _loss_sums(model, tokens)
            advance()
    return float(sums[0] / sums[1])


class _StandIn(nn.Module):
    """Takes a block's place and returns fixed states, or its inputs, with what the block returns beside states."""

    def __init__(self, block: nn.Module, states: Tensor | None, beside: tuple[Any, ...] | None) -> None:
        super().__init__()
        # In a tuple, so that the block does not become a part of this module.
        self._block = (block,)
        self._states = states
        self._beside = beside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        states, beside = self._states, self._beside
        if states is None:
            states = args[0] if args else kwargs["hidden_states"]
            # Blocks of GLM-5 also hand on which tokens an earlier one selected.
            beside = beside and (kwargs.get("prev_topk_indices"),) * len(beside)
        return states if beside is None else (states, *beside)

    def __getattr__(self, name: str) -> Any:
        # Models ask their blocks for their kind, such as `attention_type`.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"][0], name)


@contextmanager
def _replaced(blocks: nn.ModuleList, stand_ins: Mapping[int, nn.Module]) -> Iterator[None]:
    """Put modules in the places of blocks for a while; afterwards, also after an exception, the list is as before."""
    before = list(blocks)
    try:
        for layer, module in stand_ins.items():
            blocks[layer] = module
        yield
    finally:
        for layer in stand_ins:
            blocks[layer] = before[layer]


def _states(
    model: PreTrainedModel, blocks: nn.ModuleList, tokens: Tensor
) -> tuple[list[Tensor], list[tuple[Any, ...] | None], Tensor]:
    """
    Return states before the first block and after each, what each returns beside them (None: no tuple), and sums.

    Of what is beside them only selections of tokens are kept: attention would take too much memory.
    """
    states: list[Tensor] = []
    beside: list[tuple[Any, ...] | None] = []

    def enter(_block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    def leave(_block: nn.Module, _args: Any, output: Any) -> None:
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        states.append(hidden)
        kept = tuple(item if torch.is_tensor(item) and not item.is_floating_point() else None for item in rest)
        beside.append(kept if isinstance(output, tuple) else None)

    handles = [blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        sums = _loss_sums(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return states, beside, sums


def _loss_sums(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the summed loss in nats and the number of predicted tokens, of shape `(2,)`."""
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
    return sequence_sums(logits, tokens.to(logits.device))[:, :2].sum(0).double().cpu()
