"""Open a reference once: its config, files, tokenizer, and the fingerprint of its weights."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import re
import struct
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
from ..measures import is_measured, parse_measured
from ..records import LayerOrder, digest_file, read_json
from .architectures import (
    UNUSABLE_CONFIG,
    Architecture,
    cuttable_order,
    drop_tied,
    inspect_architecture,
    kept_names,
    require_causal_lm,
    require_multimodal,
    sources_of,
    text_model_config,
)
from .checkpoints import (
    SOURCE_ARGUMENTS,
    LazyTensor,
    Source,
    Weights,
    commit_of,
    find_weights,
    lazy_copy,
    open_state,
    open_tensors,
    tensor_names,
)
from .download import Choose

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

# Quantization methods that Transformers undoes on load, by the config that says so, and those it undoes afterwards.
_DEQUANTIZING_CONFIGS = {
    "compressed-tensors": "CompressedTensorsConfig",
    "fp8": "FineGrainedFP8Config",
    "metal": "MetalConfig",
    "mxfp4": "Mxfp4Config",
}
_DEQUANTIZED_AFTER = ("bitsandbytes", "higgs")

# Beside weights, files in which tools write how they quantized them.
_QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


@dataclass(frozen=True, eq=False)
class OpenedReference:
    """
    A reference whose config was read and checked; its weights are where they were.

    Every function that takes a reference takes an opened one, and then opens nothing again. `name` is as it was given,
    or of a loaded model its `name_or_path` or class; `options` is what else `from_pretrained` is given to load it, such
    as `dtype`, `changes` the config fields that were asked for, and `replaced` says that a whole config was given in
    place of that in its files. What is read later is of the same `commit`. Where the reference is the text model inside
    a multimodal model, `multimodal` is the type of that.
    """

    name: str
    config: PreTrainedConfig
    model: PreTrainedModel | None
    source: Source | None
    commit: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    multimodal: str | None = None
    replaced: bool = False

    @property
    def is_rebuilt(self) -> bool:
        """Whether Transformers alone would not load it: a model in memory, inside a multimodal one, or from GGUF."""
        return self.model is not None or self.multimodal is not None or self.origin["gguf_file"] is not None

    def require_quantizable(self) -> None:
        """Raise a `ValueError` if it cannot be quantized while it is read, as `distillation_quantization` does."""
        if self.is_rebuilt:
            raise ValueError(
                "distillation_quantization quantizes the reference while it is read: give its id or path, no model in "
                "memory, text_model or gguf_file."
            )

    @property
    def origin(self) -> dict[str, Any]:
        """What a lineage says of where it comes from."""
        gguf_file = None if self.source is None else self.source.gguf_file
        text_model = self.multimodal is not None
        return {"reference": self.name, "revision": self.commit, "text_model": text_model, "gguf_file": gguf_file}

    @property
    def student_options(self) -> dict[str, Any]:
        """What it is loaded with that holds for its students too, and that no checkpoint keeps."""
        names = ("attn_implementation", "experts_implementation")
        return {name: self.options[name] for name in names if name in self.options}

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

    @functools.cached_property
    def architecture(self) -> Architecture:
        """Where its blocks are, and the sizes of its tensors."""
        found = inspect_architecture(self.config)
        return found if self.multimodal is None else replace(found, in_multimodal=True)

    def order_before(self, choice: Any) -> LayerOrder | None:
        """
        Return what stands for the order of `choice`, a measure in `keep_layers`, before it is measured, else None.

        It is that of the layers themselves, as far as each student along it is a model of the family.
        """
        if not is_measured(choice):
            return None
        measure, count = parse_measured(choice, self.depth)
        first = max(1, self.depth // 2 if count is None else count)
        return LayerOrder(measure, cuttable_order(self.config, range(self.depth), first), first)

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
        loaded = ("quantization_config", "use_safetensors")
        settings |= {name: self.options[name] for name in loaded if name in self.options}
        if self.replaced:
            settings["config"] = json.dumps(self.config.to_dict(), sort_keys=True, default=str)
        if self.multimodal is not None:
            settings["text_model"] = self.multimodal
        digest = hashlib.sha256(json.dumps({name: str(settings[name]) for name in sorted(settings)}).encode())
        if self.model is not None:
            _add_tensors(digest, self.model)
        elif self.source is not None:
            digest.update(f"{self.source.subfolder} {self.source.variant}".encode())
            if self.source.gguf_file is not None:
                digest.update(f" {self.source.gguf_file}".encode())  # one of many in a repository
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

    def open_tensors(
        self, choose: Choose, use_safetensors: bool | None = None, weights_only: bool = True
    ) -> tuple[dict[str, LazyTensor], list[str]]:
        """Return its kept tensors, not yet read, by their names for the student, and the names of all that it holds."""
        if self.model is not None:
            state = open_state(self.model.state_dict(), lazy_copy)
            return {given: state[name] for name, given in choose(state).items()}, list(state)
        names: list[str] = []

        def note_and_choose(found: Iterable[str]) -> Mapping[str, str]:
            found = list(found)
            names.extend(found)
            return choose(found)

        return open_tensors(self.find_weights(use_safetensors, weights_only), note_and_choose), names

    def load(self, **options: Any) -> PreTrainedModel:
        """Return the whole model, loaded from its files, or a copy of that in memory, which follows `dtype` only."""
        options = {**self.options, **options}
        if self.multimodal is not None or self.origin["gguf_file"] is not None:
            return self._build(options)
        if self.source is None:
            copied: Any = copy.deepcopy(self.model)
            dtype = options.get("dtype")
            loaded: PreTrainedModel = copied.to(dtype) if isinstance(dtype, torch.dtype) else copied
            return loaded
        auto: Any = AutoModelForCausalLM
        model: PreTrainedModel = auto.from_pretrained(
            self.name, **{"config": copy.deepcopy(self.config), **self.source.arguments, **options}
        )
        # Its files are on this machine by now. Transformers reads weights of 8 bits as if their scales were 1.
        weights = find_weights(replace(self.source, force_download=False))
        tensors = {} if weights.format == "bin" else open_tensors(weights)
        refuse_quantized(self, tensors, list(tensors))
        return model

    def _build(self, options: dict[str, Any]) -> PreTrainedModel:
        """Return the whole model, made of its tensors: Transformers would load another, or leave it quantized."""
        whole = self.architecture
        tensors, names = self.open_tensors(partial(kept_names, whole, range(whole.depth)))
        refuse_quantized(self, tensors, names)
        options["dtype"] = resolve_dtype(options.get("dtype", "auto"), self.config, tensors)
        model_class: Any = whole.model_class
        config, state = copy.deepcopy(self.config), drop_tied(whole, tensors)
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, **options
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            lacking = min([*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])])
            raise RuntimeError(
                f"The weights of {self.name!r} do not fill the model: no tensor of its shape for {lacking}."
            )
        loaded: PreTrainedModel = model
        loaded.name_or_path = loaded.config.name_or_path = self.name
        return loaded


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
            `local_files_only`, `force_download`, `variant`, `gguf_file`), `config`, config fields to change, and how
            the model is loaded (`dtype`, `attn_implementation`, ...), which is kept in `options`. With
            `text_model=True` the reference is the text model inside a multimodal model.

    Returns:
        `OpenedReference`: To be carried along; its config is a copy.

    Raises:
        TypeError: If `reference` is none of these.
        ValueError: If it is not a causal language model of a supported type, or is quantized.
        OSError: If there is no model at `reference`.
    """
    options = with_one_dtype(kwargs)
    given = options.pop("config", None)
    text_model = bool(options.pop("text_model", False))
    if isinstance(reference, OpenedReference):
        if not kwargs:
            return reference
        opened = _reopen(reference, given, options)
    elif isinstance(reference, PreTrainedModel):
        _refuse_source(options, "A loaded model is not fetched from anywhere")
        config, changes = _changed(given if isinstance(given, PreTrainedConfig) else reference.config, options)
        name = reference.name_or_path or type(reference).__name__
        commit = getattr(reference.config, "_commit_hash", None)
        if (getattr(reference.config, "inheritune", None) or {}).get("reference") == reference.name_or_path:
            name, commit = type(reference).__name__, None  # a student in memory is called as what it was cut from
        opened = OpenedReference(name, config, reference, None, commit, options, changes)
    else:
        opened = _open_files(reference, given, options, text_model)
    if given is not None:
        opened = replace(opened, replaced=True)
    _refuse_quantized_config(opened)
    if opened.source is not None and getattr(opened.config, "transformers_weights", None):
        raise ValueError(
            f"{opened.name!r} names the file of its weights in its config (transformers_weights), which is not read "
            "here: load the model and save it again with save_pretrained."
        )
    if text_model and opened.multimodal is None:
        opened = _text_model_of(opened)
    values = opened.config.to_dict()
    if opened.model is not None and not text_model:
        values["architectures"] = [type(opened.model).__name__]
    require_causal_lm(values, repr(opened.name))
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
        if any(source.find_cached(name) is not None for name in (source.gguf_file or "", *_TOKENIZER_FILES)):
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


