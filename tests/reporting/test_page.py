"""The page in a browser, and what its bytes hold."""

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from recorded_runs import DATA, LINEAGE, RECIPE, ROUNDS, comparison_record, full_evaluation, write_comparison, write_run

from inheritune_hf.evaluation.facts import Sample, TaskComparison
from inheritune_hf.experiments.results import arm_results
from inheritune_hf.records import RunRecord, encode, write_json
from inheritune_hf.reporting import write_report
from inheritune_hf.reporting.content import Table
from inheritune_hf.reporting.page import render_markdown

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EVIL = "<script>alert(1)</script> & \"q\" 'a' | `b` _c_ *d* [e](f) ![g](h) $x$ </pre> </style>"


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; `.ci/run` requires one."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    missing = [
        name
        for name, there in (("Chromium", path), ("playwright", importlib.util.find_spec("playwright")))
        if not there
    ]
    if missing:
        reason = f"{' and '.join(missing)} not installed"
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as session:
        found = session.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


def open_page(browser, path, width=1440, scheme="light"):
    """Open a file and return the page, what it asked for, and what it complained of."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    return page, asked, complaints


def evil_run(folder):
    """A run in which every text that a stranger can choose is markup."""
    sample = Sample(EVIL, EVIL, EVIL)
    task = TaskComparison(EVIL, EVIL, 10, 0.5, 0.1, 0.5, 0.1, 0.0, 0.1, 1.0)
    record = encode(RunRecord(RECIPE, LINEAGE, ROUNDS, "matched", 5.1951))
    record["lineage"]["reference"] = EVIL
    record["recipe"] = {**record["recipe"], "notes": EVIL}
    write_run(folder, **record, curves={"student": [[60, 5.3]], EVIL: [[60, 5.4]]})
    values = encode(full_evaluation(samples=(sample,), tasks=(task,), student=EVIL, reference=EVIL))
    values["corpora"][0]["corpus"] = EVIL
    values["versions"] = {EVIL: EVIL}
    write_json(folder / "evaluation.json", values)
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_page_is_quiet_and_nothing_overflows(run, interrupted, comparison, browser, tmp_path, width, scheme):
    """No console message, no request but the page itself, nothing wider than the window but tables that scroll."""
    write_json(tmp_path / "cut" / "inheritune_config.json", encode(RunRecord(RECIPE, LINEAGE)))
    deep = write_run(tmp_path / "deep", lineage={**encode(LINEAGE), "reference_layers": 96})
    evil = write_comparison(tmp_path / "evil", left_out={"stacking": EVIL}, data={**DATA, "source": EVIL})
    for folder in (run, interrupted, comparison, evil, tmp_path / "cut", deep, evil_run(tmp_path / ("long" * 30))):
        _, (path, _, _) = write_report(folder)
        page, asked, complaints = open_page(browser, path, width, scheme)
        assert complaints == []
        assert asked == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        outside = page.evaluate(
            "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('.skip') && "
            "e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML)"
        )
        assert outside == []
        page.close()


def check_tables(page, report):
    """Each cell that the browser shows is the report's."""
    shown = page.evaluate(
        "[...document.querySelectorAll('table')].map(t => [...t.tBodies[0].rows].map(r => [...r.cells].map("
        "c => c.textContent)))"
    )
    expected = [block.rows for section in report.sections for block in section.blocks if isinstance(block, Table)]
    assert shown == [[list(row) for row in rows] for rows in expected]


def test_numbers_on_the_page_are_the_records(run, browser):
    """What the browser shows in each table is what the records say, cell by cell."""
    report, (path, _, _) = write_report(run)
    page, _, _ = open_page(browser, path)
    check_tables(page, report)
    text = page.inner_text("body")
    records = json.loads((run / "rounds.json").read_text())
    for item in records["rounds"]:
        assert f"{item['loss']:.4f}" in text
        assert f"{item['match']['difference']:+.4f}" in text
    for row in records["results"]:
        assert f"{row['loss']:.4f}" in text
        assert f"{row['parameters']:,}" in text
    assert "A student of 6 of 8 layers matched its starting reference" in text
    page.close()


