"""Table and picture."""

import io

from rich.console import Console

from inheritune_hf.publishing import ResultRow, draw_losses, markdown_table, terminal_table
from inheritune_hf.records import Match, Round

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
    for word in ("5.1012", "+0.0512", "(+0.040 to +0.060)", "1.50M", "0.61M", "test loss", "matched", "4 documents"):
        assert word in screen.getvalue()


def test_picture_is_drawn(tmp_path):
    """Rounds, controls and the reference's line become one PNG, the same bytes each time."""
    rounds = (
        Round(1, (0, 1), 0, 20, 1, 1.0, 1.0, 5.2, 5.0, MISS),
        Round(2, (0, 1, 2), 20, 40, 1, 1.0, 1.0, 4.9, 5.0, Match(True, True, -0.1, -0.2, 0.0, 48)),
    )
    student = [(10, 5.6), (20, 5.2), (30, 5.3), (40, 4.9)]
    for name in ("a.png", "b.png"):
        draw_losses(tmp_path / name, rounds, student, 5.0, {"random weights": [(20, 6.0), (40, 5.8)]})
    picture = (tmp_path / "a.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture == (tmp_path / "b.png").read_bytes()


def test_single_round_is_drawn(tmp_path):
    """A run of one round and no controls has a picture too."""
    draw_losses(tmp_path / "a.png", (Round(1, (0,), 0, 5, 1, 1.0, 1.0, 5.2, 5.0, MISS),), [(5, 5.2)], 5.0)
    assert (tmp_path / "a.png").stat().st_size > 1000
