"""Let a package import the module of a name when the name is first used."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pkgutil import get_data
from typing import Any


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """
    Return `__getattr__` and `__dir__` of a package whose names are imported when they are first used.

    The names are those that its `if TYPE_CHECKING:` block imports: they stand once, where type checkers read them.
    """
    tree = ast.parse(get_data(package, "__init__.py") or b"")
    block = next(node.body for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block if isinstance(node, ast.ImportFrom)]
    modules = {name.name: "." * node.level + (node.module or "") for node in imports for name in node.names}

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name], package), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted({*vars(sys.modules[package]), *modules})
