"""The house: imports run downward, importing does nothing, the public face is what it says."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import inheritune_hf

PACKAGE = Path(inheritune_hf.__file__).parent
FLOORS = [
    "exports",
    "annotations",
    "foreign_text",
    "tabular",
    "measures",
    "layers",
    "arms",
    "distillation_losses",
    "config",
    "records",
    "outcomes",
    "run_folder",
    "processes",
    "figures",
    "growth",
    "forecast",
    "students",
    "data",
    "evaluation",
    "analysis",
    "publishing",
    "training",
    "experiments",
    "reporting",
    "cli",
]


def imports_of(path):
    """The package's rooms that a module imports when it is loaded or run."""
    room = path.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == len(room):
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path):
    """A room imports only from rooms above it, in the order of the recipe."""
    if path.parent == PACKAGE and path.stem == "__init__":
        return
    here = FLOORS.index(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    for name in imports_of(path):
        if name == "__version__":
            continue
        assert FLOORS.index(name) < here, f"{path.relative_to(PACKAGE)} imports {name}"


def test_files_say_what_they_hold():
    """No module is a drawer for what found no place."""
    drawers = {"utils", "helpers", "common", "misc", "tools"}
    assert not drawers & {path.stem for path in PACKAGE.rglob("*")}


def test_test_modules_have_names_of_their_own():
    """Two test modules of one name cannot both be imported."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))


def test_public_names_are_there():
    """Every public name can be imported and is documented."""
    for name in inheritune_hf.__all__:
        assert getattr(inheritune_hf, name).__doc__
    assert set(inheritune_hf.__all__) <= set(dir(inheritune_hf))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        inheritune_hf.nothing  # noqa: B018


def test_importing_is_light():
    """Neither importing the package nor asking for help imports torch, transformers or datasets."""
    code = """
import sys
import inheritune_hf
from inheritune_hf.cli import main
main(["--help"])
heavy = {"torch", "transformers", "datasets", "matplotlib", "rich", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_seven_libraries_are_used():
    """Each library that the package stands on is imported by it."""
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.split(".")[0])
    assert {"transformers", "accelerate", "datasets", "torch", "safetensors", "huggingface_hub", "evaluate"} <= imported
