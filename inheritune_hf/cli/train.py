"""The verbs about whole runs: `demo`, `train`, `adapt`, `compare`, `plan` and `report`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..config import EMBEDDED_DEFAULTS
from ..records import EXIT_STATUS
from ..run_folder import SETTINGS_FILE
from .parsing import VerbParser
from .settings import Settings, parse_adaptation, parse_comparison, parse_demo, parse_plan, parse_settings

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ..config import DataConfig
    from ..experiments.runs import RunResult
    from ..students import TrainingSetup
    from .terminal import Terminal


def demo(argv: Sequence[str], prog: str) -> int:
    """Run the embedded default, offline; any setting but those of a reference and its data may be given."""
    return _train(parse_demo(argv, EMBEDDED_DEFAULTS, prog))


def train(argv: Sequence[str], prog: str, launched: bool = False) -> int:
    """Run a recipe; if `launched`, a miss ends with 0 unless `require_match` is set: a launcher would see a crash."""
    return _train(parse_settings(argv, EMBEDDED_DEFAULTS, prog), launched)


def _train(settings: Settings, launched: bool = False) -> int:
    from ..experiments import run_embedded, run_recipe

    begin = run_embedded if settings.run.reference is None else run_recipe
    terminal = _progress_terminal(settings.args)
    result = begin(*settings, console=terminal)
    completed = result.outcome != "interrupted"
    status = 0 if launched and completed and not settings.run.require_match else EXIT_STATUS[result.outcome]
    terminal.print_facts(_summary(result, status))
    return status


def _summary(result: RunResult, status: int) -> list[tuple[str, str]]:
    """Return the lines with which a run ends: what it came to, where its student is, and what can be done next."""
    folder, next_command = shlex.quote(str(result.output_dir)), "the same command again resumes it"
    if result.outcome != "interrupted":
        next_command = f"inheritune evaluate {folder}, inheritune report {folder}"
        if result.conclusion.good:
            next_command += f", inheritune publish {folder} --repo-id OWNER/NAME"
    where = "checkpoints" if result.outcome == "interrupted" else "student"
    return [
        ("outcome", f"{result.outcome}: {result.conclusion.sentence}."),
        ("exit status", str(status)),
        (where, folder),
        ("next", next_command),
    ]


def adapt(argv: Sequence[str], prog: str) -> int:
    """Train a reference further on a run's data, and print its losses before and after, and what it can be used for."""
    settings = parse_adaptation(argv, prog)

    from ..experiments import adapt_reference
    from ..publishing.tables import interval

    terminal = _progress_terminal(settings.args)
    found = adapt_reference(*settings)
    terminal.print_facts(
        (name, f"{found.before[name]:.4f} before, {found.after[name]:.4f} after (nats per token), {said}")
        for name, match in found.differences.items()
        for said in [f"difference {match.difference:+.4f} ({interval(match)})"]
    )
    words = ["--config", str(found.folder / SETTINGS_FILE), "--reference", str(found.folder), "--output-dir", "student"]
    terminal.print_facts([("saved in", found.folder), ("next", shlex.join(["inheritune", "train", *words]))])
    return 0


def compare(argv: Sequence[str], prog: str) -> int:
    """Run the comparison that the recipe describes."""
    # Which arms have a teacher, their names say.
    defaults = {**EMBEDDED_DEFAULTS, "distillation": None, "output_dir": "inheritune-comparison"}
    settings, config = parse_comparison(argv, defaults, prog)

    from ..experiments import run_comparison

    terminal = _progress_terminal(settings.args)
    run_comparison(config, *settings, console=terminal)
    folder = settings.args.output_dir or "trainer_output"
    terminal.print_facts([("saved in", folder), ("next", f"inheritune report {shlex.quote(folder)}")])
    return 0


def report(argv: Sequence[str], prog: str) -> int:
    """Write the report of a run or a comparison as HTML, Markdown and PNG, and print its verdict."""
    parser = VerbParser(prog, "Write the report of a run or a comparison: one page in HTML, Markdown, and a picture.")
    parser.add_argument("run", help="Output folder of a run or a comparison, or folder of a student.")
    parser.add_argument("--output", help="Folder to write to (default: that of the run).")
    parser.add_argument("--evaluation", help="File of an evaluation (default: evaluation.json in the run's folder).")
    options = parser.parse_args(argv)

    from ..reporting import write_report
    from .terminal import Terminal

    found, paths = write_report(options.run, options.output, options.evaluation)
    terminal = Terminal()
    terminal.print(f"{found.outcome}: {found.verdict}")
    terminal.print_facts([("saved in", f"{paths[0].parent}: {', '.join(path.name for path in paths)}")])
    return 0


