"""What a comparison came to: its cells, and the table, curves and files that are made from them."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..arms import CONTROLS, parse_arm
from ..evaluation import SeedDifference, compare_over_seeds
from ..figures import Panel, arm_panel, difference_panel, save_panels
from ..records import Validation, decode, read_record, write_text
from ..run_folder import CELL_FILE, RESULT_FILE

CONTINUED = "continued"


@dataclass(frozen=True)
class Cell:
    """
    What an arm came to with one seed and one learning rate.

    Args:
        arm (`str`): The arm, as the recipe names it.
        seed (`int`): Seed of weights, dropout and data order.
        learning_rate (`float`): Peak learning rate.
        layers (`int`): Depth of the final model.
        parameters (`int`): Its parameters, tied ones counted once.
        steps (`int`): Optimizer steps, all rounds and stages together, failed ones included.
        tokens (`int`): Tokens of those steps.
        flops (`float`): Floating-point operations of those steps, forward and backward.
        epochs (`float`): Passes over the training set, all rounds and stages together.
        seconds (`float`): Wall time of training and evaluating.
        outcome (`str`, *optional*): How the loop ended; None for other arms.
        curve (`tuple`): Points of (tokens, FLOPs, selection loss in nats per token).
        reference_loss (`float`): The reference's selection loss, in nats per token.
        selection (`Validation`): The final model's loss on the selection set, per document.
        folder (`str`): Name of the folder that holds the trained model, below the comparison's.
        identity (`Mapping`): What it was trained by: a finished cell stands for no other settings.
        lazy_layers (`int`, *optional*): Layers of the final model near rank 1; None where not measured.
        test (`Validation`, *optional*): Its loss on the test set; None unless this cell was chosen.
    """

    arm: str
    seed: int
    learning_rate: float
    layers: int
    parameters: int
    steps: int
    tokens: int
    flops: float
    epochs: float
    seconds: float
    outcome: str | None
    curve: tuple[tuple[int, float, float], ...]
    reference_loss: float
    selection: Validation
    folder: str
    identity: Mapping[str, Any]
    lazy_layers: int | None = None
    test: Validation | None = None


def read_cell(folder: Path) -> Cell | None:
    """Read a finished cell; None if there is none."""
    path = folder / CELL_FILE
    return read_record(Cell, path) if path.is_file() else None


@dataclass(frozen=True)
class ArmResult:
    """
    What an arm came to over all seeds.

    Args:
        arm (`str`): The arm, or `reference`.
        summary (`str`): What it is.
        layers (`str`): Depth of its final model; a span where seeds differ.
        parameters (`int`): Its parameters, on average over seeds.
        learning_rate (`float`, *optional*): Chosen peak learning rate.
        steps (`int`): Optimizer steps, on average.
        tokens (`int`): Tokens trained on, on average, failed rounds included.
        flops (`float`): Floating-point operations of that, on average.
        epochs (`float`): Passes over the training set, on average.
        seconds (`float`): Wall time, on average.
        loss (`float`): Test loss in nats per token, mean over seeds.
        deviation (`float`, *optional*): Standard deviation of the loss between seeds.
        to_reference (`SeedDifference`, *optional*): Paired difference to the starting reference.
        to_continued (`SeedDifference`, *optional*): Paired difference to the reference, trained further.
        tokens_to_match (`int`, *optional*): Tokens until the mean selection loss was not above the reference's at an
            evaluation, on average; None unless every seed got there.
        flops_to_match (`float`, *optional*): Operations until then.
        lazy_layers (`float`, *optional*): Layers near rank 1, on average.
    """

    arm: str
    summary: str
    layers: str
    parameters: int
    learning_rate: float | None
    steps: int
    tokens: int
    flops: float
    epochs: float
    seconds: float
    loss: float
    deviation: float | None
    to_reference: SeedDifference | None = None
    to_continued: SeedDifference | None = None
    tokens_to_match: int | None = None
    flops_to_match: float | None = None
    lazy_layers: float | None = None


def arm_results(facts: Mapping[str, Any]) -> list[ArmResult]:
    """Return the result of the reference and of each arm, best test loss first, from the records of a comparison."""
    reference = facts["reference"]
    start = decode(Validation, reference["test"], "reference.test")
    groups = cells_by_arm(facts)
    continued = {cell.seed: cell for cell in groups.get(CONTINUED, ())}
    rows = [
        ArmResult(
            arm="reference",
            summary="as it was given",
            layers=str(reference["layers"]),
            parameters=reference["parameters"],
            learning_rate=None,
            steps=reference["steps"] or 0,
            tokens=reference["tokens"] or 0,
            flops=reference["flops"] or 0.0,
            epochs=0.0,
            seconds=0.0,
            loss=start.loss,
            deviation=None,
            lazy_layers=reference["lazy_layers"],
        )
    ]
    arms = [_arm_result(name, cells, start, continued) for name, cells in groups.items()]
    return rows + sorted(arms, key=lambda row: row.loss)


def _arm_result(name: str, cells: Sequence[Cell], start: Validation, continued: Mapping[int, Cell]) -> ArmResult:
    tests = [_test(cell) for cell in cells]
    losses = [test.loss for test in tests]
    depths = sorted({cell.layers for cell in cells})
    matched = [point for cell in cells if (point := _reached(cell)) is not None]
    paired = name != CONTINUED and all(cell.seed in continued for cell in cells)
    lazy = [cell.lazy_layers for cell in cells if cell.lazy_layers is not None]

    def mean(field: str) -> float:
        return _mean([getattr(cell, field) for cell in cells])

    return ArmResult(
        arm=name,
        summary=parse_arm(name).arm.summary,
        layers=str(depths[0]) if len(depths) == 1 else f"{depths[0]} to {depths[-1]}",
        parameters=round(mean("parameters")),
        learning_rate=cells[0].learning_rate,
        steps=round(mean("steps")),
        tokens=round(mean("tokens")),
        flops=mean("flops"),
        epochs=mean("epochs"),
        seconds=mean("seconds"),
        loss=_mean(losses),
        deviation=statistics.stdev(losses) if len(losses) > 1 else None,
        to_reference=compare_over_seeds(tests, [start] * len(tests)),
        to_continued=compare_over_seeds(tests, [_test(continued[cell.seed]) for cell in cells]) if paired else None,
        tokens_to_match=round(_mean([point[0] for point in matched])) if len(matched) == len(cells) else None,
        flops_to_match=_mean([point[1] for point in matched]) if len(matched) == len(cells) else None,
        lazy_layers=_mean(lazy) if lazy else None,
    )


def write_results(folder: Path) -> Table:
    """
    Write a comparison's table and pictures from its records: `comparison.md`, `.csv`, `.png`, `differences.png`.

    Args:
        folder (`Path`): The comparison's folder, which holds `comparison.json`.

    Returns:
        `rich.table.Table`: The table for a terminal.
    """
    facts = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    rows = arm_results(facts)
    write_text(folder / "comparison.md", markdown(rows, facts))
    write_text(folder / "comparison.csv", comma_separated(rows))
    save_panels(folder / "comparison.png", [curves_panel(facts)])
    save_panels(folder / "differences.png", [differences_panel(rows)])
    return terminal(rows)


#: What came out, and what it took: the columns of two tables that fit a page.
OUTCOME = ("layers", "parameters", "test loss", "to the reference", "to the reference trained further")
COST = ("rate", "tokens", "FLOPs", "epochs", "tokens to match", "FLOPs to match", "minutes", "lazy layers")

_BUDGETS = {
    "tokens": "The budget of every arm is the same tokens.",
    "flops": "The budget of every arm is the same operations, but for the controls "
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


def table_notes(rows: Sequence[ArmResult], facts: Mapping[str, Any]) -> list[str]:
    """Return what the table rests on, what weakens its intervals, and what was left out, a sentence or more each."""
    notes = sorted({item.note for row in rows for item in (row.to_reference, row.to_continued) if item and item.note})
    seeds = facts["compare"]["seeds"]
    return [
        _BUDGETS[facts["compare"]["budget"]],
        f"Test loss in nats per token, mean over {len(seeds)} seed(s) ± standard deviation. Differences are paired by "
        "document and seed, with a 95 % interval that covers other documents and other seeds. Tokens and FLOPs count "
        "all rounds and stages, failed ones included; the reference's own training stands in its row and in no other. "
        "What it takes to match is counted until the mean selection loss first was not above the reference's. "
        "Each arm's learning rate was chosen on the selection set with the first seed; the test set was opened once, "
        "for what was chosen.",
        *(f"Note: {note}." for note in notes),
        *(f"Left out: `{name}`, because {reason}." for name, reason in facts["left_out"].items()),
    ]


def markdown(rows: Sequence[ArmResult], facts: Mapping[str, Any]) -> str:
    """Return two tables as Markdown, what came out and what it took, with what they rest on and what was left out."""
    parts = []
    for columns in (OUTCOME, COST):
        lines = [f"| arm | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
        for row in rows:
            cells = table_cells(row)
            lines.append(f"| `{row.arm}` | {' | '.join(cells[name] for name in columns)} |")
        parts.append("\n".join(lines))
    parts.append("\n".join(f"- `{row.arm}`: {row.summary}" for row in rows))
    return "\n\n".join([*parts, *table_notes(rows, facts)]) + "\n"


def difference(given: SeedDifference | None) -> str:
    """Return a difference and its interval, in nats per token."""
    if given is None:
        return ""
    if given.lower is None or given.upper is None:
        return f"{given.difference:+.4f}"
    return f"{given.difference:+.4f} ({given.lower:+.4f} to {given.upper:+.4f})"


def comma_separated(rows: Sequence[ArmResult]) -> str:
    """Return every figure of the table, unrounded, as CSV."""
    text = io.StringIO()
    flat = [_flat(row) for row in rows]
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def terminal(rows: Sequence[ArmResult]) -> Table:
    """Return the table for a terminal of 80 columns."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("arm", overflow="fold")  # names that are cut are no longer told apart
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