def find_config(source: Source) -> Path:
    """Return the path of config.json; a `FileNotFoundError` if there is none."""
    path = source.find("config.json")
    if path is None:
        if not source.is_local:
            why = " (its config.json is not in the Hub's cache and could not be fetched)"
        elif Path(source.reference).is_dir():
            why = " (the folder has no config.json)"
            gguf = sorted(path.name for path in Path(source.reference).glob("*.gguf"))
            if gguf:
                why = f" (the folder has no config.json; to read a GGUF file there, say gguf_file={gguf[0]!r})"
        elif source.reference.endswith(".gguf"):
            why = f" (of a GGUF file, give its folder, and gguf_file={Path(source.reference).name!r})"
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
    gguf_file = str(given.get("gguf_file") or "")
    if Path(gguf_file).is_absolute() or ".." in Path(gguf_file).parts:
        raise ValueError(f"gguf_file must be the name of a file in the reference's folder, got {gguf_file!r}.")
    return Source(
        reference=str(os.fspath(reference)), **{name: value for name, value in given.items() if value is not None}
    )


def refuse_adapter(opened: OpenedReference) -> None:
    """Raise a `ValueError` if an adapter lies beside the reference's weights: they are not all of the model then."""
    if opened.source is not None and opened.source.find("adapter_config.json") is not None:
        raise ValueError(
            f"{opened.name!r} holds an adapter beside its model: merge it (merge_and_unload) and save the result."
        )