def plan(argv: Sequence[str], prog: str) -> int:
    """Estimate what a run or a comparison would take, before any weight is downloaded or loaded."""
    settings, comparison = parse_plan(argv, _add_plan_options, prog)
    args: Any = settings.args
    steps = args.steps_per_round or (comparison and comparison.budget_steps)
    for name, value in (("reference", args.reference), ("steps_per_round", steps)):
        if value is None:
            print(f"{prog}: error: there is no {name}: give it on the command line or in a file", file=sys.stderr)
            return 2

    from ..students import estimate_run
    from .tables import show_comparison_estimate, show_estimate
    from .terminal import Terminal, quiet_transformers

    quiet_transformers()
    needs_full = args.label_smoothing_factor or args.fsdp or args.deepspeed  # which leave a run no other loss
    given: dict[str, Any] = {
        "recipe": dataclasses.replace(settings.recipe, loss="full") if needs_full else settings.recipe,
        "setup": _planned_setup(settings),
        "tokens_per_second": args.tokens_per_second,
        "measure": args.measure,
        "max_steps": None if args.max_steps == -1 else args.max_steps,  # as in TrainingArguments, -1 is no limit
        **settings.run.where,
    }
    show: Any
    if comparison is not None:
        from ..experiments import estimate_comparison

        found: Any = estimate_comparison(args.reference, comparison, **given)
        show = show_comparison_estimate
    else:
        found = estimate_run(args.reference, **given)
        show = show_estimate
    if args.json:
        Terminal().print_record(found)
    else:
        show(Terminal(), found)
    return 0


def _progress_terminal(args: TrainingArguments) -> Terminal:
    """Return where a run shows its progress, on the main process alone; Transformers' own messages are kept down."""
    from .terminal import Terminal, log_to_terminal, quiet_transformers

    main_process = args.process_index == 0
    log_to_terminal(logging.INFO if main_process else logging.WARNING)
    quiet_transformers()
    return Terminal(quiet=not main_process)


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add what only a plan has to the options of a run."""
    parser.description = (
        "Estimate what a run or a comparison would take, before any weight is downloaded or loaded. Every setting of "
        "inheritune train is taken, and of a comparison if the file is one."
    )
    parser.usage = "%(prog)s [REFERENCE or FILE] [--NAME VALUE ...]"
    add = parser.add_argument
    add("source", nargs="?", metavar="REFERENCE or FILE", help="Hub id or path of the reference, or file of settings.")
    short_names = {"--batch-size": "per_device_train_batch_size", "--accumulation": "gradient_accumulation_steps"}
    for name, setting in short_names.items():
        text = f"Short name of --{setting.replace('_', '-')}."
        add(name, dest=setting, type=int, metavar="N", default=argparse.SUPPRESS, help=text)
    add("--processes", type=int, default=1, help="Processes that train together (default: 1).")
    add("--dtype", default="float32", help="Type of the weights (default: float32).")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--tokens-per-second",
        type=float,
        help="Throughput of the first round's student; of a comparison, of a student as deep as most arms are.",
    )
    speed.add_argument("--measure", action="store_true", help="Measure a few training steps on this machine.")
    add("--json", action="store_true", help="Print JSON.")


def _planned_setup(settings: Settings) -> TrainingSetup:
    """Return how a run trains its students, as far as a plan depends on it."""
    from ..students import TrainingSetup

    args: Any = settings.args
    if args.bf16 and args.fp16:
        raise ValueError("bf16 and fp16 are both set: set the one that is not meant to false.")
    # The older name counts where the newer is not given, or does not exist.
    newer = getattr(args, "activation_checkpointing", None)
    block_size = _block_size(settings.data)
    return TrainingSetup(
        batch_size=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        processes=args.processes,
        dtype=args.dtype,
        mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else None,
        optim=str(args.optim),
        gradient_checkpointing=bool(args.gradient_checkpointing if newer is None else newer),
        **({} if block_size is None else {"block_size": block_size}),
    )


def _block_size(data: DataConfig) -> int | None:
    """Return the tokens of a sequence if the settings say them, or a prepared folder that they name."""
    if data.block_size is not None or not data.dataset_name:
        return data.block_size
    from ..data.prepared import is_prepared, read_prepared

    return read_prepared(data.dataset_name).request.block_size if is_prepared(data.dataset_name) else None
