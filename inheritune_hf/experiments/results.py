"""Results of a comparison: its records, and the table, curves and files that are made from them."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..arms import ARMS, CONTROLS, parse_arm
from ..config import CompareConfig
from ..evaluation import SeedDifference, compare_over_seeds
from ..figures import Panel, arm_panel, difference_panel, save_panels
from ..records import DataFacts, Outcome, Validation, read_record, write_record, write_text
from ..run_folder import CELL_FILE, RESULT_FILE

#: The control that trains the reference further: as an arm of a comparison, and in the table of the embedded run.
CONTINUED = "continued"
TRAINED_FURTHER = "reference, trained further"


@dataclass(frozen=True)
class Cell:
    """One arm trained with one seed and one learning rate; counts include all rounds and stages, failed ones too."""

    arm: str  # as the recipe names it
    seed: int  # of weights, dropout and data order
    learning_rate: float  # peak
    layers: int  # of the final model
    parameters: int  # of the final model, tied ones counted once
    steps: int
    tokens: int
    flops: float  # forward and backward
    epochs: float
    seconds: float  # of training and evaluating
    outcome: Outcome | None  # how the loop ended; None for other arms
    curve: tuple[tuple[int, float, float], ...]  # tokens, FLOPs, selection loss in nats per token
    reference_loss: float  # on the selection set, in nats per token
    selection: Validation  # of the final model
    folder: str  # of the trained model, below the comparison's
    identity: Mapping[str, Any]  # its settings: a finished cell is not reused for others
    lazy_layers: int | None = None  # of the final model; None where not measured
    first_match: tuple[int, float] | None = None  # tokens and FLOPs at the first evaluation that matched the target
    test: Validation | None = None  # None unless this cell was chosen
    test_set: str = ""  # fingerprint of the set that `test` was measured on


@dataclass(frozen=True)
class ReferenceResult:
    """The reference of a comparison, as it is before any training here."""

    name: str
    layers: int
    parameters: int
    steps: int | None  # of its own training, like tokens and FLOPs; None where not known
    tokens: int | None
    flops: float | None
    selection_loss: float
    lazy_layers: int
    test: Validation


@dataclass(frozen=True)
class ComparisonRecord:
    """A finished comparison, as `comparison.json` holds it."""

    compare: CompareConfig
    recipe: Mapping[str, Any]
    settings: Mapping[str, Any]  # what `inheritune compare` takes to run it again
    versions: Mapping[str, str]
    reference: ReferenceResult
    data: DataFacts
    sweep: Mapping[str, Mapping[str, float]]  # selection loss by arm and learning rate, with the first seed
    left_out: Mapping[str, str]  # reason for each arm that was not run
    cells: tuple[Cell, ...]  # those at the chosen learning rates

    def by_arm(self) -> dict[str, list[Cell]]:
        """Return the cells of each arm, one for each seed."""
        groups: dict[str, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(cell.arm, []).append(cell)
        return groups


def read_cell(folder: Path) -> Cell | None:
    """Read a finished cell; None if there is none."""
    path = folder / CELL_FILE
    return read_record(Cell, path) if path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One row of the table: an arm, or the reference, as means over seeds."""

    arm: str
    summary: str
    layers: str  # of the final model; a span where seeds differ
    parameters: int
    learning_rate: float | None = None
    steps: int
    tokens: int
    flops: float
    epochs: float = 0.0
    seconds: float = 0.0
    loss: float  # on the test set, in nats per token
    deviation: float | None = None  # standard deviation of the loss between seeds
    to_reference: SeedDifference | None = None
    to_continued: SeedDifference | None = None  # to the reference, trained further
    tokens_to_match: int | None = None  # mean of the cells' `first_match`; None unless with every seed
    flops_to_match: float | None = None
    lazy_layers: float | None = None


def arm_results(record: ComparisonRecord) -> list[ArmResult]:
    """Return the rows of the reference and of each arm, best test loss first."""
    reference, groups = record.reference, record.by_arm()
    continued = {cell.seed: cell for cell in groups.get(CONTINUED, ())}
    first = ArmResult(
        arm="reference",
        summary="as it was given",
        layers=str(reference.layers),
        parameters=reference.parameters,
        steps=reference.steps or 0,
        tokens=reference.tokens or 0,
        flops=reference.flops or 0.0,
        loss=reference.test.loss,
        lazy_layers=reference.lazy_layers,
    )
    arms = [_arm_result(name, cells, reference.test, continued) for name, cells in groups.items()]
    return [first, *sorted(arms, key=lambda row: row.loss)]


