"""Compute the loss from a model's last hidden states, without all logits (batch, tokens, vocab) at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .architectures import logit_shaping

IGNORED = -100  # label of a token that does not count, as everywhere in Transformers

#: How a loss is computed without all logits: this module's own chunks, PyTorch's operator, Liger's kernel.
Method = Literal["chunked", "linear", "liger"]

#: Vocabulary from which on `auto` does not let all logits be there at once, in tokens.
LARGE_VOCABULARY = 8192

# Logits held at once, in numbers: 128 MiB of float32.
_CHUNK_NUMBERS = 1 << 25


@dataclass(frozen=True)
class Head:
    """
    What makes logits of last hidden states: weight `(vocab, width)`, bias `(vocab,)`, a factor, and a soft cap.

    Capped logits are cap × tanh(logits / cap).
    """

    weight: Tensor
    bias: Tensor | None = None
    factor: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states of shape `(..., width)`, of shape `(..., vocab)`."""
        return self.shape(nn.functional.linear(hidden, self.weight, self.bias))

    def shape(self, logits: Tensor) -> Tensor:
        """Return what the head gave, multiplied and capped."""
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


#: Computes a loss of the head, the hidden states `(batch, tokens, width)`, the label of the token that follows each
#: `(batch, tokens)`, and the number of tokens to divide by, if one is given.
LossOfHidden = Callable[[Head, Tensor, Tensor, Any], Tensor]

#: The same from all logits `(batch, tokens, vocab)`.
LossOfLogits = Callable[[Tensor, Tensor, Any], Tensor]


