"""Table and picture."""

import io

from matplotlib.figure import Figure
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


ROUNDS = (
    Round(1, (0, 1), 0, 20, 1, 1.0, 1.0, 5.2, 5.0, MISS),
    Round(2, (0, 1, 2), 20, 40, 1, 1.0, 1.0, 4.9, 5.0, Match(True, True, -0.1, -0.2, 0.0, 48)),
)
STUDENT = [(10, 5.6), (20, 5.2), (30, 5.3), (40, 4.9)]
CONTROLS = {"random weights": [(20, 6.0), (40, 5.8)], "more steps": [(20, 5.5), (40, 5.1)]}


def test_picture_shows_rounds_controls_and_reference(monkeypatch):
    """Every round and control is a named line of its own points, and the reference a line across with its loss."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw_losses("losses.png", ROUNDS, STUDENT, 5.0, CONTROLS)
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    named = {name: [*map(tuple, line.get_xydata())] for name, line in lines.items() if not name.startswith("_")}
    assert named == {
        **CONTROLS,
        "round 1: 2 inherited layers": STUDENT[:2],
        "round 2: 3 inherited layers (matched)": STUDENT[2:],
    }
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(named)
    across, boundary = (line.get_xydata().tolist() for name, line in lines.items() if name.startswith("_"))
    assert across == [[0, 5.0], [1, 5.0]]
    assert boundary == [[20, 0], [20, 1]]
    assert [text.get_text() for text in axes.texts] == ["reference 5.000"]
    looks = {name: (lines[name].get_color(), str(lines[name].get_linestyle())) for name in named}
    assert len(set(looks.values())) == len(named)
    low, high = axes.get_ylim()
    assert low < 4.9
    assert high > 5.8
    assert axes.get_xlabel() == "optimizer steps, all rounds together"
    assert axes.get_ylabel() == "selection loss (nats per token)"


def test_picture_is_drawn(tmp_path):
    """Rounds, controls and the reference's line become one PNG, the same bytes each time."""
    for name in ("a.png", "b.png"):
        draw_losses(tmp_path / name, ROUNDS, STUDENT, 5.0, CONTROLS)
    picture = (tmp_path / "a.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture == (tmp_path / "b.png").read_bytes()


def test_single_round_is_drawn(tmp_path):
    """A run of one round and no controls has a picture too."""
    draw_losses(tmp_path / "a.png", (Round(1, (0,), 0, 5, 1, 1.0, 1.0, 5.2, 5.0, MISS),), [(5, 5.2)], 5.0)
    assert (tmp_path / "a.png").stat().st_size > 1000
