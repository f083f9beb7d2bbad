"""Choose how a student's loss is computed, by device and size; the value is the same."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ..students import logit_shaping
from ..students.losses import choose_loss, chunk_tokens


def choose_method(
    setting: str, model: PreTrainedModel, device: torch.device, precision: str, obstacle: str | None, taught: bool
) -> tuple[str, str]:
    """
    Choose how the loss of a model in training is computed.

    `setting` is the recipe's `loss`, `precision` is `bf16`, `fp16` or `no`; `obstacle` says why the model must compute
    all its logits itself, if it must; `taught` says that a teacher's logits are compared with the model's.

    Returns:
        `tuple[str, str]`: `full`, `chunked`, `linear` or `liger`, and why; the reason begins with "not" if the setting
        could not be met.
    """
    if obstacle is not None:
        return "full", obstacle if setting in ("auto", "full") else f"not {setting}: {obstacle}"
    if taught and setting != "full":
        why = "two models' logits are compared"
        return "chunked", why if setting in ("auto", "chunked") else f"not {setting}: {why}"
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return choose_loss(setting, _vocabulary(model), device.type, mixed or model.dtype, logit_shaping(model.config)[1])


def describe_method(method: str, why: str, model: PreTrainedModel) -> str:
    """Return a choice as it is logged."""
    line = f"loss: {method} ({why})"
    chunked = method in ("chunked", "linear")
    return f"{line}, {chunk_tokens(_vocabulary(model))} tokens at once" if chunked else line


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)
