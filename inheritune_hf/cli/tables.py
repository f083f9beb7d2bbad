"""How the verbs show plans, diagnoses and estimates on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from ..evaluation.abilities import unmeasured_abilities
from ..foreign_text import file_names
from ..measures import SEQUENCES, TOKENS
from ..publishing.tables import corpus_rows, task_rows
from .terminal import Terminal

if TYPE_CHECKING:
    from ..analysis import UntrainedLosses
    from ..evaluation import Efficiency, StudentEvaluation
    from ..experiments import ComparisonEstimate
    from ..publishing import Publication
    from ..records import DataFacts
    from ..students import InheritancePlan, MemoryEstimate, RunEstimate, StepTime, TrainingSetup, Verification


def human_bytes(count: float) -> str:
    """Return a number of bytes as people read it, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def human_count(count: int) -> str:
    """Return a count in full, or, from a million on, as people read it."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return f"{count:,}"


def _table(title: str, left: Sequence[str], right: Sequence[str] = ()) -> Table:
    """Return an empty table: columns of words, then columns of numbers."""
    table = Table(title=title, title_justify="left")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def _total(estimate: RunEstimate | ComparisonEstimate) -> list[str]:
    return [
        human_count(estimate.steps),
        human_count(estimate.tokens),
        f"{estimate.flops:.3g}",
        _hours(estimate.seconds),
    ]


def show_plan(terminal: Terminal, plan: InheritancePlan) -> None:
    """Show which layers are kept and dropped, what that leaves, and what will be read for it."""
    from ..layers import describe

    kept, dropped = (
        sum(plan.layer_parameters[layer] for layer in layers) for layers in (plan.kept_layers, plan.dropped_layers)
    )
    outside = plan.parameters_before - kept - dropped
    parts = f"{kept:,} in kept layers, {dropped:,} in dropped ones, {outside:,} outside layers"
    share = plan.parameters_after / plan.parameters_before
    facts = [
        ("reference", f"{plan.reference} ({plan.model_type}, {plan.depth} layers)"),
        ("kept", f"{describe(plan.kept_layers)} ({len(plan.kept_layers)} of {plan.depth} layers)"),
        ("dropped", describe(plan.dropped_layers) if plan.dropped_layers else "nothing"),
        ("parameters", f"{plan.parameters_before:,} -> {plan.parameters_after:,} ({share:.1%})"),
        ("by part", parts),
        ("to read", _to_read(plan)),
    ]
    if plan.bytes_to_fetch:
        facts.append(("to fetch", human_bytes(plan.bytes_to_fetch)))
    for name, (before, after) in plan.changed_fields.items():
        facts.append(("config", f"{name}: {_short(before)} -> {_short(after)}"))
    terminal.print_facts([*facts, *(("note", note) for note in plan.notes)])


def _to_read(plan: InheritancePlan) -> str:
    if not plan.files:
        return "nothing: no file of weights was found"
    whole = sum(file.size or 0 for file in plan.files)
    names = file_names([file.name for file in plan.files])
    return f"{human_bytes(plan.bytes_to_read)} of the {human_bytes(whole)} of {names}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


def show_estimate(terminal: Terminal, estimate: RunEstimate) -> None:
    """Show what every round would take, and the memory of every phase."""
    show_plan(terminal, estimate.plan)
    columns = ["round", "layers", "parameters", "steps", "tokens", "FLOPs", "hours"]
    early = (
        "" if estimate.abandon is None else f"; one that is {estimate.abandon:.0%} sure to miss ends early and grows"
    )
    table = _table(f"rounds, if all are needed{early}", [], columns)
    for index, item in enumerate(estimate.rounds, start=1):
        table.add_row(
            str(index),
            str(item.layers),
            human_count(item.parameters),
            human_count(item.steps),
            human_count(item.tokens),
            f"{item.flops:.3g}",
            _hours(item.seconds),
        )
    table.add_section()
    table.add_row("all", "", "", *_total(estimate))
    terminal.print(table)
    if estimate.confidence is not None:
        text = f"each at {100 * estimate.confidence:.3g}% one-sided confidence"
        terminal.print_facts([("looks", f"{estimate.looks} at the selection set, {text}")])
    if estimate.order_passes:
        text = f"measured when the run begins, and not the first layers shown: at most {estimate.order_passes:,} "
        text += f"forward passes over {SEQUENCES * TOKENS:,} training tokens, {estimate.order_flops:.3g} FLOPs "
        text += f"({estimate.order_flops / estimate.flops:.2g} of the rounds')"
        terminal.print_facts([("layer order", text)])
    if estimate.step_time is not None:
        first, measured = estimate.rounds[0], estimate.step_time
        deeper = any(item.layers not in measured.depths for item in estimate.rounds)
        how = "extrapolated in depth" if deeper else "at that depth"
        _show_measured(terminal, measured, first.layers, first.tokens, first.seconds, f" ({how})")
    title = f"memory of one process at its peak: {_setup_words(estimate.setup, estimate.loss)}"
    kinds = ("weights", "gradients", "optimizer", "activations", "logits", "peak")
    # Named so shortly that the table fits 80 columns.
    table = _table(title, ["phase"], ["weights", "grads", "optim", "acts", "logits", "peak"])
    phases = [estimate.measuring, estimate.inheriting, *(item.memory for item in estimate.rounds)]
    names = ["reference", "build student", *(f"train {item.layers} layers" for item in estimate.rounds)]
    for name, memory in zip(names, phases, strict=True):
        sizes = (getattr(memory, kind) for kind in kinds)
        table.add_row(name, *("unknown" if size is None else human_bytes(size) for size in sizes))
    terminal.print(table)
    _note_optimizer(terminal, estimate.setup, phases)


def show_comparison_estimate(terminal: Terminal, estimate: ComparisonEstimate) -> None:
    """Show what a cell of every arm would take, how many there are, and what the whole grid would."""
    title = f"one cell of each arm ({estimate.reference}, {estimate.model_type}, {estimate.depth} layers)"
    columns = ["layers", "parameters", "steps", "tokens", "FLOPs", "hours", "peak memory", "cells"]
    table = _table(title, ["arm"], columns)
    for arm in estimate.arms:
        table.add_row(
            arm.arm,
            str(arm.layers),
            human_count(arm.parameters),
            human_count(arm.steps),
            human_count(arm.tokens),
            f"{arm.flops:.3g}",
            _hours(arm.seconds),
            human_bytes(arm.memory.peak),
            str(arm.cells),
        )
    table.add_section()
    table.add_row("all cells", "", "", *_total(estimate), "", str(estimate.cells))
    # As wide as it is: names and figures of so many columns are not to be folded.
    table.width = terminal.measure(table, options=terminal.options.update(max_width=1000)).maximum
    terminal.print(table)
    if estimate.step_time is not None and (arms := [arm for arm in estimate.arms if arm.seconds]):
        first = arms[0]
        _show_measured(terminal, estimate.step_time, first.layers, first.tokens, first.seconds)
    terminal.print_facts(
        [
            ("memory", f"of one process: {_setup_words(estimate.setup, estimate.loss)}"),
            *(("left out", f"{name}: {reason}") for name, reason in estimate.left_out.items()),
        ]
    )
    if any(arm.arm == "inheritune" for arm in estimate.arms):
        terminal.print_facts([("note", "The loop is taken to need every round.")])
    _note_optimizer(terminal, estimate.setup, [arm.memory for arm in estimate.arms])


def _setup_words(setup: TrainingSetup, loss: str) -> str:
    words = [setup.dtype, setup.mixed_precision or "", setup.optim]
    words += ["checkpointing"] if setup.gradient_checkpointing else []
    return ", ".join(filter(None, [*words, f"{loss} loss"]))


def _note_optimizer(terminal: Terminal, setup: TrainingSetup, phases: Sequence[MemoryEstimate]) -> None:
    from ..students import KNOWN_OPTIMIZERS

    if any(memory.optimizer is None for memory in phases):
        known = ", ".join(KNOWN_OPTIMIZERS)
        text = f"{setup.optim}'s states are not known here and left out; known: {known}"
        terminal.print_facts([("note", text)])


def _show_measured(
    terminal: Terminal, measured: StepTime, layers: int, tokens: int, seconds: float | None, how: str = ""
) -> None:
    depths = " and ".join(str(depth) for depth in measured.depths)
    rate = tokens / (seconds or 1.0)
    text = f"{measured.steps} steps of one process on {measured.device} at a depth of {depths}: {rate:,.0f} tokens"
    terminal.print_facts([("measured", f"{text} per second with {layers} layers{how}")])


def show_untrained(terminal: Terminal, found: UntrainedLosses) -> None:
    """Show the losses of students before training, by choice and depth."""
    title = f"loss of untrained students, nats per token (the reference has {found.depth} layers)"
    table = _table(title, ["choice"], [f"{count} layers" for count in found.depths])
    for name, losses in found.losses.items():
        table.add_row(name, *(f"{loss:.3f}" for loss in losses))
    terminal.print(table)
    terminal.print_facts([("reference", f"{found.loss:.3f}; a uniform guess {found.uniform:.3f}")])


def show_verification(terminal: Terminal, found: Verification) -> None:
    """Show what was checked, what was found, and the verdict."""
    for row in found.table().rows:
        terminal.print("{:<10} {:<8} {}".format(*row))
    terminal.print(found.verdict)


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return ""
    hours = seconds / 3600
    return f"{hours:.3g}" if hours < 1000 else f"{hours:,.0f}"


def show_evaluation(terminal: Terminal, found: StudentEvaluation) -> None:
    """Show a student beside its reference, and that one trained further: losses, speed, tasks, and the verdict."""
    beside = ["student", "reference", "difference", *(("adapted", "from it") if found.adapted else ())]
    for item, rows in corpus_rows(found):
        table = _table(f"{item.corpus}: {item.documents:,} documents, {item.tokens:,} tokens", ["figure"], beside)
        for figure, mine, *others in rows:
            table.add_row(figure, mine, *_folded(others))
        terminal.print(table)
    if found.efficiency is not None:
        _show_efficiency(terminal, found.efficiency)
    for draft in found.drafts:
        same = "" if draft.equal is None else ", the same tokens" if draft.equal else ", OTHER TOKENS"
        times = draft.speed_up
        text = f"{draft.mode}: {draft.acceptance:.1%} of {draft.drafted} drafted tokens accepted, "
        text += f"{times.median:.2f} times as fast ({times.low:.2f} to {times.high:.2f}){same}"
        terminal.print_facts([("draft", text)])
    if found.tasks:
        table = _table("tasks, ± one standard error", ["task"], ["rows", *beside])
        for task, asked, metric, count, mine, *others in task_rows(found):
            what = "\n".join(filter(None, (task, metric, asked)))
            table.add_row(what, count, mine.replace(" ±", "\n±"), *_folded(others, "p "))
        terminal.print(table)
    if found.laziness is not None:
        terminal.print(found.laziness.comparison.sentence)
    terminal.print(found.verdict())
    terminal.print(unmeasured_abilities(found))


def _folded(cells: Sequence[str], mark: str = "") -> Iterator[str]:
    """Yield value and difference of each model that a student is compared with, on lines that fit 80 columns."""
    for value, difference, more in zip(cells[::3], cells[1::3], cells[2::3], strict=True):
        yield value.replace(" ±", "\n±")
        yield "\n".join(filter(None, (difference.replace(" ±", "\n±"), more and f"{mark}{more}")))


def _show_efficiency(terminal: Terminal, found: Efficiency) -> None:
    title = f"efficiency ({found.device}, {found.dtype})"
    table = _table(title, ["figure", "setting"], ["student", "reference", "gain"])
    mine, theirs = found.student, found.reference
    for name, one, other, shown in (
        ("parameters", mine.parameters, theirs.parameters, "{:,.0f}".format),
        ("FLOPs per token", mine.flops_per_token, theirs.flops_per_token, "{:,.0f}".format),
        ("on disk", mine.bytes_on_disk, theirs.bytes_on_disk, human_bytes),
        ("peak memory", mine.peak_memory, theirs.peak_memory, human_bytes),
    ):
        if one is not None and other is not None:
            table.add_row(name, "", shown(one), shown(other), f"{other / one:.2f} ×")
    for speed in found.speeds:
        unit, scale = (" ms", 1000) if speed.quantity == "time to first token" else ("", 1)
        table.add_row(
            speed.quantity,
            f"{speed.setting}, batch {speed.batch}",
            f"{speed.student.median * scale:,.1f}{unit}",
            f"{speed.reference.median * scale:,.1f}{unit}",
            f"{speed.gain.median:.2f} × ({speed.gain.low:.2f} to {speed.gain.high:.2f})",
        )
    terminal.print(table)


def show_facts(terminal: Terminal, facts: DataFacts, folder: str) -> None:
    """Show what was prepared, and where it is."""
    per_token = facts.bytes_per_token
    near = "not looked for" if facts.near_duplicates is None else f"{facts.near_duplicates:,}"
    terminal.print_facts(
        [
            ("source", facts.source),
            *((name, getattr(facts, name)) for name in ("train", "selection", "test")),
            ("bytes/token", "no text" if per_token is None else f"{per_token:.3f}"),
            ("longest", f"{facts.longest_document:,} tokens"),
            ("duplicates", f"{facts.shared_documents:,} the same, {near} nearly; {facts.removed_documents:,} removed"),
            ("skipped", f"{facts.skipped_documents:,} blank, {facts.damaged_rows:,} damaged"),
            ("dropped", f"{facts.dropped_tokens:,} tokens of the last partial sequence"),
            ("saved in", f"{folder} (give it to a run by --dataset-name)"),
        ]
    )


def show_publication(terminal: Terminal, found: Publication) -> None:
    """Show what is uploaded, what is left out and why, and what is worth knowing."""
    left_out: dict[str, list[str]] = {}
    for name, reason in found.left_out.items():
        left_out.setdefault(reason, []).append(name)
    terminal.print_facts(
        [
            ("tested", "loads, runs and generates in a fresh process without inheritune_hf"),
            *(("upload", f"{name} ({human_bytes(size)})") for name, size in found.files.items()),
            *(("left out", f"{file_names(names, most=8)} ({reason})") for reason, names in left_out.items()),
            *(("note", note) for note in found.notes),
            ("uploaded to" if found.url else "repository", found.url or found.repo_id),
        ]
    )