def _arm_result(name: str, cells: Sequence[Cell], start: Validation, continued: Mapping[int, Cell]) -> ArmResult:
    tests = [_test(cell) for cell in cells]
    losses = [test.loss for test in tests]
    depths = sorted({cell.layers for cell in cells})
    matches = [cell.first_match for cell in cells if cell.first_match is not None]
    matched = len(matches) == len(cells)
    paired = name != CONTINUED and all(cell.seed in continued for cell in cells)
    lazy = [cell.lazy_layers for cell in cells if cell.lazy_layers is not None]
    return ArmResult(
        arm=name,
        summary=parse_arm(name).arm.summary,
        layers=str(depths[0]) if len(depths) == 1 else f"{depths[0]} to {depths[-1]}",
        parameters=round(fmean(cell.parameters for cell in cells)),
        learning_rate=cells[0].learning_rate,
        steps=round(fmean(cell.steps for cell in cells)),
        tokens=round(fmean(cell.tokens for cell in cells)),
        flops=fmean(cell.flops for cell in cells),
        epochs=fmean(cell.epochs for cell in cells),
        seconds=fmean(cell.seconds for cell in cells),
        loss=fmean(losses),
        deviation=statistics.stdev(losses) if len(losses) > 1 else None,
        to_reference=compare_over_seeds(tests, [start] * len(tests)),
        to_continued=compare_over_seeds(tests, [_test(continued[cell.seed]) for cell in cells]) if paired else None,
        tokens_to_match=round(fmean(tokens for tokens, _ in matches)) if matched else None,
        flops_to_match=fmean(flops for _, flops in matches) if matched else None,
        lazy_layers=fmean(lazy) if lazy else None,
    )


def _test(cell: Cell) -> Validation:
    if cell.test is None:
        raise ValueError(f"The cell {cell.folder} was not measured on the test set; run the comparison to its end.")
    return cell.test


# Table and pictures


def write_results(folder: Path, record: ComparisonRecord) -> Table:
    """Write a comparison's record, tables and pictures, and return its table for a terminal."""
    write_record(folder / RESULT_FILE, record)
    rows = arm_results(record)
    write_text(folder / "comparison.md", markdown(rows, record))
    write_text(folder / "comparison.csv", comma_separated(rows))
    save_panels(folder / "comparison.png", [curves_panel(record)])
    save_panels(folder / "differences.png", [differences_panel(rows)])
    return terminal(rows)


#: The columns of two tables that fit a page: results, and what they took.
OUTCOME = ("layers", "parameters", "test loss", "to the reference", "to the reference trained further")
COST = ("rate", "tokens", "FLOPs", "epochs", "tokens to match", "FLOPs to match", "minutes", "lazy layers")

_BUDGETS = {
    "tokens": "The budget of every arm is the same tokens.",
    "flops": "The budget of every arm is the same FLOPs, but for the controls "
    f"({', '.join(f'`{name}`' for name in CONTROLS)}): they take as many steps as the student did over all its rounds, "
    "whatever that costs, because a control that saw less text would be easier to beat.",
}


def table_cells(row: ArmResult) -> dict[str, str]:
    """Return an arm's cells of the table by column: `arm`, and those of `OUTCOME` and `COST`."""
    return {
        "arm": row.arm,
        "layers": row.layers,
        "parameters": f"{row.parameters:,}",
        "rate": "" if row.learning_rate is None else f"{row.learning_rate:g}",
        "tokens": f"{row.tokens:,}" if row.tokens else "not known",
        "FLOPs": f"{row.flops:.2e}" if row.flops else "not known",
        "epochs": f"{row.epochs:.2f}" if row.epochs else "",
        "test loss": f"{row.loss:.4f}" + ("" if row.deviation is None else f" ± {row.deviation:.4f}"),
        "to the reference": difference(row.to_reference),
        "to the reference trained further": difference(row.to_continued),
        "tokens to match": "" if row.tokens_to_match is None else f"{row.tokens_to_match:,}",
        "FLOPs to match": "" if row.flops_to_match is None else f"{row.flops_to_match:.2e}",
        "minutes": f"{row.seconds / 60:.1f}" if row.seconds else "",
        "lazy layers": "" if row.lazy_layers is None else f"{row.lazy_layers:.1f}",
    }


def difference(given: SeedDifference | None) -> str:
    """Return a difference and its interval, in nats per token."""
    if given is None:
        return ""
    if given.lower is None or given.upper is None:
        return f"{given.difference:+.4f}"
    return f"{given.difference:+.4f} ({given.lower:+.4f} to {given.upper:+.4f})"


