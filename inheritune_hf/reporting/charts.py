"""Charts as SVG that takes its colours from the page, drawn for the width that they are shown at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from ..records import Round
from .summary import Curve

#: Inks and dashes that tell a comparison's arms apart, as `page.css` has them.
INKS, DASHES = 6, 4
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 26, 44


class _Plane:
    """Places data on a drawing: the one place that knows margins and scales."""

    def __init__(self, width: int, height: int, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.width, self.height, self.x, self.y = width, height, x, y

    def across(self, value: float) -> float:
        """Return the pixel of a value on the horizontal axis."""
        share = (value - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        return round(_LEFT + share * (self.width - _LEFT - _RIGHT), 1)

    def down(self, value: float) -> float:
        """Return the pixel of a value on the vertical axis."""
        share = (value - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return round(self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM), 1)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """Return points as the data of a path."""
        return "M" + "L".join(f"{self.across(x)} {self.down(y)}" for x, y in points)

    def frame(self, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], name: str) -> list[str]:
        """Return grid lines, ticks and the name of the horizontal axis."""
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        parts = []
        for value, label in y_ticks:
            y = self.down(value)
            parts.append(f'<path class="grid" d="M{_LEFT} {y}H{right}"/>')
            parts.append(f'<text x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
        for value, label in x_ticks:
            x = self.across(value)
            parts.append(f'<path class="axis" d="M{x} {bottom}v5"/>')
            parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{escape(label)}</text>')
        parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
        parts.append(
            f'<text class="name" x="{(_LEFT + right) / 2}" y="{self.height - 6}" text-anchor="middle">'
            f"{escape(name)}</text>"
        )
        return parts


def loss_chart(
    width: int,
    rounds: Sequence[Round],
    curves: Mapping[str, Curve],
    target: float | None,
    tolerance: float,
) -> str:
    """
    Draw selection losses against steps: the student round by round, controls, and the band that counts as a match.

    Args:
        width (`int`): Width in pixels.
        rounds (`Sequence[Round]`): The rounds.
        curves (`Mapping[str, Curve]`): `student`, and controls by name.
        target (`float`, *optional*): Loss to reach, in nats per token.
        tolerance (`float`): Nats per token above the target that still match.
    """
    student = curves.get("student", ())
    others = {name: curve for name, curve in curves.items() if name != "student" and curve}
    shown = [loss for _, loss in student] + [curve[-1][1] for curve in others.values()]
    shown += [target, target + tolerance] if target is not None else []
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    margin = 0.08 * max(high - low, 0.05)
    last = max([step for curve in curves.values() for step, _ in curve] + [item.end_step for item in rounds] + [1])
    plane = _Plane(width, 330 if width > 500 else 270, (0, last), (low - margin, high + 1.6 * margin))
    clip = f"plot{width}"
    parts = plane.frame(
        [(value, f"{value:,.0f}") for value in _ticks(0, last, 6 if width > 500 else 3)],
        [(value, f"{value:.3g}") for value in _ticks(*plane.y, 5)],
        "optimizer steps, all rounds together",
    )
    # Room for the dots of the last step.
    inner = f'<rect x="{_LEFT}" y="{_TOP}" width="{width - _LEFT - 8}" height="{plane.height - _TOP - _BOTTOM}"/>'
    parts.append(f'<clipPath id="{clip}">{inner}</clipPath><g clip-path="url(#{clip})">')
    if target is not None:
        upper, lower = plane.down(target + tolerance), plane.down(target)
        parts.append(
            f'<rect class="band" x="{_LEFT}" y="{upper}" width="{width - _LEFT - _RIGHT}" '
            f'height="{round(max(lower - upper, 1), 1)}"/><path class="target" d="M{_LEFT} {lower}H{width - _RIGHT}"/>'
        )
    for place, curve in enumerate(others.values()):
        parts.append(f'<path class="line control{place % 3}" d="{plane.path(curve)}"/>')
    for points in points_by_round(rounds, student):
        parts.append(f'<path class="line student" d="{plane.path(points)}"/>')
        parts.extend(
            f'<circle class="dot" cx="{plane.across(step)}" cy="{plane.down(loss)}" r="3.5">'
            f"<title>step {step:,}: {loss:.4f}</title></circle>"
            for step, loss in points
        )
    parts.append("</g>")
    for item in rounds:
        x, centre = plane.across(item.start_step), plane.across((item.start_step + item.end_step) / 2)
        if item.start_step:
            parts.append(f'<path class="boundary" d="M{x} {_TOP - 14}V{plane.height - _BOTTOM}"/>')
        if plane.across(item.end_step) - x > 52:
            parts.append(f'<text class="name" x="{centre}" y="16" text-anchor="middle">{item.layers} layers</text>')
    return _svg(width, plane.height, parts)


def arms_chart(width: int, curves: Mapping[str, Curve], target: float) -> str:
    """
    Draw selection losses of a comparison's arms against tokens, and the reference's level.

    Args:
        width (`int`): Width in pixels.
        curves (`Mapping[str, Curve]`): Points of tokens and loss, by arm; told apart by ink and dashes in this order.
        target (`float`): The reference's loss, in nats per token.
    """
    ends = [curve[-1][1] for curve in curves.values()]
    low, high = min([target, *ends]), max([target, *ends])
    margin = max(high - low, 0.05)
    last = max(tokens for curve in curves.values() for tokens, _ in curve)
    plane = _Plane(width, 380 if width > 500 else 290, (0, last), (low - 0.08 * margin, high + 0.35 * margin))
    clip = f"arms{width}"
    parts = plane.frame(
        [(value, _short(value)) for value in _ticks(0, last, 6 if width > 500 else 3)],
        [(value, f"{value:.4g}") for value in _ticks(*plane.y, 5)],
        "tokens, all rounds and stages together" if width > 500 else "tokens, all rounds and stages",
    )
    # Room for the dots of the last point.
    inner = f'<rect x="{_LEFT}" y="{_TOP}" width="{width - _LEFT - 8}" height="{plane.height - _TOP - _BOTTOM}"/>'
    parts.append(f'<clipPath id="{clip}">{inner}</clipPath><g clip-path="url(#{clip})">')
    parts.append(f'<path class="target" d="M{_LEFT} {plane.down(target)}H{width - _RIGHT}"/>')
    for place, (name, curve) in enumerate(curves.items()):
        ink = f"ink{place % INKS}"
        parts.append(f'<path class="line {ink} dash{place // INKS % DASHES}" d="{plane.path(curve)}"/>')
        parts.extend(
            f'<circle class="point {ink}" cx="{plane.across(tokens)}" cy="{plane.down(loss)}" r="3">'
            f"<title>{escape(name)}, {tokens:,} tokens: {loss:.4f}</title></circle>"
            for tokens, loss in curve
        )
    return _svg(width, plane.height, [*parts, "</g>"])


def layers_chart(width: int, reference_layers: int, rows: Sequence[tuple[str, Sequence[int]]]) -> str:
    """
    Draw which of the reference's layers each student holds, one row for each.

    Args:
        width (`int`): Width in pixels.
        reference_layers (`int`): Depth of the reference.
        rows (`Sequence[tuple[str, Sequence[int]]]`): Name of a student and its layers.
    """
    label = 74 if width > 500 else 60
    step = min(30.0, (width - label - 4) / reference_layers)
    size, height = round(step * 0.84, 1), 30
    parts = []
    for index, (name, kept) in enumerate(rows):
        top = 6 + index * height
        parts.append(f'<text x="0" y="{top + 17}">{escape(name)}</text>')
        for layer in range(reference_layers):
            kind = "kept" if layer in kept else "dropped"
            x = round(label + layer * step, 1)
            parts.append(f'<rect class="{kind}" x="{x}" y="{top}" width="{size}" height="24" rx="3"/>')
    bottom = 6 + len(rows) * height
    every = max(1, math.ceil(22 / step))
    for layer in range(0, reference_layers, every):
        x = round(label + layer * step + size / 2, 1)
        parts.append(f'<text class="name" x="{x}" y="{bottom + 12}" text-anchor="middle">{layer}</text>')
    return _svg(width, bottom + 20, parts)


def rank_chart(
    width: int,
    reference: Sequence[float | None],
    student: Sequence[float | None],
    near_one: float,
) -> str:
    """
    Draw MaxRank by layer, before and after, on a logarithmic axis.

    Args:
        width (`int`): Width in pixels.
        reference (`Sequence[float | None]`): MaxRank of the reference's layers.
        student (`Sequence[float | None]`): MaxRank of the student's layers.
        near_one (`float`): Highest MaxRank that counts as near rank-1.
    """
    highest = max([value for value in (*reference, *student) if value is not None] + [4.0])
    depth = max(len(reference), len(student))
    plane = _Plane(
        width, 290 if width > 500 else 250, (-0.4, depth - 0.6), (math.log2(0.85), math.log2(1.25 * highest))
    )
    powers = [2**power for power in range(13) if 2**power <= 1.25 * highest]
    every = max(1, math.ceil(depth / (16 if width > 500 else 8)))
    parts = plane.frame(
        [(layer, str(layer)) for layer in range(0, depth, every)],
        [(math.log2(value), str(value)) for value in powers],
        "layer",
    )
    upper = plane.down(math.log2(near_one))
    parts.append(
        f'<rect class="lazy" x="{_LEFT}" y="{upper}" width="{width - _LEFT - _RIGHT}" '
        f'height="{round(plane.height - _BOTTOM - upper, 1)}"/>'
    )
    for kind, values in (("reference", reference), ("student", student)):
        points = [(layer, math.log2(value)) for layer, value in enumerate(values) if value is not None]
        if points:
            parts.append(f'<path class="line {kind}" d="{plane.path(points)}"/>')
        for x, y in points:
            across, down = plane.across(x), plane.down(y)
            title = f"<title>{kind}, layer {x}: {2**y:.1f}</title>"
            if kind == "student":
                parts.append(f'<circle class="dot" cx="{across}" cy="{down}" r="4">{title}</circle>')
            else:
                parts.append(
                    f'<rect class="square" x="{across - 3.5}" y="{down - 3.5}" width="7" height="7">{title}</rect>'
                )
    return _svg(width, plane.height, parts)


def points_by_round(rounds: Sequence[Round], curve: Curve) -> list[Curve]:
    """
    Return the points of each round, and those after the last finished one.

    Args:
        rounds (`Sequence[Round]`): The rounds.
        curve (`Curve`): The student's losses over all rounds.
    """
    pieces = [tuple(point for point in curve if item.start_step < point[0] <= item.end_step) for item in rounds]
    end = rounds[-1].end_step if rounds else 0
    return [piece for piece in (*pieces, tuple(point for point in curve if point[0] > end)) if piece]


def _svg(width: int, height: float, parts: Sequence[str]) -> str:
    # Named and described by the figure around it.
    return f'<svg viewBox="0 0 {width} {height}" aria-hidden="true" focusable="false">{"".join(parts)}</svg>'


def _short(tokens: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:g}{letter}"
    return f"{tokens:g}"


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most about `most` round numbers from `low` to `high`."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * count for count in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
