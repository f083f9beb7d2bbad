"""Measure a model: its attention, its controls, its blocks, one batch and one layer at a time."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import cpu_offload
from accelerate.utils import align_module_device
from huggingface_hub.constants import HF_HOME
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

from .. import __version__
from ..students import Reference, Source, find_weights, load_reference_config
from ..students.checkpoints import SOURCE_ARGUMENTS, TRANSPORT_ARGUMENTS, commit_of
from . import influence
from .attention import attention_kinds, find_blocks, narrow_window, require_seen, watching_attention
from .collapse import (
    SHARES,
    approximate_rank,
    attention_entropy,
    column_mass,
    score_attention,
    sink_share,
    uniform_attention,
)
from .report import AttentionMap, CollapseReport, LayerScores, Uniform, frozen_counts

#: Tokens that go through the model at once: one long sequence, or several short ones.
_BATCH_TOKENS = 1024
# As in the paper's figure 9.
_MAP_TOKENS = 40
_MAP_SEQUENCES = 3


def measure_collapse(
    model: Reference,
    sequences: Any,
    *,
    shares: Sequence[float] = SHARES,
    controls: bool = True,
    blocks: bool = True,
    heads: Sequence[tuple[int, int]] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> CollapseReport:
    """
    Measure how far a model's attention has collapsed, layer by layer, and what its blocks change.

    The model is left as it was, also after an exception: its mode, hooks, blocks and attention implementation, the
    random state. It is measured in its own precision; probabilities and what follows are float32 and float64.

    Args:
        model (`str`, `os.PathLike` or `PreTrainedModel`):
            Hub id, path or loaded causal language model, which may be spread over devices.
        sequences (`torch.Tensor` of shape `(sequences, tokens)`, or rows with `input_ids`):
            Sequences of one length; the paper takes 100 of 100 tokens.
        shares (sequence of `float`, *optional*, defaults to 0.8, 0.85, 0.9 and 0.95):
            Taus and etas to measure at.
        controls (`bool`, *optional*, defaults to `True`):
            Whether a randomly initialised twin is measured too; it takes the memory of a second model, main memory if
            the model is spread over devices.
        blocks (`bool`, *optional*, defaults to `True`):
            Whether block influence, angular distance, loss by depth and loss without each block are measured.
        heads (sequence of `tuple[int, int]`, *optional*):
            Layers and heads whose attention is kept for a picture; if not given, four of them, from the highest rank to
            the lowest.
        cache_dir (`str` or `os.PathLike`, *optional*):
            Folder in which scores are kept, by weights, data and settings. What it holds is not measured again.
        progress (`bool`, *optional*, defaults to `False`):
            Whether a bar with the time left is shown.
        kwargs:
            For a model that is loaded here: everything that `from_pretrained` takes.

    Returns:
        `CollapseReport`: Scores, controls and fingerprints.

    Raises:
        ValueError: If the sequences are not of one length, too long for the model, or not of its tokens, or if there is
            no such head.
        RuntimeError: If the model's attention cannot be watched.
    """
    tokens = as_tokens(sequences)
    wanted = tuple(sorted({float(share) for share in shares}))
    name = model.name_or_path or type(model).__name__ if isinstance(model, PreTrainedModel) else os.fspath(model)
    weights = weights_fingerprint(model, **kwargs)
    data = tokens_fingerprint(tokens)
    file, kept = None, None
    if cache_dir is not None:
        file = scores_file(
            cache_dir, weights, data, controls, blocks, [item.name for item in dataclasses.fields(Uniform)]
        )
        if file.is_file():
            kept = CollapseReport.from_json(file)
            wanted = tuple(sorted({*wanted, *kept.shares}))
    missing = kept is None or wanted != kept.shares
    if kept is not None and not missing and heads is None:
        return kept
    loaded = model if isinstance(model, PreTrainedModel) else load_model(model, **kwargs)
    require_fitting(loaded, tokens)
    if kept is None or missing:
        kept = _measure(loaded, tokens, wanted, controls, blocks, progress, name, weights, data)
        if file is not None:
            kept.to_json(file)
    return kept if heads is None else dataclasses.replace(kept, maps=head_maps(loaded, tokens, heads))


def scores_folder() -> Path:
    """Return the folder in which the command line keeps scores, below `HF_HOME`."""
    return Path(HF_HOME) / "inheritune_hf" / "analysis"


def scores_file(folder: str | os.PathLike[str], *facts: Any) -> Path:
    """Return the file of a folder that keeps what was measured, by what it depends on and the libraries' versions."""
    key = json.dumps([*facts, __version__, torch.__version__, transformers.__version__])
    return Path(folder) / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def tokens_fingerprint(tokens: Tensor) -> str:
    """Return a sha256 that tells sequences apart."""
    return hashlib.sha256(tokens.numpy().astype("<i8").tobytes() + str(tokens.shape).encode()).hexdigest()


