"""A reference before any weight is read: its config, checked, and where its files are."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from .checkpoints import SOURCE_ARGUMENTS, Source, commit_of
from .config_fields import require_causal_lm

Reference = str | os.PathLike[str] | PreTrainedModel

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
class OpenedReference:
    """A reference whose config was read: how it is called, where its files are, and its commit."""

    name: str
    config: PreTrainedConfig
    model: PreTrainedModel | None
    source: Source | None
    revision: str | None


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
    return open_reference(reference, dict(kwargs)).config


def open_reference(
    reference: Reference, options: dict[str, Any], only_model_type: str | None = None
) -> OpenedReference:
    """Read the reference's config; takes out of `options` what is meant for it, or for finding files."""
    given = options.pop("config", None)
    if isinstance(reference, PreTrainedModel):
        opened = _open_model(reference, given, options)
    else:
        opened = _open_files(reference, given, options)
    config = opened.config
    require_causal_lm(config.to_dict(), repr(opened.name))
    require_model_type(opened.name, config.model_type, only_model_type)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{opened.name!r} is quantized, and a student is trained on plain weights: give the original model."
        )
    return opened


def _open_model(reference: PreTrainedModel, given: Any, options: dict[str, Any]) -> OpenedReference:
    useless = [name for name in SOURCE_ARGUMENTS if options.get(name)]
    if useless:
        raise ValueError(f"A loaded model is not fetched from anywhere: leave out {', '.join(useless)}.")
    config = copy.deepcopy(given if isinstance(given, PreTrainedConfig) else reference.config)
    for name in [name for name in options if name not in _MODEL_ARGUMENTS and hasattr(config, name)]:
        setattr(config, name, options.pop(name))
    return OpenedReference(
        name=reference.name_or_path or type(reference).__name__,
        config=config,
        model=reference,
        source=None,
        revision=getattr(reference.config, "_commit_hash", None),
    )


def _open_files(reference: str | os.PathLike[str], given: Any, options: dict[str, Any]) -> OpenedReference:
    source = locate(reference, options)
    path = source.find("config.json")
    # From here on everything is read at one commit, even if the repository moves on.
    revision = commit_of(path) if path is not None else None
    source = replace(source, revision=revision or source.revision)
    if isinstance(given, PreTrainedConfig):
        config = copy.deepcopy(given)
    else:
        path = find_config(source if given is None else replace(source, reference=os.fspath(given), revision=None))
        # Read before Transformers does: an unknown model type is refused here, and its remote code never runs.
        require_causal_lm(read_config(path), repr(source.reference))
        for_config = {name: value for name, value in options.items() if name not in _MODEL_ARGUMENTS}
        config, unused = AutoConfig.from_pretrained(
            str(path.parent), return_unused_kwargs=True, **{**for_config, "trust_remote_code": False}
        )
        for name in for_config:
            if name not in unused and name != "trust_remote_code":
                del options[name]
    return OpenedReference(name=source.reference, config=config, model=None, source=source, revision=revision)


def locate(reference: Any, options: dict[str, Any]) -> Source:
    if not isinstance(reference, str | os.PathLike):
        raise TypeError(
            f"A reference is a Hub id, a folder with config.json or a loaded model, got a {type(reference).__name__}."
        )
    given = {name: options.pop(name) for name in SOURCE_ARGUMENTS if name in options}
    return Source(
        reference=str(os.fspath(reference)), **{name: value for name, value in given.items() if value is not None}
    )


def find_config(source: Source) -> Path:
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


def read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(values).__name__}.")
    return values


def require_model_type(name: str, model_type: str | None, only_model_type: str | None) -> None:
    if only_model_type is not None and model_type != only_model_type:
        raise ValueError(
            f"InheritedGPT2 loads GPT-2 models, and {name!r} has model_type {model_type!r}: use "
            "InheritedModelForCausalLM.from_pretrained, the same for every architecture."
        )


def refuse_adapter(opened: OpenedReference) -> None:
    """Raise a `ValueError` if an adapter lies beside the reference's weights: they are not all of the model then."""
    if opened.source is not None and opened.source.find("adapter_config.json") is not None:
        raise ValueError(
            f"{opened.name!r} holds an adapter beside its model: merge it (merge_and_unload) and save the result."
        )
