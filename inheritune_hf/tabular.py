"""Records that show themselves as a small table, in a terminal and in a notebook."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from .foreign_text import one_line, printable


class Table(NamedTuple):
    """A title, the names of columns, and rows of as many cells."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


class Tabular(ABC):
    """What has a table, which is what `print`, a terminal and a notebook show of it."""

    @abstractmethod
    def table(self) -> Table:
        """Return the table."""

    def __repr__(self) -> str:
        title, headers, rows = self.table()
        lines = [[one_line(cell) for cell in row] for row in (headers, *rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join([printable(title), *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)])

    def _repr_html_(self) -> str:
        title, headers, rows = self.table()

        def line(kind: str, cells: Sequence[str]) -> str:
            return "<tr>" + "".join(f"<{kind}>{html.escape(one_line(cell))}</{kind}>" for cell in cells) + "</tr>"

        body = "".join(line("td", row) for row in rows)
        return f"<table><caption>{html.escape(printable(title))}</caption>{line('th', headers)}{body}</table>"
