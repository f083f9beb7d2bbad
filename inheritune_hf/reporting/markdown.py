"""A report as Markdown, with the picture beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .document import Block, Chart, Paragraph, Preformatted, Report, SideBySide, Table

_SPECIAL = re.compile(r"([\\`*_\[\]{}#|~])")


def render_markdown(report: Report, picture: str) -> str:
    """
    Return a report as Markdown.

    Args:
        report (`Report`): What to say.
        picture (`str`): File name of the picture.
    """
    lines = [f"# {_text(report.title)}", "", f"**{_text(report.outcome)}.** {_text(report.verdict)}", ""]
    lines += [f"- {_text(name)}: {_text(value)}" for name, value in report.facts]
    lines += ["", f"![{report.picture} of {_text(report.title)}]({picture})", ""]
    for section in report.sections:
        lines += [f"## {_text(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield f"**{_text(block.text)}**" if block.strong else _text(block.text)
    elif isinstance(block, Table):
        yield f"{_text(block.caption)}:"
        yield ""
        yield _row(block.headers)
        marks = ("---" if place < block.text_columns else "---:" for place in range(len(block.headers)))
        yield "|" + "|".join(marks) + "|"
        yield from (_row(row) for row in block.rows)
    elif isinstance(block, Chart):
        yield f"{_text(block.title)}. {_text(block.description)}"
    elif isinstance(block, SideBySide):
        for label, text in (("beginning", block.beginning), *block.texts):
            yield from _fenced(label, text)
    else:
        yield from _preformatted(block)


def _preformatted(block: Preformatted) -> Iterator[str]:
    return _fenced(block.label, block.text)


def _fenced(label: str, text: str) -> Iterator[str]:
    runs = [len(run) for run in re.findall(r"`+", text)]
    fence = "`" * max(3, 1 + max(runs, default=0))
    yield f"{_text(label)}:"
    yield ""
    yield f"{fence}text"
    yield text
    yield fence
    yield ""


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(_text(cell).replace("\n", " ") for cell in cells) + " |"


def _text(text: str) -> str:
    """Return text in which nothing is markup."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", safe).replace("\n", " ")
