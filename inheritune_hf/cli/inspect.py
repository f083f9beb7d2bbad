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
from .planned import add_plan_options, planned_recipe, planned_setup


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
    Estimate what a run or a comparison would take, before any weight is downloaded or loaded.

    Returns:
        `int`: 0, or 1 if the run could not be made; wrong usage ends with 2.
    """
    from ..experiments import CompareConfig, estimate_comparison
    from ..students import estimate_run
    from .settings import parse_plan
    from .tables import show_comparison_estimate, show_estimate

    settings, compare = parse_plan(argv, CompareConfig, add_plan_options, prog)
    args = settings.args
    for name, value in (("reference", args.reference), ("steps_per_round", args.steps_per_round)):
        if value is None:
            print(f"{prog}: error: there is no {name}: give it on the command line or in a file", file=sys.stderr)
            return 2

    def look(console: Console) -> tuple[Any, int]:
        told: dict[str, Any] = {
            "recipe": planned_recipe(settings),
            "setup": planned_setup(settings),
            "tokens_per_second": args.tokens_per_second,
            "measure": args.measure,
            **_source(args),
        }
        if compare is not None:
            comparison = estimate_comparison(args.reference, compare, **told)
            if not args.json:
                show_comparison_estimate(console, comparison)
            return dataclasses.asdict(comparison), 0
        # As in TrainingArguments, -1 is no cap.
        estimate = estimate_run(args.reference, max_steps=None if args.max_steps == -1 else args.max_steps, **told)
        if not args.json:
            show_estimate(console, estimate)
        return dataclasses.asdict(estimate), 0

    return _run(prog, args, look)


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


def _source(options: argparse.Namespace) -> dict[str, Any]:
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
