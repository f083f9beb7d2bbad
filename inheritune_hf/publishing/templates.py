"""Render a template of the package; what a stranger may have written stays text in HTML and in Markdown."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_SPECIAL = re.compile(r"([\\`*_\[\]{}#|~])")


def render(template: str, /, **values: Any) -> str:
    """
    Return the template at a path below this package, filled in with `values`.

    Everything is escaped for HTML. In Markdown use the filters: `text` for words and cells of tables, `code` between
    backticks, `fenced` for a block of code.
    """
    environment = Environment(
        loader=PackageLoader("inheritune_hf", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(text=markdown_text, code=markdown_code, fenced=markdown_fence)
    return environment.get_template(template).render(**values)


def markdown_text(text: str) -> Markup:
    """Return text on one line of Markdown in which nothing is markup."""
    safe = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(_SPECIAL.sub(r"\\\1", safe).replace("\n", " "))


def markdown_code(text: str) -> Markup:
    """Return text as code on one line of Markdown, between more backticks than it holds itself."""
    line = " ".join(str(text).split())
    ticks = _ticks(line, least=1)
    space = " " if "`" in line else ""
    return Markup(f"{ticks}{space}{line}{space}{ticks}")


def markdown_fence(text: str, language: str = "text") -> Markup:
    """Return text as a block of code of Markdown, between more backticks than it holds itself."""
    ticks = _ticks(text, least=3)
    return Markup(f"{ticks}{language}\n{text}\n{ticks}")


def _ticks(text: str, least: int) -> str:
    return "`" * max(least, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