def resolve_dtype(given: Any, config: PreTrainedConfig, tensors: Mapping[str, LazyTensor]) -> Any:
    """Return the type to load in; `from_pretrained` would look at the tensors for "auto", and cannot before reading."""
    if given == "auto":
        stored = (tensor.dtype for tensor in tensors.values() if tensor.dtype.is_floating_point)
        return config.dtype or next(stored, torch.float32)
    return getattr(torch, given) if isinstance(given, str) and hasattr(torch, given) else given


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


def _is_scale(architecture: Architecture, name: str) -> bool:
    """Return whether a tensor of a file belongs to quantized weights: by its name, or as a scale beside a matrix."""
    module, _, last = name.rpartition(".")
    weights = sources_of(architecture, [f"{module}.weight"]) if "scale" in last else {}
    beside = any(len(architecture.parameters[item]) > 1 for item in weights)
    return (beside or bool(_SCALES.search(name))) and not sources_of(architecture, [name])


def _text_model_of(opened: OpenedReference) -> OpenedReference:
    """Return the text model inside a multimodal model as a reference."""
    inside = str(opened.config.model_type)

    def is_tied(config: PreTrainedConfig) -> bool:
        if opened.model is not None:
            whole: Any = opened.model
            return whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
        text = replace(opened, config=config, multimodal=inside)
        held = sources_of(text.architecture, tensor_names(opened.find_weights()))
        return not any("lm_head" in name for name in held)

    return replace(opened, config=text_model_config(opened.config, repr(opened.name), is_tied), multimodal=inside)


