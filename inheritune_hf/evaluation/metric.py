"""The project's metric for the `evaluate` library: token-level loss, perplexity and next-token accuracy, offline."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate

from ..records import perplexity

_DESCRIPTION = """
Loss in nats per token, perplexity and next-token accuracy of a causal language model, from sums per sequence. Sums, not
means, go in, so the result does not depend on how sequences were batched.
"""


class TokenPerplexity(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """
    Loss, perplexity and accuracy from per-sequence sums.

    Args of `compute`:
        loss_sums (`list[float]`): Summed loss of each sequence, in nats.
        tokens (`list[int]`): Counted tokens of each sequence.
        correct (`list[int]`): Tokens of each sequence that the model ranked first.

    Example:
        >>> TokenPerplexity(keep_in_memory=True).compute(loss_sums=[2.0, 4.0], tokens=[2, 2], correct=[1, 1])["loss"]
        1.5
    """

    def __init__(self, keep_in_memory: bool = True) -> None:
        super().__init__(keep_in_memory=keep_in_memory)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="Sums per sequence: loss_sums in nats, tokens, correct.",
            features=datasets.Features(
                {
                    "loss_sums": datasets.Value("float64"),
                    "tokens": datasets.Value("int64"),
                    "correct": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, loss_sums: Sequence[float], tokens: Sequence[int], correct: Sequence[int]) -> dict[str, float]:
        loss = sum(loss_sums) / sum(tokens)
        return {"loss": loss, "perplexity": perplexity(loss), "accuracy": sum(correct) / sum(tokens)}
