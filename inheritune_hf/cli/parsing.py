"""The parser of a verb, and options that several verbs have."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

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
    "--text-model": {"action": "store_true", "help": "Take the text model inside a multimodal reference."},
    "--gguf-file": {"help": "GGUF file of the reference, which is read whole and dequantized."},
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
