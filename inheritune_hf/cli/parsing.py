"""The parser of a verb, and options that several verbs have."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, cast

from ..config import InherituneConfig


def _recipe_help(name: str) -> str:
    """Return what the recipe says of a setting, with its default."""
    item = InherituneConfig.__dataclass_fields__[name]
    return f"{item.metadata['help'].rstrip('.')} (default: {item.default})."


def metavar_of(action: argparse.Action) -> str:
    """Return how help names an option's value: by its kind."""
    return {int: "N", float: "NUMBER"}.get(cast(Any, action.type), "VALUE")


#: Options that several verbs have.
_SHARED: dict[str, dict[str, Any]] = {
    "--keep-layers": {"default": "half", "help": _recipe_help("keep_layers")},
    "--inherit": {"default": "all", "help": _recipe_help("inherit")},
    "--attention-scale": {"choices": ("keep", "position"), "default": "keep", "help": _recipe_help("attention_scale")},
    "--revision": {"help": "Branch, tag or commit of the reference on the Hub."},
    "--text-model": {"action": "store_true", "help": "Use the text model inside a multimodal reference."},
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
        for action in self._actions:
            if action.option_strings and action.metavar is None and action.choices is None and action.nargs != 0:
                action.metavar = metavar_of(action)
        words = [re.sub(r"^--[\w-]+", lambda found: found[0].replace("_", "-"), word) for word in args]
        options: argparse.Namespace = super().parse_args(words, namespace)
        return options
