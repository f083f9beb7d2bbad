"""Losses that compare a student with its reference while it is trained; the reference is the teacher then."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

from .. import __version__
from ..analysis.attention import find_blocks
from ..configuration import DISTILLATION_LOSSES, InherituneConfig
from ..students import open_reference
from ..students.losses import IGNORED, Head, chunk_tokens, computes_from_hidden, loss_of_hidden, loss_of_logits
from .feeding import row_length
from .top_k import TopKStore

if TYPE_CHECKING:
    from .trainer import InherituneTrainer

#: Sums the loss of tokens: the student's logits `(tokens, vocab)`, the targets `(tokens,)`, what the teacher says.
Compare = Callable[..., Tensor]

#: Losses on the distribution over the next token, and losses on the states after each block.
OF_LOGITS, OF_STATES = DISTILLATION_LOSSES[:4], DISTILLATION_LOSSES[4:]


def weighted_sum(
    student: Tensor, teacher: Tensor, targets: Tensor, weights: Mapping[str, float], temperature: float = 1.0
) -> Tensor:
    """
    Sum the weighted losses of tokens, in nats.

    `forward_kl` is KL(teacher || student), `reverse_kl` KL(student || teacher), `jsd` the Jensen-Shannon divergence;
    with a temperature T each is of the softened distributions and times T², so that gradients keep their size (Hinton
    et al., arXiv 1503.02531). `cross_entropy` is of the student alone, at temperature 1.

    Args:
        student (`torch.Tensor` of shape `(tokens, vocab)`): Logits of the student.
        teacher (`torch.Tensor` of shape `(tokens, vocab)`): Logits of the teacher.
        targets (`torch.Tensor` of shape `(tokens,)`): The token that follows each; -100 where it does not count.
        weights (`Mapping[str, float]`): Weight of each loss; names of `OF_LOGITS`, others are ignored.
        temperature (`float`, *optional*, defaults to `1.0`): T.

    Returns:
        `torch.Tensor` of shape `()`.
    """

    def both(log_p: Tensor) -> tuple[Tensor, Tensor]:
        return log_p, nn.functional.log_softmax(teacher / temperature, -1)

    return _weighted(student, targets, weights, temperature, both)


def _weighted(
    scores: Tensor,
    targets: Tensor,
    weights: Mapping[str, float],
    temperature: float,
    both: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """Sum the weighted losses; `both` turns the student's log-probabilities into the two distributions to compare."""
    total = scores.new_zeros(())
    if weights.get("cross_entropy"):
        entropy = nn.functional.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum")
        total = total + weights["cross_entropy"] * entropy
    wanted = {name: weights[name] for name in OF_LOGITS[1:] if weights.get(name)}
    if not wanted:
        return total
    log_p, log_q = both(nn.functional.log_softmax(scores / temperature, -1))
    for name, weight in wanted.items():
        per_token = divergence(name, log_p, log_q)
        total = total + weight * temperature**2 * per_token.masked_fill(targets == IGNORED, 0.0).sum()
    return total


def divergence(name: str, log_p: Tensor, log_q: Tensor) -> Tensor:
    """
    Return a divergence of each token's distributions, in nats.

    Args:
        name (`str`): `forward_kl`, `reverse_kl` or `jsd`.
        log_p (`torch.Tensor` of shape `(tokens, classes)`): Log-probabilities of the student.
        log_q (`torch.Tensor` of shape `(tokens, classes)`): Log-probabilities of the teacher.

    Returns:
        `torch.Tensor` of shape `(tokens,)`.
    """
    if name == "forward_kl":
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    if name == "reverse_kl":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * ((log_p.exp() * (log_p - middle)).sum(-1) + (log_q.exp() * (log_q - middle)).sum(-1))


def chunked_sum(head: Head, hidden: Tensor, targets: Tensor, given: Sequence[Tensor], compare: Compare) -> Tensor:
    """
    Sum a loss of tokens, holding the student's logits of a few tokens at once, in both passes.

    Args:
        head (`Head`): Makes the student's logits.
        hidden (`torch.Tensor` of shape `(tokens, width)`): Its last hidden states.
        targets (`torch.Tensor` of shape `(tokens,)`): The token that follows each; -100 where it does not count.
        given (sequence of `torch.Tensor` of shape `(tokens, ...)`): What the teacher says of each token.
        compare (`Callable`): Sums the loss of tokens: of the student's logits, the targets, what the teacher says.

    Returns:
        `torch.Tensor` of shape `()`.
    """

    def part(states: Tensor, wanted: Tensor, *said: Tensor) -> Tensor:
        return compare(head.logits(states).float(), wanted, *said)

    rows = chunk_tokens(head.weight.shape[0])
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(hidden), rows):
        chunk = (item[start : start + rows] for item in (hidden, targets, *given))
        total = total + checkpoint(part, *chunk, use_reentrant=False)
    return total


