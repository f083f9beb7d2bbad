"""Write a run's report: one HTML page, the same as Markdown, and a picture."""

from __future__ import annotations

from pathlib import Path

from ..records import write_text
from .content import build_report
from .document import Report
from .markdown import render_markdown
from .page import render_html
from .picture import draw_picture
from .summary import read_run

#: What a report is made of.
REPORT_FILES = ("report.html", "report.md", "report.png")


def write_report(
    folder: str | Path, output: str | Path | None = None, evaluation: str | Path | None = None
) -> tuple[Report, list[Path]]:
    """
    Read a run's records and write its report.

    Args:
        folder (`str` or `Path`): The run's `output_dir`, or a student's folder.
        output (`str` or `Path`, *optional*): Folder to write to; the run's if not given.
        evaluation (`str` or `Path`, *optional*): File of an evaluation; `evaluation.json` in the folder if not given.

    Returns:
        `tuple[Report, list[Path]]`: What the report says, and the files: HTML, Markdown, PNG.

    Raises:
        FileNotFoundError: If the folder holds no run and no student.
        ValueError: If a record is damaged.
    """
    run = read_run(folder, evaluation)
    report = build_report(run)
    target = Path(folder if output is None else output)
    target.mkdir(parents=True, exist_ok=True)
    page, text, picture = (target / name for name in REPORT_FILES)
    draw_picture(run, report, picture)
    write_text(text, render_markdown(report, picture.name))
    write_text(page, render_html(report))
    return report, [page, text, picture]
