"""A report before it is HTML or Markdown: sections of paragraphs, tables, charts and text."""

from __future__ import annotations

from dataclasses import dataclass

from ..figures import Panel


@dataclass(frozen=True)
class Paragraph:
    """Text. With `strong`, a verdict."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """
    A table.

    Args:
        caption (`str`): What it shows, with units.
        headers (`tuple[str, ...]`): Names of the columns; the first column names the rows.
        rows (`tuple[tuple[str, ...], ...]`): Cells.
        text_columns (`int`): Columns from the left that hold text; the others hold numbers.
    """

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1


@dataclass(frozen=True)
class Chart:
    """
    A drawing.

    Args:
        title (`str`): What it shows.
        description (`str`): The same in words, for who does not see it.
        panel (`Panel`): The drawing.
    """

    title: str
    description: str
    panel: Panel


@dataclass(frozen=True)
class Preformatted:
    """Text that is shown as it is, under a label."""

    label: str
    text: str


@dataclass(frozen=True)
class SideBySide:
    """
    The same beginning continued by two models.

    Args:
        beginning (`str`): What both were given.
        texts (`tuple[tuple[str, str], ...]`): Name of a model and what it wrote.
    """

    beginning: str
    texts: tuple[tuple[str, str], ...]


Block = Paragraph | Table | Chart | Preformatted | SideBySide


@dataclass(frozen=True)
class Section:
    """A heading with an anchor, and what is below it."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """
    A whole report.

    Args:
        title (`str`): Name of the run.
        outcome (`str`): One or two words: matched, missed, interrupted.
        good (`bool`, *optional*): Whether that is a success; None if nothing is decided.
        verdict (`str`): The verdict in a sentence or two.
        facts (`tuple[tuple[str, str], ...]`): Few figures that matter most, named.
        sections (`tuple[Section, ...]`): The rest.
        picture (`str`): What its picture shows.
    """

    title: str
    outcome: str
    good: bool | None
    verdict: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    picture: str = "Losses, kept layers and ranks"
