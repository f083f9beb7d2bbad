"""The command line: one verb for each capability."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

_USAGE = """usage: inheritune VERB [OPTIONS]

Make a big causal language model small: inherit its first layers, train, grow until its loss is matched.

verbs:
  train     run a recipe, or the embedded default if there is no --reference
  inherit   cut a student out of a reference and save it
  data      prepare: tokenize and pack data ahead of time
  doctor    say whether and how a reference can be cut, from its config and file headers alone
  plan      estimate what a run would take, before any weight is downloaded or loaded
  verify    check a saved student against its reference, reload it and let it generate
  compare   train other ways to make a model small under the loop's budget, and show them side by side
  analyze   see which layers of a model are lazy, and how many are worth keeping
  evaluate  measure a student beside its reference: loss, speed, memory, drafting, zero-shot tasks
  report    write what a run came to as one HTML page, with Markdown and a picture
  publish   put a saved student on the Hub, or show what would go up

options:
  --help     show this text; `inheritune VERB --help` shows a verb's options
  --version  show the version

exit status of train: 0 matched, 3 no_more_layers, 4 budget_exhausted, 75 interrupted (run it again), 2 usage, 1 error
exit status of compare: 0 complete, 75 interrupted (run it again), 2 usage, 1 error
exit status of the others: 0 done (verify: nothing failed), 1 error (doctor: it cannot be cut), 2 usage
"""


#: The module that holds each verb, as a function of its name.
_MODULES = {
    "train": "train",
    "inherit": "inherit",
    "data": "data",
    "doctor": "inspect",
    "plan": "inspect",
    "verify": "inspect",
    "compare": "compare",
    "analyze": "analyze",
    "evaluate": "evaluate",
    "report": "report",
    "publish": "publish",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the command line names and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help"}:
        print(_USAGE, end="")
        return 0 if words else 2
    if words[0] == "--version":
        from .. import __version__

        print(f"inheritune-hf {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in _MODULES:
        verbs = ", ".join(_MODULES)
        print(f"inheritune: error: there is no verb {verb!r}; it is one of: {verbs}.", file=sys.stderr)
        return 2
    # What a verb needs is imported when it is run: help and mistakes are answered at once.
    status: int | tuple[int, object] = getattr(import_module(f".{_MODULES[verb]}", __name__), verb)(rest)
    return status[0] if isinstance(status, tuple) else status
