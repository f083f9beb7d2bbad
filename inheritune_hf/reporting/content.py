"""The content of a report: sections of text, tables and figures, every number straight from a record."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from ..arms import CONTROLS, LOOP, parse_arm
from ..config import DataConfig
from ..evaluation.facts import FIRST_TOKEN, Efficiency, Spread, StudentEvaluation
from ..experiments import results
from ..experiments.results import ArmResult, Cell, arm_results
from ..figures import Panel, layer_panel, loss_panel, rank_panel
from ..layers import describe
from ..publishing import tables
from ..records import DataFacts, decode
from ..run_folder import COURSE, NUMERIC_ARGUMENTS, without_nothing
from .summary import RunSummary

if TYPE_CHECKING:
    from ..evaluation import SeedDifference

#: Name of the control that trains the reference further, in the table of a run.
TRAINED_FURTHER = "reference, trained on"

# One or two words for an outcome, and whether it is a success; None if nothing is decided.
_WORDS: dict[str | None, tuple[str, bool | None]] = {
    "matched": ("matched", True),
    "no_more_layers": ("missed", False),
    "budget_exhausted": ("missed", False),
    "interrupted": ("interrupted", None),
    None: ("not finished", None),
}
_CELL_OUTCOMES = {
    None: "",
    "matched": "matched",
    "no_more_layers": "no more layers",
    "budget_exhausted": "steps used up",
}


@dataclass(frozen=True)
class Paragraph:
    """Text; with `strong`, a verdict."""

    kind: ClassVar = "paragraph"
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """
    A table.

    Args:
        caption (`str`): What it shows, with units.
        headers (`tuple[str, ...]`): Names of the columns; the first column names the rows.
        rows (`tuple[tuple[str, ...], ...]`): Cells.
        text_columns (`int`, *optional*, defaults to `1`): Columns from the left that hold text; others hold numbers.
    """

    kind: ClassVar = "table"
    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1


@dataclass(frozen=True)
class Chart:
    """
    A drawing.

    Args:
        title (`str`): What it shows.
        description (`str`): The same in words, for readers who do not see it.
        panel (`Panel`): The drawing.
    """

    kind: ClassVar = "chart"
    title: str
    description: str
    panel: Panel


@dataclass(frozen=True)
class Preformatted:
    """Text that is shown as it is, under a label."""

    kind: ClassVar = "preformatted"
    label: str
    text: str

    @property
    def texts(self) -> tuple[tuple[str, str], ...]:
        """The text with its label."""
        return ((self.label, self.text),)


@dataclass(frozen=True)
class SideBySide:
    """
    The same prompt continued by two models.

    Args:
        texts (`tuple[tuple[str, str], ...]`): The beginning, then the name of each model and what it wrote.
    """

    kind: ClassVar = "samples"
    texts: tuple[tuple[str, str], ...]


Block = Paragraph | Table | Chart | Preformatted | SideBySide


@dataclass(frozen=True)
class Section:
    """A heading with an anchor, and what is below it."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """
    A whole report.

    Args:
        title (`str`): Name of the run.
        outcome (`str`): One or two words: matched, missed, interrupted.
        good (`bool`, *optional*): Whether that is a success; None if nothing is decided.
        verdict (`str`): The verdict in a sentence or two.
        facts (`tuple[tuple[str, str], ...]`): Few figures that matter most, named.
        sections (`tuple[Section, ...]`): The rest.
        picture (`str`): What its picture shows.
    """

    title: str
    outcome: str
    good: bool | None
    verdict: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    picture: str = "Losses, kept layers and ranks"


def build_report(run: RunSummary) -> Report:
    """
    Return the report of a run: verdict, figures, losses, layers, comparisons, text, data, and how to do it again.

    Args:
        run (`RunSummary`): What the run's folder says.
    """
    word, good = _WORDS[run.outcome] if run.trained else ("not trained", None)
    found = run.evaluation
    sections = _sections(
        ("losses", "Losses", _losses(run)),
        ("layers", "Layers", _layers(run)),
        ("test", "Test set", _test(run)),
        ("evaluation", "Beside the reference", _corpora(run)),
        ("comparison", "Beside other ways to make a model small", _comparison(run)),
        ("tasks", "Zero-shot tasks", _tasks(found) if found else ()),
        ("efficiency", "Size and speed", _efficiency(found) if found else ()),
        ("text", "Text", _samples(found) if found else ()),
        ("data", "Data and settings", _data(run.data, run.settings, run.training)),
        ("reproduce", "How to do it again", _reproduce_run(run)),
    )
    return Report(run.name, word, good, " ".join(_run_verdict(run)), tuple(_run_facts(run)), sections)


def build_comparison(name: str, facts: Mapping[str, Any]) -> Report:
    """
    Return the report of a comparison: verdict, arms with intervals, curves, cells, data, and how to do it again.

    Args:
        name (`str`): Name of its folder.
        facts (`Mapping[str, Any]`): Its records, `comparison.json`.
    """
    rows = arm_results(facts)
    cells = [decode(Cell, values, "comparison.json") for values in facts["cells"]]
    settings = facts["settings"]
    training = {name: settings.get(name) for name in NUMERIC_ARGUMENTS}
    loop = _loop([cell.arm for cell in cells])
    word, good = _comparison_word([cell.outcome == "matched" for cell in cells if cell.arm == loop])
    sections = _sections(
        ("arms", "Arms", (*_arms(facts), *_arm_notes(rows, facts))),
        ("curves", "Learning curves", _curves(facts)),
        ("cells", "Seeds and learning rates", _cells(cells, facts)),
        ("data", "Data and settings", _data(decode(DataFacts, facts["data"], "data"), settings, training)),
        ("reproduce", "How to do it again", _reproduce_comparison(name, facts)),
    )
    verdict = " ".join(_comparison_verdict(rows, cells, facts, loop))
    return Report(
        name, word, good, verdict, tuple(_comparison_facts(rows, cells, facts)), sections, picture="Learning curves"
    )


def _sections(*parts: tuple[str, str, Iterator[Block] | tuple[Block, ...]]) -> tuple[Section, ...]:
    """Return the sections that have something in them."""
    found = ((anchor, title, tuple(blocks)) for anchor, title, blocks in parts)
    return tuple(Section(anchor, title, blocks) for anchor, title, blocks in found if blocks)


def _run_verdict(run: RunSummary) -> Iterator[str]:
    depth = f"{len(run.kept_layers)} of {run.reference_layers} layers"
    if not run.trained:
        yield f"A student of {depth} was cut out of {run.reference} and not trained."
        return
    if run.outcome in {"interrupted", None}:
        state = "was interrupted" if run.outcome == "interrupted" else "has not ended"
        yield (
            f"The run {state}: the student of {depth} was last saved at step {run.step:,}, and whether it matches its "
            "target is not decided. The same command goes on from there."
        )
        return
    last = run.rounds[-1]
    goal = "its starting reference" if run.recipe.get("target") == "reference" else "the loss that was asked for"
    losses = f"{last.loss:.4f} against {last.target:.4f} nats per token on the selection set"
    work = f"after {len(run.rounds)} {'round' if len(run.rounds) == 1 else 'rounds'} and {last.end_step:,} steps"
    if run.outcome == "matched":
        yield f"A student of {depth} matched {goal}: {losses}, {work}."
    else:
        why = "there were no more layers to add" if run.outcome == "no_more_layers" else "the steps were used up"
        yield f"No student matched {goal}, up to {depth}: {losses}, {work}; {why}."
    yield _beside_trained_further(run)


def _beside_trained_further(run: RunSummary) -> str:
    """Say how the student stands beside the reference that was trained further, which is another claim."""
    if run.cell is not None:
        who = "it" if run.outcome == "matched" else "the last student"
        row = next(row for row in arm_results(run.cell.facts) if row.arm == run.cell.arm)
        return _beside_continued(row.to_continued, run.cell.facts, who)
    student, continued = run.result("student"), run.result(TRAINED_FURTHER)
    if student is None or continued is None:
        return "Whether it would match the reference trained on for as many steps was not measured."
    difference = student.loss - continued.loss
    figures = f"{student.loss:.4f} against {continued.loss:.4f} nats per token on the test set"
    tolerance = float(run.recipe.get("tolerance") or 0)
    who, also = ("It", " also") if run.outcome == "matched" else ("The last student", "")
    verb = f"{who}{also} matches, by the mean," if difference <= tolerance else f"{who} does not match"
    return f"{verb} the reference trained on for {continued.steps:,} steps: {figures}."


def _run_facts(run: RunSummary) -> Iterator[tuple[str, str]]:
    yield "layers", f"{len(run.kept_layers)} of {run.reference_layers}"
    student, reference = run.result("student"), run.result("reference")
    if student and reference:
        yield "parameters", f"{student.parameters / reference.parameters:.1%} of the reference's"
        if student.match is not None:
            yield "test loss, difference", f"{student.match.difference:+.4f} nats per token"
    if run.rounds:
        yield "steps", f"{run.rounds[-1].end_step:,}"
        yield "training FLOPs", f"{sum(item.flops for item in run.rounds):.3g}"
    if run.evaluation is not None and run.evaluation.efficiency is not None:
        rates = [item for item in run.evaluation.efficiency.speeds if item.quantity == "tokens per second"]
        if rates:
            yield f"generation, batch {rates[0].batch}", f"{rates[0].gain.median:.2f} × as fast"


def _losses(run: RunSummary) -> Iterator[Block]:
    tolerance, confidence = run.recipe.get("tolerance"), run.recipe.get("confidence")
    if run.curves.get("student"):
        ends = [f"{name} ends at {curve[-1][1]:.4f}" for name, curve in run.curves.items() if curve]
        aim = "" if run.target is None else f" The loss to reach is {run.target:.4f}."
        yield Chart(
            "Selection loss in nats per token",
            f"Loss against optimizer steps over {max(1, len(run.rounds))} rounds. {'; '.join(ends)}.{aim}",
            loss_panel(run.rounds, run.curves, run.target, float(tolerance or 0)),
        )
    if not run.rounds:
        return
    yield Table(
        "Rounds: loss on the selection set, nats per token",
        ("round", "layers", "steps", "tokens", "loss", "to reach", "difference", "interval", "matched"),
        tuple(
            (
                str(item.index),
                str(item.layers),
                f"{item.end_step - item.start_step:,}",
                f"{item.tokens:,}",
                f"{item.loss:.4f}",
                f"{item.target:.4f}",
                f"{item.match.difference:+.4f}",
                tables.interval(item.match),
                "yes" if item.match.matched else "no",
            )
            for item in run.rounds
        ),
    )
    if confidence is None:
        rule = f"A round matches if its loss is at most {tolerance} nats per token above the loss to reach."
    else:
        rule = (
            f"A round matches if the one-sided {confidence:.0%} upper bound of its difference is at most {tolerance} "
            "nats per token. Intervals lie between the two one-sided bounds and cluster by document."
        )
    yield Paragraph(rule)


def _layers(run: RunSummary) -> Iterator[Block]:
    rows = [(f"round {item.index}", item.kept_layers) for item in run.rounds]
    if not rows or rows[-1][1] != run.kept_layers:
        rows.append((f"round {len(run.rounds) + 1}" if run.trained else "student", run.kept_layers))
    words = "; ".join(f"{name}: {len(kept)} layers, {describe(kept)}" for name, kept in rows)
    yield Chart(
        f"Layers of the reference that were kept, of {run.reference_layers}",
        f"{words} (0-based, half-open as in the recipe).",
        layer_panel(rows, run.reference_layers),
    )
    if run.evaluation is not None and run.evaluation.laziness is not None:
        lazy = run.evaluation.laziness
        series = {"Reference": lazy.reference, "Student": lazy.student}
        ranks = (
            f"{name}, from layer 0: {', '.join('none' if value is None else f'{value:.1f}' for value in values)}."
            for name, values in series.items()
        )
        yield Chart(
            f"Approximate rank by layer, the largest over heads (tau {lazy.tau:g})",
            " ".join([lazy.comparison.sentence, *ranks]),
            rank_panel(lazy.reference, lazy.student, 1 + lazy.comparison.tolerance),
        )
    elif run.laziness:
        yield Paragraph(run.laziness)


def _test(run: RunSummary) -> Iterator[Block]:
    if run.results:
        yield Table("Test loss in nats per token", tables.HEADERS, tuple(tables.table_cells(run.results)))
        yield Paragraph(
            "The test set was opened once, after the last round. Differences are paired with the reference as it was "
            "at the start."
        )


def _corpora(run: RunSummary) -> Iterator[Block]:
    """Yield the verdict, and losses, perplexities and accuracies on every corpus."""
    if run.left_out:
        yield Paragraph(f"Left out: {run.left_out}")
    if run.evaluation is None or not run.evaluation.corpora:
        return
    yield Paragraph(run.evaluation.verdict(), strong=True)
    for item in run.evaluation.corpora:
        mine, theirs = item.student, item.reference
        accuracy = ""
        if item.accuracy_lower is not None and item.accuracy_upper is not None:
            accuracy = f"{item.accuracy_lower:+.2%} to {item.accuracy_upper:+.2%}"
        loss = (f"{mine.loss:.4f}", f"{theirs.loss:.4f}", f"{item.match.difference:+.4f}", tables.interval(item.match))
        shares = (f"{mine.accuracy:.2%}", f"{theirs.accuracy:.2%}", f"{item.accuracy_difference:+.2%}", accuracy)
        yield Table(
            f"{item.corpus}: {item.documents:,} documents, {item.tokens:,} tokens",
            ("figure", "student", "reference", "difference", "interval"),
            (
                ("loss, nats per token", *loss),
                ("perplexity", f"{mine.perplexity:.3f}", f"{theirs.perplexity:.3f}", "", ""),
                ("next-token accuracy", *shares),
            ),
        )
    if run.evaluation.own_test_set:
        yield Paragraph("The first corpus is the very test set of this run.")


def _comparison(run: RunSummary) -> Iterator[Block]:
    if run.cell is not None:
        yield Paragraph(
            f"This is the cell {run.cell.name} of the comparison {run.cell.comparison}; figures are means over its "
            "seeds."
        )
        yield from _arms(run.cell.facts)


def _tasks(found: StudentEvaluation) -> Iterator[Block]:
    """Yield the zero-shot tasks with standard errors and paired differences."""

    def with_error(value: float | None, error: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")

    if not found.tasks:
        return
    rows = tuple(
        (
            item.task,
            item.metric,
            f"{item.rows:,}",
            with_error(item.student, item.student_error),
            with_error(item.reference, item.reference_error),
            with_error(item.difference, item.difference_error, "+"),
            "" if item.p_value is None else f"{item.p_value:.3g}",
        )
        for item in found.tasks
    )
    headers = ("task", "metric", "rows", "student", "reference", "difference", "p")
    yield Table("Zero-shot tasks, ± one standard error", headers, rows, text_columns=2)
    yield Paragraph(
        "By lm-evaluation-harness. Differences are paired row by row; p is two-sided, of McNemar's exact test where a "
        "metric is a mean over rows, and of exchanging the two models row by row where it is a perplexity or bits."
    )


def _efficiency(found: StudentEvaluation) -> Iterator[Block]:
    """Yield size, speed, and how the student does as a draft."""
    if found.efficiency is not None:
        yield from _size_and_speed(found.efficiency)
    if not found.drafts:
        return
    yield Table(
        "The student as a draft for its reference, tokens per second",
        ("mode", "drafted", "accepted", "share", "alone", "with the draft", "times as fast", "same tokens"),
        tuple(
            (
                item.mode,
                f"{item.drafted:,}",
                f"{item.accepted:,}",
                f"{item.acceptance:.1%}",
                _spread(item.alone, 1, 1),
                _spread(item.assisted, 1, 1),
                _spread(item.speed_up, 1, 2),
                "" if item.equal is None else "yes" if item.equal else "NO",
            )
            for item in found.drafts
        ),
    )
    first = found.drafts[0]
    yield Paragraph(
        f"{first.prompts} prompts, {first.new_tokens} new tokens each, {first.draft_tokens} drafted at a time, in "
        "Transformers' assisted generation. Sampling draws from the reference's distribution either way."
    )


def _size_and_speed(found: Efficiency) -> Iterator[Block]:
    mine, theirs = found.student, found.reference
    shapes: list[tuple[str, float | None, float | None, float, int]] = [
        ("layers", mine.layers, theirs.layers, 1, 0),
        ("parameters", mine.parameters, theirs.parameters, 1, 0),
        ("weights on disk, MB", mine.bytes_on_disk, theirs.bytes_on_disk, 1e6, 1),
        ("peak memory, MB", mine.peak_memory, theirs.peak_memory, 1e6, 1),
        ("forward MFLOPs per token", mine.flops_per_token, theirs.flops_per_token, 1e6, 2),
    ]
    yield Table(
        "Size",
        ("figure", "student", "reference", "share"),
        tuple(
            (name, f"{part / unit:,.{digits}f}", f"{whole / unit:,.{digits}f}", f"{part / whole:.1%}")
            for name, part, whole, unit, digits in shapes
            if part is not None and whole is not None
        ),
    )

    def figure(value: Spread, quantity: str) -> str:
        return _spread(value, 1000 if quantity == FIRST_TOKEN else 1, 1)

    yield Table(
        "Speed: median (smallest to largest)",
        ("figure", "attention", "batch", "student", "reference", "times as fast"),
        tuple(
            (
                "time to first token, ms" if item.quantity == FIRST_TOKEN else item.quantity,
                item.setting,
                str(item.batch),
                figure(item.student, item.quantity),
                figure(item.reference, item.quantity),
                _spread(item.gain, 1, 2),
            )
            for item in found.speeds
        ),
        text_columns=2,
    )
    repeats = found.speeds[0].student.repeats if found.speeds else 0
    yield Paragraph(
        f"Measured on {found.device}, {found.dtype}: prompts of {found.prompt_tokens} tokens, {found.new_tokens} new "
        f"tokens, {repeats} repeats in turn after warm-up. Memory is that of a process that loads the model and "
        "generates one sequence, above its libraries."
    )


def _spread(value: Spread, scale: float, digits: int) -> str:
    shown = [f"{number * scale:,.{digits}f}" for number in (value.median, value.low, value.high)]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def _samples(found: StudentEvaluation) -> Iterator[Block]:
    """Yield the same prompts, continued by both models."""
    if found.samples:
        yield Paragraph("Beginnings of documents, continued greedily with a repetition penalty of 1.2.")
    for item in found.samples:
        yield SideBySide((("beginning", item.prompt), ("student", item.student), ("reference", item.reference)))


def _data(facts: DataFacts | None, settings: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the three sets with their fingerprints, what they share, and settings of data and training."""
    if facts is not None:
        yield from _sets(facts)
    told = {item.name: settings[item.name] for item in fields(DataConfig) if item.name in settings}
    course = {name: settings.get(name) for name in COURSE}
    for caption, values in (
        ("Data settings", told),
        ("Training settings", without_nothing({**training, **course})),
    ):
        rows = tuple(
            (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            for name, value in values.items()
        )
        if rows:
            yield Table(caption, ("setting", "value"), rows, text_columns=2)


def _sets(facts: DataFacts) -> Iterator[Block]:
    def count(value: int | None) -> str:
        return "unknown" if value is None else f"{value:,}"

    sets = (("train", facts.train), ("selection", facts.selection), ("test", facts.test))
    yield Table(
        f"Sets out of {facts.source}, sequences of at most {facts.block_size} tokens",
        ("set", "documents", "tokens", "sequences", "fingerprint"),
        tuple(
            (name, count(item.documents), count(item.tokens), count(item.sequences), item.fingerprint[:16])
            for name, item in sets
        ),
    )
    near = "near-duplicates were not looked for"
    if facts.near_duplicates is not None:
        near = f"{facts.near_duplicates:,} nearly"
    yield Paragraph(
        f"Documents that are in two sets: {facts.shared_documents:,} word for word, {near}; "
        f"{facts.removed_documents:,} removed."
    )


def _reproduce_run(run: RunSummary) -> Iterator[Block]:
    pinned = f" at commit {run.revision}" if run.revision else ""
    seed = "" if run.seed is None else f", seed {run.seed}"
    processes = f", {run.training['world_size']} processes" if run.training.get("world_size", 1) > 1 else ""
    own = bool(run.settings) and "reference" not in run.settings
    reference = "made by the run itself, the embedded default" if own else f"{run.reference}{pinned}"
    yield Paragraph(f"Reference: {reference}{seed}{processes}.")
    if run.cell is not None:
        yield Paragraph(f"It is the cell {run.cell.name} of a comparison, which trains it.")
        yield from _reproduce_comparison(run.cell.comparison, run.cell.facts)
        return
    versions = {**run.versions, **((run.evaluation.versions if run.evaluation else None) or {})}
    if versions:
        yield _versions(versions)
    name = shlex.quote(run.name)
    commands = [*(run.evaluation.commands if run.evaluation else ()), f"inheritune report {name}"]
    if run.trained:
        yield Preformatted("The recipe, as JSON", json.dumps(recipe_of(run), indent=1, ensure_ascii=False))
        missing = "" if run.settings else " Its data were not kept with it: add what names them."
        yield Paragraph(f"To do it again, save the recipe as recipe.json, then:{missing}")
        commands.insert(0, "inheritune train --config recipe.json")
    else:
        commands.insert(0, _inherit_command(run))
    yield Preformatted("Commands", "\n".join(commands))
    if run.evaluation is not None and not run.evaluation.commands:
        yield Paragraph("The evaluation was made from Python, by evaluate_student.")


def recipe_of(run: RunSummary) -> dict[str, Any]:
    """
    Return the settings of a run, as a file for `inheritune train --config` holds them.

    Args:
        run (`RunSummary`): What the run's folder says.
    """
    # A run whose settings were kept names its reference there, or none at all if it was the embedded one.
    reference = run.settings.get("reference") if run.settings else run.reference
    pinned = {"reference": reference, "revision": run.revision or run.settings.get("revision")} if reference else {}
    training = {name: value for name, value in run.training.items() if name != "world_size"}
    return without_nothing({**pinned, **run.recipe, **training, **run.settings, **pinned, "output_dir": run.name})


def _inherit_command(run: RunSummary) -> str:
    words = ["inheritune", "inherit", run.reference]
    layers = run.recipe.get("keep_layers", "half")
    words += ["--keep-layers", str(layers) if isinstance(layers, int | str) else ",".join(map(str, layers))]
    words += ["--inherit", str(run.recipe.get("inherit", "all"))]
    words += ["--revision", run.revision] if run.revision else []
    return shlex.join([*words, "--output", run.name])


def _versions(versions: Mapping[str, str]) -> Table:
    return Table("Versions", ("library", "version"), tuple(sorted(versions.items())), text_columns=2)


def _loop(arms: Sequence[str]) -> str | None:
    """Return the arm that a comparison is about: the plain loop, whatever its variants came to, or else a variant."""
    return next((arm for arm in sorted(arms) if arm.partition("/")[0] == LOOP), None)


def _comparison_word(matched: Sequence[bool]) -> tuple[str, bool | None]:
    if not matched:
        return "compared", None
    if all(matched):
        return "matched", True
    return ("matched in part", None) if any(matched) else ("missed", False)


def _comparison_verdict(
    rows: Sequence[ArmResult], cells: Sequence[Cell], facts: Mapping[str, Any], loop: str | None
) -> Iterator[str]:
    depth = facts["reference"]["layers"]
    if loop is not None:
        row = next(row for row in rows if row.arm == loop)
        own = [cell for cell in cells if cell.arm == row.arm]
        matched = [cell for cell in own if cell.outcome == "matched"]
        goal = "its starting reference" if facts["recipe"]["target"] == "reference" else "the loss that was asked for"
        seeds = f"with {len(matched)} of {len(own)} {'seed' if len(own) == 1 else 'seeds'}"
        verb = (
            f"matched {goal} on the selection set {seeds}" if matched else f"did not match {goal} on the selection set"
        )
        yield f"The loop ({row.arm}) {verb}; its last students have {row.layers} of {depth} layers."
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
    yield _beside_continued(row.to_continued, facts, who)


def _beside_continued(given: SeedDifference | None, facts: Mapping[str, Any], who: str) -> str:
    if given is None:
        return f"Whether {who} would match the reference trained on was not measured."
    return _beside(given, facts, who, "the reference trained on for the same budget")


def _beside(given: SeedDifference, facts: Mapping[str, Any], who: str, what: str) -> str:
    tolerance = float(facts["recipe"]["tolerance"])
    bound = given.upper if facts["recipe"]["confidence"] is not None else None
    verb = "matches" if (given.difference if bound is None else bound) <= tolerance else "does not match"
    mean = " by the mean" if bound is None else ""
    return f"On the test set {who} {verb}{mean} {what}: {results.difference(given)} nats per token."


def _comparison_facts(
    rows: Sequence[ArmResult], cells: Sequence[Cell], facts: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    compare = facts["compare"]
    yield "arms", str(len(rows) - 1)
    yield "seeds", ", ".join(map(str, compare["seeds"]))
    yield "equal for all arms", {"tokens": "tokens", "flops": "operations"}[compare["budget"]]
    yield "reference, test loss", f"{rows[0].loss:.4f}"
    if len(rows) > 1:
        yield "lowest test loss", f"{rows[1].loss:.4f} ({rows[1].arm})"
    yield "training FLOPs, all cells shown", f"{sum(cell.flops for cell in cells):.3g}"


def _arms(facts: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the table of arms with intervals, what each of them took, and what they are."""
    rows = arm_results(facts)
    shown = [results.table_cells(row) for row in rows]
    for caption, names in (
        ("Test loss in nats per token, and its differences", results.OUTCOME),
        ("What each took", results.COST),
    ):
        yield Table(
            caption, ("arm", *names), tuple((cells["arm"], *(cells[name] for name in names)) for cells in shown)
        )
    arms = [(row.arm, row.summary, parse_arm(row.arm).arm.source) for row in rows if row.arm != "reference"]
    yield Table("What the arms are", ("arm", "what it is", "where it comes from"), tuple(arms), text_columns=3)


def _arm_notes(rows: Sequence[ArmResult], facts: Mapping[str, Any]) -> Iterator[Block]:
    for note in results.table_notes(rows, facts):
        yield Paragraph(note.replace("`", ""))
    if not any(row.arm == results.CONTINUED for row in rows):
        yield Paragraph(
            f"Controls such as {', '.join(CONTROLS)} say whether it is inheritance that helps, or more training; the "
            "reference trained on was not among the arms."
        )


def _curves(facts: Mapping[str, Any]) -> Iterator[Block]:
    curves, target = results.mean_curves(facts), facts["reference"]["selection_loss"]
    ends = "; ".join(f"{name} ends at {curve[-1][1]:.4f}" for name, curve in curves.items())
    yield Chart(
        "Selection loss in nats per token, mean over seeds",
        f"Loss against tokens trained on, all rounds and stages together. {ends}. The reference's is {target:.4f}.",
        results.curves_panel(facts),
    )


def _cells(cells: Sequence[Cell], facts: Mapping[str, Any]) -> Iterator[Block]:
    yield Table(
        "Each arm with each seed, at its chosen learning rate",
        ("cell", "arm", "outcome", "seed", "rate", "layers", "steps", "selection loss", "test loss"),
        tuple(
            (
                cell.folder,
                cell.arm,
                _CELL_OUTCOMES[cell.outcome],
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


def _reproduce_comparison(name: str, facts: Mapping[str, Any]) -> Iterator[Block]:
    yield _versions(facts["versions"])
    settings = {**facts["settings"], "output_dir": name}
    yield Preformatted("The comparison, as JSON", json.dumps(settings, indent=1, ensure_ascii=False))
    yield Paragraph(
        "To do it again, save it as comparison.json where its paths lead to the files, with another output_dir, then:"
    )
    commands = ("inheritune compare comparison.json", f"inheritune report {shlex.quote(name)}")
    yield Preformatted("Commands", "\n".join(commands))
