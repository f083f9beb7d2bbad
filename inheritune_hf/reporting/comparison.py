"""What the report of a comparison says, every figure straight out of its records."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import DataFacts
from ..evaluation import SeedDifference
from ..experiments.arms import CONTROLS, LOOP, parse_arm
from ..experiments.results import (
    CONTINUED,
    COST,
    HEADERS,
    OUTCOME,
    ArmResult,
    Cell,
    arm_results,
    curves_panel,
    difference,
    mean_curves,
    table_cells,
    table_notes,
)
from ..training.identity import NUMERIC_ARGUMENTS
from .document import Block, Chart, Paragraph, Preformatted, Report, Section, Table
from .given import set_blocks, setting_blocks

_OUTCOMES = {"matched": "matched", "no_more_layers": "no more layers", "budget_exhausted": "steps used up"}


def build_comparison(name: str, facts: Mapping[str, Any]) -> Report:
    """
    Return the report of a comparison: verdict, arms with intervals, curves, cells, data, and how to do it again.

    Args:
        name (`str`): Name of its folder.
        facts (`Mapping[str, Any]`): Its records, `comparison.json`.
    """
    rows = arm_results(facts)
    cells = [Cell.from_dict(values) for values in facts["cells"]]
    word, good = _word(cells)
    sections = (
        Section("arms", "Arms", (*arm_blocks(facts), *_notes(rows, facts))),
        Section("curves", "Learning curves", tuple(_curves(facts))),
        Section("cells", "Seeds and learning rates", tuple(_cells(cells, facts))),
        Section("data", "Data and settings", tuple(_given(facts))),
        Section("reproduce", "How to do it again", tuple(reproduce(name, facts))),
    )
    facts_shown = tuple(_facts(rows, cells, facts))
    return Report(name, word, good, " ".join(_verdict(rows, cells, facts)), facts_shown, sections, "Learning curves")


def read_comparison(path: Path) -> dict[str, Any]:
    """
    Read the records of a comparison.

    Raises:
        ValueError: If they are damaged.
    """
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is damaged ({error}); run the same comparison again, which writes it anew."
        ) from error
    return facts


def arm_blocks(facts: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the table of arms with intervals, what each of them took, and what they are."""
    rows = arm_results(facts)
    shown = [dict(zip(HEADERS, table_cells(row), strict=True)) for row in rows]
    for caption, names in (("Test loss in nats per token, and its differences", OUTCOME), ("What each took", COST)):
        yield Table(
            caption, ("arm", *names), tuple((cells["arm"], *(cells[name] for name in names)) for cells in shown)
        )
    arms = [(row.arm, row.summary, parse_arm(row.arm).arm.source) for row in rows if row.arm != "reference"]
    yield Table("What the arms are", ("arm", "what it is", "where it comes from"), tuple(arms), text_columns=3)


def beside_continued(given: SeedDifference | None, facts: Mapping[str, Any], who: str = "it") -> str:
    """Return a sentence on how a model stands beside the reference that was trained on."""
    if given is None:
        return f"Whether {who} would match the reference trained on was not measured."
    return _beside(given, facts, who, "the reference trained on for the same budget")


def _beside(given: SeedDifference, facts: Mapping[str, Any], who: str, what: str) -> str:
    tolerance = float(facts["recipe"]["tolerance"])
    bound = given.upper if facts["recipe"]["confidence"] is not None else None
    verb = "matches" if (given.difference if bound is None else bound) <= tolerance else "does not match"
    mean = " by the mean" if bound is None else ""
    return f"On the test set {who} {verb}{mean} {what}: {difference(given)} nats per token."


def _word(cells: Sequence[Cell]) -> tuple[str, bool | None]:
    loop = _loop([cell.arm for cell in cells])
    outcomes = [cell.outcome == "matched" for cell in cells if cell.arm == loop]
    if not outcomes:
        return "compared", None
    if all(outcomes):
        return "matched", True
    return ("matched in part", None) if any(outcomes) else ("missed", False)


