"""Estimate parameters, memory, tokens, operations and time of a run from configs alone."""

from __future__ import annotations

import copy
import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.training_args import OptimizerNames

from ..annotations import Within, annotations_of, conform
from ..config import InherituneConfig
from ..growth import confidence_of_look, looks, planned_rounds, rule_from_recipe
from ..measures import SEQUENCES, TOKENS, order_passes
from .architectures import attending_layers, inspect_architecture, is_cuttable, logit_shaping, sliced_config
from .inspection import InheritancePlan, plan_inheritance
from .losses import Head, Method, choose_loss, chunk_tokens, loss_of_hidden, mean_loss, sums_of_hidden
from .reference import Reference, open_reference

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

    batch_size: Annotated[int, Within(1)] = 8
    block_size: Annotated[int, Within(1)] = 1024
    accumulation: Annotated[int, Within(1)] = 1
    processes: Annotated[int, Within(1)] = 1
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    mixed_precision: Literal["bf16", "fp16"] | None = None
    optim: str = "adamw_torch_fused"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        own: Any = type(self)
        for name, kind in annotations_of(own).items():
            conform(kind, getattr(self, name), name)
        known = [item.value for item in OptimizerNames]
        if self.optim not in known:
            raise ValueError(f"optim must be one of {', '.join(map(repr, known))}, got {self.optim!r}.")


@dataclass(frozen=True)
class MemoryEstimate:
    """
    Bytes that one phase of a run holds at its peak, on each process.

    `optimizer` is None if its states are not known here, and then `peak` leaves them out. `logits` counts what the loss
    makes of them too, and `activations` leaves them out. Gradients come while activations go, so that `peak` is not
    always the sum.
    """

    phase: str
    weights: int
    gradients: int
    optimizer: int | None
    activations: int
    logits: int
    peak: int


@dataclass(frozen=True)
class StepTime:
    """
    Seconds of one optimizer step on one process: of what does not grow with depth, and of each layer.

    `depths` are the depths that were measured, by the median of `steps` steps each.
    """

    outside: float
    per_layer: float
    depths: tuple[int, ...]
    steps: int
    device: str

    def seconds(self, layers: int) -> float:
        """Return the seconds of one step of a student of `layers` layers: measured or extrapolated."""
        return self.outside + self.per_layer * layers


@dataclass(frozen=True)
class RoundEstimate:
    """What one round would take; `seconds` is None if no throughput is known."""

    layers: int
    parameters: int
    steps: int
    tokens: int
    flops: float
    seconds: float | None
    memory: MemoryEstimate


@dataclass(frozen=True)
class RunEstimate:
    """
    What a run would take if it needed every round up to the recipe's deepest student.

    If a measure chooses the layers, first layers stand for them, `order_passes` are the forward passes of the reference
    that it takes at most, and `order_flops` their operations.
    """

    plan: InheritancePlan
    setup: TrainingSetup
    rounds: tuple[RoundEstimate, ...]
    measuring: MemoryEstimate
    inheriting: MemoryEstimate
    loss: str
    step_time: StepTime | None = None
    order_passes: int = 0
    order_flops: float = 0.0
    abandon: float | None = None  # confidence of a miss with which a round may end before its last step
    looks: int = 1  # at the selection set, over which the recipe's confidence is spread
    confidence: float | None = None  # one-sided, of each look

    @property
    def tokens(self) -> int:
        """Tokens of all rounds."""
        return sum(item.tokens for item in self.rounds)

    @property
    def steps(self) -> int:
        """Optimizer steps of all rounds."""
        return sum(item.steps for item in self.rounds)

    @property
    def flops(self) -> float:
        """Floating-point operations of all rounds."""
        return sum(item.flops for item in self.rounds)

    @property
    def seconds(self) -> float | None:
        """Seconds of all rounds, if a throughput is known."""
        known = [item.seconds for item in self.rounds if item.seconds is not None]
        return sum(known) if known else None