def load_model(reference: str | os.PathLike[str], **kwargs: Any) -> PreTrainedModel:
    """Load a model that students can be made of, in the precision it was saved in unless `dtype` says otherwise."""
    source = {name: kwargs[name] for name in SOURCE_ARGUMENTS if name in kwargs}
    load_reference_config(reference, **source)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(reference, **{"dtype": "auto", **kwargs})
    return model


def as_tokens(sequences: Any) -> Tensor:
    """
    Return sequences as token ids of shape `(sequences, tokens)` on the CPU.

    Raises:
        ValueError: If there are none, they differ in length, or have fewer than two tokens.
    """
    if not isinstance(sequences, Tensor):
        columns = getattr(sequences, "column_names", None) or ()
        rows = sequences["input_ids"] if "input_ids" in columns else sequences
        lists = [list(row["input_ids"] if isinstance(row, dict) else row) for row in rows]
        lengths = sorted({len(row) for row in lists})
        if len(lengths) > 1:
            raise ValueError(
                f"Sequences must be of one length, since ranks grow with it; got lengths from {lengths[0]} to "
                f"{lengths[-1]} tokens. Cut them alike, or leave out the short ones."
            )
        sequences = torch.tensor(lists, dtype=torch.long)
    tokens: Tensor = sequences.detach().cpu().long()
    if tokens.ndim != 2 or len(tokens) == 0 or tokens.shape[1] < 2:
        raise ValueError(
            f"Sequences must be of shape (sequences, tokens) with at least one of 2 tokens, got {tuple(tokens.shape)}."
        )
    return tokens


def require_fitting(model: PreTrainedModel, tokens: Tensor) -> None:
    """
    Refuse sequences that the model cannot read.

    Raises:
        ValueError: If they are longer than its context, or have tokens that it does not know.
    """
    config = model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and tokens.shape[1] > limit:
        raise ValueError(f"Sequences of {tokens.shape[1]} tokens are longer than the model's context of {limit}.")
    if int(tokens.max()) >= config.vocab_size or int(tokens.min()) < 0:
        raise ValueError(
            f"Sequences have tokens from {int(tokens.min())} to {int(tokens.max())}, the model knows 0 to "
            f"{config.vocab_size - 1}; use the model's own tokenizer."
        )


