"""What is uploaded to a package index: it can be built, and works where nothing else of the repository is."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The embedded default at a size of seconds, in a process where the package comes from the wheel alone.
_DEMO = """
import sys
from pathlib import Path
import inheritune_hf
from inheritune_hf.cli.settings import parse_settings
from inheritune_hf.cli.terminal import Terminal
from inheritune_hf.config import EMBEDDED_DEFAULTS
from inheritune_hf.experiments import run_embedded

assert Path(inheritune_hf.__file__).is_relative_to(sys.prefix), inheritune_hf.__file__
words = ["--steps-per-round", "2", "--eval-steps", "1", "--save-steps", "2", "--use-cpu", "--report-to", "none"]
words += ["--max-layers", "10", "--per-device-train-batch-size", "1"]
print(run_embedded(*parse_settings(words, EMBEDDED_DEFAULTS), console=Terminal()).outcome)
"""


def run(*words, cwd=None, **variables):
    """Run a command that does not see this checkout, and return what it prints."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**plain, **variables}, timeout=180)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what is built: building leaves files behind."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "inheritune_hf", folder / "inheritune_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def environment(source, tmp_path_factory):
    """An environment with the wheel and the libraries that it needs, but nothing of this repository."""
    folder = tmp_path_factory.mktemp("environment")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder / "dist", source)
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (wheel,) = (folder / "dist").glob("*.whl")
    run(*pip, f"--python={folder / 'bin' / 'python'}", "install", "--no-deps", "--no-index", wheel)
    # As a plain path: what was installed there in an editable way is not followed.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return folder


@pytest.mark.slow
def test_distributions_can_be_uploaded(source, tmp_path):
    """Metadata and README are accepted, and the wheel holds every file of the package."""
    for name in ("build", "twine"):
        pytest.importorskip(name, reason="install it with: pip install -e '.[dev]'")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, source)
    files = sorted(tmp_path.iterdir())
    assert run(sys.executable, "-m", "twine", "check", "--strict", *files).count("PASSED") == len(files) == 2
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = [path for path in (source / "inheritune_hf").rglob("*") if path.is_file()]
    assert {path.relative_to(source).as_posix() for path in package} <= names


@pytest.mark.slow
def test_the_wheel_runs_by_itself(environment, tmp_path):
    """In an empty folder the command says its version and runs the whole demo, from nothing but the wheel."""
    variables = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path, **variables}
    assert run(environment / "bin" / "inheritune", "--version", **options).startswith("inheritune-hf ")
    assert "offline" in run(environment / "bin" / "inheritune", "demo", "--help", **options)
    assert run(environment / "bin" / "python", "-c", _DEMO, **options).split()[-1] in {"matched", "no_more_layers"}
    assert (tmp_path / "inheritune-demo" / "model.safetensors").is_file()


def test_the_script_names_what_it_needs():
    """Its inline metadata (PEP 723), which uv and pipx read, name this package, its Python and known versions."""
    text = (ROOT / "examples" / "run_inheritune.py").read_text(encoding="utf-8")
    block = re.search(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", text)[1]
    found = tomllib.loads(re.sub("(?m)^# ?", "", block))
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    assert found["dependencies"] == [settings["metadata"]["name"]]
    assert found["requires-python"] == settings["options"]["python_requires"]
    known = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert set(found["tool"]["uv"]["constraint-dependencies"]) <= set(known)