def estimate_run(
    reference: Reference,
    recipe: InherituneConfig,
    setup: TrainingSetup | None = None,
    tokens_per_second: float | None = None,
    measure: bool = False,
    max_steps: int | None = None,
    **kwargs: Any,
) -> RunEstimate:
    """
    Estimate what a run of `recipe` would take, before any weight is downloaded or loaded.

    Memory is that of PyTorch's tensors: the model and the optimizer are run on tensors without content. What the
    libraries themselves take (about 0.5 GB) and what an allocator keeps that is not in use comes on top. The loss is
    computed as the run would on this machine; with `distillation` the reference counts as well.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`):
            Hub id, folder with config.json, or a loaded causal language model.
        recipe (`InherituneConfig`):
            The recipe; `steps_per_round` is needed.
        setup (`TrainingSetup`, *optional*):
            How students are trained; the defaults of `TrainingSetup` if not given. Sequences are no longer than the
            reference reads.
        tokens_per_second (`float`, *optional*):
            Throughput of the first round's student, over all processes; deeper students are slower by their operations.
        measure (`bool`, *optional*, defaults to `False`):
            Train shallow students of the planned shape for a few steps on this machine to tell the time, as in
            `measure_step`. Processes are taken not to slow each other down.
        max_steps (`int`, *optional*):
            Optimizer steps that all rounds together may take.
        kwargs:
            As in `open_reference`.

    Returns:
        `RunEstimate`: Per round, and in all.

    Raises:
        ValueError: If `steps_per_round` is not set, `max_steps` or the throughput is not above 0, both a throughput and
            a measurement are asked for, or the reference cannot be cut so.
        OSError: If there is no model at `reference`.
    """
    if recipe.steps_per_round is None:
        raise ValueError("A plan needs steps_per_round, the optimizer steps of one round.")
    refuse_two_throughputs(tokens_per_second, measure)
    opened = open_reference(reference, **kwargs)
    if recipe.quantization_config is not None:
        opened.require_quantizable()
    config = opened.config
    order = opened.order_before(recipe.keep_layers)
    rule = rule_from_recipe(recipe, opened.depth, opened.architecture.prefix_sizes, order)
    plan = plan_inheritance(opened, rule.first, recipe.inherit, recipe.attention_scale)
    setup = fitted(setup or TrainingSetup(), config)
    loss = training_loss(recipe)
    teacher = config if recipe.distillation_weights else None
    chosen = planned_rounds(rule, max_steps)
    step_time = measure_step(config, chosen[-1][0], setup, loss=loss) if measure else None
    rounds = []
    pace = 0.0
    for layers, steps in chosen:
        sliced = sliced_config(config, layers)
        tokens = steps * step_tokens(setup)
        operations = training_operations(sliced, setup.block_size, teacher)
        seconds = None
        if step_time is not None:
            taught = operations / operations_per_token(sliced, setup.block_size)
            seconds = steps * step_time.seconds(len(layers)) * taught
        elif tokens_per_second is not None:
            pace = pace or operations * tokens_per_second
            seconds = tokens * operations / pace
        rounds.append(
            RoundEstimate(
                layers=len(layers),
                parameters=inspect_architecture(sliced).parameter_count,
                steps=steps,
                tokens=tokens,
                flops=operations * tokens,
                seconds=seconds,
                memory=student_memory(sliced, setup, recipe, config),
            )
        )
    part = DTYPES[setup.dtype].itemsize * plan.parameters_after
    chances = looks(rule, max_steps or -1, recipe.match_at)
    passes, length = order_passes(recipe.keep_layers, opened.depth), min(TOKENS, setup.block_size)
    return RunEstimate(
        plan=plan,
        setup=setup,
        rounds=tuple(rounds),
        measuring=measuring_memory(config, setup),
        inheriting=MemoryEstimate("building a student", part, 0, 0, 0, 0, part),
        loss=planned_loss(config, setup, loss),
        step_time=step_time,
        order_passes=passes,
        order_flops=passes * SEQUENCES * length * operations_per_token(config, length) / 3,  # forward only
        abandon=recipe.abandon,
        looks=chances,
        confidence=confidence_of_look(recipe.confidence, chances),
    )


def refuse_two_throughputs(tokens_per_second: float | None, measure: bool) -> None:
    """Raise a `ValueError` if a throughput is both given and to be measured, or is none."""
    if measure and tokens_per_second is not None:
        raise ValueError("Give tokens_per_second or measure, not both: one throughput is enough.")
    if tokens_per_second is not None and not tokens_per_second > 0:
        raise ValueError(f"tokens_per_second must be above 0, got {tokens_per_second!r}.")


