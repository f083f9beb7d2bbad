"""Figures hold their data, look the same each time, and take the colours of the page that they stand in."""

import re
from itertools import product
from xml.etree import ElementTree

import pytest

from inheritune_hf import figures
from inheritune_hf.figures import arm_panel, layer_panel, loss_panel, rank_panel, render_svg, save_panels
from inheritune_hf.records import Match, Round

MISS = Match(False, False, 0.0512, 0.04, 0.06, 48)
ROUNDS = (
    Round(1, (0, 1), 0, 20, 1, 1.0, 1.0, 5.2, 5.0, MISS),
    Round(2, (0, 1, 2), 20, 40, 1, 1.0, 1.0, 4.9, 5.0, Match(True, True, -0.1, -0.2, 0.0, 48)),
)
CURVES = {
    "student": [(10, 5.6), (20, 5.2), (30, 5.3), (40, 4.9)],
    "random weights": [(20, 6.9), (40, 5.8)],
    "<b> & $x$": [(20, 5.5), (40, 5.1)],
}
LOSSES = loss_panel(ROUNDS, CURVES, 5.0, 0.01)
RANKS = rank_panel((8.0, None, 1.0), (9.0, 2.0), 1.5)
LAYERS = layer_panel([("round 1", range(24)), ("round 2", range(0, 48, 2))], 48)
ARMS = arm_panel(
    {"a": [(1_000_000, 5.2), (2_000_000, 5.1)], "b": [(1_000_000, 5.4)]},
    5.0,
    {"a": [[(1_000_000, 5.3), (2_000_000, 5.1)]], "b": []},
)


def drawing(panel, width=900):
    return ElementTree.fromstring(render_svg(panel, "name", width))


def titles(svg):
    return [element.text for element in svg.iter("title")]


def texts(svg):
    return [element.text for element in svg.iter("text")]


def test_losses_are_drawn_by_round():
    """Each evaluation of the student is a point with a title; rounds, controls, target and tolerance are named."""
    svg = drawing(LOSSES)
    assert titles(svg) == ["step 10: 5.6000", "step 20: 5.2000", "step 30: 5.3000", "step 40: 4.9000"]
    heights = [float(mark.get("y")) for mark in svg.iter("use") if len(mark)]
    assert heights[3] > heights[1] > heights[2] > heights[0]
    named = ["student, round by round", "random weights", "<b> & $x$", "to reach: 5.0000", "tolerance of 0.01"]
    assert set(named) < set(texts(svg))
    assert {"2 layers", "3 layers", "nats per token", "optimizer steps, all rounds together"} < set(texts(svg))


@pytest.mark.parametrize(("rounds", "curves"), [((), {"student": ((5, 1.0),)}), ((), {}), (ROUNDS[:1], {})])
def test_little_is_drawn_too(rounds, curves):
    """A run without rounds, losses or a target has a figure."""
    assert len(titles(drawing(loss_panel(rounds, curves, None), 320))) == len(curves.get("student", ()))


def test_a_student_far_below_its_controls_is_drawn_once_more():
    """Where controls end so far above that rounds cannot be told apart, the student is shown larger; else it is not."""
    far = {"student": [(10, 3.76), (20, 3.7), (30, 3.68), (40, 3.66)], "random weights": [(20, 6.9), (40, 5.7)]}
    svg = drawing(loss_panel(ROUNDS, far, 3.63, 0.05))
    assert "the student, closer" in texts(svg)
    assert len(titles(svg)) == 2 * len(far["student"])
    assert "the student, closer" not in texts(drawing(LOSSES))


def test_layers_and_ranks_are_drawn():
    """There is a box for every layer of every round, and a point for every rank."""
    svg = drawing(LAYERS, 320)
    looks = [re.search(r"fill: [^;]*", path.get("style", ""))[0] for path in svg.iter("path") if path.get("clip-path")]
    assert (looks.count("fill: var(--student)"), looks.count("fill: none")) == (48, 48)
    assert titles(drawing(RANKS)) == [
        "reference, layer 0: 8.0",
        "reference, layer 2: 1.0",
        "student, layer 0: 9.0",
        "student, layer 1: 2.0",
    ]


def test_arms_are_drawn():
    """Each arm is named with its last loss, and its points have titles."""
    svg = drawing(ARMS)
    assert {"a 5.1000", "b 5.4000", "reference 5.0000", "1M", "2M"} < set(texts(svg))
    assert titles(svg)[0] == "a, 1,000,000 tokens: 5.2000"


def test_many_series_look_apart():
    """No two of 96 series have the same colour, dashes and marker."""
    looks = [str(figures._look(place)) for place in range(96)]
    assert len(set(looks)) == 96


@pytest.mark.parametrize(("panel", "width"), [*product([LOSSES, RANKS, LAYERS, ARMS], [320, 900])])
def test_svg_fits_into_a_page(panel, width):
    """Every colour is the page's, ids are unique to the figure, and nothing tells of the machine or the day."""
    text = render_svg(panel, "one", width)
    assert text == render_svg(panel, "one", width)
    assert not re.search(r"#[0-9a-f]{6}|https?:|xmlns|<style|metadata|<image", text)
    assert all(name in figures.COLORS for name in re.findall(r"var\(--(\w+)\)", text))
    ids = re.findall(r'id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("one-") for name in ids)
    used = {*re.findall(r'href="#([^"]*)"', text), *re.findall(r"url\(#([^)]*)\)", text)}
    assert used == set(ids)


def test_png_is_the_same_each_time(tmp_path):
    """Panels below a title become one PNG, the same bytes each time."""
    for name in ("a.png", "b.png"):
        save_panels(tmp_path / name, [LOSSES, LAYERS, RANKS], "name\n" + "words $x$ " * 40)
    picture = (tmp_path / "a.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
