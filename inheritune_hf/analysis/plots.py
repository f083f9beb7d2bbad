"""Pictures of an analysis, made to be read: each says what it shows, on how many sequences, beside which controls."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..figures import figure_style, save_figure
from .collapse import SHARE
from .report import CollapseReport

_MAX, _MEAN, _DOTS, _CONTROL = "#08519c", "#b35806", "#9ecae1", "#666666"


def draw_report(report: CollapseReport, folder: str | os.PathLike[str], tau: float = SHARE) -> list[Path]:
    """
    Draw every picture that the report has figures for.

    Args:
        report (`CollapseReport`): What was measured.
        folder (`str` or `os.PathLike`): Where to; made if it is not there.
        tau (`float`, *optional*, defaults to `0.9`): Share of the squared spectrum, and of the squared entries.

    Returns:
        `list[Path]`: PNG files: `rank.png`, `heads.png`, `maps.png`, `blocks.png` and `depth.png`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[tuple[str, Callable[[], Any]]] = []
    if any(item.heads for item in report.layers):
        pictures.append(("rank.png", lambda: rank_figure(report, tau)))
        pictures.append(("heads.png", lambda: heads_figure(report, tau)))
    if report.maps:
        pictures.append(("maps.png", lambda: maps_figure(report, tau)))
    if report.blocks is not None:
        pictures.append(("blocks.png", lambda: blocks_figure(report)))
        pictures.append(("depth.png", lambda: depth_figure(report)))
    with figure_style():
        for name, draw in pictures:
            save_figure(draw(), folder / name)
    return [folder / name for name, _ in pictures]


def rank_figure(report: CollapseReport, tau: float = SHARE) -> Any:
    """Return a figure of the approximate rank of each layer: largest and mean over heads, heads, interval, controls."""
    figure, axes = _figure(_title(report, f"approximate rank at tau {tau:g}"))
    place = report.shares.index(tau)
    intervals = report.max_rank_intervals(tau)
    dots = [(item.layer, rank) for item in report.layers for rank in report.ranks(item.layer, tau).mean(0)]
    axes.scatter(*zip(*dots, strict=True), s=9, color=_DOTS, label="heads")
    _line(axes, report.max_ranks(tau), color=_MAX, marker="o", markersize=7, markerfacecolor="none", label="MaxRank")
    bars = [(layer, interval) for layer, interval in enumerate(intervals) if interval is not None]
    for layer, (lower, upper) in bars:
        # Beside the marker, so that narrow ones can be seen.
        style = {"color": _MAX, "linewidth": 1.5, "marker": "_", "markersize": 6}
        label = "95 % interval of MaxRank" if layer == bars[0][0] else None
        axes.plot([layer + 0.15, layer + 0.15], [lower, upper], label=label, **style)
    means = [float(report.ranks(n, tau).mean()) if item.heads else None for n, item in enumerate(report.layers)]
    _line(axes, means, color=_MEAN, marker="s", markersize=3, linewidth=1.2, label="mean over heads")
    if report.random:
        _line(axes, report.max_ranks(tau, random=True), color=_CONTROL, linestyle="--", label="random weights, MaxRank")
    if report.sliding is None:
        axes.axhline(report.uniform.ranks[place], color=_CONTROL, linestyle=":", label="uniform causal attention")
    else:
        uniform = [float(report.uniform_of(layer).ranks[place]) for layer in range(report.depth)]
        _line(axes, uniform, color=_CONTROL, linestyle=":", label="uniform attention within each layer's window")
    axes.axhspan(0.9, 1.5, color="#d73027", alpha=0.12, linewidth=0, label="near rank-1")
    axes.set_yscale("log", base=2)
    axes.set_ylim(0.9, max(4.0, 1.4 * _highest(report, tau)))
    _plain_ticks(axes)
    axes.set_ylabel("singular values needed")
    _by_layer(axes, report)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure


def heads_figure(report: CollapseReport, tau: float = SHARE) -> Any:
    """Return heat maps of each head's rank and column mass: dark is collapsed, grey has no softmax attention."""
    from matplotlib.colors import LogNorm

    figure, (upper, lower) = _figure(_title(report, f"every head, tau = eta = {tau:g}"), rows=2)
    heads = max(item.heads for item in report.layers)
    for axes, name, values in ((upper, "rank", report.ranks), (lower, "mass", report.masses)):
        grid = np.full((heads, report.depth), np.nan)
        for layer, item in enumerate(report.layers):
            if item.heads:
                grid[: item.heads, layer] = values(layer, tau).mean(0)
        axes.set_facecolor("#bbbbbb")
        # From 1 to the length of the sequences, whatever the model: pictures of two models can be compared.
        picture = axes.imshow(grid, aspect="auto", norm=LogNorm(1, report.tokens), cmap="viridis", origin="lower")
        bar = figure.colorbar(picture, ax=axes, label="singular values" if name == "rank" else "columns")
        _plain_ticks(bar.ax)
        axes.set_ylabel("head\n(approximate rank)" if name == "rank" else "head\n(column mass)")
        _by_layer(axes, report, label=axes is lower)
    return figure