def fitted(setup: TrainingSetup, config: PreTrainedConfig) -> TrainingSetup:
    """Return the setup with sequences no longer than a model of `config` reads."""
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return replace(setup, block_size=min(setup.block_size, limit or setup.block_size))


def step_tokens(setup: TrainingSetup) -> int:
    """Return the tokens of one optimizer step, over all processes."""
    return setup.batch_size * setup.accumulation * setup.processes * setup.block_size


def training_loss(recipe: InherituneConfig) -> str:
    """Return how students are trained as far as memory goes: with a teacher, always on the logits of a few tokens."""
    return "chunked" if recipe.distillation_weights and recipe.loss != "full" else recipe.loss


def student_memory(
    config: PreTrainedConfig, setup: TrainingSetup, recipe: InherituneConfig, reference: PreTrainedConfig
) -> MemoryEstimate:
    """Estimate the memory that training a model of `config` takes; with distillation, the reference's weights too."""
    memory = training_memory(config, setup, training_loss(recipe))
    if not recipe.distillation_weights:
        return memory
    architecture, size = inspect_architecture(reference), DTYPES[recipe.distillation_dtype].itemsize
    teacher = size * architecture.parameter_count
    bits = {"8bit": 8, "4bit": 4}.get(str(recipe.distillation_quantization))
    if bits is not None:  # of its blocks; of another quantization nothing is known
        prefix = f"{architecture.block_list}."
        blocks = sum(math.prod(shape) for name, shape in architecture.parameters.items() if name.startswith(prefix))
        teacher -= int(blocks * (size - bits / 8))
    return replace(memory, weights=memory.weights + teacher, peak=memory.peak + teacher)


def training_operations(config: PreTrainedConfig, block_size: int, teacher: PreTrainedConfig | None = None) -> float:
    """Return the floating-point operations of training a model of `config` on one token, with a teacher's if given."""
    own = operations_per_token(config, block_size)
    # A teacher runs forward only: a third of what training it would take.
    return own + (operations_per_token(teacher, block_size) / 3 if teacher is not None else 0.0)


def operations_per_token(config: PreTrainedConfig, block_size: int) -> float:
    """
    Return the floating-point operations of training on one token of a sequence of `block_size`, forward and backward.

    Six for every weight that a token is multiplied with (the head too, tied or not; of experts those that it is sent
    to), and twelve for every pair of positions and channel of softmax attention. What other layers do with states is
    not counted.
    """
    architecture = inspect_architecture(config)
    share, experts = 1.0, None
    if architecture.sparse_blocks:
        experts = next(
            shape[0] for name, shape in architecture.parameters.items() if "experts" in name and len(shape) == 3
        )
        chosen: Any = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", 1)
        share = statistics.fmean(chosen if isinstance(chosen, list) else [chosen]) / experts
    weights = 0.0
    for name, shape in architecture.parameters.items():
        if len(shape) >= 2 and architecture.parts[name] in ("attention", "mlp", "lm_head"):
            weights += math.prod(shape) * (share if len(shape) == 3 and shape[0] == experts else 1.0)
    return 6 * weights + 12 * _attention_channels(config) * block_size


def _attention_channels(config: Any) -> float:
    """Return the channels of softmax attention in all layers together: the mean of those of queries and of values."""
    channels = 0.0
    for layer in attending_layers(config):
        own = config.per_layer_config[layer] if getattr(config, "is_heterogeneous", False) else config
        size = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
        if getattr(own, "qk_nope_head_dim", None):  # of latent attention head_dim is another size
            size = own.qk_nope_head_dim + own.qk_rope_head_dim
        channels += own.num_attention_heads * (size + (getattr(own, "v_head_dim", None) or size)) / 2
    return channels


# Memory: models of which no tensor has content are run, and the bytes counted that would be alive


