"""Size, memory and speed of a student beside its reference, and the student as its reference's draft model."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from ..processes import run_python
from ..students import open_reference
from .facts import FIRST_TOKEN, TOKENS_PER_SECOND, Draft, Efficiency, Size, Speed, Spread
from .validation import preserve_state

#: Attention implementations of Transformers; `compile` behind a plus sign compiles the model.
SETTINGS = ("sdpa", "eager", "sdpa+compile", "eager+compile")
_SEED = 0
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def measure_efficiency(
    student: str,
    reference: str,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    settings: Sequence[str] | None = None,
    prompt_tokens: int = 64,
    new_tokens: int = 32,
    repeats: int = 7,
    dtype: str = "float32",
    device: str | None = None,
    reference_kwargs: Mapping[str, Any] | None = None,
) -> Efficiency:
    """
    Measure size, memory and speed of a student and its reference.

    Timings are warmed up and interleaved. Memory is that of a process that does nothing else.

    Args:
        student (`str`): Folder or Hub id of the student.
        reference (`str`): Folder or Hub id of the reference.
        batch_sizes (sequence of `int`, *optional*, defaults to `(1, 8)`): Sequences generated at a time.
        settings (sequence of `str`, *optional*): Of `SETTINGS`; `sdpa` if not given, or `eager` where one of the two
            models does not have it.
        prompt_tokens (`int`, *optional*, defaults to `64`): Tokens of a prompt; fewer if the context is short.
        new_tokens (`int`, *optional*, defaults to `32`): Tokens to generate; fewer if the context is short.
        repeats (`int`, *optional*, defaults to `7`): Timings of each job.
        dtype (`str`, *optional*, defaults to `"float32"`): Type of the weights.
        device (`str`, *optional*): `cuda` if there is one, else `cpu`.
        reference_kwargs (`Mapping`, *optional*): Where the reference comes from, such as `revision`.

    Raises:
        ValueError: If a setting is none of `SETTINGS`.
    """
    unknown = [name for name in settings or () if name not in SETTINGS]
    if unknown:
        raise ValueError(f"settings must be of {', '.join(SETTINGS)}, got {', '.join(unknown)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sources: dict[str, tuple[str, dict[str, Any]]] = {
        "student": (student, {"dtype": dtype}),
        "reference": (reference, {"dtype": dtype, **(reference_kwargs or {})}),
    }
    opened = [open_reference(source, **options) for source, options in sources.values()]
    if settings is None:
        settings = ("sdpa" if all(one.architecture.model_class._supports_sdpa for one in opened) else "eager",)
    context = min(one.context_length or 1024 for one in opened)
    prompt_tokens = min(prompt_tokens, context // 2)
    new_tokens = min(new_tokens, context - prompt_tokens)
    # Before models are in memory here: these processes load each of them once more.
    memory = {
        name: peak_memory(source, prompt_tokens, new_tokens, device, **options)
        for name, (source, options) in sources.items()
    }
    speeds: list[Speed] = []
    sizes: dict[str, Size] = {}
    for setting in dict.fromkeys(settings):
        models = {name: _load(source, setting, device, options) for name, (source, options) in sources.items()}
        for name, (source, options) in sources.items() if not sizes else ():
            sizes[name] = Size(
                layers=models[name].config.get_text_config(decoder=True).num_hidden_layers,
                parameters=models[name].num_parameters(),
                bytes_on_disk=bytes_on_disk(source, **options),
                peak_memory=memory[name],
                flops_per_token=flops_per_token(models[name], prompt_tokens),
            )
        speeds.extend(_speeds(models, setting, batch_sizes, prompt_tokens, new_tokens, repeats))
        del models  # before those of the next setting are loaded
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return Efficiency(where, dtype, prompt_tokens, new_tokens, sizes["student"], sizes["reference"], tuple(speeds))


def bytes_on_disk(model: str, **options: Any) -> int:
    """Return the bytes of a model's weight files, shards added up."""
    weights = open_reference(model, **options).find_weights()
    paths = [weights.source.find(name) for name in sorted(set(weights.files.values()))] or [weights.path]
    return sum(path.stat().st_size for path in paths if path is not None)


def flops_per_token(model: PreTrainedModel, tokens: int) -> float:
    """Count the floating-point operations of a forward pass over one sequence and divide them by its tokens."""
    prompt = _prompt(model, 1, tokens)
    # PyTorch does not count the fused kernels for CPUs; it counts the same attention in plain operations.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=prompt, use_cache=False)
    return float(counter.get_total_flops()) / tokens


def interleaved(
    jobs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warm_up: int = 1
) -> dict[str, list[float]]:
    """
    Return the seconds that each job took in each repeat, after warm-up.

    Jobs are timed in turn, in reversed order in every second repeat: what slows the machine down slows all of them.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}.")
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(-warm_up, repeats):
        for name in list(jobs) if repeat % 2 == 0 else list(jobs)[::-1]:
            synchronize(device)
            began = time.perf_counter()
            jobs[name]()
            synchronize(device)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Return the spread of the ratios of two jobs' times, repeat by repeat."""
    return Spread.of([one / other for one, other in zip(above, below, strict=True)])


def fixed_generation(new_tokens: int) -> dict[str, Any]:
    """Return the arguments with which `generate` makes exactly `new_tokens` tokens, greedily, with its KV cache."""
    return {
        "max_new_tokens": new_tokens,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "use_cache": True,
    }


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
            name: partial(_generate, model, _prompt(model, batch, prompt_tokens), **fixed_generation(count))
            for name, model in models.items()
        }
        with preserve_state():
            seconds = interleaved(jobs, repeats, models["student"].device, warm_up=2)
        figures = {
            name: Spread.of([batch * count / value for value in times] if quantity == TOKENS_PER_SECOND else times)
            for name, times in seconds.items()
        }
        gain = ratios(seconds["reference"], seconds["student"])
        speeds.append(Speed(setting, quantity, batch, figures["student"], figures["reference"], gain))
    return speeds


