"""What a report says: from a run's records to sections, every figure straight out of a record."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from ..experiments.results import arm_results
from ..experiments.runs import without_nothing
from ..figures import layer_panel, loss_panel
from ..layers import describe
from ..publishing.tables import HEADERS, interval, table_cells
from ..records import Match
from .comparison import arm_blocks, beside_continued, reproduce
from .document import Block, Chart, Paragraph, Preformatted, Report, Section, Table
from .given import set_blocks, setting_blocks
from .measured import comparison_blocks, efficiency_blocks, layer_blocks, sample_blocks, task_blocks
from .summary import CONTINUED, RunSummary

_WORDS: dict[str | None, tuple[str, bool | None]] = {
    "matched": ("matched", True),
    "no_more_layers": ("missed", False),
    "budget_exhausted": ("missed", False),
    "interrupted": ("interrupted", None),
    None: ("not finished", None),
}


def build_report(run: RunSummary) -> Report:
    """
    Return the report of a run: verdict, figures, losses, layers, comparisons, text, data, and how to do it again.

    Args:
        run (`RunSummary`): What the run's folder says.
    """
    word, good = _WORDS[run.outcome] if run.trained else ("not trained", None)
    titles = {
        "losses": ("Losses", _losses(run)),
        "layers": ("Layers", _layers(run)),
        "test": ("Test set", _test(run)),
        "evaluation": ("Beside the reference", _evaluation(run)),
        "comparison": ("Beside other ways to make a model small", _comparison(run)),
        "tasks": ("Zero-shot tasks", task_blocks(run.evaluation)),
        "efficiency": ("Size and speed", efficiency_blocks(run.evaluation)),
        "text": ("Text", sample_blocks(run.evaluation)),
        "data": ("Data and settings", _data(run)),
        "reproduce": ("How to do it again", _reproduce(run)),
    }
    sections = tuple(
        Section(anchor, title, blocks) for anchor, (title, found) in titles.items() if (blocks := tuple(found))
    )
    return Report(run.name, word, good, " ".join(_verdict(run)), tuple(_facts(run)), sections)


def _verdict(run: RunSummary) -> Iterator[str]:
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
    yield _continued(run)


def _continued(run: RunSummary) -> str:
    """Say how the student stands beside the reference that was trained on, which is another claim."""
    if run.cell is not None:
        who = "it" if run.outcome == "matched" else "the last student"
        row = next(row for row in arm_results(run.cell.facts) if row.arm == run.cell.arm)
        return beside_continued(row.to_continued, run.cell.facts, who)
    student, continued = run.result("student"), run.result(CONTINUED)
    if student is None or continued is None:
        return "Whether it would match the reference trained on for as many steps was not measured."
    difference = student.loss - continued.loss
    figures = f"{student.loss:.4f} against {continued.loss:.4f} nats per token on the test set"
    tolerance = float(run.recipe.get("tolerance") or 0)
    who, also = ("It", " also") if run.outcome == "matched" else ("The last student", "")
    verb = f"{who}{also} matches, by the mean," if difference <= tolerance else f"{who} does not match"
    return f"{verb} the reference trained on for {continued.steps:,} steps: {figures}."


def _facts(run: RunSummary) -> Iterator[tuple[str, str]]:
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
            yield "generation, batch " + str(rates[0].batch), f"{rates[0].gain.median:.2f} × as fast"


def _losses(run: RunSummary) -> Iterator[Block]:
    student = run.curves.get("student", ())
    if student:
        tolerance = float(run.recipe.get("tolerance") or 0)
        ends = [f"{name} ends at {curve[-1][1]:.4f}" for name, curve in run.curves.items() if curve]
        aim = "" if run.target is None else f" The loss to reach is {run.target:.4f}."
        yield Chart(
            "Selection loss in nats per token",
            f"Loss against optimizer steps over {max(1, len(run.rounds))} rounds. {'; '.join(ends)}.{aim}",
            loss_panel(run.rounds, run.curves, run.target, tolerance),
        )
    if run.rounds:
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
                    interval(item.match),
                    _yes(item.match),
                )
                for item in run.rounds
            ),
        )
        yield Paragraph(_rule(run))


def _rule(run: RunSummary) -> str:
    tolerance, confidence = run.recipe.get("tolerance"), run.recipe.get("confidence")
    if confidence is None:
        return f"A round matches if its loss is at most {tolerance} nats per token above the loss to reach."
    return (
        f"A round matches if the one-sided {confidence:.0%} upper bound of its difference is at most {tolerance} nats "
        "per token. Intervals lie between the two one-sided bounds and cluster by document."
    )


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
    yield from layer_blocks(run.evaluation)
    if run.laziness and (run.evaluation is None or run.evaluation.laziness is None):
        yield Paragraph(run.laziness)


def _test(run: RunSummary) -> Iterator[Block]:
    if run.results:
        yield Table("Test loss in nats per token", HEADERS, tuple(table_cells(run.results)))
        yield Paragraph(
            "The test set was opened once, after the last round. Differences are paired with the reference as it was "
            "at the start."
        )


def _evaluation(run: RunSummary) -> Iterator[Block]:
    if run.left_out:
        yield Paragraph(f"Left out: {run.left_out}")
    yield from comparison_blocks(run.evaluation)


def _comparison(run: RunSummary) -> Iterator[Block]:
    if run.cell is not None:
        yield Paragraph(
            f"This is the cell {run.cell.name} of the comparison {run.cell.comparison}; figures are means over its "
            "seeds."
        )
        yield from arm_blocks(run.cell.facts)


def _data(run: RunSummary) -> Iterator[Block]:
    if run.data is not None:
        yield from set_blocks(run.data)
    yield from setting_blocks(run.settings, run.training)


def _reproduce(run: RunSummary) -> Iterator[Block]:
    pinned = f" at commit {run.revision}" if run.revision else ""
    seed = "" if run.seed is None else f", seed {run.seed}"
    processes = f", {run.training['world_size']} processes" if run.training.get("world_size", 1) > 1 else ""
    own = bool(run.settings) and "reference" not in run.settings
    reference = "made by the run itself, the embedded default" if own else f"{run.reference}{pinned}"
    yield Paragraph(f"Reference: {reference}{seed}{processes}.")
    if run.cell is not None:
        yield Paragraph(f"It is the cell {run.cell.name} of a comparison, which trains it.")
        yield from reproduce(run.cell.comparison, run.cell.facts)
        return
    versions = {**run.versions, **((run.evaluation.versions if run.evaluation else None) or {})}
    if versions:
        yield Table("Versions", ("library", "version"), tuple(sorted(versions.items())), text_columns=2)
    name = shlex.quote(run.name)
    commands = [*(run.evaluation.commands if run.evaluation else ()), f"inheritune report {name}"]
    if run.trained:
        yield Preformatted("The recipe, as JSON", json.dumps(recipe_of(run), indent=1, ensure_ascii=False))
        missing = "" if run.settings else " Its data were not kept with it: add what names them."
        yield Paragraph(f"To do it again, save the recipe as recipe.json, then:{missing}")
        commands.insert(0, "inheritune train --config recipe.json")
    else:
        commands.insert(0, _cut(run, name))
    yield Preformatted("Commands", "\n".join(commands))
    if run.evaluation is not None and not run.evaluation.commands:
        yield Paragraph("The evaluation was made from Python, by evaluate_student.")


def recipe_of(run: RunSummary) -> dict[str, Any]:
    """
    Return what the run was told, as a file for `inheritune train --config` holds it.

    Args:
        run (`RunSummary`): What the run's folder says.
    """
    # A run whose settings were kept names its reference there, or none at all if it was the embedded one.
    reference = run.settings.get("reference") if run.settings else run.reference
    pinned = {"reference": reference, "revision": run.revision or run.settings.get("revision")} if reference else {}
    training = {name: value for name, value in run.training.items() if name != "world_size"}
    return without_nothing({**pinned, **run.recipe, **training, **run.settings, **pinned, "output_dir": run.name})


def _cut(run: RunSummary, name: str) -> str:
    words = ["inheritune", "inherit", run.reference]
    layers = run.recipe.get("keep_layers", "half")
    words += ["--keep-layers", str(layers) if isinstance(layers, int | str) else ",".join(map(str, layers))]
    words += ["--inherit", str(run.recipe.get("inherit", "all"))]
    words += ["--revision", run.revision] if run.revision else []
    return f"{shlex.join(words)} --output {name}"


def _yes(match: Match) -> str:
    return "yes" if match.matched else "no"
