"""Measure a model, one batch and one layer at a time: its attention, the controls, and what its blocks change."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import cpu_offload
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

from .. import __version__
from ..evaluation import preserve_state
from ..records import Cache, cache_folder
from ..students import OpenedReference, Reference, find_blocks, open_reference
from ..students.architectures import seeded
from . import influence
from .attention import attention_kinds, narrow_window, require_attention, watch_attention
from .collapse import SHARES, score_attention, uniform_attention
from .report import AttentionMap, CollapseReport, LayerScores, Uniform
from .sequences import as_tokens, check_tokens, tokens_fingerprint

#: Tokens that go through the model at once: one long sequence, or several short ones.
_BATCH_TOKENS = 1024
# As in the paper's figure 9.
_MAP_TOKENS = 40
_MAP_SEQUENCES = 3
VERSIONS = {"inheritune_hf": __version__, "transformers": transformers.__version__, "torch": torch.__version__}


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
        model (`str`, `os.PathLike`, `PreTrainedModel` or `OpenedReference`):
            Hub id, path or loaded causal language model, which may be spread over devices.
        sequences (`torch.Tensor` of shape `(sequences, tokens)`, or rows with `input_ids`):
            Sequences of one length; the paper takes 100 of 100 tokens.
        shares (sequence of `float`, *optional*, defaults to 0.8, 0.85, 0.9 and 0.95): Taus and etas to measure at.
        controls (`bool`, *optional*, defaults to `True`):
            Whether a randomly initialised twin is measured too; it takes the memory of a second model, main memory if
            the model is spread over devices.
        blocks (`bool`, *optional*, defaults to `True`):
            Whether block influence, angular distance, loss by depth and loss without each block are measured.
        heads (sequence of `tuple[int, int]`, *optional*):
            Layers and heads whose attention is kept for a figure; if not given, four of them, from the highest rank to
            the lowest.
        cache_dir (`str` or `os.PathLike`, *optional*):
            Folder in which scores are kept, by weights, data and settings. What it holds is not measured again.
        progress (`bool`, *optional*, defaults to `False`): Whether a bar with the time left is shown.
        kwargs: For a model that is loaded here: everything that `from_pretrained` takes.

    Returns:
        `CollapseReport`: Scores, controls and fingerprints.

    Raises:
        ValueError: If the sequences are not of one length, too long for the model, or not of its tokens, or if there is
            no such head.
        RuntimeError: If the model's attention cannot be watched.
    """
    tokens, opened = as_tokens(sequences), open_model(model, **kwargs)
    wanted = tuple(sorted({float(share) for share in shares}))
    weights, data = opened.fingerprint(), tokens_fingerprint(tokens)
    cache = None if cache_dir is None else Cache(cache_dir, CollapseReport)
    key = [weights, data, wanted, controls, blocks, VERSIONS]
    found = None if cache is None else cache.read(key)
    if found is not None and heads is None:
        return found
    loaded = load_model(opened)
    check_tokens(loaded, tokens)
    if found is None:
        found = CollapseReport(
            model=opened.name,
            model_type=str(loaded.config.model_type),
            weights=weights,
            data=data,
            sequences=len(tokens),
            tokens=tokens.shape[1],
            shares=wanted,
            **_scores(
                loaded, tokens, wanted, controls, blocks, f"measuring {Path(opened.name).name}" if progress else None
            ),
            versions=VERSIONS,
        )
        if cache is not None:
            cache.write(key, found)
    return found if heads is None else dataclasses.replace(found, maps=head_maps(loaded, tokens, heads))


