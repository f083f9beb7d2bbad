"""Measure a model, one batch and one layer at a time: its attention, its controls and what its blocks change."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from accelerate import cpu_offload
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from .. import __version__
from ..data import split_standard_library, standard_library_documents
from ..data.sources import Layout, read_files
from ..evaluation import LazinessComparison, preserve_state
from ..records import Cache, cache_folder, decode, encode, read_json, write_text
from ..students import OpenedReference, Reference, find_blocks, open_reference
from . import influence
from .attention import attention_kinds, narrow_window, require_seen, watching_attention
from .collapse import (
    NEAR_RANK_ONE,
    SHARE,
    SHARES,
    approximate_rank,
    attention_entropy,
    avg_mass,
    avg_rank,
    column_mass,
    is_lazy_group,
    is_lazy_layer,
    max_rank,
    max_rank_interval,
    score_attention,
    sink_share,
    uniform_attention,
)
from .influence import BlockScores

if TYPE_CHECKING:
    import pandas

#: The paper measures on 100 sequences of 100 tokens.
SEQUENCES = 100
TOKENS = 100
#: Tokens that go through the model at once: one long sequence, or several short ones.
_BATCH_TOKENS = 1024
# Characters of a document that are tokenized: a few windows of each are enough.
_CHARACTERS = 40_000
# As in the paper's figure 9.
_MAP_TOKENS = 40
_MAP_SEQUENCES = 3
VERSIONS = {"inheritune_hf": __version__, "transformers": transformers.__version__, "torch": torch.__version__}


def _counts(name: str, values: Any) -> tuple[tuple[tuple[int, ...], ...], ...]:
    counts = np.asarray(values)
    if counts.size and (counts.ndim != 3 or counts.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be whole numbers by share, sequence and head.")
    return tuple(tuple(tuple(row) for row in share) for share in counts.tolist())


@dataclass(frozen=True)
class LayerScores:
    """
    The measures of one layer's attention.

    Args:
        layer (`int`): Its number, 0-based.
        kind (`str`): `attention`, `sliding_attention`, or what a layer without softmax attention mixes tokens with.
        ranks (`tuple`): Approximate rank by share, sequence and head; empty without softmax attention.
        masses (`tuple`): Column mass by share, sequence and head.
        entropy (`tuple[float, ...]`): Mean entropy of each head's rows, in nats.
        sink (`tuple[float, ...]`): Mean attention of each head to the first token.
    """

    layer: int
    kind: str
    ranks: Any = ()  # checked as a whole: there may be millions
    masses: Any = ()
    entropy: tuple[float, ...] = ()
    sink: tuple[float, ...] = ()

    @property
    def heads(self) -> int:
        """Heads with softmax attention."""
        return len(self.entropy)

    def __post_init__(self) -> None:
        for name in ("ranks", "masses"):
            object.__setattr__(self, name, _counts(name, getattr(self, name)))


@dataclass(frozen=True)
class AttentionMap:
    """
    One head's attention, a mean over a few sequences, for a picture.

    Args:
        layer (`int`): Layer.
        head (`int`): Head.
        weights (`tuple[tuple[float, ...], ...]`): Rows of queries, columns of keys.
    """

    layer: int
    head: int
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Uniform:
    """
    The control that has learned nothing: uniform causal attention over as many tokens.

    Args:
        ranks (`tuple[int, ...]`): Its approximate rank at each share.
        masses (`tuple[int, ...]`): Its column mass at each share.
        entropy (`float`): Mean entropy of its rows, in nats.
        sink (`float`): Mean attention to the first token.
        window (`int`, *optional*): Tokens that a query sees, itself included; all before it if not given.
    """

    ranks: tuple[int, ...]
    masses: tuple[int, ...]
    entropy: float
    sink: float
    window: int | None = None


@dataclass(frozen=True)
class CollapseReport:
    """
    What was measured of a model's attention on one set of sequences, with its controls.

    Layers without softmax attention have scores of `None`, and count in no average.

    Args:
        model (`str`): Id or path of the model, or its class.
        model_type (`str`): Its architecture.
        weights (`str`): Fingerprint of its weights.
        data (`str`): Fingerprint of the sequences' tokens.
        sequences (`int`): Sequences.
        tokens (`int`): Tokens of each.
        shares (`tuple[float, ...]`): Taus and etas that were measured.
        layers (`tuple[LayerScores, ...]`): The measures of each layer.
        uniform (`Uniform`): Control: uniform causal attention.
        sliding (`Uniform`, *optional*): The same within the window of sliding layers, if that is narrower than a
            sequence.
        random (`tuple[LayerScores, ...]`): Control: the same measures on a randomly initialised twin; may be empty.
        blocks (`BlockScores`, *optional*): What each block changes.
        maps (`tuple[AttentionMap, ...]`): Attention of some heads, for pictures.
        versions (`dict[str, str]`): Versions of the libraries that measured.
    """

    model: str
    model_type: str
    weights: str
    data: str
    sequences: int
    tokens: int
    shares: tuple[float, ...]
    layers: tuple[LayerScores, ...]
    uniform: Uniform
    sliding: Uniform | None = None
    random: tuple[LayerScores, ...] = ()
    blocks: BlockScores | None = None
    maps: tuple[AttentionMap, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def uniform_of(self, layer: int) -> Uniform:
        """Return the uniform attention that a layer is compared with: within its window, if it slides."""
        return self.sliding if self.sliding is not None and "sliding" in self.layers[layer].kind else self.uniform

    def ranks(self, layer: int, tau: float = SHARE, random: bool = False) -> NDArray[np.int64]:
        """Return the ranks of a layer, or of the random twin's, of shape `(sequences, heads)`."""
        return self._of_share((self.random if random else self.layers)[layer].ranks, tau)

    def masses(self, layer: int, eta: float = SHARE, random: bool = False) -> NDArray[np.int64]:
        """Return the column masses of a layer, or of the random twin's, of shape `(sequences, heads)`."""
        return self._of_share((self.random if random else self.layers)[layer].masses, eta)

    def max_ranks(self, tau: float = SHARE, random: bool = False) -> list[float | None]:
        """Return MaxRank of each layer (PAPER: eq. 3), None where there is no softmax attention."""
        scores = self.random if random else self.layers
        return [max_rank(self.ranks(item.layer, tau, random)) if item.heads else None for item in scores]

    def max_rank_intervals(self, tau: float = SHARE) -> list[tuple[float, float] | None]:
        """Return a 95 % interval of each MaxRank over sequences; None for fewer than 30 of them."""
        return [max_rank_interval(self.ranks(item.layer, tau)) if item.heads else None for item in self.layers]

    def avg_rank(self, layers: Sequence[int] | None = None, tau: float = SHARE) -> float:
        """Return AvgRank of a group of layers, or of all (PAPER: eq. 4)."""
        return avg_rank(self._max_ranks_of(layers, tau))

    def avg_masses(self, eta: float = SHARE, random: bool = False) -> list[float | None]:
        """Return AvgMass of each layer (PAPER: appendix C), None where there is no softmax attention."""
        scores = self.random if random else self.layers
        return [avg_mass(self.masses(item.layer, eta, random)) if item.heads else None for item in scores]

    def lazy_layers(self, tolerance: float = 0.0, tau: float = SHARE) -> list[int]:
        """Return the layers whose MaxRank is at most `1 + tolerance` (PAPER: definition G.1)."""
        ranks = enumerate(self.max_ranks(tau))
        return [layer for layer, value in ranks if value is not None and is_lazy_layer(value, tolerance)]

    def is_lazy_group(self, layers: Sequence[int], tau: float = SHARE) -> bool:
        """Tell whether a contiguous group of layers is lazy: floor(AvgRank) is 1 (PAPER: definition G.1)."""
        return is_lazy_group(self._max_ranks_of(layers, tau))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report to a file, so that a reader finds it whole or not at all."""
        write_text(path, json.dumps(encode(self), ensure_ascii=False) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> CollapseReport:
        """Read a report that `to_json` wrote; every field is checked."""
        return decode(cls, read_json(path), str(path))

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with a row for each layer, head and share: rank and mass (means over sequences), and more."""
        import pandas

        rows: list[tuple[Any, ...]] = []
        for item in self.layers:
            for share in self.shares if item.heads else ():
                ranks, masses = (values(item.layer, share).mean(0) for values in (self.ranks, self.masses))
                columns = zip(range(item.heads), ranks, masses, item.entropy, item.sink, strict=True)
                rows += [
                    (item.layer, item.kind, head, share, float(rank), float(mass), entropy, sink)
                    for head, rank, mass, entropy, sink in columns
                ]
        return pandas.DataFrame(rows, columns=["layer", "kind", "head", "share", "rank", "mass", "entropy", "sink"])

    def _of_share(self, counts: Any, share: float) -> NDArray[np.int64]:
        if share not in self.shares:
            measured = ", ".join(map(str, self.shares))
            raise ValueError(f"The share {share} was not measured (measured: {measured}); measure again with it.")
        return np.asarray(counts[self.shares.index(share)] if counts else np.zeros((self.sequences, 0)), np.int64)

    def _max_ranks_of(self, layers: Sequence[int] | None, tau: float) -> list[float]:
        values = self.max_ranks(tau)
        chosen = range(self.depth) if layers is None else layers
        return [value for layer in chosen if (value := values[layer]) is not None]


