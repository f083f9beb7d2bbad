"""Show an analysis: a table for a terminal, and figures beside their controls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..figures import LIGHT, figure_style, rank_axis, save_figure
from ..measures import MEASURES
from .collapse import NEAR_RANK_ONE, SHARE
from .report import CollapseReport, remark

if TYPE_CHECKING:
    from rich.table import Table

_MAX, _MEAN, _CONTROL = LIGHT["student"], LIGHT["series1"], LIGHT["soft"]


def layer_table(report: CollapseReport, tau: float = SHARE) -> Table:
    """Return the table of an analysis, one line for each layer."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    place, ranks = report.shares.index(tau), report.max_ranks(tau)
    controls = []
    for item in (report.uniform, report.sliding):
        if item is not None:
            name = "causal attention" if item.window is None else f"attention within {item.window} tokens"
            figures = f"rank {item.ranks[place]}, mass {item.masses[place]}, sink {item.sink:.2f}"
            controls.append(f"uniform {name}: {figures}")
    columns = {
        "layer": [str(item.layer) for item in report.layers],
        "MaxRank": _numbers(ranks, 2),
        "interval": ["" if item is None else f"{item[0]:.1f}–{item[1]:.1f}" for item in report.max_rank_intervals(tau)],
    }
    if report.random:
        columns["random"] = _numbers(report.max_ranks(tau, random=True), 1)
    columns["AvgMass"] = _numbers(report.avg_masses(tau), 1)
    columns["sink"] = _numbers([float(np.mean(item.sink)) if item.heads else None for item in report.layers], 2)
    if report.blocks is not None:
        columns["influence"] = _numbers(report.blocks.influence, 3)
        columns["loss without"] = [f"{loss - report.blocks.loss:+.3f}" for loss in report.blocks.skipped]
    columns[""] = [remark(ranks[item.layer], item.kind) for item in report.layers]
    table = Table(box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False, show_edge=False, caption="\n".join(controls))
    for header in columns:
        table.add_column(header, justify="right" if header else "left", no_wrap=bool(header))
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _numbers(values: Sequence[float | None], digits: int) -> list[str]:
    return ["" if value is None else f"{value:.{digits}f}" for value in values]


def draw_report(report: CollapseReport, folder: str | os.PathLike[str], tau: float = SHARE) -> list[Path]:
    """
    Draw every figure that the report has numbers for, `rank`, `heads`, `maps`, `blocks` and `depth`, at a share `tau`.

    Returns the PNG files in `folder`, which is made if there is none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with figure_style():
        figures: dict[str, Any] = {}
        if any(item.heads for item in report.layers):
            figures["rank"], figures["heads"] = rank_figure(report, tau), heads_figure(report, tau)
        if report.maps:
            figures["maps"] = maps_figure(report, tau)
        if report.blocks is not None:
            figures["blocks"], figures["depth"] = blocks_figure(report), depth_figure(report)
        for name, figure in figures.items():
            paths.append(folder / f"{name}.png")
            save_figure(figure, paths[-1])
    return paths


def rank_figure(report: CollapseReport, tau: float = SHARE) -> Any:
    """Return a figure of the approximate rank of each layer: largest and mean over heads, heads, interval, controls."""
    figure, axes = _figure(_title(report, f"approximate rank at tau {tau:g}"))
    ranks, random = report.max_ranks(tau), report.max_ranks(tau, random=True) if report.random else []
    rank_axis(axes, [*ranks, *random], 1 + NEAR_RANK_ONE)
    dots = [(item.layer, rank) for item in report.layers for rank in report.ranks(item.layer, tau).mean(0)]
    axes.scatter(*zip(*dots, strict=True), s=9, color=_MAX, alpha=0.4, linewidths=0, label="heads")
    _line(axes, ranks, color=_MAX, marker="o", markersize=7, markerfacecolor="none", label="MaxRank")
    label: str | None = "95 % interval of MaxRank"
    for layer, interval in enumerate(report.max_rank_intervals(tau)):
        if interval is not None:  # beside the marker, so that narrow ones can be seen
            style = {"color": _MAX, "linewidth": 1.5, "marker": "_", "markersize": 6}
            axes.plot([layer + 0.15, layer + 0.15], interval, label=label, **style)
            label = None
    means = [float(report.ranks(n, tau).mean()) if item.heads else None for n, item in enumerate(report.layers)]
    _line(axes, means, color=_MEAN, marker="s", markersize=3, linewidth=1.2, label="mean over heads")
    if random:
        _line(axes, random, color=_CONTROL, linestyle="--", label="random weights, MaxRank")
    place = report.shares.index(tau)
    uniform = [float(report.uniform_of(layer).ranks[place]) for layer in range(report.depth)]
    name = "causal attention" if report.sliding is None else "attention within each layer's window"
    _line(axes, uniform, color=_CONTROL, linestyle=":", label=f"uniform {name}")
    axes.set_ylabel("singular values needed")
    _by_layer(axes, report)
    axes.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure


def heads_figure(report: CollapseReport, tau: float = SHARE) -> Any:
    """Return heat maps of each head's rank and column mass: dark is collapsed, grey has no softmax attention."""
    from matplotlib.colors import LogNorm

    figure, rows = _figure(_title(report, f"every head, tau = eta = {tau:g}"), rows=2)
    heads = max(item.heads for item in report.layers)
    for axes, name, unit, values in (
        (rows[0], "approximate rank", "singular values", report.ranks),
        (rows[1], "column mass", "columns", report.masses),
    ):
        grid = np.full((heads, report.depth), np.nan)
        for layer, item in enumerate(report.layers):
            if item.heads:
                grid[: item.heads, layer] = values(layer, tau).mean(0)
        axes.set_facecolor("#bbbbbb")
        # From 1 to the length of the sequences, whatever the model: figures of two models can be compared.
        image = axes.imshow(grid, aspect="auto", norm=LogNorm(1, report.tokens), cmap="viridis", origin="lower")
        bar = figure.colorbar(image, ax=axes, label=unit, format="{x:g}", ticks=2 ** np.arange(13))
        bar.ax.minorticks_off()
        axes.set_ylabel(f"head\n({name})")
        _by_layer(axes, report, label=axes is rows[1])
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(-0.5, report.depth - 0.5)
        axes.grid(visible=False)
    return figure


