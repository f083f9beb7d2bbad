"""The results of a finished run: its record, and its table as Markdown and for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..evaluation.facts import LazinessComparison
from ..outcomes import matched_word
from ..records import DataFacts, Match, RunRecord

#: A whole reference, trained further to be the reference of other runs, as tables name it.
ADAPTED = "adapted reference"


@dataclass(frozen=True)
class ResultRow:
    """One model on the test set."""

    model: str  # its name in the table
    layers: int
    parameters: int  # tied ones counted once
    steps: int  # that this run trained it for, over all rounds
    tokens: int
    loss: float  # nats per token
    match: Match | None = None  # with what the run had to reach; None for the reference itself


@dataclass(frozen=True)
class FinishedRun(RunRecord):
    """A finished run, as `rounds.json` holds it: its record, and what was measured at its end."""

    results: tuple[ResultRow, ...] = ()
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)  # steps and selection loss
    data: DataFacts | None = None
    seed: int | None = None
    lazy_layers: LazinessComparison | None = None


HEADERS = ("model", "layers", "parameters", "steps", "tokens", "test loss", "difference", "interval", "matched")


def table_cells(rows: Sequence[ResultRow]) -> list[tuple[str, ...]]:
    """Return the cells of the result table, one tuple for each row, in the order of `HEADERS`."""
    depth = max((row.layers for row in rows if row.match is None), default=0)
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
            "" if row.match is None else matched_word(row.match, row.layers, depth if row.model == "student" else 0),
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
    """Return the result table for a terminal of 80 columns: sizes in millions, perplexities and intervals below."""
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
            f"{cells[5]}\n(ppl {math.exp(row.loss):.4g})",
            f"{cells[6]}\n({span})" if row.match is not None else "",
            cells[8].replace(", ", ",\n"),
        )
    return table


def markdown_table(rows: Sequence[ResultRow]) -> str:
    """Return the result table as Markdown."""
    lines = ["| " + " | ".join(HEADERS) + " |", "|" + "---|" * len(HEADERS)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in table_cells(rows))])
