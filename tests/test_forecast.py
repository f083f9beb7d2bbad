"""Forecasts of how a round ends."""

import numpy as np
import pytest
from scipy.stats import t

from inheritune_hf.forecast import Forecast, LossForecast, forecast_loss, forecast_round
from inheritune_hf.records import RecordError

STEPS = 200
COSINE = [0.5 * (1 + np.cos(np.pi * step / STEPS)) for step in range(STEPS)]
CONSTANT = [1.0] * STEPS


def losses(rates, annealed=0.1, noise=0.0, seed=0):
    """Losses after every step: a power law in the summed rate, a part that goes with the rate, and so does noise."""
    area = np.cumsum(rates) / np.sum(rates)
    rate = np.append(rates[1:], rates[-1])
    draw = np.random.default_rng(seed).normal(size=STEPS)
    return 3 + (1 + area / 0.1) ** (-1 / 3) + (annealed + noise * draw) * rate


def evaluations(curve, until, start=0):
    return [(start + step, curve[step - 1]) for step in range(20, until + 1, 20)]


def forecast(rates, until, low_enough=None, start=0, **curve):
    return forecast_round(evaluations(losses(rates, **curve), until, start), rates, start, low_enough, 512)


@pytest.mark.parametrize("rates", [COSINE, CONSTANT])
@pytest.mark.parametrize("until", [100, 140, 180])
def test_a_curve_that_follows_the_law_ends_within_its_interval(rates, until):
    """Without noise the median is near the end, and the interval holds it and narrows with more evaluations."""
    end, found = losses(rates)[-1], forecast(rates, until)
    assert found.lower <= end <= found.upper
    assert abs(found.loss - end) < 0.02
    earlier = forecast(rates, until - 40)
    assert found.upper - found.lower < earlier.upper - earlier.lower


def test_the_decay_of_the_rate_is_foreseen():
    """With a rate that decays the loss is forecast to fall further than with one that stays, from the same losses."""
    seen = evaluations(losses(CONSTANT), 100)
    decays = [1.0] * 150 + [1 - step / 50 for step in range(50)]
    falls, stays = (forecast_round(seen, rates, 0, None, 512) for rates in (decays, CONSTANT))
    assert falls.loss < stays.loss - 0.02


def test_nothing_is_said_too_early_or_at_the_end():
    """Three evaluations, a quarter of the round, and something left to forecast."""
    seen = evaluations(losses(COSINE), 200)
    assert forecast_round(seen[:2], COSINE, 0, 3.5, 512) is None
    assert forecast_round([(5, 4.0), (10, 3.9), (15, 3.8)], COSINE, 0, 3.5, 512) is None
    assert forecast_round(seen[:3], COSINE, 0, 3.5, 512) is not None
    assert forecast_round(seen, COSINE, 0, 3.5, 512) is None
    assert forecast_round(seen[:5], [0.0] * STEPS, 0, 3.5, 512) is None


def test_the_probability_of_a_match():
    """It follows the loss that is low enough, and is not told where that is not known."""
    end = losses(COSINE)[-1]
    chances = [forecast(COSINE, 140, end + margin).match for margin in (-0.2, -0.02, 0, 0.02, 0.2)]
    assert chances == sorted(chances)
    assert chances[0] < 0.01
    assert chances[-1] > 0.99
    unknown = forecast(COSINE, 140)
    assert (unknown.match, unknown.tokens_to_match) == (None, None)


def test_tokens_to_a_match():
    """They are counted from the evaluation to where the median is low enough, and stay unsaid beyond the round."""
    curve = losses(COSINE)
    low_enough = curve[169]
    found = forecast(COSINE, 120, low_enough)
    assert found.tokens_to_match == pytest.approx(50 * 512, rel=0.3)
    assert found.tokens_lower <= found.tokens_to_match
    assert found.tokens_upper is None or found.tokens_upper >= found.tokens_to_match
    assert forecast(COSINE, 120, curve[-1] - 0.5).tokens_to_match is None


def test_steps_are_counted_over_all_rounds():
    """A later round is forecast as the first one is, with its own steps."""
    first, later = forecast(COSINE, 100, 3.6), forecast(COSINE, 100, 3.6, start=1000)
    assert (later.at_step, later.end_step) == (1100, 1200)
    assert (first.loss, first.lower, first.match, first.tokens_to_match) == (
        later.loss,
        later.lower,
        later.match,
        later.tokens_to_match,
    )


def test_units_of_the_rate_do_not_matter():
    """Only its shape over the round counts."""
    seen = evaluations(losses(COSINE), 100)
    plain, small = (forecast_round(seen, list(np.array(COSINE) * unit), 0, None, 512) for unit in (1.0, 2.0**-10))
    assert plain == small


def test_intervals_cover_noisy_ends():
    """Of curves that follow the law with noise, at least 85 % end within their interval from half way on."""
    held = [
        found.lower <= losses(rates, annealed, 0.01, seed)[-1] <= found.upper
        for rates in (COSINE, CONSTANT)
        for annealed in (0.03, 0.3)
        for seed in range(4)
        for until in (100, 160)
        for found in [forecast(rates, until, annealed=annealed, noise=0.01, seed=seed)]
    ]
    assert np.mean(held) >= 0.85


def test_a_mixture_of_one_is_a_t_distribution():
    """Its quantiles and probabilities are SciPy's."""
    one = LossForecast(np.array([1.0]), np.array([[3.0, 4.0]]), np.array([[0.1, 0.2]]), 3.0)
    for share in (0.05, 0.5, 0.95):
        np.testing.assert_allclose(one.quantile(share), t.ppf(share, 3, [3.0, 4.0], [0.1, 0.2]), rtol=1e-9)
    np.testing.assert_allclose(one.below(3.1), t.cdf(3.1, 3, [3.0, 4.0], [0.1, 0.2]))


def test_weights_of_shapes_are_probabilities():
    """They are one for each shape and sum to one; no forecast is below 0."""
    found = forecast_loss([20, 40, 60], [0.3, 0.1, 0.02], COSINE, [STEPS])
    assert found.weights.sum() == pytest.approx(1)
    assert found.means.shape == found.scales.shape == (len(found.weights), 1)
    assert found.quantile(0.001)[0] == 0


def test_a_forecast_in_words_and_in_a_log():
    """It is one line, and is read back from the log as it was written."""
    certain = Forecast(300, 480, 4.297, 4.287, 4.312, 0.82, 120_000, 80_000, 200_000)
    assert str(certain) == (
        "forecast for step 480: 4.2970 nats/token (4.2870 to 4.3120) · likely to match (0.82), after 120,000 more "
        "tokens (80,000 to 200,000)"
    )
    unlikely = Forecast(300, 480, 4.297, 4.287, 4.312, 0.03)
    assert str(unlikely).endswith(" · unlikely to match (0.03)")
    assert str(Forecast(300, 480, 4.3, 4.2, 4.4, 0.5, 9000, 400)).endswith(
        "· may match (0.50), after 9,000 more tokens (400 or more)"
    )
    assert str(Forecast(300, 480, 4.297, 4.287, 4.312)).endswith("(4.2870 to 4.3120)")
    for item in (certain, unlikely):
        assert Forecast.from_log({**item.logged(), "step": 300, "epoch": 0.5}) == item
    assert Forecast.from_log({"eval_loss": 4.3}) is None
    with pytest.raises(RecordError, match=r"trainer_state.json: loss must be a finite number, got 'low'"):
        Forecast.from_log({**certain.logged(), "forecast/loss": "low"}, "trainer_state.json")
