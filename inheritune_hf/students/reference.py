"""Open a reference once: its config, files, tokenizer, and the fingerprint of its weights."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..foreign_text import first_line
from ..records import digest_file, read_json
from .architectures import UNUSABLE_CONFIG, Architecture, inspect_architecture, require_causal_lm, sources_of
from .checkpoints import SOURCE_ARGUMENTS, LazyTensor, Source, Weights, commit_of, find_weights, open_tensors

# Arguments that a config would swallow although they are meant for the model.
_MODEL_ARGUMENTS = (
    "attn_implementation",
    "dtype",
    "experts_implementation",
    "generation_config",
    "quantization_config",
    "torch_dtype",
)

# Files that a tokenizer's words are in.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "merges.txt")

# Largest number of a token: no vocabulary comes near it.
_MAX_TOKEN = 1 << 24


# What belongs to quantized weights, as the libraries that write them call it: beside a weight, or in its place.
_SCALES = re.compile(
    r"(weights?|input|output|activation|act|proj|kv|[qkvw])_(scales?|scale_\w+|scaling_factor|global_scale|zero_?points?|"
    r"zeros|amax|absmax|packed|blocks|shape)$"
    r"|\.(qweight|qzeros|scales|scale_inv|g_idx|W_q|codes|codebooks?|Qidxs)$|_quantizer\._?\w+$"
    r"|\.weight\.(absmax|quant_map|quant_state\..*|nested_absmax|nested_quant_map|_?(data|scale\w*|zero_point))$"
)

# Beside weights, files in which tools write how they quantized them.
_QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


@dataclass(frozen=True, eq=False)
class OpenedReference:
    """
    A reference whose config was read and checked; its weights are where they were.

    Every function that takes a reference takes an opened one, and then opens nothing again. `name` is as it was given,
    or of a loaded model its `name_or_path` or class; `options` is what else `from_pretrained` is given to load it, such
    as `dtype`, and `changes` the config fields that were asked for. What is read later is of the same `commit`.
    """

    name: str
    config: PreTrainedConfig
    model: PreTrainedModel | None
    source: Source | None
    commit: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text_config(self) -> PreTrainedConfig:
        """The config of the language model, in which widths and depth are."""
        text: PreTrainedConfig = self.config.get_text_config(decoder=True)
        return text

    @property
    def depth(self) -> int:
        """Its depth, in layers."""
        return int(self.text_config.num_hidden_layers)

    @property
    def context_length(self) -> int | None:
        """Tokens that it reads at most; None if its config names no limit."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def architecture(self) -> Architecture:
        """Where its blocks are, and the sizes of its tensors."""
        return inspect_architecture(self.config)

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """
        Its tokenizer.

        Raises:
            NoTokenizer: If there is none beside its weights.
            ValueError: If it cannot be read, or needs code of its own and `trust_remote_code` was not given.
        """
        source = {} if self.source is None else self.source.arguments
        arguments = {name: value for name, value in source.items() if name != "variant"}
        trusted = bool(self.options.get("trust_remote_code", False))
        return load_tokenizer(self.name, trust_remote_code=trusted, **arguments)

    def fingerprint(self) -> str:
        """
        Return a sha256 that changes whenever its weights or config do, or the type that they are loaded in.

        Of a loaded model the tensors are read, of a repository of the Hub its commit, of a folder the files (about a
        second for each gigabyte).
        """
        settings = {**self.changes, "dtype": self.options.get("dtype")}
        digest = hashlib.sha256(json.dumps({name: str(settings[name]) for name in sorted(settings)}).encode())
        if self.model is not None:
            _add_tensors(digest, self.model)
        elif self.source is not None:
            digest.update(f"{self.source.subfolder} {self.source.variant}".encode())
            if self.commit is not None:
                digest.update(f"{self.name} {self.commit}".encode())  # which never changes
            else:
                _add_files(digest, self.source)
        return digest.hexdigest()

    def find_weights(self, use_safetensors: bool | None = None, weights_only: bool = True) -> Weights:
        """Return where its weights are; a `FileNotFoundError` if there are none, or it is a model in memory."""
        if self.source is None:
            raise FileNotFoundError(f"{self.name!r} is a model in memory: it has no files.")
        return find_weights(self.source, use_safetensors, weights_only)

    def load(self, **options: Any) -> PreTrainedModel:
        """Return the whole model, loaded from its files, or a copy of that in memory, which follows `dtype` only."""
        options = {**self.options, **options}
        if self.model is not None:
            copied: Any = copy.deepcopy(self.model)
            dtype = options.get("dtype")
            loaded: PreTrainedModel = copied.to(dtype) if isinstance(dtype, torch.dtype) else copied
            return loaded
        auto: Any = AutoModelForCausalLM
        source = {} if self.source is None else self.source.arguments
        model: PreTrainedModel = auto.from_pretrained(
            self.name, **{"config": copy.deepcopy(self.config), **source, **options}
        )
        if self.source is not None:
            # Its files are on this machine by now. Transformers reads weights of 8 bits as if their scales were 1.
            weights = find_weights(replace(self.source, force_download=False))
            tensors = {} if weights.format == "bin" else open_tensors(weights, _all)
            refuse_quantized(self, tensors, list(tensors))
        return model


