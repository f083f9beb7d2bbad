"""Start a process of Python that imports nothing from the current folder and knows no token that it does not need."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Names of environment variables that hold secrets.
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY", re.IGNORECASE)


def run_python(
    code: str, *arguments: str, request: str = "", tokens: bool = False, offline: bool = False
) -> subprocess.CompletedProcess[str]:
    """
    Run code in a fresh process of Python, in an empty folder of its own, and return what it wrote.

    It reads `request` from its standard input, which, unlike arguments, nobody else on the machine can list. What lies
    in the current folder cannot be imported there, and relative paths mean nothing: pass absolute ones. Only
    with `tokens` does it know any, to fetch what needs one; `offline` it must do without the Hub.
    """
    environment = {name: value for name, value in os.environ.items() if tokens or not _SECRET.search(name)}
    # Relative entries would be looked up in the folder of the process, empty ones stand for the current folder.
    paths = [str(Path(path).absolute()) for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    if not tokens:
        environment["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-c", code, *arguments]
        how: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "check": False}
        return subprocess.run(command, cwd=folder, env=environment, input=request, **how)
