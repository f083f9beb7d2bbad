"""Run functions in processes that are forked from one that has imported the libraries, which takes seconds."""

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "deepspeed",
        "transformers.trainer",
        "transformers.models.gpt2.modeling_gpt2",
        "inheritune_hf.analysis.report",
        "inheritune_hf.cli.tables",
        "inheritune_hf.experiments.comparison",
        "inheritune_hf.experiments.runs",
        "inheritune_hf.publishing.hub",
        "inheritune_hf.reporting.page",
    ]
)


def start(function, *args, folder=".", errors=None):
    """Start a function of a module in a folder and return its process; what it prints is dropped."""
    process = _CONTEXT.Process(target=_call, args=(function, args, Path(folder).absolute(), errors))
    process.start()
    return process


def run(function, *args, folder=".", timeout=300):
    """Run a function of a module and return the status that it returned or ended with, and its standard error."""
    reader, writer = _CONTEXT.Pipe(duplex=False)
    process = start(function, *args, folder=folder, errors=writer)
    writer.close()
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    with open(reader.fileno(), encoding="utf-8", closefd=False) as stream:
        errors = stream.read()
    process.join()
    timer.cancel()
    return subprocess.CompletedProcess(function.__name__, process.exitcode, stderr=errors)


def _call(function, args, folder, errors):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors.fileno() if errors else 1, 2)
    os.chdir(folder)
    multiprocessing.set_start_method(None, force=True)  # the platform's, as in a process that a command started
    sys.exit(function(*args))
