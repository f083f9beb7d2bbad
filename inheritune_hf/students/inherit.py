"""Build a student: an ordinary Transformers model that holds some of a reference's layers."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel

from .. import __version__
from ..config import PARTS, InherituneConfig
from ..layers import is_prefix, resolve_layers
from ..records import Lineage, encode, read_json
from .architectures import (
    Architecture,
    drop_tied,
    inspect_architecture,
    kept_names,
    name_in_reference,
    prediction_layers,
    random_tensors,
    sliced_config,
    sources_of,
    unknown_names,
    wrapper_names,
)
from .checkpoints import LazyTensor, lazy_copy
from .reference import (
    OpenedReference,
    Reference,
    find_config,
    locate,
    open_reference,
    refuse_adapter,
    refuse_quantized,
    resolve_dtype,
    with_one_dtype,
)

logger = logging.getLogger(__name__)

Choice = int | str | Sequence[int]

#: Seed of parts that are not inherited, the same as that of `TrainingArguments`.
DEFAULT_SEED = 42

# Heads that do not predict tokens, as files call their tensors.
_OTHER_HEAD = re.compile(r"^(score|classifier|classification_head|qa_outputs|reward_head|regression_head)\.")

# Arguments of `from_pretrained` that would change which tensors are loaded.
_REFUSED_ARGUMENTS = {
    "state_dict": "the weights come from the reference",
    "key_mapping": "renamed tensors cannot be told apart by layer; give a checkpoint with standard names",
}


def from_pretrained_inherited(
    reference: Reference,
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
            Seed of the parts that are not inherited; as in `TrainingArguments`.
        kwargs:
            Everything `from_pretrained` takes, such as `dtype` (defaults to `torch.float32`, because a student is
            going to be trained), `revision`, `token`, `gguf_file`, `device_map` or `attn_implementation`. With
            `text_model=True` the student is cut out of the text model inside a multimodal model. With
            `output_loading_info=True` a tuple of the student and the loading report is returned; with `strict=True` a
            reference is refused if it holds tensors of kept layers that its architecture does not know.

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
    recipe = config or InherituneConfig()
    if recipe.schedule and recipe.keep_layers == InherituneConfig.keep_layers:
        recipe = replace(recipe, keep_layers=recipe.schedule[0])  # which takes its place
    return cast(PreTrainedModel, _inherit(reference, recipe, (), kwargs, None, seed))


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
                Everything `from_pretrained` takes; `dtype` defaults to `torch.float32`. With `strict=True` tensors of
                kept layers that the architecture does not know are refused rather than named.

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


@dataclass(frozen=True, eq=False)
class Cut:
    """
    What a student takes from its reference, decided from configs alone: the same for building it and for `doctor`.

    `config` and `after` are the student's, `before` is the reference's architecture; `scales` are the factors of each
    kept block's queries, empty where none is scaled.
    """

    reference: OpenedReference
    layers: tuple[int, ...]
    parts: tuple[str, ...]
    config: PreTrainedConfig
    scales: tuple[float, ...]
    before: Architecture
    after: Architecture

    @property
    def left_out(self) -> list[str]:
        """Names of the student's tensors that are not inherited and begin random."""
        return [name for name in self.after.parameters if not self.after.is_inherited(name, self.parts)]

    def choose(self, names: Iterable[str]) -> dict[str, str]:
        """Return, for every kept tensor of `names` in files, its name for the student."""
        return kept_names(self.before, self.layers, names, self.parts)

    def check(self, tensors: Mapping[str, LazyTensor], names: Sequence[str]) -> tuple[str, ...]:
        """
        Refuse tensors that do not fill the student, and return what else the files hold for its layers.

        `tensors` are the kept ones, by name for the student; `names` those of all tensors in the files that hold them.
        In the names that are returned `*` stands for the layer.

        Raises:
            ValueError: If the weights are quantized, or their head is not one for language.
            RuntimeError: If a tensor is missing, or has another shape.
        """
        refuse_quantized(self.reference, tensors, names)
        sources = sources_of(self.after, tensors)
        head = next((name for name in names if _OTHER_HEAD.match(name)), None)
        if head is not None and not any(self.after.parts[name] == "lm_head" for name in sources):
            raise ValueError(
                f"{self.reference.name!r} is not a causal language model: its files hold {head} in place of a head "
                "that predicts tokens. Give the language model that it was made from."
            )
        needed = self.after.parameters.keys() - set(self.left_out)
        missing = [name for name in needed if sources.keys().isdisjoint(self.after.sharing(name))]
        mismatched = []
        for name, given in sources.items():
            shape = self.after.parameters[name]
            if given == [name]:
                fits = tensors[name].shape == shape
            else:  # joined on load, such as one tensor per expert: together they must be as many numbers
                fits = sum(math.prod(tensors[item].shape) for item in given) == math.prod(shape)
            if not fits:
                mismatched.append(name)
        self.refuse_gaps(missing, mismatched, names)
        return unknown_names(self.before, self.layers, names)

    def refuse_gaps(self, missing: Iterable[str], mismatched: Iterable[str], names: Sequence[str] = ()) -> None:
        """Raise a `RuntimeError` if tensors of the student are missing, or have another shape in the files."""
        complaints = []
        for complaint, found in (("no tensor for", list(missing)), ("another shape in", list(mismatched))):
            if found:
                shown = ", ".join(name_in_reference(self.before, self.layers, item) for item in sorted(found)[:5])
                complaints.append(f"{complaint} {shown}" + (f" and {len(found) - 5} more" if len(found) > 5 else ""))
        if complaints:
            wrapper = wrapper_names(self.before, names)
            advice = "Check that the config belongs to these weights."
            if wrapper is not None:
                advice = (
                    f"Their names hold {wrapper!r}, as a wrapper around the model leaves them: save the model inside "
                    "the wrapper (save_pretrained of the unwrapped model), or rename the tensors."
                )
            raise RuntimeError(
                f"The weights of {self.reference.name!r} do not fill the student: {'; '.join(complaints)}. {advice}"
            )


