"""The part of a report that comes from `inheritune evaluate`: losses, tasks, size and speed, lazy layers, text."""

from __future__ import annotations

from collections.abc import Iterator

from ..evaluation import Efficiency, Spread
from ..evaluation.speed import FIRST_TOKEN
from ..experiments import StudentEvaluation
from ..figures import rank_panel
from ..publishing.tables import interval
from .document import Block, Chart, Paragraph, SideBySide, Table


def comparison_blocks(found: StudentEvaluation | None) -> Iterator[Block]:
    """Yield the verdict, and losses, perplexities and accuracies on every corpus."""
    if found is None or not found.corpora:
        return
    yield Paragraph(found.verdict(), strong=True)
    for item in found.corpora:
        mine, theirs = item.student, item.reference
        accuracy = ""
        if item.accuracy_lower is not None and item.accuracy_upper is not None:
            accuracy = f"{item.accuracy_lower:+.2%} to {item.accuracy_upper:+.2%}"
        loss = (f"{mine.loss:.4f}", f"{theirs.loss:.4f}", f"{item.match.difference:+.4f}", interval(item.match))
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
    if found.own_test_set:
        yield Paragraph("The first corpus is the very test set of this run.")


def task_blocks(found: StudentEvaluation | None) -> Iterator[Block]:
    """Yield the zero-shot tasks with standard errors and paired differences."""
    if found is None or not found.tasks:
        return
    rows = tuple(
        (
            item.task,
            item.metric,
            f"{item.rows:,}",
            _with_error(item.student, item.student_error),
            _with_error(item.reference, item.reference_error),
            "" if item.difference is None else _with_error(item.difference, item.difference_error, "+"),
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


def efficiency_blocks(found: StudentEvaluation | None) -> Iterator[Block]:
    """Yield size, speed, and what the student brings as a draft."""
    if found is None:
        return
    if found.efficiency is not None:
        yield from _efficiency(found.efficiency)
    if found.drafts:
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


def _efficiency(found: Efficiency) -> Iterator[Block]:
    mine, theirs = found.student, found.reference
    rows = [
        ("layers", str(mine.layers), str(theirs.layers), _share(mine.layers, theirs.layers)),
        ("parameters", f"{mine.parameters:,}", f"{theirs.parameters:,}", _share(mine.parameters, theirs.parameters)),
        (
            "weights on disk, MB",
            f"{mine.bytes_on_disk / 1e6:,.1f}",
            f"{theirs.bytes_on_disk / 1e6:,.1f}",
            _share(mine.bytes_on_disk, theirs.bytes_on_disk),
        ),
    ]
    if mine.peak_memory is not None and theirs.peak_memory is not None:
        rows.append(
            (
                "peak memory, MB",
                f"{mine.peak_memory / 1e6:,.1f}",
                f"{theirs.peak_memory / 1e6:,.1f}",
                _share(mine.peak_memory, theirs.peak_memory),
            )
        )
    rows.append(
        (
            "forward MFLOPs per token",
            f"{mine.flops_per_token / 1e6:,.2f}",
            f"{theirs.flops_per_token / 1e6:,.2f}",
            _share(mine.flops_per_token, theirs.flops_per_token),
        )
    )
    yield Table("Size", ("figure", "student", "reference", "share"), tuple(rows))
    yield Table(
        "Speed: median (smallest to largest)",
        ("figure", "attention", "batch", "student", "reference", "times as fast"),
        tuple(
            (
                "time to first token, ms" if item.quantity == FIRST_TOKEN else item.quantity,
                item.setting,
                str(item.batch),
                _spread(item.student, *_unit(item.quantity)),
                _spread(item.reference, *_unit(item.quantity)),
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


def layer_blocks(found: StudentEvaluation | None) -> Iterator[Block]:
    """Yield lazy layers before and after."""
    if found is None or found.laziness is None:
        return
    lazy = found.laziness
    near = 1 + lazy.comparison.tolerance
    yield Chart(
        f"Approximate rank by layer, the largest over heads (tau {lazy.tau:g})",
        f"{lazy.comparison.sentence} {_series('Reference', lazy.reference)} {_series('Student', lazy.student)}",
        rank_panel(lazy.reference, lazy.student, near),
    )


def sample_blocks(found: StudentEvaluation | None) -> Iterator[Block]:
    """Yield the same beginnings, continued by both models."""
    if found is None or not found.samples:
        return
    yield Paragraph("Beginnings of documents, continued greedily with a repetition penalty of 1.2.")
    for item in found.samples:
        yield SideBySide(item.prompt, (("student", item.student), ("reference", item.reference)))


def _series(name: str, values: tuple[float | None, ...]) -> str:
    shown = ", ".join("none" if value is None else f"{value:.1f}" for value in values)
    return f"{name}, from layer 0: {shown}."


def _unit(quantity: str) -> tuple[float, int]:
    return (1000, 1) if quantity == FIRST_TOKEN else (1, 1)


def _spread(value: Spread, scale: float, digits: int) -> str:
    shown = [f"{number * scale:,.{digits}f}" for number in (value.median, value.low, value.high)]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}"


def _with_error(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")
