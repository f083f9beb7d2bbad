"""Build a student: an ordinary Transformers model that holds some of a reference's layers."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from .. import __version__
from ..configuration import InherituneConfig
from ..records import Lineage
from .architectures import Architecture, inspect_architecture, kept_names, require_causal_lm, sliced_config
from .checkpoints import SOURCE_ARGUMENTS, Source, commit_of, find_weights, open_tensors
from .selection import resolve_layers

Reference = str | os.PathLike[str] | PreTrainedModel
Choice = int | str | Sequence[int]

# Arguments of `from_pretrained` that would load something else than the kept tensors as they are.
_REFUSED_ARGUMENTS = {
    "state_dict": "the weights come from the reference",
    "gguf_file": "GGUF files cannot be read layer by layer; give the original checkpoint",
    "key_mapping": "renamed tensors cannot be told apart by layer; give a checkpoint with standard names",
}

# Arguments that a config would swallow although they are meant for the model.
_MODEL_ARGUMENTS = (
    "attn_implementation",
    "dtype",
    "experts_implementation",
    "generation_config",
    "quantization_config",
    "torch_dtype",
)


@dataclass(frozen=True)
class InheritancePlan:
    """
    What cutting a reference would give, known before any weight is read.

    Args:
        reference (`str`): Id or path of the reference, as it was given.
        model_type (`str`): Its architecture, such as `gpt2`.
        depth (`int`): Its depth, in layers.
        kept_layers (`tuple[int, ...]`): Layers that the student would hold, 0-based, in order.
        dropped_layers (`tuple[int, ...]`): Layers that it would not hold.
        parameters_before (`int`): Parameters of the reference; shared ones count once.
        parameters_after (`int`): Parameters of the student.
    """

    reference: str
    model_type: str
    depth: int
    kept_layers: tuple[int, ...]
    dropped_layers: tuple[int, ...]
    parameters_before: int
    parameters_after: int


@dataclass(frozen=True)
class _Opened:
    """A reference whose config was read: how it is called, where its files are, and its commit."""

    name: str
    config: PreTrainedConfig
    model: PreTrainedModel | None
    source: Source | None
    revision: str | None


def from_pretrained_inherited(
    reference: Reference, config: InherituneConfig | None = None, **kwargs: Any
) -> PreTrainedModel:
    """
    Build a student that inherits layers of `reference`; only the kept tensors are read.

    The student is a plain Transformers model in evaluation mode, with nothing random in it and nothing shared with the
    reference, which is never changed. Its parameters own their memory. `student.config.inheritune` says where it comes
    from.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`):
            Hub id, folder with config.json, or a loaded causal language model.
        config (`InherituneConfig`, *optional*):
            The recipe; its `keep_layers` says which layers are inherited. Without it, the first half.
        kwargs:
            Everything `from_pretrained` takes, such as `dtype` (defaults to `torch.float32`, because a student is
            going to be trained), `revision`, `token`, `device_map` or `attn_implementation`. With
            `output_loading_info=True` a tuple of the student and the loading report is returned.

    Returns:
        `PreTrainedModel`: The student, such as a `GPT2LMHeadModel`.

    Raises:
        TypeError: If `config` is not an `InherituneConfig`.
        ValueError: If the reference is not a causal language model of a supported type, or has no such layers.
        OSError: If there is no model at `reference`, or its weights are missing or incomplete.
        RuntimeError: If the weights do not fill the student.
    """
    if config is not None and not isinstance(config, InherituneConfig):
        raise TypeError(
            f"config must be an InherituneConfig, got a {type(config).__name__}; to load with a changed model config "
            "use InheritedModelForCausalLM.from_pretrained(reference, keep_layers=..., config=...)."
        )
    choice = (config or InherituneConfig()).keep_layers
    return cast(PreTrainedModel, _inherit(reference, choice, (), kwargs, only_model_type=None))


class InheritedModelForCausalLM:
    """
    Load a student of any supported architecture, like an Auto class.

    It is not instantiated: `InheritedModelForCausalLM.from_pretrained(reference, keep_layers=12)` returns the plain
    model class of the reference, such as `LlamaForCausalLM`.
    """

    _model_type: str | None = None

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        name = type(self).__name__
        raise TypeError(f"{name} is not instantiated: use {name}.from_pretrained(reference, keep_layers=12).")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Reference,
        *model_args: Any,
        keep_layers: Choice | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Load a model of which only `keep_layers` are kept, or the whole model without `keep_layers`.

        Args:
            pretrained_model_name_or_path (`str`, `os.PathLike` or `PreTrainedModel`):
                Hub id, folder with config.json or, with `keep_layers`, a loaded causal language model.
            model_args:
                Passed on to the model class.
            keep_layers (`int`, `str` or sequence of `int`, *optional*):
                Layers to inherit: `12`, `"half"`, `"first:12"`, `"last:8"`, `"ends:4+4"`, `"every:2"`, `"spaced:12"`,
                `"0:8,10"` or a list. Without it nothing is cut: a published student loads whole.
            kwargs:
                Everything `from_pretrained` takes; `dtype` defaults to `torch.float32`.

        Returns:
            The plain model, such as a `GPT2LMHeadModel`; with `output_loading_info=True` a tuple of it and the report.

        Raises:
            ValueError: If the reference is not a causal language model of a supported type, or has no such layers.
            OSError: If there is no model, or its weights are missing or incomplete.
            RuntimeError: If the weights do not fill the student.
        """
        if keep_layers is None:
            return _load_whole(pretrained_model_name_or_path, model_args, kwargs, cls._model_type)
        return _inherit(pretrained_model_name_or_path, keep_layers, model_args, kwargs, cls._model_type)


class InheritedGPT2(InheritedModelForCausalLM):
    """
    Load a GPT-2 student, like an Auto class.

    It is not instantiated: `InheritedGPT2.from_pretrained("gpt2-xl", keep_layers=24)` returns a plain
    `GPT2LMHeadModel`.
    """

    _model_type = "gpt2"


def load_reference_config(reference: Reference, **kwargs: Any) -> PreTrainedConfig:
    """
    Return the config of `reference`, refused if no student can be made of it; no weights are read.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`):
            Hub id, folder with config.json, or a loaded causal language model.
        kwargs:
            Where files come from (`revision`, `token`, `cache_dir`, `subfolder`, `local_files_only`,
            `force_download`), and config fields to change.

    Returns:
        `PreTrainedConfig`: A copy that can be changed freely.

    Raises:
        ValueError: If the reference is not a causal language model of a supported type.
        OSError: If there is no model at `reference`.
    """
    return _open_reference(reference, dict(kwargs)).config


def plan_inheritance(reference: Reference, choice: Choice, **kwargs: Any) -> InheritancePlan:
    """
    Return what a student of `reference` that keeps `choice` would be; no weights are read.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`):
            Hub id, folder with config.json, or a loaded causal language model.
        choice (`int`, `str` or sequence of `int`):
            The layers to keep, as in `keep_layers`.
        kwargs:
            As in `load_reference_config`.

    Returns:
        `InheritancePlan`: Layers kept and dropped, parameters before and after.

    Raises:
        ValueError: If the reference is not a causal language model of a supported type, or has no such layers.
        OSError: If there is no model at `reference`.
    """
    opened = _open_reference(reference, dict(kwargs))
    before = inspect_architecture(opened.config)
    kept = resolve_layers(choice, before.depth)
    after = inspect_architecture(sliced_config(opened.config, kept))
    return InheritancePlan(
        reference=opened.name,
        model_type=str(opened.config.model_type),
        depth=before.depth,
        kept_layers=kept,
        dropped_layers=tuple(layer for layer in range(before.depth) if layer not in kept),
        parameters_before=before.parameter_count,
        parameters_after=after.parameter_count,
    )


def _inherit(
    reference: Reference,
    choice: Choice,
    model_args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    only_model_type: str | None,
) -> Any:
    options = {"dtype": torch.float32, **_with_one_dtype(kwargs)}
    for name, reason in _REFUSED_ARGUMENTS.items():
        if options.pop(name, None) is not None:
            raise ValueError(f"{name} cannot be combined with keep_layers: {reason}.")
    use_safetensors = options.pop("use_safetensors", None)
    weights_only = bool(options.pop("weights_only", True))
    with_info = bool(options.pop("output_loading_info", False))
    opened = _open_reference(reference, options, only_model_type)

    aliases = {"num_hidden_layers", opened.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")}
    for name in sorted(aliases & set(kwargs)):
        raise ValueError(f"{name} cannot be combined with keep_layers, which says how deep the student is.")

    architecture = inspect_architecture(opened.config)
    layers = resolve_layers(choice, architecture.depth)
    student_config = sliced_config(opened.config, layers)
    student_config.inheritune = _lineage(opened, architecture, layers).to_dict()
    student_architecture = inspect_architecture(student_config)

    wanted = kept_names(architecture, layers)
    with _kept_tensors(opened, wanted, use_safetensors, weights_only) as tensors:
        missing, mismatched = _gaps(student_architecture, tensors)
        _refuse_gaps(opened.name, wanted, missing, mismatched)
        if options["dtype"] == "auto" and student_config.dtype is None:
            # `from_pretrained` looks at the tensors for this, and cannot with slices.
            options["dtype"] = next(
                read.dtype for read in (t[...] for t in tensors.values()) if read.is_floating_point()
            )
        model_class: Any = student_architecture.model_class
        student, info = model_class.from_pretrained(
            None, *model_args, config=student_config, state_dict=tensors, output_loading_info=True, **options
        )
        _own_memory(student)
    _refuse_gaps(opened.name, wanted, info["missing_keys"], [entry[0] for entry in info["mismatched_keys"]])

    student.name_or_path = student.config.name_or_path = opened.name
    if options.get("generation_config") is None:
        student.generation_config = _generation_config(opened)
    return (student, info) if with_info else student


def _load_whole(
    reference: Reference, model_args: tuple[Any, ...], kwargs: Mapping[str, Any], only_model_type: str | None
) -> Any:
    if isinstance(reference, PreTrainedModel):
        raise ValueError("A loaded model needs keep_layers, which says what to copy from it.")
    options = {"dtype": torch.float32, **_with_one_dtype(kwargs)}
    source, given = _locate(reference, dict(options)), options.get("config")
    model_type: str | None
    if isinstance(given, PreTrainedConfig):
        model_type = given.model_type
    else:
        path = _find_config(source if given is None else replace(source, reference=os.fspath(given)))
        model_type = _read_json(path).get("model_type")
    _require_model_type(source.reference, model_type, only_model_type)
    loader: Any = AutoModelForCausalLM if only_model_type is None else GPT2LMHeadModel
    return loader.from_pretrained(reference, *model_args, **options)


def _open_reference(reference: Reference, options: dict[str, Any], only_model_type: str | None = None) -> _Opened:
    """Read the reference's config; takes out of `options` what is meant for it, or for finding files."""
    given = options.pop("config", None)
    if isinstance(reference, PreTrainedModel):
        opened = _open_model(reference, given, options)
    else:
        opened = _open_files(reference, given, options)
    config = opened.config
    _require_supported(config.to_dict(), opened.name)
    _require_model_type(opened.name, config.model_type, only_model_type)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{opened.name!r} is quantized, and a student is trained on plain weights: give the original model."
        )
    return opened


def _open_model(reference: PreTrainedModel, given: Any, options: dict[str, Any]) -> _Opened:
    useless = [name for name in SOURCE_ARGUMENTS if options.get(name)]
    if useless:
        raise ValueError(f"A loaded model is not fetched from anywhere: leave out {', '.join(useless)}.")
    config = copy.deepcopy(given if isinstance(given, PreTrainedConfig) else reference.config)
    for name in [name for name in options if name not in _MODEL_ARGUMENTS and hasattr(config, name)]:
        setattr(config, name, options.pop(name))
    return _Opened(
        name=reference.name_or_path or type(reference).__name__,
        config=config,
        model=reference,
        source=None,
        revision=getattr(reference.config, "_commit_hash", None),
    )


def _open_files(reference: str | os.PathLike[str], given: Any, options: dict[str, Any]) -> _Opened:
    source = _locate(reference, options)
    path = source.find("config.json")
    # From here on everything is read at one commit, even if the repository moves on.
    revision = commit_of(path) if path is not None else None
    source = replace(source, revision=revision or source.revision)
    if isinstance(given, PreTrainedConfig):
        config = copy.deepcopy(given)
    else:
        path = _find_config(source if given is None else replace(source, reference=os.fspath(given), revision=None))
        # Read before Transformers does: an unknown model type is refused here, and its remote code never runs.
        _require_supported(_read_json(path), source.reference)
        for_config = {name: value for name, value in options.items() if name not in _MODEL_ARGUMENTS}
        config, unused = AutoConfig.from_pretrained(
            str(path.parent), return_unused_kwargs=True, **{**for_config, "trust_remote_code": False}
        )
        for name in for_config:
            if name not in unused and name != "trust_remote_code":
                del options[name]
    return _Opened(name=source.reference, config=config, model=None, source=source, revision=revision)


def _locate(reference: Any, options: dict[str, Any]) -> Source:
    if not isinstance(reference, str | os.PathLike):
        raise TypeError(
            f"A reference is a Hub id, a folder with config.json or a loaded model, got a {type(reference).__name__}."
        )
    given = {name: options.pop(name) for name in SOURCE_ARGUMENTS if name in options}
    return Source(
        reference=str(os.fspath(reference)), **{name: value for name, value in given.items() if value is not None}
    )


def _find_config(source: Source) -> Path:
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(values).__name__}.")
    return values


def _require_supported(values: Mapping[str, Any], name: str) -> None:
    require_causal_lm(
        values.get("model_type"),
        is_decoder=bool(values.get("is_decoder", False)),
        is_encoder_decoder=bool(values.get("is_encoder_decoder", False)),
        reference=repr(name),
    )


def _require_model_type(name: str, model_type: str | None, only_model_type: str | None) -> None:
    if only_model_type is not None and model_type != only_model_type:
        raise ValueError(
            f"InheritedGPT2 loads GPT-2 models, and {name!r} has model_type {model_type!r}: use "
            "InheritedModelForCausalLM.from_pretrained, the same for every architecture."
        )


def _with_one_dtype(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with `torch_dtype`, the older name, as `dtype`; None stands for the default."""
    options = dict(kwargs)
    older = options.pop("torch_dtype", None)
    dtype = options.pop("dtype", None)
    dtype = older if dtype is None else dtype
    return options if dtype is None else {**options, "dtype": dtype}


@contextmanager
def _kept_tensors(
    opened: _Opened, wanted: Mapping[str, str], use_safetensors: bool | None, weights_only: bool
) -> Iterator[dict[str, Any]]:
    """Yield the kept tensors under their names in the student, unread where they are in files."""
    if opened.source is None:
        state = cast(PreTrainedModel, opened.model).state_dict()
        tensors = {wanted[name]: tensor for name, tensor in state.items() if name in wanted}
        absent = [name for name, tensor in tensors.items() if tensor.is_meta]
        if absent:
            raise ValueError(
                f"{opened.name!r} is not wholly in memory ({absent[0]} is not): load it without offloading."
            )
        yield tensors
        return
    if opened.source.find("adapter_config.json") is not None:
        raise ValueError(
            f"{opened.name!r} holds an adapter beside its model: merge it (merge_and_unload) and save the result."
        )
    with open_tensors(find_weights(opened.source, use_safetensors, weights_only), wanted) as tensors:
        yield tensors


def _gaps(student: Architecture, tensors: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return which of the student's tensors are not there, and which have another shape."""
    filled = set(tensors)
    for target, origin in student.tied.items():
        if target in filled or origin in filled:
            filled |= {target, origin}
    missing = [name for name in student.parameters if name not in filled]
    mismatched = [name for name, tensor in tensors.items() if _shape(tensor) != student.parameters[name]]
    return missing, mismatched


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape if isinstance(tensor, torch.Tensor) else tensor.get_shape())


def _refuse_gaps(name: str, wanted: Mapping[str, str], missing: Iterable[str], mismatched: Iterable[str]) -> None:
    in_reference: dict[str, str] = {}
    for name_in_file, name_in_student in wanted.items():
        in_reference.setdefault(name_in_student, name_in_file)
    complaints = []
    for complaint, names in (("no tensor for", list(missing)), ("another shape in", list(mismatched))):
        if names:
            shown = ", ".join(in_reference.get(item, item) for item in sorted(names)[:5])
            complaints.append(f"{complaint} {shown}" + (f" and {len(names) - 5} more" if len(names) > 5 else ""))
    if complaints:
        raise RuntimeError(
            f"The weights of {name!r} do not fill the student: {'; '.join(complaints)}. "
            "Check that the config belongs to these weights."
        )


def _own_memory(student: PreTrainedModel) -> None:
    """Copy every tensor: until then it may be the reference's own memory, or its file."""
    for tensor in itertools.chain(student.parameters(), student.buffers()):
        if not tensor.is_meta:
            tensor.data = tensor.data.clone()


def _generation_config(opened: _Opened) -> GenerationConfig:
    if opened.source is None:
        # A bare model, without a head, has none.
        given = getattr(opened.model, "generation_config", None)
        return GenerationConfig.from_model_config(opened.config) if given is None else copy.deepcopy(given)
    source = opened.source
    path = source.find("generation_config.json")
    if path is not None:
        return GenerationConfig.from_pretrained(str(path.parent))
    path = source.find("config.json")
    if path is not None:
        # As `from_pretrained` does: old configs hold settings of `generate`, which a loaded config leaves out.
        return GenerationConfig.from_pretrained(
            str(path.parent), config_file_name="config.json", _from_model_config=True
        )
    return GenerationConfig.from_model_config(opened.config)


def _lineage(opened: _Opened, architecture: Architecture, layers: tuple[int, ...]) -> Lineage:
    return Lineage(
        reference=opened.name,
        revision=opened.revision,
        reference_layers=architecture.depth,
        kept_layers=layers,
        versions={
            "inheritune_hf": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
    )
