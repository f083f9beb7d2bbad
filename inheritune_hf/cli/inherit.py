"""`inheritune inherit`: cut a student out of a reference and save it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def inherit(argv: Sequence[str], prog: str = "inheritune inherit") -> int:
    """
    Build and save a student, and print kept and dropped layers with parameters before and after.

    Returns:
        `int`: Exit status, 0 or 1.
    """
    parser = argparse.ArgumentParser(prog=prog, description="Cut a student out of a reference and save it.")
    parser.add_argument("reference", help="Hub id or path of the reference.")
    parser.add_argument("--keep-layers", "--keep_layers", default="half", help="As in the recipe (default: half).")
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

    from ..analysis import is_measured
    from ..publishing import save_inherited
    from ..students import describe

    try:
        choice = options.keep_layers
        if is_measured(choice):
            choice = describe(_measured_layers(options.reference, choice, options.files, options.revision))
        plan = save_inherited(options.reference, choice, options.output, revision=options.revision, dtype=options.dtype)
    except (ValueError, OSError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    share = plan.parameters_after / plan.parameters_before
    print(f"kept        {describe(plan.kept_layers)} ({len(plan.kept_layers)} of {plan.depth} layers)")
    print(f"dropped     {describe(plan.dropped_layers) if plan.dropped_layers else 'nothing'}")
    print(f"parameters  {plan.parameters_before:,} -> {plan.parameters_after:,} ({share:.1%})")
    print(f"saved in    {options.output}")
    return 0


def _measured_layers(reference: str, choice: str, files: Sequence[str], revision: str | None) -> tuple[int, ...]:
    from transformers import AutoTokenizer

    from ..analysis import resolve_measured
    from ..analysis.measurement import scores_folder
    from ..analysis.sequences import default_sequences, paper_tokens

    source = {} if revision is None else {"revision": revision}
    tokenizer = AutoTokenizer.from_pretrained(reference, **source)
    sequences = default_sequences(tokenizer, tokens=paper_tokens(reference, **source), files=files)
    return resolve_measured(reference, choice, sequences, progress=True, cache_dir=scores_folder(), **source)