def maps_figure(report: CollapseReport, tau: float = SHARE) -> Any:
    """Return the attention of some heads, from the highest rank to the lowest; a bright column is a sink."""
    from matplotlib.colors import PowerNorm

    count = len(report.maps)
    title = f"{_short(report.model)}: attention, mean of {min(3, report.sequences)} sequences"
    figure, grid = _figure(title, columns=count, size=(2.6 * count + 1.2, 3.2))
    row = list(np.atleast_1d(grid))
    for axes, item in zip(row, report.maps, strict=True):
        weights = np.asarray(item.weights)
        causal = np.ma.masked_where(np.triu(np.ones_like(weights), 1) > 0, weights)
        # The root of a weight: patterns of one hundredth can still be seen beside a sink.
        image = axes.imshow(causal, norm=PowerNorm(0.5, 0, 1), cmap="magma")
        rank = float(report.ranks(item.layer, tau)[:, item.head].mean())
        axes.set_title(f"layer {item.layer}, head {item.head}\nrank {rank:.1f}", fontsize=9)
        axes.set_xlabel("key")
        axes.grid(visible=False)
    row[0].set_ylabel("query")
    figure.colorbar(image, ax=row, shrink=0.7, label="attention")
    return figure


def blocks_figure(report: CollapseReport) -> Any:
    """Return the scores of each block by the measures of what blocks change."""
    measures = [measure for measure in MEASURES.values() if measure.blocks and measure.remove is None]
    figure, rows = _figure(_title(report, "what each block changes"), rows=len(measures))
    for place, (axes, measure) in enumerate(zip(rows, measures, strict=True)):
        scores = np.asarray(measure.score(report, SHARE))
        axes.bar(np.arange(report.depth), scores, color=_MAX if place % 2 == 0 else _MEAN)
        axes.set_ylabel(measure.axis)
        if (scores > 0).all():
            axes.set_yscale("log", subs=())
            axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
        else:
            axes.axhline(0, color=_CONTROL, linewidth=0.8)
            axes.set_yscale("symlog", linthresh=0.1)
        axes.yaxis.set_major_formatter("{x:g}")
        _by_layer(axes, report, label=place == len(measures) - 1)
    return figure


def depth_figure(report: CollapseReport) -> Any:
    """Return the loss after each number of blocks, through the final norm and the head."""
    scores: Any = report.blocks
    figure, axes = _figure(_title(report, "loss by depth"))
    axes.plot(range(report.depth + 1), scores.by_depth, color=_MAX, marker="o", markersize=4)
    axes.axhline(scores.loss, color=_CONTROL, linestyle="--", linewidth=1.2, label=f"the model {scores.loss:.3f}")
    axes.legend(loc="upper right")
    axes.set_xlabel("blocks")
    axes.set_ylabel("loss through the head (nats per token)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _figure(title: str, rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    size = size or (8, 4.2 if rows == 1 else 1.4 + 2.1 * rows)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
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
