"""Forecasts held against the recorded rounds: the committed page counts them all, and most intervals hold."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from documentation import ROOT

from inheritune_hf.forecast import forecast_loss

RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def rounds(monkeypatch):
    """The rounds of the mechanism check that begin with layers, each at a tuned rate that decays to a tenth."""
    monkeypatch.syspath_prepend(str(RESULTS))
    return importlib.import_module("forecast").ended_rounds()["inherited"]


def test_the_page_counts_every_round(rounds):
    """A record that is added to the check is on the page of forecasts, too."""
    assert f"- **inherited**: {len(rounds)} cells of" in (RESULTS / "forecast.md").read_text(encoding="utf-8")


def test_most_ends_are_within_their_intervals(rounds):
    """Nine in ten lie within 90 % intervals made from half way on."""
    inside = []
    for item in rounds:
        for count in (count for count in item.moments() if 2 * item.steps[count - 1] >= len(item.rates)):
            found = forecast_loss(item.steps[:count], item.losses[:count], item.rates, [len(item.rates)])
            inside.append(0.05 <= found.below(item.losses[-1])[0] <= 0.95)
    assert len(inside) >= 75
    assert np.mean(inside) >= 0.9
