"""The content of a report: sections of text, tables and figures, with every number from a record."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from ..arms import CONTROLS, LOOP, parse_arm
from ..config import DataConfig
from ..evaluation.abilities import unmeasured_abilities
from ..evaluation.facts import FIRST_TOKEN, TOKENS_PER_SECOND, Efficiency, Spread, StudentEvaluation
from ..experiments import results
from ..experiments.results import TRAINED_FURTHER, ArmResult, ComparisonRecord, arm_results
from ..figures import Panel, layer_panel, loss_panel, rank_panel
from ..foreign_text import file_names
from ..layers import describe
from ..outcomes import describe_evidence, describe_rule, goal_of, matched_word
from ..publishing import tables
from ..records import DataFacts, perplexity
from ..run_folder import COURSE, NUMERIC_ARGUMENTS, without_nothing
from .summary import RunSummary

if TYPE_CHECKING:
    from ..evaluation import SeedDifference


@dataclass(frozen=True)
class Paragraph:
    """Text; with `strong`, a verdict."""

    kind: ClassVar = "paragraph"
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table, whose first column names the rows."""

    kind: ClassVar = "table"
    caption: str  # with units
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1  # columns from the left that hold text; others hold numbers
    folded: bool = False  # whether a page shows it only to who opens it


@dataclass(frozen=True)
class Chart:
    """A drawing, with a description for readers who do not see it."""

    kind: ClassVar = "chart"
    title: str
    description: str
    panel: Panel


@dataclass(frozen=True)
class Texts:
    """Verbatim texts with their labels: one, or a prompt and how each model continued it."""

    kind: ClassVar = "texts"
    texts: tuple[tuple[str, str], ...]
    folded: bool = False


Block = Paragraph | Table | Chart | Texts


