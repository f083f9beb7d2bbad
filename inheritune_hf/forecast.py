"""Forecast how a round ends from its own evaluations: a power law in the summed learning rate, with annealing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from .records import Count, decode, encode

Floats = NDArray[np.float64]

#: Evaluations of a round, and the share of its steps, before which nothing is forecast.
MIN_EVALUATIONS = 3
MIN_SHARE = 0.25
# Of a forecast's interval, on either side.
_TAIL = 0.05

# Chosen by docs/results/forecast.py. Noise is relative to the scale of the loss, which each round has for itself.
_EXPONENT = 1 / 3
_HORIZONS = np.exp(np.linspace(-6, 1, 8))  # summed rate, of the round's, from which the power law holds
_ANNEALING = np.exp(np.linspace(-6, 0.5, 10))  # nats per token that the loss falls as the rate goes from its peak to 0
_POWERS = (0.7, 1.0, 1.4)  # of the rate, as a share of its peak, to which that is proportional
_HORIZON = (-2.2, 1.5)  # mean and standard deviation of the logarithm, before anything was seen
_ANNEALED = (-1.2, 1.0)
_NOISE = 0.002  # variance of an evaluation at the peak rate
_WALK = 0.32  # variance of what the law misses over the round, a random walk in the summed rate
_SCALE = (0.36, 0.0015)  # degrees of freedom, and sum of squares in nats squared, before anything was seen
_FLOOR = 0.003  # nats per token: no forecast is surer


@dataclass(frozen=True)
class Forecast:
    """
    How a round is expected to end, as it was forecast at one of its evaluations.

    Args:
        at_step (`int`): Optimizer step of that evaluation, counted over all rounds.
        end_step (`int`): Step at which the round ends.
        loss (`float`): Median of the loss on the selection set at the end, in nats per token.
        lower (`float`): Lower end of its two-sided 90 % interval.
        upper (`float`): Upper end.
        match (`float`, *optional*): Probability of a match at the end; None if documents are too few to tell.
        tokens_to_match (`int`, *optional*): Further tokens of this round until the loss is low enough for a match; None
            if it is not expected to be within the round.
        tokens_lower (`int`, *optional*): Lower end of its interval; None likewise.
        tokens_upper (`int`, *optional*): Upper end; None likewise.
    """

    at_step: Count
    end_step: Count
    loss: float
    lower: float
    upper: float
    match: float | None = None
    tokens_to_match: Count | None = None
    tokens_lower: Count | None = None
    tokens_upper: Count | None = None

    def __str__(self) -> str:
        """Say it in one line."""
        text = f"forecast for step {self.end_step:,}: {self.loss:.4f} nats/token ({self.lower:.4f} to {self.upper:.4f})"
        if self.match is not None:
            verdict = "likely to" if self.match >= 0.7 else "unlikely to" if self.match <= 0.3 else "may"
            text += f" · {verdict} match ({self.match:.2f})"
        if self.tokens_to_match is not None:
            last = "" if self.tokens_upper is None else f" to {self.tokens_upper:,}"
            text += f", after {self.tokens_to_match:,} more tokens ({self.tokens_lower or 0:,}{last or ' or more'})"
        return text

    def logged(self) -> dict[str, float]:
        """Return the figures as a log holds them; `from_log` reads them."""
        return {f"forecast/{name}": value for name, value in encode(self).items() if value is not None}

    @classmethod
    def from_log(cls, entry: Mapping[str, Any], where: str = "the log") -> Forecast | None:
        """
        Return the forecast in an entry of a log, or None if there is none.

        Raises:
            RecordError: If a figure is missing or no number; the message says where.
        """
        prefix = "forecast/"
        found = {name.removeprefix(prefix): value for name, value in entry.items() if name.startswith(prefix)}
        return decode(cls, found, where) if found else None


def forecast_round(
    evaluations: Sequence[tuple[int, float]],
    rates: Sequence[float],
    start_step: int,
    low_enough: float | None,
    step_tokens: float,
) -> Forecast | None:
    """
    Forecast how a round ends.

    Args:
        evaluations (sequence of `(int, float)`): Steps, counted over all rounds, ascending, and losses in nats per
            token.
        rates (sequence of `float`): Learning rate of every step of the round, in any unit.
        start_step (`int`): Step at which the round began.
        low_enough (`float`, *optional*): Loss that would match, in nats per token; None if that is not known.
        step_tokens (`float`): Tokens of one step.

    Returns:
        `Forecast`, *optional*: None before there are 3 evaluations, before a quarter of the round, and at its end.
    """
    length = len(rates)
    steps = [step - start_step for step, _ in evaluations]
    if len(steps) < MIN_EVALUATIONS or not MIN_SHARE * length <= steps[-1] < length or not max(rates) > 0:
        return None
    later = np.unique(np.linspace(steps[-1] + 1, length, 50).astype(np.int64))
    curve = forecast_loss(steps, [loss for _, loss in evaluations], rates, later)
    lower, median, upper = (float(curve.quantile(share)[-1]) for share in (_TAIL, 0.5, 1 - _TAIL))
    match: float | None = None
    tokens: list[int | None] = [None, None, None]
    if low_enough is not None:
        reached, ahead = curve.below(low_enough), (later - steps[-1]) * step_tokens
        match = float(reached[-1])
        for place, share in enumerate((0.5, _TAIL, 1 - _TAIL)):
            tokens[place] = round(float(ahead[(reached >= share).argmax()])) if (reached >= share).any() else None
    return Forecast(start_step + steps[-1], start_step + length, median, lower, upper, match, *tokens)


@dataclass(frozen=True)
class LossForecast:
    """
    The loss at some steps of a round, as a mixture of t distributions, one for each shape of the curve.

    Args:
        weights (`numpy.ndarray` of shape `(shapes,)`): Probability of each shape.
        means (`numpy.ndarray` of shape `(shapes, steps)`): In nats per token.
        scales (`numpy.ndarray` of shape `(shapes, steps)`): In nats per token.
        freedom (`float`): Degrees of freedom.
    """

    weights: Floats
    means: Floats
    scales: Floats
    freedom: float

    def below(self, loss: ArrayLike) -> Floats:
        """Return the probability that the loss is at most `loss` nats per token, shape `(steps,)`."""
        reached: Floats = self.weights @ stdtr(self.freedom, (np.asarray(loss) - self.means) / self.scales)
        return reached

    def quantile(self, share: float) -> Floats:
        """Return the loss below which it is with a probability of `share`, shape `(steps,)`."""
        low, high = (self.means - 100 * self.scales).min(0), (self.means + 100 * self.scales).max(0)
        for _ in range(60):
            middle = (low + high) / 2
            under = self.below(middle) < share
            low, high = np.where(under, middle, low), np.where(under, high, middle)
        quantile: Floats = np.maximum(low, 0)
        return quantile


def forecast_loss(steps: Sequence[int], losses: Sequence[float], rates: Sequence[float], at: ArrayLike) -> LossForecast:
    """
    Forecast the loss at later steps of a round.

    The loss is taken to be a level, plus a power law in the learning rates summed up to a step, plus a part that goes
    when the rate itself decays (the two terms of arXiv 2408.11029), plus a random walk and the noise of an evaluation.
    Level and size are fitted to the losses; where the power law begins, how much the decay of the rate is worth and to
    which power of the rate that is proportional are averaged over a grid, each point by how well it fits.

    Args:
        steps (sequence of `int`): Steps of the round at which it was evaluated, ascending, from 1.
        losses (sequence of `float`): Losses measured there, in nats per token; 3 or more.
        rates (sequence of `float`): Learning rate of every step of the round, in any unit.
        at (array of `int`): Steps of the round to forecast.

    Returns:
        `LossForecast`: The loss at the steps of `at`.
    """
    summed = np.concatenate([[0.0], np.cumsum(rates, dtype=np.float64)])
    next_rate = np.append(np.asarray(rates, dtype=np.float64), rates[-1])  # after a step, that of the one to come
    places = np.concatenate([np.asarray(steps, dtype=np.int64), np.atleast_1d(at).astype(np.int64)])
    area, rate, count = summed[places] / summed[-1], next_rate[places] / max(rates), len(steps)

    log_prior, power, annealed = _shapes(area, rate)
    covariance = _WALK * np.minimum.outer(area, area) + np.diag(_NOISE * rate**2 + 1e-12)
    seen, shared = covariance[:count, :count], covariance[:count, count:]
    columns = np.concatenate([np.ones((1, count)), power[:, :count], losses - annealed[:, :count], shared.T])
    white = np.linalg.solve(np.linalg.cholesky(seen), columns.T)
    one, seen_power, loss, link = np.split(white, np.cumsum([1, len(power), len(power)]), axis=1)

    # Generalised least squares of a level and a size, for each shape.
    one_one, one_power, power_power = (one * one).sum(), (one * seen_power).sum(0), (seen_power**2).sum(0)
    one_loss, power_loss = (one * loss).sum(0), (seen_power * loss).sum(0)
    determinant = one_one * power_power - one_power**2
    size = (one_one * power_loss - one_power * one_loss) / determinant
    level = (one_loss - size * one_power) / one_one
    squares = _SCALE[1] + ((loss - level * one - size * seen_power) ** 2).sum(0)
    freedom = _SCALE[0] + count - 2
    variance = squares / freedom

    # The same at the steps to forecast, given the walk so far; shape (shapes, steps).
    rest_one, rest_power = 1 - one.T @ link, power[:, count:] - seen_power.T @ link
    means = annealed[:, count:] + level[:, None] * rest_one + size[:, None] * rest_power + loss.T @ link
    fitted = (
        power_power[:, None] * rest_one**2 - 2 * one_power[:, None] * rest_one * rest_power + one_one * rest_power**2
    ) / determinant[:, None]
    rest = covariance.diagonal()[count:] - (link**2).sum(0)
    scales = np.sqrt(variance[:, None] * (rest + fitted) + _FLOOR**2)

    falls = stdtr(freedom, size / np.sqrt(variance * one_one / determinant))  # a loss falls, other things being equal
    log_weights = log_prior - 0.5 * np.log(determinant) - 0.5 * freedom * np.log(squares) + np.log(falls + 1e-12)
    weights = np.exp(log_weights - log_weights.max())
    return LossForecast(weights / weights.sum(), means, scales, freedom)


def _shapes(area: Floats, rate: Floats) -> tuple[Floats, Floats, Floats]:
    """Return log prior weights `(shapes,)`, curves that fall by 1, and what annealing adds, `(shapes, steps)`."""
    grid = np.meshgrid(_HORIZONS, _ANNEALING, _POWERS, indexing="ij")
    horizons, annealing, powers = (values.reshape(-1, 1) for values in grid)
    power, end = (1 + area / horizons) ** -_EXPONENT, (1 + 1 / horizons) ** -_EXPONENT
    log_prior = sum(
        -0.5 * ((np.log(values[:, 0]) - mean) / deviation) ** 2
        for values, (mean, deviation) in ((horizons, _HORIZON), (annealing, _ANNEALED))
    )
    return np.asarray(log_prior), (power - end) / (1 - end), annealing * rate**powers
