"""The result table."""

import io
from dataclasses import replace

from rich.console import Console

from inheritune_hf.publishing.tables import ResultRow, markdown_table, terminal_table
from inheritune_hf.records import Match

MISS = Match(False, False, 0.0512, 0.04, 0.06, 48)
ROWS = [
    ResultRow("reference", 8, 2_000_000, 600, 1_228_800, 5.05),
    ResultRow("student", 6, 1_500_000, 300, 614_400, 5.1012, MISS),
    ResultRow("few documents", 6, 1, 1, 1, 5.0, Match(True, True, -0.05, None, None, 4, "no interval: 4 documents")),
]


def test_tables_say_the_same():
    """Markdown and terminal hold the same figures, with differences and their intervals."""
    text = markdown_table(ROWS)
    assert "| student | 6 | 1,500,000 | 300 | 614,400 | 5.1012 | +0.0512 | +0.0400 to +0.0600 | no |" in text
    assert "| reference | 8 | 2,000,000 | 600 | 1,228,800 | 5.0500 |  |  |  |" in text
    assert "no interval: 4 documents" in text
    screen = io.StringIO()
    Console(file=screen, width=80).print(terminal_table(ROWS))
    assert "+0.0512 | +0.0400 to +0.0600 | undecided |" in markdown_table(
        [ROWS[0], replace(ROWS[1], match=replace(MISS, decided=False))]
    )
    words = ["5.1012", "(ppl 164.2)", "+0.0512", "(+0.040 to +0.060)", "1.50M", "0.61M", "test loss", "matched"]
    for word in (*words, "4 documents"):
        assert word in screen.getvalue()


def test_a_student_of_full_depth_is_no_reduction():
    """What matches at the reference's depth is no smaller than it; of a control that is no news."""
    match = Match(True, True, -0.05, -0.06, -0.04, 48)
    rows = [ROWS[0], *(replace(ROWS[1], model=name, layers=8, match=match) for name in ("student", "control"))]
    student, control = markdown_table(rows).splitlines()[-2:]
    assert student.endswith("| yes, no reduction |")
    assert control.endswith("| yes |")
