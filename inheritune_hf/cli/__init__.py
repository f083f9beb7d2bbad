"""The command line: one verb for each capability."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from ..foreign_text import one_line
from ..records import EXIT_STATUS


class _Verb(NamedTuple):
    module: str
    summary: str
    resumable: bool = False


#: Each verb is a function of its name in its module, which is imported when the verb is run.
_VERBS = {
    "demo": _Verb("train", "run the whole recipe on a small reference of its own, offline, in minutes", resumable=True),
    "train": _Verb("train", "run a recipe: inherit, train, compare, grow, save", resumable=True),
    "adapt": _Verb("train", "train a reference further on your text, to be the reference of a run", resumable=True),
    "inherit": _Verb("students", "build a student from some layers of a reference, and save it"),
    "data": _Verb("data", "prepare: tokenize and pack text ahead of time", resumable=True),
    "doctor": _Verb("students", "check whether a reference can be cut, without downloading its weights"),
    "plan": _Verb("train", "estimate time, memory and tokens of a run, without downloading weights"),
    "verify": _Verb("students", "check a saved student: against its reference, reloaded, generating"),
    "compare": _Verb("train", "train baselines under the loop's budget, and show them side by side", resumable=True),
    "analyze": _Verb("measurements", "measure which layers of a model are lazy, and how many are worth keeping"),
    "evaluate": _Verb("measurements", "compare a student with its reference: loss, speed, memory, drafting, tasks"),
    "report": _Verb("train", "write the report of a run: one HTML page, Markdown, and a picture"),
    "publish": _Verb("students", "upload a saved student to the Hub, or show what would be uploaded"),
}

_LINES = "\n".join(f"  {name:<9} {verb.summary}" for name, verb in _VERBS.items())
_USAGE = f"""usage: inheritune VERB [OPTIONS]

Shrink a causal language model by depth: inherit some of its layers, train them, and add layers until its validation
loss is matched.

verbs:
{_LINES}

options:
  --help     show this text; `inheritune VERB --help` shows a verb's options
  --version  show the version

exit status of demo and train: 0 matched, 3 no_more_layers, 4 budget_exhausted, 75 interrupted (run it again), 2 usage,
  1 error
exit status of adapt, compare and data: 0 complete, 75 interrupted (run it again), 2 usage, 1 error
exit status of the others: 0 done (verify: nothing failed), 1 error (doctor: it cannot be cut), 2 usage
"""

#: Errors that a user can mend, printed on one line. A run that can be resumed shows where a RuntimeError comes from.
_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)


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
    if words[0] not in _VERBS:
        verbs = ", ".join(_VERBS)
        print(f"inheritune: error: there is no verb {words[0]!r}; it is one of: {verbs}.", file=sys.stderr)
        return 2
    return run(words[0], words[1:])


def run(verb: str, argv: Sequence[str], prog: str | None = None, **options: Any) -> int:
    """Run a verb and return its exit status; an error or an interruption is one line on standard error."""
    prog = prog or f"inheritune {verb}"
    module, _, resumable = _VERBS[verb]
    errors: tuple[type[Exception], ...] = _ERRORS if resumable else (*_ERRORS, RuntimeError)
    try:
        with _sigterm_as_interrupt() if resumable else contextlib.nullcontext():
            status: int = getattr(import_module(f".{module}", __name__), verb)(argv, prog, **options)
    except KeyboardInterrupt:
        if not resumable:
            raise
        print(f"{prog}: interrupted; the same command resumes from what is on disk", file=sys.stderr)
        return EXIT_STATUS["interrupted"]
    except errors as error:
        print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        return 1
    return status


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, and its forked children at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python takes signals in the main thread only
        return
    process = os.getpid()

    def interrupt(number: int, frame: object) -> None:
        if os.getpid() == process:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
