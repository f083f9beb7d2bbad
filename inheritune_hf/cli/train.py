"""`inheritune train`: one whole run, the same as the example script."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..configuration import RunConfig
from ..records import EXIT_STATUS

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import TrainingArguments


def train(argv: Sequence[str], prog: str = "inheritune train") -> tuple[int, RunConfig]:
    """
    Run what the command line and its `--config` say.

    Returns:
        `tuple[int, RunConfig]`: Exit status (0 matched, 3 no_more_layers, 4 budget_exhausted, 75 interrupted, 2 usage,
        1 error) and the run's settings.
    """
    from ..experiments import EMBEDDED_DEFAULTS, run_embedded, run_recipe
    from .settings import parse_settings

    settings = parse_settings(argv, EMBEDDED_DEFAULTS, prog)
    console = quiet_console(settings.args)
    try:
        run = run_embedded if settings.run.reference is None else run_recipe
        result = run(*settings, console=console)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; the same command goes on from what is on disk", file=sys.stderr)
        return EXIT_STATUS["interrupted"], settings.run
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1, settings.run
    return EXIT_STATUS[result.outcome], settings.run


def quiet_console(args: TrainingArguments) -> Console:
    """Return where a run shows its progress, on the main process alone; Transformers' own messages are kept down."""
    from rich.console import Console
    from transformers.utils import logging as transformers_output

    main_process = args.process_index == 0
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("inheritune_hf").setLevel(logging.INFO if main_process else logging.WARNING)
    # Loading and saving have bars of their own in Transformers; the run's are enough.
    quiet: Any = transformers_output
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    return Console(quiet=not main_process)