def _load(source: str, setting: str, device: str, options: Mapping[str, Any]) -> PreTrainedModel:
    attention = setting.partition("+")[0]
    model: Any = open_reference(source, attn_implementation=attention, **options).load()
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def context_of(model: PreTrainedModel) -> int:
    """Return the tokens that a model reads at most; 1,024 if its config names no limit."""
    return int(getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 1024)


def _prompt(model: PreTrainedModel, batch: int, tokens: int) -> Tensor:
    known = int(model.config.get_text_config(decoder=True).vocab_size)
    return (torch.arange(batch * tokens, device=model.device) % known).view(batch, tokens)


def _generate(model: Any, prompt: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        made: Tensor = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return made


def peak_memory(model: str, prompt_tokens: int, new_tokens: int, device: str, **options: Any) -> int | None:
    """
    Return the peak bytes of loading a model and generating one sequence, in a process of its own, without libraries.

    On `cuda` it is the device's memory, otherwise the process's; None where the system does not report it (not Linux).
    `options` go to `from_pretrained`. A `RuntimeError` if the process failed.
    """
    if device != "cuda" and not _STATUS.is_file():
        return None
    source = str(Path(model).absolute()) if Path(model).is_dir() else model
    request = json.dumps([source, prompt_tokens, new_tokens, device, options], default=str)  # of paths
    code = "from inheritune_hf.evaluation import speed; speed.print_peak()"
    done = run_python(code, request=request, tokens=True)  # the model may be one that needs a token
    if done.returncode != 0:
        raise RuntimeError(f"Measuring the memory of {model} failed: {done.stderr.strip()[-500:]}")
    return int(done.stdout.split()[-1])


def print_peak() -> None:
    """Print the peak memory that the standard input asks for, in bytes; `peak_memory` starts it."""
    model, prompt_tokens, new_tokens, device, options = json.load(sys.stdin)
    opened = open_reference(model, **options)
    _ = opened.architecture  # the modelling code is imported first, so that only the model itself counts
    before = 0 if device == "cuda" else _status("VmRSS")
    if device != "cuda":
        _RESET.write_text("5")  # forget the peak so far
    loaded = cast(Any, opened.load()).to(device).eval()
    _generate(loaded, _prompt(loaded, 1, prompt_tokens), **fixed_generation(new_tokens))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM") - before
    sys.stdout.write(f"{peak}\n")


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def measure_draft(
    student: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: Sequence[Tensor],
    *,
    new_tokens: int = 48,
    draft_tokens: int = 4,
    repeats: int = 5,
    modes: Sequence[str] = ("greedy", "sampling"),
) -> tuple[Draft, ...]:
    """
    Return how many of the student's drafted tokens its reference accepts, and the speed-up, one record for each mode.

    Prompts have the shape `(1, tokens)`. Both models and random states are preserved.

    Raises:
        ValueError: If there is no prompt.
    """
    if not prompts:
        raise ValueError("There is no prompt to continue; give at least one.")
    with preserve_state(student, reference), _drafting(student, draft_tokens):
        student.train(False)
        reference.train(False)
        return tuple(_draft(student, reference, prompts, new_tokens, draft_tokens, repeats, mode) for mode in modes)


def _draft(
    student: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: Sequence[Tensor],
    new_tokens: int,
    draft_tokens: int,
    repeats: int,
    mode: str,
) -> Draft:
    options = {**fixed_generation(new_tokens), "do_sample": mode == "sampling"}

    def generate(assistant: PreTrainedModel | None) -> list[Tensor]:
        torch.manual_seed(_SEED)
        return [_generate(reference, prompt, assistant_model=assistant, **options) for prompt in prompts]

    with _forward_passes(student) as drafts, _forward_passes(reference) as checks:
        assisted = generate(student)
    made = sum(tokens.shape[1] - prompt.shape[1] for tokens, prompt in zip(assisted, prompts, strict=True))
    alone = generate(None) if mode == "greedy" else []
    jobs = {"alone": lambda: generate(None), "assisted": lambda: generate(student)}
    seconds = interleaved(jobs, repeats, reference.device, warm_up=1)
    rates = {name: Spread.of([made / value for value in times]) for name, times in seconds.items()}
    return Draft(
        mode=mode,
        draft_tokens=draft_tokens,
        prompts=len(prompts),
        new_tokens=new_tokens,
        drafted=len(drafts),
        # Each check by the reference gives one token of its own, besides those of the draft that it accepts.
        accepted=made - len(checks),
        alone=rates["alone"],
        assisted=rates["assisted"],
        speed_up=ratios(seconds["alone"], seconds["assisted"]),
        equal=all(torch.equal(one, other) for one, other in zip(alone, assisted, strict=True)) if alone else None,
    )


@contextmanager
def _forward_passes(model: PreTrainedModel) -> Iterator[list[None]]:
    """Yield a list that grows by one with each forward pass of a model."""
    seen: list[None] = []
    hook = model.register_forward_hook(lambda *_: seen.append(None))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def _drafting(student: PreTrainedModel, tokens: int) -> Iterator[None]:
    """Make the student draft a fixed number of tokens, however confident it is."""
    before: Any = student.generation_config
    config = student.generation_config = copy.deepcopy(before)
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = tokens, "constant"
    config.assistant_confidence_threshold = 0.0
    try:
        yield
    finally:
        student.generation_config = before