@dataclass(frozen=True)
class Section:
    """A heading with an anchor, and its content."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str  # name of the run
    outcome: str  # one or two words: matched, missed, interrupted
    good: bool | None  # whether that is a success; None if nothing is decided
    verdict: str  # in a sentence or two
    facts: tuple[tuple[str, str], ...]  # the few figures that matter most, with their names
    sections: tuple[Section, ...]
    picture: str = "Losses, kept layers and ranks"  # alternative text of the picture
    note: str = ""  # what was not measured


def build_report(run: RunSummary) -> Report:
    """Return the report of a run, up to how to run it again."""
    came, found = run.conclusion, run.evaluation
    word, good = (came.word, came.good) if run.trained else ("not trained", None)
    sections = _sections(
        ("losses", "Losses", _losses(run)),
        ("layers", "Layers", _layers(run)),
        ("test", "Test set", _test(run)),
        ("evaluation", "Beside the reference", _corpora(run)),
        ("comparison", "Beside other ways to make a model small", _comparison(run)),
        ("tasks", "Tasks", _tasks(found) if found else ()),
        ("efficiency", "Size and speed", _efficiency(found) if found else ()),
        ("text", "Text", _samples(found) if found else ()),
        ("data", "Data and settings", _data(run.record.data, run.settings, run.record.training)),
        ("reproduce", "How to run it again", _reproduce_run(run)),
    )
    verdict, note = " ".join(_run_verdict(run)), unmeasured_abilities(found)
    return Report(run.name, word, good, verdict, tuple(_run_facts(run)), sections, note=note)


def build_comparison(name: str, record: ComparisonRecord) -> Report:
    """Return the report of a comparison, up to how to run it again."""
    rows = arm_results(record)
    # The comparison is about the plain loop, whatever its variants gave, or else about a variant.
    loop = next((arm for arm in sorted(record.by_arm()) if arm.partition("/")[0] == LOOP), None)
    loops = [cell for cell in record.cells if cell.arm == loop]
    matched = [cell for cell in loops if cell.outcome == "matched"]
    smaller = [cell for cell in matched if cell.layers < record.reference.layers]
    word, good = ("matched", True) if len(smaller) == len(loops) else ("matched in part", None)
    given = next((row.to_reference for row in rows if row.arm == loop), None)
    if good and given is not None and not _is_match(given, record) and record.recipe.get("target") == "reference":
        word, good = "not confirmed", None
    if not smaller:
        word, good = ("no reduction", None) if matched else ("missed", False) if loops else ("compared", None)
    training = {name: record.settings.get(name) for name in NUMERIC_ARGUMENTS}
    sections = _sections(
        ("arms", "Arms", (*_arms(rows), *_arm_notes(rows, record))),
        ("curves", "Learning curves", _curves(record)),
        ("cells", "Seeds and learning rates", _cells(record)),
        ("data", "Data and settings", _data(record.data, record.settings, training)),
        ("reproduce", "How to run it again", _reproduce_comparison(name, record)),
    )
    verdict = " ".join(_comparison_verdict(rows, record, loop))
    return Report(name, word, good, verdict, tuple(_comparison_facts(rows, record)), sections, "Learning curves")


def _sections(*parts: tuple[str, str, Iterable[Block]]) -> tuple[Section, ...]:
    """Return the sections that are not empty."""
    found = (Section(anchor, title, tuple(blocks)) for anchor, title, blocks in parts)
    return tuple(section for section in found if section.blocks)


# A run


def _run_verdict(run: RunSummary) -> Iterator[str]:
    record, depth = run.record, f"{run.depth} layers"
    if not run.trained:
        yield f"A student of {depth} was inherited from {record.lineage.reference} and not trained."
        return
    if record.outcome != "adapted":
        yield f"{run.conclusion.sentence}."
    if record.outcome in {"interrupted", None}:
        yield f"It was last saved at step {run.step:,}; the same command resumes it."
        return
    last = record.rounds[-1]
    if record.outcome == "adapted":
        yield (
            f"The reference was trained further for {last.end_step:,} steps: {last.target:.4f} nats per token on the "
            f"selection set before, {last.loss:.4f} after."
        )
        return
    yield (
        f"Its loss is {last.loss:.4f} against {last.target:.4f} nats per token on the selection set, after "
        f"{len(record.rounds)} {'round' if len(record.rounds) == 1 else 'rounds'} and {last.end_step:,} steps."
    )
    yield _beside_trained_further(run)


def _beside_trained_further(run: RunSummary) -> str:
    """Compare the student with the reference, trained further, which is another claim."""
    matched = run.record.outcome == "matched"
    if run.cell is not None:
        record = run.cell.comparison
        row = next(row for row in arm_results(record) if row.arm == run.cell.arm)
        return _beside_continued(row.to_continued, record, "it" if matched else "the last student")
    student, continued = run.result("student"), run.result(TRAINED_FURTHER)
    if student is None or continued is None:
        return "Whether it would match the reference, trained further for as many steps, was not measured."
    figures = f"{student.loss:.4f} against {continued.loss:.4f} nats per token on the test set"
    tolerance = float(run.record.recipe.get("tolerance") or 0)
    who, also = ("It", " also") if matched else ("The last student", "")
    level = student.loss - continued.loss <= tolerance
    verb = f"{who}{also} matches, by the mean," if level else f"{who} does not match"
    return f"{verb} the reference, trained further for {continued.steps:,} steps: {figures}."


def _run_facts(run: RunSummary) -> Iterator[tuple[str, str]]:
    """Yield what a reader looks for first: what was kept, beside what, size, loss, perplexity, speed and cost."""
    lineage, found, rounds = run.record.lineage, run.evaluation, run.record.rounds
    student, reference = run.result("student"), run.result("reference")
    which = f"layers {describe(lineage.kept_layers)}" if lineage.kept_layers else "none inherited"
    yield "layers kept", f"{run.depth}, {which}"
    yield "compared with", lineage.reference_name + (", and it trained further" if found and found.adapted else "")
    timed = found.efficiency if found else None
    mine, whole = (
        (student, reference) if student and reference else (timed and timed.student, timed and timed.reference)
    )
    if mine and whole:
        share = mine.parameters / whole.parameters
        yield "parameters", f"{mine.parameters:,}, {share:.1%} of the reference's"
    yield from _loss_facts(run)
    rates = [item for item in (timed.speeds if timed else ()) if item.quantity == TOKENS_PER_SECOND]
    speed = f"{rates[0].gain.median:.2f} × as fast (batch {rates[0].batch})" if rates else "not measured"
    yield "generation", speed
    if rounds:
        yield "training", f"{rounds[-1].end_step:,} steps, {sum(item.flops for item in rounds):.3g} FLOPs"


def _loss_facts(run: RunSummary) -> Iterator[tuple[str, str]]:
    """Yield loss and perplexity on the most independent text: the test set, or what was evaluated on, or selection."""
    student, reference = run.result("student"), run.result("reference")
    if student and reference:
        where, mine, theirs, match = "test set", student.loss, reference.loss, student.match
    elif run.evaluation is not None and run.evaluation.corpora:
        first = run.evaluation.corpora[0]
        where, mine, theirs, match = first.corpus, first.student.loss, first.reference.loss, first.match
    elif run.record.rounds:
        last = run.record.rounds[-1]
        where, mine, theirs, match = "selection set", last.loss, last.target, last.match
    else:
        return
    yield f"loss, {where}", f"{mine:.4f} against {theirs:.4f} nats per token"
    if match is not None:
        yield "difference", f"{match.difference:+.4f} ({tables.interval(match) or 'no interval'})"
    yield "perplexity", f"{perplexity(mine):.2f} against {perplexity(theirs):.2f}"


def _losses(run: RunSummary) -> Iterator[Block]:
    record = run.record
    if record.curves.get("student"):
        ends = [f"{name} ends at {curve[-1][1]:.4f}" for name, curve in record.curves.items() if curve]
        aim = "" if record.target is None else f" The loss to reach is {record.target:.4f}."
        yield Chart(
            "Selection loss in nats per token",
            f"Loss against optimizer steps over {max(1, len(record.rounds))} rounds. {'; '.join(ends)}.{aim}",
            loss_panel(record.rounds, record.curves, record.target, float(record.recipe.get("tolerance") or 0)),
        )
    yield from _forecasts(run)
    if not record.rounds or record.outcome == "adapted":
        return
    yield Table(
        "Rounds: loss on the selection set, nats per token",
        ("round", "layers", "untrained", "steps", "tokens", "loss", "to reach", "difference", "interval", "matched"),
        tuple(
            (
                str(item.index),
                str(item.layers),
                "" if item.start_loss is None else f"{item.start_loss:.4f}",
                f"{item.end_step - item.start_step:,}" + (", abandoned" if item.abandoned else ""),
                f"{item.tokens:,}",
                f"{item.loss:.4f}",
                f"{item.target:.4f}",
                f"{item.match.difference:+.4f}",
                tables.interval(item.match),
                matched_word(item.match, item.layers, record.lineage.reference_layers),
            )
            for item in record.rounds
        ),
    )
    yield Paragraph(f"{describe_rule(record)} {describe_evidence(record.rounds[-1].match)}".strip())
    if record.uniform_loss is not None:
        yield Paragraph(f"A uniform guess over the vocabulary has a loss of {record.uniform_loss:.4f} nats per token.")


def _forecasts(run: RunSummary) -> Iterator[Block]:
    """Show the forecast that was made half way through each round, and the last one of a round in progress."""
    rounds, rows = run.record.rounds, []
    for item in rounds:
        made = [one for one in run.forecasts if item.start_step < one.at_step <= item.end_step]
        late = [one for one in made if 2 * one.at_step >= item.start_step + one.end_step] or made[-1:]
        rows += [(item.index, one, f"{item.loss:.4f}" + (", abandoned" if item.abandoned else "")) for one in late[:1]]
    rows += [
        (len(rounds) + 1, one, "") for one in run.forecasts[-1:] if one.at_step > (rounds[-1].end_step if rounds else 0)
    ]
    if rows:
        yield Table(
            "Forecasts of the loss at a round's end, with 90% intervals, nats per token",
            ("round", "made at step", "for step", "forecast", "interval", "probability of a match", "ended at"),
            tuple(
                (
                    str(index),
                    f"{one.at_step:,}",
                    f"{one.end_step:,}",
                    f"{one.loss:.4f}",
                    f"{one.lower:.4f} to {one.upper:.4f}",
                    "" if one.match is None else f"{one.match:.2f}",
                    end,
                )
                for index, one, end in rows
            ),
        )


def _layers(run: RunSummary) -> Iterator[Block]:
    record, lineage = run.record, run.record.lineage
    rows = [(f"round {item.index}", item.kept_layers) for item in record.rounds]
    if not rows or record.outcome in {"interrupted", None}:
        rows.append((f"round {len(rows) + 1}" if run.trained else "student", lineage.kept_layers))
    else:
        rows[-1] = (rows[-1][0], lineage.kept_layers)  # an arm of a comparison may hold other layers than the first
    words = "; ".join(f"{name}: {len(kept)} layers, {describe(kept)}" for name, kept in rows)
    yield Chart(
        f"Layers of the reference that were kept, of {lineage.reference_layers}",
        f"{words} (0-based, half-open as in the recipe).",
        layer_panel(rows, lineage.reference_layers),
    )
    if lineage.order is not None:
        yield Paragraph(lineage.order.sentence)
    if run.evaluation is not None and run.evaluation.laziness is not None:
        lazy = run.evaluation.laziness
        ranks = (
            f"{name}, from layer 0: {', '.join('none' if value is None else f'{value:.1f}' for value in values)}."
            for name, values in (("Reference", lazy.reference), ("Student", lazy.student))
        )
        yield Chart(
            f"Approximate rank by layer, the largest over heads (tau {lazy.tau:g})",
            " ".join([lazy.comparison.sentence, *ranks]),
            rank_panel(lazy.reference, lazy.student, 1 + lazy.comparison.tolerance),
        )
    elif record.lazy_layers is not None:
        yield Paragraph(record.lazy_layers.sentence)


def _test(run: RunSummary) -> Iterator[Block]:
    if run.record.results:
        yield Table("Test loss in nats per token", tables.HEADERS, tuple(tables.table_cells(run.record.results)))
        by_reference = run.record.recipe.get("target") == "reference"
        against = "paired with the starting reference" if by_reference else "from the loss to reach"
        yield Paragraph(f"The test set was opened once, after the last round. Differences are {against}.")


def _corpora(run: RunSummary) -> Iterator[Block]:
    """Yield the verdict, and losses, perplexities and accuracies on every corpus."""
    if run.left_out:
        yield Paragraph(f"Left out: {run.left_out}")
    if run.evaluation is None or not run.evaluation.corpora:
        return
    yield Paragraph(run.evaluation.verdict(), strong=True)
    for item, rows in tables.corpus_rows(run.evaluation):
        caption = f"{item.corpus}: {item.documents:,} documents, {item.tokens:,} tokens"
        yield Table(caption, tables.corpus_headers(run.evaluation), tuple(rows))
    if run.evaluation.adapted is not None:
        yield Paragraph(f"Adapted is {run.evaluation.adapted}, the reference trained further on the same text.")
    if run.evaluation.own_test_set:
        yield Paragraph("The first corpus is this run's own test set.")


def _comparison(run: RunSummary) -> Iterator[Block]:
    if run.cell is not None:
        yield Paragraph(
            f"This is the cell {run.cell.name} of the comparison {run.cell.folder}; figures are means over its seeds."
        )
        yield from _arms(arm_results(run.cell.comparison))


def _tasks(found: StudentEvaluation) -> Iterator[Block]:
    """Yield the tasks with standard errors and paired differences."""
    if not found.tasks:
        return
    rows = tuple(tables.task_rows(found))
    yield Table("Tasks, ± one standard error", tables.task_headers(found), rows, text_columns=3)
    yield Paragraph(
        "By lm-evaluation-harness. Differences are paired row by row; p is two-sided, of McNemar's exact test where a "
        "metric is a mean over rows, and of exchanging the two models row by row where it is a perplexity or bits."
    )


def _efficiency(found: StudentEvaluation) -> Iterator[Block]:
    """Yield size, speed, and the student as a draft."""
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
                _spread(item.alone, 1),
                _spread(item.assisted, 1),
                _spread(item.speed_up, 2),
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
    sizes: list[tuple[str, float | None, float | None, float, int]] = [
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
            for name, part, whole, unit, digits in sizes
            if part is not None and whole is not None
        ),
    )
    scales = {FIRST_TOKEN: 1000.0}
    yield Table(
        "Speed: median (smallest to largest)",
        ("figure", "attention", "batch", "student", "reference", "times as fast"),
        tuple(
            (
                "time to first token, ms" if item.quantity == FIRST_TOKEN else item.quantity,
                item.setting,
                str(item.batch),
                _spread(item.student, 1, scales.get(item.quantity, 1)),
                _spread(item.reference, 1, scales.get(item.quantity, 1)),
                _spread(item.gain, 2),
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


def _spread(value: Spread, digits: int, scale: float = 1) -> str:
    median, low, high = (f"{number * scale:,.{digits}f}" for number in (value.median, value.low, value.high))
    return f"{median} ({low} to {high})"


def _samples(found: StudentEvaluation) -> Iterator[Block]:
    if found.samples:
        yield Paragraph("Beginnings of documents, continued greedily with a repetition penalty of 1.2.")
    for item in found.samples:
        yield Texts((("beginning", item.prompt), ("student", item.student), ("reference", item.reference)))


def _data(facts: DataFacts | None, settings: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the three sets with their fingerprints, what they share, and settings of data and training."""
    if facts is not None:
        yield from _sets(facts)
    named = {item.name: settings[item.name] for item in fields(DataConfig) if item.name in settings}
    course = {name: settings.get(name) for name in COURSE}
    for caption, values in (("Data settings", named), ("Training settings", without_nothing({**training, **course}))):
        if values:
            texts = {name: _setting(name, value) for name, value in values.items()}
            yield Table(caption, ("setting", "value"), tuple(texts.items()), text_columns=2, folded=True)


