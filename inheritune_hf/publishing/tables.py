"""The results of a finished run and of an evaluation: the record, and the cells of tables, wherever they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..evaluation.facts import CorpusComparison, LazinessComparison, StudentEvaluation, TaskComparison
from ..outcomes import matched_word
from ..records import DataFacts, Match, RunRecord, perplexity

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
            f"{cells[5]}\n(ppl {perplexity(row.loss):.4g})",
            f"{cells[6]}\n({span})" if row.match is not None else "",
            cells[8].replace(", ", ",\n"),
        )
    return table


def markdown_table(rows: Sequence[ResultRow]) -> str:
    """Return the result table as Markdown."""
    lines = ["| " + " | ".join(HEADERS) + " |", "|" + "---|" * len(HEADERS)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in table_cells(rows))])


def corpus_headers(found: StudentEvaluation) -> tuple[str, ...]:
    """Return the headers above the cells of `corpus_rows`."""
    third = ("adapted", "difference from it", "its interval") if found.adapted_corpora else ()
    return ("figure", "student", "reference", "difference", "interval", *third)


def corpus_rows(found: StudentEvaluation) -> Iterator[tuple[CorpusComparison, list[tuple[str, ...]]]]:
    """Yield each corpus with its rows: loss, perplexity and accuracy, beside the reference and the adapted one."""
    for item, adapted in zip_longest(found.corpora, found.adapted_corpora):
        names, cells = ("loss, nats per token", "perplexity", "next-token accuracy"), _corpus_cells(item)
        more = ((),) * 3 if adapted is None else [row[1:] for row in _corpus_cells(adapted)]
        yield item, [(name, *one, *other) for name, one, other in zip(names, cells, more, strict=True)]


def _corpus_cells(item: CorpusComparison) -> list[tuple[str, ...]]:
    mine, theirs = item.student, item.reference
    bounds = ""
    if item.accuracy_lower is not None and item.accuracy_upper is not None:
        bounds = f"{item.accuracy_lower:+.2%} to {item.accuracy_upper:+.2%}"
    return [
        (f"{mine.loss:.4f}", f"{theirs.loss:.4f}", f"{item.match.difference:+.4f}", interval(item.match)),
        (f"{mine.perplexity:.3f}", f"{theirs.perplexity:.3f}", "", ""),
        (f"{mine.accuracy:.2%}", f"{theirs.accuracy:.2%}", f"{item.accuracy_difference:+.2%}", bounds),
    ]


def task_headers(found: StudentEvaluation) -> tuple[str, ...]:
    """Return the headers above the cells of `task_rows`."""
    third = ("adapted", "difference from it", "its p") if found.adapted_tasks else ()
    return ("task", "asked", "metric", "rows", "student", "reference", "difference", "p", *third)


def task_rows(found: StudentEvaluation) -> Iterator[tuple[str, ...]]:
    """Yield the tasks with standard errors and paired differences, beside the reference and the adapted one."""
    for item, adapted in zip_longest(found.tasks, found.adapted_tasks):
        more = () if adapted is None else _task_cells(adapted)[1:]
        yield item.task, item.asked, item.label, f"{item.rows:,}", *_task_cells(item), *more


def _task_cells(item: TaskComparison) -> tuple[str, ...]:
    def with_error(value: float | None, error: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")

    return (
        with_error(item.student, item.student_error),
        with_error(item.reference, item.reference_error),
        with_error(item.difference, item.difference_error, "+"),
        "" if item.p_value is None else f"{item.p_value:.3g}",
    )