def mean_curves(facts: Mapping[str, Any]) -> dict[str, tuple[tuple[int, float], ...]]:
    """Return each arm's points of tokens and selection loss, means over seeds, lowest last loss first."""
    groups = cells_by_arm(facts)
    order = sorted(groups, key=lambda name: _mean([cell.selection.loss for cell in groups[name]]))
    curves = {}
    for name in order:
        cells = groups[name]
        shortest = min(len(cell.curve) for cell in cells)
        points = ([cell.curve[index] for cell in cells] for index in range(shortest))
        curves[name] = tuple(
            (round(_mean([tokens for tokens, _, _ in each])), _mean([loss for _, _, loss in each])) for each in points
        )
    return curves


def curves_panel(facts: Mapping[str, Any]) -> Panel:
    """Return the picture of selection loss against tokens, one line for each arm, from the records of a comparison."""
    seeds = {name: [_points(cell) for cell in cells] for name, cells in cells_by_arm(facts).items()}
    return arm_panel(mean_curves(facts), facts["reference"]["selection_loss"], seeds)


def differences_panel(rows: Sequence[ArmResult]) -> Panel:
    """Return the picture of each arm's difference to the starting reference on the test set and its interval."""
    shown = [(row, row.to_reference) for row in rows if row.to_reference is not None]
    return difference_panel(
        [(f"{row.arm} ({row.layers})", given.difference, given.lower, given.upper) for row, given in shown],
        "test loss less the starting reference's (nats per token); layers in brackets",
    )


