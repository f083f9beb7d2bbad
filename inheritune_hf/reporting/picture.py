"""A report as one picture: verdict, losses, kept layers, ranks."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..experiments.results import draw_curves
from .charts import points_by_round
from .document import Report
from .summary import RunSummary

_STUDENT, _REFERENCE, _SOFT = "#0b62b8", "#8a4b00", "#555555"
_CONTROLS = ({"color": "#9a4d00", "linestyle": "-."}, {"color": "#6a3fa0", "linestyle": ":"}, {"color": "#1b6b3a"})


def draw_picture(run: RunSummary, report: Report, path: str | os.PathLike[str]) -> None:
    """
    Draw a run as one PNG file, the same bytes for the same records.

    Args:
        run (`RunSummary`): What the run's folder says.
        report (`Report`): Its report, for the verdict.
        path (`str` or `os.PathLike`): File to write; it is there whole or not at all.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    lazy = None if run.evaluation is None else run.evaluation.laziness
    curve = run.curves.get("student", ())
    panels = [4.2] * bool(curve) + [0.7 + 0.34 * max(1, len(run.rounds))] + [3.2] * bool(lazy)
    figure = Figure(figsize=(8, sum(panels) + 1.5), dpi=140, layout="constrained")
    figure.suptitle(_title(report), fontsize=9, x=0.01, ha="left")
    grid = figure.subplots(len(panels), 1, height_ratios=panels, squeeze=False)[:, 0]
    axes = iter(grid)
    if curve:
        _losses(next(axes), run)
    _layers(next(axes), run)
    if lazy is not None:
        _ranks(next(axes), lazy.reference, lazy.student, 1 + lazy.comparison.tolerance)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", metadata={"Software": None})
    temporary.replace(path)


def draw_comparison(facts: Mapping[str, Any], report: Report, path: str | os.PathLike[str]) -> None:
    """
    Draw a comparison's curves below its verdict as one PNG file, the same bytes for the same records.

    Args:
        facts (`Mapping[str, Any]`): The comparison's records.
        report (`Report`): Its report, for the verdict.
        path (`str` or `os.PathLike`): File to write; it is there whole or not at all.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    draw_curves(temporary, facts, _title(report))
    temporary.replace(path)


def _title(report: Report) -> str:
    verdict = textwrap.fill(f"{report.outcome}: {report.verdict}", 104).replace("$", r"\$")
    return f"{_plain(report.title)}\n{verdict}"


def _losses(axes: Any, run: RunSummary) -> None:
    curve = run.curves["student"]
    shown = [loss for _, loss in curve]
    for place, points in enumerate(points_by_round(run.rounds, curve)):
        label = "student, round by round" if place == 0 else None
        axes.plot(*zip(*points, strict=True), color=_STUDENT, marker="o", markersize=4, linewidth=2, label=label)
    others = [(name, points) for name, points in run.curves.items() if name != "student" and points]
    for place, (name, points) in enumerate(others):
        axes.plot(*zip(*points, strict=True), label=_plain(name), **_CONTROLS[place % len(_CONTROLS)])
        shown.append(points[-1][1])
    if run.target is not None:
        tolerance = float(run.recipe.get("tolerance") or 0)
        axes.axhline(run.target, color="#333333", linestyle="--", linewidth=1.2, label=f"to reach: {run.target:.4f}")
        axes.axhspan(run.target, run.target + tolerance, color=_STUDENT, alpha=0.15, linewidth=0)
        shown += [run.target, run.target + tolerance]
    margin = 0.08 * max(max(shown) - min(shown), 0.05)
    axes.set_ylim(min(shown) - margin, max(shown) + 2 * margin)
    last = max([step for points in run.curves.values() for step, _ in points] + [item.end_step for item in run.rounds])
    axes.set_xlim(0, 1.01 * last)
    for item in run.rounds:
        if item.start_step:
            axes.axvline(item.start_step, color="#999999", linestyle=":", linewidth=1)
        axes.annotate(
            f"{item.layers} layers",
            ((item.start_step + item.end_step) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=_SOFT,
        )
    axes.set_xlabel("optimizer steps, all rounds together")
    axes.set_ylabel("selection loss\n(nats per token)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="lower left")


def _layers(axes: Any, run: RunSummary) -> None:
    from matplotlib.patches import Rectangle

    rows = [(f"round {item.index}", item.kept_layers) for item in run.rounds] or [("student", run.kept_layers)]
    for place, (_, kept) in enumerate(rows):
        for layer in range(run.reference_layers):
            fill = {"color": _STUDENT} if layer in kept else {"fill": False, "edgecolor": "#999999", "linestyle": ":"}
            axes.add_patch(Rectangle((layer + 0.08, place + 0.12), 0.84, 0.76, **fill))
    axes.set_xlim(0, run.reference_layers)
    axes.set_ylim(len(rows), 0)
    axes.set_yticks([place + 0.5 for place in range(len(rows))], [name for name, _ in rows], fontsize=8)
    every = max(1, math.ceil(run.reference_layers / 24))
    layers = list(range(0, run.reference_layers, every))
    axes.set_xticks([layer + 0.5 for layer in layers], [str(layer) for layer in layers], fontsize=8)
    axes.set_xlabel("layers of the reference that were kept (filled)")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _ranks(axes: Any, reference: Sequence[float | None], student: Sequence[float | None], near_one: float) -> None:
    for name, values, style in (
        ("reference, before", reference, {"color": _REFERENCE, "linestyle": "--", "marker": "s"}),
        ("student, after", student, {"color": _STUDENT, "marker": "o"}),
    ):
        numbers = [math.nan if value is None else value for value in values]
        axes.plot(range(len(numbers)), numbers, markersize=4, label=name, **style)
    axes.axhspan(0.85, near_one, color="#c0392b", alpha=0.12, linewidth=0, label="near rank-1: lazy")
    axes.set_yscale("log", base=2)
    axes.set_ylim(bottom=0.85)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("layer")
    axes.set_ylabel("approximate rank\n(largest over heads)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)


def _plain(text: str) -> str:
    """Return text in which matplotlib finds no mathematics, short enough for a legend."""
    return textwrap.shorten(text, 48, placeholder=" …").replace("$", r"\$")
