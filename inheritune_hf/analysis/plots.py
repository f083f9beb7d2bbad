"""Show an analysis: a table for a terminal, and figures that say what they show, on what, beside which controls."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..figures import figure_style, save_figure
from ..measures import MEASURES
from .collapse import NEAR_RANK_ONE, SHARE, is_lazy_layer
from .influence import BlockScores
from .measurement import CollapseReport, Uniform

if TYPE_CHECKING:
    from rich.table import Table

_MAX, _MEAN, _DOTS, _CONTROL = "#08519c", "#b35806", "#9ecae1", "#666666"


def layer_table(report: CollapseReport, tau: float = SHARE, tolerance: float = NEAR_RANK_ONE) -> Table:
    """
    Return the table of an analysis, one line for each layer.

    Args:
        report (`CollapseReport`): What was measured.
        tau (`float`, *optional*, defaults to `0.9`): Share of the squared spectrum, and of the squared entries.
        tolerance (`float`, *optional*, defaults to `0.5`): MaxRank above 1 that still counts as near rank-1.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    place = report.shares.index(tau)
    controls = [_control(item, place) for item in (report.uniform, report.sliding) if item is not None]
    table = Table(box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False, show_edge=False, caption="\n".join(controls))
    intervals = [
        "" if interval is None else f"{interval[0]:.1f}–{interval[1]:.1f}"
        for interval in report.max_rank_intervals(tau)
    ]
    ranks = report.max_ranks(tau)
    columns = {"layer": [str(item.layer) for item in report.layers], "MaxRank": _numbers(ranks, 2)}
    columns["interval"] = intervals
    if report.random:
        columns["random"] = _numbers(report.max_ranks(tau, random=True), 1)
    columns["AvgMass"] = _numbers(report.avg_masses(tau), 1)
    columns["sink"] = _numbers([float(np.mean(item.sink)) if item.heads else None for item in report.layers], 2)
    if report.blocks is not None:
        columns["influence"] = _numbers(report.blocks.influence, 3)
        columns["loss if gone"] = [f"{loss - report.blocks.loss:+.3f}" for loss in report.blocks.skipped]
    columns[""] = [_remark(ranks[item.layer], item.kind, tolerance) for item in report.layers]
    for header in columns:
        table.add_column(header, justify="right" if header else "left", no_wrap=bool(header))
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _control(control: Uniform, place: int) -> str:
    name = "causal attention" if control.window is None else f"attention within {control.window} tokens"
    return f"uniform {name}: rank {control.ranks[place]}, mass {control.masses[place]}, sink {control.sink:.2f}"


def _remark(rank: float | None, kind: str, tolerance: float) -> str:
    if rank is None:
        return f"{kind}: no softmax attention"
    if is_lazy_layer(rank):
        return "lazy"
    return "near rank-1" if is_lazy_layer(rank, tolerance) else ""


def _numbers(values: Sequence[float | None], digits: int) -> list[str]:
    return ["" if value is None else f"{value:.{digits}f}" for value in values]


def draw_report(report: CollapseReport, folder: str | os.PathLike[str], tau: float = SHARE) -> list[Path]:
    """
    Draw every figure that the report has numbers for.

    Args:
        report (`CollapseReport`): What was measured.
        folder (`str` or `os.PathLike`): Where to; made if it is not there.
        tau (`float`, *optional*, defaults to `0.9`): Share of the squared spectrum, and of the squared entries.

    Returns:
        `list[Path]`: PNG files: `rank.png`, `heads.png`, `maps.png`, `blocks.png` and `depth.png`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Callable[[], Any]] = {}
    if any(item.heads for item in report.layers):
        figures["rank.png"] = lambda: rank_figure(report, tau)
        figures["heads.png"] = lambda: heads_figure(report, tau)
    if report.maps:
        figures["maps.png"] = lambda: maps_figure(report, tau)
    if report.blocks is not None:
        figures["blocks.png"] = lambda: blocks_figure(report)
        figures["depth.png"] = lambda: depth_figure(report)
    with figure_style():
        for name, draw in figures.items():
            save_figure(draw(), folder / name)
    return [folder / name for name in figures]


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
    """Return the scores of each block by the measures that look at what blocks change."""
    _blocks(report)
    measures = [measure for measure in MEASURES.values() if measure.blocks]
    figure, grid = _figure(_title(report, "what each block changes"), rows=len(measures))
    for place, (axes, measure) in enumerate(zip(np.atleast_1d(grid), measures, strict=True)):
        scores = np.asarray(measure.score(report, SHARE))
        axes.bar(np.arange(report.depth), scores, color=_MAX if place % 2 == 0 else _MEAN)
        axes.set_ylabel(measure.axis)
        if (scores > 0).all():
            axes.set_yscale("log")
        else:
            axes.axhline(0, color="#444444", linewidth=0.8)
            axes.set_yscale("symlog", linthresh=0.1)
        _by_layer(axes, report, label=place == len(measures) - 1)
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

    figure = Figure(figsize=(8, 4.2 if rows == 1 else 1.4 + 2.1 * rows), dpi=130, layout="constrained")
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


def _blocks(report: CollapseReport) -> BlockScores:
    if report.blocks is None:
        raise ValueError("The report has no figures of blocks; measure with blocks=True.")
    return report.blocks
