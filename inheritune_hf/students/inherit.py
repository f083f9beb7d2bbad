"""Build a student: an ordinary Transformers model that holds some of a reference's layers."""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel

from .. import __version__
from ..configuration import PARTS, InherituneConfig
from ..layers import resolve_layers
from ..records import Lineage, encode
from .architectures import (
    Architecture,
    inspect_architecture,
    keeps_some_in_float32,
    kept_names,
    left_out_names,
    name_in_reference,
    random_tensors,
    sources_of,
    with_tied_names,
    without_twins,
)
from .attention_scale import query_scales, scale_queries
from .checkpoints import Choose, find_weights, open_tensors
from .config_fields import sliced_config
from .reference import (
    OpenedReference,
    Reference,
    locate,
    open_reference,
    read_config,
    refuse_adapter,
    with_one_dtype,
)
from .tensors import Unread, unread_once, unread_tensor

Choice = int | str | Sequence[int]

#: Seed of parts that do not come along, the same as that of `TrainingArguments`.
DEFAULT_SEED = 42

# Arguments of `from_pretrained` that would load something else than the kept tensors as they are.
_REFUSED_ARGUMENTS = {
    "state_dict": "the weights come from the reference",
    "gguf_file": "GGUF files cannot be read layer by layer; give the original checkpoint",
    "key_mapping": "renamed tensors cannot be told apart by layer; give a checkpoint with standard names",
}


def from_pretrained_inherited(
    reference: Reference | OpenedReference,
    config: InherituneConfig | None = None,
    *,
    seed: int = DEFAULT_SEED,
    **kwargs: Any,
) -> PreTrainedModel:
    """
    Build a student that inherits layers of `reference`; only the kept tensors are read.

    The student is a plain Transformers model in evaluation mode. It shares nothing with the reference, which is never
    changed; nothing in it is random but the parts that the recipe's `inherit` leaves out; its parameters own their
    memory. `student.config.inheritune` says where it comes from.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`):
            Hub id, folder with config.json, or a loaded causal language model.
        config (`InherituneConfig`, *optional*):
            The recipe; its `keep_layers` says which layers are inherited, and its `inherit` which parts. Without it,
            all of the first half.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the parts that do not come along; as in `TrainingArguments`.
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
    return cast(PreTrainedModel, _inherit(reference, config or InherituneConfig(), (), kwargs, None, seed))


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
        pretrained_model_name_or_path: Reference | OpenedReference,
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
        layers = (
            list(keep_layers) if isinstance(keep_layers, Sequence) and not isinstance(keep_layers, str) else keep_layers
        )
        recipe = InherituneConfig(keep_layers=layers)
        return _inherit(pretrained_model_name_or_path, recipe, model_args, kwargs, cls._model_type)


class InheritedGPT2(InheritedModelForCausalLM):
    """
    Load a GPT-2 student, like an Auto class.

    It is not instantiated: `InheritedGPT2.from_pretrained("gpt2-xl", keep_layers=24)` returns a plain
    `GPT2LMHeadModel`.
    """

    _model_type = "gpt2"


def _inherit(
    reference: Reference | OpenedReference,
    recipe: InherituneConfig,
    model_args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    only_model_type: str | None,
    seed: int = DEFAULT_SEED,
) -> Any:
    options = dict(kwargs)
    for name, reason in _REFUSED_ARGUMENTS.items():
        if options.pop(name, None) is not None:
            raise ValueError(f"{name} cannot be combined with keep_layers: {reason}.")
    use_safetensors = options.pop("use_safetensors", None)
    weights_only = bool(options.pop("weights_only", True))
    with_info = bool(options.pop("output_loading_info", False))
    opened = open_reference(reference, **options)
    _require_model_type(opened.name, opened.config.model_type, only_model_type)
    options = {"dtype": torch.float32, **opened.options}

    aliases = {"num_hidden_layers", opened.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")}
    for name in sorted(aliases & {*options, *opened.changes}):
        raise ValueError(f"{name} cannot be combined with keep_layers, which says how deep the student is.")

    architecture = inspect_architecture(opened.config)
    layers = resolve_layers(recipe.keep_layers, architecture.depth, architecture.prefix_sizes)
    parts = recipe.inherited_parts
    student_config = sliced_config(opened.config, layers)
    scales = query_scales(opened.config, layers, recipe)
    student_config.inheritune = encode(_lineage(opened, architecture, layers, parts, seed, scales))
    blank = inspect_architecture(student_config)

    tensors = _kept_tensors(
        opened, partial(kept_names, architecture, layers, parts=parts), use_safetensors, weights_only
    )
    tensors = without_twins(blank, tensors)
    left_out = left_out_names(blank, parts)
    missing, mismatched = _gaps(blank, tensors, left_out)
    _refuse_gaps(opened.name, partial(name_in_reference, architecture, layers), missing, mismatched)
    dtype = _resolve_dtype(options["dtype"], student_config, tensors)
    options["dtype"] = dtype
    model_class: Any = blank.model_class
    if isinstance(dtype, torch.dtype) and not keeps_some_in_float32(model_class):
        tensors = {name: unread.in_dtype(dtype) for name, unread in tensors.items()}
    fresh = {name: unread_tensor(tensor) for name, tensor in random_tensors(student_config, left_out, seed).items()}
    student, info = model_class.from_pretrained(
        None, *model_args, config=student_config, state_dict={**tensors, **fresh}, output_loading_info=True, **options
    )
    del fresh
    _refuse_gaps(
        opened.name,
        partial(name_in_reference, architecture, layers),
        info["missing_keys"],
        [entry[0] for entry in info["mismatched_keys"]],
    )
    _own_memory(student)
    if scales:
        scale_queries(student, scales)

    student.name_or_path = student.config.name_or_path = opened.name
    if options.get("generation_config") is None:
        student.generation_config = _generation_config(opened)
    return (student, info) if with_info else student


def _load_whole(
    reference: Reference | OpenedReference,
    model_args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    only_model_type: str | None,
) -> Any:
    if isinstance(reference, PreTrainedModel | OpenedReference):
        raise ValueError("A loaded model needs keep_layers, which says what to copy from it.")
    options = {"dtype": torch.float32, **with_one_dtype(kwargs)}
    source, given = locate(reference, dict(options)), options.get("config")
    model_type: str | None
    if isinstance(given, PreTrainedConfig):
        model_type = given.model_type
    else:
        config = read_config(source if given is None else replace(source, reference=os.fspath(given)))
        model_type = config.get("model_type")
    _require_model_type(source.reference, model_type, only_model_type)
    loader: Any = AutoModelForCausalLM if only_model_type is None else GPT2LMHeadModel
    return loader.from_pretrained(reference, *model_args, **options)


def _require_model_type(name: str, model_type: str | None, only_model_type: str | None) -> None:
    if only_model_type is not None and model_type != only_model_type:
        raise ValueError(
            f"InheritedGPT2 loads GPT-2 models, and {name!r} has model_type {model_type!r}: use "
            "InheritedModelForCausalLM.from_pretrained, the same for every architecture."
        )


def _kept_tensors(
    opened: OpenedReference, choose: Choose, use_safetensors: bool | None, weights_only: bool
) -> dict[str, Unread]:
    """Return the kept tensors under their names for the student, unread."""
    if opened.source is None:
        state = cast(PreTrainedModel, opened.model).state_dict()
        absent = [name for name in choose(state) if state[name].is_meta]
        if absent:
            raise ValueError(
                f"{opened.name!r} is not wholly in memory ({absent[0]} is not): load it without offloading."
            )
        opened_once = unread_once(state, unread_tensor)
        return {given: opened_once[name] for name, given in choose(state).items()}
    refuse_adapter(opened)
    return open_tensors(find_weights(opened.source, use_safetensors, weights_only), choose)


def _gaps(student: Architecture, tensors: Mapping[str, Unread], left_out: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return which of the student's tensors are not there, and which have another shape."""
    sources = sources_of(student, tensors)
    filled = with_tied_names(student, sources) | set(left_out)
    missing = [name for name in student.parameters if name not in filled]
    mismatched = []
    for name, given in sources.items():
        shape = student.parameters[name]
        if given == [name]:
            fits = tensors[name].shape == shape
        else:  # joined on load, such as one tensor per expert: together they must be as many numbers
            fits = sum(math.prod(tensors[item].shape) for item in given) == math.prod(shape)
        if not fits:
            mismatched.append(name)
    return missing, mismatched