Reference = str | os.PathLike[str] | PreTrainedModel | OpenedReference


def open_reference(reference: Reference, **kwargs: Any) -> OpenedReference:
    """
    Read and check the config of `reference`; no weights are read.

    Args:
        reference (`str`, `os.PathLike`, `PreTrainedModel` or `OpenedReference`):
            Hub id, folder with config.json, or a loaded causal language model; one that is open already is returned
            with what `kwargs` add.
        kwargs:
            Everything `from_pretrained` takes: where files come from (`revision`, `token`, `cache_dir`, `subfolder`,
            `local_files_only`, `force_download`, `variant`), `config`, config fields to change, and how the model is
            loaded (`dtype`, `attn_implementation`, ...), which is kept in `options`.

    Returns:
        `OpenedReference`: To be carried along; its config is a copy.

    Raises:
        TypeError: If `reference` is none of these.
        ValueError: If it is not a causal language model of a supported type, or is quantized.
        OSError: If there is no model at `reference`.
    """
    options = with_one_dtype(kwargs)
    given = options.pop("config", None)
    if isinstance(reference, OpenedReference):
        if not kwargs:
            return reference
        opened = _reopen(reference, given, options)
    elif isinstance(reference, PreTrainedModel):
        _refuse_source(options, "A loaded model is not fetched from anywhere")
        config, changes = _changed(given if isinstance(given, PreTrainedConfig) else reference.config, options)
        name = reference.name_or_path or type(reference).__name__
        commit = getattr(reference.config, "_commit_hash", None)
        opened = OpenedReference(name, config, reference, None, commit, options, changes)
    else:
        opened = _open_files(reference, given, options)
    values = opened.config.to_dict()
    if opened.model is not None:
        values["architectures"] = [type(opened.model).__name__]
    require_causal_lm(values, repr(opened.name))
    if getattr(opened.config, "quantization_config", None) is not None:
        raise ValueError(
            f"{opened.name!r} is quantized, and a student is trained on plain weights: give the original model."
        )
    return opened


