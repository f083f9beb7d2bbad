"""Hold a folder in another process."""

import subprocess
import sys
from contextlib import contextmanager

_PROGRAM = """
import sys, time
from inheritune_hf.records import hold_folder
with hold_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_by_another(folder):
    """Hold `folder` in another process, which is killed at the end of the context; yields its number."""
    command = [sys.executable, "-c", _PROGRAM, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process.pid
        finally:
            process.kill()