def _refuse_gaps(
    name: str, in_reference: Callable[[str], str], missing: Iterable[str], mismatched: Iterable[str]
) -> None:
    complaints = []
    for complaint, names in (("no tensor for", list(missing)), ("another shape in", list(mismatched))):
        if names:
            shown = ", ".join(in_reference(item) for item in sorted(names)[:5])
            complaints.append(f"{complaint} {shown}" + (f" and {len(names) - 5} more" if len(names) > 5 else ""))
    if complaints:
        raise RuntimeError(
            f"The weights of {name!r} do not fill the student: {'; '.join(complaints)}. "
            "Check that the config belongs to these weights."
        )


def _resolve_dtype(given: Any, config: PreTrainedConfig, tensors: Mapping[str, Unread]) -> Any:
    """Return the type to load in; `from_pretrained` would look at the tensors for "auto", and cannot before reading."""
    if given == "auto":
        stored = (tensor.dtype for tensor in tensors.values() if tensor.dtype.is_floating_point)
        return config.dtype or next(stored, torch.float32)
    return getattr(torch, given) if isinstance(given, str) and hasattr(torch, given) else given


def _own_memory(student: PreTrainedModel) -> None:
    """Copy what is a part of a larger tensor, as Transformers leaves it where it splits one."""
    for tensor in itertools.chain(student.parameters(), student.buffers()):
        if not tensor.is_meta and tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor.data = tensor.data.clone()


def _generation_config(opened: OpenedReference) -> GenerationConfig:
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


def _lineage(
    opened: OpenedReference,
    architecture: Architecture,
    layers: tuple[int, ...],
    parts: tuple[str, ...],
    seed: int,
    scales: tuple[float, ...],
) -> Lineage:
    return Lineage(
        reference=opened.name,
        revision=opened.commit,
        reference_layers=architecture.depth,
        kept_layers=layers,
        versions={
            "inheritune_hf": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        inherited=parts,
        seed=None if parts == PARTS else seed,
        query_scales=scales,
    )