def maps_figure(report: CollapseReport, tau: float = SHARE) -> Any:
    """Return the attention of some heads, from the highest rank to the lowest; a bright column is a sink."""
    from matplotlib.colors import PowerNorm

    figure, grid = _figure(
        f"{_short(report.model)}: attention, mean of {min(3, report.sequences)} sequences",
        rows=1,
        columns=len(report.maps),
    )
    for axes, item in zip(np.atleast_1d(grid), report.maps, strict=True):
        weights = np.asarray(item.weights)
        shown = np.ma.masked_where(np.triu(np.ones_like(weights), 1) > 0, weights)
        # The root of a weight: patterns of one hundredth can still be seen beside a sink.
        picture = axes.imshow(shown, norm=PowerNorm(0.5, 0, 1), cmap="magma")
        rank = float(report.ranks(item.layer, tau)[:, item.head].mean())
        axes.set_title(f"layer {item.layer}, head {item.head}\nrank {rank:.1f}", fontsize=9)
        axes.set_xlabel("key")
    np.atleast_1d(grid)[0].set_ylabel("query")
    figure.colorbar(picture, ax=list(np.atleast_1d(grid)), shrink=0.7, label="attention")
    figure.set_size_inches(2.6 * len(report.maps) + 1.2, 3.2)
    return figure


def blocks_figure(report: CollapseReport) -> Any:
    """Return block influence, and the loss that each block is worth."""
    scores = _blocks(report)
    figure, (upper, lower) = _figure(_title(report, "what each block changes"), rows=2)
    layers = np.arange(report.depth)
    upper.bar(layers, scores.influence, color=_MAX)
    upper.set_yscale("log")
    upper.set_ylabel("block influence\n(1 − cosine)")
    lower.bar(layers, np.asarray(scores.skipped) - scores.loss, color=_MEAN)
    lower.axhline(0, color="#444444", linewidth=0.8)
    lower.set_ylabel("loss without the block\n(nats per token more)")
    lower.set_yscale("symlog", linthresh=0.1)
    _by_layer(upper, report, label=False)
    _by_layer(lower, report)
    return figure


def depth_figure(report: CollapseReport) -> Any:
    """Return the loss after each number of blocks, through the final norm and the head."""
    scores = _blocks(report)
    figure, axes = _figure(_title(report, "loss by depth"))
    axes.plot(range(report.depth + 1), scores.by_depth, color=_MAX, marker="o", markersize=4)
    axes.axhline(scores.loss, color=_CONTROL, linestyle="--", linewidth=1.2)
    axes.annotate(
        f"the model {scores.loss:.3f}",
        (0, scores.loss),
        xytext=(4, 4),
        textcoords="offset points",
        color=_CONTROL,
        fontsize=9,
    )
    axes.set_xlabel("blocks")
    axes.set_ylabel("loss through the head (nats per token)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    return figure


def _figure(title: str, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    figure = Figure(figsize=(8, 4.2 if rows == 1 else 5.6), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure, figure.subplots(rows, columns)


def _title(report: CollapseReport, subject: str) -> str:
    return f"{_short(report.model)}: {subject} · {report.sequences} sequences of {report.tokens} tokens"


def _short(name: str) -> str:
    return Path(name).name or name


def _line(axes: Any, values: Sequence[float | None], **style: Any) -> None:
    axes.plot(range(len(values)), [np.nan if value is None else value for value in values], **style)


def _by_layer(axes: Any, report: CollapseReport, label: bool = True) -> None:
    axes.set_xlim(-0.6, report.depth - 0.4)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if label:
        axes.set_xlabel("layer")
    if axes.images:
        axes.set_xlim(-0.5, report.depth - 0.5)
        return
    axes.grid(alpha=0.25)


def _plain_ticks(axes: Any) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.yaxis.set_major_locator(FixedLocator([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _highest(report: CollapseReport, tau: float) -> float:
    values: list[float | None] = [
        *report.max_ranks(tau),
        *(report.max_ranks(tau, random=True) if report.random else ()),
    ]
    return max((value for value in values if value is not None), default=1.0)


def _blocks(report: CollapseReport) -> Any:
    if report.blocks is None:
        raise ValueError("The report has no figures of blocks; measure with blocks=True.")
    return report.blocks