def compare_laziness(
    student: CollapseReport, reference: CollapseReport, tolerance: float = NEAR_RANK_ONE, tau: float = SHARE
) -> LazinessComparison:
    """
    Compare the lazy layers of a student and its reference, measured on the same sequences.

    Args:
        student (`CollapseReport`): The student's report.
        reference (`CollapseReport`): The reference's report.
        tolerance (`float`, *optional*, defaults to `0.5`): MaxRank above 1 that still counts as lazy; 0 is the
            paper's definition.
        tau (`float`, *optional*, defaults to `0.9`): Share of the squared spectrum.

    Returns:
        `LazinessComparison`: Counts and one sentence.

    Raises:
        ValueError: If the two were not measured on the same tokens: ranks grow with the length of a sequence.
    """
    if (student.data, student.tokens) != (reference.data, reference.tokens):
        raise ValueError(
            f"Models are compared on the same sequences only, got {student.sequences} of {student.tokens} tokens "
            f"({student.data[:8]}) against {reference.sequences} of {reference.tokens} ({reference.data[:8]}); measure "
            "both on one set."
        )
    lazy = [len(item.lazy_layers(tolerance, tau)) for item in (student, reference)]
    layers = [sum(value is not None for value in item.max_ranks(tau)) for item in (student, reference)]
    word = "as many" if lazy[0] == lazy[1] else "fewer" if lazy[0] < lazy[1] else "more"
    answer = f"The student has {word} lazy layers {'as' if word == 'as many' else 'than'} its reference"
    if lazy[1] == 0:
        answer += ", which has none at this size"
    sentence = (
        f"{answer}: {lazy[0]} of {layers[0]} against {lazy[1]} of {layers[1]} (MaxRank at most {1 + tolerance:g} at "
        f"tau {tau:g}, {student.sequences} sequences of {student.tokens} tokens)."
    )
    return LazinessComparison(lazy[1], layers[1], lazy[0], layers[0], tolerance, sentence)


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
    tokens, opened = as_tokens(sequences), open_model(model, **kwargs)
    wanted = tuple(sorted({float(share) for share in shares}))
    weights, data = opened.fingerprint(), tokens_fingerprint(tokens)
    cache = None if cache_dir is None else Cache(cache_dir, CollapseReport)
    key = [weights, data, controls, blocks, VERSIONS]
    found = None if cache is None else cache.read(key)
    if found is not None:
        wanted = tuple(sorted({*wanted, *found.shares}))
        if wanted == found.shares and heads is None:
            return found
    loaded = load_model(opened)
    require_fitting(loaded, tokens)
    if found is None or wanted != found.shares:
        found = CollapseReport(
            model=opened.name,
            model_type=str(loaded.config.model_type),
            weights=weights,
            data=data,
            sequences=len(tokens),
            tokens=tokens.shape[1],
            shares=wanted,
            **_scores(loaded, tokens, wanted, controls, blocks, opened.name if progress else None),
            versions=VERSIONS,
        )
        if cache is not None:
            cache.write(key, found)
    return found if heads is None else dataclasses.replace(found, maps=head_maps(loaded, tokens, heads))


