"""Keep losses of references, and find them again by all that they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import torch
import transformers
from transformers import TrainingArguments

from .. import __version__
from ..data import CausalCollator
from ..records import Cache, Validation, cache_folder
from ..students import OpenedReference
from .identity import dataset_fingerprint


def loss_cache() -> Cache[Validation]:
    """Return the cache in which losses of references are kept, below `HF_HOME`."""
    return Cache(cache_folder("reference-losses"), Validation)


def loss_key(
    reference: OpenedReference, dataset: Any, collator: Any, args: TrainingArguments, facts: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return all that a reference's loss depends on beyond rounding, `facts` among it; None if that is not known."""
    if not isinstance(dataset, datasets.Dataset) or type(collator) is not CausalCollator:
        return None
    return {
        "weights": reference.fingerprint(),
        "options": {name: str(value) for name, value in sorted(reference.options.items())},
        "attention": None if reference.model is None else reference.model.config._attn_implementation,
        "data": dataset_fingerprint(dataset),
        "longest_sequence": max(len(row) for row in dataset["input_ids"]),
        "end_token_id": collator.end_token_id,
        "tf32": args.tf32,
        "device": args.device.type,
        "versions": [__version__, torch.__version__, transformers.__version__],
        **facts,
    }
