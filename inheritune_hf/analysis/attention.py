"""Compute the attention probabilities of any causal language model, one layer at a time, beside its own attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from ..students import find_blocks

#: Called with a layer and its probabilities, of shape `(batch, heads, query, key)` in float32, on the layer's device.
AttentionCallback = Callable[[int, Tensor], None]

_SOFTMAX = (nn.functional.softmax, torch.softmax, Tensor.softmax)
_FUSED = nn.functional.scaled_dot_product_attention
# Logits computed at once on a CPU: one megabyte.
_LOGITS = 1 << 18
# Implementations in which torch computes the softmax or the attention.
_IN_TORCH = (None, "eager", "sdpa")
# Kinds in `config.layer_types` without a softmax over tokens.
_WITHOUT_SOFTMAX = ("linear", "conv", "mamba", "recurrent", "rglru", "mlp", "moe")
# What the report calls kinds that attend to all earlier tokens, or to few: in a hybrid layer beside a state space.
_NAMES = {
    **dict.fromkeys(("full_attention", "global", "hybrid", "indexed_attention"), "attention"),
    "local": "sliding_attention",
}


@contextmanager
def watch_attention(model: PreTrainedModel, callback: AttentionCallback) -> Iterator[None]:
    """
    Call `callback` with each layer's attention probabilities while the model runs on whole sequences.

    What the model computes does not change: probabilities are computed beside it, in float32, from the queries and keys
    (`sdpa`) or from the logits of its own softmax (`eager`). A model with another attention implementation, such as a
    fused kernel, uses `eager` meanwhile. Probabilities are released when `callback` returns, so that never more than
    one layer is in memory. Afterwards, also after an exception, the model is as it was. Call it without a cache, on
    sequences without padding. `callback` is not called for layers without softmax attention.
    """
    watch = _Watch(callback)
    with ExitStack() as undo:
        for layer, block in enumerate(find_blocks(model)):
            before = block.register_forward_pre_hook(watch.entering(layer), with_kwargs=True, prepend=True)
            undo.callback(before.remove)
            undo.callback(block.register_forward_hook(watch.leave, always_call=True).remove)
        name = model.config._attn_implementation
        if name not in _IN_TORCH:
            undo.callback(setattr, model.config, "_attn_implementation", name)
            model.config._attn_implementation = "eager"
        undo.enter_context(torch.no_grad())
        undo.enter_context(watch)
        yield


def attention_kinds(model: PreTrainedModel) -> tuple[str, ...]:
    """Return how each layer mixes tokens, by the config: `attention`, `sliding_attention`, `conv` and so on."""
    config = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    if kinds is not None and len(kinds) == config.num_hidden_layers:
        return tuple(_NAMES.get(kind, kind) for kind in kinds)
    # Without a list, a window applies to every layer.
    name = "attention" if _window(config) is None else "sliding_attention"
    inside = (" ".join(type(module).__name__ for module in block.modules()) for block in find_blocks(model))
    return tuple(name if "Attention" in classes else "other" for classes in inside)


def narrow_window(model: PreTrainedModel, tokens: int) -> int | None:
    """Return how many tokens a query of a sliding layer sees, itself included; None if no fewer than `tokens`."""
    window = _window(model.config.get_text_config(decoder=True))
    sliding = window is not None and window < tokens and "sliding_attention" in attention_kinds(model)
    return window if sliding else None


def _window(config: Any) -> int | None:
    if not getattr(config, "use_sliding_window", True):
        return None
    window: int | None = getattr(config, "sliding_window", None)
    if window is None and getattr(config, "attention_layers", None):  # GPT-Neo
        window = config.window_size
    return window


def require_attention(model: PreTrainedModel, layer: int, kind: str) -> None:
    """Raise a `RuntimeError` if a layer has softmax attention, by its kind, but no probabilities were seen."""
    if kind != "other" and not any(word in kind for word in _WITHOUT_SOFTMAX):
        raise RuntimeError(
            f"Layer {layer} of {type(model).__name__} has attention ({kind}) but no probabilities were seen with the "
            f"implementation {model.config._attn_implementation!r}; load the model with attn_implementation='eager'."
        )


def probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """
    Return the weights of torch's `scaled_dot_product_attention` in float32, of shape `(batch, heads, query, key)`.

    `query` is of shape `(batch, heads, query, channels)`, and `key` of shape `(batch, groups, key, channels)`. A group
    serves `heads / groups` heads. The other arguments are as in torch.
    """
    batch, heads, queries, channels = query.shape
    groups, keys = key.shape[1], key.shape[2]
    scale = channels**-0.5 if scale is None else scale
    added = torch.zeros(queries, keys, device=query.device)
    if is_causal:
        added.masked_fill_(torch.ones_like(added, dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        added = added.masked_fill(~attn_mask, -torch.inf) if masked else added + attn_mask[..., :keys].float()
    added = added.expand(batch, heads, queries, keys)
    weights = query.new_empty(batch, heads, queries, keys, dtype=torch.float32)
    # A few heads at a time: their logits stay in the processor's cache, and there is no second copy of the weights.
    size = max(1, _LOGITS // (queries * keys)) if query.device.type == "cpu" else heads
    for row in range(batch):
        queries_of, keys_of = query[row].float(), key[row].float().repeat_interleave(heads // groups, 0).mT
        for start in range(0, heads, size):
            part = slice(start, start + size)
            logits = torch.baddbmm(added[row, part], queries_of[part], keys_of[part], alpha=scale)
            torch.softmax(logits, -1, out=weights[row, part])
    return weights


class _Watch(TorchFunctionMode):
    """Computes probabilities beside every attention that torch computes while a block runs."""

    def __init__(self, callback: AttentionCallback) -> None:
        super().__init__()
        self._callback = callback
        self._layer: int | None = None
        self._shape = (0, 0)

    def entering(self, layer: int) -> Callable[..., None]:
        """Return a forward pre-hook that notes the block that begins, and the shape of its states."""

        def enter(_block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            self._layer, self._shape = layer, (states.shape[0], states.shape[1])

        return enter

    def leave(self, *_: Any) -> None:
        """Note that a block has ended; a forward hook."""
        self._layer = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, weights = kwargs or {}, None
        if self._layer is not None and func is _FUSED:
            weights = probabilities(*args, **kwargs)
        elif self._layer is not None and func in _SOFTMAX:
            weights = self._softmax_of_attention(args[0] if args else kwargs["input"])
        if self._layer is not None and weights is not None:
            self._callback(self._layer, weights)  # what is computed meanwhile is not watched: torch leaves the mode
        return func(*args, **kwargs)

    def _softmax_of_attention(self, logits: Tensor) -> Tensor | None:
        """Return the softmax of logits if they are attention's: routers take a softmax too, of another shape."""
        batch, tokens = self._shape
        # A learned sink is one key more than there are tokens. Some models have batch and heads in one axis.
        if logits.ndim not in (3, 4) or not logits.shape[-2] == tokens <= logits.shape[-1] <= tokens + 1:
            return None
        if logits.ndim == 3 and (logits.shape[0] % batch or bool((logits[:, 0, 1:] > logits[:, 0, :1] - 1e3).any())):
            return None  # not causal: something else of that shape
        weights = torch.softmax(logits.detach(), -1, dtype=torch.float32)[..., :tokens]
        return weights if logits.ndim == 4 else weights.reshape(batch, -1, *weights.shape[-2:])
