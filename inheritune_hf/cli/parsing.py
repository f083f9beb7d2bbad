"""What the verbs have in common: their parser, options that several have, and how they print."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

#: Options that several verbs have.
_SHARED: dict[str, dict[str, Any]] = {
    "--keep-layers": {"default": "half", "help": "As in the recipe (default: half)."},
    "--inherit": {"default": "all", "help": "Parts that are inherited, as in the recipe (default: all)."},
    "--attention-scale": {
        "choices": ("keep", "position"),
        "default": "keep",
        "help": "Attention scale of moved blocks in a position-scaled GPT-2, as in the recipe (default: keep).",
    },
    "--revision": {"help": "Branch, tag or commit of the reference on the Hub."},
    "--json": {"action": "store_true", "help": "Print JSON."},
}


class VerbParser(argparse.ArgumentParser):
    """Parser of a verb: an option may be written with hyphens or underscores."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description)

    def add_shared(self, *names: str) -> None:
        """Add options that several verbs have."""
        for name in names:
            self.add_argument(name, **_SHARED[name])

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Return what the words say."""
        words = [re.sub(r"^--[\w-]+", lambda found: found[0].replace("_", "-"), word) for word in args]
        options: argparse.Namespace = super().parse_args(words, namespace)
        return options


def source(options: argparse.Namespace) -> dict[str, Any]:
    """Return where on the Hub a reference is looked for, as keyword arguments."""
    return {} if options.revision is None else {"revision": options.revision}


def quiet_transformers(warnings: bool = False) -> None:
    """Keep down Transformers' own progress bars, and its warnings unless they are wanted."""
    from transformers.utils import logging as transformers_output

    quiet: Any = transformers_output
    quiet.disable_progress_bar()
    if not warnings:
        quiet.set_verbosity_error()


def quiet_console() -> Console:
    """Return a terminal whose lines are neither wrapped nor coloured by guess."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def print_json(found: Any, **more: Any) -> int:
    """Print a record, and `more` beside it, as JSON; return 0."""
    print(json.dumps({**dataclasses.asdict(found), **more}, indent=1, ensure_ascii=False, default=str))
    return 0