def _scores(
    model: PreTrainedModel, tokens: Tensor, shares: tuple[float, ...], controls: bool, blocks: bool, bar: str | None
) -> dict[str, Any]:
    """Return the fields of a report that are measured, under a progress bar of that name if there is to be one."""
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
        for _ in kinds if advance is not None else ():
            advance()  # type: ignore[misc]
    layers = []
    for layer, kind in enumerate(kinds):
        parts = found.get(layer)
        if parts is None:
            require_seen(model, layer, kind)
            layers.append(LayerScores(layer, kind))
            continue
        if len(parts) != len(batches):
            raise RuntimeError(f"Layer {layer} attends more than once; only one attention in a layer can be measured.")
        ranks, masses = (
            torch.cat([getattr(part, name) for part in parts], dim=1).tolist() for name in ("ranks", "masses")
        )
        entropy, sink = (
            tuple(torch.cat([getattr(part, name) for part in parts]).double().mean(0).tolist())
            for name in ("entropy", "sink")
        )
        layers.append(LayerScores(layer, kind, ranks, masses, entropy, sink))
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM
        config = copy.deepcopy(model.config)
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
    means: dict[int, Tensor] = {}

    def seen(layer: int, weights: Tensor) -> None:
        if any(layer == chosen for chosen, _ in heads):
            means[layer] = weights.mean(0).cpu()

    with evaluating(model), watching_attention(model, seen):
        for batch in batches_of(tokens[:_MAP_SEQUENCES, :length], model)[:1]:
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


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Put every part of the model into evaluation mode, and back into its own; compiled parts run eagerly."""
    # No graph is compiled for runs of other shapes, hooks and blocks than training has.
    with preserve_state(model), torch.compiler.set_stance("force_eager"):
        model.train(False)
        yield


def batches_of(tokens: Tensor, model: PreTrainedModel) -> list[Tensor]:
    """Return the sequences in batches of at most 1,024 tokens, or of one sequence, on the model's first device."""
    size = max(1, _BATCH_TOKENS // tokens.shape[1])
    device: torch.device = next(model.get_input_embeddings().parameters()).device
    return [part.to("cpu" if device.type == "meta" else device) for part in torch.split(tokens, size)]


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


def paper_tokens(reference: Reference, **kwargs: Any) -> int:
    """Return the tokens of a sequence by default: 100, as in the paper, or the reference's context if it is less."""
    return min(TOKENS, open_reference(reference, **kwargs).context_length or TOKENS)


def default_sequences(
    tokenizer: PreTrainedTokenizerBase,
    count: int = SEQUENCES,
    tokens: int = TOKENS,
    files: Sequence[str] = (),
    text_column: str = "text",
) -> Tensor:
    """
    Return sequences out of files, or out of the selection documents of the embedded corpus.

    Every document gives its first window before any gives its second, so that as many as possible count.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The reference's tokenizer.
        count (`int`, *optional*, defaults to `100`): Sequences.
        tokens (`int`, *optional*, defaults to `100`): Tokens of each.
        files (sequence of `str`, *optional*): Text, JSONL or Parquet files, or globs.
        text_column (`str`, *optional*, defaults to `"text"`): Column or field that holds a document.

    Returns:
        `torch.Tensor` of shape `(sequences, tokens)`: Token ids; fewer sequences if the text holds no more.

    Raises:
        FileNotFoundError: If a pattern matches no file.
        ValueError: If no document is long enough.
    """
    if files:
        rows = read_files(files, Layout(column=text_column), "files")
        texts: Iterable[str] = (text for text in rows[text_column] if text)
    else:
        # Nothing is trained on these: what a reference or a student has memorised says little about it.
        _, selection, _ = split_standard_library(standard_library_documents())
        texts = (document.text for document in selection)
    return cut_sequences(texts, tokenizer, count, tokens)


def cut_sequences(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, count: int, tokens: int) -> Tensor:
    """
    Cut texts into windows of exactly `tokens` tokens and return the first `count`, taken from the documents in turn.

    Raises:
        ValueError: If no document has `tokens` tokens.
    """

    def windows(text: str) -> list[list[int]]:
        ids = tokenizer(text[:_CHARACTERS], add_special_tokens=False, verbose=False)["input_ids"]
        return [ids[start : start + tokens] for start in range(0, len(ids) - tokens + 1, tokens)][:count]

    by_document = [windows(text) for text in itertools.islice(texts, 10 * count)]
    turns = chain.from_iterable(itertools.zip_longest(*by_document))
    chosen = list(itertools.islice((window for window in turns if window is not None), count))
    if not chosen:
        raise ValueError(
            f"No document has {tokens} tokens, so there is no sequence to measure on; ask for fewer tokens, or give "
            "longer documents."
        )
    return torch.tensor(chosen, dtype=torch.long)


def leading_sequences(rows: Dataset) -> list[list[int]]:
    """
    Return 100 sequences of 100 tokens of packed rows, as the paper measures, or as many and as long as there are.

    Raises:
        ValueError: If no row has two tokens.
    """
    lists: list[list[int]] = rows["input_ids"][:]
    tokens = min(TOKENS, max((len(row) for row in lists), default=0))
    if tokens < 2:
        raise ValueError("The set has no sequence of 2 tokens, so no attention can be measured on it.")
    return [row[:tokens] for row in lists if len(row) >= tokens][:SEQUENCES]


def open_model(model: Reference, **kwargs: Any) -> OpenedReference:
    """Return the model opened; unless `dtype` says otherwise it is measured in the precision that it was saved in."""
    if isinstance(model, PreTrainedModel):  # any that is loaded, also one that no student can be made of
        return OpenedReference(model.name_or_path or type(model).__name__, model.config, model, None, None)
    opened = open_reference(model, **kwargs)
    return opened if "dtype" in opened.options else open_reference(opened, dtype="auto")


def load_model(opened: OpenedReference) -> PreTrainedModel:
    """Return the model itself if it is loaded, else load it."""
    return opened.load() if opened.model is None else opened.model


def scores_folder() -> Path:
    """Return the folder in which the command line keeps scores, below `HF_HOME`."""
    return cache_folder("analysis")


def tokens_fingerprint(tokens: Tensor) -> str:
    """Return a sha256 that tells sequences apart."""
    return hashlib.sha256(tokens.numpy().astype("<i8").tobytes() + str(tokens.shape).encode()).hexdigest()