def _scores(
    model: PreTrainedModel, tokens: Tensor, shares: tuple[float, ...], controls: bool, blocks: bool, bar: str | None
) -> dict[str, Any]:
    """Return the measured fields of a report, under a progress bar named `bar` if there is to be one."""
    batches, depth = batches_of(tokens, model), len(find_blocks(model))
    runs = (depth * (1 + controls) + (2 * depth + 1) * blocks) * len(batches)
    random: tuple[LayerScores, ...] = ()
    with tqdm(total=runs, desc=bar, disable=bar is None, unit="layer", leave=False) as shown:
        with evaluating(model):
            layers = score_layers(model, batches, shares, shown.update)
            changes = influence.score_blocks(model, batches, shown.update) if blocks else None
        if controls:
            twin = random_twin(model)
            random = score_layers(twin, batches_of(tokens, twin), shares, shown.update)
            del twin
    window = narrow_window(model, tokens.shape[1])
    return {
        "layers": layers,
        "uniform": uniform_scores(tokens.shape[1], shares),
        "sliding": None if window is None else uniform_scores(tokens.shape[1], shares, window),
        "random": random,
        "blocks": changes,
        "maps": head_maps(model, tokens, representative_heads(layers, len(shares) // 2)),
    }


def score_layers(
    model: PreTrainedModel,
    batches: Sequence[Tensor],
    shares: Sequence[float],
    advance: Callable[[int], Any] = lambda layers: None,
) -> tuple[LayerScores, ...]:
    """
    Return the measures of each layer's attention; never more than one layer's attention is in memory.

    `batches` are token ids of shape `(batch, tokens)`; `advance` gets the number of layers that were measured.
    """
    found: dict[int, list[Any]] = {}
    kinds = attention_kinds(model)

    def collect(layer: int, weights: Tensor) -> None:
        found.setdefault(layer, []).append(score_attention(weights, shares))

    for batch in batches:
        with watch_attention(model, collect):
            # The base model: the head's logits may be larger than all attention.
            model.base_model(input_ids=batch, use_cache=False)
        advance(len(kinds))
    layers = []
    for layer, kind in enumerate(kinds):
        if layer not in found:
            require_attention(model, layer, kind)
            layers.append(LayerScores(layer, kind))
            continue
        if len(found[layer]) != len(batches):
            raise RuntimeError(f"Layer {layer} attends more than once; only one attention in a layer can be measured.")
        parts = zip(*found[layer], strict=True)
        ranks, masses = (torch.cat(next(parts), dim=1).tolist() for _ in range(2))
        entropy, sink = (tuple(torch.cat(part).double().mean(0).tolist()) for part in parts)
        layers.append(LayerScores(layer, kind, ranks, masses, entropy, sink))
    return tuple(layers)


def random_twin(model: PreTrainedModel) -> PreTrainedModel:
    """
    Return a model of the same shape and precision with random weights, by the architecture's own initialisation.

    It is on the model's device. The twin of a model that is spread over devices stays in main memory, and its parts
    are moved to the inputs' device for as long as they run.
    """
    device = next(model.get_input_embeddings().parameters()).device
    device = torch.device("cpu") if device.type == "meta" else device
    spread = len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1
    with seeded(0):
        auto: Any = AutoModelForCausalLM
        config = copy.deepcopy(model.config)
        twin: Any = auto.from_config(config, attn_implementation=model.config._attn_implementation)
    placed: PreTrainedModel = twin.to(device="cpu" if spread else device, dtype=model.dtype).eval()
    return cpu_offload(placed, device) if spread and device.type != "cpu" else placed


def uniform_scores(tokens: int, shares: Sequence[float], window: int | None = None) -> Uniform:
    """Return the measures of uniform causal attention."""
    ranks, masses, entropy, sink = score_attention(uniform_attention(tokens, window)[None, None], shares)
    return Uniform(
        tuple(ranks.flatten().tolist()), tuple(masses.flatten().tolist()), float(entropy), float(sink), window
    )


def head_maps(model: PreTrainedModel, tokens: Tensor, heads: Sequence[tuple[int, int]]) -> tuple[AttentionMap, ...]:
    """Return the attention of heads over the first tokens, a mean over the first three sequences (PAPER: figure 9)."""
    means: dict[int, Tensor] = {}

    def collect(layer: int, weights: Tensor) -> None:
        if any(layer == chosen for chosen, _ in heads):
            means[layer] = weights.mean(0).cpu()

    with evaluating(model), watch_attention(model, collect):
        for batch in batches_of(tokens[:_MAP_SEQUENCES, :_MAP_TOKENS], model)[:1]:
            model.base_model(input_ids=batch, use_cache=False)
    for layer, head in heads:
        if layer not in means or head not in range(len(means[layer])):
            raise ValueError(
                f"There is no softmax attention in layer {layer}, head {head} of {type(model).__name__}, which has "
                f"{len(find_blocks(model))} layers; both are counted from 0."
            )
    return tuple(
        AttentionMap(layer, head, tuple(tuple(round(value, 5) for value in row) for row in means[layer][head].tolist()))
        for layer, head in heads
    )


def representative_heads(layers: Sequence[LayerScores], share: int) -> list[tuple[int, int]]:
    """Return the heads of the highest and the lowest rank and two between, by the share at this index."""
    means = sorted(
        (-float(value), item.layer, head)
        for item in layers
        if item.heads
        for head, value in enumerate(np.asarray(item.ranks[share]).mean(0))
    )
    places = sorted({0, len(means) // 3, 2 * len(means) // 3, len(means) - 1}) if means else []
    return [means[place][1:] for place in places]


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Put every part of the model into evaluation mode for a while; compiled parts run eagerly."""
    # No graph is compiled for other shapes, hooks and blocks than those of training.
    with preserve_state(model), torch.compiler.set_stance("force_eager"):
        model.train(False)
        yield


def batches_of(tokens: Tensor, model: PreTrainedModel) -> list[Tensor]:
    """Return the sequences in batches of at most 1,024 tokens, or of one sequence, on the model's first device."""
    size = max(1, _BATCH_TOKENS // tokens.shape[1])
    device: torch.device = next(model.get_input_embeddings().parameters()).device
    return [part.to("cpu" if device.type == "meta" else device) for part in torch.split(tokens, size)]


def open_model(model: Reference, **kwargs: Any) -> OpenedReference:
    """Return the model opened; unless `dtype` says otherwise it is measured in the precision that it was saved in."""
    if isinstance(model, PreTrainedModel) and not kwargs.get("text_model"):  # also of an architecture without students
        return OpenedReference(model.name_or_path or type(model).__name__, model.config, model, None, None)
    opened = open_reference(model, **kwargs)
    return opened if "dtype" in opened.options else open_reference(opened, dtype="auto")


def load_model(opened: OpenedReference) -> PreTrainedModel:
    """Return the model itself if it is loaded, else load it."""
    return opened.load() if opened.model is None or opened.multimodal is not None else opened.model


def scores_folder() -> Path:
    """Return the folder in which the command line keeps scores, below `HF_HOME`."""
    return cache_folder("analysis")
