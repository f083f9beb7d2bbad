"""What verbs write to the terminal: text that others wrote stays text, see `foreign_text`."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text
from tqdm import tqdm

from ..foreign_text import printable


class Terminal(Console):
    """Standard output: lines are not wrapped, and strings are plain text."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string, of a line or of a table, as it is shown."""
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as a console does, above progress bars that are shown."""
        with tqdm.external_write_mode():
            super().print(*objects, **options)

    def print_facts(self, facts: Iterable[tuple[str, object]]) -> None:
        """Print a line for each name and value, aligned."""
        for name, value in facts:
            self.print(f"{name:<12}" + str(value).replace("\n", "\\n"))

    def print_record(self, found: Any, **more: Any) -> None:
        """Print a record, and `more` beside it, as JSON."""
        text = json.dumps({**dataclasses.asdict(found), **more}, indent=1, ensure_ascii=False, default=str)
        self.print(text)


class LogFormat(logging.Formatter):
    """Format of log records, of this package and of those that it stands on."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's text."""
        return printable(super().format(record))


class LogHandler(logging.StreamHandler[Any]):
    """Write log records to standard error, above progress bars that are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        with tqdm.external_write_mode():
            super().emit(record)


def log_to_terminal(level: int = logging.WARNING) -> None:
    """Write log records to standard error: this package's from `level` on, warnings of others."""
    handler = LogHandler()
    handler.setFormatter(LogFormat("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("inheritune_hf").setLevel(level)


def quiet_transformers(warnings: bool = False) -> None:
    """Keep down Transformers' own progress bars, and its warnings unless they are wanted."""
    from transformers.utils import logging as transformers_output

    quiet: Any = transformers_output
    quiet.disable_progress_bar()
    if not warnings:
        quiet.set_verbosity_error()
    for library in ("transformers", "huggingface_hub", "datasets"):  # they have handlers of their own
        for own in logging.getLogger(library).handlers:
            own.setFormatter(LogFormat(own.formatter._fmt if own.formatter else "%(message)s"))