def plan_cut(opened: OpenedReference, recipe: InherituneConfig, choice: Choice | None = None) -> Cut:
    """Decide what a student takes from a reference; the layers are the recipe's if no `choice` is given."""
    before = opened.architecture
    layers = resolve_layers(recipe.keep_layers if choice is None else choice, before.depth, before.prefix_sizes)
    config = sliced_config(opened.config, layers)
    scales = query_scales(opened.config, layers, recipe)
    return Cut(opened, layers, recipe.inherited_parts, config, scales, before, inspect_architecture(config))


def moves_scaled_blocks(config: PreTrainedConfig, layers: Sequence[int]) -> bool:
    """Return whether `layers` move blocks whose attention is scaled by position."""
    return bool(getattr(config, "scale_attn_by_inverse_layer_idx", False)) and not is_prefix(layers)


def query_scales(config: PreTrainedConfig, layers: Sequence[int], recipe: InherituneConfig) -> tuple[float, ...]:
    """
    Return by what each kept block's queries are multiplied so that it computes what it computed at its old position.

    GPT-2 with `scale_attn_by_inverse_layer_idx` divides the attention logits of the block at position `i` by `i + 1`
    (PAPER: Appendix A). A moved block would be rescaled, so the difference goes into its weights, unless the recipe
    says `attention_scale="position"`.

    Nothing is returned where none is multiplied.
    """
    keeps = recipe.attention_scale == "keep" and "attention" in recipe.inherited_parts
    if not keeps or not moves_scaled_blocks(config, layers):
        return ()
    return tuple((position + 1) / (layer + 1) for position, layer in enumerate(layers))


def scale_queries(student: PreTrainedModel, scales: Sequence[float]) -> None:
    """Multiply the queries of every block of a GPT-2 by its factor, in the weights and biases that make them."""
    with torch.no_grad():
        for block, scale in zip(cast(Any, student).transformer.h, scales, strict=True):
            width = block.attn.embed_dim
            if block.attn.c_attn.weight.is_meta:
                raise ValueError(
                    "The queries of a block that moves are rescaled (scale_attn_by_inverse_layer_idx), but its weights "
                    "are offloaded: give a device_map that offloads none, or attention_scale='position'."
                )
            block.attn.c_attn.weight[:, :width] *= scale
            block.attn.c_attn.bias[:width] *= scale


