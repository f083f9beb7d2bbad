"""`inheritune inherit`: cut a student out of a reference and save it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

#: Help of the option that three verbs have.
ATTENTION_SCALE = "Attention scale of moved blocks in a position-scaled GPT-2, as in the recipe (default: keep)."


def inherit(argv: Sequence[str], prog: str = "inheritune inherit") -> int:
    """
    Show what is kept, dropped and read, then build and save a student.

    Returns:
        `int`: Exit status, 0 or 1; wrong usage ends with 2.
    """
    parser = argparse.ArgumentParser(prog=prog, description="Cut a student out of a reference and save it.")
    parser.add_argument("reference", help="Hub id or path of the reference.")
    parser.add_argument("--keep-layers", "--keep_layers", default="half", help="As in the recipe (default: half).")
    parser.add_argument("--inherit", default="all", help="Parts that come along, as in the recipe (default: all).")
    parser.add_argument("--attention-scale", choices=("keep", "position"), default="keep", help=ATTENTION_SCALE)
    parser.add_argument("--seed", type=int, default=42, help="Seed of parts that do not come along (default: 42).")
    parser.add_argument(
        "--files",
        nargs="+",
        default=[],
        help="Text to measure on for 'auto' and measures (default: the embedded text).",
    )
    parser.add_argument("--output", required=True, help="Folder to save the student in.")
    parser.add_argument("--revision", help="Branch, tag or commit of the reference on the Hub.")
    parser.add_argument("--dtype", default="float32", help="Type of the weights (default: float32).")
    options = parser.parse_args(argv)

    from rich.console import Console

    from ..layers import describe
    from ..measures import is_measured
    from ..publishing import save_inherited
    from .tables import show_plan

    console = Console(highlight=False, soft_wrap=True)
    try:
        choice = options.keep_layers
        if is_measured(choice):
            choice = describe(_measured_layers(options.reference, choice, options.files, options.revision))
        save_inherited(
            options.reference,
            choice,
            options.output,
            revision=options.revision,
            inherit=options.inherit,
            seed=options.seed,
            attention_scale=options.attention_scale,
            show=lambda plan: show_plan(console, plan),
            dtype=options.dtype,
        )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    console.print(f"saved in    {options.output}", markup=False)
    return 0


def _measured_layers(reference: str, choice: str, files: Sequence[str], revision: str | None) -> tuple[int, ...]:
    from ..analysis import default_sequences, paper_tokens, resolve_measured, scores_folder
    from ..students import load_tokenizer

    source = {} if revision is None else {"revision": revision}
    tokenizer = load_tokenizer(reference, **source)
    sequences = default_sequences(tokenizer, tokens=paper_tokens(reference, **source), files=files)
    return resolve_measured(reference, choice, sequences, progress=True, cache_dir=scores_folder(), **source)
