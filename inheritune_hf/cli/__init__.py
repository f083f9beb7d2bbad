"""The command line: one verb for each capability."""

from __future__ import annotations

import sys
from collections.abc import Sequence

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

options:
  --help     show this text; `inheritune VERB --help` shows a verb's options
  --version  show the version

exit status of train: 0 matched, 3 no_more_layers, 4 budget_exhausted, 75 interrupted (run it again), 2 usage, 1 error
exit status of compare: 0 complete, 75 interrupted (run it again), 2 usage, 1 error
exit status of the others: 0 done (verify: nothing failed), 1 error (doctor: it cannot be cut), 2 usage
"""


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
    if verb == "train":
        from .train import train

        return train(rest)[0]
    if verb == "inherit":
        from .inherit import inherit

        return inherit(rest)
    if verb == "data":
        from .data import data

        return data(rest)
    if verb in ("doctor", "plan", "verify"):
        from . import inspect

        status: int = getattr(inspect, verb)(rest)
        return status
    if verb == "compare":
        from .compare import compare

        return compare(rest)
    if verb == "analyze":
        from .analyze import analyze

        return analyze(rest)
    if verb == "evaluate":
        from .evaluate import evaluate

        return evaluate(rest)
    if verb == "report":
        from .report import report

        return report(rest)
    verbs = "train, inherit, data, doctor, plan, verify, compare, analyze, evaluate, report"
    print(f"inheritune: error: there is no verb {verb!r}; it is one of: {verbs}.", file=sys.stderr)
    return 2