def table_notes(rows: Sequence[ArmResult], record: ComparisonRecord) -> list[str]:
    """Return what the table means, what weakens its intervals, and what was left out, a sentence or more each."""
    notes = sorted({item.note for row in rows for item in (row.to_reference, row.to_continued) if item and item.note})
    more = [f"`{row.arm}`" for row in rows if (arm := ARMS.get(row.arm)) and (arm.budgets > 1 or arm.after_reference)]
    return [
        _BUDGETS[record.compare.budget] + (f" More by design: {', '.join(more)}." if more else ""),
        f"Test loss in nats per token, mean over {len(record.compare.seeds)} seed(s) ± standard deviation. Differences "
        "are paired by document and seed, with a 95 % interval that covers other documents and other seeds. Tokens and "
        "FLOPs count all rounds and stages, failed ones included; the reference's own training counts in its row and "
        "in no other. What it takes to match is counted until the first evaluation that matched by the recipe's "
        "tolerance and confidence. Each arm's learning rate was chosen on the selection set with the first seed; the "
        "test set was opened once, for what was chosen.",
        *(f"Note: {note}." for note in notes),
        *(f"Left out: `{name}`, because {reason}." for name, reason in record.left_out.items()),
    ]


def markdown(rows: Sequence[ArmResult], record: ComparisonRecord) -> str:
    """Return two tables as Markdown, results and what they took, with notes and what the arms are."""
    parts = []
    for columns in (OUTCOME, COST):
        lines = [f"| arm | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
        for row in rows:
            cells = table_cells(row)
            lines.append(f"| `{row.arm}` | {' | '.join(cells[name] for name in columns)} |")
        parts.append("\n".join(lines))
    parts.append("\n".join(f"- `{row.arm}`: {row.summary}" for row in rows))
    return "\n\n".join([*parts, *table_notes(rows, record)]) + "\n"


def comma_separated(rows: Sequence[ArmResult]) -> str:
    """Return every figure of the table, unrounded, as CSV."""
    text = io.StringIO()
    flat = [_flat(row) for row in rows]
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(row: ArmResult) -> dict[str, Any]:
    values = asdict(row)
    for name in ("to_reference", "to_continued"):
        given = values.pop(name) or {}
        values.update({f"{name}_{part}": given.get(part) for part in ("difference", "lower", "upper")})
    return values


def terminal(rows: Sequence[ArmResult]) -> Table:
    """Return the table for a terminal of 80 columns."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("arm", overflow="fold")  # a name that is cut could be another arm's
    for header in ("layers", "params", "tokens", "test loss", "to the reference", "to it, trained further"):
        table.add_column(header, justify="right")
    for row in rows:
        table.add_row(
            row.arm,
            row.layers,
            f"{row.parameters / 1e6:.2f}M",
            f"{row.tokens / 1e6:.2f}M" if row.tokens else "",
            f"{row.loss:.4f}",
            difference(row.to_reference).replace(" (", "\n("),
            difference(row.to_continued).replace(" (", "\n("),
        )
    return table


def mean_curves(record: ComparisonRecord) -> dict[str, tuple[tuple[int, float], ...]]:
    """Return each arm's points of tokens and selection loss, means over seeds, lowest last loss first."""
    groups = record.by_arm()
    curves = {}
    for name in sorted(groups, key=lambda name: fmean(cell.selection.loss for cell in groups[name])):
        trained = (_points(cell) for cell in groups[name] if cell.curve)  # a loop may match before it trains
        steps = zip(*trained, strict=False)  # as long as the shortest of them
        curves[name] = tuple((round(fmean(t for t, _ in each)), fmean(loss for _, loss in each)) for each in steps)
    return {name: curve for name, curve in curves.items() if curve}


def curves_panel(record: ComparisonRecord) -> Panel:
    """Return the picture of selection loss against tokens, one line for each arm."""
    seeds = {name: [_points(cell) for cell in cells if cell.curve] for name, cells in record.by_arm().items()}
    return arm_panel(mean_curves(record), record.reference.selection_loss, seeds)


def _points(cell: Cell) -> tuple[tuple[int, float], ...]:
    return tuple((tokens, loss) for tokens, _, loss in cell.curve)


def differences_panel(rows: Sequence[ArmResult]) -> Panel:
    """Return the picture of each arm's difference to the starting reference on the test set and its interval."""
    shown = [(row, row.to_reference) for row in rows if row.to_reference is not None]
    return difference_panel(
        [(f"{row.arm} ({row.layers})", given.difference, given.lower, given.upper) for row, given in shown],
        "test loss less the starting reference's (nats per token); layers in brackets",
    )