def training_memory(config: PreTrainedConfig, setup: TrainingSetup, loss: str = "auto") -> MemoryEstimate:
    """Estimate the memory that each process takes to train a model of `config`; `loss` is as in the recipe."""
    weights = DTYPES[setup.dtype].itemsize * inspect_architecture(config).parameter_count
    kept, logits, peak = _run_empty(config, setup, planned_loss(config, setup, loss))
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
    """Estimate the memory that each process takes to measure the loss of a model of `config` in the setup's batches."""
    weights = DTYPES[setup.dtype].itemsize * inspect_architecture(config).parameter_count
    dtype, scale, amp = _types_without_content(config, setup)
    blocks = 0
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = _fresh_model(config, dtype).train(False)
        live = _LiveBytes(model.parameters())
        before = live.now

        def compute(head: Head, hidden: torch.Tensor, targets: torch.Tensor, _items: Any) -> torch.Tensor:
            nonlocal blocks
            blocks = live.peak - before
            return sums_of_hidden(head, hidden, targets)

        ids = torch.zeros(setup.batch_size, setup.block_size, dtype=torch.long)
        with live, amp(), loss_of_hidden(model, compute):
            model(input_ids=ids, labels=ids, use_cache=False)
    # Independent of the recipe's loss: the logits of a few tokens at once, and their log-probabilities.
    rows = min(setup.batch_size * setup.block_size, chunk_tokens(vocabulary(config)))
    logits = 2 * 4 * rows * vocabulary(config)
    return MemoryEstimate("measuring the reference", weights, 0, 0, scale * blocks, logits, scale * live.peak)


def planned_loss(config: PreTrainedConfig, setup: TrainingSetup, loss: str = "auto") -> str:
    """Return how a run would compute its loss on this machine: `full`, `chunked`, `linear` or `liger`."""
    dtype = MIXED_PRECISIONS.get(setup.mixed_precision or "", DTYPES[setup.dtype])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return choose_loss(loss, vocabulary(config), device, dtype, logit_shaping(config)[1])[0]


def vocabulary(config: PreTrainedConfig) -> int:
    """Return the logits of one token."""
    return int(config.get_text_config(decoder=True).vocab_size)


def _run_empty(config: PreTrainedConfig, setup: TrainingSetup, method: str) -> tuple[list[tuple[int, int]], int, int]:
    """
    Run a model forward and backward on tensors that have no content.

    Returns (numbers, bytes) of every storage that a forward pass keeps, the bytes that a loss without all logits needs
    meanwhile, and the bytes alive at the worst moment of forward and backward passes, weights and gradients included.
    """
    kept: dict[int, tuple[int, int, Any]] = {}
    held = 0
    dtype, scale, amp = _types_without_content(config, setup)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _fresh_model(config, dtype)
        if setup.gradient_checkpointing:
            checkpoint_blocks(model)
        live = _LiveBytes(model.parameters())
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def compute(head: Head, hidden: torch.Tensor, targets: torch.Tensor, items: Any) -> torch.Tensor:
            nonlocal held
            before, live.peak = live.peak, live.now
            # PyTorch's operator holds the logits of some tokens where nothing sees them. Liger's kernel runs on a GPU
            # only: chunks take its place.
            tokens = min(chunk_tokens(len(head.weight)), targets.numel()) if method == "linear" else 0
            unseen = hidden.new_empty(tokens, len(head.weight))
            loss = mean_loss(head, hidden, targets, items, "linear" if method == "linear" else "chunked")
            del unseen
            held = max(held, live.peak - live.now)
            live.peak = max(before, live.peak)
            return loss

        def own_loss() -> AbstractContextManager[None]:
            return nullcontext() if method == "full" else loss_of_hidden(model, compute)

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                count = storage.nbytes() // tensor.element_size()
                kept[storage._cdata] = (count, storage.nbytes() * (scale if tensor.is_floating_point() else 1), storage)
            return tensor

        ids = torch.zeros(setup.batch_size, setup.block_size, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), amp(), own_loss():
            model(input_ids=ids, labels=ids, use_cache=False)
        found = [(count, size) for count, size, _ in kept.values()]
        kept.clear()
        with live:
            for _ in range(min(setup.accumulation, 2)):  # the second begins with gradients there, as do all after it
                with amp(), own_loss():
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                del loss
    return found, scale * held, scale * live.peak


def _types_without_content(
    config: PreTrainedConfig, setup: TrainingSetup
) -> tuple[torch.dtype, int, Callable[[], Any]]:
    """Return the type of tensors that have no content, what each of their bytes counts, and the forward pass's type."""
    # Half precision is bfloat16 here: float16 is as large, and not everything can be done in it without content.
    dtype, scale = (torch.float32, 1) if setup.dtype == "float32" else (torch.bfloat16, 1)
    if setup.dtype == "float32" and setup.mixed_precision is None and inspect_architecture(config).sparse_blocks:
        # Matrix products over experts exist for bfloat16 only where nothing is computed: each number counts double.
        dtype, scale = torch.bfloat16, 2
    return dtype, scale, partial(torch.autocast, "cpu", torch.bfloat16) if setup.mixed_precision else nullcontext


