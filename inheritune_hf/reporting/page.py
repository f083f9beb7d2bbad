"""A report as one HTML file: no script, nothing from elsewhere, light and dark, on a phone, in print, read aloud."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from ..figures import COLORS, render_svg
from .document import Block, Chart, Paragraph, Preformatted, Report, SideBySide, Table

#: Widths that charts are drawn for; the page shows the one that fits.
WIDE, NARROW = 900, 320
_LONGEST_NUMBER = 32


def render_html(report: Report) -> str:
    """
    Return a report as a whole HTML page.

    The page brings its styles and drawings along, and forbids itself to load or run anything.

    Args:
        report (`Report`): What to say.
    """
    light, dark = ("".join(f"--{name}: {colors[i]}; " for name, colors in COLORS.items()) for i in (0, 1))
    style = f":root {{ {light}}}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"
    style += f"@media print {{ :root {{ {light}}} }}\n"
    style += files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{item.anchor}">{escape(item.title)}</a></li>' for item in report.sections)
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in report.facts)
    body = "".join(
        f'<section id="{item.anchor}" aria-labelledby="{item.anchor}-title"><h2 id="{item.anchor}-title">'
        f"{escape(item.title)}</h2>"
        + "".join(_block(block, f"{item.anchor}-{place}") for place, block in enumerate(item.blocks))
        + "</section>"
        for item in report.sections
    )
    kind = {True: "good", False: "bad", None: "open"}[report.good]
    title = escape(report.title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{title}: {escape(report.outcome)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the report</a>\n'
        f'<header><p class="kind">Inheritune report</p><h1>{title}</h1>'
        f'<p class="verdict"><span class="badge {kind}">{escape(report.outcome)}</span> {escape(report.verdict)}</p>'
        f"<dl>{facts}</dl></header>\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main id="main" tabindex="-1">{body}</main>\n'
        "</body>\n</html>\n"
    )


def _block(block: Block, name: str) -> str:
    if isinstance(block, Paragraph):
        text = escape(block.text)
        return f'<p class="strong">{text}</p>' if block.strong else f"<p>{text}</p>"
    if isinstance(block, Table):
        return _table(block, name)
    if isinstance(block, Chart):
        return _chart(block, name)
    if isinstance(block, SideBySide):
        texts = "".join(f"<div><h4>{escape(who)}</h4><pre>{escape(text)}</pre></div>" for who, text in block.texts)
        beginning = f"<h3>Beginning</h3><pre>{escape(block.beginning)}</pre>"
        return f'<article class="sample">{beginning}<div>{texts}</div></article>'
    return _preformatted(block, name)


def _preformatted(block: Preformatted, name: str) -> str:
    text = f'<pre tabindex="0" role="region" aria-labelledby="{name}">{escape(block.text)}</pre>'
    return f'<h3 id="{name}">{escape(block.label)}</h3>{text}'


def _table(table: Table, name: str) -> str:
    def cell(place: int, text: str) -> str:
        # A note instead of a number may take several lines.
        kind = "" if place < table.text_columns or len(text) > _LONGEST_NUMBER else ' class="number"'
        if place == 0:
            return f'<th scope="row">{escape(text)}</th>'
        return f"<td{kind}>{escape(text)}</td>"

    heads = "".join(
        f'<th scope="col"{"" if place < table.text_columns else " class=number"}>{escape(header)}</th>'
        for place, header in enumerate(table.headers)
    )
    rows = "".join(
        "<tr>" + "".join(cell(place, text) for place, text in enumerate(row)) + "</tr>" for row in table.rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{name}"><table>'
        f'<caption id="{name}"><span>{escape(table.caption)}</span></caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _chart(chart: Chart, name: str) -> str:
    return (
        f'<figure role="img" aria-labelledby="{name}" aria-describedby="{name}-words">'
        f'<figcaption id="{name}">{escape(chart.title)}</figcaption>'
        f'<div class="wide">{render_svg(chart.panel, f"{name}-wide", WIDE)}</div>'
        f'<div class="narrow">{render_svg(chart.panel, f"{name}-narrow", NARROW)}</div></figure>'
        f'<p class="words" id="{name}-words">{escape(chart.description)}</p>'
    )
