"""What a run came to: one table, one picture, one sentence, all made from records."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..records import Match, Round

#: Points of a loss curve: (optimizer steps, nats per token).
Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class ResultRow:
    """
    One model on the test set.

    Args:
        model (`str`): What the model is.
        layers (`int`): Depth.
        parameters (`int`): Number of parameters, tied ones counted once.
        steps (`int`): Optimizer steps that this run trained it for, all rounds together.
        tokens (`int`): Tokens of those steps.
        loss (`float`): Test loss in nats per token.
        match (`Match`, *optional*): Paired comparison with the reference; None for the reference itself.
    """

    model: str
    layers: int
    parameters: int
    steps: int
    tokens: int
    loss: float
    match: Match | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a dictionary that JSON can hold."""
        return asdict(self)


HEADERS = ("model", "layers", "parameters", "steps", "tokens", "test loss", "difference", "interval", "matched")


def table_cells(rows: Sequence[ResultRow]) -> list[tuple[str, ...]]:
    """Return the cells of the result table, one tuple for each row, in the order of `HEADERS`."""
    return [
        (
            row.model,
            str(row.layers),
            f"{row.parameters:,}",
            f"{row.steps:,}",
            f"{row.tokens:,}",
            f"{row.loss:.4f}",
            "" if row.match is None else f"{row.match.difference:+.4f}",
            interval(row.match),
            "" if row.match is None else "yes" if row.match.matched else "no",
        )
        for row in rows
    ]


def interval(match: Match | None) -> str:
    """Return the interval between a difference's two one-sided bounds, in nats per token, or why there is none."""
    if match is None:
        return ""
    if match.lower is None or match.upper is None:
        return match.note
    return f"{match.lower:+.4f} to {match.upper:+.4f}"


def terminal_table(rows: Sequence[ResultRow]) -> Table:
    """Return the result table for a terminal of 80 columns: sizes in millions, intervals below differences."""
    notes = sorted({row.match.note for row in rows if row.match is not None and row.match.note})
    table = Table(box=SIMPLE_HEAD, padding=(0, 0), show_edge=False, caption="\n".join(notes) or None)
    table.add_column("model", min_width=10)
    for header in ("layers", "params", "steps", "tokens", "test loss", "difference", "matched"):
        table.add_column(header, justify="right", no_wrap=True)
    for row, cells in zip(rows, table_cells(rows), strict=True):
        span = "no interval"
        if row.match is not None and row.match.lower is not None and row.match.upper is not None:
            span = f"{row.match.lower:+.3f} to {row.match.upper:+.3f}"
        table.add_row(
            row.model,
            cells[1],
            f"{row.parameters / 1e6:.2f}M",
            cells[3],
            f"{row.tokens / 1e6:.2f}M",
            cells[5],
            f"{cells[6]}\n({span})" if row.match is not None else "",
            cells[8],
        )
    return table


def markdown_table(rows: Sequence[ResultRow]) -> str:
    """Return the result table as Markdown."""
    lines = ["| " + " | ".join(HEADERS) + " |", "|" + "---|" * len(HEADERS)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in table_cells(rows))])


def draw_losses(
    path: str | os.PathLike[str],
    rounds: Sequence[Round],
    student: Curve,
    reference_loss: float,
    controls: Mapping[str, Curve] | None = None,
) -> None:
    """
    Draw selection loss against steps: every round, the controls, and the reference's line.

    Args:
        path (`str` or `os.PathLike`): PNG file to write.
        rounds (`Sequence[Round]`): The rounds.
        student (`Curve`): The student's evaluations over all rounds.
        reference_loss (`float`): The line to reach, in nats per token.
        controls (`Mapping[str, Curve]`, *optional*): Evaluations of other models, by name.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(reference_loss, color="#444444", linewidth=1.2, linestyle="--")
    styles = dict(zip(controls or {}, _CONTROL_STYLES, strict=False))
    for name, curve in (controls or {}).items():
        axes.plot(*zip(*curve, strict=True), label=name, linewidth=1.4, **styles[name])
    for item, color in zip(rounds, _round_colors(len(rounds)), strict=True):
        points = [(step, loss) for step, loss in student if item.start_step < step <= item.end_step]
        label = f"round {item.index}: {item.layers} inherited layers" + (" (matched)" if item.match.matched else "")
        axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4, linewidth=2, label=label)
        if item.index > 1:
            axes.axvline(item.start_step, color="#bbbbbb", linewidth=0.8)
    axes.annotate(
        f"reference {reference_loss:.3f}",
        (0, reference_loss),
        xycoords=("axes fraction", "data"),
        xytext=(4, -11),
        textcoords="offset points",
        color="#444444",
        fontsize=9,
    )
    ends = [curve[-1][1] for curve in (controls or {}).values()]
    _frame(axes, [reference_loss, *(loss for _, loss in student), *ends])
    axes.set_xlabel("optimizer steps, all rounds together")
    axes.set_ylabel("selection loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9, frameon=False)
    figure.savefig(Path(path), metadata={"Software": None})


def draw_layers(path: str | os.PathLike[str], kept: Sequence[int], depth: int) -> None:
    """
    Draw which layers of the reference a student holds: one square for each, those that are kept filled.

    Args:
        path (`str` or `os.PathLike`): PNG file to write.
        kept (`Sequence[int]`): The kept layers, 0-based.
        depth (`int`): Depth of the reference, in layers.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.1), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    names = [layer for layer in range(depth) if layer % max(1, depth // 12) == 0 or layer == depth - 1]
    for kind, layers, color in (
        (f"inherited ({len(kept)})", list(kept), "#08519c"),
        (f"left out ({depth - len(kept)})", [layer for layer in range(depth) if layer not in kept], "#dddddd"),
    ):
        axes.bar(layers, 1, width=0.85, color=color, label=kind)
    axes.set_xticks(names)
    axes.set_xlim(-0.6, depth - 0.4)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel("layer of the reference", fontsize=8)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.95))
    figure.savefig(Path(path), metadata={"Software": None})


_CONTROL_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#b35806", "linestyle": "-."},
    {"color": "#542788", "linestyle": ":"},
    {"color": "#1b7837", "linestyle": (0, (5, 1))},
)


def _round_colors(count: int) -> list[tuple[float, float, float]]:
    """Return shades of blue, the last round's the darkest."""
    return [(0.45 - 0.4 * share, 0.68 - 0.38 * share, 0.9 - 0.25 * share) for share in _shares(count)]


def _shares(count: int) -> list[float]:
    return [1.0] if count == 1 else [number / (count - 1) for number in range(count)]


def _frame(axes: Any, losses: Sequence[float]) -> None:
    """Keep the student, the reference and where controls end in sight: random weights begin far above."""
    low, high = min(losses), max(losses)
    margin = 0.08 * max(high - low, 0.05)
    axes.set_ylim(low - margin, high + 2 * margin)
    axes.set_xlim(left=0)