def query_rows(architecture: Architecture, name: str) -> tuple[int, int] | None:
    """Return which block of a GPT-2 makes its queries by the tensor `name`, and with how many columns, if any does."""
    found = re.fullmatch(rf"{re.escape(architecture.block_list)}\.(\d+)\.attn\.c_attn\.(weight|bias)", name)
    return (int(found[1]), architecture.parameters[name][-1] // 3) if found else None


def _inherit(
    reference: Reference,
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
    strict = bool(options.pop("strict", False))
    opened = open_reference(reference, **options)
    _require_model_type(opened.name, opened.config.model_type, only_model_type)
    options = {"dtype": torch.float32, **opened.options}

    aliases = {"num_hidden_layers", opened.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")}
    for name in sorted(aliases & {*options, *opened.changes}):
        raise ValueError(f"{name} cannot be combined with keep_layers, which says how deep the student is.")

    cut = plan_cut(opened, recipe)
    _require_whole(cut)
    kept, names = opened.open_tensors(cut.choose, use_safetensors, weights_only)
    tensors = drop_tied(cut.after, kept)
    unknown = cut.check(tensors, names)
    if unknown:
        _report_unknown(opened.name, unknown, strict)
    dtype = resolve_dtype(options["dtype"], cut.config, tensors)
    options["dtype"] = dtype
    model_class: Any = cut.after.model_class
    if isinstance(dtype, torch.dtype) and not _keeps_some_in_float32(model_class):
        tensors = {name: tensor.in_dtype(dtype) for name, tensor in tensors.items()}
    cut.config.inheritune = encode(_lineage(cut, seed, unknown))
    fresh = {name: lazy_copy(tensor) for name, tensor in random_tensors(cut.config, cut.left_out, seed).items()}
    student, info = model_class.from_pretrained(
        None, *model_args, config=cut.config, state_dict={**tensors, **fresh}, output_loading_info=True, **options
    )
    del fresh
    cut.refuse_gaps(info["missing_keys"], [entry[0] for entry in info["mismatched_keys"]])
    _own_memory(student)
    if cut.scales:
        scale_queries(student, cut.scales)

    student.name_or_path = student.config.name_or_path = opened.name
    if options.get("generation_config") is None:
        student.generation_config = _generation_config(opened)
    if getattr(student.generation_config, "use_mtp", None) is not None:
        student.generation_config.use_mtp = None  # a student has no layers of multi-token prediction
    return (student, info) if with_info else student


def _report_unknown(name: str, unknown: Sequence[str], strict: bool) -> None:
    message = (
        f"{name!r} holds tensors of what is kept that its architecture does not know, and the student has nothing of "
        f"them: {', '.join(unknown)}."
    )
    if strict:
        raise ValueError(f"{message} Give a reference whose architecture Transformers knows, or leave out strict.")
    logger.warning("%s", message)


def _load_whole(
    reference: Reference,
    model_args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    only_model_type: str | None,
) -> Any:
    if isinstance(reference, PreTrainedModel | OpenedReference):
        raise ValueError("A loaded model needs keep_layers, which says what to copy from it.")
    options = {"dtype": torch.float32, **with_one_dtype(kwargs)}
    options.pop("strict", None)  # nothing is left out of a whole model
    if options.get("gguf_file") or options.get("text_model"):
        if options.pop("output_loading_info", False):
            raise ValueError("output_loading_info is not known of a whole model that is rebuilt; leave it out.")
        opened = open_reference(reference, **options)
        _require_model_type(opened.name, opened.config.model_type, only_model_type)
        return opened.load()
    options = {name: value for name, value in options.items() if name not in ("gguf_file", "text_model")}
    source, given = locate(reference, dict(options)), options.get("config")
    model_type: str | None
    if isinstance(given, PreTrainedConfig):
        model_type = given.model_type
    else:
        config_source = source if given is None else replace(source, reference=os.fspath(given))
        model_type = read_json(find_config(config_source)).get("model_type")
    _require_model_type(source.reference, model_type, only_model_type)
    loader: Any = AutoModelForCausalLM if only_model_type is None else GPT2LMHeadModel
    return loader.from_pretrained(reference, *model_args, **options)


def _require_model_type(name: str, model_type: str | None, only_model_type: str | None) -> None:
    if only_model_type is not None and model_type != only_model_type:
        raise ValueError(
            f"InheritedGPT2 loads GPT-2 models, and {name!r} has model_type {model_type!r}: use "
            "InheritedModelForCausalLM.from_pretrained, the same for every architecture."
        )


def _require_whole(cut: Cut) -> None:
    """Raise a `ValueError` if kept weights of a reference are offloaded, or changed by an adapter beside them."""
    opened = cut.reference
    state = {} if opened.model is None else opened.model.state_dict()
    for name in cut.choose(name for name, tensor in state.items() if getattr(tensor, "is_meta", False)):
        raise ValueError(f"{opened.name!r} is not wholly in memory ({name} is not): load it without offloading.")
    refuse_adapter(opened)


def _keeps_some_in_float32(model_class: Any) -> bool:
    """Return whether some of the model's parameters stay in float32 whatever type it is loaded in."""
    names = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    return any(getattr(model_class, name, None) for name in names)


def _own_memory(student: PreTrainedModel) -> None:
    """Copy what is a part of a larger tensor, as Transformers leaves it where it splits one."""
    for tensor in itertools.chain(student.parameters(), student.buffers()):
        if not tensor.is_meta and tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor.data = tensor.data.clone()


def _generation_config(opened: OpenedReference) -> GenerationConfig:
    if opened.source is None:
        # A bare model, without a head, has none.
        given = getattr(opened.model, "generation_config", None)
        made = GenerationConfig.from_model_config(opened.config) if given is None else copy.deepcopy(given)
        made.update(**opened.changes)
        return made
    source = opened.source
    path = source.find("generation_config.json") if source.gguf_file is None else None
    if path is not None:
        return GenerationConfig.from_pretrained(str(path.parent), **opened.changes)
    path = source.find("config.json")
    if path is not None and opened.multimodal is None and source.gguf_file is None:
        # As `from_pretrained` does: old configs hold settings of `generate`, which a loaded config leaves out.
        return GenerationConfig.from_pretrained(
            str(path.parent), config_file_name="config.json", _from_model_config=True, **opened.changes
        )
    return GenerationConfig.from_model_config(opened.config)


def _lineage(cut: Cut, seed: int, unknown: tuple[str, ...]) -> Lineage:
    return Lineage(
        **cut.reference.origin,
        reference_layers=cut.before.depth,
        kept_layers=cut.layers,
        versions={
            "inheritune_hf": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        inherited=cut.parts,
        seed=None if cut.parts == PARTS else seed,
        query_scales=cut.scales,
        unknown_tensors=unknown,
        prediction_layers=prediction_layers(cut.reference.config),
    )
