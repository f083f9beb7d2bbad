"""How much memory training and measuring a model takes, found with one whose tensors have no content."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from .architectures import has_experts, inspect_architecture
from .config_fields import logit_shaping
from .losses import Head, Method, choose_loss, chunk_tokens, loss_of_hidden, mean_loss, sums_of_hidden

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MIXED_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: Optimizers whose memory is known: those that step on tensors without content. Others need packages of their own.
KNOWN_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop", "sgd")


@dataclass(frozen=True)
class TrainingSetup:
    """
    How students are trained, as far as memory and time depend on it.

    Args:
        batch_size (`int`): Sequences of one forward pass on one process.
        block_size (`int`): Tokens of one sequence.
        accumulation (`int`): Forward passes of one optimizer step.
        processes (`int`): Processes that train together, each with the whole student.
        dtype (`str`): Type of the parameters, their gradients and, with them, the optimizer's states: `float32`,
            `bfloat16` or `float16`.
        mixed_precision (`str`, *optional*): Type of the forward pass under autocast: `bf16` or `fp16`.
        optim (`str`): Optimizer, as in `TrainingArguments`.
        gradient_checkpointing (`bool`): Whether blocks keep their inputs only and compute the rest again.

    Raises:
        ValueError: If a value is not one of those; the message says what came and what is allowed.
    """

    batch_size: int = 8
    block_size: int = 1024
    accumulation: int = 1
    processes: int = 1
    dtype: str = "float32"
    mixed_precision: str | None = None
    optim: str = "adamw_torch_fused"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "block_size", "accumulation", "processes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}.")
        choices = {
            "dtype": tuple(DTYPES),
            "mixed_precision": (None, *MIXED_PRECISIONS),
            "optim": tuple(item.value for item in OptimizerNames),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                names = ", ".join(repr(item) for item in allowed)
                raise ValueError(f"{name} must be one of {names}, got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class MemoryEstimate:
    """
    Bytes that one phase of a run holds at its peak, on each process.

    Args:
        phase (`str`): What happens then.
        weights (`int`): Bytes of the model's parameters.
        gradients (`int`): Bytes of their gradients.
        optimizer (`int`, *optional*): Bytes of the optimizer's states; None if they are not known here, and then `peak`
            leaves them out.
        activations (`int`): Bytes kept for the backward pass, the logits left out.
        logits (`int`): Bytes of logits and of what the loss makes of them: of all, or of a few tokens at a time.
        peak (`int`): Bytes at the worst moment. Gradients come while activations go, so it is not always their sum.
    """

    phase: str
    weights: int
    gradients: int
    optimizer: int | None
    activations: int
    logits: int
    peak: int


def training_memory(config: PreTrainedConfig, setup: TrainingSetup, loss: str = "auto") -> MemoryEstimate:
    """
    Estimate the memory that each process takes to train a model of `config`.

    Args:
        config (`PreTrainedConfig`): The model's config.
        setup (`TrainingSetup`): How it is trained.
        loss (`str`, *optional*, defaults to `"auto"`): How its loss is computed, as in the recipe.

    Returns:
        `MemoryEstimate`: Bytes by kind.
    """
    architecture = inspect_architecture(config)
    weights = DTYPES[setup.dtype].itemsize * architecture.parameter_count
    kept, logits, peak = _run_empty(config, setup, has_experts(architecture), planned_loss(config, setup, loss))
    states, update = _step_empty(config, setup) if setup.optim in KNOWN_OPTIMIZERS else (None, 0)
    activations = 0
    all_logits = setup.batch_size * setup.block_size * vocabulary(config)
    for count, size in kept:
        if count in (all_logits, all_logits - setup.batch_size * vocabulary(config)):  # or without the last token
            logits += size
        else:
            activations += size
    worst = max(peak + (states or 0), update)
    return MemoryEstimate("training", weights, weights, states, activations, logits, worst)


def measuring_memory(config: PreTrainedConfig, setup: TrainingSetup) -> MemoryEstimate:
    """
    Estimate the memory that each process takes to measure the loss of a model of `config`, as every evaluation does.

    Args:
        config (`PreTrainedConfig`): The model's config.
        setup (`TrainingSetup`): How students are trained; the same batches are measured.

    Returns:
        `MemoryEstimate`: Bytes by kind; activations are what the blocks hold for a while.
    """
    architecture = inspect_architecture(config)
    weights = DTYPES[setup.dtype].itemsize * architecture.parameter_count
    dtype, scale, amp = _content(setup, has_experts(architecture))
    blocks = 0
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = _empty_model(config, dtype).train(False)
        live = _LiveBytes()
        for parameter in model.parameters():
            live.add(parameter.untyped_storage())
        before = live.now

        def compute(head: Head, hidden: torch.Tensor, targets: torch.Tensor, _items: Any) -> torch.Tensor:
            nonlocal blocks
            blocks = live.peak - before
            return sums_of_hidden(head, hidden, targets)

        ids = torch.zeros(setup.batch_size, setup.block_size, dtype=torch.long)
        with live, amp(), loss_of_hidden(model, compute):
            model(input_ids=ids, labels=ids, use_cache=False)
    # Whatever the recipe's loss: the logits of a few tokens at once, and their log-probabilities.
    rows = min(setup.batch_size * setup.block_size, chunk_tokens(vocabulary(config)))
    logits = 2 * 4 * rows * vocabulary(config)
    return MemoryEstimate("measuring the reference", weights, 0, 0, scale * blocks, logits, scale * live.peak)


def planned_loss(config: PreTrainedConfig, setup: TrainingSetup, loss: str = "auto") -> str:
    """
    Return how a run that is set up so would compute its loss on this machine: `full`, `chunked`, `linear` or `liger`.

    Args:
        config (`PreTrainedConfig`): The model's config.
        setup (`TrainingSetup`): How it is trained.
        loss (`str`, *optional*, defaults to `"auto"`): The recipe's `loss`.
    """
    dtype = MIXED_PRECISIONS.get(setup.mixed_precision or "", DTYPES[setup.dtype])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return choose_loss(loss, vocabulary(config), device, dtype, logit_shaping(config)[1])[0]


def vocabulary(config: PreTrainedConfig) -> int:
    """Return the logits of one token."""
    return int(config.get_text_config(decoder=True).vocab_size)


def around_loss(model: PreTrainedModel, method: str) -> AbstractContextManager[None]:
    """Let `model`, called with labels within this context, compute its loss by `method`."""
    if method == "full":
        return nullcontext()
    return loss_of_hidden(model, partial(mean_loss, method=cast(Method, method)))


def make_optimizer(model: PreTrainedModel, optim: str) -> torch.optim.Optimizer:
    """Return the optimizer that `Trainer` makes for `optim`."""
    arguments = TrainingArguments(output_dir="unused", optim=optim, report_to="none")
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    made: torch.optim.Optimizer = kind(model.parameters(), **options)
    return made


def checkpoint_blocks(model: PreTrainedModel) -> None:
    """Let every block keep its inputs only, and compute the rest again in the backward pass."""
    untyped: Any = model
    # Releases of Transformers before 5.2x have the older name only.
    enable = getattr(untyped, "activation_checkpointing_enable", None) or untyped.gradient_checkpointing_enable
    enable({"use_reentrant": False, "preserve_rng_state": False})


def _run_empty(
    config: PreTrainedConfig, setup: TrainingSetup, experts: bool, method: str
) -> tuple[list[tuple[int, int]], int, int]:
    """
    Run a model forward and backward on tensors that have no content.

    Returns (numbers, bytes) of every storage that a forward pass keeps, the bytes that a loss without all logits needs
    for a while, and the bytes alive at the worst moment of forward and backward passes: weights, gradients and all that
    comes between.
    """
    kept: dict[int, tuple[int, int, Any]] = {}
    dtype, scale, amp = _content(setup, experts)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _empty_model(config, dtype)
        if setup.gradient_checkpointing:
            checkpoint_blocks(model)
        live = _LiveBytes()
        for parameter in model.parameters():
            live.add(parameter.untyped_storage())
        own_loss = _LossWithoutContent(live, method)
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                count = storage.nbytes() // tensor.element_size()
                kept[storage._cdata] = (count, storage.nbytes() * (scale if tensor.is_floating_point() else 1), storage)
            return tensor

        ids = torch.zeros(setup.batch_size, setup.block_size, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), amp(), own_loss.around(model):
            model(input_ids=ids, labels=ids, use_cache=False)
        found = [(count, size) for count, size, _ in kept.values()]
        kept.clear()
        with live:
            for _ in range(min(setup.accumulation, 2)):  # the second begins with gradients there, as do all after it
                with amp(), own_loss.around(model):
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                del loss
    return found, scale * own_loss.held, scale * live.peak


def _content(setup: TrainingSetup, experts: bool) -> tuple[torch.dtype, int, Callable[[], Any]]:
    """Return the type of tensors that have no content, what each of their bytes counts, and the forward pass's type."""
    # Half precision is bfloat16 here: float16 is as large, and not everything can be done in it without content.
    dtype, scale = (torch.float32, 1) if setup.dtype == "float32" else (torch.bfloat16, 1)
    if experts and setup.dtype == "float32" and setup.mixed_precision is None:
        # Matrix products over experts exist for bfloat16 only where nothing is computed: each number counts double.
        dtype, scale = torch.bfloat16, 2
    return dtype, scale, partial(torch.autocast, "cpu", torch.bfloat16) if setup.mixed_precision else nullcontext