def _step_empty(config: PreTrainedConfig, setup: TrainingSetup) -> tuple[int, int]:
    """Return the bytes of the optimizer's states, and those alive at the worst moment of its step."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _fresh_model(config, torch.float32 if setup.dtype == "float32" else torch.bfloat16)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        live = _LiveBytes(item for parameter in model.parameters() for item in (parameter, parameter.grad))
        before = live.now
        optimizer = make_optimizer(model, setup.optim)
        with live:
            optimizer.step()
        return live.now - before, live.peak


def _fresh_model(config: PreTrainedConfig, dtype: torch.dtype, filled: bool = False) -> PreTrainedModel:
    factory: Any = AutoModelForCausalLM
    # Some initialisations, such as ModernBERT's, look at numbers that tensors without content do not have.
    with nullcontext() if filled else no_init_weights():
        model: PreTrainedModel = factory.from_config(copy.deepcopy(config), dtype=dtype).train()
    model.tie_weights()  # which initialising would have done
    return model


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, those of `tensors` first, and the most there were at once."""

    def __init__(self, tensors: Iterable[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}
        for tensor in tensors:
            self.add(tensor.untyped_storage())

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


# Time: shallow students are trained for a few steps


def measure_step(
    config: PreTrainedConfig, layers: Sequence[int], setup: TrainingSetup, steps: int = 3, loss: str = "auto"
) -> StepTime:
    """
    Train students of the planned shape for a few steps on this machine, on random tokens and from random weights.

    Only shallow students are trained, of the first of the planned `layers` and of two more, so that it is quick and
    takes little memory; a deeper student is taken to add as much time for each layer. Nothing is read or downloaded.
    The median of `steps` counts, after one that is not counted.

    Raises:
        ImportError: If the optimizer's package is not installed.
    """
    cuttable = [count for count in range(1, len(layers) + 1) if is_cuttable(config, layers[:count])]
    deeper = next((count for count in cuttable if count >= cuttable[0] + 2), cuttable[-1])
    depths = sorted({cuttable[0], deeper})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    method = planned_loss(config, setup, loss)
    seconds = [_step_seconds(sliced_config(config, layers[:depth]), setup, steps, device, method) for depth in depths]
    # Neither a layer nor what is around it saves time, though on a busy machine it may seem so.
    per_layer = (seconds[-1] - seconds[0]) / max(1, depths[-1] - depths[0])
    per_layer = min(max(0.0, per_layer), seconds[-1] / depths[-1])
    return StepTime(seconds[-1] - per_layer * depths[-1], per_layer, tuple(depths), steps, device)


def _step_seconds(config: PreTrainedConfig, setup: TrainingSetup, steps: int, device: str, method: str) -> float:
    """Return the median seconds of an optimizer step with all its forward and backward passes."""
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        model: Any = _fresh_model(config, DTYPES[setup.dtype], filled=True)
        model.to(device)
        if setup.gradient_checkpointing:
            checkpoint_blocks(model)
        optimizer = make_optimizer(model, setup.optim)
        dtype = MIXED_PRECISIONS.get(setup.mixed_precision or "")
        amp = nullcontext if dtype is None else partial(torch.autocast, device, dtype)
        ids = torch.randint(vocabulary(config), (setup.batch_size, setup.block_size), device=device)
        passes, updates = [], []
        for _ in range(1 + steps):
            began = _now(device)
            with amp(), around_loss(model, method):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            done = _now(device)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.zero_grad()
            passes.append(done - began)
            updates.append(_now(device) - done)
    return setup.accumulation * statistics.median(passes[1:]) + statistics.median(updates[1:])


def around_loss(model: PreTrainedModel, method: str) -> AbstractContextManager[None]:
    """Let `model`, called with labels within this context, compute its loss by `method`."""
    if method == "full":
        return nullcontext()
    return loss_of_hidden(model, partial(mean_loss, method=cast(Method, method)))


def make_optimizer(model: PreTrainedModel, optim: str) -> torch.optim.Optimizer:
    """Return the optimizer that `Trainer` makes for `optim`."""
    from transformers import Trainer, TrainingArguments  # 2 s of imports that only a measurement of memory needs

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


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
