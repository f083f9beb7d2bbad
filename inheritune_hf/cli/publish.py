"""`inheritune publish`: put a saved student on the Hub, or show what would go up."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ..publishing import Publication


def publish(argv: Sequence[str], prog: str = "inheritune publish") -> int:
    """
    Try a student out in a fresh process and show what would go up; with `--push` it goes up.

    Returns:
        `int`: Exit status, 0 or 1; wrong usage ends with 2.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description="Put a saved student on the Hub. Without --push nothing leaves this machine."
    )
    parser.add_argument("folder", help="Folder of the student, or output folder of its run.")
    parser.add_argument("--repo-id", "--repo_id", required=True, help="The repository, owner/name.")
    parser.add_argument("--push", action="store_true", help="Upload; otherwise it is only shown what would go up.")
    parser.add_argument("--private", action="store_true", default=None, help="Make the repository private.")
    parser.add_argument("--revision", help="Branch to commit to, made if it is not there (default: main).")
    parser.add_argument("--rounds", action="store_true", help="Every round's student too, on branches round-1, ...")
    parser.add_argument("--license", help="Licence, as the Hub calls it (default: the reference's).")
    parser.add_argument("--language", nargs="+", default=[], help="Languages, such as en (default: the reference's).")
    parser.add_argument("--dataset", nargs="+", default=[], help="Data sets of the Hub that it was trained on.")
    parser.add_argument("--message", default="Publish a student", help="Message of the commit.")
    options = parser.parse_args(argv)

    from rich.console import Console
    from transformers.utils import logging as transformers_output

    from ..publishing import publish_student
    from ..training.revisions import round_students

    transformers_output.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_output.set_verbosity_error()  # type: ignore[no-untyped-call]
    console = Console(highlight=False, soft_wrap=True)
    wanted = {"license": options.license, "language": options.language, "datasets": options.dataset}
    where = {"push": options.push, "private": options.private, **wanted}
    try:
        last = {"revision": options.revision, "commit_message": options.message, **where}
        show_publication(console, publish_student(options.folder, options.repo_id, **last))
        for index, folder in round_students(Path(options.folder)) if options.rounds else ():
            each = {"revision": f"round-{index}", "commit_message": f"Student of round {index}", **where}
            part = publish_student(folder, options.repo_id, **each)
            went = part.url or f"would go to branch round-{index}"
            console.print(
                f"round {index}     {part.files['model.safetensors']:,} bytes of weights: {went}", markup=False
            )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    if not options.push:
        console.print("Nothing was uploaded. Add --push to do it.", markup=False)
    return 0


def show_publication(console: Console, found: Publication) -> None:
    """Show what goes up, what stays, and what is worth knowing."""
    from .tables import human_bytes

    console.print("tried out   it loads, runs and generates in a fresh process without inheritune_hf", markup=False)
    for name, size in found.files.items():
        console.print(f"goes up     {name} ({human_bytes(size)})", markup=False)
    for name, reason in found.left_out.items():
        console.print(f"stays here  {name} ({reason})", markup=False)
    for note in found.notes:
        console.print(f"note        {note}", markup=False)
    console.print(f"{'went to' if found.url else 'would go to'} {found.url or found.repo_id}", markup=False)
