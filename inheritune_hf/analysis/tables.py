"""An analysis on a terminal: one line for each layer."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .collapse import NEAR_RANK_ONE, SHARE, is_lazy_layer
from .report import CollapseReport, Uniform


def layer_table(report: CollapseReport, tau: float = SHARE, tolerance: float = NEAR_RANK_ONE) -> Table:
    """
    Return the table of an analysis, one line for each layer.

    Args:
        report (`CollapseReport`): What was measured.
        tau (`float`, *optional*, defaults to `0.9`): Share of the squared spectrum, and of the squared entries.
        tolerance (`float`, *optional*, defaults to `0.5`): MaxRank above 1 that still counts as near rank-1.
    """
    place = report.shares.index(tau)
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
        show_edge=False,
        caption="\n".join(_control(item, place) for item in (report.uniform, report.sliding) if item is not None),
    )
    headers = ["layer", "MaxRank", "interval", "AvgMass", "sink", ""]
    if report.random:
        headers.insert(3, "random")
    if report.blocks is not None:
        headers[-1:-1] = ["influence", "loss if gone"]
    for header in headers:
        table.add_column(header, justify="right" if header else "left", no_wrap=bool(header))
    ranks, masses = report.max_ranks(tau), report.avg_masses(tau)
    intervals = report.max_rank_intervals(tau)
    random = report.max_ranks(tau, random=True) if report.random else []
    for layer, item in enumerate(report.layers):
        rank, interval = ranks[layer], intervals[layer]
        cells = [str(layer), _number(rank, 2), "" if interval is None else f"{interval[0]:.1f}–{interval[1]:.1f}"]
        if random:
            cells.append(_number(random[layer], 1))
        cells += [_number(masses[layer], 1), _mean(item.sink)]
        if report.blocks is not None:
            cells += [
                f"{report.blocks.influence[layer]:.3f}",
                f"{report.blocks.skipped[layer] - report.blocks.loss:+.3f}",
            ]
        table.add_row(*cells, _remark(rank, item.kind, tolerance))
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


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _mean(values: tuple[float, ...]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else ""
