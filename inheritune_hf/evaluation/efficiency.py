"""What a student saves: size, memory and speed, measured beside its reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..students import Source, find_weights
from .isolation import undisturbed
from .memory import fixed_generation, peak_memory
from .timing import Spread, interleaved, ratios

#: Attention implementations of Transformers; `compile` behind a plus sign compiles the model.
SETTINGS = ("sdpa", "eager", "sdpa+compile", "eager+compile")
FIRST_TOKEN = "time to first token"
TOKENS_PER_SECOND = "tokens per second"


@dataclass(frozen=True)
class Size:
    """
    What one model takes.

    Args:
        layers (`int`): Depth.
        parameters (`int`): Parameters, tied ones counted once.
        bytes_on_disk (`int`): Bytes of its weight files.
        peak_memory (`int`, *optional*): Peak bytes of loading it and generating one sequence; None if not told.
        flops_per_token (`float`): Floating-point operations of a forward pass, counted, divided by its tokens.
    """

    layers: int
    parameters: int
    bytes_on_disk: int
    peak_memory: int | None
    flops_per_token: float


@dataclass(frozen=True)
class Speed:
    """
    One figure of speed, of both models.

    Args:
        setting (`str`): One of `SETTINGS`.
        quantity (`str`): `time to first token` in seconds, or `tokens per second` of whole calls of `generate`.
        batch (`int`): Sequences at a time.
        student (`Spread`): The student's.
        reference (`Spread`): The reference's.
        gain (`Spread`): How many times faster the student is, repeat by repeat.
    """

    setting: str
    quantity: str
    batch: int
    student: Spread
    reference: Spread
    gain: Spread


@dataclass(frozen=True)
class Efficiency:
    """
    Size and speed of a student and its reference.

    Args:
        device (`str`): Device and, on a CPU, the number of threads.
        dtype (`str`): Type of the weights in use.
        prompt_tokens (`int`): Tokens of each prompt, and of the forward pass whose operations were counted.
        new_tokens (`int`): Tokens generated for each prompt.
        student (`Size`): The student's.
        reference (`Size`): The reference's.
        speeds (`tuple[Speed, ...]`): Figures by setting, quantity and batch size.
    """

    device: str
    dtype: str
    prompt_tokens: int
    new_tokens: int
    student: Size
    reference: Size
    speeds: tuple[Speed, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Efficiency:
        """Rebuild the figures from what `to_dict` returned."""
        sizes = {name: Size(**values[name]) for name in ("student", "reference")}
        names = ("student", "reference", "gain")
        speeds = tuple(Speed(**{**item, **{name: Spread(**item[name]) for name in names}}) for item in values["speeds"])
        return cls(**{**values, **sizes, "speeds": speeds})


def measure_efficiency(
    student: str,
    reference: str,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    settings: Sequence[str] = ("sdpa",),
    prompt_tokens: int = 64,
    new_tokens: int = 32,
    repeats: int = 7,
    dtype: str = "float32",
    device: str | None = None,
    reference_kwargs: Mapping[str, Any] | None = None,
) -> Efficiency:
    """
    Measure what a student and its reference take and how fast they are, side by side.

    Timings are warmed up and taken in turn. Memory is that of a process that does nothing else.

    Args:
        student (`str`): Folder or Hub id of the student.
        reference (`str`): Folder or Hub id of the reference.
        batch_sizes (sequence of `int`, *optional*, defaults to `(1, 8)`): Sequences generated at a time.
        settings (sequence of `str`, *optional*, defaults to `("sdpa",)`): Of `SETTINGS`.
        prompt_tokens (`int`, *optional*, defaults to `64`): Tokens of a prompt; fewer if the context is short.
        new_tokens (`int`, *optional*, defaults to `32`): Tokens to generate; fewer if the context is short.
        repeats (`int`, *optional*, defaults to `7`): Times each figure is measured.
        dtype (`str`, *optional*, defaults to `"float32"`): Type of the weights in use.
        device (`str`, *optional*): `cuda` if there is one, else `cpu`.
        reference_kwargs (`Mapping`, *optional*): Where the reference comes from, such as `revision`.

    Returns:
        `Efficiency`: All figures.

    Raises:
        ValueError: If a setting is none of `SETTINGS`.
    """
    unknown = [name for name in settings if name not in SETTINGS]
    if unknown:
        raise ValueError(f"settings must be of {', '.join(SETTINGS)}, got {', '.join(unknown)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sources: dict[str, tuple[str, dict[str, Any]]] = {
        "student": (student, {"dtype": dtype}),
        "reference": (reference, {"dtype": dtype, **(reference_kwargs or {})}),
    }
    speeds: list[Speed] = []
    sizes: dict[str, Size] = {}
    for setting in dict.fromkeys(settings):
        models = {name: _load(source, setting, device, options) for name, (source, options) in sources.items()}
        if not sizes:
            context = min(_context(model) for model in models.values())
            prompt_tokens = min(prompt_tokens, context // 2)
            new_tokens = min(new_tokens, context - prompt_tokens)
            for name, (source, options) in sources.items():
                peak = peak_memory(source, prompt_tokens, new_tokens, device, **options)
                sizes[name] = _size(models[name], source, prompt_tokens, peak, options)
        speeds.extend(_speeds(models, setting, batch_sizes, prompt_tokens, new_tokens, repeats))
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return Efficiency(where, dtype, prompt_tokens, new_tokens, sizes["student"], sizes["reference"], tuple(speeds))


def bytes_on_disk(model: str, revision: str | None = None) -> int:
    """Return the bytes of a model's weight files, shards added up."""
    source = Source(model, revision=revision)
    weights = find_weights(source)
    paths = [source.find(name) for name in sorted(set(weights.files.values()))] or [weights.path]
    return sum(path.stat().st_size for path in paths if path is not None)


