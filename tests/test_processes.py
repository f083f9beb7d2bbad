"""Processes that are started."""

import os
import subprocess
import sys

from inheritune_hf.processes import run_python


def test_nothing_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    """A module in the current folder is not imported, even where an empty entry of PYTHONPATH stands for it."""
    (tmp_path / "colorsys.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert subprocess.run([sys.executable, "-c", "import colorsys"], check=False).returncode == 9
    code = "import colorsys, os, sys; print(os.listdir(), sys.argv[1:])"
    assert run_python(code, "a", "b").stdout == "[] ['a', 'b']\n"
    assert run_python("import sys; print(sys.stdin.read())", request="é").stdout == "é\n"


def test_tokens_stay_here_unless_they_are_needed(monkeypatch):
    """No variable that holds a secret is there, but other settings are."""
    secrets = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD")
    for name in secrets:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    code = "import os; print(sorted(set(os.environ) & set({})), os.environ['HF_HOME'])"
    assert run_python(code.format((*secrets,))).stdout == "[] /somewhere\n"
    assert run_python(code.format((*secrets,)), tokens=True).stdout == f"{sorted(secrets)} /somewhere\n"
    assert run_python("import os; print(os.environ['HF_HUB_OFFLINE'])", offline=True).stdout == "1\n"