def top_k_sum(
    scores: Tensor,
    tokens: Tensor,
    log_q: Tensor,
    targets: Tensor,
    weights: Mapping[str, float],
    temperature: float = 1.0,
) -> Tensor:
    """
    Sum the weighted losses of tokens where only the teacher's k likeliest tokens are known.

    What is left of both distributions is one class of its own, so that probabilities still add up to one.

    Args:
        scores (`torch.Tensor` of shape `(tokens, vocab)`): Logits of the student.
        tokens (`torch.Tensor` of shape `(tokens, k)`): The teacher's likeliest tokens.
        log_q (`torch.Tensor` of shape `(tokens, k)`): Their log-probabilities at this temperature.
        targets (`torch.Tensor` of shape `(tokens,)`): The token that follows each; -100 where it does not count.
        weights (`Mapping[str, float]`): As for `weighted_sum`.
        temperature (`float`, *optional*, defaults to `1.0`): As for `weighted_sum`.

    Returns:
        `torch.Tensor` of shape `()`.
    """

    def both(log_p: Tensor) -> tuple[Tensor, Tensor]:
        return with_rest(log_p.gather(-1, tokens)), with_rest(log_q)

    return _weighted(scores, targets, weights, temperature, both)


def with_rest(log_probabilities: Tensor) -> Tensor:
    """Return the log-probabilities and, as one more class, that of everything else."""
    rest = torch.log1p(-log_probabilities.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    return torch.cat([log_probabilities, rest], -1)


def states_sum(student: list[Tensor], teacher: list[Tensor], targets: Tensor, weights: Mapping[str, float]) -> Tensor:
    """
    Sum the weighted losses on hidden states over tokens: the mean over pairs of blocks, and over channels.

    Args:
        student (`list` of `torch.Tensor` of shape `(tokens, width)`): States after each of the student's blocks.
        teacher (`list` of `torch.Tensor` of shape `(tokens, width)`): States after the blocks that they stand for.
        targets (`torch.Tensor` of shape `(tokens,)`): -100 where a token does not count.
        weights (`Mapping[str, float]`): Weight of `hidden_mse` and `hidden_cosine`; others are ignored.

    Returns:
        `torch.Tensor` of shape `()`.
    """
    total = torch.zeros((), device=targets.device)
    counts = targets != IGNORED
    for own, given in zip(student, teacher, strict=True):
        left, right = own.float(), given.float()
        if weights.get("hidden_mse"):
            total = total + weights["hidden_mse"] * ((left - right).square().mean(-1) * counts).sum()
        if weights.get("hidden_cosine"):
            angle = 1 - nn.functional.cosine_similarity(left, right, dim=-1)
            total = total + weights["hidden_cosine"] * (angle * counts).sum()
    return total / max(1, len(student))


def block_map(kept: tuple[int, ...], blocks: int, depth: int) -> tuple[int, ...]:
    """
    Return for each of a student's blocks the teacher's layer that it stands for.

    That is the layer it was inherited from, or, if it was not, the one at the same share of the depth.
    """
    if len(kept) == blocks:
        return kept
    return tuple((place + 1) * depth // blocks - 1 for place in range(blocks))


def compares_states(recipe: InherituneConfig) -> bool:
    """Return whether the recipe's distillation compares hidden states."""
    return any((recipe.distillation_weights or {}).get(name) for name in OF_STATES)


class Teacher:
    """
    The reference beside a student in training: its outputs for each batch, and the losses that compare with them.

    Args:
        model (`PreTrainedModel`): The reference, on the device where the student is trained; it is set to evaluate.
        weights (`Mapping[str, float]`): Weight of each loss: names of `OF_LOGITS` and `OF_STATES`.
        temperature (`float`, *optional*, defaults to `1.0`): Of the losses on distributions.
        kept (`tuple[int, ...]`, *optional*): Layers that the student's blocks were inherited from.
        store (`TopKStore`, *optional*): Where its likeliest tokens are kept; only those are compared then.

    Raises:
        ValueError: If states are to be compared and a store, which keeps none, is given.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        weights: Mapping[str, float],
        temperature: float = 1.0,
        kept: tuple[int, ...] = (),
        store: TopKStore | None = None,
    ) -> None:
        model.train(False)
        model.requires_grad_(False)
        self.model, self.weights, self.temperature, self.kept, self.store = model, weights, temperature, kept, store
        self.from_hidden = computes_from_hidden(model)
        self.compares_states = any(weights.get(name) for name in OF_STATES)
        if store is not None and self.compares_states:
            raise ValueError(
                "distillation_top_k keeps the teacher's likeliest tokens, not its states: leave hidden_mse and "
                "hidden_cosine out, or distillation_top_k."
            )

    @contextlib.contextmanager
    def teaching(self, student: PreTrainedModel, inputs: Mapping[str, Any], whole: bool) -> Iterator[None]:
        """
        Let `student`, called with these inputs within this context, take its loss from the comparison.

        Args:
            student (`PreTrainedModel`): The model in training, without what libraries wrap around it.
            inputs (`Mapping[str, Any]`): A batch with `labels`.
            whole (`bool`): Whether the student must compute all its logits itself.
        """
        blocks = len(find_blocks(student))
        states: list[Tensor] = []
        given: list[Tensor] = []
        said: tuple[Tensor, ...]
        if self.store is None:
            layers = block_map(self.kept, blocks, len(find_blocks(self.model)))
            head, rows = self._run(inputs, layers, given)
            compare, said = self._compare_with(head), (rows,)
        else:
            compare = self._compare_top
            said = self._likeliest(inputs, self.store)

        def finish(total: Tensor, targets: Tensor, items: Any) -> Tensor:
            if self.compares_states:
                total = total + states_sum(states, given, targets, self.weights)
            items = (targets != IGNORED).sum() if items is None else items
            return total / (items.to(total.device) if isinstance(items, Tensor) else items)

        def of_logits(logits: Tensor, targets: Tensor, items: Any) -> Tensor:
            flat = targets.reshape(-1)
            return finish(compare(logits.reshape(-1, logits.shape[-1]).float(), flat, *said), flat, items)

        def of_hidden(own: Head, hidden: Tensor, targets: Tensor, items: Any) -> Tensor:
            flat, rows = targets.reshape(-1), hidden.reshape(-1, hidden.shape[-1])
            return finish(chunked_sum(own, rows, flat, said, compare), flat, items)

        with contextlib.ExitStack() as stack:
            if self.compares_states:
                stack.enter_context(_keeping_states(student, range(blocks), states))
            stack.enter_context(loss_of_logits(student, of_logits) if whole else loss_of_hidden(student, of_hidden))
            yield

    def _run(
        self, inputs: Mapping[str, Any], layers: Sequence[int], states: list[Tensor]
    ) -> tuple[Head | None, Tensor]:
        """Return what makes the teacher's logits and of what, or None and the logits; append the states of layers."""
        taken: list[tuple[Head, Tensor]] = []

        def take(head: Head, hidden: Tensor, _targets: Tensor, _items: Any) -> Tensor:
            taken.append((head, hidden.reshape(-1, hidden.shape[-1])))
            return hidden.new_zeros(())

        with torch.no_grad(), contextlib.ExitStack() as stack:
            if self.compares_states:
                stack.enter_context(_keeping_states(self.model, layers, states))
            if self.from_hidden:
                stack.enter_context(loss_of_hidden(self.model, take))
                self.model(**inputs, use_cache=False)
                return taken[0]
            batch = {name: value for name, value in inputs.items() if name != "labels"}
            logits: Tensor = self.model(**batch, use_cache=False).logits
            return None, logits.reshape(-1, logits.shape[-1])

    def _compare_with(self, head: Head | None) -> Compare:
        def compare(scores: Tensor, targets: Tensor, *said: Tensor) -> Tensor:
            with torch.no_grad():
                taught = (said[0] if head is None else head.logits(said[0])).float()
            return weighted_sum(scores, taught, targets, self.weights, self.temperature)

        return compare

    def _likeliest(self, inputs: Mapping[str, Any], store: TopKStore) -> tuple[Tensor, Tensor]:
        """Return the teacher's likeliest tokens after each token; it runs for rows that are not in the store."""
        others = sorted(set(inputs) - {"input_ids", "labels", "attention_mask"})
        if others:
            raise ValueError(
                f"distillation_top_k finds a sequence by its tokens alone, and these have {', '.join(others)} too: "
                "leave document_boundaries or distillation_top_k out."
            )
        tokens: Tensor = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        lengths = [tokens.shape[1]] * len(tokens) if mask is None else mask.sum(1).tolist()
        rows = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
        for row, kept in zip(rows, store.find(rows), strict=True):
            if kept is None:
                store.keep(row, *self._top(row, store.k))
        shape = (*tokens.shape, store.k)
        places, logs = torch.zeros(shape, dtype=torch.long), torch.full(shape, -math.log(2 * store.k))
        for place, kept in enumerate(store.find(rows)):
            if kept is not None:
                places[place, : len(kept[0])], logs[place, : len(kept[1])] = kept
        return places.flatten(0, 1).to(tokens.device), logs.flatten(0, 1).to(tokens.device)

    def _top(self, row: Tensor, k: int) -> tuple[Tensor, Tensor]:
        head, output = self._run({"input_ids": row[None], "labels": row[None]}, (), [])
        found = []
        with torch.no_grad():
            rows = chunk_tokens(self.model.config.get_text_config(decoder=True).vocab_size)
            for start in range(0, len(output), rows):
                part = output[start : start + rows]
                logits = (part if head is None else head.logits(part)).float()
                found.append(nn.functional.log_softmax(logits / self.temperature, -1).topk(k))
        return torch.cat([item.indices for item in found]), torch.cat([item.values for item in found])

    def _compare_top(self, scores: Tensor, targets: Tensor, *said: Tensor) -> Tensor:
        return top_k_sum(scores, said[0], said[1], targets, self.weights, self.temperature)


@contextlib.contextmanager
def with_teacher(trainer: InherituneTrainer) -> Iterator[None]:
    """Let the trainer's reference teach its student within this context, if the recipe says so; then let go of it."""
    recipe, reference = trainer.inheritune_config, trainer.reference
    weights = recipe.distillation_weights
    if not weights:
        yield
        return
    dtype: torch.dtype = getattr(torch, recipe.distillation_dtype)
    model: Any
    if isinstance(reference, PreTrainedModel):
        copied: Any = copy.deepcopy(reference)
        model = copied.to(dtype=dtype)
    else:
        auto: Any = AutoModelForCausalLM
        model = auto.from_pretrained(reference, **{**trainer.reference_kwargs, "dtype": dtype})
    if compares_states(recipe):
        _check_width(trainer.student, model)
    kept = tuple(trainer.student.config.inheritune["kept_layers"])
    model.to(trainer.args.device)
    trainer.teacher = Teacher(model, weights, recipe.distillation_temperature, kept, _store(trainer, model))
    try:
        yield
    finally:
        trainer.teacher = None


def _check_width(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    own, taught = (item.config.get_text_config(decoder=True).hidden_size for item in (student, teacher))
    if own != taught:
        raise ValueError(
            f"hidden_mse and hidden_cosine compare states of one width, and the student's have {own} channels, the "
            f"teacher's {taught}: leave them out of distillation."
        )


def _store(trainer: InherituneTrainer, model: PreTrainedModel) -> TopKStore | None:
    """Return where the teacher's likeliest tokens are kept, below `HF_HOME`, if the recipe says how many."""
    recipe = trainer.inheritune_config
    if recipe.distillation_top_k is None:
        return None
    tokens = row_length(trainer.train_dataset)
    facts = [
        open_reference(model).fingerprint(),
        recipe.distillation_temperature,
        recipe.distillation_top_k,
        tokens,
        str(trainer.accelerator.mixed_precision),
        __version__,
    ]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    folder = Path(HF_HOME) / "inheritune_hf" / "likeliest-tokens" / name
    return TopKStore(folder, tokens, recipe.distillation_top_k, trainer.args.process_index)


@contextlib.contextmanager
def _keeping_states(model: PreTrainedModel, layers: Sequence[int], states: list[Tensor]) -> Iterator[None]:
    """Append to `states` what each of the blocks returns, as rows."""

    def keep(_block: nn.Module, _inputs: Any, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        states.append(state.reshape(-1, state.shape[-1]))

    blocks = find_blocks(model)
    handles = [blocks[layer].register_forward_hook(keep) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