def with_one_dtype(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with `torch_dtype`, the older name, as `dtype`; None stands for the default."""
    rest = dict(options)
    older = rest.pop("torch_dtype", None)
    dtype = rest.pop("dtype", None)
    dtype = older if dtype is None else dtype
    return rest if dtype is None else {**rest, "dtype": dtype}


class NoTokenizer(ValueError):
    """There is no tokenizer beside a model's weights."""


def load_tokenizer(model: str | os.PathLike[str], **kwargs: Any) -> PreTrainedTokenizerBase:
    """
    Load the tokenizer of a folder or Hub id; its own code is run only if `trust_remote_code` says so, and nothing asks.

    Raises:
        NoTokenizer: If there is none, or no model.
        ValueError: If it cannot be read, or needs code of its own.
    """
    place = os.fspath(model)
    none = (
        f"There is no tokenizer at {place!r}: give a model's folder or Hub id, with its tokenizer in it "
        "(tokenizer.save_pretrained)."
    )
    source = locate(model, {name: kwargs[name] for name in SOURCE_ARGUMENTS if name in kwargs})
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            model, **{"trust_remote_code": False, **kwargs}
        )
    except Exception as error:
        said = f"Transformers says: {first_line(error)}"
        if any(source.find_cached(name) is not None for name in _TOKENIZER_FILES):
            raise ValueError(f"The tokenizer at {place!r} cannot be read. {said}") from error
        raise NoTokenizer(f"{none} {said}") from error
    vocabulary = tokenizer.get_vocab()
    if set(vocabulary) <= set(tokenizer.all_special_tokens):  # one that Transformers made up, without words
        found = [name for name in _TOKENIZER_FILES if source.find_cached(name) is not None]
        if found:
            raise ValueError(
                f"The tokenizer at {place!r} cannot be read: {found[0]} gives no words. A package may be missing "
                "(pip install sentencepiece, protobuf or tiktoken)."
            )
        raise NoTokenizer(none)
    length, largest = tokenizer.model_max_length, max(vocabulary.values())
    if isinstance(length, bool) or not isinstance(length, int | float):
        raise ValueError(
            f"The tokenizer at {place!r} cannot be used: its model_max_length is {length!r}, not a number."
        )
    if largest > _MAX_TOKEN:  # writing it takes as long as if there were so many
        raise ValueError(
            f"The tokenizer at {place!r} cannot be used: a token has the number {largest:,}, above {_MAX_TOKEN:,}."
        )
    return tokenizer


def read_config(source: Source) -> dict[str, Any]:
    """Return config.json as it is written, which must be a JSON object."""
    return read_json(find_config(source))


def find_config(source: Source) -> Path:
    """Return the path of config.json; a `FileNotFoundError` if there is none."""
    path = source.find("config.json")
    if path is None:
        if not source.is_local:
            why = " (its config.json is not in the Hub's cache and could not be fetched)"
        elif Path(source.reference).is_dir():
            why = " (the folder has no config.json)"
        else:
            why = ""
        raise FileNotFoundError(
            f"There is no model at {source.reference!r}{why}: give a folder with config.json or a Hub id."
        )
    return path


def locate(reference: Any, options: dict[str, Any]) -> Source:
    """Return where the files of a reference are; takes out of `options` what says so."""
    if not isinstance(reference, str | os.PathLike):
        raise TypeError(
            f"A reference is a Hub id, a folder with config.json or a loaded model, got a {type(reference).__name__}."
        )
    given = {name: options.pop(name) for name in SOURCE_ARGUMENTS if name in options}
    return Source(
        reference=str(os.fspath(reference)), **{name: value for name, value in given.items() if value is not None}
    )


def refuse_adapter(opened: OpenedReference) -> None:
    """Raise a `ValueError` if an adapter lies beside the reference's weights: they are not all of the model then."""
    if opened.source is not None and opened.source.find("adapter_config.json") is not None:
        raise ValueError(
            f"{opened.name!r} holds an adapter beside its model: merge it (merge_and_unload) and save the result."
        )


def refuse_quantized(opened: OpenedReference, tensors: Mapping[str, LazyTensor], names: Sequence[str]) -> None:
    """
    Raise a `ValueError` if a reference's weights are quantized.

    `tensors` are those that are read, of which one of 8 bits shows it; `names` those in the files, of which a scale
    does.
    """
    why = None
    known = partial(sources_of, opened.architecture)
    for name, tensor in tensors.items():
        if tensor.dtype.itemsize == 1 and tensor.dtype != torch.bool and known([name]):
            why = f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}"
            break
    scale = next((name for name in names if _is_scale(opened.architecture, name)), None) if why is None else None
    if scale is not None:
        why = f"its files hold {scale}, a scale"
    if why is None and opened.source is not None:
        found = (name for name in _QUANTIZATION_FILES if opened.source.find_cached(name) is not None)
        why = next((f"{name} lies beside its weights" for name in found), None)
    if why is not None:
        raise ValueError(
            f"{opened.name!r} is quantized ({why}), and a student is trained on plain weights: give the original "
            "model, or dequantize it first (load it with Transformers, model.dequantize(), save_pretrained)."
        )


