"""`inheritune doctor`, `plan` and `verify`: look before a run, and after."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from .inherit import ATTENTION_SCALE


def doctor(argv: Sequence[str], prog: str = "inheritune doctor") -> int:
    """
    Say whether and how a reference can be cut, and what would be read, from its config and file headers.

    Returns:
        `int`: 0 if it can be cut, 1 if not or if there is no such reference; wrong usage ends with 2.
    """
    parser = _parser(prog, "Say whether and how a reference can be cut, from its config and file headers alone.")
    options = parser.parse_args(argv)

    from ..students import plan_inheritance
    from .tables import show_plan

    def look(console: Console) -> tuple[Any, int]:
        choice = (options.keep_layers, options.inherit, options.attention_scale)
        plan = plan_inheritance(options.reference, *choice, **_source(options))
        if not options.json:
            console.print(f"{plan.reference} can be cut.", markup=False)
            show_plan(console, plan)
            head = "shares the token embedding's weights" if plan.tied else "has weights of its own"
            console.print(f"blocks      {plan.block_list}; the head {head}", markup=False)
        return {**dataclasses.asdict(plan), "notes": plan.notes, "bytes_to_read": plan.bytes_to_read}, 0

    return _run(prog, options, look)


def plan(argv: Sequence[str], prog: str = "inheritune plan") -> int:
    """
    Estimate what a run would take, before any weight is downloaded or loaded.

    Returns:
        `int`: 0, or 1 if the run could not be made; wrong usage ends with 2.
    """
    parser = _parser(prog, "Estimate what a run would take, before any weight is downloaded or loaded.")
    parser.add_argument("--steps-per-round", type=int, required=True, help="Optimizer steps of one round.")
    parser.add_argument("--grow-by", type=int, default=2, help="Layers added for each further round (default: 2).")
    parser.add_argument("--max-layers", type=int, help="Deepest student to try (default: the reference's depth).")
    parser.add_argument("--batch-size", type=int, default=8, help="Sequences of one forward pass (default: 8).")
    parser.add_argument("--block-size", type=int, default=1024, help="Tokens of one sequence (default: 1024).")
    parser.add_argument("--accumulation", type=int, default=1, help="Forward passes of one step (default: 1).")
    parser.add_argument("--processes", type=int, default=1, help="Processes that train together (default: 1).")
    parser.add_argument("--dtype", default="float32", help="Type of the weights (default: float32).")
    half = parser.add_mutually_exclusive_group()
    for name, kind in (("bf16", "bfloat16"), ("fp16", "float16")):
        half.add_argument(
            f"--{name}", dest="mixed", action="store_const", const=name, help=f"The forward pass is in {kind}."
        )
    parser.add_argument("--optim", default="adamw_torch_fused", help="As in TrainingArguments (default: fused AdamW).")
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="Blocks keep their inputs only and compute again."
    )
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--tokens-per-second", type=float, help="Throughput of the first round's student.")
    speed.add_argument("--measure", action="store_true", help="Measure a few training steps on this machine.")
    options = parser.parse_args(argv)

    from ..configuration import InherituneConfig
    from ..students import TrainingSetup, estimate_run
    from .tables import show_estimate

    def look(console: Console) -> tuple[Any, int]:
        recipe = InherituneConfig(
            keep_layers=options.keep_layers,
            inherit=options.inherit,
            attention_scale=options.attention_scale,
            grow_by=options.grow_by,
            max_layers=options.max_layers,
            steps_per_round=options.steps_per_round,
        )
        setup = TrainingSetup(
            batch_size=options.batch_size,
            block_size=options.block_size,
            accumulation=options.accumulation,
            processes=options.processes,
            dtype=options.dtype,
            mixed_precision=options.mixed,
            optim=options.optim,
            gradient_checkpointing=options.gradient_checkpointing,
        )
        estimate = estimate_run(
            options.reference,
            recipe,
            setup,
            tokens_per_second=options.tokens_per_second,
            measure=options.measure,
            **_source(options),
        )
        if not options.json:
            show_estimate(console, estimate)
        return dataclasses.asdict(estimate), 0

    return _run(prog, options, look)


def verify(argv: Sequence[str], prog: str = "inheritune verify") -> int:
    """
    Check a saved student against its reference, reload it and let it generate.

    Returns:
        `int`: 0 if nothing failed, 1 if something did or there is no student; wrong usage ends with 2.
    """
    parser = argparse.ArgumentParser(prog=prog, description="Check a saved student against its reference.")
    parser.add_argument("student", help="Folder of the student.")
    parser.add_argument("--reference", help="Hub id or path of the reference (default: what the lineage names).")
    parser.add_argument("--revision", help="Branch, tag or commit of the reference on the Hub.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    options = parser.parse_args(argv)

    from ..students import verify_student
    from .tables import show_verification

    def look(console: Console) -> tuple[Any, int]:
        found = verify_student(options.student, options.reference, **_source(options))
        if not options.json:
            show_verification(console, found)
        return {**dataclasses.asdict(found), "passed": found.passed}, 0 if found.passed else 1

    return _run(prog, options, look)


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("reference", help="Hub id or path of the reference.")
    parser.add_argument("--keep-layers", "--keep_layers", default="half", help="As in the recipe (default: half).")
    parser.add_argument("--inherit", default="all", help="Parts that come along, as in the recipe (default: all).")
    parser.add_argument("--attention-scale", choices=("keep", "position"), default="keep", help=ATTENTION_SCALE)
    parser.add_argument("--revision", help="Branch, tag or commit of the reference on the Hub.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    return parser


def _source(options: argparse.Namespace) -> dict[str, str]:
    return {} if options.revision is None else {"revision": options.revision}


def _run(prog: str, options: argparse.Namespace, look: Callable[[Console], tuple[Any, int]]) -> int:
    from transformers.utils import logging as transformers_output

    quiet: Any = transformers_output
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    try:
        found, status = look(Console(highlight=False, soft_wrap=True))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False, default=str))
    return status
