"""Figures and the terminal table."""

import dataclasses
import io

import pytest
from lazy_models import LAYERS
from PIL import Image
from rich.console import Console

from inheritune_hf.analysis import LayerScores, measure_collapse
from inheritune_hf.analysis.plots import blocks_figure, draw_report, heads_figure, layer_table, rank_figure
from inheritune_hf.figures import figure_style


@pytest.fixture(scope="module")
def report(collapsed, sequences):
    return measure_collapse(collapsed, sequences)


def test_every_figure_is_drawn(report, tmp_path):
    """Each is a PNG of a readable size; running again gives the same bytes."""
    paths = draw_report(report, tmp_path / "figures")
    assert [path.name for path in paths] == ["rank.png", "heads.png", "maps.png", "blocks.png", "depth.png"]
    for path in paths:
        with Image.open(path) as figure:
            assert min(figure.size) > 350
    again = draw_report(report, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_the_rank_figure_says_what_it_shows(report):
    """Heads, MaxRank, mean and both controls are drawn and named, with the data they rest on."""
    figure = rank_figure(report)
    (axes,) = figure.axes
    names = {text.get_text() for text in axes.get_legend().get_texts()}
    assert names == {
        "heads",
        "MaxRank",
        "95 % interval of MaxRank",
        "mean over heads",
        "random weights, MaxRank",
        "uniform causal attention",
        "near rank-1",
    }
    assert "tau 0.9 · 40 sequences of 24 tokens" in figure.get_suptitle()
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["MaxRank"].get_ydata()) == report.max_ranks()
    assert tuple(lines["95 % interval of MaxRank"].get_ydata()) == report.max_rank_intervals()[0]


def test_heat_maps_have_the_same_scale_for_every_model(report):
    """Colours go from 1 to the length of the sequences."""
    upper = heads_figure(report).axes[0]
    assert upper.images[0].norm.vmin == 1
    assert upper.images[0].norm.vmax == 24
    assert upper.images[0].get_array().shape == (2, LAYERS)
    assert upper.get_xlim() == (-0.5, LAYERS - 0.5)  # no grey beside it: that means a layer without softmax attention


def test_numbers_are_written_as_numbers(report):
    """Axes of blocks' scores, logarithmic or not, have plain numbers at their ticks."""
    with figure_style():
        figure = blocks_figure(report)
        figure.canvas.draw()
    for axes in figure.axes:
        labels = [text.get_text() for text in axes.get_yticklabels() if text.get_text()]
        assert labels
        assert all(float(label.replace("−", "-")) is not None for label in labels)


def test_figures_of_what_was_not_measured_are_left_out(report, tmp_path):
    """Without blocks, controls, maps or softmax attention there is less to draw, and no error."""
    bare = dataclasses.replace(report, blocks=None, random=(), maps=())
    assert [path.name for path in draw_report(bare, tmp_path)] == ["rank.png", "heads.png"]
    none = dataclasses.replace(bare, layers=(LayerScores(0, "mamba"),))
    assert draw_report(none, tmp_path) == []


def test_table_fits_a_terminal(report):
    """One line for each layer in 80 columns, lazy ones named; layers without softmax attention say so."""
    console = Console(width=80, record=True, file=io.StringIO())
    mixed = dataclasses.replace(report, layers=(*report.layers[:-1], LayerScores(5, "conv")))
    console.print(layer_table(mixed))
    text = console.export_text()
    assert "…" not in text
    lines = [line for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert [line.split()[-1] == "lazy" for line in lines[:5]] == [False, False, True, False, True]
    assert "conv: no" in text
