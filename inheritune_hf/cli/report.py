"""`inheritune report`: what a run or a comparison came to, as one page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def report(argv: Sequence[str], prog: str = "inheritune report") -> int:
    """
    Write the report of a run or a comparison as HTML, Markdown and PNG, and print its verdict.

    Returns:
        `int`: Exit status, 0 or 1; wrong usage ends with 2.
    """
    parser = argparse.ArgumentParser(prog=prog, description="Write what a run or a comparison came to as one page.")
    parser.add_argument("run", help="output_dir of a run or a comparison, or folder of a student.")
    parser.add_argument("--output", help="Folder to write to (default: the run's).")
    parser.add_argument("--evaluation", help="File of an evaluation (default: evaluation.json in the run's folder).")
    options = parser.parse_args(argv)

    from ..reporting import write_report

    try:
        found, paths = write_report(options.run, options.output, options.evaluation)
    except (ValueError, OSError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    print(f"{found.outcome}: {found.verdict}")
    print(f"saved in    {paths[0].parent}: {', '.join(path.name for path in paths)}")
    return 0
