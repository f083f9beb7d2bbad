"""Write the report of a run or a comparison: an HTML page, the same as Markdown, and a picture."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from ..experiments.results import ComparisonRecord
from ..figures import COLORS, Panel, render_svg, save_panels
from ..publishing.templates import render
from ..records import read_record, write_text
from ..run_folder import RESULT_FILE
from .content import Chart, Report, build_comparison, build_report
from .summary import read_run

#: What a report is made of.
REPORT_FILES = ("report.html", "report.md", "report.png")


def write_report(
    folder: str | Path, output: str | Path | None = None, evaluation: str | Path | None = None
) -> tuple[Report, list[Path]]:
    """
    Read the records of a run or a comparison and write its report.

    Args:
        folder (`str` or `Path`): The `output_dir` of a run or a comparison, or a student's folder.
        output (`str` or `Path`, *optional*): Folder to write to; the run's if not given.
        evaluation (`str` or `Path`, *optional*): File of an evaluation; `evaluation.json` in the folder if not given.

    Returns:
        `tuple[Report, list[Path]]`: What the report says, and the files: HTML, Markdown, PNG.

    Raises:
        FileNotFoundError: If the folder holds no run, no student and no finished comparison.
        ValueError: If a record is damaged, or an evaluation is given that does not belong to it.
    """
    report = _read(Path(folder), evaluation)
    target = Path(folder if output is None else output)
    target.mkdir(parents=True, exist_ok=True)
    page, text, picture = (target / name for name in REPORT_FILES)
    charts = [block.panel for section in report.sections for block in section.blocks if isinstance(block, Chart)]
    save_panels(picture, charts, f"{report.title}\n{report.outcome}: {report.verdict}")
    write_text(text, render_markdown(report, picture.name))
    write_text(page, render_html(report))
    return report, [page, text, picture]


def render_html(report: Report) -> str:
    """Return a report as one HTML page with its styles and drawings, which loads nothing and runs nothing."""

    def svg(panel: Panel, name: str, width: float) -> Markup:
        return Markup(render_svg(panel, name, width))

    return render("reporting/page.html.jinja", report=report, colors=COLORS, svg=svg)


def render_markdown(report: Report, picture: str) -> str:
    """Return a report as Markdown, with the picture of that file name."""
    return render("reporting/page.md.jinja", report=report, picture=picture)


def _read(folder: Path, evaluation: str | Path | None) -> Report:
    if not (folder / RESULT_FILE).is_file():
        return build_report(read_run(folder, evaluation))
    if evaluation is not None:
        raise ValueError(
            f"{folder} is a comparison, and {evaluation} is the evaluation of one student: give that student's folder, "
            "or leave --evaluation out."
        )
    return build_comparison(folder.resolve().name, read_record(ComparisonRecord, folder / RESULT_FILE))