def _setting(name: str, value: Any) -> str:
    if name.endswith("_files") and isinstance(value, list):
        return file_names(value)
    return value if isinstance(value, str) else _json(value, None)


def _json(value: Any, indent: int | None = 1) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False)


def _sets(facts: DataFacts) -> Iterator[Block]:
    def count(value: int | None) -> str:
        return "unknown" if value is None else f"{value:,}"

    sets = (("train", facts.train), ("selection", facts.selection), ("test", facts.test))
    yield Table(
        f"Sets from {facts.source}, sequences of at most {facts.block_size} tokens",
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
    record, lineage = run.record, run.record.lineage
    pinned = f" at commit {lineage.revision}" if lineage.revision else ""
    seed = "" if record.seed is None else f", seed {record.seed}"
    world_size = record.training.get("world_size", 1)
    processes = "" if world_size == 1 else f", {world_size} processes"
    own = bool(run.settings) and "reference" not in run.settings
    reference = "the one that the package brings" if own else f"{lineage.reference}{pinned}"
    yield Paragraph(f"Reference: {reference}{seed}{processes}.")
    if run.cell is not None:
        yield Paragraph(f"The comparison trains it, as its cell {run.cell.name}.")
        yield from _reproduce_comparison(run.cell.folder, run.cell.comparison)
        return
    evaluation = run.evaluation
    versions = {**lineage.versions, **((evaluation.versions if evaluation else None) or {})}
    if versions:
        yield _versions(versions)
    commands = [*(evaluation.commands if evaluation else ()), f"inheritune report {shlex.quote(run.name)}"]
    if run.trained:
        yield Texts((("The recipe, as JSON", _json(recipe_of(run))),), folded=True)
        missing = "" if run.settings else " Its data settings were not kept: add them."
        yield Paragraph(f"To run it again, save the recipe as recipe.json, then:{missing}")
        verb = "adapt" if run.adapts else "train"
        commands.insert(0, f"inheritune {verb} --config recipe.json")
    else:
        commands.insert(0, run.record.inherit_command(run.record.lineage.reference, run.name))
    yield Texts((("Commands", "\n".join(commands)),))
    if evaluation is not None and not evaluation.commands:
        yield Paragraph("The evaluation was made from Python, by evaluate_student.")


def recipe_of(run: RunSummary) -> dict[str, Any]:
    """Return the settings of a run, as a file for `inheritune train --config` holds them."""
    record, lineage = run.record, run.record.lineage
    # A run whose settings were kept names its reference there, or none at all if it was the one of the package.
    reference = run.settings.get("reference") if run.settings else lineage.reference
    revision = lineage.revision or run.settings.get("revision")
    pinned = {"reference": reference, **lineage.where, "revision": revision} if reference else {}
    training = {name: value for name, value in record.training.items() if name != "world_size"}
    return without_nothing({**pinned, **record.recipe, **training, **run.settings, **pinned, "output_dir": run.name})


def _versions(versions: Mapping[str, str]) -> Table:
    return Table("Versions", ("library", "version"), tuple(sorted(versions.items())), text_columns=2, folded=True)


# A comparison


def _comparison_verdict(rows: Sequence[ArmResult], record: ComparisonRecord, loop: str | None) -> Iterator[str]:
    depth, cells = record.reference.layers, record.by_arm()
    if loop is not None:
        row, own = next(row for row in rows if row.arm == loop), cells[loop]
        matches = [cell.layers for cell in own if cell.outcome == "matched"]
        matched, whole = len(matches), matches.count(depth)
        goal = goal_of(record.recipe.get("target"))
        seeds = f"with {matched} of {len(own)} {'seed' if len(own) == 1 else 'seeds'}"
        verb = (
            f"matched {goal} on the selection set {seeds}" if matched else f"did not match {goal} on the selection set"
        )
        full = f", {whole} of them at the full depth, which is no reduction" if whole else ""
        yield f"The loop ({row.arm}) {verb}{full}; its last students have {row.layers} of {depth} layers."
        who = "its student"
    else:
        arms = [row for row in rows if row.arm != "reference"]
        students = [row for row in arms if max(cell.layers for cell in cells[row.arm]) < depth]
        row = (students or arms or list(rows))[0]
        which = " of those shallower than the reference" if students else ""
        yield f"Of {len(arms)} arms, {row.arm} has the lowest test loss{which}."
        who = row.arm
    if row.to_reference is not None:
        yield _beside(row.to_reference, record, who, "the starting reference")
    yield _beside_continued(row.to_continued, record, who)


def _beside_continued(given: SeedDifference | None, record: ComparisonRecord, who: str) -> str:
    if given is None:
        return f"Whether {who} would match the reference, trained further, was not measured."
    return _beside(given, record, who, "the reference, trained further for the same budget")


def _beside(given: SeedDifference, record: ComparisonRecord, who: str, what: str) -> str:
    verb = "matches" if _is_match(given, record) else "does not match"
    mean = " by the mean" if record.recipe["confidence"] is None or given.upper is None else ""
    return f"On the test set {who} {verb}{mean} {what}: {results.difference(given)} nats per token."


def _is_match(given: SeedDifference, record: ComparisonRecord) -> bool:
    """Return whether a difference on the test set is within the tolerance, by its bound or, without one, its mean."""
    bound = given.upper if record.recipe["confidence"] is not None else None
    return (given.difference if bound is None else bound) <= float(record.recipe["tolerance"])


def _comparison_facts(rows: Sequence[ArmResult], record: ComparisonRecord) -> Iterator[tuple[str, str]]:
    yield "arms", str(len(rows) - 1)
    yield "seeds", ", ".join(map(str, record.compare.seeds))
    yield "equal for all arms", {"tokens": "tokens", "flops": "operations"}[record.compare.budget]
    for name, row in zip(("reference, test loss", "lowest test loss"), rows, strict=False):
        which = "" if row.arm == "reference" else f"{row.arm}, {row.layers} of {record.reference.layers} layers, "
        yield name, f"{row.loss:.4f} ({which}perplexity {perplexity(row.loss):.2f})"
    yield "training FLOPs, all cells shown", f"{sum(cell.flops for cell in record.cells):.3g}"


def _arms(rows: Sequence[ArmResult]) -> Iterator[Block]:
    """Yield the table of arms with intervals, what each of them took, and what they are."""
    shown = [results.table_cells(row) for row in rows]
    for caption, names in (
        ("Test loss in nats per token, and its differences", ("arm", *results.OUTCOME)),
        ("What each took", ("arm", *results.COST)),
    ):
        yield Table(caption, names, tuple(tuple(cells[name] for name in names) for cells in shown))
    arms = [(row.arm, row.summary, parse_arm(row.arm).arm.source) for row in rows if row.arm != "reference"]
    yield Table("What the arms are", ("arm", "what it is", "source"), tuple(arms), text_columns=3)


def _arm_notes(rows: Sequence[ArmResult], record: ComparisonRecord) -> Iterator[Block]:
    for note in results.table_notes(rows, record):
        yield Paragraph(note.replace("`", ""))
    if not any(row.arm == results.CONTINUED for row in rows):
        yield Paragraph(
            f"Controls such as {', '.join(CONTROLS)} say whether it is inheritance that helps, or more training; the "
            "reference, trained further, was not among the arms."
        )


def _curves(record: ComparisonRecord) -> Iterator[Block]:
    cells = record.by_arm()
    last = {name: fmean(cell.selection.loss for cell in cells[name]) for name in results.mean_curves(record)}
    ends = "; ".join(f"{name} ends at {loss:.4f}" for name, loss in last.items())
    yield Chart(
        "Selection loss in nats per token, mean over seeds",
        f"Loss against training tokens, all rounds and stages together. {ends}. The reference's is "
        f"{record.reference.selection_loss:.4f}.",
        results.curves_panel(record),
    )


def _cells(record: ComparisonRecord) -> Iterator[Block]:
    yield Table(
        "Each arm with each seed, at its chosen learning rate",
        ("cell", "arm", "outcome", "seed", "rate", "layers", "steps", "selection loss", "test loss"),
        tuple(
            (
                cell.folder,
                cell.arm,
                _outcome(cell, record.reference.layers),
                str(cell.seed),
                f"{cell.learning_rate:g}",
                str(cell.layers),
                f"{cell.steps:,}",
                f"{cell.selection.loss:.4f}",
                "" if cell.test is None else f"{cell.test.loss:.4f}",
            )
            for cell in record.cells
        ),
        text_columns=3,
    )
    rates = sorted({rate for losses in record.sweep.values() for rate in losses}, key=float)
    yield Table(
        "Selection loss by learning rate, first seed",
        ("arm", *rates),
        tuple(
            (arm, *("" if rate not in losses else f"{losses[rate]:.4f}" for rate in rates))
            for arm, losses in record.sweep.items()
        ),
    )


def _outcome(cell: results.Cell, depth: int) -> str:
    whole = cell.outcome == "matched" and cell.layers == depth
    return "matched, no reduction" if whole else (cell.outcome or "").replace("_", " ")


def _reproduce_comparison(name: str, record: ComparisonRecord) -> Iterator[Block]:
    yield _versions(record.versions)
    yield Texts((("The comparison, as JSON", _json({**record.settings, "output_dir": name})),), folded=True)
    yield Paragraph(
        "To run it again, save it as comparison.json where its paths lead to the files, with another output_dir, then:"
    )
    commands = ("inheritune compare comparison.json", f"inheritune report {shlex.quote(name)}")
    yield Texts((("Commands", "\n".join(commands)),))