def test_numbers_of_a_comparison_are_the_records(comparison, browser):
    """What the browser shows in each table of a comparison is what the records say, and each arm has its line."""
    report, (path, _, _) = write_report(comparison)
    page, _, _ = open_page(browser, path)
    check_tables(page, report)
    for row in arm_results(comparison_record()):
        assert f"{row.loss:.4f}" in page.inner_text("#arms")
    titles = page.evaluate("[...document.querySelectorAll('.wide use title')].map(e => e.textContent)")
    assert "inheritune, 100,000 tokens: 5.3300" in titles
    assert len(titles) == len(set(titles)) == 4 * 3
    page.close()


def test_markup_in_records_stays_text(browser, tmp_path):
    """A name, a sample or a file name with markup makes no element, runs nothing, and can be read as it is."""
    _, (path, text, _) = write_report(evil_run(tmp_path / "run"))
    page, asked, complaints = open_page(browser, path)
    assert (len(asked), complaints) == (1, [])
    assert page.evaluate("document.querySelectorAll('script, img, iframe, object').length") == 0
    samples = page.evaluate("[...document.querySelectorAll('.sample pre')].map(e => e.textContent)")
    assert samples == [EVIL] * 3
    assert EVIL in page.evaluate("[...document.querySelectorAll('th')].map(e => e.textContent)")
    assert "<script" not in path.read_text()
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in outside
    assert "[e](f)" not in outside
    page.close()


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_page_can_be_used_by_keyboard_and_ear(kind, request, browser):
    """Headings in order, names for regions, charts and tables, row and column headers, a way past the navigation."""
    _, (path, _, _) = write_report(request.getfixturevalue(kind))
    page, _, _ = open_page(browser, path, 360)
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    named = page.evaluate(
        "[...document.querySelectorAll('[aria-labelledby], [aria-describedby]')].every(e => ['aria-labelledby', "
        "'aria-describedby'].every(n => !e.hasAttribute(n) || document.getElementById(e.getAttribute(n))?.textContent))"
    )
    assert named
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == page.evaluate(
        "document.querySelectorAll('[id]').length"
    )
    assert page.evaluate("[...document.querySelectorAll('table')].every(t => t.caption && t.tHead)")
    assert page.evaluate("[...document.querySelectorAll('thead th')].every(e => e.scope === 'col')")
    assert page.evaluate("[...document.querySelectorAll('tbody th')].every(e => e.scope === 'row')")
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"
    assert page.evaluate("document.activeElement.id") == "main"
    page.close()


