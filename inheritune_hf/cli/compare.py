"""`inheritune compare`: other ways to make a model small, under one budget."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..records import EXIT_STATUS


def compare(argv: Sequence[str], prog: str = "inheritune compare") -> int:
    """Run the comparison that the recipe says, and return the exit status: 0 complete, 75 interrupted, 1 error."""
    from ..experiments import EMBEDDED_DEFAULTS, CompareConfig, run_comparison
    from .settings import parse_comparison
    from .train import quiet_console

    defaults = {**EMBEDDED_DEFAULTS, "output_dir": "inheritune-comparison"}
    settings, config = parse_comparison(argv, CompareConfig, defaults, prog)
    try:
        result = run_comparison(config, *settings, console=quiet_console(settings.args))
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; the same command goes on from what is on disk", file=sys.stderr)
        return EXIT_STATUS["interrupted"]
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    return 0 if result.complete else EXIT_STATUS["interrupted"]