def _open_files(reference: Any, given: Any, options: dict[str, Any], text_model: bool) -> OpenedReference:
    source = locate(reference, options)
    from_gguf = source.gguf_file is not None and given is None
    path = source.find(str(source.gguf_file) if from_gguf else "config.json")
    # From here on everything is read at one commit, even if the repository moves on.
    commit = commit_of(path) if path is not None else None
    source = replace(source, revision=commit or source.revision)
    if from_gguf:
        return OpenedReference(source.reference, _gguf_config(source, path), None, source, commit, options)
    if isinstance(given, PreTrainedConfig):
        return OpenedReference(source.reference, copy.deepcopy(given), None, source, commit, options)
    config_source = source if given is None else replace(source, reference=os.fspath(given), revision=None)
    # Read before Transformers does: an unknown model type is refused here, and its remote code never runs.
    path = find_config(config_source)
    values = read_json(path)
    if text_model:
        require_multimodal(values.get("model_type"), repr(source.reference))
    else:
        require_causal_lm(values, repr(source.reference))
    for_config = {name: value for name, value in options.items() if name not in _MODEL_ARGUMENTS}
    try:
        config, unused = AutoConfig.from_pretrained(
            str(path.parent), return_unused_kwargs=True, **{**for_config, "trust_remote_code": False}
        )
    except UNUSABLE_CONFIG as error:
        raise ValueError(f"{path} cannot be used: {' '.join(str(error).split()) or type(error).__name__}.") from error
    changes = {name: options.pop(name) for name in for_config if name not in unused and name != "trust_remote_code"}
    return OpenedReference(source.reference, config, None, source, commit, options, changes)


def _gguf_config(source: Source, path: Path | None) -> PreTrainedConfig:
    if path is None:
        raise FileNotFoundError(
            f"There is no {source.gguf_file} at {source.reference!r}: gguf_file is the name of a file there."
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(str(path.parent), gguf_file=str(path.absolute()))
    except (*UNUSABLE_CONFIG, ImportError, OSError, struct.error) as error:
        raise ValueError(
            f"{path} cannot be read as GGUF: {first_line(error)} Older files and architectures need the package gguf "
            "(pip install 'inheritune-hf[gguf]'); else give the original model."
        ) from error
    return config


def _refuse_quantized_config(opened: OpenedReference) -> None:
    """Raise a `ValueError` if a reference's config says that it is quantized; it says how, and how to undo it."""
    found = getattr(opened.config, "quantization_config", None)
    if found is None:
        return
    values = found if isinstance(found, dict) else found.to_dict()
    method = str(getattr(values.get("quant_method"), "value", values.get("quant_method")))
    load = f"AutoModelForCausalLM.from_pretrained({opened.name!r}"
    # What is saved in the original format has the names of quantized weights.
    save = "save_pretrained(FOLDER, save_original_format=False)"
    if method in _DEQUANTIZING_CONFIGS:
        config = f"quantization_config={_DEQUANTIZING_CONFIGS[method]}(dequantize=True)"
        advice = f", or dequantize it: {load}, {config}).{save}"
    elif method in _DEQUANTIZED_AFTER:
        advice = f", or dequantize it: {load}).dequantize().{save}"
    else:
        advice = "; Transformers does not dequantize this method"
    raise ValueError(
        f"{opened.name!r} is quantized (quant_method {method!r} in its config), and a student is trained on plain "
        f"weights: give the original model{advice}."
    )


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
    if source.gguf_file is None:
        digest.update(find_config(source).read_bytes())
    weights = find_weights(source)
    for path in sorted({weights.path, *(weights.path.parent / shard for shard in weights.files.values())}):
        digest.update(path.name.encode() + digest_file(path, _sha256))


def _sha256(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