def _verdict(rows: Sequence[ArmResult], cells: Sequence[Cell], facts: Mapping[str, Any]) -> Iterator[str]:
    depth = facts["reference"]["layers"]
    loop = _loop([row.arm for row in rows])
    if loop is not None:
        row = next(row for row in rows if row.arm == loop)
        own = [cell for cell in cells if cell.arm == row.arm]
        matched = [cell for cell in own if cell.outcome == "matched"]
        goal = "its starting reference" if facts["recipe"]["target"] == "reference" else "the loss that was asked for"
        seeds = f"with {len(matched)} of {len(own)} {'seed' if len(own) == 1 else 'seeds'}"
        verb = (
            f"matched {goal} on the selection set {seeds}" if matched else f"did not match {goal} on the selection set"
        )
        kept = f"{row.layers} of {depth} layers"
        yield f"The loop ({row.arm}) {verb}; its last students have {kept}."
        who = "its student"
    else:
        arms = [row for row in rows if row.arm != "reference"]
        deepest = {row.arm: max(cell.layers for cell in cells if cell.arm == row.arm) for row in arms}
        students = [row for row in arms if deepest[row.arm] < depth]
        row = (students or arms or list(rows))[0]
        among = " of those shallower than the reference" if students else ""
        yield f"Of {len(arms)} arms, {row.arm} has the lowest test loss{among}."
        who = row.arm
    if row.to_reference is not None:
        yield _beside(row.to_reference, facts, who, "the starting reference")
    yield beside_continued(row.to_continued, facts, who)


def _facts(rows: Sequence[ArmResult], cells: Sequence[Cell], facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    compare = facts["compare"]
    yield "arms", str(len(rows) - 1)
    yield "seeds", ", ".join(map(str, compare["seeds"]))
    yield "equal for all arms", {"tokens": "tokens", "flops": "operations"}[compare["budget"]]
    yield "reference, test loss", f"{rows[0].loss:.4f}"
    if len(rows) > 1:
        yield "lowest test loss", f"{rows[1].loss:.4f} ({rows[1].arm})"
    yield "training FLOPs, all cells shown", f"{sum(cell.flops for cell in cells):.3g}"


def _notes(rows: Sequence[ArmResult], facts: Mapping[str, Any]) -> Iterator[Block]:
    for note in table_notes(rows, facts):
        yield Paragraph(note.replace("`", ""))
    if not any(row.arm == CONTINUED for row in rows):
        yield Paragraph(
            f"Controls such as {', '.join(CONTROLS)} say whether it is inheritance that helps, or more training; the "
            "reference trained on was not among the arms."
        )


def _curves(facts: Mapping[str, Any]) -> Iterator[Block]:
    curves, target = mean_curves(facts), facts["reference"]["selection_loss"]
    ends = "; ".join(f"{name} ends at {curve[-1][1]:.4f}" for name, curve in curves.items())
    yield Chart(
        "Selection loss in nats per token, mean over seeds",
        f"Loss against tokens trained on, all rounds and stages together. {ends}. The reference's is {target:.4f}.",
        curves_panel(facts),
    )


def _cells(cells: Sequence[Cell], facts: Mapping[str, Any]) -> Iterator[Block]:
    yield Table(
        "Each arm with each seed, at its chosen learning rate",
        ("cell", "arm", "outcome", "seed", "rate", "layers", "steps", "selection loss", "test loss"),
        tuple(
            (
                cell.folder,
                cell.arm,
                "" if cell.outcome is None else _OUTCOMES[cell.outcome],
                str(cell.seed),
                f"{cell.learning_rate:g}",
                str(cell.layers),
                f"{cell.steps:,}",
                f"{cell.selection.loss:.4f}",
                "" if cell.test is None else f"{cell.test.loss:.4f}",
            )
            for cell in cells
        ),
        text_columns=3,
    )
    rates = sorted({rate for losses in facts["sweep"].values() for rate in losses}, key=float)
    yield Table(
        "Selection loss by learning rate, first seed",
        ("arm", *rates),
        tuple(
            (arm, *("" if rate not in losses else f"{losses[rate]:.4f}" for rate in rates))
            for arm, losses in facts["sweep"].items()
        ),
    )


def _given(facts: Mapping[str, Any]) -> Iterator[Block]:
    yield from set_blocks(DataFacts.from_dict(facts["data"]))
    settings = facts["settings"]
    yield from setting_blocks(settings, {name: settings.get(name) for name in NUMERIC_ARGUMENTS})


def reproduce(name: str, facts: Mapping[str, Any]) -> Iterator[Block]:
    yield Table("Versions", ("library", "version"), tuple(sorted(facts["versions"].items())), text_columns=2)
    settings = {**facts["settings"], "output_dir": name}
    yield Preformatted("The comparison, as JSON", json.dumps(settings, indent=1, ensure_ascii=False))
    yield Paragraph(
        "To do it again, save it as comparison.json where its paths lead to the files, with another output_dir, then:"
    )
    commands = ("inheritune compare comparison.json", f"inheritune report {shlex.quote(name)}")
    yield Preformatted("Commands", "\n".join(commands))


def _loop(arms: Sequence[str]) -> str | None:
    """Return the arm that a comparison is about: the plain loop, whatever its variants came to, or else a variant."""
    return next((arm for arm in sorted(arms) if arm.partition("/")[0] == LOOP), None)