def cells_by_arm(facts: Mapping[str, Any]) -> dict[str, list[Cell]]:
    """Return the cells of each arm, one for each seed, from the records of a comparison."""
    groups: dict[str, list[Cell]] = {}
    for values in facts["cells"]:
        cell = decode(Cell, values, "comparison.json")
        groups.setdefault(cell.arm, []).append(cell)
    return groups


def _points(cell: Cell) -> tuple[tuple[int, float], ...]:
    return tuple((tokens, loss) for tokens, _, loss in cell.curve)


def _reached(cell: Cell) -> tuple[int, float] | None:
    """Return tokens and operations at the first evaluation whose mean loss is not above the reference's."""
    return next(((tokens, flops) for tokens, flops, loss in cell.curve if loss <= cell.reference_loss), None)


def _flat(row: ArmResult) -> dict[str, Any]:
    values = asdict(row)
    for name in ("to_reference", "to_continued"):
        given = values.pop(name) or {"difference": None, "lower": None, "upper": None}
        values.update({f"{name}_{part}": given[part] for part in ("difference", "lower", "upper")})
    return values


def _test(cell: Cell) -> Validation:
    if cell.test is None:
        raise ValueError(f"The cell {cell.folder} was not measured on the test set; run the comparison to its end.")
    return cell.test


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