@pytest.mark.parametrize("kind", ["run", "comparison"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(kind, request, browser, scheme):
    """Text has a contrast of at least 4.5 to what is behind it, in light and dark."""
    _, (path, _, _) = write_report(request.getfixturevalue(kind))
    page, _, _ = open_page(browser, path, 1440, scheme)
    worst = page.evaluate(
        """() => {
          const parse = c => c.match(/[\\d.]+/g).map(Number);
          const light = c => { const [r, g, b] = parse(c).map(v => v / 255).map(
            v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
            if (parse(c)[3] !== 0) return c; } };
          const all = 'p, th, td, dt, dd, a, h1, h2, h3, h4, pre, li, text, .badge';
          return Math.min(...[...document.querySelectorAll(all)]
            .filter(e => e.getClientRects().length).map(e => { const s = getComputedStyle(e);
              const one = light(e.tagName === 'text' ? s.fill : s.color), two = light(behind(e));
              return (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05); }));
        }"""
    )
    assert worst >= 4.5
    page.close()


@pytest.mark.parametrize(("width", "media", "least"), [(390, "screen", 12), (1440, "screen", 12), (718, "print", 10)])
@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_words_of_figures_can_be_read(kind, request, browser, width, media, least):
    """Words in figures are as large as other small print: on a phone, on a wide screen, and on A4 paper."""
    _, (path, _, _) = write_report(request.getfixturevalue(kind))
    page, _, _ = open_page(browser, path, width)
    page.emulate_media(media=media)
    sizes = page.evaluate(
        "[...document.querySelectorAll('figure text')].filter(e => e.getClientRects().length).map(e => "
        "parseFloat(getComputedStyle(e).fontSize) * e.ownerSVGElement.getScreenCTM().a)"
    )
    assert min(sizes) >= least
    page.close()


def test_settings_open_on_demand(run, browser):
    """Settings are folded until they are asked for; then they are shown under the name that was clicked."""
    _, (path, _, _) = write_report(run)
    page, _, _ = open_page(browser, path, 390)
    table = page.locator("details", has_text="Training settings").locator("table")
    assert not table.is_visible()
    page.get_by_text("Training settings").first.click()
    assert table.is_visible()
    page.close()


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_page_prints(kind, request, browser, tmp_path):
    """In print the navigation is gone, everything is light, and no table is cut off."""
    _, (path, _, _) = write_report(request.getfixturevalue(kind))
    page, _, _ = open_page(browser, path, 1440, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.set_viewport_size({"width": 700, "height": 1000})
    assert page.evaluate("[...document.querySelectorAll('table')].every(e => e.scrollWidth <= 700)")
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    page.close()


class Outline(HTMLParser):
    """Check that elements are closed in the order in which they were opened."""

    EMPTY = frozenset({"meta", "link"})

    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in {"href", "src", "action", "srcset"}]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_page_is_whole_and_asks_for_nothing(kind, request):
    """Without a browser: elements are closed in order, every address is within the page, and no script is allowed."""
    _, (path, _, _) = write_report(request.getfixturevalue(kind))
    page = path.read_text()
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert all(address.startswith("#") or address == "data:," for address in outline.addresses)
    assert "default-src 'none'" in page
    assert not re.search(r"url\((?!#)|@import|https?:", page)


@pytest.mark.parametrize(
    ("kind", "row", "picture"),
    [
        (
            "run",
            "| 2 | 6 |  | 120 | 245,760 | 5.1857 | 5.1951 | -0.0094 | -0.0213 to +0.0027 | yes |",
            "![Losses, kept layers and ranks of run](report.png)",
        ),
        ("comparison", "| inheritune | 4 to 6 | 1,100,000 |", "![Learning curves of compared](report.png)"),
    ],
)
def test_files_are_the_same_for_the_same_records(kind, row, picture, request, tmp_path):
    """HTML, Markdown and PNG are written, say the same figures, and are the same bytes the next time."""
    folder = request.getfixturevalue(kind)
    report, paths = write_report(folder, tmp_path / "one")
    _, again = write_report(folder, tmp_path / "two")
    assert [path.name for path in paths] == ["report.html", "report.md", "report.png"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["report.html", "report.md", "report.png"]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    text = paths[1].read_text()
    assert text == render_markdown(report, "report.png")
    assert row in text
    assert picture in text


@pytest.mark.parametrize("kind", ["interrupted", "comparison"])
def test_a_report_of_records_alone_needs_no_pytorch(kind, request):
    """Records are read, drawn and written without the libraries that trained what they are about."""
    code = """
import sys
from inheritune_hf.cli import main
main(["report", sys.argv[1]])
heavy = {"torch", "transformers", "datasets", "evaluate", "pandas"} & set(sys.modules)
assert not heavy, heavy
"""
    folder = str(request.getfixturevalue(kind))
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command_writes_a_report(run, interrupted, comparison, tmp_path, capsys):
    """`inheritune report` prints the verdict and names the files; what is no run ends with status 1."""
    from inheritune_hf.cli import main

    assert main(["report", str(run)]) == 0
    assert "matched: A student of 6 of 8 layers" in capsys.readouterr().out
    assert (run / "report.html").is_file()
    assert main(["report", str(interrupted), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.png").is_file()
    assert main(["report", str(comparison)]) == 0
    assert (
        "not confirmed: The loop (inheritune) matched its starting reference on the selection set"
        in capsys.readouterr().out
    )
    assert main(["report", str(tmp_path / "nothing")]) == 1
    assert "inheritune report: error:" in capsys.readouterr().err
