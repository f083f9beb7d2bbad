"""The metric for the `evaluate` library."""

import math

import pytest

from inheritune_hf.evaluation import TokenPerplexity


def test_metric_is_a_sum_over_a_sum():
    """Loss, perplexity and accuracy come from sums, offline and however they are added."""
    sums = {"loss_sums": [2.0, 9.0, 1.0], "tokens": [2, 3, 1], "correct": [1, 0, 1]}
    whole = TokenPerplexity().compute(**sums)
    assert whole == {"loss": 2.0, "perplexity": math.exp(2.0), "accuracy": pytest.approx(1 / 3)}
    metric = TokenPerplexity()
    metric.add_batch(**{name: values[:1] for name, values in sums.items()})
    metric.add_batch(**{name: values[1:] for name, values in sums.items()})
    assert metric.compute() == whole
