"""The reference's loss: measured by the loop that judges students, then kept, and found again by what it depends on."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import datasets
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from .. import __version__
from ..data import CausalCollator
from ..records import Cache, Validation, cache_folder
from .callbacks import on_main_process
from .identity import content_fingerprint, dataset_fingerprint

if TYPE_CHECKING:
    from .trainer import InherituneTrainer

logger = logging.getLogger(__name__)


def measure_reference(trainer: InherituneTrainer, dataset: Any, metric_key_prefix: str, use_cache: bool) -> Validation:
    """
    Return the reference's loss on `dataset`, from the user's cache if it was measured before.

    Args:
        trainer (`InherituneTrainer`): Whose loop measures; it holds no weights of the reference afterwards.
        dataset (`datasets.Dataset`): Sequences to measure on.
        metric_key_prefix (`str`): Prefix of the logged figures.
        use_cache (`bool`): Whether to look in the cache, and to keep there what was measured.

    Returns:
        `Validation`: Sums per document.
    """
    cache = Cache(cache_folder("reference-losses"), Validation)
    key = _key(trainer, dataset) if use_cache and trainer.args.process_index == 0 else None
    found = on_main_process(None if key is None else cache.read(key))
    if found is None:
        validation = _measure(trainer, dataset, metric_key_prefix)
        if key is not None:
            cache.write(key, validation)
        origin = ""
    else:
        validation = trainer.validations[metric_key_prefix] = found
        figures = {"loss": found.loss, "perplexity": found.perplexity, "accuracy": found.accuracy}
        trainer.log({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
        origin = f" · measured before ({cache.folder}; reference_cache=False measures it anew)"
    logger.info("reference · %d layers · %.4f nats/token%s", trainer.reference_depth, validation.loss, origin)
    return validation


def _measure(trainer: InherituneTrainer, dataset: Any, metric_key_prefix: str) -> Validation:
    reference = trainer.reference
    if isinstance(reference, PreTrainedModel):
        # A copy: evaluation moves the model and wraps its forward, and what is lent stays as it is.
        copied: Any = copy.deepcopy(reference)
        trainer.hold(copied.float(), spare=True)
        del copied
    else:
        kwargs = {"dtype": torch.float32, **trainer.reference_kwargs}
        trainer.hold(AutoModelForCausalLM.from_pretrained(reference, **kwargs), spare=True)
    trainer.evaluate(dataset, metric_key_prefix=metric_key_prefix)
    return trainer.validations[metric_key_prefix]


def _key(trainer: InherituneTrainer, dataset: Any) -> dict[str, Any] | None:
    """Return all that the loss depends on beyond rounding; None if that cannot be told."""
    if not isinstance(dataset, datasets.Dataset) or type(trainer.data_collator) is not CausalCollator:
        return None
    args, reference = trainer.args, trainer.reference
    attention = reference.config._attn_implementation if isinstance(reference, PreTrainedModel) else None
    return {
        "weights": content_fingerprint(reference, **trainer.reference_kwargs),
        "attention": attention,
        "data": dataset_fingerprint(dataset),
        "longest_sequence": max(len(row) for row in dataset["input_ids"]),
        "end_token_id": trainer.data_collator.end_token_id,
        "dtype": str(trainer.reference_kwargs.get("dtype", torch.float32)),
        "mixed_precision": trainer.accelerator.mixed_precision,
        "sharding": trainer.sharding,
        "tf32": args.tf32,
        "device": args.device.type,
        "measured_by": f"{type(trainer).__module__}.{type(trainer).__qualname__}",
        "versions": [__version__, torch.__version__, transformers.__version__],
    }
