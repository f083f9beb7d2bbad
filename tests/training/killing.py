"""Kill a process at a chosen moment: before, during or after each write, rename and evaluation in a folder."""

import os
import signal
import sys
from pathlib import Path

_WRITES = ("w", "a", "x", "+")


def install(at, folder, record):
    """
    Count the moments in which `folder` is changed, and kill the process at number `at` (never, if it is 0).

    A moment is: a file of the folder is about to be opened for writing, renamed or removed, as Python's audit events
    tell; a library is about to write one, has written half of it, or has written it; an evaluation begins or has ended.
    What each one was is appended to the file `record`.
    """
    folder = str(Path(folder).resolve()) + os.sep
    count = 0

    def moment(name, half=None):
        nonlocal count
        count += 1
        with Path(record).open("a", encoding="utf-8") as file:
            file.write(f"{count} {name}\n")
        if count == at:
            if half is not None:
                os.truncate(half, Path(half).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def inside(path):
        return isinstance(path, str | bytes | os.PathLike) and str(Path(os.fsdecode(path)).absolute()).startswith(
            folder
        )

    def listen(event, args):
        if (
            event == "open"
            and isinstance(args[1], str)
            and any(mode in args[1] for mode in _WRITES)
            and inside(args[0])
        ):
            moment(f"open {Path(args[0]).name}")
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir") and inside(args[0]):
            moment(f"{event} {Path(args[0]).name}")

    sys.addaudithook(listen)
    _wrap_writers(moment, inside)
    _wrap_evaluation(moment)


def _wrap_writers(moment, inside):
    import safetensors.torch
    import torch
    from transformers import modeling_utils

    def wrap(module, name):
        write = getattr(module, name)

        def watched(values, path, *args, **kwargs):
            if not inside(path):
                return write(values, path, *args, **kwargs)
            moment(f"before {name} {Path(path).name}")
            result = write(values, path, *args, **kwargs)
            moment(f"during {name} {Path(path).name}", half=path)
            moment(f"after {name} {Path(path).name}")
            return result

        setattr(module, name, watched)

    wrap(torch, "save")
    wrap(safetensors.torch, "save_file")
    modeling_utils.safe_save_file = safetensors.torch.save_file


def _wrap_evaluation(moment):
    from inheritune_hf import InherituneTrainer

    evaluate = InherituneTrainer.evaluate

    def watched(self, *args, **kwargs):
        moment("before evaluation")
        result = evaluate(self, *args, **kwargs)
        moment("after evaluation")
        return result

    InherituneTrainer.evaluate = watched