def flops_per_token(model: PreTrainedModel, tokens: int) -> float:
    """Count the floating-point operations of a forward pass over one sequence and divide them by its tokens."""
    prompt = _prompt(model, 1, tokens)
    # The fused kernels for CPUs are not counted; the same attention in plain operations is.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=prompt, use_cache=False)
    return float(counter.get_total_flops()) / tokens


def _size(model: PreTrainedModel, source: str, tokens: int, peak: int | None, options: Mapping[str, Any]) -> Size:
    return Size(
        layers=model.config.get_text_config(decoder=True).num_hidden_layers,
        parameters=model.num_parameters(),
        bytes_on_disk=bytes_on_disk(source, options.get("revision")),
        peak_memory=peak,
        flops_per_token=flops_per_token(model, tokens),
    )


def _speeds(
    models: Mapping[str, PreTrainedModel],
    setting: str,
    batch_sizes: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
) -> list[Speed]:
    if setting.endswith("+compile"):
        for model in models.values():
            model.compile(dynamic=True)
    speeds = []
    rounds = [(FIRST_TOKEN, 1, 1), *((TOKENS_PER_SECOND, batch, new_tokens) for batch in dict.fromkeys(batch_sizes))]
    for quantity, batch, count in rounds:
        jobs = {
            name: partial(_generate, model, _prompt(model, batch, prompt_tokens), count)
            for name, model in models.items()
        }
        with undisturbed():
            seconds = interleaved(jobs, repeats, models["student"].device, warm_up=2)
        if quantity == TOKENS_PER_SECOND:
            figures = {name: Spread.of([batch * count / value for value in times]) for name, times in seconds.items()}
        else:
            figures = {name: Spread.of(times) for name, times in seconds.items()}
        gain = ratios(seconds["reference"], seconds["student"])
        speeds.append(Speed(setting, quantity, batch, figures["student"], figures["reference"], gain))
    return speeds


def _load(source: str, setting: str, device: str, options: Mapping[str, Any]) -> PreTrainedModel:
    attention = setting.partition("+")[0]
    model: Any = AutoModelForCausalLM.from_pretrained(source, attn_implementation=attention, **options)
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def _context(model: PreTrainedModel) -> int:
    return int(getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 1024)


def _prompt(model: PreTrainedModel, batch: int, tokens: int) -> torch.Tensor:
    known = int(model.config.get_text_config(decoder=True).vocab_size)
    words = torch.arange(batch * tokens, device=model.device) % known
    return words.view(batch, tokens)


def _generate(model: Any, prompt: torch.Tensor, new_tokens: int) -> torch.Tensor:
    options = fixed_generation(new_tokens)
    with torch.no_grad():
        made: torch.Tensor = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return made