@contextmanager
def loss_of_hidden(model: PreTrainedModel, compute: LossOfHidden) -> Iterator[None]:
    """
    Let `model`, called with labels within this context, take its loss from `compute`; its logits are then empty.

    The head is handed no token, so that it computes nothing, and the model's `loss_function` is set meanwhile.
    """
    head: Any = cast(Any, model).get_output_embeddings()
    factor, cap = logit_shaping(model.config)
    taken: list[Tensor] = []

    def take(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        taken.append(args[0])
        return (args[0][..., :0, :], *args[1:])

    def of_taken(_logits: Tensor, targets: Tensor, items: Any) -> Tensor:
        hidden = taken.pop()
        return compute(Head(head.weight, head.bias, factor, cap), hidden, targets.to(hidden.device), items)

    with head.register_forward_pre_hook(take), _own_function(model, _loss_function(of_taken)):
        yield


def loss_of_logits(model: PreTrainedModel, compute: LossOfLogits) -> AbstractContextManager[None]:
    """Let `model`, called with labels within this context, take its loss from `compute`, which gets all its logits."""
    return _own_function(model, _loss_function(compute))


def computes_from_hidden(model: PreTrainedModel) -> bool:
    """
    Try whether `loss_of_hidden` gives what `model` itself would: one forward pass of a few tokens.

    The head is handed hidden states made up here, so large that a factor or a cap cannot be overlooked. The random
    state stays as it was.
    """
    head: Any = cast(Any, model).get_output_embeddings()
    if type(head) is not nn.Linear:
        return False
    made: list[Tensor] = []
    calls: list[torch.Size] = []
    size = 50 / float(head.weight.detach().float().norm(dim=1).mean().clamp(min=1e-6))

    def replace(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        draw = torch.Generator().manual_seed(0)
        made.append((torch.randn(args[0].shape, generator=draw) * size).to(args[0]))
        return (made[-1], *args[1:])

    def loss(logits: Tensor, labels: Tensor | None = None, vocab_size: int | None = None, **_: Any) -> Tensor:
        calls.append(logits.shape)
        return logits.float().sum()

    tokens = torch.arange(8, device=model.device).remainder(head.out_features)[None].repeat(2, 1)
    training = model.training
    model.train(False)
    try:
        # No graph is compiled for these few tokens.
        with (
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
            head.register_forward_pre_hook(replace),
            _own_function(model, loss),
        ):
            logits: Tensor = model(input_ids=tokens, labels=tokens, use_cache=False).logits.float()
            if len(made) != 1 or made[0].shape[:-1] != tokens.shape or calls != [logits.shape]:
                return False
            with torch.autocast(model.device.type, enabled=False):
                factor, cap = logit_shaping(model.config)
                shaped = Head(head.weight.float(), None if head.bias is None else head.bias.float(), factor, cap)
                expected = shaped.logits(made[0].float())
    finally:
        model.train(training)
    return bool((logits - expected).abs().max() <= 0.02 * expected.abs().max())


def sums_of_hidden(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """
    Sum the next-token loss of each sequence, holding the logits of a few tokens at once.

    `targets` of shape `(batch, tokens)` are the tokens that follow; -100 does not count.

    Returns:
        `torch.Tensor` of shape `(batch, 3)`: Loss in nats, counted tokens, and tokens ranked first, in float64 (float32
        on devices without it).
    """
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    rows = chunk_tokens(head.weight.shape[0])
    losses, correct = [], []
    for start in range(0, len(flat), rows):
        scores, following = head.logits(flat[start : start + rows]).float(), wanted[start : start + rows]
        losses.append(nn.functional.cross_entropy(scores, following, ignore_index=IGNORED, reduction="none"))
        correct.append(scores.argmax(-1) == following)
    figures = torch.stack([torch.cat(losses), (wanted != IGNORED).float(), torch.cat(correct).float()])
    return figures.to(widest(hidden)).view(3, *targets.shape).sum(-1).T


def widest(tensor: Tensor) -> torch.dtype:
    """Return the widest type of floating-point number that the tensor's device has."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def summed_loss(head: Head, hidden: Tensor, targets: Tensor, method: Method) -> Tensor:
    """
    Sum the loss of tokens, in nats, holding the logits of a few at once; gradients are computed on the way.

    `linear` is PyTorch's operator (float32, no cap), `liger` Liger's kernel (CUDA); `targets` of shape `(tokens,)` are
    the tokens that follow, and -100 does not count.

    Returns:
        `torch.Tensor` of shape `()`: In float32, or in the hidden states' precision if that is higher.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    hidden, weight = hidden.to(dtype), head.weight.to(dtype)
    bias = None if head.bias is None else head.bias.to(dtype)
    rows = chunk_tokens(weight.shape[0])
    with torch.autocast(kind, enabled=False):
        if method == "chunked":
            total: Any = _ChunkedLoss.apply(hidden, weight, bias, targets, head.factor, head.cap, rows)  # type: ignore[no-untyped-call]
            return total  # type: ignore[no-any-return]
        # What multiplies logits may as well multiply what they are linear in.
        hidden, bias = hidden * head.factor, None if bias is None else bias * head.factor
        if method == "linear":
            options = nn.LinearCrossEntropyOptions(acc_policy="compact", chunking_method=None, batch_chunk_size=rows)
            fused: Any = nn.functional.linear_cross_entropy
            return fused(hidden, weight, targets, linear_bias=bias, reduction="sum", options=options)  # type: ignore[no-any-return]
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return liger_fused_linear_cross_entropy(  # type: ignore[no-any-return]
            hidden, weight, targets, bias, reduction="sum", softcap=head.cap, accum_dtype=torch.float32
        )


def mean_loss(head: Head, hidden: Tensor, targets: Tensor, num_items_in_batch: Any, method: Method) -> Tensor:
    """
    Return the loss of a step's tokens in nats per token: `summed_loss` as a `LossOfHidden`.

    Divided by the tokens of the whole step if they were counted, as Transformers does, else by those here.
    """
    flat = targets.reshape(-1)
    total = summed_loss(head, hidden.reshape(-1, hidden.shape[-1]), flat, method)
    items = (flat != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return total / (items.to(total.device) if isinstance(items, Tensor) else items)


def choose_loss(
    setting: str, vocabulary: int, device: str, dtype: torch.dtype, cap: float | None = None
) -> tuple[str, str]:
    """
    Choose how to compute the loss of a model that allows any: `full`, `chunked`, `linear` or `liger`, and why.

    `setting` is the recipe's `loss`, `vocabulary` the logits of one token, `dtype` their type, `cap` their soft cap.
    """
    if setting == "full":
        return "full", "as set"
    if dtype == torch.float16:
        why = "gradients of a loss in float16 must be scaled before they are computed"
        return "full", why if setting == "auto" else f"not {setting}: {why}"
    if setting == "auto" and vocabulary < LARGE_VOCABULARY:
        return "full", f"a vocabulary of {vocabulary:,} tokens is small"
    missing = {"liger": _no_liger(device), "linear": _no_linear(dtype, cap), "chunked": None}
    fastest = next(name for name, why in missing.items() if why is None)
    if setting == "auto":
        return fastest, f"a vocabulary of {vocabulary:,} tokens on {device}"
    return (setting, "as set") if missing[setting] is None else (fastest, f"not {setting}: {missing[setting]}")


def _no_linear(dtype: torch.dtype, cap: float | None) -> str | None:
    if not hasattr(nn.functional, "linear_cross_entropy"):
        return f"torch {torch.__version__} has no linear_cross_entropy"
    if cap is not None:
        return "it knows no capped logits"
    return None if dtype in (torch.float32, torch.float64) else f"it would sum losses in {dtype}"


def _no_liger(device: str) -> str | None:
    if device != "cuda":
        return f"it needs a CUDA device, not {device}"
    return None if importlib.util.find_spec("liger_kernel") else "liger-kernel is not installed"


def chunk_tokens(vocabulary: int) -> int:
    """Return for how many tokens the logits are held at once: a power of two."""
    return 1 << max(5, (_CHUNK_NUMBERS // vocabulary).bit_length() - 1)


class _ChunkedLoss(torch.autograd.Function):
    """Summed cross-entropy of `Head`, chunk by chunk; the gradients are there when the loss is."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        factor: float,
        cap: float | None,
        rows: int,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        head = Head(weight, bias, factor, cap)
        wanted = ctx.needs_input_grad[:3]
        of_hidden = torch.empty_like(hidden) if wanted[0] else None
        of_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        of_bias = torch.zeros_like(weight[:, 0], dtype=wide) if wanted[2] else None
        total = torch.zeros((), dtype=wide, device=hidden.device)
        for start in range(0, len(hidden), rows):
            part, target = hidden[start : start + rows], targets[start : start + rows]
            counts = (target != IGNORED).to(wide)
            place = target.clamp(min=0)[:, None]
            scores = head.logits(part).to(wide)
            norms = scores.logsumexp(-1, keepdim=True)
            total += ((norms - scores.gather(1, place))[:, 0] * counts).sum()
            if not any(wanted):
                continue
            slope = None if cap is None else 1 - (scores / cap).square()
            # From here on `scores` is the loss's gradient: probabilities, less one at the target.
            scores = scores.sub_(norms).exp_()
            scores.scatter_add_(1, place, torch.full_like(norms, -1))
            scores.mul_(counts[:, None] * factor)
            if slope is not None:
                scores.mul_(slope)
            if of_bias is not None:
                of_bias += scores.sum(0)
            gradient = scores.to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(gradient, weight, out=of_hidden[start : start + rows])
            if of_weight is not None and wide == hidden.dtype:
                of_weight.addmm_(gradient.T, part)
            elif of_weight is not None:
                of_weight += gradient.T @ part
        ctx.gradients = [
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None or bias is None else of_bias.to(bias.dtype),
        ]
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        # Multiplied in place: another copy of the head's gradient is what this loss saves.
        if ctx.gradients is None:
            raise RuntimeError("The gradients of this loss are used up; call backward once.")
        gradients, ctx.gradients = ctx.gradients, None
        return (*(None if item is None else item.mul_(outer[0]) for item in gradients), None, None, None, None)


def _loss_function(compute: LossOfLogits) -> Any:
    """Return `compute` in the form in which models call their `loss_function`; their labels may be shifted or not."""

    def loss(
        logits: Tensor,
        labels: Tensor | None = None,
        vocab_size: int | None = None,
        num_items_in_batch: Any = None,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        if shift_labels is None:
            if labels is None:
                raise ValueError("A loss needs labels; the batch has none.")
            shift_labels = nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
        return compute(logits, shift_labels.to(logits.device), num_items_in_batch)

    return loss


@contextmanager
def _own_function(model: PreTrainedModel, loss: Any) -> Iterator[None]:
    untyped: Any = model
    own = vars(model).get("_loss_function")
    untyped.loss_function = loss
    try:
        yield
    finally:
        del untyped._loss_function
        if own is not None:
            untyped.loss_function = own