def _all(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


def _is_scale(architecture: Architecture, name: str) -> bool:
    """Return whether a tensor of a file belongs to quantized weights: by its name, or as a scale beside a matrix."""
    module, _, last = name.rpartition(".")
    weights = sources_of(architecture, [f"{module}.weight"]) if "scale" in last else {}
    beside = any(len(architecture.parameters[item]) > 1 for item in weights)
    return (beside or bool(_SCALES.search(name))) and not sources_of(architecture, [name])


def _open_files(reference: Any, given: Any, options: dict[str, Any]) -> OpenedReference:
    source = locate(reference, options)
    path = source.find("config.json")
    # From here on everything is read at one commit, even if the repository moves on.
    commit = commit_of(path) if path is not None else None
    source = replace(source, revision=commit or source.revision)
    if isinstance(given, PreTrainedConfig):
        return OpenedReference(source.reference, copy.deepcopy(given), None, source, commit, options)
    config_source = source if given is None else replace(source, reference=os.fspath(given), revision=None)
    # Read before Transformers does: an unknown model type is refused here, and its remote code never runs.
    require_causal_lm(read_config(config_source), repr(source.reference))
    path = find_config(config_source)
    for_config = {name: value for name, value in options.items() if name not in _MODEL_ARGUMENTS}
    try:
        config, unused = AutoConfig.from_pretrained(
            str(path.parent), return_unused_kwargs=True, **{**for_config, "trust_remote_code": False}
        )
    except UNUSABLE_CONFIG as error:
        raise ValueError(f"{path} cannot be used: {' '.join(str(error).split()) or type(error).__name__}.") from error
    changes = {name: options.pop(name) for name in for_config if name not in unused and name != "trust_remote_code"}
    return OpenedReference(source.reference, config, None, source, commit, options, changes)


def _reopen(opened: OpenedReference, given: Any, options: dict[str, Any]) -> OpenedReference:
    _refuse_source(options, f"{opened.name!r} is open already")
    config, changes = _changed(given if isinstance(given, PreTrainedConfig) else opened.config, options)
    return replace(opened, config=config, options={**opened.options, **options}, changes={**opened.changes, **changes})


def _changed(config: PreTrainedConfig, options: dict[str, Any]) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Return a copy of `config` with its fields among `options` changed; takes these out of `options`."""
    config = copy.deepcopy(config)
    names = [name for name in options if name not in _MODEL_ARGUMENTS and hasattr(config, name)]
    changes = {name: options.pop(name) for name in names}
    for name, value in changes.items():
        setattr(config, name, value)
    return config, changes


def _refuse_source(options: Mapping[str, Any], why: str) -> None:
    useless = [name for name in SOURCE_ARGUMENTS if options.get(name)]
    if useless:
        raise ValueError(f"{why}: leave out {', '.join(useless)}.")


def _add_tensors(digest: Any, model: PreTrainedModel) -> None:
    digest.update(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    for prefix, module in model.named_modules():
        # One part at a time: what is offloaded to the CPU or the disk is fetched for as long as this takes.
        with align_module_device(module):
            for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
                digest.update(f"{prefix}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _add_files(digest: Any, source: Source) -> None:
    digest.update(find_config(source).read_bytes())
    weights = find_weights(source)
    for path in sorted({weights.path, *(weights.path.with_name(shard) for shard in weights.files.values())}):
        digest.update(path.name.encode() + digest_file(path, _sha256))


def _sha256(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