def _step_empty(config: PreTrainedConfig, setup: TrainingSetup) -> tuple[int, int]:
    """Return the bytes of the optimizer's states, and those alive at the worst moment of its step."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _empty_model(config, torch.float32 if setup.dtype == "float32" else torch.bfloat16)
        live = _LiveBytes()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
            live.add(parameter.untyped_storage())
            live.add(parameter.grad.untyped_storage())
        before = live.now
        optimizer = make_optimizer(model, setup.optim)
        with live:
            optimizer.step()
        return live.now - before, live.peak


def _empty_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    factory: Any = AutoModelForCausalLM
    model: PreTrainedModel = factory.from_config(copy.deepcopy(config), dtype=dtype).train()
    return model


class _LossWithoutContent:
    """A loss on tensors without content, and the bytes that it holds for a while besides gradients."""

    def __init__(self, live: _LiveBytes, method: str) -> None:
        self.live, self.method, self.held = live, method, 0

    def around(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Let `model` compute its loss so within this context."""
        return nullcontext() if self.method == "full" else loss_of_hidden(model, self._compute)

    def _compute(self, head: Head, hidden: torch.Tensor, targets: torch.Tensor, items: Any) -> torch.Tensor:
        live, before = self.live, self.live.peak
        live.peak = live.now
        # PyTorch's operator holds the logits of some tokens where nothing sees them. Liger's kernel runs on a GPU only:
        # chunks take its place.
        tokens = min(chunk_tokens(len(head.weight)), targets.numel()) if self.method == "linear" else 0
        unseen = hidden.new_empty(tokens, len(head.weight))
        loss = mean_loss(head, hidden, targets, items, "linear" if self.method == "linear" else "chunked")
        del unseen
        self.held = max(self.held, live.peak - live.now)
        live.peak = max(before, live.peak)
        return loss


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.add(value.untyped_storage())
        if func is torch.ops.aten.logsumexp.default:  # it makes a copy of its input that nothing sees
            self.peak = max(self.peak, self.now + args[0].nbytes)
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is gone; one that is counted already stays counted once."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def forget(_: Any) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)
