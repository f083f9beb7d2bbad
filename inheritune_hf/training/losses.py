"""How a student's loss is computed: chosen by device and size and said in the log; the value is the same."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..evaluation import ValidatedTrainer
from ..students import logit_shaping
from ..students.losses import Method, choose_loss, chunk_tokens, loss_of_hidden, mean_loss
from .hardware import slow_settings

if TYPE_CHECKING:
    from .distillation import Teacher

logger = logging.getLogger(__name__)


class LossTrainer(ValidatedTrainer):
    """
    A `Trainer` that holds the logits of a few tokens at once where the vocabulary is large.

    Args:
        loss (`str`, *optional*, defaults to `"auto"`): As in `InherituneConfig`.
        args, kwargs: As for `Trainer`.
    """

    def __init__(self, *args: Any, loss: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loss = loss
        self.teacher: Teacher | None = None
        self._said: str | None = None

    def loss_method(self) -> str:
        """Return how the loss of the present model is computed; a choice is logged once."""
        model = self.bare_model
        why = self._why_own_loss() or self.why_full_logits()
        if why is not None:
            method, why = "full", why if self.loss in ("auto", "full") else f"not {self.loss}: {why}"
        elif self.teacher is not None and self.loss != "full":
            why = "two models' logits are compared"
            method, why = "chunked", why if self.loss in ("auto", "chunked") else f"not {self.loss}: {why}"
        else:
            method, why = choose_loss(
                self.loss,
                _vocabulary(model),
                self.args.device.type,
                self._head_dtype(model),
                logit_shaping(model.config)[1],
            )
        line = f"loss: {method} ({why})"
        if method in ("chunked", "linear"):
            line += f", {chunk_tokens(_vocabulary(model))} tokens at once"
        if self._said is None:
            slow = slow_settings(model, self.args.device, str(self.accelerator.mixed_precision))
            if slow:
                logger.warning("slow here: %s", "; ".join(slow))
        if line != self._said:
            logger.log(logging.WARNING if why.startswith("not ") else logging.INFO, line)
            self._said = line
        return method

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the loss as Trainer does, but with a teacher or from the last hidden states where that was chosen."""
        method = self.loss_method()
        if self.teacher is not None:
            with self.teacher.teaching(self.bare_model, inputs, method == "full"):
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if method == "full":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with loss_of_hidden(self.bare_model, functools.partial(mean_loss, method=cast(Method, method))):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _why_own_loss(self) -> str | None:
        if type(self).compute_loss is not LossTrainer.compute_loss or self.compute_loss_func is not None:
            return "another loss is computed"
        if self.label_smoother is not None:
            return "labels are smoothed"
        return "Liger's kernels replace the model's" if self.args.use_liger_kernel else None

    def _head_dtype(self, model: PreTrainedModel) -> torch.dtype:
        mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(self.accelerator.mixed_precision))
        return mixed or model.dtype


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)