def weights_fingerprint(model: Reference, **kwargs: Any) -> str:
    """
    Return a sha256 that tells weights apart: of the tensors of a loaded model, of path, size and time of files.

    Args:
        model (`str`, `os.PathLike` or `PreTrainedModel`): As in `measure_collapse`; files are not read.
        kwargs: How it is loaded.
    """
    digest = hashlib.sha256()
    if isinstance(model, PreTrainedModel):
        digest.update(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
        for prefix, module in model.named_modules():
            # One part at a time: what is offloaded to the CPU or the disk is fetched for as long as this takes.
            with align_module_device(module):
                for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
                    digest.update(f"{prefix}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
    given = {name: kwargs[name] for name in SOURCE_ARGUMENTS if kwargs.get(name)}
    source = Source(os.fspath(model), **given)
    config = source.find("config.json")
    if config is None:
        raise FileNotFoundError(
            f"There is no model at {os.fspath(model)!r}: give a folder with config.json, a Hub id or a loaded model."
        )
    digest.update(config.read_bytes())
    options = {name: str(value) for name, value in sorted(kwargs.items()) if name not in TRANSPORT_ARGUMENTS}
    digest.update(json.dumps(options).encode())
    commit = commit_of(config)
    if commit is not None:
        # A commit of the Hub never changes.
        digest.update(f"{os.fspath(model)} {commit}".encode())
        return digest.hexdigest()
    weights = find_weights(source)
    for path in sorted({weights.path, *(weights.path.with_name(shard) for shard in weights.files.values())}):
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Put every part of the model into evaluation mode, and back into its own; compiled parts run as written."""
    training = [module for module in model.modules() if module.training]
    model.train(False)
    try:
        # No graph is compiled for runs of other shapes, hooks and blocks than training has.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module in training:
            module.training = True


def batches_of(tokens: Tensor, model: PreTrainedModel) -> list[Tensor]:
    """Return the sequences in batches of at most 1,024 tokens, or of one sequence, on the model's first device."""
    size = max(1, _BATCH_TOKENS // tokens.shape[1])
    device: torch.device = next(model.get_input_embeddings().parameters()).device
    return [part.to("cpu" if device.type == "meta" else device) for part in torch.split(tokens, size)]


def score_layers(
    model: PreTrainedModel, batches: Sequence[Tensor], shares: Sequence[float], advance: Callable[[], Any] | None = None
) -> tuple[LayerScores, ...]:
    """
    Return the measures of each layer's attention; never more than one layer's attention is in memory.

    Args:
        model (`PreTrainedModel`): A causal language model in evaluation mode.
        batches (sequence of `torch.Tensor` of shape `(batch, tokens)`): Token ids.
        shares (sequence of `float`): Taus and etas.
        advance (`Callable`, *optional*): Called after every layer of every batch.
    """
    found: dict[int, list[Any]] = {}
    kinds = attention_kinds(model)

    def seen(layer: int, weights: Tensor) -> None:
        found.setdefault(layer, []).append(score_attention(weights, shares))

    for batch in batches:
        with watching_attention(model, seen):
            # The base model: the head's logits may be larger than all attention.
            model.base_model(input_ids=batch, use_cache=False)
        for _ in kinds:
            if advance is not None:
                advance()
    layers = []
    for layer, kind in enumerate(kinds):
        parts = found.get(layer)
        if parts is None:
            require_seen(model, layer, kind)
            layers.append(LayerScores(layer, kind))
            continue
        if len(parts) != len(batches):
            raise RuntimeError(f"Layer {layer} attends more than once; only one attention in a layer can be measured.")
        layers.append(
            LayerScores(
                layer=layer,
                kind=kind,
                ranks=frozen_counts(torch.cat([part.ranks for part in parts], dim=1).tolist()),
                masses=frozen_counts(torch.cat([part.masses for part in parts], dim=1).tolist()),
                entropy=tuple(torch.cat([part.entropy for part in parts]).double().mean(0).tolist()),
                sink=tuple(torch.cat([part.sink for part in parts]).double().mean(0).tolist()),
            )
        )
    return tuple(layers)


def random_twin(model: PreTrainedModel) -> PreTrainedModel:
    """
    Return a model of the same shape and precision with random weights, by the architecture's own initialisation.

    It is where the model is. If that is spread over devices, because none has room for it, the twin stays in main
    memory, and its parts are moved to where inputs go for as long as they run.
    """
    device = next(model.get_input_embeddings().parameters()).device
    device = torch.device("cpu") if device.type == "meta" else device
    spread = len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1
    config = copy.deepcopy(model.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM
        twin: Any = auto.from_config(config, attn_implementation=model.config._attn_implementation)
    placed: PreTrainedModel = twin.to(device="cpu" if spread else device, dtype=model.dtype).eval()
    return cpu_offload(placed, device) if spread and device.type != "cpu" else placed


def uniform_scores(tokens: int, shares: Sequence[float], window: int | None = None) -> Uniform:
    """Return the measures of uniform causal attention; the arguments are those of `uniform_attention`, and shares."""
    attention = uniform_attention(tokens, window)
    return Uniform(
        ranks=tuple(int(approximate_rank(attention, share)) for share in shares),
        masses=tuple(int(column_mass(attention, share)) for share in shares),
        entropy=float(attention_entropy(attention)),
        sink=float(sink_share(attention)),
        window=window,
    )


def head_maps(
    model: PreTrainedModel, tokens: Tensor, heads: Sequence[tuple[int, int]], length: int = _MAP_TOKENS
) -> tuple[AttentionMap, ...]:
    """
    Return the attention of chosen heads, a mean over the first three sequences (PAPER: figure 9).

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokens (`torch.Tensor` of shape `(sequences, tokens)`): Token ids.
        heads (sequence of `tuple[int, int]`): Layers and heads.
        length (`int`, *optional*, defaults to `40`): First tokens of each sequence to show.

    Raises:
        ValueError: If the model has no such head.
    """
    kept: dict[tuple[int, int], Any] = {}

    def seen(layer: int, weights: Tensor) -> None:
        mean = weights.mean(0).cpu()
        kept.update(
            {
                (layer, head): mean[head].tolist()
                for chosen, head in heads
                if chosen == layer and head in range(len(mean))
            }
        )

    with evaluating(model), watching_attention(model, seen):
        for batch in batches_of(tokens[:_MAP_SEQUENCES, :length], model)[:1]:
            model.base_model(input_ids=batch, use_cache=False)
    for layer, head in heads:
        if (layer, head) not in kept:
            raise ValueError(
                f"There is no softmax attention in layer {layer}, head {head} of {type(model).__name__}, which has "
                f"{len(find_blocks(model))} layers; both are counted from 0."
            )
    return tuple(
        AttentionMap(layer, head, tuple(tuple(round(value, 5) for value in row) for row in kept[layer, head]))
        for layer, head in heads
    )


def telling_heads(layers: Sequence[LayerScores], share: int) -> list[tuple[int, int]]:
    """Return four heads that show the range of a model: highest rank, two between, lowest; shares by their place."""
    means = [
        (float(value), item.layer, head)
        for item in layers
        if item.heads
        for head, value in enumerate(np.asarray(item.ranks[share]).mean(0))
    ]
    means.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    places = sorted({0, len(means) // 3, 2 * len(means) // 3, len(means) - 1}) if means else []
    return [means[place][1:] for place in places]


def _measure(
    model: PreTrainedModel,
    tokens: Tensor,
    shares: tuple[float, ...],
    controls: bool,
    blocks: bool,
    progress: bool,
    name: str,
    weights: str,
    data: str,
) -> CollapseReport:
    batches = batches_of(tokens, model)
    depth = len(find_blocks(model))
    runs = depth * (1 + controls) + (2 * depth + 1) * blocks
    with tqdm(total=runs * len(batches), desc=name, disable=not progress, unit="layer", leave=False) as bar:
        with evaluating(model):
            layers = score_layers(model, batches, shares, bar.update)
            scores = influence.score_blocks(model, batches, bar.update) if blocks else None
        random: tuple[LayerScores, ...] = ()
        if controls:
            twin = random_twin(model)
            random = score_layers(twin, batches_of(tokens, twin), shares, bar.update)
            del twin
    window = narrow_window(model, tokens.shape[1])
    return CollapseReport(
        model=name,
        model_type=str(model.config.model_type),
        weights=weights,
        data=data,
        sequences=len(tokens),
        tokens=tokens.shape[1],
        shares=shares,
        layers=layers,
        uniform=uniform_scores(tokens.shape[1], shares),
        sliding=None if window is None else uniform_scores(tokens.shape[1], shares, window),
        random=random,
        blocks=scores,
        maps=head_maps(model, tokens, telling_heads(layers, len(shares) // 2)),
        versions={
            "inheritune_hf": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
    )
